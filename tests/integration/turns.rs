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
