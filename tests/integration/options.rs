// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Options of devices and bounds of transfers: who may use what, and how much of it.

use crate::judgement::refused;
use crate::rig::ask::*;
use crate::rig::kernel_rules as rules;
use crate::rig::record::Kind;
use crate::rig::*;

const FUNC_CS_HIGH: u32 = 1 << 4;
const FUNC_LOOP: u32 = 1 << 6;

#[test]
fn option_guests_gives_each_guest_its_own_chip_selects() {
    let host = (0..4).fold(Host::new(), |host, n| {
        host.device((n / 2, n % 2), 1_000_000 * (n + 1), Reads(n as u8))
    });
    let daemon = Setup::new(&host)
        .guests(4)
        .device("/dev/spidev0.0,guests=0")
        .device("/dev/spidev0.1,guests=1-2")
        .device("/dev/spidev1.0,guests=0+2")
        .device("/dev/spidev1.1")
        .start();
    // What each chip select of each guest reads.
    let expected: [&[u8]; 4] = [&[0, 2, 3], &[1, 3], &[1, 2, 3], &[3]];
    for (n, answers) in expected.into_iter().enumerate() {
        let mut guest = Guest::connect(&daemon, n);
        let config = guest.config();
        assert_eq!(
            usize::from(config.cs_max_number),
            answers.len(),
            "guest {n}"
        );
        assert_eq!(config.max_freq_hz, 4_000_000, "of all its devices");
        for (chip_select, answer) in answers.iter().enumerate() {
            let head = let_go(chip_select as u8);
            assert_eq!(guest.transfer(head, &[], 1).rx, [*answer], "guest {n}");
            // Each device judges by its own limit, whatever the guest's others can do.
            let limit = 1_000_000 * (u32::from(*answer) + 1);
            assert_eq!(guest.transfer(head.freq(limit), &[], 1).result, TRANS_OK);
            let above = guest.transfer(head.freq(limit + 1), &[], 1);
            assert_eq!(above.result, PARAM_ERR, "guest {n}");
        }
        for chip_select in answers.len() as u8..=16 {
            host.forget();
            let outcome = guest.transfer(let_go(chip_select), &[], 1);
            assert_eq!(outcome.result, PARAM_ERR, "guest {n}: {chip_select}");
            assert!(host.records().is_empty());
        }
    }
}

#[test]
fn option_guests_shapes_the_config_space_of_each_guest() {
    let host = Host::new().controller(1, |c| {
        c.mode_bits = rules::CPHA;
        c.bits_per_word_mask = 1 << 7;
    });
    let host = host
        .device((0, 0), 10_000_000, Loopback)
        .device((1, 0), 1_000_000, Loopback);
    let daemon = Setup::new(&host)
        .guests(2)
        .device("/dev/spidev0.0,guests=0,word-delay=on")
        .device("/dev/spidev1.0,guests=1")
        .start();
    let (rich, poor) = (
        Guest::connect(&daemon, 0).config(),
        Guest::connect(&daemon, 1).config(),
    );
    assert_eq!(
        (rich.max_freq_hz, poor.max_freq_hz),
        (10_000_000, 1_000_000)
    );
    assert_eq!(
        (rich.max_word_delay_ns, poor.max_word_delay_ns),
        (255_000, 0)
    );
    assert_eq!(poor.bits_per_word_mask, 1 << 7);
    assert_eq!(poor.mode_func_supported, 0b0111);
    assert_ne!(rich.mode_func_supported, poor.mode_func_supported);
}

#[test]
fn option_guests_that_names_nobody_or_leaves_somebody_without_is_a_usage_error() {
    let host = Host::with_devices(2);
    let cases: [&[&str]; 6] = [
        &["--device=/dev/spidev0.0,guests=1"],
        &["--device=/dev/spidev0.0,guests=0-63"],
        &["--device=/dev/spidev0.0,guests="],
        &["--device=/dev/spidev0.0,guests=1-0"],
        &["--device=/dev/spidev0.0,guests=0,guests=x"],
        &["--socket-count=2", "--device=/dev/spidev0.0,guests=0"],
    ];
    for args in cases {
        let args = [&["--socket-path=s"], args].concat();
        assert_eq!(
            setup::run(&host, &args).refused(&["--device"]),
            64,
            "{args:?}"
        );
    }
    assert!(host.records().is_empty(), "nothing was opened");
}

#[test]
fn option_unknown_or_malformed_behind_a_device_is_a_usage_error() {
    let host = Host::with_devices(1);
    for option in [
        "speed=1",
        "max-speed-hz=0",
        "max-speed-hz=1M",
        "min-speed-hz=-1",
        "max-speed-hz=4294967296",
        "cs-high=yes",
        "loop",
        "word-delay=",
        "max-speed-hz=10000000,max-speed-hz=1000",
        "guests=0,cs-high=on,guests=0",
        "loop=on,loop=on",
        "",
    ] {
        let device = format!("--device=/dev/spidev0.0,{option}");
        let args = ["--socket-path=s", &device];
        assert_eq!(setup::run(&host, &args).refused(&["--device", option]), 64);
    }
}

#[test]
fn device_tree_speed_is_the_limit_and_what_0_means() {
    // The controller could do 50 MHz, and the kernel would let it.
    let host = Host::new().device(DEV, 1_000_000, Loopback);
    let (_daemon, mut guest) = serve_with(&host, "", &[]);
    assert_eq!(guest.config().max_freq_hz, 1_000_000);
    assert_eq!(together(&mut guest, &[both(let_go(0).freq(0))]), [TRANS_OK]);
    let used = host.messages(DEV)[0].transfers().unwrap()[0].speed_hz;
    assert_eq!(
        used, 1_000_000,
        "said outright: 0 could be raised by another opener"
    );
    for freq in [1_000_001, 50_000_000] {
        refused(&host, &mut guest, "above", let_go(0).freq(freq), &[1], 1);
    }
}

#[test]
fn device_tree_speed_is_enforced_though_another_opener_raises_it_later() {
    let host = Host::new().device(DEV, 1_000_000, Loopback);
    let (_daemon, mut guest) = serve_with(&host, "", &[]);
    host.change(DEV, |d| d.speed_hz = 20_000_000);
    refused(
        &host,
        &mut guest,
        "above",
        let_go(0).freq(1_000_001),
        &[1],
        1,
    );
    host.forget();
    assert_eq!(together(&mut guest, &[both(let_go(0).freq(0))]), [TRANS_OK]);
    assert_eq!(
        host.messages(DEV)[0].transfers().unwrap()[0].speed_hz,
        1_000_000
    );
}

#[test]
fn option_max_speed_replaces_the_devices_own() {
    for max in [999, 500_000, 2_000_000, 30_000_000] {
        let host = Host::new().device(DEV, 1_000_000, Loopback);
        let options = format!(",max-speed-hz={max}");
        let (_daemon, mut guest) = serve_with(&host, &options, &[]);
        assert_eq!(guest.config().max_freq_hz, max);
        for freq in [max, 0] {
            let asks = [both(let_go(0).freq(freq)), both(let_go(0).freq(max + 1))];
            assert_eq!(together(&mut guest, &asks), [TRANS_OK, PARAM_ERR], "{max}");
            let message = host.messages(DEV).pop().unwrap();
            assert_eq!(message.transfers().unwrap()[0].speed_hz, max);
        }
    }
}

#[test]
fn option_max_speed_lets_a_device_serve_that_reports_none() {
    let host = Host::new().controller(0, |c| c.max_speed_hz = 0);
    let host = host.device(DEV, 0, Loopback);
    let args = ["--socket-path=s", "--device=/dev/spidev0.0"];
    let code = setup::run(&host, &args).refused(&["/dev/spidev0.0", "max-speed-hz"]);
    assert_eq!(code, 78);
    let (_daemon, mut guest) = serve_with(&host, ",max-speed-hz=3000000", &[]);
    assert_eq!(guest.config().max_freq_hz, 3_000_000);
    let asks = [both(let_go(0).freq(0)), both(let_go(0).freq(3_000_001))];
    assert_eq!(together(&mut guest, &asks), [TRANS_OK, PARAM_ERR]);
    assert_eq!(
        host.messages(DEV)[0].transfers().unwrap()[0].speed_hz,
        3_000_000
    );
}

#[test]
fn option_min_speed_refuses_what_is_below() {
    let host = Host::with_devices(1);
    let (_daemon, mut guest) = serve_with(&host, ",min-speed-hz=200000", &[]);
    for freq in [0, 200_000, 200_001, 10_000_000] {
        assert_eq!(
            together(&mut guest, &[both(let_go(0).freq(freq))]),
            [TRANS_OK]
        );
    }
    for freq in [1, 199_999] {
        refused(&host, &mut guest, "below", let_go(0).freq(freq), &[1], 1);
    }
    let args = [
        "--socket-path=s",
        "--device=/dev/spidev0.0,min-speed-hz=10000001",
    ];
    let host = Host::with_devices(1);
    let code = setup::run(&host, &args).refused(&["/dev/spidev0.0", "min-speed-hz"]);
    assert_eq!(code, 78);
}

#[test]
fn option_min_speed_at_the_limit_leaves_that_speed_alone() {
    let host = Host::with_devices(1);
    let (_daemon, mut guest) = serve_with(&host, ",min-speed-hz=10000000", &[]);
    for (hz, expected) in [(10_000_000, TRANS_OK), (9_999_999, PARAM_ERR)] {
        let ask = both(let_go(0).freq(hz));
        assert_eq!(together(&mut guest, &[ask]), [expected], "{hz} Hz");
    }
}

#[test]
fn option_cs_high_lets_guests_choose_the_polarity() {
    let host = Host::with_devices(1);
    let (daemon, mut guest) = serve_with(&host, ",cs-high=on", &[]);
    assert_ne!(guest.config().mode_func_supported & FUNC_CS_HIGH, 0);
    let high = both(let_go(0).mode(virtio::CS_HIGH));
    assert_eq!(in_turn(&mut guest, &[high, both(let_go(0))]), [TRANS_OK; 2]);
    assert_eq!(trace(&host), "w0 0 w0 0");
    let modes: Vec<_> = host.records().iter().filter_map(set).collect();
    assert_eq!(modes, [rules::CS_HIGH, 0]);
    drop(guest);
    daemon.stop();
    assert_eq!(host.kept(DEV).mode, 0);
}

#[test]
fn option_cs_high_off_takes_it_from_an_active_high_device() {
    let host = Host::new().device_in_mode(DEV, 10_000_000, rules::CS_HIGH, Loopback);
    let (_daemon, mut guest) = serve_with(&host, ",cs-high=off", &[]);
    assert_eq!(guest.config().mode_func_supported & FUNC_CS_HIGH, 0);
    let head = let_go(0).mode(virtio::CS_HIGH);
    refused(&host, &mut guest, "CS_HIGH", head, &[1], 1);
    // Not the guests' to say, and not theirs to turn: the device stays what it is.
    assert_eq!(host.kept(DEV).mode, rules::CS_HIGH);
    assert_eq!((trace(&host).as_str(), host.edges(DEV)), ("0", 2));
}

#[test]
fn polarity_of_an_active_high_device_is_never_turned_by_a_guest() {
    let host = Host::new().device_in_mode(DEV, 10_000_000, rules::CS_HIGH, Loopback);
    let (_daemon, mut guest) = serve_with(&host, "", &[]);
    for mode in [
        0,
        virtio::CS_HIGH,
        virtio::CPHA,
        virtio::CPHA | virtio::CS_HIGH,
    ] {
        assert_eq!(
            together(&mut guest, &[both(let_go(0).mode(mode))]),
            [TRANS_OK]
        );
        assert_ne!(host.kept(DEV).mode & rules::CS_HIGH, 0, "mode {mode:#x}");
    }
    assert!(!host.selected(DEV));
}

#[test]
fn option_loop_off_takes_the_loop_from_the_guests() {
    let host = Host::with_devices(1);
    let (_daemon, mut guest) = serve_with(&host, "", &[]);
    assert_ne!(guest.config().mode_func_supported & FUNC_LOOP, 0);
    let asks = [both(let_go(0).mode(virtio::LOOP))];
    assert_eq!(together(&mut guest, &asks), [TRANS_OK]);
    let modes: Vec<_> = host.records().iter().filter_map(set).collect();
    assert_eq!(modes, [rules::LOOP], "spidev's bit, not VIRTIO's");
    let host = Host::with_devices(1);
    let (_daemon, mut guest) = serve_with(&host, ",loop=off", &[]);
    assert_eq!(guest.config().mode_func_supported & FUNC_LOOP, 0);
    let head = let_go(0).mode(virtio::LOOP);
    refused(&host, &mut guest, "LOOP", head, &[1], 1);
}

/// The mode that a record sets.
fn set(record: &record::Record) -> Option<u32> {
    match record.kind {
        Kind::Write(mode) if record.request == rules::WR_MODE32 => Some(mode),
        _ => None,
    }
}

#[test]
fn lanes_of_the_device_are_enabled_once_at_start_and_stay() {
    for (tx, rx, nbits) in [
        (rules::TX_DUAL, rules::RX_DUAL, 2),
        (rules::TX_QUAD, rules::RX_QUAD, 4),
        (rules::TX_OCTAL, rules::RX_OCTAL, 8),
    ] {
        let host = Host::new().controller(0, |c| c.mode_bits |= tx | rx);
        let host = host.device_in_mode(DEV, 10_000_000, tx | rx, Loopback);
        let (_daemon, mut guest) = serve_with(&host, "", &[]);
        let config = guest.config();
        for supported in [config.tx_nbits_supported, config.rx_nbits_supported] {
            assert_ne!(supported & nbits >> 1, 0, "{nbits} lanes");
        }
        assert_eq!(host.kept(DEV).mode, tx | rx, "{nbits} lanes");
        for (mode, bits) in [(0, 0), (virtio::CPHA, rules::CPHA), (0, 0)] {
            for (tx_nbits, rx_nbits) in [(nbits, nbits), (1, nbits), (nbits, 0), (1, 1)] {
                let head = Head {
                    tx_nbits,
                    rx_nbits,
                    ..let_go(0).mode(mode)
                };
                assert_eq!(together(&mut guest, &[both(head)]), [TRANS_OK]);
                let message = host.messages(DEV).pop().unwrap();
                let transfer = &message.transfers().unwrap()[0];
                let lanes = (transfer.tx_nbits.max(1), transfer.rx_nbits.max(1));
                assert_eq!(lanes, (tx_nbits, rx_nbits.max(1)));
                assert_eq!(host.kept(DEV).mode, tx | rx | bits);
            }
        }
        assert_eq!(
            trace(&host),
            "0 0 0 0 w0 0 0 0 0 w0 0 0 0 0",
            "{nbits} lanes"
        );
        let modes: Vec<_> = host.records().iter().filter_map(set).collect();
        assert!(modes.iter().all(|m| m & (tx | rx) == tx | rx), "{modes:x?}");
    }
}

#[test]
fn lanes_that_the_device_tree_does_not_name_are_the_most_that_the_controller_has_each_way() {
    use rules::{RX_DUAL, RX_OCTAL, RX_QUAD, TX_DUAL, TX_OCTAL, TX_QUAD};
    for (lanes, wanted) in [
        (TX_DUAL | RX_DUAL, TX_DUAL | RX_DUAL),
        (TX_DUAL | TX_QUAD | RX_DUAL | RX_QUAD, TX_QUAD | RX_QUAD),
        (
            TX_DUAL | TX_QUAD | TX_OCTAL | RX_DUAL | RX_QUAD | RX_OCTAL,
            TX_OCTAL | RX_OCTAL,
        ),
        (TX_DUAL | RX_DUAL | RX_QUAD, TX_DUAL | RX_QUAD),
        (TX_DUAL | TX_QUAD | RX_DUAL, TX_QUAD | RX_DUAL),
        (TX_QUAD | TX_OCTAL, TX_OCTAL),
        (RX_QUAD | RX_OCTAL, RX_OCTAL),
    ] {
        let host = Host::new().controller(0, |c| c.mode_bits |= lanes);
        let host = host.device(DEV, 10_000_000, Loopback);
        let (_daemon, mut guest) = serve_with(&host, "", &[]);
        assert_eq!(host.kept(DEV).mode, wanted, "{lanes:#x}");
        guest.assert_served();
    }
}

#[test]
fn lanes_that_the_driver_refuses_are_not_offered_and_fewer_are_tried() {
    let host = Host::new().controller(0, |c| {
        c.mode_bits |= rules::TX_OCTAL | rules::TX_QUAD | rules::RX_QUAD;
        c.refused_lanes = rules::TX_OCTAL;
    });
    let host = host.device(DEV, 10_000_000, Loopback);
    let (_daemon, mut guest) = serve_with(&host, "", &[]);
    let config = guest.config();
    let supported = (config.tx_nbits_supported, config.rx_nbits_supported);
    assert_eq!(supported, (2 | 1, 2 | 1), "four and two");
    assert_eq!(host.kept(DEV).mode, rules::TX_QUAD | rules::RX_QUAD);
    assert_eq!(host.edges(DEV), 0);
}

#[test]
fn lanes_of_a_device_with_three_wires_are_one_for_one_direction_at_a_time() {
    let host = Host::new().controller(0, |c| {
        c.mode_bits |= rules::THREE_WIRE | rules::TX_DUAL | rules::RX_DUAL;
    });
    let host = host.device_in_mode(DEV, 10_000_000, rules::THREE_WIRE, Loopback);
    let (_daemon, mut guest) = serve_with(&host, "", &[]);
    let config = guest.config();
    assert_eq!(config.tx_nbits_supported | config.rx_nbits_supported, 0);
    assert_eq!(host.edges(DEV), 0);
    for (tx, rx_len, result) in [
        (&[1, 2][..], 0, TRANS_OK),
        (&[], 2, TRANS_OK),
        (&[1, 2], 2, PARAM_ERR),
    ] {
        assert_eq!(guest.transfer(let_go(0), tx, rx_len).result, result);
        assert_eq!(host.kept(DEV).mode, rules::THREE_WIRE);
    }
    assert_eq!(host.messages(DEV).len(), 2);
}

#[test]
fn option_max_transfer_len_is_taken_at_the_limit_and_refused_above() {
    for max in [1, 100, 4096, 10_000] {
        let host = Host::with_devices(1);
        let arg = format!("--max-transfer-len={max}");
        let (_daemon, mut guest) = serve_with(&host, "", &[&arg]);
        for (tx, rx) in [(max, max), (max, 0), (0, max)] {
            let ask = Ask {
                head: let_go(0),
                tx,
                rx,
            };
            assert_eq!(together(&mut guest, &[ask]), [TRANS_OK], "{max}");
            let (tx, rx) = (tx + usize::from(tx > 0), rx + usize::from(rx > 0));
            let what = format!("{} of {max} bytes", tx.max(rx));
            refused(&host, &mut guest, &what, let_go(0), &pattern(tx), rx);
        }
    }
}

#[test]
fn option_max_transfer_ms_is_taken_at_the_limit_and_refused_above() {
    // Arguments, and the bytes that take just that long at 1 MHz.
    let cases: [(&[&str], usize); 3] = [
        (&["--max-transfer-ms=1"], 125),
        (&["--max-transfer-ms=100"], 12_500),
        (&[], 1_250_000),
    ];
    for (args, len) in cases {
        let host = Host::with_devices(1).bufsiz(65_536);
        let (_daemon, mut guest) = serve_with(&host, "", args);
        let ask = |tx| Ask {
            head: let_go(0),
            tx,
            rx: 0,
        };
        assert_eq!(together(&mut guest, &[ask(len)]), [TRANS_OK], "{args:?}");
        let head = let_go(0);
        refused(&host, &mut guest, "above", head, &pattern(len + 1), 0);
    }
}
