// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The first bytes that a request to a chip sends, copied out of guest memory: those that `framing` checked
//! go on the wire, whatever the driver writes to its memory meanwhile. All others are sent from where they
//! are.
//!
//! Called by `grant`, which makes the copy, and by `plan` and `message`, which send it.

use crate::spi::plan::{Position, Segment};
use crate::virtqueue::memory::Memory;

/// Most bytes that `framing` looks at: an opcode and one byte after it.
pub const MAX_LEN: usize = 2;

/// A copy of the first bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lead {
    bytes: [u8; MAX_LEN],
    len: usize,
}

impl Lead {
    /// Copies the start of `tx`; `None` if it is no longer in memory.
    pub fn copy(memory: &Memory, tx: &[Segment]) -> Option<Self> {
        let mut lead = Self::default();
        let mut position = Position::default();
        let mut whole = Some(());
        // One byte at a time, since a buffer can end after the first.
        for byte in &mut lead.bytes {
            position.walk(tx, 1, |address, _| {
                whole = whole.and_then(|()| memory.read(address, std::slice::from_mut(byte)));
                lead.len = lead.len.saturating_add(1);
            });
        }
        whole.map(|()| lead)
    }

    /// A lead of these bytes, for tests and fuzz targets.
    pub fn from_bytes(bytes: [u8; MAX_LEN]) -> Self {
        Self {
            bytes,
            len: MAX_LEN,
        }
    }

    /// The same, no longer than `len`.
    pub fn cut(self, len: usize) -> Self {
        let len = self.len.min(len);
        Self { len, ..self }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// The bytes from `from` on, as a word of a message.
    pub fn word_from(&self, from: usize) -> [u8; 4] {
        let mut word = [0; 4];
        for (to, byte) in word.iter_mut().zip(self.bytes.iter().skip(from)) {
            *to = *byte;
        }
        word
    }
}
