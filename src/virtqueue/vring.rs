// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One vring: its state as vhost-user sets it, and the chains that the driver makes available.
//!
//! A split virtqueue (VIRTIO 1.4, "Split Virtqueues"). `virtio_queue::Queue` keeps its size, its guest
//! addresses and both positions, writes the used ring, and orders the accesses to memory that the
//! driver shares. This module adds what vhost-user says of a ring (started, enabled, broken, its user
//! addresses, its call and err fds), and reads the available ring: its index, in few instructions, the
//! next chain's head without taking it, and the flag NO_INTERRUPT.
//!
//! Invariant: a chain that was consumed is completed exactly once. [`Consumed`] can neither be copied
//! nor be made elsewhere.
//!
//! Should: trust nothing in the ring. Its indices and heads are checked each time that they are read,
//! and a ring that breaks the rules stops. Must not: know what the bytes of a request mean.
//!
//! Called by `backend` and `with_fds` for messages about the ring, by `requestq` and `request` for each
//! request, and by `session` for notifications.

use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::error::{RingError, SessionError};
use crate::os::deferred_close::FrontendFile;
use crate::os::epoll::Registered;
use crate::os::write_timeout::signal_eventfd;
use crate::virtqueue::chain::Chain;
use crate::virtqueue::memory::{Memory, UserAddress};

/// Most descriptors in a ring.
pub const MAX_SIZE: u16 = 1024;

/// Feature bit: the driver may use indirect tables.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// Feature bit: notifications are suppressed by an index rather than a flag.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// vhost-user's feature bit: protocol features are negotiated, and each ring must be enabled.
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`: the driver asks not to be notified.
const AVAIL_F_NO_INTERRUPT: u16 = 1 << 0;
/// Where the available ring's index is, in bytes from its start.
const AVAIL_INDEX_OFFSET: u64 = 2;
/// Length of the available ring's flags and index, in bytes: its entries follow.
const AVAIL_HEADER_LEN: u64 = 4;
/// Length of an entry of the available ring in bytes: the index of a chain's first descriptor.
const AVAIL_ENTRY_LEN: u64 = 2;

/// Where the three parts of the ring are, in the front-end's address space: descriptor table, available
/// ring, used ring.
pub type RingAddresses = [UserAddress; 3];

/// A part of the ring as the front-end described it.
struct Part {
    name: &'static str,
    at: UserAddress,
    /// Length in bytes.
    len: usize,
    /// Sets the part's guest address in the queue, which checks its alignment.
    set: SetAddress,
}

type SetAddress = fn(&mut Queue, GuestAddress) -> Result<(), virtio_queue::Error>;

impl Part {
    /// The guest address of its first byte, if `len` bytes from there are in memory: in one region, or
    /// in several without a gap between them.
    ///
    /// # Errors
    /// The first byte, or another one of the `len`, is not in guest memory.
    fn locate(&self, memory: &Memory, len: usize) -> Result<GuestAddress, String> {
        let begin = memory.translate(self.at);
        let begin = begin.ok_or_else(|| self.misplaced("begins outside guest memory"))?;
        let is_whole = memory.check_range(begin, len);
        let end = is_whole.then_some(begin);
        end.ok_or_else(|| self.misplaced("ends outside guest memory"))
    }

    /// Why the ring cannot run, for the log.
    fn misplaced(&self, why: &str) -> String {
        format!("{} at user address {:#x} {why}", self.name, self.at.0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The front-end has not sent SET_VRING_KICK since the last stop.
    Stopped,
    /// The front-end has sent SET_VRING_KICK: the ring runs if it is also enabled and in memory.
    Started,
    /// The driver broke the rules of the ring, or the front-end placed it wrongly: it does not run before a
    /// stop or a reset.
    Broken,
}

/// A chain that was taken off the available ring and is not in the used ring yet. [`Vring::complete`]
/// takes it by value, so that no chain is completed twice.
#[derive(Debug)]
#[must_use = "a chain that was consumed must be completed"]
pub struct Consumed(u16);

/// Debug builds, such as the tests, panic if a chain is never completed: its driver would wait for ever.
#[cfg(debug_assertions)]
impl Drop for Consumed {
    fn drop(&mut self) {
        let panicking = std::thread::panicking();
        assert!(panicking, "chain {} was consumed, not completed", self.0);
    }
}

/// The vring of one guest.
#[derive(Debug)]
pub struct Vring {
    /// Size, guest addresses, both positions, EVENT_IDX. Ready means that the ring runs: it is
    /// started, enabled, aligned and wholly in memory.
    queue: Queue,
    state: State,
    /// As the last SET_VRING_ADDR gave them, whether they are in memory or not.
    addresses: Option<RingAddresses>,
    /// The feature bits that were acknowledged.
    features: u64,
    /// As the last SET_VRING_ENABLE left it; [`Vring::update`] applies a change.
    pub enabled: bool,
    /// Chains were completed since the ring was last asked whether the driver wants to be notified.
    completed: bool,
    /// The driver is to be notified, and was not yet.
    owed: bool,
    /// The driver wanted no notification of the chains that were completed last: it watches the used ring.
    pub is_watched: bool,
    /// The driver was asked not to kick, and not yet to kick again.
    is_quiet: bool,
    /// The eventfd by which the driver notifies us; a ring that runs without one must be looked at.
    kick: Option<Registered>,
    /// The eventfd that notifies the driver.
    pub call: Option<FrontendFile>,
    /// The eventfd that reports a broken ring.
    pub err: Option<FrontendFile>,
}

impl Default for Vring {
    fn default() -> Self {
        Self {
            // `MAX_SIZE` is a power of two, so this never falls back to the default, whose size is 0.
            queue: Queue::new(MAX_SIZE).unwrap_or_default(),
            state: State::Stopped,
            addresses: None,
            features: 0,
            enabled: false,
            completed: false,
            owed: false,
            is_watched: false,
            is_quiet: false,
            kick: None,
            call: None,
            err: None,
        }
    }
}

impl Vring {
    /// Resets the ring to its state at the start of a session and gives up its fds. Only the
    /// acknowledgement of protocol features outlives this: the ring must still be enabled.
    pub fn reset(&mut self) {
        *self = Self {
            features: self.features & F_PROTOCOL_FEATURES,
            ..Self::default()
        };
    }

    /// Sets the number of descriptors.
    ///
    /// # Errors
    /// It is not a power of two up to [`MAX_SIZE`].
    pub fn set_size(&mut self, size: u32) -> Result<(), String> {
        let is_set = u16::try_from(size).is_ok_and(|size| self.queue.try_set_size(size).is_ok());
        let why = || format!("SET_VRING_NUM: {size} is not a power of two up to {MAX_SIZE}");
        is_set.then_some(()).ok_or_else(why)
    }

    /// Sets where the ring is. Its size may be set later, so only [`Vring::update`] can tell whether
    /// all of it is in memory.
    ///
    /// # Errors
    /// There is memory, and a part does not begin in it.
    pub fn set_addresses(&mut self, at: RingAddresses, memory: &Memory) -> Result<(), String> {
        self.addresses = Some(at);
        if memory.num_regions() == 0 {
            return Ok(());
        }
        let mut parts = self.parts(at).into_iter();
        parts.try_for_each(|part| part.locate(memory, 0).map(drop))
    }

    /// Sets the index of the next available entry; `false` unless it is a 16-bit number.
    pub fn set_base(&mut self, base: u32) -> bool {
        let base = u16::try_from(base);
        base.map(|base| self.queue.set_next_avail(base)).is_ok()
    }

    /// Applies the acknowledged features, also while the ring runs.
    pub fn set_features(&mut self, features: u64) {
        self.features = features;
        let event_idx = features & F_EVENT_IDX != 0;
        let mut state = self.queue.state();
        let was_on = std::mem::replace(&mut state.event_idx_enabled, event_idx);
        // The queue counts completions and clears the count only with EVENT_IDX on. Without a new
        // queue, a count from the time before, which may have wrapped, would decide what is notified.
        // The state is that of a valid queue, so the conversion does not fail.
        if was_on != event_idx {
            if let Ok(queue) = state.try_into() {
                self.queue = queue;
            }
        }
    }

    /// Starts the ring: the front-end set its kick fd, or said that there is none (vhost-user, "Ring
    /// states"). A broken ring stays broken.
    pub fn start(&mut self, kick: Option<Registered>) {
        if self.state == State::Stopped {
            self.state = State::Started;
        }
        self.kick = kick;
    }

    /// Stops the ring, gives up its kick fd, and returns the index of the next available entry, where
    /// a later start continues (vhost-user, "GET_VRING_BASE").
    pub fn stop(&mut self) -> u16 {
        self.state = State::Stopped;
        self.kick = None;
        self.queue.set_ready(false);
        self.queue.next_avail()
    }

    /// Whether chains may be taken and completed.
    pub fn is_running(&self) -> bool {
        self.queue.ready()
    }

    /// Whether the ring is started and enabled, and there is no memory that it could be in.
    pub fn lacks_memory(&self, memory: &Memory) -> bool {
        self.is_wanted() && memory.num_regions() == 0
    }

    /// Whether it is to run as soon as it is in memory. Without protocol features it needs no enabling
    /// (vhost-user, "Ring states").
    fn is_wanted(&self) -> bool {
        let needs_enabling = self.features & F_PROTOCOL_FEATURES != 0;
        self.state == State::Started && (self.enabled || !needs_enabling)
    }

    /// Whether the ring runs without a kick fd: it must be looked at, because no kick will come.
    pub fn lacks_kick(&self) -> bool {
        self.is_running() && self.kick.is_none()
    }

    /// Translates the ring's addresses anew and decides whether the ring runs: to be called after each
    /// change of its state, of features or of memory. Without any memory the ring waits for it.
    ///
    /// # Errors
    /// It is started and enabled, and a part of it is not aligned or not in memory.
    pub fn update(&mut self, memory: &Memory) -> Result<(), String> {
        let was_running = self.is_running();
        self.queue.set_ready(false);
        let can_run = self.is_wanted() && memory.num_regions() > 0;
        let Some(addresses) = self.addresses.filter(|_| can_run) else {
            return Ok(());
        };
        for part in self.parts(addresses) {
            let begin = part.locate(memory, part.len)?;
            let set = (part.set)(&mut self.queue, begin);
            set.map_err(|_| part.misplaced("is not aligned"))?;
        }
        // SET_VRING_BASE restores the available index alone; the used index is in the ring. While the
        // ring runs, that field is the device's: what a driver writes there is not read back.
        if !was_running {
            if let Ok(index) = self.queue.used_idx(memory, Ordering::Acquire) {
                self.queue.set_next_used(index.0);
            }
        }
        self.queue.set_ready(true);
        Ok(())
    }

    /// The three parts with their lengths (VIRTIO 1.4, "Split Virtqueues"): an entry for each
    /// descriptor, and in both rings 6 bytes more for flags, index and event field. The event field
    /// counts without EVENT_IDX, too: features may change while the ring runs.
    fn parts(&self, [desc, avail, used]: RingAddresses) -> [Part; 3] {
        let size = usize::from(self.queue.size());
        let part = |name, at, entry_len, around, set| Part {
            name,
            at,
            len: size.saturating_mul(entry_len).saturating_add(around),
            set,
        };
        let set_desc = Queue::try_set_desc_table_address;
        let set_avail = Queue::try_set_avail_ring_address;
        let set_used = Queue::try_set_used_ring_address;
        [
            part("descriptor table", desc, 16, 0, set_desc),
            part("available ring", avail, 2, 6, set_avail),
            part("used ring", used, 8, 6, set_used),
        ]
    }

    /// How many chains are available that were not consumed, at most the ring's size.
    ///
    /// # Errors
    /// The available index is further ahead than the ring is long, or outside of memory.
    #[inline]
    pub fn pending(&self, memory: &Memory) -> Result<u16, RingError> {
        // Not by `Queue::avail_idx`, which takes five times the instructions, and is asked twice for
        // each request.
        let at = self.queue.avail_ring().wrapping_add(AVAIL_INDEX_OFFSET);
        let index = memory.load(at).ok_or(RingError::Memory)?;
        let ahead = index.wrapping_sub(self.queue.next_avail());
        if ahead > self.queue.size() {
            return Err(RingError::AvailIndex(index));
        }
        Ok(ahead)
    }

    /// The next chain, which must be pending. It stays in the available ring: a request whose bus is
    /// busy is peeked at again later, and read afresh.
    ///
    /// # Errors
    /// The chain's head is not in the descriptor table, or the entry is outside of memory.
    #[inline]
    pub fn peek(&self, memory: &Memory) -> Result<Chain, RingError> {
        // Not by `Queue::iter`: it takes an available ring at guest address 0 for one that is not set.
        let (queue, size) = (&self.queue, self.queue.size());
        let position = queue.next_avail() & size.wrapping_sub(1);
        let offset = u64::from(position).saturating_mul(AVAIL_ENTRY_LEN);
        let entry = queue.avail_ring().wrapping_add(AVAIL_HEADER_LEN);
        let entry = memory.load(entry.wrapping_add(offset));
        let head = entry.ok_or(RingError::Memory)?;
        if head >= size {
            return Err(RingError::Head(head));
        }
        Ok(Chain {
            table: queue.desc_table(),
            table_len: size,
            indirect: self.features & F_INDIRECT_DESC != 0,
            head,
        })
    }

    /// Takes the chain that [`Vring::peek`] returned last off the available ring.
    pub fn consume(&mut self, chain: Chain) -> Consumed {
        let next = self.queue.next_avail().wrapping_add(1);
        self.queue.set_next_avail(next);
        Consumed(chain.head)
    }

    /// Gives a chain back to the driver: adds it to the used ring with `len`, the number of bytes that
    /// were written to it.
    ///
    /// # Errors
    /// The used ring is outside of memory.
    pub fn complete(
        &mut self,
        memory: &Memory,
        chain: Consumed,
        len: u32,
    ) -> Result<(), RingError> {
        self.completed = true;
        let added = self.queue.add_used(memory, chain.0, len);
        std::mem::forget(chain);
        // The queue was checked when it started: its memory was taken away since.
        added.map_err(|_| RingError::Memory)
    }

    /// Asks the driver not to kick: the ring is read again anyway. With EVENT_IDX there is nothing to
    /// do, since the driver kicks once for each [`Vring::rearm`].
    #[inline]
    pub fn suppress_kicks(&mut self, memory: &Memory) {
        // Once for all requests of a batch: this takes a hundred instructions.
        if !std::mem::replace(&mut self.is_quiet, true) {
            // Only a hint: if it cannot be written, the next access to the ring reports that.
            let _ = self.queue.disable_notification(memory);
        }
    }

    /// Asks the driver to kick again. Returns whether chains became available before it could see
    /// that: no kick will come for them.
    ///
    /// # Errors
    /// As [`Vring::pending`]; or the used ring is outside of memory.
    pub fn rearm(&mut self, memory: &Memory) -> Result<bool, RingError> {
        // The queue says "more" for every index but the expected one, so an index that jumped would make
        // the loop come back for ever. `pending` tells the two apart.
        self.is_quiet = false;
        let more = self.queue.enable_notification(memory);
        let more = more.map_err(|_| RingError::Memory)?;
        Ok(more && self.pending(memory)? > 0)
    }

    /// Whether chains were completed that the driver was not notified of, though it may want to be.
    pub fn is_unnotified(&self) -> bool {
        self.completed || self.owed
    }

    /// Signals the call fd if chains were completed since the last call and the driver wants to be
    /// notified of one of them. Without a call fd, or while the ring does not run, the notification
    /// stays owed.
    ///
    /// # Errors
    /// The front-end filled its eventfd and made it blocking, so that the write was interrupted; or its fd
    /// cannot be written to.
    pub fn notify(&mut self, memory: &Memory) -> Result<(), SessionError> {
        if !self.is_running() {
            return Ok(());
        }
        if std::mem::take(&mut self.completed) {
            let wanted = self.wants_notification(memory);
            self.is_watched = !wanted;
            self.owed |= wanted;
        }
        match &self.call {
            Some(call) if std::mem::take(&mut self.owed) => signal_eventfd(call),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether the driver wants to be notified of a chain that was completed since this was last asked
    /// (VIRTIO 1.4, "Used Buffer Notification Suppression"): with EVENT_IDX, if the index that it wrote
    /// was passed; without, unless it set a flag. Both are hints, so one outside of memory is a no.
    fn wants_notification(&mut self, memory: &Memory) -> bool {
        // Its fence comes first: the driver must see the used index before its event index or flag is read.
        let wanted = self.queue.needs_notification(memory).unwrap_or(false);
        // The queue leaves the flag to us; with EVENT_IDX it has no meaning.
        let flags = || memory.load(self.queue.avail_ring());
        let allows = |flags: u16| flags & AVAIL_F_NO_INTERRUPT == 0;
        wanted && (self.queue.event_idx_enabled() || flags().is_some_and(allows))
    }

    /// Takes the ring out of service until the front-end stops or resets it, and signals the err fd.
    ///
    /// # Errors
    /// The front-end filled its err eventfd and made it blocking, so that the write was interrupted; or its
    /// fd cannot be written to.
    pub fn set_broken(&mut self) -> Result<(), SessionError> {
        self.state = State::Broken;
        self.queue.set_ready(false);
        match &self.err {
            Some(err) => signal_eventfd(err),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::deferred_close::Closer;
    use crate::os::file_kind::FileKind;
    use crate::virtqueue::memory::tests::flat_memory;
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use vm_memory::Bytes;

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
            let (call, device_end) = UnixStream::pair().unwrap();
            call.set_nonblocking(true).unwrap();
            let mut rig = Self {
                memory: flat_memory(),
                vring: Vring::default(),
                call,
            };
            rig.vring.set_size(SIZE.into()).unwrap();
            rig.set_addresses(DESC, AVAIL, USED);
            let kind = FileKind::SocketEnd;
            let call = FrontendFile::new(device_end, kind, &Closer::default());
            rig.vring.call = Some(call);
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
            let addresses = [desc, avail, used].map(UserAddress);
            self.vring.set_addresses(addresses, &self.memory).unwrap();
            self.update();
        }

        fn update(&mut self) {
            self.vring.update(&self.memory).unwrap();
        }

        fn set_features(&mut self, event_idx: bool) {
            self.vring
                .set_features(if event_idx { F_EVENT_IDX } else { 0 });
            self.update();
        }

        fn start(&mut self) {
            self.vring.start(None);
            self.update();
        }

        fn load(&self, address: u64) -> u16 {
            self.memory.load(address).unwrap()
        }

        fn store(&self, address: u64, number: u16) {
            let bytes = number.to_le_bytes();
            self.memory
                .write_slice(&bytes, GuestAddress(address))
                .unwrap();
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
    fn notify_that_had_no_call_fd_is_made_up_for_though_features_changed() {
        let mut rig = Rig::running(true);
        let call = rig.vring.call.take();
        rig.store(USED_EVENT, 0);
        rig.offer(AVAIL, 1);
        rig.serve();
        assert!(!rig.notify(), "there is no call fd");
        rig.set_features(false);
        rig.set_features(true);
        assert!(rig.vring.is_unnotified());
        rig.vring.call = call;
        assert!(rig.notify());
        assert!(!rig.vring.is_unnotified());
        assert!(!rig.notify(), "once");
    }

    #[test]
    fn complete_used_index_overwritten_by_the_driver_goes_on_from_its_own() {
        let mut rig = Rig::running(true);
        rig.offer(AVAIL, 1);
        rig.serve();
        rig.store(USED + 2, 0x7777);
        // A message such as SET_VRING_ENABLE comes, and leaves the ring running.
        rig.vring.enabled = true;
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
        assert_eq!(rig.load(USED), 1);
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
    fn set_addresses_before_there_is_memory_are_taken_and_looked_at_when_the_ring_starts() {
        let mut rig = Rig::stopped();
        rig.memory.clear();
        let nowhere = u64::MAX - 15;
        rig.set_addresses(nowhere, nowhere, nowhere);
        rig.start();
        assert!(!rig.vring.is_running(), "it waits for memory");
        assert!(!rig.vring.lacks_kick());
        rig.memory = flat_memory();
        rig.vring.update(&rig.memory).unwrap_err();
        assert!(!rig.vring.is_running());
    }

    #[test]
    fn ring_whose_memory_is_gone_is_an_error_of_each_access() {
        let mut rig = Rig::running(true);
        rig.offer(AVAIL, 1);
        let chain = rig.vring.peek(&rig.memory).unwrap();
        let chain = rig.vring.consume(chain);
        let gone = Memory::new(1 << 40);
        for error in [
            rig.vring.pending(&gone).unwrap_err(),
            rig.vring.peek(&gone).unwrap_err(),
            rig.vring.rearm(&gone).unwrap_err(),
            rig.vring.complete(&gone, chain, 1).unwrap_err(),
        ] {
            assert!(matches!(error, RingError::Memory), "{error}");
        }
    }

    #[test]
    fn set_broken_without_an_err_fd_stops_the_ring_until_the_front_end_does() {
        let mut rig = Rig::running(false);
        rig.vring.set_broken().unwrap();
        rig.start();
        assert!(!rig.vring.is_running());
        rig.vring.stop();
        rig.start();
        assert!(rig.vring.is_running());
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

    #[cfg(debug_assertions)]
    #[test]
    #[should_panic(expected = "chain 2 was consumed, not completed")]
    fn consumed_chain_that_is_dropped_is_loud_in_tests() {
        let mut rig = Rig::running(false);
        rig.offer(AVAIL, 2);
        let chain = rig.vring.peek(&rig.memory).unwrap();
        drop(rig.vring.consume(chain));
    }
}
