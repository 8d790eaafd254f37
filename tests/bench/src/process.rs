// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What `/proc` says about a process.

use std::fs;
use std::io;

use crate::sys;

/// A process of another program.
#[derive(Debug, Clone, Copy)]
pub struct Process(pub u32);

/// What a process has used so far.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    pub cpu_ns: u64,
    pub switches: u64,
}

/// Memory in KiB, without what is not the program's own: guest memory and preloaded libraries.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    pub rss: u64,
    pub pss: u64,
    /// Read from a file that nobody else has mapped, such as its code.
    pub private_clean: u64,
    /// Written: what it really takes from the host.
    pub private_dirty: u64,
}

impl Process {
    fn threads(self) -> io::Result<Vec<i32>> {
        let entries = fs::read_dir(format!("/proc/{}/task", self.0))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.filter_map(|name| name.parse().ok()).collect())
    }

    /// How many threads it has.
    pub fn thread_count(self) -> io::Result<usize> {
        self.threads().map(|threads| threads.len())
    }

    /// Has all of its threads, and those that they start, run on `cpu` only.
    pub fn pin(self, cpu: usize) -> io::Result<()> {
        for thread in self.threads()? {
            // One that has just ended needs no CPU.
            let _ = sys::pin(thread, cpu);
        }
        Ok(())
    }

    /// Has all of its threads, and those that they start, go before whatever is not real-time, and
    /// before what has a lower `priority` (`SCHED_FIFO`).
    pub fn set_fifo(self, priority: i32) -> io::Result<()> {
        let mut threads = self.threads()?.into_iter();
        threads.try_for_each(|thread| sys::set_fifo(thread, priority))
    }

    /// What it has used so far. A thread that ends takes its switches with it.
    pub fn usage(self) -> io::Result<Usage> {
        let mut switches = 0;
        for thread in self.threads()? {
            let path = format!("/proc/{}/task/{thread}/status", self.0);
            let text = fs::read_to_string(path).unwrap_or_default();
            let lines = text.lines().filter(|line| line.contains("ctxt_switches:"));
            switches += lines.filter_map(number).sum::<u64>();
        }
        let cpu_ns = sys::cpu_ns(self.0)?;
        Ok(Usage { cpu_ns, switches })
    }

    /// Its memory, but for mappings of files whose path contains one of `without`.
    pub fn memory(self, without: &[&str]) -> io::Result<Memory> {
        let text = fs::read_to_string(format!("/proc/{}/smaps", self.0))?;
        let mut memory = Memory::default();
        // Where the last mapping that does not count ends: what follows without a name is its .bss.
        let (mut counts, mut behind) = (true, "");
        for line in text.lines() {
            let Some((name, _)) = line.split_once(": ") else {
                // A mapping begins: its line has addresses in front and the path at the end.
                if let Some((start, rest)) = line.split_once('-') {
                    let is_bss = start == behind && line.split_whitespace().nth(5).is_none();
                    counts = !is_bss && !without.iter().any(|path| line.contains(path));
                    let mut words = rest.split_whitespace();
                    let end = words.next().unwrap_or_default();
                    // A library's; guest memory is shared.
                    let is_private = words.next().is_some_and(|rights| rights.ends_with('p'));
                    behind = if counts || !is_private { "" } else { end };
                }
                continue;
            };
            let kib = number(line).unwrap_or(0);
            match name {
                "Rss" if counts => memory.rss += kib,
                "Pss" if counts => memory.pss += kib,
                "Private_Clean" if counts => memory.private_clean += kib,
                "Private_Dirty" if counts => memory.private_dirty += kib,
                _ => (),
            }
        }
        Ok(memory)
    }
}

/// The number behind the name in a line of `/proc`.
fn number(line: &str) -> Option<u64> {
    line.split_whitespace().nth(1)?.parse().ok()
}
