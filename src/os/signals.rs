// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The signals that end the daemon, and the one that prints its counters, as a file that the loop can
//! wait for.

use std::fs::File;
use std::io::{self, Read};

use vmm_sys_util::signal::{
    Error, block_signal, create_sigset, register_signal_handler, unblock_signal,
};

use crate::os::ffi;

const CAUGHT: [libc::c_int; 5] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
];

/// The action that a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalAction {
    /// The end.
    End,
    /// The counters.
    Report,
}

/// Blocks these signals and returns a signalfd for them: from here on none is lost, and none
/// interrupts anything. SIGALRM, the write time-out's, and SIGBUS are unblocked even if they were
/// inherited as blocked. A file on stderr that may not grow further costs its lines, not the process
/// (SIGXFSZ).
///
/// # Errors
/// The kernel's.
pub fn catch() -> io::Result<File> {
    for signal in CAUGHT {
        // Shells start background jobs with SIGINT and SIGQUIT ignored, and a signal that is ignored
        // reaches no signalfd; one that is blocked reaches no handler.
        handle(signal)?;
        match block_signal(signal) {
            Ok(()) | Err(Error::SignalAlreadyBlocked(_)) => (),
            Err(error) => return Err(other(&error)),
        }
    }
    for signal in [libc::SIGALRM, libc::SIGBUS] {
        unblock_signal(signal).map_err(|error| other(&error))?;
    }
    handle(libc::SIGXFSZ)?;
    let caught =
        create_sigset(&CAUGHT).map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    ffi::signal_file(&caught)
}

/// Makes `signal` neither ignored nor the end of the process.
fn handle(signal: libc::c_int) -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(signal, nothing)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// Takes one signal from the signalfd; returns the action that it asks for.
pub fn take(mut signals: &File) -> Option<SignalAction> {
    // `struct signalfd_siginfo` begins with the signal's number.
    let mut siginfo = [0; 128];
    signals.read_exact(&mut siginfo).ok()?;
    let number = siginfo
        .first_chunk()
        .map(|bytes| u32::from_ne_bytes(*bytes))?;
    let report = libc::c_int::try_from(number) == Ok(libc::SIGUSR1);
    Some(if report {
        SignalAction::Report
    } else {
        SignalAction::End
    })
}

fn other(error: &Error) -> io::Error {
    io::Error::other(format!("{error:?}"))
}
