// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The loop: waits for events, gives every guest its turn, keeps the deadlines.
//!
//! Kicks and messages only mark whose turn it is; they are handled in turns, one request or step each,
//! round robin. Where several front-ends are connected the loop looks for events after one turn of each
//! guest that has work, so that a flood delays another guest by one request; a guest alone has its
//! queue served without looks in between, for a millisecond or 64 turns that do not reach the wire.
//!
//! epoll traps that this avoids: fds shared with a front-end are removed from the set explicitly
//! (`epoll::Registered`); an event of a connection that was ended earlier in the same batch does no more
//! than make its successor, if there is one, look for messages.
//!
//! Made by `assemble`, run by `main`.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{EpollEvent, EventSet};

use crate::config::{GuestNumber, LogLevel};
use crate::error::{ExitCode, Fatal, SessionError};
use crate::os::deadline_timer::DeadlineTimer;
use crate::os::epoll::{self, Token};
use crate::os::log;
use crate::os::sd_notify::SdNotify;
use crate::os::signals;
use crate::serve::counters::Report;
use crate::serve::grant::Shared;
use crate::serve::requestq::Turn;
use crate::serve::session::Session;
use crate::serve::turns::{Next, Taken, Turns};
use crate::spi::bus::{Bus, LONG};
use crate::virtqueue::sigbus;

mod deadlines;
mod end;

/// Most events that one look takes.
const EVENTS: usize = 32;
/// Most turns of a guest that is alone between two looks for events; one has all the requests that reach
/// the wire one after the other.
const TURNS: usize = 64;
/// Most time between two looks for events, in which no further turn begins.
const TURNS_TIME: Duration = LONG;

/// Everything that the daemon runs on.
pub struct EventLoop {
    sessions: Vec<Session>,
    shared: Shared,
    signals: File,
    sd_notify: SdNotify,
    timer: DeadlineTimer,
    turns: Turns,
    /// Sessions that may have a deadline: those that had messages or were closed, until they are found to
    /// have none. The others need not be asked, so that idle guests cost nothing.
    timed: Vec<GuestNumber>,
    /// How many front-ends are connected.
    connected: usize,
    report: Report,
    /// When the kernel is asked again to close fds that it did not take.
    collect_at: Option<Instant>,
    /// If the end was asked for: when it will come, whatever is on the wire.
    ends_at: Option<Instant>,
}

fn fatal(error: io::Error) -> Fatal {
    Fatal::os(ExitCode::OsError, "the event loop failed", &error)
}

impl EventLoop {
    /// A loop over `sessions`, with the signalfd `signals`.
    ///
    /// # Errors
    /// The host refused a timer or a registration.
    pub fn new(
        sessions: Vec<Session>,
        shared: Shared,
        signals: File,
        sd_notify: SdNotify,
    ) -> Result<Self, Fatal> {
        let timer = DeadlineTimer::new().map_err(fatal)?;
        let poller = &shared.poller;
        poller
            .add(signals.as_raw_fd(), Token::Signal, epoll::LEVEL)
            .and_then(|()| poller.add(timer.fd(), Token::Timer, epoll::EDGES))
            .map_err(fatal)?;
        Ok(Self {
            timer,
            turns: Turns::new(sessions.len(), shared.buses.len()),
            timed: Vec::with_capacity(sessions.len()),
            connected: sessions.iter().filter(|s| s.is_connected()).count(),
            report: Report::new(shared.now),
            collect_at: None,
            ends_at: None,
            sessions,
            shared,
            signals,
            sd_notify,
        })
    }

    /// Serves until a signal asks for the end, or no front-end is left and none can come.
    ///
    /// # Errors
    /// The host failed the loop itself.
    pub fn run(mut self) -> Result<(), Fatal> {
        self.sd_notify.ready(self.shared.now);
        let served = self.serve_until_the_end();
        self.end();
        served
    }

    fn serve_until_the_end(&mut self) -> Result<(), Fatal> {
        let mut events = [EpollEvent::default(); EVENTS];
        loop {
            self.sd_notify.status(self.connected, self.sessions.len());
            if let Some(at) = self.next_deadline() {
                self.timer.set(at);
            }
            let sleeps = self.turns.is_empty() && !self.report.is_due();
            let timeout = if sleeps { -1 } else { 0 };
            let poller = &self.shared.poller;
            let count = poller.wait(timeout, &mut events).map_err(fatal)?;
            self.shared.now = Instant::now();
            for event in events.get(..count).unwrap_or_default() {
                if let Some(token) = Token::decode(event.data()) {
                    self.handle_event(token, event.event_set());
                }
            }
            self.serve();
            self.collect();
            self.write_report();
            if self.connected == 0 && self.sessions.iter().all(Session::is_over) {
                // Each front-end was handed in, and has left: no other can come.
                log::info(format_args!(
                    "the last front-end has left, and no other can connect"
                ));
                self.wind_up();
            }
            if self.is_over() {
                return Ok(());
            }
        }
    }

    fn handle_event(&mut self, token: Token, events: EventSet) {
        match token {
            Token::Signal => self.handle_signal(),
            Token::Timer => self.expire(),
            Token::Listener(guest)
                if events.intersects(EventSet::HANG_UP | EventSet::READ_HANG_UP) =>
            {
                if let Some(session) = self.sessions.get_mut(guest.index()) {
                    session.lose_listener(&self.shared.poller);
                }
            }
            Token::Listener(guest) => self.accept(guest),
            Token::Kick(guest) => {
                if let Some(session) = self.sessions.get_mut(guest.index()) {
                    session.note_kick();
                }
                self.turns.queue(guest, false, self.shared.now);
            }
            Token::Connection(guest) => self.turns.queue(guest, true, self.shared.now),
        }
    }

    fn accept(&mut self, guest: GuestNumber) {
        let Some(session) = self.sessions.get_mut(guest.index()) else {
            return;
        };
        match session.accept(&self.shared.poller) {
            Ok(accepted) => {
                self.connected = self.connected.saturating_add(usize::from(accepted));
                self.turns.queue(guest, accepted, self.shared.now);
            }
            Err(error) => self.close(guest, &error),
        }
    }

    /// Gives turns, until no session has anything to do or it is time to look for events.
    fn serve(&mut self) {
        // Counted from before the first turn, so that a look for events follows a turn that was long.
        let ends_at = self.shared.now.checked_add(TURNS_TIME);
        let mut last = None;
        let is_alone = self.connected <= 1;
        self.shared.alone_until = ends_at.filter(|_| is_alone);
        let turns = if is_alone { TURNS } else { self.turns.len() };
        for _ in 0..turns {
            let taken = match self.turns.take() {
                Some(Next::Session(taken)) => taken,
                Some(Next::Bus(index)) => {
                    self.end_rest(index);
                    continue;
                }
                None => break,
            };
            if last.is_some_and(|last| last != taken.number) {
                self.notify(last);
            }
            last = Some(taken.number);
            let before = self.shared.now;
            let again = self.turn(taken);
            if again.is_none() && self.turns.is_empty() {
                break;
            }
            // If it moved on, the clock was read after an ioctl or a message.
            if self.shared.now == before {
                self.shared.now = Instant::now();
            }
            if let Some(has_messages) = again {
                self.turns
                    .queue_again(taken.number, has_messages, self.shared.now);
            }
            if ends_at.is_some_and(|at| at <= self.shared.now) {
                break;
            }
        }
        self.notify(last);
        if sigbus::take_hit() {
            self.close_truncated();
        }
    }

    /// Gives a turn. Returns `Some` if the session is to have another one now, with `true` if that is to
    /// look for messages first.
    fn turn(&mut self, taken: Taken) -> Option<bool> {
        let number = taken.number;
        self.shared.due_since = taken.since;
        let turn = self.messages_and_step(taken);
        for (index, bus) in self.shared.buses.iter_mut().enumerate() {
            bus.clear_reservation(number);
            if bus.rests() {
                self.turns.queue_bus(index);
            }
            // A guest that waited for a bus goes before the one that just had it.
            if let Some(waiter) = bus.next_waiter() {
                self.turns.queue(waiter, false, self.shared.now);
            }
        }
        match turn {
            Ok((Turn::Again, more_messages)) => Some(more_messages),
            Ok((Turn::Messages, _)) => Some(true),
            Ok((Turn::Idle, more_messages)) => more_messages.then_some(true),
            Ok((Turn::At(at), more_messages)) => {
                self.turns.sleep(number, at);
                more_messages.then_some(true)
            }
            Err(error) => {
                self.close(number, &error);
                None
            }
        }
    }

    /// The parts of a turn. Returns also whether there may be more messages. A flood of these
    /// must not keep the transfer from going on, and with it the bus.
    fn messages_and_step(&mut self, taken: Taken) -> Result<(Turn, bool), SessionError> {
        let Some(session) = self.sessions.get_mut(taken.number.index()) else {
            return Ok((Turn::Idle, false));
        };
        if !taken.has_messages {
            return Ok((session.turn(&mut self.shared)?, false));
        }
        let handled = session.handle_messages(&mut self.shared);
        // Messages may take long: gigabytes may have been unmapped.
        self.shared.now = Instant::now();
        let turn = handled.and_then(|more| Ok((session.turn(&mut self.shared)?, more)));
        self.note_deadline(taken.number);
        turn
    }

    #[inline(always)]
    fn notify(&mut self, number: Option<GuestNumber>) {
        let Some(number) = number else {
            return;
        };
        let session = self.sessions.get_mut(number.index());
        if let Some(Err(error)) = session.map(Session::notify) {
            self.close(number, &error);
        }
    }

    fn close(&mut self, number: GuestNumber, error: &SessionError) {
        if let Some(session) = self.sessions.get_mut(number.index()) {
            let closed = session.close(error, &mut self.shared);
            self.connected = self.connected.saturating_sub(usize::from(closed));
        }
        self.turns.forget_sleep(number);
        self.note_deadline(number);
        self.wake_waiters();
    }

    fn close_truncated(&mut self) {
        for number in GuestNumber::all().take(self.sessions.len()) {
            if self
                .sessions
                .get(number.index())
                .is_some_and(Session::is_truncated)
            {
                self.close(number, &SessionError::Truncated);
            }
        }
    }

    /// All sessions that were queued when a long message on the bus at `index` was over have had a turn.
    fn end_rest(&mut self, index: usize) {
        let bus = self.shared.buses.get_mut(index);
        if let Some(guest) = bus.and_then(Bus::end_rest) {
            self.turns.queue(guest, false, self.shared.now);
        }
    }

    fn wake_waiters(&mut self) {
        for guest in self.shared.buses.iter_mut().filter_map(Bus::next_waiter) {
            self.turns.queue(guest, false, self.shared.now);
        }
    }

    fn handle_signal(&mut self) {
        match signals::take(&self.signals) {
            Some(libc::SIGUSR1) => self.report.begin(),
            Some(_) => self.wind_up(),
            None => (),
        }
    }

    /// Writes the next line of the counters, if they were asked for.
    fn write_report(&mut self) {
        let counted = |guest: usize| self.sessions.get(guest).map(Session::counted);
        let write = |text: fmt::Arguments<'_>| log::write(LogLevel::Info, text);
        self.report.step(self.shared.now, counted, write);
    }
}

#[cfg(test)]
mod tests;
