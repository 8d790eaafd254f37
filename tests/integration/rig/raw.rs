// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! vhost-user messages byte by byte: for what no well-behaved front-end sends, and for what the crate's cannot.

use super::host::PATIENCE;
use super::sys;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub const GET_FEATURES: u32 = 1;
pub const SET_FEATURES: u32 = 2;
pub const SET_OWNER: u32 = 3;
pub const RESET_OWNER: u32 = 4;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const SET_VRING_ERR: u32 = 14;
pub const GET_PROTOCOL_FEATURES: u32 = 15;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const GET_QUEUE_NUM: u32 = 17;
pub const SET_VRING_ENABLE: u32 = 18;
pub const GET_CONFIG: u32 = 24;
pub const SET_CONFIG: u32 = 25;
pub const RESET_DEVICE: u32 = 34;
pub const GET_MAX_MEM_SLOTS: u32 = 36;
pub const ADD_MEM_REG: u32 = 37;
pub const REM_MEM_REG: u32 = 38;

/// Version 1.
pub const VERSION: u32 = 1;
pub const REPLY: u32 = 1 << 2;
pub const NEED_REPLY: u32 = 1 << 3;
/// In a SET_VRING_KICK/CALL/ERR: there is no descriptor.
pub const NO_FD: u64 = 1 << 8;

/// A received message.
#[derive(Debug)]
pub struct Message {
    pub request: u32,
    pub flags: u32,
    pub payload: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// The payload as one u64.
    #[track_caller]
    pub fn u64(&self) -> u64 {
        u64::from_le_bytes(
            self.payload
                .as_slice()
                .try_into()
                .expect("a payload of 8 bytes"),
        )
    }
}

/// One connection.
pub struct Raw {
    pub sock: UnixStream,
}

impl Raw {
    /// Connects to a daemon's socket.
    #[track_caller]
    pub fn connect(path: &Path) -> Self {
        Self::over(UnixStream::connect(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    /// Takes a connection; nothing on it waits for ever.
    pub fn over(sock: UnixStream) -> Self {
        sock.set_read_timeout(Some(PATIENCE)).expect("timeout");
        sock.set_write_timeout(Some(PATIENCE)).expect("timeout");
        Self { sock }
    }

    /// Header and payload of a message.
    pub fn encode(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(12 + payload.len());
        for word in [request, flags, payload.len() as u32] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(payload);
        bytes
    }

    /// Sends bytes as they are, with descriptors. An error is for the test to judge: the daemon may have hung up.
    pub fn send_bytes(&self, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
        let mut sent = sys::send_with_fds(self.sock.as_raw_fd(), bytes, fds)?;
        while sent < bytes.len() {
            sent += sys::send_with_fds(self.sock.as_raw_fd(), &bytes[sent..], &[])?;
        }
        Ok(())
    }

    /// Sends a whole message.
    pub fn send(&self, request: u32, flags: u32, payload: &[u8], fds: &[RawFd]) -> io::Result<()> {
        self.send_bytes(&Self::encode(request, flags, payload), fds)
    }

    /// Waits until something lies in the daemon's queue that it has not read: for a message that another thread sends
    /// while the daemon cannot read.
    #[track_caller]
    pub fn wait_unread(&self) {
        let unread = || {
            let mut len = 0i32;
            let asked = unsafe { libc::ioctl(self.sock.as_raw_fd(), libc::TIOCOUTQ, &mut len) };
            asked == 0 && len > 0
        };
        assert!(sys::eventually(PATIENCE, unread), "nothing was sent");
    }

    /// Receives one message; an end of the connection is `UnexpectedEof`.
    pub fn recv(&self) -> io::Result<Message> {
        let mut header = [0; 12];
        let fds = self.recv_exact(&mut header)?;
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let mut payload = vec![0; word(8) as usize];
        self.recv_exact(&mut payload)?;
        Ok(Message {
            request: word(0),
            flags: word(4),
            payload,
            fds,
        })
    }

    fn recv_exact(&self, bytes: &mut [u8]) -> io::Result<Vec<OwnedFd>> {
        let (mut done, mut all) = (0, Vec::new());
        while done < bytes.len() {
            let (count, fds) = sys::recv_with_fds(self.sock.as_raw_fd(), &mut bytes[done..])?;
            if count == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            done += count;
            all.extend(fds);
        }
        Ok(all)
    }

    /// Sends a request that has an answer of its own, and receives that.
    #[track_caller]
    pub fn ask(&self, request: u32, payload: &[u8]) -> Message {
        self.send(request, VERSION, payload, &[]).expect("send");
        let answer = self
            .recv()
            .unwrap_or_else(|e| panic!("no answer to request {request}: {e}"));
        assert_eq!(
            (answer.request, answer.flags),
            (request, VERSION | REPLY),
            "header of the answer"
        );
        answer
    }

    /// Sends a request, asks for an acknowledgement and returns it (0 is success); REPLY_ACK must be negotiated.
    #[track_caller]
    pub fn ack(&self, request: u32, payload: &[u8], fds: &[RawFd]) -> u64 {
        self.send(request, VERSION | NEED_REPLY, payload, fds)
            .expect("send");
        let answer = self
            .recv()
            .unwrap_or_else(|e| panic!("no acknowledgement of request {request}: {e}"));
        assert_eq!(answer.request, request, "request of the acknowledgement");
        answer.u64()
    }

    /// What comes before the first message that is to be acknowledged.
    #[track_caller]
    pub fn negotiate_reply_ack(&self) {
        self.ask(GET_FEATURES, &[]);
        // REPLY_ACK and CONFIG.
        let bits = (1u64 << 3 | 1 << 9).to_le_bytes();
        self.send(SET_PROTOCOL_FEATURES, VERSION, &bits, &[])
            .expect("send");
    }

    /// GET_CONFIG: the bytes of the reply.
    #[track_caller]
    pub fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let mut payload = Vec::new();
        for word in [offset, size, 0] {
            payload.extend_from_slice(&word.to_le_bytes());
        }
        payload.resize(12 + size as usize, 0);
        let answer = self.ask(GET_CONFIG, &payload);
        assert_eq!(
            &answer.payload[..8],
            &payload[..8],
            "offset and size of the answer"
        );
        answer.payload[12..].to_vec()
    }

    /// Index and number as SET_VRING_NUM, _BASE and _ENABLE take them.
    pub fn vring_state(index: u32, num: u32) -> Vec<u8> {
        [index.to_le_bytes(), num.to_le_bytes()].concat()
    }

    /// Whether the daemon ends this connection within `timeout`; what it still sends is skipped.
    pub fn hung_up(&self, timeout: Duration) -> bool {
        sys::eventually(timeout, || {
            let mut skipped = [0; 4096];
            self.sock.set_nonblocking(true).expect("mode");
            let outcome = (&self.sock).read(&mut skipped);
            self.sock.set_nonblocking(false).expect("mode");
            match outcome {
                Ok(count) => count == 0,
                Err(error) => {
                    error.kind() != ErrorKind::WouldBlock && error.kind() != ErrorKind::Interrupted
                }
            }
        })
    }
}
