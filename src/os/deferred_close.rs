//! The last close of what a front-end brought is left to the kernel.
//!
//! Closing a file for the last time may take long: it frees a dead guest's memory, 0.1 s for each
//! GiB that is populated (unmapping what was touched here takes as long for that part, and is done
//! here), and a hostile front-end can make it wait for ever (a pipe whose lock it
//! holds, a network socket that lingers, anything that a locked epoll set watches). Here nobody
//! else would be served meanwhile. So nothing of a front-end's is closed where it is given up: it
//! is thrown away, and collected at the end of the message or of the connection.
//!
//! Then the files go into a pair of Unix sockets, together with its own receiving end. With both
//! ends closed nobody can receive them any more; the kernel's garbage collector for such sockets
//! finds that (Linux `net/unix/garbage.c`) and makes the last close in a worker of its own. Before
//! Linux 6.9 it does so in whoever closes, which is what would happen without this.
//!
//! The kernel counts such files for each user, and refuses more than the process may have open
//! (`ETOOMANYREFS`): a front-end of the same user can bring that about. Then memory is closed here,
//! which takes long but comes to an end; all else stays open until the kernel takes it, and
//! the messages of a session that has much of it wait.
//!
//! This cannot help where every close waits, not the last one alone: see `gate`.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::os::file_kind;

/// Most files that are collected at once: with the receiver, fewer than the 253 of one message.
const BATCH: usize = 128;

/// Most things of a guest that wait at the same time: those that make its messages wait, and a
/// connection with all regions, the files of a message and three eventfds.
const THINGS: usize = 192;

/// Something that a front-end brought.
struct Thing {
    /// The number of its guest.
    owner: usize,
    /// Its last close comes to an end, whatever the front-end does.
    ends: bool,
    file: Box<dyn AsRawFd>,
}

thread_local! {
    static LEFT: RefCell<Vec<Thing>> = const { RefCell::new(Vec::new()) };
    static OWNER: Cell<usize> = const { Cell::new(0) };
    static TOUCHED: Cell<bool> = const { Cell::new(false) };
}

/// Makes the room that the things of `guests` guests can need: to grow, it would need a system call
/// that the filter does not allow (`mremap`).
pub fn make_room(guests: usize) {
    LEFT.with_borrow_mut(|left| left.reserve(guests.saturating_mul(THINGS)));
}

/// What is thrown away from now on is guest `number`'s.
pub fn set_owner(number: usize) {
    OWNER.set(number);
}

/// Gives up `thing` without closing it.
pub fn throw_away(thing: impl AsRawFd + 'static) {
    push(Box::new(thing), false);
}

/// As [`throw_away`], for a file that is memory.
pub fn throw_away_memory(file: File) {
    push(Box::new(file), true);
}

/// As the one or the other, for a file that may be memory.
pub fn throw_away_fd(fd: OwnedFd) {
    if file_kind::is_memory(&fd) {
        throw_away_memory(fd.into());
    } else {
        throw_away(fd);
    }
}

fn push(file: Box<dyn AsRawFd>, ends: bool) {
    let owner = OWNER.get();
    TOUCHED.set(true);
    LEFT.with_borrow_mut(|left| left.push(Thing { owner, ends, file }));
}

/// How many things of guest `number` the kernel did not take yet.
pub fn left_by(number: usize) -> usize {
    LEFT.with_borrow(|left| left.iter().filter(|thing| thing.owner == number).count())
}

/// Whether anything was thrown away since the last call; a plain load where nothing was.
pub fn take_touched() -> bool {
    TOUCHED.get() && TOUCHED.replace(false)
}

/// Hands what was thrown away to the kernel. Returns whether it took everything; if not, it is to
/// be tried again.
pub fn collect() -> bool {
    loop {
        let mut batch: Vec<Thing> = LEFT.with_borrow_mut(|left| {
            let len = left.len().min(BATCH);
            left.drain(..len).collect()
        });
        if batch.is_empty() {
            return true;
        }
        let fds: Vec<RawFd> = batch.iter().map(|thing| thing.file.as_raw_fd()).collect();
        match Garbage::new(&fds) {
            Ok(garbage) => {
                drop(batch);
                drop(garbage);
            }
            Err(_) => {
                batch.retain(|thing| !thing.ends);
                LEFT.with_borrow_mut(|left| left.append(&mut batch));
                TOUCHED.set(true);
                return false;
            }
        }
    }
}

/// Files on their way to the kernel's collector, which gets them when this is dropped: by then,
/// all other fds of them must be closed.
#[derive(Debug)]
struct Garbage {
    // The kernel looks for garbage when the last of the two is closed. The one that is in its own
    // queue must be unreachable by then, so it goes first: fields are dropped in this order.
    _receiver: UnixStream,
    _sender: UnixStream,
}

impl Garbage {
    /// Takes a duplicate of each of `fds`.
    fn new(fds: &[RawFd]) -> io::Result<Self> {
        let (sender, receiver) = UnixStream::pair()?;
        let with_receiver = [fds, &[receiver.as_raw_fd()]].concat();
        sender
            .send_with_fds(&[&[0][..]], &with_receiver)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        Ok(Self {
            _receiver: receiver,
            _sender: sender,
        })
    }
}

/// A front-end's file, thrown away where it is dropped.
#[derive(Debug)]
pub struct Foreign(Option<File>);

impl Foreign {
    /// Takes over `file`.
    pub fn new(file: File) -> Self {
        Self(Some(file))
    }

    /// Writes once, even if that is interrupted.
    ///
    /// # Errors
    /// The kernel's.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.0 {
            Some(file) => (&*file).write(bytes),
            None => Ok(0),
        }
    }
}

impl AsRawFd for Foreign {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(throw_away);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;

    #[test]
    fn garbage_is_closed_by_the_kernel() {
        let (ours, mut other) = UnixStream::pair().unwrap();
        let garbage = Garbage::new(&[ours.as_raw_fd()]).unwrap();
        drop(ours);
        other.set_nonblocking(true).unwrap();
        assert!(other.read(&mut [0]).is_err(), "closed too early");
        other.set_nonblocking(false).unwrap();
        drop(garbage);
        // The end of the stream shows that the last fd of its other end is gone.
        assert_eq!(other.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn foreign_file_is_kept_until_it_is_collected() {
        let (ours, mut other) = UnixStream::pair().unwrap();
        set_owner(7);
        drop(Foreign::new(File::from(OwnedFd::from(ours))));
        assert_eq!((left_by(7), left_by(0)), (1, 0));
        other.set_nonblocking(true).unwrap();
        assert!(other.read(&mut [0]).is_err(), "closed too early");
        other.set_nonblocking(false).unwrap();
        assert!(collect());
        assert_eq!(left_by(7), 0);
        assert_eq!(other.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn collect_more_than_one_message_takes_all() {
        let pairs: Vec<_> = (0..3 * BATCH / 2)
            .map(|_| UnixStream::pair().unwrap())
            .collect();
        for (ours, mut other) in pairs {
            throw_away(ours);
            other.write_all(b"x").unwrap();
            throw_away(other);
        }
        assert!(collect());
        assert_eq!(left_by(OWNER.get()), 0);
    }
}
