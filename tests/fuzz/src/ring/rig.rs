// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's side: the daemon's parts put together, and the copy of guest memory.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::time::{Duration, Instant};

use vhost_device_spi::config::{GuestNumber, HoldPolicy};
use vhost_device_spi::error::SessionError;
use vhost_device_spi::os::deferred_close::{Closer, FrontendFile};
use vhost_device_spi::os::epoll::{Registered, Token};
use vhost_device_spi::os::file_kind::FileKind;
use vhost_device_spi::serve::grant::Shared;
use vhost_device_spi::serve::requestq::{Requestq, Turn};
use vhost_device_spi::spi::bus::Bus;
use vhost_device_spi::spi::wire::{ConfigSpace, Limits};
use vhost_device_spi::vhost_user::backend::Backend;
use vhost_device_spi::virtqueue::memory::{RegionDescription, UserAddress};
use vhost_device_spi::virtqueue::vring::{F_EVENT_IDX, F_INDIRECT_DESC, F_PROTOCOL_FEATURES};
use vm_memory::{Bytes, GuestAddress};

use super::expect::{CUT, Expected, Next, View};
use super::guest::DATA;
use super::{AVAIL, DESC, MEMORY_LEN, USED};
use crate::devices::{self, buses};
use crate::fds;
use crate::input::Input;

/// User addresses are this far behind guest addresses, and the second region is elsewhere.
const USER: [u64; 2] = [1 << 40, 1 << 41];

/// How the ring is set up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Setup {
    pub size: u16,
    pub desc: usize,
    pub avail: usize,
    pub used: usize,
    event_idx: bool,
    indirect: bool,
}

/// A request on the way.
struct Active {
    expected: Expected,
    /// What is to be received, where that can be told.
    content: Option<Vec<u8>>,
}

pub struct Rig {
    pub setup: Setup,
    backend: Backend,
    requestq: Requestq,
    shared: Shared,
    limits: Vec<Limits>,
    second: File,
    has_second: bool,
    call: File,
    /// All bytes of guest memory as they must be.
    copy: Vec<u8>,
    next_avail: u16,
    next_used: u16,
    active: Option<Active>,
    unnotified: bool,
    /// Holds that ran out and have not cost a request.
    ran_out: usize,
    /// The driver's flags have changed since a chain was completed of which it is not known yet whether
    /// the driver was notified.
    flags_moved: bool,
}

fn describe(number: usize) -> RegionDescription {
    let (len, start) = (
        u64::try_from(CUT).unwrap(),
        u64::try_from(number * CUT).unwrap(),
    );
    RegionDescription {
        guest: GuestAddress(start),
        user: UserAddress(USER[number] + start),
        len,
        file_offset: 0,
    }
}

fn user(address: usize) -> UserAddress {
    let number = usize::from(address >= CUT);
    UserAddress(USER[number] + u64::try_from(address).unwrap())
}

impl Rig {
    pub fn new() -> Self {
        let buses = buses();
        let devices = buses.iter().flat_map(|bus| &bus.devices);
        let limits: Vec<Limits> = devices.map(|device| device.limits).collect();
        let config = ConfigSpace::new(limits.iter());
        let shared = devices::shared(buses);
        let backend = Backend::new(
            GuestNumber::default(),
            config,
            1 << 40,
            shared.poller.clone(),
        );
        let closer = shared.deferred.of_guest(GuestNumber::default());
        let (first, second) = (fds::memfd(CUT), fds::memfd(CUT));
        let regions = [first, second.try_clone().unwrap()];
        for (number, file) in regions.into_iter().enumerate() {
            let file = FrontendFile::new(file, FileKind::Memory, &closer);
            backend.guest().memory.add(describe(number), file).unwrap();
        }
        Self {
            setup: Setup::default(),
            backend,
            requestq: Requestq::new(GuestNumber::default(), devices::grant(config)),
            shared,
            limits,
            second,
            has_second: true,
            call: fds::eventfd(),
            copy: vec![0; MEMORY_LEN],
            next_avail: 0,
            next_used: 0,
            active: None,
            unnotified: false,
            ran_out: 0,
            flags_moved: false,
        }
    }

    /// A guest as it starts, with a ring as the input wants it.
    pub fn start(&mut self, input: &mut Input) {
        if !self.has_second {
            self.change_memory();
        }
        self.shared.buses = buses();
        let flags = input.u8();
        let place = |input: &mut Input, usual: usize, align: usize| match input.u8() {
            odd @ 224.. => {
                (usize::from(odd - 224) * 1028 + usize::from(input.u8())) / align * align
            }
            _ => usual,
        };
        self.setup = Setup {
            size: 1 << (input.u8() % 7),
            desc: place(input, DESC, 16),
            avail: place(input, AVAIL, 2),
            used: place(input, USED, 4),
            event_idx: flags & 1 != 0,
            indirect: flags & 2 != 0,
        };
        self.requestq.grant.policy = match flags >> 2 & 3 {
            0 | 1 => HoldPolicy::Queued,
            2 => HoldPolicy::Spec,
            _ => HoldPolicy::WriteRead,
        };
        self.fill();
        self.backend.guest().vring.reset();
        self.unnotified = false;
        self.ran_out = 0;
        self.flags_moved = false;
        let closer = self.closer();
        let call = (flags & 16 != 0).then(|| self.call.try_clone().unwrap());
        let call = call.map(|file| FrontendFile::new(file, FileKind::Anonymous, &closer));
        self.backend.guest().vring.call = call;
        self.restart(input);
    }

    fn closer(&self) -> Closer {
        self.shared.deferred.of_guest(GuestNumber::default())
    }

    /// As the loop does: what was replaced is closed now.
    pub fn collect(&self) {
        self.shared.deferred.collect();
    }

    fn fill(&mut self) {
        for (at, byte) in (0u32..).zip(&mut self.copy) {
            let usual = DATA..MEMORY_LEN;
            let seed = at.wrapping_mul(2_654_435_761) >> 24;
            let is_data = usual.contains(&usize::try_from(at).unwrap());
            *byte = if is_data {
                u8::try_from(seed).unwrap()
            } else {
                0
            };
        }
        let copy = std::mem::take(&mut self.copy);
        let memory = &self.backend.guest().memory;
        memory.write_slice(&copy, GuestAddress(0)).unwrap();
        self.copy = copy;
    }

    /// Sets the ring up and lets it run from an index of the input's.
    pub fn restart(&mut self, input: &mut Input) {
        let Setup {
            size,
            desc,
            avail,
            used,
            event_idx,
            indirect,
        } = self.setup;
        let base = match input.u8() {
            0..240 => self.le16(avail + 2),
            _ => input.u16(),
        };
        let addresses = [desc, avail, used].map(user);
        let kick = FrontendFile::new(fds::eventfd(), FileKind::Anonymous, &self.closer());
        let token = Token::Kick(GuestNumber::default());
        let kick = Registered::new(&self.shared.poller, kick, token).unwrap();
        let mut guest = self.backend.guest();
        let guest = &mut *guest;
        guest.vring.set_size(size.into()).unwrap();
        let _ = guest.vring.set_addresses(addresses, &guest.memory);
        assert!(guest.vring.set_base(base.into()));
        let bit = |on, bit| if on { bit } else { 0 };
        let features = bit(event_idx, F_EVENT_IDX) | bit(indirect, F_INDIRECT_DESC);
        guest.vring.set_features(features | F_PROTOCOL_FEATURES);
        guest.vring.enabled = true;
        guest.vring.start(Some(kick));
        let _ = guest.vring.update(&guest.memory);
        self.next_avail = base;
        self.next_used = u16::from_le_bytes([self.copy[used + 2], self.copy[used + 3]]);
    }

    fn le16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.copy[at], self.copy[at + 1]])
    }

    /// The index that the driver has made available so far.
    pub fn available(&self) -> u16 {
        self.le16(self.setup.avail + 2)
    }

    fn memory_len(&self) -> usize {
        if self.has_second { MEMORY_LEN } else { CUT }
    }

    /// The guest writes.
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        let room = self.memory_len().saturating_sub(at);
        let bytes = &bytes[..bytes.len().min(room)];
        self.copy[at..at + bytes.len()].copy_from_slice(bytes);
        let address = u64::try_from(at).unwrap();
        let flags = self.setup.avail..self.setup.avail + 2;
        self.flags_moved |= self.unnotified && at < flags.end && flags.start < at + bytes.len();
        let memory = &self.backend.guest().memory;
        let _ = memory.write_slice(bytes, GuestAddress(address));
        if let Some(active) = &mut self.active {
            active.content = None;
        }
    }

    /// Removes the second region, or gives it back.
    pub fn change_memory(&mut self) {
        self.abort();
        let closer = self.closer();
        let mut guest = self.backend.guest();
        let guest = &mut *guest;
        if self.has_second {
            guest.memory.remove(&describe(1)).unwrap();
        } else {
            let file = self.second.try_clone().unwrap();
            let file = FrontendFile::new(file, FileKind::Memory, &closer);
            guest.memory.add(describe(1), file).unwrap();
        }
        self.has_second = !self.has_second;
        let was_running = guest.vring.is_running();
        let _ = guest.vring.update(&guest.memory);
        if guest.vring.is_running() && !was_running {
            self.next_used = self.le16(self.setup.used + 2);
        }
    }

    /// One turn, as the event loop gives it, and what it must have done.
    pub fn turn(&mut self) -> Turn {
        let running = self.backend.guest().vring.is_running();
        let next = (running && self.active.is_none()).then(|| self.next());
        let flags = self.le16(self.setup.avail);
        self.shared.now = Instant::now();
        let turn = self
            .requestq
            .turn(&mut self.backend.guest(), &mut self.shared)
            .unwrap();
        for bus in &mut self.shared.buses {
            bus.clear_reservation(GuestNumber::default());
        }
        self.check_turn(next, turn);
        self.flags_moved |= flags != self.le16(self.setup.avail);
        turn
    }

    /// What is next, or the request on the way, must have been dealt with.
    fn check_turn(&mut self, next: Option<Next>, turn: Turn) {
        let goes_on = self.requestq.is_active();
        match next {
            None if self.active.is_none() => self.compare(&[]),
            None => self.went_on(goes_on),
            Some(Next::Broken) => {
                assert!(!self.backend.guest().vring.is_running());
                self.compare(&[]);
                // The driver was told of all that went before.
                self.check_notified();
            }
            Some(Next::Empty) => {
                assert!(!goes_on);
                self.compare(&[]);
            }
            Some(Next::Chain(expected)) => {
                assert!(self.backend.guest().vring.is_running());
                // A chain that waits for its bus is not consumed.
                if goes_on || turn == Turn::Again {
                    self.consumed(expected);
                    self.went_on(goes_on);
                } else {
                    assert!(expected.is_valid);
                    self.compare(&[]);
                }
            }
        }
    }

    fn next(&self) -> Next {
        let view = View {
            bytes: &self.copy[..self.memory_len()],
            size: self.setup.size,
            desc: self.setup.desc,
            avail: self.setup.avail,
            indirect: self.setup.indirect,
        };
        view.next(self.next_avail, &self.limits)
    }

    fn consumed(&mut self, expected: Expected) {
        self.next_avail = self.next_avail.wrapping_add(1);
        let content = self.content(&expected);
        self.active = Some(Active { expected, content });
    }

    /// What the loopback gives, where no two of tx, rx and the rings share a byte.
    fn content(&self, expected: &Expected) -> Option<Vec<u8>> {
        let mut taken = vec![false; MEMORY_LEN];
        taken[self.used_ring()].fill(true);
        for range in expected.tx.iter().chain(&expected.rx) {
            let part = &mut taken[range.clone()];
            if part.contains(&true) {
                return None;
            }
            part.fill(true);
        }
        let result = expected.result?;
        if taken[result] {
            return None;
        }
        if expected.tx.is_empty() {
            let len = expected.rx.iter().map(ExactSizeIterator::len).sum();
            return Some(vec![0xff; len]);
        }
        Some(bytes_at(&self.copy, &expected.tx))
    }

    /// The request on the way made a step, or came to its end.
    fn went_on(&mut self, goes_on: bool) {
        let Some(active) = self.active.take() else {
            return;
        };
        let Active { expected, content } = active;
        assert!(!goes_on || expected.is_valid);
        let mut changed = if expected.is_valid {
            expected.rx.clone()
        } else {
            Vec::new()
        };
        if goes_on {
            self.compare(&changed);
            self.active = Some(Active { expected, content });
            return;
        }
        changed.extend(self.completion(&expected));
        self.compare(&changed);
        let is_cut = expected.is_valid && self.is_cut(&expected);
        let byte = match (expected.is_valid, is_cut) {
            (false, _) => 1,
            (true, true) => 2,
            (true, false) => 0,
        };
        self.check_completion(&expected, byte);
        if let Some(content) = content.filter(|_| !is_cut && !expected.rx.is_empty()) {
            let received = bytes_at(&self.copy, &expected.rx);
            assert!(received == content, "not what was sent");
        }
    }

    /// Whether a request was answered TRANS_ERR because it would have continued a hold that ran out:
    /// each such hold costs one request at most.
    fn is_cut(&mut self, expected: &Expected) -> bool {
        let is_cut = expected.result.is_some_and(|at| self.copy[at] == 2) && self.ran_out > 0;
        self.ran_out -= usize::from(is_cut);
        is_cut
    }

    /// What giving a chain back changes.
    fn completion(&self, expected: &Expected) -> Vec<Range<usize>> {
        let element = self.element();
        let index = self.setup.used + 2;
        let result = expected.result.map(|result| result..result + 1);
        [element..element + 8, index..index + 2]
            .into_iter()
            .chain(result)
            .collect()
    }

    fn element(&self) -> usize {
        let slot = usize::from(self.next_used % self.setup.size);
        self.setup.used + 4 + 8 * slot
    }

    /// Flags and avail event, which any turn may change, and all between them.
    fn used_ring(&self) -> Range<usize> {
        let len = 6 + 8 * usize::from(self.setup.size);
        self.setup.used..(self.setup.used + len).min(MEMORY_LEN)
    }

    /// The element is right, and is the next; and so is the result, where the element is not over it.
    fn check_completion(&mut self, expected: &Expected, byte: u8) {
        let element = self.element();
        let le32 = |at: usize| u32::from_le_bytes(self.copy[at..at + 4].try_into().unwrap());
        assert_eq!(le32(element), u32::from(expected.head));
        assert_eq!(le32(element + 4), expected.used_len);
        self.next_used = self.next_used.wrapping_add(1);
        assert_eq!(self.le16(self.setup.used + 2), self.next_used);
        self.unnotified = true;
        let ring = self.used_ring();
        if let Some(result) = expected.result.filter(|result| !ring.contains(result)) {
            assert_eq!(self.copy[result], byte, "{expected:?}");
        }
    }

    /// Compares memory with the copy, which is then brought up to date: only `changed` may differ,
    /// and the two notification fields of the used ring.
    fn compare(&mut self, changed: &[Range<usize>]) {
        let len = self.memory_len();
        let mut now = vec![0; len];
        self.backend.guest().memory.read(0, &mut now).unwrap();
        let ring = self.used_ring();
        let fields = [ring.start..ring.start + 2, ring.end - 2..ring.end];
        for range in changed.iter().chain(&fields) {
            let range = range.start.min(len)..range.end.min(len);
            self.copy[range.clone()].copy_from_slice(&now[range]);
        }
        if self.copy[..len] != now {
            let at = self
                .copy
                .iter()
                .zip(&now)
                .position(|(copy, now)| copy != now);
            panic!("changed at {at:x?}, but only {changed:x?} may be");
        }
    }

    /// Whether the guest was waiting for a bus that is free now.
    pub fn is_woken(&mut self) -> bool {
        let now = Instant::now();
        let due = self.shared.buses.iter().filter_map(Bus::deadline).min();
        if due.is_some_and(|at| at <= now + Duration::from_micros(100)) {
            super::wait(due.unwrap_or(now));
            self.expire();
        }
        let mut waiters = self.shared.buses.iter_mut().filter_map(Bus::next_waiter);
        waiters.next().is_some()
    }

    /// Ends holds that have run out.
    pub fn expire(&mut self) {
        let mut now = Instant::now();
        let due = self.shared.buses.iter().filter_map(Bus::deadline);
        self.ran_out += due.filter(|at| *at <= now).count();
        for bus in &mut self.shared.buses {
            bus.expire(&mut now, |_| false);
        }
    }

    /// The session ends the request on the way.
    pub fn abort(&mut self) {
        let Ok(()) = self
            .requestq
            .abort(&mut self.backend.guest(), &mut self.shared)
        else {
            panic!("the call eventfd blocked");
        };
        self.was_aborted();
    }

    fn was_aborted(&mut self) {
        assert!(!self.requestq.is_active());
        if let Some(Active { expected, .. }) = self.active.take() {
            let changed = self.completion(&expected);
            self.compare(&changed);
            self.check_completion(&expected, 2);
        }
        self.check_notified();
    }

    /// What GET_VRING_BASE does; `false` if it has to wait for the request on the way.
    pub fn ask_to_stop(&mut self) -> bool {
        let stopped = self
            .requestq
            .stop(&mut self.backend.guest(), &mut self.shared);
        if !stopped.unwrap() {
            return false;
        }
        self.was_aborted();
        let base = self.backend.guest().vring.stop();
        assert_eq!(base, self.next_avail);
        true
    }

    /// What the loop does when the guest's turn is over.
    pub fn notify(&mut self) {
        self.notify_driver().unwrap();
        self.check_notified();
    }

    fn notify_driver(&self) -> Result<(), SessionError> {
        let mut guest = self.backend.guest();
        let guest = &mut *guest;
        guest.vring.notify(&guest.memory)
    }

    /// Without EVENT_IDX it is told easily whether there was to be a notification.
    fn check_notified(&mut self) {
        let mut count = [0; 8];
        let is_notified = (&self.call).read(&mut count).is_ok();
        if self.backend.guest().vring.is_unnotified() {
            assert!(!is_notified, "not yet, or there is no call");
            return;
        }
        let wanted = self.le16(self.setup.avail) & 1 == 0;
        let completed = std::mem::take(&mut self.unnotified);
        let moved = std::mem::take(&mut self.flags_moved);
        if !self.setup.event_idx && !moved && self.setup.avail < CUT {
            assert_eq!(is_notified, completed && wanted);
        }
    }
}

fn bytes_at(bytes: &[u8], ranges: &[Range<usize>]) -> Vec<u8> {
    let parts = ranges.iter().map(|range| &bytes[range.clone()]);
    parts.flatten().copied().collect()
}
