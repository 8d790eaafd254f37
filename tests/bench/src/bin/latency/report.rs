// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The tables.

use std::fmt::{self, Write};

use crate::bound::{MAX_TRANSFER_LEN, MAX_TRANSFER_MS, bound_ns};
use crate::cases::Case;
use crate::measure::{Distribution, Sharing};

/// One daemon in one case.
pub struct Row {
    pub case: &'static Case,
    pub is_ours: bool,
    /// Or why there is nothing.
    pub measured: Result<Distribution, String>,
}

/// All that was measured with the machine shared in one way.
pub struct Table {
    pub sharing: Sharing,
    pub rows: Vec<Row>,
}

impl fmt::Display for Sharing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = if self.fifo {
            "daemon with SCHED_FIFO"
        } else {
            "daemon without SCHED_FIFO"
        };
        let load = if self.load { "CPUs loaded" } else { "no load" };
        write!(f, "{policy}, {load}")
    }
}

impl Table {
    /// Whether what must keep its bound does.
    pub fn is_good(&self) -> bool {
        self.rows
            .iter()
            .all(|row| row.verdict(self.sharing) != Verdict::Above)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The bound holds.
    Within,
    Above,
    /// No bound is stated.
    None,
}

impl Row {
    fn verdict(&self, sharing: Sharing) -> Verdict {
        match &self.measured {
            _ if !self.is_ours || !sharing.fifo => Verdict::None,
            Ok(measured) if measured.net_max <= bound_ns(self.case) as f64 => Verdict::Within,
            Ok(_) | Err(_) => Verdict::Above,
        }
    }
}

/// Everything, as text.
pub fn report(tables: &[Table]) -> Result<String, fmt::Error> {
    let mut text = String::new();
    writeln!(
        text,
        "# A request each millisecond: how long until it was completed\n"
    )?;
    writeln!(
        text,
        "Milliseconds. 16 bytes at 10 MHz; `--max-transfer-ms={MAX_TRANSFER_MS} \
         --max-transfer-len={MAX_TRANSFER_LEN}`. `net` is the maximum without what the machine took \
         away of each request, as threads saw it that go before everybody."
    )?;
    for table in tables {
        write_table(&mut text, table)?;
    }
    Ok(text)
}

fn write_table(text: &mut String, table: &Table) -> fmt::Result {
    writeln!(text, "\n## {}\n", table.sharing)?;
    let titles = [
        "beside it",
        "requests",
        "p50",
        "p99",
        "p99.9",
        "max",
        "net",
        "bound",
        "",
    ];
    writeln!(text, "| {} |\n|{}", titles.join(" | "), "---|".repeat(9))?;
    for row in &table.rows {
        let published = if row.is_ours { "" } else { "(0.1.0) " };
        write!(text, "| {published}{} ", row.case.name)?;
        match &row.measured {
            Ok(measured) => {
                write!(text, "| {} ", measured.all.len())?;
                let Distribution {
                    p50,
                    p99,
                    p999,
                    max,
                    net_max,
                    ..
                } = *measured;
                for ns in [p50, p99, p999, max, net_max] {
                    write!(text, "| {:.3} ", ns / 1e6)?;
                }
            }
            Err(why) => write!(text, "| - | | | | {why} | ")?,
        }
        let bound = bound_ns(row.case) as f64 / 1e6;
        match row.verdict(table.sharing) {
            Verdict::Within => writeln!(text, "| {bound:.1} | |")?,
            Verdict::Above => writeln!(text, "| {bound:.1} | **above** |")?,
            Verdict::None => writeln!(text, "| - | |")?,
        }
    }
    Ok(())
}
