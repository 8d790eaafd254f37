// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sockets that whoever starts the daemon hands in.

use crate::rig::setup::{Finished, run, run_after};
use crate::rig::*;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;

const USAGE: i32 = 64;
const DEVICE: &str = "--device=/dev/spidev0.0";
/// Far from whatever the test has open between fork and exec.
const FD: RawFd = 500;

/// A listening socket of the test, and where it is.
fn listener(dir: &tempfile::TempDir) -> (UnixListener, PathBuf) {
    let path = dir.path().join("ours");
    (UnixListener::bind(&path).unwrap(), path)
}

fn guest_at(path: &std::path::Path) -> Guest {
    Plug::default().connect_to(path)
}

#[test]
fn handed_in_listening_socket_serves_one_front_end_after_the_other_and_stays() {
    for option in ["--fd", "--socket-fd"] {
        let (host, dir) = (Host::with_devices(1), tempfile::tempdir().unwrap());
        let (listener, path) = listener(&dir);
        let start = || {
            let setup = Setup::new(&host).no_sockets().hand_in(&listener, FD);
            let setup = setup.arg(format!("{option}={FD}"));
            setup.device("/dev/spidev0.0").launch()
        };
        let daemon = start();
        for _ in 0..3 {
            guest_at(&path).assert_served();
        }
        daemon.wait_line(&["guest=0", "listening on fd 500", path.to_str().unwrap()]);
        assert_eq!(daemon.said(), [""; 0]);
        let flags = unsafe { libc::fcntl(listener.as_raw_fd(), libc::F_GETFL) };
        assert_ne!(flags & libc::O_NONBLOCK, 0, "it would wait for others");
        daemon.stop();
        // It is whoever's it was: whoever comes now is served by the next daemon.
        assert!(daemon::listens(&path));
        let early = UnixStream::connect(&path).unwrap();
        let next = start();
        Plug::default().connect_over(early).assert_served();
        next.stop();
        assert!(path.exists());
    }
}

#[test]
fn handed_in_front_end_is_served_and_the_daemon_ends_with_it() {
    for option in ["--fd", "--socket-fd"] {
        let host = Host::with_devices(1);
        let (theirs, ours) = UnixStream::pair().unwrap();
        let setup = Setup::new(&host).no_sockets().hand_in(&theirs, FD);
        let setup = setup.arg(format!("{option}={FD}"));
        let mut daemon = setup.device("/dev/spidev0.0").launch();
        drop(theirs);
        let mut guest = Plug::default().connect_over(ours);
        guest.assert_served();
        daemon.wait_line(&["guest=0", "connected by fd 500"]);
        assert!(daemon.alive());
        drop(guest);
        assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
        daemon.wait_line(&["the last front-end has left, and no other can connect"]);
    }
}

/// As a VMM does that starts its back-end itself: it need not wait until that is there.
#[test]
fn handed_in_front_end_that_sent_before_the_start_is_answered() {
    let host = Host::with_devices(1);
    let (theirs, ours) = UnixStream::pair().unwrap();
    let early = Raw::over(ours);
    let message = Raw::encode(raw::GET_FEATURES, raw::VERSION, &[]);
    early.send_bytes(&message, &[]).unwrap();
    let setup = Setup::new(&host).no_sockets().hand_in(&theirs, FD);
    let daemon = setup.arg("--fd=500").device("/dev/spidev0.0").launch();
    assert_eq!(early.recv().unwrap().request, raw::GET_FEATURES);
    daemon.stop();
    drop(theirs);
    assert!(early.hung_up(PATIENCE));
}

#[test]
fn handed_in_front_end_that_is_gone_already_ends_the_daemon() {
    let host = Host::with_devices(1);
    let (theirs, ours) = UnixStream::pair().unwrap();
    drop(ours);
    let setup = Setup::new(&host).no_sockets().hand_in(&theirs, FD);
    let mut daemon = setup.arg("--fd=500").device("/dev/spidev0.0").launch();
    assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
}

#[test]
fn handed_in_front_end_that_breaks_the_protocol_ends_its_guest_and_no_other() {
    let (host, dir) = (Host::with_devices(1), tempfile::tempdir().unwrap());
    let (listener, path) = listener(&dir);
    let (theirs, ours) = UnixStream::pair().unwrap();
    let setup = Setup::new(&host).no_sockets();
    let setup = setup.hand_in(&theirs, FD).hand_in(&listener, FD + 1);
    let setup = setup.arg("--fd=500").arg("--socket-fd=501");
    let daemon = setup.device("/dev/spidev0.0").launch();
    drop(theirs);
    let hostile = Raw::over(ours);
    hostile.send(999, raw::VERSION, &[], &[]).unwrap();
    assert!(hostile.hung_up(PATIENCE));
    daemon.wait_line(&["guest=0", "999"]);
    // Guest 1 has a socket to come back to.
    for _ in 0..2 {
        guest_at(&path).assert_served();
    }
    daemon.stop();
}

#[test]
fn handed_in_front_ends_end_the_daemon_when_the_last_has_left() {
    let host = Host::with_devices(1);
    let pairs = [(); 2].map(|()| UnixStream::pair().unwrap());
    let setup = Setup::new(&host).no_sockets();
    let setup = setup.hand_in(&pairs[0].0, FD).hand_in(&pairs[1].0, FD + 1);
    let setup = setup.arg("--fd=500").arg("--fd=501");
    let mut daemon = setup.device("/dev/spidev0.0").launch();
    let [(_, one), (_, other)] = pairs;
    let one = Plug::default().connect_over(one);
    let mut other = Plug::default().connect_over(other);
    drop(one);
    for _ in 0..3 {
        other.assert_served();
    }
    drop(other);
    assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
}

#[test]
fn handed_in_and_named_sockets_are_guests_in_the_order_of_the_line() {
    let host = (0..3).fold(Host::new(), |host, n| {
        host.device((n, 0), 1_000_000, Reads(n as u8))
    });
    let dir = tempfile::tempdir().unwrap();
    let (listener, path) = listener(&dir);
    let (theirs, ours) = UnixStream::pair().unwrap();
    let setup = Setup::new(&host).spelled(|base, _| vec![format!("--socket={base}exact")]);
    let setup = setup.hand_in(&theirs, FD).hand_in(&listener, FD + 1);
    let setup = setup.arg("--socket-fd=501").arg("--fd=500");
    let setup = (0..3).fold(setup, |setup, n| {
        setup.device(&format!("/dev/spidev{n}.0,guests={n}"))
    });
    let daemon = setup.launch();
    daemon.wait_line(&["guest=2"]);
    let exact = daemon.base().with_file_name("sexact");
    let guests = [
        guest_at(&exact),
        guest_at(&path),
        Plug::default().connect_over(ours),
    ];
    for (n, mut guest) in guests.into_iter().enumerate() {
        assert_eq!(guest.transfer(Head::default(), &[], 1).rx, [n as u8]);
    }
    daemon.stop();
    assert!(!exact.exists() && path.exists());
}

/// Starts a daemon that ends by itself, with `fd` as 500.
fn refused(fd: &impl AsRawFd, args: &[&str]) -> Finished {
    let fd = fd.as_raw_fd();
    let give = move || sys::check(unsafe { libc::dup2(fd, FD) }.into()).map(drop);
    run_after(&Host::with_devices(1), args, give)
}

#[test]
fn handed_in_fd_of_no_use_is_refused_with_option_value_and_cause() {
    let dir = tempfile::tempdir().unwrap();
    let file = File::create(dir.path().join("file")).unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let datagram = UnixDatagram::bind(dir.path().join("datagram")).unwrap();
    let lonely = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    let packet = unsafe {
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        libc::socket(libc::AF_UNIX, kind, 0)
    };
    let cases: [(&dyn AsRawFd, &str); 5] = [
        (&file, "is not a socket"),
        (&tcp, "is not a Unix socket"),
        (&datagram, "is not a stream socket"),
        (&packet, "is not a stream socket"),
        (&lonely, "is neither listening nor connected"),
    ];
    for (fd, cause) in cases {
        for option in ["--fd", "--socket-fd"] {
            let arg = format!("{option}=500");
            let finished = refused(&fd.as_raw_fd(), &[DEVICE, &arg]);
            let message = format!("option '{option}': '500' {cause}\n");
            assert_eq!(finished.refused(&[]), USAGE, "{}", finished.stderr);
            assert!(finished.stderr.ends_with(&message), "{}", finished.stderr);
        }
    }
    let closed = run(&Host::with_devices(1), &[DEVICE, "--fd=500"]);
    let words = ["option '--fd': '500' is not open"];
    assert_eq!(closed.refused(&words), USAGE);
}

#[test]
fn handed_in_socket_whose_messages_would_not_be_understood_is_refused() {
    const SO_PASSPIDFD: i32 = 76;
    for (option, name) in [
        (libc::SO_PASSCRED, "SO_PASSCRED"),
        (libc::SO_PASSSEC, "SO_PASSSEC"),
        (SO_PASSPIDFD, "SO_PASSPIDFD"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let ((listener, _), pair) = (listener(&dir), UnixStream::pair().unwrap());
        for socket in [&listener as &dyn AsRawFd, &pair.0] {
            let socket = socket.as_raw_fd();
            set(socket, option);
            let words = format!("has {name} set, whose messages are not understood");
            assert_refused_for(socket, &words);
        }
    }
}

/// Sets an option of a socket to 1.
fn set(socket: RawFd, option: i32) {
    let one = 1i32;
    let (value, len) = ((&raw const one).cast(), size_of_val(&one) as u32);
    let set = unsafe { libc::setsockopt(socket, libc::SOL_SOCKET, option, value, len) };
    assert_eq!(set, 0, "option {option}");
}

/// Asserts that neither option takes `socket`, and that this is the cause.
#[track_caller]
fn assert_refused_for(socket: RawFd, cause: &str) {
    for option in ["--fd", "--socket-fd"] {
        let finished = refused(&socket, &[DEVICE, &format!("{option}=500")]);
        let words = format!("option '{option}': '500' {cause}");
        assert_eq!(finished.refused(&[&words]), USAGE);
    }
}

/// A daemon that has two listening sockets and logs errors only.
fn with_two(host: &Host, sockets: [&UnixListener; 2]) -> Daemon {
    let setup = Setup::new(host).no_sockets().arg("--log-level=error");
    let setup = setup.hand_in(sockets[0], FD).hand_in(sockets[1], FD + 1);
    let setup = setup.arg("--socket-fd=500").arg("--socket-fd=501");
    setup.device("/dev/spidev0.0").launch()
}

fn shut_down(socket: &UnixListener, how: i32) {
    let done = unsafe { libc::shutdown(socket.as_raw_fd(), how) };
    assert_eq!(done, 0);
}

#[test]
fn handed_in_listening_socket_that_is_shut_down_is_left_alone() {
    let host = Host::with_devices(1);
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [(first, path), (second, other)] = dirs.each_ref().map(listener);
    let daemon = with_two(&host, [&first, &second]);
    let mut guest = guest_at(&path);
    guest.assert_served();
    shut_down(&first, libc::SHUT_RDWR);
    daemon.wait_line(&["guest=0", "not listening any more"]);
    let before = daemon.cpu_time();
    std::thread::sleep(std::time::Duration::from_millis(300));
    let used = daemon.cpu_time() - before;
    assert!(used.as_millis() <= 50, "{used:?} of processor time");
    // Who is connected is served, and so are others.
    guest.assert_served();
    guest_at(&other).assert_served();
    assert_eq!(daemon.stderr().len(), 1, "{:?}", daemon.stderr());
    daemon.stop();
}

#[test]
fn handed_in_listening_sockets_that_are_shut_down_end_the_daemon_with_its_last_guest() {
    let host = Host::with_devices(1);
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [(first, path), (second, _)] = dirs.each_ref().map(listener);
    let mut daemon = with_two(&host, [&first, &second]);
    let mut guest = guest_at(&path);
    guest.assert_served();
    shut_down(&first, libc::SHUT_RD);
    shut_down(&second, libc::SHUT_RD);
    daemon.wait_line(&["guest=1", "not listening any more"]);
    guest.assert_served();
    drop(guest);
    assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
}

#[test]
fn handed_in_socket_that_is_given_twice_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (listener, _) = listener(&dir);
    let args = [DEVICE, "--fd=500", "--socket-fd=500"];
    let words = ["option '--socket-fd': '500' is given twice"];
    assert_eq!(refused(&listener, &args).refused(&words), USAGE);
    let give = move || {
        sys::check(unsafe { libc::dup2(listener.as_raw_fd(), FD) }.into())?;
        sys::check(unsafe { libc::dup2(listener.as_raw_fd(), FD + 1) }.into()).map(drop)
    };
    let args = [DEVICE, "--fd=500", "--fd=501"];
    let words = ["option '--fd': '501' is the same socket as '500'"];
    let finished = run_after(&Host::with_devices(1), &args, give);
    assert_eq!(finished.refused(&words), USAGE);
}

#[test]
fn handed_in_sockets_and_a_socket_path_exclude_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let (listener, _) = listener(&dir);
    let base = format!("--socket-path={}", dir.path().join("s").display());
    for other in ["--fd=500", "--socket-fd=500", "--socket=x"] {
        let finished = refused(&listener, &[DEVICE, &base, other]);
        let option = other.split('=').next().unwrap();
        let words = ["option '--socket-path' excludes option", option];
        assert_eq!(finished.refused(&words), USAGE);
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn activated_sockets_are_the_guests_in_their_order() {
    let host = (0..2).fold(Host::new(), |host, n| {
        host.device((n, 0), 1_000_000, Reads(n as u8))
    });
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let sockets = dirs.each_ref().map(listener);
    let setup = Setup::new(&host).activate(&[&sockets[0].0, &sockets[1].0]);
    let setup = setup.device("/dev/spidev0.0,guests=0");
    let daemon = setup.device("/dev/spidev1.0,guests=1").launch();
    for (n, (_, path)) in sockets.iter().enumerate() {
        let mut guest = guest_at(path);
        assert_eq!(guest.transfer(Head::default(), &[], 1).rx, [n as u8]);
    }
    daemon.wait_line(&["guest=1", "listening on fd 4"]);
    daemon.stop();
    assert!(sockets.iter().all(|(_, path)| daemon::listens(path)));
}

/// As a socket unit with `Accept=yes` does.
#[test]
fn activated_connection_is_the_only_front_end() {
    let host = Host::with_devices(1);
    let (theirs, ours) = UnixStream::pair().unwrap();
    let setup = Setup::new(&host).activate(&[&theirs]);
    let mut daemon = setup.device("/dev/spidev0.0").launch();
    drop(theirs);
    Plug::default().connect_over(ours).assert_served();
    assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
}

#[test]
fn activation_of_another_process_is_ignored() {
    let (host, dir) = (Host::with_devices(1), tempfile::tempdir().unwrap());
    let (listener, path) = listener(&dir);
    for pid in ["1", "$PPID"] {
        let setup = Setup::new(&host).hand_in(&listener, FD).shell(&format!(
            "exec 3<&500 500<&-; export LISTEN_PID={pid} LISTEN_FDS=junk"
        ));
        let daemon = setup.device("/dev/spidev0.0").start();
        Guest::connect(&daemon, 0).assert_served();
        let links = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
        assert!(links.count() > 3);
        // Nobody accepts at a socket that was closed with all else that was inherited.
        let _waits = UnixStream::connect(&path).unwrap();
        assert_eq!(daemon.said(), [""; 0]);
        daemon.stop();
    }
}

#[test]
fn activation_that_makes_no_sense_is_refused_with_variable_and_value() {
    let host = Host::with_devices(1);
    let refused = |setup: Setup, words: &[&str]| {
        let mut daemon = setup.device("/dev/spidev0.0").launch();
        assert_eq!(daemon.wait(PATIENCE).code(), Some(USAGE));
        daemon.wait_line(words);
        assert_eq!(daemon.stderr().len(), 1, "{:?}", daemon.stderr());
    };
    let own = |script: &str| format!("export LISTEN_PID=$$ {script}");
    for count in ["0", "65", "-1", "x", "''", "99999999999999999999"] {
        let value = count.trim_matches('\'');
        let setup = Setup::new(&host).no_sockets();
        let setup = setup.shell(&own(&format!("LISTEN_FDS={count}")));
        let words = [&format!("LISTEN_FDS: '{value}'"), "1 to 64"];
        refused(setup, &words);
    }
    let setup = Setup::new(&host).no_sockets();
    let setup = setup.shell("export LISTEN_PID=me LISTEN_FDS=1");
    refused(setup, &["LISTEN_PID: 'me'", "number of a process"]);
    // A socket that is named is not the one that was handed in.
    let setup = Setup::new(&host).shell(&own("LISTEN_FDS=1"));
    refused(setup, &["LISTEN_FDS: '1'", "'--socket-path'"]);
    let setup = Setup::new(&host).spelled(|_, _| vec!["--fd=3".into()]);
    refused(setup.shell(&own("LISTEN_FDS=1")), &["LISTEN_FDS", "'--fd'"]);
    // Fewer sockets than it says.
    let setup = Setup::new(&host).no_sockets();
    let setup = setup.shell(&own("LISTEN_FDS=2; exec 3<&- 4<&-"));
    refused(setup, &["LISTEN_FDS: '3' is not open"]);
}
