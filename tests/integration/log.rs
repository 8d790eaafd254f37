// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Lines on stderr: their priorities, levels and fields, and that no guest can flood them.

use crate::rig::ask::*;
use crate::rig::*;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// Has a guest do what is logged at each level, and the daemon write to a file with `environment`; what it wrote.
fn written(args: &[&str], journal: impl Fn(&File) -> Option<String>) -> String {
    let dir = tempfile::tempdir().unwrap();
    let file = File::create(dir.path().join("log")).unwrap();
    let host = Host::with_devices(1);
    let mut setup = Setup::new(&host).device("/dev/spidev0.0");
    if let Some(named) = journal(&file) {
        setup = setup.env("JOURNAL_STREAM", named);
    }
    let stderr = file.as_raw_fd();
    let setup =
        setup.before_exec(move || sys::check(unsafe { libc::dup2(stderr, 2) }.into()).map(drop));
    let daemon = args
        .iter()
        .fold(setup, |setup, arg| setup.arg(*arg))
        .start();
    let mut guest = Guest::connect(&daemon, 0);
    assert_eq!(in_turn(&mut guest, &[wrong(0)]), [PARAM_ERR]);
    host.fail_message(DEV, 0, When::OnWire, libc::EIO);
    assert_eq!(in_turn(&mut guest, &[both(let_go(0))]), [TRANS_ERR]);
    daemon.stop();
    fs::read_to_string(dir.path().join("log")).unwrap()
}

fn number_of(file: &File) -> String {
    let metadata = file.metadata().unwrap();
    format!("{}:{}", metadata.dev(), metadata.ino())
}

#[test]
fn log_lines_begin_with_priorities_where_stderr_is_the_journal() {
    let text = written(&[], |file| Some(number_of(file)));
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 5, "{text}");
    for (line, priority, words) in [
        (lines[0], "<6>", "guest=0 listening on "),
        (lines[1], "<6>", "guest=0 front-end connected"),
        (lines[2], "<4>", "guest=0 cs=0 request refused: "),
        (
            lines[3],
            "<3>",
            "guest=0 cs=0 device=\"/dev/spidev0.0\" request failed: ",
        ),
        (lines[4], "<6>", "guest=0 connection ended: "),
    ] {
        let expected = format!("{priority}{words}");
        assert!(line.starts_with(&expected), "{line}");
    }
}

#[test]
fn log_lines_have_no_priorities_where_stderr_is_another_file_than_the_journal() {
    for named in [
        |_: &File| None,
        |_: &File| Some(String::new()),
        |_: &File| Some("1:2".into()),
        |_: &File| Some("\u{1}<3>:-1:".repeat(10_000)),
        |file: &File| Some(number_of(file) + "0"),
        |file: &File| Some(number_of(file).replace(':', "")),
    ] {
        let text = written(&[], named);
        assert!(text.lines().count() == 5 && !text.contains('<'), "{text}");
    }
}

#[test]
fn log_level_leaves_out_what_matters_less() {
    for (level, expected) in [
        ("off", &[][..]),
        ("error", &["request failed"]),
        (
            "warning",
            &["--seccomp=log", "request refused", "request failed"],
        ),
        (
            "info",
            &[
                "listening",
                "--seccomp=log",
                "front-end connected",
                "request refused",
                "request failed",
                "connection ended",
            ],
        ),
    ] {
        let text = written(&["--seccomp=log", &format!("--log-level={level}")], |_| {
            None
        });
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), expected.len(), "{level}: {text}");
        for (line, word) in lines.iter().zip(expected) {
            assert!(line.contains(word), "{level}: {text}");
        }
    }
}

#[test]
fn log_lines_about_guests_name_guest_chip_select_and_cause() {
    let host = three_devices();
    let (daemon, mut guests) = serve_three(&host, 2, &[]);
    assert_eq!(in_turn(&mut guests[1], &[wrong(2)]), [PARAM_ERR]);
    assert_eq!(in_turn(&mut guests[1], &[both(let_go(3))]), [PARAM_ERR]);
    host.fail_message((0, 1), 0, When::OnWire, libc::EIO);
    assert_eq!(in_turn(&mut guests[0], &[both(let_go(1))]), [TRANS_ERR]);
    let guest = guests.remove(0);
    guest.raw.send(999, raw::VERSION, &[], &[]).unwrap();
    assert!(guest.raw.hung_up(PATIENCE));
    let expected = [
        "guest=1 cs=2 request refused: cause=\"bits_per_word 0 is not supported\"",
        "guest=1 cs=- request refused: cause=\"this guest has no chip select 3\"",
        "guest=0 cs=1 device=\"/dev/spidev0.1\" request failed: cause=\"Input/output error (os error 5)\"",
        "guest=0 connection ended: cause=\"message 999 is not supported: is the peer a vhost-user front-end?\"",
    ];
    let expected: Vec<_> = expected
        .iter()
        .map(|line| format!("vhost-device-spi: {line}"))
        .collect();
    sys::eventually(PATIENCE, || daemon.said().len() >= expected.len());
    let said = daemon.said();
    // musl has other words for EIO.
    let said = said
        .iter()
        .map(|line| line.replace("I/O error", "Input/output error"));
    assert_eq!(said.collect::<Vec<_>>(), expected);
}

#[test]
fn log_of_a_guest_that_floods_is_ten_lines_in_ten_seconds_and_the_rest_is_counted() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
    let mut guests: Vec<_> = (0..2).map(|n| Guest::connect(&daemon, n)).collect();
    let flood = [wrong(0); 50];
    for _ in 0..4 {
        assert_eq!(together(&mut guests[0], &flood), [PARAM_ERR; 50]);
    }
    // Another guest has lines of its own.
    assert_eq!(in_turn(&mut guests[1], &[wrong(0)]), [PARAM_ERR]);
    daemon.wait_line(&["guest=1", "refused"]);
    assert_eq!(daemon.said().len(), 11, "{:#?}", daemon.said());
    std::thread::sleep(Duration::from_secs(10));
    assert_eq!(in_turn(&mut guests[0], &[wrong(0)]), [PARAM_ERR]);
    daemon.wait_line(&["guest=0 lines were dropped: count=190"]);
    sys::eventually(PATIENCE, || daemon.said().len() == 13);
    assert_eq!(daemon.said().len(), 13, "{:#?}", daemon.said());
}

/// What follows the prefix, of each line.
fn texts(daemon: &Daemon) -> Vec<String> {
    let lines = daemon.stderr().into_iter();
    lines
        .map(|line| line.replacen("vhost-device-spi: ", "", 1))
        .collect()
}

#[test]
fn log_says_who_connects_who_leaves_and_once_that_another_front_end_waits() {
    let host = Host::with_devices(1);
    let mut daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    let socket = daemon.socket(0);
    let first = Guest::connect(&daemon, 0);
    daemon.wait_line(&["guest=0 front-end connected"]);
    let waiting = [(); 3].map(|()| Raw::connect(&socket));
    daemon.wait_line(&["another front-end waits"]);
    drop(first);
    let count = |words| {
        texts(&daemon)
            .iter()
            .filter(|text| text.contains(words))
            .count()
    };
    // The next one is connected, and two still wait.
    assert!(sys::eventually(PATIENCE, || count("waits") == 2));
    daemon.signal(libc::SIGTERM);
    assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
    daemon.wait_line(&["the daemon ends"]);
    drop(waiting);
    let expected = [
        "guest=0 front-end connected",
        "guest=0 another front-end waits until this one leaves",
        "guest=0 connection ended: cause=\"front-end left\"",
        "guest=0 front-end connected",
        "guest=0 another front-end waits until this one leaves",
        "guest=0 connection ended: cause=\"the daemon ends\"",
    ];
    assert_eq!(texts(&daemon)[1..], expected);
}

#[test]
fn log_of_front_ends_that_come_and_go_needs_the_level_info() {
    let host = Host::with_devices(1);
    let (daemon, mut guest) = serve_with(&host, "", &["--log-level=warning"]);
    guest.assert_served();
    drop(guest);
    Guest::connect(&daemon, 0).assert_served();
    assert_eq!(daemon.stderr(), [""; 0]);
}

#[test]
fn log_of_a_guest_cut_off_after_a_flood_says_why_and_how_many_lines_were_dropped() {
    let (_host, daemon, mut guest) = plugged();
    assert_eq!(together(&mut guest, &[wrong(0); 50]), [PARAM_ERR; 50]);
    guest.raw.send(999, raw::VERSION, &[], &[]).unwrap();
    assert!(guest.raw.hung_up(PATIENCE));
    daemon.wait_line(&["connection ended", "message 999"]);
    let all = texts(&daemon);
    let refused = all.iter().filter(|text| text.contains("refused")).count();
    let [.., dropped, ended] = &all[..] else {
        panic!("{all:#?}")
    };
    assert_eq!(
        *dropped,
        format!("guest=0 lines were dropped: count={}", 50 - refused)
    );
    assert!(ended.contains("connection ended"), "{all:#?}");
}

#[test]
fn log_lines_dropped_are_counted_when_counters_are_asked_for_and_at_the_end() {
    let (_host, mut daemon, mut guest) = plugged();
    assert_eq!(together(&mut guest, &[wrong(0); 50]), [PARAM_ERR; 50]);
    daemon.signal(libc::SIGUSR1);
    daemon.wait_line(&["uptime_s="]);
    let refused = daemon
        .said()
        .iter()
        .filter(|line| line.contains("refused"))
        .count();
    daemon.wait_line(&[&format!(
        "guest=0 connections=1 faults=0 lines_dropped={}",
        50 - refused
    )]);
    daemon.signal(libc::SIGTERM);
    assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
    daemon.wait_line(&[&format!(
        "guest=0 lines were dropped: count={}",
        50 - refused
    )]);
}

/// Two lines each: that it connected, and why it was cut off.
#[test]
fn log_of_front_ends_in_a_flood_accounts_for_each_of_their_lines() {
    let host = Host::with_devices(1);
    let mut daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    for _ in 0..30 {
        let hostile = Raw::connect(&daemon.socket(0));
        hostile.send(999, raw::VERSION, &[], &[]).unwrap();
        assert!(hostile.hung_up(PATIENCE));
    }
    daemon.signal(libc::SIGTERM);
    assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
    daemon.wait_line(&["lines were dropped"]);
    let (mut written, mut dropped) = (0, 0);
    for text in texts(&daemon) {
        written +=
            usize::from(text.contains("front-end connected") || text.contains("message 999"));
        if let Some((_, count)) = text.split_once("lines were dropped: count=") {
            dropped += count.parse::<usize>().unwrap();
        }
    }
    assert_eq!(written + dropped, 60, "{:#?}", daemon.stderr());
}

#[test]
fn log_of_a_refusal_says_what_is_allowed() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host)
        .device("/dev/spidev0.0,max-speed-hz=1000000")
        .start();
    let mut guest = Guest::connect(&daemon, 0);
    for (head, words) in [
        (
            let_go(0).mode(virtio::CS_HIGH),
            "mode bits 0x4 are not supported or not allowed: CS_HIGH, see the device option cs-high=",
        ),
        (
            let_go(0).freq(1_000_001),
            "freq 1000001 Hz is not allowed: 0 or 1 to 1000000 Hz are",
        ),
    ] {
        assert_eq!(in_turn(&mut guest, &[both(head)]), [PARAM_ERR]);
        daemon.wait_line(&["guest=0 cs=0 request refused: ", words]);
    }
    let num = [0u32, 5].map(u32::to_le_bytes);
    guest
        .raw
        .send(raw::SET_VRING_NUM, raw::VERSION, num.as_flattened(), &[])
        .unwrap();
    daemon.wait_line(&["SET_VRING_NUM: 5 is not a power of two up to 1024"]);
    // An HTTP client.
    let mut guest = Guest::connect(&daemon, 0);
    std::io::Write::write_all(&mut guest.raw.sock, b"GET / HTTP/1.1\r\n").unwrap();
    daemon.wait_line(&["message 542393671 is not supported: is the peer a vhost-user front-end?"]);
}
