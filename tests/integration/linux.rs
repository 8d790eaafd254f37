// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An unmodified Linux guest, in user mode, whose kernel's own SPI programs use the bus.
//!
//! `tests/guest/build kernel-um initramfs-um` makes the guest; `tests/run` does that first.

use crate::rig::*;
use std::process::{Command, Stdio};

/// Runs the guest's suite on guest 0 of `daemon`.
fn run_guest(daemon: &Daemon) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guest/uml");
    let mut command = Command::new(script);
    command.arg(daemon.socket(0)).arg("spi.peer=loopback");
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = notify::spawn_alone(&mut command).unwrap();
    let output = child.wait_with_output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && shown.contains("GUEST: verdict pass"),
        "{shown}{}{:?}",
        String::from_utf8_lossy(&output.stderr),
        daemon.stderr()
    );
}

#[test]
fn linux_guest_passes_its_suite_on_a_spidev_with_the_default_bufsiz() {
    // The suite fails a transfer that is faster than its clock.
    let host = Host::new()
        .bufsiz(4096)
        .real_time()
        .device((0, 0), 50_000_000, Loopback);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    run_guest(&daemon);
    assert!(!host.selected(DEV));
    daemon.stop();
}

#[test]
fn linux_guest_passes_its_suite_on_the_built_in_loopback() {
    let host = Host::new();
    let daemon = Daemon::start(&host, &["loopback"]);
    run_guest(&daemon);
    daemon.stop();
}
