// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One spidev message: transfers whose buffers lie in guest memory.
//!
//! The storage is allocated once. A [`SpiMessage`] borrows it, and the guest memory in which its buffers
//! lie, so that no pointer outlives the step that made it: between two steps a vhost-user message may
//! unmap the memory.
//!
//! Invariant: each pointer is 0, or is valid for its transfer's `len` bytes while the message lives.
//!
//! Must not: copy payload, with two exceptions. A word that is split by a segment boundary cannot go to
//! spidev in two pieces: its 2 or 4 bytes are copied to storage of the message before they are sent, and
//! from there after they were received. The bytes of a lead were copied when it was made.
//!
//! Called by `transfer`, which gives the message to `spidev`.

use crate::spi::lead::Lead;
use crate::spi::plan::{MAX_PIECES, Piece, Place, Position, Segment, Work};
use crate::spi::wire::{self, TransferHead};
use crate::virtqueue::memory::Memory;

/// `struct spi_ioc_transfer` of `include/uapi/linux/spi/spidev.h`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct SpiIocTransfer {
    tx_buf: u64,
    rx_buf: u64,
    len: u32,
    speed_hz: u32,
    delay_usecs: u16,
    bits_per_word: u8,
    cs_change: u8,
    tx_nbits: u8,
    rx_nbits: u8,
    word_delay_usecs: u8,
    pad: u8,
}

/// The storage of a message, allocated once; a page that was never written to takes no memory.
#[derive(Debug)]
pub struct Scratch {
    transfers: Vec<SpiIocTransfer>,
    /// Words to send and received words, at the index of their transfer.
    words: Vec<[[u8; 4]; 2]>,
    /// Received words: the index of their transfer, their place in the request, and their length.
    rx_splits: Vec<(usize, Position, u32)>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            transfers: Vec::with_capacity(MAX_PIECES),
            words: vec![[[0; 4]; 2]; MAX_PIECES],
            rx_splits: Vec::with_capacity(MAX_PIECES),
        }
    }
}

/// A message: transfers whose pointers lead into `memory`, the scratch, or the request's lead, which are
/// borrowed for as long.
#[derive(Debug)]
pub struct SpiMessage<'m> {
    scratch: &'m mut Scratch,
    memory: &'m Memory,
    lead: &'m Lead,
    /// What all transfers have in common.
    template: SpiIocTransfer,
}

impl<'m> SpiMessage<'m> {
    /// The start of a message of a request with this head, at a clock of `speed_hz`, and with its setup
    /// delay in front if it `sets_up`. The clock is never 0, which to spidev means the device's own:
    /// another opener of the device can change that.
    pub fn new(
        scratch: &'m mut Scratch,
        memory: &'m Memory,
        lead: &'m Lead,
        head: &TransferHead,
        speed_hz: u32,
        sets_up: bool,
    ) -> Self {
        scratch.transfers.clear();
        scratch.rx_splits.clear();
        let template = SpiIocTransfer {
            speed_hz,
            bits_per_word: head.bits_per_word,
            tx_nbits: head.tx_nbits,
            rx_nbits: head.rx_nbits,
            word_delay_usecs: u8::try_from(wire::usecs(head.word_delay_ns)).unwrap_or(u8::MAX),
            ..SpiIocTransfer::default()
        };
        if sets_up {
            // 0 bytes, which touch nothing but chip select.
            scratch.transfers.push(SpiIocTransfer {
                delay_usecs: usecs(head.cs_setup_ns),
                ..template
            });
        }
        Self {
            scratch,
            memory,
            lead,
            template,
        }
    }

    /// Appends the transfer of one piece of `work`. `None` if a byte of it is not in guest memory any more,
    /// or the message is full, which a plan that keeps its limits does not cause.
    #[inline(always)]
    pub fn push(&mut self, work: &Work<'_>, piece: &Piece) -> Option<()> {
        let index = self.scratch.transfers.len();
        let [tx_word, rx_word] = self.scratch.words.get_mut(index)?;
        let (memory, lead, len) = (self.memory, self.lead, piece.len);
        let transfer = SpiIocTransfer {
            tx_buf: pointer(memory, work.tx, piece.tx, len, tx_word, lead)?,
            rx_buf: pointer(memory, work.rx, piece.rx, len, rx_word, lead)?,
            len,
            ..self.template
        };
        // `words` has an entry for each transfer that fits, so neither list grows beyond its capacity.
        self.scratch.transfers.push(transfer);
        if let Place::Split(position) = piece.rx {
            self.scratch.rx_splits.push((index, position, len));
        }
        Some(())
    }

    /// Sets what happens after the last transfer: a delay of `delay_ns`, and whether chip select stays
    /// asserted. On the last transfer of a message spidev's `cs_change` of 1 means that it stays
    /// (`struct spi_transfer` in Linux `include/linux/spi/spi.h`).
    pub fn finish(&mut self, keep_chip_select: bool, delay_ns: u32) {
        if let Some(transfer) = self.scratch.transfers.last_mut() {
            transfer.cs_change = u8::from(keep_chip_select);
            transfer.delay_usecs = usecs(delay_ns);
        }
    }

    /// Writes the words that were received into the message's storage to where they belong in `rx`. `None`
    /// if that is not in guest memory any more.
    #[inline(always)]
    pub fn scatter(&mut self, rx: &[Segment]) -> Option<()> {
        let write = |address, byte: &mut u8| self.memory.write_byte(address, *byte);
        for &(index, position, len) in &self.scratch.rx_splits {
            let [_, word] = self.scratch.words.get_mut(index)?;
            position.each_byte(rx, word_part(word, len)?, write)?;
        }
        Some(())
    }

    /// The transfers so far.
    pub fn transfers(&self) -> &[SpiIocTransfer] {
        &self.scratch.transfers
    }
}

/// Nanoseconds as microseconds. Validation keeps all of them within 16 bits.
fn usecs(ns: u32) -> u16 {
    u16::try_from(wire::usecs(ns)).unwrap_or(u16::MAX)
}

/// The first `len` bytes of a word's storage.
fn word_part(word: &mut [u8; 4], len: u32) -> Option<&mut [u8]> {
    word.get_mut(..usize::try_from(len).ok()?)
}

/// The pointer for spidev to one direction of a piece of `len` bytes; 0 for none. A word that is split is
/// copied to `word`, to which the pointer then leads: also one to be received, which shows that all of
/// it is in memory. `None` if a byte is not in guest memory any more.
#[inline(always)]
fn pointer(
    memory: &Memory,
    segments: &[Segment],
    place: Place,
    len: u32,
    word: &mut [u8; 4],
    lead: &Lead,
) -> Option<u64> {
    let pointer = match place {
        Place::Absent => return Some(0),
        Place::At(address) => memory.slice(address, len)?.ptr_guard_mut().as_ptr(),
        Place::Split(position) => {
            let read = |address, byte: &mut u8| memory.read(address, std::slice::from_mut(byte));
            position.each_byte(segments, word_part(word, len)?, read)?;
            word.as_mut_ptr()
        }
        // Only sent: spidev does not write there.
        Place::Lead(from) => {
            let to = from.checked_add(usize::try_from(len).ok()?)?;
            lead.bytes().get(from..to)?.as_ptr().cast_mut()
        }
    };
    u64::try_from(pointer.expose_provenance()).ok()
}
