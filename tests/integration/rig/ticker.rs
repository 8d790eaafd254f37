// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The interval timer of the program under test, run by the rig.
//!
//! A user notification that nobody has received yet is interrupted by a signal with EINTR; the ioctl of the real spidev
//! never is. A program that uses SIGALRM would meet that once in some ten thousand calls. So its ITIMER_REAL is
//! kept here: the signal is sent where the kernel's would have the same effect and that one not: while a call is being
//! answered (it is seen when the call returns), and while another call blocks.

use super::notify::{Answer, Call};
use super::sys;
use std::fs;
use std::time::{Duration, Instant};

/// `epoll_wait`, which newer architectures do not have.
const EPOLL_WAIT: i64 = 232;

/// What is armed.
#[derive(Default)]
pub struct Ticker {
    process: u32,
    /// When the next signal is due, and the interval; one without interval is due once.
    next: Option<(Instant, Duration)>,
}

impl Ticker {
    /// setitimer(ITIMER_REAL): armed or disarmed here. Any other use goes to the kernel.
    pub fn set(&mut self, call: &Call) -> Answer {
        let mut raw = [0; 32];
        let [which, new, old, ..] = call.args;
        if which != libc::ITIMER_REAL as u64
            || old != 0
            || !sys::read_memory(call.tid, new, &mut raw)
        {
            return Answer::Continue;
        }
        let number = |at: usize| u64::from_ne_bytes(raw[at..at + 8].try_into().unwrap());
        let time =
            |at: usize| Duration::from_secs(number(at)) + Duration::from_micros(number(at + 8));
        let (interval, first) = (time(0), time(16));
        self.process = call.tid;
        self.next = (!first.is_zero()).then(|| (Instant::now() + first, interval));
        Answer::Return(0)
    }

    /// Milliseconds until the program is to be looked at, for poll(2).
    pub fn patience(&self) -> i32 {
        match self.next {
            // When it is due but the program is not where it may be sent, a look now and then is enough.
            Some((at, _)) => at
                .saturating_duration_since(Instant::now())
                .as_millis()
                .clamp(5, 60_000) as i32,
            None => -1,
        }
    }

    /// Sends the signal if its time has come; to be called while a call is being answered.
    pub fn tick_if_due(&mut self) {
        let now = Instant::now();
        if let Some((_, interval)) = self.next.take_if(|(at, _)| *at <= now) {
            unsafe { libc::kill(self.process as i32, libc::SIGALRM) };
            self.next = (!interval.is_zero()).then(|| (now + interval, interval));
        }
    }

    /// The same while no call is being answered: only if the program sleeps in one that is not ours to answer.
    pub fn tick_if_blocked(&mut self) {
        let Some((at, interval)) = self.next else {
            return;
        };
        let state =
            fs::read_to_string(format!("/proc/{}/syscall", self.process)).unwrap_or_default();
        let Some(nr) = state
            .split(' ')
            .next()
            .and_then(|nr| nr.parse::<i64>().ok())
        else {
            return;
        };
        let idle = nr == libc::SYS_epoll_pwait || cfg!(target_arch = "x86_64") && nr == EPOLL_WAIT;
        // From the wait for events it may wake and make a call of ours in the next microsecond: only a long wait counts.
        if nr != libc::SYS_ioctl && (!idle || Instant::now() > at + 2 * interval) {
            self.tick_if_due();
        }
    }
}
