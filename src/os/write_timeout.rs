//! A tick that interrupts writes which block.
//!
//! Two kinds of writes go to file descriptions that others share and can make blocking at any
//! moment: the front-end's call and err eventfds, and stderr. Asking whether a write would block
//! before making it is a race. So while such writes happen, SIGALRM comes every `TICK_MS`, with
//! a handler that does nothing but be there: a write that waits returns `EINTR`. Without writes
//! the timer disarms itself after one tick, so an idle daemon never wakes up. Once a write was
//! caught waiting, ticks come every `HASTY_MS`: where one front-end is hostile more may be, and
//! all 64 together must not cost a second.
//!
//! Measured alternative: `io_submit()` with `IOCB_FLAG_RESFD` never blocks, at three times the cost
//! of the write.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmm_sys_util::signal::register_signal_handler;

use crate::error::SessionError;
use crate::os::deferred_close::Foreign;

/// Milliseconds between ticks: the longest that the first write can block.
const TICK_MS: u32 = 100;
/// Milliseconds between ticks after that.
const HASTY_MS: u32 = 10;

static INTERVAL_MS: AtomicU32 = AtomicU32::new(TICK_MS);
static ARMED: AtomicBool = AtomicBool::new(false);
static USED: AtomicBool = AtomicBool::new(false);

/// Installs the handler; once, before the first [`arm`].
///
/// # Errors
/// The host refused it.
pub fn install() -> io::Result<()> {
    // Without SA_RESTART: the interrupted write must return.
    register_signal_handler(libc::SIGALRM, on_tick)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// Makes sure that ticks come from now on; to be called before each write that could block.
pub fn arm() {
    USED.store(true, Ordering::Relaxed);
    if !ARMED.swap(true, Ordering::Relaxed) {
        set_timer(INTERVAL_MS.load(Ordering::Relaxed));
    }
}

/// Adds 1 to an eventfd that the front-end shares with us.
///
/// Its file description is the front-end's too: it can fill the counter and clear `O_NONBLOCK` at
/// any time, so the write can block. A tick then interrupts it.
///
/// # Errors
/// It blocked, or what the front-end gave cannot be written to.
pub fn signal(eventfd: &Foreign) -> Result<(), SessionError> {
    arm();
    let Err(error) = eventfd.write(&1u64.to_ne_bytes()) else {
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
pub fn hasten() {
    INTERVAL_MS.store(HASTY_MS, Ordering::Relaxed);
    set_timer(HASTY_MS);
}

/// One atomic swap and at most one system call: safe at any point of the program.
extern "C" fn on_tick(
    _signal: libc::c_int,
    _info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // A write that was armed since the last tick may be waiting: keep ticking.
    if !USED.swap(false, Ordering::Relaxed) {
        ARMED.store(false, Ordering::Relaxed);
        set_timer(0);
    }
}

fn set_timer(ms: u32) {
    let interval = libc::timeval {
        tv_sec: 0,
        tv_usec: ms.saturating_mul(1000).into(),
    };
    let timer = libc::itimerval {
        it_interval: interval,
        it_value: interval,
    };
    // SAFETY: `timer` is readable, and no old value is asked for. It cannot fail with valid times.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, ptr::null_mut()) };
}
