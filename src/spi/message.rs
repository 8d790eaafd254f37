// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One spidev message: transfers whose buffers lie in guest memory.
//!
//! The storage is allocated once. A [`Message`] borrows it, and the guest memory in which its buffers
//! lie, so that no pointer outlives the step that made it: between two steps a message of the
//! front-end may unmap the memory.
//!
//! Invariant: each pointer is 0, or is valid for its transfer's `len` bytes while the message lives.
//!
//! Must not: copy payload, with two exceptions. A word that is cut by a segment boundary cannot go to
//! spidev in two pieces: its 2 or 4 bytes are copied to storage of the message before they are sent, and
//! from there after they were received. The bytes of a lead were copied when it was made.
//!
//! Called by `transfer`, which gives the message to `spidev`.

use crate::error::TransferError;
use crate::spi::lead::Lead;
use crate::spi::plan::{MAX_PIECES, Piece, Place, Position, Segment, Work};
use crate::spi::wire::TransferHead;
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
    words: Box<[[[u8; 4]; 2]; MAX_PIECES]>,
    /// Where received words belong: the index of the transfer, and the position in the request.
    rx_cuts: Vec<(usize, Position)>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            transfers: Vec::with_capacity(MAX_PIECES),
            words: Box::new([[[0; 4]; 2]; MAX_PIECES]),
            rx_cuts: Vec::with_capacity(MAX_PIECES),
        }
    }
}

/// A message: transfers whose pointers lead into `memory`, which is borrowed for as long.
#[derive(Debug)]
pub struct Message<'m> {
    scratch: &'m mut Scratch,
    memory: &'m Memory,
    /// What all transfers have in common.
    template: SpiIocTransfer,
    total: u32,
}

impl<'m> Message<'m> {
    /// An empty message of a request with this head, at a clock of `speed_hz`. The clock is never 0,
    /// which to spidev means the device's own: another opener of the device can change that.
    pub fn new(
        scratch: &'m mut Scratch,
        memory: &'m Memory,
        head: &TransferHead,
        speed_hz: u32,
    ) -> Self {
        scratch.transfers.clear();
        scratch.rx_cuts.clear();
        let template = SpiIocTransfer {
            speed_hz,
            bits_per_word: head.bits_per_word,
            tx_nbits: head.tx_nbits,
            rx_nbits: head.rx_nbits,
            word_delay_usecs: u8::try_from(usecs(head.word_delay_ns)).unwrap_or(u8::MAX),
            ..SpiIocTransfer::default()
        };
        Self {
            scratch,
            memory,
            template,
            total: 0,
        }
    }

    /// Puts a setup delay in front of the first transfer: a transfer of 0 bytes, which touches nothing
    /// but chip select.
    pub fn set_up(&mut self, delay_ns: u32) {
        self.scratch.transfers.push(SpiIocTransfer {
            delay_usecs: usecs(delay_ns),
            ..self.template
        });
    }

    /// Appends the transfer of one piece of `work`.
    ///
    /// # Errors
    /// A byte of it is not in guest memory any more, or the message is full, which a plan that keeps its
    /// limits does not cause.
    #[inline(always)]
    pub fn push(&mut self, work: &Work<'_>, piece: &Piece) -> Result<(), TransferError> {
        let index = self.scratch.transfers.len();
        let words = self.scratch.words.get_mut(index);
        let [tx_word, rx_word] = words.ok_or(TransferError::Memory)?;
        let (memory, len) = (self.memory, piece.len);
        let transfer = SpiIocTransfer {
            tx_buf: pointer(memory, work.tx, piece.tx, len, tx_word, &work.lead)?,
            rx_buf: pointer(memory, work.rx, piece.rx, len, rx_word, &work.lead)?,
            len,
            ..self.template
        };
        // There are two words for each transfer, so neither list grows beyond its capacity.
        self.scratch.transfers.push(transfer);
        if let Place::Cut(position) = piece.rx {
            self.scratch.rx_cuts.push((index, position));
        }
        self.total = self.total.saturating_add(len);
        Ok(())
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

    /// Writes the words that were received into the message's storage to where they belong in `work`.
    ///
    /// # Errors
    /// That is not in guest memory any more.
    pub fn scatter(&mut self, work: &Work<'_>) -> Result<(), TransferError> {
        let Scratch {
            transfers,
            words,
            rx_cuts,
        } = &mut *self.scratch;
        for (index, position) in rx_cuts {
            let transfer = transfers.get(*index);
            if let (Some([_, word]), Some(transfer)) = (words.get_mut(*index), transfer) {
                each_part(work.rx, *position, transfer.len, word, |address, part| {
                    self.memory.write(address, part)
                })?;
            }
        }
        Ok(())
    }

    /// The transfers so far.
    pub fn transfers(&self) -> &[SpiIocTransfer] {
        &self.scratch.transfers
    }

    /// Length of all transfers together in bytes: what a successful ioctl returns.
    pub fn total(&self) -> u32 {
        self.total
    }
}

/// Nanoseconds as the microseconds that spidev takes, rounded up: a delay is never shorter than asked.
/// Validation keeps all of them within 16 bits.
fn usecs(ns: u32) -> u16 {
    u16::try_from(ns.div_ceil(1000)).unwrap_or(u16::MAX)
}

/// The pointer for spidev to one direction of a piece of `len` bytes; 0 for none. The bytes of a word
/// that is cut, or of the lead, are copied to `word`, which the pointer then leads to.
///
/// # Errors
/// A byte is not in guest memory any more.
#[inline(always)]
fn pointer(
    memory: &Memory,
    segments: &[Segment],
    place: Place,
    len: u32,
    word: &mut [u8; 4],
    lead: &Lead,
) -> Result<u64, TransferError> {
    let pointer = match place {
        Place::Absent => return Ok(0),
        Place::Lead(from) => {
            *word = lead.word_from(from);
            word.as_mut_ptr()
        }
        Place::At(address) => {
            let slice = memory.slice(address, len).ok_or(TransferError::Memory)?;
            slice.ptr_guard_mut().as_ptr()
        }
        Place::Cut(position) => {
            each_part(segments, position, len, word, |address, part| {
                memory.read(address, part)
            })?;
            word.as_mut_ptr()
        }
    };
    u64::try_from(pointer.expose_provenance()).map_err(|_| TransferError::Memory)
}

/// Calls `each` with the guest address of each contiguous part of the `len` bytes at `position`, which
/// are a word that is cut, and with the same part of `word`.
fn each_part(
    segments: &[Segment],
    mut position: Position,
    len: u32,
    word: &mut [u8; 4],
    mut each: impl FnMut(u64, &mut [u8]) -> Option<()>,
) -> Result<(), TransferError> {
    let mut tail = word.as_mut_slice();
    let mut all = Some(());
    position.walk(segments, len, |address, run| {
        let at = usize::try_from(run).unwrap_or(usize::MAX).min(tail.len());
        let (part, left) = std::mem::take(&mut tail).split_at_mut(at);
        all = all.and_then(|()| each(address, part));
        tail = left;
    });
    all.ok_or(TransferError::Memory)
}
