// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The few system calls that `std` does not have.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// A memory file of `len` bytes.
pub fn memfd(len: u64) -> io::Result<File> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let fd = check(unsafe { libc::memfd_create(c"guest".as_ptr(), flags) })?;
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len)?;
    Ok(file)
}

/// A blocking eventfd: the front-end sleeps in `read`.
pub fn eventfd() -> io::Result<File> {
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) })?;
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Maps all of a memory file.
pub fn map(file: &File, len: usize) -> io::Result<*mut u8> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let fd = file.as_raw_fd();
    let null = std::ptr::null_mut();
    let base = unsafe { libc::mmap(null, len, protection, libc::MAP_SHARED, fd, 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(base.cast())
}

/// Undoes [`map`].
pub fn unmap(base: *mut u8, len: usize) {
    unsafe { libc::munmap(base.cast(), len) };
}

/// Whether `fd` becomes readable in time.
pub fn readable(fd: RawFd, timeout: Duration) -> io::Result<bool> {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    Ok(check(unsafe { libc::poll(&mut poll, 1, millis) })? > 0)
}

/// Sends `bytes` with `fds` beside them.
pub fn send_with_fds(stream: &UnixStream, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // Room for 8 fds, aligned as a header must be.
    let mut control = [0u64; 8];
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    if !fds.is_empty() {
        let len = u32::try_from(size_of_val(fds)).map_err(io::Error::other)?;
        let space = unsafe { libc::CMSG_SPACE(len) };
        assert!(usize::try_from(space).unwrap() <= size_of_val(&control));
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = space as _;
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(len) as _;
            let to = libc::CMSG_DATA(header);
            std::ptr::copy_nonoverlapping(fds.as_ptr().cast(), to, size_of_val(fds));
        }
    }
    let sent = unsafe { libc::sendmsg(stream.as_raw_fd(), &message, libc::MSG_NOSIGNAL) };
    match usize::try_from(sent) {
        Ok(sent) if sent == bytes.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Has thread `tid` (0: the caller) run on `cpu` only.
pub fn pin(tid: i32, cpu: usize) -> io::Result<()> {
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    unsafe { libc::CPU_SET(cpu, &mut set) };
    check(unsafe { libc::sched_setaffinity(tid, size_of_val(&set), &set) }).map(drop)
}

/// Has the caller run anywhere again.
pub fn unpin() -> io::Result<()> {
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in 0..cpus() {
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    check(unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) }).map(drop)
}

/// Puts thread `tid` (0: the caller) under `SCHED_FIFO`.
pub fn set_fifo(tid: i32, priority: i32) -> io::Result<()> {
    let parameter = libc::sched_param {
        sched_priority: priority,
    };
    check(unsafe { libc::sched_setscheduler(tid, libc::SCHED_FIFO, &parameter) }).map(drop)
}

/// Puts the caller under the ordinary policy again.
pub fn set_ordinary() -> io::Result<()> {
    let parameter = libc::sched_param { sched_priority: 0 };
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_OTHER, &parameter) }).map(drop)
}

/// Nanoseconds of CLOCK_MONOTONIC.
pub fn now_ns() -> u64 {
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // It is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    let (seconds, nanos) = (time.tv_sec.cast_unsigned(), time.tv_nsec.cast_unsigned());
    seconds * 1_000_000_000 + nanos
}

/// Sleeps until CLOCK_MONOTONIC shows `ns`.
pub fn sleep_until(ns: u64) {
    let time = libc::timespec {
        tv_sec: (ns / 1_000_000_000).cast_signed(),
        tv_nsec: (ns % 1_000_000_000).cast_signed(),
    };
    let clock = libc::CLOCK_MONOTONIC;
    while unsafe { libc::clock_nanosleep(clock, libc::TIMER_ABSTIME, &time, std::ptr::null_mut()) }
        == libc::EINTR
    {}
}

/// Whoever started us may be killed: then this process ends as well.
pub fn end_with_parent() -> io::Result<()> {
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) }).map(drop)
}

/// Gives the memory of a part of a file back.
pub fn punch_hole(file: &File, offset: usize, len: usize) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let (offset, len) = (offset as libc::off_t, len as libc::off_t);
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) }).map(drop)
}

/// How many CPUs there are.
pub fn cpus() -> usize {
    usize::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).unwrap_or(1)
}

/// CPU time that all threads of a process have used, to the nanosecond and up to now.
pub fn cpu_ns(pid: u32) -> io::Result<u64> {
    let mut clock = 0;
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    let error = unsafe { libc::clock_getcpuclockid(pid, &mut clock) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    check(unsafe { libc::clock_gettime(clock, &mut time) })?;
    let (seconds, nanos) = (time.tv_sec.cast_unsigned(), time.tv_nsec.cast_unsigned());
    Ok(seconds * 1_000_000_000 + nanos)
}

extern "C" fn on_tick(_signal: libc::c_int) {}

/// From now on a signal comes every second, so that a read that would wait for ever returns.
pub fn tick() -> io::Result<()> {
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // No SA_RESTART.
    action.sa_sigaction = on_tick as extern "C" fn(libc::c_int) as libc::sighandler_t;
    check(unsafe { libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut()) })?;
    let second = libc::timeval {
        tv_sec: 1,
        tv_usec: 0,
    };
    let timer = libc::itimerval {
        it_interval: second,
        it_value: second,
    };
    check(unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) }).map(drop)
}

/// Puts `fds` at 3, 4, 5, ... of a process that is about to execute a program.
pub fn inherit(fds: &[RawFd]) -> io::Result<()> {
    // Copied out of the way first: one of them may be where another is to go.
    let free = 3 + i32::try_from(fds.len()).map_err(io::Error::other)?;
    let mut copies = [0; 8];
    for (copy, fd) in copies.iter_mut().zip(fds) {
        *copy = check(unsafe { libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, free) })?;
    }
    for (copy, to) in copies.iter().take(fds.len()).zip(3..) {
        check(unsafe { libc::dup2(*copy, to) })?;
    }
    Ok(())
}

/// Sends a signal to a child that was not waited for.
pub fn signal(pid: u32, signal: libc::c_int) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}
