//! The loop: waits for events, gives every guest its turn, keeps the deadlines.
//!
//! Events only mark whose turn it is; all work is done in turns, one request or step each, round
//! robin. Where several front-ends are connected the loop looks for events after one turn of each
//! guest that has work, so that a flood delays another guest by one request; a guest alone has its
//! queue served without looks in between, for a millisecond.
//!
//! epoll traps that this avoids: fds shared with a front-end are removed from the set explicitly
//! (`epoll::Registered`); an event for a connection that ended in the same batch finds another one
//! or none, where it is only a reason to look.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{EpollEvent, EventSet};

use crate::config::LogLevel;
use crate::error::{ExitCode, Fatal, SessionError};
use crate::os::deadline_timer::Alarm;
use crate::os::deferred_close;
use crate::os::epoll::Token;
use crate::os::log;
use crate::os::sd_notify::SdNotify;
use crate::os::signals::{self, Wish};
use crate::serve::counters::Report;
use crate::serve::grant::Shared;
use crate::serve::requestq::Turn;
use crate::serve::session::Session;
use crate::serve::turns::{Taken, Turns};
use crate::spi::bus::Bus;
use crate::virtqueue::sigbus;

mod end;

const EVENTS: usize = 32;
/// Most turns of a guest that is alone between two looks for events.
const TURNS: usize = 64;
/// Most time between two looks for events, in which no further turn begins.
const TURNS_TIME: Duration = Duration::from_millis(1);
/// How long until the kernel is asked again to take what it did not take.
const RETRY: Duration = Duration::from_millis(10);

/// Everything that the daemon runs on.
pub struct EventLoop {
    sessions: Vec<Session>,
    shared: Shared,
    signals: File,
    sd_notify: SdNotify,
    alarm: Alarm,
    turns: Turns,
    /// Sessions with a `wake_at`, in the order in which they began to wait: whoever waits longest
    /// is first where several want the same moment.
    sleepers: VecDeque<usize>,
    /// How many front-ends are connected.
    connected: usize,
    report: Report,
    /// Since the end was asked for: when it will come whatever is on the wire.
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
        let alarm = Alarm::new().map_err(fatal)?;
        let poller = &shared.poller;
        poller
            .add_level(signals.as_raw_fd(), Token::Signal)
            .and_then(|()| poller.add_edge(alarm.fd(), Token::Timer))
            .map_err(fatal)?;
        Ok(Self {
            alarm,
            turns: Turns::new(sessions.len(), shared.now),
            sleepers: VecDeque::with_capacity(sessions.len()),
            connected: sessions.iter().filter(|s| s.is_connected()).count(),
            report: Report::new(shared.now),
            ends_at: None,
            sessions,
            shared,
            signals,
            sd_notify,
        })
    }

    /// Serves until a signal asks for the end, or nobody is left who could be served.
    ///
    /// # Errors
    /// The host failed the loop itself.
    pub fn run(mut self) -> Result<(), Fatal> {
        if let Some(at) = self.sd_notify.ready() {
            self.alarm.set(at);
        }
        let served = self.serve_until_the_end();
        self.end();
        served
    }

    fn serve_until_the_end(&mut self) -> Result<(), Fatal> {
        let mut events = [EpollEvent::default(); EVENTS];
        loop {
            let sleeps = self.turns.is_empty() && !self.report.is_due();
            let timeout = if sleeps { -1 } else { 0 };
            let poller = &self.shared.poller;
            let count = poller.wait(timeout, &mut events).map_err(fatal)?;
            self.shared.now = Instant::now();
            for event in events.iter().take(count) {
                if let Some(token) = Token::decode(event.data()) {
                    self.mark(token, event.event_set());
                }
            }
            self.serve();
            self.keep_deadlines();
            self.collect();
            self.write_report();
            if self.connected == 0 && self.sessions.iter().all(Session::is_over) {
                // Those that were handed in were all that there can be.
                log::line(
                    LogLevel::Info,
                    format_args!("nobody is left who could be served"),
                );
                self.wind_up();
            }
            if self.is_over() {
                return Ok(());
            }
        }
    }

    /// Has the kernel take what was thrown away, now or a little later.
    fn collect(&mut self) {
        if !deferred_close::take_touched() {
            return;
        }
        if deferred_close::collect() {
            for (number, session) in self.sessions.iter_mut().enumerate() {
                if session.take_held_up() {
                    self.turns.queue(number, true, self.shared.now);
                }
            }
        } else if let Some(at) = self.shared.now.checked_add(RETRY) {
            self.alarm.set(at);
        }
    }

    fn mark(&mut self, token: Token, events: EventSet) {
        match token {
            Token::Signal => self.obey(),
            Token::Timer => self.expire(),
            Token::Listener(guest)
                if events.intersects(EventSet::HANG_UP | EventSet::READ_HANG_UP) =>
            {
                if let Some(session) = self.sessions.get_mut(index(guest)) {
                    session.lose_listener(&self.shared.poller);
                }
            }
            Token::Listener(guest) => self.accept(guest),
            Token::Kick(guest) => self.turns.queue(index(guest), false, self.shared.now),
            Token::Connection(guest) => {
                let gone = EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR;
                if let Some(session) = self.sessions.get_mut(index(guest))
                    && events.intersects(gone)
                {
                    session.set_hung_up();
                }
                self.turns.queue(index(guest), true, self.shared.now);
            }
        }
    }

    fn accept(&mut self, guest: u32) {
        let Some(session) = self.sessions.get_mut(index(guest)) else {
            return;
        };
        match session.accept(&self.shared.poller) {
            Ok(accepted) => {
                self.connected = self.connected.saturating_add(usize::from(accepted));
                self.turns.queue(index(guest), accepted, self.shared.now);
            }
            Err(error) => self.close(index(guest), &error),
        }
    }

    /// Gives turns, until nobody has anything to do or it is time to look for events.
    fn serve(&mut self) {
        // Before the first turn: a long one is followed by a look for events.
        let start = self.shared.now;
        let mut last = None;
        let turns = if self.connected > 1 {
            self.turns.len()
        } else {
            TURNS
        };
        for _ in 0..turns {
            let Some(taken) = self.turns.take() else {
                break;
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
            // An ioctl or a message has moved it on already.
            if self.shared.now == before {
                self.shared.now = Instant::now();
            }
            if let Some(control) = again {
                self.turns
                    .queue_again(taken.number, control, self.shared.now);
            }
            if self.shared.now.saturating_duration_since(start) >= TURNS_TIME {
                break;
            }
        }
        self.notify(last);
        if sigbus::take_hit() {
            self.close_truncated();
        }
    }

    /// Gives a turn. `Some` if the session is to have another one, `true` to look for messages.
    fn turn(&mut self, taken: Taken) -> Option<bool> {
        let number = taken.number;
        self.shared.due_since = taken.since;
        let session = self.sessions.get_mut(number)?;
        let mut turn = Ok(Turn::Again);
        if taken.control {
            turn = session.control(&mut self.shared);
            // Messages may take long: gigabytes may have been unmapped.
            self.shared.now = Instant::now();
            if let Some(at) = session.deadline() {
                self.alarm.set(at);
            }
        }
        let session = self.sessions.get_mut(number)?;
        // A flood of messages must not keep the transfer from going on, and with it the bus.
        let more_control = matches!(turn, Ok(Turn::Control));
        if turn.is_ok() {
            turn = session.turn(&mut self.shared);
        }
        // What was kept for this guest it has used or not. Those who waited for a bus go before the
        // guest that just had it.
        self.shared
            .buses
            .iter_mut()
            .for_each(|bus| bus.forget_promise(number));
        self.wake_waiters();
        let session = self.sessions.get_mut(number)?;
        match turn {
            Ok(Turn::Idle) => more_control.then_some(true),
            Ok(Turn::Again) => Some(more_control),
            Ok(Turn::Control) => Some(true),
            Ok(Turn::At(at)) => {
                session.wake_at = Some(at);
                if !self.sleepers.contains(&number) {
                    self.sleepers.push_back(number);
                }
                self.alarm.set(at);
                more_control.then_some(true)
            }
            Err(error) => {
                self.close(number, &error);
                None
            }
        }
    }

    fn notify(&mut self, number: Option<usize>) {
        let Some(number) = number else {
            return;
        };
        let notified = self.sessions.get_mut(number).map(Session::notify);
        if let Some(Err(error)) = notified {
            self.close(number, &error);
        }
    }

    fn close(&mut self, number: usize, error: &SessionError) {
        if let Some(session) = self.sessions.get_mut(number) {
            let closed = session.close(error, &mut self.shared);
            self.connected = self.connected.saturating_sub(usize::from(closed));
            if let Some(at) = session.listen_at {
                self.alarm.set(at);
            }
        }
        self.wake_waiters();
    }

    fn close_truncated(&mut self) {
        for number in 0..self.sessions.len() {
            if self.sessions.get(number).is_some_and(Session::is_truncated) {
                self.close(number, &SessionError::Truncated);
            }
        }
    }

    fn wake_waiters(&mut self) {
        for number in 0..self.shared.buses.len() {
            let bus = self.shared.buses.get_mut(number);
            if let Some(guest) = bus.and_then(Bus::next_waiter) {
                self.turns.queue(guest, false, self.shared.now);
            }
        }
    }

    fn keep_deadlines(&mut self) {
        for number in 0..self.shared.buses.len() {
            if let Some(at) = self.shared.buses.get(number).and_then(|bus| bus.deadline()) {
                self.alarm.set(at);
            }
        }
    }

    /// The timer went off: whoever's moment has come gets its due, and the next moment is set.
    fn expire(&mut self) {
        self.alarm.went_off();
        let now = self.shared.now;
        for number in 0..self.sessions.len() {
            self.expire_session(number, now);
        }
        for _ in 0..self.sleepers.len() {
            self.wake_sleeper(now);
        }
        for number in 0..self.shared.buses.len() {
            self.expire_hold(number);
        }
        self.wake_waiters();
        let next = [self.ends_at, self.sd_notify.alive(now)];
        for at in next.into_iter().flatten() {
            self.alarm.set(at);
        }
    }

    /// Takes the first sleeper, who gets its turn, goes on sleeping at the end of the queue, or was
    /// closed meanwhile.
    fn wake_sleeper(&mut self, now: Instant) {
        let Some(number) = self.sleepers.pop_front() else {
            return;
        };
        let Some(session) = self.sessions.get_mut(number) else {
            return;
        };
        if session.wake_at.take_if(|at| *at <= now).is_some() {
            self.turns.queue(number, false, self.shared.now);
        } else if let Some(at) = session.wake_at {
            self.sleepers.push_back(number);
            self.alarm.set(at);
        }
    }

    fn expire_session(&mut self, number: usize, now: Instant) {
        let Some(session) = self.sessions.get_mut(number) else {
            return;
        };
        if session.deadline().is_some_and(|at| at <= now) {
            self.close(number, &SessionError::Silent);
        }
        let Some(session) = self.sessions.get_mut(number) else {
            return;
        };
        if session.listen_at.take_if(|at| *at <= now).is_some() {
            session.listen(&self.shared.poller, true);
        }
        let next = [session.deadline(), session.listen_at];
        for at in next.into_iter().flatten() {
            self.alarm.set(at);
        }
    }

    /// Ends a hold that has run out, unless its guest has queued a request by now: that one had its
    /// turn too late, and gets it first.
    fn expire_hold(&mut self, number: usize) {
        let Some(bus) = self.shared.buses.get_mut(number) else {
            return;
        };
        if let Some(guest) = bus.may_go_on(self.shared.now)
            && self.sessions.get(guest).is_some_and(Session::has_request)
        {
            self.turns.queue(guest, false, self.shared.now);
        } else {
            bus.expire(&mut self.shared.now);
        }
    }

    fn obey(&mut self) {
        match signals::take(&self.signals) {
            Some(Wish::End) => self.wind_up(),
            Some(Wish::Report) => self.report.begin(),
            None => (),
        }
    }

    /// Writes the next line of the counters, if they were asked for.
    fn write_report(&mut self) {
        let counted = |guest: usize| self.sessions.get(guest).map(Session::counted);
        let write = |text: fmt::Arguments<'_>| log::write(LogLevel::Info, text);
        if let Some(at) = self.report.step(self.shared.now, counted, write) {
            self.alarm.set(at);
        }
    }
}

fn index(guest: u32) -> usize {
    usize::try_from(guest).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{HoldPolicy, ServiceConfig};
    use crate::os::epoll::Poller;
    use crate::os::handed_in::Socket;
    use crate::serve::grant::Grant;
    use crate::spi::wire::Config;
    use std::io::Write;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    /// A loop with one front-end, whose end is returned.
    fn connected() -> (EventLoop, UnixStream) {
        let poller = Poller::new().unwrap();
        let grant = Grant {
            chip_selects: Vec::new(),
            max_memory_len: 0,
            config: Config::default(),
            policy: HoldPolicy::Queued,
            hold_timeout: Duration::ZERO,
            poll: Duration::ZERO,
        };
        deferred_close::make_room(1);
        let (front_end, ours) = UnixStream::pair().unwrap();
        let session = Session::new(0, Socket::Connected(ours, 3), grant, &poller).unwrap();
        let (signals, _) = UnixStream::pair().unwrap();
        let shared = Shared::new(Vec::new(), poller, crate::os::mounts::Mounts::default());
        let sd_notify = SdNotify::connect(&ServiceConfig::default());
        let signals = OwnedFd::from(signals).into();
        let event_loop = EventLoop::new(vec![session], shared, signals, sd_notify).unwrap();
        (event_loop, front_end)
    }

    #[test]
    fn turn_goes_by_a_clock_that_was_read_after_its_messages() {
        let (mut event_loop, mut front_end) = connected();
        front_end.write_all(&[1, 0, 0]).unwrap();
        event_loop.turns.queue(0, true, event_loop.shared.now);
        let taken = event_loop.turns.take().unwrap();
        event_loop.turn(taken);
        // A second after the look at the half message.
        let deadline = event_loop.sessions[0].deadline().unwrap();
        assert!(event_loop.shared.now >= deadline - Duration::from_secs(1));
    }
}
