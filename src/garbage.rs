//! The last close of what a front-end brought is left to the kernel.
//!
//! Closing a file for the last time may take long: it frees a dead guest's memory, 0.1 s for each
//! GiB that is populated, and a hostile front-end can make it wait for ever (a pipe whose lock it
//! holds, a network socket that lingers). Here nobody else would be served meanwhile. So the files
//! go into a pair of Unix sockets, together with its own receiving end. With both ends closed
//! nobody can receive them any more; the kernel's garbage collector for such sockets finds that
//! (Linux `net/unix/garbage.c`) and makes the last close in a worker of its own. Before Linux 6.9
//! it does so in whoever closes, which is what would happen without this.
//!
//! This cannot help where every close waits, not the last one alone: see `gate`.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Files on their way to the kernel's collector, which gets them when this is dropped: by then,
/// all other fds of them must be closed.
#[derive(Debug)]
pub struct Garbage {
    // The kernel looks for garbage when the last of the two is closed. The one that is in its own
    // queue must be unreachable by then, so it goes first: fields are dropped in this order.
    _receiver: UnixStream,
    _sender: UnixStream,
}

impl Garbage {
    /// Takes a duplicate of each of `fds`; `None` where there are none or the host cannot: then
    /// their last close is ours, however long it takes.
    pub fn new(fds: &[RawFd]) -> Option<Self> {
        if fds.is_empty() {
            return None;
        }
        let (sender, receiver) = UnixStream::pair().ok()?;
        let with_receiver = [fds, &[receiver.as_raw_fd()]].concat();
        sender.send_with_fds(&[&[0][..]], &with_receiver).ok()?;
        Some(Self {
            _receiver: receiver,
            _sender: sender,
        })
    }
}

/// A file of a front-end that is not closed for the last time here.
#[derive(Debug)]
pub struct Foreign {
    file: File,
    // Dropped after the file.
    garbage: Option<Garbage>,
}

impl Foreign {
    /// Takes over `file`.
    pub fn new(file: File) -> Self {
        let garbage = None;
        Self { file, garbage }
    }

    /// Writes once, even if that is interrupted.
    ///
    /// # Errors
    /// The kernel's.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        (&self.file).write(bytes)
    }
}

impl AsRawFd for Foreign {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.garbage = Garbage::new(&[self.as_raw_fd()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

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
    fn foreign_file_is_closed_in_the_end() {
        let (ours, mut other) = UnixStream::pair().unwrap();
        drop(Foreign::new(File::from(std::os::fd::OwnedFd::from(ours))));
        assert_eq!(other.read(&mut [0]).unwrap(), 0);
    }
}
