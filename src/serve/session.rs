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
use std::time::{Duration, Instant};

use crate::config::{GuestNumber, LogLevel};
use crate::error::SessionError;
use crate::os::deferred_close;
use crate::os::epoll::{Poller, Token};
use crate::os::ffi::shut_down;
use crate::os::handed_in::Socket;
use crate::os::listener::Listener;
use crate::os::log::{self, Quoted};
use crate::os::write_timeout;
use crate::serve::counters::{Connections, Counted};
use crate::serve::grant::{Grant, Shared};
use crate::serve::requestq::{Requestq, Turn};
use crate::vhost_user::backend::Backend;
use crate::vhost_user::gate::{self, Queued, Request};

mod connection;
mod offences;

use self::connection::Connection;
use self::offences::Offences;

/// How long a front-end may be silent in the middle of a message.
const SILENCE: Duration = Duration::from_secs(1);
/// Things of a guest that may wait for the kernel to take them before its messages wait as well.
const MAX_LEFT: usize = 32;
/// How long a socket rests where the host lacks something.
const PAUSE: Duration = Duration::from_millis(100);
/// Messages handled before others get their turn.
const MESSAGES_PER_TURN: u32 = 16;

/// One guest's socket and what is behind it.
pub struct Session {
    number: GuestNumber,
    listener: Option<Listener>,
    /// There will be no other front-end: this one was handed in, or the socket was shut down.
    is_single: bool,
    connection: Option<Connection>,
    /// Its front-ends so far.
    connections: Connections,
    requestq: Requestq,
    /// Its messages wait for the kernel to take what was thrown away.
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
    ) -> Result<Self, SessionError> {
        let mut session = Self {
            number,
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
                poller.add_listener(fd, token).map_err(SessionError::Host)?;
                session.listener = Some(listener);
                session.listen(poller, true);
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
            poller.set_listening(listener.as_raw_fd(), token, listening);
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
            self.requestq.lines.connection(LogLevel::Info, what);
            return Ok(false);
        }
        // What the last ones brought is still ours.
        if deferred_close::left_by(self.number.index()) > MAX_LEFT {
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
        poller.await_next(listener.as_raw_fd(), Token::Listener(self.number));
        let what = format_args!("front-end connected");
        self.requestq.lines.connection(LogLevel::Info, what);
        self.connect(stream, poller)?;
        Ok(true)
    }

    fn connect(&mut self, stream: UnixStream, poller: &Poller) -> Result<(), SessionError> {
        deferred_close::set_owner(self.number.index());
        let token = Token::Connection(self.number);
        if let Err(error) = poller.add_edge(stream.as_raw_fd(), token) {
            shut_down(stream.as_raw_fd());
            deferred_close::throw_away(stream);
            return Err(SessionError::Host(error));
        }
        let grant = &self.requestq.grant;
        let max_memory_len = grant.max_memory_len;
        let backend = Backend::new(self.number, grant.config, max_memory_len, poller.clone());
        self.connection = Some(Connection::new(stream, backend));
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
        log::line(
            LogLevel::Error,
            format_args!("guest={guest} not listening any more: cause=\"{cause}\""),
        );
        self.stop_listening(poller);
    }

    /// Stops listening for good.
    pub fn stop_listening(&mut self, poller: &Poller) {
        deferred_close::set_owner(self.number.index());
        self.listen_at = None;
        if let Some(listener) = self.listener.take() {
            poller.remove(listener.as_raw_fd());
            listener.stop();
        }
    }

    /// When a message must be complete.
    pub fn deadline(&self) -> Option<Instant> {
        self.connection.as_ref()?.deadline
    }

    /// The front-end closed its end: what it sent before is still handled.
    pub fn set_hung_up(&mut self) {
        if let Some(connection) = &mut self.connection {
            connection.hung_up = true;
        }
    }

    /// Handles the messages that are queued.
    ///
    /// # Errors
    /// The connection must end.
    pub fn control(&mut self, shared: &mut Shared) -> Result<Turn, SessionError> {
        deferred_close::set_owner(self.number.index());
        for _ in 0..MESSAGES_PER_TURN {
            if deferred_close::left_by(self.number.index()) > MAX_LEFT {
                self.held_up = true;
                return Ok(Turn::Again);
            }
            let Some(connection) = &mut self.connection else {
                return Ok(Turn::Idle);
            };
            // Those of a message that had to wait: it is still queued, so that no close is the last.
            connection.held.clear();
            let fd = connection.handler.as_raw_fd();
            let request = match gate::inspect(fd, &mut connection.held, &shared.mounts)? {
                Queued::Nothing if !connection.hung_up => return Ok(Turn::Again),
                Queued::Part if !connection.hung_up => {
                    let deadline = Instant::now().checked_add(SILENCE);
                    connection.deadline = connection.deadline.or(deadline);
                    return Ok(Turn::Again);
                }
                Queued::Nothing | Queued::Part => return Err(SessionError::Disconnected),
                Queued::Message(request) => request,
            };
            connection.deadline = None;
            if !self.make_way(request, shared)? {
                return Ok(Turn::Again);
            }
            self.handle()?;
        }
        Ok(Turn::Control)
    }

    /// Settles what a message means for the request on the way, before it is handled; `false` if
    /// the message must wait for that to come to its end.
    ///
    /// A ring that stops (in QEMU: SET_VRING_ENABLE, then GET_VRING_BASE) lets it finish if it is
    /// short, and so does memory that changes, which is no reason to release chip select either.
    /// Whatever else changes the ring ends it. A ring that is enabled or a region that is added
    /// takes nothing away, so it goes on.
    fn make_way(&mut self, request: Request, shared: &mut Shared) -> Result<bool, SessionError> {
        let Some(connection) = &self.connection else {
            return Ok(true);
        };
        let mut guest = connection.backend.guest();
        let fd = connection.handler.as_raw_fd();
        match request {
            Request::SetVringEnable if gate::enables(fd) => Ok(true),
            Request::SetMemTable | Request::RemMemReg => self.requestq.pause(&mut guest, shared),
            Request::GetVringBase | Request::SetVringEnable | Request::ResetOwner => {
                self.requestq.stop(&mut guest, shared)
            }
            Request::SetVringNum
            | Request::SetVringAddr
            | Request::SetVringBase
            | Request::SetFeatures
            | Request::ResetDevice => {
                self.requestq.abort(&mut guest, shared)?;
                Ok(true)
            }
            Request::GetFeatures
            | Request::SetOwner
            | Request::SetVringKick
            | Request::SetVringCall
            | Request::SetVringErr
            | Request::GetProtocolFeatures
            | Request::SetProtocolFeatures
            | Request::GetQueueNum
            | Request::GetConfig
            | Request::SetConfig
            | Request::GetMaxMemSlots
            | Request::AddMemReg => Ok(true),
        }
    }

    fn handle(&mut self) -> Result<(), SessionError> {
        let Some(connection) = &mut self.connection else {
            return Ok(());
        };
        connection
            .handler
            .handle_request()
            .map_err(SessionError::of_vhost)?;
        // Those that an accepted message should not have had were closed by the `vhost` crate:
        // these are the last.
        connection
            .held
            .drain(..)
            .for_each(deferred_close::throw_away_fd);
        deferred_close::collect();
        Ok(())
    }

    /// Makes one step: of the request on the way, or to the next one.
    ///
    /// # Errors
    /// The connection must end.
    pub fn turn(&mut self, shared: &mut Shared) -> Result<Turn, SessionError> {
        match &self.connection {
            Some(connection) => self.requestq.turn(&mut connection.backend.guest(), shared),
            None => Ok(Turn::Idle),
        }
    }

    /// Whether messages waited for the kernel to take what was thrown away.
    pub fn take_held_up(&mut self) -> bool {
        std::mem::take(&mut self.held_up)
    }

    /// Whether the guest's memory was truncated.
    pub fn is_truncated(&self) -> bool {
        let connection = self.connection.as_ref();
        connection.is_some_and(|connection| connection.backend.guest().memory.is_truncated())
    }

    /// Tells the driver what was completed since the last time.
    ///
    /// # Errors
    /// The call eventfd blocked: the connection must end.
    pub fn notify(&mut self) -> Result<(), SessionError> {
        let Some(connection) = &self.connection else {
            return Ok(());
        };
        let mut guest = connection.backend.guest();
        let guest = &mut *guest;
        guest.vring.notify(&guest.memory)
    }

    /// Begins no other request, and ends the one on the way unless it is short. For the end of the
    /// daemon.
    pub fn wind_up(&mut self, shared: &mut Shared) {
        self.requestq.stop_accepting();
        if let Some(connection) = &self.connection {
            // An eventfd that blocks has done so for the last time.
            let _ = self.requestq.stop(&mut connection.backend.guest(), shared);
        }
    }

    /// Whether a turn would take a request off the ring.
    pub fn has_request(&self) -> bool {
        let connection = self.connection.as_ref();
        connection.is_some_and(|c| self.requestq.has_request(&c.backend.guest()))
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
        deferred_close::set_owner(self.number.index());
        self.log_end(error);
        self.listen_at = self
            .rest(error)
            .and_then(|rest| Instant::now().checked_add(rest));
        self.listen(&shared.poller, self.listen_at.is_none());
        let Some(connection) = self.connection.take() else {
            return false;
        };
        // It ends anyway: an eventfd that blocks has done so for the last time.
        let _ = self.requestq.abort(&mut connection.backend.guest(), shared);
        connection.end(&shared.poller);
        let is_left_open = matches!(error, SessionError::LeftOpen);
        if is_left_open && self.offences.note_left_open(Instant::now()) {
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
        self.requestq.lines.connection(level, what);
    }

    /// How long the socket rests after a connection ended with `error`.
    fn rest(&mut self, error: &SessionError) -> Option<Duration> {
        match error {
            SessionError::CallBlocked => {
                // Each such connection costs all guests a tick of the watchdog.
                write_timeout::shorten();
                Some(self.offences.note_blocked(Instant::now()))
            }
            SessionError::Host(_) | SessionError::Uncollected => Some(PAUSE),
            SessionError::Disconnected
            | SessionError::Shutdown
            | SessionError::Message(..)
            | SessionError::Fds(_)
            | SessionError::LeftOpen
            | SessionError::NotNotified(_)
            | SessionError::Silent
            | SessionError::RepliesUnread
            | SessionError::Truncated
            | SessionError::Vhost(_) => None,
        }
    }
}
