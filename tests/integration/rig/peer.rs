// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What hangs on the other end of the wire.

/// A device on the bus.
pub trait Peer: Send {
    /// Its chip select line changed; true when it is selected now.
    fn select(&mut self, _selected: bool) {}
    /// Full duplex: what it answers while `out` is clocked in, the same length.
    fn exchange(&mut self, out: &[u8]) -> Vec<u8>;
}

/// Echoes what it is sent: MISO wired to MOSI.
pub struct Loopback;

impl Peer for Loopback {
    fn exchange(&mut self, out: &[u8]) -> Vec<u8> {
        out.to_vec()
    }
}

/// Answers one value whatever it is sent.
pub struct Reads(pub u8);

impl Peer for Reads {
    fn exchange(&mut self, out: &[u8]) -> Vec<u8> {
        vec![self.0; out.len()]
    }
}

/// Answers 0, 1, 2, ... (modulo 251, a prime, so that a page or a power of two shifted is seen) from start to end of
/// one assertion.
#[derive(Default)]
pub struct Counter(u64);

impl Peer for Counter {
    fn select(&mut self, _selected: bool) {
        self.0 = 0;
    }

    fn exchange(&mut self, out: &[u8]) -> Vec<u8> {
        let start = self.0;
        self.0 += out.len() as u64;
        (start..self.0).map(|n| (n % 251) as u8).collect()
    }
}

/// A memory: in one assertion, `0x03 address` then any number of bytes read from there, or `0x02 address` then any
/// number of bytes written. Whatever command was begun is forgotten when it is deselected.
pub struct Memory {
    /// What it stores.
    pub cells: Vec<u8>,
    command: Vec<u8>,
    at: usize,
}

impl Memory {
    /// 256 cells, each its own address inverted.
    pub fn new() -> Self {
        Self {
            cells: (0..=255u8).map(|n| !n).collect(),
            command: Vec::new(),
            at: 0,
        }
    }
}

impl Peer for Memory {
    fn select(&mut self, _selected: bool) {
        self.command.clear();
    }

    fn exchange(&mut self, out: &[u8]) -> Vec<u8> {
        let mut answer = Vec::with_capacity(out.len());
        for &byte in out {
            match self.command.as_slice() {
                [] => self.command.push(byte),
                [_] => {
                    self.command.push(byte);
                    self.at = byte.into();
                }
                [0x03, ..] => {
                    answer.push(self.cells[self.at]);
                    self.at = (self.at + 1) % self.cells.len();
                    continue;
                }
                [0x02, ..] => {
                    self.cells[self.at] = byte;
                    self.at = (self.at + 1) % self.cells.len();
                }
                _ => {}
            }
            answer.push(0xff);
        }
        answer
    }
}
