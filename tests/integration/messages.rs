// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the daemon makes of messages that come in an odd way, at an odd time, or are not for it.

use crate::rig::*;
use crate::vring::A_WHILE;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use vhost::vhost_user::VhostUserFrontend;

/// A daemon of one guest whose front-end is handed in over a connection of which the daemon's end has the least send buffer
/// that Linux allows.
fn with_little_room(host: &Host) -> (Daemon, Raw) {
    let (theirs, ours) = UnixStream::pair().unwrap();
    let least = 1i32;
    let (value, len) = ((&raw const least).cast(), size_of_val(&least) as u32);
    let fd = theirs.as_raw_fd();
    let set = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, value, len) };
    assert_eq!(set, 0);
    let setup = Setup::new(host)
        .device("/dev/spidev0.0")
        .hand_in(&theirs, 500);
    let daemon = setup.spelled(|_, _| vec!["--fd=500".to_owned()]).launch();
    (daemon, Raw::over(ours))
}

/// 12 bytes of a configuration access, and room for what is read.
fn get_config(size: usize) -> Vec<u8> {
    let mut payload = [0, size as u32, 0].map(u32::to_le_bytes).concat();
    payload.resize(12 + size, 0);
    payload
}

#[test]
fn replies_100_unread_ones_are_all_sent_however_little_room_there_is() {
    let host = Host::with_devices(1);
    let (_daemon, front_end) = with_little_room(&host);
    front_end.negotiate_reply_ack();
    let ask = raw::VERSION | raw::NEED_REPLY;
    for (request, flags, payload) in [
        (raw::GET_FEATURES, raw::VERSION, vec![]),
        (raw::SET_OWNER, ask, vec![]),
        (raw::SET_VRING_CALL, ask, raw::NO_FD.to_le_bytes().to_vec()),
        (raw::GET_CONFIG, raw::VERSION, get_config(256)),
    ] {
        for _ in 0..100 {
            front_end.send(request, flags, &payload, &[]).unwrap();
        }
        // All that the daemon can do before the first is read, it has done.
        std::thread::sleep(Duration::from_millis(50));
        for n in 0..100 {
            let reply = front_end.recv().unwrap();
            assert_eq!(reply.request, request, "{n}");
            let expected = if payload.len() > 8 { payload.len() } else { 8 };
            assert_eq!(reply.payload.len(), expected, "{n}");
        }
    }
}

#[test]
fn replies_of_the_longest_kind_are_sent_in_the_pieces_that_there_is_room_for() {
    let host = Host::with_devices(1);
    let (_daemon, front_end) = with_little_room(&host);
    front_end.negotiate_reply_ack();
    let payload = get_config(4084);
    for _ in 0..20 {
        let message = Raw::encode(raw::GET_CONFIG, raw::VERSION, &payload);
        front_end.send_bytes(&message, &[]).unwrap();
    }
    for _ in 0..20 {
        assert_eq!(front_end.recv().unwrap().payload.len(), 4096);
    }
}

#[test]
fn replies_never_read_hold_up_nobody_else_and_end_with_their_front_end() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
    let mut other = Guest::connect(&daemon, 1);
    let deaf = Raw::connect(&daemon.socket(0));
    deaf.sock.set_nonblocking(true).unwrap();
    let many = Raw::encode(raw::GET_FEATURES, raw::VERSION, &[]).repeat(1000);
    // Until neither direction takes any more.
    while sys::eventually(A_WHILE, || deaf.send_bytes(&many, &[]).is_ok()) {}
    other.assert_served();
    let before = daemon.cpu_time();
    std::thread::sleep(Duration::from_secs(1));
    // Two clock ticks: the resolution of the counter.
    assert!(daemon.cpu_time() - before <= Duration::from_millis(20));
    drop(deaf);
    Guest::connect(&daemon, 0).assert_served();
    other.assert_served();
}

/// Sends a message that asks for an acknowledgement, and asserts that it is refused by one before the end.
#[track_caller]
fn assert_refused(front_end: &Raw, request: u32, bytes: &[u8], fds: &[RawFd], what: &str) {
    front_end.send_bytes(bytes, fds).unwrap();
    let answer = front_end.recv().unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(answer.request, request, "{what}");
    assert_eq!(answer.flags, raw::VERSION | raw::REPLY, "{what}");
    assert_ne!(answer.u64(), 0, "{what}");
    assert!(front_end.hung_up(PATIENCE), "{what}");
}

#[test]
fn message_unknown_or_malformed_is_refused_by_an_answer_where_one_is_asked_for() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
    let mut other = Guest::connect(&daemon, 1);
    let ask = raw::VERSION | raw::NEED_REPLY;
    let too_long = [raw::SET_CONFIG, ask, 4097].map(u32::to_le_bytes).concat();
    for (what, request, bytes) in [
        ("unknown", 999, Raw::encode(999, ask, &[])),
        ("not served", 6, Raw::encode(6, ask, &[0; 16])),
        ("wrong version", 3, Raw::encode(3, 2 | raw::NEED_REPLY, &[])),
        ("reserved flag", 3, Raw::encode(3, ask | 16, &[])),
        ("too long", raw::SET_CONFIG, too_long),
        (
            "too short",
            raw::SET_FEATURES,
            Raw::encode(raw::SET_FEATURES, ask, &[0; 4]),
        ),
        (
            "no table",
            raw::SET_MEM_TABLE,
            Raw::encode(raw::SET_MEM_TABLE, ask, &[0; 8]),
        ),
    ] {
        let front_end = Raw::connect(&daemon.socket(0));
        front_end.negotiate_reply_ack();
        assert_refused(&front_end, request, &bytes, &[], what);
        other.assert_served();
    }
    Guest::connect(&daemon, 0).assert_served();
}

#[test]
fn message_with_fds_that_it_must_not_have_is_refused() {
    let null = File::open("/dev/null").unwrap();
    let (_host, daemon, guest) = plugged();
    drop(guest);
    let ask = raw::VERSION | raw::NEED_REPLY;
    for (request, payload, count) in [
        (raw::SET_OWNER, vec![], 1),
        (raw::SET_FEATURES, vec![0; 8], 1),
        (raw::SET_VRING_CALL, raw::NO_FD.to_le_bytes().to_vec(), 1),
        (raw::SET_VRING_CALL, vec![0; 8], 2),
        (raw::REM_MEM_REG, vec![0; 40], 2),
    ] {
        let front_end = Raw::connect(&daemon.socket(0));
        front_end.negotiate_reply_ack();
        let message = Raw::encode(request, ask, &payload);
        let fds = vec![null.as_raw_fd(); count];
        assert_refused(&front_end, request, &message, &fds, &format!("{request}"));
    }
    Guest::connect(&daemon, 0).assert_served();
}

#[test]
fn memory_on_a_file_server_is_refused_by_an_answer() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
    let mut other = Guest::connect(&daemon, 1);
    // Nothing is known of procfs, as of a file server.
    let file = File::open("/proc/version").unwrap();
    let table = [1u64, 0, 4096, 0x1_0000, 0].map(u64::to_le_bytes).concat();
    let ask = raw::VERSION | raw::NEED_REPLY;
    let front_end = Raw::connect(&daemon.socket(0));
    front_end.negotiate_reply_ack();
    let message = Raw::encode(raw::SET_MEM_TABLE, ask, &table);
    assert_refused(
        &front_end,
        raw::SET_MEM_TABLE,
        &message,
        &[file.as_raw_fd()],
        "procfs",
    );
    daemon.wait_line(&["guest=0", "guest memory must be a memfd"]);
    other.assert_served();
}

#[test]
fn fds_as_many_as_a_message_can_carry_of_unknown_file_systems_end_that_socket_alone() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
    let mut other = Guest::connect(&daemon, 1);
    let before = daemon.fd_count();
    // Not one of a real file server: each program that another test starts meanwhile would close it, and wait.
    let file = File::open("/proc/version").unwrap();
    let front_end = Raw::connect(&daemon.socket(0));
    let message = Raw::encode(raw::SET_MEM_TABLE, raw::VERSION, &[0; 8]);
    let fds = vec![file.as_raw_fd(); 253];
    front_end.send_bytes(&message, &fds).unwrap();
    assert!(front_end.hung_up(PATIENCE));
    daemon.wait_line(&["guest=0", "not listening any more"]);
    other.assert_served();
    assert!(daemon.fd_count() <= before + 253);
}

#[test]
fn message_in_two_parts_does_not_count_against_the_time_between_messages() {
    let (_host, daemon, guest) = plugged();
    drop(guest);
    let slow = sys::on_time(|| {
        let (slow, start) = (Raw::connect(&daemon.socket(0)), Instant::now());
        let message = Raw::encode(raw::GET_FEATURES, raw::VERSION, &[]);
        slow.send_bytes(&message[..5], &[]).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let _ = slow.send_bytes(&message[5..], &[]);
        match slow.recv() {
            Ok(_) => Ok(slow),
            Err(error) => {
                let late = sys::within(start.elapsed(), Duration::from_secs(1));
                Err(late.expect_err(&format!("within the second: {error}")))
            }
        }
    });
    assert!(
        !slow.hung_up(Duration::from_millis(1500)),
        "dropped when idle"
    );
    slow.ask(raw::GET_FEATURES, &[]);
}

#[test]
fn fds_32_with_a_table_are_taken_and_33_are_refused() {
    for (count, taken) in [(32u64, true), (33, false)] {
        let (_host, daemon, guest) = plugged();
        drop(guest);
        let front_end = Raw::connect(&daemon.socket(0));
        front_end.negotiate_reply_ack();
        let files: Vec<_> = (0..count).map(|_| sys::memfd(4096)).collect();
        let fds: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let regions = (0..count).flat_map(|n| [n << 20, 4096, n << 20, 0]);
        let table: Vec<u8> = [count]
            .into_iter()
            .chain(regions)
            .flat_map(u64::to_le_bytes)
            .collect();
        if taken {
            assert_eq!(front_end.ack(raw::SET_MEM_TABLE, &table, &fds), 0);
            front_end.ask(raw::GET_FEATURES, &[]);
        } else {
            let message = Raw::encode(raw::SET_MEM_TABLE, raw::VERSION | raw::NEED_REPLY, &table);
            assert_refused(&front_end, raw::SET_MEM_TABLE, &message, &fds, "33 fds");
        }
        drop(front_end);
        Guest::connect(&daemon, 0).assert_served();
    }
}

#[test]
fn protocol_features_not_offered_are_refused() {
    let (_host, daemon, guest) = plugged();
    drop(guest);
    for bit in [1, 2, 4, 5, 8, 12, 14, 16, 63] {
        let front_end = Raw::connect(&daemon.socket(0));
        front_end.negotiate_reply_ack();
        let bits = (1u64 << 3 | 1 << bit).to_le_bytes();
        let ask = raw::VERSION | raw::NEED_REPLY;
        let message = Raw::encode(raw::SET_PROTOCOL_FEATURES, ask, &bits);
        let what = format!("bit {bit}");
        assert_refused(&front_end, raw::SET_PROTOCOL_FEATURES, &message, &[], &what);
    }
    Guest::connect(&daemon, 0).assert_served();
}

#[test]
fn ring_flags_not_offered_are_refused() {
    for flags in [1u32, 2, 1 << 31] {
        let (_host, daemon, guest) = plugged();
        guest.stop();
        let config = guest.ring_config();
        let addresses = [
            config.desc_table_addr,
            config.used_ring_addr,
            config.avail_ring_addr,
            0,
        ];
        let mut payload = [0, flags].map(u32::to_le_bytes).concat();
        payload.extend(addresses.map(u64::to_le_bytes).concat());
        let ask = raw::VERSION | raw::NEED_REPLY;
        let message = Raw::encode(raw::SET_VRING_ADDR, ask, &payload);
        let what = format!("flags {flags:#x}");
        assert_refused(&guest.raw, raw::SET_VRING_ADDR, &message, &[], &what);
        drop(guest);
        Guest::connect(&daemon, 0).assert_served();
    }
}

#[test]
fn device_reset_gives_up_kick_call_and_err() {
    let host = Host::with_devices(1);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    let mut guest = Plug::default().negotiate(&daemon.socket(0));
    guest.raw.ask(raw::GET_FEATURES, &[]);
    let before = daemon.fd_count();
    guest.start();
    assert_eq!(daemon.fd_count(), before + 3);
    guest.frontend.reset_device().unwrap();
    let given_up = || daemon.fd_count() == before;
    assert!(sys::eventually(PATIENCE, given_up), "{}", daemon.fd_count());
}

#[test]
fn mem_region_without_the_protocol_feature_is_refused() {
    let (_host, daemon, guest) = plugged();
    drop(guest);
    let front_end = Raw::connect(&daemon.socket(0));
    front_end.negotiate_reply_ack();
    let region = [0u64, 0, 4096, 0x1_0000, 0].map(u64::to_le_bytes).concat();
    let message = Raw::encode(raw::ADD_MEM_REG, raw::VERSION | raw::NEED_REPLY, &region);
    let fds = [sys::memfd(4096)];
    assert_refused(
        &front_end,
        raw::ADD_MEM_REG,
        &message,
        &[fds[0].as_raw_fd()],
        "region",
    );
    Guest::connect(&daemon, 0).assert_served();
}

/// The socket serves again after a rest that is at least so long: a busy machine makes it longer.
#[test]
fn call_eventfd_that_blocks_again_keeps_its_socket_at_rest_for_longer() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
    for rest in [1, 2] {
        let bad = Guest::connect(&daemon, 0);
        bad.err.write(u64::MAX - 1).unwrap();
        unsafe { libc::fcntl(bad.err.as_raw_fd(), libc::F_SETFL, 0) };
        let start = Instant::now();
        // An index beyond the ring: it is broken, and that is to be told.
        bad.memory.store_u16(bad.ring.layout.avail + 2, 1000);
        bad.kick_anyway();
        assert!(bad.raw.hung_up(PATIENCE));
        drop(bad);
        Raw::connect(&daemon.socket(0)).ask(raw::GET_FEATURES, &[]);
        let took = start.elapsed();
        assert!(took >= Duration::from_secs(rest), "{took:?}");
    }
}
