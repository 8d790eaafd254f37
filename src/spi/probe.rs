// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a spidev can do, found out at start.
//!
//! Mode, word size and speed can be read; other modes and word sizes must be tried. Each try that the
//! kernel accepts calls `spi_setup()`, which drives chip select to its released level. Chip select is
//! released first, so that this makes no edge. A mode may also change the level of the idle clock, so as
//! few modes as possible are tried. All that was changed is restored.
//!
//! Called by `device`.

use std::io;

use crate::spi::spidev::{
    RD_MAX_SPEED_HZ, RD_MODE32, SPI_3WIRE, SPI_CPHA, SPI_CPOL, SPI_LOOP, SPI_LSB_FIRST,
    SPI_RX_LANES, SPI_TX_LANES, Spidev,
};
use crate::spi::wire::word_size_bit;

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

/// Finds out what `device` can do, and leaves it in the mode that it was found in, with its lanes
/// enabled and its chip select released.
///
/// # Errors
/// The kernel's.
pub fn probe(device: &mut Spidev) -> io::Result<Capabilities> {
    // A line that a killed predecessor left asserted is released before anything else changes.
    if !accepts(device, 0)? {
        set_any_word_size(device)?;
        device.set_mode(device.found_mode())?;
    }
    let max_speed_hz = device.read(RD_MAX_SPEED_HZ)?;
    let bits = device.read_bits_per_word()?;
    let settable = probe_modes(device)?;
    let lanes = probe_lanes(device)?;
    let word_sizes = probe_word_sizes(bits, |bits| accepted(device.write_bits_per_word(bits)))?;
    if word_sizes.count_ones() > 1 {
        device.write_bits_per_word(bits)?;
    }
    device.set_mode(device.found_mode() | lanes)?;
    Ok(Capabilities {
        mode: device.found_mode(),
        settable,
        lanes,
        bits_per_word_mask: word_sizes,
        max_speed_hz,
    })
}

/// Linux gives a new device words of 8 bits without asking its controller. If the controller lacks them,
/// the kernel refuses every mode until the device has a word size that the controller does have.
fn set_any_word_size(device: &Spidev) -> io::Result<()> {
    for bits in 1..=32 {
        if accepted(device.write_bits_per_word(bits))? {
            break;
        }
    }
    Ok(())
}

/// CS_HIGH is not tried: on a live bus it selects the device.
fn probe_modes(device: &mut Spidev) -> io::Result<u32> {
    const CLOCK: u32 = SPI_CPHA | SPI_CPOL;
    let sets = [
        CLOCK | SPI_LSB_FIRST | SPI_LOOP,
        CLOCK | SPI_LOOP,
        CLOCK | SPI_LSB_FIRST,
        CLOCK,
    ];
    for set in sets {
        if accepts(device, set)? {
            return Ok(set);
        }
    }
    let mut settable = 0;
    for bit in [SPI_CPHA, SPI_CPOL, SPI_LSB_FIRST, SPI_LOOP] {
        if accepts(device, bit)? {
            settable |= bit;
        }
    }
    Ok(settable)
}

fn accepts(device: &mut Spidev, bits: u32) -> io::Result<bool> {
    accepted(device.set_mode(device.found_mode() | bits))
}

/// Whether the kernel accepted a try. It refuses with `EINVAL`; any other error does not answer that.
fn accepted(tried: io::Result<()>) -> io::Result<bool> {
    match tried {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The lanes that the device tree gave the device, or else those that its controller keeps when
/// they are set: the kernel drops the others without an error.
fn probe_lanes(device: &mut Spidev) -> io::Result<u32> {
    let all = |lanes: [(u8, u32); 3]| lanes.iter().fold(0, |all, (_, bit)| all | bit);
    let (all_tx, all_rx) = (all(SPI_TX_LANES), all(SPI_RX_LANES));
    let found = device.found_mode() & (all_tx | all_rx);
    if found != 0 || device.found_mode() & SPI_3WIRE != 0 {
        return Ok(found);
    }
    let mut lanes = 0;
    for ((_, tx), (_, rx)) in SPI_TX_LANES.into_iter().zip(SPI_RX_LANES) {
        // One count for each direction: the kernel refuses two.
        let missing_tx = if lanes & all_tx == 0 { tx } else { 0 };
        let missing_rx = if lanes & all_rx == 0 { rx } else { 0 };
        let missing = missing_tx | missing_rx;
        if missing != 0 && accepts(device, missing)? {
            lanes |= device.read(RD_MODE32)? & missing;
        }
    }
    Ok(lanes)
}

/// Which word sizes `accepts` takes, as a mask; `current`, which the device is set to, is one of
/// them. All are tried: a size that is offered and that the controller lacks would break a MUST of
/// VIRTIO. With chip select released, none of the calls of `spi_setup()` makes an edge.
fn probe_word_sizes(
    current: u8,
    mut accepts: impl FnMut(u8) -> io::Result<bool>,
) -> io::Result<u32> {
    let mut mask = 0;
    for bits in 1..=32u8 {
        if bits == current || accepts(bits)? {
            mask |= word_size_bit(bits);
        }
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_word_sizes_tries_all_but_the_one_that_is_set() {
        for sizes in [&[8u8][..], &[8, 9, 15, 16], &[1, 8, 32], &[7, 8, 9]] {
            let mut tried = Vec::new();
            let found = probe_word_sizes(8, |bits| {
                tried.push(bits);
                Ok(sizes.contains(&bits))
            });
            let mask = sizes.iter().fold(0, |mask, bits| mask | 1 << (bits - 1));
            assert_eq!(found.unwrap(), mask);
            assert!(tried.iter().copied().eq((1..=32).filter(|&bits| bits != 8)));
        }
    }

    #[test]
    fn probe_word_sizes_ends_with_an_error_that_says_nothing_of_the_size() {
        let found = probe_word_sizes(8, |_| Err(io::Error::from_raw_os_error(libc::EIO)));
        assert!(found.is_err());
    }
}
