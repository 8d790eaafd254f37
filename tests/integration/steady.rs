// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The steady state: one ioctl a request, and a mode set only where it differs.

use crate::rig::ask::*;
use crate::rig::record::Kind;
use crate::rig::*;

#[test]
fn steady_state_is_one_ioctl_a_request_and_two_edges() {
    for ask in [in_turn, together] {
        let (host, _daemon, mut guest) = plugged();
        let asks: Vec<_> = (0..60u32)
            .map(|n| both(let_go(0).bits(8).freq(1_000_000 + n)))
            .collect();
        assert_eq!(ask(&mut guest, &asks), [TRANS_OK; 60]);
        assert_eq!(trace(&host), ["0"; 60].join(" "));
        assert_eq!(host.edges(DEV), 120);
    }
}

#[test]
fn steady_state_in_a_mode_that_is_not_the_devices_is_the_same() {
    let (host, _daemon, mut guest) = plugged();
    let in_mode = both(let_go(0).mode(virtio::CPHA | virtio::CPOL));
    assert_eq!(in_turn(&mut guest, &[in_mode; 50]), [TRANS_OK; 50]);
    assert_eq!(trace(&host), format!("w0{}", " 0".repeat(50)));
    assert_eq!(host.edges(DEV), 100);
}

#[test]
fn steady_state_of_several_devices_is_the_same() {
    let host = three_devices();
    let (_daemon, mut guests) = serve_three(&host, 2, &[]);
    let asks: Vec<_> = (0..60).map(|n| both(let_go(n % 3))).collect();
    for guest in &mut guests {
        assert_eq!(together(guest, &asks), [TRANS_OK; 60]);
    }
    assert!(
        host.records()
            .iter()
            .all(|r| matches!(r.kind, Kind::Message(_)))
    );
    assert_eq!(host.records().len(), 120);
}

#[test]
fn steady_state_of_a_long_transfer_is_one_ioctl_a_piece() {
    let (host, _daemon, mut guest) = plugged();
    let long = Ask {
        head: let_go(0),
        tx: 40_960,
        rx: 40_960,
    };
    assert_eq!(in_turn(&mut guest, &[long, long]), [TRANS_OK; 2]);
    let one = format!("{}0", "0+ ".repeat(9));
    assert_eq!(trace(&host), format!("{one} {one}"));
    assert_eq!(host.edges(DEV), 4);
}

#[test]
fn mode_that_changes_costs_exactly_one_call_each_time() {
    let (host, _daemon, mut guest) = plugged();
    let modes = [virtio::CPHA, virtio::CPOL];
    let asks: Vec<_> = (0..40)
        .map(|n| both(let_go(0).mode(modes[n % 2])))
        .collect();
    assert_eq!(together(&mut guest, &asks), [TRANS_OK; 40]);
    assert_eq!(trace(&host), ["w0 0"; 40].join(" "));
    assert_eq!(host.edges(DEV), 80, "none of them by setting a mode");
}

#[test]
fn mode_is_kept_for_each_device_apart() {
    let host = three_devices();
    let (_daemon, mut guests) = serve_three(&host, 1, &[]);
    let asks: Vec<_> = (0..20)
        .flat_map(|_| {
            [
                both(let_go(0).mode(virtio::CPHA)),
                both(let_go(1).mode(virtio::CPOL)),
                both(let_go(2)),
            ]
        })
        .collect();
    assert_eq!(together(&mut guests[0], &asks), [TRANS_OK; 60]);
    let expected = format!("w0 0 w1 1 1:0{}", " 0 1 1:0".repeat(19));
    assert_eq!(trace(&host), expected);
}

#[test]
fn mode_of_a_refused_request_is_not_set() {
    let (host, _daemon, mut guest) = plugged();
    let refused = both(let_go(0).mode(virtio::CPHA).bits(0));
    let asks = [both(let_go(0)), refused, both(let_go(0)), refused];
    let (ok, no) = (TRANS_OK, PARAM_ERR);
    assert_eq!(together(&mut guest, &asks), [ok, no, ok, no]);
    assert_eq!(trace(&host), "0 0");
}

#[test]
fn mode_is_never_set_while_chip_select_is_held() {
    let host = three_devices();
    let args = ["--cs-hold=spec", "--cs-hold-timeout-ms=20000"];
    let (_daemon, mut guests) = serve_three(&host, 1, &args);
    let mut asks = vec![both(keep(0).mode(virtio::CPHA)); 60];
    asks.push(both(let_go(0).mode(virtio::CPHA)));
    assert_eq!(together(&mut guests[0], &asks), [TRANS_OK; 61]);
    assert_eq!(trace(&host), format!("w0 {}0", "0+ ".repeat(60)));
    assert_eq!(host.edges(DEV), 2);
}
