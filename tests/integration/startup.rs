// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the daemon does to the devices at start and leaves of them at the end, and the configuration space.

use crate::confinement::traced;
use crate::rig::kernel_rules as rules;
use crate::rig::record::Kind;
use crate::rig::*;

/// A supported mode as `mode_func_supported` says it: either level of CPHA and CPOL, and the single bits.
const BOTH_PHASES_AND_POLARITIES: u32 = 0b1111;
const LSB: u32 = 1 << 5;
const CS_HIGH: u32 = 1 << 4;

#[test]
fn config_space_is_made_of_the_devices_capabilities() {
    let (_host, _daemon, mut guest) = plugged();
    let config = guest.config();
    assert_eq!((config.cs_max_number, config.cs_change_supported), (1, 1));
    assert_eq!(
        (config.tx_nbits_supported, config.rx_nbits_supported),
        (0, 0)
    );
    assert_eq!(config.bits_per_word_mask, 1 << 7 | 1 << 15 | 1 << 31);
    assert_eq!(config.max_freq_hz, 10_000_000);
    assert_eq!(
        config.mode_func_supported & 0x2f,
        BOTH_PHASES_AND_POLARITIES | LSB
    );
    assert_eq!(config.mode_func_supported & CS_HIGH, 0);
}

#[test]
fn config_space_of_a_poor_controller_says_so() {
    let host = Host::new().controller(3, |c| {
        c.mode_bits = rules::CPHA;
        c.bits_per_word_mask = 1 << 7;
        c.max_speed_hz = 400_000;
    });
    let host = host.device((3, 1), 5_000_000, Loopback);
    let daemon = Daemon::start(&host, &["/dev/spidev3.1"]);
    let mut guest = Guest::connect(&daemon, 0);
    let config = guest.config();
    assert_eq!(config.bits_per_word_mask, 1 << 7);
    assert_eq!(
        config.mode_func_supported & 0x3f,
        0b0111,
        "both phases, clock idle low only"
    );
    assert_eq!(config.max_freq_hz, 400_000);
}

#[test]
fn config_space_of_a_controller_with_every_word_size_says_so() {
    let host = Host::new().controller(0, |c| c.bits_per_word_mask = 0xffff_fff8);
    let (_host, _daemon, mut guest) = plugged_into(host.device(DEV, 1_000_000, Loopback));
    assert_eq!(guest.config().bits_per_word_mask, 0xffff_fff8);
    for bits in [4, 7, 9, 12, 24, 31] {
        assert_eq!(
            guest
                .transfer(Head::default().bits(bits), &[1; 4], 4)
                .result,
            TRANS_OK,
            "{bits} bits"
        );
    }
}

#[test]
fn word_sizes_with_holes_are_offered_as_they_are_and_cost_no_edge() {
    let sizes = |all: &[u8]| all.iter().fold(0, |mask, bits| mask | 1 << (bits - 1));
    // Both ends of a range and their neighbours; every second one; the ends of all; one alone.
    for mask in [
        sizes(&[8, 9, 15, 16]),
        sizes(&[8, 10, 12, 14, 16]),
        sizes(&[1, 2, 8, 31, 32]),
        sizes(&[8]),
    ] {
        let host = Host::new().controller(0, |c| c.bits_per_word_mask = mask);
        let (host, _daemon, mut guest) = plugged_into(host.device(DEV, 1_000_000, Loopback));
        assert_eq!(guest.config().bits_per_word_mask, mask);
        assert_eq!((host.edges(DEV), host.kept(DEV).bits_per_word), (0, 8));
        for bits in 1..=32 {
            let has = mask >> (bits - 1) & 1 != 0;
            let expected = if has { TRANS_OK } else { PARAM_ERR };
            let head = Head::default().bits(bits);
            assert_eq!(guest.transfer(head, &[1; 4], 4).result, expected, "{bits}");
        }
    }
}

#[test]
fn word_sizes_without_8_bits_are_offered_though_linux_set_the_device_to_8() {
    for bits in [4, 16, 32] {
        let host = Host::new().controller(0, |c| c.bits_per_word_mask = 1 << (bits - 1));
        let host = host.device(DEV, 1_000_000, Loopback);
        assert_eq!(host.kept(DEV).bits_per_word, 8);
        host.leave_selected(DEV);
        let (host, daemon, mut guest) = plugged_into(host);
        assert_eq!(guest.config().bits_per_word_mask, 1 << (bits - 1));
        assert!(!host.selected(DEV));
        for (mode, size, expected) in [
            (0, bits, TRANS_OK),
            (virtio::CPHA, bits, TRANS_OK),
            (0, 8, PARAM_ERR),
        ] {
            let head = Head::default().bits(size).mode(mode);
            assert_eq!(guest.transfer(head, &[1; 4], 4).result, expected, "{bits}");
        }
        daemon.stop();
        assert_eq!((host.kept(DEV).mode, host.selected(DEV)), (0, false));
    }
}

#[test]
fn config_space_of_several_devices_unites_and_each_request_is_judged_by_its_own() {
    let host = Host::new().controller(1, |c| {
        c.mode_bits = 0;
        c.bits_per_word_mask = 1 << 11;
    });
    let host = host
        .device((0, 0), 1_000_000, Loopback)
        .device((1, 0), 20_000_000, Loopback);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0", "/dev/spidev1.0"]);
    let mut guest = Guest::connect(&daemon, 0);
    let config = guest.config();
    assert_eq!((config.cs_max_number, config.max_freq_hz), (2, 20_000_000));
    assert_eq!(config.bits_per_word_mask, 0x8000_8080 | 1 << 11);
    assert_eq!(config.mode_func_supported & 0xf, BOTH_PHASES_AND_POLARITIES);
    let on = |cs, bits, mode, freq| {
        Head::default()
            .chip_select(cs)
            .bits(bits)
            .mode(mode)
            .freq(freq)
    };
    let cases = [
        (on(0, 8, virtio::CPHA, 1_000_000), TRANS_OK),
        (on(0, 12, 0, 1_000_000), PARAM_ERR),
        (on(0, 8, 0, 20_000_000), PARAM_ERR),
        (on(1, 12, 0, 20_000_000), TRANS_OK),
        (on(1, 8, 0, 1_000_000), PARAM_ERR),
        (on(1, 12, virtio::CPHA, 1_000_000), PARAM_ERR),
    ];
    for (head, expected) in cases {
        assert_eq!(
            guest.transfer(head, &[1; 2], 2).result,
            expected,
            "{head:?}"
        );
    }
}

#[test]
fn start_never_sets_cs_high_and_selects_nothing() {
    let host = Host::with_devices(2);
    let _daemon = Daemon::start(&host, &["/dev/spidev0.0", "/dev/spidev0.1"]);
    for record in host.records() {
        let mode = [rules::WR_MODE, rules::WR_MODE32].contains(&record.request);
        assert!(!mode || !matches!(record.kind, Kind::Write(value) if value & rules::CS_HIGH != 0));
        assert_eq!(
            (record.edges, record.selected),
            (0, (false, false)),
            "{record:?}"
        );
    }
}

#[test]
fn start_restores_what_it_probed_and_so_does_the_end() {
    let host = Host::new().device_in_mode(DEV, 3_000_000, rules::CPHA, Loopback);
    host.change(DEV, |d| d.bits_per_word = 16);
    let before = host.kept(DEV);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    let same = |now: rules::Device| {
        assert_eq!(
            (now.mode, now.bits_per_word, now.speed_hz),
            (before.mode, before.bits_per_word, before.speed_hz)
        );
    };
    same(host.kept(DEV));
    let mut guest = Guest::connect(&daemon, 0);
    assert_eq!(
        guest
            .transfer(Head::default().mode(virtio::CPOL), &[1], 1)
            .result,
        TRANS_OK
    );
    drop(guest);
    daemon.stop();
    same(host.kept(DEV));
}

#[test]
fn start_of_an_active_high_device_keeps_it_so() {
    let host = Host::new().device_in_mode(DEV, 3_000_000, rules::CS_HIGH, Loopback);
    let (host, _daemon, mut guest) = plugged_into(host);
    assert_eq!(host.kept(DEV).mode & rules::CS_HIGH, rules::CS_HIGH);
    let config = guest.config();
    assert_ne!(
        config.mode_func_supported & CS_HIGH,
        0,
        "it is what the device is"
    );
    assert_eq!(
        guest
            .transfer(Head::default().mode(virtio::CS_HIGH), &[1], 1)
            .result,
        TRANS_OK
    );
    assert_eq!((host.edges(DEV), host.selected(DEV)), (2, false));
}

#[test]
fn start_on_gpio_chip_selects_makes_no_edges_and_serves() {
    let host = Host::new()
        .controller(0, |c| c.gpio_cs = true)
        .device(DEV, 3_000_000, Loopback);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    assert_eq!(host.edges(DEV), 0);
    let mut guest = Guest::connect(&daemon, 0);
    guest.assert_served();
    assert_eq!((host.edges(DEV), host.selected(DEV)), (2, false));
}

#[test]
fn start_releases_a_line_that_a_predecessor_left_asserted() {
    let host = Host::with_devices(1);
    host.leave_selected(DEV);
    let _daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    assert!(!host.selected(DEV));
    assert_eq!(host.edges(DEV), 1);
    let held = host.records().into_iter().filter(|r| r.selected.1).count();
    assert!(
        held <= 8,
        "only reading comes before: {held} calls left it asserted"
    );
}

#[test]
fn start_after_a_kill_in_the_middle_of_a_transfer_releases_the_line() {
    let (host, mut daemon, mut guest) = plugged();
    let gate = host.gate_message(DEV, 2);
    let request = guest.request(Head::default(), &pattern(20_000), 0);
    guest.queue(&request);
    guest.kick();
    gate.reached();
    daemon.kill();
    gate.release();
    drop(guest);
    // The message that was on the wire ends by itself: the kernel does not stop it for the death of its caller.
    assert!(sys::eventually(PATIENCE, || host.messages(DEV).len() == 3));
    let next = Setup::new(&host)
        .device("/dev/spidev0.0")
        .in_dir_of(&daemon)
        .start();
    assert!(!host.selected(DEV));
    Guest::connect(&next, 0).assert_served();
}

#[test]
fn start_of_a_device_that_reports_speed_0_is_refused() {
    let host = Host::new()
        .controller(0, |c| c.max_speed_hz = 0)
        .device(DEV, 0, Loopback);
    let dir = tempfile::tempdir().unwrap();
    let path = format!("--socket-path={}", dir.path().join("s").display());
    let args = [path.as_str(), "--device=/dev/spidev0.0"];
    // Issue 3: a device that reports 0 needs max-speed-hz.
    setup::run(&host, &args).refused(&["/dev/spidev0.0"]);
}

/// Starts a daemon of two guests that may have `count` fds.
fn launch_with_fds(host: &Host, count: u64) -> Daemon {
    let setup = Setup::new(host).guests(2).device("/dev/spidev0.0");
    setup.shell(&format!("ulimit -n {count}")).launch()
}

/// With `count` fds the start is refused; returns how many are needed.
fn fds_needed_beyond(host: &Host, count: u64) -> u64 {
    let mut daemon = launch_with_fds(host, count);
    assert_eq!(daemon.wait(PATIENCE).code(), Some(71));
    let line = daemon.wait_line(&[&format!("at most {count} open files"), "RLIMIT_NOFILE"]);
    let needed = line
        .split("but ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    needed.unwrap().parse().unwrap()
}

#[test]
fn start_with_too_few_fds_for_a_guest_is_refused_and_the_number_it_names_suffices() {
    if traced() {
        return; // strace needs fds too
    }
    let host = Host::with_devices(1);
    let needed = fds_needed_beyond(&host, 10);
    for count in [16, 24, needed - 1] {
        assert_eq!(fds_needed_beyond(&host, count), needed);
    }
    let daemon = launch_with_fds(&host, needed);
    daemon.wait_listening();
    let region = |n: u64| Region::new(0x1_0000_0000 + (n << 24), 16 << 20);
    let plug = Plug::default().regions((0..8).map(region).collect());
    plug.connect(&daemon, 1).assert_served();
}

#[test]
fn start_with_fewer_fds_than_the_guests_may_need_warns_and_with_as_many_does_not() {
    let few = launch_with_fds(&Host::with_devices(1), 64);
    let line = few.wait_line(&["warning", "at most 64 open files"]);
    let wanted = line.split("may need ").nth(1).unwrap().parse().unwrap();
    for (count, warns) in [(wanted - 1, true), (wanted, false)] {
        let daemon = launch_with_fds(&Host::with_devices(1), count);
        // Behind the warning, if there is one.
        daemon.wait_line(&["guest=1", "listening"]);
        let warned = daemon.said().iter().any(|line| line.contains("warning"));
        assert_eq!(warned, warns, "{count}");
    }
}
