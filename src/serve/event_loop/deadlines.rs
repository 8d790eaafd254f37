// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Deadlines: the timer is set for the first of them before each wait for events; when it goes off,
//! each of them that has passed is acted on.

use std::time::{Duration, Instant};

use super::EventLoop;
use crate::config::GuestNumber;
use crate::serve::session::Session;
use crate::spi::bus::Bus;

/// How long until the kernel is asked again to close fds that it did not take.
const RETRY: Duration = Duration::from_millis(10);

impl EventLoop {
    /// The first deadline of all.
    pub(super) fn next_deadline(&mut self) -> Option<Instant> {
        let own = [
            self.turns.next_wake(),
            self.report.retry_at,
            self.sd_notify.next,
            self.collect_at,
            self.ends_at,
        ];
        let buses = self.shared.buses.iter().map(Bus::deadline);
        let sessions = &self.sessions;
        self.timed
            .retain(|&number| deadline(sessions, number).is_some());
        let timed = self.timed.iter();
        let of_sessions = timed.map(|&number| deadline(sessions, number));
        let all = own.into_iter().chain(buses).chain(of_sessions);
        all.fold(None, earlier)
    }

    /// A session may have a deadline that it did not have.
    pub(super) fn note_deadline(&mut self, number: GuestNumber) {
        if !self.timed.contains(&number) {
            self.timed.push(number);
        }
    }

    /// The timer went off.
    pub(super) fn expire(&mut self) {
        self.timer.went_off();
        let now = self.shared.now;
        for index in 0..self.timed.len() {
            if let Some(&number) = self.timed.get(index) {
                self.expire_session(number, now);
            }
        }
        self.turns.wake(now);
        self.expire_holds();
        self.wake_waiters();
        self.sd_notify.alive(now);
    }

    fn expire_session(&mut self, number: GuestNumber, now: Instant) {
        let Some(session) = self.sessions.get_mut(number.index()) else {
            return;
        };
        if session.deadline().is_some_and(|at| at <= now) {
            if let Err(error) = session.expire(now, &self.shared.poller) {
                self.close(number, &error);
            }
        }
    }

    /// Ends the holds that have run out. Where the guest has queued a request by now, the loop came
    /// too late: that request gets its turn first.
    fn expire_holds(&mut self) {
        for bus in &mut self.shared.buses {
            let has_request = |guest: GuestNumber| {
                self.sessions
                    .get(guest.index())
                    .is_some_and(Session::has_request)
            };
            if let Some(guest) = bus.expire(&mut self.shared.now, has_request) {
                self.turns.queue(guest, false, self.shared.now);
            }
        }
    }

    /// Hands the fds whose close was deferred to the kernel. If it does not take them, tries again later.
    pub(super) fn collect(&mut self) {
        if !self.shared.deferred.take_touched() {
            return;
        }
        if !self.shared.deferred.collect() {
            self.collect_at = self.shared.now.checked_add(RETRY);
            return;
        }
        self.collect_at = None;
        for (number, session) in GuestNumber::all().zip(&mut self.sessions) {
            if session.take_held_up() {
                self.turns.queue(number, true, self.shared.now);
            }
        }
    }
}

/// The earlier of two deadlines, where there are two.
fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

fn deadline(sessions: &[Session], number: GuestNumber) -> Option<Instant> {
    sessions.get(number.index())?.deadline()
}
