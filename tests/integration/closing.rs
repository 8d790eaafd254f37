//! Files whose last close waits for somebody: it is never the loop's.

use crate::rig::stall::Stall;
use crate::rig::*;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

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
fn leave_in_the_backlog(daemon: &Daemon, pipe: OwnedFd) -> Raw {
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
    let last = leave_in_the_backlog(&daemon, pipe);
    drop(first);
    daemon.wait_line(&["guest 0", "not listening any more"]);
    drop((waiting, last));
    second.assert_served();
    second.assert_served();
}

#[test]
fn backlog_at_the_end_does_not_keep_the_bus_and_the_sockets() {
    let (_host, daemon, _first, _second) = two();
    let (_stall, pipe) = Stall::pipe();
    let _waiting = leave_in_the_backlog(&daemon, pipe);
    let socket = daemon.socket(0);
    daemon.signal(libc::SIGTERM);
    assert!(sys::eventually(PATIENCE, || !socket.exists()));
}
