//! A controller and its chip selects: who has the wire, who waits, and what is held.
//!
//! A bus has one owner at a time. The owner has a transfer in progress, or *holds* the bus: its
//! last request left chip select asserted, and the kernel would happily let a message to another
//! device go out with two of them selected. So while a hold lasts nobody else gets the bus, and
//! the owner's own next request either continues the assertion or releases it first.
//!
//! Invariant: chip select is asserted only while there is a transfer or a hold. Must not: know
//! rings.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::error::TransferError;
use crate::spi::device::Device;
use crate::spi::hold::{Claim, Hold, HoldTerms};
use crate::spi::message::Scratch;
use crate::spi::request::Store;
use crate::spi::transfer::{Step, Transfer};
use crate::virtqueue::memory::Memory;

/// Whether a request may go on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Now; and whether it goes on in an assertion that the guest holds.
    Free {
        /// Chip select is asserted already.
        continues: bool,
    },
    /// When the bus is free: the guest is to wait for it.
    Busy,
    /// Not before this moment.
    NotBefore(Instant),
    /// It would have continued an assertion that ran out, or had to end for others.
    HoldCut,
    /// A device of the bus is selected and cannot be released.
    Stuck,
}

#[derive(Debug)]
struct Running {
    claim: Claim,
    terms: HoldTerms,
    transfer: Transfer,
    /// When it began.
    began: Instant,
}

/// A controller.
#[derive(Debug)]
pub struct Bus {
    /// Its devices, in the order of the command line.
    pub devices: Vec<Device>,
    /// Name of a device of the controller that is not this daemon's: nothing may be held beside it.
    pub neighbour: Option<&'static str>,
    store: Box<Store>,
    running: Option<Running>,
    hold: Option<Hold>,
    /// For each guest whose hold ran out or was cut: the device and mode, until its next request.
    cuts: Vec<Option<(usize, u32)>>,
    waiters: VecDeque<usize>,
    /// The guest that the bus is kept for until it has had a turn.
    promised: Option<usize>,
    /// The device of the last transfer.
    last_used: usize,
}

impl Bus {
    /// A bus that nobody uses, with room for `guests` to wait for it.
    pub fn new(devices: Vec<Device>, neighbour: Option<&'static str>, guests: usize) -> Self {
        Self {
            devices,
            neighbour,
            store: Box::default(),
            running: None,
            hold: None,
            cuts: vec![None; guests],
            waiters: VecDeque::with_capacity(guests),
            promised: None,
            last_used: 0,
        }
    }

    /// Whether a request with this claim may begin; releases the guest's own hold if it does not
    /// continue it.
    pub fn access(&mut self, claim: &Claim, now: &mut Instant) -> Access {
        let promised_to_another = self.promised.is_some_and(|guest| guest != claim.guest);
        if self.running.is_some() || promised_to_another {
            return Access::Busy;
        }
        if let Some(hold) = &self.hold {
            if hold.claim.guest != claim.guest || hold.ending {
                return Access::Busy;
            }
            let continues = hold.is_continued_by(claim);
            let for_read = hold.terms.for_read;
            let overdue = !self.waiters.is_empty() && hold.is_overdue(*now);
            if continues && !overdue {
                return Access::Free { continues: true };
            }
            let released = self.end_hold(now);
            if continues && !for_read {
                return Access::HoldCut;
            }
            if overdue || !released {
                return Access::Busy;
            }
        }
        let cut = self.cuts.get_mut(claim.guest).and_then(Option::take);
        if cut == Some((claim.device, claim.mode)) {
            return Access::HoldCut;
        }
        if !self.release_stuck(now) {
            return Access::Stuck;
        }
        let device = self.devices.get_mut(claim.device);
        match device.and_then(|device| device.inactive_until(*now)) {
            Some(at) => Access::NotBefore(at),
            None => Access::Free { continues: false },
        }
    }

    /// Releases lines that could not be released before.
    fn release_stuck(&mut self, now: &mut Instant) -> bool {
        let mut stuck = self.devices.iter_mut().filter(|device| device.is_stuck());
        stuck.all(|device| device.release(now).is_ok())
    }

    /// Gives the bus `now` to a transfer whose segments are in `store`, which is exchanged for another.
    pub fn begin(
        &mut self,
        claim: Claim,
        terms: HoldTerms,
        transfer: Transfer,
        store: &mut Box<Store>,
        now: Instant,
    ) {
        std::mem::swap(&mut self.store, store);
        self.last_used = claim.device;
        if let Some(device) = self.devices.get_mut(claim.device) {
            device.last_guest = Some(claim.guest);
            device.unsettled = false;
        }
        self.running = Some(Running {
            claim,
            terms,
            began: now,
            transfer,
        });
    }

    /// Makes the next step of the transfer in progress. After `Done` and errors the bus is free or
    /// held.
    ///
    /// # Errors
    /// The transfer failed; chip select was released.
    pub fn step(
        &mut self,
        memory: &Memory,
        scratch: &mut Scratch,
        follows: bool,
        now: &mut Instant,
    ) -> Result<Step, TransferError> {
        let Some(running) = &mut self.running else {
            return Err(TransferError::Aborted);
        };
        let claim = running.claim;
        let Some(device) = self.devices.get_mut(claim.device) else {
            return Err(TransferError::Aborted);
        };
        let step = running
            .transfer
            .step(device, &self.store, memory, scratch, follows, now);
        match step {
            Ok(Step::More | Step::Until(_)) => (),
            Ok(Step::Done { kept: true }) => {
                device.down = false;
                self.keep(*now);
            }
            Ok(Step::Done { kept: false }) => {
                device.down = false;
                // Released by the last message itself.
                let inactive = running.transfer.head.cs_change_delay_inactive_ns;
                device.start_inactive_delay(inactive, *now);
                self.running = None;
                self.hold = None;
            }
            Err(ref error) => self.drop_transfer(Some(error), now),
        }
        step
    }

    /// The last message left chip select asserted.
    fn keep(&mut self, now: Instant) {
        let Some(running) = self.running.take() else {
            return;
        };
        let held = self.hold.take();
        let asserted_at = held.map_or(running.began, |hold| hold.asserted_at);
        let head = running.transfer.head;
        let hold_delay = Duration::from_nanos(head.cs_delay_hold_ns.into());
        self.hold = Some(Hold {
            claim: running.claim,
            terms: running.terms,
            asserted_at,
            until: now.checked_add(running.terms.timeout).unwrap_or(now),
            earliest_release: (!hold_delay.is_zero())
                .then(|| now.checked_add(hold_delay))
                .flatten(),
            inactive_ns: head.cs_change_delay_inactive_ns,
            ending: false,
        });
    }

    /// Ends the transfer in progress, and releases chip select where it may be asserted.
    fn drop_transfer(&mut self, error: Option<&TransferError>, now: &mut Instant) {
        let Some(running) = self.running.take() else {
            return;
        };
        let held = self.hold.take().is_some();
        if let Some(device) = self.devices.get_mut(running.claim.device)
            && (held || running.transfer.is_on_wire())
        {
            // If it fails, it is done before anything else on this bus.
            if device.release(now).is_err() && !running.transfer.may_be_asserted(error) {
                device.set_unstuck();
            }
            device.start_inactive_delay(running.transfer.head.cs_change_delay_inactive_ns, *now);
        }
    }

    /// Takes the bus from `guest`: a transfer in progress ends, a hold is released at once, and the
    /// devices that it used last go back to the mode that they were found in.
    pub fn abort(&mut self, guest: usize, now: &mut Instant) {
        self.waiters.retain(|&waiter| waiter != guest);
        self.forget_promise(guest);
        self.forget_cut(guest);
        if self.running_for(guest).is_some() {
            self.drop_transfer(None, now);
        } else if let Some(hold) = self.hold.take_if(|hold| hold.claim.guest == guest)
            && let Some(device) = self.devices.get_mut(hold.claim.device)
        {
            // If it fails, it is done before anything else on this bus.
            let _ = device.release(now);
            device.start_inactive_delay(hold.inactive_ns, *now);
        }
        for device in &mut self.devices {
            if device.last_guest.take_if(|last| *last == guest).is_some() {
                device.unsettled = true;
            }
        }
        self.settle();
    }

    /// Puts devices whose guests have left back into their mode, unless chip select of any device
    /// is asserted: writing a mode may touch the lines of all.
    fn settle(&mut self) {
        let stuck = self.devices.iter().any(Device::is_stuck);
        if self.running.is_none() && self.hold.is_none() && !stuck {
            self.devices.iter_mut().for_each(Device::settle);
        }
    }

    /// Releases all lines that can be; for the end, when nobody uses the bus any more.
    pub fn release_all(&mut self) {
        let mut now = Instant::now();
        for device in self.devices.iter_mut().filter(|device| device.is_stuck()) {
            // There is nothing left to do about a device that refuses.
            let _ = device.release(&mut now);
        }
    }

    /// Notes that the last transfer failed; the device's name if the log is to have it: a device
    /// that is gone or suspended (`down`) says so once.
    pub fn note_failure(&mut self, down: bool) -> Option<&str> {
        let device = self.devices.get_mut(self.last_used)?;
        let known = std::mem::replace(&mut device.down, down);
        (!(down && known)).then_some(&device.name)
    }

    /// The transfer that `guest` has in progress.
    pub fn running_for(&self, guest: usize) -> Option<&Transfer> {
        let running = self.running.as_ref()?;
        (running.claim.guest == guest).then_some(&running.transfer)
    }

    fn forget_cut(&mut self, guest: usize) {
        if let Some(cut) = self.cuts.get_mut(guest) {
            *cut = None;
        }
    }

    /// The guest goes on elsewhere: releases what it holds here; `false` if its hold delay is not
    /// over and `deadline` will do it.
    pub fn release(&mut self, guest: usize, now: &mut Instant) -> bool {
        self.forget_cut(guest);
        match &self.hold {
            Some(hold) if hold.claim.guest == guest && self.running.is_none() => self.end_hold(now),
            Some(_) | None => true,
        }
    }

    fn end_hold(&mut self, now: &mut Instant) -> bool {
        let Some(hold) = &mut self.hold else {
            return true;
        };
        if let Some(at) = hold.earliest_release.filter(|&at| at > *now) {
            hold.ending = true;
            hold.until = at;
            return false;
        }
        if let Some(device) = self.devices.get_mut(hold.claim.device) {
            // If it fails, it is done before anything else on this bus.
            let _ = device.release(now);
            device.start_inactive_delay(hold.inactive_ns, *now);
        }
        self.hold = None;
        true
    }

    /// Puts `guest` at the end of those who wait for the bus.
    pub fn wait(&mut self, guest: usize) {
        if !self.waiters.contains(&guest) {
            self.waiters.push_back(guest);
        }
    }

    /// The guest that has waited longest, once the bus is free: it is kept for that guest's next
    /// turn.
    pub fn next_waiter(&mut self) -> Option<usize> {
        if self.running.is_some() || self.hold.is_some() || self.promised.is_some() {
            return None;
        }
        self.settle();
        self.promised = self.waiters.pop_front();
        self.promised
    }

    /// `guest` has had its turn.
    pub fn forget_promise(&mut self, guest: usize) {
        self.promised.take_if(|promised| *promised == guest);
    }

    /// When the bus needs the loop again though nothing happens: a hold runs out.
    pub fn deadline(&self) -> Option<Instant> {
        match (&self.running, &self.hold) {
            (None, Some(hold)) => Some(hold.ends_at(!self.waiters.is_empty())),
            (Some(_), _) | (None, None) => None,
        }
    }

    /// The guest whose hold has run out, but is not overdue: it goes on with a request that the
    /// guest has queued by now.
    pub fn may_go_on(&self, now: Instant) -> Option<usize> {
        let hold = self.hold.as_ref()?;
        let others_wait = !self.waiters.is_empty();
        let has_run_out = self.deadline().is_some_and(|at| at <= now);
        (has_run_out && !hold.ending && !(others_wait && hold.is_overdue(now)))
            .then_some(hold.claim.guest)
    }

    /// Ends a hold that has run out.
    pub fn expire(&mut self, now: &mut Instant) {
        if self.deadline().is_none_or(|at| at > *now) {
            return;
        }
        if let Some(hold) = &self.hold
            && !(hold.terms.for_read || hold.ending)
            && let Some(cut) = self.cuts.get_mut(hold.claim.guest)
        {
            *cut = Some((hold.claim.device, hold.claim.mode));
        }
        self.end_hold(now);
    }
}
