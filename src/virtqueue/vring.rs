//! One vring: its state as vhost-user sets it, and the driver's requests in it.
//!
//! A split virtqueue (VIRTIO 1.4, "Split Virtqueues"): this module keeps the two positions in it and
//! does the memory ordering; `chain` reads what is at a position.
//!
//! Invariant: a chain that was consumed is completed exactly once: [`Consumed`] can be neither copied
//! nor made elsewhere.
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

/// A chain that was taken off the available ring: [`Vring::complete`] gives it back.
#[derive(Debug)]
#[must_use = "a chain that was consumed must be completed"]
pub struct Consumed {
    head: u16,
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

    /// The next chain, which must be pending; it stays where it is until [`Vring::consume`].
    ///
    /// # Errors
    /// The ring cannot be believed.
    pub fn peek(&self, memory: &Memory) -> Result<Chain, RingError> {
        let position = self.position(self.next_avail);
        let address = Self::entry(self.located.avail, position, AVAIL_ENTRY_LEN);
        let head = memory.load_u16(address).ok_or(RingError::Memory)?;
        if head >= self.size {
            return Err(RingError::Head(head));
        }
        Ok(Chain {
            table: self.located.desc,
            table_len: self.size,
            indirect: self.indirect,
            head,
        })
    }

    /// Takes the chain that [`Vring::peek`] showed.
    pub fn consume(&mut self, chain: Chain) -> Consumed {
        self.next_avail = self.next_avail.wrapping_add(1);
        Consumed { head: chain.head }
    }

    /// Gives a chain back to the driver, with `len` bytes written.
    ///
    /// # Errors
    /// The used ring cannot be written.
    pub fn complete(
        &mut self,
        memory: &Memory,
        chain: Consumed,
        len: u32,
    ) -> Result<(), RingError> {
        let mut element = [0; 8];
        let (id, written) = element.split_at_mut(4);
        id.copy_from_slice(&u32::from(chain.head).to_le_bytes());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::write_timeout;
    use crate::virtqueue::memory::tests::flat_memory;
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    const SIZE: u16 = 4;
    const DESC: u64 = 0x1000;
    const AVAIL: u64 = 0x2000;
    const USED: u64 = 0x3000;
    /// Where the driver says of which used index it wants to hear; after its four entries.
    const USED_EVENT: u64 = AVAIL + 4 + 2 * 4;
    /// Where the device says of which available index it wants to hear; after its four elements.
    const AVAIL_EVENT: u64 = USED + 4 + 8 * 4;

    /// A ring of four entries, and its driver's end of the call fd.
    struct Rig {
        memory: Memory,
        vring: Vring,
        call: UnixStream,
    }

    impl Rig {
        /// Set up at the usual place, but not started.
        fn stopped() -> Self {
            // Each signal arms the write time-out, whose tick ends a process without this handler.
            write_timeout::install().unwrap();
            let (call, device_end) = UnixStream::pair().unwrap();
            call.set_nonblocking(true).unwrap();
            let mut rig = Self {
                memory: flat_memory(),
                vring: Vring::default(),
                call,
            };
            assert!(rig.vring.set_size(SIZE.into()));
            rig.set_addresses(DESC, AVAIL, USED);
            let device_end = File::from(OwnedFd::from(device_end));
            rig.vring.set_call(Some(device_end));
            rig
        }

        /// Started, with EVENT_IDX or without.
        fn running(event_idx: bool) -> Self {
            let mut rig = Self::stopped();
            rig.set_features(event_idx);
            rig.start();
            assert!(rig.vring.is_running());
            rig
        }

        /// Each of the messages below ends with an update, as `Backend::change` has it.
        fn set_addresses(&mut self, desc: u64, avail: u64, used: u64) {
            let addresses = RingAddresses {
                desc: UserAddress(desc),
                avail: UserAddress(avail),
                used: UserAddress(used),
            };
            self.vring.set_addresses(addresses, &self.memory).unwrap();
            self.update();
        }

        fn update(&mut self) {
            self.vring.update(&self.memory).unwrap();
        }

        fn set_features(&mut self, event_idx: bool) {
            self.vring.set_features(event_idx, false, false);
            self.update();
        }

        fn start(&mut self) {
            self.vring.start(false);
            self.update();
        }

        fn load(&self, address: u64) -> u16 {
            self.memory.load_u16(address).unwrap()
        }

        fn store(&self, address: u64, number: u16) {
            self.memory.store_u16(address, number).unwrap();
        }

        /// The driver makes the chain at `head` available in the ring at `avail`.
        fn offer(&self, avail: u64, head: u16) {
            let index = self.load(avail + 2);
            self.store(avail + 4 + 2 * u64::from(index % SIZE), head);
            self.store(avail + 2, index.wrapping_add(1));
        }

        /// Takes the next chain and completes it; its head.
        fn serve(&mut self) -> u16 {
            assert!(self.vring.pending(&self.memory).unwrap() > 0);
            let chain = self.vring.peek(&self.memory).unwrap();
            let head = chain.head;
            let chain = self.vring.consume(chain);
            self.vring.complete(&self.memory, chain, 1).unwrap();
            head
        }

        /// Whether the driver is signalled now.
        fn notify(&mut self) -> bool {
            self.vring.notify(&self.memory).unwrap();
            self.call.read(&mut [0; 8]).is_ok()
        }
    }

    #[test]
    fn notify_used_event_that_was_passed_the_last_time_signals_nothing() {
        let mut rig = Rig::running(true);
        rig.store(USED_EVENT, 0);
        rig.offer(AVAIL, 1);
        rig.serve();
        assert!(rig.notify(), "index 0 was passed");
        rig.offer(AVAIL, 2);
        rig.serve();
        assert!(!rig.notify(), "index 0 was passed before, 1 was passed now");
        rig.store(USED_EVENT, 3);
        rig.offer(AVAIL, 3);
        rig.offer(AVAIL, 0);
        rig.serve();
        assert!(!rig.notify(), "index 2 was passed");
        rig.serve();
        assert!(rig.notify(), "index 3 was passed");
    }

    #[test]
    fn complete_used_index_overwritten_by_the_driver_goes_on_from_its_own() {
        let mut rig = Rig::running(true);
        rig.offer(AVAIL, 1);
        rig.serve();
        rig.store(USED + 2, 0x7777);
        // A message such as SET_VRING_ENABLE comes, and leaves the ring running.
        rig.vring.set_enabled(true);
        rig.update();
        rig.offer(AVAIL, 2);
        rig.serve();
        assert_eq!(rig.load(USED + 2), 2);
        assert_eq!(rig.load(USED + 4 + 8), 2, "the second element has its head");
    }

    #[test]
    fn start_restores_the_used_index_from_the_ring() {
        let mut rig = Rig::running(true);
        rig.vring.stop();
        rig.store(USED + 2, 0xffff);
        rig.start();
        rig.offer(AVAIL, 3);
        rig.serve();
        assert_eq!(rig.load(USED + 2), 0);
        // 0xffff is the last entry of four.
        assert_eq!(rig.load(USED + 4 + 8 * 3), 3);
    }

    #[test]
    fn stop_of_a_ring_that_was_never_started_returns_the_base_that_was_set() {
        let mut rig = Rig::stopped();
        assert!(rig.vring.set_base(0xfffe));
        rig.update();
        assert_eq!(rig.vring.stop(), 0xfffe);
        let mut without_addresses = Vring::default();
        assert!(without_addresses.set_base(5));
        assert_eq!(without_addresses.stop(), 5);
        assert!(!without_addresses.set_base(0x1_0000));
    }

    #[test]
    fn set_features_of_a_running_ring_changes_how_kicks_are_asked_for() {
        let mut rig = Rig::running(false);
        rig.vring.suppress_kicks(&rig.memory);
        assert_eq!(rig.load(USED), USED_F_NO_NOTIFY);
        rig.set_features(true);
        rig.offer(AVAIL, 1);
        rig.serve();
        assert!(!rig.vring.rearm(&rig.memory).unwrap());
        assert_eq!(rig.load(AVAIL_EVENT), 1);
        // The flag of the time before must not stand any more.
        rig.set_features(false);
        assert!(!rig.vring.rearm(&rig.memory).unwrap());
        assert_eq!(rig.load(USED), 0);
    }

    #[test]
    fn set_features_of_a_running_ring_changes_how_the_driver_is_told() {
        let mut rig = Rig::running(false);
        rig.store(AVAIL, AVAIL_F_NO_INTERRUPT);
        rig.set_features(true);
        rig.offer(AVAIL, 1);
        rig.serve();
        assert!(rig.notify(), "the flag is of no meaning with EVENT_IDX");
        rig.store(USED_EVENT, 1);
        rig.set_features(false);
        rig.offer(AVAIL, 2);
        rig.serve();
        assert!(!rig.notify(), "the event is of no meaning without");
        rig.store(AVAIL, 0);
        rig.offer(AVAIL, 3);
        rig.serve();
        assert!(rig.notify());
    }

    #[test]
    fn pending_beyond_the_size_breaks_the_ring() {
        let rig = Rig::running(true);
        rig.store(AVAIL + 2, SIZE);
        assert_eq!(rig.vring.pending(&rig.memory).ok(), Some(SIZE));
        rig.store(AVAIL + 2, SIZE + 1);
        let error = rig.vring.pending(&rig.memory).unwrap_err();
        assert!(matches!(error, RingError::AvailIndex(5)), "{error}");
    }

    #[test]
    fn peek_of_a_head_beyond_the_table_breaks_the_ring() {
        let rig = Rig::running(true);
        rig.offer(AVAIL, SIZE);
        let error = rig.vring.peek(&rig.memory).unwrap_err();
        assert!(matches!(error, RingError::Head(4)), "{error}");
    }

    #[test]
    fn rearm_sees_what_came_in_while_kicks_were_suppressed() {
        for event_idx in [false, true] {
            let mut rig = Rig::running(event_idx);
            rig.vring.suppress_kicks(&rig.memory);
            rig.offer(AVAIL, 0);
            assert!(rig.vring.rearm(&rig.memory).unwrap());
            rig.serve();
            assert!(!rig.vring.rearm(&rig.memory).unwrap());
        }
    }

    #[test]
    fn update_available_ring_at_guest_address_0_runs() {
        let mut rig = Rig::stopped();
        rig.set_features(true);
        rig.set_addresses(DESC, 0, USED);
        rig.start();
        assert!(rig.vring.is_running());
        rig.offer(0, 2);
        assert_eq!(rig.serve(), 2);
        assert!(!rig.vring.rearm(&rig.memory).unwrap());
    }
}
