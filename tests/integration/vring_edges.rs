// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who is told what and when, and the queue at its limits.

use crate::rig::ask::let_go;
use crate::rig::plug::{EVENT_IDX, IN_ORDER, INDIRECT_DESC, PROTOCOL_FEATURES, VERSION_1};
use crate::rig::ring::Layout;
use crate::rig::*;
use crate::vring::A_WHILE;
use std::os::fd::AsRawFd;
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VringConfigData};

#[test]
fn event_idx_used_event_not_passed_is_not_signalled() {
    let (_host, _daemon, mut guest) = plugged();
    assert!(guest.features & EVENT_IDX != 0);
    // The first may be announced needlessly: the device cannot know what the driver has seen.
    guest.assert_served();
    // Its signal may still be on the way when the used index was seen, but not when the next turns were taken.
    (0..2).for_each(|_| drop(guest.raw.get_config(0, 32)));
    let _ = guest.call.read();
    guest.ring.set_used_event(3, &guest.memory);
    for n in 2..=4u16 {
        let request = guest.request(Head::default(), &[1], 0);
        guest.queue(&request);
        guest.kick();
        assert!(sys::eventually(PATIENCE, || guest
            .ring
            .device_idx(&guest.memory)
            == n));
        // The signal may follow the used index: it is waited for, or for its absence.
        let signalled = sys::readable(
            guest.call.as_raw_fd(),
            if n == 4 { PATIENCE } else { A_WHILE },
        );
        assert_eq!(signalled, n == 4, "after {n}");
    }
}

/// Two requests are queued together, the second of `len` bytes at 1 MHz; whether the first is signalled before that one's
/// message goes on the wire.
fn is_signalled_before(len: usize) -> bool {
    let (host, _daemon, mut guest) = plugged();
    let head = Head::default().cs_change(1);
    let requests = [1, len].map(|len| guest.request(head, &pattern(len), 0));
    let gate = host.gate_message(DEV, 1);
    requests.iter().for_each(|request| {
        guest.queue(request);
    });
    guest.kick();
    gate.reached();
    assert_eq!(guest.ring.device_idx(&guest.memory), 1);
    let signalled = guest.call.read().is_ok();
    gate.release();
    signalled
}

#[test]
fn completion_is_signalled_before_a_message_of_more_than_a_millisecond_and_with_others_else() {
    assert!(is_signalled_before(126));
    // Also where the loop has taken more than that until then.
    sys::on_time(|| {
        let early = is_signalled_before(125);
        (!early)
            .then_some(())
            .ok_or("it was signalled early".into())
    });
}

#[test]
fn no_interrupt_flag_is_not_signalled_and_cleared_is() {
    let host = Host::with_devices(1);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    let mut guest = Plug::default()
        .features(VERSION_1 | PROTOCOL_FEATURES)
        .connect(&daemon, 0);
    guest.ring.set_no_interrupt(true, &guest.memory);
    let request = guest.request(Head::default(), &[1], 0);
    guest.queue(&request);
    guest.kick();
    assert!(sys::eventually(PATIENCE, || guest
        .ring
        .device_idx(&guest.memory)
        == 1));
    assert!(!sys::readable(guest.call.as_raw_fd(), A_WHILE));
    guest.ring.take(&guest.memory).unwrap();
    guest.ring.set_no_interrupt(false, &guest.memory);
    guest.assert_served();
}

#[test]
fn kick_suppressed_by_the_daemon_is_not_needed() {
    // The guest's driver kicks only when it is asked to: what is queued while the daemon works must be found by itself.
    for features in [
        VERSION_1 | PROTOCOL_FEATURES,
        VERSION_1 | PROTOCOL_FEATURES | EVENT_IDX,
    ] {
        let host = Host::with_devices(1);
        let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
        let mut guest = Plug::default().features(features).connect(&daemon, 0);
        for _ in 0..100 {
            let gate = host.gate_message(DEV, 0);
            for _ in 0..3 {
                let request = guest.request(Head::default().cs_change(1), &[1], 0);
                guest.queue(&request);
                guest.kick();
            }
            gate.reached();
            let request = guest.request(Head::default().cs_change(1), &[2], 0);
            guest.queue(&request);
            guest.kick();
            gate.release();
            guest.wait_used(4);
        }
        assert_eq!(host.messages(DEV).len(), 400);
    }
}

#[test]
fn in_order_negotiated_completes_in_order() {
    let host = Host::with_devices(1);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    let features = VERSION_1 | PROTOCOL_FEATURES | EVENT_IDX | IN_ORDER | INDIRECT_DESC;
    let mut guest = Plug::default()
        .features(features)
        .queue_size(64)
        .connect(&daemon, 0);
    for round in 0..20 {
        let requests: Vec<_> = (0..10u8)
            .map(|n| guest.request(Head::default(), &[n, round], 2))
            .collect();
        requests.iter().for_each(|r| {
            guest.queue(r);
        });
        guest.kick();
        for (request, used) in requests.iter().zip(guest.wait_used(10)) {
            let outcome = guest.outcome(request, used);
            assert_eq!((outcome.result, outcome.rx.len()), (TRANS_OK, 2));
        }
    }
}

#[test]
fn vring_with_its_available_ring_at_guest_address_0_is_served() {
    let host = Host::with_devices(1);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    let regions = vec![Region::new(0, 1 << 20)];
    let mut guest = Plug::default()
        .regions(regions)
        .negotiate(&daemon.socket(0));
    let usual = guest.ring.layout;
    assert_eq!(usual.desc, 0);
    let (desc, avail) = (usual.end(), 0);
    let layout = Layout {
        desc,
        avail,
        ..usual
    };
    guest.ring = Ring::new(layout, true, &guest.memory);
    guest.alloc_from(layout.end() + 0x10000);
    guest.start();
    (0..3).for_each(|_| guest.assert_served());
}

#[test]
fn vring_indices_wrap_at_65536() {
    let host = Host::with_devices(1);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    let mut guest = Plug::default().queue_size(8).negotiate(&daemon.socket(0));
    guest.ring = Ring::starting_at(guest.ring.layout, true, 65_530, &guest.memory);
    guest.start();
    for _ in 0..20 {
        guest.assert_served();
    }
    assert_eq!(guest.stop(), (65_530 + 20) % 65_536);
}

#[test]
fn vring_sizes_up_to_1024_are_taken_and_others_refused() {
    for size in [1, 2, 4, 128, 1024] {
        let host = Host::with_devices(1);
        let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
        let mut guest = Plug::default().queue_size(size).connect(&daemon, 0);
        for _ in 0..3 {
            let request = guest.request(Head::default(), b"ab", 2);
            if size < 4 {
                guest.queue_indirect(&request)
            } else {
                guest.queue(&request)
            };
            guest.kick();
            let used = guest.wait_used(1)[0];
            assert_eq!(guest.outcome(&request, used).rx, b"ab", "size {size}");
        }
    }
    for size in [0u16, 3, 2048, 32_768] {
        let (_host, daemon, guest) = plugged();
        guest.stop();
        assert!(
            guest.frontend.set_vring_num(0, size).is_err(),
            "size {size}"
        );
        drop(guest);
        Guest::connect(&daemon, 0).assert_served();
    }
}

#[test]
fn vring_addresses_outside_memory_or_unaligned_end_at_most_the_session() {
    let shifts: [fn(&mut VringConfigData); 5] = [
        |c| c.desc_table_addr = 0x1000,
        |c| c.used_ring_addr = u64::MAX - 7,
        |c| c.desc_table_addr += 8,
        |c| c.avail_ring_addr += 1,
        |c| c.used_ring_addr += 2,
    ];
    for (n, shift) in shifts.iter().enumerate() {
        let (host, daemon, mut guest) = plugged();
        guest.stop();
        let mut config = guest.ring_config();
        shift(&mut config);
        let refused = guest.frontend.set_vring_addr(0, &config).is_err();
        if !refused {
            let _ = guest.frontend.set_vring_kick(0, &guest.kick);
            let _ = guest.frontend.set_vring_enable(0, true);
            let request = guest.request(Head::default(), &[1], 0);
            guest.queue(&request);
            guest.kick();
            guest.kick_anyway();
            std::thread::sleep(A_WHILE);
        }
        assert!(host.messages(DEV).is_empty(), "case {n}");
        drop(guest);
        Guest::connect(&daemon, 0).assert_served();
    }
}

#[test]
fn vring_part_that_ends_outside_memory_is_refused_signalled_and_named() {
    let features = [
        VERSION_1 | EVENT_IDX | PROTOCOL_FEATURES,
        VERSION_1 | EVENT_IDX,
    ];
    for (name, part) in [
        ("descriptor table", 0),
        ("available ring", 1),
        ("used ring", 2),
    ] {
        for features in features {
            let host = Host::with_devices(1);
            let daemon = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
            let mut other = Guest::connect(&daemon, 1);
            let guest = Plug::default()
                .features(features)
                .negotiate(&daemon.socket(0));
            // The last page of memory, but for a few bytes.
            let region = &guest.memory.regions[0];
            let mut config = guest.ring_config();
            let last = guest.memory.user_addr(region.gpa + region.len - 1);
            let at = last - 31;
            match part {
                0 => config.desc_table_addr = at,
                1 => config.avail_ring_addr = at,
                _ => config.used_ring_addr = at,
            }
            let f = &guest.frontend;
            f.set_vring_num(0, 256).unwrap();
            f.set_vring_err(0, &guest.err).unwrap();
            let started = f
                .set_vring_addr(0, &config)
                .and_then(|()| f.set_vring_kick(0, &guest.kick));
            if features & PROTOCOL_FEATURES != 0 {
                // Acknowledged messages are: the last of them, which would let it run.
                started.unwrap();
                let enable = Raw::vring_state(0, 1);
                assert_ne!(guest.raw.ack(raw::SET_VRING_ENABLE, &enable, &[]), 0);
            }
            assert!(guest.raw.hung_up(PATIENCE));
            assert!(sys::readable(guest.err.as_raw_fd(), PATIENCE), "{name}");
            let address = format!("{name} at user address {at:#x} ends outside");
            daemon.wait_line(&["guest=0", &address]);
            let lines = daemon.stderr();
            let about = lines.iter().filter(|line| line.contains(name));
            assert_eq!(about.count(), 1, "{lines:#?}");
            other.assert_served();
        }
    }
}

#[test]
fn vring_whose_parts_cross_abutting_regions_runs() {
    const START: u64 = 0x1_0000_0000;
    // Of 256: the descriptor table is a page, and each other part has one of its own.
    for cut in [1, 2, 3] {
        let host = Host::with_devices(1);
        let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
        let regions = vec![
            Region::new(START, cut * 4096),
            Region::new(START + cut * 4096, 16 << 20),
        ];
        let mut guest = Plug::default()
            .regions(regions)
            .negotiate(&daemon.socket(0));
        let mut layout = ring::Layout::at(START, 256);
        let middle = START + cut * 4096;
        // Each part in turn, with about half of it on either side; the others behind all that.
        (layout.desc, layout.avail, layout.used) = match cut {
            1 => (middle - 2048, START + 0x5000, START + 0x6000),
            2 => (START + 0x5000, middle - 256, START + 0x6000),
            _ => (START + 0x5000, START + 0x6000, middle - 1024),
        };
        guest.ring = Ring::new(layout, true, &guest.memory);
        guest.alloc_from(START + 0x1_0000);
        guest.start();
        for n in 0..600u32 {
            let outcome = guest.transfer(Head::default(), &[n as u8], 1);
            assert_eq!((outcome.result, outcome.rx), (TRANS_OK, vec![n as u8]));
        }
    }
}

#[test]
fn vring_index_1_is_refused() {
    let (_host, daemon, guest) = plugged();
    let answer = guest.raw.send(
        raw::SET_VRING_NUM,
        raw::VERSION | raw::NEED_REPLY,
        &Raw::vring_state(1, 64),
        &[],
    );
    answer.unwrap();
    assert!(guest.raw.recv().map_or(true, |m| m.u64() != 0));
    drop(guest);
    Guest::connect(&daemon, 0).assert_served();
}

#[test]
fn vring_index_that_jumps_stops_the_ring_signals_err_and_is_logged() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
    let (mut bad, mut good) = (Guest::connect(&daemon, 0), Guest::connect(&daemon, 1));
    let index = bad.ring.layout.avail + 2;
    bad.memory.store_u16(index, 1000);
    bad.kick_anyway();
    assert!(sys::readable(bad.err.as_raw_fd(), PATIENCE));
    let cause = "ring stopped: cause=\"avail index jumped to 1000,";
    daemon.wait_line(&["guest=0", cause]);
    good.assert_served();
    assert!(host.edges(DEV) > 0 && bad.ring.device_idx(&bad.memory) == 0);
    // The connection stays, and a ring that is started again is served.
    assert_eq!(bad.stop(), 0);
    bad.memory.store_u16(index, 0);
    bad.start();
    bad.assert_served();
}

#[test]
fn err_eventfd_full_and_blocking_ends_the_session_and_is_named() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
    let (bad, mut good) = (Guest::connect(&daemon, 0), Guest::connect(&daemon, 1));
    bad.err.write(u64::MAX - 1).unwrap();
    unsafe { libc::fcntl(bad.err.as_raw_fd(), libc::F_SETFL, 0) };
    // An index beyond the ring: it is broken, and that is to be told.
    bad.memory.store_u16(bad.ring.layout.avail + 2, 1000);
    bad.kick_anyway();
    assert!(bad.raw.hung_up(PATIENCE));
    daemon.wait_line(&["guest=0", "call or err eventfd is full and blocking"]);
    good.assert_served();
}

#[test]
fn err_eventfd_full_and_blocking_of_a_ring_that_a_message_misplaces_ends_the_session() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
    let (bad, mut good) = (Guest::connect(&daemon, 0), Guest::connect(&daemon, 1));
    bad.err.write(u64::MAX - 1).unwrap();
    unsafe { libc::fcntl(bad.err.as_raw_fd(), libc::F_SETFL, 0) };
    // It begins in the last bytes of memory, and ends outside.
    let region = &bad.memory.regions[0];
    let mut config = bad.ring_config();
    config.desc_table_addr = bad.memory.user_addr(region.gpa + region.len - 32);
    // Whether it is acknowledged or not.
    let _ = bad.frontend.set_vring_addr(0, &config);
    assert!(bad.raw.hung_up(PATIENCE));
    daemon.wait_line(&["guest=0", "call or err eventfd is full and blocking"]);
    good.assert_served();
}

#[test]
fn call_eventfd_full_and_blocking_before_a_long_transfer_ends_the_session() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
    // Alone: beside others it is told at the end of each turn.
    let mut bad = Guest::connect(&daemon, 0);
    bad.assert_served();
    let _ = bad.call.read();
    bad.call.write(u64::MAX - 1).unwrap();
    unsafe { libc::fcntl(bad.call.as_raw_fd(), libc::F_SETFL, 0) };
    let used = bad.ring.used_idx;
    bad.ring.set_used_event(used, &bad.memory);
    // What the first has completed is told before the second, 80 ms long, goes on the wire.
    for hz in [1_000_000, 100] {
        let request = bad.request(let_go(0).freq(hz), &[1], 0);
        bad.queue(&request);
    }
    bad.ring.publish(&bad.memory);
    bad.kick_anyway();
    assert!(bad.raw.hung_up(PATIENCE));
    daemon.wait_line(&["guest=0", "call or err eventfd is full and blocking"]);
    Guest::connect(&daemon, 1).assert_served();
    assert!(!host.selected(DEV));
}

#[test]
fn call_eventfd_full_and_not_blocking_counts_as_signalled() {
    let host = Host::with_devices(1);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    let mut guest = Guest::connect(&daemon, 0);
    guest.assert_served();
    let _ = guest.call.read();
    guest.call.write(u64::MAX - 1).unwrap();
    let used = guest.ring.used_idx;
    guest.ring.set_used_event(used, &guest.memory);
    let before = guest.ring.device_idx(&guest.memory);
    let request = guest.request(Head::default(), &[1], 0);
    guest.queue(&request);
    guest.ring.publish(&guest.memory);
    guest.kick_anyway();
    let is_used = || guest.ring.device_idx(&guest.memory) == before.wrapping_add(1);
    assert!(sys::eventually(PATIENCE, is_used));
    assert_eq!(guest.call.read().unwrap(), u64::MAX - 1);
    assert_eq!(guest.wait_used(1).len(), 1);
    guest.assert_served();
}

#[test]
fn call_eventfd_full_and_blocking_does_not_hold_up_other_guests() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
    let (mut bad, mut good) = (Guest::connect(&daemon, 0), Guest::connect(&daemon, 1));
    bad.assert_served();
    let _ = bad.call.read();
    bad.call.write(u64::MAX - 1).unwrap();
    unsafe { libc::fcntl(bad.call.as_raw_fd(), libc::F_SETFL, 0) };
    bad.ring.set_used_event(bad.ring.used_idx, &bad.memory);
    let request = bad.request(Head::default(), &[1], 0);
    bad.queue(&request);
    bad.kick_anyway();
    bad.ring.publish(&bad.memory);
    bad.kick_anyway();
    (0..20).for_each(|_| good.assert_served());
    drop(bad);
    Guest::connect(&daemon, 0).assert_served();
}
