// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The vhost-user protocol, one message at a time.

use crate::rig::plug::{EVENT_IDX, IN_ORDER, INDIRECT_DESC, PROTOCOL_FEATURES, VERSION_1};
use crate::rig::*;
use std::time::Duration;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

fn eventfd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

/// Long enough that a daemon which would do something had the time for it.
const A_WHILE: Duration = Duration::from_millis(300);

fn nothing_used(guest: &mut Guest) {
    std::thread::sleep(A_WHILE);
    assert_eq!(guest.ring.device_idx(&guest.memory), guest.ring.used_idx);
}

#[test]
fn features_offered_are_exactly_those_implemented() {
    let (_host, _daemon, guest) = plugged();
    assert_eq!(
        guest.offered,
        VERSION_1 | INDIRECT_DESC | EVENT_IDX | IN_ORDER | PROTOCOL_FEATURES
    );
}

#[test]
fn protocol_features_offered_are_exactly_those_implemented() {
    let (_host, _daemon, mut guest) = plugged();
    // MQ, REPLY_ACK, CONFIG, RESET_DEVICE, CONFIGURE_MEM_SLOTS; raw, since the crate drops bits that it does not know.
    guest.frontend.get_protocol_features().unwrap();
    let offered = guest.raw.ask(raw::GET_PROTOCOL_FEATURES, &[]).u64();
    assert_eq!(offered, 1 << 0 | 1 << 3 | 1 << 9 | 1 << 13 | 1 << 15);
}

#[test]
fn queue_num_is_1_and_mem_slots_are_32() {
    let (_host, _daemon, mut guest) = plugged();
    assert_eq!(guest.frontend.get_queue_num().unwrap(), 1);
    assert_eq!(guest.frontend.get_max_mem_slots().unwrap(), 32);
}

#[test]
fn features_not_offered_are_refused() {
    let (_host, daemon, guest) = plugged();
    // RING_PACKED.
    let refused = guest
        .frontend
        .set_features(VERSION_1 | PROTOCOL_FEATURES | 1 << 34)
        .is_err();
    assert!(refused || guest.raw.hung_up(PATIENCE));
    drop(guest);
    Guest::connect(&daemon, 0).assert_served();
}

#[test]
fn config_any_offset_and_size_is_answered_and_zero_beyond_32() {
    let (_host, _daemon, guest) = plugged();
    let whole = guest.raw.get_config(0, 32);
    assert!(whole.iter().any(|&b| b != 0));
    let expected = |offset: u32, size: u32| -> Vec<u8> {
        (offset..offset + size)
            .map(|at| whole.get(at as usize).copied().unwrap_or(0))
            .collect()
    };
    let mut reads: Vec<(u32, u32)> = (0..=40)
        .flat_map(|offset| (1..=40).map(move |size| (offset, size)))
        .collect();
    reads.extend([
        (0, 256),
        (31, 256),
        (0, 1000),
        (32, 1000),
        (4095, 1),
        (4092, 4),
        (3840, 256),
        (0xf00, 8),
    ]);
    for (offset, size) in reads {
        assert_eq!(
            guest.raw.get_config(offset, size),
            expected(offset, size),
            "offset {offset}, size {size}"
        );
    }
}

/// A message has at most 4,096 bytes, 12 of which are offset, size and flags.
#[test]
fn config_longest_read_is_4084_bytes_and_a_longer_one_ends_the_connection() {
    let (_host, daemon, guest) = plugged();
    for offset in [0, 12] {
        assert_eq!(guest.raw.get_config(offset, 4084).len(), 4084);
    }
    drop(guest);
    for (offset, size) in [(0, 4085u32), (13, 4084), (0, 0)] {
        let guest = Guest::connect(&daemon, 0);
        let head = [offset, size, 0].map(u32::to_ne_bytes).concat();
        let body = [head, vec![0; size as usize]].concat();
        guest
            .raw
            .send(raw::GET_CONFIG, raw::VERSION, &body, &[])
            .unwrap();
        assert!(guest.raw.hung_up(PATIENCE), "{offset} {size}");
    }
}

#[test]
fn config_write_is_acknowledged_and_changes_nothing() {
    let (_host, _daemon, mut guest) = plugged();
    let before = guest.config();
    for flags in [
        VhostUserConfigFlags::WRITABLE,
        VhostUserConfigFlags::LIVE_MIGRATION,
    ] {
        guest.frontend.set_config(0, flags, &[0xff; 32]).unwrap();
        guest.frontend.set_config(100, flags, &[0xff; 4]).unwrap();
    }
    assert_eq!(guest.config(), before);
}

#[test]
fn config_is_answered_between_the_pieces_of_a_transfer() {
    let (host, _daemon, mut guest) = plugged();
    let (first, last) = (host.gate_message(DEV, 1), host.gate_message(DEV, 10));
    let request = guest.request(Head::default(), &pattern(65_536), 0);
    guest.queue(&request);
    guest.kick();
    first.reached();
    let asked = guest.raw.sock.try_clone().unwrap();
    let reader = std::thread::spawn(move || Raw::over(asked).get_config(0, 32));
    guest.raw.wait_unread();
    std::thread::sleep(A_LOOK);
    first.release();
    // The second gate keeps the transfer from its end: the answer can only come from within it.
    assert_eq!(reader.join().unwrap().len(), 32);
    assert_eq!(guest.ring.device_idx(&guest.memory), 0);
    last.release();
    let used = guest.wait_used(1)[0];
    assert_eq!(guest.outcome(&request, used).result, TRANS_OK);
}

#[test]
fn mem_table_replaced_by_other_files_is_used_at_once() {
    let (host, _daemon, mut guest) = plugged();
    guest.assert_served();
    guest.stop();
    guest.memory.regions = vec![
        Region::new(0x4000_0000, 8 << 20),
        Region::new(0x9000_0000, 1 << 20),
    ];
    guest.share_memory();
    guest.ring = Ring::new(ring::Layout::at(0x4000_0000, 128), true, &guest.memory);
    guest.alloc_from(0x4010_0000);
    guest.start();
    guest.assert_served();
    guest.alloc_from(0x9000_0000);
    host.forget();
    assert_eq!(guest.transfer(Head::default(), b"there", 5).rx, b"there");
}

#[test]
fn mem_table_extended_under_a_running_ring_keeps_it_running() {
    let (_host, _daemon, mut guest) = plugged();
    guest.assert_served();
    guest.memory.regions.push(Region::new(0x9000_0000, 1 << 20));
    guest.share_memory();
    guest.assert_served();
    guest.alloc_from(0x9000_0000);
    guest.assert_served();
}

#[test]
fn mem_region_added_is_used_and_removed_is_gone() {
    let (host, _daemon, mut guest) = plugged();
    // The region starts inside its file: the offset must not be lost.
    let region = Region::at_offset(0x9000_0000, 1 << 20, 0x3000);
    guest.frontend.add_mem_region(&region.info()).unwrap();
    guest.memory.regions.push(region);
    let there = guest.request(Head::default(), b"", 4);
    guest.alloc_from(0x9000_0000);
    let mut request = guest.request(Head::default(), b"abcd", 4);
    assert_eq!(guest.carry_out(&request).rx, b"abcd");
    let info = guest.memory.regions[1].info();
    guest.frontend.remove_mem_region(&info).unwrap();
    host.forget();
    // Head and result where memory still is, tx and rx where there is none.
    let (head, result) = (there.segments[0], *there.segments.last().unwrap());
    let last = request.segments.len() - 1;
    (request.segments[0], request.segments[last]) = (head, result);
    guest.queue(&request);
    guest.kick();
    guest.wait_used(1);
    assert_eq!(guest.memory.read(result.gpa, 1), [PARAM_ERR]);
    assert!(host.records().is_empty());
    guest.alloc_from(0x1_0080_0000);
    guest.assert_served();
}

#[test]
fn kick_without_any_memory_is_logged_once_and_the_request_served_when_there_is() {
    const LACK: &str = "the front-end has shared no guest memory";
    let (host, daemon, mut guest) = plugged();
    let info = guest.memory.regions[0].info();
    guest.frontend.remove_mem_region(&info).unwrap();
    let request = guest.request(Head::default(), b"abcd", 4);
    guest.queue(&request);
    guest.kick();
    daemon.wait_line(&["guest=0 requests wait", LACK, "share=on"]);
    guest.kick_anyway();
    // Handled after the kick, since both are there before it is read.
    guest.frontend.get_features().unwrap();
    let lines = daemon.stderr();
    let count = lines.iter().filter(|line| line.contains(LACK)).count();
    assert_eq!(count, 1, "{lines:#?}");
    assert!(host.messages(DEV).is_empty());
    guest.frontend.add_mem_region(&info).unwrap();
    let used = guest.wait_used(1);
    assert_eq!(guest.outcome(&request, used[0]).result, TRANS_OK);
    guest.assert_served();
}

#[test]
fn mem_regions_32_are_taken_and_the_33rd_is_refused() {
    let (_host, daemon, mut guest) = plugged();
    for n in 1..32u64 {
        let region = Region::new(0x9000_0000 + n * 0x10_0000, 0x10_000);
        guest
            .frontend
            .add_mem_region(&region.info())
            .unwrap_or_else(|e| panic!("region {n}: {e}"));
        guest.memory.regions.push(region);
    }
    guest.alloc_from(0x9000_0000 + 31 * 0x10_0000);
    guest.assert_served();
    let region = Region::new(0xf000_0000, 0x10_000);
    assert!(guest.frontend.add_mem_region(&region.info()).is_err());
    drop(guest);
    Guest::connect(&daemon, 0).assert_served();
}

#[test]
#[cfg(target_arch = "x86_64")]
fn mem_regions_may_have_a_guests_share_of_the_address_space_and_no_more() {
    const TIB: u64 = 1 << 40;
    // Of x86_64's 128 TiB 64 guests may use the half.
    for (guests, tib, taken) in [(64, 1, true), (64, 2, false), (1, 32, true)] {
        let host = Host::with_devices(1);
        let setup = Setup::new(&host).guests(guests);
        let daemon = setup.device("/dev/spidev0.0").start();
        let regions = vec![Region::new(0x1_0000_0000, tib * TIB)];
        if taken {
            let mut guest = Plug::default().regions(regions).connect(&daemon, 0);
            guest.assert_served();
            // A second table takes the place of the first.
            guest.share_memory();
            guest.assert_served();
            continue;
        }
        let raw = Raw::connect(&daemon.socket(0));
        let table = [1, 0, tib * TIB, 0, 0].map(u64::to_le_bytes).concat();
        let fds = [std::os::fd::AsRawFd::as_raw_fd(&regions[0].file)];
        raw.send(raw::SET_MEM_TABLE, raw::VERSION, &table, &fds)
            .unwrap();
        assert!(raw.hung_up(PATIENCE));
        daemon.wait_line(&["guest=0", "1024 GiB", "share of the address space"]);
    }
}

#[test]
fn mem_regions_overlapping_or_beyond_their_file_are_refused() {
    let good = Region::new(0x9000_0000, 0x10_000);
    let info = good.info();
    let bad = [
        (
            "overlap",
            vhost::VhostUserMemoryRegionInfo {
                guest_phys_addr: 0x1_0000_1000,
                ..info
            },
        ),
        (
            "beyond the file",
            vhost::VhostUserMemoryRegionInfo {
                memory_size: 0x11_000,
                ..info
            },
        ),
        (
            "offset beyond the file",
            vhost::VhostUserMemoryRegionInfo {
                mmap_offset: 0x1000,
                ..info
            },
        ),
        (
            "wrap",
            vhost::VhostUserMemoryRegionInfo {
                guest_phys_addr: u64::MAX - 0xffff,
                memory_size: 0x20_000,
                ..info
            },
        ),
        (
            "64 TiB",
            vhost::VhostUserMemoryRegionInfo {
                memory_size: 64 << 40,
                ..info
            },
        ),
    ];
    for (what, info) in bad {
        let (_host, daemon, mut guest) = plugged();
        assert!(guest.frontend.add_mem_region(&info).is_err(), "{what}");
        drop(guest);
        Guest::connect(&daemon, 0).assert_served();
    }
}

#[test]
fn session_without_protocol_feature_config_is_served() {
    let host = Host::with_devices(1);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    let mut guest = Plug::default()
        .protocol(VhostUserProtocolFeatures::empty())
        .connect(&daemon, 0);
    guest.assert_served();
}

#[test]
fn message_unknown_or_malformed_ends_that_session_only() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
    let mut other = Guest::connect(&daemon, 1);
    let big = [
        raw::GET_FEATURES.to_le_bytes(),
        1u32.to_le_bytes(),
        0xffff_ffffu32.to_le_bytes(),
    ]
    .concat();
    let bad = [
        ("unknown request", Raw::encode(999, raw::VERSION, &[])),
        ("request 0", Raw::encode(0, raw::VERSION, &[])),
        ("version 2", Raw::encode(raw::GET_FEATURES, 2, &[])),
        (
            "reply flag",
            Raw::encode(raw::GET_FEATURES, raw::VERSION | raw::REPLY, &[]),
        ),
        ("size of 4 GiB", big),
        (
            "short payload",
            Raw::encode(raw::SET_FEATURES, raw::VERSION, &[0; 4]),
        ),
        ("GPU_SET_SOCKET", Raw::encode(33, raw::VERSION, &[])),
        ("SET_BACKEND_REQ_FD", Raw::encode(21, raw::VERSION, &[])),
        ("SET_LOG_BASE", Raw::encode(6, raw::VERSION, &[0; 16])),
        ("IOTLB_MSG", Raw::encode(22, raw::VERSION, &[0; 32])),
    ];
    for (what, bytes) in bad {
        let hostile = Raw::connect(&daemon.socket(0));
        hostile.send_bytes(&bytes, &[]).unwrap();
        assert!(hostile.hung_up(PATIENCE), "{what}");
        other.assert_served();
    }
    Guest::connect(&daemon, 0).assert_served();
}
