// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Lines, time and dead devices of the faked host.

use super::*;

#[test]
fn fake_cs_high_selects_an_active_low_device() {
    if is_program() {
        let file = node("/dev/spidev0.0");
        let mut mode = rules::CS_HIGH;
        assert_eq!(ioctl(&file, rules::WR_MODE32, &mut mode), 0);
        return;
    }
    let host = Host::new().device((0, 0), 1_000_000, Loopback);
    as_program("lines::fake_cs_high_selects_an_active_low_device", &host);
    assert!(
        host.selected((0, 0)),
        "the idle level of active-high is what selects an active-low device"
    );
    assert_eq!(host.edges((0, 0)), 1);
}

#[test]
fn fake_gate_holds_a_message_on_the_wire() {
    if is_program() {
        let file = node("/dev/spidev0.0");
        assert_eq!(message(&file, &mut [xfer(b"x", &mut [])]), 1);
        return;
    }
    let host = Host::with_devices(1);
    let gate = host.gate_message((0, 0), 0);
    let watcher = {
        let host = host.clone();
        std::thread::spawn(move || {
            gate.reached();
            assert!(host.selected((0, 0)));
            assert!(host.messages((0, 0)).is_empty());
            gate.release();
        })
    };
    as_program("lines::fake_gate_holds_a_message_on_the_wire", &host);
    watcher.join().unwrap();
    assert!(sys::eventually(crate::rig::PATIENCE, || host
        .messages((0, 0))
        .len()
        == 1));
}

#[test]
fn fake_wire_time_is_taken_when_asked_for() {
    if is_program() {
        let file = node("/dev/spidev0.0");
        let mut one = xfer(&[0; 100], &mut []);
        (one.speed, one.delay) = (100_000, 5_000);
        for least in [13, 50] {
            let start = std::time::Instant::now();
            assert_eq!(message(&file, &mut [one]), 100);
            assert!(start.elapsed() >= std::time::Duration::from_millis(least));
        }
        return;
    }
    let host = Host::with_devices(1).real_time();
    host.delay_message((0, 0), 1, std::time::Duration::from_millis(40));
    as_program("lines::fake_wire_time_is_taken_when_asked_for", &host);
}

#[test]
fn fake_unplugged_device_answers_eshutdown_and_enxio() {
    if is_program() {
        let file = node("/dev/spidev0.0");
        assert_eq!(message(&file, &mut [xfer(b"x", &mut [])]), -libc::ESHUTDOWN);
        assert_eq!(ioctl(&file, rules::RD_MODE32, &mut 0u32), -libc::ESHUTDOWN);
        let failure = File::open("/dev/spidev0.1").unwrap_err();
        assert_eq!(failure.raw_os_error(), Some(libc::ENXIO));
        return;
    }
    let host = Host::with_devices(2);
    host.fail_ioctls((0, 0), libc::ESHUTDOWN);
    host.fail_open((0, 1), libc::ENXIO);
    as_program(
        "lines::fake_unplugged_device_answers_eshutdown_and_enxio",
        &host,
    );
}

#[test]
fn fake_half_duplex_and_gpio_controllers_follow_the_core() {
    if is_program() {
        let (half, gpio) = (node("/dev/spidev0.0"), node("/dev/spidev1.0"));
        assert_eq!(message(&half, &mut [xfer(b"x", &mut [0])]), -libc::EINVAL);
        assert_eq!(message(&half, &mut [xfer(b"x", &mut [])]), 1);
        let mut mode = 0u32;
        assert_eq!(ioctl(&gpio, rules::WR_MODE32, &mut mode), 0);
        mode = 0xff;
        assert_eq!(ioctl(&gpio, rules::RD_MODE32, &mut mode), 0);
        assert_eq!(mode, 0, "CS_HIGH is hidden");
        return;
    }
    let host = Host::new()
        .controller(0, |c| c.half_duplex = true)
        .controller(1, |c| c.gpio_cs = true);
    let host = host
        .device((0, 0), 1_000_000, Loopback)
        .device((1, 0), 1_000_000, Loopback);
    as_program(
        "lines::fake_half_duplex_and_gpio_controllers_follow_the_core",
        &host,
    );
    assert_eq!(
        host.kept((1, 0)).mode & rules::CS_HIGH,
        rules::CS_HIGH,
        "and forced"
    );
    assert_eq!(host.edges((1, 0)), 0);
}
