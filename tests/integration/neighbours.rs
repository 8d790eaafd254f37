// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A controller that has devices of others: what would leave chip select asserted between messages is refused there.

use crate::judgement::refused;
use crate::rig::ask::*;
use crate::rig::*;

/// Chip select 0 is the daemon's; chip select 7 of the same controller is a kernel driver's.
fn shared() -> Host {
    let host = Host::with_devices(1);
    host.neighbour((0, 7));
    host
}

fn long(head: Head) -> Ask {
    Ask {
        head,
        tx: 4097,
        rx: 0,
    }
}

#[test]
fn neighbour_makes_transfers_of_several_messages_param_err() {
    let host = shared();
    let (daemon, mut guest) = serve_with(&host, "", &[]);
    let fits = Ask {
        head: let_go(0),
        tx: 4096,
        rx: 4096,
    };
    assert_eq!(together(&mut guest, &[fits]), [TRANS_OK]);
    for rx in [0, 4097] {
        refused(&host, &mut guest, "too long", let_go(0), &pattern(4097), rx);
    }
    refused(&host, &mut guest, "too long", let_go(0), &[], 4097);
    daemon.wait_line(&["spi0.7", "bufsiz", "exclusive-bus=on"]);
    // 13 bytes at 1 kHz are more than 100 ms, and so two messages.
    let slow = let_go(0).freq(1000);
    let fits = Ask {
        head: slow,
        tx: 12,
        rx: 0,
    };
    assert_eq!(together(&mut guest, &[fits]), [TRANS_OK]);
    refused(&host, &mut guest, "too slow", slow, &[1; 13], 0);
}

#[test]
fn neighbour_makes_transfers_longer_than_a_message_may_take_param_err_and_names_the_option() {
    let host = shared();
    let (daemon, mut guest) = serve_with(&host, "", &["--max-message-ms=5"]);
    // At 10 kHz, 6 bytes are just within 5 ms.
    let slow = let_go(0).freq(10_000);
    let fits = Ask {
        head: slow,
        tx: 6,
        rx: 0,
    };
    assert_eq!(together(&mut guest, &[fits]), [TRANS_OK]);
    refused(&host, &mut guest, "too slow", slow, &[1; 7], 0);
    daemon.wait_line(&["spi0.7", "--max-message-ms", "exclusive-bus=on"]);
}

#[test]
fn neighbour_makes_transfers_of_too_many_pieces_param_err() {
    let host = shared().bufsiz(65_536);
    let (_daemon, mut guest) = serve_with(&host, "", &[]);
    for (pieces, expected) in [(511, TRANS_OK), (512, PARAM_ERR)] {
        let whole = guest.contiguous(let_go(0), &pattern(pieces), 0);
        let cuts: Vec<_> = (0..pieces as u32).map(|n| Head::SIZE as u32 + n).collect();
        let request = whole.cut(&cuts, &[]);
        guest.queue_indirect(&request);
        guest.kick();
        let used = guest.wait_used(1)[0];
        assert_eq!(guest.outcome(&request, used).result, expected, "{pieces}");
    }
    assert_eq!(trace(&host), "0");
}

#[test]
fn neighbour_makes_holds_param_err() {
    let (ok, no) = (TRANS_OK, PARAM_ERR);
    let (k, g) = (both(keep(0)), both(let_go(0)));
    let cases: [(&str, &[Ask], &[u8], &str); 4] = [
        ("spec", &[k, g, k], &[no, ok, no], "0"),
        ("queued", &[k, k, g, k], &[no, no, ok, ok], "0 0"),
        (
            "write-read",
            &[write(keep(0)), read(keep(0)), k, write(let_go(0))],
            &[no, ok, ok, ok],
            "0 0 0",
        ),
        ("queued", &[g, g, g], &[ok; 3], "0 0 0"),
    ];
    for (policy, asks, expected, expected_trace) in cases {
        let host = shared();
        let arg = format!("--cs-hold={policy}");
        let (daemon, mut guest) = serve_with(&host, "", &[&arg]);
        assert_eq!(together(&mut guest, asks), expected, "{policy}");
        assert_trace(&host, expected_trace);
        if expected.contains(&no) {
            daemon.wait_line(&["spi0.7", "exclusive-bus=on"]);
        }
    }
}

#[test]
fn neighbour_and_one_request_at_a_time_of_the_default_policy_is_served() {
    // What an unmodified Linux guest sends: cs_change 0, one in flight.
    let host = shared();
    let (daemon, mut guest) = serve_with(&host, "", &[]);
    assert_eq!(in_turn(&mut guest, &[both(keep(0)); 10]), [TRANS_OK; 10]);
    assert_trace(&host, &["0"; 10].join(" "));
    assert!(daemon.said().is_empty());
}

#[test]
fn neighbour_and_exclusive_bus_on_is_served_in_full() {
    let host = shared();
    let options = ",exclusive-bus=on";
    let (daemon, mut guest) = serve_with(&host, options, &["--cs-hold=spec"]);
    let asks = [long(keep(0)), both(keep(0)), long(let_go(0))];
    assert_eq!(together(&mut guest, &asks), [TRANS_OK; 3]);
    assert_trace(&host, "0+ 0+ 0+ 0+ 0");
    assert!(daemon.said().is_empty());
}

#[test]
fn neighbour_that_is_a_spidev_not_given_counts_and_one_that_is_given_does_not() {
    for (given, expected) in [(1, PARAM_ERR), (2, TRANS_OK)] {
        let host = Host::with_devices(2);
        let setup = (0..given).fold(Setup::new(&host), |setup, n| {
            setup.device(&format!("/dev/spidev0.{n}"))
        });
        let daemon = setup.start();
        let mut guest = Guest::connect(&daemon, 0);
        assert_eq!(together(&mut guest, &[long(let_go(0))]), [expected]);
        if expected == PARAM_ERR {
            daemon.wait_line(&["spi0.1", "exclusive-bus=on"]);
        }
    }
}

#[test]
fn neighbour_on_another_controller_does_not_count() {
    let host = Host::with_devices(1);
    // spi01.0 is no name that the kernel gives, and spi10 is not spi1.
    host.neighbour((1, 0));
    host.neighbour((10, 0));
    let (_daemon, mut guest) = serve_with(&host, "", &["--cs-hold=spec"]);
    let asks = [long(keep(0)), long(let_go(0))];
    assert_eq!(together(&mut guest, &asks), [TRANS_OK; 2]);
}

#[test]
fn neighbour_of_a_controller_with_several_given_devices_counts_for_each() {
    let host = three_devices();
    host.neighbour((0, 3));
    let (_daemon, mut guests) = serve_three(&host, 1, &[]);
    let asks = [long(let_go(0)), long(let_go(1)), long(let_go(2))];
    let expected = [PARAM_ERR, PARAM_ERR, TRANS_OK];
    assert_eq!(together(&mut guests[0], &asks), expected);
}

#[test]
fn neighbour_nobody_can_tell_of_without_sysfs_and_all_is_served() {
    let host = shared().without_sysfs();
    let (_daemon, mut guest) = serve_with(&host, "", &[]);
    assert_eq!(together(&mut guest, &[long(let_go(0))]), [TRANS_OK]);
}
