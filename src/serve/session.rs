// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One guest's socket, and the front-end connected to it.
//!
//! A socket serves one front-end at a time, for ever: when one goes away, everything that it
//! brought (connection, memory, eventfds) goes with it, and the next is accepted. A front-end that
//! was handed in has no socket to come back to: with it, its session is over.
//!
//! Invariant: every fd of a front-end belongs to its `Connection`. Called by `event_loop`.

use std::cell::RefMut;
use std::fmt;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::EventSet;

use crate::config::{GuestNumber, LogLevel};
use crate::error::SessionError;
use crate::os::deferred_close::{Closer, DeferredClose};
use crate::os::epoll::{self, Poller, Token};
use crate::os::handed_in::Socket;
use crate::os::listener::Listener;
use crate::os::log::{self, Quoted};
use crate::os::write_timeout;
use crate::serve::counters::{Connections, Counted};
use crate::serve::grant::{Grant, Shared};
use crate::serve::requestq::{Requestq, Turn};
use crate::vhost_user::backend::{Backend, Guest};

mod connection;
mod offences;

use self::connection::Connection;
use self::offences::Offences;

/// Fds of a guest that may wait for the kernel to close them before its messages wait as well.
const MAX_DEFERRED: usize = 32;
/// For how long a socket does not listen where the host lacks something.
const PAUSE: Duration = Duration::from_millis(100);
/// Errors of `accept()` that mean that no client waits, any more or yet.
const NOBODY: [ErrorKind; 3] = [
    ErrorKind::WouldBlock,
    ErrorKind::Interrupted,
    ErrorKind::ConnectionAborted,
];
/// Messages handled before others get their turn.
const MESSAGES_PER_TURN: u32 = 16;

/// Where front-ends come from.
enum Origin {
    /// They connect to this socket.
    Socket(Listener),
    /// No further one can come: the last was handed in, or another process shut the socket down.
    Exhausted,
    /// No further one is let in.
    GivenUp,
}

/// Whether there is a front-end.
#[allow(
    clippy::large_enum_variant,
    reason = "there are at most 64, most of them connected"
)]
enum State {
    /// None; the next one is accepted.
    Vacant,
    /// None; the next one is accepted from this moment on.
    BackedOff(Instant),
    /// There is one.
    Connected(Connection),
}

impl State {
    fn connection(&self) -> Option<&Connection> {
        match self {
            Self::Connected(connection) => Some(connection),
            Self::Vacant | Self::BackedOff(_) => None,
        }
    }

    fn guest(&self) -> Option<RefMut<'_, Guest>> {
        let connection = self.connection()?;
        Some(connection.backend().guest())
    }
}

/// One guest's socket and the front-end connected to it.
pub struct Session {
    number: GuestNumber,
    /// Where the fds of its front-ends go.
    closer: Closer,
    origin: Origin,
    state: State,
    /// Its front-ends so far.
    connections: Connections,
    requestq: Requestq,
    offences: Offences,
}

impl Session {
    /// The session of guest `number`, whose front-ends come through `socket`.
    ///
    /// # Errors
    /// The kernel refused the registration.
    pub fn new(
        number: GuestNumber,
        socket: Socket,
        grant: Grant,
        poller: &Poller,
        deferred: &Rc<DeferredClose>,
    ) -> Result<Self, SessionError> {
        let mut session = Self {
            number,
            closer: deferred.of_guest(number),
            origin: Origin::Exhausted,
            state: State::Vacant,
            connections: Connections::default(),
            requestq: Requestq::new(number, grant),
            offences: Offences::default(),
        };
        match socket {
            Socket::Listening(listener) => {
                let (fd, token) = (listener.as_raw_fd(), Token::Listener(number));
                poller
                    .add(fd, token, epoll::LEVEL)
                    .map_err(SessionError::Host)?;
                session.origin = Origin::Socket(listener);
            }
            Socket::Connected(stream, _) => session.connect(stream, poller)?,
        }
        Ok(session)
    }

    /// Says which events of the socket are wanted.
    fn set_events(&self, poller: &Poller, events: EventSet) {
        if let Origin::Socket(listener) = &self.origin {
            let token = Token::Listener(self.number);
            poller.modify(listener.as_raw_fd(), token, events);
        }
    }

    /// Accepts a front-end; the next one waits until this one is gone, which is logged when one
    /// comes. Returns whether there was one that was accepted.
    ///
    /// # Errors
    /// The host could not take the connection, or has too many fds of earlier ones to close: after
    /// [`Session::close`] the next one has to wait.
    pub fn accept(&mut self, poller: &Poller) -> Result<bool, SessionError> {
        let Origin::Socket(listener) = &self.origin else {
            return Ok(false);
        };
        match self.state {
            State::Vacant => (),
            State::BackedOff(_) => return Ok(false),
            State::Connected(_) => {
                self.set_events(poller, epoll::NONE);
                let what = format_args!("another front-end waits until this one leaves");
                self.log(LogLevel::Info, what);
                return Ok(false);
            }
        }
        // The kernel has not closed the fds of the last ones yet.
        if self.closer.pending() > MAX_DEFERRED {
            return Err(SessionError::Uncollected);
        }
        let stream = match listener.accept() {
            Err(error) if NOBODY.contains(&error.kind()) => return Ok(false),
            accepted => accepted.map_err(SessionError::Host)?,
        };
        // One event when another one waits.
        self.set_events(poller, epoll::EDGES);
        self.log(LogLevel::Info, format_args!("front-end connected"));
        self.connect(stream, poller)?;
        Ok(true)
    }

    fn connect(&mut self, stream: UnixStream, poller: &Poller) -> Result<(), SessionError> {
        let grant = &self.requestq.grant;
        let (guest_memory, max_memory_len) = (grant.guest_memory, grant.max_memory_len);
        let backend = Backend::new(self.number, grant.config, max_memory_len, poller.clone());
        let connection = Connection::new(stream, backend, guest_memory, &self.closer)?;
        self.state = State::Connected(connection);
        self.connections.begun = self.connections.begun.wrapping_add(1);
        Ok(())
    }

    /// Whether there is a front-end.
    pub fn is_connected(&self) -> bool {
        self.state.connection().is_some()
    }

    /// Whether there is no front-end, and none can come.
    pub fn is_over(&self) -> bool {
        matches!(self.origin, Origin::Exhausted) && !self.is_connected()
    }

    /// Another process has shut the socket down: the front-end that is connected is the last.
    pub fn lose_listener(&mut self, poller: &Poller) {
        self.give_up_listening("its socket was shut down", Origin::Exhausted, poller);
    }

    /// Stops listening for good, and says why: not limited as other lines are, so as not to be lost.
    fn give_up_listening(&mut self, cause: &str, origin: Origin, poller: &Poller) {
        let guest = self.number;
        log::error(format_args!(
            "guest={guest} not listening any more: cause=\"{cause}\""
        ));
        self.close_listener(origin, poller);
    }

    /// Stops listening for good.
    pub fn stop_listening(&mut self, poller: &Poller) {
        self.close_listener(Origin::GivenUp, poller);
    }

    fn close_listener(&mut self, origin: Origin, poller: &Poller) {
        match std::mem::replace(&mut self.origin, origin) {
            Origin::Socket(listener) => {
                poller.remove(listener.as_raw_fd());
                listener.stop(&self.closer);
            }
            before @ (Origin::Exhausted | Origin::GivenUp) => self.origin = before,
        }
    }

    /// When more of a message must have come, or the socket is to listen again.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Vacant => None,
            State::BackedOff(until) => Some(*until),
            State::Connected(connection) => connection.deadline,
        }
    }

    /// The deadline has passed.
    ///
    /// # Errors
    /// The connection must end.
    pub fn expire(&mut self, now: Instant, poller: &Poller) -> Result<(), SessionError> {
        if let State::Connected(connection) = &mut self.state {
            return connection.expire(now);
        }
        self.state = State::Vacant;
        self.set_events(poller, epoll::LEVEL);
        Ok(())
    }

    /// Receives and handles messages, until others are to have their turn; returns whether there may
    /// be more.
    ///
    /// # Errors
    /// The connection must end.
    pub fn handle_messages(&mut self, shared: &mut Shared) -> Result<bool, SessionError> {
        for _ in 0..MESSAGES_PER_TURN {
            let State::Connected(connection) = &mut self.state else {
                return Ok(false);
            };
            if self.closer.pending() > MAX_DEFERRED {
                connection.is_held_up = true;
                return Ok(false);
            }
            if !connection.receive(&shared.mounts, shared.now)? {
                return Ok(false);
            }
            // A ring that is enabled goes on.
            let message = connection
                .message()
                .filter(|message| !message.enables_ring());
            if let Some(request) = message.map(|message| message.request) {
                let guest = &mut connection.backend().guest();
                if !self.requestq.quiesce_for(request, guest, shared)? {
                    return Ok(false);
                }
            }
            connection.handle()?;
            // So that the next message finds room for the fds that it brings.
            if self.closer.pending() > 0 {
                shared.deferred.collect();
            }
        }
        Ok(true)
    }

    /// The driver kicked. If there is no memory, it waits for an answer that never comes, and neither its
    /// kernel nor QEMU says why: that is logged, once.
    pub fn note_kick(&mut self) {
        let State::Connected(connection) = &mut self.state else {
            return;
        };
        let guest = connection.backend().guest();
        let lacks = guest.vring.lacks_memory(&guest.memory);
        drop(guest);
        if lacks && !std::mem::replace(&mut connection.lack_is_logged, true) {
            let what = format_args!(
                "requests wait: the front-end has shared no guest memory; under QEMU it needs share=on"
            );
            self.log(LogLevel::Warning, what);
        }
    }

    /// Makes one step of the request in progress, or takes the next one; where the guest is alone, goes on
    /// as long as steps reach the wire, after which the clock is read. Returns when to call again.
    ///
    /// # Errors
    /// The connection must end.
    pub fn turn(&mut self, shared: &mut Shared) -> Result<Turn, SessionError> {
        let Some(mut guest) = self.state.guest() else {
            return Ok(Turn::Idle);
        };
        loop {
            let before = shared.now;
            let turn = self.requestq.turn(&mut guest, shared)?;
            let has_time = shared.alone_until.is_some_and(|until| until > shared.now);
            if turn != Turn::Again || shared.now == before || !has_time {
                return Ok(turn);
            }
            shared.due_since = shared.now;
        }
    }

    /// Whether messages waited for the kernel to close deferred fds.
    pub fn take_held_up(&mut self) -> bool {
        match &mut self.state {
            State::Connected(connection) => std::mem::take(&mut connection.is_held_up),
            State::Vacant | State::BackedOff(_) => false,
        }
    }

    /// Whether the guest's memory was truncated.
    pub fn is_truncated(&self) -> bool {
        let guest = self.state.guest();
        guest.is_some_and(|guest| guest.memory.is_truncated())
    }

    /// Notifies the driver of the chains that were completed since the last time.
    ///
    /// # Errors
    /// The call eventfd blocked, or cannot be written to: the connection must end.
    pub fn notify(&mut self) -> Result<(), SessionError> {
        match self.state.guest().as_deref_mut() {
            Some(guest) if guest.vring.is_unnotified() => guest.vring.notify(&guest.memory),
            Some(_) | None => Ok(()),
        }
    }

    /// For the end of the daemon: begins no other request, and aborts the one in progress unless it is
    /// short.
    pub fn wind_up(&mut self, shared: &mut Shared) {
        self.requestq.stop_accepting();
        if let Some(mut guest) = self.state.guest() {
            // Its error would end the connection, which the end of the daemon does anyway.
            let _ = self.requestq.stop(&mut guest, shared);
        }
    }

    /// Whether a request is available that a turn would look at.
    pub fn has_request(&self) -> bool {
        let guest = self.state.guest();
        guest.is_some_and(|guest| self.requestq.has_request(&guest))
    }

    /// Whether a request is in progress.
    pub fn is_active(&self) -> bool {
        self.requestq.is_active()
    }

    /// The counters of its requests and its front-ends.
    pub fn counted(&self) -> Counted<'_> {
        Counted {
            guest: self.number,
            tally: self.requestq.tally(),
            connections: self.connections,
            lines_dropped: self.requestq.lines.dropped(),
        }
    }

    /// Writes how many lines about it were dropped since that was last written.
    pub fn tell_dropped_lines(&mut self) {
        self.requestq.lines.tell_dropped();
    }

    /// Ends the connection, if there is one, because of `error`, and listens again, at once or after
    /// a while. Returns whether there was one.
    pub fn close(&mut self, error: &SessionError, shared: &mut Shared) -> bool {
        self.log_end(error);
        let wait = self.back_off(error, shared.now);
        let until = wait.and_then(|wait| shared.now.checked_add(wait));
        let (state, events) = match until {
            Some(until) => (State::BackedOff(until), epoll::NONE),
            None => (State::Vacant, epoll::LEVEL),
        };
        self.set_events(&shared.poller, events);
        let State::Connected(connection) = std::mem::replace(&mut self.state, state) else {
            return false;
        };
        // Its error would end the connection, which ends anyway.
        let _ = self
            .requestq
            .abort(&mut connection.backend().guest(), shared);
        connection.end(&self.closer);
        if let SessionError::LeftOpen(count) = error {
            if self.offences.note_left_open(*count, shared.now) {
                let cause = "too many fds had to be left open";
                self.give_up_listening(cause, Origin::GivenUp, &shared.poller);
            }
        }
        true
    }

    fn log_end(&mut self, error: &SessionError) {
        let is_fault = !error.is_in_order();
        if !is_fault && !self.is_connected() {
            return;
        }
        let counted = is_fault && self.is_connected();
        self.connections.faults = self.connections.faults.wrapping_add(counted.into());
        self.requestq.lines.tell_dropped_requests();
        let level = if is_fault {
            LogLevel::Warning
        } else {
            LogLevel::Info
        };
        self.log(
            level,
            format_args!("connection ended: cause={}", Quoted(error)),
        );
    }

    fn log(&mut self, level: LogLevel, what: fmt::Arguments<'_>) {
        self.requestq.lines.connections.line(level, what);
    }

    /// For how long the socket does not listen after a connection ended with `error`.
    fn back_off(&mut self, error: &SessionError, now: Instant) -> Option<Duration> {
        if matches!(error, SessionError::CallBlocked) {
            // Each such connection costs all guests a tick of the write time-out.
            write_timeout::shorten();
            return Some(self.offences.note_blocked(now));
        }
        let host_lacks = matches!(error, SessionError::Host(_) | SessionError::Uncollected);
        host_lacks.then_some(PAUSE)
    }
}
