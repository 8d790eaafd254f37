// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A hold: chip select that stays asserted between two requests of a guest.

use std::time::{Duration, Instant};

use crate::config::GuestNumber;
use crate::spi::framing::Framed;
use crate::spi::wire::TransferHead;

/// Which way the bytes of a request go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// There is tx alone.
    Write,
    /// There is rx alone.
    Read,
    /// Full duplex.
    Both,
}

/// What a request wants of the bus.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// Number of the guest.
    pub guest: GuestNumber,
    /// Index of the device on this bus.
    pub device: usize,
    /// spidev's mode for it.
    pub mode: u32,
    /// Which way its bytes go.
    pub direction: Direction,
    /// For how long and how it may hold chip select.
    pub terms: HoldTerms,
    /// Its part of a chip's command, where the device has `chip=`: that alone then decides whether it
    /// holds.
    pub framed: Option<Framed>,
}

/// For how long and how a guest may hold chip select.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldTerms {
    /// Longest time after the end of its last transfer.
    pub timeout: Duration,
    /// While others wait, no request continues an assertion that is older than this.
    pub max_total: Duration,
    /// The hold is a guess that a read follows: anything else releases, and losing it is no error.
    pub for_read: bool,
}

/// Chip select that stays asserted between two requests.
#[derive(Debug)]
pub struct Hold {
    /// What the last request had claimed.
    pub claim: Claim,
    /// When the first request of the assertion began.
    pub asserted_at: Instant,
    /// The earliest release: when the last request's hold delay is over.
    pub releasable_at: Instant,
    /// When its time-out is over.
    pub expires_at: Instant,
    /// Nanoseconds of the inactive delay that follows the release.
    pub inactive_ns: u32,
    /// No request may continue it any more: it is released when the hold delay is over.
    pub ending: bool,
}

impl Hold {
    /// The hold after a request with this claim and head that ended at `now`, in an assertion that
    /// began at `asserted_at`.
    pub fn new(claim: Claim, head: &TransferHead, asserted_at: Instant, now: Instant) -> Self {
        let hold_delay = Duration::from_nanos(head.cs_delay_hold_ns.into());
        Self {
            claim,
            asserted_at,
            releasable_at: after(now, hold_delay),
            expires_at: after(now, claim.terms.timeout),
            inactive_ns: head.cs_change_delay_inactive_ns,
            ending: false,
        }
    }

    /// Whether a request with this claim continues the assertion.
    pub fn is_continued_by(&self, claim: &Claim) -> bool {
        self.claim.guest == claim.guest
            && self.claim.device == claim.device
            && self.claim.mode == claim.mode
            && (claim.direction == Direction::Read || !self.claim.terms.for_read)
    }

    /// When it ends by itself.
    pub fn ends_at(&self, others_wait: bool) -> Instant {
        match (self.ending, others_wait) {
            (true, _) => self.releasable_at,
            (false, true) => self.expires_at.min(self.cap_total()),
            (false, false) => self.expires_at,
        }
    }

    /// Whether it has lasted as long as it may while others wait.
    pub fn is_overdue(&self, others_wait: bool, now: Instant) -> bool {
        others_wait && self.cap_total() <= now
    }

    fn cap_total(&self) -> Instant {
        after(self.asserted_at, self.claim.terms.max_total)
    }
}

/// The moment `time` after `at`, or `at` itself where the clock does not reach that far.
fn after(at: Instant, time: Duration) -> Instant {
    at.checked_add(time).unwrap_or(at)
}
