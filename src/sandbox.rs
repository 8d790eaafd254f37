//! The stages of confinement, between the last file opened and the first byte from a front-end.

use std::io;

use crate::config::SeccompMode;
use crate::fate::{ExitCode, Fatal};
use crate::log;
use crate::seccomp;

/// Raises the number of fds to what the host allows: 64 guests with 32 regions each need more than
/// the usual 1,024, and one guest's need must not become another's lack.
pub fn raise_fd_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` has room for the result.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0 {
        limit.rlim_cur = limit.rlim_max;
        // Where it is refused, what there is has to do.
        // SAFETY: `limit` is initialised.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
}

/// Takes from the process what it needs no longer.
///
/// Should: leave everything on that `mode` does not turn off. Must not: open anything.
///
/// # Errors
/// The kernel refused a stage.
pub fn restrict(mode: SeccompMode) -> Result<(), Fatal> {
    let failed = |stage: &str, error: &io::Error| Fatal::os(ExitCode::OsError, stage, error);
    // Nothing that is executed could gain rights; seccomp asks for it.
    // SAFETY: no pointers.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } < 0 {
        return Err(failed("no_new_privs", &io::Error::last_os_error()));
    }
    match mode {
        SeccompMode::Kill => (),
        SeccompMode::Log => {
            log::line(format_args!(
                "warning: --seccomp=log only logs what is not allowed"
            ));
        }
        SeccompMode::None => log::line(format_args!("warning: --seccomp=none, no filter")),
    }
    seccomp::install(mode).map_err(|error| failed("seccomp", &error))
}
