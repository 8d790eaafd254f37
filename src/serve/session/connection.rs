// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The connection of a front-end, and its end.
//!
//! A message is received, waits for a request in progress if it must, is handled, and answered; until
//! the front-end has taken the answer no further message is received. So a front-end that does not
//! read delays only itself, however small the socket's buffers are. Called by `session`.

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::config::GuestMemory;
use crate::error::SessionError;
use crate::os::deferred_close::Closer;
use crate::os::epoll::{self, Token};
use crate::os::ffi;
use crate::os::mounts::Mounts;
use crate::os::socket;
use crate::vhost_user::backend::Backend;
use crate::vhost_user::handler::Handler;
use crate::vhost_user::reader::{Message, Reader};

/// How long a front-end may be silent in the middle of a message.
const SILENCE: Duration = Duration::from_secs(1);

/// A front-end that is connected.
pub(super) struct Connection {
    stream: UnixStream,
    reader: Reader,
    handler: Handler,
    /// When more of a message must have come, of which a part is there.
    pub(super) deadline: Option<Instant>,
    /// The front-end is to make room for a reply.
    awaits_room: bool,
    /// Its messages wait for the kernel to close fds of the guest.
    pub(super) is_held_up: bool,
    /// It was logged that its driver waits for memory.
    pub(super) lack_is_logged: bool,
}

impl Connection {
    /// A new connection, whose messages change `backend` and may bring `guest_memory`.
    ///
    /// # Errors
    /// The host refused it. Then the front-end sees its end.
    pub(super) fn new(
        stream: UnixStream,
        backend: Backend,
        guest_memory: GuestMemory,
        closer: &Closer,
    ) -> Result<Self, SessionError> {
        let fd = stream.as_raw_fd();
        let handler = socket::receive_urgent_inline(fd)
            .and_then(|()| Handler::new(backend))
            .and_then(|handler| {
                let Backend { number, poller, .. } = &*handler.backend;
                poller.add(fd, Token::Connection(*number), epoll::EDGES)?;
                Ok(handler)
            });
        match handler {
            Ok(handler) => Ok(Self {
                stream,
                reader: Reader::new(guest_memory, closer.clone()),
                handler,
                deadline: None,
                awaits_room: false,
                is_held_up: false,
                lack_is_logged: false,
            }),
            Err(error) => {
                ffi::shut_down(fd);
                closer.defer_close(stream);
                Err(SessionError::Host(error))
            }
        }
    }

    /// The back-end that its messages change.
    pub(super) fn backend(&self) -> &Backend {
        &self.handler.backend
    }

    /// The time for the other part of a message is over. If some of it is there, the loop is late, and
    /// not the front-end.
    ///
    /// # Errors
    /// The front-end was silent.
    pub(super) fn expire(&mut self, now: Instant) -> Result<(), SessionError> {
        if !ffi::is_ready(self.fd(), libc::POLLIN) {
            return Err(SessionError::Silent);
        }
        self.deadline = now.checked_add(SILENCE);
        Ok(())
    }

    fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Receives as much of the next message as there is, unless an answer must go out first. Returns
    /// whether a message is whole.
    ///
    /// # Errors
    /// The front-end left, or the connection must end.
    pub(super) fn receive(&mut self, mounts: &Mounts, now: Instant) -> Result<bool, SessionError> {
        if !self.send_reply()? {
            return Ok(false);
        }
        let len = self.reader.len;
        match self.reader.receive(self.fd(), mounts) {
            Ok(is_whole) => {
                if is_whole {
                    self.deadline = None;
                } else if self.reader.len > len {
                    self.deadline = now.checked_add(SILENCE);
                }
                Ok(is_whole)
            }
            Err(error) => {
                if let Some(header) = self.reader.header() {
                    self.handler.acknowledge(header, false);
                }
                // The first error is reported, not this one.
                let _ = self.send_reply();
                Err(error)
            }
        }
    }

    /// The message that is whole.
    pub(super) fn message(&mut self) -> Option<Message<'_>> {
        self.reader.message()
    }

    /// Handles the message that is whole, and sends as much of the answer as the front-end takes.
    ///
    /// # Errors
    /// The connection must end.
    pub(super) fn handle(&mut self) -> Result<(), SessionError> {
        let message = self.reader.message();
        let handled = message.map_or(Ok(()), |message| self.handler.handle(message));
        self.reader.finish();
        let sent = self.send_reply();
        handled.and(sent.map(drop))
    }

    /// Sends as much of an answer as the front-end takes; returns whether none is left.
    fn send_reply(&mut self) -> Result<bool, SessionError> {
        let sent = self.handler.send_reply(self.fd())?;
        if sent == self.awaits_room {
            self.awaits_room = !sent;
            let events = if sent {
                epoll::EDGES
            } else {
                epoll::EDGES_AND_ROOM
            };
            let Backend { number, poller, .. } = self.backend();
            poller.modify(self.fd(), Token::Connection(*number), events);
        }
        Ok(sent)
    }

    /// Ends the connection. The close of the front-end's fds is deferred, also of those still queued in the
    /// socket.
    pub(super) fn end(self, closer: &Closer) {
        // Not by the close of our fd: the set keeps the socket until its last close.
        self.backend().poller.remove(self.fd());
        // The front-end sees the end now, and not when the kernel closes the socket.
        ffi::shut_down(self.fd());
        // With it go the eventfds and the memory that the front-end brought.
        drop(self.handler);
        // The close of a drained socket is quick: it happens at the end of this function.
        if !self.reader.is_drained {
            closer.defer_close(self.stream);
        }
        // With it go the fds of a message that is not whole.
        drop(self.reader);
        closer.queue.collect();
    }
}
