// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the next request in guest memory is, found from a copy of that memory by plain reading of
//! VIRTIO 1.4, "Split Virtqueues" and "SPI Controller Device".

use std::ops::Range;

use vhost_device_spi::spi::wire::{Limits, TransferHead, validate};

/// Where guest memory is cut into two regions.
pub const CUT: usize = 0x4000;
/// Most buffers of a chain, and most pieces of a request, that the daemon believes.
const MOST: usize = 1024;
const HEAD_LEN: usize = 32;

/// The ring as its driver set it up, with the copy of its memory.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// Guest memory from address 0 on.
    pub bytes: &'a [u8],
    /// Descriptors in the ring.
    pub size: u16,
    /// Address of the descriptor table.
    pub desc: usize,
    /// Address of the available ring.
    pub avail: usize,
    /// Indirect tables were negotiated.
    pub indirect: bool,
}

/// What is next in the ring.
#[derive(Debug)]
pub enum Next {
    /// Nothing.
    Empty,
    /// What cannot be believed.
    Broken,
    /// A chain.
    Chain(Expected),
}

/// What must become of a chain.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Its first descriptor.
    pub head: u16,
    /// Where its result goes, if anywhere.
    pub result: Option<usize>,
    /// The used length.
    pub used_len: u32,
    /// It goes on the wire.
    pub is_valid: bool,
    /// Where its bytes to send are.
    pub tx: Vec<Range<usize>>,
    /// Where the bytes received go.
    pub rx: Vec<Range<usize>>,
}

struct Buffer {
    address: u64,
    len: u32,
    writable: bool,
}

impl View<'_> {
    /// Two bytes at `address`, which the ring has.
    pub fn le16(&self, address: usize) -> u16 {
        u16::from_le_bytes([self.bytes[address], self.bytes[address + 1]])
    }

    /// What is next if `next_avail` entries were consumed.
    pub fn next(&self, next_avail: u16, limits: &[Limits]) -> Next {
        let ahead = self.le16(self.avail + 2).wrapping_sub(next_avail);
        let slot = usize::from(next_avail % self.size);
        let head = self.le16(self.avail + 4 + 2 * slot);
        match ahead {
            0 => Next::Empty,
            _ if ahead > self.size || head >= self.size => Next::Broken,
            _ => Next::Chain(self.expect(head, limits)),
        }
    }

    fn expect(&self, head: u16, limits: &[Limits]) -> Expected {
        let nothing = Expected {
            head,
            ..Expected::default()
        };
        let Some(buffers) = self.chain(head) else {
            return nothing;
        };
        let writable = buffers.iter().filter(|b| b.writable && b.len > 0);
        let Some(result) = writable.clone().next_back().and_then(|b| self.last_byte(b)) else {
            return nothing;
        };
        let sum: u64 = writable.map(|b| u64::from(b.len)).sum();
        let mut expected = Expected {
            result: Some(result),
            used_len: u32::try_from(sum).unwrap_or(u32::MAX),
            ..nothing
        };
        if let Some((tx, rx)) = self.judge(&buffers, limits) {
            expected.is_valid = true;
            (expected.tx, expected.rx) = (tx, rx);
        }
        expected
    }

    /// The buffers of a chain; `None` if it has no end that can be believed.
    fn chain(&self, head: u16) -> Option<Vec<Buffer>> {
        let (mut table, mut entries) = (u64::try_from(self.desc).unwrap(), u32::from(self.size));
        let (mut index, mut inside, mut buffers) = (head, false, Vec::new());
        loop {
            let offset = 16 * u64::from(index);
            let raw = self.slice(table.checked_add(offset)?, 16)?;
            let in_table = u32::from(index) < entries;
            let address = u64::from_le_bytes(raw[..8].try_into().unwrap());
            let len = u32::from_le_bytes(raw[8..12].try_into().unwrap());
            let flags = u16::from_le_bytes(raw[12..14].try_into().unwrap());
            let (next, writable) = (flags & 1 != 0, flags & 2 != 0);
            if !in_table || buffers.len() == MOST {
                return None;
            }
            if flags & 4 != 0 {
                if inside || next || !self.indirect || len % 16 != 0 || len == 0 {
                    return None;
                }
                (table, entries, index, inside) = (address, len / 16, 0, true);
                continue;
            }
            buffers.push(Buffer {
                address,
                len,
                writable,
            });
            if !next {
                return Some(buffers);
            }
            index = u16::from_le_bytes(raw[14..].try_into().unwrap());
        }
    }

    fn slice(&self, address: u64, len: u32) -> Option<&[u8]> {
        let start = usize::try_from(address).ok()?;
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        self.bytes.get(start..end)
    }

    fn last_byte(&self, buffer: &Buffer) -> Option<usize> {
        let last = buffer.address.checked_add(u64::from(buffer.len) - 1)?;
        self.slice(last, 1)?;
        usize::try_from(last).ok()
    }

    /// tx and rx of a request that is to be carried out.
    #[expect(clippy::type_complexity, reason = "two lists of ranges")]
    fn judge(
        &self,
        buffers: &[Buffer],
        limits: &[Limits],
    ) -> Option<(Vec<Range<usize>>, Vec<Range<usize>>)> {
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        for buffer in buffers.iter().filter(|buffer| buffer.len > 0) {
            self.slice(buffer.address, buffer.len)?;
            let start = usize::try_from(buffer.address).unwrap();
            let range = start..start + usize::try_from(buffer.len).unwrap();
            if buffer.writable {
                writable.push(range);
            } else if writable.is_empty() {
                readable.push(range);
            } else {
                return None;
            }
        }
        let head = self.split_head(&mut readable)?;
        let pieces =
            |range: &Range<usize>| 1 + usize::from(range.contains(&CUT) && range.start < CUT);
        let count: usize = readable.iter().chain(&writable).map(pieces).sum();
        writable.last_mut()?.end -= 1;
        writable.retain(|range| !range.is_empty());
        let len = |ranges: &[Range<usize>]| {
            let sum: usize = ranges.iter().map(ExactSizeIterator::len).sum();
            u64::try_from(sum).unwrap()
        };
        let limits = limits.get(usize::from(head.chip_select_id))?;
        let valid = validate(&head, len(&readable), len(&writable), limits).is_ok();
        (valid && count <= MOST).then_some((readable, writable))
    }

    /// Takes the head off the front of the device-readable bytes.
    fn split_head(&self, readable: &mut Vec<Range<usize>>) -> Option<TransferHead> {
        let mut bytes = Vec::new();
        for range in readable.iter_mut() {
            let part = range.len().min(HEAD_LEN - bytes.len());
            bytes.extend_from_slice(&self.bytes[range.start..range.start + part]);
            range.start += part;
        }
        readable.retain(|range| !range.is_empty());
        Some(TransferHead::parse(bytes.as_slice().try_into().ok()?))
    }
}
