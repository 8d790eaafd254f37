//! Lines on stderr.
//!
//! A line is written whole or not at all, never waits, and is cut at 512 bytes. What a guest or
//! front-end can cause goes through a [`Limiter`] of its own, which counts what it drops.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use crate::watchdog;

const LINE_LEN: usize = 512;
const PREFIX: &str = "vhost-device-spi: ";

struct Line {
    bytes: [u8; LINE_LEN],
    len: usize,
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // The last place is the newline's.
            let Some(slot) = self
                .bytes
                .get_mut(self.len)
                .filter(|_| self.len < LINE_LEN - 1)
            else {
                break;
            };
            // A name from the command line must not make two lines of one.
            *slot = if byte.is_ascii_control() { b'?' } else { byte };
            self.len = self.len.saturating_add(1);
        }
        Ok(())
    }
}

/// Writes one line.
pub fn line(text: fmt::Arguments<'_>) {
    let mut line = Line {
        bytes: [0; LINE_LEN],
        len: 0,
    };
    let _ = write!(line, "{PREFIX}{text}");
    if let Some(slot) = line.bytes.get_mut(line.len) {
        *slot = b'\n';
        line.len = line.len.saturating_add(1);
    }
    if !is_writable() {
        return;
    }
    // Somebody else may fill it before us: then the watchdog ends the wait.
    watchdog::arm();
    // Once, whatever comes of it: a failure costs the line alone.
    let _ = io::stderr().write(line.bytes.get(..line.len).unwrap_or_default());
}

fn is_writable() -> bool {
    let mut fd = libc::pollfd {
        fd: libc::STDERR_FILENO,
        events: libc::POLLOUT,
        revents: 0,
    };
    let at_once = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // Not poll(): stopped or frozen within it, the kernel goes on by restart_syscall(), even where
    // nothing is waited for.
    // SAFETY: one pollfd and the time-out, both alive; no signal mask is asked for.
    let ready = unsafe { libc::ppoll(&raw mut fd, 1, &raw const at_once, std::ptr::null()) };
    ready > 0 && fd.revents & libc::POLLOUT != 0
}

/// Lets through ten lines in ten seconds.
#[derive(Debug, Default)]
pub struct Limiter {
    window: Option<Instant>,
    written: u32,
    dropped: u64,
}

impl Limiter {
    const LINES: u32 = 10;
    const WINDOW: Duration = Duration::from_secs(10);

    /// Writes a line about `guest`, or counts it.
    pub fn line(&mut self, guest: usize, text: fmt::Arguments<'_>) {
        let now = Instant::now();
        let fresh = self
            .window
            .is_none_or(|start| now.saturating_duration_since(start) >= Self::WINDOW);
        if fresh {
            self.window = Some(now);
            self.written = 0;
            if self.dropped > 0 {
                let dropped = std::mem::take(&mut self.dropped);
                line(format_args!("guest {guest}: {dropped} lines were dropped"));
            }
        }
        if self.written < Self::LINES {
            self.written = self.written.saturating_add(1);
            line(format_args!("guest {guest}: {text}"));
        } else {
            self.dropped = self.dropped.saturating_add(1);
        }
    }
}
