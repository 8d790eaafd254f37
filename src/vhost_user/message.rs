//! What a message is: header, request, and the acknowledgement that it may ask for.
//!
//! Only what is listed here reaches a handler. The `vhost` crate knows more requests, some of which
//! it acts on without negotiation, and reads a header of any version.
//!
//! Must not: receive or send.

pub use vhost::vhost_user::message::FrontendReq as Request;

use crate::error::SessionError;

/// Bytes of a header: request code, flags, size of the body, all u32.
pub const HEADER_LEN: usize = 12;
/// Most bytes of a body, as the `vhost` crate has it: a GET_CONFIG of the whole config space.
pub const MAX_BODY_LEN: usize = 4096;
/// Most bytes of a message. A reply is no longer.
pub const MAX_LEN: usize = HEADER_LEN + MAX_BODY_LEN;
/// Most fds with a message: one for each region of a memory table.
pub const MAX_FDS: usize = 32;

const ACK_LEN: usize = HEADER_LEN + 8;

const VERSION_MASK: u32 = 0x3;
const VERSION: u32 = 0x1;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;

/// Whether a request is one of those that this daemon serves.
fn is_served(request: Request) -> bool {
    matches!(
        request,
        Request::GET_FEATURES
            | Request::SET_FEATURES
            | Request::SET_OWNER
            | Request::RESET_OWNER
            | Request::SET_MEM_TABLE
            | Request::SET_VRING_NUM
            | Request::SET_VRING_ADDR
            | Request::SET_VRING_BASE
            | Request::GET_VRING_BASE
            | Request::SET_VRING_KICK
            | Request::SET_VRING_CALL
            | Request::SET_VRING_ERR
            | Request::GET_PROTOCOL_FEATURES
            | Request::SET_PROTOCOL_FEATURES
            | Request::GET_QUEUE_NUM
            | Request::SET_VRING_ENABLE
            | Request::GET_CONFIG
            | Request::SET_CONFIG
            | Request::RESET_DEVICE
            | Request::GET_MAX_MEM_SLOTS
            | Request::ADD_MEM_REG
            | Request::REM_MEM_REG
    )
}

/// Whether fds belong to a request.
pub fn brings_fds(request: Request) -> bool {
    matches!(
        request,
        Request::SET_MEM_TABLE
            | Request::ADD_MEM_REG
            | Request::SET_VRING_KICK
            | Request::SET_VRING_CALL
            | Request::SET_VRING_ERR
    )
}

/// Whether the reply to a request says more than that it succeeded.
fn has_reply(request: Request) -> bool {
    matches!(
        request,
        Request::GET_FEATURES
            | Request::GET_VRING_BASE
            | Request::GET_PROTOCOL_FEATURES
            | Request::GET_QUEUE_NUM
            | Request::GET_CONFIG
            | Request::GET_MAX_MEM_SLOTS
    )
}

/// A header as it was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    code: u32,
    flags: u32,
    size: u32,
}

impl Header {
    /// The header that `bytes` begin with, if all of it is there.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let [c0, c1, c2, c3, f0, f1, f2, f3, s0, s1, s2, s3] = *bytes.first_chunk()?;
        Some(Self {
            code: u32::from_le_bytes([c0, c1, c2, c3]),
            flags: u32::from_le_bytes([f0, f1, f2, f3]),
            size: u32::from_le_bytes([s0, s1, s2, s3]),
        })
    }

    fn request(&self) -> Option<Request> {
        Request::try_from(self.code).ok()
    }

    /// The request, and the length of its body in bytes.
    ///
    /// # Errors
    /// It is not one that is served, or not as the protocol has it.
    pub fn check(&self) -> Result<(Request, usize), SessionError> {
        let Self { code, flags, size } = *self;
        let Some(request) = self.request().filter(|request| is_served(*request)) else {
            return Err(SessionError::Message(code, "is not supported"));
        };
        if flags & VERSION_MASK != VERSION || flags & !(VERSION_MASK | FLAG_NEED_REPLY) != 0 {
            return Err(SessionError::Message(code, "has a wrong version or flags"));
        }
        match usize::try_from(size) {
            Ok(body_len @ ..=MAX_BODY_LEN) => Ok((request, body_len)),
            Ok(_) | Err(_) => Err(SessionError::Message(code, "has a body that is too long")),
        }
    }

    /// Whether the front-end waits for an acknowledgement, if that was negotiated. The flag has no
    /// meaning for a request with a reply of its own.
    pub fn needs_ack(&self) -> bool {
        let has_reply = self.request().is_some_and(has_reply);
        self.flags & FLAG_NEED_REPLY != 0 && self.flags & FLAG_REPLY == 0 && !has_reply
    }

    /// The acknowledgement of the message: the same request, and 0 if it succeeded.
    pub fn ack(&self, succeeded: bool) -> [u8; ACK_LEN] {
        let value: [u8; 8] = u64::from(!succeeded).to_le_bytes();
        let mut ack = [0; ACK_LEN];
        let fields = [self.code, VERSION | FLAG_REPLY, 8].map(u32::to_le_bytes);
        let bytes = fields.iter().flatten().chain(&value);
        ack.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        ack
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(code: u32, flags: u32, size: u32) -> Header {
        Header { code, flags, size }
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
            (Request::SET_CONFIG, 4096)
        );
    }

    #[test]
    fn ack_is_asked_for_by_the_flag_unless_the_message_has_a_reply() {
        assert!(header(5, 9, 0).needs_ack() && header(999, 9, 0).needs_ack());
        assert!(!header(5, 1, 0).needs_ack(), "without the flag");
        assert!(!header(1, 9, 0).needs_ack(), "GET_FEATURES has a reply");
        assert!(!header(5, 13, 0).needs_ack(), "a reply itself");
        let nack = header(5, 9, 40).ack(false);
        let expected = [5, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(nack, expected);
        assert_eq!(header(5, 9, 40).ack(true)[12], 0);
    }
}
