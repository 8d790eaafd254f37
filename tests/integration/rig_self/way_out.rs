//! The daemon's way out of a panic. Nothing is known that makes the binary panic, so a program of
//! our own takes it, on the daemon's own code.

use super::*;
use vhost_device_spi::listener::Listener;
use vhost_device_spi::{spidev, watchdog, way_out};

#[test]
fn panic_releases_chip_select_restores_the_mode_and_removes_the_sockets() {
    let name = "way_out::panic_releases_chip_select_restores_the_mode_and_removes_the_sockets";
    if is_program() {
        let device = node("/dev/spidev0.0");
        spidev::write_mode(device.as_raw_fd(), rules::CPOL).unwrap();
        let mut held = xfer(b"a", &mut []);
        held.cs_change = 1;
        assert_eq!(message(&device, &mut [held]), 1);

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let (_listener, socket) = Listener::create(&path).unwrap();
        assert!(path.exists());
        watchdog::install().unwrap();
        way_out::install();
        way_out::set_modes(vec![(device.as_raw_fd(), 0)]);
        way_out::set_sockets(vec![socket]);
        assert!(std::panic::catch_unwind(|| panic!("on purpose")).is_err());
        assert!(!path.exists());
        return;
    }
    let host = Host::with_devices(1);
    as_program(name, &host);
    assert_eq!(host.messages((0, 0)).len(), 1);
    assert!(host.messages((0, 0))[0].selected.1, "it was held");
    assert!(!host.selected((0, 0)));
    assert_eq!(host.kept((0, 0)).mode, 0);
}
