// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One request in progress, sent one message at a time.
//!
//! A transfer lives across turns of the loop: between two messages chip select stays asserted, and the
//! loop serves other guests and handles messages of any front-end. Meanwhile a transfer keeps guest
//! addresses and lengths, and no pointer. Each step translates the addresses anew, so that memory that
//! was unmapped is an error and not a stray pointer.
//!
//! Invariant: a step either makes progress, or waits for a moment, or ends the transfer. After an error
//! `Device::line` says whether chip select may be asserted.
//!
//! Must not: know rings, or who waits for the bus. Made by `grant`. Called by `bus`, which releases chip
//! select; `requestq` asks how long it will take.

use std::time::{Duration, Instant};

use crate::error::TransferError;
use crate::spi::device::{Device, Line, Port};
use crate::spi::hold::Claim;
use crate::spi::lead::Lead;
use crate::spi::loopback::{self, Loopback};
use crate::spi::message::{Scratch, SpiMessage};
use crate::spi::plan::{Budget, MAX_PIECES, Progress, Work, plan_message};
use crate::spi::request::Request;
use crate::spi::spidev::Spidev;
use crate::spi::wire::{Timing, TransferHead};
use crate::virtqueue::memory::Memory;

/// Whether chip select stays asserted after a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Keep {
    /// It is released.
    #[default]
    Never,
    /// It stays if the guest has queued another request by then.
    IfFollowed,
    /// It stays.
    Always,
}

/// What a step led to.
#[derive(Debug)]
pub enum Step {
    /// There is more to do.
    More,
    /// Nothing to do before this moment.
    Until(Instant),
    /// The transfer is over.
    Done {
        /// Chip select stayed asserted.
        kept: bool,
    },
}

/// The bytes of the request, and the bounds of its next message.
struct NextMessage<'r> {
    work: Work<'r>,
    budget: Budget,
    /// A setup delay is in front of it, and takes one of its transfers.
    sets_up: bool,
}

/// A request that was accepted, and how far it has got.
#[derive(Debug, Default)]
pub struct Transfer {
    /// The device, its mode, and the guest's terms for holding chip select.
    pub claim: Claim,
    /// The request's head.
    pub head: TransferHead,
    timing: Timing,
    len: u64,
    /// Whether chip select stays asserted at its end.
    pub keep: Keep,
    /// Its first bytes, if `framing` decided on them: sent from here.
    pub lead: Lead,
    progress: Progress,
    /// The loopback's message on the wire ends at this moment.
    busy_until: Option<Instant>,
    /// The loopback is to fail it.
    fails: bool,
}

impl Transfer {
    /// Makes it that of `request`, not begun yet. Field by field: a new one would be moved here.
    pub fn set(&mut self, request: &Request, timing: Timing, claim: Claim, keep: Keep) {
        self.claim = claim;
        self.head = request.head;
        self.timing = timing;
        self.len = request.tx_len.max(request.rx_len);
        self.keep = keep;
        self.lead = Lead::default();
        self.progress = Progress::default();
        self.busy_until = None;
        self.fails = false;
    }

    /// Whether it only writes, and keeps chip select only for a request that is queued.
    pub fn may_begin_a_pair(&self) -> bool {
        self.keeps_if_followed() && !self.claim.receives
    }

    /// Whether its guest's next request decides if chip select stays asserted.
    pub fn keeps_if_followed(&self) -> bool {
        self.keep == Keep::IfFollowed
    }

    /// The whole transfer on the wire: bytes in one direction, and nanoseconds with its delays.
    pub fn whole(&self) -> (u64, u64) {
        (self.len, self.timing.total_ns)
    }

    /// How long it will still take on the wire: `requestq` decides by this whether a message of the
    /// front-end waits for its end.
    pub fn remaining(&self, now: Instant) -> Duration {
        let left = self.len.saturating_sub(self.progress.done);
        let wire = self.timing.wire_ns(left);
        let wire = Duration::from_nanos(wire.saturating_add(self.head.cs_delay_hold_ns.into()));
        let busy_until = self.busy_until.unwrap_or(now);
        wire.saturating_add(busy_until.saturating_duration_since(now))
    }

    /// How long the words of the next message take on the wire, at most.
    pub fn next_message_ns(&self) -> u64 {
        self.timing.words_budget_ns.min(self.timing.total_ns)
    }

    /// Whether one message holds all of it. Otherwise chip select is held between two ioctls, and meanwhile
    /// a device of the controller that is not this daemon's could be selected beside it.
    pub fn fits_one_message(&self, device: &Device, request: &Request) -> bool {
        let (next, mut progress) = (self.next_message(device, request), Progress::default());
        let planned = plan_message(&next.work, &next.budget, &mut progress, |_| Ok(()));
        planned.is_ok_and(|len| u64::from(len) == self.len)
    }

    /// Sends the next message. `follows` says whether the guest has queued another request; `now`
    /// moves on by the time that the ioctl takes.
    ///
    /// # Errors
    /// The transfer is over; the device knows what became of its line.
    pub fn step(
        &mut self,
        device: &mut Device,
        request: &Request,
        memory: &Memory,
        scratch: &mut Scratch,
        follows: bool,
        now: &mut Instant,
    ) -> Result<Step, TransferError> {
        if let Some(until) = self.busy_until {
            self.busy_until = Some(until).filter(|until| until > now);
            return self.after_message(follows);
        }
        // Setting a mode calls spi_setup(), which releases chip select. So it is set before chip select is
        // asserted. Within one assertion the mode stays the same (`Hold::is_continued_by`): none is set.
        let used = device.use_mode(self.claim.mode);
        used.map_err(TransferError::Ioctl)?;
        let before = device.line;
        let next = self.next_message(device, request);
        // Commit point: below this line the bus has been touched.
        device.line = Line::Asserted;
        device.inactive_ns = self.head.cs_change_delay_inactive_ns;
        let sent = match &mut device.port {
            Port::Spidev(spidev) => {
                let sent = self.send(spidev, &next, memory, scratch, follows);
                *now = Instant::now();
                sent
            }
            Port::Loopback(loopback) => self.echo(loopback, &next, memory, *now),
        };
        if sent.as_ref().is_err_and(TransferError::is_shutdown) && before == Line::Released {
            // spidev of a device that is gone, and the core of a controller that is suspended, refuse
            // before the line is touched (`spidev_sync()`, `__spi_sync()`).
            device.line = Line::Untouched;
        }
        sent.and_then(|()| self.after_message(follows))
    }

    fn after_message(&self, follows: bool) -> Result<Step, TransferError> {
        if let Some(until) = self.busy_until {
            return Ok(Step::Until(until));
        }
        if self.fails {
            return Err(TransferError::Injected);
        }
        if self.progress.done < self.len {
            return Ok(Step::More);
        }
        let kept = self.keeps(follows);
        Ok(Step::Done { kept })
    }

    /// Whether chip select stays asserted at its end; `follows` says whether another request is queued.
    pub fn keeps(&self, follows: bool) -> bool {
        self.keep == Keep::Always || (self.keeps_if_followed() && follows)
    }

    /// The request's bytes and the bounds of its next message. The setup delay is due where chip select is
    /// to be asserted, and takes a transfer of its own.
    fn next_message<'r>(&self, device: &Device, request: &'r Request) -> NextMessage<'r> {
        let sets_up = self.head.cs_setup_ns > 0 && device.line != Line::Asserted;
        let (tx, rx) = request.buffers();
        NextMessage {
            work: Work {
                tx,
                rx,
                len: self.len,
                // Bytes are all the same to the loopback: no word needs to stay whole.
                word_len: match device.port {
                    Port::Spidev(_) => self.timing.word_len,
                    Port::Loopback(_) => 1,
                },
                lead_len: self.lead.len,
            },
            budget: Budget {
                bufsiz: device.bufsiz,
                align: device.align(),
                pieces: MAX_PIECES.saturating_sub(usize::from(sets_up)),
                bytes: self.timing.message_len,
            },
            sets_up,
        }
    }

    /// Sends the next message to a spidev, in one ioctl.
    fn send(
        &mut self,
        spidev: &Spidev,
        next: &NextMessage<'_>,
        memory: &Memory,
        scratch: &mut Scratch,
        follows: bool,
    ) -> Result<(), TransferError> {
        let (head, lead, speed_hz) = (self.head, self.lead, self.timing.speed_hz);
        let mut message = SpiMessage::new(scratch, memory, &lead, &head, speed_hz, next.sets_up);
        let (work, budget) = (&next.work, &next.budget);
        let emit = |piece| message.push(work, &piece).ok_or(TransferError::Memory);
        let len = plan_message(work, budget, &mut self.progress, emit)?;
        let keep = self.progress.done < self.len || self.keeps(follows);
        // The hold delay is between the last bit and the release of chip select (VIRTIO 1.4,
        // `cs_delay_hold_ns`); where chip select stays, the bus waits it out before it releases.
        message.finish(keep, if keep { 0 } else { head.cs_delay_hold_ns });
        spidev.transfer(&message, len)?;
        message.scatter(work.rx).ok_or(TransferError::Memory)
    }

    /// Moves the bytes of the next message at once, then lets the time pass that it would take on the
    /// wire. The first one takes the delay that was asked for; of a transfer that is to fail, it moves
    /// nothing and takes nothing else.
    #[inline(always)] // Else `next` could not be in registers where it is sent.
    fn echo(
        &mut self,
        loopback: &mut Loopback,
        next: &NextMessage<'_>,
        memory: &Memory,
        now: Instant,
    ) -> Result<(), TransferError> {
        let mut delay = Duration::ZERO;
        if self.progress.done == 0 {
            (delay, self.fails) = loopback.begin();
        }
        if self.fails {
            self.busy_until = now.checked_add(delay);
            return Ok(());
        }
        let emit = |piece| loopback::transfer(memory, &piece).ok_or(TransferError::Memory);
        let len = plan_message(&next.work, &next.budget, &mut self.progress, emit)?;
        let mut ns = self.timing.wire_ns(len.into());
        if next.sets_up {
            ns = ns.saturating_add(self.head.cs_setup_ns.into());
        }
        if self.progress.done == self.len {
            ns = ns.saturating_add(self.head.cs_delay_hold_ns.into());
        }
        let wire = Duration::from_nanos(ns);
        self.busy_until = now.checked_add(delay.saturating_add(wire));
        Ok(())
    }
}
