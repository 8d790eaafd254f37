// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One guest's requests: taken off the ring, validated, carried out step by step, answered.
//!
//! There is at most one request in progress. The next one is taken off the ring only when it can
//! begin: a request whose bus is busy stays where it is, and is read afresh when its turn comes,
//! so that nothing is kept that the guest could change meanwhile.
//!
//! Invariant: a consumed chain is completed before its ring or memory goes away.
//! Called by `session`.

use std::fmt;
use std::time::{Duration, Instant};

use crate::config::{GuestNumber, HoldPolicy, LogLevel};
use crate::error::{RingError, SessionError, TransferError};
use crate::os::log::{GuestLines, Quoted};
use crate::serve::counters::{ChipSelect, Tally};
use crate::serve::grant::{Grant, Shared};
use crate::spi::bus::{Admission, Bus, LONG};
use crate::spi::request::{self, Answer};
use crate::spi::transfer::{Step, Transfer};
use crate::spi::wire::TransResult;
use crate::vhost_user::backend::Guest;
use crate::virtqueue::chain::Chain;
use crate::virtqueue::vring::Consumed;

mod cut_pairs;
mod polling;
mod quiesce;

use self::cut_pairs::CutPairs;
use self::polling::{MOMENT, Polling};
pub use self::quiesce::GRACE;
use self::quiesce::Intake;

/// Interval of the looks at a ring that has no kick fd.
const KICKLESS_INTERVAL: Duration = Duration::from_millis(1);

/// The loop's next action on a session after its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nothing until something happens.
    Idle,
    /// Another turn.
    Again,
    /// Another turn at this moment.
    At(Instant),
    /// The messages that waited for the transfer can be handled now.
    Messages,
}

/// Why a turn failed. [`Requestq::turn`] alone tells the two apart.
enum TurnError {
    Ring(RingError),
    Session(SessionError),
}

/// The request in progress.
#[derive(Debug)]
struct Active {
    /// Index of the bus that runs it.
    bus: usize,
    answer: Answer<Consumed>,
    /// The chip select that it names, if its guest has that.
    chip_select: Option<u8>,
    /// When it went on the wire.
    begun: Instant,
}

/// The requests of one guest.
#[derive(Debug)]
pub struct Requestq {
    number: GuestNumber,
    /// The devices and limits that the guest was given.
    pub grant: Grant,
    /// The log's lines about the guest.
    pub lines: GuestLines,
    tally: Tally,
    /// That of the request in progress, or of the one that was looked at last.
    transfer: Transfer,
    active: Option<Active>,
    intake: Intake,
    /// Since when the next request waits, if it was looked at and could not begin.
    waits_since: Option<Instant>,
    polling: Polling,
    cut_pairs: CutPairs,
}

impl Requestq {
    /// The requests of guest `number`: none yet.
    pub fn new(number: GuestNumber, grant: Grant) -> Self {
        Self {
            number,
            tally: Tally::new(grant.chip_selects.len()),
            grant,
            lines: GuestLines::new(number),
            transfer: Transfer::default(),
            active: None,
            intake: Intake::Open,
            waits_since: None,
            polling: Polling::Off,
            cut_pairs: CutPairs::default(),
        }
    }

    /// Logs what became of a request to `chip_select`, and why.
    #[cold]
    fn log(
        &mut self,
        level: LogLevel,
        chip_select: Option<u8>,
        what: fmt::Arguments<'_>,
        cause: &dyn fmt::Display,
    ) {
        let (cs, cause) = (ChipSelect(chip_select), Quoted(cause));
        let lines = &mut self.lines.requests;
        lines.line(level, format_args!("{cs} {what}: cause={cause}"));
    }

    fn log_failure(&mut self, chip_select: Option<u8>, error: &TransferError) {
        let what = format_args!("request failed");
        self.log(error.level(), chip_select, what, error);
    }

    #[cold]
    fn log_cut_pair(&mut self, chip_select: Option<u8>) {
        let cs = ChipSelect(chip_select);
        self.lines.requests.line(
            LogLevel::Warning,
            format_args!(
                "{cs} chip select was released between a write and the read after it; if they are one command, use --cs-hold=write-read"
            ),
        );
    }

    /// The counters of its requests.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Whether a request is in progress.
    pub fn is_active(&self) -> bool {
        self.active.is_some()
    }

    /// Whether a request is available and a turn would look at it; its bus may be busy. A broken ring has
    /// none here: the turn reports it.
    pub fn has_request(&self, guest: &Guest) -> bool {
        let idle = self.active.is_none() && self.intake == Intake::Open;
        let pending = guest.vring.pending(&guest.memory);
        idle && guest.vring.is_running() && pending.is_ok_and(|pending| pending > 0)
    }

    /// Makes one step of the request in progress, or takes the next one. Returns when to call again.
    ///
    /// # Errors
    /// The connection must end.
    pub fn turn(&mut self, guest: &mut Guest, shared: &mut Shared) -> Result<Turn, SessionError> {
        let turn = if self.active.is_some() {
            self.advance(guest, shared)
        } else if self.intake != Intake::Open {
            return Ok(Turn::Idle);
        } else if !guest.vring.is_running() {
            self.release_unless_followed(shared);
            return Ok(Turn::Idle);
        } else {
            self.take(guest, shared)
        };
        match turn {
            Ok(turn) => Ok(turn),
            Err(TurnError::Session(error)) => Err(error),
            Err(TurnError::Ring(error)) => {
                self.lines.requests.line(
                    LogLevel::Warning,
                    format_args!("ring stopped: cause={}", Quoted(&error)),
                );
                // Before the abort, after which no message counts as waiting any more.
                let turn = self.after_request(Turn::Idle);
                self.abort(guest, shared)?;
                guest.vring.set_broken()?;
                Ok(turn)
            }
        }
    }

    /// Takes the next request, if there is one and it can begin.
    fn take(&mut self, guest: &mut Guest, shared: &mut Shared) -> Result<Turn, TurnError> {
        let (memory, vring) = (&guest.memory, &mut guest.vring);
        let pending = vring.pending(memory).map_err(TurnError::Ring)?;
        if pending == 0 {
            return self.ran_empty(guest, shared);
        }
        self.polling = Polling::Served;
        self.waits_since.get_or_insert(shared.due_since);
        let chain = vring.peek(memory).map_err(TurnError::Ring)?;
        let (answer, parsed) = request::parse(chain, memory, &mut shared.request);
        // Only now: this writes a flag, which a hostile driver may have placed over the chain just read.
        if pending > 1 || vring.is_watched || !self.grant.poll.is_zero() {
            vring.suppress_kicks(memory);
        }
        let named = parsed.is_ok().then_some(&shared.request);
        let chip_select = named.and_then(|request| self.grant.chip_select_of(request));
        let (grant, number, transfer) = (&self.grant, self.number, &mut self.transfer);
        let validate = |()| grant.validate(number, shared, memory, pending > 1, transfer);
        match parsed.and_then(validate) {
            Ok(bus) => self.begin(guest, bus, answer, chip_select, shared),
            Err(error) => {
                let what = format_args!("request refused");
                self.log(LogLevel::Warning, chip_select, what, &error);
                // A driver does not go on with a command of which a request was refused: its next request
                // begins another one.
                self.release(true, shared);
                self.skip(guest, answer, chip_select, TransResult::ParamErr)
            }
        }
    }

    /// Takes a valid request off the ring and makes its first step, if its bus is free for it.
    fn begin(
        &mut self,
        guest: &mut Guest,
        index: usize,
        answer: Answer<Chain>,
        chip_select: Option<u8>,
        shared: &mut Shared,
    ) -> Result<Turn, TurnError> {
        if let Some(ending) = self.release_other_holds(index, shared) {
            ending.wait(self.number);
            return Ok(Turn::Idle);
        }
        let Some(bus) = shared.buses.get_mut(index) else {
            return Ok(Turn::Idle);
        };
        if bus.turns_away(self.number) {
            return Ok(Turn::Idle);
        }
        match bus.admit(&self.transfer.claim, &mut shared.now) {
            Admission::Busy => {
                bus.wait(self.number);
                return Ok(Turn::Idle);
            }
            Admission::NotBefore(at) => return Ok(Turn::At(at)),
            Admission::Failed(error) => {
                self.log_failure(chip_select, &error);
                return self.skip(guest, answer, chip_select, TransResult::TransErr);
            }
            Admission::Free => (),
        }
        bus.begin(&self.transfer.claim, &mut shared.request, shared.now);
        self.note_begin(chip_select, shared.now);
        self.active = Some(Active {
            bus: index,
            answer: answer.consume(&mut guest.vring),
            chip_select,
            begun: shared.now,
        });
        self.advance(guest, shared)
    }

    /// Notes that a request goes on the wire.
    fn note_begin(&mut self, chip_select: Option<u8>, now: Instant) {
        let claim = &self.transfer.claim;
        if self.cut_pairs.are_shown_by(claim, chip_select, now) {
            self.log_cut_pair(chip_select);
        }
        // Most begin before the clock is read again: their wait is zero without the subtraction, which
        // takes 50 instructions.
        let since = self.waits_since.take().filter(|since| *since != now);
        let waited = since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.tally.count_wait(chip_select, waited);
    }

    /// Answers the next request, which does not go on the wire.
    fn skip(
        &mut self,
        guest: &mut Guest,
        answer: Answer<Chain>,
        chip_select: Option<u8>,
        result: TransResult,
    ) -> Result<Turn, TurnError> {
        let answer = answer.consume(&mut guest.vring);
        self.waits_since = None;
        self.finish(guest, answer, chip_select, result)
    }

    fn finish(
        &mut self,
        guest: &mut Guest,
        answer: Answer<Consumed>,
        chip_select: Option<u8>,
        result: TransResult,
    ) -> Result<Turn, TurnError> {
        self.tally.count(chip_select, result);
        answer
            .complete(&mut guest.vring, &guest.memory, result)
            .map(|()| Turn::Again)
            .map_err(TurnError::Ring)
    }

    /// Nothing is queued: a chip select that is held only for a queued request is released, and the
    /// driver is asked to kick.
    fn ran_empty(&mut self, guest: &mut Guest, shared: &mut Shared) -> Result<Turn, TurnError> {
        self.release_unless_followed(shared);
        let (memory, vring) = (&guest.memory, &mut guest.vring);
        // First, so that the driver does not wait until the ring was looked at again.
        vring.notify(memory).map_err(TurnError::Session)?;
        let moment = if vring.is_watched {
            MOMENT
        } else {
            Duration::ZERO
        };
        if self
            .polling
            .goes_on(self.grant.poll.max(moment), shared.now)
        {
            return Ok(Turn::Again);
        }
        if vring.rearm(memory).map_err(TurnError::Ring)? {
            return Ok(Turn::Again);
        }
        let look = vring
            .lacks_kick()
            .then(|| shared.now.checked_add(KICKLESS_INTERVAL));
        Ok(look.flatten().map_or(Turn::Idle, Turn::At))
    }

    /// Makes the next step of the request in progress.
    fn advance(&mut self, guest: &mut Guest, shared: &mut Shared) -> Result<Turn, TurnError> {
        let Some(active) = &mut self.active else {
            return Ok(Turn::Again);
        };
        let Some(bus) = shared.buses.get_mut(active.bus) else {
            return Ok(Turn::Idle);
        };
        let (memory, vring) = (&guest.memory, &mut guest.vring);
        let transfer = &mut self.transfer;
        // The driver is notified of completed chains before a long message, not after it.
        if vring.is_unnotified() && Duration::from_nanos(transfer.next_message_ns()) > LONG {
            vring.notify(memory).map_err(TurnError::Session)?;
        }
        // A broken ring is reported at the next request.
        let follows = transfer.keeps_if_followed()
            && matches!(self.intake, Intake::Open | Intake::Paused)
            && vring.pending(memory).is_ok_and(|pending| pending > 0);
        let (scratch, now) = (&mut shared.scratch, &mut shared.now);
        let transferred = match bus.step(transfer, memory, scratch, follows, now) {
            Ok(Step::More) => return Ok(Turn::Again),
            Ok(Step::Until(at)) => return Ok(Turn::At(at)),
            Ok(Step::Done { kept }) => {
                if !kept && transfer.may_begin_a_pair() {
                    self.cut_pairs.note_cut(active.chip_select, *now);
                }
                Ok(())
            }
            Err(error) => Err(error),
        };
        self.end(guest, bus, transferred, shared.now)
    }

    /// The request in progress is over.
    fn end(
        &mut self,
        guest: &mut Guest,
        bus: &mut Bus,
        transferred: Result<(), TransferError>,
        now: Instant,
    ) -> Result<Turn, TurnError> {
        let Some(active) = self.active.take() else {
            return Ok(Turn::Again);
        };
        let (transfer, chip_select) = (&self.transfer, active.chip_select);
        let (result, on_wire) = match transferred {
            Ok(()) => (TransResult::TransOk, transfer.whole()),
            Err(error) => {
                if let Some(name) = bus.note_failure(transfer.claim.device, &error) {
                    self.log(
                        error.level(),
                        chip_select,
                        format_args!("device={} request failed", Quoted(&name)),
                        &error,
                    );
                }
                (TransResult::TransErr, (0, 0))
            }
        };
        let served = now.saturating_duration_since(active.begun);
        self.tally.count_service(chip_select, served, on_wire);
        let turn = self.finish(guest, active.answer, chip_select, result)?;
        Ok(self.after_request(turn))
    }

    /// Releases a chip select that is held only for a queued request, of which there is none. In the middle
    /// of a chip's command it stays asserted until the command ends.
    fn release_unless_followed(&self, shared: &mut Shared) {
        if self.grant.policy == HoldPolicy::Queued {
            self.release(false, shared);
        }
    }

    /// Releases a chip select that is held in the middle of a chip's command, which ends here, or one that
    /// is held elsewhere, as `in_command` says.
    fn release(&self, in_command: bool, shared: &mut Shared) {
        for bus in &mut shared.buses {
            if bus.is_in_command(self.number) == in_command {
                bus.release_for(self.number, &mut shared.now);
            }
        }
    }

    /// Releases the chip select that this guest holds on a bus other than the one at `goes_on`. Returns
    /// that bus if its hold delay is not over: the guest waits for that.
    fn release_other_holds<'s>(
        &self,
        goes_on: usize,
        shared: &'s mut Shared,
    ) -> Option<&'s mut Bus> {
        for (index, bus) in shared.buses.iter_mut().enumerate() {
            if index != goes_on && !bus.release_for(self.number, &mut shared.now) {
                return Some(bus);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
