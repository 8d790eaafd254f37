//! One guest's socket, and the front-end connected to it.
//!
//! A socket serves one front-end at a time, for ever: when one goes away, everything that it
//! brought (connection, memory, eventfds) goes with it, and the next is accepted. A front-end that
//! was handed in has no socket to come back to: with it, its session is over.
//!
//! Invariant: every fd of a front-end belongs to its `Connection`. Called by `event_loop`.

use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

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
use crate::vhost_user::backend::Backend;
use crate::vhost_user::message::Request;

mod connection;
mod offences;

use self::connection::Connection;
use self::offences::Offences;

/// Fds of a guest that may wait for the kernel to close them before its messages wait as well.
const MAX_DEFERRED: usize = 32;
/// How long a socket rests where the host lacks something.
const PAUSE: Duration = Duration::from_millis(100);
/// Messages handled before others get their turn.
const MESSAGES_PER_TURN: u32 = 16;

/// One guest's socket and what is behind it.
pub struct Session {
    number: GuestNumber,
    /// Where the fds of its front-ends go.
    closer: Closer,
    listener: Option<Listener>,
    /// There will be no other front-end: this one was handed in, or the socket was shut down.
    is_single: bool,
    connection: Option<Connection>,
    /// Its front-ends so far.
    connections: Connections,
    requestq: Requestq,
    /// Its messages wait for the kernel to close what was deferred.
    held_up: bool,
    offences: Offences,
    /// When the socket, which rests, is to listen again.
    pub listen_at: Option<Instant>,
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
            listener: None,
            is_single: false,
            connection: None,
            connections: Connections::default(),
            requestq: Requestq::new(number, grant),
            held_up: false,
            offences: Offences::default(),
            listen_at: None,
        };
        match socket {
            Socket::Listening(listener) => {
                let (fd, token) = (listener.as_raw_fd(), Token::Listener(number));
                poller
                    .add(fd, token, epoll::LEVEL)
                    .map_err(SessionError::Host)?;
                session.listener = Some(listener);
            }
            Socket::Connected(stream, _) => {
                session.is_single = true;
                session.connect(stream, poller)?;
            }
        }
        Ok(session)
    }

    /// Waits for a front-end, or does not.
    pub fn listen(&self, poller: &Poller, listening: bool) {
        if let Some(listener) = &self.listener {
            let token = Token::Listener(self.number);
            let events = if listening { epoll::LEVEL } else { epoll::NONE };
            poller.modify(listener.as_raw_fd(), token, events);
        }
    }

    /// Accepts a front-end; the next one waits until this one is gone, which is logged when one
    /// comes. Returns whether there was one that was accepted.
    ///
    /// # Errors
    /// The host could not take the connection: [`Session::close`] has the socket rest.
    pub fn accept(&mut self, poller: &Poller) -> Result<bool, SessionError> {
        let Some(listener) = &self.listener else {
            return Ok(false);
        };
        if self.connection.is_some() {
            self.listen(poller, false);
            let what = format_args!("another front-end waits until this one leaves");
            self.requestq.lines.connections.line(LogLevel::Info, what);
            return Ok(false);
        }
        // What the last ones brought is still ours.
        if self.closer.pending() > MAX_DEFERRED {
            return Err(SessionError::Uncollected);
        }
        let accepted = listener.accept();
        if let Err(error) = &accepted
            && [
                ErrorKind::WouldBlock,
                ErrorKind::Interrupted,
                ErrorKind::ConnectionAborted,
            ]
            .contains(&error.kind())
        {
            return Ok(false);
        }
        let stream = accepted.map_err(SessionError::Host)?;
        // One event when another one waits.
        let token = Token::Listener(self.number);
        poller.modify(listener.as_raw_fd(), token, epoll::EDGES);
        let what = format_args!("front-end connected");
        self.requestq.lines.connections.line(LogLevel::Info, what);
        self.connect(stream, poller)?;
        Ok(true)
    }

    fn connect(&mut self, stream: UnixStream, poller: &Poller) -> Result<(), SessionError> {
        let grant = &self.requestq.grant;
        let max_memory_len = grant.max_memory_len;
        let backend = Backend::new(self.number, grant.config, max_memory_len, poller.clone());
        let token = Token::Connection(self.number);
        let connection = Connection::new(stream, backend, token, poller, &self.closer)?;
        self.connection = Some(connection);
        self.connections.begun = self.connections.begun.wrapping_add(1);
        Ok(())
    }

    /// Whether there is a front-end.
    pub fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// Whether there is no front-end, and will be none.
    pub fn is_over(&self) -> bool {
        self.is_single && self.connection.is_none()
    }

    /// Somebody who has the socket too has shut it down: whoever is connected is the last.
    pub fn lose_listener(&mut self, poller: &Poller) {
        self.is_single = true;
        self.give_up_listening("its socket was shut down", poller);
    }

    /// Stops listening for good, and says why: once, and whatever was said before, so as not to be
    /// lost to the limit.
    fn give_up_listening(&mut self, cause: &str, poller: &Poller) {
        let guest = self.number;
        log::error(format_args!(
            "guest={guest} not listening any more: cause=\"{cause}\""
        ));
        self.stop_listening(poller);
    }

    /// Stops listening for good.
    pub fn stop_listening(&mut self, poller: &Poller) {
        self.listen_at = None;
        if let Some(listener) = self.listener.take() {
            poller.remove(listener.as_raw_fd());
            listener.stop(&self.closer);
        }
    }

    /// When more of a message must have come.
    pub fn deadline(&self) -> Option<Instant> {
        self.connection.as_ref()?.deadline
    }

    /// Receives and handles messages.
    ///
    /// # Errors
    /// The connection must end.
    pub fn handle_messages(&mut self, shared: &mut Shared) -> Result<Turn, SessionError> {
        for _ in 0..MESSAGES_PER_TURN {
            if self.closer.pending() > MAX_DEFERRED {
                self.held_up = true;
                return Ok(Turn::Again);
            }
            let Some(connection) = &mut self.connection else {
                return Ok(Turn::Idle);
            };
            if !connection.receive(&shared.mounts, shared.now)? || !self.quiesce(shared)? {
                return Ok(Turn::Again);
            }
            self.handle()?;
        }
        Ok(Turn::Control)
    }

    /// Brings the request on the way to where the message that is whole can be handled; `false` if
    /// the message must wait for its end.
    fn quiesce(&mut self, shared: &mut Shared) -> Result<bool, SessionError> {
        let message = self.connection.as_mut().and_then(Connection::message);
        match message.map(|message| (message.request, message.enables_ring())) {
            Some((request, false)) => self.quiesce_for(request, shared),
            // A ring that is enabled goes on.
            Some((_, true)) | None => Ok(true),
        }
    }

    /// A ring that stops (in QEMU: SET_VRING_ENABLE, then GET_VRING_BASE) lets the request on the
    /// way finish if it is short, and so does memory that changes, which is no reason to release
    /// chip select either. Whatever else changes the ring ends it. A region that is added takes
    /// nothing away, so it goes on.
    fn quiesce_for(&mut self, request: Request, shared: &mut Shared) -> Result<bool, SessionError> {
        let Some(connection) = &self.connection else {
            return Ok(true);
        };
        let mut guest = connection.backend().guest();
        if matches!(request, Request::SET_MEM_TABLE | Request::REM_MEM_REG) {
            return self.requestq.pause(&mut guest, shared);
        }
        if matches!(
            request,
            Request::GET_VRING_BASE | Request::SET_VRING_ENABLE | Request::RESET_OWNER
        ) {
            return self.requestq.stop(&mut guest, shared);
        }
        if matches!(
            request,
            Request::SET_VRING_NUM
                | Request::SET_VRING_ADDR
                | Request::SET_VRING_BASE
                | Request::SET_FEATURES
                | Request::RESET_DEVICE
        ) {
            self.requestq.abort(&mut guest, shared)?;
        }
        Ok(true)
    }

    fn handle(&mut self) -> Result<(), SessionError> {
        if let Some(connection) = &mut self.connection {
            connection.handle()?;
        }
        // So that the next message finds room for what it brings.
        if self.closer.pending() > 0 {
            self.closer.collect();
        }
        Ok(())
    }

    /// Makes one step: of the request on the way, or to the next one.
    ///
    /// # Errors
    /// The connection must end.
    pub fn turn(&mut self, shared: &mut Shared) -> Result<Turn, SessionError> {
        match &self.connection {
            Some(connection) => self
                .requestq
                .turn(&mut connection.backend().guest(), shared),
            None => Ok(Turn::Idle),
        }
    }

    /// Whether messages waited for the kernel to close what was deferred.
    pub fn take_held_up(&mut self) -> bool {
        std::mem::take(&mut self.held_up)
    }

    /// Whether the guest's memory was truncated.
    pub fn is_truncated(&self) -> bool {
        let connection = self.connection.as_ref();
        connection.is_some_and(|connection| connection.backend().guest().memory.is_truncated())
    }

    /// Tells the driver what was completed since the last time.
    ///
    /// # Errors
    /// The call eventfd blocked: the connection must end.
    pub fn notify(&mut self) -> Result<(), SessionError> {
        let Some(connection) = &self.connection else {
            return Ok(());
        };
        let mut guest = connection.backend().guest();
        let guest = &mut *guest;
        guest.vring.notify(&guest.memory)
    }

    /// Begins no other request, and ends the one on the way unless it is short. For the end of the
    /// daemon.
    pub fn wind_up(&mut self, shared: &mut Shared) {
        self.requestq.stop_accepting();
        if let Some(connection) = &self.connection {
            // An eventfd that blocks has done so for the last time.
            let _ = self
                .requestq
                .stop(&mut connection.backend().guest(), shared);
        }
    }

    /// Whether a turn would take a request off the ring.
    pub fn has_request(&self) -> bool {
        let connection = self.connection.as_ref();
        connection.is_some_and(|c| self.requestq.has_request(&c.backend().guest()))
    }

    /// Whether a request is on the way.
    pub fn is_active(&self) -> bool {
        self.requestq.is_active()
    }

    /// What became of its requests and its front-ends.
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
    /// a rest. Returns whether there was one.
    pub fn close(&mut self, error: &SessionError, shared: &mut Shared) -> bool {
        self.log_end(error);
        self.listen_at = self
            .back_off(error, shared.now)
            .and_then(|rest| shared.now.checked_add(rest));
        self.listen(&shared.poller, self.listen_at.is_none());
        let Some(connection) = self.connection.take() else {
            return false;
        };
        // It ends anyway: an eventfd that blocks has done so for the last time.
        let _ = self
            .requestq
            .abort(&mut connection.backend().guest(), shared);
        connection.end(&self.closer);
        if let SessionError::LeftOpen(count) = error
            && self.offences.note_left_open(*count, shared.now)
        {
            self.give_up_listening("too many fds had to be left open", &shared.poller);
        }
        true
    }

    fn log_end(&mut self, error: &SessionError) {
        let level = match error.is_in_order() {
            true if self.connection.is_none() => return,
            true => LogLevel::Info,
            false => LogLevel::Warning,
        };
        let is_fault = self.connection.is_some() && !error.is_in_order();
        self.connections.faults = self.connections.faults.wrapping_add(is_fault.into());
        self.requestq.lines.tell_dropped_requests();
        let what = format_args!("connection ended: cause={}", Quoted(error));
        self.requestq.lines.connections.line(level, what);
    }

    /// How long the socket rests after a connection ended with `error`.
    fn back_off(&mut self, error: &SessionError, now: Instant) -> Option<Duration> {
        match error {
            SessionError::CallBlocked => {
                // Each such connection costs all guests a tick of the watchdog.
                write_timeout::shorten();
                Some(self.offences.note_blocked(now))
            }
            SessionError::Host(_) | SessionError::Uncollected => Some(PAUSE),
            SessionError::Disconnected
            | SessionError::Shutdown
            | SessionError::Message(..)
            | SessionError::Fds(_)
            | SessionError::LeftOpen(_)
            | SessionError::NotNotified(_)
            | SessionError::Silent
            | SessionError::Truncated
            | SessionError::Vhost(_) => None,
        }
    }
}
