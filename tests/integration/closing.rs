// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Files whose last close waits for somebody: it is never the loop's.

use crate::life::fds_in_a_session;
use crate::rig::fuse::Fuse;
use crate::rig::stall::{Given, Stall};
use crate::rig::*;
use crate::vring::A_WHILE;
use std::fs::File;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

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
    daemon.wait_line(&["guest=0", "not listening any more"]);
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

/// Readable when the kernel has let go of the file, which has no name any more.
fn watch_end(file: &File) -> OwnedFd {
    let watch = unsafe { OwnedFd::from_raw_fd(libc::inotify_init1(libc::IN_CLOEXEC)) };
    let path = format!("/proc/self/fd/{}\0", file.as_raw_fd());
    let (fd, path) = (watch.as_raw_fd(), path.as_ptr().cast());
    let added = unsafe { libc::inotify_add_watch(fd, path, libc::IN_DELETE_SELF) };
    sys::check(added.into()).expect("watch of a memory file");
    watch
}

#[test]
fn memory_of_a_front_end_that_is_gone_is_freed() {
    let (_host, daemon, first, mut second) = two();
    drop(first);
    let region = Region::new(0x1_0000_0000, 256 << 20);
    let end = watch_end(&region.file);
    let mut guest = Plug::default().regions(vec![region]).connect(&daemon, 0);
    guest.assert_served();
    assert!(!sys::readable(end.as_raw_fd(), Duration::ZERO));
    drop(guest);
    assert!(sys::readable(end.as_raw_fd(), PATIENCE));
    second.assert_served();
}

/// A user that no other test has, nor any other run of the tests: what is in flight is counted for each user.
fn user() -> libc::uid_t {
    0x4000_0000 | std::process::id()
}

/// Sockets that nobody reads with `count` fds, or a few more, that this user sent.
fn in_flight(count: usize) -> Vec<UnixStream> {
    let fds = [0; 120];
    let send = move || {
        // Of this thread alone, as a raw system call.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, user(), user(), user()) };
        assert_eq!(changed, 0);
        let mut sockets = Vec::new();
        for _ in 0..count.div_ceil(fds.len()) {
            let (here, there) = UnixStream::pair().unwrap();
            sys::send_with_fds(here.as_raw_fd(), &[0], &fds).expect("fds in flight");
            sockets.extend([here, there]);
        }
        sockets
    };
    std::thread::spawn(send).join().unwrap()
}

/// Most fds of the daemon, and of its user in flight.
const FDS: usize = 240;

/// Becomes that user.
fn become_user(user: libc::uid_t) -> std::io::Result<()> {
    sys::check(unsafe { libc::setgid(user) }.into())?;
    sys::check(unsafe { libc::setuid(user) }.into()).map(drop)
}

#[test]
fn fds_in_flight_of_the_daemons_user_do_not_hold_up_other_guests() {
    let host = Host::with_devices(1);
    let setup = Setup::new(&host).guests(2).device("/dev/spidev0.0");
    let user = user();
    let become_user = move || become_user(user);
    let setup = setup.open_to_all().before_exec(become_user);
    let daemon = setup.max_fds(FDS, FDS).start();
    let (first, mut second) = (Guest::connect(&daemon, 0), Guest::connect(&daemon, 1));
    let fds = daemon.fd_count();
    let (stall, eventfd) = Stall::eventfd();
    let given = [eventfd.as_raw_fd()];
    let payload = 0u64.to_le_bytes();
    assert_eq!(first.raw.ack(raw::SET_VRING_CALL, &payload, &given), 0);
    let in_flight = in_flight(2 * FDS);
    drop((first, eventfd));
    second.assert_served();
    // What the first one had is still open; that keeps nobody out.
    Guest::connect(&daemon, 0).assert_served();
    second.assert_served();
    // Memory may be replaced while the kernel takes nothing.
    second.share_memory();
    second.assert_served();
    drop((in_flight, stall));
    drop(second);
    Guest::connect(&daemon, 0).assert_served();
    let again = sys::eventually(PATIENCE, || daemon.fd_count() < fds);
    assert!(again, "{} fds, {fds} with two guests", daemon.fd_count());
}

/// Has the front-end replace its call eventfd `count` times, each time with one that it then has no more; the answers that
/// come before a pause.
fn replace_calls(front_end: &Raw, count: usize) -> usize {
    for _ in 0..count {
        let call = EventFd::new(EFD_NONBLOCK).unwrap();
        let flags = raw::VERSION | raw::NEED_REPLY;
        let (payload, fds) = (0u64.to_le_bytes(), [call.as_raw_fd()]);
        front_end
            .send(raw::SET_VRING_CALL, flags, &payload, &fds)
            .unwrap();
    }
    let mut answered = 0;
    while answered < count && sys::readable(front_end.sock.as_raw_fd(), A_WHILE) {
        assert_eq!(front_end.recv().unwrap().u64(), 0);
        answered += 1;
    }
    answered
}

#[test]
fn fds_that_the_kernel_does_not_take_make_their_guest_wait_and_nobody_else() {
    const MANY: usize = 60;
    let host = Host::with_devices(1);
    let setup = Setup::new(&host).guests(2).device("/dev/spidev0.0");
    let user = user();
    let setup = setup.open_to_all().before_exec(move || become_user(user));
    let daemon = setup.max_fds(FDS, FDS).start();
    let (first, mut second) = (Guest::connect(&daemon, 0), Guest::connect(&daemon, 1));
    let fds = daemon.fd_count();
    let flood = in_flight(2 * FDS);
    let answered = replace_calls(&first.raw, MANY);
    assert!(answered < MANY, "none had to wait");
    second.assert_served();
    // Until nothing else wakes the loop: it asks the kernel again by itself.
    std::thread::sleep(2 * A_WHILE);
    drop(flood);
    for _ in answered..MANY {
        assert_eq!(first.raw.recv().unwrap().u64(), 0);
    }
    let as_before = || daemon.fd_count() == fds;
    assert!(sys::eventually(PATIENCE, as_before), "{fds} fds before");
    // With what it has besides, one that leaves is beyond that number: nobody follows it until they are taken.
    let flood = in_flight(2 * FDS);
    let few = answered - 1;
    assert_eq!(replace_calls(&first.raw, few), few);
    drop(first);
    let next = Raw::connect(&daemon.socket(0));
    send(&next, raw::GET_FEATURES, &[], &[]);
    daemon.wait_line(&["guest=0", "too many files"]);
    assert!(!sys::readable(next.sock.as_raw_fd(), A_WHILE));
    second.assert_served();
    drop(flood);
    assert_eq!(next.recv().unwrap().request, raw::GET_FEATURES);
}

/// Files of every kind that are no eventfd, as a front-end may send them in its place.
fn wrong_files() -> Vec<(&'static str, OwnedFd)> {
    let (reader, writer) = std::io::pipe().unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let lingering = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let linger = [1i32, 1];
    let (option, len) = (libc::SO_LINGER, size_of_val(&linger) as u32);
    let (fd, value) = (lingering.as_raw_fd(), linger.as_ptr().cast());
    let set = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, value, len) };
    assert_eq!(set, 0);
    lingering.set_nonblocking(true).unwrap();
    // Nobody reads it, so that the close has something to linger for.
    while (&lingering).write(&[0; 65536]).is_ok() {}
    lingering.set_nonblocking(false).unwrap();
    let take = |fd: i32| unsafe { OwnedFd::from_raw_fd(fd) };
    vec![
        ("reading end of a pipe", reader.into()),
        ("writing end of a pipe", writer.into()),
        ("lingering socket", lingering.into()),
        ("listening socket", listener.into()),
        ("epoll set", take(unsafe { libc::epoll_create1(0) })),
        (
            "timerfd",
            take(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, 0) }),
        ),
        ("character device", File::open("/dev/null").unwrap().into()),
        (
            "file on a disk",
            File::open("/proc/self/exe").unwrap().into(),
        ),
        ("directory", File::open("/").unwrap().into()),
        ("memory", sys::memfd(4096).into()),
    ]
}

#[test]
fn fds_of_the_wrong_kind_end_that_connection_and_are_not_kept() {
    let (_host, daemon, first, mut second) = two();
    drop(first);
    let fds = fds_in_a_session(&daemon, 0);
    for request in [raw::SET_VRING_KICK, raw::SET_VRING_CALL, raw::SET_VRING_ERR] {
        for (kind, file) in wrong_files() {
            let front_end = Raw::connect(&daemon.socket(0));
            send(
                &front_end,
                request,
                &0u64.to_le_bytes(),
                &[file.as_raw_fd()],
            );
            drop(file);
            assert!(front_end.hung_up(PATIENCE), "{kind}");
            second.assert_served();
        }
    }
    // The kernel closes them, and may have others to close first.
    let equal = sys::eventually(PATIENCE, || fds_in_a_session(&daemon, 0) == fds);
    assert!(equal, "{} fds, {fds} before", fds_in_a_session(&daemon, 0));
    Guest::connect(&daemon, 0).assert_served();
}

#[test]
fn process_stopped_and_continued_in_traffic_loses_nothing() {
    let (_host, daemon, mut first, mut second) = two();
    for _ in 0..20 {
        let request = first.request(Head::default(), &[1], 1);
        first.queue(&request);
        daemon.signal(libc::SIGSTOP);
        first.kick();
        daemon.signal(libc::SIGCONT);
        let used = first.wait_used(1)[0];
        assert_eq!(first.outcome(&request, used).rx, [1]);
        second.assert_served();
    }
}

#[test]
fn process_with_64_fds_serves_its_guests_while_one_takes_all() {
    let host = Host::with_devices(1);
    let setup = Setup::new(&host).guests(2).device("/dev/spidev0.0");
    let daemon = setup.max_fds(64, 64).start();
    let mut second = Guest::connect(&daemon, 1);
    for _ in 0..20 {
        let front_end = Raw::connect(&daemon.socket(0));
        let files: Vec<_> = (0..32).map(|_| sys::memfd(4096)).collect();
        let fds: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let table: Vec<u8> = [32u64]
            .into_iter()
            .chain((0..32).flat_map(|n| [n << 20, 4096, n << 20, 0]))
            .flat_map(u64::to_le_bytes)
            .collect();
        send(&front_end, raw::SET_MEM_TABLE, &table, &fds);
        second.assert_served();
    }
    drop(second);
    Guest::connect(&daemon, 1).assert_served();
    Guest::connect(&daemon, 0).assert_served();
}
