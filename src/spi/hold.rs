// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A hold: chip select that stays asserted between two requests of a guest.
//!
//! Called by `bus`, which keeps the hold; `grant` makes the claims.

use std::time::{Duration, Instant};

use crate::config::GuestNumber;
use crate::spi::framing::Framed;
use crate::spi::wire::TransferHead;

/// What a request wants of the bus.
#[derive(Debug, Clone, Copy, Default)]
pub struct Claim {
    /// Number of the guest.
    pub guest: GuestNumber,
    /// Index of the device on this bus.
    pub device: usize,
    /// spidev's mode for it.
    pub mode: u32,
    /// It has tx.
    pub sends: bool,
    /// It has rx.
    pub receives: bool,
    /// Longest hold after its end.
    pub timeout: Duration,
    /// The hold is a guess that a read follows: anything else releases, and losing it is no error.
    pub for_read: bool,
    /// Its part of a chip's command, where the device has `chip=`: that alone then decides whether it
    /// holds.
    pub framed: Option<Framed>,
}

impl Claim {
    /// Whether it is of the same guest, device and mode: it may be a part of one assertion with `other`.
    pub fn is_like(&self, other: &Self) -> bool {
        (self.guest, self.device, self.mode) == (other.guest, other.device, other.mode)
    }
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
    /// When it has lasted as long as it may while others wait.
    pub cap_at: Instant,
    /// No request may continue it any more: it is released when the hold delay is over.
    pub ending: bool,
}

impl Hold {
    /// The hold after a request with this claim and head that ended at `now`, in an assertion that
    /// began at `asserted_at`; while others wait, no request continues one that is older than `max_total`.
    pub fn new(
        claim: Claim,
        head: &TransferHead,
        asserted_at: Instant,
        max_total: Duration,
        now: Instant,
    ) -> Self {
        let hold_delay = Duration::from_nanos(head.cs_delay_hold_ns.into());
        Self {
            claim,
            asserted_at,
            releasable_at: after(now, hold_delay),
            expires_at: after(now, claim.timeout),
            cap_at: after(asserted_at, max_total),
            ending: false,
        }
    }

    /// Whether a request with this claim continues the assertion.
    pub fn is_continued_by(&self, claim: &Claim) -> bool {
        self.claim.is_like(claim) && (!claim.sends || !self.claim.for_read)
    }

    /// When it ends by itself.
    pub fn ends_at(&self, others_wait: bool) -> Instant {
        match (self.ending, others_wait) {
            (true, _) => self.releasable_at,
            (false, true) => self.expires_at.min(self.cap_at),
            (false, false) => self.expires_at,
        }
    }
}

/// The moment `time` after `at`, or `at` itself where the clock does not reach that far.
fn after(at: Instant, time: Duration) -> Instant {
    at.checked_add(time).unwrap_or(at)
}
