// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The first bytes that a request to a chip sends, copied out of guest memory: those that `framing` checked
//! go on the wire, whatever the driver writes to its memory meanwhile. All others are sent from guest
//! memory.
//!
//! Called by `grant`, which makes the copy, and by `plan` and `message`, which send it.

use crate::spi::plan::{Position, Segment};
use crate::virtqueue::memory::Memory;

/// Most bytes that `framing` looks at: an opcode and one byte after it.
pub const MAX_LEN: usize = 2;

/// A copy of the first bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lead {
    /// The bytes, and room for more.
    pub bytes: [u8; MAX_LEN],
    /// How many of them there are.
    pub len: usize,
}

impl Lead {
    /// Copies the start of `tx`, which has `tx_len` bytes; `None` if it is no longer in memory.
    pub fn copy(memory: &Memory, tx: &[Segment], tx_len: u64) -> Option<Self> {
        let mut bytes = [0; MAX_LEN];
        let len = usize::try_from(tx_len).map_or(MAX_LEN, |len| len.min(MAX_LEN));
        let read = |address, byte: &mut u8| memory.read(address, std::slice::from_mut(byte));
        Position::default().each_byte(tx, bytes.get_mut(..len)?, read)?;
        Some(Self { bytes, len })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}
