// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Replays what is kept: `corpus/` (inputs that reach far) and `regressions/` (inputs that once
//! found something), through the same functions that are fuzzed.
//!
//! On the main thread, one after the other, since signals go there as in the daemon.

use std::fs;
use std::path::{Path, PathBuf};

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 5] = [
    ("framing", vhost_device_spi_fuzz::framing::run),
    ("head", vhost_device_spi_fuzz::head::run),
    ("messages", vhost_device_spi_fuzz::messages::run),
    ("plan", vhost_device_spi_fuzz::plan::run),
    ("ring", vhost_device_spi_fuzz::ring::run),
];

/// Files below `directory`, in order; none if it is not there, since Git keeps no empty one.
fn inputs(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (target, run) in TARGETS {
        let kept = inputs(&root.join("corpus").join(target));
        assert!(!kept.is_empty(), "no corpus for {target}");
        let found = inputs(&root.join("regressions").join(target));
        for path in kept.iter().chain(&found) {
            println!("{target} {}", path.file_name().unwrap().display());
            run(&fs::read(path).unwrap());
        }
        println!("{target}: {} inputs", kept.len() + found.len());
    }
}
