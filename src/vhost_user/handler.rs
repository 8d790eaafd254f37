// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Has whole messages carried out, and keeps the reply until the front-end takes it.
//!
//! The `vhost` crate decodes and answers every message that cannot bring fds. It reads and writes in
//! loops that try again without waiting, which a front-end could keep busy for ever. So the crate has one
//! end of a private socketpair in place of the front-end's socket. A whole message is written to the other
//! end, so that the crate's loop finds it complete, and the reply, for which the pair has room, is read
//! there.
//!
//! Messages that may bring fds are decoded in [`with_fds`](super::with_fds). Sent through the pair,
//! their fds would be files in flight, which the kernel limits for each user: another process of the
//! daemon's user could keep every guest from sharing memory. Nor could the crate be kept from closing them,
//! which may wait.
//!
//! Must not: receive from the front-end's socket. Called by `connection`.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vhost::vhost_user::{BackendReqHandler, VhostUserProtocolFeatures};

use crate::error::SessionError;
use crate::os::socket;
use crate::vhost_user::backend::Backend;
use crate::vhost_user::message::{Header, Kind, MAX_LEN};
use crate::vhost_user::reader::Message;

/// Handles the messages of one connection.
pub struct Handler {
    /// The `vhost` crate, with its end of the pair.
    crate_end: BackendReqHandler<Backend>,
    our_end: UnixStream,
    /// What the messages change.
    pub backend: Arc<Backend>,
    /// The bytes of the last answer that were not sent yet.
    unsent: Vec<u8>,
}

impl Handler {
    /// For a new connection, whose messages change `backend`.
    ///
    /// # Errors
    /// The host has no sockets for the pair.
    pub fn new(backend: Backend) -> io::Result<Self> {
        #[expect(
            clippy::arc_with_non_send_sync,
            reason = "the vhost crate asks for an Arc"
        )]
        let backend = Arc::new(backend);
        let (crate_end, our_end) = UnixStream::pair()?;
        Ok(Self {
            crate_end: BackendReqHandler::from_stream(crate_end, Arc::clone(&backend)),
            our_end,
            backend,
            unsent: Vec::new(),
        })
    }

    /// Handles a whole message. Its answer, if any, is kept for [`Handler::send_reply`].
    ///
    /// # Errors
    /// It was refused: the connection must end, after the reply.
    pub fn handle(&mut self, mut message: Message<'_>) -> Result<(), SessionError> {
        let header = message.header;
        let handled = if matches!(message.kind, Kind::Memory | Kind::Eventfd) {
            let handled = self.backend.handle_with_fds(&mut message);
            handled.map_err(|error| SessionError::of_vhost(message.request, error))
        } else if !message.files.is_empty() {
            Err(SessionError::Fds("came with a message that has none"))
        } else {
            self.hand_over(&message)
        };
        // A refusal is answered even if REPLY_ACK was not negotiated: a front-end that sets the flag
        // waits for an answer.
        let acked = self.backend.acked.get();
        if handled.is_err() || acked.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            self.acknowledge(header, handled.is_ok());
        }
        handled
    }

    /// Gives a message to the `vhost` crate, which calls a method of [`Backend`], and takes its reply.
    fn hand_over(&mut self, message: &Message<'_>) -> Result<(), SessionError> {
        let pair = self.our_end.as_raw_fd();
        let len = socket::send(pair, message.bytes).map_err(SessionError::Host)?;
        if len < message.bytes.len() {
            // The crate's loop would try for ever to read the missing bytes.
            return Err(SessionError::Host(io::ErrorKind::WriteZero.into()));
        }
        let handled = self.crate_end.handle_request();
        let mut reply = [0; MAX_LEN];
        if let Some(len) = socket::receive(pair, &mut reply, &mut Vec::new())? {
            self.unsent = reply.into_iter().take(len).collect();
        }
        handled.map_err(|error| SessionError::of_vhost(message.request, error))
    }

    /// Makes the acknowledgement of the message with this header, if the message asks for one and has no
    /// answer yet.
    pub fn acknowledge(&mut self, header: Header, succeeded: bool) {
        if self.unsent.is_empty() {
            let ack = header.ack(succeeded);
            self.unsent.extend(ack.iter().flatten().flatten());
        }
    }

    /// Sends what the front-end takes of the reply on its socket `stream`. Returns whether it took
    /// all of it.
    ///
    /// # Errors
    /// The front-end left.
    pub fn send_reply(&mut self, stream: RawFd) -> Result<bool, SessionError> {
        if !self.unsent.is_empty() {
            let taken = socket::send(stream, &self.unsent);
            self.unsent
                .drain(..taken.map_err(|_| SessionError::Disconnected)?);
        }
        Ok(self.unsent.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{GuestMemory, GuestNumber};
    use crate::os::deferred_close::Closer;
    use crate::os::epoll::Poller;
    use crate::os::mounts::Mounts;
    use crate::spi::wire::ConfigSpace;
    use crate::vhost_user::reader::Reader;
    use std::io::{Read, Write};
    use vmm_sys_util::sock_ctrl_msg::ScmSocket;

    /// A handler with a reader, and their front-end.
    struct Rig {
        front: UnixStream,
        back: UnixStream,
        reader: Reader,
        handler: Handler,
    }

    impl Rig {
        fn new() -> Self {
            let (front, back) = UnixStream::pair().unwrap();
            front.set_nonblocking(true).unwrap();
            let poller = Poller::new().unwrap();
            let backend = Backend::new(
                GuestNumber::default(),
                ConfigSpace::default(),
                1 << 40,
                poller,
            );
            Self {
                front,
                back,
                reader: Reader::new(GuestMemory::Sealed, Closer::default()),
                handler: Handler::new(backend).unwrap(),
            }
        }

        /// Has a message handled, with the flag that asks for an acknowledgement.
        fn handle(&mut self, code: u32, body: &[u8]) -> Result<(), SessionError> {
            let size = u32::try_from(body.len()).unwrap();
            let header = [code, 9, size].map(u32::to_le_bytes);
            self.front.write_all(header.as_flattened()).unwrap();
            self.front.write_all(body).unwrap();
            let back = self.back.as_raw_fd();
            assert!(self.reader.receive(back, &Mounts::default()).unwrap());
            let handled = self.handler.handle(self.reader.message().unwrap());
            self.reader.finish();
            handled
        }

        /// What was answered: the request, and the value where it has one.
        fn answer(&mut self) -> Option<(u32, u64)> {
            self.handler.send_reply(self.back.as_raw_fd()).unwrap();
            let mut bytes = [0; 64];
            let len = self.front.read(&mut bytes).ok()?;
            let code = u32::from_le_bytes(bytes[..4].try_into().unwrap());
            assert_eq!(bytes[4..12], [5, 0, 0, 0, 8, 0, 0, 0]);
            assert_eq!(len, 20);
            Some((code, u64::from_le_bytes(bytes[12..20].try_into().unwrap())))
        }

        fn negotiate(&mut self) {
            self.handle(1, &[]).unwrap();
            assert_eq!(self.answer().unwrap().0, 1);
            self.handle(16, &u64::to_le_bytes(1 << 3)).unwrap();
            assert_eq!(self.answer(), Some((16, 0)));
        }
    }

    const NO_FD: [u8; 8] = [0, 1, 0, 0, 0, 0, 0, 0];

    #[test]
    fn handle_acknowledges_if_that_was_negotiated() {
        let mut rig = Rig::new();
        rig.handle(3, &[]).unwrap();
        assert_eq!(rig.answer(), None);
        rig.handle(13, &NO_FD).unwrap();
        assert_eq!(rig.answer(), None);
        rig.negotiate();
        // By the crate, and by us.
        for (code, body) in [(3, &[][..]), (13, &NO_FD)] {
            rig.handle(code, body).unwrap();
            assert_eq!(rig.answer(), Some((code, 0)));
        }
    }

    #[test]
    fn handle_answers_what_it_refuses_whoever_refused_it() {
        for (code, body) in [
            (3, &[0; 8][..]), // SET_OWNER has no body
            (8, &[0; 4]),     // SET_VRING_NUM: half
            (8, &[1; 8]),     // of another ring
            (5, &[0; 8]),     // SET_MEM_TABLE without a region
            (5, &[0; 12]),    // not whole fields
            (5, &[0; 48]),    // not whole regions
            (5, &[0; 40]),    // one region, which is not counted
            (37, &[0; 40]),   // ADD_MEM_REG without a file
            (12, &[0; 8]),    // SET_VRING_KICK without a file
            (12, &[0; 16]),   // of two fields
            (12, &[]),        // of none
            (34, &[0; 0]),    // RESET_DEVICE, which was not negotiated
        ] {
            let mut rig = Rig::new();
            rig.negotiate();
            rig.handle(code, body).unwrap_err();
            assert_eq!(rig.answer(), Some((code, 1)), "message {code}");
        }
    }

    #[test]
    fn handle_region_without_its_file_is_refused() {
        let mut rig = Rig::new();
        rig.handle(16, &u64::to_le_bytes(1 << 15)).unwrap();
        rig.handle(37, &[0; 40]).unwrap_err();
    }

    #[test]
    fn handle_takes_a_socket_as_call_and_err_and_not_as_kick() {
        for (code, taken) in [(12, false), (13, true), (14, true)] {
            let mut rig = Rig::new();
            let (end, _other) = UnixStream::pair().unwrap();
            let header = [code, 1, 8].map(u32::to_le_bytes);
            let message = [header.as_flattened(), &[0; 8]].concat();
            let sent = rig.front.send_with_fds(&[&message[..]], &[end.as_raw_fd()]);
            assert_eq!(sent.unwrap(), message.len());
            let back = rig.back.as_raw_fd();
            assert!(rig.reader.receive(back, &Mounts::default()).unwrap());
            let handled = rig.handler.handle(rig.reader.message().unwrap());
            assert_eq!(handled.is_ok(), taken, "message {code}");
        }
    }

    #[test]
    fn handle_message_for_which_the_pair_has_no_room_ends_the_connection() {
        let mut rig = Rig::new();
        let pair = rig.handler.our_end.as_raw_fd();
        while socket::send(pair, &[0]).unwrap() > 0 {}
        let error = rig.handle(1, &[]).unwrap_err();
        assert!(matches!(error, SessionError::Host(_)), "{error}");
    }

    #[test]
    fn reply_is_sent_as_the_front_end_takes_it() {
        let mut rig = Rig::new();
        rig.back.set_nonblocking(true).unwrap();
        while rig.back.write(&[0; 4096]).is_ok_and(|len| len > 0) {}
        while rig.back.write(&[0]).is_ok_and(|len| len > 0) {}
        rig.handle(1, &[]).unwrap();
        let back = rig.back.as_raw_fd();
        assert!(!rig.handler.send_reply(back).unwrap());
        assert!(!rig.handler.send_reply(back).unwrap());
        let mut skipped = [0; 4096];
        let mut last = Vec::new();
        while let Ok(len @ 1..) = rig.front.read(&mut skipped) {
            last.extend_from_slice(&skipped[..len]);
        }
        assert!(last.iter().all(|byte| *byte == 0));
        assert!(rig.handler.send_reply(back).unwrap());
        assert_eq!(rig.answer().unwrap().0, 1);
        drop(rig.front);
        let gone = rig.handler.send_reply(back);
        assert!(gone.unwrap(), "nothing is left to send");
    }
}
