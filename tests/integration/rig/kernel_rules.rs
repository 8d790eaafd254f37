// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The rules of `drivers/spi/spidev.c` and of the checks in `drivers/spi/spi.c`, restated for the fake.
//!
//! Should: be as strict as Linux 7.x where a daemon could notice. Must not: touch the memory of a process or wait.

use super::record::Transfer;

pub const CPHA: u32 = 1 << 0;
pub const CPOL: u32 = 1 << 1;
pub const CS_HIGH: u32 = 1 << 2;
pub const LSB_FIRST: u32 = 1 << 3;
pub const THREE_WIRE: u32 = 1 << 4;
pub const LOOP: u32 = 1 << 5;
pub const NO_CS: u32 = 1 << 6;
pub const TX_DUAL: u32 = 1 << 8;
pub const TX_QUAD: u32 = 1 << 9;
pub const RX_DUAL: u32 = 1 << 10;
pub const RX_QUAD: u32 = 1 << 11;
pub const TX_OCTAL: u32 = 1 << 13;
pub const RX_OCTAL: u32 = 1 << 14;
const WIDE: u32 = TX_DUAL | TX_QUAD | TX_OCTAL | RX_DUAL | RX_QUAD | RX_OCTAL;
// All user-visible bits but CS_WORD (12) and MOSI_IDLE_HIGH (18): RX_CPHA_FLIP is 16, MOSI_IDLE_LOW 17, 3WIRE_HIZ 15.
const SPIDEV_MODES: u32 = 0xffff & !(1 << 12) | 1 << 16 | 1 << 17;

pub const RD_MODE: u32 = read(1, 1);
pub const RD_LSB_FIRST: u32 = read(2, 1);
pub const RD_BITS_PER_WORD: u32 = read(3, 1);
pub const RD_MAX_SPEED_HZ: u32 = read(4, 4);
pub const RD_MODE32: u32 = read(5, 4);
pub const WR_MODE: u32 = write(1, 1);
pub const WR_LSB_FIRST: u32 = write(2, 1);
pub const WR_BITS_PER_WORD: u32 = write(3, 1);
pub const WR_MAX_SPEED_HZ: u32 = write(4, 4);
pub const WR_MODE32: u32 = write(5, 4);

const fn read(nr: u32, size: u32) -> u32 {
    2 << 30 | size << 16 | (b'k' as u32) << 8 | nr
}

const fn write(nr: u32, size: u32) -> u32 {
    1 << 30 | size << 16 | (b'k' as u32) << 8 | nr
}

/// SPI_IOC_MESSAGE(n); from 512 on the size wraps to 0 as the macro of the header makes it.
pub const fn message(n: u32) -> u32 {
    write(0, if n < 512 { n * 32 } else { 0 })
}

/// A controller's limits (`struct spi_controller`).
#[derive(Clone, Debug)]
pub struct Controller {
    /// Modes it can do.
    pub mode_bits: u32,
    /// Bit n-1 for words of n bits; 0 when the driver does not say.
    pub bits_per_word_mask: u32,
    /// 0 when the driver does not say.
    pub max_speed_hz: u32,
    /// 0 when the driver does not say.
    pub min_speed_hz: u32,
    /// It cannot send and receive at once.
    pub half_duplex: bool,
    /// Lanes that its driver refuses with EINVAL, though it has others.
    pub refused_lanes: u32,
    /// Chip selects are GPIOs: CS_HIGH is hidden on reading and forced on writing.
    pub gpio_cs: bool,
}

impl Default for Controller {
    fn default() -> Self {
        Self {
            mode_bits: CPHA | CPOL | CS_HIGH | LSB_FIRST | LOOP,
            bits_per_word_mask: 1 << 7 | 1 << 15 | 1 << 31,
            max_speed_hz: 50_000_000,
            min_speed_hz: 0,
            half_duplex: false,
            refused_lanes: 0,
            gpio_cs: false,
        }
    }
}

/// What the kernel keeps of one device (`struct spi_device`, `struct spidev_data`).
#[derive(Clone, Debug)]
pub struct Device {
    pub mode: u32,
    pub bits_per_word: u8,
    /// The device tree's limit.
    pub max_speed_hz: u32,
    /// spidev's own, that SPI_IOC_WR_MAX_SPEED_HZ sets and RD_MAX_SPEED_HZ gives.
    pub speed_hz: u32,
}

/// `spi_setup()`: what the device then has, or EINVAL and nothing changed.
pub fn setup(mut device: Device, controller: &Controller) -> Result<Device, i32> {
    let mode = device.mode;
    let both = |a, b| mode & a != 0 && mode & b != 0;
    if both(TX_DUAL, TX_QUAD) || both(RX_DUAL, RX_QUAD) || both(THREE_WIRE, WIDE) {
        return Err(libc::EINVAL);
    }
    let bad = mode & !(controller.mode_bits | 1 << 12);
    device.mode &= !(bad & WIDE);
    if bad & !WIDE != 0 || mode & controller.refused_lanes != 0 {
        return Err(libc::EINVAL);
    }
    if device.bits_per_word == 0 {
        device.bits_per_word = 8;
    } else {
        check_word(device.bits_per_word, controller)?;
    }
    let ceiling = controller.max_speed_hz;
    if ceiling != 0 && (device.max_speed_hz == 0 || device.max_speed_hz > ceiling) {
        device.max_speed_hz = ceiling;
    }
    Ok(device)
}

/// What one of SPI_IOC_RD_* gives, and its size in bytes.
pub fn get(request: u32, device: &Device, controller: &Controller) -> Option<(u32, usize)> {
    let mut mode = device.mode & SPIDEV_MODES;
    if controller.gpio_cs {
        mode &= !CS_HIGH;
    }
    match request {
        RD_MODE => Some((mode & 0xff, 1)),
        RD_MODE32 => Some((mode, 4)),
        RD_LSB_FIRST => Some((u32::from(device.mode & LSB_FIRST != 0), 1)),
        RD_BITS_PER_WORD => Some((device.bits_per_word.into(), 1)),
        RD_MAX_SPEED_HZ => Some((device.speed_hz, 4)),
        _ => None,
    }
}

/// Size of the argument of one of SPI_IOC_WR_*.
pub fn argument_len(request: u32) -> Option<usize> {
    match request {
        WR_MODE | WR_LSB_FIRST | WR_BITS_PER_WORD => Some(1),
        WR_MODE32 | WR_MAX_SPEED_HZ => Some(4),
        _ => None,
    }
}

/// One of SPI_IOC_WR_*: the device after `spi_setup()`, or the errno.
pub fn set(
    request: u32,
    value: u32,
    device: &Device,
    controller: &Controller,
) -> Result<Device, i32> {
    let mut next = device.clone();
    match request {
        WR_MODE | WR_MODE32 => {
            if value & !SPIDEV_MODES != 0 {
                return Err(libc::EINVAL);
            }
            let forced = if controller.gpio_cs { CS_HIGH } else { 0 };
            next.mode = value | forced | device.mode & !SPIDEV_MODES;
        }
        WR_LSB_FIRST if value != 0 => next.mode |= LSB_FIRST,
        WR_LSB_FIRST => next.mode &= !LSB_FIRST,
        WR_BITS_PER_WORD => next.bits_per_word = value as u8,
        WR_MAX_SPEED_HZ => {
            if value == 0 {
                return Err(libc::EINVAL);
            }
            next.max_speed_hz = value;
            // The device tree's limit stays; only spidev's default for a transfer changes, unclamped.
            let done = setup(next, controller)?;
            return Ok(Device {
                max_speed_hz: device.max_speed_hz,
                speed_hz: value,
                ..done
            });
        }
        _ => return Err(libc::ENOTTY),
    }
    setup(next, controller)
}

/// The bounce buffers: the index of the first transfer with which the rounded lengths of either direction exceed
/// `bufsiz`. The kernel finds it while it copies, so the tx of those before it has been read by then.
pub fn fits(transfers: &[Transfer], bufsiz: u32, align: u32) -> Result<(), usize> {
    let (mut tx, mut rx, mut total) = (0u64, 0u64, 0u64);
    for (n, transfer) in transfers.iter().enumerate() {
        let rounded = u64::from(transfer.len).next_multiple_of(align.into());
        total += u64::from(transfer.len);
        if transfer.rx_buf != 0 {
            rx += rounded;
        }
        if transfer.tx_buf != 0 {
            tx += rounded;
        }
        if total > i32::MAX as u64 || tx > bufsiz.into() || rx > bufsiz.into() {
            return Err(n);
        }
    }
    Ok(())
}

/// `__spi_validate()`.
pub fn validate(
    transfers: &[Transfer],
    device: &Device,
    controller: &Controller,
) -> Result<(), i32> {
    for transfer in transfers {
        let (tx, rx) = (transfer.tx_buf != 0, transfer.rx_buf != 0);
        if (controller.half_duplex || device.mode & THREE_WIRE != 0) && tx && rx {
            return Err(libc::EINVAL);
        }
        let bits = if transfer.bits_per_word == 0 {
            device.bits_per_word
        } else {
            transfer.bits_per_word
        };
        check_word(bits, controller)?;
        if !transfer.len.is_multiple_of(word_size(bits)) {
            return Err(libc::EINVAL);
        }
        let hz = speed(transfer, device, controller);
        if hz != 0 && hz < controller.min_speed_hz {
            return Err(libc::EINVAL);
        }
        let wide = |nbits, dual, quad, octal| match nbits {
            0 | 1 => true,
            2 => device.mode & (dual | quad | octal) != 0,
            4 => device.mode & (quad | octal) != 0,
            8 => device.mode & octal != 0,
            _ => false,
        };
        if tx && !wide(transfer.tx_nbits, TX_DUAL, TX_QUAD, TX_OCTAL)
            || rx && !wide(transfer.rx_nbits, RX_DUAL, RX_QUAD, RX_OCTAL)
        {
            return Err(libc::EINVAL);
        }
    }
    Ok(())
}

/// The clock one transfer really gets; 0 when nobody says.
pub fn speed(transfer: &Transfer, device: &Device, controller: &Controller) -> u32 {
    let asked = [transfer.speed_hz, device.speed_hz, device.max_speed_hz];
    let asked = asked.into_iter().find(|hz| *hz != 0).unwrap_or(0);
    if controller.max_speed_hz != 0 {
        asked.min(controller.max_speed_hz)
    } else {
        asked
    }
}

/// Bytes of memory one word of `bits` takes.
pub fn word_size(bits: u8) -> u32 {
    match bits {
        0..=8 => 1,
        9..=16 => 2,
        _ => 4,
    }
}

fn check_word(bits: u8, controller: &Controller) -> Result<(), i32> {
    let mask = controller.bits_per_word_mask;
    if mask != 0 && (bits > 32 || bits == 0 || mask & 1 << (bits - 1) == 0) {
        return Err(libc::EINVAL);
    }
    Ok(())
}
