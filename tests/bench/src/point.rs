// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Points of the comparison, and the measurement of one contender at one point.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::guest::{Failure, Guest, Wait, Work};
use crate::program::{Bench, Contender, Daemon, Served, Setting, floor};
use crate::stats::percentile;
use crate::sys;

/// spidev's default.
pub const SMALL_BUFSIZ: usize = 4096;
/// What holds 32 requests of any size in one message.
pub const LARGE_BUFSIZ: usize = 4 << 20;
/// Sockets of the daemon that has idle guests.
pub const MANY: usize = 64;
/// Batches in front of the measurement: caches, page tables, branch predictors.
const WARM_UP: u32 = 64;
/// Room for the latencies of one measurement.
const MAX_SAMPLES: usize = 1 << 20;

/// What is measured, in this order.
pub const METRICS: [&str; 6] = [
    "p50 ns",
    "p99 ns",
    "max ns",
    "requests/s",
    "CPU ns/request",
    "switches/request",
];
pub const P50: usize = 0;
pub const P99: usize = 1;
pub const MAX: usize = 2;
pub const RATE: usize = 3;
pub const CPU: usize = 4;
pub const SWITCHES: usize = 5;
pub type Sample = [f64; METRICS.len()];

/// One point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    /// Front-end and daemon have a CPU each.
    pub two_cpus: bool,
    pub work: Work,
    pub bufsiz: usize,
    /// Guests that are connected to the same daemon and do nothing.
    pub idle: usize,
}

/// Daemons by contender and setting, started when they are first needed.
pub struct Field<'a> {
    pub bench: &'a Bench,
    daemons: BTreeMap<(String, Setting), Daemon>,
}

impl<'a> Field<'a> {
    pub fn new(bench: &'a Bench) -> Self {
        Self {
            bench,
            daemons: BTreeMap::new(),
        }
    }

    fn serve(&mut self, contender: &Contender, point: &Point) -> Result<Vec<Served>, Failure> {
        if contender.is_floor {
            return floor(self.bench, contender, point.bufsiz, point.work).map(|s| vec![s]);
        }
        let sockets = if point.idle > 0 { MANY } else { 1 };
        let bufsiz = point.bufsiz;
        let setting = Setting { sockets, bufsiz };
        let key = (contender.name.clone(), setting);
        if !self.daemons.contains_key(&key) {
            let daemon = Daemon::spawn(self.bench, contender, setting, None)?;
            self.daemons.insert(key.clone(), daemon);
        }
        let daemon = self.daemons.get_mut(&key).expect("inserted above");
        let mut all = vec![daemon.serve(0, point.work)?];
        for number in 1..=point.idle {
            all.push(daemon.serve(number, Work::default())?);
        }
        Ok(all)
    }

    /// A daemon that failed may never be good again.
    fn replace(&mut self, contender: &Contender) {
        self.daemons.retain(|(name, _), _| *name != contender.name);
    }

    /// Measures `contender` at `point` for about `time`; the sample and how many first kicks were
    /// lost on the way.
    pub fn measure(
        &mut self,
        contender: &Contender,
        point: &Point,
        time: Duration,
    ) -> Result<(Sample, u32), Failure> {
        sys::unpin()?;
        let result = self.serve(contender, point).and_then(|mut all| {
            let lost_kicks = all.iter().map(|served| served.lost_kicks).sum();
            sys::pin(0, 0)?;
            let cpu = usize::from(point.two_cpus);
            all[0].process.pin(cpu)?;
            let sample = load(&mut all[0], time)?;
            all[0].guest.check_data()?;
            Ok((sample, lost_kicks))
        });
        if result.is_err() {
            self.replace(contender);
        }
        sys::unpin()?;
        result
    }
}

fn warm_up(guest: &mut Guest) -> Result<(), Failure> {
    (0..WARM_UP).try_for_each(|_| guest.batch())
}

/// Keeps the daemon busy for about `time`.
fn load(served: &mut Served, time: Duration) -> Result<Sample, Failure> {
    let guest = &mut served.guest;
    warm_up(guest)?;
    let mut latencies = Vec::with_capacity(MAX_SAMPLES);
    let before = served.process.usage()?;
    let start = Instant::now();
    let mut last = start;
    while last.duration_since(start) < time && latencies.len() < MAX_SAMPLES {
        guest.batch()?;
        let now = Instant::now();
        let latency = now.duration_since(last).as_nanos();
        latencies.push(u32::try_from(latency).unwrap_or(u32::MAX));
        last = now;
    }
    let elapsed = last.duration_since(start).as_secs_f64();
    let after = served.process.usage()?;
    let requests = latencies.len() as f64 * f64::from(guest.work.depth);
    Ok([
        percentile(&mut latencies, 0.5),
        percentile(&mut latencies, 0.99),
        percentile(&mut latencies, 1.0),
        requests / elapsed,
        (after.cpu_ns - before.cpu_ns) as f64 / requests,
        after.switches.saturating_sub(before.switches) as f64 / requests,
    ])
}

/// All points of the comparison.
pub fn points(quick: bool) -> Vec<Point> {
    let sizes: &[usize] = if quick {
        &[1, 4096, 65_536]
    } else {
        &[1, 16, 256, 4096, 65_536]
    };
    let event_idx: &[bool] = if quick { &[true] } else { &[true, false] };
    let mut points = Vec::new();
    for (two_cpus, wait) in [(false, Wait::Call), (true, Wait::Call), (true, Wait::Watch)] {
        for depth in [1, 32] {
            for &event_idx in event_idx {
                for &len in sizes {
                    let work = Work {
                        len,
                        depth,
                        event_idx,
                        wait,
                        ..Work::default()
                    };
                    points.extend(with_bufsiz(two_cpus, work));
                }
            }
        }
    }
    points
}

/// The point with the default bufsiz, and with a large one where that makes a difference.
fn with_bufsiz(two_cpus: bool, work: Work) -> impl Iterator<Item = Point> {
    let all = work.len * usize::from(work.depth);
    let small = (SMALL_BUFSIZ, true);
    let large = (LARGE_BUFSIZ, all > SMALL_BUFSIZ);
    [small, large]
        .into_iter()
        .filter(|(_, wanted)| *wanted)
        .map(move |(bufsiz, _)| Point {
            two_cpus,
            work,
            bufsiz,
            idle: 0,
        })
}

/// Points that differ in what must not cost anything: idle guests, the ring's size, regions.
pub fn scale_points() -> Vec<(&'static str, Point)> {
    let point = Point {
        two_cpus: false,
        work: Work::default(),
        bufsiz: SMALL_BUFSIZ,
        idle: 0,
    };
    let ring = |ring_size| Point {
        work: Work {
            ring_size,
            ..point.work
        },
        ..point
    };
    let regions = |regions| Point {
        work: Work {
            regions,
            ..point.work
        },
        ..point
    };
    vec![
        ("1 guest", point),
        ("8 guests", Point { idle: 7, ..point }),
        ("64 guests", Point { idle: 63, ..point }),
        ("ring of 4", ring(4)),
        ("ring of 1,024", ring(1024)),
        ("1 region", regions(1)),
        ("8 regions", regions(8)),
    ]
}
