// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A held chip select and the other guests: who waits, for how long, and who pays.

use crate::rig::ask::*;
use crate::rig::record::Record;
use crate::rig::*;
use std::thread::sleep;
use std::time::Duration;

const MS: fn(u64) -> Duration = Duration::from_millis;

/// Two or more guests with `--cs-hold=spec` and this time-out.
fn spec(host: &Host, guests: usize, timeout_ms: u32) -> (Daemon, Vec<Guest>) {
    let timeout = format!("--cs-hold-timeout-ms={timeout_ms}");
    serve_three(host, guests, &["--cs-hold=spec", &timeout])
}

/// The first record that releases a held line.
fn release(host: &Host) -> Record {
    let mut records = host.records().into_iter();
    let found = records.find(|r| r.transfers().is_none() && r.selected == (true, false));
    found.expect("a release")
}

#[test]
fn hold_keeps_other_guests_off_the_controller_and_off_no_other() {
    let host = three_devices();
    let (_daemon, mut guests) = spec(&host, 3, 20_000);
    let [holder, same, beside] = &mut guests[..] else {
        panic!()
    };
    assert_eq!(in_turn(holder, &[both(keep(0))]), [TRANS_OK]);
    // One wants the held chip select, one the other of that controller; behind it one on another controller.
    let waiting = queue(same, &[both(let_go(0))]);
    let waiting_beside = queue(beside, &[both(let_go(1))]);
    sleep(MS(50));
    assert_eq!(trace(&host), "0+", "nobody else is on the controller");
    assert_eq!(
        in_turn(holder, &[both(keep(0)), both(let_go(0))]),
        [TRANS_OK; 2]
    );
    assert_eq!(results(same, &waiting), [TRANS_OK]);
    assert_eq!(results(beside, &waiting_beside), [TRANS_OK]);
    assert_trace(&host, "0+ 0+ 0 0 1");
    host.forget();
    assert_eq!(in_turn(holder, &[both(keep(0))]), [TRANS_OK]);
    for _ in 0..20 {
        assert_eq!(in_turn(same, &[both(let_go(2))]), [TRANS_OK]);
    }
    assert_trace(&host, &format!("0+{}", " 1:0".repeat(20)));
    assert!(host.selected(DEV), "still held");
}

#[test]
fn hold_leaves_control_messages_of_other_guests_alone() {
    let host = three_devices();
    let (_daemon, mut guests) = spec(&host, 2, 20_000);
    assert_eq!(in_turn(&mut guests[0], &[both(keep(0))]), [TRANS_OK]);
    let waiting = queue(&mut guests[1], &[both(let_go(0))]);
    assert_eq!(guests[1].config().cs_max_number, 3);
    assert_eq!(guests[1].stop(), 0, "a request that waits is not begun");
    assert_eq!(trace(&host), "0+");
    guests[1].start();
    assert_eq!(in_turn(&mut guests[0], &[both(let_go(0))]), [TRANS_OK]);
    assert_eq!(results(&mut guests[1], &waiting), [TRANS_OK]);
    assert_trace(&host, "0+ 0 0");
}

#[test]
fn hold_with_others_waiting_ends_time_out_after_its_last_transfer() {
    let host = three_devices();
    let (daemon, mut guests) = spec(&host, 2, 200);
    let [holder, other] = &mut guests[..] else {
        panic!()
    };
    let (first, second) = (host.gate_message(DEV, 0), host.gate_message(DEV, 1));
    let held = queue(holder, &[both(keep(0)); 2]);
    first.reached();
    let waiting = queue(other, &[both(let_go(1))]);
    first.release();
    // On the wire for longer than the time-out: it counts from the end of that.
    second.reached();
    sleep(MS(300));
    second.release();
    assert_eq!(results(holder, &held), [TRANS_OK; 2]);
    assert_eq!(results(other, &waiting), [TRANS_OK]);
    assert_eq!(trace(&host), "0+ 0+ w0 1");
    let idle = release(&host).at - host.records()[1].at;
    assert!(idle >= MS(200), "{idle:?}");
    // The one that would have gone on pays, once, with nothing on the wire.
    host.forget();
    let cut = holder.transfer(keep(0), &[1], 1);
    assert_eq!((cut.result, cut.used_len), (TRANS_ERR, 2));
    assert_eq!(trace(&host), "");
    let after = [both(keep(0)), both(let_go(0))];
    assert_eq!(together(holder, &after), [TRANS_OK; 2]);
    assert_trace(&host, "0+ 0");
    daemon.wait_line(&["guest=0", "chip select"]);
}

#[test]
fn hold_continued_from_the_queue_outlasts_the_time_out_for_others() {
    // Wire time above the time-out: of a write under `write-read`, of anything under `spec`.
    for (policy, first) in [
        ("--cs-hold=write-read", write(keep(0))),
        ("--cs-hold=spec", both(keep(0))),
    ] {
        let host = three_devices();
        let args = [policy, "--cs-hold-timeout-ms=1"];
        let (_daemon, mut guests) = serve_three(&host, 2, &args);
        let [holder, other] = &mut guests[..] else {
            panic!()
        };
        let gate = host.gate_message(DEV, 0);
        let joined = queue(holder, &[first, read(let_go(0))]);
        gate.reached();
        let waiting = queue(other, &[both(let_go(1))]);
        sleep(MS(20));
        gate.release();
        assert_eq!(results(holder, &joined), [TRANS_OK; 2], "{policy}");
        assert_eq!(results(other, &waiting), [TRANS_OK], "{policy}");
        assert_eq!(trace(&host), "0+ 0 1", "{policy}");
    }
}

#[test]
fn hold_whose_continuation_was_queued_in_time_is_not_cut_where_the_loop_comes_late() {
    let host = three_devices();
    let (_daemon, mut guests) = spec(&host, 3, 300);
    let [holder, other, beside] = &mut guests[..] else {
        panic!()
    };
    let held = host.gate_message(DEV, 0);
    let gate = host.gate_message((1, 0), 0);
    let first = queue(holder, &[both(keep(0))]);
    held.reached();
    let busy = queue(beside, &[both(let_go(2))]);
    let waiting = queue(other, &[both(let_go(1))]);
    held.release();
    // The other controller holds up the loop, and the time-out passes meanwhile.
    gate.reached();
    let went_on = queue(holder, &[both(let_go(0))]);
    sleep(MS(400));
    gate.release();
    assert_eq!(results(holder, &first), [TRANS_OK]);
    assert_eq!(results(holder, &went_on), [TRANS_OK]);
    assert_eq!(results(other, &waiting), [TRANS_OK]);
    assert_eq!(results(beside, &busy), [TRANS_OK]);
    assert_eq!(trace(&host), "0+ 1:0 0 1");
}

#[test]
fn hold_begun_before_anybody_waits_ends_when_it_has_lasted_max_transfer_ms_in_all() {
    let host = three_devices();
    let args = [
        "--cs-hold=spec",
        "--cs-hold-timeout-ms=60000",
        "--max-transfer-ms=200",
    ];
    let (_daemon, mut guests) = serve_three(&host, 2, &args);
    let [holder, other] = &mut guests[..] else {
        panic!()
    };
    // Alone it may go on beyond that; the other then waits no longer.
    for _ in 0..4 {
        assert_eq!(in_turn(holder, &[both(keep(0))]), [TRANS_OK]);
        sleep(MS(60));
    }
    assert_eq!(in_turn(other, &[both(let_go(1))]), [TRANS_OK]);
    assert_trace(&host, "0+ 0+ 0+ 0+ w0 1");
    let went_on = in_turn(holder, &[both(let_go(0)), both(let_go(0))]);
    assert_eq!(went_on, [TRANS_ERR, TRANS_OK]);
}

#[test]
fn hold_flooded_by_its_guest_is_cut_for_the_other_and_costs_one_request() {
    let host = three_devices();
    let args = ["--cs-hold=spec", "--max-transfer-ms=30"];
    let (_daemon, mut guests) = serve_three(&host, 2, &args);
    let [holder, other] = &mut guests[..] else {
        panic!()
    };
    // Each takes a millisecond: the ring of 60 lasts twice as long as a hold may in all.
    (1..60).for_each(|n| host.delay_message(DEV, n, MS(1)));
    let gate = host.gate_message(DEV, 0);
    let flood = queue(holder, &[both(keep(0)); 60]);
    gate.reached();
    let waiting = queue(other, &[both(let_go(1))]);
    gate.release();
    assert_eq!(results(other, &waiting), [TRANS_OK]);
    let results = results(holder, &flood);
    let cut = results.iter().filter(|r| **r == TRANS_ERR).count();
    assert_eq!(cut, 1, "{}", trace(&host));
    assert!(results.iter().all(|r| [TRANS_OK, TRANS_ERR].contains(r)));
    assert_one_selected_at_a_time(&host);
}

#[test]
fn hold_cut_is_no_matter_to_a_request_that_would_not_have_continued_it() {
    let others = [
        both(let_go(1)),
        both(let_go(2)),
        both(let_go(0).mode(virtio::CPOL)),
    ];
    let results = others.map(|next| {
        let host = three_devices();
        let (_daemon, mut guests) = spec(&host, 2, 20);
        let [holder, other] = &mut guests[..] else {
            panic!()
        };
        assert_eq!(in_turn(holder, &[both(keep(0))]), [TRANS_OK]);
        assert_eq!(in_turn(other, &[both(let_go(0))]), [TRANS_OK]);
        // The first began something new: with it, what was cut is over for the second.
        in_turn(holder, &[next, both(let_go(0))])
    });
    assert_eq!(results, [[TRANS_OK; 2]; 3], "{others:#?}");
}

#[test]
fn hold_cut_is_told_to_each_guest_whose_hold_was_cut() {
    let host = three_devices();
    let (_daemon, mut guests) = spec(&host, 3, 20);
    // Each holds in its turn, and is cut for the next one, which waits from before it begins.
    let gates = [0, 1, 2].map(|nth| host.gate_message(DEV, nth));
    let mut holds = vec![queue(&mut guests[0], &[both(keep(0))])];
    for (n, gate) in gates.into_iter().enumerate() {
        gate.reached();
        if let Some(next) = guests.get_mut(n + 1) {
            holds.push(queue(next, &[both(keep(0))]));
        }
        gate.release();
        assert_eq!(results(&mut guests[n], &holds[n]), [TRANS_OK], "guest {n}");
    }
    for (n, guest) in guests.iter_mut().take(2).enumerate() {
        let went_on = in_turn(guest, &[both(let_go(0)), both(let_go(0))]);
        assert_eq!(went_on, [TRANS_ERR, TRANS_OK], "guest {n}");
    }
}

#[test]
fn hold_cut_is_forgotten_with_the_session() {
    let host = three_devices();
    let (daemon, mut guests) = spec(&host, 2, 20);
    assert_eq!(in_turn(&mut guests[0], &[both(keep(0))]), [TRANS_OK]);
    assert_eq!(in_turn(&mut guests[1], &[both(let_go(0))]), [TRANS_OK]);
    drop(guests.remove(0));
    Guest::connect(&daemon, 0).assert_served();
}

#[test]
fn hold_that_runs_out_with_nobody_waiting_costs_the_next_request_once() {
    let host = three_devices();
    let (_daemon, mut guests) = spec(&host, 2, 20);
    assert_eq!(in_turn(&mut guests[0], &[both(keep(0))]), [TRANS_OK]);
    assert_trace(&host, "0+ w0");
    assert_eq!(in_turn(&mut guests[1], &[both(let_go(0))]), [TRANS_OK]);
    let went_on = in_turn(&mut guests[0], &[both(let_go(0)), both(let_go(0))]);
    assert_eq!(went_on, [TRANS_ERR, TRANS_OK]);
    assert_trace(&host, "0+ w0 0 0");
}

#[test]
fn hold_of_a_queue_delays_another_guest_by_max_transfer_ms_at_most() {
    // Queued policy: a ring that never runs empty holds as long as it lasts, if nobody ends it.
    let host = three_devices();
    let (_daemon, mut guests) = serve_three(&host, 2, &["--max-transfer-ms=20"]);
    let [flood, other] = &mut guests[..] else {
        panic!()
    };
    (1..60).for_each(|n| host.delay_message(DEV, n, MS(1)));
    let gate = host.gate_message(DEV, 0);
    let flooded = queue(flood, &[both(keep(0)); 60]);
    gate.reached();
    let waiting = queue(other, &[both(let_go(1))]);
    gate.release();
    assert_eq!(results(other, &waiting), [TRANS_OK]);
    let sent = trace(&host);
    let before = sent.split(' ').take_while(|what| *what == "0+").count();
    assert!(before < 45, "{before} messages went first");
    let results = results(flood, &flooded);
    assert!(
        results.iter().filter(|r| **r == TRANS_ERR).count() <= 1,
        "{results:?}"
    );
    assert_one_selected_at_a_time(&host);
}

#[test]
fn hold_waited_for_by_several_guests_is_followed_by_them_in_the_order_they_came() {
    let host = three_devices();
    let (_daemon, mut guests) = spec(&host, 4, 20_000);
    assert_eq!(in_turn(&mut guests[0], &[both(keep(0))]), [TRANS_OK]);
    let mut waiting = Vec::new();
    for (n, chip_select) in [(3, 1), (1, 0), (2, 1)] {
        let head = let_go(chip_select).bits(8).freq(1_000_000 + n as u32);
        waiting.push((n, queue(&mut guests[n], &[both(head)])));
        // One after the other, so that there is an order: when the second is answered, the kick was seen.
        (0..2).for_each(|_| assert_eq!(guests[n].config().cs_max_number, 3));
    }
    assert_eq!(in_turn(&mut guests[0], &[both(let_go(0))]), [TRANS_OK]);
    for (n, requests) in waiting {
        assert_eq!(results(&mut guests[n], &requests), [TRANS_OK]);
    }
    let speeds: Vec<_> = host.records()[2..]
        .iter()
        .map(|r| r.transfers().unwrap()[0].speed_hz)
        .collect();
    assert_eq!(speeds, [1_000_003, 1_000_001, 1_000_002]);
}
