// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that sends a request each millisecond, and how long each took.

use std::path::Path;
use std::time::Duration;

use bench::guest::{Failure, Work};
use bench::program::{Bench, Contender, DEVICE, Daemon, Served, Setting};
use bench::stats::percentile;
use bench::sys;

use crate::EXISTING;
use crate::attack::{Attack, Attacker, FAST_HZ};
use crate::bound::LEN;
use crate::cases::Case;
use crate::machine::{Away, Watch, taken_ns};

const PERIOD_NS: u64 = 1_000_000;
const BUFSIZ: usize = 4096;
/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(10);
/// Requests before the first that counts: caches, page tables.
const WARM_UP: u32 = 100;
/// Processes that load each CPU.
const LOADS: usize = 2;
/// The guest and everybody beside it are here ...
const GUEST_CPU: usize = 0;
/// ... and the daemon here.
const DAEMON_CPU: usize = 1;
const GUEST_PRIORITY: i32 = 60;
const DAEMON_PRIORITY: i32 = 50;

/// How the machine is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sharing {
    /// The daemon has `SCHED_FIFO`.
    pub fifo: bool,
    /// Every CPU is loaded.
    pub load: bool,
}

/// One request.
#[derive(Debug, Clone, Copy)]
struct Sample {
    sent: u64,
    took: u64,
    /// CPU time that the daemon used meanwhile.
    daemon: u64,
}

/// How long requests took, in ns.
#[derive(Debug, Clone, Default)]
pub struct Distribution {
    /// Ascending.
    pub all: Vec<u32>,
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
    /// The longest without what the machine took away of each.
    pub net_max: f64,
}

/// The published daemon has one device, for all guests and without options.
fn devices(contender: &Contender, case: &Case) -> Vec<String> {
    if contender.name == EXISTING {
        return vec![DEVICE.to_owned()];
    }
    case.devices()
}

/// Runs `case` for about `time`.
pub fn measure(
    bench: &Bench,
    contender: &Contender,
    case: &Case,
    sharing: Sharing,
    time: Duration,
) -> Result<Distribution, Failure> {
    let setting = Setting {
        sockets: 1 + case.others().count(),
        bufsiz: BUFSIZ,
    };
    let devices = devices(contender, case);
    let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
    let (mut command, socket) = Daemon::command(bench, contender, setting, &devices);
    command.env("FAKE_WIRE", "1");
    let mut daemon = Daemon::run(&mut command, socket, setting.sockets)?;
    let work = Work {
        len: LEN,
        speed_hz: FAST_HZ,
        ..Work::default()
    };
    let mut served = daemon.serve(0, work)?;
    for _ in 0..WARM_UP {
        served.guest.batch_within(PATIENCE)?;
    }
    served.process.pin(DAEMON_CPU)?;
    if sharing.fifo {
        served.process.set_fifo(DAEMON_PRIORITY)?;
    }
    let mut beside = Vec::new();
    for (number, attack) in (1..).zip(case.others()) {
        beside.push(Attacker::start(attack, &daemon.socket(number), GUEST_CPU)?);
    }
    let cpus = [GUEST_CPU, DAEMON_CPU];
    for cpu in cpus.into_iter().filter(|_| sharing.load) {
        for _ in 0..LOADS {
            beside.push(Attacker::start(Attack::Load, Path::new(""), cpu)?);
        }
    }
    let watch = Watch::start(&cpus);
    sys::pin(0, GUEST_CPU)?;
    sys::set_fifo(0, GUEST_PRIORITY)?;
    let samples = sample(&mut served, time);
    sys::set_ordinary()?;
    sys::unpin()?;
    let taken = watch.end()?;
    drop(beside);
    served.guest.check_data()?;
    Ok(distribution(&samples?, &taken[0], &taken[1]))
}

fn sample(served: &mut Served, time: Duration) -> Result<Vec<Sample>, Failure> {
    let time_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let mut all = Vec::with_capacity((time_ns / PERIOD_NS) as usize);
    let daemon = served.process.0;
    let mut due = sys::now_ns() + PERIOD_NS;
    let end = due.saturating_add(time_ns);
    while due < end {
        sys::sleep_until(due);
        let before = sys::cpu_ns(daemon)?;
        let sent = sys::now_ns();
        served.guest.batch_within(PATIENCE)?;
        let now = sys::now_ns();
        all.push(Sample {
            sent,
            took: now - sent,
            daemon: sys::cpu_ns(daemon)? - before,
        });
        // What was missed meanwhile is not made up for.
        due += PERIOD_NS * (1 + (now - due) / PERIOD_NS);
    }
    Ok(all)
}

fn distribution(samples: &[Sample], guest_cpu: &[Away], daemon_cpu: &[Away]) -> Distribution {
    let clip = |ns: u64| u32::try_from(ns).unwrap_or(u32::MAX);
    let mut all: Vec<u32> = samples.iter().map(|sample| clip(sample.took)).collect();
    let net = samples.iter().map(|sample| {
        let until = sample.sent + sample.took;
        let guest = taken_ns(guest_cpu, sample.sent, until);
        // While the daemon itself is in the kernel the watching thread may have to wait for it.
        let daemon = taken_ns(daemon_cpu, sample.sent, until).saturating_sub(sample.daemon);
        sample.took.saturating_sub(guest + daemon)
    });
    let net_max = net.max().unwrap_or(0) as f64;
    let mut share = |share| percentile(&mut all, share);
    Distribution {
        p50: share(0.5),
        p99: share(0.99),
        p999: share(0.999),
        max: share(1.0),
        net_max,
        all,
    }
}
