// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Heads against a judge that knows the specification and the config space, and nothing else of the
//! daemon but the bounds that are its own.

use vhost_device_spi::spi::wire::{
    CONFIG_LEN, ConfigSpace, HEAD_LEN, Limits, MODE_MASK, Timing, TransferHead, validate,
};

use crate::input::Input;

/// `--max-message-ms=100`, the most that it takes.
const MAX_MESSAGE_NS: u64 = 100_000_000;
/// The most that the command line takes: a day.
const MAX_TRANSFER_NS: u64 = 86_400_000_000_000;
/// Lengths at which something changes.
const LENS: [u64; 12] = [
    0,
    1,
    2,
    4,
    64,
    4096,
    65_536,
    1 << 22,
    1 << 31,
    1 << 32,
    1 << 42,
    u64::MAX,
];
const SPEEDS: [u64; 9] = [
    0,
    1,
    80,
    1000,
    400_000,
    10_000_000,
    1_000_000_000,
    1 << 31,
    u32::MAX as u64,
];
const DELAYS: [u64; 9] = [
    0,
    1,
    1000,
    255_000,
    20_000_000,
    40_000_000,
    100_000_000,
    1 << 31,
    u32::MAX as u64,
];
const TIMES: [u64; 6] = [
    0,
    1000,
    1_000_000,
    100_000_000,
    10_000_000_000,
    MAX_TRANSFER_NS,
];

/// The head's fields as the specification lists them (VIRTIO 1.4, "SPI Controller Device", "Device
/// Operation: Request Queue").
struct Fields {
    chip_select_id: u8,
    bits_per_word: u8,
    cs_change: u8,
    tx_nbits: u8,
    rx_nbits: u8,
    mode: u32,
    freq: u32,
    word_delay_ns: u32,
    cs_setup_ns: u32,
    cs_delay_hold_ns: u32,
    cs_change_delay_inactive_ns: u32,
}

/// The config space as a driver reads it.
struct Offered([u8; CONFIG_LEN]);

impl Offered {
    fn byte(&self, at: usize) -> u8 {
        self.0[at]
    }

    fn le32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap())
    }
}

/// A span of time as a fraction, in nanoseconds.
#[derive(Clone, Copy)]
struct Ratio {
    numerator: u128,
    denominator: u128,
}

impl Ratio {
    fn is_above(self, ns: u64) -> bool {
        self.numerator > u128::from(ns) * self.denominator
    }

    fn is_below(self, ns: u64) -> bool {
        self.numerator < u128::from(ns) * self.denominator
    }
}

/// Judges the head that `bytes` describe.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let limits = decode_limits(&mut input);
    let (tx_len, rx_len) = decode_lens(&mut input);
    let raw = decode_head(&mut input);
    let fields = read(&raw);
    let head = TransferHead::parse(&raw);
    check_parsed(&head, &fields);
    let judged = validate(&head, tx_len, rx_len, &limits);
    let config = ConfigSpace::new([limits].iter()).read(0, CONFIG_LEN);
    let offered = Offered(config.try_into().unwrap());
    assert_eq!(offered.byte(0), 1, "one chip select");
    let is_valid = is_offered(&fields, &offered)
        && is_allowed(&fields, &limits)
        && is_whole(&fields, tx_len, rx_len, &limits);
    if !is_valid {
        assert!(
            judged.is_err(),
            "{head:?} tx {tx_len} rx {rx_len} {limits:?}"
        );
        return;
    }
    let freq = if fields.freq == 0 {
        limits.max_speed_hz
    } else {
        fields.freq
    };
    check_time(&fields, freq, tx_len.max(rx_len), &limits, judged.ok());
}

fn decode_limits(input: &mut Input) -> Limits {
    let u32_of = |number: u64| u32::try_from(number & u64::from(u32::MAX)).unwrap();
    Limits {
        mode_mask: input.u32() & MODE_MASK,
        bits_per_word_mask: input.u32(),
        tx_lanes: 1 << (input.u8() % 4),
        rx_lanes: 1 << (input.u8() % 4),
        min_speed_hz: u32_of(input.number(&SPEEDS)),
        max_speed_hz: u32_of(input.number(&SPEEDS)),
        max_word_delay_ns: u32_of(input.number(&DELAYS)),
        max_cs_setup_ns: u32_of(input.number(&DELAYS)),
        max_cs_hold_ns: u32_of(input.number(&DELAYS)),
        max_cs_inactive_ns: u32_of(input.number(&DELAYS)),
        half_duplex: input.u8() & 1 != 0,
        max_transfer_len: input.number(&LENS),
        max_transfer_ns: input.number(&TIMES).min(MAX_TRANSFER_NS),
        max_message_ns: MAX_MESSAGE_NS,
    }
}

fn decode_lens(input: &mut Input) -> (u64, u64) {
    // As many descriptors as are believed, each as long as can be.
    let most = 1024 * u64::from(u32::MAX);
    let mut length = || input.number(&LENS).min(most);
    let (len, other) = (length(), length());
    match input.u8() % 4 {
        0 => (len, 0),
        1 => (0, len),
        2 => (len, len),
        _ => (len, other),
    }
}

/// The last bytes of an input are the head's, as they are; numbers that are all but arbitrary come
/// from the vocabularies.
fn decode_head(input: &mut Input) -> [u8; HEAD_LEN] {
    let speed = input.number(&SPEEDS);
    let delays: [u64; 4] = std::array::from_fn(|_| input.number(&DELAYS));
    let mut raw = [0; HEAD_LEN];
    raw[12..16].copy_from_slice(&speed.to_le_bytes()[..4]);
    for (at, delay) in (16..).step_by(4).zip(delays) {
        raw[at..at + 4].copy_from_slice(&delay.to_le_bytes()[..4]);
    }
    let rest = input.take(HEAD_LEN);
    raw[..rest.len()].copy_from_slice(rest);
    raw
}

fn read(raw: &[u8; HEAD_LEN]) -> Fields {
    let le32 = |at: usize| u32::from_le_bytes(raw[at..at + 4].try_into().unwrap());
    Fields {
        chip_select_id: raw[0],
        bits_per_word: raw[1],
        cs_change: raw[2],
        tx_nbits: raw[3],
        rx_nbits: raw[4],
        mode: le32(8),
        freq: le32(12),
        word_delay_ns: le32(16),
        cs_setup_ns: le32(20),
        cs_delay_hold_ns: le32(24),
        cs_change_delay_inactive_ns: le32(28),
    }
}

fn check_parsed(head: &TransferHead, fields: &Fields) {
    assert_eq!(head.chip_select_id, fields.chip_select_id);
    assert_eq!(head.bits_per_word, fields.bits_per_word);
    assert_eq!(head.cs_change, fields.cs_change);
    assert_eq!(
        (head.tx_nbits, head.rx_nbits),
        (fields.tx_nbits, fields.rx_nbits)
    );
    assert_eq!((head.mode, head.freq), (fields.mode, fields.freq));
    assert_eq!(head.word_delay_ns, fields.word_delay_ns);
    assert_eq!(head.cs_setup_ns, fields.cs_setup_ns);
    assert_eq!(head.cs_delay_hold_ns, fields.cs_delay_hold_ns);
    let inactive = fields.cs_change_delay_inactive_ns;
    assert_eq!(head.cs_change_delay_inactive_ns, inactive);
}

/// What the config space says, as the specification describes it.
fn is_offered(fields: &Fields, offered: &Offered) -> bool {
    let words = 1..=32;
    words.contains(&fields.bits_per_word)
        && offered.le32(4) >> (fields.bits_per_word - 1) & 1 == 1
        && (fields.cs_change == 0 || fields.cs_change == 1 && offered.byte(1) == 1)
        && lanes_are_offered(fields.tx_nbits, offered.byte(2))
        && lanes_are_offered(fields.rx_nbits, offered.byte(3))
        && mode_is_offered(fields.mode, offered.le32(8))
        && (offered.le32(12) == 0 || fields.freq <= offered.le32(12))
        && fields.word_delay_ns <= offered.le32(16)
        && fields.cs_setup_ns <= offered.le32(20)
        && fields.cs_delay_hold_ns <= offered.le32(24)
        && fields.cs_change_delay_inactive_ns <= offered.le32(28)
}

fn lanes_are_offered(nbits: u8, supported: u8) -> bool {
    let bit = match nbits {
        0 | 1 => return true,
        2 => 0,
        4 => 1,
        8 => 2,
        _ => return false,
    };
    supported >> bit & 1 == 1
}

/// CPHA and CPOL have a bit for each of their two levels, the others one for being there at all.
fn mode_is_offered(mode: u32, supported: u32) -> bool {
    let level = |shift: u32, bit: u32| supported >> (shift + (mode >> bit & 1)) & 1 == 1;
    let single = |shift: u32, bit: u32| mode >> bit & 1 == 0 || supported >> shift & 1 == 1;
    mode < 1 << 5 && level(0, 0) && level(2, 1) && single(4, 2) && single(5, 3) && single(6, 4)
}

/// What the config space has no words for: the bounds of the clock.
fn is_allowed(fields: &Fields, limits: &Limits) -> bool {
    let freq = if fields.freq == 0 {
        limits.max_speed_hz
    } else {
        fields.freq
    };
    freq > 0 && freq <= limits.max_speed_hz && freq >= limits.min_speed_hz
}

fn is_whole(fields: &Fields, tx_len: u64, rx_len: u64, limits: &Limits) -> bool {
    let len = tx_len.max(rx_len);
    let both = tx_len > 0 && rx_len > 0;
    let bytes_per_word = u64::from(fields.bits_per_word)
        .div_ceil(8)
        .next_power_of_two();
    len > 0
        && (!both || tx_len == rx_len)
        && !(both && limits.half_duplex)
        && len <= limits.max_transfer_len
        && len.is_multiple_of(bytes_per_word)
}

/// Least time that `words` words take at `freq` with the delays as asked, exactly.
fn least(fields: &Fields, freq: u32, words: u64) -> Ratio {
    let freq = u128::from(freq);
    let word = u128::from(fields.bits_per_word) * 1_000_000_000;
    let word = word + u128::from(fields.word_delay_ns) * freq;
    let ends = u128::from(fields.cs_setup_ns) + u128::from(fields.cs_delay_hold_ns);
    Ratio {
        numerator: u128::from(words) * word + ends * freq,
        denominator: freq,
    }
}

/// Most that rounding may make of it: a nanosecond more for the bits of each word, and delays in
/// whole microseconds.
fn most(fields: &Fields, freq: u32, words: u64) -> Ratio {
    let exact = least(fields, freq, words);
    let up = |ns: u32| {
        if ns.is_multiple_of(1000) {
            0
        } else {
            u128::from(1000 - ns % 1000)
        }
    };
    let words = u128::from(words) * (1 + up(fields.word_delay_ns));
    let ends = up(fields.cs_setup_ns) + up(fields.cs_delay_hold_ns);
    Ratio {
        numerator: exact.numerator + (words + ends) * exact.denominator,
        ..exact
    }
}

/// A valid request is refused if it takes too long, or one word of it too long for a message; where
/// rounding decides, either is right.
fn check_time(fields: &Fields, freq: u32, len: u64, limits: &Limits, judged: Option<Timing>) {
    let bytes_per_word = u64::from(fields.bits_per_word)
        .div_ceil(8)
        .next_power_of_two();
    let words = len / bytes_per_word;
    let too_slow = |bound: fn(&Fields, u32, u64) -> Ratio| {
        bound(fields, freq, words).is_above(limits.max_transfer_ns)
            || bound(fields, freq, 1).is_above(MAX_MESSAGE_NS)
    };
    let Some(timing) = judged else {
        assert!(
            too_slow(most),
            "refused without a reason: {len} bytes at {freq} Hz"
        );
        return;
    };
    assert!(!too_slow(least), "accepted though too slow: {timing:?}");
    assert_eq!(timing.speed_hz, freq);
    let ends = Fields {
        cs_setup_ns: 0,
        cs_delay_hold_ns: 0,
        ..*fields
    };
    for (ns, bounded, words) in [
        (timing.total_ns, fields, words),
        (timing.word_ns, &ends, 1),
        (timing.wire_ns(len), &ends, words),
    ] {
        let (least, most) = (least(bounded, freq, words), most(bounded, freq, words));
        assert!(!least.is_above(ns) && !most.is_below(ns), "{timing:?}");
    }
    assert!(timing.word_ns <= timing.words_budget_ns && timing.words_budget_ns <= MAX_MESSAGE_NS);
}
