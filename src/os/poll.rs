//! Whether something is true of an fd at this moment.

use std::os::fd::RawFd;

/// Whether `event`, such as `POLLOUT`, is there on `fd` now.
pub fn shows(fd: RawFd, event: libc::c_short) -> bool {
    let mut asked = libc::pollfd {
        fd,
        events: event,
        revents: 0,
    };
    let at_once = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // Not poll(): stopped or frozen within it, the kernel goes on by restart_syscall(), even where
    // nothing is waited for.
    // SAFETY: one pollfd and the time-out, both alive; no signal mask is asked for.
    let ready = unsafe { libc::ppoll(&raw mut asked, 1, &raw const at_once, std::ptr::null()) };
    ready > 0 && asked.revents & event != 0
}
