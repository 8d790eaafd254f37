// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The one timer that wakes the loop for its next deadline.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

/// The timer.
#[derive(Debug)]
pub struct DeadlineTimer {
    timer: TimerFd,
    /// When it will go off.
    at: Option<Instant>,
}

impl DeadlineTimer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> io::Result<Self> {
        let timer = TimerFd::new()?;
        Ok(Self { timer, at: None })
    }

    /// The fd that is readable when it went off.
    pub fn fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Lets it go off at `at`, or earlier: it is never put off, since an early look costs less than a
    /// system call for each change.
    pub fn set(&mut self, at: Instant) {
        if self.at.is_some_and(|set| set <= at) {
            return;
        }
        // Zero would disarm it.
        let shortest = Duration::from_nanos(1);
        let wait = at.saturating_duration_since(Instant::now()).max(shortest);
        self.at = self.timer.reset(wait, None).ok().map(|()| at);
    }

    /// It went off.
    pub fn went_off(&mut self) {
        self.at = None;
    }
}
