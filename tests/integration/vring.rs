// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The queue: where it is, when it runs, who is told.

use crate::rig::plug::{EVENT_IDX, INDIRECT_DESC, VERSION_1};
use crate::rig::*;
use std::os::fd::AsRawFd;
use std::time::Duration;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

fn eventfd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

/// Long enough that a daemon which would do something had the time for it.
pub const A_WHILE: Duration = Duration::from_millis(300);

fn nothing_used(guest: &mut Guest) {
    std::thread::sleep(A_WHILE);
    assert_eq!(guest.ring.device_idx(&guest.memory), guest.ring.used_idx);
}

#[test]
fn vring_kick_replaced_listens_to_the_new_one() {
    let (_host, _daemon, mut guest) = plugged();
    guest.assert_served();
    let new = eventfd();
    guest.frontend.set_vring_kick(0, &new).unwrap();
    let old = std::mem::replace(&mut guest.kick, new);
    guest.assert_served();
    // The old one is of no meaning any more, whatever happens to it.
    old.write(1).unwrap();
    guest.assert_served();
}

#[test]
fn vring_call_replaced_signals_the_new_one_only() {
    let (_host, _daemon, mut guest) = plugged();
    guest.assert_served();
    let new = eventfd();
    guest.frontend.set_vring_call(0, &new).unwrap();
    let old = std::mem::replace(&mut guest.call, new);
    let _ = old.read();
    guest.assert_served();
    assert!(old.read().is_err(), "the old call eventfd is not signalled");
}

#[test]
fn vring_fds_replaced_many_times_are_closed() {
    let (_host, daemon, mut guest) = plugged();
    guest.assert_served();
    let fds = daemon.fd_count();
    for _ in 0..100 {
        (guest.kick, guest.call, guest.err) = (eventfd(), eventfd(), eventfd());
        guest.frontend.set_vring_kick(0, &guest.kick).unwrap();
        guest.frontend.set_vring_call(0, &guest.call).unwrap();
        guest.frontend.set_vring_err(0, &guest.err).unwrap();
    }
    guest.assert_served();
    // The kernel closes them, and may have others to close first.
    let equal = sys::eventually(PATIENCE, || daemon.fd_count() == fds);
    assert!(equal, "{} fds, {fds} before", daemon.fd_count());
}

#[test]
fn vring_call_absent_completes_without_a_signal() {
    let (_host, _daemon, mut guest) = plugged();
    assert_eq!(
        guest
            .raw
            .ack(raw::SET_VRING_CALL, &raw::NO_FD.to_le_bytes(), &[]),
        0
    );
    let request = guest.request(Head::default(), b"ab", 2);
    guest.queue(&request);
    guest.kick();
    assert!(sys::eventually(PATIENCE, || guest
        .ring
        .device_idx(&guest.memory)
        == 1));
    assert!(guest.call.read().is_err());
    assert_eq!(guest.memory.read(request.rx_gpa, 2), b"ab");
}

#[test]
fn vring_err_and_kick_absent_leave_the_session_alive() {
    let (_host, _daemon, mut guest) = plugged();
    assert_eq!(
        guest
            .raw
            .ack(raw::SET_VRING_ERR, &raw::NO_FD.to_le_bytes(), &[]),
        0
    );
    guest.assert_served();
    assert_eq!(
        guest
            .raw
            .ack(raw::SET_VRING_KICK, &raw::NO_FD.to_le_bytes(), &[]),
        0
    );
    guest.config();
    guest.frontend.set_vring_kick(0, &guest.kick).unwrap();
    guest.assert_served();
}

#[test]
fn vring_without_protocol_features_is_enabled() {
    let host = Host::with_devices(1);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    let mut guest = Plug::default()
        .features(VERSION_1 | INDIRECT_DESC)
        .connect(&daemon, 0);
    guest.assert_served();
}

#[test]
fn vring_with_protocol_features_waits_for_enable_and_then_needs_no_kick() {
    let host = Host::with_devices(1);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    let mut guest = Plug::default().negotiate(&daemon.socket(0));
    guest.set_up_ring();
    host.forget();
    let request = guest.request(Head::default(), b"ab", 2);
    guest.queue(&request);
    guest.kick();
    nothing_used(&mut guest);
    assert!(host.records().is_empty());
    guest.frontend.set_vring_enable(0, true).unwrap();
    let used = guest.wait_used(1)[0];
    assert_eq!(guest.outcome(&request, used).rx, b"ab");
}

#[test]
fn vring_filled_before_its_kick_is_set_is_processed_without_a_kick() {
    let host = Host::with_devices(1);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    let mut guest = Plug::default().negotiate(&daemon.socket(0));
    let request = guest.request(Head::default(), b"ab", 2);
    guest.queue(&request);
    guest.ring.publish(&guest.memory);
    guest.set_up_ring();
    guest.frontend.set_vring_enable(0, true).unwrap();
    let used = guest.wait_used(1)[0];
    assert_eq!(guest.outcome(&request, used).rx, b"ab");
}

#[test]
fn vring_disabled_is_not_processed_until_enabled_again() {
    let (host, _daemon, mut guest) = plugged();
    guest.frontend.set_vring_enable(0, false).unwrap();
    let requests: Vec<_> = (0..3u8)
        .map(|n| guest.request(Head::default(), &[n], 1))
        .collect();
    requests.iter().for_each(|r| {
        guest.queue(r);
    });
    guest.kick();
    guest.kick_anyway();
    nothing_used(&mut guest);
    assert!(host.records().is_empty());
    guest.frontend.set_vring_enable(0, true).unwrap();
    for (n, used) in guest.wait_used(3).into_iter().enumerate() {
        assert_eq!(guest.outcome(&requests[n], used).rx, [n as u8]);
    }
}

#[test]
fn vring_base_of_a_disabled_ring_is_where_a_later_start_goes_on() {
    let (host, _daemon, mut guest) = plugged();
    (0..5).for_each(|_| guest.assert_served());
    guest.frontend.set_vring_enable(0, false).unwrap();
    let requests: Vec<_> = (0..3u8)
        .map(|n| guest.request(Head::default(), &[n], 1))
        .collect();
    requests.iter().for_each(|r| {
        guest.queue(r);
    });
    guest.kick();
    assert_eq!(guest.stop(), 5);
    host.forget();
    nothing_used(&mut guest);
    guest.start();
    for (n, used) in guest.wait_used(3).into_iter().enumerate() {
        assert_eq!(guest.outcome(&requests[n], used).rx, [n as u8]);
    }
    assert_eq!(host.messages(DEV).len(), 3, "each exactly once");
    assert_eq!(guest.stop(), 8);
}

#[test]
fn vring_base_during_a_short_transfer_waits_for_its_end_and_starts_no_other() {
    let (host, _daemon, mut guest) = plugged();
    let gate = host.gate_message(DEV, 0);
    let tx = pattern(20_000);
    let long = guest.request(Head::default().cs_change(1), &tx, 20_000);
    let behind: Vec<_> = (0..3u8)
        .map(|n| guest.request(Head::default(), &[n], 1))
        .collect();
    guest.queue(&long);
    behind.iter().for_each(|r| {
        guest.queue(r);
    });
    guest.kick();
    gate.reached();
    guest
        .raw
        .send(
            raw::GET_VRING_BASE,
            raw::VERSION,
            &Raw::vring_state(0, 0),
            &[],
        )
        .unwrap();
    std::thread::sleep(A_LOOK);
    gate.release();
    let answer = guest.raw.recv().unwrap();
    let (seen, count) = (
        guest.ring.device_idx(&guest.memory),
        host.messages(DEV).len(),
    );
    let base = u32::from_le_bytes(answer.payload[4..8].try_into().unwrap());
    assert_eq!(
        (base, seen),
        (1, 1),
        "only the transfer that was on the wire is finished"
    );
    assert_eq!(guest.memory.read(long.result_gpa, 1), [TRANS_OK]);
    assert!(guest.memory.read(long.rx_gpa, tx.len()) == tx);
    assert!(!host.selected(DEV));
    std::thread::sleep(A_WHILE);
    assert_eq!(
        (
            guest.ring.device_idx(&guest.memory),
            host.messages(DEV).len()
        ),
        (seen, count),
        "nothing after the reply"
    );
    guest.wait_used(1);
    host.forget();
    guest.start();
    for (n, used) in guest.wait_used(3).into_iter().enumerate() {
        assert_eq!(guest.outcome(&behind[n], used).rx, [n as u8]);
    }
    assert_eq!(
        host.messages(DEV)
            .iter()
            .flat_map(|m| m.tx())
            .collect::<Vec<_>>(),
        [0, 1, 2]
    );
}

#[test]
fn vring_base_during_a_long_transfer_ends_it_with_trans_err() {
    let (host, _daemon, mut guest) = plugged();
    let gate = host.gate_message(DEV, 1);
    // Four seconds at 1 MHz.
    let request = guest.request(Head::default(), &pattern(500_000), 0);
    guest.queue(&request);
    guest.kick();
    gate.reached();
    guest
        .raw
        .send(
            raw::GET_VRING_BASE,
            raw::VERSION,
            &Raw::vring_state(0, 0),
            &[],
        )
        .unwrap();
    std::thread::sleep(A_LOOK);
    gate.release();
    let answer = guest.raw.recv().unwrap();
    assert_eq!(answer.payload, Raw::vring_state(0, 1));
    let (seen, count) = (
        guest.ring.device_idx(&guest.memory),
        host.messages(DEV).len(),
    );
    assert_eq!(seen, 1, "it is completed, once");
    let used = guest.ring.take(&guest.memory).unwrap();
    assert_eq!(guest.outcome(&request, used).result, TRANS_ERR);
    assert!(!host.selected(DEV));
    std::thread::sleep(A_WHILE);
    assert_eq!(
        (
            guest.ring.device_idx(&guest.memory),
            host.messages(DEV).len()
        ),
        (seen, count),
        "nothing after the reply"
    );
    guest.start();
    guest.assert_served();
}

#[test]
fn vring_stopped_and_started_many_times_loses_nothing() {
    let (host, _daemon, mut guest) = plugged();
    for n in 0..200u32 {
        guest.assert_served();
        assert_eq!(guest.stop(), n + 1);
        guest.start();
    }
    assert_eq!(host.messages(DEV).len(), 200);
}

/// Sends a message while `len` bytes are on the wire, 8 us each; the result of that request when it is acknowledged.
#[track_caller]
fn in_a_transfer(guest: &mut Guest, host: &Host, len: usize, message: (u32, &[u8])) -> u8 {
    let gate = host.gate_message(DEV, 1);
    let request = guest.request(Head::default(), &pattern(len), 0);
    guest.queue(&request);
    guest.kick();
    gate.reached();
    let file = guest.memory.regions[0].file.as_raw_fd();
    let fds = [file];
    let fds = if message.0 == raw::SET_MEM_TABLE {
        &fds[..]
    } else {
        &[]
    };
    let flags = raw::VERSION | raw::NEED_REPLY;
    guest.raw.send(message.0, flags, message.1, fds).unwrap();
    std::thread::sleep(A_LOOK);
    gate.release();
    assert_eq!(guest.raw.recv().unwrap().u64(), 0);
    guest.memory.read(request.result_gpa, 1)[0]
}

/// A region as a message has it, behind a count or padding.
fn described(count: u64, region: &Region) -> Vec<u8> {
    let info = region.info();
    let (gpa, user) = (info.guest_phys_addr, info.userspace_addr);
    let words = [count, gpa, info.memory_size, user, info.mmap_offset];
    words.map(u64::to_le_bytes).concat()
}

#[test]
fn vring_memory_replaced_during_a_short_transfer_waits_for_its_end() {
    let (host, _daemon, mut guest) = plugged();
    let table = described(1, &guest.memory.regions[0]);
    let message = (raw::SET_MEM_TABLE, &table[..]);
    assert_eq!(in_a_transfer(&mut guest, &host, 20_000, message), TRANS_OK);
    guest.wait_used(1);
    guest.assert_served();
}

#[test]
fn vring_memory_that_is_not_in_use_removed_during_a_short_transfer_waits_for_its_end() {
    let (host, _daemon, mut guest) = plugged();
    let unused = Region::new(0x9000_0000, 1 << 20);
    guest.frontend.add_mem_region(&unused.info()).unwrap();
    let region = described(0, &unused);
    let message = (raw::REM_MEM_REG, &region[..]);
    assert_eq!(in_a_transfer(&mut guest, &host, 20_000, message), TRANS_OK);
    guest.wait_used(1);
    guest.assert_served();
}

#[test]
fn vring_enabled_again_during_a_long_transfer_does_not_end_it() {
    let (host, _daemon, mut guest) = plugged();
    let message = (raw::SET_VRING_ENABLE, &Raw::vring_state(0, 1)[..]);
    in_a_transfer(&mut guest, &host, 500_000, message);
    // Whether the acknowledgement comes before its end or behind it is all the same.
    guest.wait_used(1);
    let sent: usize = host.messages(DEV).iter().map(|m| m.tx().len()).sum();
    assert_eq!(sent, 500_000);
    guest.assert_served();
}

/// A message that changes a ring while half a million bytes are on the wire ends that transfer at once.
#[track_caller]
fn ends_a_long_transfer(host: &Host, guest: &mut Guest, message: (u32, &[u8])) {
    assert_eq!(in_a_transfer(guest, host, 500_000, message), TRANS_ERR);
    let sent: usize = host.messages(DEV).iter().map(|m| m.tx().len()).sum();
    assert!(sent < 500_000);
    assert!(!host.selected(DEV));
    guest.wait_used(1);
    guest.assert_served();
}

#[test]
fn vring_addresses_set_during_a_long_transfer_end_it_with_trans_err() {
    let (host, _daemon, mut guest) = plugged();
    let config = guest.ring_config();
    let (desc, used) = (config.desc_table_addr, config.used_ring_addr);
    // Index and flags are 0 both, and so is the address of the log.
    let words = [0, desc, used, config.avail_ring_addr, 0];
    let message = words.map(u64::to_le_bytes).concat();
    ends_a_long_transfer(&host, &mut guest, (raw::SET_VRING_ADDR, &message));
}

#[test]
fn features_set_during_a_long_transfer_end_it_with_trans_err() {
    let (host, _daemon, mut guest) = plugged();
    let message = guest.features.to_le_bytes();
    ends_a_long_transfer(&host, &mut guest, (raw::SET_FEATURES, &message));
}

#[test]
fn features_set_on_a_running_ring_change_how_both_sides_are_told() {
    let (_host, _daemon, mut guest) = plugged();
    let with_event_idx = guest.features;
    assert!(with_event_idx & EVENT_IDX != 0);
    for features in [with_event_idx & !EVENT_IDX, with_event_idx].repeat(3) {
        guest.frontend.set_features(features).unwrap();
        guest.ring.event_idx = features & EVENT_IDX != 0;
        // What stands in the fields of the other way is of no meaning now: it would suppress all.
        guest
            .ring
            .set_no_interrupt(guest.ring.event_idx, &guest.memory);
        guest
            .ring
            .set_used_event(guest.ring.used_idx.wrapping_add(1000), &guest.memory);
        // The ring is asked for again at once, and the daemon may be about to ask for a kick.
        guest.kick_anyway();
        (0..3).for_each(|_| guest.assert_served());
    }
}

#[test]
fn vring_memory_replaced_during_a_long_transfer_ends_it_with_trans_err() {
    let (host, _daemon, mut guest) = plugged();
    let gate = host.gate_message(DEV, 1);
    let request = guest.request(Head::default(), &pattern(500_000), 0);
    guest.queue(&request);
    guest.kick();
    gate.reached();
    let frontend = guest.frontend.clone();
    let info = guest.memory.regions[0].info();
    let sender = std::thread::spawn(move || frontend.set_mem_table(&[info]).unwrap());
    guest.raw.wait_unread();
    std::thread::sleep(A_LOOK);
    gate.release();
    sender.join().unwrap();
    let used = guest.wait_used(1)[0];
    assert_eq!(guest.outcome(&request, used).result, TRANS_ERR);
    assert!(!host.selected(DEV));
    guest.assert_served();
}

#[test]
fn owner_reset_disables_the_ring_and_keeps_all_else() {
    let (_host, _daemon, mut guest) = plugged();
    guest.assert_served();
    assert_eq!(guest.raw.ack(raw::RESET_OWNER, &[], &[]), 0);
    let request = guest.request(Head::default(), b"ab", 2);
    guest.queue(&request);
    guest.kick();
    guest.kick_anyway();
    nothing_used(&mut guest);
    guest.frontend.set_vring_enable(0, true).unwrap();
    let used = guest.wait_used(1)[0];
    assert_eq!(guest.outcome(&request, used).rx, b"ab");
    guest.assert_served();
}

#[test]
fn vring_completion_without_a_call_is_not_signalled_while_the_ring_is_stopped() {
    let (_host, _daemon, mut guest) = plugged();
    let absent = raw::NO_FD.to_le_bytes();
    assert_eq!(guest.raw.ack(raw::SET_VRING_CALL, &absent, &[]), 0);
    let request = guest.request(Head::default(), &[1], 0);
    guest.queue(&request);
    guest.kick();
    let used = |guest: &Guest| guest.ring.device_idx(&guest.memory) == 1;
    assert!(sys::eventually(PATIENCE, || used(&guest)));
    guest.stop();
    guest.frontend.set_vring_call(0, &guest.call).unwrap();
    assert!(!sys::readable(guest.call.as_raw_fd(), A_WHILE));
    guest.frontend.set_vring_base(0, 1).unwrap();
    guest.frontend.set_vring_kick(0, &guest.kick).unwrap();
    assert!(sys::readable(guest.call.as_raw_fd(), PATIENCE));
}

#[test]
fn device_reset_without_new_features_leaves_the_ring_to_be_enabled() {
    let (_host, _daemon, mut guest) = plugged();
    guest.assert_served();
    guest.frontend.reset_device().unwrap();
    guest.ring = Ring::new(guest.ring.layout, false, &guest.memory);
    let request = guest.request(Head::default(), b"ab", 2);
    guest.queue(&request);
    guest.ring.publish(&guest.memory);
    guest.set_up_ring();
    guest.kick_anyway();
    nothing_used(&mut guest);
    guest.frontend.set_vring_enable(0, true).unwrap();
    let used = guest.wait_used(1)[0];
    assert_eq!(guest.outcome(&request, used).rx, b"ab");
}

#[test]
fn device_reset_stops_the_ring_and_a_new_start_serves() {
    let (host, _daemon, mut guest) = plugged();
    guest.assert_served();
    guest.frontend.reset_device().unwrap();
    host.forget();
    let request = guest.request(Head::default(), b"ab", 2);
    guest.queue(&request);
    guest.kick();
    guest.kick_anyway();
    nothing_used(&mut guest);
    assert!(host.messages(DEV).is_empty());
    guest.ring = Ring::new(guest.ring.layout, true, &guest.memory);
    guest.frontend.set_features(guest.features).unwrap();
    guest.start();
    guest.assert_served();
}

#[test]
fn device_reset_during_a_transfer_releases_chip_select_and_sends_no_more() {
    let (host, _daemon, mut guest) = plugged();
    let gate = host.gate_message(DEV, 1);
    let request = guest.request(Head::default(), &pattern(500_000), 0);
    guest.queue(&request);
    guest.kick();
    gate.reached();
    let mut frontend = guest.frontend.clone();
    let sender = std::thread::spawn(move || frontend.reset_device().unwrap());
    guest.raw.wait_unread();
    std::thread::sleep(A_LOOK);
    gate.release();
    sender.join().unwrap();
    assert!(!host.selected(DEV));
    let count = host.messages(DEV).len();
    std::thread::sleep(A_WHILE);
    assert_eq!(host.messages(DEV).len(), count);
}

#[test]
fn vring_memory_removed_behind_a_transfer_is_no_reason_not_to_notify() {
    let (host, _daemon, mut guest) = plugged();
    let region = described(0, &guest.memory.regions[0]);
    let message = (raw::REM_MEM_REG, &region[..]);
    assert_eq!(in_a_transfer(&mut guest, &host, 20_000, message), TRANS_OK);
    assert!(sys::readable(guest.call.as_raw_fd(), Duration::ZERO));
    let info = guest.memory.regions[0].info();
    guest.frontend.add_mem_region(&info).unwrap();
    guest.wait_used(1);
    guest.assert_served();
}

#[test]
fn vring_memory_replaced_again_and_again_by_a_front_end_that_leaves_is_no_harm() {
    let (host, daemon, mut guest) = plugged();
    let gate = host.gate_message(DEV, 1);
    let request = guest.request(Head::default(), &pattern(20_000), 0);
    guest.queue(&request);
    guest.kick();
    gate.reached();
    let table = described(1, &guest.memory.regions[0]);
    let fd = guest.memory.regions[0].file.as_raw_fd();
    for _ in 0..50 {
        let sent = guest
            .raw
            .send(raw::SET_MEM_TABLE, raw::VERSION, &table, &[fd]);
        sent.unwrap();
    }
    drop(guest);
    gate.release();
    Guest::connect(&daemon, 0).assert_served();
    assert!(!host.selected(DEV));
}
