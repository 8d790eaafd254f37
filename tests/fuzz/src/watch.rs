// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Ends the process where an input hangs. libFuzzer has a timer for that, but it is the daemon's:
//! there is one for each process.

use std::io;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use vhost_device_spi::os::write_timeout;
use vhost_device_spi::virtqueue::sigbus;

/// Longer than anything that an input may take.
const TOO_LONG: Duration = Duration::from_secs(20);

/// Odd while an input runs.
static RUNS: AtomicU64 = AtomicU64::new(0);
static PREPARED: Once = Once::new();

/// An input that runs.
#[derive(Debug)]
pub struct Running(());

impl Drop for Running {
    fn drop(&mut self) {
        RUNS.fetch_add(1, Ordering::Relaxed);
    }
}

/// An input begins. The first one installs the daemon's signal handlers.
pub fn begin() -> Running {
    PREPARED.call_once(|| {
        write_timeout::install().unwrap();
        sigbus::install().unwrap();
        block_alarm(libc::SIG_BLOCK);
        std::thread::spawn(watch);
        block_alarm(libc::SIG_UNBLOCK);
    });
    RUNS.fetch_add(1, Ordering::Relaxed);
    Running(())
}

/// The tick must interrupt the thread that serves, not the one that watches: threads begin with
/// the mask of who starts them.
fn block_alarm(how: libc::c_int) {
    // SAFETY: all-zero bytes are a valid `sigset_t`.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is initialised, and SIGALRM is a signal.
    unsafe { libc::sigaddset(&raw mut set, libc::SIGALRM) };
    // SAFETY: `set` is initialised, and the old mask is not asked for.
    let result = unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

fn watch() {
    loop {
        let before = RUNS.load(Ordering::Relaxed);
        std::thread::sleep(TOO_LONG);
        if before % 2 == 1 && RUNS.load(Ordering::Relaxed) == before {
            eprintln!("an input has run for {TOO_LONG:?}");
            std::process::abort();
        }
    }
}
