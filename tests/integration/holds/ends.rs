// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What ends a hold that its guest did not end: failures, ends of sessions and of the process.

use crate::rig::ask::*;
use crate::rig::kernel_rules as rules;
use crate::rig::*;
use vhost::vhost_user::VhostUserFrontend;

const LONG: &[&str] = &["--cs-hold=spec", "--cs-hold-timeout-ms=20000"];
const ERRNOS: [i32; 8] = [
    libc::EINVAL,
    libc::EMSGSIZE,
    libc::EFAULT,
    libc::ENOMEM,
    libc::EIO,
    libc::ETIMEDOUT,
    libc::EINPROGRESS,
    libc::ESHUTDOWN,
];

/// Guest 0 holds chip select 0 in a mode other than the device's, and guest 1 is connected.
fn held() -> (Host, Daemon, Vec<Guest>) {
    let host = three_devices();
    let (daemon, mut guests) = serve_three(&host, 2, LONG);
    let head = keep(0).mode(virtio::CPHA);
    assert_eq!(in_turn(&mut guests[0], &[both(head)]), [TRANS_OK]);
    assert!(host.selected(DEV));
    host.forget();
    (host, daemon, guests)
}

/// Released at once (the time-out is far away), with the mode as it was found, and the bus is the other guest's.
#[track_caller]
fn assert_free(host: &Host, other: &mut Guest) {
    let free = || !host.selected(DEV) && host.kept(DEV).mode == 0;
    sys::eventually(PATIENCE, free);
    assert!(!host.selected(DEV), "released");
    assert_eq!(host.kept(DEV).mode, 0, "mode as found");
    assert_eq!(host.edges(DEV), 1);
    assert_eq!(in_turn(other, &[both(let_go(1))]), [TRANS_OK]);
    assert_one_selected_at_a_time(host);
}

#[test]
fn hold_is_released_after_a_failed_ioctl_whatever_failed_and_when() {
    let host = three_devices();
    let (_daemon, mut guests) = serve_three(&host, 1, LONG);
    let guest = &mut guests[0];
    for when in [When::BeforeWire, When::OnWire, When::AfterWire] {
        for errno in ERRNOS {
            for continues in [false, true] {
                if continues {
                    assert_eq!(in_turn(guest, &[both(keep(0))]), [TRANS_OK]);
                }
                host.forget();
                host.fail_message(DEV, 0, when, errno);
                let what = format!("{when:?} {errno} {continues}");
                assert_eq!(in_turn(guest, &[both(keep(0))]), [TRANS_ERR], "{what}");
                assert_eq!(trace(&host), "0+! w0", "{what}");
                assert!(!host.selected(DEV), "{what}");
                // The next one is no continuation of anything.
                host.forget();
                assert_eq!(in_turn(guest, &[both(let_go(0))]), [TRANS_OK], "{what}");
                assert_eq!((trace(&host).as_str(), host.edges(DEV)), ("0", 2), "{what}");
            }
        }
    }
}

#[test]
fn hold_is_released_after_a_failure_of_any_policy() {
    let policies = [
        ("queued", both(keep(0)), "0+! w0 0"),
        ("spec", both(let_go(0)), "0! w0 0"),
        ("write-read", write(keep(0)), "0+! w0 0"),
    ];
    for (policy, first, expected) in policies {
        let host = three_devices();
        let policy = format!("--cs-hold={policy}");
        let (_daemon, mut guests) = serve_three(&host, 1, &[&policy]);
        host.fail_message(DEV, 0, When::AfterWire, libc::EFAULT);
        let asks = [first, read(let_go(0))];
        assert_eq!(together(&mut guests[0], &asks), [TRANS_ERR, TRANS_OK]);
        assert_trace(&host, expected);
        assert!(!host.selected(DEV));
    }
}

#[test]
fn hold_is_released_by_stopping_the_ring() {
    let (host, _daemon, mut guests) = held();
    assert_eq!(guests[0].stop(), 1);
    assert!(!host.selected(DEV), "before the reply");
    assert_free(&host, &mut guests[1]);
}

#[test]
fn hold_is_released_by_a_reset() {
    let (host, _daemon, mut guests) = held();
    assert_eq!(guests[0].raw.ack(raw::RESET_DEVICE, &[], &[]), 0);
    assert!(!host.selected(DEV), "before the reply");
    assert_free(&host, &mut guests[1]);
}

#[test]
fn hold_is_released_by_a_disconnect() {
    let (host, _daemon, mut guests) = held();
    drop(guests.remove(0));
    assert_free(&host, &mut guests[0]);
}

#[test]
fn hold_is_released_by_a_broken_protocol() {
    let (host, _daemon, mut guests) = held();
    guests[0].raw.send(4711, raw::VERSION, &[], &[]).unwrap();
    assert!(guests[0].raw.hung_up(PATIENCE));
    assert_free(&host, &mut guests[1]);
}

#[test]
fn hold_is_released_by_a_broken_ring() {
    let (host, _daemon, mut guests) = held();
    let broken = &guests[0];
    let index = broken.ring.avail_idx.wrapping_add(1000);
    broken.memory.store_u16(broken.ring.layout.avail + 2, index);
    broken.kick_anyway();
    assert_free(&host, &mut guests[1]);
}

/// After messages that leave ring and memory what they were, the next request goes on in the same assertion.
#[track_caller]
fn assert_kept(messages: impl FnOnce(&mut Guest)) {
    let (host, _daemon, mut guests) = held();
    messages(&mut guests[0]);
    let last = both(let_go(0).mode(virtio::CPHA));
    assert_eq!(in_turn(&mut guests[0], &[last]), [TRANS_OK]);
    assert_trace(&host, "0");
    assert_eq!(host.edges(DEV), 1, "the edge of its end");
}

#[test]
fn hold_is_kept_over_another_memory_table() {
    assert_kept(|guest| guest.share_memory());
}

#[test]
fn hold_is_kept_over_memory_that_comes_and_goes() {
    let memory = Region::new(0x9000_0000, 1 << 20);
    let region = memory.info();
    assert_kept(|guest| guest.frontend.add_mem_region(&region).map(drop).unwrap());
    assert_kept(|guest| {
        guest.frontend.add_mem_region(&region).unwrap();
        guest.frontend.remove_mem_region(&region).unwrap();
    });
}

#[test]
fn hold_is_kept_over_an_enabling_of_the_enabled_ring() {
    assert_kept(|guest| guest.frontend.set_vring_enable(0, true).unwrap());
}

#[test]
fn hold_is_released_by_truncated_memory() {
    let (host, _daemon, mut guests) = held();
    guests[0].memory.regions[0].file.set_len(0).unwrap();
    guests[0].kick_anyway();
    assert_free(&host, &mut guests[1]);
}

#[test]
fn hold_of_a_disabled_ring_is_released() {
    let (host, _daemon, mut guests) = held();
    guests[0].frontend.set_vring_enable(0, false).unwrap();
    assert_free(&host, &mut guests[1]);
}

#[test]
fn hold_is_released_by_each_signal_that_ends_the_process() {
    for signal in [
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGUSR2,
        libc::SIGIO,
        libc::SIGPWR,
        libc::SIGXCPU,
    ] {
        let (host, mut daemon, _guests) = held();
        daemon.signal(signal);
        assert_eq!(daemon.wait(PATIENCE).code(), Some(0), "signal {signal}");
        assert!(!host.selected(DEV), "signal {signal}");
        assert_eq!(
            (host.kept(DEV).mode, host.edges(DEV)),
            (0, 1),
            "signal {signal}"
        );
    }
}

#[test]
fn hold_left_by_a_killed_daemon_is_released_at_the_next_start() {
    let (host, mut daemon, guests) = held();
    daemon.kill();
    drop(guests);
    assert!(host.selected(DEV), "nobody could release it");
    let next = Setup::new(&host)
        .device("/dev/spidev0.0")
        .in_dir_of(&daemon)
        .start();
    assert!(!host.selected(DEV));
    assert_eq!(host.edges(DEV), 1);
    Guest::connect(&next, 0).assert_served();
}

#[test]
fn hold_that_could_not_be_released_is_before_another_device_is_used() {
    let host = three_devices();
    let (_daemon, mut guests) = serve_three(&host, 1, LONG);
    assert_eq!(in_turn(&mut guests[0], &[both(keep(0))]), [TRANS_OK]);
    // Suspended: neither the message nor the release gets through, and the line stays as it is.
    host.fail_ioctls(DEV, libc::ESHUTDOWN);
    assert_eq!(in_turn(&mut guests[0], &[both(keep(0))]), [TRANS_ERR]);
    assert!(host.selected(DEV));
    host.fail_ioctls(DEV, 0);
    let beside = in_turn(&mut guests[0], &[both(let_go(1))]);
    assert_one_selected_at_a_time(&host);
    assert_eq!(beside, [TRANS_OK]);
    assert!(!host.selected(DEV));
}

#[test]
fn hold_between_two_messages_of_a_device_that_goes_away_is_released_before_another_is_used() {
    let host = three_devices();
    let (_daemon, mut guests) = serve_three(&host, 1, LONG);
    // Suspended after the first of two messages, which left the line asserted.
    let gate = host.gate_message(DEV, 0);
    let head = let_go(0);
    let request = queue(
        &mut guests[0],
        &[Ask {
            head,
            tx: 5000,
            rx: 0,
        }],
    );
    gate.reached();
    host.fail_request(DEV, rules::WR_MODE32, libc::ESHUTDOWN);
    host.fail_message(DEV, 0, When::BeforeWire, libc::ESHUTDOWN);
    gate.release();
    assert_eq!(results(&mut guests[0], &request), [TRANS_ERR]);
    assert!(host.selected(DEV));
    let beside = in_turn(&mut guests[0], &[both(let_go(1))]);
    assert_eq!(beside, [TRANS_ERR], "another device would be selected too");
    host.mend(DEV);
    let beside = in_turn(&mut guests[0], &[both(let_go(1))]);
    assert_one_selected_at_a_time(&host);
    assert_eq!(beside, [TRANS_OK]);
    assert!(!host.selected(DEV));
}

#[test]
fn session_that_ends_leaves_each_device_as_it_was_found() {
    let host = Host::new()
        .device_in_mode((0, 0), 10_000_000, rules::CPHA, Loopback)
        .device((0, 1), 10_000_000, Loopback)
        .device_in_mode((1, 0), 10_000_000, rules::CPOL | rules::LSB_FIRST, Loopback);
    let ids = [(0, 0), (0, 1), (1, 0)];
    let found = ids.map(|id| host.kept(id));
    let (daemon, mut guests) = serve_three(&host, 2, &[]);
    let as_found = || {
        let now = ids.map(|id| host.kept(id));
        let same = |(a, b): (&rules::Device, &rules::Device)| {
            (a.mode, a.bits_per_word, a.speed_hz) == (b.mode, b.bits_per_word, b.speed_hz)
        };
        now.iter().zip(&found).all(same)
    };
    for chip_select in 0..3 {
        let head = keep(chip_select)
            .mode(virtio::CPHA | virtio::CPOL)
            .bits(16)
            .freq(123_456);
        let ask = Ask { head, tx: 2, rx: 2 };
        assert_eq!(in_turn(&mut guests[0], &[ask]), [TRANS_OK]);
    }
    assert!(!as_found());
    drop(guests.remove(0));
    assert!(
        sys::eventually(PATIENCE, as_found),
        "{:?}",
        ids.map(|id| host.kept(id))
    );
    // The same at the exit, with a session that is still there.
    let ask = both(keep(0).mode(virtio::LSB_FIRST));
    assert_eq!(in_turn(&mut guests[0], &[ask]), [TRANS_OK]);
    daemon.stop();
    assert!(as_found(), "{:?}", ids.map(|id| host.kept(id)));
}
