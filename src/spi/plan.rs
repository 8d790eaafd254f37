// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Divides a transfer of any shape into messages that spidev accepts.
//!
//! Pure arithmetic on lengths. A request is two lists of segments (tx and rx, cut independently of
//! each other); a message is a run of pieces, each a whole number of words, and contiguous on both sides
//! unless it is one word that must be copied.
//!
//! spidev's rules, from `spidev_message()` in Linux `drivers/spi/spidev.c`: at most 511
//! transfers in one ioctl (the size field of the request number overflows at 512), and per
//! direction the sum of the lengths, each rounded up to `ARCH_DMA_MINALIGN`, at most `bufsiz`.
//!
//! Invariant: the pieces of all messages, put together, are the request's bytes, each once, in
//! order. Must not: touch memory or fds. Called by `transfer`.

use crate::error::TransferError;

/// Most transfers of one `SPI_IOC_MESSAGE`.
pub const MAX_PIECES: usize = 511;

/// Contiguous bytes of guest memory in one region; never empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Segment {
    /// Guest address of the first byte.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
}

/// A place in a list of segments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    index: usize,
    offset: u64,
}

impl Position {
    /// The guest address of this place and the bytes left in its segment; `None` after the last.
    pub fn here(self, segments: &[Segment]) -> Option<(u64, u32)> {
        let segment = segments.get(self.index)?;
        let left = u64::from(segment.len).checked_sub(self.offset)?;
        let address = segment.address.checked_add(self.offset)?;
        Some((address, u32::try_from(left).ok()?))
    }

    /// Advances by `len` bytes.
    #[inline(always)]
    pub fn advance(&mut self, segments: &[Segment], len: u32) {
        self.offset = self.offset.wrapping_add(len.into());
        while let Some(segment) = segments.get(self.index) {
            let Some(left) = self.offset.checked_sub(segment.len.into()) else {
                return;
            };
            self.index = self.index.wrapping_add(1);
            self.offset = left;
        }
    }

    /// Calls `each` for each of `bytes`, with the guest address of the byte that belongs there, from here
    /// on. One at a time, since a segment can end after any of them. `None` as soon as `each` returns that,
    /// or the segments end.
    pub fn each_byte(
        mut self,
        segments: &[Segment],
        bytes: &mut [u8],
        each: impl Fn(u64, &mut u8) -> Option<()>,
    ) -> Option<()> {
        for byte in bytes {
            let (address, _) = self.here(segments)?;
            each(address, byte)?;
            self.advance(segments, 1);
        }
        Some(())
    }
}

/// Where one direction of a piece lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The request has no such direction.
    Absent,
    /// At this guest address, contiguous.
    At(u64),
    /// One word across a segment boundary, from this position on: it must be copied.
    Split(Position),
    /// In the request's lead, from this byte on: it was copied.
    Lead(usize),
}

/// What one `spi_ioc_transfer` is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where the bytes to send are.
    pub tx: Place,
    /// Where the bytes received go.
    pub rx: Place,
    /// Length in bytes, a whole number of words, never 0.
    pub len: u32,
}

/// The limits of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// spidev's `bufsiz` in bytes.
    pub bufsiz: u32,
    /// spidev counts each length rounded up to a multiple of this, in bytes; a power of two.
    pub align: u32,
    /// Most pieces, at most [`MAX_PIECES`].
    pub pieces: usize,
    /// Most bytes, which bounds the time of the ioctl; at least one word.
    pub bytes: u64,
}

/// The bytes of a request.
#[derive(Debug, Clone, Copy)]
pub struct Work<'a> {
    /// Segments to send; empty for a request that only reads.
    pub tx: &'a [Segment],
    /// Segments to receive into; empty for a request that only writes.
    pub rx: &'a [Segment],
    /// Length in bytes, of each direction that there is.
    pub len: u64,
    /// Bytes of a word: 1, 2 or 4.
    pub word_len: u32,
    /// Bytes at the start of tx that were copied; if there are any, words are single bytes.
    pub lead_len: usize,
}

/// How much of a request is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    tx: Position,
    rx: Position,
    /// Length in bytes of what is done.
    pub done: u64,
}

/// Plans the next message of a request: calls `emit` with each piece, advances `progress` past it, and
/// returns the message's length in bytes, which is never 0.
///
/// # Errors
/// The first error of `emit`; `progress` is then at the refused piece. Or no piece is within the limits.
pub fn plan_message(
    work: &Work<'_>,
    budget: &Budget,
    progress: &mut Progress,
    mut emit: impl FnMut(Piece) -> Result<(), TransferError>,
) -> Result<u32, TransferError> {
    // What is left of spidev's buffer, always a multiple of `align`.
    let mut room = round_down(budget.bufsiz, budget.align);
    let begin = progress.done;
    let end = begin.saturating_add(budget.bytes).min(work.len);
    for _ in 0..budget.pieces {
        let most = end.saturating_sub(progress.done).min(room.into());
        let most = u32::try_from(most).unwrap_or(room);
        let Some(piece) = next_piece(work, progress, most) else {
            break;
        };
        emit(piece)?;
        progress.done = progress.done.saturating_add(piece.len.into());
        if progress.done == work.len {
            break;
        }
        progress.tx.advance(work.tx, piece.len);
        progress.rx.advance(work.rx, piece.len);
        // `room` is a multiple of `align`: so the piece costs its length rounded up.
        room = round_down(room.saturating_sub(piece.len), budget.align);
    }
    let len = u32::try_from(progress.done.saturating_sub(begin)).unwrap_or(0);
    (len > 0).then_some(len).ok_or(TransferError::NoMessage)
}

/// The longest piece at `progress`: at most `most` bytes, and contiguous on both sides unless it is a
/// single word. `None` if none fits.
#[inline(always)]
fn next_piece(work: &Work<'_>, progress: &Progress, most: u32) -> Option<Piece> {
    let (tx, tx_left) = next_run(work.tx, progress.tx)?;
    let (rx, rx_left) = next_run(work.rx, progress.rx)?;
    let contiguous = most.min(tx_left).min(rx_left);
    let whole = round_down(contiguous, work.word_len);
    let lead_from = usize::try_from(progress.done).unwrap_or(usize::MAX);
    let lead_left = work.lead_len.saturating_sub(lead_from);
    let len = match lead_left {
        0 if whole > 0 => whole,
        0 => work.word_len,
        left => u32::try_from(left).unwrap_or(most).min(most).max(1),
    };
    if round_down(most, work.word_len) < len {
        return None;
    }
    let rx_split = Place::Split(progress.rx);
    Some(Piece {
        tx: match lead_left {
            0 if tx_left >= len => tx,
            0 => Place::Split(progress.tx),
            _ => Place::Lead(lead_from),
        },
        rx: if rx_left >= len { rx } else { rx_split },
        len,
    })
}

/// Where the next bytes of one direction lie, and how many of them are contiguous. A direction that the
/// request does not have sets no limit. `None` if the request is done.
fn next_run(segments: &[Segment], position: Position) -> Option<(Place, u32)> {
    if segments.is_empty() {
        return Some((Place::Absent, u32::MAX));
    }
    let (address, left) = position.here(segments)?;
    Some((Place::At(address), left))
}

/// `len` rounded down to a multiple of `to`, a power of two.
fn round_down(len: u32, to: u32) -> u32 {
    len & to.wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(lens: &[u32], start: u64) -> Vec<Segment> {
        // A gap of one page between segments, so that no two are contiguous by accident.
        let mut address = start;
        lens.iter()
            .map(|&len| {
                let segment = Segment { address, len };
                address += u64::from(len) + 4096;
                segment
            })
            .collect()
    }

    fn addresses(segments: &[Segment]) -> Vec<u64> {
        segments
            .iter()
            .flat_map(|s| (0..u64::from(s.len)).map(|i| s.address + i))
            .collect()
    }

    fn place_addresses(place: Place, segments: &[Segment], len: u32) -> Vec<u64> {
        match place {
            Place::Absent => Vec::new(),
            Place::At(address) => (0..u64::from(len)).map(|i| address + i).collect(),
            Place::Split(mut position) => {
                let mut next = || {
                    let (address, _) = position.here(segments).unwrap();
                    position.advance(segments, 1);
                    address
                };
                (0..len).map(|_| next()).collect()
            }
            Place::Lead(from) => {
                let all = addresses(segments);
                all[from..][..usize::try_from(len).unwrap()].to_vec()
            }
        }
    }

    /// Plans everything and checks it against the plainest possible description: the bytes of all
    /// pieces are the bytes of the request, and each message keeps spidev's rules.
    fn check(tx: &[u32], rx: &[u32], word_len: u32, budget: Budget) -> Vec<Vec<Piece>> {
        check_with_lead(0, tx, rx, word_len, budget)
    }

    fn check_with_lead(
        lead_len: usize,
        tx: &[u32],
        rx: &[u32],
        word_len: u32,
        budget: Budget,
    ) -> Vec<Vec<Piece>> {
        let (tx, rx) = (segments(tx, 0x10_0000), segments(rx, 0x90_0000));
        let len = addresses(if tx.is_empty() { &rx } else { &tx }).len() as u64;
        let work = Work {
            tx: &tx,
            rx: &rx,
            len,
            word_len,
            lead_len,
        };
        let mut progress = Progress::default();
        let mut messages = Vec::new();
        while progress.done < len {
            let mut pieces = Vec::new();
            let planned = plan_message(&work, &budget, &mut progress, |piece| {
                pieces.push(piece);
                Ok(())
            });
            let total = planned.unwrap();
            assert!(total > 0, "no progress");
            assert_eq!(total, pieces.iter().map(|p| p.len).sum::<u32>());
            assert!(pieces.len() <= budget.pieces);
            assert!(u64::from(total) <= budget.bytes);
            let charged: u32 = pieces
                .iter()
                .map(|p| p.len.next_multiple_of(budget.align))
                .sum();
            assert!(charged <= budget.bufsiz);
            assert!(pieces.iter().all(|p| p.len % word_len == 0));
            messages.push(pieces);
        }
        let all = |side: fn(&Piece) -> Place, segments: &[Segment]| -> Vec<u64> {
            let pieces = messages.iter().flatten();
            pieces
                .flat_map(|p| place_addresses(side(p), segments, p.len))
                .collect()
        };
        assert_eq!(all(|p| p.tx, &tx), addresses(&tx));
        assert_eq!(all(|p| p.rx, &rx), addresses(&rx));
        messages
    }

    const DEFAULT: Budget = Budget {
        bufsiz: 4096,
        align: 128,
        pieces: MAX_PIECES,
        bytes: u64::MAX,
    };

    #[test]
    fn plan_contiguous_request_is_one_piece() {
        let messages = check(&[4096], &[4096], 1, DEFAULT);
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0].len(), 1);
    }

    #[test]
    fn plan_lead_is_in_front_however_tx_and_rx_are_cut() {
        let leads = |messages: &[Vec<Piece>]| -> Vec<_> {
            let pieces = messages.iter().flatten();
            let lead = pieces.take_while(|p| matches!(p.tx, Place::Lead(_)));
            lead.map(|p| (p.tx, p.len)).collect()
        };
        let at = |from, len| (Place::Lead(from), len);
        for tx in [&[9][..], &[1, 8], &[1, 1, 7], &[2, 7]] {
            let messages = check_with_lead(2, tx, &[1, 8], 1, DEFAULT);
            assert_eq!(leads(&messages), [at(0, 2)]);
            assert!(matches!(messages[0][0].rx, Place::Split(_)));
            let messages = check_with_lead(1, tx, &[], 1, DEFAULT);
            assert_eq!(leads(&messages), [at(0, 1)]);
        }
        assert_eq!(
            leads(&check_with_lead(1, &[1], &[], 1, DEFAULT)),
            [at(0, 1)]
        );
        let slow = Budget {
            bytes: 1,
            ..DEFAULT
        };
        let messages = check_with_lead(2, &[5], &[5], 1, slow);
        assert_eq!(leads(&messages), [at(0, 1), at(1, 1)]);
        let no_room = Budget {
            bufsiz: 7,
            align: 8,
            ..DEFAULT
        };
        let work = Work {
            tx: &segments(&[5], 0),
            rx: &[],
            len: 5,
            word_len: 1,
            lead_len: 2,
        };
        let planned = plan_message(&work, &no_room, &mut Progress::default(), |_| Ok(()));
        assert!(matches!(planned, Err(TransferError::NoMessage)));
    }

    #[test]
    fn plan_longer_than_bufsiz_is_several_messages() {
        assert_eq!(check(&[4097], &[4097], 1, DEFAULT).len(), 2);
        assert_eq!(check(&[65_536], &[], 1, DEFAULT).len(), 16);
        assert_eq!(check(&[], &[4 << 20], 4, DEFAULT).len(), 1024);
    }

    #[test]
    fn plan_different_cuts_meet_at_every_boundary() {
        let messages = check(&[10, 20, 30], &[15, 15, 30], 1, DEFAULT);
        let lens: Vec<u32> = messages[0].iter().map(|p| p.len).collect();
        assert_eq!(lens, [10, 5, 15, 30]);
    }

    #[test]
    fn plan_a_cut_word_is_its_own_piece() {
        let messages = check(&[3, 5], &[8], 2, DEFAULT);
        let lens: Vec<u32> = messages[0].iter().map(|p| p.len).collect();
        assert_eq!(lens, [2, 2, 4]);
        assert!(matches!(messages[0][1].tx, Place::Split(_)));
        assert!(matches!(messages[0][1].rx, Place::At(_)));
    }

    #[test]
    fn plan_words_of_single_bytes_are_gathered() {
        let messages = check(&[1; 16], &[16], 4, DEFAULT);
        assert_eq!(messages[0].len(), 4);
    }

    #[test]
    fn plan_more_than_511_pieces_is_several_messages() {
        let fine = Budget {
            align: 8,
            ..DEFAULT
        };
        let messages = check(&[1; 600], &[600], 1, fine);
        assert_eq!(messages.iter().map(Vec::len).collect::<Vec<_>>(), [511, 89]);
    }

    #[test]
    fn plan_of_buffers_cut_to_harm_has_no_more_messages_than_its_bound() {
        // Messages of `count` buffers of `len` bytes, and what threats.rs says of these: by their length, and
        // for how they are cut.
        let messages = |len: u32, count: usize, word_len, bufsiz| {
            let tx = segments(&vec![len; count], 0);
            let all: u32 = tx.iter().map(|segment| segment.len).sum();
            let work = Work {
                tx: &tx,
                rx: &[],
                len: all.into(),
                word_len,
                lead_len: 0,
            };
            let budget = Budget { bufsiz, ..DEFAULT };
            let (mut progress, mut messages) = (Progress::default(), 0);
            while progress.done < all.into() {
                plan_message(&work, &budget, &mut progress, |_| Ok(())).unwrap();
                messages += 1;
            }
            let (by_len, by_cuts) = (all.div_ceil(bufsiz), (256u32 << 10).div_ceil(bufsiz));
            assert!(messages <= by_len + by_cuts.max(4), "{len} {bufsiz}");
            (messages, by_len)
        };
        for bufsiz in [4096, 16_384, 65_536, 1 << 20] {
            for len in [1, 2, 127, 129, 133, 257, 4095, 4097] {
                for word_len in [1, 2, 4] {
                    messages(len, 1024, word_len, bufsiz);
                }
            }
        }
        assert_eq!(messages(1, 1024, 1, 4096), (32, 1));
        assert_eq!(messages(133, 1024, 4, 4096), (72, 34));
        assert_eq!(messages(1, 1024, 1, 1 << 20), (3, 1));
    }

    #[test]
    fn plan_time_budget_bounds_each_message() {
        let slow = Budget {
            bytes: 10,
            ..DEFAULT
        };
        assert_eq!(check(&[95], &[95], 1, slow).len(), 10);
        // Ten bytes hold two words of four.
        assert_eq!(check(&[96], &[96], 4, slow).len(), 12);
    }

    #[test]
    fn plan_every_small_shape_keeps_all_bytes() {
        // Every cut of 8 bytes into three parts on both sides, with every word size and two
        // buffers that force several messages.
        for a in 1..7 {
            for b in 1..8 - a {
                for c in 1..7 {
                    for d in 1..8 - c {
                        for word_len in [1, 2, 4] {
                            for bufsiz in [8, 24] {
                                let budget = Budget {
                                    bufsiz,
                                    align: 8,
                                    ..DEFAULT
                                };
                                check(&[a, b, 8 - a - b], &[c, d, 8 - c - d], word_len, budget);
                            }
                        }
                    }
                }
            }
        }
    }
}
