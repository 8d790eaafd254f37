// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a service manager is told, by a real one's means: a datagram socket that the test reads.

use crate::rig::host::Landlock;
use crate::rig::*;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::time::{Duration, Instant};

/// Of the watchdog's time where that is 0.4 s.
const HALF: Duration = Duration::from_millis(200);

/// The service manager's end.
struct Manager {
    socket: UnixDatagram,
    address: String,
    _dir: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            socket,
            address: path.to_str().unwrap().to_owned(),
            _dir: dir,
        }
    }

    fn with_abstract_name() -> Self {
        let manager = Self::new();
        let name = format!("vhost-device-spi test {}", manager.address);
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            socket,
            address: format!("@{name}"),
            ..manager
        }
    }

    fn setup<'a>(&self, host: &'a Host) -> Setup<'a> {
        let setup = Setup::new(host).env("NOTIFY_SOCKET", &self.address);
        setup.device("/dev/spidev0.0")
    }

    #[track_caller]
    fn receive(&self) -> String {
        let mut message = [0; 64];
        let len = self.socket.recv(&mut message).expect("a message");
        String::from_utf8(message[..len].to_vec()).unwrap()
    }

    /// The next message but for those that tell how many guests are connected.
    #[track_caller]
    fn next(&self) -> String {
        let mut messages = std::iter::repeat_with(|| self.receive());
        messages
            .find(|message| !message.starts_with("STATUS="))
            .unwrap()
    }

    /// What comes within `time`.
    fn during(&self, time: Duration) -> Vec<String> {
        let end = Instant::now() + time;
        let mut all = Vec::new();
        while sys::readable(
            std::os::fd::AsRawFd::as_raw_fd(&self.socket),
            end.saturating_duration_since(Instant::now()),
        ) {
            all.push(self.receive());
        }
        all.retain(|message| !message.starts_with("STATUS="));
        all
    }
}

#[test]
fn ready_is_said_when_all_is_done_and_stopping_when_the_end_begins() {
    for manager in [Manager::new(), Manager::with_abstract_name()] {
        let host = Host::with_devices(1).landlock(Landlock::Waits);
        let daemon = manager.setup(&host).guests(3).start();
        // All sockets listen, but it is not confined.
        assert_eq!(manager.during(Duration::from_millis(200)), [""; 0]);
        host.set_landlock(Landlock::Kernel);
        assert_eq!(manager.next(), "READY=1");
        assert_eq!(daemon.status("Seccomp_filters"), "2");
        Guest::connect(&daemon, 2).assert_served();
        assert_eq!(manager.during(Duration::from_millis(200)), [""; 0]);
        daemon.stop();
        assert_eq!(manager.next(), "STOPPING=1");
        assert_eq!(manager.during(Duration::ZERO), [""; 0]);
    }
}

#[test]
fn status_says_how_many_guests_are_connected_when_that_changes() {
    let (manager, host) = (Manager::new(), Host::with_devices(1));
    let daemon = manager.setup(&host).guests(2).start();
    let expect = |message: &str| assert_eq!(manager.receive(), message);
    expect("READY=1");
    expect("STATUS=0 of 2 guests connected");
    let mut guest = Guest::connect(&daemon, 1);
    expect("STATUS=1 of 2 guests connected");
    guest.assert_served();
    let other = Guest::connect(&daemon, 0);
    expect("STATUS=2 of 2 guests connected");
    drop((guest, other));
    assert!(sys::eventually(PATIENCE, || manager.receive()
        == "STATUS=0 of 2 guests connected"));
    daemon.stop();
    expect("STOPPING=1");
}

#[test]
fn stopping_is_said_before_the_transfer_on_the_wire_has_ended() {
    sys::on_time(|| {
        let (manager, host) = (Manager::new(), Host::new());
        let setup = Setup::new(&host).env("NOTIFY_SOCKET", &manager.address);
        let mut daemon = setup.device("loopback").start();
        assert_eq!(manager.next(), "READY=1");
        let mut guest = Guest::connect(&daemon, 0);
        // 720 ms on the wire.
        let request = guest.request(Head::default(), &pattern(90_000), 0);
        guest.queue(&request);
        guest.kick();
        guest.config();
        daemon.signal(libc::SIGTERM);
        assert_eq!(manager.next(), "STOPPING=1");
        let before = daemon.alive() && guest.ring.device_idx(&guest.memory) == 0;
        daemon.signal(libc::SIGTERM);
        assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
        assert_eq!(guest.ring.device_idx(&guest.memory), 1);
        assert_eq!(manager.during(Duration::ZERO), [""; 0], "it is said once");
        before.then_some(()).ok_or("the transfer had ended".into())
    });
}

#[test]
fn stopping_is_said_when_the_last_front_end_has_left() {
    let manager = Manager::new();
    let host = Host::with_devices(1);
    let (theirs, ours) = UnixStream::pair().unwrap();
    let setup = manager.setup(&host).no_sockets().hand_in(&theirs, 500);
    let mut daemon = setup.arg("--fd=500").launch();
    assert_eq!(manager.next(), "READY=1");
    drop((theirs, ours));
    assert_eq!(manager.next(), "STOPPING=1");
    assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
}

#[test]
fn watchdog_is_told_at_half_of_its_time() {
    for pid in ["", "WATCHDOG_PID=$$"] {
        for manager in [Manager::new(), Manager::with_abstract_name()] {
            let host = Host::with_devices(1);
            let setup = manager.setup(&host).env("WATCHDOG_USEC", "400000");
            let start = Instant::now();
            let daemon = setup.shell(&format!("export {pid}")).start();
            assert_eq!(manager.next(), "READY=1");
            let mut last = Instant::now();
            let mut next = |nth| {
                assert_eq!(manager.next(), "WATCHDOG=1");
                assert!(start.elapsed() >= nth * HALF, "{pid}: number {nth}");
                std::mem::replace(&mut last, Instant::now()).elapsed()
            };
            (1..=3).for_each(|nth| assert!(next(nth) > Duration::ZERO));
            sys::on_time(|| sys::within(next(4), HALF * 3 / 2));
            daemon.stop();
        }
    }
}

#[test]
fn watchdog_of_another_process_is_not_told() {
    for manager in [Manager::new(), Manager::with_abstract_name()] {
        let host = Host::with_devices(1);
        let setup = manager.setup(&host).env("WATCHDOG_USEC", "2000");
        let daemon = setup.env("WATCHDOG_PID", "1").start();
        assert_eq!(manager.next(), "READY=1");
        assert_eq!(manager.during(Duration::from_millis(200)), [""; 0]);
        daemon.stop();
        assert_eq!(manager.next(), "STOPPING=1");
    }
}

#[test]
fn watchdog_is_told_while_a_guest_keeps_the_loop_busy() {
    let manager = Manager::new();
    let host = Host::with_devices(1);
    let start = Instant::now();
    let daemon = manager.setup(&host).env("WATCHDOG_USEC", "100000").start();
    assert_eq!(manager.next(), "READY=1");
    let (mut guest, mut messages) = (Guest::connect(&daemon, 0), 0);
    while messages < 5 && start.elapsed() < PATIENCE {
        guest.assert_served();
        messages += manager.during(Duration::ZERO).len();
    }
    assert!(messages >= 5, "{messages}");
    // Not at each request.
    let most = start.elapsed().as_millis() / 50;
    assert!(messages as u128 <= most, "{messages} of {most}");
}

/// Times that the process gave up the CPU, which is how often it was woken.
fn wakes(daemon: &Daemon) -> u64 {
    daemon.status("voluntary_ctxt_switches").parse().unwrap()
}

#[test]
fn watchdog_that_nobody_asked_for_wakes_nobody() {
    let manager = Manager::new();
    let host = Host::with_devices(1);
    let other = manager
        .setup(&host)
        .env("WATCHDOG_USEC", "2000")
        .env("WATCHDOG_PID", "1");
    for setup in [other, manager.setup(&host)] {
        let daemon = setup.start();
        assert_eq!(manager.next(), "READY=1");
        let quiet = || {
            let before = wakes(&daemon);
            std::thread::sleep(Duration::from_secs(1));
            wakes(&daemon) == before
        };
        // The guard of the log's last line ticks once more.
        assert!(sys::eventually(PATIENCE, quiet));
        assert!(quiet());
        daemon.stop();
        assert_eq!(manager.next(), "STOPPING=1");
    }
}

#[test]
fn notify_socket_that_cannot_be_reached_is_one_line_and_the_daemon_serves() {
    let dir = tempfile::tempdir().unwrap();
    let stream = dir.path().join("stream");
    let _listener = UnixListener::bind(&stream).unwrap();
    let long = format!("/{}", "x".repeat(200));
    for (address, cause) in [
        ("/nonexistent/notify", "No such file"),
        ("@vhost-device-spi nobody is here", "Connection refused"),
        (stream.to_str().unwrap(), "wrong type"),
        (long.as_str(), "path must be shorter"),
        ("vsock:2:1234", "neither a path nor '@' and a name"),
        ("", "neither a path nor '@' and a name"),
    ] {
        let host = Host::with_devices(1);
        let setup = Setup::new(&host).env("NOTIFY_SOCKET", address);
        let setup = setup.env("WATCHDOG_USEC", "2000");
        let daemon = setup.device("/dev/spidev0.0").start();
        Guest::connect(&daemon, 0).assert_served();
        daemon.wait_line(&["warning: NOTIFY_SOCKET", address, cause]);
        assert_eq!(daemon.said().len(), 1, "{:?}", daemon.said());
        daemon.stop();
    }
}

#[test]
fn notify_socket_that_nobody_reads_or_that_is_gone_costs_nothing() {
    for gone in [false, true] {
        for manager in [Manager::new(), Manager::with_abstract_name()] {
            let host = Host::with_devices(1);
            let daemon = manager.setup(&host).env("WATCHDOG_USEC", "2000").start();
            assert_eq!(manager.next(), "READY=1");
            let kept = if gone {
                drop(manager);
                None
            } else {
                Some(manager)
            };
            // Many more messages than the queue has room for, and nothing else that would wake it.
            std::thread::sleep(Duration::from_millis(500));
            Raw::connect(&daemon.socket(0)).ask(raw::GET_FEATURES, &[]);
            let end = Instant::now() + Duration::from_millis(200);
            let mut guest = Guest::connect(&daemon, 0);
            while Instant::now() < end {
                guest.assert_served();
            }
            drop(guest);
            assert_eq!(daemon.said(), [""; 0]);
            daemon.stop();
            drop(kept);
        }
    }
}

#[test]
fn watchdog_that_makes_no_sense_is_refused_with_variable_and_value() {
    for (name, value) in [
        ("WATCHDOG_USEC", "0"),
        ("WATCHDOG_USEC", "10s"),
        ("WATCHDOG_USEC", ""),
        ("WATCHDOG_PID", "me"),
    ] {
        let (manager, host) = (Manager::new(), Host::with_devices(1));
        let setup = manager.setup(&host).env("WATCHDOG_USEC", "1000");
        let mut daemon = setup.env(name, value).launch();
        assert_eq!(daemon.wait(PATIENCE).code(), Some(64));
        daemon.wait_line(&[&format!("environment variable {name}: '{value}'")]);
        assert_eq!(daemon.stderr().len(), 1);
    }
}
