// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The config space and the judgement agree: all that is offered is accepted, and all else refused before the wire.

use crate::judgement::refused;
use crate::rig::ask::*;
use crate::rig::kernel_rules as rules;
use crate::rig::virtio::Config;
use crate::rig::*;

/// Hosts with a device 0 each, and the options behind its name.
fn kinds() -> Vec<(&'static str, Host, &'static str)> {
    let plain = Host::with_devices(1);
    let poor = Host::new().controller(0, |c| {
        c.mode_bits = rules::CPOL;
        c.bits_per_word_mask = 1 << 7;
        c.max_speed_hz = 1_000_000;
    });
    let rich = Host::new().controller(0, |c| {
        c.mode_bits |= rules::TX_QUAD | rules::TX_OCTAL | rules::RX_DUAL;
        c.bits_per_word_mask = 0;
    });
    let lanes = rules::TX_OCTAL | rules::RX_DUAL;
    vec![
        ("plain", plain, ""),
        ("poor", poor.device(DEV, 5_000_000, Loopback), ""),
        (
            "rich",
            rich.device_in_mode(DEV, 50_000_000, lanes, Loopback),
            ",word-delay=on,cs-setup=on,cs-high=on,min-speed-hz=1000",
        ),
        (
            "without loop",
            Host::with_devices(1),
            ",loop=off,max-speed-hz=2000000",
        ),
    ]
}

/// `head` is accepted or refused as `offered` says.
#[track_caller]
fn judged(host: &Host, guest: &mut Guest, what: &str, offered: bool, ask: Ask) {
    if offered {
        assert_eq!(together(guest, &[ask]), [TRANS_OK], "{what}: offered");
    } else {
        refused(host, guest, what, ask.head, &pattern(ask.tx), ask.rx);
    }
}

/// Runs `each` against all kinds of devices.
fn for_each_kind(each: fn(&str, &Host, &mut Guest, Config)) {
    for (name, host, options) in kinds() {
        let (_daemon, mut guest) = serve_with(&host, options, &[]);
        let config = guest.config();
        host.forget();
        each(name, &host, &mut guest, config);
    }
}

fn asks(head: Head) -> Ask {
    Ask { head, tx: 4, rx: 4 }
}

/// A head that every kind of device takes.
fn plain() -> Head {
    let_go(0).freq(400_000)
}

#[test]
fn config_chip_selects_below_cs_max_number_are_accepted_and_others_refused() {
    for_each_kind(|name, host, guest, config| {
        assert_eq!(config.cs_max_number, 1);
        for id in 0..=255 {
            let offered = id < config.cs_max_number;
            let ask = asks(plain().chip_select(id));
            judged(
                host,
                guest,
                &format!("{name}: chip select {id}"),
                offered,
                ask,
            );
        }
    });
}

#[test]
fn config_bits_per_word_in_the_mask_are_accepted_and_others_refused() {
    for_each_kind(|name, host, guest, config| {
        for bits in 0..=255u8 {
            let in_mask = |bits| config.bits_per_word_mask >> (bits - 1) & 1 != 0;
            let offered = (1..=32).contains(&bits) && in_mask(bits);
            let ask = asks(plain().bits(bits));
            judged(host, guest, &format!("{name}: {bits} bits"), offered, ask);
        }
        assert_ne!(
            config.bits_per_word_mask, 0,
            "0 would offer 255 bits as well"
        );
    });
}

#[test]
fn config_modes_supported_are_accepted_and_others_refused() {
    for_each_kind(|name, host, guest, config| {
        let func = config.mode_func_supported;
        assert!(
            func & 0b11 != 0 && func & 0b1100 != 0,
            "at least one level of each"
        );
        assert_eq!(func >> 7, 0, "no unknown bits");
        for mode in (0..32).chain((5..32).map(|bit| 1 << bit)) {
            let level = |bit: u32, at: u32| func >> at >> (mode >> bit & 1) & 1 != 0;
            let single = |bit: u32, at: u32| mode >> bit & 1 == 0 || func >> at & 1 != 0;
            let known = mode < 32 && level(0, 0) && level(1, 2);
            let offered = known && single(2, 4) && single(3, 5) && single(4, 6);
            let ask = asks(plain().mode(mode));
            judged(
                host,
                guest,
                &format!("{name}: mode {mode:#x}"),
                offered,
                ask,
            );
        }
    });
}

#[test]
fn config_lanes_supported_are_accepted_and_others_refused() {
    for_each_kind(|name, host, guest, config| {
        let (tx, rx) = (config.tx_nbits_supported, config.rx_nbits_supported);
        assert_eq!((tx >> 3, rx >> 3), (0, 0), "no unknown bits");
        for nbits in 0..=255u8 {
            let offered = |mask: u8| match nbits {
                0 | 1 => true,
                2 | 4 | 8 => mask & nbits >> 1 != 0,
                _ => false,
            };
            let head = |tx_nbits, rx_nbits| Head {
                tx_nbits,
                rx_nbits,
                ..plain()
            };
            let sends = Ask {
                head: head(nbits, 1),
                tx: 1,
                rx: 0,
            };
            judged(
                host,
                guest,
                &format!("{name}: tx_nbits {nbits}"),
                offered(tx),
                sends,
            );
            let receives = Ask {
                head: head(1, nbits),
                tx: 0,
                rx: 1,
            };
            judged(
                host,
                guest,
                &format!("{name}: rx_nbits {nbits}"),
                offered(rx),
                receives,
            );
        }
    });
}

#[test]
fn config_frequencies_up_to_the_maximum_are_accepted_and_others_refused() {
    for_each_kind(|name, host, guest, config| {
        let max = config.max_freq_hz;
        assert_ne!(max, 0, "0 would offer any");
        let floor = if name == "rich" { 1000 } else { 80 };
        for freq in [0, 1, 79, 80, 999, 1000, max - 1, max, max + 1, u32::MAX] {
            let offered = freq == 0 || (floor..=max).contains(&freq);
            let ask = both(plain().freq(freq));
            judged(host, guest, &format!("{name}: {freq} Hz"), offered, ask);
            if offered {
                let message = host.messages(DEV).pop().unwrap();
                let expected = if freq == 0 { max } else { freq };
                assert_eq!(message.transfers().unwrap()[0].speed_hz, expected, "{name}");
            }
        }
    });
}

#[test]
fn config_delays_up_to_the_maxima_are_accepted_and_others_refused() {
    type Set = fn(&mut Head, u32);
    for_each_kind(|name, host, guest, config| {
        let delays: [(&str, u32, Set); 4] = [
            ("word", config.max_word_delay_ns, |h, ns| {
                h.word_delay_ns = ns
            }),
            ("setup", config.max_cs_setup_ns, |h, ns| h.cs_setup_ns = ns),
            ("hold", config.max_cs_hold_ns, |h, ns| {
                h.cs_delay_hold_ns = ns
            }),
            ("inactive", config.max_cs_inactive_ns, |h, ns| {
                h.cs_change_delay_inactive_ns = ns
            }),
        ];
        for (delay, max, set) in delays {
            assert_eq!(
                max != 0,
                name == "rich" || ["hold", "inactive"].contains(&delay)
            );
            for ns in [0, 1, max, max + 1, u32::MAX] {
                let mut head = plain();
                set(&mut head, ns);
                judged(
                    host,
                    guest,
                    &format!("{name}: {delay} {ns}"),
                    ns <= max,
                    asks(head),
                );
            }
        }
    });
}

#[test]
fn config_cs_change_0_and_1_are_accepted_and_others_refused() {
    for_each_kind(|name, host, guest, config| {
        assert_eq!(config.cs_change_supported, 1);
        for value in 0..=255 {
            let ask = asks(plain().cs_change(value));
            judged(
                host,
                guest,
                &format!("{name}: cs_change {value}"),
                value <= 1,
                ask,
            );
        }
    });
}

#[test]
fn config_says_nothing_of_the_reserved_bytes_and_they_are_ignored() {
    for_each_kind(|name, host, guest, _| {
        for reserved in [[1, 0, 0], [0, 1, 0], [0, 0, 1], [255; 3]] {
            let head = Head {
                reserved,
                ..plain()
            };
            judged(
                host,
                guest,
                &format!("{name}: {reserved:?}"),
                true,
                asks(head),
            );
        }
    });
}

#[test]
fn config_all_at_its_limits_in_one_request_is_accepted() {
    let (_, host, options) = kinds().swap_remove(2);
    let (_daemon, mut guest) = serve_with(&host, options, &[]);
    let config = guest.config();
    let head = Head {
        chip_select_id: config.cs_max_number - 1,
        bits_per_word: 32,
        tx_nbits: 8,
        rx_nbits: 2,
        mode: 0b11111,
        freq: config.max_freq_hz,
        word_delay_ns: config.max_word_delay_ns,
        cs_setup_ns: config.max_cs_setup_ns,
        cs_delay_hold_ns: config.max_cs_hold_ns,
        cs_change_delay_inactive_ns: config.max_cs_inactive_ns,
        ..let_go(0)
    };
    assert_eq!(together(&mut guest, &[asks(head)]), [TRANS_OK]);
}
