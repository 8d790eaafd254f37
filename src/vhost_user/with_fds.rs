//! The vhost-user messages that bring fds: decoded, checked, and carried out.
//!
//! | message | body | fds |
//! |---|---|---|
//! | SET_MEM_TABLE | u32 count, u32 padding, and of each region four u64 | one for each region |
//! | ADD_MEM_REG | u64 padding, four u64 | one |
//! | SET_VRING_KICK, _CALL, _ERR | u64: index in bits 0 to 7, "no fd" in bit 8 | one or none |
//!
//! The four of a region: first guest address, length, first user address, offset in its file.
//!
//! Should: take a file only for what its kind allows. Whatever stays in the message is given up by
//! its reader.

use std::io::ErrorKind;

use vhost::vhost_user::{Error, Result, VhostUserProtocolFeatures};
use vm_memory::GuestAddress;

use crate::os::deferred_close::FrontendFile;
use crate::os::epoll::{Registered, Token};
use crate::os::file_kind::FileKind;
use crate::os::write_timeout;
use crate::vhost_user::backend::{Backend, refused};
use crate::vhost_user::message::Request;
use crate::vhost_user::reader::Message;
use crate::virtqueue::memory::{RegionDescription, UserAddress};

const INDEX_MASK: u64 = 0xff;
const NO_FD: u64 = 1 << 8;
const NOT_AN_EVENTFD: Error = Error::InvalidOperation("not an eventfd");

/// A number as it stands in a message.
type Field = [u8; 8];

impl Backend {
    /// Carries out a message of one of the five requests that bring fds.
    ///
    /// # Errors
    /// It is refused.
    pub fn handle_with_fds(&self, message: &mut Message<'_>) -> Result<()> {
        let (fields, rest) = message.body.as_chunks();
        let files = &mut *message.files;
        if !rest.is_empty() {
            return Err(Error::InvalidMessage);
        }
        match (message.request, fields) {
            (Request::SET_MEM_TABLE, [count, regions @ ..]) => {
                self.set_memory(number(count), regions, files)
            }
            (Request::ADD_MEM_REG, [_, region @ ..]) => self.add_region(region, files),
            (request, [vring]) => self.set_vring_file(request, number(vring), files),
            _ => Err(Error::InvalidMessage),
        }
    }

    fn set_memory(
        &self,
        count: u64,
        regions: &[Field],
        files: &mut Vec<FrontendFile>,
    ) -> Result<()> {
        let (regions, rest) = regions.as_chunks();
        let is_whole = rest.is_empty() && u64::try_from(regions.len()) == Ok(count);
        if !is_whole || count == 0 || files.len() != regions.len() {
            return Err(Error::InvalidMessage);
        }
        self.change(|guest| {
            // First, so that no guest ever maps more than its share. What is refused ends the
            // connection, so that the old table is not missed.
            guest.memory.clear();
            for (region, file) in regions.iter().zip(files.drain(..)) {
                guest.memory.add(describe(region), file).map_err(refused)?;
            }
            Ok(())
        })
    }

    fn add_region(&self, region: &[Field], files: &mut Vec<FrontendFile>) -> Result<()> {
        if !self.has_acked(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            let feature = VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
            return Err(Error::InactiveOperation(feature));
        }
        let (Ok(region), Some(file), []) = (region.try_into(), files.pop(), &**files) else {
            return Err(Error::InvalidMessage);
        };
        self.change_region(|guest| guest.memory.add(describe(region), file).map_err(refused))
    }

    fn set_vring_file(
        &self,
        request: Request,
        value: u64,
        files: &mut Vec<FrontendFile>,
    ) -> Result<()> {
        let file = files.pop();
        if !files.is_empty() || file.is_none() != (value & NO_FD != 0) {
            return Err(Error::IncorrectFds);
        }
        let index = u32::try_from(value & INDEX_MASK).unwrap_or(u32::MAX);
        if request == Request::SET_VRING_KICK {
            return self.set_kick(index, file);
        }
        self.change_ring(index, |guest| {
            let signal = check_signal(file)?;
            if request == Request::SET_VRING_CALL {
                guest.vring.set_call(signal);
            } else {
                guest.vring.set_err(signal);
            }
            Ok(())
        })
    }

    fn set_kick(&self, index: u32, file: Option<FrontendFile>) -> Result<()> {
        self.change_ring(index, |guest| {
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
}

fn number(field: &Field) -> u64 {
    u64::from_le_bytes(*field)
}

fn describe(region: &[Field; 4]) -> RegionDescription {
    let [guest, len, user, file_offset] = region.map(u64::from_le_bytes);
    RegionDescription {
        guest: GuestAddress(guest),
        user: UserAddress(user),
        len,
        file_offset,
    }
}

/// Refuses what is not an eventfd.
fn check_eventfd(file: &FrontendFile) -> Result<()> {
    if file.kind() != FileKind::Anonymous {
        return Err(NOT_AN_EVENTFD);
    }
    // Of a counter at its very end even the zero has to wait.
    let _armed = write_timeout::arm();
    match file.write(&0u64.to_ne_bytes()) {
        Ok(8) => Ok(()),
        Err(error) if error.kind() == ErrorKind::Interrupted => Err(Error::ReqHandlerError(error)),
        Ok(_) | Err(_) => Err(NOT_AN_EVENTFD),
    }
}

/// As [`check_eventfd`], but for what we write to: user-mode Linux gives one end of a socketpair.
/// It is not tried, since its reader would take that for a signal. A pipe is refused: whoever holds
/// its lock would hold up our write, and no signal ends that.
fn check_signal(file: Option<FrontendFile>) -> Result<Option<FrontendFile>> {
    let is_socket = |file: &FrontendFile| file.kind() == FileKind::SocketEnd;
    if let Some(file) = file.as_ref().filter(|file| !is_socket(file)) {
        check_eventfd(file)?;
    }
    Ok(file)
}
