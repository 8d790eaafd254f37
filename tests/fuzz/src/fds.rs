// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Files of the kinds that front-ends share.

use std::fs::File;
use std::io::Write;
use std::net::UdpSocket;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// Bytes of a guest's memory.
pub const GUEST_LEN: usize = 0x1_0000;
/// More fds than the fuzzer ever has.
const MOST: RawFd = 512;

fn owned(fd: libc::c_int) -> OwnedFd {
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the system call that made it gave it to us alone.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Memory of `len` bytes.
pub fn memfd(len: usize) -> File {
    // SAFETY: the name is a C string.
    let file = File::from(owned(unsafe {
        libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC)
    }));
    file.set_len(u64::try_from(len).unwrap()).unwrap();
    file
}

/// An eventfd that does not block.
pub fn eventfd() -> File {
    // SAFETY: takes no pointers.
    File::from(owned(unsafe {
        libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
    }))
}

/// Which of the fds below [`MOST`] are open.
pub fn open() -> Vec<RawFd> {
    let entry = |fd| libc::pollfd {
        fd,
        events: 0,
        revents: 0,
    };
    let mut all: Vec<libc::pollfd> = (0..MOST).map(entry).collect();
    let count = libc::nfds_t::try_from(all.len()).unwrap();
    // SAFETY: `count` entries, alive; a time-out of 0 never waits.
    let result = unsafe { libc::poll(all.as_mut_ptr(), count, 0) };
    assert!(result >= 0, "{}", std::io::Error::last_os_error());
    let open = all
        .iter()
        .filter(|entry| entry.revents & libc::POLLNVAL == 0);
    open.map(|entry| entry.fd).collect()
}

/// Closes an fd that the daemon left open on purpose.
pub fn close(fd: RawFd) {
    // SAFETY: nobody owns it any more: that it is open though all owners are gone is the point.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
}

/// What a front-end may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Memory, all that a guest needs.
    Memory,
    /// Memory of one page.
    Page,
    /// Memory of no length.
    Empty,
    /// An eventfd, for all who ask.
    Event,
    /// An eventfd that is full and blocks.
    Full,
    /// The reading end of a pipe.
    PipeOut,
    /// The writing end of a pipe.
    PipeIn,
    /// One end of a pair of sockets.
    Pair,
    /// A UDP socket.
    Network,
    /// `/dev/null`.
    Null,
    /// A timer.
    Timer,
    /// An epoll set.
    Epoll,
    /// A file of the host.
    File,
    /// A file whose file system is not known to close without waiting.
    Slow,
}

impl Kind {
    /// All but the one that takes a tick of the daemon's watchdog.
    pub const ALL: [Self; 13] = [
        Self::Memory,
        Self::Event,
        Self::Page,
        Self::Empty,
        Self::PipeOut,
        Self::PipeIn,
        Self::Pair,
        Self::Network,
        Self::Null,
        Self::Timer,
        Self::Epoll,
        Self::File,
        Self::Slow,
    ];

    /// A new one, and what must stay open beside it.
    pub fn make(self) -> (OwnedFd, Option<OwnedFd>) {
        let made = match self {
            Self::Memory => memfd(GUEST_LEN).into(),
            Self::Page => memfd(4096).into(),
            Self::Empty => memfd(0).into(),
            Self::Event => eventfd().into(),
            Self::Full => full_eventfd().into(),
            Self::PipeOut | Self::PipeIn => {
                let (reader, writer) = std::io::pipe().unwrap();
                let (out, into) = (OwnedFd::from(reader), OwnedFd::from(writer));
                let is_out = self == Self::PipeOut;
                let (one, other) = if is_out { (out, into) } else { (into, out) };
                return (one, Some(other));
            }
            Self::Pair => {
                let (one, other) = UnixStream::pair().unwrap();
                return (one.into(), Some(other.into()));
            }
            Self::Network => UdpSocket::bind("127.0.0.1:0").unwrap().into(),
            Self::Null => File::open("/dev/null").unwrap().into(),
            Self::Timer => timer(),
            // SAFETY: takes no pointers.
            Self::Epoll => owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }),
            Self::File => File::open("/proc/self/exe").unwrap().into(),
            Self::Slow => File::open("/proc/self/stat").unwrap().into(),
        };
        (made, None)
    }
}

fn full_eventfd() -> File {
    // SAFETY: takes no pointers.
    let mut file = File::from(owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) }));
    file.write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
    file
}

fn timer() -> OwnedFd {
    // SAFETY: takes no pointers.
    owned(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC) })
}
