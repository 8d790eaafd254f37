//! Decides whether a whole, allowed message is queued, so that the `vhost` crate never waits.
//!
//! `BackendReqHandler::handle_request()` reads a message with a loop that retries without waiting:
//! half a header, a body that never comes or a peer that does not read its replies would stop the
//! daemon for everybody. So it is only called when this gate has seen, without taking anything off
//! the socket, that neither can happen.
//!
//! Should: look only. Must not: keep state, or judge what a handler can judge.

use std::io;
use std::mem::{forget, size_of, zeroed};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use crate::fate::SessionError;
use crate::kind;

/// `vhost_user_msg_header`: request code, flags, size of the body, all u32.
const HEADER_LEN: usize = 12;
/// Most bytes of a body, as the `vhost` crate has it: a GET_CONFIG of the whole config space.
const MAX_BODY_LEN: usize = 4096;
/// Most fds with a message: one for each region of a memory table.
const MAX_FDS: usize = 32;
/// Bytes of replies that may be unread when another message is handled. Even after a longest reply
/// this is below the smallest send buffer that Linux gives a socket by default (208 KiB).
const MAX_UNREAD: libc::c_int = 32 * 1024;

/// `struct cmsghdr` of both C libraries: a length (of 8 bytes, or 4 and padding), level, type.
const CMSGHDR_LEN: usize = 16;
/// A cmsghdr and the fds, in u32.
const CONTROL_LEN: usize = CMSGHDR_LEN / 4 + MAX_FDS;
const _: () = assert!(size_of::<libc::cmsghdr>() == CMSGHDR_LEN);

const VERSION_MASK: u32 = 0x3;
const VERSION: u32 = 0x1;
const FLAG_NEED_REPLY: u32 = 1 << 3;

/// Request codes of the vhost-user protocol that this daemon serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the protocol's")]
pub enum Request {
    GetFeatures,
    SetFeatures,
    SetOwner,
    ResetOwner,
    SetMemTable,
    SetVringNum,
    SetVringAddr,
    SetVringBase,
    GetVringBase,
    SetVringKick,
    SetVringCall,
    SetVringErr,
    GetProtocolFeatures,
    SetProtocolFeatures,
    GetQueueNum,
    SetVringEnable,
    GetConfig,
    SetConfig,
    ResetDevice,
    GetMaxMemSlots,
    AddMemReg,
    RemMemReg,
}

impl Request {
    /// The request with this code, if it is one of those served.
    const fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            1 => Self::GetFeatures,
            2 => Self::SetFeatures,
            3 => Self::SetOwner,
            4 => Self::ResetOwner,
            5 => Self::SetMemTable,
            8 => Self::SetVringNum,
            9 => Self::SetVringAddr,
            10 => Self::SetVringBase,
            11 => Self::GetVringBase,
            12 => Self::SetVringKick,
            13 => Self::SetVringCall,
            14 => Self::SetVringErr,
            15 => Self::GetProtocolFeatures,
            16 => Self::SetProtocolFeatures,
            17 => Self::GetQueueNum,
            18 => Self::SetVringEnable,
            24 => Self::GetConfig,
            25 => Self::SetConfig,
            34 => Self::ResetDevice,
            36 => Self::GetMaxMemSlots,
            37 => Self::AddMemReg,
            38 => Self::RemMemReg,
            _ => return None,
        })
    }
}

/// What is queued on the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queued {
    /// Nothing.
    Nothing,
    /// The beginning of a message.
    Part,
    /// All of a message that may be handled now.
    Message(Request),
}

/// Looks at what is queued on the connection `fd`. In `held` there are then duplicates of the fds
/// that come with it: for as long as they are open, no close of the `vhost` crate's is the last.
///
/// # Errors
/// The front-end left, or what it sends or does not read must end the session.
pub fn inspect(fd: RawFd, held: &mut Vec<OwnedFd>) -> Result<Queued, SessionError> {
    let mut header = [0; HEADER_LEN];
    // Without room for fds none are made, but their presence shows.
    let Some((peeked, with_fds)) = peek(fd, &mut header, 0, held)? else {
        return Ok(Queued::Nothing);
    };
    if peeked == 0 {
        return Err(SessionError::Disconnected);
    }
    let queued = usize::try_from(count(fd, libc::FIONREAD)?).unwrap_or(0);
    if peeked < HEADER_LEN {
        // Bytes that are queued but cannot be peeked at once have fds in their middle.
        return if queued >= HEADER_LEN {
            Err(SessionError::Fds("in the middle of a header"))
        } else {
            Ok(Queued::Part)
        };
    }
    let (request, body_len) = check(&header)?;
    let len = HEADER_LEN.saturating_add(body_len);
    if queued < len {
        return Ok(Queued::Part);
    }
    if with_fds {
        check_place(fd, len, held)?;
        check_fds(fd, held)?;
    }
    if count(fd, libc::TIOCOUTQ)? > MAX_UNREAD {
        return Err(SessionError::RepliesUnread);
    }
    Ok(Queued::Message(request))
}

fn check(header: &[u8; HEADER_LEN]) -> Result<(Request, usize), SessionError> {
    let [c0, c1, c2, c3, f0, f1, f2, f3, s0, s1, s2, s3] = *header;
    let code = u32::from_le_bytes([c0, c1, c2, c3]);
    let flags = u32::from_le_bytes([f0, f1, f2, f3]);
    let size = u32::from_le_bytes([s0, s1, s2, s3]);
    let Some(request) = Request::from_code(code) else {
        return Err(SessionError::Message(code, "not supported"));
    };
    if flags & VERSION_MASK != VERSION || flags & !(VERSION_MASK | FLAG_NEED_REPLY) != 0 {
        return Err(SessionError::Message(code, "wrong version or flags"));
    }
    let body_len = usize::try_from(size).unwrap_or(usize::MAX);
    if body_len > MAX_BODY_LEN {
        return Err(SessionError::Message(code, "body too long"));
    }
    Ok((request, body_len))
}

/// Refuses a message of `len` bytes with fds in front of its end: a peek stops behind the bytes that
/// the first fds came with. Others would be closed unseen, when the rest is read.
fn check_place(fd: RawFd, len: usize, held: &mut Vec<OwnedFd>) -> Result<(), SessionError> {
    let mut message = [0; HEADER_LEN + MAX_BODY_LEN];
    let message = message.get_mut(..len).unwrap_or_default();
    match peek(fd, message, 0, held)? {
        Some((peeked, _)) if peeked < len => Err(SessionError::Fds("in the middle of a message")),
        Some(_) | None => Ok(()),
    }
}

/// Looks at the fds that are queued: more than the `vhost` crate has room for would make it lose its
/// place in the stream, and one whose close may wait must not reach it. They may also belong to the
/// message behind this one: a peek goes on to it.
///
/// One more is looked at each time, so that at most one has to be left open.
fn check_fds(fd: RawFd, held: &mut Vec<OwnedFd>) -> Result<(), SessionError> {
    for room in 1..=MAX_FDS {
        let Some((_, more)) = peek(fd, &mut [0; HEADER_LEN], room, held)? else {
            return Ok(());
        };
        if held.last().is_some_and(kind::close_may_wait) {
            // Left open: at the end of the process the wait is nobody's.
            held.pop().into_iter().for_each(forget);
            return Err(SessionError::Flush);
        }
        if !more {
            return Ok(());
        }
    }
    Err(SessionError::Fds(
        "that are more than 32 or than the process may have",
    ))
}

/// Copies what is at the front of the queue into `bytes`, and duplicates the fds that come with it, up to `room`
/// of them, in place of those in `held`. Gives the number of bytes, 0 at the end of the stream, and
/// whether there are fds that it had no room for; `None` if nothing is queued.
#[allow(clippy::useless_conversion, reason = "msg_controllen is a u32 in musl")]
fn peek(
    fd: RawFd,
    bytes: &mut [u8],
    room: usize,
    held: &mut Vec<OwnedFd>,
) -> Result<Option<(usize, bool)>, SessionError> {
    let mut control = [0; CONTROL_LEN];
    let control_len = match room {
        0 => 0,
        room => room
            .saturating_mul(size_of::<RawFd>())
            .saturating_add(CMSGHDR_LEN),
    };
    let mut part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all-zero bytes are a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = control_len.try_into().unwrap_or_default();
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: `message` points to one part and a control buffer, both alive and as long as it says.
    let len = unsafe { libc::recvmsg(fd, &raw mut message, flags) };
    if len < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR) => Ok(None),
            Some(libc::ECONNRESET) => Err(SessionError::Disconnected),
            Some(_) | None => Err(SessionError::Host(error)),
        };
    }
    held.clear();
    // SAFETY: recvmsg made these fds for us, and nothing else knows them.
    held.extend(fds_in(&control).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
    let truncated = message.msg_flags & libc::MSG_CTRUNC != 0;
    Ok(usize::try_from(len).ok().map(|len| (len, truncated)))
}

/// The fds in a control buffer that recvmsg filled: `struct cmsghdr` (a length, of which the lower
/// half is enough, level, type), and as many ints as the length says. Where there are none the
/// length is 0.
fn fds_in(control: &[u32; CONTROL_LEN]) -> impl Iterator<Item = RawFd> {
    let [len, _, level, kind, fds @ ..] = control;
    let ours = [*level, *kind].map(u32::cast_signed) == [libc::SOL_SOCKET, libc::SCM_RIGHTS];
    let bytes = usize::try_from(*len).unwrap_or(0);
    let bytes = if ours {
        bytes.saturating_sub(CMSGHDR_LEN)
    } else {
        0
    };
    let count = bytes.checked_div(size_of::<RawFd>()).unwrap_or(0);
    fds.iter().take(count).map(|fd| fd.cast_signed())
}

/// Whether nothing is queued on the connection `fd`: fds never come without a byte.
pub fn is_drained(fd: RawFd) -> bool {
    count(fd, libc::FIONREAD).is_ok_and(|queued| queued == 0)
}

/// `FIONREAD` (bytes to read) or `SIOCOUTQ` (bytes that the peer has not read, the same number as
/// `TIOCOUTQ`).
fn count(fd: RawFd, request: libc::Ioctl) -> Result<libc::c_int, SessionError> {
    let mut value: libc::c_int = 0;
    // SAFETY: both requests write an int to `value`.
    let result = unsafe { libc::ioctl(fd, request, &raw mut value) };
    if result < 0 {
        return Err(SessionError::Host(io::Error::last_os_error()));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    fn header(code: u32, flags: u32, size: u32) -> Vec<u8> {
        [code, flags, size]
            .iter()
            .flat_map(|n| n.to_le_bytes())
            .collect()
    }

    fn inspect_bytes(bytes: &[u8]) -> Result<Queued, SessionError> {
        let (mut front, back) = UnixStream::pair().unwrap();
        front.write_all(bytes).unwrap();
        inspect(back.as_raw_fd(), &mut Vec::new())
    }

    #[test]
    fn inspect_whole_message_is_shown_and_left_in_place() {
        let (mut front, back) = UnixStream::pair().unwrap();
        assert_eq!(
            inspect(back.as_raw_fd(), &mut Vec::new()).unwrap(),
            Queued::Nothing
        );
        front.write_all(&header(1, 1, 0)).unwrap();
        for _ in 0..2 {
            assert_eq!(
                inspect(back.as_raw_fd(), &mut Vec::new()).unwrap(),
                Queued::Message(Request::GetFeatures)
            );
        }
    }

    #[test]
    fn inspect_part_of_a_message_waits() {
        assert_eq!(inspect_bytes(&header(1, 1, 0)[..11]).unwrap(), Queued::Part);
        let mut body = header(2, 1, 8);
        body.extend([0; 7]);
        assert_eq!(inspect_bytes(&body).unwrap(), Queued::Part);
        body.push(0);
        assert_eq!(
            inspect_bytes(&body).unwrap(),
            Queued::Message(Request::SetFeatures)
        );
    }

    #[test]
    fn inspect_header_that_is_not_allowed_ends_the_session() {
        for bytes in [
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
            assert!(
                matches!(inspect_bytes(&bytes), Err(SessionError::Message(..))),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn inspect_closed_peer_is_the_end() {
        let (front, back) = UnixStream::pair().unwrap();
        drop(front);
        assert!(matches!(
            inspect(back.as_raw_fd(), &mut Vec::new()),
            Err(SessionError::Disconnected)
        ));
    }

    #[test]
    fn inspect_unread_replies_end_the_session() {
        let (mut front, mut back) = UnixStream::pair().unwrap();
        front.write_all(&header(1, 1, 0)).unwrap();
        back.write_all(&vec![0; 64 * 1024]).unwrap();
        assert!(matches!(
            inspect(back.as_raw_fd(), &mut Vec::new()),
            Err(SessionError::RepliesUnread)
        ));
    }
}
