//! One guest's requests: taken off the ring, judged, carried out step by step, answered.
//!
//! There is at most one request on the way. The next one is taken off the ring only when it can
//! begin: a request whose bus is busy stays where it is, and is read afresh when its turn comes,
//! so that nothing is kept that the guest could change behind our back.
//!
//! Invariant: what was consumed is completed before the ring or the memory it came from goes away.
//! Called by `session`.

use std::fmt;
use std::time::{Duration, Instant};

use crate::config::{HoldPolicy, LogLevel};
use crate::error::{RingError, SessionError, TransferError};
use crate::os::log::{GuestLines, Quoted};
use crate::serve::counters::{ChipSelect, Tally};
use crate::serve::grant::{Accepted, Grant, Shared};
use crate::spi::bus::Access;
use crate::spi::request::{self, Answer};
use crate::spi::transfer::{Step, Transfer};
use crate::spi::wire::TransResult;
use crate::vhost_user::backend::Guest;
use crate::virtqueue::chain::Chain;
use crate::virtqueue::vring::Consumed;

/// How much wire time a transfer may have left to be finished when its ring stops.
pub const GRACE: Duration = Duration::from_secs(1);
/// How often a ring without a kick is looked at.
const POLL: Duration = Duration::from_millis(1);
/// A message that takes longer than this on the wire is not started with a notification pending.
const LONG_NS: u64 = 1_000_000;

/// What the loop is to do with a session after its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nothing until something happens.
    Idle,
    /// Another turn.
    Again,
    /// Another turn at this moment.
    At(Instant),
    /// The messages that waited for the transfer can be handled now.
    Control,
}

/// Why a turn came to no good: two fates that are told apart once, in [`Requestq::turn`].
enum Stop {
    Ring(RingError),
    Session(SessionError),
}

/// The request on the way.
#[derive(Debug)]
struct Active {
    bus: usize,
    answer: Answer<Consumed>,
    /// The one it names.
    chip_select: Option<u8>,
}

/// The requests of one guest.
#[derive(Debug)]
pub struct Requestq {
    number: usize,
    /// What the guest was given.
    pub grant: Grant,
    /// What is written about the guest.
    pub lines: GuestLines,
    tally: Tally,
    active: Option<Active>,
    /// Since when the next request waits, if it was looked at and could not begin.
    waits_since: Option<Instant>,
    /// The bus on which chip select was left asserted.
    holding: Option<usize>,
    /// No new request begins: a message waits for the active one to be over.
    paused: bool,
    /// None follows that one either: the ring stops behind it.
    stopping: bool,
    /// No new request begins any more.
    ended: bool,
    /// A request was there since the driver was last asked to kick.
    served: bool,
    /// Since when there is none.
    empty_since: Option<Instant>,
}

impl Requestq {
    /// The requests of guest `number`: none yet.
    pub fn new(number: usize, grant: Grant) -> Self {
        Self {
            number,
            tally: Tally::new(grant.chip_selects.len()),
            grant,
            lines: GuestLines::new(number),
            active: None,
            waits_since: None,
            holding: None,
            paused: false,
            stopping: false,
            ended: false,
            served: false,
            empty_since: None,
        }
    }

    /// Begins no new request any more.
    pub fn end(&mut self) {
        self.ended = true;
    }

    fn log(&mut self, level: LogLevel, what: fmt::Arguments<'_>, cause: &dyn fmt::Display) {
        let cause = Quoted(cause);
        self.lines
            .request(level, format_args!("{what}: cause={cause}"));
    }

    fn log_failure(&mut self, chip_select: Option<u8>, error: &TransferError) {
        let cs = ChipSelect(chip_select);
        self.log(error.level(), format_args!("{cs} request failed"), error);
    }

    /// What became of the requests so far.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Whether a request is on the way.
    pub fn is_active(&self) -> bool {
        self.active.is_some()
    }

    /// Whether a turn would take a request off the ring. A ring that cannot be believed shows itself
    /// there.
    pub fn has_request(&self, guest: &Guest) -> bool {
        let idle = self.active.is_none() && !self.paused && !self.ended;
        let pending = guest.vring.pending(&guest.memory);
        idle && guest.vring.is_running() && pending.is_ok_and(|pending| pending > 0)
    }

    /// Makes one step: of the request on the way, or to the next one.
    ///
    /// # Errors
    /// The connection must end.
    pub fn turn(&mut self, guest: &mut Guest, shared: &mut Shared) -> Result<Turn, SessionError> {
        let turn = if self.active.is_some() {
            self.advance(guest, shared)
        } else if self.paused || self.ended {
            return Ok(Turn::Idle);
        } else if !guest.vring.is_running() {
            self.release_unless_followed(shared);
            return Ok(Turn::Idle);
        } else {
            self.take(guest, shared)
        };
        match turn {
            Ok(turn) => Ok(turn),
            Err(Stop::Session(error)) => Err(error),
            Err(Stop::Ring(error)) => {
                self.log(LogLevel::Warning, format_args!("ring stopped"), &error);
                let awaited = self.paused;
                self.abort(guest, shared)?;
                guest.vring.set_broken()?;
                Ok(if awaited { Turn::Control } else { Turn::Idle })
            }
        }
    }

    /// Takes the next request, if there is one and it can begin.
    fn take(&mut self, guest: &mut Guest, shared: &mut Shared) -> Result<Turn, Stop> {
        let (memory, vring) = (&guest.memory, &mut guest.vring);
        let pending = vring.pending(memory).map_err(Stop::Ring)?;
        if pending == 0 {
            return self.ran_empty(guest, shared);
        }
        self.served = true;
        self.empty_since = None;
        let seen_at = *self.waits_since.get_or_insert(shared.due_since);
        let chain = vring.peek(memory).map_err(Stop::Ring)?;
        let (answer, parsed) = request::parse(chain, memory, &mut shared.store);
        // After the chain was read, which the flag may lie over in a hostile driver's memory.
        if pending > 1 || !self.grant.poll.is_zero() {
            vring.suppress_kicks(memory);
        }
        let named = parsed.as_ref().ok();
        let chip_select = named.and_then(|request| self.grant.chip_select_of(request));
        let judge = |request| self.grant.judge(self.number, &request, shared, pending > 1);
        let mut accepted = match parsed.and_then(judge) {
            Ok(accepted) => accepted,
            Err(error) => {
                let cs = ChipSelect(chip_select);
                let what = format_args!("{cs} request refused");
                self.log(LogLevel::Warning, what, &error);
                return self.skip(guest, answer, chip_select, TransResult::ParamErr);
            }
        };
        if self.holding.is_some_and(|held| held != accepted.bus) && !self.release(shared) {
            return Ok(self.wait(shared));
        }
        let bus = shared.buses.get_mut(accepted.bus);
        match bus.map_or(Access::Busy, |bus| {
            bus.access(&accepted.claim, &mut shared.now)
        }) {
            Access::Busy => {
                if let Some(bus) = shared.buses.get_mut(accepted.bus) {
                    bus.wait(self.number);
                }
                Ok(Turn::Idle)
            }
            Access::NotBefore(at) => Ok(Turn::At(at)),
            Access::HoldCut => self.fail(guest, answer, chip_select, &TransferError::HoldCut),
            Access::Stuck => self.fail(guest, answer, chip_select, &TransferError::Stuck),
            Access::Free { continues } => {
                accepted.transfer.set_continues(continues);
                let answer = answer.consume(vring);
                let waited = shared.now.saturating_duration_since(seen_at);
                self.tally.note_wait(chip_select, waited);
                self.begin(accepted, answer, chip_select, shared);
                self.advance(guest, shared)
            }
        }
    }

    /// Puts a request on its way that was taken off the ring and has its bus.
    fn begin(
        &mut self,
        accepted: Accepted,
        answer: Answer<Consumed>,
        chip_select: Option<u8>,
        shared: &mut Shared,
    ) {
        let Accepted {
            bus: index,
            claim,
            terms,
            transfer,
        } = accepted;
        self.waits_since = None;
        self.active = Some(Active {
            bus: index,
            answer,
            chip_select,
        });
        if let Some(bus) = shared.buses.get_mut(index) {
            bus.begin(claim, terms, transfer, &mut shared.store, shared.now);
        }
    }

    /// Answers a request that cannot go on the wire.
    fn fail(
        &mut self,
        guest: &mut Guest,
        answer: Answer<Chain>,
        chip_select: Option<u8>,
        error: &TransferError,
    ) -> Result<Turn, Stop> {
        self.log_failure(chip_select, error);
        self.skip(guest, answer, chip_select, TransResult::TransErr)
    }

    /// Answers the next request without its going on the wire.
    fn skip(
        &mut self,
        guest: &mut Guest,
        answer: Answer<Chain>,
        chip_select: Option<u8>,
        result: TransResult,
    ) -> Result<Turn, Stop> {
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
    ) -> Result<Turn, Stop> {
        self.tally.count(chip_select, result);
        answer
            .complete(&mut guest.vring, &guest.memory, result)
            .map(|()| Turn::Again)
            .map_err(Stop::Ring)
    }

    /// Nothing is queued: what is held only for the sake of a queued request is released, and the
    /// driver is asked to kick.
    fn ran_empty(&mut self, guest: &mut Guest, shared: &mut Shared) -> Result<Turn, Stop> {
        self.release_unless_followed(shared);
        let (memory, vring) = (&guest.memory, &mut guest.vring);
        // Whoever waits for it need not wait for the look at what comes next, too.
        vring.notify(memory).map_err(Stop::Session)?;
        if self.is_watching(shared.now) {
            return Ok(Turn::Again);
        }
        if vring.rearm(memory).map_err(Stop::Ring)? {
            return Ok(Turn::Again);
        }
        let poll = vring.needs_polling().then(|| shared.now.checked_add(POLL));
        Ok(poll.flatten().map_or(Turn::Idle, Turn::At))
    }

    /// Whether the ring, which is empty, is to be looked at again at once: for a while after the
    /// last request, if the administrator wants that. Then the driver need not kick, nor the daemon
    /// wake up.
    fn is_watching(&mut self, now: Instant) -> bool {
        if !self.served || self.grant.poll.is_zero() {
            return false;
        }
        let since = *self.empty_since.get_or_insert(now);
        self.served = now.saturating_duration_since(since) < self.grant.poll;
        self.served
    }

    /// Makes the next step of the request on the way.
    fn advance(&mut self, guest: &mut Guest, shared: &mut Shared) -> Result<Turn, Stop> {
        let Some(active) = &self.active else {
            return Ok(Turn::Again);
        };
        let (index, chip_select) = (active.bus, active.chip_select);
        let (memory, vring) = (&guest.memory, &mut guest.vring);
        let Some(bus) = shared.buses.get_mut(index) else {
            return Ok(Turn::Idle);
        };
        let transfer = bus.running_for(self.number);
        if vring.is_unnotified() && transfer.is_some_and(|t| t.next_message_ns() > LONG_NS) {
            vring.notify(memory).map_err(Stop::Session)?;
        }
        let whole = transfer.map_or((0, 0), Transfer::whole);
        // A ring that cannot be believed shows itself at the next request.
        let follows = !(self.stopping || self.ended)
            && vring.pending(memory).is_ok_and(|pending| pending > 0);
        let result = match bus.step(memory, &mut shared.scratch, follows, &mut shared.now) {
            Ok(Step::More) => return Ok(Turn::Again),
            Ok(Step::Until(at)) => return Ok(Turn::At(at)),
            Ok(Step::Done { kept }) => {
                self.holding = kept.then_some(index);
                self.tally.count_wire(chip_select, whole);
                TransResult::TransOk
            }
            Err(error) => {
                self.holding = None;
                self.report(&error, index, chip_select, shared);
                TransResult::TransErr
            }
        };
        let Some(active) = self.active.take() else {
            return Ok(Turn::Again);
        };
        let turn = self.finish(guest, active.answer, chip_select, result)?;
        Ok(if self.paused { Turn::Control } else { turn })
    }

    fn report(
        &mut self,
        error: &TransferError,
        bus: usize,
        chip_select: Option<u8>,
        shared: &mut Shared,
    ) {
        let down =
            matches!(error, TransferError::Ioctl(e) if e.raw_os_error() == Some(libc::ESHUTDOWN));
        let name = shared
            .buses
            .get_mut(bus)
            .and_then(|bus| bus.note_failure(down));
        if let Some(name) = name {
            let (cs, device) = (ChipSelect(chip_select), Quoted(&name));
            let what = format_args!("{cs} device={device} request failed");
            self.log(error.level(), what, error);
        }
    }

    /// Something waits for the request on the way: no other begins. It may come to its end if it
    /// has at most [`GRACE`] to go. Returns whether there is none any more; then the driver was told
    /// of all that went before.
    ///
    /// # Errors
    /// The call eventfd blocked.
    pub fn pause(&mut self, guest: &mut Guest, shared: &mut Shared) -> Result<bool, SessionError> {
        let bus = self
            .active
            .as_ref()
            .and_then(|active| shared.buses.get(active.bus));
        let transfer = bus.and_then(|bus| bus.running_for(self.number));
        self.paused = transfer.is_some_and(|transfer| transfer.remaining(shared.now) <= GRACE);
        if self.paused {
            return Ok(false);
        }
        if self.is_active() {
            self.abort(guest, shared)?;
        }
        guest.vring.notify(&guest.memory)?;
        Ok(true)
    }

    /// As [`Requestq::pause`], and releases what is held.
    ///
    /// # Errors
    /// The call eventfd blocked.
    pub fn stop(&mut self, guest: &mut Guest, shared: &mut Shared) -> Result<bool, SessionError> {
        self.stopping = true;
        let over = self.pause(guest, shared)?;
        if over {
            self.abort(guest, shared)?;
        }
        Ok(over)
    }

    /// Ends the request on the way with `TRANS_ERR`, releases chip select, and tells the driver
    /// all that it was not told yet.
    ///
    /// # Errors
    /// The call eventfd blocked.
    pub fn abort(&mut self, guest: &mut Guest, shared: &mut Shared) -> Result<(), SessionError> {
        self.paused = false;
        self.stopping = false;
        self.holding = None;
        self.waits_since = None;
        for bus in &mut shared.buses {
            bus.abort(self.number, &mut shared.now);
        }
        if let Some(active) = self.active.take() {
            self.log_failure(active.chip_select, &TransferError::Aborted);
            // The ring may be gone with its front-end: then there is nobody to answer.
            let _ = self.finish(
                guest,
                active.answer,
                active.chip_select,
                TransResult::TransErr,
            );
        }
        guest.vring.notify(&guest.memory)
    }

    /// Releases what is held only for the sake of a queued request, of which there is none.
    fn release_unless_followed(&mut self, shared: &mut Shared) {
        if self.grant.policy == HoldPolicy::Queued {
            self.release(shared);
        }
    }

    /// Releases the chip select that this guest holds; `false` if that takes until the bus says so.
    fn release(&mut self, shared: &mut Shared) -> bool {
        let held = self.holding.and_then(|index| shared.buses.get_mut(index));
        let released = held.is_none_or(|bus| bus.release(self.number, &mut shared.now));
        if released {
            self.holding = None;
        }
        released
    }

    /// Waits for the bus on which this guest's own hold is ending.
    fn wait(&mut self, shared: &mut Shared) -> Turn {
        if let Some(bus) = self.holding.and_then(|index| shared.buses.get_mut(index)) {
            bus.wait(self.number);
        }
        Turn::Idle
    }
}

#[cfg(test)]
mod tests;
