// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A write and the read after it, between which chip select was released.
//!
//! A stock Linux guest sends both transfers of a message with `cs_change` 0, one after the other. With
//! `--cs-hold=queued` the chip takes them for two commands, and no error shows that. So the log does, once
//! for each chip select. Called by `requestq`.

use std::time::{Duration, Instant};

use crate::spi::hold::Claim;

/// The longest pause between two requests of one message.
const PAUSE: Duration = Duration::from_millis(5);

/// What is known of such pairs of one guest.
#[derive(Debug, Default)]
pub(super) struct CutPairs {
    /// The last request, if it could begin a pair that is cut: its chip select, and when it ended.
    write: Option<(u8, Instant)>,
    /// A bit for each chip select that was logged.
    logged: u16,
}

impl CutPairs {
    /// A request has ended, and chip select was released although its `cs_change` was 0.
    pub(super) fn note_cut(&mut self, chip_select: Option<u8>, now: Instant) {
        self.write = chip_select.map(|number| (number, now));
    }

    /// Whether the request that begins is the first on its chip select to show a pair that was cut.
    pub(super) fn are_shown_by(
        &mut self,
        claim: &Claim,
        chip_select: Option<u8>,
        now: Instant,
    ) -> bool {
        let Some((number, ended_at)) = self.write.take() else {
            return false;
        };
        let bit = 1u16.checked_shl(number.into()).unwrap_or(0);
        let shows = !claim.sends
            && chip_select == Some(number)
            && now.saturating_duration_since(ended_at) <= PAUSE
            && self.logged & bit == 0;
        if shows {
            self.logged |= bit;
        }
        shows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(sends: bool) -> Claim {
        Claim {
            sends,
            receives: !sends,
            ..Claim::default()
        }
    }

    #[test]
    fn cut_pair_is_shown_once_by_a_read_of_the_same_chip_select_in_time() {
        let (start, read) = (Instant::now(), claim(false));
        let mut pairs = CutPairs::default();
        assert!(!pairs.are_shown_by(&read, Some(0), start), "nothing before");
        pairs.note_cut(Some(0), start);
        assert!(!pairs.are_shown_by(&read, Some(1), start), "another chip");
        assert!(!pairs.are_shown_by(&read, Some(0), start), "not the next");
        pairs.note_cut(Some(0), start);
        assert!(!pairs.are_shown_by(&claim(true), Some(0), start));
        assert!(!pairs.are_shown_by(&read, Some(0), start), "not cut");
        pairs.note_cut(Some(0), start);
        let late = start + PAUSE + Duration::from_nanos(1);
        assert!(!pairs.are_shown_by(&read, Some(0), late));
        for number in [0, 15] {
            pairs.note_cut(Some(number), start);
            assert!(pairs.are_shown_by(&read, Some(number), start + PAUSE));
            pairs.note_cut(Some(number), start);
            assert!(!pairs.are_shown_by(&read, Some(number), start), "again");
        }
    }
}
