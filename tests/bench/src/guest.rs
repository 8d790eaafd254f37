// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest as the benchmark plays it: memory, a split ring whose descriptors are written once, and
//! requests that are made available again and again.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU16, Ordering, fence};
use std::time::{Duration, Instant};

use crate::sys;

/// Bytes of a memory region: room for 32 requests of 64 KiB.
pub const REGION_LEN: usize = 8 << 20;
/// Where the descriptor table is; available and used ring follow, with room for 1,024 entries.
pub const DESC: usize = 0;
pub const AVAIL: usize = 0x8000;
pub const USED: usize = 0x1_0000;
const HEADS: usize = 0x2_0000;
const BUFFERS: usize = 0x3_0000;
const HEAD_LEN: usize = 32;
/// What the faked device can do: with a slow clock a daemon that keeps an eye on the time on the wire
/// cuts long transfers, and calls in front of one, for the sake of a bus that is not there.
pub const SPEED_HZ: u32 = 1_000_000_000;
/// Head, tx, rx and result of a request, each in a descriptor of its own as Linux's driver does.
const PARTS: u16 = 4;
const DESC_F_NEXT: u16 = 1;
const DESC_F_WRITE: u16 = 2;
const FLAG: u16 = 1;
/// A first request that is not answered by then is taken for a lost kick.
const FIRST_ANSWER: Duration = Duration::from_millis(200);
/// A flood of which nothing is answered by then is taken for one whose kick was lost.
const PATIENCE: Duration = Duration::from_secs(1);

/// How the front-end learns that a request was completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wait {
    /// It sleeps until the call eventfd is written to.
    Call,
    /// It watches the used ring, and asks not to be called.
    Watch,
}

/// What a guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Work {
    /// Bytes of a transfer, full duplex.
    pub len: usize,
    /// Requests that are queued at once; the next ones follow when all are completed.
    pub depth: u16,
    pub event_idx: bool,
    pub wait: Wait,
    pub ring_size: u16,
    pub regions: usize,
    pub speed_hz: u32,
    /// Chip select is released at the end of each request; or it may stay asserted.
    pub lets_go: bool,
}

impl Default for Work {
    fn default() -> Self {
        Self {
            len: 16,
            depth: 1,
            event_idx: true,
            wait: Wait::Call,
            ring_size: 256,
            regions: 1,
            speed_hz: SPEED_HZ,
            lets_go: false,
        }
    }
}

/// Why a guest got no further.
#[derive(Debug)]
pub enum Failure {
    /// Nothing came back.
    Silent,
    /// A request was answered with an error.
    Refused(u8),
    /// What came back is not what was sent.
    Wrong(&'static str),
    Host(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Silent => write!(f, "no answer"),
            Self::Refused(result) => write!(f, "result {result}"),
            Self::Wrong(what) => write!(f, "{what}"),
            Self::Host(error) => write!(f, "{error}"),
        }
    }
}

/// A piece of guest memory.
pub struct Region {
    pub file: File,
    pub base: *mut u8,
}

impl Drop for Region {
    fn drop(&mut self) {
        sys::unmap(self.base, REGION_LEN);
    }
}

/// Guest address of the n-th region; there are gaps between them, as in a PC.
pub fn region_address(number: usize) -> usize {
    number * 2 * REGION_LEN
}

pub struct Guest {
    pub work: Work,
    pub regions: Vec<Region>,
    pub kick: File,
    pub call: File,
    avail_idx: u16,
    used_idx: u16,
}

impl Guest {
    /// Memory, ring and requests for `work`: everything in the last region but the ring, which is
    /// in the first.
    pub fn new(work: Work) -> io::Result<Self> {
        let regions = (0..work.regions).map(|_| {
            let file = sys::memfd(REGION_LEN as u64)?;
            let base = sys::map(&file, REGION_LEN)?;
            Ok(Region { file, base })
        });
        let guest = Self {
            work,
            regions: regions.collect::<io::Result<_>>()?,
            kick: sys::eventfd()?,
            call: sys::eventfd()?,
            avail_idx: 0,
            used_idx: 0,
        };
        for slot in 0..work.depth {
            guest.lay_out(slot);
        }
        if work.wait == Wait::Watch && !work.event_idx {
            guest.ring_u16(AVAIL).store(FLAG, Ordering::Relaxed);
        }
        Ok(guest)
    }

    fn last(&self) -> usize {
        self.regions.len() - 1
    }

    fn at(&self, region: usize, offset: usize) -> *mut u8 {
        assert!(offset < REGION_LEN);
        unsafe { self.regions[region].base.add(offset) }
    }

    fn ring_u16(&self, offset: usize) -> &AtomicU16 {
        unsafe { AtomicU16::from_ptr(self.at(0, offset).cast()) }
    }

    fn write(&self, region: usize, offset: usize, bytes: &[u8]) {
        let to = self.at(region, offset);
        assert!(offset + bytes.len() <= REGION_LEN);
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    fn bytes(&self, offset: usize) -> Vec<u8> {
        assert!(offset + self.work.len <= REGION_LEN);
        let from = self.at(self.last(), offset);
        let mut bytes = vec![0; self.work.len];
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
        bytes
    }

    /// Offsets of head, tx, rx and result of a slot, in the last region.
    fn parts(&self, slot: u16) -> [usize; 4] {
        let slot = usize::from(slot);
        let stride = self.work.len.next_multiple_of(64);
        let head = HEADS + slot * 64;
        let tx = BUFFERS + slot * 2 * stride;
        [head, tx, tx + stride, head + HEAD_LEN]
    }

    fn lay_out(&self, slot: u16) {
        let [head, tx, rx, result] = self.parts(slot);
        let mut bytes = [0; HEAD_LEN];
        bytes[1] = 8; // bits_per_word
        bytes[2] = self.work.lets_go.into(); // cs_change
        bytes[3] = 1; // tx_nbits
        bytes[4] = 1; // rx_nbits
        bytes[12..16].copy_from_slice(&self.work.speed_hz.to_le_bytes()); // freq
        self.write(self.last(), head, &bytes);
        let pattern: Vec<u8> = (0..self.work.len)
            .map(|i| (i * 7 + usize::from(slot) + 1) as u8)
            .collect();
        self.write(self.last(), tx, &pattern);
        let first = slot * PARTS;
        let (out, into) = (DESC_F_NEXT, DESC_F_NEXT | DESC_F_WRITE);
        self.describe(first, head, HEAD_LEN, out);
        self.describe(first + 1, tx, self.work.len, out);
        self.describe(first + 2, rx, self.work.len, into);
        self.describe(first + 3, result, 1, DESC_F_WRITE);
    }

    fn describe(&self, index: u16, offset: usize, len: usize, flags: u16) {
        let mut bytes = [0; 16];
        let address = (region_address(self.last()) + offset) as u64;
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&(len as u32).to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&(index + 1).to_le_bytes());
        self.write(0, DESC + usize::from(index) * 16, &bytes);
    }

    /// Makes all requests available.
    fn publish(&mut self) {
        let size = self.work.ring_size;
        for slot in 0..self.work.depth {
            let [.., result] = self.parts(slot);
            // Nothing that a device would write there.
            unsafe { self.at(self.last(), result).write_volatile(0xff) };
            let entry = self.avail_idx.wrapping_add(slot) % size;
            let at = self.ring_u16(AVAIL + 4 + usize::from(entry) * 2);
            at.store(slot * PARTS, Ordering::Relaxed);
        }
        if self.work.event_idx {
            // Called for the last one, or for one that is long completed.
            let event = match self.work.wait {
                Wait::Call => self.used_idx.wrapping_add(self.work.depth - 1),
                Wait::Watch => self.used_idx.wrapping_sub(1),
            };
            let used_event = AVAIL + 4 + usize::from(size) * 2;
            self.ring_u16(used_event).store(event, Ordering::Relaxed);
        }
        let next = self.avail_idx.wrapping_add(self.work.depth);
        self.ring_u16(AVAIL + 2).store(next, Ordering::Release);
        self.avail_idx = next;
    }

    /// Makes available again what was completed, and whatever was not available yet.
    fn refill(&mut self) -> u16 {
        let (size, depth) = (self.work.ring_size, self.work.depth);
        let used = self.ring_u16(USED + 2).load(Ordering::Acquire);
        let free = depth - self.avail_idx.wrapping_sub(used);
        for _ in 0..free {
            // Completed in order: this slot was, longest ago.
            let (slot, entry) = (self.avail_idx % depth, self.avail_idx % size);
            let at = self.ring_u16(AVAIL + 4 + usize::from(entry) * 2);
            at.store(slot * PARTS, Ordering::Relaxed);
            self.avail_idx = self.avail_idx.wrapping_add(1);
        }
        // Called when half of them are completed.
        let used_event = self.ring_u16(AVAIL + 4 + usize::from(size) * 2);
        used_event.store(used.wrapping_add((depth - 1) / 2), Ordering::Relaxed);
        self.ring_u16(AVAIL + 2)
            .store(self.avail_idx, Ordering::Release);
        free
    }

    /// Keeps the ring full for ever; the depth is a power of two, with EVENT_IDX.
    pub fn flood(&mut self) -> Result<(), Failure> {
        assert!(self.work.depth.is_power_of_two() && self.work.event_idx);
        loop {
            let added = self.refill();
            self.kick(added)?;
            if !sys::readable(self.call.as_raw_fd(), PATIENCE)? {
                return Err(Failure::Silent);
            }
            self.sleep()?;
        }
    }

    /// Kicks if the device asked for it, after `added` requests.
    fn kick(&self, added: u16) -> io::Result<()> {
        fence(Ordering::SeqCst);
        let asked = if self.work.event_idx {
            let avail_event = USED + 4 + usize::from(self.work.ring_size) * 8;
            let event = self.ring_u16(avail_event).load(Ordering::Relaxed);
            let behind = self.avail_idx.wrapping_sub(event).wrapping_sub(1);
            behind < added
        } else {
            self.ring_u16(USED).load(Ordering::Relaxed) & FLAG == 0
        };
        if asked {
            self.ring()?;
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.ring_u16(USED + 2).load(Ordering::Acquire) == self.avail_idx
    }

    /// Sleeps until called; whatever was completed by then.
    fn sleep(&self) -> io::Result<()> {
        (&self.call).read_exact(&mut [0; 8])
    }

    /// Returns when all are completed.
    fn wait(&self) -> Result<(), Failure> {
        let mut waited = 0;
        loop {
            match self.work.wait {
                // The tick comes each second: the second one finds that nothing happened.
                Wait::Call => match (&self.call).read(&mut [0; 8]) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => waited += 1,
                    result => drop(result?),
                },
                Wait::Watch => waited += self.watch(),
            }
            if self.is_done() {
                return Ok(());
            }
            if waited > 1 {
                return Err(Failure::Silent);
            }
        }
    }

    /// Watches the used ring for a second at most; 1 if that passed.
    fn watch(&self) -> u32 {
        let start = Instant::now();
        for round in 0u32.. {
            if self.is_done() {
                return 0;
            }
            std::hint::spin_loop();
            if round.is_multiple_of(1 << 14) && start.elapsed() > Duration::from_secs(1) {
                return 1;
            }
        }
        1
    }

    fn check_results(&mut self) -> Result<(), Failure> {
        self.used_idx = self.avail_idx;
        for slot in 0..self.work.depth {
            let [.., result] = self.parts(slot);
            match unsafe { self.at(self.last(), result).read_volatile() } {
                0 => (),
                result => return Err(Failure::Refused(result)),
            }
        }
        Ok(())
    }

    /// Queues all requests once and waits until they are completed.
    pub fn batch(&mut self) -> Result<(), Failure> {
        self.publish();
        self.kick(self.work.depth)?;
        self.wait()?;
        self.check_results()
    }

    /// As [`Guest::batch`], without a signal that interrupts the wait: the answer comes within
    /// `timeout`, or none.
    pub fn batch_within(&mut self, timeout: Duration) -> Result<(), Failure> {
        self.publish();
        self.kick(self.work.depth)?;
        while !self.is_done() {
            if !sys::readable(self.call.as_raw_fd(), timeout)? {
                return Err(Failure::Silent);
            }
            self.sleep()?;
        }
        self.check_results()
    }

    /// Queues all requests once, and does not wait for them.
    pub fn post(&mut self) -> io::Result<()> {
        self.publish();
        self.ring()
    }

    /// Kicks, whether the device asked for it or not.
    pub fn ring(&self) -> io::Result<()> {
        (&self.kick).write_all(&1u64.to_ne_bytes())
    }

    /// Leaves no room in the call eventfd: the next who writes to it waits.
    pub fn fill_call(&self) -> io::Result<()> {
        (&self.call).write_all(&(u64::MAX - 1).to_ne_bytes())
    }

    /// The first batch of a connection, which may go unnoticed; with a look at what came back.
    pub fn first_batch(&mut self) -> Result<(), Failure> {
        let wait = std::mem::replace(&mut self.work.wait, Wait::Call);
        let flags = self.ring_u16(AVAIL).swap(0, Ordering::Relaxed);
        self.publish();
        self.kick(self.work.depth)?;
        let start = Instant::now();
        while !self.is_done() {
            if start.elapsed() > FIRST_ANSWER {
                return Err(Failure::Silent);
            }
            if sys::readable(self.call.as_raw_fd(), FIRST_ANSWER).unwrap_or(false) {
                self.sleep()?;
            }
        }
        self.work.wait = wait;
        self.ring_u16(AVAIL).store(flags, Ordering::Relaxed);
        self.check_results()?;
        self.check_data()
    }

    /// Compares what came back with what was sent: the device loops back.
    pub fn check_data(&self) -> Result<(), Failure> {
        for slot in 0..self.work.depth {
            let [_, tx, rx, _] = self.parts(slot);
            if self.bytes(tx) != self.bytes(rx) {
                return Err(Failure::Wrong("other bytes came back than were sent"));
            }
        }
        Ok(())
    }
}
