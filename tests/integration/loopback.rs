// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

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
    sys::on_time(|| {
        let start = Instant::now();
        // 20,000 bytes at 1 MHz: 160 ms.
        let request = guest.request(Head::default(), &pattern(20_000), 20_000);
        guest.queue(&request);
        guest.kick();
        guest.config();
        let meanwhile = under_way(&guest);
        let used = guest.wait_used(1)[0];
        assert_eq!(guest.outcome(&request, used).result, TRANS_OK);
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(160), "{took:?}");
        meanwhile
    });
}

/// `Err` if the transfer that the guest waits for has ended.
fn under_way(guest: &Guest) -> Result<(), String> {
    let ended = guest.ring.device_idx(&guest.memory) != guest.ring.used_idx;
    (!ended)
        .then_some(())
        .ok_or("the transfer had ended".into())
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
fn loopback_told_to_end_does_not_finish_what_is_long() {
    let (_host, mut daemon, mut guest) = looped();
    // Eight seconds of wire.
    let request = guest.request(Head::default(), &pattern(1_000_000), 0);
    guest.queue(&request);
    guest.kick();
    guest.config();
    daemon.signal(libc::SIGTERM);
    assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
    assert_eq!(guest.memory.read(request.result_gpa, 1), [TRANS_ERR]);
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
    sys::on_time(|| {
        let (_host, daemon, mut busy, request) = looped_and_busy();
        let mut other = Guest::connect(&daemon, 1);
        assert_eq!(other.config().cs_max_number, 1);
        let meanwhile = under_way(&busy);
        other.assert_served();
        let used = busy.wait_used(1)[0];
        assert!(busy.outcome(&request, used).rx == pattern(100_000));
        meanwhile
    });
}

#[test]
fn loopback_request_that_waits_for_the_bus_is_not_begun_by_a_stopped_ring() {
    sys::on_time(|| {
        let (_host, daemon, mut busy, _) = looped_and_busy();
        let mut other = Guest::connect(&daemon, 1);
        let waiting = other.request(Head::default(), &[7], 1);
        other.queue(&waiting);
        other.kick();
        other.config();
        let base = other.stop();
        under_way(&busy)?;
        assert_eq!(base, 0);
        busy.wait_used(1);
        assert_eq!(other.ring.device_idx(&other.memory), 0);
        other.start();
        let used = other.wait_used(1)[0];
        assert_eq!(other.outcome(&waiting, used).rx, [7]);
        Ok(())
    });
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
    sys::on_time(|| {
        let (_host, mut daemon, mut busy, request) = looped_and_busy();
        let told = Instant::now();
        daemon.signal(libc::SIGTERM);
        assert!(sys::eventually(PATIENCE, || {
            std::os::unix::net::UnixStream::connect(daemon.socket(1)).is_err()
        }));
        let first = under_way(&busy);
        assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
        let used = busy.ring.take(&busy.memory);
        let used = used.expect("the transfer is completed");
        // A second after it was told it ends whatever is on the wire.
        let result = busy.outcome(&request, used).result;
        if result != TRANS_OK {
            sys::within(told.elapsed(), Duration::from_secs(1))?;
        }
        assert_eq!(result, TRANS_OK);
        first
    });
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
    let time_out = Duration::from_millis(300);
    let mut guests = [0, 1].map(|n| Guest::connect(&daemon, n));
    let [holder, other] = &mut guests;
    let let_go = Head::default().cs_change(1);
    sys::on_time(|| {
        let start = Instant::now();
        assert_eq!(holder.transfer(Head::default(), &[1], 1).result, TRANS_OK);
        let waiting = other.request(let_go, &[2], 1);
        other.queue(&waiting);
        other.kick();
        let went_on = holder.transfer(Head::default(), &[3], 1);
        let in_time = sys::within(start.elapsed(), time_out);
        let used = other.wait_used(1)[0];
        assert_eq!(other.outcome(&waiting, used).rx, [2]);
        let waited = start.elapsed();
        let after = [4, 5].map(|byte| holder.transfer(let_go, &[byte], 1));
        // Of a hold that ended before the second request, whatever comes of it is right.
        in_time?;
        assert_eq!(went_on.rx, [3]);
        assert!(waited >= time_out, "{waited:?}");
        assert_eq!((after[0].result, after[1].rx[0]), (TRANS_ERR, 5));
        Ok(())
    });
}

/// Two guests on a loopback with these options.
fn faulty(options: &str) -> (Host, Daemon, [Guest; 2]) {
    let host = Host::new();
    let device = format!("loopback,{options}");
    let daemon = Setup::new(&host).guests(2).device(&device).start();
    let guests = [0, 1].map(|n| Guest::connect(&daemon, n));
    (host, daemon, guests)
}

#[test]
fn loopback_fail_fails_every_nth_transfer_of_all_guests_and_touches_no_rx() {
    let (_host, daemon, mut guests) = faulty("fail=3");
    for n in 1..=12 {
        let guest = &mut guests[n % 2];
        // Of several messages, and still one transfer.
        let len = if n > 9 { 65_537 } else { 2 };
        let outcome = guest.transfer(Head::default().freq(0), &pattern(len), len);
        if n % 3 == 0 {
            assert_eq!(outcome.result, TRANS_ERR, "{n}");
            assert!(outcome.rx.iter().all(|&b| b == memory::UNTOUCHED), "{n}");
        } else {
            assert_eq!(outcome.result, TRANS_OK, "{n}");
            assert!(outcome.rx == pattern(len), "{n}");
        }
        // What is refused is no transfer.
        let refused = guest.transfer(Head::default().bits(0), &[1], 1);
        assert_eq!(refused.result, PARAM_ERR, "{n}");
    }
    daemon.wait_line(&["device=\"loopback\"", "request failed", "fail="]);
    let (_host, _daemon, [mut guest, _]) = faulty("fail=1");
    for _ in 0..3 {
        let outcome = guest.transfer(Head::default(), &[1], 1);
        assert_eq!(outcome.result, TRANS_ERR);
    }
}

#[test]
fn loopback_faults_are_those_of_their_own_device() {
    let host = Host::new();
    let devices = ["loopback,fail=1", "loopback", "loopback,fail=2"];
    let daemon = Daemon::start(&host, &devices);
    let mut guest = Guest::connect(&daemon, 0);
    for expected in [
        [TRANS_ERR, TRANS_OK, TRANS_OK],
        [TRANS_ERR, TRANS_OK, TRANS_ERR],
    ] {
        let results = [0, 1, 2].map(|chip_select| {
            let head = Head::default().chip_select(chip_select);
            guest.transfer(head, &[1], 1).result
        });
        assert_eq!(results, expected);
    }
}

#[test]
fn loopback_delay_answers_later_and_others_meanwhile() {
    const DELAY: Duration = Duration::from_millis(500);
    let host = Host::new();
    let setup = Setup::new(&host).guests(2);
    let setup = setup.device("loopback,delay-ms=500,fail=2,guests=0");
    let daemon = setup.device("loopback,guests=1").start();
    sys::on_time(|| {
        let [mut late, mut other] = [0, 1].map(|n| Guest::connect(&daemon, n));
        let mut meanwhile = Ok(());
        // Of the second one it is the error that comes later.
        for expected in [TRANS_OK, TRANS_ERR] {
            let start = Instant::now();
            let request = late.request(Head::default(), &[7], 1);
            late.queue(&request);
            late.kick();
            late.config();
            other.assert_served();
            meanwhile = meanwhile.and(under_way(&late));
            let used = late.wait_used(1)[0];
            assert_eq!(late.outcome(&request, used).result, expected);
            assert!(start.elapsed() >= DELAY, "{:?}", start.elapsed());
        }
        meanwhile
    });
}

#[test]
fn loopback_delay_of_a_minute_keeps_neither_a_stopped_ring_nor_the_end() {
    let (_host, mut daemon, mut guests) = faulty("delay-ms=60000");
    // The first is in the first of two messages; the second waits, and is in its only one at the end.
    for (guest, len) in guests.iter_mut().zip([65_537, 1]) {
        let request = guest.request(Head::default().freq(0), &pattern(len), 0);
        guest.queue(&request);
        guest.kick();
        guest.config();
    }
    assert_eq!(guests[0].stop(), 1);
    daemon.signal(libc::SIGTERM);
    assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
}

#[test]
fn loopback_faults_that_make_no_sense_are_a_usage_error() {
    let no_number = "not a number from 1 to";
    for (device, words) in [
        ("loopback,fail=0", ["'fail=0'", no_number]),
        ("loopback,fail=4294967296", ["'fail=4294967296'", no_number]),
        ("loopback,delay-ms=60001", ["'delay-ms=60001'", "60000"]),
        ("loopback,delay-ms=1s", ["'delay-ms=1s'", no_number]),
        ("/dev/spidev0.0,fail=2", ["'fail'", "only loopback"]),
        ("/dev/spidev0.0,delay-ms=2", ["'delay-ms'", "only loopback"]),
    ] {
        let line = ["--socket-path=s", &format!("--device={device}")];
        let finished = setup::run(&Host::with_devices(1), &line);
        assert_eq!(finished.refused(&words), 64, "{}", finished.stderr);
    }
}
