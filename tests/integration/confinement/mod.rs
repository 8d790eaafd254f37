// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the daemon takes away from itself, seen from outside, and that what is left is enough.

mod inherited;
mod landlock;
mod libraries;
mod paths;
mod profile;
mod stages;
mod stderr;

use crate::rig::*;
use std::path::PathBuf;
use std::process::Command;

/// `tests/syscalls` has `strace` in front of the daemon, which some of these tests must spare.
pub(super) fn traced() -> bool {
    std::env::var_os("SYSCALL_TRACES").is_some()
}

/// Serves, and breaks with a front-end that breaks the protocol.
fn assert_all_well(daemon: &Daemon) {
    for _ in 0..3 {
        Guest::connect(daemon, 0).assert_served();
        let hostile = Raw::connect(&daemon.socket(0));
        hostile.send(999, raw::VERSION, &[], &[]).unwrap();
        assert!(hostile.hung_up(PATIENCE));
    }
    daemon.wait_line(&["guest=0", "999"]);
}

/// A library to be preloaded, made of this C, and the directory that it is in.
fn preloadable(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (source, library) = (dir.path().join("library.c"), dir.path().join("library.so"));
    std::fs::write(&source, text).unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-fexceptions", "-D_GNU_SOURCE", "-o"]);
    assert!(cc.arg(&library).arg(&source).status().unwrap().success());
    (dir, library)
}
