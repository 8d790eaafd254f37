// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Programs of our own: the test binary runs one of its tests again, alone, in a process of its own.
//!
//! For what the daemon must survive or die of and that nothing known makes it do, on the daemon's own code.

use super::host::Host;
use super::notify;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

const ROLE: &str = "RIG_PROGRAM";

/// Whether this is such a program.
pub fn is_program() -> bool {
    std::env::var_os(ROLE).is_some()
}

/// Runs the test with this whole name under `host`, as a program.
pub fn spawn(
    test: &str,
    host: &Host,
    argument: impl AsRef<OsStr>,
    stderr: Option<OwnedFd>,
) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    // As in the daemon, all threads use the allocator's main arena, which grows by brk().
    command.env(ROLE, argument).env("MALLOC_ARENA_MAX", "1");
    command.env_remove("RUST_BACKTRACE");
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(stderr.map_or_else(Stdio::piped, Stdio::from));
    notify::spawn(command, host).unwrap()
}

/// The program's argument.
pub fn argument() -> String {
    std::env::var(ROLE).unwrap()
}
