//! One vring: its state as vhost-user sets it, and the driver's requests in it.
//!
//! The ring's position lives in `virtio_queue::Queue`, which does the memory ordering of the used
//! ring and of EVENT_IDX; `chain` reads what is at a position.
//!
//! Invariant: a chain that was consumed is completed, exactly once, before the next is consumed.
//! Must not: know what the bytes of a request mean.

use std::fs::File;
use std::io;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use crate::chain::{Chain, DESC_LEN};
use crate::fate::{RingError, SessionError};
use crate::garbage::Foreign;
use crate::memory::{Memory, UserAddress};
use crate::watchdog;

/// Most descriptors in a ring.
pub const MAX_SIZE: u16 = 1024;

const AVAIL_F_NO_INTERRUPT: u16 = 1 << 0;

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
    queue: Queue,
    state: State,
    addresses: Option<RingAddresses>,
    indirect: bool,
    enabled: bool,
    /// No protocol features were acknowledged: the ring needs no enabling.
    always_enabled: bool,
    kick_absent: bool,
    /// Whether the driver's kicks are suppressed by the flag in the used ring, if it is known.
    suppressed: Option<bool>,
    unnotified: bool,
    call: Option<Foreign>,
    err: Option<Foreign>,
}

impl Vring {
    /// A vring as it is at the start of a session.
    ///
    /// # Errors
    /// None in practice: [`MAX_SIZE`] is a power of two.
    pub fn new() -> Result<Self, SessionError> {
        let queue = Queue::new(MAX_SIZE).map_err(|e| SessionError::Host(io::Error::other(e)))?;
        Ok(Self {
            queue,
            state: State::Stopped,
            addresses: None,
            indirect: false,
            enabled: false,
            always_enabled: true,
            kick_absent: false,
            suppressed: None,
            unnotified: false,
            call: None,
            err: None,
        })
    }

    /// Back to the state of [`Vring::new`], fds closed.
    pub fn reset(&mut self) {
        self.queue.reset();
        self.state = State::Stopped;
        self.addresses = None;
        self.indirect = false;
        self.enabled = false;
        self.always_enabled = true;
        self.kick_absent = false;
        self.suppressed = None;
        self.unnotified = false;
        self.call = None;
        self.err = None;
    }

    /// Sets the number of descriptors; `false` unless it is a power of two up to [`MAX_SIZE`].
    pub fn set_size(&mut self, size: u32) -> bool {
        u16::try_from(size).is_ok_and(|size| self.queue.try_set_size(size).is_ok())
    }

    /// Sets where the ring is; `false` where `memory` is there and a part does not begin in it.
    /// Whether it holds all of the ring shows when the ring starts and its size is known.
    pub fn set_addresses(&mut self, addresses: RingAddresses, memory: &Memory) -> bool {
        self.addresses = Some(addresses);
        let parts = [addresses.desc, addresses.avail, addresses.used];
        let begins = |part| memory.translate(part, 1).is_some();
        memory.is_empty() || parts.into_iter().all(begins)
    }

    /// Sets the index of the next available entry; `false` if it is no 16-bit number.
    pub fn set_base(&mut self, base: u32) -> bool {
        match u16::try_from(base) {
            Ok(base) => {
                self.queue.set_next_avail(base);
                true
            }
            Err(_) => false,
        }
    }

    /// Takes over the acknowledged features. Without protocol features the ring is enabled from
    /// its start (vhost-user, "Ring states").
    pub fn set_features(&mut self, event_idx: bool, indirect: bool, protocol_features: bool) {
        self.queue.set_event_idx(event_idx);
        self.indirect = indirect;
        self.always_enabled = !protocol_features;
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
    pub fn update(&mut self, memory: &Memory) {
        let was_ready = self.queue.ready();
        let located = self.locate(memory);
        let enabled = self.enabled || self.always_enabled;
        let ready = self.state == State::Started && enabled && located.is_some();
        if let Some((desc, avail, used)) = located {
            let set = self
                .queue
                .try_set_desc_table_address(desc)
                .and_then(|()| self.queue.try_set_avail_ring_address(avail))
                .and_then(|()| self.queue.try_set_used_ring_address(used));
            self.queue.set_ready(ready && set.is_ok());
        } else {
            self.queue.set_ready(false);
        }
        if self.queue.ready() && !was_ready {
            // A front-end restores the avail index alone; the used index is in the ring.
            match self.queue.used_idx(memory.mapped(), Ordering::Acquire) {
                Ok(index) => self.queue.set_next_used(index.0),
                Err(_) => self.queue.set_ready(false),
            }
            // An earlier run may have left anything in the flag.
            self.suppressed = None;
        }
    }

    /// Guest addresses of descriptor table, available and used ring (VIRTIO 1.4, "Split
    /// Virtqueues": 16, 6 + 2 and 6 + 8 bytes per entry), each wholly inside one region.
    fn locate(&self, memory: &Memory) -> Option<(GuestAddress, GuestAddress, GuestAddress)> {
        let addresses = self.addresses?;
        let size = u64::from(self.queue.size());
        let desc_len = size.saturating_mul(DESC_LEN);
        let avail_len = size.saturating_mul(2).saturating_add(6);
        let used_len = size.saturating_mul(8).saturating_add(6);
        Some((
            memory.translate(addresses.desc, desc_len)?,
            memory.translate(addresses.avail, avail_len)?,
            memory.translate(addresses.used, used_len)?,
        ))
    }

    /// How many chains the driver has made available that were not consumed.
    ///
    /// # Errors
    /// The avail index is further ahead than the ring is long.
    pub fn pending(&self, memory: &Memory) -> Result<u16, RingError> {
        let address = self.queue.avail_ring().saturating_add(2);
        let index = memory.load_u16(address).ok_or(RingError::Memory)?;
        let ahead = index.wrapping_sub(self.queue.next_avail());
        if ahead > self.queue.size() {
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
        let size = self.queue.size();
        let slot = u64::from(self.queue.next_avail().checked_rem(size).unwrap_or(0));
        let offset = slot.saturating_mul(2).saturating_add(4);
        let address = self.queue.avail_ring().saturating_add(offset);
        let head = memory.load_u16(address).ok_or(RingError::Memory)?;
        if head >= size {
            return Err(RingError::Head(head));
        }
        Ok(head)
    }

    /// Takes the chain that [`Vring::peek`] showed.
    pub fn consume(&mut self) {
        let next = self.queue.next_avail().wrapping_add(1);
        self.queue.set_next_avail(next);
    }

    /// Where the chain at `head` is to be read.
    pub fn chain(&self, head: u16) -> Chain {
        Chain {
            table: self.queue.desc_table(),
            table_len: self.queue.size(),
            indirect: self.indirect,
            head,
        }
    }

    /// Gives the chain at `head` back to the driver, with `len` bytes written.
    ///
    /// # Errors
    /// The used ring cannot be written.
    pub fn complete(&mut self, memory: &Memory, head: u16, len: u32) -> Result<(), RingError> {
        self.unnotified = true;
        self.queue
            .add_used(memory.mapped(), head, len)
            .map_err(|_| RingError::Memory)
    }

    /// Asks the driver not to kick while there is more in the ring than the next request.
    pub fn suppress_kicks(&mut self, memory: &Memory) {
        if self.suppressed != Some(true) && !self.queue.event_idx_enabled() {
            let set = self.queue.disable_notification(memory.mapped());
            self.suppressed = set.is_ok().then_some(true);
        }
    }

    /// Asks the driver to kick again, and tells whether something came in meanwhile.
    ///
    /// # Errors
    /// The ring cannot be believed.
    pub fn rearm(&mut self, memory: &Memory) -> Result<bool, RingError> {
        // Without EVENT_IDX and with kicks never suppressed there is nothing to ask for.
        if self.suppressed != Some(false) || self.queue.event_idx_enabled() {
            self.queue
                .enable_notification(memory.mapped())
                .map_err(|_| RingError::Memory)?;
            self.suppressed = Some(false);
        }
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
        // Without a call eventfd the notification is kept for the one that may come.
        if self.call.is_none() || !std::mem::take(&mut self.unnotified) {
            return Ok(());
        }
        let wanted = self.wants_notification(memory);
        match &self.call {
            Some(call) if wanted => signal(call),
            Some(_) | None => Ok(()),
        }
    }

    fn wants_notification(&mut self, memory: &Memory) -> bool {
        if self.queue.event_idx_enabled() {
            return self
                .queue
                .needs_notification(memory.mapped())
                .unwrap_or(false);
        }
        // `virtio-queue` does not look at this flag.
        fence(Ordering::SeqCst);
        let flags = memory.load_u16(self.queue.avail_ring());
        flags.is_some_and(|flags| flags & AVAIL_F_NO_INTERRUPT == 0)
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

/// Adds 1 to an eventfd that the front-end shares with us.
///
/// Its file description is the front-end's too: it can fill the counter and clear `O_NONBLOCK` at
/// any time, so the write can block. The watchdog tick (`watchdog`) then interrupts it.
fn signal(eventfd: &Foreign) -> Result<(), SessionError> {
    watchdog::arm();
    let Err(error) = eventfd.write(&1u64.to_ne_bytes()) else {
        return Ok(());
    };
    match error.raw_os_error() {
        // A full counter is a notification that is still to be read.
        Some(libc::EAGAIN) => Ok(()),
        // An eventfd that has room is written without waiting: only one that blocked is interrupted.
        Some(libc::EINTR) => Err(SessionError::CallBlocked),
        Some(_) | None => Err(SessionError::Host(error)),
    }
}
