// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Several guests that want the bus at once take turns, transfer by transfer.

use crate::rig::ask::*;
use crate::rig::*;

/// Each guest's transfers, as the first byte of each says, in the order in which they reached the bus 0; a transfer that
/// is not whole and on its own fails.
#[track_caller]
fn order(host: &Host, len: usize) -> Vec<u8> {
    let messages = host.records();
    let sent: Vec<u8> = messages.iter().flat_map(|m| m.tx()).collect();
    assert_eq!(sent.len() % len, 0);
    sent.chunks(len)
        .map(|whole| {
            assert!(whole.iter().all(|b| *b == whole[0]), "transfers are mixed");
            whole[0]
        })
        .collect()
}

/// Three guests queue `each` transfers of `len` bytes while the first one's first message is on the wire.
fn flood(devices: [u8; 3], each: usize, len: usize, cs_change: u8) -> (Host, Vec<u8>) {
    let host = three_devices();
    let (_daemon, mut guests) = serve_three(&host, 3, &[]);
    let gate = host.gate_message(DEV, 0);
    let mut all = Vec::new();
    for (n, guest) in guests.iter_mut().enumerate() {
        let tx = vec![n as u8; len];
        let head = let_go(devices[n]).cs_change(cs_change).freq(10_000_000);
        let requests: Vec<_> = (0..each).map(|_| guest.request(head, &tx, 0)).collect();
        for request in &requests {
            guest.queue(request);
        }
        guest.kick();
        all.push(requests);
        if n == 0 {
            gate.reached();
        }
    }
    gate.release();
    for (guest, requests) in guests.iter_mut().zip(&all) {
        let results = results(guest, requests);
        assert!(results.iter().all(|r| *r == TRANS_OK), "{results:?}");
    }
    assert_one_selected_at_a_time(&host);
    let order = order(&host, len);
    assert_eq!(order.len(), 3 * each);
    (host, order)
}

/// While all have something queued, none goes twice before another has gone once. The first may have begun a second one
/// before the others were seen.
#[track_caller]
fn assert_turns(order: &[u8]) {
    let rounds = if order.starts_with(&[0, 0]) {
        &order[1..]
    } else {
        order
    };
    // Towards the end the guests run out one after the other.
    for (n, round) in rounds.chunks_exact(3).take(order.len() / 3 - 1).enumerate() {
        let mut round = round.to_vec();
        round.sort_unstable();
        assert_eq!(round, [0, 1, 2], "round {n} of {order:?}");
    }
}

#[test]
fn turns_of_three_flooding_guests_are_taken_request_by_request() {
    let (host, order) = flood([0, 0, 0], 40, 1, 1);
    assert_turns(&order);
    assert_eq!(host.edges(DEV), 240);
}

#[test]
fn turns_of_three_guests_with_long_transfers_are_taken_transfer_by_transfer() {
    // Five messages each: none of them is interrupted, none goes first twice.
    let (host, order) = flood([0, 0, 0], 8, 20_000, 1);
    assert_turns(&order);
    assert_eq!(host.messages(DEV).len(), 8 * 3 * 5);
    assert_eq!(host.edges(DEV), 8 * 3 * 2);
}

#[test]
fn turns_on_several_chip_selects_of_a_controller_are_taken_as_on_one() {
    let (host, order) = flood([0, 1, 0], 8, 20_000, 1);
    assert_turns(&order);
    assert_eq!((host.edges((0, 0)), host.edges((0, 1))), (32, 16));
}

/// A daemon with two guests, each on a loopback of its own.
fn two_on_loopbacks(args: &[&str]) -> (Host, Daemon, Vec<Guest>) {
    let host = Host::new();
    let setup = Setup::new(&host)
        .guests(2)
        .device("loopback,guests=0")
        .device("loopback,guests=1");
    let setup = args.iter().fold(setup, |setup, arg| setup.arg(*arg));
    let daemon = setup.start();
    let guests = (0..2).map(|n| Guest::connect(&daemon, n)).collect();
    (host, daemon, guests)
}

#[test]
fn turns_at_different_moments_come_whichever_was_asked_for_first() {
    // Transfers on loopbacks are nothing but moments: 20 and 100 ms, and each guest again before the
    // other is done.
    let (_host, _daemon, mut guests) = two_on_loopbacks(&[]);
    let ask = |ms: usize| Ask {
        head: let_go(0).freq(800_000),
        tx: ms * 100,
        rx: 0,
    };
    for (first, second) in [(20, 100), (100, 20)] {
        let one = queue(&mut guests[0], &[ask(first)]);
        let two = queue(&mut guests[1], &[ask(second); 2]);
        assert_eq!(results(&mut guests[0], &one), [TRANS_OK], "{first} ms");
        let one = queue(&mut guests[0], &[ask(second), ask(first)]);
        assert_eq!(results(&mut guests[1], &two), [TRANS_OK; 2], "{second} ms");
        assert_eq!(results(&mut guests[0], &one), [TRANS_OK; 2]);
    }
}

#[test]
fn turns_and_holds_and_half_messages_each_have_their_moment_whichever_is_first() {
    let args = ["--cs-hold=0:spec", "--cs-hold-timeout-ms=50"];
    for half_first in [true, false] {
        let (_host, daemon, mut guests) = two_on_loopbacks(&args);
        guests.truncate(1);
        let guest = &mut guests[0];
        let raw = Raw::connect(&daemon.socket(1));
        let send_half = || raw.send_bytes(&[1, 0, 0], &[]).unwrap();
        if half_first {
            send_half();
        }
        // A transfer of 50 ms, and a hold that runs out after it.
        let long = Ask {
            head: keep(0).freq(800_000),
            tx: 5000,
            rx: 0,
        };
        assert_eq!(together(guest, &[both(keep(0)), long]), [TRANS_OK; 2]);
        if !half_first {
            send_half();
        }
        // A second after its half message: the hold's time-out is over, too.
        assert!(raw.hung_up(PATIENCE));
        let after = [both(let_go(0)), both(let_go(0))];
        assert_eq!(in_turn(guest, &after), [TRANS_ERR, TRANS_OK]);
    }
}

#[test]
fn turns_come_though_something_far_later_was_asked_for_first() {
    let args = ["--cs-hold=1:spec", "--cs-hold-timeout-ms=60000"];
    let (_host, _daemon, mut guests) = two_on_loopbacks(&args);
    assert_eq!(in_turn(&mut guests[1], &[both(keep(0))]), [TRANS_OK]);
    assert_eq!(
        in_turn(&mut guests[0], &[both(let_go(0)); 3]),
        [TRANS_OK; 3]
    );
}

#[test]
fn turns_on_another_controller_are_waited_for_by_a_single_message() {
    const ROUNDS: u64 = 6;
    let other = (1, 0);
    let host = three_devices();
    let (_daemon, mut guests) = serve_three(&host, 3, &[]);
    let gates: Vec<_> = (0..ROUNDS).map(|n| host.gate_message(other, n)).collect();
    let long = vec![both(let_go(2)); ROUNDS as usize];
    let mut floods = Vec::new();
    for guest in &mut guests[..2] {
        floods.push(queue(guest, &long));
    }
    // So long that the daemon looks for events after it, and that its own controller rests, too.
    let long = std::time::Duration::from_millis(2);
    (0..ROUNDS).for_each(|n| host.delay_message(DEV, n, long));
    for gate in gates {
        gate.reached();
        std::thread::sleep(long);
        let request = queue(&mut guests[2], &[both(let_go(0))]);
        gate.release();
        // The next message on the other controller is not over before this is answered.
        assert_eq!(results(&mut guests[2], &request), [TRANS_OK]);
    }
    for (guest, flood) in guests.iter_mut().zip(&floods) {
        assert_eq!(results(guest, flood), [TRANS_OK; ROUNDS as usize]);
    }
}

#[test]
fn turns_on_a_controller_that_another_guest_just_used_wait_for_a_single_message_of_another() {
    let other = (1, 0);
    let host = three_devices();
    let (_daemon, mut guests) = serve_three(&host, 3, &[]);
    let [first, second, third] = [0, 1, 2].map(|n| host.gate_message(other, n));
    // So long that the daemon looks for events after it, and that its controller rests.
    let long = std::time::Duration::from_millis(2);
    host.delay_message(DEV, 0, long);
    let flood = queue(&mut guests[2], &[both(let_go(2)); 3]);
    first.reached();
    std::thread::sleep(long);
    let used = queue(&mut guests[0], &[both(let_go(0))]);
    first.release();
    assert_eq!(results(&mut guests[0], &used), [TRANS_OK]);
    second.reached();
    std::thread::sleep(long);
    let request = queue(&mut guests[1], &[both(let_go(0))]);
    second.release();
    // The third message on the other controller is not over before this is answered.
    assert_eq!(results(&mut guests[1], &request), [TRANS_OK]);
    third.release();
    assert_eq!(results(&mut guests[2], &flood), [TRANS_OK; 3]);
}
