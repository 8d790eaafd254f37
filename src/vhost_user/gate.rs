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

use crate::error::SessionError;
use crate::os::file_kind;
use crate::os::mounts::Mounts;
use crate::os::poll;

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
pub fn inspect(
    fd: RawFd,
    held: &mut Vec<OwnedFd>,
    mounts: &Mounts,
) -> Result<Queued, SessionError> {
    // First: each look below shows all that is counted here, and the fds that came with it.
    let queued = usize::try_from(count(fd, libc::FIONREAD)?).unwrap_or(0);
    // What comes with one no look shows, and none goes beyond it.
    if poll::shows(fd, libc::POLLPRI) {
        return Err(SessionError::Fds("may have come with an urgent byte"));
    }
    let mut header = [0; HEADER_LEN];
    // Without room for fds none are made, but their presence shows.
    let Some(front) = peek(fd, 0, &mut header, 0)? else {
        return Ok(Queued::Nothing);
    };
    if front.len == 0 {
        return Err(SessionError::Disconnected);
    }
    if queued < HEADER_LEN {
        return Ok(Queued::Part);
    }
    // A peek ends behind the piece with which fds came.
    let missing = header.get_mut(front.len..).unwrap_or_default();
    let missing_len = missing.len();
    if missing_len > 0 {
        let rest = peek(fd, front.len, missing, 0)?;
        if rest.is_none_or(|rest| rest.len < missing_len) {
            return Err(SessionError::Fds("came in several pieces of a header"));
        }
    }
    let (request, body_len) = check(&header)?;
    let len = HEADER_LEN.saturating_add(body_len);
    if queued < len {
        return Ok(Queued::Part);
    }
    if front.more {
        hold_fds(fd, len, held, mounts)?;
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
        return Err(SessionError::Message(code, "is not supported"));
    };
    if flags & VERSION_MASK != VERSION || flags & !(VERSION_MASK | FLAG_NEED_REPLY) != 0 {
        return Err(SessionError::Message(code, "has a wrong version or flags"));
    }
    let body_len = usize::try_from(size).unwrap_or(usize::MAX);
    if body_len > MAX_BODY_LEN {
        return Err(SessionError::Message(code, "has a body that is too long"));
    }
    Ok((request, body_len))
}

/// Looks at the fds that come with the message of `len` bytes at the front, and keeps duplicates:
/// more than the `vhost` crate has room for would make it lose its place in the stream, one whose
/// close may wait must not reach it, and those that do not come with the first byte are closed by
/// the kernel when the rest is read.
///
/// A peek ends behind the first piece that has fds, and shows fds of the piece behind its last byte,
/// too. So some may be another message's, which does no harm.
fn hold_fds(
    fd: RawFd,
    len: usize,
    held: &mut Vec<OwnedFd>,
    mounts: &Mounts,
) -> Result<(), SessionError> {
    let mut message = [0; HEADER_LEN + MAX_BODY_LEN + 1];
    let mut offset = 0;
    // The first piece with fds, and the rest.
    for _ in 0..2 {
        let rest = message.get_mut(offset..=len).unwrap_or_default();
        offset = offset.saturating_add(hold_piece(fd, offset, rest, held, mounts)?);
        if offset >= len {
            return Ok(());
        }
    }
    Err(SessionError::Fds("came in several pieces of a message"))
}

/// Peeks what is `offset` bytes behind the front, up to the end of the first piece that has fds, and
/// holds these. Returns how many bytes there are.
///
/// One more fd is looked at each time, so that at most one has to be left open.
fn hold_piece(
    fd: RawFd,
    offset: usize,
    bytes: &mut [u8],
    held: &mut Vec<OwnedFd>,
    mounts: &Mounts,
) -> Result<usize, SessionError> {
    for room in 1..=MAX_FDS {
        let Some(mut piece) = peek(fd, offset, bytes, room)? else {
            break;
        };
        if piece
            .fds
            .last()
            .is_some_and(|fd| file_kind::close_may_wait(fd, mounts))
        {
            // Left open: the wait, and it may be for ever, is put off to the end of the process.
            piece.fds.pop().into_iter().for_each(forget);
            held.append(&mut piece.fds);
            return Err(SessionError::LeftOpen);
        }
        if !piece.more {
            held.append(&mut piece.fds);
            return Ok(piece.len);
        }
    }
    Err(SessionError::Fds(
        "that are more than 32 or than the process may have",
    ))
}

/// Whether the SET_VRING_ENABLE that is queued on the connection `fd` enables its ring: behind the
/// header, the ring's index and 1. Where that comes in pieces the answer is no.
pub fn enables(fd: RawFd) -> bool {
    let mut message = [0; HEADER_LEN + 8];
    let peeked = peek(fd, 0, &mut message, 0).ok().flatten();
    let whole = peeked.is_some_and(|peeked| peeked.len == message.len());
    whole && message.ends_with(&1u32.to_le_bytes())
}

/// What a peek shows.
struct Peeked {
    /// Bytes copied; 0 at the end of the stream.
    len: usize,
    /// Duplicates of fds.
    fds: Vec<OwnedFd>,
    /// There are fds that it had no room for.
    more: bool,
}

/// Copies what is `offset` bytes behind the front of the queue into `bytes`, and duplicates the fds
/// that come with it, up to `room` of them; `None` if nothing is there.
fn peek(
    fd: RawFd,
    offset: usize,
    bytes: &mut [u8],
    room: usize,
) -> Result<Option<Peeked>, SessionError> {
    if offset == 0 {
        return peek_here(fd, bytes, room);
    }
    set_peek_offset(fd, i32::try_from(offset).unwrap_or(i32::MAX))?;
    let peeked = peek_here(fd, bytes, room);
    set_peek_offset(fd, -1)?;
    peeked
}

/// Has the next peek begin `offset` bytes behind the front; -1 is at the front, and stays there.
fn set_peek_offset(fd: RawFd, offset: libc::c_int) -> Result<(), SessionError> {
    let len = libc::socklen_t::try_from(size_of_val(&offset)).unwrap_or_default();
    let (level, option) = (libc::SOL_SOCKET, libc::SO_PEEK_OFF);
    let value = (&raw const offset).cast();
    // SAFETY: the option is an int, and `len` says so.
    if unsafe { libc::setsockopt(fd, level, option, value, len) } < 0 {
        return Err(SessionError::Host(io::Error::last_os_error()));
    }
    Ok(())
}

#[allow(clippy::useless_conversion, reason = "msg_controllen is a u32 in musl")]
fn peek_here(fd: RawFd, bytes: &mut [u8], room: usize) -> Result<Option<Peeked>, SessionError> {
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
    let Ok(len) = usize::try_from(len) else {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR) => Ok(None),
            Some(libc::ECONNRESET) => Err(SessionError::Disconnected),
            Some(_) | None => Err(SessionError::Host(error)),
        };
    };
    // SAFETY: recvmsg made these fds for us, and nothing else knows them.
    let fds = fds_in(&control).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(Some(Peeked {
        len,
        fds: fds.collect(),
        more: message.msg_flags & libc::MSG_CTRUNC != 0,
    }))
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
    use vmm_sys_util::sock_ctrl_msg::ScmSocket;

    fn header(code: u32, flags: u32, size: u32) -> Vec<u8> {
        [code, flags, size]
            .iter()
            .flat_map(|n| n.to_le_bytes())
            .collect()
    }

    fn inspect_bytes(bytes: &[u8]) -> Result<Queued, SessionError> {
        let (mut front, back) = UnixStream::pair().unwrap();
        front.write_all(bytes).unwrap();
        inspect(back.as_raw_fd(), &mut Vec::new(), &Mounts::default())
    }

    #[test]
    fn inspect_whole_message_is_shown_and_left_in_place() {
        let (mut front, back) = UnixStream::pair().unwrap();
        assert_eq!(
            inspect(back.as_raw_fd(), &mut Vec::new(), &Mounts::default()).unwrap(),
            Queued::Nothing
        );
        front.write_all(&header(1, 1, 0)).unwrap();
        for _ in 0..2 {
            assert_eq!(
                inspect(back.as_raw_fd(), &mut Vec::new(), &Mounts::default()).unwrap(),
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

    /// Sends pieces, each with an fd or without, and looks at what is there; and how many fds are
    /// held then.
    fn inspect_pieces(pieces: &[(&[u8], bool)]) -> (Result<Queued, SessionError>, usize) {
        let (front, back) = UnixStream::pair().unwrap();
        for (bytes, with_fd) in pieces {
            let fds = [front.as_raw_fd()];
            let fds = if *with_fd { &fds[..] } else { &[] };
            assert_eq!(front.send_with_fds(&[*bytes], fds).unwrap(), bytes.len());
        }
        let mut held = Vec::new();
        (
            inspect(back.as_raw_fd(), &mut held, &Mounts::default()),
            held.len(),
        )
    }

    #[test]
    fn inspect_message_with_fds_may_come_in_pieces() {
        let mut message = header(12, 1, 8); // SET_VRING_KICK
        message.extend([0; 8]);
        let good = Queued::Message(Request::SetVringKick);
        for cut in 1..20 {
            let (front, back) = message.split_at(cut);
            let next = (&message[..], true);
            for others in [&[][..], &[next], &[next, next]] {
                for with_fds in [true, false] {
                    let pieces = [&[(front, with_fds), (back, false)], others].concat();
                    let (queued, held) = inspect_pieces(&pieces);
                    assert_eq!(queued.unwrap(), good, "cut at {cut}");
                    assert!(held >= usize::from(with_fds), "cut at {cut}");
                }
            }
        }
        let bytes = message.chunks(1).enumerate();
        let bytes: Vec<_> = bytes.map(|(n, byte)| (byte, n == 0)).collect();
        assert_eq!(inspect_pieces(&bytes).0.unwrap(), good);
    }

    #[test]
    fn inspect_holds_every_fd_of_a_message_or_refuses_it() {
        let mut message = header(12, 1, 8); // SET_VRING_KICK
        message.extend([0; 8]);
        for cut in 1..20 {
            let (front, back) = message.split_at(cut);
            for first in [true, false] {
                let (queued, held) = inspect_pieces(&[(front, first), (back, true)]);
                let all = held == 1 + usize::from(first);
                assert!(queued.is_err() || all, "cut at {cut}");
            }
        }
        let bytes: Vec<_> = message.chunks(1).map(|byte| (byte, true)).collect();
        assert!(inspect_pieces(&bytes).0.is_err());
    }

    /// What comes between two of its looks must not be seen by the later one alone.
    #[test]
    fn inspect_holds_fds_that_come_while_it_looks() {
        let mut message = header(13, 1, 8); // SET_VRING_CALL
        message.extend([0, 1, 0, 0, 0, 0, 0, 0]);
        let whole = Queued::Message(Request::SetVringCall);
        let (to_sender, fronts) = std::sync::mpsc::sync_channel::<UnixStream>(0);
        let sender = std::thread::spawn(move || {
            let (head, body) = message.split_at(HEADER_LEN);
            for (round, front) in fronts.iter().enumerate() {
                front.send_with_fds(&[head], &[]).unwrap();
                // Each round at another moment.
                (0..round % 100).for_each(|_| std::hint::spin_loop());
                front.send_with_fds(&[body], &[front.as_raw_fd()]).unwrap();
            }
        });
        let end = std::time::Instant::now() + std::time::Duration::from_secs(1);
        for round in 0..5000 {
            let (front, back) = UnixStream::pair().unwrap();
            to_sender.send(front).unwrap();
            let mut held = Vec::new();
            while inspect(back.as_raw_fd(), &mut held, &Mounts::default()).unwrap() != whole {
                held.clear();
            }
            assert!(!held.is_empty(), "round {round}");
            if std::time::Instant::now() > end {
                break;
            }
        }
        drop(to_sender);
        sender.join().unwrap();
    }

    #[test]
    fn inspect_closed_peer_is_the_end() {
        let (front, back) = UnixStream::pair().unwrap();
        drop(front);
        assert!(matches!(
            inspect(back.as_raw_fd(), &mut Vec::new(), &Mounts::default()),
            Err(SessionError::Disconnected)
        ));
    }

    #[test]
    fn inspect_unread_replies_end_the_session() {
        let (mut front, mut back) = UnixStream::pair().unwrap();
        front.write_all(&header(1, 1, 0)).unwrap();
        back.write_all(&vec![0; 64 * 1024]).unwrap();
        assert!(matches!(
            inspect(back.as_raw_fd(), &mut Vec::new(), &Mounts::default()),
            Err(SessionError::RepliesUnread)
        ));
    }
}
