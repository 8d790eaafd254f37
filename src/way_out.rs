//! What must be undone however the process ends: chip selects released, modes as they were found,
//! our sockets removed.
//!
//! It is written down once at start, as fds and numbers, so that a panic can do it without the
//! state that may have caused it. Only SIGKILL and the seccomp filter take no way out: what they
//! leave asserted, the next start releases.

use std::os::fd::RawFd;
use std::panic;
use std::sync::OnceLock;

use crate::listener::SocketFile;
use crate::log;
use crate::spidev::write_mode;

#[derive(Debug)]
struct WayOut {
    /// Each spidev's fd, and the mode that it was found in.
    modes: Vec<(RawFd, u32)>,
    sockets: Vec<SocketFile>,
}

static WAY_OUT: OnceLock<WayOut> = OnceLock::new();

/// Writes down what is to be undone, and has panics undo it. Once.
pub fn prepare(modes: Vec<(RawFd, u32)>, sockets: Vec<SocketFile>) {
    let _ = WAY_OUT.set(WayOut { modes, sockets });
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let place = place.as_deref().unwrap_or("an unknown place");
        log::line(format_args!("internal error at {place}"));
        restore_devices();
        remove_sockets();
    }));
}

/// Removes the sockets that this process made.
pub fn remove_sockets() {
    for socket in WAY_OUT
        .get()
        .into_iter()
        .flat_map(|way_out| &way_out.sockets)
    {
        socket.remove();
    }
}

/// Writing the mode also releases chip select.
fn restore_devices() {
    for &(fd, mode) in WAY_OUT.get().into_iter().flat_map(|way_out| &way_out.modes) {
        // There is nothing left to do about a device that refuses.
        let _ = write_mode(fd, mode);
    }
}
