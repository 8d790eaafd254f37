// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The bytes of VIRTIO 1.4 "SPI Controller Device", as a driver sees them.

pub const TRANS_OK: u8 = 0;
pub const PARAM_ERR: u8 = 1;
pub const TRANS_ERR: u8 = 2;

pub const CPHA: u32 = 1 << 0;
pub const CPOL: u32 = 1 << 1;
pub const CS_HIGH: u32 = 1 << 2;
pub const LSB_FIRST: u32 = 1 << 3;
pub const LOOP: u32 = 1 << 4;

/// `struct virtio_spi_transfer_head`.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    pub chip_select_id: u8,
    pub bits_per_word: u8,
    pub cs_change: u8,
    pub tx_nbits: u8,
    pub rx_nbits: u8,
    pub reserved: [u8; 3],
    pub mode: u32,
    pub freq: u32,
    pub word_delay_ns: u32,
    pub cs_setup_ns: u32,
    pub cs_delay_hold_ns: u32,
    pub cs_change_delay_inactive_ns: u32,
}

impl Default for Head {
    /// Chip select 0, 8 bits, one wire each way, mode 0, 1 MHz (below any limit of the rig's devices), no delays.
    fn default() -> Self {
        Self {
            chip_select_id: 0,
            bits_per_word: 8,
            cs_change: 0,
            tx_nbits: 1,
            rx_nbits: 1,
            reserved: [0; 3],
            mode: 0,
            freq: 1_000_000,
            word_delay_ns: 0,
            cs_setup_ns: 0,
            cs_delay_hold_ns: 0,
            cs_change_delay_inactive_ns: 0,
        }
    }
}

impl Head {
    pub const SIZE: usize = 32;

    pub fn chip_select(mut self, id: u8) -> Self {
        self.chip_select_id = id;
        self
    }

    pub fn bits(mut self, bits: u8) -> Self {
        self.bits_per_word = bits;
        self
    }

    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    pub fn freq(mut self, hz: u32) -> Self {
        self.freq = hz;
        self
    }

    pub fn cs_change(mut self, value: u8) -> Self {
        self.cs_change = value;
        self
    }

    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut raw = [0; Self::SIZE];
        raw[..5].copy_from_slice(&[
            self.chip_select_id,
            self.bits_per_word,
            self.cs_change,
            self.tx_nbits,
            self.rx_nbits,
        ]);
        raw[5..8].copy_from_slice(&self.reserved);
        let words = [
            self.mode,
            self.freq,
            self.word_delay_ns,
            self.cs_setup_ns,
            self.cs_delay_hold_ns,
            self.cs_change_delay_inactive_ns,
        ];
        for (n, word) in words.iter().enumerate() {
            raw[8 + n * 4..12 + n * 4].copy_from_slice(&word.to_le_bytes());
        }
        raw
    }
}

/// `struct virtio_spi_config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    pub cs_max_number: u8,
    pub cs_change_supported: u8,
    pub tx_nbits_supported: u8,
    pub rx_nbits_supported: u8,
    pub bits_per_word_mask: u32,
    pub mode_func_supported: u32,
    pub max_freq_hz: u32,
    pub max_word_delay_ns: u32,
    pub max_cs_setup_ns: u32,
    pub max_cs_hold_ns: u32,
    pub max_cs_inactive_ns: u32,
}

impl Config {
    pub fn parse(raw: &[u8]) -> Self {
        assert_eq!(raw.len(), 32, "size of the configuration space");
        let word = |n: usize| u32::from_le_bytes(raw[4 + n * 4..8 + n * 4].try_into().unwrap());
        Self {
            cs_max_number: raw[0],
            cs_change_supported: raw[1],
            tx_nbits_supported: raw[2],
            rx_nbits_supported: raw[3],
            bits_per_word_mask: word(0),
            mode_func_supported: word(1),
            max_freq_hz: word(2),
            max_word_delay_ns: word(3),
            max_cs_setup_ns: word(4),
            max_cs_hold_ns: word(5),
            max_cs_inactive_ns: word(6),
        }
    }
}
