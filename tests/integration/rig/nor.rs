// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A model of SPI NOR flash, written from data sheets (W25Q64JV, with the bank register of S25FL-S) and not from the
//! daemon's table: what the daemon's framing and rules are measured by. The fuzz targets use it too.
//!
//! Its invariant: a command is done when chip select is released, if it was whole and nothing was behind it.

/// Status bit: busy.
pub const BUSY: u8 = 1 << 0;
/// Status bit: write enable.
pub const WRITE_ENABLED: u8 = 1 << 1;
/// Bytes of the chip: one block of 64 KiB, found at every address modulo that.
const SIZE: usize = 1 << 16;
const ID: [u8; 3] = [0xef, 0x40, 0x17];
const SFDP: [u8; 8] = *b"SFDP\x06\x01\x00\xff";
/// How often a chip that erases says that it is busy.
const ERASE_POLLS: u32 = 3;

/// All of the chip that is not contents, and outlasts a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Addresses have four bytes.
    pub four_byte: bool,
    pub write_enabled: bool,
    /// Block protection and the like.
    pub status: u8,
    pub asleep: bool,
    /// It takes the next command for an address.
    pub continuous: bool,
    pub reset_enabled: bool,
}

/// The chip.
pub struct Nor {
    pub cells: Vec<u8>,
    pub state: State,
    /// What each assertion had, from edge to edge.
    pub commands: Vec<Vec<u8>>,
    /// How often the status will still say that it is busy.
    pub busy_polls: u32,
    bytes: Vec<u8>,
}

impl Nor {
    /// Erased, as after power-up.
    pub fn new() -> Self {
        Self {
            cells: vec![0xff; SIZE],
            state: State::default(),
            commands: Vec::new(),
            busy_polls: 0,
            bytes: Vec::new(),
        }
    }

    /// Its chip select line changed.
    pub fn select(&mut self, selected: bool) {
        let bytes = std::mem::take(&mut self.bytes);
        if !selected {
            if !bytes.is_empty() {
                self.execute(&bytes);
            }
            self.commands.push(bytes);
        }
    }

    /// What it answers while `out` is clocked in.
    pub fn exchange(&mut self, out: &[u8]) -> Vec<u8> {
        let clock = |&byte: &u8| {
            let answer = self.answer(self.bytes.len());
            self.bytes.push(byte);
            answer
        };
        out.iter().map(clock).collect()
    }

    fn width(&self, opcode: u8) -> usize {
        match opcode {
            0x12 | 0x13 | 0x0c | 0x3c | 0x6c | 0xbc | 0xec | 0x34 | 0x3e | 0x21 | 0x5c | 0xdc => 4,
            0x5a => 3,
            _ if self.state.four_byte => 4,
            _ => 3,
        }
    }

    fn address(&self, bytes: &[u8], width: usize) -> usize {
        let value = bytes[1..=width]
            .iter()
            .fold(0, |address, &byte| address << 8 | usize::from(byte));
        value % SIZE
    }

    /// The byte at `at` of the command, on the way back.
    fn answer(&mut self, at: usize) -> u8 {
        let Some(&opcode) = self.bytes.first() else {
            return 0xff;
        };
        if self.state.asleep || self.state.continuous {
            return 0xff;
        }
        if opcode == 0x05 {
            let busy = self.busy_polls > 0;
            self.busy_polls = self.busy_polls.saturating_sub(1);
            let enabled = if self.state.write_enabled {
                WRITE_ENABLED
            } else {
                0
            };
            return self.state.status | enabled | if busy { BUSY } else { 0 };
        }
        if self.busy_polls > 0 {
            return 0xff;
        }
        let width = self.width(opcode);
        let dummy = match opcode {
            0x03 | 0x13 => 0,
            0x0b | 0x0c | 0x3b | 0x3c | 0x6b | 0x6c | 0x5a => 1,
            0xbb | 0xbc => 1,
            0xeb | 0xec => 3,
            0x9f => return ID[(at - 1) % ID.len()],
            _ => return 0xff,
        };
        let Some(offset) = at.checked_sub(1 + width + dummy) else {
            return 0xff;
        };
        let address = self.address(&self.bytes, width) + offset;
        match opcode {
            0x5a => SFDP[address % SFDP.len()],
            _ => self.cells[address % SIZE],
        }
    }

    fn execute(&mut self, bytes: &[u8]) {
        let (opcode, reset_enabled) = (bytes[0], self.state.reset_enabled);
        self.state.reset_enabled = false;
        if self.state.continuous {
            self.state.continuous = !bytes.iter().all(|&byte| byte == 0xff);
            return;
        }
        if self.busy_polls > 0 || self.state.asleep && opcode != 0xab {
            return;
        }
        match (opcode, bytes.len()) {
            (0x06, 1) => self.state.write_enabled = true,
            (0x04, 1) => self.state.write_enabled = false,
            (0xb7, 1) => self.state.four_byte = true,
            (0xe9, 1) => self.state.four_byte = false,
            (0x17, 2) => self.state.four_byte = bytes[1] & 0x80 != 0,
            (0xb9, 1) => self.state.asleep = true,
            (0xab, _) => self.state.asleep = false,
            (0x66, 1) => self.state.reset_enabled = true,
            (0x99, 1) if reset_enabled => {
                self.state = State {
                    status: self.state.status,
                    ..State::default()
                }
            }
            (0xbb | 0xbc | 0xeb | 0xec, len) => {
                let mode = bytes.get(1 + self.width(opcode)).filter(|_| len > 0);
                self.state.continuous = mode.is_some_and(|mode| mode & 0x30 == 0x20);
            }
            _ if self.state.write_enabled => self.write(bytes),
            _ => {}
        }
    }

    /// What needs write enable, and ends it.
    fn write(&mut self, bytes: &[u8]) {
        let opcode = bytes[0];
        let width = self.width(opcode);
        let data = bytes.get(1 + width..).unwrap_or_default();
        match opcode {
            0x01 if bytes.len() > 1 => self.state.status = bytes[1] & !(BUSY | WRITE_ENABLED),
            0x02 | 0x32 | 0x38 | 0x12 | 0x34 | 0x3e if !data.is_empty() => {
                let start = self.address(bytes, width);
                for (offset, byte) in data.iter().enumerate() {
                    self.cells[start & !0xff | (start + offset) & 0xff] &= byte;
                }
            }
            0x20 | 0x52 | 0xd8 | 0x21 | 0x5c | 0xdc if bytes.len() == 1 + width => {
                let len = match opcode {
                    0x20 | 0x21 => 1 << 12,
                    0x52 | 0x5c => 1 << 15,
                    _ => SIZE,
                };
                let start = self.address(bytes, width) & !(len - 1);
                self.cells[start..start + len].fill(0xff);
                self.busy_polls = ERASE_POLLS;
            }
            0xc7 | 0x60 if bytes.len() == 1 => {
                self.cells.fill(0xff);
                self.busy_polls = ERASE_POLLS;
            }
            _ => return,
        }
        self.state.write_enabled = false;
    }
}
