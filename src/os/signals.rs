// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The signals that end the daemon, and the one that prints its counters, as a file that the loop can
//! wait for.
//!
//! `SIGUSR2`, `SIGIO`, `SIGPWR` and `SIGXCPU` are among the former: they would end the process anyway, and
//! leave a chip selected.

use std::fs::File;
use std::io::{self, Read};

use libc::{SIGHUP, SIGINT, SIGIO, SIGPWR, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU, c_int};
use vmm_sys_util::signal::{block_signal, create_sigset, register_signal_handler, unblock_signal};

use crate::os::ffi;

const CAUGHT: [c_int; 9] = [
    SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR2, SIGIO, SIGPWR, SIGXCPU, SIGUSR1,
];

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
        // Its one error for these is that they are blocked already.
        let _ = block_signal(signal);
    }
    for signal in [libc::SIGALRM, libc::SIGBUS] {
        // It has no error for these.
        let _ = unblock_signal(signal);
    }
    handle(libc::SIGXFSZ)?;
    ffi::signal_file(&create_sigset(&CAUGHT)?)
}

/// Makes `signal` neither ignored nor the end of the process.
fn handle(signal: c_int) -> io::Result<()> {
    extern "C" fn nothing(_: c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    Ok(register_signal_handler(signal, nothing)?)
}

/// Takes one signal from the signalfd: its number.
pub fn take(mut signals: &File) -> Option<c_int> {
    let mut siginfo = [0; 128];
    signals.read_exact(&mut siginfo).ok()?;
    // `struct signalfd_siginfo` begins with it.
    siginfo
        .first_chunk()
        .map(|bytes| c_int::from_ne_bytes(*bytes))
}
