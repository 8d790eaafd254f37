// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The built-in device: sends back what it is sent, and reads as 0xff like an idle line.
//!
//! It lets a guest be brought up before there is hardware. The bytes move at once; the wire time is
//! a deadline of the transfer that asked for them. The options `fail=` and `delay-ms=` make it fail or
//! answer late, so that a guest's handling of errors and time-outs can be tested.
//!
//! Called by `device` at the start, and by `transfer`.

use std::time::Duration;

use crate::config::Faults;
use crate::spi::plan::{Piece, Place};
use crate::spi::probe::Capabilities;
use crate::spi::spidev::{SPI_CPHA, SPI_CPOL, SPI_LOOP, SPI_LSB_FIRST};
use crate::virtqueue::memory::Memory;

/// Most bytes of one message: so few that the loop soon looks for events again.
pub const MESSAGE_LEN: u32 = 1 << 16;
const IDLE: [u8; 256] = [0xff; 256];

/// What the device can do: all that has a meaning without wires. Its clock is above that of every real
/// controller, so that a guest's own setting is accepted.
pub const FOUND: Capabilities = Capabilities {
    mode: 0,
    settable: SPI_CPHA | SPI_CPOL | SPI_LSB_FIRST | SPI_LOOP,
    lanes: 0,
    bits_per_word_mask: u32::MAX,
    max_speed_hz: 1_000_000_000,
};

/// The faults that it simulates, and the transfers since the last one.
#[derive(Debug)]
pub struct Loopback {
    faults: Faults,
    /// Transfers since one failed, or since the start.
    since_failure: u32,
}

impl Loopback {
    /// Without a transfer yet.
    pub fn new(faults: Faults) -> Self {
        Self {
            faults,
            since_failure: 0,
        }
    }

    /// A transfer begins. Returns by how much its answer is delayed, and whether it is to fail.
    pub fn begin(&mut self) -> (Duration, bool) {
        self.since_failure = self.since_failure.wrapping_add(1);
        let fails = self.faults.fail_every == Some(self.since_failure);
        if fails {
            self.since_failure = 0;
        }
        (self.faults.delay.unwrap_or_default(), fails)
    }
}

/// Moves the bytes of one piece; `None` if they are not in guest memory any more.
pub fn transfer(memory: &Memory, piece: &Piece) -> Option<()> {
    let slice = |place| match place {
        Place::At(address) => memory.slice(address, piece.len).map(Some),
        // `Split` and `Lead` are not reached: a transfer to a loopback is planned in single bytes, so no word
        // is split, and the command line refuses chip= with it, so there is no lead.
        Place::Absent | Place::Split(_) | Place::Lead(_) => Some(None),
    };
    match (slice(piece.tx)?, slice(piece.rx)?) {
        (Some(tx), Some(rx)) => tx.copy_to_volatile_slice(rx),
        (None, Some(rx)) => {
            for offset in (0..rx.len()).step_by(IDLE.len()) {
                rx.offset(offset).ok()?.copy_from(&IDLE);
            }
        }
        (_, None) => (),
    }
    Some(())
}
