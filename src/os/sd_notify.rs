// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tells a service manager the daemon's state, by the protocol of sd_notify(3): `READY=1` when guests
//! are served, `STATUS=` with the number of those connected, `WATCHDOG=1` for as long as the loop
//! turns, `STOPPING=1` when the end has begun.
//!
//! The socket is connected before confinement. After that it is only written to, which reaches that peer
//! alone. A message arrives or is lost: a service manager that does not read, or is
//! gone, costs us nothing.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use crate::os::log;

/// The way to the service manager, if there is one.
#[derive(Debug, Default)]
pub struct SdNotify {
    socket: Option<File>,
    /// How often it wants a sign of life.
    every: Option<Duration>,
    /// When the next one is due.
    pub next: Option<Instant>,
    /// How many guests were connected when that was last told.
    connected: Option<usize>,
}

impl SdNotify {
    /// Connects to the service manager at `address`, which is told `every` so often that the daemon
    /// lives. One that cannot be reached costs a line of warning.
    pub fn connect(address: Option<&OsStr>, every: Option<Duration>) -> Self {
        let Some(address) = address else {
            return Self::default();
        };
        let socket = connect(address).inspect_err(|error| {
            let address = address.to_string_lossy();
            log::warning(format_args!(
                "warning: NOTIFY_SOCKET '{address}': {error}; the service manager is told nothing"
            ));
        });
        Self {
            every: every.filter(|_| socket.is_ok()),
            socket: socket.ok(),
            ..Self::default()
        }
    }

    /// Guests are served from `now` on.
    pub fn ready(&mut self, now: Instant) {
        self.send(b"READY=1");
        self.next = self.every.and_then(|every| now.checked_add(every));
    }

    /// Tells how many of the `guests` have a front-end, if that has changed.
    pub fn status(&mut self, connected: usize, guests: usize) {
        if self.connected != Some(connected) && self.socket.is_some() {
            self.connected = Some(connected);
            let status = format!("STATUS={connected} of {guests} guests connected");
            self.send(status.as_bytes());
        }
    }

    /// The end has begun.
    pub fn stopping(&self) {
        self.send(b"STOPPING=1");
    }

    /// Gives the sign of life that is due at `now`, if one is.
    pub fn alive(&mut self, now: Instant) {
        if self.next.is_some_and(|at| at <= now) {
            self.send(b"WATCHDOG=1");
            self.next = self.every.and_then(|every| now.checked_add(every));
        }
    }

    fn send(&self, message: &[u8]) {
        if let Some(mut socket) = self.socket.as_ref() {
            let _ = socket.write(message);
        }
    }
}

fn connect(address: &OsStr) -> io::Result<File> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(address)?,
        _ => return Err(io::Error::other("is neither a path nor '@' and a name")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address)?;
    Ok(File::from(OwnedFd::from(socket)))
}
