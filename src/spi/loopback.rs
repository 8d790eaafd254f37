//! The built-in device: sends back what it is sent, and reads as 0xff like an idle line.
//!
//! It lets a guest be brought up before there is hardware. The bytes move at once; the wire time is
//! a deadline of the transfer that asked for them.

use crate::spi::message::Buffer;
use crate::spi::wire::{CPHA, CPOL, LOOP, LSB_FIRST, Lanes, Limits};

/// Most bytes of one message: short enough that the loop looks up between two of them.
pub const MESSAGE_LEN: u32 = 1 << 16;
/// A clock above every real controller's, so that whatever a guest is configured for is accepted.
const MAX_SPEED_HZ: u32 = 1_000_000_000;
const IDLE: [u8; 256] = [0xff; 256];

/// What the device takes: everything that means something without wires.
pub fn limits(common: Limits) -> Limits {
    Limits {
        mode_mask: CPHA | CPOL | LSB_FIRST | LOOP,
        bits_per_word_mask: u32::MAX,
        tx_lanes: Lanes(0),
        rx_lanes: Lanes(0),
        max_speed_hz: MAX_SPEED_HZ,
        half_duplex: false,
        ..common
    }
}

/// Moves the bytes of one piece.
pub fn transfer(tx: &Buffer<'_>, rx: &Buffer<'_>) {
    match (tx, rx) {
        (Buffer::Guest(tx), Buffer::Guest(rx)) => tx.copy_to_volatile_slice(*rx),
        (Buffer::Absent, Buffer::Guest(rx)) => {
            let mut offset = 0;
            while let Ok(rest) = rx.offset(offset) {
                if rest.is_empty() {
                    break;
                }
                rest.copy_from(&IDLE);
                offset = offset.saturating_add(IDLE.len());
            }
        }
        (Buffer::Guest(_) | Buffer::Absent | Buffer::Word(_), _) => (),
    }
}
