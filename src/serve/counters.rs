//! What became of requests, counted for each guest and chip select, and how that is written out.
//!
//! Counting costs a request a few additions: no clock is read for it, and the room is made once.
//! The counts are of the socket: they go on over its front-ends, until the daemon ends.

use std::fmt;
use std::time::{Duration, Instant};

use crate::config::LogLevel;
use crate::os::log;
use crate::spi::wire::TransResult;

/// How long until a line is tried again for which stderr had no room.
const RETRY: Duration = Duration::from_millis(10);
/// How often, until nobody is taken to read any more.
const TRIES: u32 = 100;

/// The requests to one chip select.
#[derive(Debug, Clone, Copy, Default)]
struct Counters {
    ok: u64,
    param_err: u64,
    trans_err: u64,
    bytes: u64,
    wire_ns: u64,
    longest_wait: Duration,
}

impl Counters {
    /// How many requests were answered.
    fn requests(&self) -> u64 {
        self.ok
            .wrapping_add(self.param_err)
            .wrapping_add(self.trans_err)
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "requests={} bytes={} ok={} param_err={} trans_err={} wire_us={} longest_wait_us={}",
            self.requests(),
            self.bytes,
            self.ok,
            self.param_err,
            self.trans_err,
            self.wire_ns / 1000,
            u64::try_from(self.longest_wait.as_micros()).unwrap_or(u64::MAX)
        )
    }
}

/// The requests of one guest: those that name none of its chip selects, then those to each.
#[derive(Debug)]
pub struct Tally(Box<[Counters]>);

impl Tally {
    /// Nothing counted yet, of `chip_selects` chip selects.
    pub fn new(chip_selects: usize) -> Self {
        let count = chip_selects.saturating_add(1);
        Self(vec![Counters::default(); count].into())
    }

    /// Counts a request to `chip_select`, of the guest's own or none, that was answered; one without
    /// a result byte counts as `PARAM_ERR`.
    pub fn count(&mut self, chip_select: Option<u8>, result: TransResult) {
        if let Some(counters) = self.of(chip_select) {
            let counter = match result {
                TransResult::TransOk => &mut counters.ok,
                TransResult::ParamErr => &mut counters.param_err,
                TransResult::TransErr => &mut counters.trans_err,
            };
            *counter = counter.wrapping_add(1);
        }
    }

    /// Counts what a request that succeeded had on the wire: bytes in one direction, nanoseconds.
    pub fn count_wire(&mut self, chip_select: Option<u8>, (len, wire_ns): (u64, u64)) {
        if let Some(counters) = self.of(chip_select) {
            counters.bytes = counters.bytes.wrapping_add(len);
            counters.wire_ns = counters.wire_ns.wrapping_add(wire_ns);
        }
    }

    /// Notes how long a request waited that now goes on the wire.
    pub fn note_wait(&mut self, chip_select: Option<u8>, wait: Duration) {
        if let Some(counters) = self.of(chip_select) {
            counters.longest_wait = counters.longest_wait.max(wait);
        }
    }

    fn of(&mut self, chip_select: Option<u8>) -> Option<&mut Counters> {
        let index = chip_select.map_or(0, |number| usize::from(number).saturating_add(1));
        self.0.get_mut(index)
    }

    /// The n-th line about `guest`, written if there is anything to it; `false` if it could not be.
    fn write(&self, guest: usize, number: usize) -> bool {
        let chip_select = u8::try_from(number).ok();
        let chip_select = chip_select.filter(|_| number.saturating_add(1) < self.0.len());
        let index = chip_select.map_or(0, |_| number.saturating_add(1));
        let Some(counters) = self.0.get(index) else {
            return true;
        };
        if chip_select.is_none() && counters.requests() == 0 {
            return true;
        }
        let of = ChipSelect(chip_select);
        log::write(
            LogLevel::Info,
            format_args!("guest={guest} {of} {counters}"),
        )
    }
}

/// A chip select as a field; `cs=-` is none of the guest's.
#[derive(Debug, Clone, Copy)]
pub struct ChipSelect(pub Option<u8>);

impl fmt::Display for ChipSelect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(number) => write!(f, "cs={number}"),
            None => write!(f, "cs=-"),
        }
    }
}

/// Writing out all counters: a line at a time, so that nobody waits for the whole of it, and as
/// fast as stderr is read.
#[derive(Debug, Default)]
pub struct Report {
    /// Guest and number of the next line, while there is one.
    next: Option<(usize, usize)>,
    /// Asked for once more meanwhile: what is written already may be out of date.
    again: bool,
    /// Since when stderr has no room, and how often it was asked.
    tries: u32,
    retry_at: Option<Instant>,
}

impl Report {
    /// Begins, or has another one follow that which is under way.
    pub fn begin(&mut self) {
        self.again = self.next.is_some();
        self.next.get_or_insert((0, 0));
    }

    /// Whether the next line can be tried at once.
    pub fn is_due(&self) -> bool {
        self.next.is_some() && self.retry_at.is_none()
    }

    /// Writes the next line, of the tally that `of` has for its guest; when it is to be tried again
    /// if that is not at once.
    pub fn step<'t>(&mut self, of: impl FnOnce(usize) -> Option<&'t Tally>) -> Option<Instant> {
        let (guest, number) = self.next?;
        if let Some(at) = self.retry_at.take_if(|at| *at > Instant::now()) {
            self.retry_at = Some(at);
            return self.retry_at;
        }
        self.retry_at = None;
        let Some(tally) = of(guest) else {
            let again = self.again;
            *self = Self::default();
            self.next = again.then_some((0, 0));
            return None;
        };
        if tally.write(guest, number) {
            self.tries = 0;
            let after = number.saturating_add(1);
            self.next = Some(if after < tally.0.len() {
                (guest, after)
            } else {
                (guest.saturating_add(1), 0)
            });
            return None;
        }
        self.tries = self.tries.saturating_add(1);
        if self.tries > TRIES {
            *self = Self::default();
            return None;
        }
        self.retry_at = Instant::now().checked_add(RETRY);
        self.retry_at
    }
}
