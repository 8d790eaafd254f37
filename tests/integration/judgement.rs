// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests that are wrong: PARAM_ERR before the wire, TRANS_ERR from it, and the queue that goes on.

use crate::rig::memory::UNTOUCHED;
use crate::rig::plug::{INDIRECT_DESC, PROTOCOL_FEATURES, VERSION_1};
use crate::rig::*;

/// Refused with PARAM_ERR, neither bus nor rx touched, and the next request is served.
#[track_caller]
pub fn refused(host: &Host, guest: &mut Guest, what: &str, head: Head, tx: &[u8], rx_len: usize) {
    host.forget();
    let outcome = guest.transfer(head, tx, rx_len);
    assert_eq!(outcome.result, PARAM_ERR, "{what}");
    assert!(
        outcome.rx.iter().all(|&b| b == UNTOUCHED),
        "{what}: rx is not touched"
    );
    assert!(
        host.records().is_empty(),
        "{what}: the bus is not touched: {:?}",
        host.records()
    );
    guest.assert_served();
}

#[test]
fn request_of_different_lengths_is_param_err() {
    let (host, _daemon, mut guest) = plugged();
    for (tx, rx) in [(1, 2), (2, 1), (4096, 4095), (10, 5000)] {
        refused(
            &host,
            &mut guest,
            &format!("tx {tx}, rx {rx}"),
            Head::default(),
            &pattern(tx),
            rx,
        );
    }
}

#[test]
fn request_without_payload_is_param_err() {
    let (host, _daemon, mut guest) = plugged();
    refused(&host, &mut guest, "no payload", Head::default(), &[], 0);
}

#[test]
fn request_of_not_whole_words_is_param_err() {
    let (host, _daemon, mut guest) = plugged();
    for (bits, len) in [
        (16, 1),
        (16, 3),
        (16, 4097),
        (32, 1),
        (32, 2),
        (32, 6),
        (32, 4095),
    ] {
        let head = Head::default().bits(bits);
        refused(
            &host,
            &mut guest,
            &format!("{len} bytes of {bits} bits"),
            head,
            &pattern(len),
            len,
        );
        refused(
            &host,
            &mut guest,
            &format!("{len} bytes of {bits} bits"),
            head,
            &[],
            len,
        );
    }
}

#[test]
fn request_longer_than_4_mib_is_param_err() {
    let (host, _daemon, mut guest) = plugged();
    let len = (4 << 20) + 1;
    let head = Head::default().freq(10_000_000);
    host.forget();
    let outcome = guest.transfer(head, &pattern(len), 0);
    assert_eq!((outcome.result, host.records().len()), (PARAM_ERR, 0));
    guest.assert_served();
}

#[test]
fn request_head_short_or_absent_is_param_err_and_the_queue_goes_on() {
    let (host, _daemon, mut guest) = plugged();
    for len in [0, 1, 31] {
        let mut request = guest.request(Head::default(), &[], 4);
        request.segments[0].len = len;
        if len == 0 {
            request.segments.remove(0);
        }
        let outcome = guest.carry_out(&request);
        assert_eq!(
            (outcome.result, outcome.rx),
            (PARAM_ERR, vec![UNTOUCHED; 4]),
            "head of {len} bytes"
        );
    }
    assert!(host.records().is_empty());
    guest.assert_served();
}

#[test]
fn request_without_result_byte_is_used_with_length_0() {
    let (host, _daemon, mut guest) = plugged();
    for tx_len in [0, 5] {
        let mut request = guest.request(Head::default(), &pattern(tx_len), 0);
        request.segments.pop();
        guest.queue(&request);
        guest.kick();
        assert_eq!(guest.wait_used(1)[0].len, 0);
    }
    assert!(
        host.records().is_empty(),
        "what cannot be reported is not done"
    );
    guest.assert_served();
}

#[test]
fn request_with_readable_after_writable_is_not_carried_out() {
    let (host, daemon, mut guest) = plugged();
    let mut request = guest.request(Head::default(), b"ab", 2);
    request.segments.swap(1, 2);
    guest.queue(&request);
    guest.kick();
    // Broken as a chain (VIRTIO 2.7.4.2): refused or the end of this ring, but never on the wire.
    if let Ok(used) = guest.try_used(1, std::time::Duration::from_millis(500)) {
        assert!(used[0].len == 0 || guest.memory.read(request.result_gpa, 1) == [PARAM_ERR]);
    }
    assert!(host.records().is_empty());
    drop(guest);
    Guest::connect(&daemon, 0).assert_served();
}

/// Writes the request's descriptors as an indirect table; the descriptor that points at it.
fn indirect(guest: &mut Guest, request: &Request) -> (u64, u32, u16) {
    let len = request.segments.len() * 16;
    let table = guest.alloc(len + 16).next_multiple_of(16);
    for (n, segment) in (0u16..).zip(&request.segments) {
        let last = usize::from(n) + 1 == request.segments.len();
        let flags = if segment.write { ring::WRITE } else { 0 } | u16::from(!last);
        let raw = ring::descriptor(segment.gpa, segment.len, flags, n + 1);
        guest.memory.write(table + 16 * u64::from(n), &raw);
    }
    (table, len as u32, ring::INDIRECT)
}

/// Queues a chain whose descriptors are `raw`; whether the request in it was carried out. If not, it is
/// used with length 0 and nothing came of it.
#[track_caller]
fn is_believed(host: &Host, guest: &mut Guest, raw: &[(u64, u32, u16)], request: &Request) -> bool {
    host.forget();
    guest.ring.place_raw(raw, &guest.memory);
    guest.kick();
    let used = guest.wait_used(1)[0];
    if used.len != 0 {
        return guest.outcome(request, used).result == TRANS_OK;
    }
    assert_eq!(guest.memory.read(request.result_gpa, 1), [UNTOUCHED]);
    assert!(host.records().is_empty());
    guest.assert_served();
    false
}

#[test]
fn chain_of_indirect_beside_next_is_used_with_length_0() {
    let (host, _daemon, mut guest) = plugged();
    let request = guest.request(Head::default(), b"ab", 2);
    let table = indirect(&mut guest, &request);
    let next = (request.result_gpa, 1, ring::WRITE);
    assert!(!is_believed(&host, &mut guest, &[table, next], &request));
    assert!(is_believed(&host, &mut guest, &[table], &request));
}

#[test]
fn chain_in_an_indirect_table_that_was_not_negotiated_is_used_with_length_0() {
    for negotiated in [INDIRECT_DESC, 0] {
        let host = Host::with_devices(1);
        let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
        let features = VERSION_1 | PROTOCOL_FEATURES | negotiated;
        let mut guest = Plug::default().features(features).connect(&daemon, 0);
        let request = guest.request(Head::default(), b"ab", 2);
        let table = indirect(&mut guest, &request);
        let believed = is_believed(&host, &mut guest, &[table], &request);
        assert_eq!(believed, negotiated != 0);
    }
}

#[test]
fn chain_of_1025_buffers_most_of_them_empty_is_used_with_length_0() {
    let (host, _daemon, mut guest) = plugged();
    for count in [1024, 1025] {
        let mut request = guest.request(Head::default(), b"ab", 2);
        let empty = Segment {
            len: 0,
            ..request.segments[1]
        };
        let empties = std::iter::repeat_n(empty, count - request.segments.len());
        request.segments.splice(1..1, empties);
        let table = indirect(&mut guest, &request);
        let believed = is_believed(&host, &mut guest, &[table], &request);
        assert_eq!(believed, count == 1024, "{count} buffers");
    }
}

#[test]
fn request_with_buffers_outside_memory_is_param_err() {
    let (host, _daemon, mut guest) = plugged();
    for gpa in [0, 0x1000, 0x1_00ff_ffff, 0x1_0100_0000, u64::MAX - 1] {
        for nth in [0, 1, 2] {
            host.forget();
            let mut request = guest.request(Head::default(), b"ab", 2);
            request.segments[nth].gpa = gpa;
            guest.queue(&request);
            guest.kick();
            guest.wait_used(1);
            assert_eq!(
                guest.memory.read(request.result_gpa, 1),
                [PARAM_ERR],
                "segment {nth} at {gpa:#x}"
            );
            assert!(host.records().is_empty(), "segment {nth} at {gpa:#x}");
        }
        let mut request = guest.request(Head::default(), b"ab", 2);
        // The byte at 0x1_00ff_ffff is the last of memory, and a good place for a result.
        request.segments[3].gpa = if gpa == 0x1_00ff_ffff { 0 } else { gpa };
        guest.queue(&request);
        guest.kick();
        assert_eq!(guest.wait_used(1)[0].len, 0, "result at {gpa:#x}");
    }
    guest.assert_served();
}

#[test]
fn request_with_a_huge_length_is_refused_without_memory_for_it() {
    let (host, daemon, mut guest) = plugged();
    guest.assert_served();
    host.forget();
    let before = daemon.rss_kb();
    for nth in [1, 2] {
        let mut request = guest.request(Head::default(), b"ab", 2);
        request.segments[nth].len = u32::MAX;
        guest.queue(&request);
        guest.kick();
        guest.wait_used(1);
        assert_eq!(guest.memory.read(request.result_gpa, 1), [PARAM_ERR]);
    }
    assert!(host.records().is_empty());
    assert!(daemon.rss_kb() < before + 64);
    guest.assert_served();
}

#[test]
fn queue_with_bad_requests_between_good_ones_does_each_once_in_order() {
    let (host, _daemon, mut guest) = plugged();
    let bad = [
        Head::default().bits(0),
        Head::default().chip_select(9),
        Head::default().mode(1 << 31),
    ];
    let mut requests = Vec::new();
    for n in 0..10u8 {
        requests.push((
            guest.request(Head::default().cs_change(1), &[n], 1),
            TRANS_OK,
        ));
        requests.push((
            guest.request(bad[usize::from(n) % 3], &[0xff], 1),
            PARAM_ERR,
        ));
    }
    requests.iter().for_each(|(r, _)| {
        guest.queue(r);
    });
    guest.kick();
    for ((request, expected), used) in requests.iter().zip(guest.wait_used(20)) {
        assert_eq!(guest.outcome(request, used).result, *expected);
    }
    assert_eq!(
        host.messages(DEV)
            .iter()
            .flat_map(|m| m.tx())
            .collect::<Vec<_>>(),
        (0..10).collect::<Vec<_>>()
    );
}

#[test]
fn transfer_error_is_that_requests_trans_err_only() {
    for (when, errno) in [
        (When::BeforeWire, libc::ENOMEM),
        (When::BeforeWire, libc::EINVAL),
        (When::OnWire, libc::EIO),
        (When::OnWire, libc::ETIMEDOUT),
        (When::AfterWire, libc::EFAULT),
    ] {
        let (host, _daemon, mut guest) = plugged();
        host.fail_message(DEV, 1, when, errno);
        let requests: Vec<_> = (0..3u8)
            .map(|n| guest.request(Head::default(), &[n], 1))
            .collect();
        requests.iter().for_each(|r| {
            guest.queue(r);
        });
        guest.kick();
        let used = guest.wait_used(3);
        let results: Vec<_> = requests
            .iter()
            .zip(used)
            .map(|(r, u)| guest.outcome(r, u).result)
            .collect();
        assert_eq!(results, [TRANS_OK, TRANS_ERR, TRANS_OK], "{when:?} {errno}");
        let failed = host.records().iter().position(|r| r.ret < 0).unwrap();
        let after = &host.records()[failed + 1..];
        let next = after
            .iter()
            .position(|r| r.transfers().is_some_and(|t| t.iter().any(|t| t.len != 0)))
            .unwrap();
        assert!(
            !after[next].selected.0,
            "{when:?} {errno}: released after the failure, before the next request"
        );
        assert!(!host.selected(DEV));
    }
}

#[test]
fn transfer_error_at_every_piece_of_a_long_transfer_is_trans_err_and_releases_chip_select() {
    for piece in 0..5 {
        for when in [When::BeforeWire, When::OnWire, When::AfterWire] {
            let (host, _daemon, mut guest) = plugged();
            host.fail_message(DEV, piece, when, libc::EIO);
            let outcome = guest.transfer(Head::default(), &pattern(20_000), 20_000);
            assert_eq!(outcome.result, TRANS_ERR, "piece {piece} {when:?}");
            assert!(
                sys::eventually(PATIENCE, || !host.selected(DEV)),
                "piece {piece} {when:?}"
            );
            host.forget();
            guest.assert_served();
            assert_eq!(
                host.messages(DEV).len(),
                1,
                "nothing is left of the failed one"
            );
        }
    }
}

#[test]
fn device_unplugged_fails_its_own_requests_and_is_tried_again() {
    let host = Host::with_devices(2);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0", "/dev/spidev0.1"]);
    let mut guest = Guest::connect(&daemon, 0);
    host.fail_ioctls(DEV, libc::ESHUTDOWN);
    for _ in 0..20 {
        assert_eq!(guest.transfer(Head::default(), &[1], 1).result, TRANS_ERR);
        assert_eq!(
            guest
                .transfer(Head::default().chip_select(1), &[1], 1)
                .result,
            TRANS_OK
        );
    }
    host.fail_ioctls(DEV, 0);
    guest.assert_served();
    let said = || daemon.said().len();
    sys::eventually(PATIENCE, || said() > 0);
    assert!(
        (1..=2).contains(&said()),
        "said once, and perhaps that it is back: {:#?}",
        daemon.stderr()
    );
}
