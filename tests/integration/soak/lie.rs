// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Front-ends and guests that say what is not so. They have no tags: the frequencies of their requests are below all.

use super::Soak;
use super::actor::Actor;
use super::behave::Behaved;
use super::crash;
use super::dice::Dice;
use crate::rig::ring::{INDIRECT, NEXT, WRITE, descriptor};
use crate::rig::*;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

pub fn run(actor: &mut Actor, soak: &Soak) {
    let (act, run): (_, fn(&mut Actor, &Soak)) = match actor.dice.below(9) {
        0 => ("sends bytes at random", random_bytes),
        1 => ("sends messages at random", random_messages),
        2 => ("sends wrong descriptors", wrong_fds),
        3 => ("describes memory wrongly", bad_regions),
        4 => ("truncates its memory", truncated),
        5 => ("jumps with its avail index", avail_jump),
        6 => ("makes chains that have no end or no memory", bad_chains),
        7 => ("changes its requests meanwhile", changing),
        _ => ("fills its ring with anything", garbage),
    };
    actor.act = act;
    run(actor, soak);
}

/// Connects as one that behaves, and does so for a while.
fn begin<'a>(actor: &mut Actor, soak: &'a Soak) -> Behaved<'a> {
    let guest = crash::begin(actor, soak);
    soak.ledger().distrust(actor.number);
    guest
}

fn random_bytes(actor: &mut Actor, soak: &Soak) {
    let connection = Raw::connect(&soak.daemon.socket(actor.number));
    soak.count("connections, others");
    let len = 1 + actor.dice.below(2000);
    // The daemon may hang up in the middle.
    let _ = connection.send_bytes(&actor.dice.bytes(len), &[]);
    sleep(actor.dice.moment(5000));
}

/// Messages of known kinds, with bodies of any length and content, some with descriptors.
fn random_messages(actor: &mut Actor, soak: &Soak) {
    let guest = (!actor.dice.once_in(3)).then(|| begin(actor, soak));
    let alone = guest
        .is_none()
        .then(|| Raw::connect(&soak.daemon.socket(actor.number)));
    soak.count("connections, others");
    let raw = guest
        .as_ref()
        .map(|guest| &guest.guest.raw)
        .or(alone.as_ref())
        .expect("one of the two");
    for _ in 0..1 + actor.dice.below(20) {
        actor.step += 1;
        let dice = &mut actor.dice;
        let code = dice.below(40) as u32;
        let flags = raw::VERSION | dice.pick(&[0, 0, 0, raw::NEED_REPLY, raw::REPLY, 1 << 4]);
        let len = dice.pick(&[0, 8, 8, 8, 16, 32, 40, 72, 100]);
        let mut body = dice.bytes(len);
        if dice.once_in(2) {
            // Small numbers are more likely to mean something.
            body.iter_mut()
                .enumerate()
                .for_each(|(n, byte)| *byte = if n % 8 == 0 { *byte & 3 } else { 0 });
        }
        let fds: Vec<_> = (0..dice.pick(&[0, 0, 1, 3]))
            .map(|_| any_fd(dice))
            .collect();
        let raw_fds: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        if raw.send(code, flags, &body, &raw_fds).is_err() {
            break;
        }
    }
    sleep(actor.dice.moment(5000));
    guest.into_iter().for_each(Behaved::vanish);
}

/// Something open that is not what it should be, or is: pipes, sockets, memory, epoll sets, timers, eventfds, devices.
fn any_fd(dice: &mut Dice) -> OwnedFd {
    let pair = || UnixStream::pair().expect("socketpair").0.into();
    // SAFETY: none of these calls takes a pointer.
    let raw = unsafe {
        match dice.below(8) {
            0 => return pair(),
            1 => return UnixDatagram::unbound().expect("socket").into(),
            2 => return sys::memfd(dice.pick(&[0, 4096, 5000])).into(),
            3 => return std::io::pipe().expect("pipe").0.into(),
            4 => libc::epoll_create1(libc::EPOLL_CLOEXEC),
            5 => libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC),
            6 => libc::eventfd(0, dice.pick(&[0, libc::EFD_NONBLOCK, libc::EFD_SEMAPHORE])),
            _ => return std::fs::File::open("/dev/null").expect("null").into(),
        }
    };
    // SAFETY: the call gave this fd to us alone.
    unsafe { OwnedFd::from_raw_fd(sys::check(raw.into()).expect("an fd") as i32) }
}

fn wrong_fds(actor: &mut Actor, soak: &Soak) {
    let guest = begin(actor, soak);
    let codes = [
        raw::SET_VRING_KICK,
        raw::SET_VRING_CALL,
        raw::SET_VRING_ERR,
        raw::GET_FEATURES,
        raw::SET_MEM_TABLE,
    ];
    let code = actor.dice.pick(&codes);
    let count = actor.dice.pick(&[1, 1, 1, 2, 33]);
    let mut fds: Vec<_> = (0..count).map(|_| any_fd(&mut actor.dice)).collect();
    if actor.dice.once_in(8) {
        // Its own end of the connection: the daemon would never see it close.
        fds[0] = guest.guest.raw.sock.try_clone().expect("dup").into();
    }
    let raw_fds: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    // The daemon may have hung up; a session that goes on is as good.
    let _ = guest
        .guest
        .raw
        .send(code, raw::VERSION, &0u64.to_le_bytes(), &raw_fds);
    drop(fds);
    guest.guest.kick_anyway();
    sleep(actor.dice.moment(5000));
    guest.vanish();
}

/// A table or one more region, with numbers that are at odds with each other or with the file.
fn bad_regions(actor: &mut Actor, soak: &Soak) {
    let guest = begin(actor, soak);
    let dice = &mut actor.dice;
    let number = |dice: &mut Dice| {
        dice.pick(&[
            0,
            1,
            4095,
            4096,
            0x1_0000_0000,
            1 << 38,
            1 << 63,
            u64::MAX - 4095,
            u64::MAX,
        ])
    };
    let count = dice.pick(&[1, 1, 2, 32, 33]);
    let numbers: Vec<u64> = (0..4 * count).map(|_| number(dice)).collect();
    let numbers: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    let file = sys::memfd(dice.pick(&[0, 4096, 1 << 20]));
    let fds = vec![file.as_raw_fd(); dice.pick(&[count, count, 0, 1]).min(32)];
    let (code, head) = match dice.below(3) {
        0 => (raw::ADD_MEM_REG, 0u64),
        1 => (raw::REM_MEM_REG, 0),
        _ => (raw::SET_MEM_TABLE, count as u64),
    };
    let _ = guest.guest.raw.send(
        code,
        raw::VERSION,
        &[&head.to_le_bytes(), numbers.as_slice()].concat(),
        &fds,
    );
    guest.guest.kick_anyway();
    sleep(actor.dice.moment(5000));
    guest.vanish();
}

/// A request without a tag, laid out in order.
fn wild_request(guest: &mut Guest, dice: &mut Dice, devices: usize) -> Request {
    let head = Head::default()
        .chip_select(dice.below(devices + 1) as u8)
        .freq(dice.pick(&[500, 20_000, 1_000_000, 0x7fff_ffff]))
        .cs_change(dice.below(2) as u8);
    let len = dice.pick(&[1, 100, 5000, 20_000]);
    let (tx, rx_len) = (dice.wild_bytes(len), dice.pick(&[0, len]));
    guest.request(head, &tx, rx_len)
}

/// Its ring emptied for what follows, and some requests in it; not shown yet.
fn with_wild_requests<'a>(actor: &mut Actor, soak: &'a Soak) -> (Behaved<'a>, Vec<Request>) {
    let mut behaved = begin(actor, soak);
    let (guest, count) = (&mut behaved.guest, soak.devices(actor.number).len());
    guest.alloc_from(guest.ring.layout.end());
    let mut requests = Vec::new();
    while requests.len() < 4 && usize::from(guest.ring.layout.size) >= 4 * (requests.len() + 1) {
        let request = wild_request(guest, &mut actor.dice, count);
        guest.queue(&request);
        requests.push(request);
    }
    (behaved, requests)
}

fn truncated(actor: &mut Actor, soak: &Soak) {
    let (mut guest, _) = with_wild_requests(actor, soak);
    guest.guest.ring.publish(&guest.guest.memory);
    if actor.dice.once_in(2) {
        guest.guest.kick_anyway();
    }
    // Nothing of this memory may be touched here from now on.
    let region = actor.dice.pick(&[0, guest.guest.memory.regions.len() - 1]);
    let len = actor.dice.pick(&[0, 0, 4096, 36 << 10]);
    let file = &guest.guest.memory.regions[region].file;
    file.set_len(len).expect("truncate");
    guest.guest.kick_anyway();
    if (region, len) == (0, 0) {
        let over = guest.guest.raw.hung_up(PATIENCE);
        assert!(over, "a session goes on without its ring");
    }
    sleep(actor.dice.moment(5000));
    guest.vanish();
}

fn avail_jump(actor: &mut Actor, soak: &Soak) {
    let (guest, _) = with_wild_requests(actor, soak);
    let Guest { ring, memory, .. } = &guest.guest;
    let ahead = ring.layout.size + 1 + actor.dice.below(30_000) as u16;
    memory.store_u16(ring.layout.avail + 2, ring.used_idx.wrapping_add(ahead));
    guest.guest.kick_anyway();
    assert!(
        sys::readable(guest.guest.err.as_raw_fd(), PATIENCE),
        "a broken ring is reported"
    );
    guest.vanish();
}

fn bad_chains(actor: &mut Actor, soak: &Soak) {
    let (mut guest, _) = with_wild_requests(actor, soak);
    let dice = &mut actor.dice;
    let Guest { ring, memory, .. } = &mut guest.guest;
    let size = ring.layout.size;
    for _ in 0..1 + dice.below(3) {
        let n = dice.below(usize::from(size)) as u16;
        let address = dice.pick(&[
            0,
            1 << 40,
            u64::MAX - 20,
            u64::MAX,
            ring.layout.desc,
            ring.layout.used,
        ]);
        let len = dice.pick(&[0, 1, 16, 31, 4096, 0x7fff_ffff, u32::MAX]);
        let flags = dice.pick(&[0, NEXT, WRITE, NEXT | WRITE, INDIRECT, INDIRECT | NEXT]);
        // To itself, to the first, anywhere, or beyond the table.
        let next = dice.pick(&[n, 0, n / 2, size, 0x7fff]);
        memory.write(
            ring.layout.desc + u64::from(n) * 16,
            &descriptor(address, len, flags, next),
        );
    }
    ring.publish(memory);
    guest.guest.kick_anyway();
    sleep(dice.moment(10_000));
    guest.vanish();
}

/// Writes over heads, descriptors and ring while the device reads them.
fn changing(actor: &mut Actor, soak: &Soak) {
    let (mut guest, requests) = with_wild_requests(actor, soak);
    guest.guest.kick();
    guest.guest.kick_anyway();
    let Guest { ring, memory, .. } = &guest.guest;
    let until = Instant::now() + Duration::from_millis(2);
    while Instant::now() < until {
        let dice = &mut actor.dice;
        let request = &requests[dice.below(requests.len())];
        let (at, len) = match dice.below(4) {
            0 => (ring.layout.desc + dice.below(16 * 16) as u64, 2),
            1 => (ring.layout.avail + dice.below(12) as u64, 1),
            2 => (ring.layout.used + dice.below(36) as u64, 1),
            _ => (
                request.segments[0].gpa + dice.below(Head::SIZE - 1) as u64,
                1,
            ),
        };
        memory.write(at, &dice.wild_bytes(len));
    }
    guest.vanish();
}

fn garbage(actor: &mut Actor, soak: &Soak) {
    let (guest, _) = with_wild_requests(actor, soak);
    let Guest { ring, memory, .. } = &guest.guest;
    let part = actor
        .dice
        .pick(&[ring.layout.desc, ring.layout.avail, ring.layout.used]);
    memory.write(part, &actor.dice.wild_bytes(64));
    for _ in 0..actor.dice.below(10) {
        memory.store_u16(
            ring.layout.avail + 2,
            ring.used_idx.wrapping_add(actor.dice.below(16) as u16),
        );
        guest.guest.kick_anyway();
        sleep(actor.dice.moment(500));
    }
    guest.vanish();
}
