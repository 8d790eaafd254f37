// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Several guests, several chip selects, several daemons.

use crate::life::fds_in_a_session;
use crate::rig::peer::Memory;
use crate::rig::*;

#[test]
fn guests_two_on_one_device_are_both_served() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
    let (mut first, mut second) = (Guest::connect(&daemon, 0), Guest::connect(&daemon, 1));
    for n in 0..50u8 {
        assert_eq!(first.transfer(Head::default(), &[n, 1], 2).rx, [n, 1]);
        assert_eq!(second.transfer(Head::default(), &[n, 2], 2).rx, [n, 2]);
    }
}

#[test]
fn guests_take_turns_request_by_request() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
    let (mut flood, mut modest) = (Guest::connect(&daemon, 0), Guest::connect(&daemon, 1));
    host.forget();
    let gate = host.gate_message(DEV, 0);
    for _ in 0..60 {
        let request = flood.request(Head::default().cs_change(1), &[0xf0], 0);
        flood.queue(&request);
    }
    flood.kick();
    gate.reached();
    for _ in 0..5 {
        let request = modest.request(Head::default().cs_change(1), &[0x0d], 0);
        modest.queue(&request);
    }
    modest.kick();
    gate.release();
    modest.wait_used(5);
    flood.wait_used(60);
    let order: Vec<_> = host.messages(DEV).iter().flat_map(|m| m.tx()).collect();
    // The gated one, and perhaps one that was begun before the other's kick was seen; then one by one.
    let order = order.strip_prefix(&[0xf0; 2]).unwrap_or(&order[1..]);
    assert_eq!(order[..9], [0x0d, 0xf0].repeat(5)[..9], "{order:x?}");
}

#[test]
fn guests_with_a_long_transfer_do_not_mix_on_the_wire() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
    let (mut long, mut short) = (Guest::connect(&daemon, 0), Guest::connect(&daemon, 1));
    host.forget();
    let gate = host.gate_message(DEV, 1);
    let request = long.request(Head::default(), &[0xf0; 20_000], 0);
    long.queue(&request);
    long.kick();
    gate.reached();
    let other = short.request(Head::default(), &[0x0d], 0);
    short.queue(&other);
    short.kick();
    gate.release();
    short.wait_used(1);
    long.wait_used(1);
    let order: Vec<_> = host.messages(DEV).iter().flat_map(|m| m.tx()).collect();
    assert_eq!((order.len(), order[20_000]), (20_001, 0x0d));
    assert_eq!(host.edges(DEV), 4);
}

#[test]
fn guests_use_their_own_modes_on_one_device() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
    let mut guests = [Guest::connect(&daemon, 0), Guest::connect(&daemon, 1)];
    for _ in 0..5 {
        for (n, guest) in guests.iter_mut().enumerate() {
            let head = Head::default().mode([virtio::CPHA, virtio::CPOL][n]);
            assert_eq!(guest.transfer(head, &[1], 1).result, TRANS_OK);
            assert_eq!(
                host.kept(DEV).mode,
                [kernel_rules::CPHA, kernel_rules::CPOL][n]
            );
        }
    }
}

#[test]
fn guests_64_are_served_and_left() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host)
        .guests(64)
        .device("/dev/spidev0.0")
        .start();
    let fds = fds_in_a_session(&daemon, 0);
    let mut guests: Vec<_> = (0..64).map(|n| Guest::connect(&daemon, n)).collect();
    guests.iter_mut().for_each(Guest::assert_served);
    drop(guests);
    // The other 63 sockets' sessions end in their own time.
    let equal = sys::eventually(PATIENCE, || fds_in_a_session(&daemon, 0) == fds);
    assert!(equal, "{fds} before, {} now", fds_in_a_session(&daemon, 0));
    daemon.stop();
}

#[test]
fn guest_that_vanishes_in_a_transfer_leaves_the_bus_to_the_other() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
    let (mut gone, mut stays) = (Guest::connect(&daemon, 0), Guest::connect(&daemon, 1));
    let gate = host.gate_message(DEV, 1);
    let request = gone.request(Head::default(), &pattern(500_000), 0);
    gone.queue(&request);
    gone.kick();
    gate.reached();
    let other = stays.request(Head::default(), &[0x0d], 1);
    stays.queue(&other);
    stays.kick();
    drop(gone);
    gate.release();
    let used = stays.wait_used(1)[0];
    assert_eq!(stays.outcome(&other, used).rx, [0x0d]);
    let last = host.messages(DEV).pop().unwrap();
    assert_eq!(
        (last.tx(), last.edges, last.selected),
        (vec![0x0d], 2, (false, false)),
        "in an assertion of its own"
    );
}

#[test]
fn guest_whose_memory_file_shrinks_ends_alone() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
    let (mut bad, mut good) = (Guest::connect(&daemon, 0), Guest::connect(&daemon, 1));
    bad.assert_served();
    let request = bad.request(Head::default(), &[1], 1);
    bad.queue(&request);
    bad.kick();
    bad.wait_used(1);
    bad.memory.regions[0].file.set_len(0).unwrap();
    // The daemon's next look at the ring finds no memory there.
    bad.kick_anyway();
    (0..10).for_each(|_| good.assert_served());
    // The guest's own mapping is gone too: nothing of it may be touched by the test.
    assert!(bad.raw.hung_up(PATIENCE));
    Guest::connect(&daemon, 0).assert_served();
}

/// Whoever starts the daemon may have left all signals blocked: SIGBUS would then end it instead of being handled.
#[test]
fn guest_whose_memory_file_shrinks_ends_alone_with_all_signals_blocked_before() {
    let host = Host::with_devices(1);
    let block_all = || {
        let mut all = unsafe { std::mem::zeroed() };
        unsafe { libc::sigfillset(&mut all) };
        let none = std::ptr::null_mut();
        sys::check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &all, none) }.into()).map(drop)
    };
    let setup = Setup::new(&host).guests(2).device("/dev/spidev0.0");
    let daemon = setup.before_exec(block_all).start();
    let (bad, mut good) = (Guest::connect(&daemon, 0), Guest::connect(&daemon, 1));
    bad.memory.regions[0].file.set_len(0).unwrap();
    bad.kick_anyway();
    assert!(bad.raw.hung_up(PATIENCE));
    good.assert_served();
    daemon.stop();
}

#[test]
fn chip_selects_each_reach_their_own_device() {
    let host = (0..4).fold(Host::new(), |host, n| {
        host.device((n / 2, n % 2), 10_000_000, Reads(n as u8))
    });
    let daemon = Daemon::start(
        &host,
        &[
            "/dev/spidev1.1",
            "/dev/spidev0.0",
            "/dev/spidev1.0",
            "/dev/spidev0.1",
        ],
    );
    let mut guest = Guest::connect(&daemon, 0);
    for (cs, answer) in [3, 0, 2, 1].into_iter().enumerate() {
        assert_eq!(
            guest
                .transfer(Head::default().chip_select(cs as u8), &[], 1)
                .rx,
            [answer]
        );
    }
}

#[test]
fn two_buses_are_independent() {
    let host =
        Host::new()
            .device((0, 0), 10_000_000, Loopback)
            .device((1, 0), 10_000_000, Memory::new());
    let daemon = Daemon::start(&host, &["/dev/spidev0.0", "/dev/spidev1.0"]);
    let mut guest = Guest::connect(&daemon, 0);
    assert_eq!(
        guest
            .transfer(Head::default().chip_select(1), &[3, 0x20, 0, 0], 4)
            .rx[2..],
        [!0x20, !0x21]
    );
    guest.assert_served();
}

#[test]
fn two_daemons_on_one_host_serve_their_own_devices() {
    let host = Host::with_devices(2);
    let one = Daemon::start(&host, &["/dev/spidev0.0"]);
    let two = Daemon::start(&host, &["/dev/spidev0.1"]);
    let (mut first, mut second) = (Guest::connect(&one, 0), Guest::connect(&two, 0));
    host.forget();
    for _ in 0..20 {
        first.assert_served();
        second.assert_served();
    }
    assert_eq!(
        (host.messages((0, 0)).len(), host.messages((0, 1)).len()),
        (20, 20)
    );
}
