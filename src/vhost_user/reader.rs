// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The one reader of a front-end's messages: receives bytes and fds once, and says when a message is
//! whole.
//!
//! Nothing here waits. A part of a message is kept until the other parts arrive; it has at most 4,108
//! bytes. There is room for all fds that a receipt can bring, so that the kernel never closes one: that
//! could be a last close, which may wait for ever. Each fd is classified when it arrives; from then on
//! it is a [`FrontendFile`], whose close is deferred. A file of which every close may wait is left open,
//! and ends the connection, unless it came as guest memory and `--guest-memory=any` allows that.
//!
//! A receipt never asks for bytes after the end of the message, since the fds of the next message could come
//! with them: the kernel hands out fds with the first byte that they were sent with.
//!
//! Must not: know the effect of a message. Called by `connection`.

use std::os::fd::{OwnedFd, RawFd};

use crate::config::GuestMemory;
use crate::error::SessionError;
use crate::os::deferred_close::{Closer, FrontendFile};
use crate::os::file_kind;
use crate::os::mounts::Mounts;
use crate::os::socket;
use crate::vhost_user::message::{HEADER_LEN, Header, Kind, MAX_FDS, RequestCode};

/// A whole message, its body not decoded.
#[derive(Debug)]
pub struct Message<'a> {
    /// What it asks.
    pub request: RequestCode,
    /// Who decodes it.
    pub kind: Kind,
    /// Its header.
    pub header: Header,
    /// Header and body.
    pub bytes: &'a [u8],
    /// The files that came with it; the handler takes those that it keeps.
    pub files: &'a mut Vec<FrontendFile>,
}

impl Message<'_> {
    /// Whether it is a SET_VRING_ENABLE that enables its ring: after the ring's index, 1.
    pub fn enables_ring(&self) -> bool {
        let value = self.bytes.get(HEADER_LEN + 4..);
        self.request == RequestCode::SET_VRING_ENABLE && value == Some(&[1, 0, 0, 0])
    }
}

/// Receives the messages of one connection.
#[derive(Debug, Default)]
pub struct Reader {
    /// The message: as long as its header says, once that is there.
    bytes: Vec<u8>,
    /// How many bytes of it were received.
    pub len: usize,
    files: Vec<FrontendFile>,
    guest_memory: GuestMemory,
    closer: Closer,
    /// The peer is gone, and nothing that it sent is left in the socket: the close of the socket is quick.
    pub is_drained: bool,
}

impl Reader {
    /// For a new connection, whose fds go to `closer`.
    pub fn new(guest_memory: GuestMemory, closer: Closer) -> Self {
        Self {
            guest_memory,
            closer,
            ..Self::default()
        }
    }

    /// Receives on the socket `stream` until a message is whole or nothing more is there. Returns
    /// whether one is whole: then [`Reader::message`] has it until [`Reader::finish`].
    ///
    /// # Errors
    /// The front-end left, or what it sends must end the connection.
    pub fn receive(&mut self, stream: RawFd, mounts: &Mounts) -> Result<bool, SessionError> {
        loop {
            let header = self.header().map(|header| header.check()).transpose()?;
            let whole_len = header.map_or(HEADER_LEN, |(_, _, whole_len)| whole_len);
            if self.len == whole_len {
                return Ok(true);
            }
            // No byte after the end of this message: it would belong to the next one.
            self.bytes.resize(whole_len, 0);
            let room = self.bytes.get_mut(self.len..);
            let mut fds = Vec::new();
            let received = socket::receive(stream, room.unwrap_or_default(), &mut fds);
            if let Ok(Some(len)) = received {
                self.len = self.len.saturating_add(len);
            }
            // Also after an error: each of the fds belongs to the process now.
            self.classify(fds, mounts)?;
            self.is_drained = matches!(received, Err(SessionError::Disconnected));
            if received?.is_none() {
                return Ok(false);
            }
        }
    }

    /// Classifies the fds that were just received. Fds that come before the whole header are not taken for
    /// [`FileKind::Mappable`](file_kind::FileKind::Mappable): their use is not known yet.
    ///
    /// # Errors
    /// Some had to be left open, because their close may wait: the kernel closes them at the end of the
    /// process. Or the message has too many.
    fn classify(&mut self, fds: Vec<OwnedFd>, mounts: &Mounts) -> Result<(), SessionError> {
        let shares_memory = || self.header().is_some_and(|header| header.shares_memory());
        let may_be_mapped = self.guest_memory == GuestMemory::Any && shares_memory();
        let mut left_open = 0u32;
        for fd in fds {
            match file_kind::of(fd, mounts, may_be_mapped) {
                Ok((fd, kind)) => self.files.push(FrontendFile::new(fd, kind, &self.closer)),
                Err(fd) => {
                    std::mem::forget(fd);
                    left_open = left_open.saturating_add(1);
                }
            }
        }
        if left_open > 0 {
            return Err(SessionError::LeftOpen(left_open));
        }
        if self.files.len() > MAX_FDS {
            return Err(SessionError::Fds("are more than 32 with a message"));
        }
        Ok(())
    }

    /// The header of the message that is being received, once it is there.
    pub fn header(&self) -> Option<Header> {
        Header::parse(self.bytes.get(..self.len)?)
    }

    /// The message, if it is whole.
    pub fn message(&mut self) -> Option<Message<'_>> {
        let header = self.header()?;
        let (request, kind, whole_len) = header.check().ok()?;
        let bytes = self.bytes.get(..self.len)?;
        (self.len == whole_len).then_some(Message {
            request,
            kind,
            header,
            bytes,
            files: &mut self.files,
        })
    }

    /// Makes room for the next message. The close of files that the handler did not take is deferred.
    pub fn finish(&mut self) {
        self.len = 0;
        self.files.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use vmm_sys_util::sock_ctrl_msg::ScmSocket;

    const KICK: u32 = 12;
    const SET_MEM_TABLE: u32 = 5;

    fn encode(code: u32, body: &[u8]) -> Vec<u8> {
        let size = u32::try_from(body.len()).unwrap();
        let header = [code, 1, size].map(u32::to_le_bytes);
        [header.as_flattened(), body].concat()
    }

    /// A front-end, and the reader of what it sends.
    struct Rig {
        front: UnixStream,
        back: UnixStream,
        closer: Closer,
        reader: Reader,
    }

    impl Rig {
        fn new() -> Self {
            let (front, back) = UnixStream::pair().unwrap();
            socket::receive_urgent_inline(back.as_raw_fd()).unwrap();
            let closer = Closer::default();
            let reader = Reader::new(GuestMemory::Sealed, closer.clone());
            Self {
                front,
                back,
                closer,
                reader,
            }
        }

        fn send(&self, bytes: &[u8], fd_count: usize) {
            let fds = vec![self.front.as_raw_fd(); fd_count];
            let sent = self.front.send_with_fds(&[bytes], &fds).unwrap();
            assert_eq!(sent, bytes.len());
        }

        fn receive(&mut self) -> Result<bool, SessionError> {
            self.reader
                .receive(self.back.as_raw_fd(), &Mounts::default())
        }

        /// Request code, length of the body and count of fds of the message, which is then handled.
        fn take(&mut self) -> (RequestCode, usize, usize) {
            assert!(self.receive().unwrap());
            let message = self.reader.message().unwrap();
            let body_len = message.bytes.len() - HEADER_LEN;
            let seen = (message.request, body_len, message.files.len());
            self.reader.finish();
            seen
        }
    }

    #[test]
    fn receive_byte_by_byte_is_whole_at_the_last() {
        let mut rig = Rig::new();
        let message = encode(2, &[0; 8]);
        for _ in 0..2 {
            let (last, first) = message.split_last().unwrap();
            assert!(!rig.receive().unwrap());
            assert_eq!(rig.reader.len, 0);
            for (count, byte) in (1..).zip(first) {
                rig.front.write_all(&[*byte]).unwrap();
                assert!(!rig.receive().unwrap());
                assert_eq!(rig.reader.len, count);
                assert!(rig.reader.message().is_none());
            }
            rig.front.write_all(&[*last]).unwrap();
            assert_eq!(rig.take(), (RequestCode::SET_FEATURES, 8, 0));
        }
    }

    #[test]
    fn receive_stops_at_the_end_of_the_message() {
        let mut rig = Rig::new();
        let two = [encode(1, &[]), encode(24, &[7; 20])].concat();
        rig.front.write_all(&two).unwrap();
        assert!(rig.receive().unwrap());
        // It stays until it was handled.
        assert_eq!(rig.take(), (RequestCode::GET_FEATURES, 0, 0));
        assert_eq!(rig.take(), (RequestCode::GET_CONFIG, 20, 0));
        assert!(!rig.receive().unwrap());
        assert_eq!(rig.reader.len, 0);
    }

    #[test]
    fn receive_longest_message_and_no_longer() {
        let mut rig = Rig::new();
        rig.front.write_all(&encode(25, &[0; 4096])).unwrap();
        assert_eq!(rig.take(), (RequestCode::SET_CONFIG, 4096, 0));
        rig.front.write_all(&encode(25, &[0; 4097])).unwrap();
        assert!(matches!(rig.receive(), Err(SessionError::Message(25, _))));
    }

    #[test]
    fn receive_32_fds_are_taken_and_33_are_too_many() {
        for (count, taken) in [(32, true), (33, false), (socket::MAX_RECEIVED_FDS, false)] {
            let mut rig = Rig::new();
            rig.send(&encode(SET_MEM_TABLE, &[0; 8]), count);
            if taken {
                assert_eq!(rig.take(), (RequestCode::SET_MEM_TABLE, 8, count));
            } else {
                assert!(matches!(rig.receive(), Err(SessionError::Fds(_))));
                rig.reader.finish();
            }
            // None of them was closed here.
            assert_eq!(rig.closer.pending(), count);
        }
    }

    #[test]
    fn receive_fds_with_whatever_byte_of_the_message() {
        let message = encode(KICK, &[0; 8]);
        for cut in 1..message.len() {
            for (first, second) in [(1, 0), (0, 1), (1, 1)] {
                let mut rig = Rig::new();
                let (front, back) = message.split_at(cut);
                rig.send(front, first);
                rig.send(back, second);
                // Another one's.
                rig.send(&message, 1);
                assert_eq!(
                    rig.take(),
                    (RequestCode::SET_VRING_KICK, 8, first + second),
                    "{cut}"
                );
                assert_eq!(rig.take(), (RequestCode::SET_VRING_KICK, 8, 1), "{cut}");
            }
        }
        let mut rig = Rig::new();
        message.iter().for_each(|byte| rig.send(&[*byte], 1));
        assert_eq!(rig.take(), (RequestCode::SET_VRING_KICK, 8, message.len()));
    }

    #[test]
    fn receive_fds_of_many_bytes_are_too_many_at_33() {
        let mut rig = Rig::new();
        let message = encode(25, &[0; 100]);
        message.iter().for_each(|byte| rig.send(&[*byte], 1));
        assert!(matches!(rig.receive(), Err(SessionError::Fds(_))));
        assert_eq!(rig.reader.files.len(), MAX_FDS + 1);
    }

    #[test]
    fn receive_urgent_byte_is_one_of_the_stream_and_keeps_its_fd() {
        let mut rig = Rig::new();
        let message = encode(KICK, &[0; 8]);
        rig.send(&message[..12], 0);
        let (fd, byte) = (rig.front.as_raw_fd(), [0u8]);
        #[allow(unsafe_code, reason = "UNSAFETY: MSG_OOB, which std has no name for")]
        // SAFETY: one readable byte.
        let sent = unsafe { libc::send(fd, byte.as_ptr().cast(), 1, libc::MSG_OOB) };
        assert_eq!(sent, 1, "this kernel has no urgent bytes on Unix sockets");
        rig.send(&message[13..], 1);
        assert_eq!(rig.take(), (RequestCode::SET_VRING_KICK, 8, 1));
    }

    #[test]
    fn receive_file_whose_close_may_wait_leaves_it_open_and_classifies_the_rest() {
        let mut rig = Rig::new();
        let slow = File::open("/proc/version").unwrap();
        let (fast, slow) = (rig.front.as_raw_fd(), slow.as_raw_fd());
        let bytes = encode(SET_MEM_TABLE, &[0; 8]);
        let sent = rig.front.send_with_fds(&[&bytes[..]], &[slow, fast, slow]);
        assert_eq!(sent.unwrap(), bytes.len());
        assert!(matches!(rig.receive(), Err(SessionError::LeftOpen(2))));
        rig.reader.finish();
        assert_eq!(rig.closer.pending(), 1);
    }

    #[test]
    fn receive_error_of_the_host_is_no_fault_of_the_front_end() {
        let mut rig = Rig::new();
        let no_socket = File::open("/dev/null").unwrap();
        let received = rig
            .reader
            .receive(no_socket.as_raw_fd(), &Mounts::default());
        assert!(matches!(received, Err(SessionError::Host(_))));
    }

    #[test]
    fn receive_end_comes_after_all_that_was_sent() {
        let mut rig = Rig::new();
        let bytes = [encode(1, &[]), vec![1, 0, 0]].concat();
        rig.front.write_all(&bytes).unwrap();
        rig.front.shutdown(std::net::Shutdown::Both).unwrap();
        assert_eq!(rig.take(), (RequestCode::GET_FEATURES, 0, 0));
        assert!(!rig.reader.is_drained);
        assert!(matches!(rig.receive(), Err(SessionError::Disconnected)));
        assert!(rig.reader.is_drained);
    }
}
