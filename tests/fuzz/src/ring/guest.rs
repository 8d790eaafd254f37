// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's side: what an input writes into its memory.

use crate::input::Input;

use super::{AVAIL, DESC, MEMORY_LEN, USED};

const INDIRECT: usize = 0x1000;
const HEADS: usize = 0x2000;
/// Where what is neither ring nor head begins.
pub const DATA: usize = 0x2400;
const ADDRESSES: [u64; 14] = [
    0x3000,
    0x5000,
    0x3ff0,
    0x4000,
    0x7ff0,
    0x8000,
    0x2000,
    0x2400,
    0,
    0x400,
    0x600,
    0x1000,
    0xffff_ffff_ffff_ffff,
    0x6800,
];
const LENS: [u64; 12] = [1, 32, 0, 2, 4, 16, 64, 256, 1000, 4096, 0x4000, 0xffff_ffff];

/// Bytes to be written to guest memory.
pub struct Write {
    /// Where.
    pub at: usize,
    /// What.
    pub bytes: Vec<u8>,
}

/// A request as a well-behaved driver makes it, but for what the input wants else.
pub fn request(input: &mut Input, size: u16, avail: (u16, usize)) -> Vec<Write> {
    let shape = input.u8();
    let first = input.u16() % size;
    let (tx_len, rx_len) = match shape & 3 {
        0 => (length(input), 0),
        1 => (0, length(input)),
        2 => {
            let len = length(input);
            (len, len)
        }
        _ => (length(input), length(input)),
    };
    let mut buffers = vec![(u64::try_from(HEADS).unwrap(), 32, false)];
    if tx_len > 0 {
        buffers.push((input.number(&ADDRESSES), tx_len, false));
    }
    if rx_len > 0 {
        buffers.push((input.number(&ADDRESSES), rx_len, true));
    }
    buffers.push((0x2380, 1, true));
    let cuts = usize::from(shape >> 2 & 7);
    for _ in 0..cuts {
        cut(input, &mut buffers);
    }
    let mut writes = vec![head(input, HEADS)];
    if shape & 0x80 == 0 {
        writes.extend(chain(DESC, first, size, &buffers));
    } else {
        writes.extend(chain(INDIRECT, 0, 256, &buffers));
        let len = u32::try_from(16 * buffers.len()).unwrap();
        let table = u64::try_from(INDIRECT).unwrap();
        writes.push(descriptor(DESC, first, (table, len, 4, 0)));
    }
    writes.extend(make_available(size, avail, first));
    writes
}

fn length(input: &mut Input) -> u32 {
    u32::from(input.u16() % 1200)
}

/// Cuts one of the buffers in two.
fn cut(input: &mut Input, buffers: &mut Vec<(u64, u32, bool)>) {
    let index = usize::from(input.u8()) % buffers.len();
    let at = u32::from(input.u8());
    let (address, len, writable) = buffers[index];
    if at < len {
        buffers[index].1 = at;
        let rest = (address.wrapping_add(at.into()), len - at, writable);
        buffers.insert(index + 1, rest);
    }
}

fn chain(table: usize, first: u16, size: u16, buffers: &[(u64, u32, bool)]) -> Vec<Write> {
    let mut writes = Vec::new();
    for (number, &(address, len, writable)) in (0u16..).zip(buffers) {
        let is_last = usize::from(number) + 1 == buffers.len();
        let flags = u16::from(!is_last) | u16::from(writable) << 1;
        let (index, next) = ((first + number) % size, (first + number + 1) % size);
        writes.push(descriptor(table, index, (address, len, flags, next)));
    }
    writes
}

fn descriptor(table: usize, index: u16, fields: (u64, u32, u16, u16)) -> Write {
    let (address, len, flags, next) = fields;
    let mut bytes = address.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    Write {
        at: table + 16 * usize::from(index),
        bytes,
    }
}

fn make_available(size: u16, avail: (u16, usize), first: u16) -> Vec<Write> {
    let (index, ring) = avail;
    let slot = usize::from(index % size);
    vec![
        Write {
            at: ring + 4 + 2 * slot,
            bytes: first.to_le_bytes().to_vec(),
        },
        Write {
            at: ring + 2,
            bytes: index.wrapping_add(1).to_le_bytes().to_vec(),
        },
    ]
}

/// A transfer head, good but for what the input wants.
fn head(input: &mut Input, at: usize) -> Write {
    let mut bytes = vec![0; 32];
    bytes[0] = input.u8() % 4;
    bytes[1] = input.pick(&[8, 8, 8, 8, 16, 32, 12, 7, 0, 33]);
    bytes[2] = input.u8() % 3;
    let odd = input.u8();
    if odd & 1 != 0 {
        bytes[3] = input.u8();
    }
    if odd & 2 != 0 {
        bytes[8] = input.u8();
    }
    if odd & 4 != 0 {
        bytes[12..16].copy_from_slice(&input.u32().to_le_bytes());
    }
    for at in (16..32).step_by(4) {
        if odd & 8 != 0 {
            bytes[at..at + 4].copy_from_slice(&u32::from(input.u16()).to_le_bytes());
        }
    }
    Write { at, bytes }
}

/// Anything at all: a descriptor, a head, an entry made available, an index, or bytes.
pub fn write(input: &mut Input, size: u16, avail: (u16, usize)) -> Vec<Write> {
    match input.u8() % 6 {
        0 => {
            let table = input.pick(&[DESC, INDIRECT]);
            let index = u16::from(input.u8());
            let address = input.number(&ADDRESSES);
            let len = u32::try_from(input.number(&LENS) & 0xffff_ffff).unwrap();
            let fields = (address, len, input.u8().into(), input.u8().into());
            vec![descriptor(table, index, fields)]
        }
        1 => {
            let number = usize::from(input.u8() % 16);
            vec![head(input, HEADS + 32 * number)]
        }
        2 => make_available(size, avail, u16::from(input.u8())),
        3 => vec![Write {
            at: avail.1 + 2,
            bytes: avail.0.wrapping_add(input.u16()).to_le_bytes().to_vec(),
        }],
        4 => vec![Write {
            at: input.pick(&[AVAIL, USED]) + usize::from(input.u8()),
            bytes: input.u16().to_le_bytes().to_vec(),
        }],
        _ => {
            let at = usize::from(input.u16()) % MEMORY_LEN;
            let len = usize::from(input.u8());
            vec![Write {
                at,
                bytes: input.take(len).to_vec(),
            }]
        }
    }
}
