// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The few system calls that `std` does not have: eventfds, memfds, descriptor passing, another process's memory.

use super::host::PATIENCE;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Turns the -1 of a system call into its errno.
pub fn check(ret: i64) -> io::Result<i64> {
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}

/// A sealed-off memory file of `len` bytes, as a front-end shares its guest's memory with.
pub fn memfd(len: u64) -> File {
    let fd = unsafe {
        libc::memfd_create(
            c"guest".as_ptr(),
            libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
        )
    };
    let file = unsafe { File::from_raw_fd(check(fd.into()).expect("memfd_create") as RawFd) };
    file.set_len(len).expect("size of the memfd");
    file
}

/// Waits until `fd` is readable (or hung up); false when `timeout` passed first.
pub fn readable(fd: RawFd, timeout: Duration) -> bool {
    let end = Instant::now() + timeout;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let mut poll = libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        // Rounded up: a wait of less than a millisecond must not become a busy loop.
        let millis = left.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32;
        match unsafe { libc::poll(&mut poll, 1, millis) } {
            0 if left.is_zero() => return false,
            1 => return true,
            _ => {}
        }
    }
}

/// What `readable_or_hung_up` saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Readable,
    HungUp,
    Timeout,
}

/// Waits until `fd` is readable or the other end of `sock` is gone, so that a test need not wait for a dead daemon.
pub fn readable_or_hung_up(fd: RawFd, sock: RawFd, timeout: Duration) -> Event {
    let end = Instant::now() + timeout;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let millis = left.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32;
        let mut polls = [
            libc::pollfd {
                fd,
                events: libc::POLLIN,
                revents: 0,
            },
            libc::pollfd {
                fd: sock,
                events: libc::POLLRDHUP,
                revents: 0,
            },
        ];
        let count = unsafe { libc::poll(polls.as_mut_ptr(), 2, millis) };
        if polls[0].revents != 0 {
            return Event::Readable;
        }
        if polls[1].revents != 0 {
            return Event::HungUp;
        }
        if count == 0 && left.is_zero() {
            return Event::Timeout;
        }
    }
}

/// Polls `condition` until it holds; false when `timeout` passed first.
pub fn eventually(timeout: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + timeout;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Tries until a try was on time, and gives what came of it: a machine that is busy is late now and then, a daemon that
/// is late is late each time. A try says in `Err` what was late; whatever is wrong at any speed, it asserts.
#[track_caller]
pub fn on_time<T>(mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    let mut count = 0;
    loop {
        count += 1;
        match attempt() {
            Ok(outcome) => return outcome,
            Err(late) if count >= 10 && start.elapsed() >= PATIENCE => {
                panic!("{count} times: {late}")
            }
            Err(_) => {}
        }
    }
}

/// `Ok` if `time` is less than `most`; for [`on_time`].
pub fn within(time: Duration, most: Duration) -> Result<(), String> {
    if time < most {
        Ok(())
    } else {
        Err(format!("{time:?}, and not less than {most:?}"))
    }
}

/// Sends `bytes` with `fds` beside them; the count of bytes the socket took.
pub fn send_with_fds(sock: RawFd, bytes: &[u8], fds: &[RawFd]) -> io::Result<usize> {
    send_flagged(sock, bytes, fds, 0)
}

/// The same with flags of `sendmsg`: MSG_OOB makes the last byte an urgent one.
pub fn send_flagged(sock: RawFd, bytes: &[u8], fds: &[RawFd], flags: i32) -> io::Result<usize> {
    let mut iov = libc::iovec {
        iov_base: bytes.as_ptr() as *mut _,
        iov_len: bytes.len(),
    };
    let mut control = [0u64; 130];
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = &mut iov;
    msg.msg_iovlen = 1;
    if !fds.is_empty() {
        let len = std::mem::size_of_val(fds) as u32;
        msg.msg_control = control.as_mut_ptr().cast();
        msg.msg_controllen = unsafe { libc::CMSG_SPACE(len) } as _;
        assert!(
            msg.msg_controllen as usize <= std::mem::size_of_val(&control),
            "too many descriptors for the rig"
        );
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&msg);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(len) as _;
            std::ptr::copy_nonoverlapping(
                fds.as_ptr().cast::<u8>(),
                libc::CMSG_DATA(header),
                len as usize,
            );
        }
    }
    check(unsafe { libc::sendmsg(sock, &msg, libc::MSG_NOSIGNAL | flags) } as i64)
        .map(|n| n as usize)
}

/// Receives into `bytes`; the count and the descriptors that came along.
pub fn recv_with_fds(sock: RawFd, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut iov = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    let mut control = [0u64; 64];
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = &mut iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control.as_mut_ptr().cast();
    msg.msg_controllen = std::mem::size_of_val(&control) as _;
    let count =
        check(unsafe { libc::recvmsg(sock, &mut msg, libc::MSG_CMSG_CLOEXEC) } as i64)? as usize;
    let mut fds = Vec::new();
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&msg) };
    while !header.is_null() {
        let (kind, len) = unsafe { ((*header).cmsg_type, (*header).cmsg_len as usize) };
        if kind == libc::SCM_RIGHTS {
            let start = unsafe { libc::CMSG_DATA(header) };
            let head = start as usize - header as usize;
            for n in 0..(len - head) / 4 {
                let fd = unsafe { start.cast::<RawFd>().add(n).read_unaligned() };
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        header = unsafe { libc::CMSG_NXTHDR(&msg, header) };
    }
    Ok((count, fds))
}

/// Receives exactly one descriptor.
pub fn recv_fd(sock: &UnixStream) -> io::Result<OwnedFd> {
    let (_, mut fds) = recv_with_fds(sock.as_raw_fd(), &mut [0])?;
    fds.pop()
        .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
}

/// Copies from the memory of `pid`; false on any byte that is not readable there.
pub fn read_memory(pid: u32, addr: u64, into: &mut [u8]) -> bool {
    if into.is_empty() {
        return true;
    }
    let local = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    };
    let remote = libc::iovec {
        iov_base: addr as *mut _,
        iov_len: into.len(),
    };
    let done = unsafe { libc::process_vm_readv(pid as i32, &local, 1, &remote, 1, 0) };
    done == into.len() as isize
}

/// Copies into the memory of `pid`; false on any byte that is not writable there (what precedes it was written, as
/// with the kernel's `copy_to_user`). Not `/proc/PID/mem`: that would write through read-only mappings.
pub fn write_memory(pid: u32, addr: u64, from: &[u8]) -> bool {
    if from.is_empty() {
        return true;
    }
    let local = libc::iovec {
        iov_base: from.as_ptr() as *mut _,
        iov_len: from.len(),
    };
    let remote = libc::iovec {
        iov_base: addr as *mut _,
        iov_len: from.len(),
    };
    let done = unsafe { libc::process_vm_writev(pid as i32, &local, 1, &remote, 1, 0) };
    done == from.len() as isize
}
