// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One guest's requests, from ring and guest memory to used ring, with the daemon's own `Requestq`
//! and its built-in loopback.
//!
//! The input plays the guest: it sets up the ring, writes what it likes into memory, also while a
//! request runs, and lets turns pass. After each turn every byte of memory is compared with a copy:
//! only what the chain on its way was to change may have changed.

pub mod expect;
pub mod guest;
mod rig;

use std::cell::RefCell;
use std::time::{Duration, Instant};

use vhost_device_spi::serve::requestq::Turn;

use crate::input::Input;
use crate::watch;
use guest::Write;
use rig::Rig;

/// Bytes of guest memory, in two regions of the same length.
pub const MEMORY_LEN: usize = 2 * expect::CUT;
/// Where the three parts of the ring usually are.
pub const DESC: usize = 0;
/// The available ring.
pub const AVAIL: usize = 0x400;
/// The used ring.
pub const USED: usize = 0x600;
/// Turns of one input at most.
const TURNS: u32 = 2000;
/// What a turn may wait for at most.
const WAIT: Duration = Duration::from_millis(5);

thread_local! {
    static RIG: RefCell<Rig> = RefCell::new(Rig::new());
}

/// Lives through what `bytes` describe.
pub fn run(bytes: &[u8]) {
    let _watch = watch::begin();
    RIG.with_borrow_mut(|rig| {
        let mut input = Input::new(bytes);
        rig.start(&mut input);
        let mut turns = TURNS;
        while !input.is_empty() {
            operate(rig, &mut input, &mut turns);
        }
        pass(rig, TURNS, &mut turns);
        rig.abort();
        rig.notify();
        rig.collect();
    });
}

fn operate(rig: &mut Rig, input: &mut Input, turns: &mut u32) {
    let avail = (rig.available(), rig.setup.avail);
    let size = rig.setup.size;
    match input.u8() % 16 {
        0..=4 => write(rig, &guest::request(input, size, avail)),
        5..=8 => write(rig, &guest::write(input, size, avail)),
        9 => pass(rig, u32::from(input.u8()), turns),
        10 => pass(rig, 1, turns),
        11 => rig.abort(),
        12 => {
            stop(rig, turns);
            rig.restart(input);
        }
        13 => rig.change_memory(),
        14 => rig.notify(),
        _ => rig.expire(),
    }
}

fn write(rig: &mut Rig, writes: &[Write]) {
    for write in writes {
        rig.write(write.at, &write.bytes);
    }
}

/// Lets turns pass as the event loop does, until there is nothing to do.
fn pass(rig: &mut Rig, most: u32, turns: &mut u32) {
    for _ in 0..most.min(*turns) {
        *turns -= 1;
        match rig.turn() {
            Turn::Again | Turn::Messages => (),
            Turn::At(at) => wait(at),
            Turn::Idle if rig.is_woken() => (),
            Turn::Idle => return,
        }
    }
}

fn wait(at: Instant) {
    let left = at.saturating_duration_since(Instant::now());
    assert!(left <= WAIT, "a request of {left:?} was accepted");
    while Instant::now() < at {
        std::hint::spin_loop();
    }
}

/// What GET_VRING_BASE does: the request on the way comes to its end, then the ring stops.
fn stop(rig: &mut Rig, turns: &mut u32) {
    while !rig.ask_to_stop() {
        if *turns == 0 {
            return rig.abort();
        }
        pass(rig, 1, turns);
    }
}
