// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Chance that can be had again: a generator whose whole sequence follows from its seed (splitmix64).

use std::time::Duration;

#[derive(Clone)]
pub struct Dice(u64);

impl Dice {
    /// The generator of one of those who take part: seeds that are alike give sequences that are not.
    pub fn new(seed: u64, part: u64) -> Self {
        let mut dice = Self(seed);
        Self(dice.next() ^ mix(part))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// 0 up to `n` - 1.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let words = (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes());
        words.take(len).collect()
    }

    /// Bytes below 0x80: no four of them in a row are the tag of a request.
    pub fn wild_bytes(&mut self, len: usize) -> Vec<u8> {
        self.bytes(len).iter().map(|byte| byte & 0x7f).collect()
    }

    /// Up to `micros` microseconds.
    pub fn moment(&mut self, micros: usize) -> Duration {
        Duration::from_micros(self.below(micros + 1) as u64)
    }
}

/// The output function of splitmix64: a bijection in which every bit matters to every other.
pub fn mix(state: u64) -> u64 {
    let state = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ state >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ state >> 31
}
