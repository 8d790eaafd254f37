//! Files whose last close waits for somebody: it is never the loop's.

use crate::rig::fuse::Fuse;
use crate::rig::stall::{Given, Stall};
use crate::rig::*;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

/// Two guests on one echo: the first one's front-end means harm.
fn two() -> (Host, Daemon, Guest, Guest) {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
    let (first, second) = (Guest::connect(&daemon, 0), Guest::connect(&daemon, 1));
    (host, daemon, first, second)
}

fn send(front_end: &Raw, request: u32, payload: &[u8], fds: &[RawFd]) {
    front_end
        .send(request, raw::VERSION, payload, fds)
        .expect("send");
}

#[test]
fn kick_watched_by_a_locked_epoll_set_does_not_hold_up_other_guests() {
    let (_host, _daemon, first, mut second) = two();
    let (_stall, eventfd) = Stall::eventfd();
    let fds = [eventfd.as_raw_fd()];
    assert_eq!(
        first
            .raw
            .ack(raw::SET_VRING_KICK, &0u64.to_le_bytes(), &fds),
        0
    );
    drop(eventfd);
    drop(first);
    second.assert_served();
    second.assert_served();
}

#[test]
fn fds_of_a_message_that_says_it_has_none_do_not_hold_up_other_guests() {
    let (_host, _daemon, first, mut second) = two();
    let (_stall, pipe) = Stall::pipe();
    let null = File::open("/dev/null").unwrap();
    let fds = [pipe.as_raw_fd(), null.as_raw_fd()];
    send(
        &first.raw,
        raw::SET_VRING_CALL,
        &raw::NO_FD.to_le_bytes(),
        &fds,
    );
    drop(pipe);
    second.assert_served();
    second.assert_served();
}

#[test]
fn fds_with_the_body_do_not_hold_up_other_guests() {
    for with_header in [false, true] {
        let (_host, _daemon, first, mut second) = two();
        let (_stall, pipe) = Stall::pipe();
        let null = File::open("/dev/null").unwrap();
        let header = Raw::encode(raw::SET_VRING_CALL, raw::VERSION, &[0; 8]);
        let of_header = [null.as_raw_fd()];
        let fds = if with_header { &of_header[..] } else { &[] };
        first.raw.send_bytes(&header[..12], fds).unwrap();
        first
            .raw
            .send_bytes(&raw::NO_FD.to_le_bytes(), &[pipe.as_raw_fd()])
            .unwrap();
        drop(pipe);
        second.assert_served();
        second.assert_served();
    }
}

#[test]
fn call_whose_socket_is_locked_does_not_hold_up_other_guests() {
    let (_host, _daemon, first, mut second) = two();
    let (_stall, socket) = Stall::tcp();
    let fds = [socket.as_raw_fd()];
    send(&first.raw, raw::SET_VRING_CALL, &0u64.to_le_bytes(), &fds);
    drop(socket);
    second.assert_served();
    second.assert_served();
}

/// Leaves a connection with `pipe` in its queue behind the front-end that is served.
fn leave_in_the_backlog(daemon: &Daemon, pipe: &Given) -> Raw {
    let waiting = Raw::connect(&daemon.socket(0));
    send(
        &waiting,
        raw::SET_VRING_CALL,
        &0u64.to_le_bytes(),
        &[pipe.as_raw_fd()],
    );
    waiting
}

#[test]
fn backlog_of_a_socket_that_stops_listening_does_not_hold_up_other_guests() {
    let (_host, daemon, first, mut second) = two();
    let (_stall, pipe) = Stall::pipe();
    let file = File::open("/proc/version").unwrap();
    let waiting: Vec<_> = (0..17)
        .map(|_| {
            let front_end = Raw::connect(&daemon.socket(0));
            send(
                &front_end,
                raw::SET_VRING_CALL,
                &0u64.to_le_bytes(),
                &[file.as_raw_fd()],
            );
            front_end
        })
        .collect();
    let last = leave_in_the_backlog(&daemon, &pipe);
    drop((first, pipe));
    daemon.wait_line(&["guest 0", "not listening any more"]);
    drop((waiting, last));
    second.assert_served();
    second.assert_served();
}

#[test]
fn backlog_at_the_end_does_not_keep_the_bus_and_the_sockets() {
    let (_host, daemon, _first, _second) = two();
    let (_stall, pipe) = Stall::pipe();
    let _waiting = leave_in_the_backlog(&daemon, &pipe);
    let socket = daemon.socket(0);
    daemon.signal(libc::SIGTERM);
    assert!(sys::eventually(PATIENCE, || !socket.exists()));
}

#[test]
fn directory_of_a_silent_file_server_does_not_hold_up_other_guests() {
    for request in [raw::SET_VRING_KICK, raw::SET_VRING_CALL, raw::SET_VRING_ERR] {
        let (_host, _daemon, first, mut second) = two();
        let fuse = Fuse::mount();
        let root = fuse.root();
        fuse.fall_silent();
        send(
            &first.raw,
            request,
            &0u64.to_le_bytes(),
            &[root.as_raw_fd()],
        );
        second.assert_served();
        second.assert_served();
        assert!(first.raw.hung_up(PATIENCE));
        drop(fuse);
    }
}

/// Whether fewer than `bytes` more of shared memory are in use than before; the test's machine may be busy otherwise.
fn shared_memory_kb() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Shmem:"));
    let number = line.unwrap().trim().trim_end_matches(" kB");
    number.parse().unwrap()
}

#[test]
fn memory_of_a_front_end_that_is_gone_is_freed() {
    let (_host, daemon, first, mut second) = two();
    drop(first);
    let region = Region::new(0x1_0000_0000, 256 << 20);
    let memory = region.file.try_clone().unwrap();
    let guest = Plug::default().regions(vec![region]).connect(&daemon, 0);
    guest.memory.fill(0x1_0080_0000, 240 << 20, 1);
    let full = shared_memory_kb();
    drop((guest, memory));
    // Other tests take and give some too.
    let freed = || shared_memory_kb() + (160 << 10) < full;
    assert!(
        sys::eventually(PATIENCE, freed),
        "{} kB of {full}",
        shared_memory_kb()
    );
    second.assert_served();
}

/// Fds in flight are counted for each user; a front-end of the daemon's own can have many.
struct InFlight(Vec<std::os::unix::net::UnixStream>);

impl InFlight {
    /// Puts `count` fds, or a few more, into sockets that nobody reads.
    fn new(count: usize) -> Self {
        let fds = [0; 120];
        let mut sockets = Vec::new();
        for _ in 0..count.div_ceil(fds.len()) {
            let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
            sys::send_with_fds(here.as_raw_fd(), &[0], &fds).expect("fds in flight");
            sockets.extend([here, there]);
        }
        Self(sockets)
    }
}

#[test]
fn fds_in_flight_of_the_daemons_user_do_not_hold_up_other_guests() {
    let (_host, daemon, first, mut second) = two();
    let fds = daemon.fd_count();
    let (stall, eventfd) = Stall::eventfd();
    let given = [eventfd.as_raw_fd()];
    let payload = 0u64.to_le_bytes();
    assert_eq!(first.raw.ack(raw::SET_VRING_CALL, &payload, &given), 0);
    // More than the 240 that the daemon may have open with two guests.
    let in_flight = InFlight::new(480);
    drop((first, eventfd));
    second.assert_served();
    // The socket rests meanwhile: what it had is still open.
    let waits = Raw::connect(&daemon.socket(0));
    waits
        .send(raw::GET_FEATURES, raw::VERSION, &[], &[])
        .unwrap();
    second.assert_served();
    // Memory may be replaced while the kernel takes nothing.
    second.share_memory();
    second.assert_served();
    drop((in_flight, stall));
    assert_eq!(waits.recv().unwrap().request, raw::GET_FEATURES);
    drop(waits);
    drop(second);
    let both = || Guest::connect(&daemon, 0);
    both().assert_served();
    let again = sys::eventually(PATIENCE, || daemon.fd_count() < fds);
    assert!(again, "{} fds, {fds} with two guests", daemon.fd_count());
}
