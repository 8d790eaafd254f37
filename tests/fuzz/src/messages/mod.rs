// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Messages with fds, through the daemon's own `Session`: its reader, the `vhost` crate, its handlers.
//!
//! The input plays the front-end: it connects to the real socket, sends what it likes in pieces,
//! makes requests, truncates memory, and leaves. Between its acts the session is driven as the
//! event loop does it.

mod front;
mod protocol;
mod rig;

use std::cell::RefCell;
use std::net::Shutdown;

use crate::fds;
use crate::input::Input;
use crate::watch;
use front::Front;
use protocol::Message;
use rig::Rig;

/// Acts of one input at most.
const ACTS: u32 = 64;

thread_local! {
    static RIG: RefCell<Option<Rig>> = const { RefCell::new(None) };
}

/// Lives through what `bytes` describe.
pub fn run(bytes: &[u8]) {
    let _watch = watch::begin();
    RIG.with_borrow_mut(|slot| {
        // One that had to leave many fds open does not listen any more.
        let mut rig = slot.take().filter(Rig::listens).unwrap_or_else(Rig::new);
        let before = fds::open();
        let left_open = live(&mut rig, &mut Input::new(bytes));
        let mut now = fds::open();
        now.retain(|fd| !before.contains(fd));
        assert!(now.len() <= left_open, "left open: {now:?}");
        now.into_iter().for_each(fds::close);
        *slot = Some(rig);
    });
}

/// Connections, one after the other, until the input is at its end; returns how many fds they had
/// left open on purpose.
fn live(rig: &mut Rig, input: &mut Input) -> usize {
    let mut acts = ACTS;
    let mut left_open = 0;
    while rig.listens() && !input.is_empty() && acts > 0 {
        let mut front = Front::connect(rig.path());
        rig.serve(&mut front);
        while rig.is_connected() && !input.is_empty() && acts > 0 {
            acts -= 1;
            act(rig, &mut front, input);
            rig.serve(&mut front);
        }
        rig.end(front);
        left_open += rig.take_left_open();
    }
    left_open
}

fn act(rig: &mut Rig, front: &mut Front, input: &mut Input) {
    match input.u8() % 32 {
        0..=12 => send(rig, front, &protocol::any(input), input),
        13..=16 => {
            for message in protocol::start(input) {
                front.send(&message, 0, message.bytes.len(), false);
            }
        }
        17..=22 => {
            front.request(input);
            front.kick();
        }
        23 => front.request(input),
        24 => front.kick(),
        25 => front.is_deaf = !front.is_deaf,
        26 => front.truncate(u64::from(input.u8() % 17) << 12),
        27 => front.shut_down(Shutdown::Write),
        28 => front.shut_down(Shutdown::Both),
        29 => front.send_urgent(),
        30 => flood(front, input),
        _ => {
            let len = usize::from(input.u8());
            let message = Message {
                bytes: input.take(len).to_vec(),
                kinds: Vec::new(),
            };
            front.send(&message, 0, message.bytes.len(), false);
        }
    }
}

/// Sends a message whole or in two parts, between which the daemon has a look.
fn send(rig: &mut Rig, front: &mut Front, message: &Message, input: &mut Input) {
    let choice = input.u8();
    let len = message.bytes.len();
    let with_own = choice == 255;
    let cut = match choice {
        0..=127 | 255 => len,
        _ => usize::from(choice - 127).min(len),
    };
    front.send(message, 0, cut, with_own);
    if cut < len {
        rig.serve(front);
        front.send(message, cut, len, false);
    }
}

/// The same message many times.
fn flood(front: &mut Front, input: &mut Input) {
    let times = input.u8();
    let message = protocol::any(input);
    for _ in 0..times {
        front.send(&message, 0, message.bytes.len(), false);
    }
}
