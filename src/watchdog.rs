//! A tick that interrupts writes which block.
//!
//! Two kinds of writes go to file descriptions that others share and can make blocking at any
//! moment: the front-end's call and err eventfds, and stderr. Asking whether a write would block
//! before making it is a race. So while such writes happen, SIGALRM comes every `TICK_MS`, with
//! a handler that does nothing but be there: a write that waits returns `EINTR`. Without writes
//! the timer disarms itself after one tick, so an idle daemon never wakes up.
//!
//! Measured alternative: `io_submit()` with `IOCB_FLAG_RESFD` never blocks, at three times the cost
//! of the write.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

/// Milliseconds between ticks: the longest that one guest's write can block.
pub const TICK_MS: u32 = 100;

static ARMED: AtomicBool = AtomicBool::new(false);
static USED: AtomicBool = AtomicBool::new(false);

/// Installs the handler; once, before the first [`arm`].
///
/// # Errors
/// The host refused it.
pub fn install() -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid `sigaction`: no handler, empty mask, no flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // No SA_RESTART: the interrupted write must return.
    let handler: extern "C" fn(libc::c_int) = on_tick;
    #[expect(
        clippy::as_conversions,
        reason = "sigaction takes the handler as a number"
    )]
    let handler = handler as libc::sighandler_t;
    action.sa_sigaction = handler;
    // SAFETY: `action` is initialised, and its handler only does what a signal handler may.
    let result = unsafe { libc::sigaction(libc::SIGALRM, &raw const action, ptr::null_mut()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes sure that ticks come from now on; to be called before each write that could block.
pub fn arm() {
    USED.store(true, Ordering::Relaxed);
    if !ARMED.swap(true, Ordering::Relaxed) {
        set_timer(TICK_MS);
    }
}

/// One atomic swap and at most one system call: safe at any point of the program.
extern "C" fn on_tick(_signal: libc::c_int) {
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
