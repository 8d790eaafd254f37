//! The signals that end the daemon, as a file that the loop can wait for.

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;

use vmm_sys_util::signal::{Error, block_signal, create_sigset, unblock_signal};

const ENDING: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// Blocks the ending signals and gives a signalfd for them: from here on none is lost, and none
/// interrupts anything. SIGALRM, the watchdog's, is unblocked whatever was inherited.
///
/// # Errors
/// The kernel's.
pub fn catch() -> io::Result<File> {
    for signal in ENDING {
        // Shells start background jobs with SIGINT and SIGQUIT ignored, and an ignored signal
        // reaches no signalfd.
        // SAFETY: SIG_DFL is a valid disposition of these signals.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        match block_signal(signal) {
            Ok(()) | Err(Error::SignalAlreadyBlocked(_)) => (),
            Err(error) => return Err(other(&error)),
        }
    }
    unblock_signal(libc::SIGALRM).map_err(|error| other(&error))?;
    let ending =
        create_sigset(&ENDING).map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the set is initialised, and -1 asks for a new fd.
    let fd = unsafe { libc::signalfd(-1, &raw const ending, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: signalfd() gave this fd to us alone.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn other(error: &Error) -> io::Error {
    io::Error::other(format!("{error:?}"))
}
