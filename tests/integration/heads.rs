// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Values of the head that are wrong: PARAM_ERR before the wire.

use crate::judgement::refused;
use crate::rig::kernel_rules as rules;
use crate::rig::*;

#[test]
fn head_chip_select_beyond_the_devices_is_param_err() {
    let host = Host::with_devices(3);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0", "/dev/spidev0.2"]);
    let mut guest = Guest::connect(&daemon, 0);
    for id in [2, 3, 16, 255] {
        refused(
            &host,
            &mut guest,
            &format!("chip select {id}"),
            Head::default().chip_select(id),
            &[1],
            1,
        );
    }
}

#[test]
fn head_bits_per_word_not_supported_is_param_err() {
    let (host, _daemon, mut guest) = plugged();
    let config = guest.config();
    assert_eq!(config.bits_per_word_mask, 0x8000_8080);
    for bits in (0..=255u8).filter(|bits| ![8, 16, 32].contains(bits)) {
        refused(
            &host,
            &mut guest,
            &format!("{bits} bits"),
            Head::default().bits(bits),
            &[1; 4],
            4,
        );
    }
}

#[test]
fn head_nbits_unknown_or_unsupported_is_param_err() {
    let (host, _daemon, mut guest) = plugged();
    for nbits in [2, 3, 4, 5, 8, 16, 255] {
        let head = Head {
            tx_nbits: nbits,
            ..Head::default()
        };
        refused(
            &host,
            &mut guest,
            &format!("tx_nbits {nbits}"),
            head,
            &[1],
            0,
        );
        let head = Head {
            rx_nbits: nbits,
            ..Head::default()
        };
        refused(
            &host,
            &mut guest,
            &format!("rx_nbits {nbits}"),
            head,
            &[],
            1,
        );
    }
    let head = Head {
        tx_nbits: 0,
        rx_nbits: 0,
        ..Head::default()
    };
    assert_eq!(
        guest.transfer(head, &[1], 1).result,
        TRANS_OK,
        "0 is one wire"
    );
}

#[test]
fn head_nbits_supported_reach_the_device() {
    let wide = rules::TX_QUAD | rules::RX_OCTAL;
    let host = Host::new().controller(0, |c| c.mode_bits |= wide | rules::TX_DUAL | rules::RX_QUAD);
    let (host, _daemon, mut guest) =
        plugged_into(host.device_in_mode(DEV, 10_000_000, wide & rules::TX_QUAD, Loopback));
    let config = guest.config();
    let nbits = |supported: u8| {
        [1u8, 2, 4, 8]
            .into_iter()
            .filter(move |n| *n == 1 || supported & (n / 2) != 0)
    };
    assert!(
        config.tx_nbits_supported & 0b010 != 0,
        "quad, which the device tree says"
    );
    for n in nbits(config.tx_nbits_supported) {
        host.forget();
        assert_eq!(
            guest
                .transfer(
                    Head {
                        tx_nbits: n,
                        ..Head::default()
                    },
                    &[1],
                    0
                )
                .result,
            TRANS_OK,
            "tx_nbits {n}"
        );
        assert!(
            host.records().len() == 1,
            "its mode bits are set at start, not per transfer"
        );
        assert_eq!(
            host.messages(DEV)[0].transfers().unwrap()[0]
                .tx_nbits
                .max(1),
            n
        );
    }
    for n in nbits(config.rx_nbits_supported) {
        assert_eq!(
            guest
                .transfer(
                    Head {
                        rx_nbits: n,
                        ..Head::default()
                    },
                    &[],
                    1
                )
                .result,
            TRANS_OK,
            "rx_nbits {n}"
        );
    }
}

#[test]
fn head_mode_bits_unknown_or_unsupported_are_param_err() {
    let host = Host::new().controller(0, |c| c.mode_bits = rules::CPHA);
    let (host, _daemon, mut guest) = plugged_into(host.device(DEV, 10_000_000, Loopback));
    for mode in [
        virtio::CPOL,
        virtio::CPOL | virtio::CPHA,
        virtio::LSB_FIRST,
        virtio::LOOP,
        virtio::CS_HIGH,
    ] {
        refused(
            &host,
            &mut guest,
            &format!("mode {mode:#x}"),
            Head::default().mode(mode),
            &[1],
            1,
        );
    }
    for bit in 5..32 {
        refused(
            &host,
            &mut guest,
            &format!("mode bit {bit}"),
            Head::default().mode(1 << bit),
            &[1],
            1,
        );
    }
    assert_eq!(
        guest
            .transfer(Head::default().mode(virtio::CPHA), &[1], 1)
            .result,
        TRANS_OK
    );
}

#[test]
fn head_cs_high_on_an_active_low_device_is_param_err() {
    let (host, _daemon, mut guest) = plugged();
    assert_eq!(
        guest.config().mode_func_supported & 1 << 4,
        0,
        "not offered either"
    );
    refused(
        &host,
        &mut guest,
        "CS_HIGH",
        Head::default().mode(virtio::CS_HIGH),
        &[1],
        1,
    );
}

#[test]
fn head_frequency_above_the_devices_is_param_err() {
    let (host, _daemon, mut guest) = plugged();
    assert_eq!(
        guest
            .transfer(Head::default().freq(10_000_000), &[1], 1)
            .result,
        TRANS_OK
    );
    for freq in [10_000_001, 50_000_000, u32::MAX] {
        refused(
            &host,
            &mut guest,
            &format!("{freq} Hz"),
            Head::default().freq(freq),
            &[1],
            1,
        );
    }
}

#[test]
fn head_frequency_at_which_a_word_takes_too_long_is_param_err() {
    let (host, _daemon, mut guest) = plugged();
    // 8 bits at 10 Hz are 0.8 seconds in a call that nothing can interrupt.
    for freq in [1, 2, 10] {
        refused(
            &host,
            &mut guest,
            &format!("{freq} Hz"),
            Head::default().freq(freq),
            &[1],
            1,
        );
    }
}

#[test]
fn head_delays_above_the_offered_are_param_err() {
    let (host, _daemon, mut guest) = plugged();
    let config = guest.config();
    type Set = fn(&mut Head, u32);
    let delays: [(&str, u32, Set); 4] = [
        ("word_delay_ns", config.max_word_delay_ns, |h, ns| {
            h.word_delay_ns = ns
        }),
        ("cs_setup_ns", config.max_cs_setup_ns, |h, ns| {
            h.cs_setup_ns = ns
        }),
        ("cs_delay_hold_ns", config.max_cs_hold_ns, |h, ns| {
            h.cs_delay_hold_ns = ns
        }),
        (
            "cs_change_delay_inactive_ns",
            config.max_cs_inactive_ns,
            |h, ns| h.cs_change_delay_inactive_ns = ns,
        ),
    ];
    for (name, max, set) in delays {
        for ns in [max.saturating_add(1), u32::MAX]
            .into_iter()
            .filter(|ns| *ns > max)
        {
            let mut head = Head::default();
            set(&mut head, ns);
            refused(
                &host,
                &mut guest,
                &format!("{name} {ns}, offered {max}"),
                head,
                &[1],
                1,
            );
        }
    }
}

#[test]
fn head_nbits_of_a_controller_that_the_device_tree_does_not_mention_are_found_at_start() {
    let wide = rules::TX_QUAD | rules::TX_DUAL | rules::RX_OCTAL;
    let host = Host::new().controller(0, |c| c.mode_bits |= wide);
    let (host, _daemon, mut guest) = plugged_into(host.device(DEV, 10_000_000, Loopback));
    let config = guest.config();
    assert_eq!(
        (config.tx_nbits_supported, config.rx_nbits_supported),
        (0b011, 0b111),
        "a device with more lanes does with fewer"
    );
    for (tx_nbits, rx_nbits) in [(2, 1), (4, 2), (1, 4), (4, 8)] {
        let head = Head {
            tx_nbits,
            rx_nbits,
            ..Head::default()
        };
        assert_eq!(guest.transfer(head, &[1], 1).result, TRANS_OK);
    }
    assert_eq!(host.records().len(), 4, "nothing is set for a transfer");
    assert_eq!(host.edges(DEV), 8);
}
