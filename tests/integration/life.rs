// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The life of a socket, of a session and of the process.

use crate::rig::*;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Half a second of wire at 1 MHz: it is finished when asked to stop.
const SHORT: usize = 62_500;
/// Four seconds of wire at 1 MHz: more than the one second that a stop waits for, less than the ten that are allowed.
const LONG: usize = 500_000;

/// Descriptors of the daemon while one session has nothing but its connection: when that is answered, start-up and the
/// sessions before it on this socket are over.
pub fn fds_in_a_session(daemon: &Daemon, n: usize) -> usize {
    let session = Raw::connect(&daemon.socket(n));
    session.ask(raw::GET_FEATURES, &[]);
    daemon.fd_count()
}

/// As many in a session as before, now or soon: the kernel closes some, and may have others to close first.
#[track_caller]
fn assert_fds(daemon: &Daemon, before: usize) {
    let equal = sys::eventually(PATIENCE, || fds_in_a_session(daemon, 0) == before);
    let now = fds_in_a_session(daemon, 0);
    assert!(equal, "{now} fds, {before} before");
}

#[test]
fn session_reconnected_1000_times_leaves_fds_and_memory_equal() {
    let host = Host::with_devices(1);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    let once = |n: usize| {
        let mut guest = Guest::connect(&daemon, 0);
        if n.is_multiple_of(10) {
            guest.assert_served();
        }
        if n.is_multiple_of(2) {
            guest.stop();
        }
    };
    // The first ones may grow pools that are kept for all others.
    (0..50).for_each(once);
    let (fds, rss, threads) = (
        fds_in_a_session(&daemon, 0),
        daemon.rss_kb(),
        daemon.thread_count(),
    );
    (0..1000).for_each(once);
    assert_fds(&daemon, fds);
    assert!(
        daemon.rss_kb() <= rss + 16,
        "{} kB, {rss} before",
        daemon.rss_kb()
    );
    assert_eq!(daemon.thread_count(), threads);
    host.forget();
    Guest::connect(&daemon, 0).assert_served();
}

#[test]
fn session_connected_and_left_10000_times_without_a_word_leaves_fds_equal() {
    let host = Host::with_devices(1);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    let fds = fds_in_a_session(&daemon, 0);
    for _ in 0..10_000 {
        daemon::connect(&daemon.socket(0));
    }
    assert_fds(&daemon, fds);
    Guest::connect(&daemon, 0).assert_served();
}

#[test]
fn session_second_front_end_waits_until_the_first_is_gone() {
    let (_host, daemon, mut guest) = plugged();
    let second = Raw::connect(&daemon.socket(0));
    second
        .send(raw::GET_FEATURES, raw::VERSION, &[], &[])
        .unwrap();
    for _ in 0..5 {
        guest.assert_served();
    }
    second
        .sock
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    assert!(
        second.recv().is_err(),
        "the second is not served beside the first"
    );
    second.sock.set_read_timeout(Some(PATIENCE)).unwrap();
    drop(guest);
    assert_eq!(second.recv().unwrap().request, raw::GET_FEATURES);
}

#[test]
fn session_silent_in_the_middle_of_a_message_is_dropped_after_a_second() {
    let message = Raw::encode(raw::SET_FEATURES, raw::VERSION, &[0; 8]);
    for cut in [1, 4, 11, 12, 19] {
        let (_host, daemon, guest) = plugged();
        drop(guest);
        let start = Instant::now();
        let stuck = Raw::connect(&daemon.socket(0));
        stuck.send_bytes(&message[..cut], &[]).unwrap();
        assert!(stuck.hung_up(PATIENCE), "{cut} bytes");
        assert!(start.elapsed() >= Duration::from_secs(1), "{cut} bytes");
        Guest::connect(&daemon, 0).assert_served();
    }
}

/// The answer to a message of which the first part was sent at `start`; `Err` if the daemon may have lost its patience.
#[track_caller]
fn answer(front_end: &Raw, start: Instant) -> Result<raw::Message, String> {
    front_end.recv().map_err(|error| {
        let late = sys::within(start.elapsed(), Duration::from_secs(1));
        late.expect_err(&format!("within the second: {error}"))
    })
}

#[test]
fn session_that_sends_a_message_byte_by_byte_is_served() {
    let (_host, daemon, guest) = plugged();
    drop(guest);
    sys::on_time(|| {
        let (slow, start) = (Raw::connect(&daemon.socket(0)), Instant::now());
        for byte in Raw::encode(raw::GET_FEATURES, raw::VERSION, &[]) {
            let _ = slow.send_bytes(&[byte], &[]);
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(answer(&slow, start)?.request, raw::GET_FEATURES);
        Ok(())
    });
}

#[test]
fn session_that_sends_fds_with_the_first_byte_alone_is_served() {
    let (_host, daemon, guest) = plugged();
    drop(guest);
    let call = EventFd::new(EFD_NONBLOCK).unwrap();
    let message = Raw::encode(
        raw::SET_VRING_CALL,
        raw::VERSION | raw::NEED_REPLY,
        &0u64.to_le_bytes(),
    );
    let mut guest = sys::on_time(|| {
        let guest = Guest::connect(&daemon, 0);
        for cut in 1..message.len() {
            let (start, (front, back)) = (Instant::now(), message.split_at(cut));
            let _ = guest.raw.send_bytes(front, &[call.as_raw_fd()]);
            for byte in back {
                let _ = guest.raw.send_bytes(&[*byte], &[]);
            }
            assert_eq!(answer(&guest.raw, start)?.u64(), 0, "cut at {cut}");
        }
        Ok(guest)
    });
    let request = guest.request(Head::default(), &[1], 0);
    guest.queue(&request);
    guest.kick();
    assert!(sys::readable(call.as_raw_fd(), PATIENCE));
}

#[test]
fn session_idle_is_never_dropped() {
    let (_host, daemon, guest) = plugged();
    drop(guest);
    let silent = Raw::connect(&daemon.socket(0));
    assert!(
        !silent.hung_up(Duration::from_millis(2500)),
        "before the first message"
    );
    silent.ask(raw::GET_FEATURES, &[]);
    assert!(
        !silent.hung_up(Duration::from_millis(2500)),
        "between messages"
    );
    silent.ask(raw::GET_FEATURES, &[]);
    drop(silent);
    let mut guest = Guest::connect(&daemon, 0);
    guest.assert_served();
    std::thread::sleep(Duration::from_millis(2500));
    guest.assert_served();
}

#[test]
fn session_idle_uses_no_cpu() {
    let (_host, daemon, mut guest) = plugged();
    guest.assert_served();
    let before = daemon.cpu_time();
    std::thread::sleep(Duration::from_secs(1));
    // Two clock ticks: the resolution of the counter.
    assert!(daemon.cpu_time() - before <= Duration::from_millis(20));
}

#[test]
fn session_left_in_the_middle_of_a_message_is_over_at_once() {
    let (_host, daemon, guest) = plugged();
    drop(guest);
    let part = &Raw::encode(raw::SET_FEATURES, raw::VERSION, &[0; 8])[..15];
    sys::on_time(|| {
        let (stuck, start) = (Raw::connect(&daemon.socket(0)), Instant::now());
        stuck.send_bytes(part, &[]).unwrap();
        let next = Raw::connect(&daemon.socket(0));
        drop(stuck);
        next.ask(raw::GET_FEATURES, &[]);
        // After a second of silence it would be over anyway.
        sys::within(start.elapsed(), Duration::from_secs(1))
    });
}

#[test]
fn session_left_in_the_middle_of_a_long_transfer_releases_chip_select_and_serves_the_next() {
    let (host, daemon, mut guest) = plugged();
    let gate = host.gate_message(DEV, 2);
    let request = guest.request(Head::default(), &pattern(LONG), 0);
    guest.queue(&request);
    guest.kick();
    gate.reached();
    drop(guest);
    gate.release();
    let mut next = Guest::connect(&daemon, 0);
    assert!(
        sys::eventually(PATIENCE, || !host.selected(DEV)),
        "chip select is released"
    );
    host.forget();
    next.assert_served();
    assert_eq!(
        host.messages(DEV).len(),
        1,
        "nothing of the abandoned transfer comes after"
    );
}

#[test]
fn process_each_ending_signal_exits_0_and_removes_the_sockets() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        for connected in [false, true] {
            let host = Host::with_devices(1);
            let mut daemon = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
            let guest = connected.then(|| {
                let mut guest = Guest::connect(&daemon, 1);
                guest.assert_served();
                guest
            });
            daemon.signal(signal);
            let status = daemon.wait(PATIENCE);
            assert_eq!(
                status.code(),
                Some(0),
                "signal {signal}, connected: {connected}"
            );
            assert!(!daemon.socket(0).exists() && !daemon.socket(1).exists());
            drop(guest);
        }
    }
}

#[test]
fn process_signals_that_mean_nothing_to_it_change_nothing() {
    let (_host, daemon, mut guest) = plugged();
    daemon.signal(libc::SIGSTOP);
    daemon.signal(libc::SIGCONT);
    daemon.signal(libc::SIGPIPE);
    guest.assert_served();
}

#[test]
fn process_told_to_end_finishes_a_short_transfer() {
    sys::on_time(|| {
        let (host, mut daemon, mut guest) = plugged();
        let gate = host.gate_message(DEV, 1);
        let tx = pattern(SHORT);
        let request = guest.request(Head::default(), &tx, SHORT);
        guest.queue(&request);
        guest.kick();
        gate.reached();
        let told = Instant::now();
        daemon.signal(libc::SIGTERM);
        std::thread::sleep(Duration::from_millis(50));
        gate.release();
        assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
        assert_eq!(guest.ring.device_idx(&guest.memory), 1);
        assert!(!host.selected(DEV));
        let sent: Vec<_> = host.messages(DEV).iter().flat_map(|m| m.tx()).collect();
        let result = guest.memory.read(request.result_gpa, 1);
        // A second after it was told it ends whatever is on the wire.
        if result != [TRANS_OK] {
            sys::within(told.elapsed(), Duration::from_secs(1))?;
        }
        assert!(sent == tx, "{} bytes of {} were sent", sent.len(), tx.len());
        assert_eq!(result, [TRANS_OK]);
        Ok(())
    });
}

#[test]
fn process_told_to_end_does_not_finish_a_long_transfer_and_releases_chip_select() {
    let (host, mut daemon, mut guest) = plugged();
    let gate = host.gate_message(DEV, 1);
    let request = guest.request(Head::default(), &pattern(LONG), 0);
    guest.queue(&request);
    guest.kick();
    gate.reached();
    daemon.signal(libc::SIGTERM);
    std::thread::sleep(Duration::from_millis(50));
    gate.release();
    assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
    let sent: usize = host.messages(DEV).iter().map(|m| m.tx().len()).sum();
    assert!(sent < LONG);
    assert!(!host.selected(DEV));
    assert!(!daemon.socket(0).exists());
}

#[test]
fn process_told_to_end_does_not_finish_what_takes_longer_than_it_should() {
    let (host, mut daemon, mut guest) = plugged();
    // On the wire for 25 ms, by the clock that was asked for; a second is what it gets.
    let len = 8 * 4096;
    let gate = host.gate_message(DEV, 0);
    for slow in 1..8 {
        host.delay_message(DEV, slow, Duration::from_millis(600));
    }
    let request = guest.request(Head::default(), &pattern(len), 0);
    guest.queue(&request);
    guest.kick();
    gate.reached();
    daemon.signal(libc::SIGTERM);
    gate.release();
    assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
    let sent: usize = host.messages(DEV).iter().map(|m| m.tx().len()).sum();
    assert!((4096..len).contains(&sent), "{sent}");
    assert!(!host.selected(DEV));
    assert!(!daemon.socket(0).exists());
}

#[test]
fn process_told_to_end_starts_nothing_that_is_queued_behind() {
    let (host, mut daemon, mut guest) = plugged();
    let gate = host.gate_message(DEV, 0);
    for n in 0..3u8 {
        let request = guest.request(Head::default().cs_change(1), &[n], 0);
        guest.queue(&request);
    }
    guest.kick();
    gate.reached();
    daemon.signal(libc::SIGTERM);
    std::thread::sleep(Duration::from_millis(50));
    gate.release();
    assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
    let completed = guest.ring.device_idx(&guest.memory);
    assert_eq!(
        host.messages(DEV).len(),
        usize::from(completed),
        "what was sent was completed, and nothing else"
    );
}

#[test]
fn process_names_each_socket_and_its_devices_when_it_listens() {
    let host = Host::with_devices(2);
    let daemon = Setup::new(&host)
        .guests(3)
        .device("/dev/spidev0.1")
        .device("/dev/spidev0.0")
        .start();
    for n in 0..3 {
        let socket = daemon.socket(n);
        daemon.wait_line(&[socket.to_str().unwrap(), "/dev/spidev0.1", "/dev/spidev0.0"]);
    }
    assert_eq!(daemon.stderr().len(), 3, "{:#?}", daemon.stderr());
}

#[test]
fn process_is_one_thread() {
    let (_host, daemon, mut guest) = plugged();
    guest.assert_served();
    assert_eq!(daemon.thread_count(), 1);
}

#[test]
fn process_stderr_full_broken_or_closed_neither_blocks_nor_ends_it() {
    for stderr in [Stderr::FullPipe, Stderr::BrokenPipe, Stderr::Closed] {
        let host = Host::with_devices(1);
        let mut daemon = Setup::new(&host)
            .device("/dev/spidev0.0")
            .stderr(stderr)
            .start();
        let mut guest = Guest::connect(&daemon, 0);
        guest.assert_served();
        // Reasons to log: a failing device, a front-end that breaks the protocol.
        for _ in 0..50 {
            host.fail_message(DEV, 0, When::OnWire, libc::EIO);
            assert_eq!(guest.transfer(Head::default(), &[1], 0).result, TRANS_ERR);
        }
        drop(guest);
        let hostile = Raw::connect(&daemon.socket(0));
        hostile.send(999, raw::VERSION, &[], &[]).unwrap();
        assert!(hostile.hung_up(PATIENCE));
        Guest::connect(&daemon, 0).assert_served();
        daemon.signal(libc::SIGTERM);
        assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
    }
}

#[test]
fn process_stdin_closed_serves() {
    for stderr in [Stderr::Captured, Stderr::Closed] {
        let host = Host::with_devices(1);
        let daemon = Setup::new(&host)
            .device("/dev/spidev0.0")
            .stderr(stderr)
            .closed_stdin()
            .start();
        Guest::connect(&daemon, 0).assert_served();
        daemon.stop();
    }
}

#[test]
fn process_writes_nothing_into_its_sockets_but_answers() {
    // With descriptor 2 closed, the first file that is opened would get its number and the log lines.
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host)
        .device("/dev/spidev0.0")
        .stderr(Stderr::Closed)
        .closed_stdin()
        .start();
    let first = Raw::connect(&daemon.socket(0));
    first.ask(raw::GET_FEATURES, &[]);
    first
        .sock
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    assert!(
        (&first.sock).read(&mut [0; 64]).is_err(),
        "no byte that was not asked for"
    );
}

#[test]
fn process_logs_nothing_per_request() {
    let (_host, daemon, mut guest) = plugged();
    (0..100).for_each(|_| guest.assert_served());
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(daemon.said(), [""; 0]);
}
