// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Receiving and sending on a connected Unix socket, without ever waiting.

use std::io;
use std::os::fd::{OwnedFd, RawFd};

use crate::error::SessionError;
use crate::os::ffi;

pub use crate::os::ffi::{MAX_RECEIVED_FDS, send};

/// Receives bytes on the socket `fd`, and the fds that come with them into `fds`, close-on-exec. Returns
/// how many bytes; `None` if nothing is there yet.
///
/// A receipt ends with the bytes that were sent together with fds, so the fds belong to the bytes received.
///
/// # Errors
/// The peer is gone, and all that it sent was received. Or the process had no room for a further fd: the
/// kernel has then closed some. It closes none for want of room here, since no receipt brings more than
/// [`MAX_RECEIVED_FDS`]. Or the kernel's.
pub fn receive(
    fd: RawFd,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> Result<Option<usize>, SessionError> {
    match ffi::receive(fd, bytes, fds) {
        Ok((_, true)) => Err(SessionError::Fds("are more than the process may have")),
        Ok((0, false)) => Err(SessionError::Disconnected),
        Ok((len, false)) => Ok(Some(len)),
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR) => Ok(None),
            // It left without reading all of our answers.
            Some(libc::ECONNRESET) => Err(SessionError::Disconnected),
            Some(_) | None => Err(SessionError::Host(error)),
        },
    }
}

/// Makes an urgent byte on the socket `fd` a byte like any other. Else the kernel would drop it while
/// others are received, and close the fds that came with it, here.
///
/// # Errors
/// The kernel's.
pub fn receive_urgent_inline(fd: RawFd) -> io::Result<()> {
    ffi::set_socket_option(fd, libc::SO_OOBINLINE, 1)
}

#[cfg(test)]
#[allow(unsafe_code, reason = "UNSAFETY: MSG_OOB, which std has no name for")]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use vmm_sys_util::sock_ctrl_msg::ScmSocket;

    #[test]
    fn receive_takes_as_many_fds_as_a_message_can_carry() {
        let (front, back) = UnixStream::pair().unwrap();
        // The file table of this process has room for one message at a time.
        let given = vec![front.as_raw_fd(); MAX_RECEIVED_FDS];
        front.send_with_fds(&[&[1u8][..]], &given).unwrap();
        let (mut bytes, mut fds) = ([0; 2], Vec::new());
        let received = receive(back.as_raw_fd(), &mut bytes, &mut fds).unwrap();
        assert_eq!((received, fds.len()), (Some(1), MAX_RECEIVED_FDS));
        let received = receive(back.as_raw_fd(), &mut bytes, &mut fds).unwrap();
        assert_eq!(received, None);
        drop((front, fds));
        let received = receive(back.as_raw_fd(), &mut bytes, &mut Vec::new());
        assert!(matches!(received, Err(SessionError::Disconnected)));
    }

    #[test]
    fn receive_from_a_peer_that_left_answers_unread_is_the_end() {
        let (front, back) = UnixStream::pair().unwrap();
        assert_eq!(send(back.as_raw_fd(), &[1]).unwrap(), 1);
        drop(front);
        let received = receive(back.as_raw_fd(), &mut [0], &mut Vec::new());
        assert!(matches!(received, Err(SessionError::Disconnected)));
    }

    #[test]
    fn urgent_byte_inline_comes_in_its_place_with_its_fds() {
        let (front, back) = UnixStream::pair().unwrap();
        receive_urgent_inline(back.as_raw_fd()).unwrap();
        assert_eq!(send(front.as_raw_fd(), &[1]).unwrap(), 1);
        let (fd, byte) = (front.as_raw_fd(), [2u8]);
        // SAFETY: one readable byte.
        let sent = unsafe { libc::send(fd, byte.as_ptr().cast(), 1, libc::MSG_OOB) };
        assert_eq!(sent, 1, "this kernel has no urgent bytes on Unix sockets");
        assert_eq!(send(front.as_raw_fd(), &[3]).unwrap(), 1);
        let mut all = Vec::new();
        let (mut bytes, mut fds) = ([0; 4], Vec::new());
        while let Some(len) = receive(back.as_raw_fd(), &mut bytes, &mut fds).unwrap() {
            all.extend_from_slice(&bytes[..len]);
        }
        assert_eq!(all, [1, 2, 3]);
    }

    /// The least that Linux lets a send buffer have holds a longest message, which the `vhost` crate
    /// would otherwise wait to send.
    #[test]
    fn send_of_a_longest_message_fits_in_the_smallest_buffer() {
        let (front, back) = UnixStream::pair().unwrap();
        let fd = front.as_raw_fd();
        ffi::set_socket_option(fd, libc::SO_SNDBUF, 1).unwrap();
        assert_eq!(send(fd, &[0; 4108]).unwrap(), 4108);
        assert_eq!(send(fd, &[0; 4108]).unwrap(), 0, "it is the smallest");
        drop(back);
    }
}
