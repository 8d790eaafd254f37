// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whose turn it is, now or at a moment to come: a queue in which no session is overtaken twice by the
//! same other one.
//!
//! Sessions for which something happened (an event, the end of a wait) go before those that had a turn
//! and have more to do, so that a message or a first request does not wait for the rest of a flood.
//! But each of them overtakes a waiting session once at most: two front-ends that send messages in turn
//! cannot keep a third from going on.
//!
//! A bus that rests after a long message is in the queue, too: when its turn has come, all sessions that
//! were queued before it have had theirs. No session that was queued later overtakes it. If such a session
//! needs the bus its turn would be of no use, and afterwards it could not overtake the waiting ones.
//!
//! Called by `event_loop`.

use std::collections::VecDeque;
use std::time::Instant;

use crate::config::GuestNumber;

/// What is known of a session's turns.
#[derive(Debug, Clone, Copy, Default)]
struct Due {
    /// Since when it is in a queue.
    queued_since: Option<Instant>,
    /// Number of the last turn before it was queued.
    queued_after: u64,
    /// Messages may have come in.
    has_messages: bool,
    /// Number of its last turn.
    last_turn: u64,
    /// When it is to have a turn without an event.
    wake_at: Option<Instant>,
}

/// Who is in the queue of those that had a turn ([`Turns`]' `again`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entrant {
    Session(GuestNumber),
    /// Index of a bus.
    Bus(usize),
}

/// Who is next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// A session, with its turn.
    Session(Taken),
    /// The bus with this index: its rest is over.
    Bus(usize),
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

/// The sessions that are to have a turn, and the buses that rest.
#[derive(Debug)]
pub struct Turns {
    /// Something happened for them.
    fresh: VecDeque<GuestNumber>,
    /// They had a turn and have more to do, or are buses that rest; with the number of the last turn
    /// before they were queued.
    again: VecDeque<(Entrant, u64)>,
    /// They wait for a moment, in the order in which they began to wait: that is the order of their
    /// turns where they wait for the same moment.
    sleepers: VecDeque<GuestNumber>,
    due: Vec<Due>,
    /// How many turns there have been.
    count: u64,
}

impl Turns {
    /// Nobody's turn, with room for so many sessions and buses.
    pub fn new(sessions: usize, buses: usize) -> Self {
        Self {
            fresh: VecDeque::with_capacity(sessions),
            again: VecDeque::with_capacity(sessions.saturating_add(buses)),
            sleepers: VecDeque::with_capacity(sessions),
            due: vec![Due::default(); sessions],
            count: 0,
        }
    }

    /// How many sessions are to have a turn, and buses rest.
    pub fn len(&self) -> usize {
        self.fresh.len().saturating_add(self.again.len())
    }

    /// Whether no session is to have a turn, and no bus rests.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
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
            self.again.push_back((Entrant::Session(number), self.count));
        }
    }

    /// A bus rests, if it did not already.
    pub fn queue_bus(&mut self, index: usize) {
        let bus = Entrant::Bus(index);
        if !self.again.iter().any(|&(entrant, _)| entrant == bus) {
            self.again.push_back((bus, self.count));
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
        if due.queued_since.is_some() {
            return false;
        }
        due.queued_since = Some(now);
        due.queued_after = self.count;
        true
    }

    /// Who is next.
    pub fn take(&mut self) -> Option<Next> {
        let fresh_first = match (self.fresh.front(), self.again.front()) {
            (Some(&fresh), Some(&(waiting, before))) => self.passes(fresh, waiting, before),
            (fresh, _) => fresh.is_some(),
        };
        let entrant = if fresh_first {
            self.fresh.pop_front().map(Entrant::Session)
        } else {
            self.again.pop_front().map(|(entrant, _)| entrant)
        };
        match entrant? {
            Entrant::Bus(index) => Some(Next::Bus(index)),
            Entrant::Session(number) => self.begin_turn(number).map(Next::Session),
        }
    }

    /// Whether `fresh` goes before `waiting`, which was queued after the turn with the number `before`.
    fn passes(&self, fresh: GuestNumber, waiting: Entrant, before: u64) -> bool {
        let since = |due: &Due| match waiting {
            Entrant::Session(_) => due.last_turn,
            Entrant::Bus(_) => due.queued_after,
        };
        self.due
            .get(fresh.index())
            .is_some_and(|due| since(due) <= before)
    }

    fn begin_turn(&mut self, number: GuestNumber) -> Option<Taken> {
        self.count = self.count.saturating_add(1);
        let due = self.due.get_mut(number.index())?;
        due.last_turn = self.count;
        Some(Taken {
            number,
            has_messages: std::mem::take(&mut due.has_messages),
            since: due.queued_since.take()?,
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
        match turns.take()? {
            Next::Session(turn) => Some((turn.number.index(), turn.has_messages)),
            Next::Bus(index) => panic!("the turn of bus {index}"),
        }
    }

    #[test]
    fn turns_events_go_before_floods_but_each_only_once() {
        let now = Instant::now();
        let mut turns = Turns::new(3, 1);
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
        let mut turns = Turns::new(1, 0);
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
            let mut turns = Turns::new(3, 1);
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
    fn turn_of_a_bus_comes_when_all_that_were_queued_before_it_had_theirs() {
        let now = Instant::now();
        let mut turns = Turns::new(3, 1);
        for number in 0..3 {
            turns.queue(guest(number), false, now);
        }
        assert_eq!(take(&mut turns), Some((0, false)));
        turns.queue_bus(7);
        turns.queue_again(guest(0), false, now);
        turns.queue_bus(7);
        assert_eq!(take(&mut turns), Some((1, false)));
        // Something happened again for one that had its turn meanwhile: it does not pass the bus.
        turns.queue(guest(1), false, now);
        assert_eq!(take(&mut turns), Some((2, false)));
        assert_eq!(turns.take(), Some(Next::Bus(7)));
        assert_eq!(take(&mut turns), Some((0, false)));
        assert_eq!(take(&mut turns), Some((1, false)));
        assert_eq!(turns.take(), None);
    }

    #[test]
    fn turn_of_a_bus_comes_before_that_of_a_session_that_was_queued_later() {
        let now = Instant::now();
        let mut turns = Turns::new(3, 1);
        turns.queue(guest(0), false, now);
        turns.queue(guest(1), false, now);
        assert_eq!(take(&mut turns), Some((0, false)));
        turns.queue_bus(7);
        // An event is seen after the turn in which it happened: it may be older than the place of the bus.
        turns.queue(guest(0), false, now);
        assert_eq!(take(&mut turns), Some((1, false)));
        turns.queue(guest(2), false, now);
        assert_eq!(take(&mut turns), Some((0, false)));
        assert_eq!(turns.take(), Some(Next::Bus(7)));
        assert_eq!(take(&mut turns), Some((2, false)));
    }
}
