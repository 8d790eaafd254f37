// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! SIGUSR1: what became of each guest's requests, written once, and nothing else comes of it.

use crate::rig::ask::*;
use crate::rig::*;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const MS: fn(u64) -> Duration = Duration::from_millis;

fn is_counters(line: &str) -> bool {
    line.contains(" requests=")
}

/// Asks the daemon for its counters: a line for each guest and chip select, `last` of which comes last.
#[track_caller]
fn ask(daemon: &Daemon, last: &str) -> Vec<String> {
    let before = daemon.stderr().len();
    daemon.signal(libc::SIGUSR1);
    let new = || daemon.stderr().split_off(before);
    let there = || {
        new()
            .iter()
            .any(|line| line.contains(&format!("{last} requests=")))
    };
    assert!(sys::eventually(PATIENCE, there), "{:#?}", new());
    new().into_iter().filter(|line| is_counters(line)).collect()
}

/// The fields of a line, but for the times, which depend on the machine; and the longest wait, in microseconds.
fn split_wait(line: &str) -> (&str, u64) {
    let (fields, wait) = line.split_once(" longest_wait_us=").expect("a wait");
    let wait = wait.split(' ').next().unwrap();
    (fields, wait.parse().expect("a number"))
}

#[test]
fn counters_say_what_became_of_each_guests_requests_to_each_chip_select() {
    let host = three_devices();
    let (daemon, mut guests) = serve_three(&host, 2, &[]);
    let of_len = |cs, tx, rx| Ask {
        head: let_go(cs).bits(8).freq(1_000_000),
        tx,
        rx,
    };
    // 5, 0 + 300 and 4 bytes at a MHz are 40, 2,400 and 32 us; what is held behind the last byte counts.
    let held = Head {
        cs_delay_hold_ns: 7_000,
        ..let_go(0).bits(8).freq(1_000_000)
    };
    let asks = [
        of_len(0, 5, 5),
        of_len(0, 0, 300),
        Ask {
            head: held,
            tx: 4,
            rx: 0,
        },
        wrong(0),
        both(let_go(9)),
    ];
    let results = [TRANS_OK, TRANS_OK, TRANS_OK, PARAM_ERR, PARAM_ERR];
    assert_eq!(together(&mut guests[0], &asks), results);
    host.fail_message((1, 0), 1, When::OnWire, libc::EIO);
    // 2 bytes at 8 MHz are 2 us; the one that failed counts for nothing there.
    let two = Ask {
        head: let_go(2).bits(8).freq(8_000_000),
        tx: 2,
        rx: 2,
    };
    assert_eq!(in_turn(&mut guests[1], &[two, two]), [TRANS_OK, TRANS_ERR]);
    let lines = ask(&daemon, "guest=1 cs=2");
    let fields: Vec<_> = lines.iter().map(|line| split_wait(line).0).collect();
    let none = "requests=0 bytes=0 ok=0 param_err=0 trans_err=0 wire_us=0";
    let expected = [
        "guest=0 cs=0 requests=4 bytes=309 ok=3 param_err=1 trans_err=0 wire_us=2479",
        &format!("guest=0 cs=1 {none}"),
        &format!("guest=0 cs=2 {none}"),
        "guest=0 cs=- requests=1 bytes=0 ok=0 param_err=1 trans_err=0 wire_us=0",
        &format!("guest=1 cs=0 {none}"),
        &format!("guest=1 cs=1 {none}"),
        "guest=1 cs=2 requests=2 bytes=2 ok=1 param_err=0 trans_err=1 wire_us=2",
    ];
    assert_eq!(
        fields,
        expected.map(|line| format!("vhost-device-spi: {line}"))
    );
}

#[test]
fn counters_go_on_over_front_ends_and_being_asked_for() {
    let (_host, daemon, mut guest) = plugged();
    for n in 1..=3 {
        guest.assert_served();
        drop(guest);
        let lines = ask(&daemon, "guest=0 cs=0");
        assert_eq!(lines.len(), 1, "{lines:#?}");
        assert!(
            lines[0].contains(&format!(" requests={n} bytes={n} ok={n} ")),
            "{lines:#?}"
        );
        guest = Guest::connect(&daemon, 0);
    }
}

#[test]
fn counters_are_written_with_every_log_level() {
    let host = Host::with_devices(1);
    let (daemon, mut guest) = serve_with(&host, "", &["--log-level=error"]);
    guest.assert_served();
    let lines = ask(&daemon, "guest=0 cs=0");
    daemon.wait_line(&["uptime_s="]);
    let guest = "vhost-device-spi: guest=0 connections=1 faults=0 lines_dropped=0";
    let all = daemon.stderr();
    assert_eq!(all.len(), 3, "{all:#?}");
    assert_eq!((all[0].as_str(), &all[1]), (guest, &lines[0]));
}

#[test]
fn counters_asked_for_in_a_long_transfer_do_not_change_it() {
    let (host, daemon, mut guest) = plugged();
    // Five messages.
    let tx = pattern(20_000);
    let request = guest.request(let_go(0).freq(10_000_000), &tx, tx.len());
    // A line at each: about the guest, then about the chip select.
    let gates = [1, 2, 3].map(|nth| host.gate_message(DEV, nth));
    guest.queue(&request);
    guest.kick();
    for gate in gates {
        gate.reached();
        (0..20).for_each(|_| daemon.signal(libc::SIGUSR1));
        std::thread::sleep(MS(20));
        gate.release();
    }
    let used = guest.wait_used(1)[0];
    let outcome = guest.outcome(&request, used);
    assert_eq!((outcome.result, outcome.rx == tx), (TRANS_OK, true));
    assert_eq!(
        (trace(&host).as_str(), host.edges(DEV)),
        ("0+ 0+ 0+ 0+ 0", 2)
    );
    daemon.wait_line(&["requests=0"]);
    daemon.signal(libc::SIGUSR1);
    daemon.wait_line(&["requests=1 bytes=20000 ok=1 "]);
    daemon.stop();
}

/// The gap between two requests is where chip select is held without one.
#[test]
fn counters_asked_for_in_a_hold_do_not_release_it() {
    let host = Host::with_devices(1);
    let (daemon, mut guest) =
        serve_with(&host, "", &["--cs-hold=spec", "--cs-hold-timeout-ms=20000"]);
    assert_eq!(in_turn(&mut guest, &[both(keep(0))]), [TRANS_OK]);
    ask(&daemon, "guest=0 cs=0");
    assert!(host.selected(DEV));
    assert_eq!(in_turn(&mut guest, &[both(let_go(0))]), [TRANS_OK]);
    assert_eq!((trace(&host).as_str(), host.edges(DEV)), ("0+ 0", 2));
}

#[test]
fn counters_asked_for_with_stderr_full_broken_or_closed_neither_block_nor_spin() {
    for stderr in [Stderr::FullPipe, Stderr::BrokenPipe, Stderr::Closed] {
        let host = Host::with_devices(1);
        let mut daemon = Setup::new(&host)
            .device("/dev/spidev0.0")
            .guests(8)
            .stderr(stderr)
            .start();
        let mut guest = Guest::connect(&daemon, 0);
        let start = daemon.cpu_time();
        let mut shortest = Duration::MAX;
        for _ in 0..30 {
            daemon.signal(libc::SIGUSR1);
            let asked = Instant::now();
            guest.assert_served();
            shortest = shortest.min(asked.elapsed());
            std::thread::sleep(MS(50));
        }
        // A write that blocks takes longer, and there are eight lines.
        assert!(shortest < MS(100), "{shortest:?}");
        let used = daemon.cpu_time() - start;
        assert!(used < MS(500), "{used:?} in a second and a half");
        daemon.signal(libc::SIGUSR1);
        daemon.signal(libc::SIGTERM);
        assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
    }
}

#[test]
fn counters_say_how_front_ends_came_and_went() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
    Guest::connect(&daemon, 1).assert_served();
    let hostile = Raw::connect(&daemon.socket(1));
    hostile.send(999, raw::VERSION, &[], &[]).unwrap();
    assert!(hostile.hung_up(PATIENCE));
    let mut guest = Guest::connect(&daemon, 1);
    guest.assert_served();
    daemon.signal(libc::SIGUSR1);
    daemon.wait_line(&["uptime_s="]);
    daemon.wait_line(&["guest=0 connections=0 faults=0 lines_dropped=0"]);
    daemon.wait_line(&["guest=1 connections=3 faults=1 lines_dropped=0"]);
}

/// Stderr as a pipe that the test reads when it likes.
fn pipe() -> (BufReader<File>, OwnedFd) {
    let mut fds = [0; 2];
    sys::check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) }.into()).unwrap();
    let (ours, theirs) = unsafe { (File::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) };
    (BufReader::new(ours), theirs)
}

/// Lines of a pipe, each waited for with patience.
fn lines_of(reader: BufReader<File>) -> impl Iterator<Item = String> {
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        let whole = reader.lines().map_while(Result::ok);
        let lines = whole.filter(|line| is_counters(line));
        lines.for_each(|line| drop(sender.send(line)));
    });
    std::iter::from_fn(move || lines.recv_timeout(PATIENCE).ok())
}

/// 1,024 lines are more than a pipe holds: they come as they are read, each once, while guests are served.
#[test]
fn counters_of_64_guests_and_16_chip_selects_are_all_written_when_they_are_read_late() {
    sys::on_time(|| {
        let host = Host::new();
        let (reader, stderr) = pipe();
        let fd = stderr.as_raw_fd();
        let setup = (0..16).fold(Setup::new(&host).guests(64), |setup, _| {
            setup.device("loopback")
        });
        let setup = setup.arg("--log-level=error");
        let daemon = setup
            .before_exec(move || sys::check(unsafe { libc::dup2(fd, 2) }.into()).map(drop))
            .start();
        drop(stderr);
        let mut guest = Guest::connect(&daemon, 63);
        guest.assert_served();
        let start = Instant::now();
        daemon.signal(libc::SIGUSR1);
        std::thread::sleep(MS(300));
        guest.assert_served();
        // One that is under way goes on, and another one follows.
        daemon.signal(libc::SIGUSR1);
        // Nobody is waited for longer than a second.
        let (mut last, mut longest) = (start, Duration::ZERO);
        let lines = lines_of(reader).inspect(|_| {
            longest = longest.max(last.elapsed());
            last = Instant::now();
        });
        let lines: Vec<_> = lines.take(2048).collect();
        if lines.len() < 2048 {
            sys::within(longest, MS(900))?;
        }
        let mut seen = BTreeMap::new();
        for (n, line) in lines.iter().enumerate() {
            let (guest, chip_select) = (n / 16 % 64, n % 16);
            let expected = format!("vhost-device-spi: guest={guest} cs={chip_select} requests=");
            assert!(line.starts_with(&expected), "{n}: {line}");
            *seen.entry(expected).or_insert(0) += 1;
        }
        assert_eq!(seen.len(), 1024);
        assert!(seen.values().all(|times| *times == 2));
        guest.assert_served();
        daemon.stop();
        Ok(())
    });
}

/// Signals that come together are told apart. Nothing else wakes the daemon: no line on stderr is written.
#[test]
fn counters_asked_for_together_with_the_end_do_not_put_it_off() {
    for signals in [
        [libc::SIGUSR1, libc::SIGTERM],
        [libc::SIGHUP, libc::SIGUSR1],
    ] {
        let host = Host::with_devices(1);
        let setup = Setup::new(&host).device("/dev/spidev0.0");
        let mut daemon = setup.stderr(Stderr::FullPipe).start();
        daemon.signal(libc::SIGSTOP);
        // A small t where it is traced, as `tests/syscalls` does.
        let stopped = || daemon.status("State").starts_with(['T', 't']);
        assert!(sys::eventually(PATIENCE, stopped));
        signals.iter().for_each(|signal| daemon.signal(*signal));
        daemon.signal(libc::SIGCONT);
        assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
        assert!(!daemon.socket(0).exists());
    }
}

#[test]
fn counters_longest_wait_is_that_for_other_guests() {
    sys::on_time(|| {
        let host = three_devices();
        let args = ["--cs-hold=0:spec", "--cs-hold-timeout-ms=300"];
        let (daemon, mut guests) = serve_three(&host, 2, &args);
        let start = Instant::now();
        assert_eq!(in_turn(&mut guests[0], &[both(keep(0))]), [TRANS_OK]);
        let waited = Instant::now();
        // Both are queued at once: the second waits for its own guest alone.
        let on_two = [both(let_go(0)), both(let_go(2))];
        let queued = queue(&mut guests[1], &on_two);
        let seen = start.elapsed();
        assert_eq!(results(&mut guests[1], &queued), [TRANS_OK; 2]);
        let waited = waited.elapsed().as_micros() as u64;
        let lines = ask(&daemon, "guest=1 cs=2");
        let wait = |of: &str| {
            let line = lines.iter().find(|line| line.contains(of)).unwrap();
            split_wait(line).1
        };
        let longest = wait("guest=1 cs=0");
        assert!(longest <= waited, "{longest} of {waited} us");
        assert_eq!(wait("guest=0 cs=1"), 0);
        sys::within(seen, MS(50))?;
        let others = ["guest=0 cs=0", "guest=1 cs=2"].map(wait);
        let right = longest >= 200_000 && others.iter().all(|of| *of < 100_000);
        right.then_some(()).ok_or(format!("{longest}, {others:?}"))
    });
}

/// Two guests on one bus, with four requests each of 20 and of 100 ms: each waits for one of the other's, and not for its
/// own.
#[test]
fn counters_longest_wait_in_a_flood_is_one_request_of_the_other_guest() {
    sys::on_time(|| {
        let host = three_devices().real_time();
        let (daemon, mut guests) = serve_three(&host, 2, &[]);
        let head = let_go(0).bits(8).freq(100_000);
        let asks = [250, 1250].map(|tx| Ask { head, tx, rx: 0 });
        let requests: Vec<_> = guests
            .iter_mut()
            .zip(asks)
            .map(|(guest, ask)| queue(guest, &[ask; 4]))
            .collect();
        for (guest, requests) in guests.iter_mut().zip(&requests) {
            assert_eq!(results(guest, requests), [TRANS_OK; 4]);
        }
        let lines = ask(&daemon, "guest=1 cs=2");
        let expected = [(&lines[0], 80_000, 100_000), (&lines[3], 400_000, 20_000)];
        for (line, wire_us, others_us) in expected {
            let (fields, wait) = split_wait(line);
            let wire = format!(" wire_us={wire_us}");
            assert!(fields.contains("cs=0") && fields.ends_with(&wire), "{line}");
            // 70 ms of slack, less than one of the longer requests.
            let right = (others_us * 9 / 10..others_us + 70_000).contains(&wait);
            right.then_some(()).ok_or(line.clone())?;
        }
        Ok(())
    });
}

/// The number in a field of a line.
fn field(line: &str, name: &str) -> u64 {
    let fields = line.split(' ');
    let value = fields
        .filter_map(|field| field.split_once('='))
        .find(|field| field.0 == name);
    value.expect("a field").1.parse().expect("a number")
}

#[test]
fn counters_service_is_the_time_on_the_wire_whose_percentiles_are_in_order() {
    let host = three_devices().real_time();
    let (daemon, mut guests) = serve_three(&host, 1, &[]);
    let head = let_go(0).bits(8).freq(100_000);
    // 1 and 20 ms.
    let mut asks = vec![
        Ask {
            head,
            tx: 12,
            rx: 0
        };
        9
    ];
    asks.push(Ask {
        head,
        tx: 250,
        rx: 0,
    });
    assert_eq!(in_turn(&mut guests[0], &asks), [TRANS_OK; 10]);
    let lines = ask(&daemon, "guest=0 cs=2");
    let of = |name: &str| field(&lines[0], name);
    let service = ["service_p50_us", "service_p99_us", "service_p999_us"].map(of);
    assert!(service.is_sorted(), "{}", lines[0]);
    assert!(service[0] >= 960 && service[1] >= 20_000, "{}", lines[0]);
    assert_eq!(service[2], of("longest_service_us"));
    let wait = ["wait_p50_us", "wait_p99_us", "wait_p999_us"].map(of);
    assert!(wait.is_sorted(), "{}", lines[0]);
    assert_eq!(wait[2], of("longest_wait_us"));
}
