// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A front-end on its end of the connection.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::protocol::{Asked, Message, RING_SIZE};
use crate::fds::Kind;
use crate::input::Input;
use crate::ring::{AVAIL, guest};

/// A front-end.
pub struct Front {
    stream: UnixStream,
    /// What it has made, once each, and what must stay open beside it.
    files: HashMap<Kind, (File, Option<OwnedFd>)>,
    /// All bytes that the connection took.
    sent: Vec<u8>,
    replies: Vec<u8>,
    /// It does not read its replies.
    pub is_deaf: bool,
    /// An urgent byte was sent: what comes when cannot be told any more.
    is_urgent: bool,
    /// Index of the next request.
    available: u16,
}

impl Front {
    /// Connects to `path`.
    pub fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_nonblocking(true).unwrap();
        Self {
            stream,
            files: HashMap::new(),
            sent: Vec::new(),
            replies: Vec::new(),
            is_deaf: false,
            is_urgent: false,
            available: 0,
        }
    }

    fn file(&mut self, kind: Kind) -> &mut File {
        let made = || {
            let (file, other) = kind.make();
            (File::from(file), other)
        };
        &mut self.files.entry(kind).or_insert_with(made).0
    }

    /// Sends part of a message; with its fds, if that part has its first byte.
    pub fn send(&mut self, message: &Message, from: usize, to: usize, with_own: bool) {
        let bytes = &message.bytes[from..to];
        let mut fds: Vec<RawFd> = Vec::new();
        if from == 0 {
            for &kind in &message.kinds {
                fds.push(self.file(kind).as_raw_fd());
            }
            // A front-end that sends its own end of the connection.
            fds.extend(with_own.then(|| self.stream.as_raw_fd()));
        }
        // A connection that is full or over takes no more.
        let taken = self.stream.send_with_fds(&[bytes], &fds).unwrap_or(0);
        self.sent.extend(&bytes[..taken]);
    }

    /// Sends a byte that is read apart from the stream.
    pub fn send_urgent(&mut self) {
        self.is_urgent = true;
        let fd = self.stream.as_raw_fd();
        let flags = libc::MSG_OOB | libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        // SAFETY: one readable byte.
        unsafe { libc::send(fd, [0u8].as_ptr().cast(), 1, flags) };
    }

    /// Makes a request available.
    pub fn request(&mut self, input: &mut Input) {
        let writes = guest::request(input, RING_SIZE, (self.available, AVAIL));
        self.available = self.available.wrapping_add(1);
        let memory = self.file(Kind::Memory);
        for write in writes {
            let at = u64::try_from(write.at).unwrap();
            memory.write_all_at(&write.bytes, at).unwrap();
        }
    }

    /// Kicks.
    pub fn kick(&mut self) {
        // A full counter is a kick, too.
        let _ = self.file(Kind::Event).write(&1u64.to_ne_bytes());
    }

    /// Changes the length of the guest's memory.
    pub fn truncate(&mut self, len: u64) {
        self.file(Kind::Memory).set_len(len).unwrap();
    }

    /// Closes its end for writing, or for both.
    pub fn shut_down(&self, how: std::net::Shutdown) {
        // Of a connection that is over there is nothing to close.
        let _ = self.stream.shutdown(how);
    }

    /// Reads what there is to read; `false` if the connection is over.
    pub fn listen(&mut self) -> bool {
        let mut part = [0; 4096];
        loop {
            match self.stream.read(&mut part) {
                Ok(0) => return false,
                Ok(len) => self.replies.extend(&part[..len]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                Err(_) => return false,
            }
        }
    }

    /// Checks what was answered; `is_settled` if all that was sent must have been.
    pub fn check(&self, is_settled: bool) {
        if !self.is_urgent {
            Asked::new(&self.sent).check(&self.replies, is_settled);
        }
    }
}
