// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The driver's side of one split virtqueue.
//!
//! Descriptors are handed out round the table and freed in order of use: that is what IN_ORDER asks of a driver, and the
//! daemon completes in order anyway. Each chain must be returned by a used element of its own (with IN_ORDER a device
//! may batch them; this rig refuses that, since the used lengths would be lost).

use super::memory::Memory;
use std::collections::VecDeque;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// One piece of memory of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub gpa: u64,
    pub len: u32,
    /// The device writes it.
    pub write: bool,
}

impl Segment {
    /// For the device to read.
    pub fn out(gpa: u64, len: u32) -> Self {
        Self {
            gpa,
            len,
            write: false,
        }
    }

    /// For the device to write.
    pub fn into(gpa: u64, len: u32) -> Self {
        Self {
            gpa,
            len,
            write: true,
        }
    }
}

/// A descriptor as it stands in a table.
pub fn descriptor(gpa: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut raw = [0; 16];
    raw[..8].copy_from_slice(&gpa.to_le_bytes());
    raw[8..12].copy_from_slice(&len.to_le_bytes());
    raw[12..14].copy_from_slice(&flags.to_le_bytes());
    raw[14..].copy_from_slice(&next.to_le_bytes());
    raw
}

/// One element of the used ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    pub id: u16,
    pub len: u32,
}

/// Where the three parts lie.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
}

impl Layout {
    /// The parts one after the other from `gpa`, each on a page of its own.
    pub fn at(gpa: u64, size: u16) -> Self {
        let page = |len: u64| len.next_multiple_of(4096);
        let avail = gpa + page(u64::from(size) * 16);
        let used = avail + page(u64::from(size) * 2 + 6);
        Self {
            size,
            desc: gpa,
            avail,
            used,
        }
    }

    /// First address after the parts that `at` laid out.
    pub fn end(&self) -> u64 {
        self.used + (u64::from(self.size) * 8 + 6).next_multiple_of(4096)
    }
}

/// The driver's state of a queue.
#[derive(Clone)]
pub struct Ring {
    pub layout: Layout,
    pub event_idx: bool,
    /// Index of the next chain to be made available (free running).
    pub avail_idx: u16,
    /// Index of the next used element to look at (free running).
    pub used_idx: u16,
    next_free: u16,
    in_flight: VecDeque<(u16, u16)>,
    published: u16,
}

impl Ring {
    /// An empty queue; its memory is zeroed.
    pub fn new(layout: Layout, event_idx: bool, memory: &Memory) -> Self {
        let size = usize::from(layout.size);
        memory.fill(layout.desc, size * 16, 0);
        memory.fill(layout.avail, size * 2 + 6, 0);
        memory.fill(layout.used, size * 8 + 6, 0);
        Self::starting_at(layout, event_idx, 0, memory)
    }

    /// A queue whose indices start at `base`, as after a restart; memory is left as it is but for the indices.
    pub fn starting_at(layout: Layout, event_idx: bool, base: u16, memory: &Memory) -> Self {
        memory.store_u16(layout.avail + 2, base);
        memory.store_u16(layout.used + 2, base);
        // What a device that went on before would have left: without it EVENT_IDX suppresses the first kick.
        memory.store_u16(layout.used + 4 + u64::from(layout.size) * 8, base);
        let (avail_idx, used_idx, published) = (base, base, base);
        Self {
            layout,
            event_idx,
            avail_idx,
            used_idx,
            next_free: 0,
            in_flight: VecDeque::new(),
            published,
        }
    }

    /// Writes the chain into the table; the index of its head. Not visible to the device before `publish`.
    pub fn place(&mut self, chain: &[Segment], memory: &Memory) -> u16 {
        let flags = |s: &Segment| if s.write { WRITE } else { 0 };
        let raw: Vec<_> = chain.iter().map(|s| (s.gpa, s.len, flags(s))).collect();
        self.place_raw(&raw, memory)
    }

    /// The chain through an indirect table at `table`.
    pub fn place_indirect(&mut self, chain: &[Segment], table: u64, memory: &Memory) -> u16 {
        for (n, segment) in chain.iter().enumerate() {
            let last = n + 1 == chain.len();
            let flags = if segment.write { WRITE } else { 0 } | if last { 0 } else { NEXT };
            let next = if last { 0 } else { n as u16 + 1 };
            memory.write(
                table + n as u64 * 16,
                &descriptor(segment.gpa, segment.len, flags, next),
            );
        }
        self.place_raw(&[(table, chain.len() as u32 * 16, INDIRECT)], memory)
    }

    /// Address, length and flags of each descriptor as given; they are linked by `next`.
    pub fn place_raw(&mut self, chain: &[(u64, u32, u16)], memory: &Memory) -> u16 {
        let size = self.layout.size;
        let taken: u16 = self.in_flight.iter().map(|(_, count)| count).sum();
        assert!(
            chain.len() <= usize::from(size - taken),
            "the test queues more descriptors than the ring has"
        );
        let head = self.next_free;
        for (n, (gpa, len, flags)) in chain.iter().enumerate() {
            let index = (head + n as u16) % size;
            let last = n + 1 == chain.len();
            let (flags, next) = if last {
                (*flags, 0)
            } else {
                (flags | NEXT, (index + 1) % size)
            };
            memory.write(
                self.layout.desc + u64::from(index) * 16,
                &descriptor(*gpa, *len, flags, next),
            );
        }
        self.next_free = (head + chain.len() as u16) % size;
        self.in_flight.push_back((head, chain.len() as u16));
        self.offer(head, memory);
        head
    }

    /// Puts `head` into the avail ring, whatever it is.
    pub fn offer(&mut self, head: u16, memory: &Memory) {
        let slot = self.avail_idx % self.layout.size;
        memory.store_u16(self.layout.avail + 4 + u64::from(slot) * 2, head);
        self.avail_idx = self.avail_idx.wrapping_add(1);
    }

    /// Shows the device all that was placed; true when it wants to be kicked for that.
    pub fn publish(&mut self, memory: &Memory) -> bool {
        let old = self.published;
        memory.store_u16(self.layout.avail + 2, self.avail_idx);
        self.published = self.avail_idx;
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        if self.event_idx {
            let event = memory.load_u16(self.layout.used + 4 + u64::from(self.layout.size) * 8);
            need_event(event, self.avail_idx, old)
        } else {
            memory.load_u16(self.layout.used) & 1 == 0
        }
    }

    /// The device's used index.
    pub fn device_idx(&self, memory: &Memory) -> u16 {
        memory.load_u16(self.layout.used + 2)
    }

    /// The element of the used ring at a free-running index.
    pub fn used_at(&self, index: u16, memory: &Memory) -> Used {
        let at = self.layout.used + 4 + u64::from(index % self.layout.size) * 8;
        let raw = memory.read(at, 8);
        let id = u32::from_le_bytes(raw[..4].try_into().unwrap());
        let len = u32::from_le_bytes(raw[4..].try_into().unwrap());
        Used {
            id: u16::try_from(id).expect("a used id is a descriptor index"),
            len,
        }
    }

    /// Takes one used element if there is one; panics when it is not the oldest chain in flight.
    #[track_caller]
    pub fn take(&mut self, memory: &Memory) -> Option<Used> {
        let ahead = self.device_idx(memory).wrapping_sub(self.used_idx);
        assert!(
            usize::from(ahead) <= self.in_flight.len(),
            "the device used {ahead} chains of {}",
            self.in_flight.len()
        );
        if ahead == 0 {
            return None;
        }
        let used = self.used_at(self.used_idx, memory);
        let (head, _) = self.in_flight.pop_front().expect("counted above");
        assert_eq!(
            used.id, head,
            "chains are completed in the order in which they were made available"
        );
        self.used_idx = self.used_idx.wrapping_add(1);
        Some(used)
    }

    /// Chains that the device has not used yet.
    pub fn outstanding(&self) -> usize {
        self.in_flight.len()
    }

    /// Asks for an interrupt when the device's used index passes `index` (EVENT_IDX).
    pub fn set_used_event(&self, index: u16, memory: &Memory) {
        memory.store_u16(
            self.layout.avail + 4 + u64::from(self.layout.size) * 2,
            index,
        );
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }

    /// Sets or clears NO_INTERRUPT.
    pub fn set_no_interrupt(&self, off: bool, memory: &Memory) {
        memory.store_u16(self.layout.avail, u16::from(off));
    }
}

/// Whether an index that went from `old` to `new` passed `event`.
fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
