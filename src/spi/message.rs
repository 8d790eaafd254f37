//! One spidev message: transfers whose buffers lie in guest memory.
//!
//! The storage is allocated once. A [`Message`] borrows it, and the guest memory in which its buffers
//! lie, so that no pointer outlives the step that made it: between two steps a message of the
//! front-end may unmap the memory.
//!
//! Invariant: each pointer is 0, or is valid for its transfer's `len` bytes while the message lives.
//! Must not: read or write a buffer. Called by `transfer`, which gives the message to `spidev`.

use std::marker::PhantomData;

use crate::error::TransferError;
use crate::spi::plan::{MAX_PIECES, Position};
use crate::spi::wire::TransferHead;
use crate::virtqueue::memory::Slice;

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

/// One direction of a transfer.
#[derive(Debug)]
pub enum Buffer<'m> {
    /// No buffer.
    Absent,
    /// In guest memory.
    Guest(Slice<'m>),
    /// A word that is cut by a segment boundary: where it lies, and a copy of its bytes. It is sent from,
    /// or received into, the message's storage.
    Word(Position, [u8; 4]),
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

/// A message: transfers whose pointers lead into guest memory, which is borrowed for `'m`.
#[derive(Debug)]
pub struct Message<'m> {
    scratch: &'m mut Scratch,
    total: u32,
    /// What all transfers have in common.
    template: SpiIocTransfer,
    guest: PhantomData<Slice<'m>>,
}

impl<'m> Message<'m> {
    /// An empty message of a request with this head, at a clock of `speed_hz`. The clock is never 0,
    /// which to spidev means the device's own: another opener of the device can change that.
    pub fn new(scratch: &'m mut Scratch, head: &TransferHead, speed_hz: u32) -> Self {
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
            total: 0,
            template,
            guest: PhantomData,
        }
    }

    /// Appends a transfer of `len` bytes.
    ///
    /// # Errors
    /// The message is full, or a buffer is shorter than `len`; a plan that keeps its limits causes
    /// neither.
    #[inline(always)]
    pub fn push(
        &mut self,
        tx: &Buffer<'m>,
        rx: &Buffer<'m>,
        len: u32,
    ) -> Result<(), TransferError> {
        let index = self.scratch.transfers.len();
        let words = self.scratch.words.get_mut(index);
        let [tx_word, rx_word] = words.ok_or(TransferError::Memory)?;
        if let Buffer::Word(_, bytes) = tx {
            *tx_word = *bytes;
        }
        // There are two words for each transfer, so neither list grows beyond its capacity.
        if let Buffer::Word(position, _) = rx {
            self.scratch.rx_cuts.push((index, *position));
        }
        self.scratch.transfers.push(SpiIocTransfer {
            tx_buf: address(tx, tx_word, len)?,
            rx_buf: address(rx, rx_word, len)?,
            len,
            ..self.template
        });
        self.total = self.total.saturating_add(len);
        Ok(())
    }

    /// Appends a delay of `delay_ns` before the next transfer: a transfer of 0 bytes, which touches
    /// nothing but chip select.
    ///
    /// # Errors
    /// The message is full.
    pub fn push_delay(&mut self, delay_ns: u32) -> Result<(), TransferError> {
        self.push(&Buffer::Absent, &Buffer::Absent, 0)?;
        self.finish(false, delay_ns);
        Ok(())
    }

    /// Sets what happens after the last transfer so far: a delay of `delay_ns`, and whether chip select
    /// stays asserted. On the last transfer of a message spidev's `cs_change` of 1 means that it stays
    /// (`struct spi_transfer` in Linux `include/linux/spi/spi.h`).
    pub fn finish(&mut self, keep_chip_select: bool, delay_ns: u32) {
        if let Some(transfer) = self.scratch.transfers.last_mut() {
            transfer.cs_change = u8::from(keep_chip_select);
            transfer.delay_usecs = usecs(delay_ns);
        }
    }

    /// The transfers so far.
    pub fn transfers(&self) -> &[SpiIocTransfer] {
        &self.scratch.transfers
    }

    /// Length of all transfers together in bytes: what a successful ioctl returns.
    pub fn total(&self) -> u32 {
        self.total
    }

    /// The words that were received into the message's storage, and where each belongs.
    pub fn rx_words(&self) -> impl Iterator<Item = (Position, [u8; 4])> {
        let cuts = self.scratch.rx_cuts.iter();
        cuts.filter_map(|(index, position)| {
            let [_, word] = self.scratch.words.get(*index)?;
            Some((*position, *word))
        })
    }
}

/// Nanoseconds as the microseconds that spidev takes, rounded up: a delay is never shorter than asked.
/// Validation keeps all of them within 16 bits.
fn usecs(ns: u32) -> u16 {
    u16::try_from(ns.div_ceil(1000)).unwrap_or(u16::MAX)
}

/// The pointer for spidev to the `len` bytes of a buffer; 0 for none.
///
/// # Errors
/// The buffer is shorter.
#[inline(always)]
fn address(buffer: &Buffer<'_>, word: &mut [u8; 4], len: u32) -> Result<u64, TransferError> {
    let pointer = match buffer {
        Buffer::Absent => return Ok(0),
        Buffer::Guest(slice) if u32::try_from(slice.len()).is_ok_and(|l| l >= len) => {
            slice.ptr_guard_mut().as_ptr()
        }
        Buffer::Guest(_) => return Err(TransferError::Memory),
        Buffer::Word(..) => word.as_mut_ptr(),
    };
    u64::try_from(pointer.expose_provenance()).map_err(|_| TransferError::Memory)
}
