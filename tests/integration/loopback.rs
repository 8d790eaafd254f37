//! The built-in device: an echo without hardware that takes the wire time.

use crate::rig::*;
use std::time::{Duration, Instant};

fn looped() -> (Host, Daemon, Guest) {
    let host = Host::new();
    let daemon = Daemon::start(&host, &["loopback"]);
    let guest = Guest::connect(&daemon, 0);
    (host, daemon, guest)
}

#[test]
fn loopback_echoes_tx_and_reads_0xff() {
    let (host, _daemon, mut guest) = looped();
    for len in [1, 2, 100, 4096, 4097, 65_536] {
        let tx = pattern(len);
        let outcome = guest.transfer(Head::default().freq(0), &tx, len);
        assert_eq!(outcome.result, TRANS_OK);
        assert!(outcome.rx == tx, "{len} bytes");
        let outcome = guest.transfer(Head::default().freq(0), &[], len);
        assert_eq!(outcome.result, TRANS_OK);
        assert!(outcome.rx.iter().all(|&b| b == 0xff), "{len} bytes");
        assert_eq!(
            guest.transfer(Head::default().freq(0), &tx, 0).result,
            TRANS_OK
        );
    }
    assert!(host.records().is_empty());
}

#[test]
fn loopback_cut_anywhere_echoes() {
    let (_host, _daemon, mut guest) = looped();
    for (out, into) in [
        (vec![33], vec![2]),
        (vec![32, 34, 36], vec![1, 3]),
        (vec![], vec![5]),
    ] {
        let request = guest
            .contiguous(Head::default(), b"abcde", 5)
            .cut(&out, &into);
        assert_eq!(guest.carry_out(&request).rx, b"abcde");
    }
}

#[test]
fn loopback_takes_the_wire_time_and_answers_meanwhile() {
    let (_host, _daemon, mut guest) = looped();
    let start = Instant::now();
    // 20,000 bytes at 1 MHz: 160 ms.
    let request = guest.request(Head::default(), &pattern(20_000), 20_000);
    guest.queue(&request);
    guest.kick();
    guest.config();
    assert_eq!(
        guest.ring.device_idx(&guest.memory),
        0,
        "the configuration is read while the transfer is under way"
    );
    let used = guest.wait_used(1)[0];
    assert_eq!(guest.outcome(&request, used).result, TRANS_OK);
    assert!(
        start.elapsed() >= Duration::from_millis(160),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn loopback_beside_a_real_device_has_its_own_chip_select() {
    let host = Host::with_devices(1);
    let daemon = Daemon::start(&host, &["loopback", "/dev/spidev0.0"]);
    let mut guest = Guest::connect(&daemon, 0);
    host.forget();
    assert_eq!(guest.config().cs_max_number, 2);
    assert_eq!(guest.transfer(Head::default(), &[1], 1).rx, [1]);
    assert!(host.records().is_empty());
    assert_eq!(
        guest.transfer(Head::default().chip_select(1), &[2], 1).rx,
        [2]
    );
    assert_eq!(host.messages(DEV).len(), 1);
}

#[test]
fn loopback_refuses_what_a_device_would() {
    let (_host, _daemon, mut guest) = looped();
    assert_eq!(
        guest
            .transfer(Head::default().chip_select(1), &[1], 1)
            .result,
        PARAM_ERR
    );
    assert_eq!(
        guest.transfer(Head::default().bits(0), &[1], 1).result,
        PARAM_ERR
    );
    assert_eq!(
        guest.transfer(Head::default(), &[1, 2], 1).result,
        PARAM_ERR
    );
    assert_eq!(
        guest.transfer(Head::default().bits(16), &[1], 1).result,
        PARAM_ERR
    );
}

#[test]
fn loopback_ends_within_a_second_when_told_to() {
    let (_host, mut daemon, mut guest) = looped();
    // Eight seconds of wire.
    let request = guest.request(Head::default(), &pattern(1_000_000), 0);
    guest.queue(&request);
    guest.kick();
    guest.config();
    let start = Instant::now();
    daemon.signal(libc::SIGTERM);
    assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(6));
}

/// Two guests; the first has a transfer of 0.8 seconds under way, which no thread waits for.
fn looped_and_busy() -> (Host, Daemon, Guest, Request) {
    let host = Host::new();
    let daemon = Setup::new(&host).guests(2).device("loopback").start();
    let mut guest = Guest::connect(&daemon, 0);
    let request = guest.request(Head::default(), &pattern(100_000), 100_000);
    guest.queue(&request);
    guest.kick();
    guest.config();
    (host, daemon, guest, request)
}

#[test]
fn loopback_transfer_under_way_lets_another_guest_connect() {
    let (_host, daemon, mut busy, request) = looped_and_busy();
    let mut other = Guest::connect(&daemon, 1);
    assert_eq!(other.config().cs_max_number, 1);
    assert_eq!(
        busy.ring.device_idx(&busy.memory),
        0,
        "all that while the transfer was under way"
    );
    other.assert_served();
    let used = busy.wait_used(1)[0];
    assert!(busy.outcome(&request, used).rx == pattern(100_000));
}

#[test]
fn loopback_request_that_waits_for_the_bus_is_not_begun_by_a_stopped_ring() {
    let (_host, daemon, mut busy, _) = looped_and_busy();
    let mut other = Guest::connect(&daemon, 1);
    let waiting = other.request(Head::default(), &[7], 1);
    other.queue(&waiting);
    other.kick();
    other.config();
    assert_eq!(other.stop(), 0);
    assert_eq!(
        busy.ring.device_idx(&busy.memory),
        0,
        "all that while the transfer was under way"
    );
    busy.wait_used(1);
    assert_eq!(other.ring.device_idx(&other.memory), 0);
    other.start();
    let used = other.wait_used(1)[0];
    assert_eq!(other.outcome(&waiting, used).rx, [7]);
}

#[test]
fn loopback_guest_that_leaves_while_waiting_for_the_bus_is_forgotten() {
    let (_host, daemon, mut busy, _) = looped_and_busy();
    let mut other = Guest::connect(&daemon, 1);
    let waiting = other.request(Head::default(), &[7], 1);
    other.queue(&waiting);
    other.kick();
    other.config();
    drop(other);
    Guest::connect(&daemon, 1).assert_served();
    busy.wait_used(1);
    busy.assert_served();
}

#[test]
fn loopback_told_to_end_stops_listening_first_and_finishes_what_is_short() {
    let (_host, mut daemon, mut busy, request) = looped_and_busy();
    daemon.signal(libc::SIGTERM);
    assert!(sys::eventually(PATIENCE, || {
        std::os::unix::net::UnixStream::connect(daemon.socket(1)).is_err()
    }));
    assert_eq!(
        busy.ring.device_idx(&busy.memory),
        0,
        "before the end of the transfer"
    );
    assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
    let used = busy
        .ring
        .take(&busy.memory)
        .expect("the transfer is completed");
    assert_eq!(busy.outcome(&request, used).result, TRANS_OK);
}

#[test]
fn loopback_is_held_as_a_device_is() {
    let host = Host::new();
    let daemon = Setup::new(&host)
        .guests(2)
        .device("loopback")
        .arg("--cs-hold=spec")
        .arg("--cs-hold-timeout-ms=300")
        .start();
    let mut guests = [0, 1].map(|n| Guest::connect(&daemon, n));
    let [holder, other] = &mut guests;
    let start = std::time::Instant::now();
    assert_eq!(holder.transfer(Head::default(), &[1], 1).result, TRANS_OK);
    let waiting = other.request(Head::default().cs_change(1), &[2], 1);
    other.queue(&waiting);
    other.kick();
    assert_eq!(holder.transfer(Head::default(), &[3], 1).rx, [3]);
    let used = other.wait_used(1)[0];
    assert_eq!(other.outcome(&waiting, used).rx, [2]);
    assert!(start.elapsed() >= Duration::from_millis(295), "it waited");
    let let_go = Head::default().cs_change(1);
    assert_eq!(holder.transfer(let_go, &[4], 1).result, TRANS_ERR);
    assert_eq!(holder.transfer(let_go, &[5], 1).rx, [5]);
}
