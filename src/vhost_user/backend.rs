//! The vhost-user requests: what each does to one guest's memory and vring.
//!
//! The `vhost` crate decodes messages and calls one method each, but for those that bring fds
//! (`with_fds`); every method checks the index, then the state, then acts. A refusal is answered
//! where REPLY_ACK was asked, and ends the connection. What a message means for a transfer in
//! progress was settled before (`session`).
//!
//! Must not: touch the connection or a device.

use std::cell::{Cell, RefCell, RefMut};
use std::fs::File;
use std::io::{self, ErrorKind};

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error, GpuBackend, Result, VhostUserBackendReqHandler, VhostUserProtocolFeatures,
};

use crate::config::{GuestNumber, MAX_REGIONS};
use crate::os::epoll::Poller;
use crate::spi::wire::Config;
use crate::virtqueue::memory::{Memory, MemoryError, UserAddress};
use crate::virtqueue::vring::{
    F_EVENT_IDX, F_INDIRECT_DESC, F_PROTOCOL_FEATURES, RingAddresses, Vring,
};

const F_VERSION_1: u64 = 1 << 32;
const F_IN_ORDER: u64 = 1 << 35;
/// What is offered. The device itself has no feature bits.
const FEATURES: u64 =
    F_INDIRECT_DESC | F_EVENT_IDX | F_PROTOCOL_FEATURES | F_VERSION_1 | F_IN_ORDER;

/// What is offered of the protocol. The `vhost` crate has no STATUS, INBAND or IOTLB.
const PROTOCOL_FEATURES: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::RESET_DEVICE)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS);

/// What a session and its message handlers share.
#[derive(Debug)]
pub struct Guest {
    /// The guest's memory.
    pub memory: Memory,
    /// Its one vring, `requestq`.
    pub vring: Vring,
}

/// The handler of one connection's messages.
#[derive(Debug)]
pub struct Backend {
    pub(super) number: GuestNumber,
    config: Config,
    pub(super) poller: Poller,
    guest: RefCell<Guest>,
    /// The protocol features that the front-end acknowledged.
    acked: Cell<u64>,
}

impl Backend {
    /// The handler for a new connection of guest `number`, which may have `max_memory_len` bytes of
    /// memory.
    pub fn new(number: GuestNumber, config: Config, max_memory_len: u64, poller: Poller) -> Self {
        let guest = Guest {
            memory: Memory::new(max_memory_len),
            vring: Vring::default(),
        };
        Self {
            number,
            config,
            poller,
            guest: RefCell::new(guest),
            acked: Cell::new(0),
        }
    }

    /// The guest, for as long as no message is handled.
    pub fn guest(&self) -> RefMut<'_, Guest> {
        self.guest.borrow_mut()
    }

    /// Whether the front-end acknowledged a protocol feature.
    pub(super) fn has_acked(&self, feature: VhostUserProtocolFeatures) -> bool {
        self.acked.get() & feature.bits() != 0
    }

    /// Gives up all that the front-end brought.
    pub fn clear(&self) {
        let mut guest = self.guest.borrow_mut();
        guest.vring.reset();
        guest.memory.clear();
    }

    /// Changes the guest, then lets its ring run or not according to its new state. A ring that
    /// should run and cannot is broken, and the message that shows it is refused.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Guest) -> Result<T>) -> Result<T> {
        let mut guest = self.guest.borrow_mut();
        let result = change(&mut guest)?;
        let Guest { memory, vring } = &mut *guest;
        if let Err(misplaced) = vring.update(memory) {
            // It is known by its kind in `SessionError::of_vhost`.
            let blocked = |_| Error::ReqHandlerError(ErrorKind::Interrupted.into());
            vring.set_broken().map_err(blocked)?;
            return Err(refused(misplaced));
        }
        Ok(result)
    }

    /// Adds or removes one of several regions. Unlike in [`Backend::change`], a ring that is outside of
    /// memory then waits for the next region.
    pub(super) fn change_memory(
        &self,
        change: impl FnOnce(&mut Memory) -> std::result::Result<(), MemoryError>,
    ) -> Result<()> {
        let Guest { memory, vring } = &mut *self.guest.borrow_mut();
        change(memory).map_err(refused)?;
        let _ = vring.update(memory);
        Ok(())
    }

    /// As [`Backend::change`], for a message about ring `index`: there is one.
    pub(super) fn change_ring<T>(
        &self,
        index: u32,
        change: impl FnOnce(&mut Guest) -> Result<T>,
    ) -> Result<T> {
        if index != 0 {
            return Err(Error::InvalidParam);
        }
        self.change(change)
    }
}

/// Why a message is refused, for the log.
pub(super) fn refused(error: impl std::fmt::Display) -> Error {
    Error::ReqHandlerError(io::Error::other(error.to_string()))
}

fn accepted(accepted: bool) -> Result<()> {
    accepted.then_some(()).ok_or(Error::InvalidParam)
}

const NOT_OFFERED: Error = Error::InvalidOperation("not offered");

/// Methods of messages that never come.
macro_rules! refuse {
    ($(fn $name:ident($($argument:ty),*) -> $result:ty;)*) => {$(
        fn $name(&self, $(_: $argument),*) -> Result<$result> {
            Err(NOT_OFFERED)
        }
    )*};
}

impl VhostUserBackendReqHandler for Backend {
    fn set_owner(&self) -> Result<()> {
        Ok(())
    }

    /// A message of old, for which vhost-user leaves two things: to ignore it, or to disable the ring.
    fn reset_owner(&self) -> Result<()> {
        self.set_vring_enable(0, false)
    }

    fn reset_device(&self) -> Result<()> {
        self.change(|guest| {
            guest.vring.reset();
            Ok(())
        })
    }

    fn get_features(&self) -> Result<u64> {
        Ok(FEATURES)
    }

    fn set_features(&self, features: u64) -> Result<()> {
        if features & !FEATURES != 0 {
            return Err(Error::InvalidParam);
        }
        self.change(|guest| {
            guest.vring.set_features(features);
            Ok(())
        })
    }

    fn get_max_mem_slots(&self) -> Result<u64> {
        u64::try_from(MAX_REGIONS).map_err(refused)
    }

    fn get_queue_num(&self) -> Result<u64> {
        Ok(1)
    }

    fn set_vring_num(&self, index: u32, num: u32) -> Result<()> {
        self.change_ring(index, |guest| accepted(guest.vring.set_size(num)))
    }

    fn set_vring_addr(
        &self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        if !flags.is_empty() {
            return Err(NOT_OFFERED);
        }
        let addresses = RingAddresses {
            desc: UserAddress(descriptor),
            avail: UserAddress(available),
            used: UserAddress(used),
        };
        self.change_ring(index, |Guest { memory, vring }| {
            vring.set_addresses(addresses, memory).map_err(refused)
        })
    }

    fn set_vring_base(&self, index: u32, base: u32) -> Result<()> {
        self.change_ring(index, |guest| accepted(guest.vring.set_base(base)))
    }

    fn get_vring_base(&self, index: u32) -> Result<VhostUserVringState> {
        self.change_ring(index, |guest| {
            let base = guest.vring.stop();
            Ok(VhostUserVringState::new(index, base.into()))
        })
    }

    fn set_vring_enable(&self, index: u32, enable: bool) -> Result<()> {
        self.change_ring(index, |guest| {
            guest.vring.enabled = enable;
            Ok(())
        })
    }

    fn get_protocol_features(&self) -> Result<VhostUserProtocolFeatures> {
        Ok(PROTOCOL_FEATURES)
    }

    fn set_protocol_features(&self, features: u64) -> Result<()> {
        self.acked.set(features);
        accepted(features & !PROTOCOL_FEATURES.bits() == 0)
    }

    fn get_config(&self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let offset = usize::try_from(offset).map_err(refused)?;
        let size = usize::try_from(size).map_err(refused)?;
        Ok(self.config.read(offset, size))
    }

    fn set_config(&self, _offset: u32, _buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        // No field of the SPI controller's config space is writable by the driver.
        Ok(())
    }

    refuse! {
        // Those that bring fds do not come this way (`with_fds`).
        fn set_mem_table(&[VhostUserMemoryRegion], Vec<File>, Option<bool>) -> Option<Vec<u64>>;
        fn add_mem_region(&VhostUserSingleMemoryRegion, File, Option<bool>) -> Option<u64>;
        fn remove_mem_region(&VhostUserSingleMemoryRegion) -> ();
        fn set_vring_kick(u8, Option<File>) -> ();
        fn set_vring_call(u8, Option<File>) -> ();
        fn set_vring_err(u8, Option<File>) -> ();
        // Nor do these come at all: `message` does not let them through.
        fn set_gpu_socket(GpuBackend) -> ();
        fn get_shared_object(VhostUserSharedMsg) -> File;
        fn get_inflight_fd(&VhostUserInflight) -> (VhostUserInflight, File);
        fn set_inflight_fd(&VhostUserInflight, File) -> ();
        fn set_device_state_fd(
            VhostTransferStateDirection,
            VhostTransferStatePhase,
            File
        ) -> Option<File>;
        fn check_device_state() -> ();
        fn get_shmem_config() -> VhostUserShMemConfig;
        fn set_log_base(&VhostUserLog, File) -> ();
    }
}
