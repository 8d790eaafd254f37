//! A hold: chip select that stays asserted between two requests of a guest.

use std::time::{Duration, Instant};

use crate::config::GuestNumber;

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
}

/// For how long and how a guest may hold chip select.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldTerms {
    /// Longest time after the end of its last transfer.
    pub timeout: Duration,
    /// Longest time that chip select stays asserted in all while others wait.
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
    /// When the last one ended.
    pub ended_at: Instant,
    /// That one's hold delay: chip select is not released earlier.
    pub hold_delay: Duration,
    /// Nanoseconds of the inactive delay that follows the release.
    pub inactive_ns: u32,
    /// Nothing continues it any more: it is released when the hold delay is over.
    pub ending: bool,
}

impl Hold {
    /// Whether a request with this claim goes on in the same assertion.
    pub fn is_continued_by(&self, claim: &Claim) -> bool {
        self.claim.guest == claim.guest
            && self.claim.device == claim.device
            && self.claim.mode == claim.mode
            && (claim.direction == Direction::Read || !self.claim.terms.for_read)
    }

    /// The earliest release.
    pub fn releasable_at(&self) -> Instant {
        after(self.ended_at, self.hold_delay)
    }

    /// When it ends by itself.
    pub fn ends_at(&self, others_wait: bool) -> Instant {
        if self.ending {
            return self.releasable_at();
        }
        let timeout = after(self.ended_at, self.claim.terms.timeout);
        if others_wait {
            timeout.min(self.cap_total())
        } else {
            timeout
        }
    }

    /// When it has lasted as long as it may while others wait.
    pub fn cap_total(&self) -> Instant {
        after(self.asserted_at, self.claim.terms.max_total)
    }
}

/// The moment `time` after `at`, or `at` itself where the clock does not reach that far.
fn after(at: Instant, time: Duration) -> Instant {
    at.checked_add(time).unwrap_or(at)
}
