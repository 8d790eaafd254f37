// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--poll-us`: after a request the ring is watched for the next one, and no kick is needed.

use std::time::Duration;

use crate::rig::plug::{EVENT_IDX, PROTOCOL_FEATURES, VERSION_1};
use crate::rig::*;

/// Longer than a test machine takes to get from one request to the next.
const LONG: &str = "--poll-us=100000";

#[test]
fn polling_serves_requests_that_nobody_kicks_for() {
    for features in [
        VERSION_1 | PROTOCOL_FEATURES,
        VERSION_1 | PROTOCOL_FEATURES | EVENT_IDX,
    ] {
        let host = Host::with_devices(1);
        let daemon = Setup::new(&host).device("/dev/spidev0.0").arg(LONG).start();
        let mut guest = Plug::default().features(features).connect(&daemon, 0);
        let mut kicks = 0;
        for _ in 0..200 {
            let request = guest.request(Head::default(), &[1, 2], 2);
            guest.queue(&request);
            if guest.ring.publish(&guest.memory) {
                guest.kick_anyway();
                kicks += 1;
            }
            guest.wait_used(1);
        }
        assert_eq!(host.messages(DEV).len(), 200);
        // The first, and those after a pause of a busy machine.
        assert!(kicks < 200, "every request was kicked for: {features:#x}");
    }
}

#[test]
fn polling_of_a_ring_that_its_driver_watches_needs_no_kick_for_what_comes_at_once() {
    let host = Host::with_devices(1);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    // Without EVENT_IDX, where the daemon asks for kicks by a flag: it never sets that for a single request otherwise.
    let plug = Plug::default().features(VERSION_1 | PROTOCOL_FEATURES);
    let mut guest = plug.connect(&daemon, 0);
    guest.ring.set_no_interrupt(true, &guest.memory);
    let request = guest.request(Head::default(), &[1], 0);
    guest.queue(&request);
    guest.kick();
    sys::on_time(|| {
        // Laid out before, and made available as soon as the one before is answered.
        guest.queue(&request);
        let mut waits = 0u64;
        while guest.ring.take(&guest.memory).is_none() {
            waits += 1;
            assert!(waits < 1 << 32, "no answer");
            std::hint::spin_loop();
        }
        if guest.ring.publish(&guest.memory) {
            guest.kick_anyway();
            return Err("a kick was asked for".to_owned());
        }
        Ok(())
    });
    let is_served = || guest.ring.take(&guest.memory).is_some();
    assert!(sys::eventually(PATIENCE, is_served));
}

#[test]
fn polling_ends_and_asks_for_a_kick_and_uses_no_cpu() {
    for features in [
        VERSION_1 | PROTOCOL_FEATURES,
        VERSION_1 | PROTOCOL_FEATURES | EVENT_IDX,
    ] {
        let host = Host::with_devices(1);
        let daemon = Setup::new(&host)
            .device("/dev/spidev0.0")
            .arg("--poll-us=1000")
            .start();
        let mut guest = Plug::default().features(features).connect(&daemon, 0);
        for _ in 0..20 {
            guest.assert_served();
            // The driver kicks only where it is asked to; none may be lost at the end of the watch.
            std::thread::sleep(Duration::from_micros(990));
            guest.assert_served();
        }
        std::thread::sleep(Duration::from_millis(50));
        let before = daemon.cpu_time();
        std::thread::sleep(Duration::from_secs(1));
        // Two clock ticks: the resolution of the counter.
        assert!(daemon.cpu_time() - before <= Duration::from_millis(20));
    }
}

#[test]
fn polling_answers_messages_and_other_guests_meanwhile() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host)
        .guests(2)
        .device("/dev/spidev0.0")
        .arg(LONG)
        .start();
    let mut one = Plug::default().connect(&daemon, 0);
    let mut two = Plug::default().connect(&daemon, 1);
    for _ in 0..20 {
        one.assert_served();
        two.assert_served();
        one.config();
    }
    let base = one.stop();
    assert_eq!(base, 20);
    two.assert_served();
}
