//! One vring: its state as vhost-user sets it, and the driver's requests in it.
//!
//! A split virtqueue (VIRTIO 1.4, "Split Virtqueues"): this module keeps the two positions in it and
//! does the memory ordering; `chain` reads what is at a position.
//!
//! Invariant: a chain that was consumed is completed, exactly once, before the next is consumed.
//! Must not: know what the bytes of a request mean.

use std::fmt;
use std::fs::File;
use std::sync::atomic::{Ordering, fence};

use crate::error::{RingError, SessionError};
use crate::os::deferred_close::Foreign;
use crate::os::write_timeout::signal;
use crate::virtqueue::chain::{Chain, DESC_LEN};
use crate::virtqueue::memory::{Memory, UserAddress};

/// Most descriptors in a ring.
pub const MAX_SIZE: u16 = 1024;

const AVAIL_F_NO_INTERRUPT: u16 = 1 << 0;
const USED_F_NO_NOTIFY: u16 = 1 << 0;
/// Length of flags and index, with which both rings begin.
const RING_HEAD_LEN: u64 = 4;
const INDEX_OFFSET: u64 = 2;
const AVAIL_ENTRY_LEN: u64 = 2;
const USED_ENTRY_LEN: u64 = 8;
/// Length of the field behind the entries of both rings, for EVENT_IDX.
const EVENT_LEN: u64 = 2;

/// Where the three parts of the ring are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingAddresses {
    /// Descriptor table.
    pub desc: UserAddress,
    /// Available ring.
    pub avail: UserAddress,
    /// Used ring.
    pub used: UserAddress,
}

/// A part of a ring that is not in guest memory as it should be: the ring cannot run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Misplaced {
    part: &'static str,
    at: UserAddress,
    why: &'static str,
}

impl fmt::Display for Misplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { part, at, why } = self;
        write!(f, "{part} at user address {:#x} {why}", at.0)
    }
}

/// The same, as guest addresses. As long as the memory stays what it was, all of the ring is in it.
#[derive(Debug, Clone, Copy, Default)]
struct Located {
    desc: u64,
    avail: u64,
    used: u64,
}

/// A part of the ring as the front-end named it.
#[derive(Debug, Clone, Copy)]
struct Part {
    name: &'static str,
    at: UserAddress,
    len: u64,
    alignment: u64,
}

impl Part {
    const fn new(name: &'static str, at: UserAddress, len: u64, alignment: u64) -> Self {
        Self {
            name,
            at,
            len,
            alignment,
        }
    }

    const fn misplaced(&self, why: &'static str) -> Misplaced {
        Misplaced {
            part: self.name,
            at: self.at,
            why,
        }
    }

    /// Its first guest address.
    fn begin(&self, memory: &Memory) -> Result<u64, Misplaced> {
        let begin = memory.translate(self.at).map(|guest| guest.0);
        begin.ok_or(self.misplaced("begins outside guest memory"))
    }

    /// The same, if all of it is in memory: in one region or in several without a gap between them.
    fn locate(&self, memory: &Memory) -> Result<u64, Misplaced> {
        let guest = self.begin(memory)?;
        if !guest.is_multiple_of(self.alignment) {
            return Err(self.misplaced("is not aligned"));
        }
        if !memory.holds(guest, self.len) {
            return Err(self.misplaced("ends outside guest memory"));
        }
        Ok(guest)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No kick was set since the last stop.
    Stopped,
    /// The front-end started it; it runs where it is enabled and its addresses are good.
    Started,
    /// Its contents cannot be believed; only a stop or a reset leads on.
    Broken,
}

/// The vring of one guest.
#[derive(Debug)]
pub struct Vring {
    state: State,
    size: u16,
    addresses: Option<RingAddresses>,
    located: Located,
    /// Requests may be taken: it is started, enabled, and its addresses are good.
    running: bool,
    next_avail: u16,
    next_used: u16,
    event_idx: bool,
    indirect: bool,
    enabled: bool,
    /// No protocol features were acknowledged: the ring needs no enabling.
    always_enabled: bool,
    kick_absent: bool,
    /// Whether the driver's kicks are suppressed by the flag in the used ring, if it is known.
    suppressed: Option<bool>,
    /// How many chains were completed that the driver was not notified of.
    unnotified: u16,
    call: Option<Foreign>,
    err: Option<Foreign>,
}

impl Default for Vring {
    fn default() -> Self {
        Self {
            state: State::Stopped,
            size: MAX_SIZE,
            addresses: None,
            located: Located::default(),
            running: false,
            next_avail: 0,
            next_used: 0,
            event_idx: false,
            indirect: false,
            enabled: false,
            always_enabled: true,
            kick_absent: false,
            suppressed: None,
            unnotified: 0,
            call: None,
            err: None,
        }
    }
}

impl Vring {
    /// Back to how a session begins, fds closed; but protocol features, once acknowledged, go on
    /// asking for the ring to be enabled.
    pub fn reset(&mut self) {
        *self = Self {
            always_enabled: self.always_enabled,
            ..Self::default()
        };
    }

    /// Sets the number of descriptors; `false` unless it is a power of two up to [`MAX_SIZE`].
    pub fn set_size(&mut self, size: u32) -> bool {
        match u16::try_from(size) {
            Ok(size) if size.is_power_of_two() && size <= MAX_SIZE => {
                self.size = size;
                true
            }
            Ok(_) | Err(_) => false,
        }
    }

    /// Sets where the ring is. Its size may not be known yet, so that [`Vring::update`] says whether
    /// all of it is in memory.
    ///
    /// # Errors
    /// There is memory, and a part does not begin in it.
    pub fn set_addresses(
        &mut self,
        addresses: RingAddresses,
        memory: &Memory,
    ) -> Result<(), Misplaced> {
        self.addresses = Some(addresses);
        if memory.is_empty() {
            return Ok(());
        }
        let parts = self.parts(addresses);
        parts
            .iter()
            .try_for_each(|part| part.begin(memory).map(drop))
    }

    /// Sets the index of the next available entry; `false` if it is no 16-bit number.
    pub fn set_base(&mut self, base: u32) -> bool {
        match u16::try_from(base) {
            Ok(base) => {
                self.next_avail = base;
                true
            }
            Err(_) => false,
        }
    }

    /// Takes over the acknowledged features. Without protocol features the ring is enabled from
    /// its start (vhost-user, "Ring states").
    pub fn set_features(&mut self, event_idx: bool, indirect: bool, protocol_features: bool) {
        self.event_idx = event_idx;
        self.indirect = indirect;
        self.always_enabled = !protocol_features;
        // Which field suppresses kicks may be another one now.
        self.suppressed = None;
    }

    /// Enables or disables the ring.
    pub fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    /// Starts the ring: the front-end set its kick, or said that there is none.
    pub fn start(&mut self, kick_absent: bool) {
        if self.state == State::Stopped {
            self.state = State::Started;
        }
        self.kick_absent = kick_absent;
    }

    /// Stops the ring and returns the index from which a later start goes on.
    pub fn stop(&mut self) -> u16 {
        self.state = State::Stopped;
        self.running = false;
        self.next_avail
    }

    /// Sets or removes the eventfd that notifies the driver.
    pub fn set_call(&mut self, call: Option<File>) {
        self.call = call.map(Foreign::new);
    }

    /// Sets or removes the eventfd that reports a broken ring.
    pub fn set_err(&mut self, err: Option<File>) {
        self.err = err.map(Foreign::new);
    }

    /// Whether requests may be taken.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Whether the ring must be looked at from time to time, since nothing kicks.
    pub fn needs_polling(&self) -> bool {
        self.is_running() && self.kick_absent
    }

    /// After any change of state, features or memory: translates the ring's addresses anew and
    /// decides whether it runs.
    ///
    /// # Errors
    /// It was started and enabled, and a part of it is not in memory. Without any memory the ring
    /// waits for it.
    pub fn update(&mut self, memory: &Memory) -> Result<(), Misplaced> {
        let was_running = std::mem::take(&mut self.running);
        let enabled = self.enabled || self.always_enabled;
        let is_wanted = self.state == State::Started && enabled && !memory.is_empty();
        let Some(addresses) = self.addresses else {
            return Ok(());
        };
        let located = match self.locate(addresses, memory) {
            Ok(located) => located,
            Err(misplaced) if is_wanted => return Err(misplaced),
            Err(_) => return Ok(()),
        };
        self.located = located;
        if !is_wanted {
            return Ok(());
        }
        // A front-end restores the avail index alone; the used index is in the ring.
        let index = memory.load_u16(located.used.saturating_add(INDEX_OFFSET));
        if let Some(index) = index.filter(|_| !was_running) {
            self.next_used = index;
            // An earlier run may have left anything in the flag.
            self.suppressed = None;
        }
        self.running = true;
        Ok(())
    }

    /// Guest addresses of the three parts.
    fn locate(&self, addresses: RingAddresses, memory: &Memory) -> Result<Located, Misplaced> {
        let [desc, avail, used] = self.parts(addresses);
        Ok(Located {
            desc: desc.locate(memory)?,
            avail: avail.locate(memory)?,
            used: used.locate(memory)?,
        })
    }

    /// Lengths and alignments are those of VIRTIO 1.4, "Split Virtqueues".
    fn parts(&self, addresses: RingAddresses) -> [Part; 3] {
        let size = u64::from(self.size);
        let around = RING_HEAD_LEN.saturating_add(EVENT_LEN);
        let desc_len = size.saturating_mul(DESC_LEN);
        let avail_len = size.saturating_mul(AVAIL_ENTRY_LEN).saturating_add(around);
        let used_len = size.saturating_mul(USED_ENTRY_LEN).saturating_add(around);
        [
            Part::new("descriptor table", addresses.desc, desc_len, 16),
            Part::new("available ring", addresses.avail, avail_len, 2),
            Part::new("used ring", addresses.used, used_len, 4),
        ]
    }

    /// Guest address of the entry for `position` in the ring at `ring`, or of what lies behind the
    /// last one for a position equal to the size.
    fn entry(ring: u64, position: u16, entry_len: u64) -> u64 {
        let offset = u64::from(position).saturating_mul(entry_len);
        ring.saturating_add(offset).saturating_add(RING_HEAD_LEN)
    }

    /// Where `index` is in a ring.
    fn position(&self, index: u16) -> u16 {
        index.checked_rem(self.size).unwrap_or(0)
    }

    /// How many chains the driver has made available that were not consumed.
    ///
    /// # Errors
    /// The avail index is further ahead than the ring is long.
    pub fn pending(&self, memory: &Memory) -> Result<u16, RingError> {
        let address = self.located.avail.saturating_add(INDEX_OFFSET);
        let index = memory.load_u16(address).ok_or(RingError::Memory)?;
        let ahead = index.wrapping_sub(self.next_avail);
        if ahead > self.size {
            return Err(RingError::AvailIndex(index));
        }
        Ok(ahead)
    }

    /// The head of the next chain, which must be pending; it stays where it is until
    /// [`Vring::consume`].
    ///
    /// # Errors
    /// The ring cannot be believed.
    pub fn peek(&self, memory: &Memory) -> Result<u16, RingError> {
        let position = self.position(self.next_avail);
        let address = Self::entry(self.located.avail, position, AVAIL_ENTRY_LEN);
        let head = memory.load_u16(address).ok_or(RingError::Memory)?;
        if head >= self.size {
            return Err(RingError::Head(head));
        }
        Ok(head)
    }

    /// Takes the chain that [`Vring::peek`] showed.
    pub fn consume(&mut self) {
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Where the chain at `head` is to be read.
    pub fn chain(&self, head: u16) -> Chain {
        Chain {
            table: self.located.desc,
            table_len: self.size,
            indirect: self.indirect,
            head,
        }
    }

    /// Gives the chain at `head` back to the driver, with `len` bytes written.
    ///
    /// # Errors
    /// The used ring cannot be written.
    pub fn complete(&mut self, memory: &Memory, head: u16, len: u32) -> Result<(), RingError> {
        let mut element = [0; 8];
        let (id, written) = element.split_at_mut(4);
        id.copy_from_slice(&u32::from(head).to_le_bytes());
        written.copy_from_slice(&len.to_le_bytes());
        let used = self.located.used;
        let position = self.position(self.next_used);
        let address = Self::entry(used, position, USED_ENTRY_LEN);
        memory.write(address, &element).ok_or(RingError::Memory)?;
        self.next_used = self.next_used.wrapping_add(1);
        self.unnotified = self.unnotified.saturating_add(1);
        let address = used.saturating_add(INDEX_OFFSET);
        let stored = memory.store_u16(address, self.next_used);
        stored.ok_or(RingError::Memory)
    }

    /// Asks the driver not to kick while there is more in the ring than the next request.
    pub fn suppress_kicks(&mut self, memory: &Memory) {
        if self.suppressed != Some(true) && !self.event_idx {
            let set = memory.store_u16(self.located.used, USED_F_NO_NOTIFY);
            self.suppressed = set.map(|()| true);
        }
    }

    /// Asks the driver to kick again, and tells whether something came in meanwhile.
    ///
    /// # Errors
    /// The ring cannot be believed.
    pub fn rearm(&mut self, memory: &Memory) -> Result<bool, RingError> {
        let used = self.located.used;
        let set = if self.event_idx {
            let address = Self::entry(used, self.size, USED_ENTRY_LEN);
            memory.store_u16(address, self.next_avail)
        } else if self.suppressed != Some(false) {
            memory.store_u16(used, 0)
        } else {
            Some(())
        };
        set.ok_or(RingError::Memory)?;
        self.suppressed = Some(false);
        // A driver that did not see this in time has made its chain available before.
        fence(Ordering::SeqCst);
        self.pending(memory).map(|pending| pending > 0)
    }

    /// Whether chains were completed that the driver was not notified of.
    pub fn is_unnotified(&self) -> bool {
        self.unnotified > 0
    }

    /// Signals the call eventfd if chains were completed since the last time and the driver wants
    /// to know.
    ///
    /// # Errors
    /// The front-end filled its eventfd and made it blocking: the write was interrupted.
    pub fn notify(&mut self, memory: &Memory) -> Result<(), SessionError> {
        // Without a call eventfd, or while the ring does not run, the notification is kept.
        if self.call.is_none() || self.unnotified == 0 || !self.running {
            return Ok(());
        }
        let wanted = self.wants_notification(memory);
        self.unnotified = 0;
        match &self.call {
            Some(call) if wanted => signal(call),
            Some(_) | None => Ok(()),
        }
    }

    fn wants_notification(&self, memory: &Memory) -> bool {
        // A driver that looks at the used index after it asked for notification sees it as it is now.
        fence(Ordering::SeqCst);
        let avail = self.located.avail;
        if self.event_idx {
            let address = Self::entry(avail, self.size, AVAIL_ENTRY_LEN);
            // VIRTIO 1.4, "Used Buffer Notification Suppression": it names the index behind which
            // it wants to hear, one of those that were passed since the last time.
            let passed = |event| self.next_used.wrapping_sub(event).wrapping_sub(1);
            let event = memory.load_u16(address);
            return event.is_some_and(|event| passed(event) < self.unnotified);
        }
        let flags = memory.load_u16(avail);
        flags.is_some_and(|flags| flags & AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Takes the ring out of service until the front-end stops or resets it.
    ///
    /// # Errors
    /// The err eventfd is full and blocking.
    pub fn set_broken(&mut self) -> Result<(), SessionError> {
        self.state = State::Broken;
        self.running = false;
        match &self.err {
            Some(err) => signal(err),
            None => Ok(()),
        }
    }
}
