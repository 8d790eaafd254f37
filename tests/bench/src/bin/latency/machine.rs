// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the machine takes away: threads that go before everybody wake up twice a millisecond on each
//! CPU and note when they are late.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use bench::sys;

/// They go before the daemon and the measured guest.
const PRIORITY: i32 = 70;
const PERIOD_NS: u64 = 500_000;
/// Waking up takes this long on a machine of one's own.
const USUAL_NS: u64 = 50_000;

/// A time in which a CPU did not do what it should: from when until when, in ns.
#[derive(Debug, Clone, Copy)]
pub struct Away {
    pub from: u64,
    pub until: u64,
}

/// A thread on each of the CPUs.
pub struct Watch {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<std::io::Result<Vec<Away>>>>,
}

impl Watch {
    pub fn start(cpus: &[usize]) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let thread = |&cpu: &usize| {
            let over = over.clone();
            std::thread::spawn(move || watch(cpu, &over))
        };
        Self {
            threads: cpus.iter().map(thread).collect(),
            over: over.clone(),
        }
    }

    /// What was noted, for each CPU.
    pub fn end(self) -> std::io::Result<Vec<Vec<Away>>> {
        self.over.store(true, Ordering::Relaxed);
        let threads = self.threads.into_iter();
        threads
            .map(|thread| {
                thread
                    .join()
                    .map_err(|_| std::io::Error::other("a thread"))?
            })
            .collect()
    }
}

fn watch(cpu: usize, over: &AtomicBool) -> std::io::Result<Vec<Away>> {
    sys::pin(0, cpu)?;
    sys::set_fifo(0, PRIORITY)?;
    let mut all = Vec::with_capacity(1 << 16);
    let mut due = sys::now_ns() + PERIOD_NS;
    while !over.load(Ordering::Relaxed) {
        sys::sleep_until(due);
        let now = sys::now_ns();
        if now > due + USUAL_NS {
            // It may have begun right after the last look.
            let from = due - PERIOD_NS;
            all.push(Away { from, until: now });
        }
        due = (due + PERIOD_NS).max(now);
    }
    Ok(all)
}

/// How much of the time between two moments was taken away on a CPU.
pub fn taken_ns(all: &[Away], from: u64, until: u64) -> u64 {
    let first = all.partition_point(|away| away.until <= from);
    let within = all[first..].iter().take_while(|away| away.from < until);
    within
        .map(|away| away.until.min(until) - away.from.max(from))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taken_is_what_lies_between_the_moments() {
        let away = |from, until| Away { from, until };
        let all = [away(10, 20), away(30, 50), away(60, 61)];
        assert_eq!(taken_ns(&all, 0, 5), 0);
        assert_eq!(taken_ns(&all, 0, 100), 31);
        assert_eq!(taken_ns(&all, 15, 35), 10);
        assert_eq!(taken_ns(&all, 35, 40), 5);
    }
}
