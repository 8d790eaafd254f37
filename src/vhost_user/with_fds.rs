// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The vhost-user messages with which fds may come: decoded, checked, and carried out.
//!
//! | message | body | fds |
//! |---|---|---|
//! | SET_MEM_TABLE | u32 count, u32 padding of 0, and four u64 for each region | one for each region |
//! | ADD_MEM_REG | u64 padding, four u64 | one |
//! | REM_MEM_REG | the same | one, which is not used, or none |
//! | SET_VRING_KICK, _CALL, _ERR | u64: index in bits 0 to 7, "no fd" in bit 8 | one or none |
//!
//! The four of a region: first guest address, length, first user address, offset in its file. All
//! numbers are little-endian on the hosts that are supported (vhost-user: the host's byte order).
//!
//! Should: use a file only as its kind allows. `reader` defers the close of a file that stays
//! in the message. Called by `handler`.

use std::io::ErrorKind;

use vhost::vhost_user::message::VhostUserMemoryRegion;
use vhost::vhost_user::{Error, Result, VhostUserProtocolFeatures};
use vm_memory::{ByteValued, GuestAddress};

use crate::os::deferred_close::FrontendFile;
use crate::os::epoll::{Registered, Token};
use crate::os::file_kind::FileKind;
use crate::os::write_timeout;
use crate::vhost_user::backend::{Backend, Guest, refused};
use crate::vhost_user::message::{HEADER_LEN, RequestCode};
use crate::vhost_user::reader::Message;
use crate::virtqueue::memory::{RegionDescription, UserAddress};

/// Bit 8 of the u64, which is bit 0 of its second byte: no fd comes with the message.
const NO_FD: u8 = 1 << 0;
const NOT_AN_EVENTFD: Error = Error::InvalidOperation("not an eventfd");

/// The files that came with a message.
type Files = Vec<FrontendFile>;

impl Backend {
    /// Carries out a message of one of the requests above.
    ///
    /// # Errors
    /// The message is refused: its body or its count of fds does not fit the request, a file is of the
    /// wrong kind, or the change of the guest failed.
    pub fn handle_with_fds(&self, message: &mut Message<'_>) -> Result<()> {
        let body = message.bytes.get(HEADER_LEN..);
        let fields = body.and_then(|body| body.split_first_chunk());
        let (first, regions) = fields.ok_or(Error::InvalidMessage)?;
        let (first, files) = (u64::from_le_bytes(*first), &mut *message.files);
        match (message.request, regions) {
            (RequestCode::SET_MEM_TABLE, _) => self.set_memory(first, regions, files),
            (request @ (RequestCode::ADD_MEM_REG | RequestCode::REM_MEM_REG), region) => {
                self.change_region(request, region, files)
            }
            (request, []) => self.set_vring_file(request, first, files),
            _ => Err(Error::InvalidMessage),
        }
    }

    fn set_memory(&self, count: u64, regions: &[u8], files: &mut Files) -> Result<()> {
        let regions = regions.chunks(size_of::<VhostUserMemoryRegion>());
        let regions: Vec<_> = regions.map(describe).collect::<Result<_>>()?;
        let is_counted = u64::try_from(regions.len()) == Ok(count);
        if regions.is_empty() || !is_counted || files.len() != regions.len() {
            return Err(Error::InvalidMessage);
        }
        self.change(0, |guest| {
            // The old regions go before new ones are mapped, so that no guest ever maps more than its
            // share. If a new one is refused the connection ends, so the old table is not missed.
            guest.memory.clear();
            for (region, file) in regions.into_iter().zip(files.drain(..)) {
                guest.memory.add(region, file).map_err(refused)?;
            }
            Ok(())
        })
    }

    fn change_region(&self, request: RequestCode, region: &[u8], files: &mut Files) -> Result<()> {
        let feature = VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        if !self.acked.get().contains(feature) {
            return Err(Error::InactiveOperation(feature));
        }
        let region = describe(region)?;
        let Guest { memory, vring } = &mut *self.guest();
        let changed = match (request, files.pop(), &**files) {
            // One fd is accepted and not used (vhost-user, "VHOST_USER_REM_MEM_REG").
            (RequestCode::REM_MEM_REG, _, []) => memory.remove(&region),
            (_, Some(file), []) => memory.add(region, file),
            _ => return Err(Error::InvalidMessage),
        };
        changed.map_err(refused)?;
        // Unlike after other messages, a ring that is outside of memory waits for the next region: QEMU
        // removes and adds regions one after the other.
        let _ = vring.update(memory);
        Ok(())
    }

    fn set_vring_file(&self, request: RequestCode, value: u64, files: &mut Files) -> Result<()> {
        let [index, flags, ..] = value.to_le_bytes();
        let file = files.pop();
        if !files.is_empty() || file.is_none() != (flags & NO_FD != 0) {
            return Err(Error::IncorrectFds);
        }
        self.change(index.into(), |Guest { vring, .. }| {
            if let Some(file) = &file {
                check_vring_file(request, file)?;
            }
            if request == RequestCode::SET_VRING_CALL {
                vring.call = file;
            } else if request == RequestCode::SET_VRING_ERR {
                vring.err = file;
            } else {
                let token = Token::Kick(self.number);
                let kick = file.map(|file| Registered::new(&self.poller, file, token));
                vring.start(kick.transpose().map_err(Error::ReqHandlerError)?);
            }
            Ok(())
        })
    }
}

/// The region that `bytes` describe.
fn describe(bytes: &[u8]) -> Result<RegionDescription> {
    let region = VhostUserMemoryRegion::from_slice(bytes).ok_or(Error::InvalidMessage)?;
    Ok(RegionDescription {
        guest: GuestAddress(region.guest_phys_addr),
        len: region.memory_size,
        user: UserAddress(region.user_addr),
        file_offset: region.mmap_offset,
    })
}

/// Refuses a file that is not an eventfd; but SET_VRING_CALL and _ERR may bring one end of a
/// socketpair, which user-mode Linux does.
fn check_vring_file(request: RequestCode, file: &FrontendFile) -> Result<()> {
    // The write below is not tried on a socket: its reader would take it for a notification.
    if file.kind == FileKind::SocketEnd && request != RequestCode::SET_VRING_KICK {
        return Ok(());
    }
    // Nor on a pipe: a process that holds its lock would make our write wait, and no signal interrupts
    // that.
    if file.kind != FileKind::Anonymous {
        return Err(NOT_AN_EVENTFD);
    }
    // Of the anonymous inodes only an eventfd takes a write of 0, which changes nothing. It waits if
    // the counter is at its maximum and the front-end made the eventfd blocking.
    match write_timeout::bounded(|| file.write(&0u64.to_ne_bytes())) {
        Ok(8) => Ok(()),
        Err(error) if error.kind() == ErrorKind::Interrupted => Err(Error::ReqHandlerError(error)),
        Ok(_) | Err(_) => Err(NOT_AN_EVENTFD),
    }
}
