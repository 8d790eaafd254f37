// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sockets that a service manager, a VMM or a test hands in, as fds with a number.
//!
//! Their own state tells them apart: connections are accepted from one that listens; one that is
//! connected is a front-end already. They are adopted before the process opens anything, so that no fd
//! of its own is taken for one that was handed in. Must not: unlink or shut down any of them.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};

use crate::config::Source;
use crate::error::{ExitCode, Fatal};
use crate::os::ffi::{self, socket_option};
use crate::os::listener::Listener;

/// Options with which the kernel adds messages of its own. The C libraries do not all name the last two.
const UNWANTED: [(&str, libc::c_int); 3] = [
    ("SO_PASSCRED", libc::SO_PASSCRED),
    ("SO_PASSSEC", 34),
    ("SO_PASSPIDFD", 76),
];

/// Where a guest's front-ends come from.
#[derive(Debug)]
pub enum Socket {
    /// They connect to this socket, one after the other.
    Listening(Listener),
    /// The guest's only one is connected already, by the fd of this number.
    Connected(UnixStream, RawFd),
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Listening(listener) => listener.as_raw_fd(),
            Self::Connected(stream, _) => stream.as_raw_fd(),
        }
    }
}

/// Takes over those of `sources` that are fds, in their order, as duplicates that are closed on
/// execution and do not wait. The fds themselves go with all others that were inherited
/// (`stages::close_inherited`).
///
/// # Errors
/// The first that is not such a socket, or is the same as another.
pub fn adopt(sources: &[Source]) -> Result<Vec<Socket>, Fatal> {
    let mut sockets = Vec::new();
    let mut seen: Vec<(u64, RawFd)> = Vec::new();
    for source in sources {
        let Source::Fd(fd, by) = *source else {
            continue;
        };
        let wrong = |why: String| Fatal::new(ExitCode::Usage, format!("{by}: '{fd}' {why}"));
        let file = ffi::duplicate(fd).map(File::from).map_err(|error| {
            wrong(match error.raw_os_error() {
                Some(libc::EBADF) => "is not open".into(),
                Some(_) | None => format!("cannot be used: {error}"),
            })
        })?;
        let inode = file.metadata().map_or(0, |metadata| metadata.ino());
        if let Some((_, other)) = seen.iter().find(|(other, _)| *other == inode) {
            return Err(wrong(format!("is the same socket as '{other}'")));
        }
        seen.push((inode, fd));
        sockets.push(classify(file, fd).map_err(wrong)?);
    }
    Ok(sockets)
}

/// The socket that `file` is, or why it is of no use.
fn classify(file: File, fd: RawFd) -> Result<Socket, String> {
    let get = |option| socket_option(file.as_raw_fd(), option).map_err(|_| "is not a socket");
    if get(libc::SO_DOMAIN)? != libc::AF_UNIX {
        return Err("is not a Unix socket".to_owned());
    }
    if get(libc::SO_TYPE)? != libc::SOCK_STREAM {
        return Err("is not a stream socket".to_owned());
    }
    // Other control messages than fds would hide these.
    for (name, option) in UNWANTED {
        if get(option).is_ok_and(|value| value != 0) {
            return Err(format!("has {name} set, whose messages are not understood"));
        }
    }
    let listens = get(libc::SO_ACCEPTCONN)? != 0;
    let stream = UnixStream::from(OwnedFd::from(file));
    if !listens && stream.peer_addr().is_err() {
        return Err("is neither listening nor connected".to_owned());
    }
    let set = stream.set_nonblocking(true);
    set.map_err(|error| format!("cannot be used: {error}"))?;
    if listens {
        let listener = UnixListener::from(OwnedFd::from(stream));
        return Ok(Socket::Listening(Listener::adopt(listener, fd)));
    }
    Ok(Socket::Connected(stream, fd))
}
