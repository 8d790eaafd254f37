// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon's way out of a panic, under the real filter. Nothing is known that makes the binary
//! panic, so a program of our own takes it, on the daemon's own code.

use super::*;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use vhost_device_spi::config::SeccompMode;
use vhost_device_spi::confine::emergency_cleanup;
use vhost_device_spi::confine::stages;
use vhost_device_spi::os::listener::Listener;
use vhost_device_spi::os::write_timeout;
use vhost_device_spi::spi::spidev;

fn panic_on_purpose(socket: &Path) {
    let device = node("/dev/spidev0.0");
    write_timeout::install().unwrap();
    emergency_cleanup::install();
    let (_listener, socket) = Listener::create(socket, (0o600, None), &mut false).unwrap();
    emergency_cleanup::MODES
        .set(vec![(device.as_raw_fd(), 0)])
        .unwrap();
    emergency_cleanup::SOCKETS.set(vec![socket]).unwrap();
    stages::restrict(SeccompMode::Kill, &emergency_cleanup::pins()).unwrap();
    spidev::write_mode(device.as_raw_fd(), rules::CPOL).unwrap();
    let mut held = xfer(b"a", &mut []);
    held.cs_change = 1;
    assert_eq!(message(&device, &mut [held]), 1);
    panic!("on purpose");
}

#[test]
fn panic_releases_chip_select_restores_the_mode_and_removes_the_sockets() {
    if is_program() {
        panic_on_purpose(Path::new(&program::argument()));
    }
    let name =
        "rig_self::way_out::panic_releases_chip_select_restores_the_mode_and_removes_the_sockets";
    let (host, dir) = (Host::with_devices(1), tempfile::tempdir().unwrap());
    let socket = dir.path().join("s");
    let program = program::spawn(name, &host, &socket, None);
    let output = program.wait_with_output().unwrap();
    let shown = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{shown}");
    let lines: Vec<_> = shown.lines().collect();
    assert!(
        lines.len() == 1 && lines[0].contains("internal error at"),
        "{shown}"
    );
    assert!(!socket.exists());
    assert_eq!(host.messages((0, 0)).len(), 1);
    assert!(host.messages((0, 0))[0].selected.1, "it was held");
    assert!(!host.selected((0, 0)));
    assert_eq!(host.kept((0, 0)).mode, 0);
}
