// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a guest may look like and ask for: all that is drawn by lot.

use super::dice::Dice;
use super::ledger::{Asked, MAX_SPEED_HZ};
use crate::rig::host::Id;
use crate::rig::kernel_rules as rules;
use crate::rig::plug::{EVENT_IDX, INDIRECT_DESC, PROTOCOL_FEATURES, VERSION_1};
use crate::rig::*;

/// Where a guest's memory starts: no other address or offset is like it.
const MEMORY: u64 = 0x1_0000_0000;
/// The first region has the ring.
const FIRST_REGION: u64 = 256 << 10;
const SECOND_REGION: u64 = 8 << 20;
/// Where buffers may lie across two regions.
pub const JOINT: u64 = MEMORY + FIRST_REGION;

/// A way to be plugged in: memory in one region or two, rings of all sizes, features on and off.
pub fn plug(dice: &mut Dice) -> Plug {
    let mut features = VERSION_1 | PROTOCOL_FEATURES;
    features |= dice.pick(&[0, EVENT_IDX]) | dice.pick(&[0, INDIRECT_DESC]);
    if dice.once_in(8) {
        features &= !PROTOCOL_FEATURES;
    }
    let regions = if dice.once_in(2) {
        vec![Region::new(MEMORY, FIRST_REGION + SECOND_REGION)]
    } else {
        let second = Region::at_offset(JOINT, SECOND_REGION, 4096);
        vec![Region::new(MEMORY, FIRST_REGION), second]
    };
    let size = dice.pick(&[4, 16, 64, 256, 1024]);
    let plug = Plug::default().features(features);
    plug.queue_size(size).regions(regions)
}

/// A request of `len` bytes or so that is valid, with this tag, to a chip select and the device that this is.
pub fn request(
    dice: &mut Dice,
    tag: u32,
    (chip_select, device): (usize, Id),
    len: usize,
    policy: &str,
) -> Asked {
    let usual = [0, 0, 0, virtio::CPHA, virtio::CPOL | virtio::LSB_FIRST];
    let mut head = Head::default()
        .chip_select(chip_select as u8)
        .bits(dice.pick(&[8, 8, 8, 16, 32]))
        .mode(dice.pick(&usual))
        .cs_change(dice.below(2) as u8)
        .freq(tag);
    // A hold delay puts off the release of what is held, which then comes after the answer that tells of it.
    if head.cs_change == 1 && dice.once_in(10) {
        head.cs_delay_hold_ns = dice.below(100_000) as u32;
        head.cs_change_delay_inactive_ns = dice.below(300_000) as u32;
    }
    let len = len.next_multiple_of(usize::from(head.bits_per_word) / 8);
    let (tx_len, rx_len) = dice.pick(&[(len, 0), (0, len), (len, len)]);
    let keeps = match (head.cs_change, policy) {
        (0, "queued") => None,
        (0, "write-read") => Some(rx_len == 0),
        (change, _) => Some(change == 0),
    };
    Asked {
        tag,
        device,
        head,
        tx: dice.bytes(tx_len),
        rx_len,
        refused: false,
        silent: false,
        keeps,
    }
}

/// A length: mostly short, now and then of many messages.
pub fn len(dice: &mut Dice) -> usize {
    match dice.below(40) {
        0..20 => 1 + dice.below(40),
        20..30 => 1 + dice.below(1000),
        30..35 => 4080 + dice.below(32),
        35..39 => 4097 + dice.below(12_000),
        _ => 1 + dice.below(64 << 10),
    }
}

/// Makes a request one that must be refused.
pub fn spoil(asked: &mut Asked, devices: usize, dice: &mut Dice) {
    asked.refused = true;
    let head = &mut asked.head;
    match dice.below(10) {
        0 => head.bits_per_word = dice.pick(&[0, 1, 9, 33, 255]),
        1 => head.chip_select_id = dice.pick(&[devices as u8, 16, 255]),
        2 => head.mode |= dice.pick(&[virtio::CS_HIGH, 1 << 5, 1 << 31]),
        3 => head.freq = dice.pick(&[1, MAX_SPEED_HZ + 1, u32::MAX]),
        4 => head.cs_change = dice.pick(&[2, 255]),
        5 => head.tx_nbits = dice.pick(&[2, 3, 4, 8]),
        6 => head.cs_delay_hold_ns = 40_000_001,
        7 => head.word_delay_ns = 1,
        8 if !asked.tx.is_empty() => asked.rx_len = asked.tx.len() + 4,
        _ => (asked.tx, asked.rx_len) = (Vec::new(), 0),
    }
}

/// `count` offsets below `len`, for cuts.
pub fn offsets(dice: &mut Dice, count: usize, len: usize) -> Vec<u32> {
    let mut all: Vec<_> = (0..count).map(|_| 1 + dice.below(len) as u32).collect();
    all.sort_unstable();
    all
}

/// spidev's bits for VIRTIO's.
pub fn spidev_mode(mode: u32) -> u32 {
    let looped = mode & virtio::LOOP != 0;
    let alike = virtio::CPHA | virtio::CPOL | virtio::LSB_FIRST;
    mode & alike | if looped { rules::LOOP } else { 0 }
}
