//! A hold: chip select that stays asserted between two requests of a guest.

use std::time::{Duration, Instant};

/// What a request wants of the bus.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// Number of the guest.
    pub guest: usize,
    /// Index of the device on this bus.
    pub device: usize,
    /// spidev's mode for it.
    pub mode: u32,
    /// It has rx and no tx.
    pub only_reads: bool,
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
    /// What the request that holds had claimed.
    pub claim: Claim,
    /// The guest's terms.
    pub terms: HoldTerms,
    /// When the first request of the assertion began.
    pub asserted_at: Instant,
    /// When its time-out is over, or its hold delay where it is ending.
    pub until: Instant,
    /// The hold delay of the request that holds is over only then.
    pub earliest_release: Option<Instant>,
    /// Nanoseconds that chip select rests when it is released.
    pub inactive_ns: u32,
    /// Nothing continues it any more.
    pub ending: bool,
}

impl Hold {
    /// Whether a request with this claim goes on in the same assertion.
    pub fn is_continued_by(&self, claim: &Claim) -> bool {
        self.claim.device == claim.device
            && self.claim.mode == claim.mode
            && (claim.only_reads || !self.terms.for_read)
    }

    /// When it ends by itself.
    pub fn ends_at(&self, others_wait: bool) -> Instant {
        match self.cap() {
            Some(cap) if others_wait && !self.ending => self.until.min(cap),
            Some(_) | None => self.until,
        }
    }

    /// Whether it has lasted as long as it may while others wait.
    pub fn is_overdue(&self, now: Instant) -> bool {
        self.cap().is_some_and(|cap| cap <= now)
    }

    fn cap(&self) -> Option<Instant> {
        self.asserted_at.checked_add(self.terms.max_total)
    }
}
