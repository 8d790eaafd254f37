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

use crate::backend::Guest;
use crate::bus::{Access, Bus};
use crate::config::HoldPolicy;
use crate::epoll::Poller;
use crate::fate::{ParamError, RingError, SessionError, TransferError};
use crate::hold::{Claim, HoldTerms};
use crate::log::Limiter;
use crate::message::Scratch;
use crate::request::{self, Answer, Request, Store};
use crate::transfer::{Keep, Step, Transfer};
use crate::virtio_spi::{self, Config, TransResult};

/// How much wire time a transfer may have left to be finished when its ring stops.
pub const GRACE: Duration = Duration::from_secs(1);
/// How often a ring without a kick is looked at.
const POLL: Duration = Duration::from_millis(1);
/// A message that takes longer than this on the wire is not started with a notification pending.
const LONG_NS: u64 = 1_000_000;

/// What a guest was given.
#[derive(Debug)]
pub struct Grant {
    /// Where each of its chip selects is: index of the bus, index of the device on it.
    pub chip_selects: Vec<(usize, usize)>,
    /// Its config space.
    pub config: Config,
    /// What `cs_change` 0 means.
    pub policy: HoldPolicy,
    /// How long it may hold chip select.
    pub hold_timeout: Duration,
    /// How long its ring is watched for the next request after one was served.
    pub poll: Duration,
}

/// What all guests share.
#[derive(Debug)]
pub struct Shared {
    /// The controllers.
    pub buses: Vec<Bus>,
    /// Where messages are made.
    pub scratch: Scratch,
    /// Where a chain is read before it is known whether it can begin.
    pub store: Box<Store>,
    /// The one epoll set.
    pub poller: Poller,
    /// When the turn began: each look at the clock takes time.
    pub now: Instant,
}

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

/// A request that may go on the wire.
struct Accepted {
    bus: usize,
    claim: Claim,
    terms: HoldTerms,
    transfer: Transfer,
}

/// The requests of one guest.
#[derive(Debug)]
pub struct Requestq {
    number: usize,
    /// What the guest was given.
    pub grant: Grant,
    limiter: Limiter,
    /// The request on the way: its bus, and how to answer it.
    active: Option<(usize, Answer)>,
    /// The bus on which chip select was left asserted.
    holding: Option<usize>,
    /// No new request begins: a message waits for the active one to be over.
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
            grant,
            limiter: Limiter::default(),
            active: None,
            holding: None,
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

    /// Logs a line about this guest, as far as the limit lets it through.
    pub fn log(&mut self, text: fmt::Arguments<'_>) {
        self.limiter.line(self.number, text);
    }

    /// Whether a request is on the way.
    pub fn is_active(&self) -> bool {
        self.active.is_some()
    }

    /// Makes one step: of the request on the way, or to the next one.
    ///
    /// # Errors
    /// The connection must end.
    pub fn turn(&mut self, guest: &mut Guest, shared: &mut Shared) -> Result<Turn, SessionError> {
        let turn = if self.active.is_some() {
            self.advance(guest, shared)
        } else if self.stopping || self.ended || !guest.vring.is_running() {
            return Ok(Turn::Idle);
        } else {
            self.take(guest, shared)
        };
        match turn {
            Ok(turn) => Ok(turn),
            Err(Stop::Session(error)) => Err(error),
            Err(Stop::Ring(error)) => {
                self.log(format_args!("ring stopped: {error}"));
                let awaited = self.stopping;
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
        if pending > 1 || !self.grant.poll.is_zero() {
            vring.suppress_kicks(memory);
        }
        let chain_head = vring.peek(memory).map_err(Stop::Ring)?;
        let (answer, parsed) = request::parse(vring.chain(chain_head), memory, &mut shared.store);
        let accepted = parsed.and_then(|request| self.judge(&request, shared, pending > 1));
        let mut accepted = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                self.log(format_args!("request refused: {error}"));
                vring.consume();
                return finish(guest, answer, TransResult::ParamErr);
            }
        };
        if self.holding.is_some_and(|held| held != accepted.bus) && !self.release(shared) {
            return Ok(self.wait(shared));
        }
        match access(shared, &accepted) {
            Access::Busy => {
                if let Some(bus) = shared.buses.get_mut(accepted.bus) {
                    bus.wait(self.number);
                }
                Ok(Turn::Idle)
            }
            Access::NotBefore(at) => Ok(Turn::At(at)),
            Access::HoldCut => self.fail(guest, answer, &TransferError::HoldCut),
            Access::Stuck => self.fail(guest, answer, &TransferError::Stuck),
            Access::Free { continues } => {
                accepted.transfer.set_continues(continues);
                vring.consume();
                self.active = Some((accepted.bus, answer));
                if let Some(bus) = shared.buses.get_mut(accepted.bus) {
                    let Accepted {
                        claim,
                        terms,
                        transfer,
                        ..
                    } = accepted;
                    bus.begin(claim, terms, transfer, &mut shared.store, shared.now);
                }
                self.advance(guest, shared)
            }
        }
    }

    /// Answers a request that cannot go on the wire.
    fn fail(
        &mut self,
        guest: &mut Guest,
        answer: Answer,
        error: &TransferError,
    ) -> Result<Turn, Stop> {
        self.log(format_args!("{error}"));
        guest.vring.consume();
        finish(guest, answer, TransResult::TransErr)
    }

    /// Nothing is queued: what is held only for the sake of a queued request is released, and the
    /// driver is asked to kick.
    fn ran_empty(&mut self, guest: &mut Guest, shared: &mut Shared) -> Result<Turn, Stop> {
        if self.grant.policy == HoldPolicy::Queued {
            self.release(shared);
        }
        let (memory, vring) = (&guest.memory, &mut guest.vring);
        // Whoever waits for it need not wait for the look at what comes next, too.
        vring.notify(memory).map_err(Stop::Session)?;
        if self.is_watching() {
            return Ok(Turn::Again);
        }
        if vring.rearm(memory).map_err(Stop::Ring)? {
            return Ok(Turn::Again);
        }
        let poll = vring
            .needs_polling()
            .then(|| Instant::now().checked_add(POLL));
        Ok(poll.flatten().map_or(Turn::Idle, Turn::At))
    }

    /// Whether the ring, which is empty, is to be looked at again at once: for a while after the
    /// last request, if the administrator wants that. Then the driver need not kick, nor the daemon
    /// wake up.
    fn is_watching(&mut self) -> bool {
        if !self.served || self.grant.poll.is_zero() {
            return false;
        }
        let since = *self.empty_since.get_or_insert_with(Instant::now);
        self.served = since.elapsed() < self.grant.poll;
        self.served
    }

    /// Judges a request against the chip select it names.
    fn judge(
        &self,
        request: &Request,
        shared: &Shared,
        follows: bool,
    ) -> Result<Accepted, ParamError> {
        let head = &request.head;
        let unknown = ParamError::ChipSelect(head.chip_select_id);
        let place = self
            .grant
            .chip_selects
            .get(usize::from(head.chip_select_id));
        let &(bus_index, device_index) = place.ok_or(unknown)?;
        let bus = shared.buses.get(bus_index).ok_or(unknown)?;
        let device = bus.devices.get(device_index).ok_or(unknown)?;
        let (tx_len, rx_len) = (request.tx_len, request.rx_len);
        let timing = virtio_spi::validate(head, tx_len, rx_len, &device.limits)?;
        let keep = match (head.cs_change, self.grant.policy) {
            (0, HoldPolicy::Queued) => Keep::IfFollowed,
            (0, HoldPolicy::Spec) => Keep::Always,
            (0, HoldPolicy::WriteRead) if rx_len == 0 => Keep::Always,
            _ => Keep::Never,
        };
        let mode = device.mode_for(head);
        let mut transfer = Transfer::new(request, timing, mode, keep);
        if let Some(neighbour) = bus.neighbour {
            let holds = keep == Keep::Always || (keep == Keep::IfFollowed && follows);
            if holds || !transfer.fits_one_message(device, &shared.store) {
                return Err(ParamError::SharedBus(neighbour));
            }
            transfer.never_keep();
        }
        Ok(Accepted {
            bus: bus_index,
            claim: Claim {
                guest: self.number,
                device: device_index,
                mode,
                only_reads: tx_len == 0,
            },
            terms: HoldTerms {
                timeout: self.grant.hold_timeout,
                for_read: self.grant.policy == HoldPolicy::WriteRead,
            },
            transfer,
        })
    }

    /// Makes the next step of the request on the way.
    fn advance(&mut self, guest: &mut Guest, shared: &mut Shared) -> Result<Turn, Stop> {
        let Some((bus_index, answer)) = self.active else {
            return Ok(Turn::Again);
        };
        let (memory, vring) = (&guest.memory, &mut guest.vring);
        let Some(bus) = shared.buses.get_mut(bus_index) else {
            return Ok(Turn::Idle);
        };
        let transfer = bus.running_for(self.number);
        if vring.is_unnotified() && transfer.is_some_and(|t| t.next_message_ns() > LONG_NS) {
            vring.notify(memory).map_err(Stop::Session)?;
        }
        // A ring that cannot be believed shows itself at the next request.
        let follows = !(self.stopping || self.ended)
            && vring.pending(memory).is_ok_and(|pending| pending > 0);
        let result = match bus.step(memory, &mut shared.scratch, follows) {
            Ok(Step::More) => return Ok(Turn::Again),
            Ok(Step::Until(at)) => return Ok(Turn::At(at)),
            Ok(Step::Done { kept }) => {
                self.holding = kept.then_some(bus_index);
                TransResult::TransOk
            }
            Err(error) => {
                self.holding = None;
                self.report(&error, bus_index, shared);
                TransResult::TransErr
            }
        };
        self.active = None;
        let turn = finish(guest, answer, result)?;
        Ok(if self.stopping { Turn::Control } else { turn })
    }

    fn report(&mut self, error: &TransferError, bus_index: usize, shared: &mut Shared) {
        let down =
            matches!(error, TransferError::Ioctl(e) if e.raw_os_error() == Some(libc::ESHUTDOWN));
        let name = shared
            .buses
            .get_mut(bus_index)
            .and_then(|bus| bus.note_failure(down));
        if let Some(name) = name {
            self.log(format_args!("{name}: {error}"));
        }
    }

    /// Something waits for the request on the way: no other begins. It may come to its end if it
    /// has at most [`GRACE`] to go; returns whether there is none any more.
    ///
    /// # Errors
    /// The call eventfd blocked.
    pub fn stop(&mut self, guest: &mut Guest, shared: &mut Shared) -> Result<bool, SessionError> {
        let bus = self.active.and_then(|(bus, _)| shared.buses.get(bus));
        let transfer = bus.and_then(|bus| bus.running_for(self.number));
        if transfer.is_some_and(|transfer| transfer.remaining() <= GRACE) {
            self.stopping = true;
            return Ok(false);
        }
        self.abort(guest, shared)?;
        Ok(true)
    }

    /// Ends the request on the way with `TRANS_ERR`, releases chip select, and tells the driver
    /// all that it was not told yet.
    ///
    /// # Errors
    /// The call eventfd blocked.
    pub fn abort(&mut self, guest: &mut Guest, shared: &mut Shared) -> Result<(), SessionError> {
        self.stopping = false;
        self.holding = None;
        for bus in &mut shared.buses {
            bus.abort(self.number);
        }
        if let Some((_, answer)) = self.active.take() {
            self.log(format_args!("{}", TransferError::Aborted));
            // The ring may be gone with its front-end: then there is nobody to answer.
            let _ = answer.complete(&mut guest.vring, &guest.memory, TransResult::TransErr);
        }
        guest.vring.notify(&guest.memory)
    }

    /// Releases the chip select that this guest holds; `false` if that takes until the bus says so.
    fn release(&mut self, shared: &mut Shared) -> bool {
        let held = self.holding.and_then(|index| shared.buses.get_mut(index));
        let released = held.is_none_or(|bus| bus.release(self.number));
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

fn access(shared: &mut Shared, accepted: &Accepted) -> Access {
    let bus = shared.buses.get_mut(accepted.bus);
    bus.map_or(Access::Busy, |bus| bus.access(&accepted.claim))
}

fn finish(guest: &mut Guest, answer: Answer, result: TransResult) -> Result<Turn, Stop> {
    answer
        .complete(&mut guest.vring, &guest.memory, result)
        .map(|()| Turn::Again)
        .map_err(Stop::Ring)
}
