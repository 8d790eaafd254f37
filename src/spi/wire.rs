// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The wire format of VIRTIO 1.4, section "SPI Controller Device" (device id 45), and the
//! validation of a request's head.
//!
//! Bytes in, values out: nothing here knows about rings, memory or spidev. Mode bits are the
//! specification's, which differ from spidev's in LOOP (bit 4 here, bit 5 there). All integers are
//! little-endian.
//!
//! Should: be read with the specification beside it. Must not: touch anything but its arguments.
//!
//! Called by `grant` for each request, by `device` and `assemble` for limits and config space.

use crate::error::ParamError;

/// Length of `virtio_spi_transfer_head` in bytes.
pub const HEAD_LEN: usize = 32;
/// Length of `virtio_spi_config` in bytes.
pub const CONFIG_LEN: usize = 32;
/// Most chip selects that one bus has.
pub const MAX_CHIP_SELECTS: usize = 16;

/// `mode` bit: clock phase.
pub const CPHA: u32 = 1 << 0;
/// `mode` bit: clock polarity.
pub const CPOL: u32 = 1 << 1;
/// `mode` bit: chip select is active high.
pub const CS_HIGH: u32 = 1 << 2;
/// `mode` bit: least significant bit first.
pub const LSB_FIRST: u32 = 1 << 3;
/// `mode` bit: the controller loops its output back.
pub const LOOP: u32 = 1 << 4;
/// All mode bits that the specification names.
pub const MODE_MASK: u32 = CPHA | CPOL | CS_HIGH | LSB_FIRST | LOOP;

/// The byte that answers a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransResult {
    /// The transfer took place.
    TransOk = 0,
    /// The request was refused; nothing reached the bus.
    ParamErr = 1,
    /// The transfer failed, or did not come to its end.
    TransErr = 2,
}

impl TransResult {
    /// The byte on the wire.
    #[allow(clippy::as_conversions, reason = "the numbers are below 256")]
    pub const fn byte(self) -> u8 {
        self as u8
    }
}

/// `virtio_spi_transfer_head`, decoded.
///
/// The three reserved bytes are ignored, as VIRTIO asks of a device for what later versions may
/// define.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TransferHead {
    /// Which chip select of this guest's bus.
    pub chip_select_id: u8,
    /// Bits in a word, 1 to 32.
    pub bits_per_word: u8,
    /// 0 keeps chip select asserted until the next request, 1 releases it: the reverse of spidev's.
    pub cs_change: u8,
    /// Lanes for sending: 0 and 1 mean one, else 2, 4 or 8.
    pub tx_nbits: u8,
    /// Lanes for receiving: 0 and 1 mean one, else 2, 4 or 8.
    pub rx_nbits: u8,
    /// [`CPHA`] and the other mode bits.
    pub mode: u32,
    /// Clock in Hz; 0 means [`Limits::max_speed_hz`].
    pub freq: u32,
    /// Nanoseconds between words.
    pub word_delay_ns: u32,
    /// Nanoseconds between asserting chip select and the first bit.
    pub cs_setup_ns: u32,
    /// Nanoseconds between the last bit and releasing chip select.
    pub cs_delay_hold_ns: u32,
    /// Nanoseconds that chip select stays released before the next transfer.
    pub cs_change_delay_inactive_ns: u32,
}

impl TransferHead {
    /// Decodes the 32 bytes that a request begins with. Any 32 bytes are a head: [`validate`] refuses
    /// wrong values.
    pub fn parse(bytes: &[u8; HEAD_LEN]) -> Self {
        let le32 = |offset| {
            let word = bytes.get(offset..).and_then(<[u8]>::first_chunk);
            word.copied().map_or(0, u32::from_le_bytes)
        };
        Self {
            chip_select_id: bytes[0],
            bits_per_word: bytes[1],
            cs_change: bytes[2],
            tx_nbits: bytes[3],
            rx_nbits: bytes[4],
            mode: le32(8),
            freq: le32(12),
            word_delay_ns: le32(16),
            cs_setup_ns: le32(20),
            cs_delay_hold_ns: le32(24),
            cs_change_delay_inactive_ns: le32(28),
        }
    }

    /// Length of one word in memory, in bytes: 1, 2 or 4, as spidev has it.
    pub fn word_len(&self) -> u32 {
        // A shift: the compiler divides by its result in few instructions.
        1 << u8::from(self.bits_per_word > 8) << u8::from(self.bits_per_word > 16)
    }
}

/// What a request to one chip select may ask: what the device can do, narrowed by the administrator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Mode bits that a request may set.
    pub mode_mask: u32,
    /// Bit n-1 stands for n bits per word.
    pub bits_per_word_mask: u32,
    /// Most lanes for sending: 1, 2, 4 or 8.
    pub tx_lanes: u8,
    /// Most lanes for receiving: 1, 2, 4 or 8.
    pub rx_lanes: u8,
    /// Lowest clock in Hz that a request may ask.
    pub min_speed_hz: u32,
    /// Highest clock in Hz, and the one that `freq` 0 means.
    pub max_speed_hz: u32,
    /// Longest delay between words in nanoseconds; 0 where there is none.
    pub max_word_delay_ns: u32,
    /// Longest setup delay in nanoseconds; 0 where there is none.
    pub max_cs_setup_ns: u32,
    /// Longest hold delay in nanoseconds.
    pub max_cs_hold_ns: u32,
    /// Longest inactive delay in nanoseconds.
    pub max_cs_inactive_ns: u32,
    /// tx and rx share one line: a request has either tx or rx.
    pub half_duplex: bool,
    /// Greatest length of a request's tx or rx in bytes.
    pub max_transfer_len: u64,
    /// Most nanoseconds that a request may take on the wire, delays included.
    pub max_transfer_ns: u64,
    /// Most nanoseconds of wire time and delays of one SPI ioctl, which nothing can interrupt.
    pub max_message_ns: u64,
}

impl Limits {
    /// Leaves only what a chip's commands need: words of 8 bits, highest bit first, no loop, up to four
    /// lanes. Each byte in memory is then one byte on the wire, in the same order. Every spidev has words
    /// of 8 bits.
    pub fn narrow_to_bytes(&mut self) {
        self.bits_per_word_mask &= 1 << 7;
        self.mode_mask &= CPHA | CPOL | CS_HIGH;
        self.tx_lanes = self.tx_lanes.min(4);
        self.rx_lanes = self.rx_lanes.min(4);
    }
}

/// Nanoseconds on the wire of so many bits.
pub fn bits_ns(bits: u32, speed_hz: u32) -> u64 {
    let at_1_hz = u64::from(bits).saturating_mul(1_000_000_000);
    at_1_hz.div_ceil(u64::from(speed_hz).max(1))
}

/// How long a request takes on the wire: the plan and the deadlines are made from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timing {
    /// Clock in Hz, never 0.
    pub speed_hz: u32,
    /// Length of one word in memory, in bytes.
    pub word_len: u32,
    /// Nanoseconds that one word takes, its delay included.
    pub word_ns: u64,
    /// Nanoseconds of one message that are left for words, after its delays.
    pub words_budget_ns: u64,
    /// Most bytes of one message.
    pub message_len: u64,
    /// Nanoseconds of the whole request, delays included.
    pub total_ns: u64,
}

impl Timing {
    /// Nanoseconds on the wire of `len` bytes.
    pub fn wire_ns(&self, len: u64) -> u64 {
        let words = len.div_ceil(self.word_len.max(1).into());
        words.saturating_mul(self.word_ns)
    }
}

/// Validates every field of `head`, and the lengths of tx and rx in bytes, against the limits of the
/// chip select that it names. Returns how long the request takes.
///
/// VIRTIO 1.4, "SPI Controller Device / Device Operation": the device MUST verify the parameters
/// and answer `PARAM_ERR` where one is invalid or not supported. `grant` checks `chip_select_id`.
///
/// # Errors
/// The first field that is invalid or not supported; the answer is `PARAM_ERR`.
pub fn validate(
    head: &TransferHead,
    tx_len: u64,
    rx_len: u64,
    limits: &Limits,
) -> Result<Timing, ParamError> {
    let speed_hz = check_fields(head, limits)?;
    let len = check_lengths(head, tx_len, rx_len, limits)?;
    let word_delay_ns = usecs(head.word_delay_ns).saturating_mul(1000);
    let word_ns = bits_ns(head.bits_per_word.into(), speed_hz).saturating_add(word_delay_ns);
    let delays_us = usecs(head.cs_setup_ns).saturating_add(usecs(head.cs_delay_hold_ns));
    let delays_ns = delays_us.saturating_mul(1000);
    let words_budget_ns = limits.max_message_ns.saturating_sub(delays_ns);
    let word_len = head.word_len();
    let words = len.div_ceil(word_len.into());
    let total_ns = words.saturating_mul(word_ns).saturating_add(delays_ns);
    // A message has one word at least, and no signal interrupts its ioctl.
    ensure(word_ns <= words_budget_ns, ParamError::SlowWord)?;
    ensure(total_ns <= limits.max_transfer_ns, ParamError::TooSlow)?;
    let message_words = words_budget_ns.checked_div(word_ns).unwrap_or(0);
    Ok(Timing {
        speed_hz,
        word_len,
        word_ns,
        words_budget_ns,
        message_len: message_words.saturating_mul(word_len.into()),
        total_ns,
    })
}

/// The bit of `bits_per_word_mask` that stands for words of so many bits; 0 for a size without one.
pub fn word_size_bit(bits: u8) -> u32 {
    let shift = u32::from(bits).checked_sub(1).unwrap_or(u32::MAX);
    1u32.checked_shl(shift).unwrap_or(0)
}

/// Checks that a condition `holds`.
///
/// # Errors
/// `error`, if it does not.
pub fn ensure(holds: bool, error: ParamError) -> Result<(), ParamError> {
    if holds { Ok(()) } else { Err(error) }
}

/// Word size, `cs_change`, lanes, mode, clock and delays. Returns the clock in Hz.
fn check_fields(head: &TransferHead, limits: &Limits) -> Result<u32, ParamError> {
    let has_size = limits.bits_per_word_mask & word_size_bit(head.bits_per_word) != 0;
    ensure(has_size, ParamError::BitsPerWord(head.bits_per_word))?;
    ensure(head.cs_change <= 1, ParamError::CsChange(head.cs_change))?;
    check_lanes(head.tx_nbits, limits.tx_lanes)?;
    check_lanes(head.rx_nbits, limits.rx_lanes)?;
    let refused = head.mode & !limits.mode_mask;
    ensure(refused == 0, ParamError::Mode(refused))?;
    // Refused, not clamped: spidev clamps to the controller's maximum in silence, and does not enforce
    // the device's.
    let speed_hz = match head.freq {
        0 => limits.max_speed_hz,
        freq => freq,
    };
    let (asked, min, max) = (head.freq, limits.min_speed_hz.max(1), limits.max_speed_hz);
    let is_allowed = (min..=max).contains(&speed_hz);
    ensure(is_allowed, ParamError::Frequency(asked, min, max))?;
    // A maximum of 0 in the config space means that the delay is not supported.
    for (asked, offered) in [
        (head.word_delay_ns, limits.max_word_delay_ns),
        (head.cs_setup_ns, limits.max_cs_setup_ns),
        (head.cs_delay_hold_ns, limits.max_cs_hold_ns),
        (head.cs_change_delay_inactive_ns, limits.max_cs_inactive_ns),
    ] {
        ensure(asked <= offered, ParamError::Delay(asked))?;
    }
    Ok(speed_hz)
}

/// A device with more lanes also does with fewer; 0 stands for one.
fn check_lanes(nbits: u8, most: u8) -> Result<(), ParamError> {
    let is_count = nbits == 0 || nbits.is_power_of_two();
    ensure(is_count && nbits <= most, ParamError::Nbits(nbits))
}

/// The length of the transfer in bytes, a whole number of words. VIRTIO 1.4 has `PARAM_ERR` for full
/// duplex with different lengths; a request of no bytes at all is not a transfer.
fn check_lengths(
    head: &TransferHead,
    tx_len: u64,
    rx_len: u64,
    limits: &Limits,
) -> Result<u64, ParamError> {
    let len = tx_len.max(rx_len);
    ensure(len > 0, ParamError::NoPayload)?;
    if tx_len > 0 && rx_len > 0 {
        ensure(tx_len == rx_len, ParamError::Duplex(tx_len, rx_len))?;
        ensure(!limits.half_duplex, ParamError::HalfDuplex)?;
    }
    ensure(len <= limits.max_transfer_len, ParamError::TooLong(len))?;
    let is_whole = len.checked_rem(head.word_len().into()) == Some(0);
    ensure(is_whole, ParamError::PartialWord(len))?;
    Ok(len)
}

/// Nanoseconds as the microseconds that spidev takes, rounded up: a delay is never shorter than asked.
pub fn usecs(ns: u32) -> u64 {
    // Half the instructions of `div_ceil()`.
    u64::from(ns).saturating_add(999) / 1000
}

/// `virtio_spi_config`, as one guest reads it: the union of what its chip selects can do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_LEN],
}

impl ConfigSpace {
    /// The config space of a bus with these chip selects. It offers what any of them supports, since
    /// it has no place for each one's own limits: a request is validated against those.
    pub fn new<'a>(chip_selects: impl Iterator<Item = &'a Limits>) -> Self {
        let mut count = 0u8;
        let (mut tx, mut rx, mut bits, mut modes) = (0, 0, 0, 0);
        let mut maxima = [0u32; 5];
        for limits in chip_selects {
            count = count.saturating_add(1);
            // Bits for 2, 4 and 8 lanes: most of them, less one, are those of all counts up to it.
            tx |= limits.tx_lanes.saturating_sub(1);
            rx |= limits.rx_lanes.saturating_sub(1);
            bits |= limits.bits_per_word_mask;
            modes |= mode_func_supported(limits.mode_mask);
            let own = [
                limits.max_speed_hz,
                limits.max_word_delay_ns,
                limits.max_cs_setup_ns,
                limits.max_cs_hold_ns,
                limits.max_cs_inactive_ns,
            ];
            for (max, own) in maxima.iter_mut().zip(own) {
                *max = own.max(*max);
            }
        }
        // `cs_change_supported` is 1; then two words of masks, and the maxima.
        let words = [bits, modes].into_iter().chain(maxima);
        let words = words.flat_map(u32::to_le_bytes);
        let mut fields = [count, 1, tx, rx].into_iter().chain(words);
        let bytes = std::array::from_fn(|_| fields.next().unwrap_or_default());
        Self { bytes }
    }

    /// `len` bytes from `offset` on; those after the 32 of the config space are 0.
    pub fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        let own = self.bytes.iter().copied().skip(offset);
        own.chain(std::iter::repeat(0)).take(len).collect()
    }
}

/// The encoding of the mode bits in the config space (VIRTIO 1.4, `mode_func_supported`): two bits each
/// for CPHA and CPOL, "0 is supported" and "1 is supported"; one each for the others.
fn mode_func_supported(mode_mask: u32) -> u32 {
    // Both bits for 0 are always set, since every device has mode 0. The bit for CPHA 1 is one above that
    // of CPHA in the mask; that of each other is two above its own.
    1 << 0 | 1 << 2 | (mode_mask & CPHA) << 1 | (mode_mask & !CPHA) << 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            mode_mask: CPHA | CPOL,
            bits_per_word_mask: 0x8000_8080, // 8, 16, 32
            tx_lanes: 2,
            rx_lanes: 4,
            min_speed_hz: 1_000,
            max_speed_hz: 10_000_000,
            max_word_delay_ns: 0,
            max_cs_setup_ns: 0,
            max_cs_hold_ns: 40_000_000,
            max_cs_inactive_ns: 40_000_000,
            half_duplex: false,
            max_transfer_len: 1 << 22,
            max_transfer_ns: 10_000_000_000,
            max_message_ns: 100_000_000,
        }
    }

    fn head() -> TransferHead {
        TransferHead {
            bits_per_word: 8,
            freq: 1_000_000,
            ..TransferHead::default()
        }
    }

    #[test]
    fn parse_reads_every_field_at_its_offset() {
        let bytes: [u8; HEAD_LEN] = std::array::from_fn(|i| u8::try_from(i).unwrap() + 1);
        let head = TransferHead::parse(&bytes);
        assert_eq!(head.chip_select_id, 1);
        assert_eq!(head.bits_per_word, 2);
        assert_eq!(head.cs_change, 3);
        assert_eq!(head.tx_nbits, 4);
        assert_eq!(head.rx_nbits, 5);
        assert_eq!(head.mode, 0x0c0b_0a09);
        assert_eq!(head.freq, 0x100f_0e0d);
        assert_eq!(head.word_delay_ns, 0x1413_1211);
        assert_eq!(head.cs_setup_ns, 0x1817_1615);
        assert_eq!(head.cs_delay_hold_ns, 0x1c1b_1a19);
        assert_eq!(head.cs_change_delay_inactive_ns, 0x201f_1e1d);
    }

    #[test]
    fn validate_plain_request_gives_its_wire_time() {
        let timing = validate(&head(), 1000, 1000, &limits()).unwrap();
        assert_eq!(timing.speed_hz, 1_000_000);
        assert_eq!(timing.word_ns, 8_000);
        assert_eq!(timing.total_ns, 8_000_000);
    }

    #[test]
    fn validate_lets_words_have_a_fifth_of_each_message_at_least() {
        let limits = Limits {
            min_speed_hz: 1,
            max_word_delay_ns: 255_000,
            max_cs_setup_ns: 20_000_000,
            ..limits()
        };
        let mut least = limits.max_message_ns;
        for (cs_setup_ns, cs_delay_hold_ns) in [(0, 0), (0, 40_000_000), (20_000_000, 40_000_000)] {
            for freq in 1..2000 {
                let head = TransferHead {
                    freq,
                    cs_setup_ns,
                    cs_delay_hold_ns,
                    ..head()
                };
                if let Ok(timing) = validate(&head, 1, 0, &limits) {
                    let words = timing.words_budget_ns / timing.word_ns;
                    least = least.min(words * timing.word_ns);
                }
            }
        }
        // One word of 20.05 ms, where two do not fit beside the delays.
        assert_eq!(least, 20_050_126);
        assert!(least > limits.max_message_ns / 5);
    }

    #[test]
    fn validate_freq_0_means_the_maximum() {
        let head = TransferHead { freq: 0, ..head() };
        assert_eq!(
            validate(&head, 1, 0, &limits()).unwrap().speed_hz,
            10_000_000
        );
    }

    #[test]
    fn validate_each_wrong_field_is_named() {
        let too_fast_or_slow = |asked| ParamError::Frequency(asked, 1_000, 10_000_000);
        let base = head();
        let cases = [
            (
                TransferHead {
                    bits_per_word: 0,
                    ..base
                },
                ParamError::BitsPerWord(0),
            ),
            (
                TransferHead {
                    bits_per_word: 9,
                    ..base
                },
                ParamError::BitsPerWord(9),
            ),
            (
                TransferHead {
                    bits_per_word: 33,
                    ..base
                },
                ParamError::BitsPerWord(33),
            ),
            (
                TransferHead {
                    bits_per_word: 255,
                    ..base
                },
                ParamError::BitsPerWord(255),
            ),
            (
                TransferHead {
                    cs_change: 2,
                    ..base
                },
                ParamError::CsChange(2),
            ),
            (
                TransferHead {
                    tx_nbits: 4,
                    ..base
                },
                ParamError::Nbits(4),
            ),
            (
                TransferHead {
                    rx_nbits: 8,
                    ..base
                },
                ParamError::Nbits(8),
            ),
            (
                TransferHead {
                    tx_nbits: 3,
                    ..base
                },
                ParamError::Nbits(3),
            ),
            (TransferHead { mode: LOOP, ..base }, ParamError::Mode(LOOP)),
            (
                TransferHead {
                    mode: 1 << 31,
                    ..base
                },
                ParamError::Mode(1 << 31),
            ),
            (
                TransferHead {
                    freq: 10_000_001,
                    ..base
                },
                too_fast_or_slow(10_000_001),
            ),
            (TransferHead { freq: 999, ..base }, too_fast_or_slow(999)),
            (
                TransferHead {
                    word_delay_ns: 1,
                    ..base
                },
                ParamError::Delay(1),
            ),
            (
                TransferHead {
                    cs_setup_ns: 2,
                    ..base
                },
                ParamError::Delay(2),
            ),
            (
                TransferHead {
                    cs_delay_hold_ns: 40_000_001,
                    ..base
                },
                ParamError::Delay(40_000_001),
            ),
        ];
        for (head, error) in cases {
            assert_eq!(validate(&head, 4, 4, &limits()), Err(error), "{head:?}");
        }
    }

    #[test]
    fn validate_wrong_lengths_are_refused() {
        let wide = TransferHead {
            bits_per_word: 16,
            ..head()
        };
        assert_eq!(
            validate(&head(), 0, 0, &limits()),
            Err(ParamError::NoPayload)
        );
        assert_eq!(
            validate(&head(), 4, 5, &limits()),
            Err(ParamError::Duplex(4, 5))
        );
        assert_eq!(
            validate(&wide, 3, 0, &limits()),
            Err(ParamError::PartialWord(3))
        );
        let long = (1 << 22) + 1;
        assert_eq!(
            validate(&head(), long, 0, &limits()),
            Err(ParamError::TooLong(long))
        );
        let half = Limits {
            half_duplex: true,
            ..limits()
        };
        assert_eq!(validate(&head(), 4, 4, &half), Err(ParamError::HalfDuplex));
        assert!(validate(&head(), 4, 0, &half).is_ok());
    }

    #[test]
    fn validate_slow_requests_are_refused_at_the_limit() {
        // 1,250 bytes at 1 kHz are exactly ten seconds.
        let slow = TransferHead {
            freq: 1_000,
            ..head()
        };
        assert!(validate(&slow, 1250, 0, &limits()).is_ok());
        assert_eq!(
            validate(&slow, 1251, 0, &limits()),
            Err(ParamError::TooSlow)
        );
        // One word of 8 bits at 80 Hz takes the whole 100 ms of a message, at 79 Hz more.
        let floor = Limits {
            min_speed_hz: 1,
            ..limits()
        };
        assert!(validate(&TransferHead { freq: 80, ..head() }, 1, 0, &floor).is_ok());
        let head = TransferHead { freq: 79, ..head() };
        assert_eq!(validate(&head, 1, 0, &floor), Err(ParamError::SlowWord));
    }

    #[test]
    fn validate_word_delay_below_a_microsecond_counts_as_one_at_the_limit_of_time() {
        let limits = Limits {
            max_word_delay_ns: 1_000,
            ..limits()
        };
        let head = |word_delay_ns, freq| TransferHead {
            word_delay_ns,
            freq,
            ..head()
        };
        // A word takes 8 us and its delay, which spidev carries out as one: 9 us. 1,111,111 of them are
        // the last within ten seconds.
        for delay_ns in [1, 999, 1_000] {
            let head = head(delay_ns, 1_000_000);
            let timing = validate(&head, 1_111_111, 0, &limits).unwrap();
            assert_eq!((timing.word_ns, timing.total_ns), (9_000, 9_999_999_000));
            let error = validate(&head, 1_111_112, 0, &limits);
            assert_eq!(error, Err(ParamError::TooSlow), "{delay_ns} ns");
        }
        // One word of 8 bits at 80 Hz takes the whole 100 ms of a message.
        let floor = Limits {
            min_speed_hz: 1,
            ..limits
        };
        assert!(validate(&head(0, 80), 1, 0, &floor).is_ok());
        let error = validate(&head(1, 80), 1, 0, &floor);
        assert_eq!(error, Err(ParamError::SlowWord));
    }

    #[test]
    fn config_of_a_last_device_that_is_the_weaker_one_keeps_the_maxima() {
        let strong = Limits {
            max_word_delay_ns: 1,
            max_cs_setup_ns: 2,
            max_cs_hold_ns: 3,
            max_cs_inactive_ns: 4,
            ..limits()
        };
        let weak = Limits {
            mode_mask: 0,
            bits_per_word_mask: 1 << 7,
            tx_lanes: 1,
            rx_lanes: 1,
            max_speed_hz: 1_000,
            max_word_delay_ns: 0,
            max_cs_setup_ns: 1,
            max_cs_hold_ns: 2,
            max_cs_inactive_ns: 3,
            ..limits()
        };
        let alone = ConfigSpace::new([strong].iter()).read(0, CONFIG_LEN);
        let both = ConfigSpace::new([strong, weak].iter()).read(0, CONFIG_LEN);
        assert_eq!((alone[0], both[0]), (1, 2));
        assert_eq!(alone[1..], both[1..]);
    }

    #[test]
    fn config_unites_masks_and_maxima() {
        let one = limits();
        let two = Limits {
            mode_mask: LSB_FIRST | LOOP | CS_HIGH,
            bits_per_word_mask: 1 << 8,
            max_speed_hz: 20_000_000,
            ..limits()
        };
        let bytes = ConfigSpace::new([one, two].iter()).read(0, CONFIG_LEN);
        assert_eq!(bytes[..4], [2, 1, 0b001, 0b011]);
        assert_eq!(bytes[4..8], (0x8000_8080u32 | 1 << 8).to_le_bytes());
        assert_eq!(bytes[8..12], 0b111_1111u32.to_le_bytes());
        assert_eq!(bytes[12..16], 20_000_000u32.to_le_bytes());
        assert_eq!(bytes[16..24], [0; 8]);
        assert_eq!(bytes[24..28], 40_000_000u32.to_le_bytes());
        assert_eq!(bytes[28..32], 40_000_000u32.to_le_bytes());
    }

    #[test]
    fn config_read_beyond_its_end_is_zero() {
        let config = ConfigSpace::new([limits()].iter());
        assert_eq!(config.read(31, 4)[1..], [0, 0, 0]);
        assert_eq!(config.read(4000, 3), [0, 0, 0]);
    }
}
