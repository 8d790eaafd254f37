// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who sits at one socket, and what it does next.

use super::behave::Behaved;
use super::dice::Dice;
use super::{Soak, WELL_BEHAVED, crash, lie, stall};
use std::sync::atomic::Ordering;
use std::time::Instant;

pub struct Actor {
    pub number: usize,
    pub dice: Dice,
    /// The number of the session that it is in, what kind that is, and how far it is.
    episode: u64,
    pub act: &'static str,
    pub step: u64,
}

/// Tells where an actor was when it failed, and the others that one did.
struct Trail<'a>(&'a mut Actor, &'a Soak);

impl Drop for Trail<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Actor {
                number,
                episode,
                act,
                step,
                ..
            } = self.0;
            eprintln!(
                "SOAK_SEED={}: socket {number}, episode {episode} ({act}), step {step}",
                self.1.seed
            );
            self.1.stop.store(true, Ordering::Relaxed);
        }
    }
}

impl Actor {
    pub fn new(seed: u64, number: usize) -> Self {
        let dice = Dice::new(seed, number as u64);
        Self {
            number,
            dice,
            episode: 0,
            act: "",
            step: 0,
        }
    }

    /// One session after the other, until the time is over.
    pub fn run(&mut self, soak: &Soak, until: Instant) {
        let trail = Trail(self, soak);
        let actor = &mut *trail.0;
        while !soak.is_over(until) {
            actor.episode += 1;
            actor.step = 0;
            // Each episode has dice of its own: what it throws away with the clock does not change the next one.
            let dice = Dice::new(actor.dice.next(), 0);
            let own = std::mem::replace(&mut actor.dice, dice);
            actor.episode(soak, until);
            actor.dice = own;
        }
    }

    fn episode(&mut self, soak: &Soak, until: Instant) {
        let kind = if self.number < WELL_BEHAVED {
            0
        } else {
            self.dice.below(10)
        };
        match kind {
            0..4 => {
                self.act = "behaves";
                self.behave(soak, until);
            }
            4..6 => crash::run(self, soak),
            6 => stall::run(self, soak),
            _ => lie::run(self, soak),
        }
        soak.count(&format!("sessions, {}", self.act));
    }

    fn behave(&mut self, soak: &Soak, until: Instant) {
        let mut guest = Behaved::connect(soak, self.number, &mut self.dice);
        for _ in 0..1 + self.dice.below(60) {
            self.step += 1;
            guest.batch(&mut self.dice);
            match self.dice.below(20) {
                0 => guest = guest.restart(&mut self.dice),
                1 => guest.disabled(&mut self.dice),
                _ => std::thread::sleep(self.dice.moment(4000)),
            }
            if soak.is_over(until) {
                break;
            }
        }
        if self.dice.once_in(2) {
            guest.guest.stop();
        }
    }
}
