// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is counted, in runs of their own: system calls by `strace`, allocations by a library.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

use crate::guest::{Failure, Guest, Work};
use crate::point::LARGE_BUFSIZ;
use crate::program::{Bench, Contender, Daemon, Served, Setting, floor};
use crate::sys;

/// Requests that are counted.
const REQUESTS: u32 = 3200;
/// Counts of one contender doing one kind of work, each by request.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    pub calls: f64,
    /// By name.
    pub by_name: BTreeMap<String, f64>,
    /// Not counted for the floor, which has no allocator in its loop.
    pub allocations: Option<f64>,
}

fn batches(guest: &mut Guest) -> Result<f64, Failure> {
    let depth = u32::from(guest.work.depth);
    for _ in 0..REQUESTS / depth {
        guest.batch()?;
    }
    Ok(f64::from(REQUESTS))
}

/// Counts system calls and allocations of `contender`.
pub fn count(bench: &Bench, contender: &Contender, work: Work) -> Result<Counts, Failure> {
    let setting = Setting {
        sockets: 1,
        bufsiz: LARGE_BUFSIZ,
    };
    let mut daemon = None;
    let mut served = if contender.is_floor {
        floor(bench, contender, setting.bufsiz, work)?
    } else {
        daemon
            .insert(Daemon::spawn(bench, contender, setting, None)?)
            .serve(0, work)?
    };
    let mut counts = system_calls(bench, &mut served)?;
    drop((served, daemon));
    if !contender.is_floor {
        counts.allocations = Some(allocations(bench, contender, setting, work)?);
    }
    Ok(counts)
}

fn system_calls(bench: &Bench, served: &mut Served) -> Result<Counts, Failure> {
    let path = bench.directory.join("calls");
    let mut strace = Command::new("strace")
        .args(["-f", "-c", "-p", &served.process.0.to_string(), "-o"])
        .arg(&path)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    // Kept: strace says when it goes, too.
    let _messages = wait_for_attach(&mut strace)?;
    let requests = batches(&mut served.guest);
    // As the terminal would: it detaches and writes its summary.
    sys::signal(strace.id(), libc::SIGINT)?;
    strace.wait()?;
    parse_summary(&path, requests?)
}

/// strace says so when it has attached to all threads.
fn wait_for_attach(strace: &mut Child) -> Result<BufReader<ChildStderr>, Failure> {
    let stderr = strace.stderr.take().ok_or(Failure::Wrong("no stderr"))?;
    let mut line = String::new();
    // `read_line` tries again when the tick interrupts it.
    let mut messages = BufReader::new(stderr);
    messages.read_line(&mut line)?;
    if !line.contains("attached") {
        return Err(Failure::Wrong("strace did not attach"));
    }
    Ok(messages)
}

/// The table of `strace -c`: share, seconds, microseconds, calls, errors if any, name.
fn parse_summary(path: &Path, requests: f64) -> Result<Counts, Failure> {
    let mut counts = Counts::default();
    for line in std::fs::read_to_string(path)?.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (Some(calls), Some(name)) = (words.get(3), words.last()) else {
            continue;
        };
        let Ok(calls) = calls.parse::<f64>() else {
            continue;
        };
        if *name != "total" {
            counts.calls += calls / requests;
            counts.by_name.insert((*name).to_owned(), calls / requests);
        }
    }
    Ok(counts)
}

fn allocations(
    bench: &Bench,
    contender: &Contender,
    setting: Setting,
    work: Work,
) -> Result<f64, Failure> {
    let file = bench.directory.join("allocations");
    std::fs::write(&file, 0u64.to_ne_bytes())?;
    let library = bench.allocation_counter();
    let mut daemon = Daemon::spawn(bench, contender, setting, Some((&library, &file)))?;
    let mut served = daemon.serve(0, work)?;
    let before = read_count(&file)?;
    if before == 0 {
        return Err(Failure::Wrong("nothing was counted"));
    }
    let requests = batches(&mut served.guest)?;
    Ok((read_count(&file)? - before) as f64 / requests)
}

fn read_count(file: &Path) -> io::Result<u64> {
    let bytes = std::fs::read(file)?;
    let bytes = bytes.try_into().map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(u64::from_ne_bytes(bytes))
}
