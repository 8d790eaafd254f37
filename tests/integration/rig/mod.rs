// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The rig: a faked host, a daemon on it, and guests of the daemon.
//!
//! ```ignore
//! let host = Host::with_devices(1);                          // /dev/spidev0.0, an echo
//! let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);    // one guest
//! let mut guest = Guest::connect(&daemon, 0);
//! let outcome = guest.transfer(Head::default(), b"abc", 3);
//! assert_eq!(host.messages((0, 0)).len(), 1);
//! ```

pub mod ask;
pub mod daemon;
pub mod frontend;
pub mod fuse;
pub mod host;
pub mod kernel_rules;
pub mod memory;
pub mod nor;
pub mod notify;
pub mod peer;
pub mod plug;
pub mod program;
pub mod raw;
pub mod record;
pub mod request;
pub mod ring;
pub mod setup;
mod spidev;
pub mod stall;
pub mod sys;
mod ticker;
pub mod virtio;

pub use daemon::Daemon;
pub use frontend::Guest;
pub use host::{Host, PATIENCE, When};
pub use memory::Region;
pub use peer::{Counter, Loopback, Reads};
pub use plug::Plug;
pub use raw::Raw;
pub use request::Request;
pub use ring::{Ring, Segment};
pub use setup::{Setup, Stderr};
pub use virtio::{Head, PARAM_ERR, TRANS_ERR, TRANS_OK};

/// How long a message is kept on the wire for the loop to look for events behind it: several times as long as it goes on
/// without that.
pub const A_LOOK: std::time::Duration = std::time::Duration::from_millis(20);

/// Chip select 0 of bus 0, where most tests have their only device.
pub const DEV: host::Id = (0, 0);

/// One echo at `/dev/spidev0.0`, and a guest plugged into it; records start here.
#[track_caller]
pub fn plugged() -> (Host, Daemon, Guest) {
    plugged_into(Host::with_devices(1))
}

/// The same on a host that has `/dev/spidev0.0`.
#[track_caller]
pub fn plugged_into(host: Host) -> (Host, Daemon, Guest) {
    let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    let guest = Guest::connect(&daemon, 0);
    host.forget();
    (host, daemon, guest)
}

/// Bytes that repeat at no power of two.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|n| (n % 251) as u8 ^ (n / 251) as u8)
        .collect()
}
