// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Two guests with a ring each, on built-in loopbacks: two on the first controller, one on the
//! second. Time is only what a test makes of it.

use std::io::Read;
use std::os::unix::net::UnixStream;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::config::{ChipConfig, ChipKind, DeviceConfig, DevicePath, GuestMemory, TransferConfig};
use crate::os::deferred_close::{Closer, DeferredClose, FrontendFile};
use crate::os::epoll::{Poller, Registered, Token};
use crate::os::file_kind::FileKind;
use crate::os::mounts::Mounts;
use crate::spi::device::Device;
use crate::spi::framing::{Chip, Phase};
use crate::spi::wire::{ConfigSpace, Limits};
use crate::vhost_user::backend::Backend;
use crate::virtqueue::memory::UserAddress;
use crate::virtqueue::memory::tests::flat_memory;
use crate::virtqueue::vring::F_PROTOCOL_FEATURES;

const MS: Duration = Duration::from_millis(1);
const RING_SIZE: u16 = 8;
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
/// The n-th request's head, tx, rx and result.
const DATA: u64 = 0x4000;
const RX: u64 = 0x200;
const RESULT: u64 = 0x3f0;
/// A result byte that was not written.
const UNWRITTEN: u8 = 0xee;

/// What a request asks for; everything else is usual.
#[derive(Clone, Copy, Default)]
struct Ask {
    chip_select: u8,
    cs_change: u8,
    bits: u8,
    hz: u32,
    setup_ns: u32,
    hold_ns: u32,
    inactive_ns: u32,
    len: u32,
}

/// A byte at 1 MHz, after which chip select is released.
const USUAL: Ask = Ask {
    chip_select: 0,
    cs_change: 1,
    bits: 8,
    hz: 1_000_000,
    setup_ns: 0,
    hold_ns: 0,
    inactive_ns: 0,
    len: 1,
};
/// The same, but chip select stays asserted.
const KEEP: Ask = Ask {
    cs_change: 0,
    ..USUAL
};

impl Ask {
    fn head(self) -> [u8; 32] {
        let mut head = [0; 32];
        head[..3].copy_from_slice(&[self.chip_select, self.bits, self.cs_change]);
        head[12..16].copy_from_slice(&self.hz.to_le_bytes());
        head[20..24].copy_from_slice(&self.setup_ns.to_le_bytes());
        head[24..28].copy_from_slice(&self.hold_ns.to_le_bytes());
        head[28..].copy_from_slice(&self.inactive_ns.to_le_bytes());
        head
    }
}

struct Player {
    requestq: Requestq,
    backend: Backend,
    call: UnixStream,
    offered: u16,
}

struct Rig {
    shared: Shared,
    players: [Player; 2],
}

fn loopback() -> Device {
    let config = DeviceConfig::new(DevicePath::Loopback, 3);
    let transfers = TransferConfig {
        max_len: 1 << 20,
        max_ms: 10_000,
        max_message_ms: 100,
    };
    Device::open(&config, &transfers, 0, &[]).unwrap()
}

impl Player {
    fn new(number: GuestNumber, policy: HoldPolicy, limits: &Limits, poller: &Poller) -> Self {
        let grant = Grant {
            chip_selects: vec![(0, 0), (0, 1), (1, 0)],
            config: ConfigSpace::new([limits; 3].into_iter()),
            policy,
            guest_memory: GuestMemory::Sealed,
            max_memory_len: 1 << 30,
            hold_timeout: 100 * MS,
            poll: Duration::ZERO,
        };
        let (call, device_end) = UnixStream::pair().unwrap();
        call.set_nonblocking(true).unwrap();
        let backend = Backend::new(number, grant.config, grant.max_memory_len, poller.clone());
        let mut guest = backend.guest();
        let guest_ref = &mut *guest;
        guest_ref.memory = flat_memory();
        let vring = &mut guest_ref.vring;
        vring.set_size(RING_SIZE.into()).unwrap();
        let addresses = [DESC, AVAIL, USED].map(UserAddress);
        let _ = vring.set_addresses(addresses, &guest_ref.memory);
        let signal = FrontendFile::new(device_end, FileKind::SocketEnd, &Closer::default());
        vring.call = Some(signal);
        vring.set_features(F_PROTOCOL_FEATURES);
        vring.enabled = true;
        let (_, kick) = UnixStream::pair().unwrap();
        let kick = FrontendFile::new(kick, FileKind::SocketEnd, &Closer::default());
        vring.start(Registered::new(poller, kick, Token::Kick(number)).ok());
        let _ = vring.update(&guest_ref.memory);
        assert!(vring.is_running());
        drop(guest);
        Self {
            requestq: Requestq::new(number, grant),
            backend,
            call,
            offered: 0,
        }
    }

    /// The driver makes a request available that sends and receives; its number.
    fn offer(&mut self, ask: Ask) -> u16 {
        let number = self.offered;
        self.offered += 1;
        let data = DATA + 0x400 * u64::from(number);
        let guest = self.backend.guest();
        let memory = &guest.memory;
        let write = |address, bytes: &[u8]| {
            memory.write_slice(bytes, GuestAddress(address)).unwrap();
        };
        write(data, &ask.head());
        write(data + RESULT, &[UNWRITTEN]);
        // Head and tx; rx; result: NEXT is 1, WRITE is 2.
        let parts: [(u64, u32, u16); 3] = [
            (data, 32 + ask.len, 1),
            (data + RX, ask.len, 3),
            (data + RESULT, 1, 2),
        ];
        let first = number % 2 * 3;
        for (index, (address, len, flags)) in (first..).zip(parts) {
            let mut descriptor = address.to_le_bytes().to_vec();
            descriptor.extend(len.to_le_bytes());
            descriptor.extend(flags.to_le_bytes());
            descriptor.extend((index + 1).to_le_bytes());
            write(DESC + 16 * u64::from(index), &descriptor);
        }
        let slot = AVAIL + 4 + 2 * u64::from(number % RING_SIZE);
        write(slot, &first.to_le_bytes());
        write(AVAIL + 2, &self.offered.to_le_bytes());
        number
    }

    fn result(&self, number: u16) -> u8 {
        let mut byte = [0];
        let address = DATA + 0x400 * u64::from(number) + RESULT;
        self.backend
            .guest()
            .memory
            .read(address, &mut byte)
            .unwrap();
        byte[0]
    }

    fn disable_ring(&self) {
        let mut guest = self.backend.guest();
        let guest = &mut *guest;
        guest.vring.enabled = false;
        let _ = guest.vring.update(&guest.memory);
        assert!(!guest.vring.is_running());
    }

    fn is_notified(&mut self) -> bool {
        self.call.read(&mut [0; 8]).is_ok()
    }
}

/// What was consumed is completed.
impl Drop for Rig {
    fn drop(&mut self) {
        for player in &mut self.players {
            let mut guest = player.backend.guest();
            player.requestq.abort(&mut guest, &mut self.shared).unwrap();
        }
    }
}

impl Rig {
    fn new(policy: HoldPolicy) -> Self {
        let poller = Poller::new().unwrap();
        let limits = loopback().limits;
        let guests = [0, 1].map(|number| GuestNumber::new(number).unwrap());
        let players = guests.map(|number| Player::new(number, policy, &limits, &poller));
        let buses = vec![
            Bus::new(vec![loopback(), loopback()], None, 2),
            Bus::new(vec![loopback()], None, 2),
        ];
        Self {
            shared: Shared::new(buses, poller, Mounts::default(), DeferredClose::new(1)),
            players,
        }
    }

    /// One turn of a guest, as the loop gives it.
    fn turn(&mut self, number: usize) -> Turn {
        let player = &mut self.players[number];
        let turn = player
            .requestq
            .turn(&mut player.backend.guest(), &mut self.shared)
            .unwrap();
        for bus in &mut self.shared.buses {
            bus.clear_reservation(player.requestq.number);
        }
        turn
    }

    /// Turns of a guest until there is nothing to do; time passes as far as they wait.
    fn run(&mut self, number: usize) {
        for _ in 0..100 {
            match self.turn(number) {
                Turn::Idle => return,
                Turn::Again | Turn::Messages => (),
                Turn::At(at) => self.shared.now = at,
            }
        }
        panic!("it goes on for ever");
    }

    /// Turns of a guest until it has to wait for a moment, which it returns.
    fn run_until_it_waits(&mut self, number: usize) -> Instant {
        for _ in 0..100 {
            if let Turn::At(at) = self.turn(number) {
                return at;
            }
        }
        panic!("it does not wait");
    }

    fn expire(&mut self) {
        for bus in &mut self.shared.buses {
            bus.expire(&mut self.shared.now, |_| false);
        }
    }
}

#[test]
fn requestq_step_that_plans_nothing_ends_the_transfer() {
    let mut rig = Rig::new(HoldPolicy::Queued);
    // Less than what any transfer is charged.
    rig.shared.buses[0].devices[0].bufsiz = 4;
    let request = rig.players[0].offer(USUAL);
    rig.run(0);
    assert_eq!(rig.players[0].result(request), TransResult::TransErr.byte());
}

#[test]
fn requestq_inactive_delay_is_kept_after_a_transfer_that_failed_or_was_aborted() {
    let ask = Ask {
        inactive_ns: 1_000_000,
        ..USUAL
    };
    for aborted in [true, false] {
        let mut rig = Rig::new(HoldPolicy::Queued);
        let usual = rig.shared.buses[0].devices[0].bufsiz;
        let first = rig.players[0].offer(ask);
        if aborted {
            rig.run_until_it_waits(0);
            let player = &mut rig.players[0];
            player
                .requestq
                .abort(&mut player.backend.guest(), &mut rig.shared)
                .unwrap();
        } else {
            rig.shared.buses[0].devices[0].bufsiz = 4;
            rig.turn(0);
            rig.shared.buses[0].devices[0].bufsiz = usual;
        }
        assert_eq!(rig.players[0].result(first), TransResult::TransErr.byte());
        rig.players[0].offer(ask);
        assert_eq!(rig.run_until_it_waits(0), rig.shared.now + MS);
    }
}

#[test]
fn requestq_command_that_was_aborted_is_one_that_the_chip_may_have_seen() {
    let nor = |address_bytes| {
        Chip::new(ChipConfig {
            kind: ChipKind::Nor,
            address_bytes,
            read_only: 0,
            deny: Vec::new(),
            timeout: Duration::ZERO,
        })
    };
    let mut rig = Rig::new(HoldPolicy::Queued);
    rig.shared.buses[0].devices[0].chip = Some(nor(3));
    // Four-byte mode; a reset that is enabled, and is none since another command is in between.
    for (opcode, aborted) in [(0xb7, false), (0x66, false), (0x03, true), (0x99, false)] {
        let request = rig.players[0].offer(USUAL);
        let tx = DATA + 0x400 * u64::from(request) + 32;
        let player = &mut rig.players[0];
        let guest = player.backend.guest();
        guest.memory.write_byte(tx, opcode).unwrap();
        drop(guest);
        let result = if aborted {
            rig.run_until_it_waits(0);
            let player = &mut rig.players[0];
            let mut guest = player.backend.guest();
            player.requestq.abort(&mut guest, &mut rig.shared).unwrap();
            TransResult::TransErr
        } else {
            rig.run(0);
            TransResult::TransOk
        };
        assert_eq!(rig.players[0].result(request), result.byte());
    }
    let remaining = |chip: &Chip| chip.frame(Phase::Opcode, &[0x02], 1, false).remaining;
    let chip = rig.shared.buses[0].devices[0].chip.as_ref().unwrap();
    assert_eq!(remaining(chip), remaining(&nor(4)));
}

#[test]
fn requestq_ring_that_stops_keeps_the_hold_delay_of_a_queued_hold() {
    let mut rig = Rig::new(HoldPolicy::Queued);
    let keep = Ask {
        hold_ns: 1_000_000,
        ..KEEP
    };
    let first = rig.players[0].offer(keep);
    rig.players[0].offer(keep);
    rig.shared.now = rig.run_until_it_waits(0);
    assert_eq!(rig.turn(0), Turn::Again);
    assert_eq!(rig.players[0].result(first), TransResult::TransOk.byte());
    rig.players[0].disable_ring();
    assert_eq!(rig.turn(0), Turn::Idle);
    // Another guest waits until the delay is over.
    rig.players[1].offer(USUAL);
    assert_eq!(rig.turn(1), Turn::Idle);
    rig.expire();
    assert_eq!(rig.shared.buses[0].next_waiter(), None);
    let released = rig.shared.buses[0].deadline();
    assert_eq!(released, Some(rig.shared.now + MS));
    rig.shared.now += MS;
    rig.expire();
    assert_eq!(rig.shared.buses[0].next_waiter(), GuestNumber::new(1));
}

#[test]
fn requestq_hold_on_another_controller_ends_first_when_its_delay_is_over() {
    let mut rig = Rig::new(HoldPolicy::Spec);
    rig.players[0].offer(Ask {
        hold_ns: 1_000_000,
        ..KEEP
    });
    rig.run(0);
    let next = rig.players[0].offer(Ask {
        chip_select: 2,
        ..USUAL
    });
    assert_eq!(rig.turn(0), Turn::Idle);
    let released = rig.shared.buses[0].deadline();
    assert_eq!(released, Some(rig.shared.now + MS));
    rig.shared.now += MS;
    rig.expire();
    assert_eq!(rig.shared.buses[0].next_waiter(), GuestNumber::new(0));
    rig.run(0);
    assert_eq!(rig.players[0].result(next), TransResult::TransOk.byte());
}

#[test]
fn requestq_waiter_that_leaves_no_longer_cuts_the_holder() {
    let mut rig = Rig::new(HoldPolicy::Spec);
    rig.players[0].requestq.grant.hold_timeout = 60_000 * MS;
    rig.players[0].offer(KEEP);
    rig.run(0);
    let alone = rig.shared.buses[0].deadline();
    assert_eq!(alone, Some(rig.shared.now + 60_000 * MS));
    rig.players[1].offer(USUAL);
    assert_eq!(rig.turn(1), Turn::Idle);
    // --max-transfer-ms after the assertion, which a byte at 1 MHz followed.
    let waited_for = rig.shared.buses[0].deadline();
    let began = rig.shared.now - Duration::from_micros(8);
    assert_eq!(waited_for, Some(began + 10_000 * MS));
    let player = &mut rig.players[1];
    player
        .requestq
        .abort(&mut player.backend.guest(), &mut rig.shared)
        .unwrap();
    assert_eq!(rig.shared.buses[0].deadline(), alone);
}

#[test]
fn requestq_grace_at_a_stop_includes_the_hold_delay() {
    // 24 bytes at 199 Hz are 965 ms: more than a second with 40 ms, which is the longest hold delay.
    for (hold_ns, ends_at_once) in [(0, false), (40_000_000, true)] {
        let mut rig = Rig::new(HoldPolicy::Queued);
        let request = rig.players[0].offer(Ask {
            hz: 199,
            len: 24,
            hold_ns,
            ..USUAL
        });
        rig.run_until_it_waits(0);
        let player = &mut rig.players[0];
        let stopped = player
            .requestq
            .stop(&mut player.backend.guest(), &mut rig.shared)
            .unwrap();
        assert_eq!(stopped, ends_at_once, "{hold_ns} ns");
        let expected = if ends_at_once {
            TransResult::TransErr.byte()
        } else {
            UNWRITTEN
        };
        assert_eq!(rig.players[0].result(request), expected, "{hold_ns} ns");
    }
}

#[test]
fn requestq_notifies_before_its_poll_window_ends() {
    let mut rig = Rig::new(HoldPolicy::Queued);
    rig.players[0].requestq.grant.poll = MS;
    rig.players[0].offer(USUAL);
    rig.shared.now = rig.run_until_it_waits(0);
    assert_eq!(rig.turn(0), Turn::Again);
    assert!(!rig.players[0].is_notified());
    assert_eq!(rig.turn(0), Turn::Again, "the window is open");
    assert!(rig.players[0].is_notified());
}

#[test]
fn requestq_opens_a_poll_window_after_each_request() {
    let mut rig = Rig::new(HoldPolicy::Queued);
    rig.players[0].requestq.grant.poll = MS;
    for _ in 0..2 {
        rig.players[0].offer(USUAL);
        rig.shared.now = rig.run_until_it_waits(0);
        assert_eq!(rig.turn(0), Turn::Again, "the end of the request");
        assert_eq!(rig.turn(0), Turn::Again, "the window opens");
        rig.shared.now += MS - Duration::from_nanos(1);
        assert_eq!(rig.turn(0), Turn::Again, "the window is open");
        rig.shared.now += Duration::from_nanos(1);
        assert_eq!(rig.turn(0), Turn::Idle, "the window is closed");
    }
}

#[test]
fn requestq_refused_request_leaves_its_wait_to_no_other() {
    let mut rig = Rig::new(HoldPolicy::Queued);
    let refused = rig.players[0].offer(Ask { bits: 0, ..USUAL });
    let served = rig.players[0].offer(USUAL);
    // The first turn comes late, the second at once.
    rig.shared.now += 5 * MS;
    assert_eq!(rig.turn(0), Turn::Again);
    rig.shared.due_since = rig.shared.now;
    rig.run(0);
    let results = [refused, served].map(|number| rig.players[0].result(number));
    assert_eq!(results, [1, 0]);
    let tally = format!("{:?}", rig.players[0].requestq.tally());
    assert!(!tally.contains("longest: 5ms"), "{tally}");
}

#[test]
fn requestq_hold_goes_on_for_a_queued_request_until_others_have_waited_too_long() {
    let mut rig = Rig::new(HoldPolicy::Spec);
    rig.players[0].offer(KEEP);
    rig.run(0);
    rig.players[1].offer(USUAL);
    assert_eq!(rig.turn(1), Turn::Idle);
    let ended_at = rig.shared.now;
    // Its time-out is over, but it has a request: it is to have a turn, and the other waits.
    rig.shared.now = ended_at + 100 * MS;
    let (bus, now) = (&mut rig.shared.buses[0], &mut rig.shared.now);
    assert_eq!(bus.expire(now, |_| true), GuestNumber::new(0));
    assert_eq!(bus.next_waiter(), None);
    // Requests that are refused, one after the other, do not keep it for ever.
    *now = ended_at + 10_000 * MS;
    assert_eq!(bus.expire(now, |_| true), None);
    assert_eq!(bus.next_waiter(), GuestNumber::new(1));
}

#[test]
fn requestq_transfer_of_the_loopback_takes_its_setup_where_chip_select_is_asserted() {
    let mut rig = Rig::new(HoldPolicy::Spec);
    rig.shared.buses[0].devices[0].limits.max_cs_setup_ns = 1_000_000;
    let byte = Duration::from_micros(8);
    for setup in [MS, Duration::ZERO] {
        let began = rig.shared.now;
        rig.players[0].offer(Ask {
            setup_ns: 1_000_000,
            ..KEEP
        });
        assert_eq!(rig.run_until_it_waits(0), began + setup + byte);
        rig.run(0);
    }
}

#[test]
fn requestq_has_a_request_if_a_turn_would_look_at_it() {
    let mut rig = Rig::new(HoldPolicy::Queued);
    let has_request = |rig: &Rig| {
        let player = &rig.players[0];
        player.requestq.has_request(&player.backend.guest())
    };
    assert!(!has_request(&rig));
    (0..2).for_each(|_| _ = rig.players[0].offer(USUAL));
    assert!(has_request(&rig));
    rig.run_until_it_waits(0);
    assert!(!has_request(&rig), "one is in progress");
    let player = &mut rig.players[0];
    let mut guest = player.backend.guest();
    player.requestq.abort(&mut guest, &mut rig.shared).unwrap();
    drop(guest);
    assert!(has_request(&rig));
    rig.players[0].disable_ring();
    assert!(!has_request(&rig), "the ring does not run");
}
