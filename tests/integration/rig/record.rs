// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What reached the device, as it reached it.

use std::time::Instant;

/// `struct spi_ioc_transfer` as it was passed, and the bytes behind its tx pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    pub tx_buf: u64,
    pub rx_buf: u64,
    pub len: u32,
    pub speed_hz: u32,
    pub delay_usecs: u16,
    pub bits_per_word: u8,
    pub cs_change: u8,
    pub tx_nbits: u8,
    pub rx_nbits: u8,
    pub word_delay_usecs: u8,
    pub pad: u8,
    /// The bytes that were to be sent; empty without tx pointer or when they could not be read.
    pub tx: Vec<u8>,
    /// What the device answered meanwhile, wanted or not; empty unless all of it was clocked.
    pub rx: Vec<u8>,
}

impl Transfer {
    /// Size of the structure; SPI_IOC_MESSAGE counts in it.
    pub const SIZE: usize = 32;

    /// Decodes one element of the array of SPI_IOC_MESSAGE.
    pub fn parse(raw: &[u8]) -> Self {
        let u16_at = |at: usize| u16::from_ne_bytes([raw[at], raw[at + 1]]);
        let u32_at = |at: usize| u32::from_ne_bytes(raw[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_ne_bytes(raw[at..at + 8].try_into().unwrap());
        Self {
            tx_buf: u64_at(0),
            rx_buf: u64_at(8),
            len: u32_at(16),
            speed_hz: u32_at(20),
            delay_usecs: u16_at(24),
            bits_per_word: raw[26],
            cs_change: raw[27],
            tx_nbits: raw[28],
            rx_nbits: raw[29],
            word_delay_usecs: raw[30],
            pad: raw[31],
            tx: Vec::new(),
            rx: Vec::new(),
        }
    }
}

/// What a call asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The node was opened.
    Open,
    /// One of SPI_IOC_RD_*, and the value that was given.
    Read(u32),
    /// One of SPI_IOC_WR_*, and the value that was asked for.
    Write(u32),
    /// SPI_IOC_MESSAGE(n).
    Message(Vec<Transfer>),
    /// An ioctl that spidev does not have.
    Unknown,
}

/// One call on a device.
#[derive(Clone, Debug)]
pub struct Record {
    /// Order over all devices of the host.
    pub seq: u64,
    /// When it was answered.
    pub at: Instant,
    /// Thread that made it.
    pub tid: u32,
    /// Bus and chip select.
    pub device: (u32, u32),
    /// The request number of the ioctl; 0 for an open.
    pub request: u32,
    pub kind: Kind,
    /// What was returned: negative is an errno.
    pub ret: i64,
    /// Whether the device was selected before and after the call.
    pub selected: (bool, bool),
    /// Level changes of its chip select line during the call.
    pub edges: u32,
}

impl Record {
    /// The transfers if this was a message.
    pub fn transfers(&self) -> Option<&[Transfer]> {
        match &self.kind {
            Kind::Message(transfers) => Some(transfers),
            _ => None,
        }
    }

    /// Bytes put on the wire by this message, in order.
    pub fn tx(&self) -> Vec<u8> {
        self.transfers()
            .unwrap_or(&[])
            .iter()
            .flat_map(|t| t.tx.clone())
            .collect()
    }
}
