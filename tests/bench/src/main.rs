// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Drives the daemon, its published predecessor and the floor over the same faked spidev, in turn,
//! and compares them.
//!
//! `run` beside this crate builds what it needs and starts it.

mod counts;
mod footprint;
mod picture;
mod point;
mod report;
mod results;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bench::{guest, process, program, stats, svg, sys};

use guest::Work;
use point::{Field, Point};
use program::{Bench, Contender};
use results::{AGAIN, EXISTING, FLOOR, Facts, OURS, Results};

const USAGE: &str = "usage: bench --directory=DIR --ours=PROGRAM --existing=PROGRAM --floor=PROGRAM \
    --manifest=CARGO_TOML --existing-manifest=CARGO_TOML [--quick] [--variant=ARGUMENTS]...";

/// What the command line says.
#[derive(Default)]
struct Options {
    directory: PathBuf,
    ours: PathBuf,
    existing: PathBuf,
    floor: PathBuf,
    manifest: PathBuf,
    existing_manifest: PathBuf,
    /// More arguments for ours, each set a contender of its own.
    variants: Vec<String>,
    quick: bool,
}

impl Options {
    fn parse(arguments: impl Iterator<Item = String>) -> Option<Self> {
        let mut options = Self::default();
        for argument in arguments {
            let (name, value) = argument.split_once('=').unwrap_or((&argument, ""));
            match name {
                "--directory" => options.directory = value.into(),
                "--ours" => options.ours = value.into(),
                "--existing" => options.existing = value.into(),
                "--floor" => options.floor = value.into(),
                "--manifest" => options.manifest = value.into(),
                "--existing-manifest" => options.existing_manifest = value.into(),
                "--variant" => options.variants.push(value.to_owned()),
                "--quick" => options.quick = true,
                _ => return None,
            }
        }
        Some(options)
    }

    fn contenders(&self) -> Vec<Contender> {
        let contender = |name: &str, path: &PathBuf, arguments: &str| Contender {
            name: name.to_owned(),
            path: path.clone(),
            arguments: arguments.split_whitespace().map(str::to_owned).collect(),
            is_floor: name == FLOOR,
        };
        let mut all = vec![
            contender(EXISTING, &self.existing, ""),
            contender(OURS, &self.ours, ""),
            contender(AGAIN, &self.ours, ""),
            contender(FLOOR, &self.floor, ""),
        ];
        for variant in &self.variants {
            all.push(contender(&format!("{OURS} {variant}"), &self.ours, variant));
        }
        all
    }
}

fn main() -> ExitCode {
    let Some(options) = Options::parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(64);
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> io::Result<()> {
    if sys::cpus() < 2 {
        return Err(io::Error::other("two CPUs are needed"));
    }
    sys::tick()?;
    let bench = Bench {
        directory: options.directory.clone(),
    };
    let contenders = options.contenders();
    let mut results = Results {
        names: contenders.iter().map(|c| c.name.clone()).collect(),
        points: point::points(options.quick),
        scale_points: point::scale_points(),
        rounds: if options.quick { 3 } else { 5 },
        ..Results::default()
    };
    for contender in &contenders {
        let facts = facts(&bench, contender, options)?;
        results.facts.insert(contender.name.clone(), facts);
    }
    compare(&bench, &contenders, options.quick, &mut results);
    write(&bench, &results)
}

/// All that is not measured at points.
fn facts(bench: &Bench, contender: &Contender, options: &Options) -> io::Result<Facts> {
    let mut facts = Facts::default();
    let failed =
        |failure: guest::Failure| io::Error::other(format!("{}: {failure}", contender.name));
    if contender.name == AGAIN {
        return Ok(facts);
    }
    eprintln!("{}: counts and footprint", contender.name);
    for depth in [1, 32] {
        for event_idx in [true, false] {
            let work = Work {
                depth,
                event_idx,
                ..Work::default()
            };
            let counts = counts::count(bench, contender, work).map_err(failed)?;
            facts.counts.push((work, counts));
        }
    }
    let times = if options.quick { 20 } else { 100 };
    facts.start_ms = footprint::start_ms(bench, contender, times).map_err(failed)?;
    if contender.is_floor {
        return Ok(facts);
    }
    let manifest = match contender.name.as_str() {
        EXISTING => &options.existing_manifest,
        _ => &options.manifest,
    };
    facts.build = footprint::build(bench, &contender.path, manifest)?;
    for guests in [1, 8, 64] {
        facts
            .loads
            .push(footprint::load(bench, contender, guests).map_err(failed)?);
    }
    Ok(facts)
}

/// Measures all points, the contenders in turn.
fn compare(bench: &Bench, contenders: &[Contender], quick: bool, results: &mut Results) {
    let time = Duration::from_millis(if quick { 60 } else { 150 });
    let mut field = Field::new(bench);
    let scale = results.scale_points.iter().map(|(_, point)| *point);
    let points: Vec<Point> = results.points.iter().copied().chain(scale).collect();
    let mut lost: BTreeMap<&str, u32> = BTreeMap::new();
    for (number, point) in points.iter().enumerate() {
        eprint!("\rpoint {} of {}", number + 1, points.len());
        for round in 0..results.rounds {
            // Nobody is always the first.
            for turn in 0..contenders.len() {
                let contender = &contenders[(turn + round as usize) % contenders.len()];
                let key = (*point, contender.name.clone());
                if results.failures.contains_key(&key) {
                    continue;
                }
                match field.measure(contender, point, time) {
                    Ok((sample, kicks)) => {
                        results.samples.entry(key).or_default().push(sample);
                        *lost.entry(&contender.name).or_default() += kicks;
                    }
                    Err(failure) => drop(results.failures.insert(key, failure.to_string())),
                }
            }
        }
    }
    eprintln!();
    for (name, kicks) in lost {
        results.facts.entry(name.to_owned()).or_default().lost_kicks = kicks;
    }
}

fn write(bench: &Bench, results: &Results) -> io::Result<()> {
    let text = report::report(results).map_err(io::Error::other)?;
    std::fs::write(bench.directory.join("results.md"), &text)?;
    let mut csv = BufWriter::new(File::create(bench.directory.join("results.csv"))?);
    results.write_csv(&mut csv)?;
    csv.flush()?;
    let picture = picture::draw(results).map_err(io::Error::other)?;
    std::fs::write(bench.directory.join("results.svg"), picture)?;
    io::stdout().write_all(text.as_bytes())
}
