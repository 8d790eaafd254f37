// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The header of a message: the code of its request, the length of its body, and the acknowledgement that
//! it may ask for (vhost-user, "Message Specification").
//!
//! Only a message whose code is listed here is carried out. The `vhost` crate knows more codes, acts on some
//! of them without negotiation, and accepts a header of any version.
//!
//! Must not: receive or send. Called by `reader` when a header is there, and by `handler` for the
//! acknowledgement.

pub use vhost::vhost_user::message::FrontendReq as RequestCode;

use crate::config::MAX_REGIONS;
use crate::error::SessionError;

/// Bytes of a header: request code, flags, size of the body, all u32.
pub const HEADER_LEN: usize = 12;
/// Most bytes of a body, as in the `vhost` crate; the longest is a GET_CONFIG of the whole config space.
pub const MAX_BODY_LEN: usize = 4096;
/// Most bytes of a message. A reply is no longer.
pub const MAX_LEN: usize = HEADER_LEN + MAX_BODY_LEN;
/// Most fds that are accepted with a message: one for each region of a memory table. The kernel can bring
/// more: [`socket::MAX_RECEIVED_FDS`](crate::os::socket::MAX_RECEIVED_FDS).
pub const MAX_FDS: usize = MAX_REGIONS;

/// The version, in the lowest two bits of the flags.
const VERSION: u32 = 0x1;
/// Flag: the message is a reply, which only a back-end sends.
const FLAG_REPLY: u32 = 1 << 2;
/// Flag: the front-end waits for an acknowledgement.
const FLAG_NEED_REPLY: u32 = 1 << 3;

/// Who decodes a message, and whether it has a reply of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The `vhost` crate; the answer, if it is asked for, is an acknowledgement.
    Plain,
    /// The `vhost` crate; the reply has a value that the front-end waits for.
    Reply,
    /// [`with_fds`](super::with_fds), since its fds are guest memory; the answer is an acknowledgement.
    Memory,
    /// The same, but its fd is the ring's kick, call or err.
    Eventfd,
}

/// The requests that are served (vhost-user, "Front-end message types"); every other one ends the
/// connection. Those of dirty logging, in-flight buffers, postcopy, IOTLB, GPU and device state belong
/// to protocol features that are not offered, but the `vhost` crate acts on some of them all the same.
const SERVED: [(RequestCode, Kind); 22] = [
    (RequestCode::GET_FEATURES, Kind::Reply),
    (RequestCode::SET_FEATURES, Kind::Plain),
    (RequestCode::SET_OWNER, Kind::Plain),
    (RequestCode::RESET_OWNER, Kind::Plain),
    (RequestCode::SET_MEM_TABLE, Kind::Memory),
    (RequestCode::SET_VRING_NUM, Kind::Plain),
    (RequestCode::SET_VRING_ADDR, Kind::Plain),
    (RequestCode::SET_VRING_BASE, Kind::Plain),
    (RequestCode::GET_VRING_BASE, Kind::Reply),
    (RequestCode::SET_VRING_KICK, Kind::Eventfd),
    (RequestCode::SET_VRING_CALL, Kind::Eventfd),
    (RequestCode::SET_VRING_ERR, Kind::Eventfd),
    (RequestCode::GET_PROTOCOL_FEATURES, Kind::Reply),
    (RequestCode::SET_PROTOCOL_FEATURES, Kind::Plain),
    (RequestCode::GET_QUEUE_NUM, Kind::Reply),
    (RequestCode::SET_VRING_ENABLE, Kind::Plain),
    (RequestCode::GET_CONFIG, Kind::Reply),
    (RequestCode::SET_CONFIG, Kind::Plain),
    (RequestCode::RESET_DEVICE, Kind::Plain),
    (RequestCode::GET_MAX_MEM_SLOTS, Kind::Reply),
    (RequestCode::ADD_MEM_REG, Kind::Memory),
    (RequestCode::REM_MEM_REG, Kind::Memory),
];

/// A header as it was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    code: u32,
    flags: u32,
    size: u32,
    /// The request and its kind, if it is served.
    served: Option<(RequestCode, Kind)>,
}

impl Header {
    /// The header that `bytes` begin with, if all of it is there.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let [c0, c1, c2, c3, f0, f1, f2, f3, s0, s1, s2, s3] = *bytes.first_chunk()?;
        let code = u32::from_le_bytes([c0, c1, c2, c3]);
        let mut served = SERVED.into_iter();
        Some(Self {
            code,
            flags: u32::from_le_bytes([f0, f1, f2, f3]),
            size: u32::from_le_bytes([s0, s1, s2, s3]),
            served: served.find(|(request, _)| u32::from(*request) == code),
        })
    }

    /// The request, its kind, and the length of the whole message in bytes (vhost-user, "Header").
    ///
    /// # Errors
    /// The request is not served, the version is not 1, a flag is set that only a reply may have or
    /// that is reserved, or the body is too long.
    pub fn check(&self) -> Result<(RequestCode, Kind, usize), SessionError> {
        let refused = |why| Err(SessionError::Message(self.code, why));
        let Some((request, kind)) = self.served else {
            return refused(match u8::try_from(self.code) {
                Ok(_) => "is not supported",
                Err(_) => "is not supported: is the peer a vhost-user front-end?",
            });
        };
        if self.flags & !FLAG_NEED_REPLY != VERSION {
            return refused("has a wrong version or flags");
        }
        match usize::try_from(self.size) {
            Ok(len @ ..=MAX_BODY_LEN) => Ok((request, kind, HEADER_LEN.saturating_add(len))),
            Ok(_) | Err(_) => refused("has a body that is too long"),
        }
    }

    /// Whether the files of the message are guest memory.
    pub fn shares_memory(&self) -> bool {
        matches!(self.served, Some((_, Kind::Memory)))
    }

    /// The acknowledgement of the message, if it asks for one (vhost-user, "REPLY_ACK"): the same request,
    /// and 0 if it succeeded. The flag has no meaning for a request with a reply of its own. A message that
    /// is not allowed may ask for one, too: the acknowledgement then refuses it.
    pub fn ack(&self, succeeded: bool) -> Option<[[u8; 4]; 5]> {
        let has_reply = matches!(self.served, Some((_, Kind::Reply)));
        let asks = self.flags & (FLAG_NEED_REPLY | FLAG_REPLY) == FLAG_NEED_REPLY;
        let value = u32::from(!succeeded);
        // The value is a u64, of which the lower half comes first.
        let ack = [self.code, VERSION | FLAG_REPLY, 8, value, 0].map(u32::to_le_bytes);
        (asks && !has_reply).then_some(ack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(code: u32, flags: u32, size: u32) -> Header {
        let fields = [code, flags, size].map(u32::to_le_bytes);
        Header::parse(fields.as_flattened()).unwrap()
    }

    #[test]
    fn header_that_is_not_allowed_is_refused() {
        for wrong in [
            header(0, 1, 0),
            header(6, 1, 0),  // SET_LOG_BASE
            header(21, 1, 0), // SET_BACKEND_REQ_FD
            header(33, 1, 0), // GPU_SET_SOCKET
            header(999, 1, 0),
            header(1, 0, 0),    // version 0
            header(1, 2, 0),    // version 2
            header(1, 5, 0),    // a reply
            header(1, 0x11, 0), // reserved flag
            header(2, 1, 4097),
            header(2, 1, u32::MAX),
        ] {
            let checked = wrong.check();
            assert!(
                matches!(checked, Err(SessionError::Message(..))),
                "{wrong:?}"
            );
        }
        assert_eq!(
            header(25, 9, 4096).check().unwrap(),
            (RequestCode::SET_CONFIG, Kind::Plain, 12 + 4096)
        );
    }

    #[test]
    fn ack_is_asked_for_by_the_flag_unless_the_message_has_a_reply() {
        assert!(header(999, 9, 0).ack(false).is_some(), "it is not served");
        assert!(header(5, 1, 0).ack(true).is_none(), "without the flag");
        assert!(header(1, 9, 0).ack(true).is_none(), "it has a reply");
        assert!(header(5, 13, 0).ack(true).is_none(), "a reply itself");
        let nack = header(5, 9, 40).ack(false).unwrap();
        let expected = [5, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(nack.as_flattened(), expected);
        assert_eq!(header(5, 9, 40).ack(true).unwrap()[3], [0; 4]);
    }
}
