// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices named by what does not move when the numbers of the host's controllers do.

use crate::rig::ask::*;
use crate::rig::setup::run;
use crate::rig::*;
use std::os::unix::fs::symlink;

const SYSFS: &str = "/sys/bus/spi/devices/spi0.0";

#[test]
fn device_named_by_a_link_is_served_and_said_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flash");
    symlink("/dev/spidev0.1", &path).unwrap();
    let path = path.to_str().unwrap();
    let host = Host::with_devices(2);
    let daemon = Daemon::start(&host, &[path]);
    daemon.wait_line(&[&format!("'--device': '{path}' is /dev/spidev0.1")]);
    daemon.wait_line(&["listening", &format!("chip selects 0={path}")]);
    host.forget();
    Guest::connect(&daemon, 0).assert_served();
    assert_eq!(host.messages((0, 1)).len(), 1);
}

#[test]
fn device_named_by_sysfs_is_served_and_said_at_start() {
    let acpi = "spi-PRP0001:00";
    for name in ["spi0.1", acpi] {
        let mut host = Host::with_devices(2);
        if name == acpi {
            host = host.named((0, 1), acpi);
        }
        let path = format!("/sys/bus/spi/devices/{name}");
        let daemon = Daemon::start(&host, &[&path]);
        daemon.wait_line(&[&format!("'--device': '{path}' is /dev/spidev0.1")]);
        host.forget();
        Guest::connect(&daemon, 0).assert_served();
        assert_eq!(host.messages((0, 1)).len(), 1);
    }
}

#[test]
fn device_named_by_its_node_has_no_line_of_its_own() {
    let host = Host::with_devices(1);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0", "loopback"]);
    daemon.wait_line(&["listening"]);
    assert!(daemon.said().is_empty(), "{:?}", daemon.said());
}

/// Else a transfer of several messages would be refused beside the device, which is not ours by name.
#[test]
fn device_named_by_sysfs_is_on_its_controller() {
    let host = Host::with_devices(2);
    let daemon = Setup::new(&host)
        .device(SYSFS)
        .device("/dev/spidev0.1")
        .arg("--cs-hold=spec")
        .start();
    let mut guest = Guest::connect(&daemon, 0);
    host.forget();
    let asks = [both(keep(0)), both(let_go(1))];
    assert_eq!(together(&mut guest, &asks), [TRANS_OK; 2]);
    let long = Ask {
        head: let_go(0),
        tx: 4097,
        rx: 0,
    };
    assert_eq!(together(&mut guest, &[long]), [TRANS_OK]);
}

#[test]
fn device_named_twice_by_node_and_sysfs_is_refused_as_that() {
    let devices = ["--device=/dev/spidev0.0", &format!("--device={SYSFS}")];
    let line = [&["--socket-path=s"], &devices[..]].concat();
    let finished = run(&Host::with_devices(1), &line);
    let words = [SYSFS, "same device as", "'/dev/spidev0.0'"];
    assert_eq!(finished.refused(&words), 64);
}

#[test]
fn device_named_by_sysfs_that_cannot_be_served_is_refused_with_the_cause() {
    let host = Host::with_devices(1);
    host.neighbour((0, 7));
    let refused = |host: &Host, path: &str, words: &[&str]| {
        let device = format!("--device={path}");
        let finished = run(host, &["--socket-path=s", &device]);
        let named = format!("option '--device': '{path}'");
        assert_eq!(finished.refused(&[&[&*named], words].concat()), 66);
    };
    let unbound = "/sys/bus/spi/devices/spi0.7";
    refused(
        &host,
        unbound,
        &["no spidev", "is the device bound to spidev?"],
    );
    let absent = "/sys/bus/spi/devices/spi0.8";
    refused(&host, absent, &["No such file or directory"]);
    host.fail_open((0, 0), libc::ENOENT);
    refused(
        &host,
        SYSFS,
        &["/dev/spidev0.0", "No such file or directory"],
    );
    let hidden = Host::with_devices(1).without_sysfs();
    refused(&hidden, SYSFS, &["No such file or directory"]);
}
