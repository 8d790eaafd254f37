// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Linux's spidev: the ioctls of `include/uapi/linux/spi/spidev.h`, as `drivers/spi/spidev.c` carries them
//! out.
//!
//! Owns the device fd, and knows which mode was set last.
//!
//! Every `SPI_IOC_WR_*` makes the kernel call `spi_setup()`, which forces chip select off. So after the
//! start only `WR_MODE32` is used: to set another mode between two assertions, or, with the unchanged
//! value, to release a line.
//!
//! Must not: know VIRTIO. Called by `device`, `probe` and `transfer`; `emergency_cleanup` calls
//! [`write_mode`].

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::error::{ExitCode, Fatal, TransferError};
use crate::os::ffi;
use crate::spi::message::{SpiIocTransfer, SpiMessage};

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
/// `SPI_TX_OCTAL`, `SPI_TX_QUAD` and `SPI_TX_DUAL`: the mode bits of so many lanes for sending.
pub const SPI_TX_LANES: [(u8, u32); 3] = [(8, 1 << 13), (4, 1 << 9), (2, 1 << 8)];
/// `SPI_RX_OCTAL`, `SPI_RX_QUAD` and `SPI_RX_DUAL`: the mode bits of so many lanes for receiving.
pub const SPI_RX_LANES: [(u8, u32); 3] = [(8, 1 << 14), (4, 1 << 11), (2, 1 << 10)];

/// `_IOC()` of `asm-generic/ioctl.h` for type 'k'.
const fn ioc(write: bool, nr: u32, size: u32) -> u32 {
    let direction = if write { 1u32 << 30 } else { 1u32 << 31 };
    direction | (size << 16) | (0x6b << 8) | nr
}

/// The number of an ioctl that reads or writes a setting of `LEN` bytes. It contains `LEN`.
#[derive(Debug, Clone, Copy)]
pub struct Setting<const LEN: usize>(u32);

const RD_BITS_PER_WORD: Setting<1> = Setting(ioc(false, 3, 1));
const WR_BITS_PER_WORD: Setting<1> = Setting(ioc(true, 3, 1));
/// The highest clock that the device may be given.
pub const RD_MAX_SPEED_HZ: Setting<4> = Setting(ioc(false, 4, 4));
/// The mode as the kernel has it.
pub const RD_MODE32: Setting<4> = Setting(ioc(false, 5, 4));
/// Request number of `SPI_IOC_WR_MODE32`.
pub const WR_MODE32: u32 = ioc(true, 5, 4);
/// Request number of `SPI_IOC_MESSAGE(0)`; n transfers add `n * 32 << 16`.
pub const MESSAGE_0: u32 = ioc(true, 0, 0);

const _: () = assert!(size_of::<SpiIocTransfer>() == 32);

/// An open spidev.
#[derive(Debug)]
pub struct Spidev {
    file: File,
    /// Which device it is: see [`identity`].
    identity: (u64, u64),
    found_mode: u32,
    mode: u32,
}

impl Spidev {
    /// Opens and locks the device at `path`, which errors call `name`. `others` are the devices opened before
    /// it, with their names.
    ///
    /// # Errors
    /// It is not there, may not be used, is not a spidev, is one of the others, or is another
    /// daemon's.
    pub fn open<'a>(
        path: &Path,
        name: &str,
        mut others: impl Iterator<Item = (&'a str, &'a Self)>,
    ) -> Result<Self, Fatal> {
        // Whatever the path turns out to be, opening it must not wait or become our terminal.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(|e| cannot_open(path, name, &e))?;
        let failed = |error: io::Error| Fatal::os(ExitCode::OsError, name, &error);
        let identity = identity(&file).map_err(failed)?;
        if let Some((other, _)) = others.find(|(_, other)| other.identity == identity) {
            let why = format!("{name}: is the same device as '{other}'");
            return Err(Fatal::new(ExitCode::Usage, why));
        }
        // A lock (`flock`) tells other daemons, but nobody else, that the device is in use.
        if !ffi::try_lock(file.as_raw_fd()).map_err(failed)? {
            let why = format!(
                "{name}: in use by another process; one daemon serves all guests of a device"
            );
            return Err(Fatal::new(ExitCode::Unavailable, why));
        }
        let found = setting(file.as_raw_fd(), RD_MODE32, [0; 4]).map(u32::from_ne_bytes);
        let found_mode = found.map_err(|e| {
            let is_spidev = e.raw_os_error() != Some(libc::ENOTTY);
            let what = if is_spidev {
                ""
            } else {
                ": not a spidev (/dev/spidevX.Y)"
            };
            Fatal::os(ExitCode::NoInput, format_args!("{name}{what}"), &e)
        })?;
        Ok(Self {
            file,
            identity,
            found_mode,
            mode: found_mode,
        })
    }

    /// The device's fd, for the seccomp filter and the emergency clean-up.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// The mode that the device was found in.
    pub fn found_mode(&self) -> u32 {
        self.found_mode
    }

    /// Reads a setting of 32 bits: [`RD_MODE32`], or [`RD_MAX_SPEED_HZ`], which is 0 where the host does
    /// not say.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read(&self, request: Setting<4>) -> io::Result<u32> {
        setting(self.fd(), request, [0; 4]).map(u32::from_ne_bytes)
    }

    /// The word size in bits that the device is set to.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read_bits_per_word(&self) -> io::Result<u8> {
        let [bits] = setting(self.fd(), RD_BITS_PER_WORD, [0])?;
        // 0 stands for 8 (Linux, Documentation/spi/spidev.rst).
        Ok(if bits == 0 { 8 } else { bits })
    }

    /// Sets the word size in bits, which also releases chip select.
    ///
    /// # Errors
    /// The kernel's; `EINVAL` for a size that the controller does not have.
    pub fn write_bits_per_word(&self, bits: u8) -> io::Result<()> {
        setting(self.fd(), WR_BITS_PER_WORD, [bits]).map(drop)
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

    /// Carries out `message`, whose transfers have `len` bytes together.
    ///
    /// # Errors
    /// The ioctl failed, or reported another length than the message has: chip select may then be
    /// in any state.
    pub fn transfer(&self, message: &SpiMessage<'_>, len: u32) -> Result<(), TransferError> {
        let transfers = message.transfers();
        let size = u32::try_from(size_of_val(transfers)).map_err(|_| TransferError::Memory)?;
        let request = MESSAGE_0 | (size << 16);
        // SAFETY: the request number's size field covers the initialised transfers at
        // `transfers`. Their buffers are 0, words in the scratch, a lead, or guest memory, all of which
        // `message` borrows, each at least as long as its transfer; the kernel copies from and to them and
        // keeps none. It does not write to a lead, which is tx.
        let result = unsafe { libc::ioctl(self.fd(), request_number(request), transfers.as_ptr()) };
        match u32::try_from(result) {
            Ok(carried_out) if carried_out == len => Ok(()),
            Ok(_) => Err(TransferError::Short(result)),
            Err(_) => Err(TransferError::Ioctl(io::Error::last_os_error())),
        }
    }
}

/// Which device of the host a file is, whatever path led to it: its device number, or, if it has none,
/// the file's own device and inode.
fn identity(file: &File) -> io::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok(match metadata.rdev() {
        0 => (metadata.dev(), metadata.ino()),
        device => (0, device),
    })
}

/// The error of a device that cannot be opened, with the most frequent cause as the remedy.
#[cold]
fn cannot_open(path: &Path, name: &str, error: &io::Error) -> Fatal {
    let remedy = match error.raw_os_error() {
        Some(libc::ENOENT) if !path.as_os_str().as_bytes().contains(&b'/') => {
            "; expected /dev/spidevX.Y or 'loopback'"
        }
        Some(libc::ENOENT) => "; is the device bound to spidev?",
        Some(libc::EACCES) => "; the daemon's user must be able to read and write it",
        Some(_) | None => "",
    };
    let fatal = Fatal::os(ExitCode::NoInput, name, error);
    Fatal::new(fatal.code, fatal.message + remedy)
}

impl Drop for Spidev {
    /// Leaves the device in the mode that it was found in.
    fn drop(&mut self) {
        if self.mode != self.found_mode {
            // There is nothing left to do about a device that refuses.
            let _ = self.set_mode(self.found_mode);
        }
    }
}

/// Sets a device's mode, which also releases its chip select.
///
/// # Errors
/// The kernel's.
pub fn write_mode(fd: RawFd, mode: u32) -> io::Result<()> {
    setting(fd, Setting(WR_MODE32), mode.to_ne_bytes()).map(drop)
}

/// Reads or writes a setting; its value afterwards.
fn setting<const LEN: usize>(
    fd: RawFd,
    request: Setting<LEN>,
    mut value: [u8; LEN],
) -> io::Result<[u8; LEN]> {
    let number = request_number(request.0);
    // SAFETY: a `Setting` of this length reads or writes as many bytes at `value`. A stale `fd` can
    // only give an error.
    if unsafe { libc::ioctl(fd, number, value.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value)
}

/// The C library's type for request numbers: unsigned long in glibc, int in musl.
#[allow(clippy::as_conversions, reason = "the same 32 bits either way")]
const fn request_number(request: u32) -> libc::Ioctl {
    request as libc::Ioctl
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_numbers_are_those_of_the_header() {
        // From a C program that includes <linux/spi/spidev.h>, x86_64 and aarch64.
        assert_eq!(RD_MODE32.0, 0x8004_6b05);
        assert_eq!(WR_MODE32, 0x4004_6b05);
        assert_eq!(RD_BITS_PER_WORD.0, 0x8001_6b03);
        assert_eq!(WR_BITS_PER_WORD.0, 0x4001_6b03);
        assert_eq!(RD_MAX_SPEED_HZ.0, 0x8004_6b04);
        assert_eq!(MESSAGE_0 | (32 << 16), 0x4020_6b00);
    }
}
