// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Front-ends that are gone from one moment to the next.

use super::Soak;
use super::actor::Actor;
use super::behave::Behaved;
use crate::rig::*;
use std::net::Shutdown;
use std::thread::sleep;

pub fn run(actor: &mut Actor, soak: &Soak) {
    let (act, run): (_, fn(&mut Actor, &Soak)) = match actor.dice.below(6) {
        0 | 1 => ("crashes in the middle of requests", in_requests),
        2 => ("crashes in the middle of a message", in_a_message),
        3 => ("crashes before its ring is set up", in_the_setup),
        4 => ("closes one direction", one_direction),
        _ => ("connects and leaves, many times", flood),
    };
    actor.act = act;
    run(actor, soak);
}

/// Connects as one that behaves, and does some requests as such.
pub fn begin<'a>(actor: &mut Actor, soak: &'a Soak) -> Behaved<'a> {
    let mut guest = Behaved::connect(soak, actor.number, &mut actor.dice);
    for _ in 0..actor.dice.below(4) {
        actor.step += 1;
        guest.batch(&mut actor.dice);
    }
    guest
}

/// Some requests, long ones among them, are queued and nobody waits for them. Its memory goes with it.
fn in_requests(actor: &mut Actor, soak: &Soak) {
    let mut guest = begin(actor, soak);
    for _ in 0..1 + actor.dice.below(4) {
        let len = actor.dice.pick(&[1, 5000, 60_000, 300_000]);
        guest.queue(&mut actor.dice, Some(len));
    }
    guest.guest.kick();
    sleep(actor.dice.moment(20_000));
    guest.vanish();
}

fn in_a_message(actor: &mut Actor, soak: &Soak) {
    let guest = begin(actor, soak);
    let message = Raw::encode(raw::SET_MEM_TABLE, raw::VERSION, &actor.dice.bytes(40));
    let cut = 1 + actor.dice.below(message.len() - 1);
    guest
        .guest
        .raw
        .send_bytes(&message[..cut], &[])
        .expect("send");
    sleep(actor.dice.moment(3000));
    guest.vanish();
}

fn in_the_setup(actor: &mut Actor, soak: &Soak) {
    let mut guest = Plug::default().negotiate(&soak.daemon.socket(actor.number));
    soak.ledger().arrive(actor.number);
    soak.count("connections, others");
    if actor.dice.once_in(2) {
        guest.set_up_ring();
    }
    sleep(actor.dice.moment(3000));
}

/// Says that nothing more will come, which is the end of the session.
fn one_direction(actor: &mut Actor, soak: &Soak) {
    let mut guest = begin(actor, soak);
    guest.queue(&mut actor.dice, Some(20_000));
    guest.forsake();
    guest.guest.kick();
    guest
        .guest
        .raw
        .sock
        .shutdown(Shutdown::Write)
        .expect("shutdown");
    if actor.dice.once_in(2) {
        assert!(
            guest.guest.raw.hung_up(PATIENCE),
            "the daemon goes on with one who said that it is over"
        );
    }
    guest.vanish();
}

fn flood(actor: &mut Actor, soak: &Soak) {
    let count = 1 + actor.dice.below(60);
    let mut open = Vec::new();
    for _ in 0..count {
        actor.step += 1;
        let connection = Raw::connect(&soak.daemon.socket(actor.number));
        soak.count("connections, others");
        if actor.dice.once_in(2) {
            // It may have been served and ended already.
            let _ = connection.send(raw::GET_FEATURES, raw::VERSION, &[], &[]);
        }
        // Some wait in the queue behind others, and leave while they do.
        if actor.dice.once_in(4) {
            open.push(connection);
        }
    }
    sleep(actor.dice.moment(2000));
}
