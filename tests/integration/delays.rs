// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The four delays of a head: what of them reaches the device, when, and what is refused.

use crate::judgement::refused;
use crate::rig::ask::*;
use crate::rig::record::Transfer;
use crate::rig::*;
use std::time::Duration;

const MS: fn(u64) -> Duration = Duration::from_millis;
const SPEC: &[&str] = &["--cs-hold=spec", "--cs-hold-timeout-ms=20000"];

fn hold_ns(mut head: Head, ns: u32) -> Head {
    head.cs_delay_hold_ns = ns;
    head
}

fn setup_ns(mut head: Head, ns: u32) -> Head {
    head.cs_setup_ns = ns;
    head
}

fn word_ns(mut head: Head, ns: u32) -> Head {
    head.word_delay_ns = ns;
    head
}

fn inactive_ns(mut head: Head, ns: u32) -> Head {
    head.cs_change_delay_inactive_ns = ns;
    head
}

/// The transfers of all messages to the first device.
fn transfers(host: &Host) -> Vec<Transfer> {
    let messages = host.messages(DEV).into_iter();
    messages
        .flat_map(|m| m.transfers().unwrap().to_vec())
        .collect()
}

#[test]
fn delay_hold_is_rounded_up_to_microseconds_and_never_wraps() {
    let (host, _daemon, mut guest) = plugged();
    let cases = [
        (0, 0),
        (1, 1),
        (999, 1),
        (1000, 1),
        (1001, 2),
        (39_999_001, 40_000),
        (40_000_000, 40_000),
    ];
    for (ns, usecs) in cases {
        host.forget();
        assert_eq!(
            in_turn(&mut guest, &[both(hold_ns(let_go(0), ns))]),
            [TRANS_OK]
        );
        assert_eq!(transfers(&host)[0].delay_usecs, usecs, "{ns} ns");
        assert_eq!(host.edges(DEV), 2);
    }
    assert_eq!(guest.config().max_cs_hold_ns, 40_000_000);
    // 65,536 us would be 0 in the 16 bits that spidev has.
    for ns in [40_000_001, 65_536_000, 65_537_000, u32::MAX] {
        let head = hold_ns(let_go(0), ns);
        refused(&host, &mut guest, &format!("{ns} ns"), head, &[1], 1);
    }
}

#[test]
fn delay_hold_of_a_long_transfer_is_behind_its_last_byte_only() {
    let (host, _daemon, mut guest) = plugged();
    // Three messages, and several transfers in each.
    let head = hold_ns(let_go(0), 7000);
    let cuts: Vec<_> = (1..10).map(|n| Head::SIZE as u32 + n * 1000).collect();
    let request = guest
        .contiguous(head, &pattern(10_000), 10_000)
        .cut(&cuts, &[]);
    assert_eq!(guest.carry_out(&request).result, TRANS_OK);
    let mut delays: Vec<_> = transfers(&host).iter().map(|t| t.delay_usecs).collect();
    assert!(host.messages(DEV).len() > 2 && delays.len() >= 10);
    assert_eq!(delays.pop(), Some(7));
    assert!(delays.iter().all(|d| *d == 0), "{delays:?}");
}

#[test]
fn delay_hold_is_carried_out_once_per_assertion_by_the_message_that_releases() {
    for ask in [together, in_turn] {
        let host = Host::with_devices(1);
        let (_daemon, mut guest) = serve_with(&host, "", SPEC);
        let asks = [
            both(hold_ns(keep(0), 1000)),
            both(hold_ns(keep(0), 2000)),
            both(hold_ns(let_go(0), 3000)),
        ];
        assert_eq!(ask(&mut guest, &asks), [TRANS_OK; 3]);
        let delays: Vec<_> = transfers(&host).iter().map(|t| t.delay_usecs).collect();
        assert_eq!(delays, [0, 0, 3]);
        assert_eq!(trace(&host), "0+ 0+ 0");
    }
}

#[test]
fn delay_hold_is_kept_when_the_line_is_released_without_a_message() {
    let nexts = [
        ("another chip select", Some(both(let_go(1)))),
        ("another controller", Some(both(let_go(2)))),
        ("another mode", Some(both(let_go(0).mode(virtio::CPHA)))),
        ("the time-out", None),
    ];
    for (name, next) in nexts {
        let timeout = if next.is_some() { "20000" } else { "1" };
        let timeout = format!("--cs-hold-timeout-ms={timeout}");
        let held = both(hold_ns(keep(0), 40_000_000));
        let asks: Vec<_> = [Some(held), next].into_iter().flatten().collect();
        sys::on_time(|| {
            let host = three_devices();
            let (_daemon, mut guests) = serve_three(&host, 1, &["--cs-hold=spec", &timeout]);
            let results = in_turn(&mut guests[0], &asks);
            assert!(results.iter().all(|r| *r == TRANS_OK), "{name}");
            assert!(sys::eventually(PATIENCE, || !host.selected(DEV)), "{name}");
            let records = host.records();
            assert_eq!(transfers(&host)[0].delay_usecs, 0, "{name}");
            let mut after = records.iter();
            let released = after.find(|r| r.selected == (true, false)).unwrap();
            let held = released.at - records[0].at;
            assert!(held >= MS(40), "{name}: {held:?}");
            assert_one_selected_at_a_time(&host);
            sys::within(held, MS(150))
        });
    }
}

#[test]
fn delay_hold_of_a_hold_that_is_cut_is_kept_too() {
    let host = three_devices();
    let args = ["--cs-hold=spec", "--cs-hold-timeout-ms=5"];
    let (_daemon, mut guests) = serve_three(&host, 2, &args);
    let held = both(hold_ns(keep(0), 40_000_000));
    assert_eq!(in_turn(&mut guests[0], &[held]), [TRANS_OK]);
    assert_eq!(in_turn(&mut guests[1], &[both(let_go(1))]), [TRANS_OK]);
    assert_trace(&host, "0+ w0 1");
    let records = host.records();
    assert!(records[1].at - records[0].at >= MS(40));
}

#[test]
fn delay_setup_is_refused_unless_the_administrator_says_that_it_works() {
    for options in ["", ",cs-setup=off"] {
        let host = Host::with_devices(1);
        let (_daemon, mut guest) = serve_with(&host, options, &[]);
        assert_eq!(guest.config().max_cs_setup_ns, 0);
        for ns in [1, 1000, u32::MAX] {
            let head = setup_ns(let_go(0), ns);
            refused(&host, &mut guest, &format!("{ns} ns"), head, &[1], 1);
        }
    }
}

#[test]
fn delay_setup_is_a_transfer_of_no_bytes_in_front() {
    let host = Host::with_devices(1);
    let (_daemon, mut guest) = serve_with(&host, ",cs-setup=on", &[]);
    let max = guest.config().max_cs_setup_ns;
    assert!(max >= 1_000_000, "{max}");
    for (ns, usecs) in [(1, 1), (1000, 1), (1001, 2), (max, max.div_ceil(1000))] {
        host.forget();
        let outcome = guest.transfer(setup_ns(let_go(0), ns), b"data", 4);
        assert_eq!(
            (outcome.result, outcome.rx.as_slice()),
            (TRANS_OK, &b"data"[..])
        );
        let [delay, data] = &transfers(&host)[..] else {
            panic!("{:?}", host.records())
        };
        assert_eq!((delay.len, delay.tx_buf, delay.rx_buf), (0, 0, 0));
        assert_eq!(
            (u32::from(delay.delay_usecs), delay.cs_change),
            (usecs, 0),
            "{ns} ns"
        );
        assert_eq!((data.len, data.delay_usecs, data.cs_change), (4, 0, 0));
        assert_eq!((trace(&host).as_str(), host.edges(DEV)), ("0", 2));
    }
    for ns in [max + 1, u32::MAX] {
        let head = setup_ns(let_go(0), ns);
        refused(&host, &mut guest, &format!("{ns} ns"), head, &[1], 1);
    }
}

#[test]
fn delay_setup_is_carried_out_once_per_assertion() {
    let host = Host::with_devices(1);
    let (_daemon, mut guest) = serve_with(&host, ",cs-setup=on", SPEC);
    let first_of = |host: &Host| -> Vec<bool> {
        let messages = host.messages(DEV).into_iter();
        messages
            .map(|m| m.transfers().unwrap()[0].len == 0)
            .collect()
    };
    // A long one, one that goes on in its assertion, and one that begins another.
    let long = Ask {
        head: setup_ns(keep(0), 9000),
        tx: 9000,
        rx: 9000,
    };
    let asks = [
        long,
        both(setup_ns(keep(0), 9000)),
        both(setup_ns(let_go(0), 9000)),
        both(setup_ns(let_go(0), 9000)),
    ];
    assert_eq!(in_turn(&mut guest, &asks), [TRANS_OK; 4]);
    assert_eq!(trace(&host), "0+ 0+ 0+ 0+ 0 0");
    assert_eq!(first_of(&host), [true, false, false, false, false, true]);
    // Another mode is another assertion.
    host.forget();
    let other = both(setup_ns(let_go(0).mode(virtio::CPHA), 9000));
    assert_eq!(in_turn(&mut guest, &[both(keep(0)), other]), [TRANS_OK; 2]);
    assert_eq!(first_of(&host), [false, true]);
}

#[test]
fn delay_setup_with_words_cut_oddly_keeps_every_byte() {
    // Room for as many pieces of a byte as spidev takes, each charged with its alignment.
    let host = Host::with_devices(1).bufsiz(1 << 17);
    let (_daemon, mut guest) = serve_with(&host, ",cs-setup=on", &[]);
    // As many pieces as spidev takes, and one: the delay takes a place among them.
    for (bits, len) in [(16, 600), (32, 60), (8, 511), (8, 512)] {
        host.forget();
        let tx = pattern(len);
        let cuts: Vec<_> = (0..len as u32).map(|n| Head::SIZE as u32 + n).collect();
        let whole = guest.contiguous(setup_ns(let_go(0).bits(bits), 5000), &tx, len);
        let request = whole.cut(&cuts, &[1, 2, 5, len as u32]);
        guest.queue_indirect(&request);
        guest.kick();
        let used = guest.wait_used(1)[0];
        let outcome = guest.outcome(&request, used);
        assert_eq!(outcome.result, TRANS_OK, "{bits} bits, {len} bytes");
        assert!(outcome.rx == tx, "{bits} bits, {len} bytes");
        let all = transfers(&host);
        assert_eq!(all.iter().filter(|t| t.len == 0).count(), 1);
        if bits == 8 {
            let first = &host.messages(DEV)[0];
            assert_eq!(first.transfers().unwrap().len(), 511, "{len} bytes");
        }
        assert!(
            host.messages(DEV)
                .iter()
                .all(|m| m.transfers().unwrap().len() <= 511)
        );
        assert_eq!(host.edges(DEV), 2);
    }
}

#[test]
fn delay_between_words_is_refused_unless_the_administrator_says_that_it_works() {
    for options in ["", ",word-delay=off"] {
        let host = Host::with_devices(1);
        let (_daemon, mut guest) = serve_with(&host, options, &[]);
        assert_eq!(guest.config().max_word_delay_ns, 0);
        for ns in [1, 1000, u32::MAX] {
            let head = word_ns(let_go(0), ns);
            refused(&host, &mut guest, &format!("{ns} ns"), head, &[1], 1);
        }
    }
}

#[test]
fn delay_between_words_reaches_every_transfer_rounded_up_and_never_wraps() {
    let host = Host::with_devices(1);
    let (_daemon, mut guest) = serve_with(&host, ",word-delay=on", &[]);
    assert_eq!(guest.config().max_word_delay_ns, 255_000);
    let cases = [
        (0, 0),
        (1, 1),
        (1000, 1),
        (1001, 2),
        (254_001, 255),
        (255_000, 255),
    ];
    for (ns, usecs) in cases {
        host.forget();
        let ask = Ask {
            head: word_ns(let_go(0), ns),
            tx: 5000,
            rx: 5000,
        };
        assert_eq!(in_turn(&mut guest, &[ask]), [TRANS_OK]);
        let all = transfers(&host);
        assert!(all.len() > 1);
        assert!(
            all.iter().all(|t| t.word_delay_usecs == usecs),
            "{ns} ns: {all:?}"
        );
    }
    // 256 us would be 0 in the 8 bits that spidev has.
    for ns in [255_001, 256_000, 257_000, u32::MAX] {
        let head = word_ns(let_go(0), ns);
        refused(&host, &mut guest, &format!("{ns} ns"), head, &[1], 1);
    }
}

#[test]
fn delay_inactive_keeps_the_chip_select_released_for_its_guest_and_for_others() {
    let host = three_devices();
    let (_daemon, mut guests) = serve_three(&host, 2, &[]);
    assert_eq!(guests[0].config().max_cs_inactive_ns, 40_000_000);
    for next in [0, 1] {
        sys::on_time(|| {
            host.forget();
            let resting = both(inactive_ns(let_go(0), 40_000_000));
            assert_eq!(in_turn(&mut guests[0], &[resting]), [TRANS_OK]);
            assert_eq!(in_turn(&mut guests[next], &[both(let_go(0))]), [TRANS_OK]);
            let records = host.records();
            let pause = records[1].at - records[0].at;
            assert!(pause >= MS(40), "guest {next}: {pause:?}");
            assert_eq!(trace(&host), "0 0");
            sys::within(pause, MS(150))
        });
    }
    for ns in [40_000_001, u32::MAX] {
        let head = inactive_ns(let_go(0), ns);
        refused(&host, &mut guests[0], &format!("{ns} ns"), head, &[1], 1);
    }
}

#[test]
fn delay_inactive_holds_up_no_other_chip_select_and_no_message() {
    let host = three_devices();
    let (_daemon, mut guests) = serve_three(&host, 2, &[]);
    let resting = both(inactive_ns(let_go(0), 40_000_000));
    sys::on_time(|| {
        host.forget();
        let queued = queue(&mut guests[0], &[resting, both(let_go(0))]);
        assert!(sys::eventually(PATIENCE, || !host.records().is_empty()));
        assert_eq!(
            in_turn(&mut guests[1], &[both(let_go(1)), both(let_go(2))]),
            [TRANS_OK; 2]
        );
        for guest in &mut guests {
            assert_eq!(guest.config().cs_max_number, 3);
        }
        let meanwhile = trace(&host);
        assert_eq!(results(&mut guests[0], &queued), [TRANS_OK; 2]);
        let records = host.records();
        let of_first = |r: &&record::Record| r.device == DEV;
        let [first, second] = records.iter().filter(of_first).collect::<Vec<_>>()[..] else {
            panic!("{records:?}")
        };
        assert!(second.at - first.at >= MS(40));
        // The second of the first guest is still in its inactive delay.
        let expected = "0 1 1:0";
        (meanwhile == expected).then_some(()).ok_or(meanwhile)
    });
}

#[test]
fn delay_inactive_counts_from_the_release_of_a_held_line() {
    let host = three_devices();
    let args = ["--cs-hold=spec", "--cs-hold-timeout-ms=20000"];
    let (_daemon, mut guests) = serve_three(&host, 1, &args);
    let held = both(inactive_ns(keep(0), 40_000_000));
    let asks = [held, both(keep(0).mode(virtio::CPHA))];
    assert_eq!(in_turn(&mut guests[0], &asks), [TRANS_OK; 2]);
    assert_eq!(trace(&host), "0+ w0 w0 0+");
    let records = host.records();
    assert!(records[3].at - records[1].at >= MS(40));
    // Going on in an assertion is no matter of inactivity.
    let held = both(inactive_ns(keep(0).mode(virtio::CPHA), 40_000_000));
    sys::on_time(|| {
        host.forget();
        assert_eq!(in_turn(&mut guests[0], &[held, held, held]), [TRANS_OK; 3]);
        let records = host.records();
        sys::within(records[2].at - records[0].at, MS(40))
    });
}

#[test]
fn delay_counts_into_the_bound_on_time() {
    // 5 ms on the wire at 1 MHz are 625 bytes.
    let ask = |head| Ask {
        head,
        tx: 625,
        rx: 0,
    };
    for (options, delay) in [
        ("", hold_ns as fn(Head, u32) -> Head),
        (",cs-setup=on", setup_ns),
    ] {
        let host = Host::with_devices(1);
        let (_daemon, mut guest) = serve_with(&host, options, &["--max-transfer-ms=10"]);
        assert_eq!(
            in_turn(&mut guest, &[ask(delay(let_go(0), 5_000_000))]),
            [TRANS_OK]
        );
        let head = delay(let_go(0), 5_000_001);
        refused(&host, &mut guest, options, head, &[1; 625], 0);
    }
    let host = Host::with_devices(1);
    let (_daemon, mut guest) = serve_with(&host, ",word-delay=on", &["--max-transfer-ms=10"]);
    assert_eq!(
        in_turn(&mut guest, &[ask(word_ns(let_go(0), 8000))]),
        [TRANS_OK]
    );
    let head = word_ns(let_go(0), 8001);
    refused(&host, &mut guest, "word delay", head, &[1; 625], 0);
}
