// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What was measured, and the figures that are made of it.

use std::collections::BTreeMap;
use std::io::{self, Write};

use crate::counts::Counts;
use crate::footprint::{Build, Load};
use crate::guest::{Wait, Work};
use crate::point::{METRICS, Point, Sample};
use crate::stats::median;

/// Names of the contenders that every run has.
pub const EXISTING: &str = "existing";
pub const OURS: &str = "ours";
pub const AGAIN: &str = "ours again";
pub const FLOOR: &str = "floor";

/// Everything about one contender that is not measured at a point.
#[derive(Debug, Default)]
pub struct Facts {
    pub counts: Vec<(Work, Counts)>,
    pub loads: Vec<Load>,
    pub build: Build,
    pub start_ms: f64,
    pub lost_kicks: u32,
}

/// Everything.
#[derive(Debug, Default)]
pub struct Results {
    /// Contenders in the order in which they are shown.
    pub names: Vec<String>,
    /// One sample each round.
    pub samples: BTreeMap<(Point, String), Vec<Sample>>,
    /// Why a contender has none.
    pub failures: BTreeMap<(Point, String), String>,
    pub facts: BTreeMap<String, Facts>,
    pub points: Vec<Point>,
    pub scale_points: Vec<(&'static str, Point)>,
    pub rounds: u32,
}

impl Results {
    /// The median over the rounds; NaN where there is none.
    pub fn value(&self, point: &Point, name: &str, metric: usize) -> f64 {
        let samples = self.samples.get(&(*point, name.to_owned()));
        let values = samples.into_iter().flatten().map(|sample| sample[metric]);
        median(values.collect::<Vec<_>>())
    }

    /// How two contenders compare; NaN where one of them has nothing to compare.
    pub fn ratio(&self, point: &Point, name: &str, to: &str, metric: usize) -> f64 {
        self.value(point, name, metric) / self.value(point, to, metric)
    }

    /// Lowest and highest ratio over the points that `wanted` takes and both can do.
    pub fn range(
        &self,
        name: &str,
        to: &str,
        metric: usize,
        wanted: impl Fn(&Point) -> bool,
    ) -> Option<(f64, f64)> {
        let points = self.points.iter().filter(|point| wanted(point));
        let ratios = points.map(|point| self.ratio(point, name, to, metric));
        ratios
            .filter(|ratio| !ratio.is_nan())
            .fold(None, |range, ratio| {
                let (low, high) = range.unwrap_or((ratio, ratio));
                Some((ratio.min(low), ratio.max(high)))
            })
    }

    pub fn facts(&self, name: &str) -> Option<&Facts> {
        self.facts.get(name)
    }

    /// The counts of a contender at a depth, the highest of those with and without EVENT_IDX.
    pub fn highest(&self, name: &str, depth: u16, of: impl Fn(&Counts) -> f64) -> f64 {
        let facts = self.facts.get(name);
        let counts = facts.into_iter().flat_map(|facts| &facts.counts);
        counts
            .filter(|(work, _)| work.depth == depth)
            .map(|(_, counts)| of(counts))
            .fold(f64::NAN, f64::max)
    }

    /// Every sample, for whoever wants other figures.
    pub fn write_csv(&self, file: &mut impl Write) -> io::Result<()> {
        write!(file, "contender,cpus,wait,queued,event_idx,bytes,bufsiz")?;
        write!(file, ",ring_size,regions,idle_guests,round")?;
        METRICS
            .iter()
            .try_for_each(|name| write!(file, ",{name}"))?;
        writeln!(file)?;
        for ((point, name), samples) in &self.samples {
            for (round, sample) in samples.iter().enumerate() {
                write!(file, "{name},{},{round}", columns(point))?;
                sample.iter().try_for_each(|v| write!(file, ",{v:.2}"))?;
                writeln!(file)?;
            }
        }
        for ((point, name), failure) in &self.failures {
            writeln!(file, "{name},{},{failure}", columns(point))?;
        }
        Ok(())
    }
}

fn columns(point: &Point) -> String {
    let work = point.work;
    format!(
        "{},{},{},{},{},{},{},{},{}",
        1 + u32::from(point.two_cpus),
        match work.wait {
            Wait::Call => "call",
            Wait::Watch => "watch",
        },
        work.depth,
        work.event_idx,
        work.len,
        point.bufsiz,
        work.ring_size,
        work.regions,
        point.idle,
    )
}
