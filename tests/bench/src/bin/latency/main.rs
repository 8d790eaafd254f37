// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How long a request takes at worst: a guest sends one each millisecond, while others do their worst
//! beside it. `tests/latency` builds what this needs and starts it.

mod attack;
mod bound;
mod cases;
mod machine;
mod measure;
mod picture;
mod report;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bench::program::{Bench, Contender};
use bench::sys;

use cases::CASES;
use measure::{Sharing, measure};
use report::{Row, Table};

const USAGE: &str =
    "usage: latency --directory=DIR --ours=PROGRAM --existing=PROGRAM [--seconds=N]";
pub const EXISTING: &str = "existing";
pub const OURS: &str = "ours";

/// With the CPU that a daemon is to have, and without.
const SHARINGS: [Sharing; 4] = [
    Sharing {
        fifo: true,
        load: false,
    },
    Sharing {
        fifo: true,
        load: true,
    },
    Sharing {
        fifo: false,
        load: false,
    },
    Sharing {
        fifo: false,
        load: true,
    },
];

/// What the command line says.
struct Options {
    directory: PathBuf,
    ours: PathBuf,
    existing: PathBuf,
    time: Duration,
    only: String,
}

impl Options {
    fn parse(arguments: &[String]) -> Option<Self> {
        let mut options = Self {
            directory: PathBuf::new(),
            ours: PathBuf::new(),
            existing: PathBuf::new(),
            time: Duration::from_secs(60),
            only: String::new(),
        };
        for argument in arguments {
            let (name, value) = argument.split_once('=')?;
            match name {
                "--directory" => options.directory = value.into(),
                "--ours" => options.ours = value.into(),
                "--existing" => options.existing = value.into(),
                "--seconds" => options.time = Duration::from_secs(value.parse().ok()?),
                "--only" => value.clone_into(&mut options.only),
                _ => return None,
            }
        }
        Some(options)
    }
}

/// Exit code where a maximum is above its bound.
const ABOVE_BOUND: u8 = 3;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("attack", rest)) = arguments.split_first().map(|(a, rest)| (a.as_str(), rest)) {
        let failed = attack::run(rest);
        eprintln!("latency: {failed:?}");
        return ExitCode::FAILURE;
    }
    let Some(options) = Options::parse(&arguments) else {
        eprintln!("{USAGE}");
        return ExitCode::from(64);
    };
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(ABOVE_BOUND),
        Err(error) => {
            eprintln!("latency: {error}");
            ExitCode::FAILURE
        }
    }
}

fn contenders(options: &Options) -> [Contender; 2] {
    let limits = [
        format!("--max-message-ms={}", bound::MAX_MESSAGE_MS),
        format!("--max-transfer-ms={}", bound::MAX_TRANSFER_MS),
        format!("--max-transfer-len={}", bound::MAX_TRANSFER_LEN),
    ];
    let contender = |name: &str, path: &PathBuf, arguments: Vec<String>| Contender {
        name: name.to_owned(),
        path: path.clone(),
        arguments,
        is_floor: false,
    };
    [
        contender(OURS, &options.ours, limits.into()),
        contender(EXISTING, &options.existing, Vec::new()),
    ]
}

/// Measures everything; whether no maximum is above its bound.
fn run(options: &Options) -> io::Result<bool> {
    if sys::cpus() < 2 {
        return Err(io::Error::other("two CPUs are needed"));
    }
    let bench = Bench {
        directory: options.directory.clone(),
    };
    let [ours, existing] = contenders(options);
    let mut tables = Vec::new();
    for sharing in SHARINGS {
        let mut rows = Vec::new();
        for case in CASES
            .iter()
            .filter(|case| case.name.contains(&options.only))
        {
            // The published daemon has one controller for all; and its CPU, to be at its best.
            let both = sharing == SHARINGS[0] && case.needs_one_controller();
            for contender in [&ours, &existing].into_iter().take(1 + usize::from(both)) {
                eprintln!("{}: {sharing}: {}", contender.name, case.name);
                let measured = measure(&bench, contender, case, sharing, options.time);
                rows.push(Row {
                    case,
                    is_ours: contender.name == OURS,
                    measured: measured.map_err(|failure| failure.to_string()),
                });
            }
        }
        tables.push(Table { sharing, rows });
    }
    let text = report::report(&tables).map_err(io::Error::other)?;
    std::fs::write(bench.directory.join("latency.md"), &text)?;
    let picture = picture::draw(&tables).map_err(io::Error::other)?;
    std::fs::write(bench.directory.join("latency.svg"), picture)?;
    io::stdout().write_all(text.as_bytes())?;
    Ok(tables.iter().all(Table::is_good))
}
