// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the daemon has of the machine.

use crate::rig::Daemon;
use std::fmt;
use std::time::Duration;

/// What anonymous memory may have grown by after the warming up, in kB: pages of stack, heap and data that are touched
/// for the first time. Measured are 0 to 8; in an hour on a busy machine 36 in the first nine minutes and none in the
/// other fifty-one. 64 bytes lost with each connection are 28 in eight seconds.
const ALLOWANCE_KB: u64 = 16;

pub struct Figures {
    pub fds: usize,
    mappings: usize,
    threads: usize,
    /// Told and not judged: pages of a program that was just built count while they are not on the disk yet.
    private_kb: u64,
    anonymous_kb: u64,
}

impl Figures {
    pub fn of(daemon: &Daemon) -> Self {
        Self {
            fds: daemon.fd_count(),
            mappings: daemon.mapping_count(),
            threads: daemon.thread_count(),
            private_kb: daemon.private_dirty_kb(),
            anonymous_kb: daemon.rss_kb(),
        }
    }

    /// Asserts that nothing is more than at the start, but for memory that was there after the warming up.
    pub fn assert_like(&self, start: &Self, warm: &Self) {
        let counts = |figures: &Self| (figures.fds, figures.mappings, figures.threads);
        assert_eq!(
            counts(self),
            counts(start),
            "fds, mappings and threads as at the start"
        );
        let (now, before) = (self.anonymous_kb, warm.anonymous_kb);
        assert!(
            now <= before + ALLOWANCE_KB,
            "{now} kB, {before} kB after the warming up"
        );
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            fds,
            mappings,
            threads,
            private_kb,
            anonymous_kb,
        } = self;
        write!(
            f,
            "{fds} fds, {mappings} mappings, {threads} threads, {private_kb} kB private dirty, {anonymous_kb} kB anonymous"
        )
    }
}

/// Asserts that a second in which nothing happens costs no processor time.
pub fn assert_no_cpu_time(daemon: &Daemon) {
    // The last penalties and time-outs are over by then.
    std::thread::sleep(Duration::from_millis(1500));
    let before = daemon.cpu_time();
    std::thread::sleep(Duration::from_secs(1));
    // Two clock ticks: the resolution of the counter.
    assert!(
        daemon.cpu_time() - before <= Duration::from_millis(20),
        "an idle daemon uses the processor"
    );
}
