// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A controller and its chip selects: which guest has the bus, which ones wait, and the hold.
//!
//! A bus has one owner at a time. The owner has a transfer in progress, or *holds* the bus: its last
//! request left chip select asserted. The kernel does not prevent a message to another device of the
//! controller meanwhile, which would select two of them. So while a hold lasts no other guest gets the
//! bus, and the owner's next request either continues the assertion or releases it first.
//!
//! Invariant: chip select is asserted only while the bus is `Running` or `Held`; a line that could
//! not be released is released before anything else happens on the bus. Must not: know rings.
//! Called by `requestq`, by `grant` for the phase of a chip, and by `event_loop` when a hold runs out, a
//! guest waits or the bus rests.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::config::GuestNumber;
use crate::error::TransferError;
use crate::spi::device::{Device, Line};
use crate::spi::framing::Phase;
use crate::spi::hold::{Claim, Hold};
use crate::spi::message::Scratch;
use crate::spi::request::Request;
use crate::spi::transfer::{Step, Transfer};
use crate::virtqueue::memory::Memory;

/// A message that takes this long or longer is a long one: the bus rests after it.
pub const LONG: Duration = Duration::from_millis(1);

/// Whether a request may go on the wire.
#[derive(Debug)]
pub enum Admission {
    /// Now.
    Free,
    /// When the bus is free: the guest is to wait for it.
    Busy,
    /// Not before this moment.
    NotBefore(Instant),
    /// It cannot: it would have continued an assertion that has ended, or a device of the bus is
    /// selected and cannot be released.
    Failed(TransferError),
}

/// Who has the wire.
#[derive(Debug)]
enum State {
    /// Nobody.
    Free,
    /// Nobody; this guest, which waited longest, may begin in its next turn.
    Reserved(GuestNumber),
    /// A transfer in progress; chip select was asserted for it, or for the one that it continues, at this
    /// moment.
    Running(Instant),
    /// A guest between two requests.
    Held(Hold),
}

/// A controller.
#[derive(Debug)]
pub struct Bus {
    /// Its devices, in the order of the command line.
    pub devices: Vec<Device>,
    /// Name of a device of the controller that is not this daemon's: nothing may be held beside it.
    pub neighbour: Option<&'static str>,
    state: State,
    /// That of the transfer in progress.
    request: Box<Request>,
    /// For each guest whose hold ran out: what its last request had claimed, until its next request.
    lost_holds: Vec<Option<Claim>>,
    waiters: VecDeque<GuestNumber>,
    /// A long message is over, and none begins until all sessions that were queued at its end have had a
    /// turn. So a guest that uses another bus waits for a single message of this one, however many
    /// guests keep it busy.
    rests: bool,
}

impl Bus {
    /// A bus that nobody uses, with room for `guests` to wait for it.
    pub fn new(devices: Vec<Device>, neighbour: Option<&'static str>, guests: usize) -> Self {
        Self {
            devices,
            neighbour,
            state: State::Free,
            request: Box::default(),
            lost_holds: vec![None; guests],
            waiters: VecDeque::with_capacity(guests),
            rests: false,
        }
    }

    /// Whether a request with this claim may begin. Releases the guest's own hold if the request does not
    /// continue it, or if others wait and the assertion has lasted too long.
    pub fn admit(&mut self, claim: &Claim, now: &mut Instant) -> Admission {
        let phase = self.phase(claim);
        let admission = self.find_admission(claim, now);
        // What `framing` made of the request by its phase is what the chip will see.
        debug_assert!(match (&admission, phase) {
            (Admission::Free, Phase::Within(_)) => matches!(self.state, State::Held(_)),
            (Admission::Free, Phase::Lost) => false,
            _ => true,
        });
        admission
    }

    fn find_admission(&mut self, claim: &Claim, now: &mut Instant) -> Admission {
        let is_taken = match &self.state {
            State::Free => false,
            State::Reserved(guest) => *guest != claim.guest,
            State::Running(_) => true,
            State::Held(hold) => hold.claim.guest != claim.guest || hold.ending,
        };
        if is_taken {
            return Admission::Busy;
        }
        if let Some(hold) = self.hold() {
            let continues = hold.is_continued_by(claim);
            let overdue = !self.waiters.is_empty() && hold.cap_at <= *now;
            if continues && !overdue {
                return Admission::Free;
            }
            // A driver that relies on the assertion must hear of its end.
            let is_lost = continues && !hold.claim.for_read;
            let released = self.end_hold(now);
            if is_lost {
                return Admission::Failed(TransferError::HoldLost);
            }
            if overdue || !released {
                return Admission::Busy;
            }
        }
        self.admit_when_free(claim, now)
    }

    /// The same, for a bus that nobody holds.
    fn admit_when_free(&mut self, claim: &Claim, now: &mut Instant) -> Admission {
        let lost = self.take_lost(claim.guest);
        if lost.is_some_and(|lost| lost.is_like(claim)) {
            return Admission::Failed(TransferError::HoldLost);
        }
        if !self.release_all(now) {
            return Admission::Failed(TransferError::Stuck);
        }
        let device = self.devices.get(claim.device);
        let until = device.and_then(|device| device.inactive_until(*now));
        until.map_or(Admission::Free, Admission::NotBefore)
    }

    /// The phase in which a request with this claim finds its chip. [`Bus::admit`] must agree, which debug
    /// builds check: after `Within` it lets the request continue the hold or refuses it, after `Lost` it
    /// refuses it.
    pub fn phase(&self, claim: &Claim) -> Phase {
        let hold = self.hold().filter(|hold| hold.is_continued_by(claim));
        let lost = self.lost(claim.guest).filter(|lost| lost.is_like(claim));
        match hold.and_then(|hold| hold.claim.framed?.remaining) {
            Some(begun) => Phase::Within(begun),
            None if lost.is_some() => Phase::Lost,
            None => Phase::Opcode,
        }
    }

    /// Whether `guest` is in the middle of a chip's command here, or was until its hold ran out.
    pub fn is_in_command(&self, guest: GuestNumber) -> bool {
        let last = self.held_by(guest).or(self.lost(guest));
        last.is_some_and(|last| last.framed.is_some())
    }

    /// Tries to release all lines; returns whether all are released. A line of a free bus is asserted only
    /// if an earlier release failed.
    #[inline]
    fn release_all(&mut self, now: &mut Instant) -> bool {
        let devices = self.devices.iter_mut();
        let held = devices.filter(|device| device.line != Line::Released);
        held.fold(true, |all, device| all & device.release(now).is_ok())
    }

    /// Nobody has the bus any more. Of its lines only that of the last transfer can be asserted. If its
    /// release fails, `admit_when_free` tries it again before the next transfer.
    fn free(&mut self, now: &mut Instant) {
        self.state = State::Free;
        self.release_all(now);
    }

    /// Gives the bus to the transfer for which [`Bus::admit`] found it free. Takes its `request`, and leaves
    /// another one in its place.
    pub fn begin(&mut self, claim: &Claim, request: &mut Box<Request>, now: Instant) {
        std::mem::swap(&mut self.request, request);
        let asserted_at = self.hold().map_or(now, |hold| hold.asserted_at);
        debug_assert!(!matches!(self.state, State::Running(_)));
        self.state = State::Running(asserted_at);
        if let Some(device) = self.devices.get_mut(claim.device) {
            device.set_user(claim.guest);
        }
    }

    /// Makes the next step of the transfer in progress. After `Done` the bus is held or free, after an
    /// error it is free.
    ///
    /// # Errors
    /// The transfer failed; chip select was released.
    pub fn step(
        &mut self,
        transfer: &mut Transfer,
        memory: &Memory,
        scratch: &mut Scratch,
        follows: bool,
        now: &mut Instant,
    ) -> Result<Step, TransferError> {
        debug_assert!(matches!(self.state, State::Running(_)));
        let Some(device) = self.devices.get_mut(transfer.claim.device) else {
            return Err(TransferError::Aborted);
        };
        let long_at = now.checked_add(LONG);
        let step = transfer.step(device, &self.request, memory, scratch, follows, now);
        if long_at.is_some_and(|at| at <= *now) {
            self.rests = true;
        }
        match step {
            Ok(Step::More | Step::Until(_)) => (),
            Ok(Step::Done { kept }) => {
                device.set_down(false);
                device.note_outcome(transfer.claim.framed.as_ref(), true);
                if let (true, State::Running(asserted_at)) = (kept, &self.state) {
                    let (claim, head) = (transfer.claim, &transfer.head);
                    let max_total = Duration::from_nanos(device.limits.max_transfer_ns);
                    self.state = State::Held(Hold::new(claim, head, *asserted_at, max_total, *now));
                } else {
                    // The last message released chip select itself.
                    device.note_release(*now);
                    self.state = State::Free;
                }
            }
            Err(_) => self.abandon(transfer, now),
        }
        step
    }

    /// Ends the transfer in progress before its end, and releases chip select where it may be
    /// asserted.
    pub fn abandon(&mut self, transfer: &Transfer, now: &mut Instant) {
        debug_assert!(matches!(self.state, State::Running(_)));
        if let Some(device) = self.devices.get_mut(transfer.claim.device) {
            device.note_outcome(transfer.claim.framed.as_ref(), false);
        }
        self.free(now);
    }

    /// `guest` is gone, or its ring stopped: it neither waits nor holds any more, and the devices
    /// that it used last go back to the mode that they were found in. Its transfer was
    /// [abandoned](Bus::abandon).
    pub fn leave(&mut self, guest: GuestNumber, now: &mut Instant) {
        self.waiters.retain(|&waiter| waiter != guest);
        self.clear_reservation(guest);
        self.take_lost(guest);
        if self.held_by(guest).is_some() {
            self.free(now);
        }
        for device in &mut self.devices {
            device.forget_user(guest);
        }
        self.restore_idle_modes();
    }

    /// Puts devices whose guests have left back into their mode, unless chip select of any device
    /// is asserted: writing a mode may touch the lines of all.
    fn restore_idle_modes(&mut self) {
        let is_free = matches!(self.state, State::Free | State::Reserved(_));
        if is_free && self.devices.iter().all(|d| d.line == Line::Released) {
            self.devices.iter_mut().for_each(Device::restore_idle_mode);
        }
    }

    /// Notes that a transfer to `device` failed. Returns the device's name if the failure is to be logged. If
    /// the device is gone or suspended, only the first one is.
    pub fn note_failure(&mut self, device: usize, error: &TransferError) -> Option<&str> {
        let device = self.devices.get_mut(device)?;
        let known = device.set_down(error.is_shutdown());
        (!known).then_some(&device.name)
    }

    /// The claim of the guest's hold that ran out. A next request like it would have continued the hold,
    /// and must hear that chip select was released.
    fn lost(&self, guest: GuestNumber) -> Option<&Claim> {
        self.lost_holds.get(guest.index())?.as_ref()
    }

    fn take_lost(&mut self, guest: GuestNumber) -> Option<Claim> {
        // Not `take()`, which moves a claim where there is none, too.
        self.lost_holds.get_mut(guest.index())?.take_if(|_| true)
    }

    /// Ends the hold of `guest` here, which its next request does not continue, and forgets one that ran out.
    /// `false` if the hold delay is not over; the hold then ends at [`Bus::deadline`].
    pub fn release_for(&mut self, guest: GuestNumber, now: &mut Instant) -> bool {
        self.take_lost(guest);
        self.held_by(guest).is_none() || self.end_hold(now)
    }

    fn hold(&self) -> Option<&Hold> {
        match &self.state {
            State::Held(hold) => Some(hold),
            State::Free | State::Reserved(_) | State::Running(_) => None,
        }
    }

    /// What `guest` claimed with its last request, if it holds the bus since then.
    fn held_by(&self, guest: GuestNumber) -> Option<&Claim> {
        let claim = self.hold().map(|hold| &hold.claim);
        claim.filter(|claim| claim.guest == guest)
    }

    /// Ends the hold; `false` if its hold delay is not over: it then ends at [`Bus::deadline`].
    fn end_hold(&mut self, now: &mut Instant) -> bool {
        if let State::Held(hold) = &mut self.state {
            if hold.releasable_at > *now {
                hold.ending = true;
                return false;
            }
        }
        self.free(now);
        true
    }

    /// Puts `guest` at the end of the queue for the bus.
    pub fn wait(&mut self, guest: GuestNumber) {
        if !self.waiters.contains(&guest) {
            self.waiters.push_back(guest);
        }
    }

    /// Whether no message may begin before others had their turn.
    pub fn rests(&self) -> bool {
        self.rests
    }

    /// Whether the bus rests, so that no request of `guest` may begin. Its next turn comes later: it waits
    /// for the bus, or, if it holds that, [`Bus::end_rest`] returns it.
    pub fn turns_away(&mut self, guest: GuestNumber) -> bool {
        if self.rests && self.held_by(guest).is_none() {
            self.wait(guest);
        }
        self.rests
    }

    /// Lets messages begin again. Returns the guest that is to have a turn: the one that holds the bus, or
    /// else the one that has waited longest. The guest of a transfer in progress needs none: its next
    /// turn is queued already.
    pub fn end_rest(&mut self) -> Option<GuestNumber> {
        self.rests = false;
        let holder = self.hold().map(|hold| hold.claim.guest);
        holder.or_else(|| self.next_waiter())
    }

    /// The guest that has waited longest, once the bus is free and does not rest; it is reserved for
    /// that guest's next turn.
    #[inline]
    pub fn next_waiter(&mut self) -> Option<GuestNumber> {
        if self.rests || !matches!(self.state, State::Free) {
            return None;
        }
        self.restore_idle_modes();
        let guest = self.waiters.pop_front()?;
        self.state = State::Reserved(guest);
        Some(guest)
    }

    /// `guest` has had its turn: a bus that was reserved for it and that it did not take is free.
    pub fn clear_reservation(&mut self, guest: GuestNumber) {
        if matches!(self.state, State::Reserved(reserved_for) if reserved_for == guest) {
            self.state = State::Free;
        }
    }

    /// When a hold runs out: [`Bus::expire`] is to be called then.
    pub fn deadline(&self) -> Option<Instant> {
        Some(self.hold()?.ends_at(!self.waiters.is_empty()))
    }

    /// Ends a hold that has run out. If `has_request` says that its guest has queued a request by now,
    /// the hold stays and the guest is returned, which is to have a turn; unless others wait and the hold has
    /// lasted as long as it may.
    pub fn expire(
        &mut self,
        now: &mut Instant,
        has_request: impl FnOnce(GuestNumber) -> bool,
    ) -> Option<GuestNumber> {
        if self.deadline().is_none_or(|at| at > *now) {
            return None;
        }
        if let Some(hold) = self.hold().filter(|hold| !hold.ending) {
            let claim = hold.claim;
            let overdue = !self.waiters.is_empty() && hold.cap_at <= *now;
            if !overdue && has_request(claim.guest) {
                return Some(claim.guest);
            }
            if let Some(lost) = self.lost_holds.get_mut(claim.guest.index()) {
                *lost = (!claim.for_read).then_some(claim);
            }
        }
        self.end_hold(now);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ChipConfig, ChipKind, DeviceConfig, DevicePath, TransferConfig};
    use crate::spi::framing::Chip;
    use crate::spi::wire::TransferHead;

    const MS: Duration = Duration::from_millis(1);

    /// A claim of a request that only writes.
    fn claim(guest: u8, device: usize) -> Claim {
        Claim {
            guest: GuestNumber::new(guest.into()).unwrap(),
            device,
            sends: true,
            timeout: 100 * MS,
            ..Claim::default()
        }
    }

    /// A bus with two loopbacks, of which guest 0 holds the first since `now`, and guest 1 waits.
    fn held(for_read: bool, hold_delay: Duration, now: Instant) -> Bus {
        let transfers = TransferConfig {
            max_len: 1,
            max_ms: 10,
            max_message_ms: 100,
        };
        let config = DeviceConfig::new(DevicePath::Loopback, 2);
        let device = || Device::open(&config, &transfers, 0, &[]).unwrap();
        let mut bus = Bus::new(vec![device(), device()], None, 2);
        bus.devices[0].line = Line::Asserted;
        let mut holder = claim(0, 0);
        holder.for_read = for_read;
        let mut hold = Hold::new(holder, &TransferHead::default(), now, 10 * MS, now);
        hold.releasable_at += hold_delay;
        bus.state = State::Held(hold);
        bus.wait(GuestNumber::new(1).unwrap());
        bus
    }

    /// A turn of the holder may come before the loop has looked for holds that are over.
    #[test]
    fn admission_that_would_continue_an_overdue_hold_fails_unless_the_hold_was_a_guess() {
        for (for_read, fails) in [(false, true), (true, false)] {
            let mut now = Instant::now();
            let mut bus = held(for_read, Duration::ZERO, now);
            let mut read = claim(0, 0);
            (read.sends, read.receives) = (false, true);
            now += 10 * MS - Duration::from_nanos(1);
            assert!(matches!(bus.admit(&read, &mut now), Admission::Free));
            now += Duration::from_nanos(1);
            let admission = bus.admit(&read, &mut now);
            if fails {
                let lost = TransferError::HoldLost;
                assert!(
                    matches!(admission, Admission::Failed(e) if e.to_string() == lost.to_string())
                );
            } else {
                assert!(matches!(admission, Admission::Busy), "{admission:?}");
            }
            assert_eq!(bus.devices[0].line, Line::Released);
            assert_eq!(bus.next_waiter(), GuestNumber::new(1));
        }
    }

    /// What `framing` makes of a request by its phase is what the chip will see.
    #[test]
    fn phase_agrees_with_admission_while_a_command_is_held_and_after_it_was_lost() {
        let mut now = Instant::now();
        let mut bus = held(false, Duration::ZERO, now);
        let chip = Chip::new(ChipConfig {
            kind: ChipKind::Nor,
            address_bytes: 3,
            read_only: 0,
            deny: Vec::new(),
            timeout: Duration::ZERO,
        });
        let framed = chip.frame(Phase::Opcode, &[0x02], 1, false);
        if let State::Held(hold) = &mut bus.state {
            hold.claim.framed = Some(framed);
        }
        let (same, other) = (claim(0, 0), claim(0, 1));
        assert_eq!(bus.phase(&same), Phase::Within(framed.remaining.unwrap()));
        assert_eq!(bus.phase(&other), Phase::Opcode);
        assert!(matches!(bus.admit(&same, &mut now), Admission::Free));
        now += 10 * MS;
        assert_eq!(bus.expire(&mut now, |_| false), None);
        assert_eq!(bus.phase(&same), Phase::Lost);
        assert_eq!(bus.phase(&other), Phase::Opcode);
        assert!(bus.is_in_command(same.guest));
        let admission = bus.admit(&same, &mut now);
        assert!(matches!(
            admission,
            Admission::Failed(TransferError::HoldLost)
        ));
        assert!(!bus.is_in_command(same.guest));
        assert_eq!(bus.phase(&same), Phase::Opcode);
        assert!(matches!(bus.admit(&same, &mut now), Admission::Free));
    }

    #[test]
    fn admission_to_another_device_after_an_overdue_hold_waits_for_those_who_wait() {
        let mut now = Instant::now();
        let mut bus = held(false, Duration::ZERO, now);
        now += 10 * MS;
        let other = claim(0, 1);
        assert!(matches!(bus.admit(&other, &mut now), Admission::Busy));
        assert_eq!(bus.devices[0].line, Line::Released);
        assert_eq!(bus.next_waiter(), GuestNumber::new(1));
    }

    #[test]
    fn admission_of_the_holder_waits_for_a_hold_that_ends_when_its_delay_is_over() {
        let mut now = Instant::now();
        let mut bus = held(false, MS, now);
        let other = claim(0, 1);
        assert!(matches!(bus.admit(&other, &mut now), Admission::Busy));
        // From now on nobody continues it, not even who could have.
        let same = claim(0, 0);
        assert!(matches!(bus.admit(&same, &mut now), Admission::Busy));
        assert_eq!(bus.devices[0].line, Line::Asserted);
        assert_eq!(bus.deadline(), Some(now + MS));
        now += MS;
        assert_eq!(bus.expire(&mut now, |_| true), None);
        assert_eq!(bus.devices[0].line, Line::Released);
    }

    #[test]
    fn end_rest_returns_the_guest_that_holds_the_bus_or_else_the_one_that_waited_longest() {
        let mut now = Instant::now();
        let [holder, first, second] = [0, 1, 2].map(|number| GuestNumber::new(number).unwrap());
        let mut bus = held(false, Duration::ZERO, now);
        assert!(!bus.turns_away(first));
        for guest in [holder, first, second] {
            bus.rests = true;
            assert!(bus.turns_away(guest));
        }
        assert_eq!(bus.end_rest(), Some(holder));
        bus.rests = true;
        bus.leave(holder, &mut now);
        assert_eq!(bus.next_waiter(), None);
        assert_eq!(bus.end_rest(), Some(first));
        assert!(!bus.turns_away(second));
    }
}
