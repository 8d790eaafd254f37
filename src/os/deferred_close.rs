// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The last close of a front-end's fds is left to the kernel.
//!
//! Closing a file for the last time may take long: it frees a dead guest's memory, 0.1 s for each
//! GiB that is populated (unmapping what was touched here takes as long for that part, and is done
//! here), and a hostile front-end can make it wait for ever (a pipe whose lock it holds, a network
//! socket that lingers, anything that a locked epoll set watches). Nobody else would be served
//! meanwhile. So no fd of a front-end is closed where it is given up: its close is deferred to the
//! end of the message or of the connection.
//!
//! Then the fds are sent through a pair of Unix sockets, together with the pair's receiving end. After
//! both ends are closed no process can receive them: the kernel's garbage collector for such sockets
//! (Linux `net/unix/garbage.c`) makes the last close in a worker of its own. Before
//! Linux 6.9 the collector runs in the process that closes, which then waits as it would without it.
//!
//! The kernel counts such files for each user, and refuses more than the process may have open
//! (`ETOOMANYREFS`): a front-end of the same user can bring that about. Then memory is closed here,
//! which takes long but comes to an end; all else stays open until the kernel takes it, and
//! the messages of a guest that has much of it wait.
//!
//! This cannot help where every close waits, not the last one alone: see [`file_kind::of`](crate::os::file_kind::of).

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::config::GuestNumber;
use crate::os::file_kind::FileKind;

/// Most fds that are handed to the kernel at once: with the receiver, fewer than the 253 of one
/// message.
const BATCH: usize = 128;

/// Most fds of a guest that wait at the same time: those that make its messages wait (32), and a
/// connection with all regions (32), the fds of a message (32, and 253 of the receipt that exceeds them),
/// three eventfds and two sockets.
const ROOM: usize = 354;

/// An fd whose close is deferred.
#[derive(Debug)]
struct DeferredFd {
    guest: GuestNumber,
    /// Its last close comes to an end, whatever the front-end does.
    close_is_bounded: bool,
    file: Arc<File>,
}

/// The deferred fds of all guests.
#[derive(Debug, Default)]
pub struct DeferredClose {
    fds: RefCell<Vec<DeferredFd>>,
    is_touched: Cell<bool>,
}

impl DeferredClose {
    /// With the room that `guests` guests can need: to grow later, it would need a system call that
    /// the filter does not allow (`mremap`).
    pub fn new(guests: usize) -> Rc<Self> {
        Rc::new(Self {
            fds: RefCell::new(Vec::with_capacity(guests.saturating_mul(ROOM))),
            is_touched: Cell::new(false),
        })
    }

    /// Where the fds of guest `guest` go.
    pub fn of_guest(self: &Rc<Self>, guest: GuestNumber) -> Closer {
        let queue = Rc::clone(self);
        Closer { guest, queue }
    }

    /// Whether a close was deferred since the last call; a plain load where none was.
    pub fn take_touched(&self) -> bool {
        self.is_touched.get() && self.is_touched.replace(false)
    }

    /// Hands the deferred fds to the kernel. Returns whether it took all of them; if not, try again
    /// later.
    pub fn collect(&self) -> bool {
        let mut fds = self.fds.borrow_mut();
        while !fds.is_empty() {
            let len = fds.len().min(BATCH);
            let mut batch: Vec<DeferredFd> = fds.drain(..len).collect();
            let Ok((receiver, sender)) = in_flight(&batch) else {
                batch.retain(|deferred| !deferred.close_is_bounded);
                fds.append(&mut batch);
                self.is_touched.set(true);
                return false;
            };
            // The kernel looks for garbage when the last of the two is closed. By then all other fds
            // of the files must be closed, and the receiver, which is in its own queue.
            drop(batch);
            drop(receiver);
            drop(sender);
        }
        true
    }
}

/// Duplicates `batch` into the queue of the socket that is returned first, together with that; the
/// second one is its other end.
fn in_flight(batch: &[DeferredFd]) -> io::Result<(UnixStream, UnixStream)> {
    let (sender, receiver) = UnixStream::pair()?;
    let fds = batch.iter().map(|deferred| deferred.file.as_raw_fd());
    let fds: Vec<RawFd> = fds.chain([receiver.as_raw_fd()]).collect();
    sender.send_with_fds(&[&[0][..]], &fds)?;
    Ok((receiver, sender))
}

/// Defers closes for one guest.
#[derive(Debug, Clone, Default)]
pub struct Closer {
    guest: GuestNumber,
    /// The deferred fds of all guests.
    pub queue: Rc<DeferredClose>,
}

impl Closer {
    /// Gives up `fd` without closing it.
    pub fn defer_close(&self, fd: impl Into<OwnedFd>) {
        drop(FrontendFile::new(fd, FileKind::Unwanted, self));
    }

    /// How many fds of the guest the kernel has not taken yet.
    pub fn pending(&self) -> usize {
        let fds = self.queue.fds.borrow();
        fds.iter().filter(|fd| fd.guest == self.guest).count()
    }
}

/// A front-end's file. Where it is dropped, its close is deferred.
#[derive(Debug)]
pub struct FrontendFile {
    file: Arc<File>,
    /// The kind of file that it is.
    pub kind: FileKind,
    closer: Closer,
}

impl FrontendFile {
    /// A file of a kind that is known.
    pub fn new(file: impl Into<OwnedFd>, kind: FileKind, closer: &Closer) -> Self {
        Self {
            file: Arc::new(file.into().into()),
            kind,
            closer: closer.clone(),
        }
    }

    /// The file, if it is memory or may be. It must be given up before `self` is: the last to have it
    /// closes it.
    pub fn memory(&self) -> Option<Arc<File>> {
        let is_memory = matches!(self.kind, FileKind::Memory | FileKind::Mappable);
        is_memory.then(|| Arc::clone(&self.file))
    }

    /// Writes once, even if that is interrupted.
    ///
    /// # Errors
    /// The kernel's.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.file).write(bytes)
    }
}

impl AsRawFd for FrontendFile {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl Drop for FrontendFile {
    fn drop(&mut self) {
        let Closer { guest, queue } = &self.closer;
        queue.is_touched.set(true);
        queue.fds.borrow_mut().push(DeferredFd {
            guest: *guest,
            close_is_bounded: self.kind == FileKind::Memory,
            file: Arc::clone(&self.file),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn garbage_is_closed_by_the_kernel() {
        let (ours, mut other) = UnixStream::pair().unwrap();
        let batch = [DeferredFd {
            guest: GuestNumber::default(),
            close_is_bounded: false,
            file: Arc::new(OwnedFd::from(ours).into()),
        }];
        let (receiver, sender) = in_flight(&batch).unwrap();
        drop(batch);
        other.set_nonblocking(true).unwrap();
        assert!(other.read(&mut [0]).is_err(), "closed too early");
        other.set_nonblocking(false).unwrap();
        drop(receiver);
        drop(sender);
        // The end of the stream shows that the last fd of its other end is gone.
        assert_eq!(other.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn frontend_file_dropped_is_open_until_it_is_collected() {
        let (ours, mut other) = UnixStream::pair().unwrap();
        let deferred = DeferredClose::new(2);
        let (seven, zero) = (GuestNumber::new(7).unwrap(), GuestNumber::default());
        let closer = deferred.of_guest(seven);
        drop(FrontendFile::new(ours, FileKind::SocketEnd, &closer));
        assert_eq!(
            (closer.pending(), deferred.of_guest(zero).pending()),
            (1, 0)
        );
        assert!(deferred.take_touched() && !deferred.take_touched());
        other.set_nonblocking(true).unwrap();
        assert!(other.read(&mut [0]).is_err(), "closed too early");
        other.set_nonblocking(false).unwrap();
        assert!(deferred.collect());
        assert_eq!(closer.pending(), 0);
        assert_eq!(other.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn collect_more_than_one_message_takes_all() {
        let closer = Closer::default();
        let pairs: Vec<_> = (0..3 * BATCH / 2)
            .map(|_| UnixStream::pair().unwrap())
            .collect();
        for (ours, mut other) in pairs {
            closer.defer_close(ours);
            other.write_all(b"x").unwrap();
            closer.defer_close(other);
        }
        assert!(closer.queue.collect());
        assert_eq!(closer.pending(), 0);
    }
}
