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
use crate::spi::plan::MAX_PIECES;
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

/// The fields that are equal in all transfers of a message.
#[derive(Debug, Clone, Copy)]
pub struct Common {
    /// Clock in Hz, never 0: that means the device's own to spidev, which another opener can change.
    pub speed_hz: u32,
    /// Bits per word.
    pub bits_per_word: u8,
    /// Lanes for sending.
    pub tx_nbits: u8,
    /// Lanes for receiving.
    pub rx_nbits: u8,
    /// Microseconds between words.
    pub word_delay_usecs: u8,
}

/// One direction of a transfer.
#[derive(Debug)]
pub enum Buffer<'m> {
    /// No buffer.
    Absent,
    /// In guest memory.
    Guest(Slice<'m>),
    /// A word across a segment boundary: it is sent from, or received into, the message's storage.
    Word([u8; 4]),
}

/// The storage of a message, allocated once; a page that was never written to takes no memory.
#[derive(Debug)]
pub struct Scratch {
    transfers: Vec<SpiIocTransfer>,
    tx_words: Box<[[u8; 4]; MAX_PIECES]>,
    rx_words: Box<[[u8; 4]; MAX_PIECES]>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            transfers: Vec::with_capacity(MAX_PIECES),
            tx_words: Box::new([[0; 4]; MAX_PIECES]),
            rx_words: Box::new([[0; 4]; MAX_PIECES]),
        }
    }
}

/// A message: transfers whose pointers lead into guest memory, which is borrowed for `'m`.
#[derive(Debug)]
pub struct Message<'m> {
    scratch: &'m mut Scratch,
    total: u32,
    common: Common,
    guest: PhantomData<Slice<'m>>,
}

impl<'m> Message<'m> {
    /// An empty message.
    pub fn new(scratch: &'m mut Scratch, common: Common) -> Self {
        scratch.transfers.clear();
        Self {
            scratch,
            total: 0,
            common,
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
        let tx_word = self
            .scratch
            .tx_words
            .get_mut(index)
            .ok_or(TransferError::Memory)?;
        let rx_word = self
            .scratch
            .rx_words
            .get_mut(index)
            .ok_or(TransferError::Memory)?;
        if let Buffer::Word(bytes) = tx {
            *tx_word = *bytes;
        }
        let tx_buf = address(tx, tx_word, len)?;
        let rx_buf = address(rx, rx_word, len)?;
        // There is one word for each transfer, so this stays within the capacity.
        self.scratch.transfers.push(SpiIocTransfer {
            tx_buf,
            rx_buf,
            len,
            speed_hz: self.common.speed_hz,
            delay_usecs: 0,
            bits_per_word: self.common.bits_per_word,
            cs_change: 0,
            tx_nbits: self.common.tx_nbits,
            rx_nbits: self.common.rx_nbits,
            word_delay_usecs: self.common.word_delay_usecs,
            pad: 0,
        });
        self.total = self.total.saturating_add(len);
        Ok(())
    }

    /// Appends a setup delay: a transfer of 0 bytes with `delay_usecs`, in microseconds.
    ///
    /// # Errors
    /// The message is full.
    pub fn push_delay(&mut self, delay_usecs: u16) -> Result<(), TransferError> {
        self.push(&Buffer::Absent, &Buffer::Absent, 0)?;
        self.finish(false, delay_usecs);
        Ok(())
    }

    /// Sets what happens after the last transfer so far: a delay of `delay_usecs` microseconds, and
    /// whether chip select stays asserted. On the last transfer of a message spidev's `cs_change` of 1
    /// means that it stays.
    pub fn finish(&mut self, keep_chip_select: bool, delay_usecs: u16) {
        if let Some(transfer) = self.scratch.transfers.last_mut() {
            transfer.cs_change = u8::from(keep_chip_select);
            transfer.delay_usecs = delay_usecs;
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

    /// The word that was received for transfer `index`.
    pub fn rx_word(&self, index: usize) -> [u8; 4] {
        self.scratch
            .rx_words
            .get(index)
            .copied()
            .unwrap_or_default()
    }
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
        Buffer::Word(_) => word.as_mut_ptr(),
    };
    u64::try_from(pointer.expose_provenance()).map_err(|_| TransferError::Memory)
}
