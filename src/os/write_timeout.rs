// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A periodic signal (a tick) that interrupts writes which block.
//!
//! Two kinds of writes go to file descriptions that others share and can make blocking at any
//! moment: the front-end's call and err eventfds, and stderr. Asking whether a write would block
//! before making it is a race. So while such writes happen, SIGALRM comes every `TICK_MS`,
//! whose handler need do nothing for that: a write that waits returns `EINTR`. A tick never disarms the timer
//! while a write is being made: a daemon that lost the CPU before the write still has its tick. The second tick without a write disarms it, so that an idle daemon never wakes up, and
//! a busy one makes no system call for it. After a write was once interrupted, ticks come every
//! `SHORT_TICK_MS`: other front-ends may be hostile, too, and all 64 together must not cost more than a
//! second.
//!
//! Measured alternative: `io_submit()` with `IOCB_FLAG_RESFD` never blocks, at three times the cost
//! of the write.

use std::io;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use vmm_sys_util::signal::register_signal_handler;

use crate::error::SessionError;
use crate::os::deferred_close::FrontendFile;
use crate::os::ffi::set_interval_timer;

/// Milliseconds between ticks: the longest that the first write can block.
const TICK_MS: u32 = 100;
/// Milliseconds between ticks after a write blocked.
const SHORT_TICK_MS: u32 = 10;

// Statics: the signal handler uses `WRITES`, and `bounded()`, which the panic hook's line needs, uses both.

static INTERVAL_MS: AtomicU32 = AtomicU32::new(TICK_MS);
/// One of the four below: from this the next tick decides whether ticks go on.
static WRITES: AtomicU8 = AtomicU8::new(OFF);

/// No tick comes: the timer is not armed.
const OFF: u8 = 0;
/// No write since the last tick.
const IDLE: u8 = 1;
/// A write was made since the last tick.
const WRITTEN: u8 = 2;
/// A write is being made.
const WRITING: u8 = 3;

/// Installs the handler; once, before the first [`bounded`] write.
///
/// # Errors
/// The host refused it.
pub fn install() -> io::Result<()> {
    // Without SA_RESTART: the interrupted write must return.
    Ok(register_signal_handler(libc::SIGALRM, on_tick)?)
}

/// Makes a write that could block, and makes sure that ticks come until it is over.
#[inline]
pub fn bounded<T>(write: impl FnOnce() -> T) -> T {
    // Whatever a unit test calls may write, and a tick without the handler would end the program.
    #[cfg(test)]
    install().unwrap();
    if WRITES.swap(WRITING, Ordering::Relaxed) == OFF {
        set_interval_timer(INTERVAL_MS.load(Ordering::Relaxed));
    }
    let result = write();
    WRITES.store(WRITTEN, Ordering::Relaxed);
    result
}

/// Adds 1 to an eventfd that the front-end shares with us.
///
/// Its file description is the front-end's too: it can fill the counter and clear `O_NONBLOCK` at
/// any time, so the write can block. A tick then interrupts it.
///
/// # Errors
/// It blocked, or the front-end's fd cannot be written to.
#[inline]
pub fn signal_eventfd(eventfd: &FrontendFile) -> Result<(), SessionError> {
    let Err(error) = bounded(|| eventfd.write(&1u64.to_ne_bytes())) else {
        return Ok(());
    };
    match error.raw_os_error() {
        // A full counter is a notification that is still to be read.
        Some(libc::EAGAIN) => Ok(()),
        // An eventfd that has room is written without waiting: only one that blocked is interrupted.
        Some(libc::EINTR) => Err(SessionError::CallBlocked),
        Some(_) | None => Err(SessionError::NotNotified(error)),
    }
}

/// Shortens the ticks for good: a write was caught waiting.
pub fn shorten() {
    INTERVAL_MS.store(SHORT_TICK_MS, Ordering::Relaxed);
    set_interval_timer(SHORT_TICK_MS);
}

/// Atomics and at most one system call: safe at any point of the program.
extern "C" fn on_tick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    match WRITES.load(Ordering::Relaxed) {
        WRITING => (),
        WRITTEN => WRITES.store(IDLE, Ordering::Relaxed),
        _ => {
            WRITES.store(OFF, Ordering::Relaxed);
            set_interval_timer(0);
        }
    }
}

#[cfg(test)]
#[allow(unsafe_code, reason = "UNSAFETY: raise and getitimer")]
mod tests {
    use super::*;
    use std::process::Command;

    const ALONE: &str = "WRITE_TIMEOUT_ALONE";

    fn tick() {
        // SAFETY: `bounded` installed the handler, which is called in this thread, before this returns.
        unsafe { libc::raise(libc::SIGALRM) };
    }

    fn is_armed() -> bool {
        // SAFETY: plain data, for which zeros are valid.
        let mut timer: libc::itimerval = unsafe { std::mem::zeroed() };
        // SAFETY: `timer` is writable.
        unsafe { libc::getitimer(libc::ITIMER_REAL, &raw mut timer) };
        timer.it_interval.tv_usec > 0
    }

    #[test]
    fn write_timeout_two_ticks_before_the_write_leave_the_timer_armed() {
        // Timer and state are the process's, in which other tests write: this one runs alone.
        if std::env::var_os(ALONE).is_none() {
            let name = "os::write_timeout::tests::write_timeout_two_ticks_before_the_write_leave_the_timer_armed";
            let status = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name, "--test-threads=1"])
                .env(ALONE, "1")
                .status()
                .unwrap();
            assert!(status.success());
            return;
        }
        bounded(|| {
            tick();
            tick();
            assert!(is_armed());
        });
        // The first of the ticks after it, which the timer may have made, still counts the write.
        while is_armed() {
            tick();
        }
        assert_eq!(WRITES.load(Ordering::Relaxed), OFF);
        bounded(|| assert!(is_armed()));
    }
}
