// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who goes first where several want the same: nobody is passed without bound, and nobody who comes
//! or goes disturbs what another holds.

use crate::rig::ask::*;
use crate::rig::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

/// Enough for a kick or a message to be seen, or a session to end.
const A_MOMENT: Duration = Duration::from_millis(20);

const LONG_HOLD: &str = "--cs-hold-timeout-ms=5000";

#[test]
fn mode_of_a_guest_that_leaves_is_not_restored_while_another_holds_chip_select() {
    let host = three_devices();
    let (_daemon, mut guests) = serve_three(&host, 2, &["--cs-hold=1:spec", LONG_HOLD]);
    let mut leaves = guests.remove(0);
    assert_eq!(
        together(&mut leaves, &[both(let_go(1).mode(1))]),
        [TRANS_OK]
    );
    assert_eq!(together(&mut guests[0], &[both(keep(0))]), [TRANS_OK]);
    drop(leaves);
    sleep(A_MOMENT);
    assert_trace(&host, "w1 1 0+");
    assert_eq!(together(&mut guests[0], &[both(let_go(0))]), [TRANS_OK]);
    assert!(sys::eventually(PATIENCE, || host.kept((0, 1)).mode == 0));
}

#[test]
fn mode_of_a_guest_that_left_is_not_restored_beside_a_line_that_cannot_be_released() {
    let host = three_devices();
    let (daemon, mut guests) = serve_three(&host, 2, &["--cs-hold=1:spec", LONG_HOLD]);
    let in_mode = both(let_go(1).mode(virtio::CPHA));
    assert_eq!(together(&mut guests[0], &[in_mode]), [TRANS_OK]);
    assert_eq!(together(&mut guests[1], &[both(keep(0))]), [TRANS_OK]);
    host.fail_ioctls(DEV, libc::ESHUTDOWN);
    guests.clear();
    assert!(sys::eventually(PATIENCE, || trace(&host).contains("w0!")));
    sleep(A_MOMENT);
    assert_eq!(host.kept((0, 1)).mode, kernel_rules::CPHA);
    host.fail_ioctls(DEV, 0);
    Guest::connect(&daemon, 0).assert_served();
    assert!(sys::eventually(PATIENCE, || host.kept((0, 1)).mode == 0));
}

#[test]
fn line_that_could_not_be_released_is_tried_again_at_the_end() {
    let host = three_devices();
    let (daemon, mut guests) = serve_three(&host, 1, &["--cs-hold=spec", LONG_HOLD]);
    assert_eq!(together(&mut guests[0], &[both(keep(0))]), [TRANS_OK]);
    host.fail_ioctls(DEV, libc::ESHUTDOWN);
    guests.clear();
    sleep(A_MOMENT);
    assert!(host.selected(DEV));
    host.fail_ioctls(DEV, 0);
    daemon.stop();
    assert!(!host.selected(DEV));
}

#[test]
fn line_that_cannot_be_released_at_the_end_is_named() {
    let host = three_devices();
    let (mut daemon, mut guests) = serve_three(&host, 1, &["--cs-hold=spec", LONG_HOLD]);
    assert_eq!(together(&mut guests[0], &[both(keep(0))]), [TRANS_OK]);
    host.fail_ioctls(DEV, libc::EIO);
    daemon.signal(libc::SIGTERM);
    assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
    daemon.wait_line(&[
        "device=\"/dev/spidev0.0\" stays selected: cause=",
        "(os error 5)",
    ]);
}

#[test]
fn guest_that_waits_for_the_bus_keeps_its_place_before_later_ones() {
    let host = three_devices();
    let (_daemon, mut guests) = serve_three(&host, 3, &[]);
    // Two messages each; a gate at the first message of all, then at the second of each.
    let long = Ask {
        head: let_go(0),
        tx: 8000,
        rx: 0,
    };
    let first = host.gate_message(DEV, 0);
    let gates = [1u64, 3, 5].map(|n| host.gate_message(DEV, n));
    let mut pending = queue(&mut guests[0], &[long]);
    first.reached();
    let waits = queue(&mut guests[2], &[both(let_go(1))]);
    sleep(A_MOMENT);
    first.release();
    for (round, gate) in gates.into_iter().enumerate() {
        gate.reached();
        let (this, other) = (round % 2, 1 - round % 2);
        let next = queue(&mut guests[other], &[long]);
        sleep(A_MOMENT);
        gate.release();
        assert_eq!(results(&mut guests[this], &pending), [TRANS_OK]);
        pending = next;
    }
    assert_eq!(results(&mut guests[2], &waits), [TRANS_OK]);
    let place = trace(&host).split(' ').position(|what| what == "1");
    assert_eq!(place, Some(2), "{}", trace(&host));
}

#[test]
fn transfer_goes_on_while_two_front_ends_flood_messages_in_turn() {
    let host = three_devices();
    let (daemon, mut guests) = serve_three(&host, 3, &[]);
    let mut victim = guests.remove(2);
    guests.clear();
    let stop = Arc::new(AtomicBool::new(false));
    let floods = [0, 1].map(|number| {
        let (front_end, stop) = (Raw::connect(&daemon.socket(number)), Arc::clone(&stop));
        std::thread::spawn(move || {
            let many = Raw::encode(raw::SET_OWNER, raw::VERSION, &[]).repeat(15);
            while !stop.load(Ordering::Relaxed) {
                front_end.send_bytes(&many, &[]).unwrap();
                front_end
                    .send(raw::GET_FEATURES, raw::VERSION, &[], &[])
                    .unwrap();
                front_end.recv().unwrap();
            }
        })
    });
    let ask = Ask {
        head: let_go(0),
        tx: 1 << 20,
        rx: 0,
    };
    let queued = queue(&mut victim, &[ask]);
    let done = victim.try_used(1, PATIENCE).is_ok();
    stop.store(true, Ordering::Relaxed);
    floods.into_iter().for_each(|flood| flood.join().unwrap());
    assert!(done, "{} messages were sent", host.messages(DEV).len());
    assert_eq!(queued.len(), 1);
}

#[test]
fn fds_may_be_as_many_as_the_host_allows() {
    let host = Host::with_devices(1);
    let setup = Setup::new(&host).device("/dev/spidev0.0");
    let daemon = setup.max_fds(100, 1000).start();
    // Answered only after all stages.
    Raw::connect(&daemon.socket(0)).ask(raw::GET_FEATURES, &[]);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
    let line = limits.lines().find(|l| l.starts_with("Max open files"));
    let numbers: Vec<&str> = line.unwrap().split_whitespace().skip(3).take(2).collect();
    assert_eq!(numbers, ["1000", "1000"]);
}
