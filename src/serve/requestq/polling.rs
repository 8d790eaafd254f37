// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--poll-us`: for how long an empty ring is watched for the next request. Meanwhile the driver need not
//! kick, nor the daemon wake up. Called by `requestq`.

use std::time::{Duration, Instant};

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
