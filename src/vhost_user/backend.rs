// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The effect of each vhost-user message on one guest's memory and vring.
//!
//! The `vhost` crate decodes a message and calls the method of its request; messages that may bring
//! fds are decoded in `with_fds`. Both change the guest by `Backend::change`, which checks the index of the
//! ring. An error ends the connection, after an acknowledgement if the message asked for one, and with it
//! all that the message had changed.
//!
//! Invariant: after each message the vring runs if and only if it is started, enabled and in memory.
//! `session` has waited for the transfer in progress, or aborted it, before a message that affects it
//! comes here.
//!
//! Must not: touch the connection or a device. Called by `handler`.

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
use crate::error::SessionError;
use crate::os::epoll::Poller;
use crate::spi::wire::ConfigSpace;
use crate::virtqueue::memory::{Memory, UserAddress};
use crate::virtqueue::vring::{F_EVENT_IDX, F_INDIRECT_DESC, F_PROTOCOL_FEATURES, Vring};

const F_VERSION_1: u64 = 1 << 32;
const F_IN_ORDER: u64 = 1 << 35;
/// The feature bits that are offered. The SPI controller has none of its own. RING_PACKED and
/// ACCESS_PLATFORM are missing: the ring is a split one, and its addresses need no IOMMU.
const FEATURES: u64 =
    F_INDIRECT_DESC | F_EVENT_IDX | F_PROTOCOL_FEATURES | F_VERSION_1 | F_IN_ORDER;

/// The protocol features that are offered. The `vhost` crate has no STATUS, in-band notifications or
/// IOTLB; LOG_SHMFD and INFLIGHT_SHMFD are for migration and for reconnection, which are not offered.
const PROTOCOL_FEATURES: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::RESET_DEVICE)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS);

/// What the messages change, and the requests use between two messages.
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
    /// Whose messages they are.
    pub number: GuestNumber,
    config: ConfigSpace,
    /// The one epoll set.
    pub poller: Poller,
    guest: RefCell<Guest>,
    /// The protocol features that the front-end acknowledged. The `vhost` crate keeps its own copy,
    /// which cannot be read, for the messages that it decodes.
    pub(super) acked: Cell<VhostUserProtocolFeatures>,
}

impl Backend {
    /// The handler for a new connection of guest `number`, which may have `max_memory_len` bytes of
    /// memory.
    pub fn new(
        number: GuestNumber,
        config: ConfigSpace,
        max_memory_len: u64,
        poller: Poller,
    ) -> Self {
        let guest = Guest {
            memory: Memory::new(max_memory_len),
            vring: Vring::default(),
        };
        Self {
            number,
            config,
            poller,
            guest: RefCell::new(guest),
            acked: Cell::new(VhostUserProtocolFeatures::empty()),
        }
    }

    /// The guest. No message is handled while this is held: the crate calls a method only from
    /// [`Handler::handle`](super::handler::Handler::handle).
    pub fn guest(&self) -> RefMut<'_, Guest> {
        self.guest.borrow_mut()
    }

    /// Changes the guest for a message about ring `index`, or about the device with its one ring, 0. Then
    /// decides anew whether the ring runs: front-ends send messages in different orders, so nearly every
    /// message can bring the last thing that the ring needs.
    ///
    /// # Errors
    /// There is no such ring; `change` failed; or the ring should run and is not in memory: it is then
    /// broken, which its err eventfd reports, and the message is refused.
    pub(super) fn change<T>(
        &self,
        index: u32,
        change: impl FnOnce(&mut Guest) -> Result<T>,
    ) -> Result<T> {
        if index != 0 {
            return Err(Error::InvalidParam);
        }
        let mut guest = self.guest.borrow_mut();
        let result = change(&mut guest)?;
        let Guest { memory, vring } = &mut *guest;
        if let Err(misplaced) = vring.update(memory) {
            return Err(match vring.set_broken() {
                // `SessionError::of_vhost` turns this kind into `CallBlocked` again.
                Err(SessionError::CallBlocked) => {
                    Error::ReqHandlerError(ErrorKind::Interrupted.into())
                }
                // An err fd that cannot be written to reports nothing: the message is refused all the same.
                Ok(()) | Err(_) => refused(misplaced),
            });
        }
        Ok(result)
    }
}

/// The error of a message that is refused, with the reason for the log.
pub(super) fn refused(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::ReqHandlerError(io::Error::other(error))
}

fn accepted(accepted: bool) -> Result<()> {
    accepted.then_some(()).ok_or(Error::InvalidParam)
}

const NOT_OFFERED: Error = Error::InvalidOperation("not offered");

/// Methods that the trait requires and nothing calls.
macro_rules! refuse {
    ($(fn $name:ident($($argument:ty),*) -> $result:ty;)*) => {$(
        fn $name(&self, $(_: $argument),*) -> Result<$result> {
            Err(NOT_OFFERED)
        }
    )*};
}

impl VhostUserBackendReqHandler for Backend {
    /// Makes the front-end the owner: nothing to do, since a connection has only one front-end.
    fn set_owner(&self) -> Result<()> {
        Ok(())
    }

    /// Deprecated: the specification recommends ignoring it or disabling all rings.
    fn reset_owner(&self) -> Result<()> {
        self.set_vring_enable(0, false)
    }

    /// Disables the ring and resets all state of the device; the memory stays.
    fn reset_device(&self) -> Result<()> {
        self.change(0, |guest| {
            guest.vring.reset();
            Ok(())
        })
    }

    fn get_features(&self) -> Result<u64> {
        Ok(FEATURES)
    }

    /// VIRTIO 1.4, "Feature Bits": a driver must not accept a bit that was not offered. The message may
    /// come again at any time, also while the ring runs.
    fn set_features(&self, features: u64) -> Result<()> {
        accepted(features & !FEATURES == 0)?;
        self.change(0, |guest| {
            guest.vring.set_features(features);
            Ok(())
        })
    }

    fn get_max_mem_slots(&self) -> Result<u64> {
        u64::try_from(MAX_REGIONS).map_err(refused)
    }

    /// The SPI controller has one queue, `requestq` (VIRTIO 1.4, "SPI Controller Device / Virtqueues").
    fn get_queue_num(&self) -> Result<u64> {
        Ok(1)
    }

    fn set_vring_num(&self, index: u32, num: u32) -> Result<()> {
        self.change(index, |guest| guest.vring.set_size(num).map_err(refused))
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
        // The one flag asks for a log of the used ring's writes, for migration.
        if !flags.is_empty() {
            return Err(NOT_OFFERED);
        }
        let addresses = [descriptor, available, used].map(UserAddress);
        self.change(index, |Guest { memory, vring }| {
            vring.set_addresses(addresses, memory).map_err(refused)
        })
    }

    /// For a split ring the base is the next available index alone; the used index is in the ring.
    fn set_vring_base(&self, index: u32, base: u32) -> Result<()> {
        self.change(index, |guest| accepted(guest.vring.set_base(base)))
    }

    /// Stops the ring (vhost-user, "Ring states"): the base is where a later start continues.
    fn get_vring_base(&self, index: u32) -> Result<VhostUserVringState> {
        self.change(index, |guest| {
            let base = guest.vring.stop();
            Ok(VhostUserVringState::new(index, base.into()))
        })
    }

    fn set_vring_enable(&self, index: u32, enable: bool) -> Result<()> {
        self.change(index, |guest| {
            guest.vring.enabled = enable;
            Ok(())
        })
    }

    fn get_protocol_features(&self) -> Result<VhostUserProtocolFeatures> {
        Ok(PROTOCOL_FEATURES)
    }

    fn set_protocol_features(&self, features: u64) -> Result<()> {
        let acked = VhostUserProtocolFeatures::from_bits_retain(features);
        accepted(PROTOCOL_FEATURES.contains(acked))?;
        self.acked.set(acked);
        Ok(())
    }

    /// Bytes after the config space are 0: a front-end may ask for a longer one than VIRTIO 1.4 has.
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
        // `with_fds` decodes these.
        fn set_mem_table(&[VhostUserMemoryRegion], Vec<File>, Option<bool>) -> Option<Vec<u64>>;
        fn add_mem_region(&VhostUserSingleMemoryRegion, File, Option<bool>) -> Option<u64>;
        fn remove_mem_region(&VhostUserSingleMemoryRegion) -> ();
        fn set_vring_kick(u8, Option<File>) -> ();
        fn set_vring_call(u8, Option<File>) -> ();
        fn set_vring_err(u8, Option<File>) -> ();
        // `message` does not let these through.
        fn set_gpu_socket(GpuBackend) -> ();
        fn get_shared_object(VhostUserSharedMsg) -> File;
        fn get_inflight_fd(&VhostUserInflight) -> (VhostUserInflight, File);
        fn set_inflight_fd(&VhostUserInflight, File) -> ();
        fn set_device_state_fd(VhostTransferStateDirection, VhostTransferStatePhase, File)
            -> Option<File>;
        fn check_device_state() -> ();
        fn get_shmem_config() -> VhostUserShMemConfig;
        fn set_log_base(&VhostUserLog, File) -> ();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn backend() -> Backend {
        let poller = Poller::new().unwrap();
        Backend::new(
            GuestNumber::default(),
            ConfigSpace::default(),
            1 << 40,
            poller,
        )
    }

    #[test]
    fn methods_of_messages_that_are_decoded_elsewhere_or_not_offered_are_refused() {
        let backend = backend();
        let file = || File::open("/dev/null").unwrap();
        let (gpu, _) = UnixStream::pair().unwrap();
        let refused = [
            backend.set_mem_table(&[], Vec::new(), None).is_err(),
            backend
                .add_mem_region(&VhostUserSingleMemoryRegion::default(), file(), None)
                .is_err(),
            backend
                .remove_mem_region(&VhostUserSingleMemoryRegion::default())
                .is_err(),
            backend.set_vring_kick(0, None).is_err(),
            backend.set_vring_call(0, None).is_err(),
            backend.set_vring_err(0, None).is_err(),
            backend
                .get_shared_object(VhostUserSharedMsg::default())
                .is_err(),
            backend
                .get_inflight_fd(&VhostUserInflight::default())
                .is_err(),
            backend
                .set_inflight_fd(&VhostUserInflight::default(), file())
                .is_err(),
            backend.check_device_state().is_err(),
            backend.get_shmem_config().is_err(),
            backend
                .set_log_base(&VhostUserLog::default(), file())
                .is_err(),
            backend
                .set_device_state_fd(
                    VhostTransferStateDirection::SAVE,
                    VhostTransferStatePhase::STOPPED,
                    file(),
                )
                .is_err(),
        ];
        assert_eq!(refused, [true; 13]);
        backend
            .set_gpu_socket(GpuBackend::from_stream(gpu))
            .unwrap_err();
    }
}
