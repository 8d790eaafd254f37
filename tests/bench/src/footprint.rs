// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a daemon takes up: on disk, in memory, in threads, and in time to start.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::guest::{Failure, Work};
use crate::point::SMALL_BUFSIZ;
use crate::process::Memory;
use crate::program::{Bench, Contender, Daemon, Setting};
use crate::stats::median;

/// Pages that are the benchmark's, not the daemon's.
const NOT_ITS_OWN: [&str; 2] = ["fake_spidev", "/memfd:"];
/// How long a daemon may take to come to rest.
const REST: Duration = Duration::from_millis(300);
/// Requests of each guest before memory is looked at.
const REQUESTS: u32 = 100;

/// Memory and threads of a daemon with `guests` sockets.
#[derive(Debug, Clone, Copy, Default)]
pub struct Load {
    pub guests: usize,
    pub idle: Memory,
    pub idle_threads: usize,
    pub connected: Memory,
    pub connected_threads: usize,
}

/// Size and dependencies of a program.
#[derive(Debug, Clone, Default)]
pub struct Build {
    pub stripped_len: u64,
    pub libraries: Vec<String>,
    pub crates: usize,
}

/// Looks at `contender` with `guests` sockets, first without and then with a guest on each.
pub fn load(bench: &Bench, contender: &Contender, guests: usize) -> Result<Load, Failure> {
    let setting = Setting {
        sockets: guests,
        bufsiz: SMALL_BUFSIZ,
    };
    let mut daemon = Daemon::spawn(bench, contender, setting, None)?;
    // The last socket is the last one to listen.
    for number in 0..guests {
        wait_for(&daemon, number)?;
    }
    std::thread::sleep(REST);
    let process = daemon.process();
    let mut load = Load {
        guests,
        idle: process.memory(&NOT_ITS_OWN)?,
        idle_threads: process.thread_count()?,
        ..Load::default()
    };
    let mut all = Vec::new();
    for number in 0..guests {
        all.push(daemon.serve(number, Work::default())?);
    }
    for served in &mut all {
        for _ in 0..REQUESTS {
            served.guest.batch()?;
        }
    }
    load.connected = process.memory(&NOT_ITS_OWN)?;
    load.connected_threads = process.thread_count()?;
    Ok(load)
}

/// Waits for a socket without connecting to it: a connection would leave traces.
fn wait_for(daemon: &Daemon, number: usize) -> io::Result<()> {
    let end = Instant::now() + Duration::from_secs(5);
    while !daemon.socket(number).exists() {
        if Instant::now() > end {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Milliseconds from the start of the program to its first accepted connection; the median of
/// `times` starts.
pub fn start_ms(bench: &Bench, contender: &Contender, times: u32) -> Result<f64, Failure> {
    let setting = Setting {
        sockets: 1,
        bufsiz: SMALL_BUFSIZ,
    };
    let mut all = Vec::new();
    for _ in 0..times {
        let start = Instant::now();
        let mut daemon = Daemon::spawn(bench, contender, setting, None)?;
        let stream = daemon.connect(0)?;
        all.push(start.elapsed().as_secs_f64() * 1000.0);
        drop((stream, daemon));
    }
    Ok(median(all))
}

/// Looks at the program file at `path`, and counts the crates of the package at `manifest`.
pub fn build(bench: &Bench, path: &Path, manifest: &Path) -> io::Result<Build> {
    let stripped = bench.directory.join("stripped");
    run(
        "strip",
        [OsStr::new("-o"), stripped.as_os_str(), path.as_os_str()],
    )?;
    let dynamic = run("readelf", [OsStr::new("-d"), path.as_os_str()])?;
    let libraries = dynamic
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| Some(line.split_once('[')?.1.trim_end_matches(']').to_owned()));
    Ok(Build {
        stripped_len: std::fs::metadata(&stripped)?.len(),
        libraries: libraries.collect(),
        crates: crates(manifest)?,
    })
}

/// Crates that are linked in or build what is, without the package itself.
fn crates(manifest: &Path) -> io::Result<usize> {
    let arguments = ["tree", "--locked", "-e", "normal", "--prefix", "none"];
    let manifest = ["--manifest-path".as_ref(), manifest.as_os_str()];
    let tree = run(
        "cargo",
        arguments.map(OsStr::new).into_iter().chain(manifest),
    )?;
    // A crate that was shown before has a star behind it.
    let mut names: Vec<&str> = tree.lines().map(|l| l.trim_end_matches(" (*)")).collect();
    names.sort_unstable();
    names.dedup();
    Ok(names.len().saturating_sub(1))
}

fn run<'a>(program: &str, arguments: impl IntoIterator<Item = &'a OsStr>) -> io::Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("{program}: {}", output.status)));
    }
    String::from_utf8(output.stdout).map_err(io::Error::other)
}
