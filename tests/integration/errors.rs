// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Transfers that fail: TRANS_ERR for one request, chip select released, and all else as if nothing had been.

use crate::rig::ask::*;
use crate::rig::*;

const ERRNOS: [i32; 9] = [
    libc::EINVAL,
    libc::EMSGSIZE,
    libc::EFAULT,
    libc::ENOMEM,
    libc::EIO,
    libc::ETIMEDOUT,
    libc::EAGAIN,
    libc::EBUSY,
    libc::ESHUTDOWN,
];

#[test]
fn error_of_any_number_at_every_piece_is_trans_err_and_ends_the_transfer() {
    let (host, _daemon, mut guest) = plugged();
    // Five messages of 4096 bytes at most.
    let long = Ask {
        head: let_go(0),
        tx: 17_000,
        rx: 17_000,
    };
    let request = guest.request(long.head, &pattern(long.tx), long.rx);
    for errno in ERRNOS {
        for when in [When::BeforeWire, When::OnWire, When::AfterWire] {
            for piece in 0..5 {
                let what = format!("errno {errno} {when:?} at piece {piece}");
                host.forget();
                host.fail_message(DEV, piece, when, errno);
                let outcome = guest.carry_out(&request);
                assert_eq!(
                    (outcome.result, outcome.used_len),
                    (TRANS_ERR, 17_001),
                    "{what}"
                );
                let good = "0+ ".repeat(piece as usize);
                let last = if piece == 4 { "0" } else { "0+" };
                let expected = format!("{good}{last}! w0");
                assert_eq!(
                    trace(&host),
                    expected,
                    "{what}: not tried again, nothing behind"
                );
                assert!(!host.selected(DEV), "{what}");
                host.forget();
                guest.assert_served();
                assert_eq!((trace(&host).as_str(), host.edges(DEV)), ("0", 2), "{what}");
            }
        }
    }
}

#[test]
fn error_of_a_read_or_a_write_is_trans_err_too() {
    let (host, _daemon, mut guest) = plugged();
    for (tx, rx) in [(10, 0), (0, 10), (10, 10)] {
        host.fail_message(DEV, 0, When::OnWire, libc::EIO);
        let ask = Ask {
            head: let_go(0),
            tx,
            rx,
        };
        assert_eq!(in_turn(&mut guest, &[ask, ask]), [TRANS_ERR, TRANS_OK]);
    }
}

#[test]
fn error_of_setting_a_mode_is_trans_err_and_the_mode_is_set_again_by_the_next() {
    let (host, _daemon, mut guest) = plugged();
    let other = both(let_go(0).mode(virtio::CPHA));
    host.fail_ioctls(DEV, libc::EIO);
    assert_eq!(in_turn(&mut guest, &[other]), [TRANS_ERR]);
    assert!(
        host.messages(DEV).is_empty(),
        "not in a mode that it does not have"
    );
    host.fail_ioctls(DEV, 0);
    host.forget();
    assert_eq!(
        in_turn(&mut guest, &[other, both(let_go(0))]),
        [TRANS_OK; 2]
    );
    assert_eq!(trace(&host), "w0 0 w0 0");
}

#[test]
fn error_among_queued_requests_is_that_ones_only() {
    let (host, _daemon, mut guest) = plugged();
    let bad = [0u64, 3, 4, 17, 49];
    for (n, at) in bad.into_iter().enumerate() {
        let when = [When::BeforeWire, When::OnWire, When::AfterWire][n % 3];
        host.fail_message(DEV, at, when, libc::EIO);
    }
    let results = together(&mut guest, &[both(let_go(0)); 50]);
    for (n, result) in results.into_iter().enumerate() {
        let failed = bad.contains(&(n as u64));
        assert_eq!(
            result,
            if failed { TRANS_ERR } else { TRANS_OK },
            "request {n}"
        );
    }
    assert_eq!(host.messages(DEV).len(), 50);
}

#[test]
fn device_unplugged_says_so_once_and_leaves_the_others_alone() {
    let host = three_devices();
    let (daemon, mut guests) = serve_three(&host, 2, &[]);
    let said = |word: &str| {
        daemon
            .said()
            .iter()
            .filter(|line| line.contains(word))
            .count()
    };
    host.fail_ioctls(DEV, libc::ESHUTDOWN);
    for _ in 0..20 {
        for guest in &mut guests {
            let asks = [both(let_go(0)), both(let_go(1)), both(let_go(2))];
            let expected = [TRANS_ERR, TRANS_OK, TRANS_OK];
            assert_eq!(together(guest, &asks), expected);
        }
    }
    let tried = host.messages(DEV).len();
    assert_eq!(tried, 40, "each request tries it again");
    sys::eventually(PATIENCE, || said("/dev/spidev0.0") > 0);
    assert_eq!(said("/dev/spidev0.0"), 1, "{:?}", daemon.said());
    // It comes back, and when it goes again that is another story.
    host.fail_ioctls(DEV, 0);
    for guest in &mut guests {
        guest.assert_served();
    }
    host.fail_ioctls(DEV, libc::ESHUTDOWN);
    assert_eq!(
        in_turn(&mut guests[0], &[both(let_go(0)); 3]),
        [TRANS_ERR; 3]
    );
    let twice = || said("/dev/spidev0.0") == 2;
    assert!(sys::eventually(PATIENCE, twice), "{:?}", daemon.said());
}

#[test]
fn device_unplugged_for_a_session_is_in_the_right_mode_when_it_is_back() {
    let host = three_devices();
    let (_daemon, mut guests) = serve_three(&host, 1, &[]);
    let in_mode = both(let_go(0).mode(virtio::CPHA));
    assert_eq!(in_turn(&mut guests[0], &[in_mode]), [TRANS_OK]);
    host.fail_ioctls(DEV, libc::ESHUTDOWN);
    let asks = [both(let_go(0)), in_mode, both(let_go(0))];
    assert_eq!(in_turn(&mut guests[0], &asks), [TRANS_ERR; 3]);
    host.fail_ioctls(DEV, 0);
    host.forget();
    assert_eq!(in_turn(&mut guests[0], &[both(let_go(0))]), [TRANS_OK]);
    assert_eq!(host.kept(DEV).mode, 0);
    assert_eq!(host.messages(DEV).len(), 1);
}
