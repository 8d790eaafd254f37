// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Several requests: order, modes and chip select between them.

use crate::requests::one_assertion;
use crate::rig::kernel_rules as rules;
use crate::rig::record::Kind;
use crate::rig::*;
use std::collections::BTreeSet;

/// Queues all, then shows them at once: "queued together" as far as any device can tell.
fn together(guest: &mut Guest, heads: &[Head]) -> Vec<u8> {
    let requests: Vec<_> = heads
        .iter()
        .enumerate()
        .map(|(n, head)| guest.request(*head, &[n as u8], 1))
        .collect();
    requests.iter().for_each(|r| {
        guest.queue(r);
    });
    guest.kick();
    let used = guest.wait_used(heads.len());
    requests
        .iter()
        .zip(used)
        .map(|(r, u)| guest.outcome(r, u).result)
        .collect()
}

#[test]
fn request_mode_is_set_only_when_it_differs() {
    let (host, _daemon, mut guest) = plugged();
    let modes = [
        0,
        0,
        virtio::CPHA,
        virtio::CPHA,
        virtio::CPHA | virtio::CPOL,
        virtio::LSB_FIRST,
        0,
        0,
    ];
    for mode in modes {
        assert_eq!(
            guest.transfer(Head::default().mode(mode), &[1], 1).result,
            TRANS_OK,
            "mode {mode:#x}"
        );
    }
    let calls: Vec<_> = host
        .records()
        .iter()
        .map(|r| match r.kind {
            Kind::Write(value) => Some((r.request, value)),
            _ => None,
        })
        .collect();
    let set = |value| Some((rules::WR_MODE32, value));
    let (lsb, both) = (rules::LSB_FIRST, rules::CPHA | rules::CPOL);
    let expected = [
        None,
        None,
        set(rules::CPHA),
        None,
        None,
        set(both),
        None,
        set(lsb),
        None,
        set(0),
        None,
        None,
    ];
    assert_eq!(calls, expected);
    assert_eq!(host.edges(DEV), 2 * modes.len() as u32);
}

#[test]
fn request_bits_and_speed_are_each_requests_own_without_another_call() {
    let (host, _daemon, mut guest) = plugged();
    for (bits, freq) in [(8, 1_000_000), (16, 5_000_000), (32, 10_000_000), (8, 0)] {
        assert_eq!(
            guest
                .transfer(Head::default().bits(bits).freq(freq), &[1; 4], 4)
                .result,
            TRANS_OK
        );
    }
    assert_eq!(host.records().len(), 4);
    let words: Vec<_> = host
        .messages(DEV)
        .iter()
        .map(|m| m.transfers().unwrap()[0].bits_per_word)
        .collect();
    assert_eq!(words, [8, 16, 32, 8]);
}

#[test]
fn chip_select_with_cs_change_0_is_kept_between_queued_requests_and_released_at_the_end() {
    let (host, _daemon, mut guest) = plugged();
    assert_eq!(together(&mut guest, &[Head::default(); 4]), [TRANS_OK; 4]);
    assert!(sys::eventually(PATIENCE, || !host.selected(DEV)));
    assert_eq!(host.messages(DEV).len(), 4);
    one_assertion(&host, DEV);
}

#[test]
fn chip_select_with_cs_change_1_is_released_between_queued_requests() {
    let (host, _daemon, mut guest) = plugged();
    assert_eq!(
        together(&mut guest, &[Head::default().cs_change(1); 4]),
        [TRANS_OK; 4]
    );
    assert_eq!(host.edges(DEV), 8);
    assert!(!host.selected(DEV));
}

#[test]
fn chip_select_is_released_after_the_last_request_without_a_further_call() {
    let (host, _daemon, mut guest) = plugged();
    for _ in 0..10 {
        guest.assert_served();
        assert!(!host.selected(DEV));
    }
    assert_eq!(host.records().len(), 10, "one system call a request");
    assert_eq!(host.edges(DEV), 20);
}

#[test]
fn chip_select_held_is_released_before_another_is_used() {
    let host = Host::with_devices(2);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0", "/dev/spidev0.1"]);
    let mut guest = Guest::connect(&daemon, 0);
    host.forget();
    let heads = [0, 0, 1, 1, 0].map(|cs| Head::default().chip_select(cs));
    assert_eq!(together(&mut guest, &heads), [TRANS_OK; 5]);
    let mut selected = BTreeSet::new();
    for record in host.records() {
        if record.selected.1 {
            selected.insert(record.device)
        } else {
            selected.remove(&record.device)
        };
        assert!(selected.len() <= 1, "two devices are selected at once");
    }
    assert!(selected.is_empty());
    assert_eq!((host.edges((0, 0)), host.edges((0, 1))), (4, 2));
}

#[test]
fn chip_select_held_is_released_before_a_request_of_another_mode() {
    let (host, _daemon, mut guest) = plugged();
    let heads = [
        Head::default(),
        Head::default().mode(virtio::CPOL),
        Head::default().mode(virtio::CPOL),
    ];
    assert_eq!(together(&mut guest, &heads), [TRANS_OK; 3]);
    let setting = host
        .records()
        .into_iter()
        .filter(|r| matches!(r.kind, Kind::Write(_)));
    assert!(setting.into_iter().all(|r| r.edges <= 1));
    assert_eq!(host.edges(DEV), 4);
}

#[test]
fn chip_select_held_is_kept_over_a_refused_request_or_released_but_never_lost() {
    let (host, _daemon, mut guest) = plugged();
    let heads = [Head::default(), Head::default().bits(0), Head::default()];
    assert_eq!(
        together(&mut guest, &heads),
        [TRANS_OK, PARAM_ERR, TRANS_OK]
    );
    assert!([2, 4].contains(&host.edges(DEV)));
    assert!(!host.selected(DEV));
}

#[test]
fn queue_of_many_requests_is_carried_out_in_order_each_once() {
    let host = Host::with_devices(1);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    let mut guest = Plug::default().queue_size(1024).connect(&daemon, 0);
    host.forget();
    let requests: Vec<_> = (0..600u32)
        .map(|n| guest.request(Head::default(), &n.to_le_bytes(), 4))
        .collect();
    requests.iter().for_each(|r| {
        guest.queue_indirect(r);
    });
    guest.kick();
    for (n, used) in guest.wait_used(600).into_iter().enumerate() {
        assert_eq!(
            guest.outcome(&requests[n], used).rx,
            (n as u32).to_le_bytes()
        );
    }
    let order: Vec<_> = host.messages(DEV).iter().flat_map(|m| m.tx()).collect();
    assert!(order == (0..600u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
}
