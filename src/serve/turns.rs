//! Whose turn it is: a queue in which nobody is passed twice by the same other.
//!
//! Those for whom something happened (an event, the end of a wait) go before those who had a turn
//! and have more to do, so that a message or a first request does not wait for the rest of a flood.
//! But each of them passes a session that waits only once: two front-ends that take turns in
//! sending messages cannot keep a third from going on.

use std::collections::VecDeque;
use std::time::Instant;

#[derive(Debug, Clone, Copy)]
struct Due {
    queued: bool,
    /// Messages may have come in.
    control: bool,
    /// Number of its last turn.
    last_turn: u64,
    /// Number of the turn before which it was put into a queue.
    queued_at: u64,
    /// What the clock showed then.
    since: Instant,
}

/// A turn of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Whose.
    pub number: usize,
    /// It is to look for messages first.
    pub control: bool,
    /// Since when it was to have it.
    pub since: Instant,
}

/// The sessions that are to have a turn.
#[derive(Debug)]
pub struct Turns {
    /// Something happened for them.
    fresh: VecDeque<usize>,
    /// They had a turn and have more to do.
    again: VecDeque<usize>,
    due: Vec<Due>,
    /// How many turns there have been.
    count: u64,
}

impl Turns {
    /// Nobody's turn, with room for `sessions`.
    pub fn new(sessions: usize, now: Instant) -> Self {
        let due = Due {
            queued: false,
            control: false,
            last_turn: 0,
            queued_at: 0,
            since: now,
        };
        Self {
            fresh: VecDeque::with_capacity(sessions),
            again: VecDeque::with_capacity(sessions),
            due: vec![due; sessions],
            count: 0,
        }
    }

    /// How many sessions are to have a turn.
    pub fn len(&self) -> usize {
        self.fresh.len().saturating_add(self.again.len())
    }

    /// Whether nobody is to have a turn.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Something happened for a session: it is to have a turn, and to look for messages first if
    /// `control`.
    pub fn queue(&mut self, number: usize, control: bool, now: Instant) {
        if self.must_queue(number, control, now) {
            self.fresh.push_back(number);
        }
    }

    /// A session had a turn and has more to do.
    pub fn queue_again(&mut self, number: usize, control: bool, now: Instant) {
        if self.must_queue(number, control, now) {
            self.again.push_back(number);
        }
    }

    fn must_queue(&mut self, number: usize, control: bool, now: Instant) -> bool {
        let Some(due) = self.due.get_mut(number) else {
            return false;
        };
        due.control |= control;
        if due.queued {
            return false;
        }
        due.queued = true;
        due.queued_at = self.count;
        due.since = now;
        true
    }

    /// The next session to have a turn.
    pub fn take(&mut self) -> Option<Taken> {
        let due = |number: Option<&usize>| self.due.get(*number?);
        let again_first = match (due(self.fresh.front()), due(self.again.front())) {
            (Some(fresh), Some(again)) => fresh.last_turn > again.queued_at,
            (Some(_), None) => false,
            (None, _) => true,
        };
        let number = if again_first {
            self.again.pop_front()
        } else {
            self.fresh.pop_front()
        }?;
        self.count = self.count.saturating_add(1);
        let due = self.due.get_mut(number)?;
        due.queued = false;
        due.last_turn = self.count;
        Some(Taken {
            number,
            control: std::mem::take(&mut due.control),
            since: due.since,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(turns: &mut Turns) -> Option<(usize, bool)> {
        turns.take().map(|turn| (turn.number, turn.control))
    }

    #[test]
    fn turns_events_go_before_floods_but_each_only_once() {
        let now = Instant::now();
        let mut turns = Turns::new(3, now);
        turns.queue(0, false, now);
        assert_eq!(take(&mut turns), Some((0, false)));
        turns.queue_again(0, false, now);
        // Both newcomers pass the flood, once.
        turns.queue(1, true, now);
        turns.queue(2, false, now);
        assert_eq!(take(&mut turns), Some((1, true)));
        turns.queue(1, true, now);
        assert_eq!(take(&mut turns), Some((2, false)));
        assert_eq!(take(&mut turns), Some((0, false)));
        assert_eq!(take(&mut turns), Some((1, true)));
        assert_eq!(take(&mut turns), None);
        assert!(turns.is_empty());
    }

    #[test]
    fn turns_a_session_is_queued_once_and_keeps_what_it_has_to_do() {
        let now = Instant::now();
        let mut turns = Turns::new(1, now);
        turns.queue(0, false, now);
        turns.queue(0, true, now);
        turns.queue_again(0, false, now);
        assert_eq!(turns.len(), 1);
        assert_eq!(take(&mut turns), Some((0, true)));
        assert_eq!(take(&mut turns), None);
    }
}
