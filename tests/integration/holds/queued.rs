// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--cs-hold=queued`, the default: `cs_change` counts between requests that are queued together.

use super::check;
use crate::rig::ask::*;
use crate::rig::*;
use vhost::vhost_user::VhostUserFrontend;

const CPOL: u32 = virtio::CPOL;

#[test]
fn hold_queued_together_follows_cs_change() {
    let (ok, no) = (TRANS_OK, PARAM_ERR);
    let k = both(keep(0));
    let g = both(let_go(0));
    // What releases is the empty ring: the time-out is out of sight.
    check(
        &["--cs-hold-timeout-ms=60000"],
        together,
        &[
            ("all keep", &[k, k, k], &[ok; 3], "0+ 0+ 0"),
            ("all let go", &[g, g, g], &[ok; 3], "0 0 0"),
            ("one lets go", &[k, g, k, k], &[ok; 4], "0+ 0 0+ 0"),
            (
                "write, read, both",
                &[write(keep(0)), read(keep(0)), k, write(let_go(0)), k],
                &[ok; 5],
                "0+ 0+ 0+ 0 0",
            ),
            (
                "another word size and speed",
                &[
                    k,
                    Ask {
                        head: keep(0).bits(16).freq(2_000_000),
                        tx: 2,
                        rx: 2,
                    },
                    k,
                ],
                &[ok; 3],
                "0+ 0+ 0",
            ),
            (
                "another chip select",
                &[k, both(keep(1)), k],
                &[ok; 3],
                "0+ w0 1+ w1 0",
            ),
            (
                "another controller",
                &[k, both(keep(2)), k],
                &[ok; 3],
                "0+ w0 1:0+ w1:0 0",
            ),
            (
                "another mode: released, then set",
                &[k, both(keep(0).mode(CPOL)), both(keep(0).mode(CPOL))],
                &[ok; 3],
                "0+ w0 w0 0+ 0",
            ),
            (
                "refused in between",
                &[k, wrong(0), k],
                &[ok, no, ok],
                "0+ 0",
            ),
            ("refused at the end", &[k, wrong(0)], &[ok, no], "0+ w0"),
            (
                "refused elsewhere",
                &[k, wrong(1), k],
                &[ok, no, ok],
                "0+ 0",
            ),
            ("refused first", &[wrong(0), k, k], &[no, ok, ok], "0+ 0"),
        ],
    );
}

#[test]
fn hold_queued_explicitly_is_the_default() {
    let k = both(keep(0));
    check(
        &["--cs-hold=queued"],
        together,
        &[("all keep", &[k, k], &[TRANS_OK; 2], "0+ 0")],
    );
}

#[test]
fn hold_queued_one_at_a_time_is_always_released_by_the_message_itself() {
    let (k, g) = (both(keep(0)), both(let_go(0)));
    let asks = [k, g, write(keep(0)), read(keep(0)), k];
    check(
        &[],
        in_turn,
        &[("one at a time", &asks, &[TRANS_OK; 5], "0 0 0 0 0")],
    );
}

#[test]
fn hold_queued_is_decided_before_the_last_message_and_not_after() {
    let host = three_devices();
    let (_daemon, mut guests) = serve_three(&host, 1, &[]);
    let guest = &mut guests[0];
    // The one that comes while the message is on the wire came too late.
    let gate = host.gate_message(DEV, 0);
    let first = queue(guest, &[both(keep(0))]);
    gate.reached();
    let second = queue(guest, &[both(keep(0))]);
    gate.release();
    assert_eq!(results(guest, &[first, second].concat()), [TRANS_OK; 2]);
    assert_trace(&host, "0 0");
    // The one that comes before the last of two messages came in time.
    host.forget();
    let gate = host.gate_message(DEV, 0);
    let long = Ask {
        head: keep(0),
        tx: 5000,
        rx: 0,
    };
    let first = queue(guest, &[long]);
    gate.reached();
    let second = queue(guest, &[both(keep(0))]);
    gate.release();
    assert_eq!(results(guest, &[first, second].concat()), [TRANS_OK; 2]);
    assert_trace(&host, "0+ 0+ 0");
    assert_eq!(host.edges(DEV), 2);
}

/// Queues a request that keeps, with `tx` bytes, and another one behind it; `change`s the front-end's
/// mind about memory while the first message is on the wire.
fn changed_in_a_transfer(tx: usize, change: fn(&mut Guest)) -> (Host, Daemon, Guest, Vec<Request>) {
    let host = three_devices();
    let (daemon, mut guests) = serve_three(&host, 1, &["--cs-hold-timeout-ms=60000"]);
    let mut guest = guests.remove(0);
    let gate = host.gate_message(DEV, 0);
    let head = keep(0);
    let requests = queue(&mut guest, &[Ask { head, tx, rx: 0 }, both(let_go(0))]);
    gate.reached();
    let connection = Raw::over(guest.raw.sock.try_clone().unwrap());
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| change(&mut guest));
        connection.wait_unread();
        std::thread::sleep(A_LOOK);
        gate.release();
        sender.join().unwrap();
    });
    (host, daemon, guest, requests)
}

#[test]
fn hold_queued_is_kept_over_another_memory_table_in_a_transfer() {
    let changed = changed_in_a_transfer(5000, |guest| guest.share_memory());
    let (host, _daemon, mut guest, requests) = changed;
    assert_eq!(results(&mut guest, &requests), [TRANS_OK; 2]);
    assert_trace(&host, "0+ 0+ 0");
    assert_eq!(host.edges(DEV), 2);
}

#[test]
fn hold_queued_is_released_where_the_ring_runs_no_more() {
    let (host, _daemon, _guest, _requests) = changed_in_a_transfer(1, |guest| {
        let region = guest.memory.regions[0].info();
        guest.frontend.remove_mem_region(&region).unwrap();
    });
    assert!(sys::eventually(PATIENCE, || !host.selected(DEV)));
    assert_trace(&host, "0+ w0");
}

#[test]
fn hold_queued_write_and_read_cut_in_two_is_logged_once_with_the_option_that_helps() {
    let host = three_devices();
    let (daemon, mut guests) = serve_three(&host, 1, &[]);
    let lines = || {
        daemon
            .said()
            .iter()
            .filter(|line| line.contains("--cs-hold=write-read"))
            .count()
    };
    let guest = &mut guests[0];
    // Not a pair: the second is no read, or of another chip select; the first does not ask to keep it, or is a read.
    for pair in [
        [write(keep(0)), write(keep(0))],
        [write(keep(0)), both(keep(0))],
        [write(keep(0)), read(keep(1))],
        [write(let_go(0)), read(keep(0))],
        [read(keep(0)), read(keep(0))],
    ] {
        assert_eq!(in_turn(guest, &pair), [TRANS_OK; 2]);
    }
    // Nor this, which is one assertion.
    assert_eq!(
        together(guest, &[write(keep(0)), read(keep(0))]),
        [TRANS_OK; 2]
    );
    assert_eq!(lines(), 0, "{:?}", daemon.said());
    // The pause between the two may be too long on a busy machine.
    assert!(sys::eventually(PATIENCE, || {
        assert_eq!(
            in_turn(guest, &[write(keep(0)), read(keep(0))]),
            [TRANS_OK; 2]
        );
        lines() == 1
    }));
    daemon.wait_line(&[
        "guest=0 cs=0 chip select was released between a write and the read after it",
    ]);
    for _ in 0..10 {
        in_turn(guest, &[write(keep(0)), read(keep(0))]);
    }
    assert_eq!(lines(), 1, "{:?}", daemon.said());
    assert!(sys::eventually(PATIENCE, || {
        in_turn(guest, &[write(keep(1)), read(keep(1))]);
        lines() == 2
    }));
}
