//! The vhost-user requests: what each does to one guest's memory and vring.
//!
//! The `vhost` crate decodes messages and calls one method each; every method checks the index,
//! then the state, then acts. A refusal is answered where REPLY_ACK was asked, and ends the
//! connection. What a message means for a transfer in progress was settled before (`session`).
//!
//! Must not: touch the connection or a device.

use std::cell::{RefCell, RefMut};
use std::fs::File;
use std::io::{self, ErrorKind, Write};

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error, GpuBackend, Result, VhostUserBackendReqHandler, VhostUserProtocolFeatures,
};
use vm_memory::GuestAddress;

use crate::config::{GuestNumber, MAX_REGIONS};
use crate::error::SessionError;
use crate::os::epoll::{Poller, Registered, Token};
use crate::os::file_kind;
use crate::os::write_timeout;
use crate::spi::wire::Config;
use crate::virtqueue::memory::{Memory, RegionDescription, UserAddress};
use crate::virtqueue::vring::{RingAddresses, Vring};

const F_RING_INDIRECT_DESC: u64 = 1 << 28;
const F_RING_EVENT_IDX: u64 = 1 << 29;
const F_PROTOCOL_FEATURES: u64 = 1 << 30;
const F_VERSION_1: u64 = 1 << 32;
const F_IN_ORDER: u64 = 1 << 35;
/// What is offered. The device itself has no feature bits.
const FEATURES: u64 =
    F_RING_INDIRECT_DESC | F_RING_EVENT_IDX | F_PROTOCOL_FEATURES | F_VERSION_1 | F_IN_ORDER;

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
    kick: Option<Registered>,
}

/// The handler of one connection's messages.
#[derive(Debug)]
pub struct Backend {
    number: GuestNumber,
    config: Config,
    poller: Poller,
    guest: RefCell<Guest>,
}

impl Backend {
    /// The handler for a new connection of guest `number`, which may have `max_memory_len` bytes of
    /// memory.
    pub fn new(number: GuestNumber, config: Config, max_memory_len: u64, poller: Poller) -> Self {
        let guest = Guest {
            memory: Memory::new(max_memory_len),
            vring: Vring::default(),
            kick: None,
        };
        Self {
            number,
            config,
            poller,
            guest: RefCell::new(guest),
        }
    }

    /// The guest, for as long as no message is handled.
    pub fn guest(&self) -> RefMut<'_, Guest> {
        self.guest.borrow_mut()
    }

    /// Gives up all that the front-end brought.
    pub fn clear(&self) {
        let mut guest = self.guest.borrow_mut();
        guest.kick = None;
        guest.vring.reset();
        guest.memory.clear();
    }

    /// Changes the guest, then lets its ring run or not according to its new state. A ring that
    /// should run and cannot is broken, and the message that shows it is refused.
    fn change<T>(&self, change: impl FnOnce(&mut Guest) -> Result<T>) -> Result<T> {
        let mut guest = self.guest.borrow_mut();
        let result = change(&mut guest)?;
        let Guest { memory, vring, .. } = &mut *guest;
        if let Err(misplaced) = vring.update(memory) {
            vring.set_broken().map_err(blocked)?;
            return Err(refused(misplaced));
        }
        Ok(result)
    }

    /// As [`Backend::change`], for a message that adds or removes one of several regions: a ring
    /// that is outside of memory meanwhile waits for the next.
    fn change_region<T>(&self, change: impl FnOnce(&mut Guest) -> Result<T>) -> Result<T> {
        let mut guest = self.guest.borrow_mut();
        let result = change(&mut guest)?;
        let Guest { memory, vring, .. } = &mut *guest;
        let _ = vring.update(memory);
        Ok(result)
    }

    /// As [`Backend::change`], for a message about ring `index`: there is one.
    fn change_ring<T>(
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

fn describe(region: &VhostUserMemoryRegion) -> RegionDescription {
    RegionDescription {
        guest: GuestAddress(region.guest_phys_addr),
        user: UserAddress(region.user_addr),
        len: region.memory_size,
        file_offset: region.mmap_offset,
    }
}

fn refused(error: impl std::fmt::Display) -> Error {
    Error::ReqHandlerError(io::Error::other(error.to_string()))
}

/// The err eventfd blocked: `SessionError::of_vhost` knows it by this.
fn blocked(_: SessionError) -> Error {
    Error::ReqHandlerError(ErrorKind::Interrupted.into())
}

fn accepted(accepted: bool) -> Result<()> {
    if accepted {
        Ok(())
    } else {
        Err(Error::InvalidParam)
    }
}

/// Refuses what is no eventfd: anonymous inodes have no file type, and of those only an eventfd
/// takes a write of zero.
fn check_eventfd(file: &File) -> Result<()> {
    if file_type(file)? != 0 {
        return Err(NO_EVENTFD);
    }
    let mut writer = file;
    // Of a counter at its very end even the zero has to wait.
    let _armed = write_timeout::arm();
    match writer.write(&0u64.to_ne_bytes()) {
        Ok(8) => Ok(()),
        Err(error) if error.kind() == ErrorKind::Interrupted => Err(Error::ReqHandlerError(error)),
        Ok(_) | Err(_) => Err(NO_EVENTFD),
    }
}

/// As [`check_eventfd`], but for what we write to: user-mode Linux gives one end of a socketpair.
/// It is not tried, since its reader would take that for a signal. A pipe is refused: whoever holds
/// its lock would hold up our write, and no signal ends that.
fn check_signal(file: Option<File>) -> Result<Option<File>> {
    let Some(mut file) = file else {
        return Ok(None);
    };
    if file_type(&file)? == libc::S_IFSOCK {
        let accepted;
        (accepted, file) = file_kind::is_socketpair(file);
        return if accepted {
            Ok(Some(file))
        } else {
            Err(NO_EVENTFD)
        };
    }
    check_eventfd(&file)?;
    Ok(Some(file))
}

fn file_type(file: &File) -> Result<u32> {
    let (kind, _) = file_kind::file_type(file).map_err(Error::ReqHandlerError)?;
    Ok(kind)
}

const NO_EVENTFD: Error = Error::InvalidOperation("not an eventfd");
const NOT_OFFERED: Error = Error::InvalidOperation("not offered");

impl VhostUserBackendReqHandler for Backend {
    fn set_owner(&self) -> Result<()> {
        Ok(())
    }

    /// A message of old, for which vhost-user leaves two things: to ignore it, or to disable the ring.
    fn reset_owner(&self) -> Result<()> {
        self.change(|guest| {
            guest.vring.set_enabled(false);
            Ok(())
        })
    }

    fn reset_device(&self) -> Result<()> {
        self.change(|guest| {
            guest.vring.reset();
            guest.kick = None;
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
            guest.vring.set_features(
                features & F_RING_EVENT_IDX != 0,
                features & F_RING_INDIRECT_DESC != 0,
                features & F_PROTOCOL_FEATURES != 0,
            );
            Ok(())
        })
    }

    fn set_mem_table(
        &self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        self.change(|guest| {
            // First, so that no guest ever maps more than its share. What is refused ends the
            // connection, so that the old table is not missed.
            guest.memory.clear();
            for (region, file) in regions.iter().zip(files) {
                guest.memory.add(describe(region), file).map_err(refused)?;
            }
            Ok(None)
        })
    }

    fn get_max_mem_slots(&self) -> Result<u64> {
        u64::try_from(MAX_REGIONS).map_err(refused)
    }

    fn add_mem_region(
        &self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        self.change_region(|guest| {
            guest.memory.add(describe(region), file).map_err(refused)?;
            Ok(None)
        })
    }

    fn remove_mem_region(&self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.change_region(|guest| guest.memory.remove(&describe(region)).map_err(refused))
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
        self.change_ring(index, |guest| {
            let set = guest.vring.set_addresses(addresses, &guest.memory);
            set.map_err(refused)
        })
    }

    fn set_vring_base(&self, index: u32, base: u32) -> Result<()> {
        self.change_ring(index, |guest| accepted(guest.vring.set_base(base)))
    }

    fn get_vring_base(&self, index: u32) -> Result<VhostUserVringState> {
        self.change_ring(index, |guest| {
            guest.kick = None;
            let base = guest.vring.stop();
            Ok(VhostUserVringState::new(index, base.into()))
        })
    }

    fn set_vring_kick(&self, index: u8, file: Option<File>) -> Result<()> {
        self.change_ring(index.into(), |guest| {
            let absent = file.is_none();
            guest.kick = None;
            if let Some(file) = file {
                check_eventfd(&file)?;
                let kick = Registered::new(&self.poller, file, Token::Kick(self.number));
                guest.kick = Some(kick.map_err(Error::ReqHandlerError)?);
            }
            guest.vring.start(absent);
            Ok(())
        })
    }

    fn set_vring_call(&self, index: u8, file: Option<File>) -> Result<()> {
        self.change_ring(index.into(), |guest| {
            guest.vring.set_call(check_signal(file)?);
            Ok(())
        })
    }

    fn set_vring_err(&self, index: u8, file: Option<File>) -> Result<()> {
        self.change_ring(index.into(), |guest| {
            guest.vring.set_err(check_signal(file)?);
            Ok(())
        })
    }

    fn set_vring_enable(&self, index: u32, enable: bool) -> Result<()> {
        self.change_ring(index, |guest| {
            guest.vring.set_enabled(enable);
            Ok(())
        })
    }

    fn get_protocol_features(&self) -> Result<VhostUserProtocolFeatures> {
        Ok(PROTOCOL_FEATURES)
    }

    fn set_protocol_features(&self, features: u64) -> Result<()> {
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

    // The gate lets none of the messages behind these methods through.

    fn set_gpu_socket(&self, _gpu_backend: GpuBackend) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_shared_object(&self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(NOT_OFFERED)
    }

    fn get_inflight_fd(&self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(NOT_OFFERED)
    }

    fn set_inflight_fd(&self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn set_device_state_fd(
        &self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        Err(NOT_OFFERED)
    }

    fn check_device_state(&self) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_shmem_config(&self) -> Result<VhostUserShMemConfig> {
        Err(NOT_OFFERED)
    }

    fn set_log_base(&self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(NOT_OFFERED)
    }
}
