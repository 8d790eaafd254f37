// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! For how long an empty ring is watched for the next request: as `--poll-us` says, and a moment where the
//! driver watches the ring itself. Meanwhile the driver need not kick, nor the daemon wake up. Called by
//! `requestq`.

use std::time::{Duration, Instant};

/// How long at least for a driver that wants no notification: it sees an answer at once, and its next
/// request comes sooner than the daemon could sleep and be woken up, which takes about as long.
pub(super) const MOMENT: Duration = Duration::from_micros(10);

/// Whether an empty ring is watched.
#[derive(Debug, Clone, Copy)]
pub(super) enum Polling {
    /// It is not: the driver was asked to kick.
    Off,
    /// There was a request since.
    Served,
    /// It has been empty since this moment.
    EmptySince(Instant),
}

impl Polling {
    /// Whether the ring, which is empty, is to be looked at again at once: for the time `poll` after
    /// the last request.
    pub(super) fn goes_on(&mut self, poll: Duration, now: Instant) -> bool {
        if poll.is_zero() {
            return false;
        }
        let since = match *self {
            Self::Off => return false,
            Self::Served => now,
            Self::EmptySince(since) => since,
        };
        let goes_on = now.saturating_duration_since(since) < poll;
        *self = if goes_on {
            Self::EmptySince(since)
        } else {
            Self::Off
        };
        goes_on
    }
}
