//! The signals that end the daemon, as a file that the loop can wait for.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::FromRawFd;
use std::ptr;

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
    }
    let ending = set(&ENDING);
    let alarm = set(&[libc::SIGALRM]);
    // SAFETY: the set is initialised, and no old one is asked for.
    let blocked = unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const ending, ptr::null_mut()) };
    // SAFETY: as above.
    let unblocked =
        unsafe { libc::sigprocmask(libc::SIG_UNBLOCK, &raw const alarm, ptr::null_mut()) };
    if blocked < 0 || unblocked < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the set is initialised, and -1 asks for a new fd.
    let fd = unsafe {
        libc::signalfd(
            -1,
            &raw const ending,
            libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: signalfd() gave this fd to us alone.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn set(signals: &[libc::c_int]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: it is initialised now.
    let mut set = unsafe { set.assume_init() };
    for &signal in signals {
        // SAFETY: the set is initialised and the signal exists.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}
