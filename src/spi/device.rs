// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One chip select of the host: a spidev or the built-in loopback, and the limits of its requests.
//!
//! A device is made at the start from the command line and from what was found out about it. Later
//! only its state changes: the mode it is in and whose that is, the chip select line, the end of an
//! inactive delay, and whether it failed.
//!
//! Invariant: `line` is `Released` only if the last message or a mode that was set released it, or the
//! device was gone or suspended before its line was touched.
//! Must not: know rings, or which guest may use the bus. Called by `bus` and `transfer`.

use std::io;
use std::time::{Duration, Instant};

use crate::config::{DeviceConfig, DevicePath, GuestNumber, TransferConfig};
use crate::error::{ExitCode, Fatal};
use crate::spi::framing::{Chip, Framed};
use crate::spi::loopback::{self, Loopback};
use crate::spi::probe::{Capabilities, probe};
use crate::spi::spidev::{
    SPI_3WIRE, SPI_CPHA, SPI_CPOL, SPI_CS_HIGH, SPI_LOOP, SPI_LSB_FIRST, SPI_RX_LANES,
    SPI_TX_LANES, Spidev,
};
use crate::spi::wire::{self, Limits, TransferHead};

/// Longest inactive delay, a deadline of the loop. Other guests of the chip select wait it out too.
const MAX_CS_INACTIVE_NS: u32 = 40_000_000;
/// Longest delay between words: all that `word_delay_usecs` (8 bits of microseconds) can hold.
const MAX_WORD_DELAY_NS: u32 = 255_000;
/// Largest `ARCH_DMA_MINALIGN` of any architecture (arm64), which spidev charges for each length.
/// To charge the largest everywhere costs at worst one ioctl more, for a request in many pieces.
const DMA_MINALIGN: u32 = 128;
/// The same where `bufsiz` is smaller than that: x86_64's own.
const SMALL_MINALIGN: u32 = 8;

/// The mode bits that a request (VIRTIO 1.4, "SPI Controller Device / Device Operation") and spidev have
/// in the same place: all but LOOP, which is one bit higher in spidev.
const SAME_BITS: u32 = SPI_CPHA | SPI_CPOL | SPI_CS_HIGH | SPI_LSB_FIRST;
const _: () = assert!(SAME_BITS | wire::LOOP == wire::MODE_MASK && SPI_LOOP == wire::LOOP << 1);

/// How a device is reached.
#[derive(Debug)]
pub enum Port {
    /// A spidev of the host.
    Spidev(Spidev),
    /// The built-in loopback.
    Loopback(Loopback),
}

/// A chip select of the host.
#[derive(Debug)]
pub struct Device {
    /// As on the command line, for the log.
    pub name: String,
    /// How it is reached.
    pub port: Port,
    /// What a request may ask of it.
    pub limits: Limits,
    /// spidev's `bufsiz` in bytes.
    pub bufsiz: u32,
    /// The chip, if its commands are known.
    pub chip: Option<Chip>,
    /// Mode bits that requests do not choose.
    fixed_mode: u32,
    /// The mode that it is in between guests.
    idle_mode: u32,
    /// Nanoseconds of the last request's inactive delay.
    pub inactive_ns: u32,
    /// The earliest start of the next transfer, for the sake of an inactive delay.
    not_before: Option<Instant>,
    /// It failed with `ESHUTDOWN` last time, and the log says so already.
    down: bool,
    /// The chip select line, as the last message left it.
    pub line: Line,
    mode_of: ModeOf,
}

/// The chip select line, as far as its device's messages tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// Nothing is selected.
    Released,
    /// A message failed because the device was gone or suspended: it was not touched. A release is
    /// tried all the same, and if that fails too, the line counts as released.
    Untouched,
    /// It is, or may be, asserted.
    Asserted,
}

/// Whose mode a device is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ModeOf {
    /// Nobody's: as found, with its lanes.
    Nobody,
    /// That of the guest that used it last.
    Guest(GuestNumber),
    /// That of a guest that has left: the idle mode is to be restored.
    RestorePending,
}

impl Device {
    /// Opens the device of `config`. `others` are the devices opened before it.
    ///
    /// # Errors
    /// A spidev that cannot be opened, is locked by another process, is one of the others, or has no
    /// known or no useful limit of speed.
    pub fn open(
        config: &DeviceConfig,
        transfers: &TransferConfig,
        bufsiz: u32,
        others: &[&Self],
    ) -> Result<Self, Fatal> {
        let option = config.option();
        let (port, found, bufsiz) = match &config.path {
            DevicePath::Loopback => {
                let port = Port::Loopback(Loopback::new(config.faults));
                (port, loopback::FOUND, loopback::MESSAGE_LEN)
            }
            DevicePath::Spidev(path) => {
                let others = others.iter().filter_map(|other| match &other.port {
                    Port::Spidev(spidev) => Some((&*other.name, spidev)),
                    Port::Loopback(_) => None,
                });
                let mut spidev = Spidev::open(path, &option, others)?;
                let found = probe(&mut spidev);
                let found = found.map_err(|e| Fatal::os(ExitCode::NoInput, &option, &e))?;
                (Port::Spidev(spidev), found, bufsiz)
            }
        };
        let mut limits = limits(config, transfers, &found);
        if config.chip.is_some() {
            limits.narrow_to_bytes();
        }
        check_speed(&limits)
            .map_err(|why| Fatal::new(ExitCode::Config, format!("{option}: {why}")))?;
        Ok(Self {
            name: config.name.clone(),
            port,
            limits,
            bufsiz,
            chip: config.chip.clone().map(Chip::new),
            fixed_mode: fixed_mode(config, &found),
            idle_mode: found.mode | found.lanes,
            inactive_ns: 0,
            not_before: None,
            down: false,
            line: Line::Released,
            mode_of: ModeOf::Nobody,
        })
    }

    /// spidev counts the length of each transfer rounded up to this many bytes
    /// (`spidev_message()` in Linux `drivers/spi/spidev.c`).
    pub fn align(&self) -> u32 {
        if self.bufsiz >= DMA_MINALIGN {
            DMA_MINALIGN
        } else {
            SMALL_MINALIGN
        }
    }

    /// spidev's mode for a request.
    pub fn mode_for(&self, head: &TransferHead) -> u32 {
        self.fixed_mode | head.mode & SAME_BITS | (head.mode & wire::LOOP) << 1
    }

    /// Puts the device into `mode`; no system call if it is in it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn use_mode(&mut self, mode: u32) -> io::Result<()> {
        match &mut self.port {
            Port::Spidev(spidev) if spidev.mode() != mode => spidev.set_mode(mode),
            Port::Spidev(_) | Port::Loopback(_) => Ok(()),
        }
    }

    /// Releases the chip select, which may be asserted; `now` moves on by the time that this takes.
    ///
    /// # Errors
    /// The kernel's; the line is then as it was.
    pub fn release(&mut self, now: &mut Instant) -> io::Result<()> {
        if let Port::Spidev(spidev) = &mut self.port {
            let released = spidev.set_mode(spidev.mode());
            *now = Instant::now();
            if self.line == Line::Asserted {
                released?;
            }
        }
        self.note_release(*now);
        Ok(())
    }

    /// Chip select was released: it stays so for the inactive delay.
    pub fn note_release(&mut self, now: Instant) {
        self.line = Line::Released;
        let ns = Some(self.inactive_ns).filter(|&ns| ns > 0);
        self.not_before = ns.and_then(|ns| now.checked_add(Duration::from_nanos(ns.into())));
    }

    /// A transfer of `guest` begins.
    pub fn set_user(&mut self, guest: GuestNumber) {
        self.mode_of = ModeOf::Guest(guest);
    }

    /// `guest` has left: the idle mode is to be restored if the device is in that guest's.
    pub fn forget_user(&mut self, guest: GuestNumber) {
        if self.mode_of == ModeOf::Guest(guest) {
            self.mode_of = ModeOf::RestorePending;
        }
    }

    /// A request was carried out, or ended after the chip may have seen it.
    pub fn note_outcome(&mut self, framed: Option<&Framed>, carried_out: bool) {
        if let (Some(chip), Some(framed)) = (&mut self.chip, framed) {
            chip.note_outcome(framed, carried_out);
        }
    }

    /// Puts the device back into its idle mode, if that is pending. A failure is not reported: the next
    /// transfer sets its own mode, and fails.
    pub fn restore_idle_mode(&mut self) {
        if self.mode_of == ModeOf::RestorePending {
            self.mode_of = ModeOf::Nobody;
            let _ = self.use_mode(self.idle_mode);
        }
    }

    /// Notes whether a transfer failed because the device is gone or suspended. Returns whether that was
    /// known before.
    pub fn set_down(&mut self, down: bool) -> bool {
        std::mem::replace(&mut self.down, down) && down
    }

    /// When the inactive delay is over, if it is not.
    pub fn inactive_until(&self, now: Instant) -> Option<Instant> {
        self.not_before.filter(|&at| at > now)
    }
}

/// What a request may ask of a device: what was found, narrowed by the administrator. A delay is
/// offered where the administrator says that the controller carries it out: spidev reports success for
/// one that its controller ignores.
fn limits(config: &DeviceConfig, transfers: &TransferConfig, found: &Capabilities) -> Limits {
    let offered = |is_carried_out, max| if is_carried_out { max } else { 0 };
    let max_message_ns = transfers.max_message_ms.saturating_mul(1_000_000);
    // Delays around the words are parts of the message: `delay_usecs` has 16 bits of microseconds for them.
    let fifths = |n: u64| u32::try_from((max_message_ns / 5).saturating_mul(n)).unwrap_or(u32::MAX);
    Limits {
        mode_mask: mode_mask(config, found),
        bits_per_word_mask: found.bits_per_word_mask,
        tx_lanes: most_lanes(found.lanes, SPI_TX_LANES),
        rx_lanes: most_lanes(found.lanes, SPI_RX_LANES),
        min_speed_hz: config.min_speed_hz,
        max_speed_hz: config.max_speed_hz.unwrap_or(found.max_speed_hz),
        max_word_delay_ns: offered(config.word_delay, MAX_WORD_DELAY_NS),
        max_cs_setup_ns: offered(config.cs_setup, fifths(1)),
        max_cs_hold_ns: fifths(2),
        max_cs_inactive_ns: MAX_CS_INACTIVE_NS,
        half_duplex: found.mode & SPI_3WIRE != 0,
        max_transfer_len: transfers.max_len,
        max_transfer_ns: transfers.max_ms.saturating_mul(1_000_000),
        max_message_ns,
    }
}

/// Why a device with these limits of speed cannot be served.
fn check_speed(limits: &Limits) -> Result<(), String> {
    let (min, max) = (limits.min_speed_hz, limits.max_speed_hz);
    let ms = limits.max_message_ns / 1_000_000;
    // Of the shortest word.
    let bits = limits.bits_per_word_mask.trailing_zeros().saturating_add(1);
    if max == 0 {
        Err("reports no limit of its speed; set max-speed-hz".to_owned())
    } else if wire::bits_ns(bits, max) > limits.max_message_ns {
        Err(format!(
            "is too slow: at its limit of {max} Hz a word of {bits} bits takes more than {ms} ms \
             (--max-message-ms)"
        ))
    } else if min > max {
        Err(format!("min-speed-hz {min} is above the limit of {max} Hz"))
    } else {
        Ok(())
    }
}

/// The mode bits of VIRTIO that a request may set. An active-high chip select is offered where the
/// device has it, though it cannot be turned off there: see [`fixed_mode`].
fn mode_mask(config: &DeviceConfig, found: &Capabilities) -> u32 {
    let mut allowed = found.settable;
    if config.loop_mode == Some(false) {
        allowed &= !SPI_LOOP;
    }
    if config.cs_high.unwrap_or(found.mode & SPI_CS_HIGH != 0) {
        allowed |= SPI_CS_HIGH;
    }
    allowed & SAME_BITS | (allowed & SPI_LOOP) >> 1
}

/// The most lanes of one direction that are in `mode`: a device also does with fewer (`__spi_validate()`
/// in Linux `drivers/spi/spi.c`).
fn most_lanes(mode: u32, lanes: [(u8, u32); 3]) -> u8 {
    let mut found = lanes.iter().filter(|(_, bit)| mode & bit != 0);
    found.next().map_or(1, |(count, _)| *count)
}

/// The mode bits that requests do not choose. The polarity of chip select is one of them, unless the
/// administrator gave it to the guests: on a shared bus a guest that inverted it would select its
/// device during the transfers of all others.
fn fixed_mode(config: &DeviceConfig, found: &Capabilities) -> u32 {
    let mut chosen = SPI_CPHA | SPI_CPOL | SPI_LSB_FIRST | SPI_LOOP;
    if config.cs_high == Some(true) {
        chosen |= SPI_CS_HIGH;
    }
    (found.mode & !chosen) | found.lanes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Faults;
    use crate::start::cli::parse_config;

    const TX_QUAD: u32 = 1 << 9;
    const RX_DUAL: u32 = 1 << 10;
    const TRANSFERS: TransferConfig = TransferConfig {
        max_len: 1,
        max_ms: 1,
        max_message_ms: 100,
    };

    fn config(options: &str) -> DeviceConfig {
        let argument = format!("--device=/dev/spidev0.0{options}");
        let arguments = ["--socket-path=s".to_owned(), argument];
        let config = parse_config(arguments).unwrap();
        config.devices[0].clone()
    }

    fn found(mode: u32) -> Capabilities {
        Capabilities {
            mode,
            settable: SPI_CPHA | SPI_CPOL | SPI_LOOP,
            lanes: TX_QUAD | RX_DUAL,
            bits_per_word_mask: 1 << 7,
            max_speed_hz: 1_000_000,
        }
    }

    #[test]
    fn mode_of_a_request_maps_loop_and_keeps_what_is_the_hosts() {
        let loopback = &parse_config(["-s", "s", "-l", "loopback"]).unwrap().devices[0];
        let common = Device::open(loopback, &TRANSFERS, 4096, &[]).unwrap();
        let with = |options, mode| Device {
            fixed_mode: fixed_mode(&config(options), &found(mode)),
            name: String::new(),
            port: Port::Loopback(Loopback::new(Faults::default())),
            limits: common.limits,
            bufsiz: 4096,
            chip: None,
            idle_mode: 0,
            inactive_ns: 0,
            not_before: None,
            down: false,
            line: Line::Released,
            mode_of: ModeOf::Nobody,
        };
        let head = |mode| TransferHead {
            mode,
            ..TransferHead::default()
        };
        let lanes = TX_QUAD | RX_DUAL;
        assert_eq!(with("", 0).mode_for(&head(wire::LOOP)), SPI_LOOP | lanes);
        // The device tree's clock mode gives way to the request's, its polarity does not.
        let found = SPI_CPOL | SPI_CS_HIGH;
        assert_eq!(
            with("", found).mode_for(&head(wire::CPHA)),
            SPI_CPHA | SPI_CS_HIGH | lanes
        );
        assert_eq!(with(",cs-high=on", found).mode_for(&head(0)), lanes);
        // And so does its order of bits.
        assert_eq!(with("", SPI_LSB_FIRST).mode_for(&head(0)), lanes);
    }

    #[test]
    fn limits_offer_cs_high_only_where_it_is_the_devices_or_allowed() {
        let mask = |options, mode| limits(&config(options), &TRANSFERS, &found(mode)).mode_mask;
        let plain = wire::CPHA | wire::CPOL;
        assert_eq!(mask("", 0), plain | wire::LOOP);
        assert_eq!(mask(",loop=off", 0), plain);
        assert_eq!(mask(",loop=off", SPI_CS_HIGH), plain | wire::CS_HIGH);
        assert_eq!(mask(",loop=off,cs-high=on", 0), plain | wire::CS_HIGH);
        assert_eq!(mask(",loop=off,cs-high=off", SPI_CS_HIGH), plain);
    }

    #[test]
    fn open_loopback_offers_what_its_options_allow() {
        let mask = |options: &str| {
            let argument = format!("--device=loopback{options}");
            let config = parse_config(["--socket-path=s".to_owned(), argument]).unwrap();
            let device = Device::open(&config.devices[0], &TRANSFERS, 4096, &[]).unwrap();
            device.limits.mode_mask
        };
        let all = wire::MODE_MASK;
        assert_eq!(mask(""), all & !wire::CS_HIGH);
        assert_eq!(mask(",loop=off"), all & !wire::CS_HIGH & !wire::LOOP);
        assert_eq!(mask(",cs-high=on"), all);
    }
}
