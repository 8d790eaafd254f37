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
use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::error::{RingError, SessionError};
use crate::os::deferred_close::Foreign;
use crate::os::write_timeout::signal;
use crate::virtqueue::chain::Chain;
use crate::virtqueue::memory::{Memory, UserAddress};

/// Most descriptors in a ring.
pub const MAX_SIZE: u16 = 1024;

const AVAIL_F_NO_INTERRUPT: u16 = 1 << 0;
/// Length of flags and index, with which available and used ring begin.
const RING_HEAD_LEN: u64 = 4;
const AVAIL_ENTRY_LEN: u64 = 2;

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

/// A part of the ring as the front-end named it.
#[derive(Debug, Clone, Copy)]
struct Part {
    name: &'static str,
    at: UserAddress,
    /// Length in bytes.
    len: usize,
}

impl Part {
    const fn misplaced(&self, why: &'static str) -> Misplaced {
        Misplaced {
            part: self.name,
            at: self.at,
            why,
        }
    }

    /// Its first guest address.
    fn begin(&self, memory: &Memory) -> Result<GuestAddress, Misplaced> {
        let begin = memory.translate(self.at);
        begin.ok_or(self.misplaced("begins outside guest memory"))
    }

    /// The same, if all of it is in memory: in one region or in several without a gap between them.
    fn locate(&self, memory: &Memory) -> Result<GuestAddress, Misplaced> {
        let begin = self.begin(memory)?;
        let is_held = memory.check_range(begin, self.len);
        let located = is_held.then_some(begin);
        located.ok_or(self.misplaced("ends outside guest memory"))
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
    /// Size, guest addresses, both positions and EVENT_IDX; it is ready when requests may be taken:
    /// started, enabled, and wholly in memory as long as that stays what it is.
    queue: Queue,
    state: State,
    addresses: Option<RingAddresses>,
    indirect: bool,
    enabled: bool,
    /// No protocol features were acknowledged: the ring needs no enabling.
    always_enabled: bool,
    kick_absent: bool,
    /// Chains were completed that the driver was not notified of.
    unnotified: bool,
    call: Option<Foreign>,
    err: Option<Foreign>,
}

impl Default for Vring {
    fn default() -> Self {
        Self {
            // `MAX_SIZE` is a power of two, so that this is never the default, which has size 0.
            queue: Queue::new(MAX_SIZE).unwrap_or_default(),
            state: State::Stopped,
            addresses: None,
            indirect: false,
            enabled: false,
            always_enabled: true,
            kick_absent: false,
            unnotified: false,
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
        u16::try_from(size).is_ok_and(|size| self.queue.try_set_size(size).is_ok())
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
        let base = u16::try_from(base);
        base.map(|base| self.queue.set_next_avail(base)).is_ok()
    }

    /// Takes over the acknowledged features. Without protocol features the ring is enabled from
    /// its start (vhost-user, "Ring states").
    pub fn set_features(&mut self, event_idx: bool, indirect: bool, protocol_features: bool) {
        self.indirect = indirect;
        self.always_enabled = !protocol_features;
        let mut state = self.queue.state();
        let was_on = std::mem::replace(&mut state.event_idx_enabled, event_idx);
        // A queue forgets which completions it was asked about only while EVENT_IDX is on: another
        // one counts from here. Its state is that of a queue, so that this does not fail.
        if was_on != event_idx
            && let Ok(queue) = state.try_into()
        {
            self.queue = queue;
        }
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
        self.queue.set_ready(false);
        self.queue.next_avail()
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
        self.queue.ready()
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
        let was_running = self.is_running();
        self.queue.set_ready(false);
        let enabled = self.enabled || self.always_enabled;
        let is_wanted = self.state == State::Started && enabled && !memory.is_empty();
        let Some(addresses) = self.addresses.filter(|_| is_wanted) else {
            return Ok(());
        };
        self.locate(addresses, memory)?;
        // A front-end restores the avail index alone; the used index is in the ring.
        if !was_running && let Ok(index) = self.queue.used_idx(memory, Ordering::Acquire) {
            self.queue.set_next_used(index.0);
        }
        self.queue.set_ready(true);
        Ok(())
    }

    /// Tells the queue the guest addresses of its parts.
    fn locate(&mut self, addresses: RingAddresses, memory: &Memory) -> Result<(), Misplaced> {
        let [desc, avail, used] = self.parts(addresses);
        let (queue, why) = (&mut self.queue, "is not aligned");
        let set = queue.try_set_desc_table_address(desc.locate(memory)?);
        set.map_err(|_| desc.misplaced(why))?;
        let set = queue.try_set_avail_ring_address(avail.locate(memory)?);
        set.map_err(|_| avail.misplaced(why))?;
        let set = queue.try_set_used_ring_address(used.locate(memory)?);
        set.map_err(|_| used.misplaced(why))
    }

    /// Their lengths are those of VIRTIO 1.4, "Split Virtqueues": entries, and for the rings flags,
    /// index and the event field of EVENT_IDX.
    fn parts(&self, addresses: RingAddresses) -> [Part; 3] {
        let size = usize::from(self.queue.size());
        [
            ("descriptor table", addresses.desc, 16, 0),
            ("available ring", addresses.avail, 2, 6),
            ("used ring", addresses.used, 8, 6),
        ]
        .map(|(name, at, entry_len, around)| Part {
            name,
            at,
            len: size.saturating_mul(entry_len).saturating_add(around),
        })
    }

    /// How many chains the driver has made available that were not consumed.
    ///
    /// # Errors
    /// The avail index is further ahead than the ring is long.
    pub fn pending(&self, memory: &Memory) -> Result<u16, RingError> {
        let index = self.queue.avail_idx(memory, Ordering::Acquire);
        let index = index.map_err(outside_memory)?.0;
        let ahead = index.wrapping_sub(self.queue.next_avail());
        if ahead > self.queue.size() {
            return Err(RingError::AvailIndex(index));
        }
        Ok(ahead)
    }

    /// The next chain, which must be pending; it stays where it is until [`Vring::consume`].
    ///
    /// # Errors
    /// The ring cannot be believed.
    pub fn peek(&self, memory: &Memory) -> Result<Chain, RingError> {
        // `Queue::iter` would take an available ring at guest address 0 for none.
        let (queue, size) = (&self.queue, self.queue.size());
        let position = queue.next_avail().checked_rem(size).unwrap_or(0);
        let offset = u64::from(position).saturating_mul(AVAIL_ENTRY_LEN);
        let entry = queue.avail_ring().saturating_add(RING_HEAD_LEN);
        let head = load(memory, entry.saturating_add(offset)).ok_or(RingError::Memory)?;
        if head >= size {
            return Err(RingError::Head(head));
        }
        Ok(Chain {
            table: queue.desc_table(),
            table_len: size,
            indirect: self.indirect,
            head,
        })
    }

    /// Takes the chain that [`Vring::peek`] showed.
    pub fn consume(&mut self, chain: Chain) -> Consumed {
        let next = self.queue.next_avail().wrapping_add(1);
        self.queue.set_next_avail(next);
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
        self.unnotified = true;
        let added = self.queue.add_used(memory, chain.head, len);
        added.map_err(outside_memory)
    }

    /// Asks the driver not to kick while there is more in the ring than the next request.
    pub fn suppress_kicks(&mut self, memory: &Memory) {
        // A kick too many does no harm, and a ring that is gone shows itself at the next access.
        let _ = self.queue.disable_notification(memory);
    }

    /// Asks the driver to kick again, and tells whether something came in meanwhile.
    ///
    /// # Errors
    /// The ring cannot be believed.
    pub fn rearm(&mut self, memory: &Memory) -> Result<bool, RingError> {
        // Whether there is more it says of an index that jumped, too: `pending` tells the two apart.
        let enabled = self.queue.enable_notification(memory);
        enabled.map_err(outside_memory)?;
        self.pending(memory).map(|pending| pending > 0)
    }

    /// Whether chains were completed that the driver was not notified of.
    pub fn is_unnotified(&self) -> bool {
        self.unnotified
    }

    /// Signals the call eventfd if chains were completed since the last time and the driver wants
    /// to know.
    ///
    /// # Errors
    /// The front-end filled its eventfd and made it blocking: the write was interrupted.
    pub fn notify(&mut self, memory: &Memory) -> Result<(), SessionError> {
        // Without a call eventfd, or while the ring does not run, the notification is kept.
        if self.call.is_none() || !self.unnotified || !self.is_running() {
            return Ok(());
        }
        let wanted = self.wants_notification(memory);
        self.unnotified = false;
        match &self.call {
            Some(call) if wanted => signal(call),
            Some(_) | None => Ok(()),
        }
    }

    /// VIRTIO 1.4, "Used Buffer Notification Suppression".
    fn wants_notification(&mut self, memory: &Memory) -> bool {
        let wanted = self.queue.needs_notification(memory).unwrap_or(false);
        // The flag, which is of no meaning with EVENT_IDX, is not looked at by the queue.
        let flags = || load(memory, self.queue.avail_ring());
        let allows = |flags: u16| flags & AVAIL_F_NO_INTERRUPT == 0;
        wanted && (self.queue.event_idx_enabled() || flags().is_some_and(allows))
    }

    /// Takes the ring out of service until the front-end stops or resets it.
    ///
    /// # Errors
    /// The err eventfd is full and blocking.
    pub fn set_broken(&mut self) -> Result<(), SessionError> {
        self.state = State::Broken;
        self.queue.set_ready(false);
        match &self.err {
            Some(err) => signal(err),
            None => Ok(()),
        }
    }
}

/// The 16-bit number at guest address `address`; `None` outside of memory.
fn load(memory: &Memory, address: u64) -> Option<u16> {
    let number = memory.load(GuestAddress(address), Ordering::Acquire);
    number.ok().map(u16::from_le)
}

/// What a queue fails with that was in memory when it started: it is no longer.
fn outside_memory(_: virtio_queue::Error) -> RingError {
    RingError::Memory
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
            load(&self.memory, address).unwrap()
        }

        fn store(&self, address: u64, number: u16) {
            self.memory.write(address, &number.to_le_bytes()).unwrap();
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
