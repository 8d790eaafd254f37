//! Linux's spidev: `include/uapi/linux/spi/spidev.h` and what `drivers/spi/spidev.c` makes of it.
//!
//! Owns the device fd, the knowledge which mode was last set, and the storage of a message. A
//! message's buffers are pointers into guest memory; the type [`Message`] borrows the memory they
//! come from, so that no message outlives a step.
//!
//! Every `SPI_IOC_WR_*` makes the kernel call `spi_setup()`, which forces chip select off. So none
//! is used in the steady state, and `WR_MODE32` with the unchanged value is how a line is released.
//!
//! Must not: know VIRTIO.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::fate::{ExitCode, Fatal, TransferError};
use crate::memory::Slice;
use crate::plan::MAX_PIECES;

/// Mode bit: clock phase.
pub const SPI_CPHA: u32 = 1 << 0;
/// Mode bit: clock polarity.
pub const SPI_CPOL: u32 = 1 << 1;
/// Mode bit: chip select is active high.
pub const SPI_CS_HIGH: u32 = 1 << 2;
/// Mode bit: least significant bit first.
pub const SPI_LSB_FIRST: u32 = 1 << 3;
/// Mode bit: one line for both directions.
pub const SPI_3WIRE: u32 = 1 << 4;
/// Mode bit: loop back.
pub const SPI_LOOP: u32 = 1 << 5;
/// Mode bit: two lanes for sending.
pub const SPI_TX_DUAL: u32 = 1 << 8;
/// Mode bit: four lanes for sending.
pub const SPI_TX_QUAD: u32 = 1 << 9;
/// Mode bit: two lanes for receiving.
pub const SPI_RX_DUAL: u32 = 1 << 10;
/// Mode bit: four lanes for receiving.
pub const SPI_RX_QUAD: u32 = 1 << 11;
/// Mode bit: eight lanes for sending.
pub const SPI_TX_OCTAL: u32 = 1 << 13;
/// Mode bit: eight lanes for receiving.
pub const SPI_RX_OCTAL: u32 = 1 << 14;

/// `_IOC()` of `asm-generic/ioctl.h` for type 'k'.
const fn ioc(write: bool, nr: u32, size: u32) -> u32 {
    let direction = if write { 1u32 << 30 } else { 1u32 << 31 };
    direction | (size << 16) | (0x6b << 8) | nr
}

const RD_BITS_PER_WORD: u32 = ioc(false, 3, 1);
const WR_BITS_PER_WORD: u32 = ioc(true, 3, 1);
const RD_MAX_SPEED_HZ: u32 = ioc(false, 4, 4);
const RD_MODE32: u32 = ioc(false, 5, 4);
/// Request number of `SPI_IOC_WR_MODE32`.
pub const WR_MODE32: u32 = ioc(true, 5, 4);
/// Request number of `SPI_IOC_MESSAGE(0)`; n transfers add `n * 32 << 16`.
pub const MESSAGE_0: u32 = ioc(true, 0, 0);

const TRANSFER_LEN: u32 = 32;

/// `struct spi_ioc_transfer`.
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

const _: () = assert!(size_of::<SpiIocTransfer>() == 32);

/// What all transfers of a message have in common.
#[derive(Debug, Clone, Copy)]
pub struct Common {
    /// Clock in Hz, never 0: spidev would take the device's own, and a limit above it applies.
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
    /// A word that is cut in guest memory, in [`Message`]'s own storage.
    Word([u8; 4]),
}

/// The storage of a message, made once.
#[derive(Debug)]
pub struct Scratch {
    transfers: Box<[SpiIocTransfer; MAX_PIECES]>,
    tx_words: Box<[[u8; 4]; MAX_PIECES]>,
    rx_words: Box<[[u8; 4]; MAX_PIECES]>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            transfers: Box::new([SpiIocTransfer::default(); MAX_PIECES]),
            tx_words: Box::new([[0; 4]; MAX_PIECES]),
            rx_words: Box::new([[0; 4]; MAX_PIECES]),
        }
    }
}

/// A message in the making: transfers whose pointers lie in guest memory borrowed for `'m`.
#[derive(Debug)]
pub struct Message<'m> {
    scratch: &'m mut Scratch,
    count: usize,
    total: u32,
    common: Common,
    guest: PhantomData<Slice<'m>>,
}

impl<'m> Message<'m> {
    /// An empty message.
    pub fn new(scratch: &'m mut Scratch, common: Common) -> Self {
        Self {
            scratch,
            count: 0,
            total: 0,
            common,
            guest: PhantomData,
        }
    }

    /// Appends a transfer of `len` bytes.
    ///
    /// # Errors
    /// The message is full, or a buffer is shorter than `len`; the plan allows neither.
    pub fn push(
        &mut self,
        tx: &Buffer<'m>,
        rx: &Buffer<'m>,
        len: u32,
    ) -> Result<(), TransferError> {
        let index = self.count;
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
        let transfer = self
            .scratch
            .transfers
            .get_mut(index)
            .ok_or(TransferError::Memory)?;
        *transfer = SpiIocTransfer {
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
        };
        self.count = index.saturating_add(1);
        self.total = self.total.saturating_add(len);
        Ok(())
    }

    /// Appends a transfer of no bytes that only waits: a setup delay.
    ///
    /// # Errors
    /// The message is full.
    pub fn push_delay(&mut self, delay_usecs: u16) -> Result<(), TransferError> {
        self.push(&Buffer::Absent, &Buffer::Absent, 0)?;
        self.finish(false, delay_usecs);
        Ok(())
    }

    /// Sets what happens behind the last transfer: `delay_usecs`, and whether chip select stays
    /// asserted. On the last transfer of a message spidev's `cs_change` means that it stays.
    pub fn finish(&mut self, keep_chip_select: bool, delay_usecs: u16) {
        let last = self.count.checked_sub(1);
        if let Some(transfer) = last.and_then(|last| self.scratch.transfers.get_mut(last)) {
            transfer.cs_change = u8::from(keep_chip_select);
            transfer.delay_usecs = delay_usecs;
        }
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

/// What a device reported or was found to do at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// The mode as it was found.
    pub mode: u32,
    /// Which of [`SPI_CPHA`], [`SPI_CPOL`], [`SPI_LSB_FIRST`] and [`SPI_LOOP`] can be set.
    pub settable: u32,
    /// Lane bits that are set for good.
    pub lanes: u32,
    /// Bit n-1 stands for n bits per word.
    pub bits_per_word_mask: u32,
    /// Highest clock in Hz that the device may be given; 0 if the host does not say.
    pub max_speed_hz: u32,
}

/// An open spidev.
#[derive(Debug)]
pub struct Spidev {
    file: File,
    found_mode: u32,
    idle_mode: u32,
    mode: u32,
}

impl Spidev {
    /// Opens and locks the device at `path`, reads what it can do, and leaves it in the mode that
    /// it was found in, with its lanes enabled and its chip select released.
    ///
    /// # Errors
    /// It is not there, may not be used, is no spidev, or is another daemon's.
    pub fn open(path: &Path) -> Result<(Self, Capabilities), Fatal> {
        let name = format!("--device '{}'", path.display());
        // Whatever the path turns out to be, opening it must not wait or become our terminal.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(|e| Fatal::os(ExitCode::NoInput, &name, &e))?;
        file.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => {
                let why = "another process has it locked";
                Fatal::new(ExitCode::Unavailable, format!("{name}: {why}"))
            }
            TryLockError::Error(e) => Fatal::os(ExitCode::OsError, &name, &e),
        })?;
        let found_mode = read_u32(&file, RD_MODE32).map_err(|e| match e.raw_os_error() {
            Some(libc::ENOTTY) => {
                Fatal::new(ExitCode::NoInput, format!("{name}: not a spidev: {e}"))
            }
            _ => Fatal::os(ExitCode::NoInput, &name, &e),
        })?;
        let mut device = Self {
            file,
            found_mode,
            idle_mode: found_mode,
            mode: found_mode,
        };
        let capabilities = device
            .probe()
            .map_err(|e| Fatal::os(ExitCode::NoInput, &name, &e))?;
        Ok((device, capabilities))
    }

    /// The device's fd, for the seccomp filter and the way out.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// The mode that the device was found in.
    pub fn found_mode(&self) -> u32 {
        self.found_mode
    }

    /// The mode that the device is in between guests: as found, with its lanes.
    pub fn idle_mode(&self) -> u32 {
        self.idle_mode
    }

    /// The mode that the device is in.
    pub fn mode(&self) -> u32 {
        self.mode
    }

    /// Puts the device into `mode`, or releases its chip select if that is its mode already.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_mode(&mut self, mode: u32) -> io::Result<()> {
        write_mode(self.fd(), mode)?;
        self.mode = mode;
        Ok(())
    }

    /// Carries out `message`.
    ///
    /// # Errors
    /// The ioctl failed, or reported another length than the message has: chip select may then be
    /// in any state.
    pub fn transfer(&self, message: &Message<'_>) -> Result<(), TransferError> {
        let count = u32::try_from(message.count).map_err(|_| TransferError::Memory)?;
        let request = MESSAGE_0 | (count.saturating_mul(TRANSFER_LEN) << 16);
        let transfers = message.scratch.transfers.as_ptr();
        // SAFETY: the request number's size field covers `count` initialised transfers at
        // `transfers`. Their buffers are 0, words in `scratch`, or guest memory that `message`
        // borrows, each at least `len` long; the kernel copies from and to them and keeps none.
        let result = unsafe { libc::ioctl(self.fd(), request_number(request), transfers) };
        if result < 0 {
            return Err(TransferError::Ioctl(io::Error::last_os_error()));
        }
        if u32::try_from(result) != Ok(message.total) {
            return Err(TransferError::Short(result));
        }
        Ok(())
    }

    /// Finds out what cannot be read, with as few calls of `spi_setup()` as can be: a refused mode
    /// or word size costs none, since the kernel checks both before it touches the line.
    fn probe(&mut self) -> io::Result<Capabilities> {
        let max_speed_hz = read_u32(&self.file, RD_MAX_SPEED_HZ)?;
        let bits = read_u8(&self.file, RD_BITS_PER_WORD)?;
        let settable = self.probe_modes()?;
        let lanes = self.probe_lanes()?;
        let bits_per_word_mask =
            probe_word_sizes(bits, |bits| write_bits_per_word(&self.file, bits).is_ok());
        if bits_per_word_mask.count_ones() > 1 {
            write_bits_per_word(&self.file, bits)?;
        }
        // Also releases a line that a killed predecessor left asserted.
        self.idle_mode = self.found_mode | lanes;
        self.set_mode(self.idle_mode)?;
        Ok(Capabilities {
            mode: self.found_mode,
            settable,
            lanes,
            bits_per_word_mask,
            max_speed_hz,
        })
    }

    /// CS_HIGH is not tried: on a live bus it selects the device.
    fn probe_modes(&mut self) -> io::Result<u32> {
        const CLOCK: u32 = SPI_CPHA | SPI_CPOL;
        let sets = [
            CLOCK | SPI_LSB_FIRST | SPI_LOOP,
            CLOCK | SPI_LOOP,
            CLOCK | SPI_LSB_FIRST,
            CLOCK,
        ];
        for set in sets {
            if self.accepts(set)? {
                return Ok(set);
            }
        }
        let mut settable = 0;
        for bit in [SPI_CPHA, SPI_CPOL, SPI_LSB_FIRST, SPI_LOOP] {
            if self.accepts(bit)? {
                settable |= bit;
            }
        }
        Ok(settable)
    }

    fn accepts(&mut self, bits: u32) -> io::Result<bool> {
        match self.set_mode(self.found_mode | bits) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The lanes that the device tree gave the device, or else those that its controller keeps
    /// when they are set: the kernel drops the others without an error.
    fn probe_lanes(&mut self) -> io::Result<u32> {
        const DUAL: u32 = SPI_TX_DUAL | SPI_RX_DUAL;
        const QUAD: u32 = SPI_TX_QUAD | SPI_RX_QUAD;
        const OCTAL: u32 = SPI_TX_OCTAL | SPI_RX_OCTAL;
        const ALL: u32 = DUAL | QUAD | OCTAL;
        let found = self.found_mode & ALL;
        if found != 0 || self.found_mode & SPI_3WIRE != 0 {
            return Ok(found);
        }
        let mut lanes = 0;
        for set in [OCTAL, QUAD, DUAL] {
            // One count for each direction: the kernel refuses two.
            let missing = set & !same_direction(lanes);
            if missing == 0 || !self.accepts(missing)? {
                continue;
            }
            lanes |= read_u32(&self.file, RD_MODE32)? & missing;
        }
        Ok(lanes)
    }
}

/// All lane bits of the directions that `lanes` has a bit of.
fn same_direction(lanes: u32) -> u32 {
    let mut all = 0;
    for direction in [
        SPI_TX_DUAL | SPI_TX_QUAD | SPI_TX_OCTAL,
        SPI_RX_DUAL | SPI_RX_QUAD | SPI_RX_OCTAL,
    ] {
        if lanes & direction != 0 {
            all |= direction;
        }
    }
    all
}

/// Which word sizes `accepts` takes, as a mask; `current` is known to be one of them.
///
/// Each success is a call of `spi_setup()`, so ranges are not tried size by size: where the sizes
/// next to both ends are accepted too, so is all between, which holds for the masks of all
/// controller drivers in Linux. A size that is refused nevertheless fails before the wire.
fn probe_word_sizes(current: u8, mut accepts: impl FnMut(u8) -> bool) -> u32 {
    let mut known = |bits: u8| bits == current || accepts(bits);
    let low = (1..=current).find(|&bits| known(bits)).unwrap_or(current);
    let high = (current..=32)
        .rev()
        .find(|&bits| known(bits))
        .unwrap_or(current);
    let dense = high.saturating_sub(low) < 2
        || (known(low.saturating_add(1)) && known(high.saturating_sub(1)));
    (low..=high)
        .filter(|&bits| dense || bits == low || bits == high || known(bits))
        .filter_map(|bits| 1u32.checked_shl(u32::from(bits).checked_sub(1)?))
        .fold(0, |mask, bit| mask | bit)
}

/// Sets a device's mode, which also releases its chip select.
///
/// # Errors
/// The kernel's.
pub fn write_mode(fd: RawFd, mode: u32) -> io::Result<()> {
    // SAFETY: the request reads a u32 from `mode`. A stale `fd` can only give an error.
    let result = unsafe { libc::ioctl(fd, request_number(WR_MODE32), &raw const mode) };
    check(result)
}

fn write_bits_per_word(file: &File, bits: u8) -> io::Result<()> {
    let request = request_number(WR_BITS_PER_WORD);
    // SAFETY: the request reads a u8 from `bits`.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, &raw const bits) };
    check(result)
}

fn read_u32(file: &File, request: u32) -> io::Result<u32> {
    let mut value = 0u32;
    // SAFETY: the callers' requests write a u32 to `value`.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request_number(request), &raw mut value) };
    check(result).map(|()| value)
}

fn read_u8(file: &File, request: u32) -> io::Result<u8> {
    let mut value = 0u8;
    // SAFETY: the callers' requests write a u8 to `value`.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request_number(request), &raw mut value) };
    check(result).map(|()| value)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The C library's type for request numbers: unsigned long in glibc, int in musl.
#[allow(
    clippy::as_conversions,
    clippy::cast_possible_wrap,
    reason = "the same 32 bits either way"
)]
const fn request_number(request: u32) -> libc::Ioctl {
    request as libc::Ioctl
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the mask found and how many sizes were accepted in finding it.
    fn probe(current: u8, sizes: &[u8]) -> (u32, u32) {
        let mut setups = 0;
        let mask = probe_word_sizes(current, |bits| {
            let ok = sizes.contains(&bits);
            setups += u32::from(ok);
            ok
        });
        (mask, setups)
    }

    fn mask(sizes: &[u8]) -> u32 {
        sizes.iter().fold(0, |mask, bits| mask | 1 << (bits - 1))
    }

    #[test]
    fn probe_word_sizes_finds_sparse_sets_with_one_setup_each() {
        assert_eq!(probe(8, &[8]), (mask(&[8]), 0));
        assert_eq!(probe(8, &[8, 16]), (mask(&[8, 16]), 1));
        assert_eq!(probe(8, &[8, 9]), (mask(&[8, 9]), 1));
        assert_eq!(probe(8, &[8, 16, 32]).0, mask(&[8, 16, 32]));
        assert_eq!(probe(8, &[8, 12, 16, 24]).0, mask(&[8, 12, 16, 24]));
    }

    #[test]
    fn probe_word_sizes_finds_ranges_with_few_setups() {
        let all: Vec<u8> = (1..=32).collect();
        assert_eq!(probe(8, &all), (u32::MAX, 4));
        let range: Vec<u8> = (4..=16).collect();
        assert_eq!(probe(8, &range), (mask(&range), 4));
    }

    #[test]
    fn request_numbers_are_those_of_the_header() {
        // From a C program that includes <linux/spi/spidev.h>, x86_64 and aarch64.
        assert_eq!(RD_MODE32, 0x8004_6b05);
        assert_eq!(WR_MODE32, 0x4004_6b05);
        assert_eq!(RD_BITS_PER_WORD, 0x8001_6b03);
        assert_eq!(WR_BITS_PER_WORD, 0x4001_6b03);
        assert_eq!(RD_MAX_SPEED_HZ, 0x8004_6b04);
        assert_eq!(MESSAGE_0 | (32 << 16), 0x4020_6b00);
    }
}
