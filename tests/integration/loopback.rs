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
