// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whose turn it is, now or at a moment to come: a queue in which nobody is passed twice by the same
//! other.
//!
//! Sessions for which something happened (an event, the end of a wait) go before those that had a turn
//! and have more to do, so that a message or a first request does not wait for the rest of a flood.
//! But each of them passes a session that waits only once: two front-ends that take turns in
//! sending messages cannot keep a third from going on.

use std::collections::VecDeque;
use std::time::Instant;

use crate::config::GuestNumber;

#[derive(Debug, Clone, Copy, Default)]
struct Due {
    /// It is in a queue.
    queued: Option<Queued>,
    /// Messages may have come in.
    has_messages: bool,
    /// Number of its last turn.
    last_turn: u64,
    /// Its last turn was none: when it is queued again, it has waited since before the turn of this number.
    keeps_place: Option<u64>,
    /// When it is to have a turn without an event.
    wake_at: Option<Instant>,
}

/// When a session was put into a queue.
#[derive(Debug, Clone, Copy)]
struct Queued {
    /// Before the turn of this number.
    before_turn: u64,
    since: Instant,
}

/// A turn of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Whose.
    pub number: GuestNumber,
    /// It is to look for messages first.
    pub has_messages: bool,
    /// Since when it was to have it.
    pub since: Instant,
}

/// The sessions that are to have a turn.
#[derive(Debug)]
pub struct Turns {
    /// Something happened for them.
    fresh: VecDeque<GuestNumber>,
    /// They had a turn and have more to do.
    again: VecDeque<GuestNumber>,
    /// They wait for a moment, in the order in which they began to wait: that is the order of their
    /// turns where they wait for the same moment.
    sleepers: VecDeque<GuestNumber>,
    due: Vec<Due>,
    /// How many turns there have been.
    count: u64,
}

impl Turns {
    /// Nobody's turn, with room for `sessions`.
    pub fn new(sessions: usize) -> Self {
        Self {
            fresh: VecDeque::with_capacity(sessions),
            again: VecDeque::with_capacity(sessions),
            sleepers: VecDeque::with_capacity(sessions),
            due: vec![Due::default(); sessions],
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

    /// The number of the last turn.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether each session that was queued when turn `count` ended has had a turn: those in the queues now
    /// were put there later.
    pub fn all_queued_since(&self, count: u64) -> bool {
        let mut queued = self.due.iter().filter_map(|due| due.queued);
        queued.all(|queued| queued.before_turn > count)
    }

    /// Something happened for a session: it is to have a turn, and to look for messages first if
    /// `has_messages`.
    pub fn queue(&mut self, number: GuestNumber, has_messages: bool, now: Instant) {
        if self.must_queue(number, has_messages, now) {
            self.fresh.push_back(number);
        }
    }

    /// A session had a turn and has more to do.
    pub fn queue_again(&mut self, number: GuestNumber, has_messages: bool, now: Instant) {
        if self.must_queue(number, has_messages, now) {
            self.again.push_back(number);
        }
    }

    /// A session was turned away, because its bus has yielded since turn `since`. When it is queued again,
    /// buses that began to yield after that still wait for it; its own does not, nor an older one: so no
    /// two buses wait for each other.
    pub fn keep_place(&mut self, number: GuestNumber, since: u64) {
        if let Some(due) = self.due.get_mut(number.index()) {
            due.keeps_place = Some(since.saturating_add(1));
        }
    }

    /// A session is to have a turn at `at`, and not at the moment that it asked for before.
    pub fn sleep(&mut self, number: GuestNumber, at: Instant) {
        let due = self.due.get_mut(number.index());
        if due.is_some_and(|due| due.wake_at.replace(at).is_none()) {
            self.sleepers.push_back(number);
        }
    }

    /// A session is to have no turn at a moment to come.
    pub fn forget_sleep(&mut self, number: GuestNumber) {
        let due = self.due.get_mut(number.index());
        if due.is_some_and(|due| due.wake_at.take().is_some()) {
            self.sleepers.retain(|&sleeper| sleeper != number);
        }
    }

    /// The first moment that a session waits for.
    pub fn next_wake(&self) -> Option<Instant> {
        let sleepers = self.sleepers.iter();
        let moments = sleepers.filter_map(|&number| self.due.get(number.index())?.wake_at);
        moments.min()
    }

    /// Queues all whose moment has come.
    pub fn wake(&mut self, now: Instant) {
        for _ in 0..self.sleepers.len() {
            let Some(number) = self.sleepers.pop_front() else {
                return;
            };
            let due = self.due.get_mut(number.index());
            if due.is_some_and(|due| due.wake_at.take_if(|at| *at <= now).is_some()) {
                self.queue(number, false, now);
            } else {
                self.sleepers.push_back(number);
            }
        }
    }

    fn must_queue(&mut self, number: GuestNumber, has_messages: bool, now: Instant) -> bool {
        let Some(due) = self.due.get_mut(number.index()) else {
            return false;
        };
        due.has_messages |= has_messages;
        if due.queued.is_some() {
            return false;
        }
        due.queued = Some(Queued {
            before_turn: due.keeps_place.take().unwrap_or(self.count),
            since: now,
        });
        true
    }

    /// Whether `fresh` has had a turn since `again` was queued.
    fn has_passed(&self, fresh: GuestNumber, again: GuestNumber) -> bool {
        let due = |number: GuestNumber| self.due.get(number.index());
        let last_turn = due(fresh).map_or(0, |due| due.last_turn);
        let queued = due(again).and_then(|due| due.queued);
        queued.is_some_and(|queued| last_turn > queued.before_turn)
    }

    /// The next session to have a turn.
    pub fn take(&mut self) -> Option<Taken> {
        let again_first = match (self.fresh.front(), self.again.front()) {
            (Some(fresh), Some(again)) => self.has_passed(*fresh, *again),
            (fresh, _) => fresh.is_none(),
        };
        let number = if again_first {
            self.again.pop_front()
        } else {
            self.fresh.pop_front()
        }?;
        self.count = self.count.saturating_add(1);
        let due = self.due.get_mut(number.index())?;
        due.last_turn = self.count;
        due.keeps_place = None;
        Some(Taken {
            number,
            has_messages: std::mem::take(&mut due.has_messages),
            since: due.queued.take()?.since,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(number: usize) -> GuestNumber {
        GuestNumber::new(number).unwrap()
    }

    fn take(turns: &mut Turns) -> Option<(usize, bool)> {
        turns
            .take()
            .map(|turn| (turn.number.index(), turn.has_messages))
    }

    #[test]
    fn turns_events_go_before_floods_but_each_only_once() {
        let now = Instant::now();
        let mut turns = Turns::new(3);
        turns.queue(guest(0), false, now);
        assert_eq!(take(&mut turns), Some((0, false)));
        turns.queue_again(guest(0), false, now);
        // Both newcomers pass the flood, once.
        turns.queue(guest(1), true, now);
        turns.queue(guest(2), false, now);
        assert_eq!(take(&mut turns), Some((1, true)));
        turns.queue(guest(1), true, now);
        assert_eq!(take(&mut turns), Some((2, false)));
        assert_eq!(take(&mut turns), Some((0, false)));
        assert_eq!(take(&mut turns), Some((1, true)));
        assert_eq!(take(&mut turns), None);
        assert!(turns.is_empty());
    }

    #[test]
    fn turns_a_session_is_queued_once_and_keeps_what_it_has_to_do() {
        let now = Instant::now();
        let mut turns = Turns::new(1);
        turns.queue(guest(0), false, now);
        turns.queue(guest(0), true, now);
        turns.queue_again(guest(0), false, now);
        assert_eq!(turns.len(), 1);
        assert_eq!(take(&mut turns), Some((0, true)));
        assert_eq!(take(&mut turns), None);
    }

    #[test]
    fn turns_of_sleepers_come_at_their_moments_whoever_was_first() {
        let start = Instant::now();
        let at = |ms| start + std::time::Duration::from_millis(ms);
        for order in [[0, 1, 2], [2, 1, 0]] {
            let mut turns = Turns::new(3);
            // The first of them changes its mind.
            turns.sleep(guest(order[0]), at(50));
            for number in order {
                let ms = [10, 20, 10][number];
                turns.sleep(guest(number), at(ms));
            }
            assert_eq!(turns.next_wake(), Some(at(10)));
            turns.wake(at(9));
            assert_eq!(take(&mut turns), None);
            turns.wake(at(10));
            let both = order.into_iter().filter(|&number| number != 1);
            let woken: Vec<_> = both.map(|number| Some((number, false))).collect();
            assert_eq!([take(&mut turns), take(&mut turns)], woken[..]);
            assert_eq!(take(&mut turns), None);
            assert_eq!(turns.next_wake(), Some(at(20)));
            turns.forget_sleep(guest(1));
            turns.wake(at(20));
            assert_eq!((take(&mut turns), turns.next_wake()), (None, None));
        }
    }

    #[test]
    fn turned_away_session_keeps_its_place_once_and_not_towards_its_own_bus() {
        let now = Instant::now();
        let mut turns = Turns::new(2);
        turns.queue(guest(0), false, now);
        turns.take();
        turns.queue(guest(1), false, now);
        let since = turns.count();
        turns.take();
        // Its bus has yielded since then; another bus began to yield one turn later.
        turns.keep_place(guest(1), since);
        turns.queue_again(guest(1), false, now);
        assert!(turns.all_queued_since(since));
        assert!(!turns.all_queued_since(turns.count()));
        // With a turn of its own it gives up its place.
        turns.take();
        turns.queue_again(guest(1), false, now);
        assert!(turns.all_queued_since(turns.count() - 1));
    }
}
