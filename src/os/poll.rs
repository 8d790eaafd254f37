//! Whether something is true of an fd at this moment.

use std::os::fd::RawFd;

use crate::os::ffi;

/// Whether `event`, such as `POLLOUT`, is there on `fd` now.
pub fn shows(fd: RawFd, event: libc::c_short) -> bool {
    ffi::is_ready(fd, event)
}
