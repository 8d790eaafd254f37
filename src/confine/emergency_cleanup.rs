// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Clean-up at the end of the process: chip selects are released, modes restored, our sockets removed.
//!
//! What it needs is noted once at start, as fds and numbers, so that a panic can do it without the
//! state that may have caused it. SIGKILL, the seccomp filter and faults of our own (SIGSEGV, SIGBUS) end the
//! process without it; the next start releases chip selects that were left asserted.
//!
//! Called by `assemble` at the start, and by `main` and the panic hook at the end.

use std::os::fd::RawFd;
use std::panic;
use std::process;
use std::sync::OnceLock;

use crate::confine::seccomp::Pins;
use crate::os::listener::SocketFile;
use crate::os::log;
use crate::spi::spidev::write_mode;

// Each is set once, when all of them are there.

/// Each spidev's fd, and the mode that it was found in.
pub static MODES: OnceLock<Vec<(RawFd, u32)>> = OnceLock::new();
/// The sockets that this process made.
pub static SOCKETS: OnceLock<Vec<SocketFile>> = OnceLock::new();

/// Makes a panic do the clean-up and end the process. Unwinding, which debug builds would
/// do next, needs system calls that the filter does not allow.
pub fn install() {
    panic::set_hook(Box::new(|panic| {
        if let Some(place) = panic.location() {
            log::error(format_args!("internal error at {place}"));
        }
        for &(fd, mode) in MODES.get().into_iter().flatten() {
            // That also releases chip select. There is nothing to do about a device that refuses.
            let _ = write_mode(fd, mode);
        }
        remove_sockets();
        process::abort();
    }));
}

/// The fds that this and the devices' transfers use, for the filter.
pub fn pins() -> Pins {
    let devices = MODES.get().into_iter().flatten().map(|&(fd, _)| fd);
    let sockets = SOCKETS.get().into_iter().flatten();
    Pins {
        devices: devices.collect(),
        directories: sockets.map(SocketFile::directory).collect(),
    }
}

/// Removes the sockets that this process made, and says which of them stay.
pub fn remove_sockets() {
    for socket in SOCKETS.get().into_iter().flatten() {
        if let Err(error) = socket.remove() {
            let path = socket.path.to_string_lossy();
            log::warning(format_args!("socket '{path}' stays: {error}"));
        }
    }
}
