// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The one epoll set, and the tokens of its events.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::config::GuestNumber;
use crate::os::deferred_close::FrontendFile;

/// Edge-triggered: one event for each time that there is more to read, and one for the end.
pub const EDGES: EventSet = EventSet::IN
    .union(EventSet::READ_HANG_UP)
    .union(EventSet::EDGE_TRIGGERED);
/// As [`EDGES`], and an event when there is room to write: at once, if there is some already.
pub const EDGES_AND_ROOM: EventSet = EDGES.union(EventSet::OUT);
/// Events until all was read, and when the fd is shut down.
pub const LEVEL: EventSet = EventSet::IN.union(EventSet::READ_HANG_UP);
/// No event before the fd is shut down in both directions.
pub const NONE: EventSet = EventSet::empty();

/// The source of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// The signalfd.
    Signal,
    /// The timer of the next deadline.
    Timer,
    /// The listening socket of a guest.
    Listener(GuestNumber),
    /// The connection of a guest.
    Connection(GuestNumber),
    /// The kick eventfd of a guest.
    Kick(GuestNumber),
}

impl Token {
    /// The token as epoll keeps it: guest in the lowest byte, kind above.
    fn encode(self) -> u64 {
        let (kind, guest) = match self {
            Self::Signal => (0u64, GuestNumber::default()),
            Self::Timer => (1, GuestNumber::default()),
            Self::Listener(guest) => (2, guest),
            Self::Connection(guest) => (3, guest),
            Self::Kick(guest) => (4, guest),
        };
        kind << 8 | u64::from(guest.byte())
    }

    /// The token of an event; `None` for one that [`Poller`] never registered.
    pub fn decode(data: u64) -> Option<Self> {
        let guest = GuestNumber::new(usize::try_from(data & 0xff).ok()?)?;
        let of_guest = [Self::Kick, Self::Connection, Self::Listener].map(|token| token(guest));
        let mut all = of_guest.into_iter().chain([Self::Timer, Self::Signal]);
        all.find(|token| token.encode() == data)
    }
}

/// The epoll set. A clone is another handle of it.
#[derive(Debug, Clone)]
pub struct Poller(Rc<Epoll>);

impl Poller {
    /// An empty set.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> io::Result<Self> {
        Epoll::new().map(|epoll| Self(Rc::new(epoll)))
    }

    /// Waits for events; for ever if `timeout` is -1.
    ///
    /// # Errors
    /// The kernel's; an interrupted wait is one without events.
    pub fn wait(&self, timeout: i32, events: &mut [EpollEvent]) -> io::Result<usize> {
        match self.0.wait(timeout, events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            result => result,
        }
    }

    /// Adds `fd`, and says which of its `events` are wanted.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add(&self, fd: RawFd, token: Token, events: EventSet) -> io::Result<()> {
        let event = EpollEvent::new(events, token.encode());
        self.0.ctl(ControlOperation::Add, fd, event)
    }

    /// Changes which `events` of `fd`, which was added, are wanted. Removing it and adding it again could
    /// fail: the kernel limits how many fds a user has in all its sets, and a front-end may be of the same
    /// user.
    pub fn modify(&self, fd: RawFd, token: Token, events: EventSet) {
        let event = EpollEvent::new(events, token.encode());
        // It can only fail for an fd that is not in the set.
        let _ = self.0.ctl(ControlOperation::Modify, fd, event);
    }

    /// Removes `fd`.
    pub fn remove(&self, fd: RawFd) {
        // It can only fail for an fd that is not in the set.
        let event = EpollEvent::default();
        let _ = self.0.ctl(ControlOperation::Delete, fd, event);
    }
}

/// A file in the epoll set. Removal is explicit: the set keeps the open file description, which
/// for an eventfd the front-end shares, so that closing our fd would leave it in the set for ever.
#[derive(Debug)]
pub struct Registered {
    poller: Poller,
    file: FrontendFile,
}

impl Registered {
    /// Adds `file`, edge-triggered.
    ///
    /// # Errors
    /// The kernel's; it refuses files that cannot be polled.
    pub fn new(poller: &Poller, file: FrontendFile, token: Token) -> io::Result<Self> {
        poller.add(file.as_raw_fd(), token, EDGES)?;
        Ok(Self {
            poller: poller.clone(),
            file,
        })
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.poller.remove(self.file.as_raw_fd());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_survives_the_way_through_epoll() {
        for token in [
            Token::Signal,
            Token::Timer,
            Token::Listener(GuestNumber::new(63).unwrap()),
            Token::Connection(GuestNumber::default()),
            Token::Kick(GuestNumber::new(7).unwrap()),
        ] {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
        assert_eq!(Token::decode(5 << 8), None);
        assert_eq!(Token::decode(2 << 8 | 64), None);
    }
}
