// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Front-ends that keep the daemon waiting, or try to.

use super::Soak;
use super::actor::Actor;
use super::crash::begin;
use crate::rig::*;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::Duration;

pub fn run(actor: &mut Actor, soak: &Soak) {
    let (act, run): (_, fn(&mut Actor, &Soak)) = match actor.dice.below(8) {
        0 => ("stalls in the middle of a message", half_a_message),
        1 => ("does not read replies", unread_replies),
        2 => ("makes its full call eventfd block", full_call),
        3 => ("makes its full call socket block", full_socket),
        4 => ("says nothing", silence),
        5 => ("kicks without requests", kicks),
        6 => ("shows requests and never kicks", no_kick),
        _ => ("disables its ring and leaves", disabled),
    };
    actor.act = act;
    run(actor, soak);
}

fn half_a_message(actor: &mut Actor, soak: &Soak) {
    let guest = begin(actor, soak);
    let message = Raw::encode(raw::SET_FEATURES, raw::VERSION, &[0; 8]);
    let cut = 1 + actor.dice.below(message.len() - 1);
    guest
        .guest
        .raw
        .send_bytes(&message[..cut], &[])
        .expect("send");
    // It is given a second.
    assert!(
        guest.guest.raw.hung_up(PATIENCE),
        "a front-end may be silent in a message for ever"
    );
    guest.vanish();
}

fn unread_replies(actor: &mut Actor, soak: &Soak) {
    let guest = begin(actor, soak);
    let many = Raw::encode(raw::GET_FEATURES, raw::VERSION, &[]).repeat(100);
    let raw = &guest.guest.raw;
    raw.sock.set_nonblocking(true).expect("mode");
    let sent = (0..1000)
        .take_while(|_| raw.send_bytes(&many, &[]).is_ok())
        .count();
    assert!(
        sent < 1000,
        "a front-end that reads no replies is read from"
    );
    guest.vanish();
}

fn full_call(actor: &mut Actor, soak: &Soak) {
    let mut guest = begin(actor, soak);
    guest.queue(&mut actor.dice, Some(1));
    guest.forsake();
    let call = &guest.guest.call;
    // What is left of the batches before would not leave room.
    let _ = call.read();
    call.write(u64::MAX - 1).expect("fill the eventfd");
    set_blocking(call.as_raw_fd());
    guest.guest.kick();
    // The daemon's write ends with a tick, and the session with it; some leave before.
    sleep(actor.dice.moment(200_000));
    guest.vanish();
}

fn full_socket(actor: &mut Actor, soak: &Soak) {
    let mut guest = begin(actor, soak);
    let (ours, theirs) = UnixStream::pair().expect("socketpair");
    theirs.set_nonblocking(true).expect("mode");
    while std::io::Write::write(&mut &theirs, &[0; 4096]).is_ok() {}
    while std::io::Write::write(&mut &theirs, &[0]).is_ok() {}
    let payload = 0u64.to_le_bytes();
    let raw = &guest.guest.raw;
    raw.send(
        raw::SET_VRING_CALL,
        raw::VERSION,
        &payload,
        &[theirs.as_raw_fd()],
    )
    .expect("send");
    set_blocking(theirs.as_raw_fd());
    guest.queue(&mut actor.dice, Some(1));
    guest.forsake();
    guest.guest.kick_anyway();
    guest.guest.kick();
    sleep(actor.dice.moment(200_000));
    guest.vanish();
    drop(ours);
}

fn set_blocking(fd: i32) {
    // SAFETY: fcntl without pointers.
    unsafe { libc::fcntl(fd, libc::F_SETFL, 0) };
}

fn silence(actor: &mut Actor, soak: &Soak) {
    let connection = Raw::connect(&soak.daemon.socket(actor.number));
    soak.count("connections, others");
    sleep(actor.dice.moment(300_000));
    drop(connection);
}

fn kicks(actor: &mut Actor, soak: &Soak) {
    let mut guest = begin(actor, soak);
    for _ in 0..actor.dice.below(200) {
        guest.guest.kick_anyway();
        sleep(actor.dice.moment(50));
    }
    guest.batch(&mut actor.dice);
}

fn no_kick(actor: &mut Actor, soak: &Soak) {
    let mut guest = begin(actor, soak);
    for _ in 0..1 + actor.dice.below(3) {
        guest.queue(&mut actor.dice, None);
    }
    guest.guest.ring.publish(&guest.guest.memory);
    sleep(actor.dice.moment(5000));
    // Late, but then all of it is there.
    guest.guest.kick_anyway();
    guest.collect();
}

fn disabled(actor: &mut Actor, soak: &Soak) {
    let mut guest = begin(actor, soak);
    guest.disabled(&mut actor.dice);
    guest.queue(&mut actor.dice, None);
    guest.guest.stop();
    guest.guest.kick();
    sleep(Duration::from_millis(1));
    guest.vanish();
}
