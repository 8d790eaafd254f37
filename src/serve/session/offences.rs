// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Acts of a socket's front-ends at the cost of all guests. They are forgotten with time, so that a
//! stray file now and then does not end a socket that serves for years.

use std::time::{Duration, Instant};

/// Fds that may be left open for a socket before it stops listening for good.
const MAX_LEFT_OPEN: u32 = 16;
/// How long it takes to forget one of them: in a year a front-end can leave a few hundred open.
const DAY: Duration = Duration::from_secs(24 * 3600);
/// For how long a socket does not listen after a front-end's eventfd had blocked, for the first time;
/// each further time it is twice as long, up to `MAX_BACK_OFF`.
const BACK_OFF: Duration = Duration::from_secs(1);
const MAX_BACK_OFF: Duration = Duration::from_secs(64);
/// An eventfd that blocks after this time counts as the first again.
const HOUR: Duration = Duration::from_secs(3600);

/// The record of one socket.
#[derive(Debug, Default)]
pub(super) struct Offences {
    /// When the last of the fds that were left open will be forgotten: they are one after the other.
    left_open_until: Option<Instant>,
    /// When an eventfd blocked last, and for how long the socket did not listen then.
    blocked: Option<(Instant, Duration)>,
}

impl Offences {
    /// `count` fds were left open. Returns whether the socket is to stop listening for good.
    pub(super) fn note_left_open(&mut self, count: u32, now: Instant) -> bool {
        let earlier = self.left_open_until.map_or(now, |until| until.max(now));
        self.left_open_until = earlier.checked_add(DAY.saturating_mul(count));
        self.left_open_until > now.checked_add(DAY.saturating_mul(MAX_LEFT_OPEN))
    }

    /// An eventfd blocked. Returns for how long the socket is not to listen.
    pub(super) fn note_blocked(&mut self, now: Instant) -> Duration {
        let recent = self
            .blocked
            .filter(|(last, _)| now.saturating_duration_since(*last) < HOUR);
        let back_off = recent.map_or(BACK_OFF, |(_, last)| {
            last.saturating_mul(2).min(MAX_BACK_OFF)
        });
        self.blocked = Some((now, back_off));
        back_off
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offences_of_a_stray_file_each_day_never_end_the_socket() {
        let (mut offences, start) = (Offences::default(), Instant::now());
        for day in 0..1000 {
            assert!(!offences.note_left_open(1, start + DAY * day), "day {day}");
        }
    }

    #[test]
    fn offences_of_17_files_within_a_day_end_the_socket() {
        let (mut offences, start) = (Offences::default(), Instant::now());
        // One of long ago is forgotten.
        assert!(!offences.note_left_open(1, start));
        let later = start + DAY * 3;
        for n in 0..16 {
            let now = later + Duration::from_secs(n);
            assert!(!offences.note_left_open(1, now), "{n}");
        }
        assert!(offences.note_left_open(1, later + Duration::from_secs(16)));
    }

    #[test]
    fn offences_of_one_message_with_17_files_end_the_socket() {
        let (mut offences, now) = (Offences::default(), Instant::now());
        assert!(!offences.note_left_open(16, now));
        assert!(Offences::default().note_left_open(17, now));
    }

    #[test]
    fn offences_more_often_than_forgotten_end_the_socket() {
        let (mut offences, start) = (Offences::default(), Instant::now());
        // Two each day: one of them is forgotten until the next.
        let ended = (0..40u32).find(|n| offences.note_left_open(1, start + DAY / 2 * *n));
        assert_eq!(ended, Some(31));
    }

    #[test]
    fn offences_of_blocked_eventfds_rest_twice_as_long_and_are_forgotten_in_an_hour() {
        let (mut offences, mut now) = (Offences::default(), Instant::now());
        for expected in [1, 2, 4, 8, 16, 32, 64, 64] {
            assert_eq!(offences.note_blocked(now).as_secs(), expected);
            now += Duration::from_secs(expected);
        }
        now += HOUR - Duration::from_secs(65);
        assert_eq!(offences.note_blocked(now).as_secs(), 64);
        now += HOUR;
        assert_eq!(offences.note_blocked(now).as_secs(), 1);
    }
}
