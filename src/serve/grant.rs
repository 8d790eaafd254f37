// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The grant of a guest, the validation of its requests against it, and what all guests share.
//!
//! Must not: change a bus (validation reads one), or know rings. Called by `requestq` for each request;
//! `session` and `event_loop` use [`Shared`].

use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::config::{GuestMemory, GuestNumber, HoldPolicy};
use crate::error::ParamError;
use crate::os::deferred_close::DeferredClose;
use crate::os::epoll::Poller;
use crate::os::mounts::Mounts;
use crate::spi::bus::Bus;
use crate::spi::device::Device;
use crate::spi::framing::{Chip, Framed, Phase};
use crate::spi::hold::Claim;
use crate::spi::lead::Lead;
use crate::spi::message::Scratch;
use crate::spi::request::Request;
use crate::spi::transfer::{Keep, Transfer};
use crate::spi::wire::{self, ConfigSpace};
use crate::virtqueue::memory::Memory;

/// The devices and limits that a guest was given.
#[derive(Debug)]
pub struct Grant {
    /// Where each of its chip selects is: index of the bus, index of the device on it.
    pub chip_selects: Vec<(usize, usize)>,
    /// Its config space.
    pub config: ConfigSpace,
    /// What its memory may be.
    pub guest_memory: GuestMemory,
    /// How many bytes of memory it may have.
    pub max_memory_len: u64,
    /// The meaning of `cs_change` 0.
    pub policy: HoldPolicy,
    /// How long it may hold chip select after a transfer.
    pub hold_timeout: Duration,
    /// How long its ring is watched for the next request after one was served.
    pub poll: Duration,
}

/// All that guests share.
#[derive(Debug)]
pub struct Shared {
    /// The controllers.
    pub buses: Vec<Bus>,
    /// Where SPI messages are made.
    pub scratch: Scratch,
    /// The request that is being parsed. One for all guests: the segments of each of them would take a page.
    pub request: Box<Request>,
    /// The one epoll set.
    pub poller: Poller,
    /// The file systems of the host.
    pub mounts: Mounts,
    /// The fds of front-ends whose close is deferred.
    pub deferred: Rc<DeferredClose>,
    /// The clock, as last read: after a wait for events, messages, an ioctl, and each turn.
    pub now: Instant,
    /// When the turn in progress became due: a request's waiting time counts from then.
    pub due_since: Instant,
    /// If one front-end is connected at most: until when its guest has turn after turn.
    pub alone_until: Option<Instant>,
}

impl Shared {
    /// All that guests of these controllers share.
    pub fn new(
        buses: Vec<Bus>,
        poller: Poller,
        mounts: Mounts,
        deferred: Rc<DeferredClose>,
    ) -> Self {
        let now = Instant::now();
        Self {
            buses,
            scratch: Scratch::default(),
            request: Box::default(),
            poller,
            mounts,
            deferred,
            now,
            due_since: now,
            alone_until: None,
        }
    }
}

impl Grant {
    /// Validates the shared request, which is of guest `number`, against the chip select that it names;
    /// `follows` says whether another one is queued after it. Makes its `transfer` in its place, since a
    /// move takes 30 instructions, and returns the index of its bus.
    ///
    /// # Errors
    /// The first field, length or address that is not acceptable.
    pub fn validate(
        &self,
        number: GuestNumber,
        shared: &Shared,
        memory: &Memory,
        follows: bool,
        transfer: &mut Transfer,
    ) -> Result<usize, ParamError> {
        let request = &shared.request;
        let head = &request.head;
        let unknown = ParamError::ChipSelect(head.chip_select_id);
        let place = self.chip_selects.get(usize::from(head.chip_select_id));
        let &(bus_index, device_index) = place.ok_or(unknown)?;
        let bus = shared.buses.get(bus_index).ok_or(unknown)?;
        let device = bus.devices.get(device_index).ok_or(unknown)?;
        let timing = wire::validate(head, request.tx_len, request.rx_len, &device.limits)?;
        let claim = self.claim(request, (number, device_index), device);
        let keep = self.keep(head.cs_change, claim.receives);
        transfer.set(request, timing, claim, keep);
        if let Some(chip) = &device.chip {
            let copied = Lead::copy(memory, request.buffers().0, request.tx_len);
            let lead = copied.ok_or(ParamError::Malformed)?;
            let framed = frame(chip, bus.phase(&transfer.claim), number, request, &lead)?;
            transfer.lead = lead;
            transfer.lead.len = framed.lead_len;
            transfer.keep = match framed.remaining {
                Some(_) => Keep::Always,
                None => Keep::Never,
            };
            let claim = &mut transfer.claim;
            (claim.timeout, claim.for_read) = (chip.config.timeout, false);
            claim.framed = Some(framed);
        }
        if let Some(neighbour) = bus.neighbour {
            if transfer.keeps(follows) || !transfer.fits_one_message(device, request) {
                return Err(ParamError::SharedBus(neighbour));
            }
            transfer.keep = Keep::Never;
        }
        Ok(bus_index)
    }

    /// The claim of a request of this guest to a device of its bus, at this index.
    fn claim(
        &self,
        request: &Request,
        (guest, index): (GuestNumber, usize),
        device: &Device,
    ) -> Claim {
        Claim {
            guest,
            device: index,
            mode: device.mode_for(&request.head),
            sends: request.tx_len > 0,
            receives: request.rx_len > 0,
            timeout: self.hold_timeout,
            for_read: self.policy == HoldPolicy::WriteRead,
            framed: None,
        }
    }

    /// When a request keeps chip select asserted after it.
    fn keep(&self, cs_change: u8, receives: bool) -> Keep {
        match (cs_change, self.policy) {
            (0, HoldPolicy::Queued) => Keep::IfFollowed,
            (0, HoldPolicy::Spec) => Keep::Always,
            (0, HoldPolicy::WriteRead) if !receives => Keep::Always,
            _ => Keep::Never,
        }
    }

    /// The chip select that a request names, if the guest has it.
    pub fn chip_select_of(&self, request: &Request) -> Option<u8> {
        let number = request.head.chip_select_id;
        (usize::from(number) < self.chip_selects.len()).then_some(number)
    }
}

/// The part of a chip's command that `request` is, if it finds the chip in `phase`.
///
/// # Errors
/// `guest` may not send it.
fn frame(
    chip: &Chip,
    phase: Phase,
    guest: GuestNumber,
    request: &Request,
    lead: &Lead,
) -> Result<Framed, ParamError> {
    let receives = request.rx_len > 0;
    chip.permit(guest, phase, &request.head, lead.bytes(), receives)?;
    let len = request.tx_len.max(request.rx_len);
    Ok(chip.frame(phase, lead.bytes(), len, receives))
}
