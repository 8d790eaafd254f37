// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Values from the bytes of an input. Where the bytes end, all further values are 0, so that every
//! input means something and a shorter one is a simpler one.

/// What is left of an input.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Up to `len` bytes as they are.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let taken = self.take(N);
        bytes[..taken.len()].copy_from_slice(taken);
        bytes
    }

    /// One byte.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// Two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// Four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// One of `words`, by one byte.
    pub fn pick<T: Copy>(&mut self, words: &[T]) -> T {
        words[usize::from(self.u8()) % words.len()]
    }

    /// One of `words` by the upper bits of one byte, one off by its lowest two; or, at the upper
    /// end, any number.
    pub fn number(&mut self, words: &[u64]) -> u64 {
        let choice = self.u8();
        let Some(&word) = words.get(usize::from(choice >> 2)) else {
            return self.u64();
        };
        match choice & 3 {
            0 | 1 => word,
            2 => word.wrapping_add(1),
            _ => word.wrapping_sub(1),
        }
    }
}
