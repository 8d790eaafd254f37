// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Plans of transfers against a reference that looks at one byte after the other.

use vhost_device_spi::error::TransferError;
use vhost_device_spi::spi::plan::{
    Budget, MAX_PIECES, Piece, Place, Progress, Segment, Work, plan_message,
};

use crate::input::Input;

/// Bytes of a request at most: enough for several messages of every kind.
const MAX_LEN: u32 = 1 << 12;
/// As `request::MAX_SEGMENTS`.
const MAX_SEGMENTS: usize = 1024;

/// One byte of a direction.
#[derive(Clone, Copy)]
struct Byte {
    segment: usize,
    address: u64,
}

/// A request with room for what the daemon calls itself: lengths in whole words, equal on both
/// sides, and a budget that holds one word.
struct Case {
    tx: Vec<Segment>,
    rx: Vec<Segment>,
    word_len: u32,
    len: u32,
    budget: Budget,
    /// Every so many pieces, `emit` refuses one.
    refuse_each: u32,
    /// Bytes at the start of tx that were copied: a piece of their own.
    lead_len: u32,
}

/// Plans the request that `bytes` describe, to its end.
pub fn run(bytes: &[u8]) {
    let case = decode(&mut Input::new(bytes));
    let (tx, rx) = (each_byte(&case.tx), each_byte(&case.rx));
    let mut progress = Progress::default();
    let (mut at, mut refusal) = (0, Refusal::default());
    while at < case.len {
        let (pieces, planned) = plan(&case, &mut progress, &mut refusal);
        let total: u32 = pieces.iter().map(|piece| piece.len).sum();
        let refused = refusal.is_now;
        assert_eq!(planned, (!refused).then_some(total));
        assert!(refused || total > 0, "no progress at byte {at}");
        check_budget(&case, &pieces);
        let most = if refused {
            pieces.len()
        } else {
            case.budget.pieces
        };
        let expected = reference(&case, &tx, &rx, at, most);
        assert_eq!(described(&case, &pieces), expected);
        at += total;
        assert_eq!(progress.done, u64::from(at));
    }
    assert_eq!(at, case.len, "more than the request");
}

/// When `emit` refuses a piece.
#[derive(Default)]
struct Refusal {
    is_now: bool,
    /// Pieces so far.
    count: u32,
}

/// The next message's pieces, up to one that is refused.
fn plan(case: &Case, progress: &mut Progress, refusal: &mut Refusal) -> (Vec<Piece>, Option<u32>) {
    let work = Work {
        tx: &case.tx,
        rx: &case.rx,
        len: case.len.into(),
        word_len: case.word_len,
        lead_len: usize::try_from(case.lead_len).unwrap(),
    };
    let mut pieces = Vec::new();
    let planned = plan_message(&work, &case.budget, progress, |piece| {
        refusal.count += 1;
        let is_due = case.refuse_each > 0 && refusal.count.is_multiple_of(case.refuse_each);
        // Not twice in a row, or there would be no end.
        refusal.is_now = !refusal.is_now && is_due;
        if refusal.is_now {
            return Err(TransferError::Injected);
        }
        pieces.push(piece);
        Ok(())
    });
    (pieces, planned.ok())
}

fn decode(input: &mut Input) -> Case {
    let word_len = input.pick(&[1, 2, 4]);
    let shape = input.u8();
    let sides = shape % 4;
    let align = input.pick(&[8, 128]);
    let budget = Budget {
        bufsiz: align + u32::from(input.u16()) % 4096,
        align,
        pieces: 1 + usize::from(input.u16()) % MAX_PIECES,
        bytes: match input.u16() {
            0 => u64::MAX,
            bytes => u64::from(bytes).max(word_len.into()),
        },
    };
    let refuse_each = u32::from(input.u8());
    let mut tx_lens = lens(input);
    let mut rx_lens = lens(input);
    // Requests that only read or only write are as long as their one side.
    let len = match sides {
        0 => tx_lens.iter().sum::<u32>(),
        1 => rx_lens.iter().sum(),
        _ => tx_lens.iter().sum::<u32>().min(rx_lens.iter().sum()),
    } / word_len
        * word_len;
    cut_to(&mut tx_lens, if sides == 1 { 0 } else { len });
    cut_to(&mut rx_lens, if sides == 0 { 0 } else { len });
    Case {
        tx: segments(&tx_lens, 0x10_0000),
        rx: segments(&rx_lens, 0xffff_ffff_0000_0000),
        word_len,
        len,
        budget,
        refuse_each,
        lead_len: match (word_len, sides) {
            (1, 0 | 2 | 3) => len.min(u32::from(shape / 4) % 3),
            _ => 0,
        },
    }
}

/// Runs of segments of the same length, up to a run of none.
fn lens(input: &mut Input) -> Vec<u32> {
    let (mut lens, mut sum) = (Vec::new(), 0);
    loop {
        let (len, times) = (u32::from(input.u16()) % 2048, input.u8());
        if len == 0 {
            return lens;
        }
        for _ in 0..=times {
            if lens.len() == MAX_SEGMENTS || sum + len > MAX_LEN {
                return lens;
            }
            lens.push(len);
            sum += len;
        }
    }
}

fn cut_to(lens: &mut Vec<u32>, mut len: u32) {
    for each in lens.iter_mut() {
        *each = len.min(*each);
        len -= *each;
    }
    lens.retain(|&len| len > 0);
}

/// Some touch and some do not: that makes no difference to the plan.
fn segments(lens: &[u32], start: u64) -> Vec<Segment> {
    let mut address = start;
    let place = |&len: &u32| {
        let segment = Segment { address, len };
        address += u64::from(len) + u64::from(len % 2) * 4096;
        segment
    };
    lens.iter().map(place).collect()
}

fn each_byte(segments: &[Segment]) -> Vec<Byte> {
    let bytes_of = |(index, segment): (usize, &Segment)| {
        let first = segment.address;
        let address = move |offset| first + u64::from(offset);
        (0..segment.len).map(move |offset| Byte {
            segment: index,
            address: address(offset),
        })
    };
    segments.iter().enumerate().flat_map(bytes_of).collect()
}

/// spidev's rules, and ours.
fn check_budget(case: &Case, pieces: &[Piece]) {
    let budget = &case.budget;
    assert!(pieces.len() <= budget.pieces && pieces.len() <= MAX_PIECES);
    let bytes: u64 = pieces.iter().map(|piece| u64::from(piece.len)).sum();
    assert!(bytes <= budget.bytes);
    let charged: u64 = pieces
        .iter()
        .map(|piece| u64::from(piece.len).next_multiple_of(budget.align.into()))
        .sum();
    assert!(charged <= u64::from(budget.bufsiz));
    let whole = |piece: &Piece| piece.len > 0 && piece.len.is_multiple_of(case.word_len);
    assert!(pieces.iter().all(whole));
}

/// A piece as the addresses of its bytes: what was asked and what was planned are compared so.
#[derive(Debug, PartialEq, Eq)]
struct Described {
    tx: Vec<u64>,
    rx: Vec<u64>,
    tx_is_cut: bool,
    rx_is_cut: bool,
}

fn described(case: &Case, pieces: &[Piece]) -> Vec<Described> {
    let describe = |piece: &Piece| Described {
        tx: addresses(piece.tx, &case.tx, piece.len),
        rx: addresses(piece.rx, &case.rx, piece.len),
        tx_is_cut: matches!(piece.tx, Place::Split(_)),
        rx_is_cut: matches!(piece.rx, Place::Split(_)),
    };
    pieces.iter().map(describe).collect()
}

fn addresses(place: Place, segments: &[Segment], len: u32) -> Vec<u64> {
    let run = |start: u64, len: u32| (0..u64::from(len)).map(move |offset| start + offset);
    match place {
        Place::Absent => Vec::new(),
        Place::At(start) => run(start, len).collect(),
        Place::Lead(from) => {
            let all = each_byte(segments).into_iter().map(|byte| byte.address);
            all.skip(from).take(usize::try_from(len).unwrap()).collect()
        }
        Place::Split(mut position) => {
            let mut next = || {
                let (address, _) = position.here(segments).unwrap();
                position.advance(segments, 1);
                address
            };
            (0..len).map(|_| next()).collect()
        }
    }
}

/// The next message from byte `at` on, or `most` pieces of it, made by trying one more word for as
/// long as it fits.
fn reference(case: &Case, tx: &[Byte], rx: &[Byte], at: u32, most: usize) -> Vec<Described> {
    let (mut pieces, mut start, mut charged) = (Vec::new(), at, 0u64);
    while pieces.len() < most {
        let mut end = start;
        let most = if start < case.lead_len {
            case.lead_len
        } else {
            case.len
        };
        while end < most && fits(case, tx, rx, (at, start, end + case.word_len), charged) {
            end += case.word_len;
        }
        if end == start {
            break;
        }
        pieces.push(Described {
            tx: part(tx, start, end)
                .iter()
                .map(|byte| byte.address)
                .collect(),
            rx: part(rx, start, end)
                .iter()
                .map(|byte| byte.address)
                .collect(),
            tx_is_cut: start >= case.lead_len && is_cut(part(tx, start, end)),
            rx_is_cut: is_cut(part(rx, start, end)),
        });
        charged += u64::from(end - start).next_multiple_of(case.budget.align.into());
        start = end;
    }
    pieces
}

/// Whether a message that began at `at` may have a piece from `start` to `end` as its next.
fn fits(case: &Case, tx: &[Byte], rx: &[Byte], place: (u32, u32, u32), charged: u64) -> bool {
    let (at, start, end) = place;
    let budget = &case.budget;
    let charge = u64::from(end - start).next_multiple_of(budget.align.into());
    let cut = is_cut(part(tx, start, end)) || is_cut(part(rx, start, end));
    let contiguous = !cut || start < case.lead_len;
    end <= case.len
        && u64::from(end - at) <= budget.bytes
        && charged + charge <= u64::from(budget.bufsiz)
        && (contiguous || end - start == case.word_len)
}

/// The bytes from `start` to `end` of a side, if there is such a side.
fn part(bytes: &[Byte], start: u32, end: u32) -> &[Byte] {
    let index = |at: u32| bytes.len().min(usize::try_from(at).unwrap());
    &bytes[index(start)..index(end)]
}

fn is_cut(bytes: &[Byte]) -> bool {
    let ends = bytes.first().zip(bytes.last());
    ends.is_some_and(|(first, last)| first.segment != last.segment)
}
