// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a guest's front-end connects: what it acknowledges, its memory, its queue.

use super::daemon::Daemon;
use super::frontend::Guest;
use super::host::PATIENCE;
use super::memory::{Memory, Region};
use super::raw::Raw;
use super::ring::{Layout, Ring};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub const INDIRECT_DESC: u64 = 1 << 28;
pub const EVENT_IDX: u64 = 1 << 29;
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
pub const VERSION_1: u64 = 1 << 32;
pub const IN_ORDER: u64 = 1 << 35;

/// How a guest is to be connected.
pub struct Plug {
    features: u64,
    protocol: VhostUserProtocolFeatures,
    queue_size: u16,
    regions: Vec<Region>,
    ring_gpa: u64,
}

impl Default for Plug {
    /// All features but IN_ORDER, a queue of 256, 16 MiB of memory at a guest address that is nothing else's offset.
    fn default() -> Self {
        Self {
            features: VERSION_1 | INDIRECT_DESC | EVENT_IDX | PROTOCOL_FEATURES,
            protocol: VhostUserProtocolFeatures::CONFIG
                | VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::REPLY_ACK
                | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
                | VhostUserProtocolFeatures::RESET_DEVICE,
            queue_size: 256,
            regions: vec![Region::new(0x1_0000_0000, 16 << 20)],
            ring_gpa: 0x1_0000_0000,
        }
    }
}

impl Plug {
    /// Acknowledges these features, as far as they are offered.
    pub fn features(mut self, features: u64) -> Self {
        self.features = features;
        self
    }

    /// Acknowledges these protocol features, as far as they are offered.
    pub fn protocol(mut self, protocol: VhostUserProtocolFeatures) -> Self {
        self.protocol = protocol;
        self
    }

    pub fn queue_size(mut self, size: u16) -> Self {
        self.queue_size = size;
        self
    }

    /// Uses this memory; the ring is laid out from the start of the first region.
    pub fn regions(mut self, regions: Vec<Region>) -> Self {
        self.ring_gpa = regions[0].gpa;
        self.regions = regions;
        self
    }

    /// Connects and starts the queue.
    #[track_caller]
    pub fn connect(self, daemon: &Daemon, n: usize) -> Guest {
        self.connect_to(&daemon.socket(n))
    }

    /// The same with a socket's path.
    #[track_caller]
    pub fn connect_to(self, path: &Path) -> Guest {
        let mut guest = self.negotiate(path);
        guest.start();
        guest
    }

    /// The same over a connection.
    #[track_caller]
    pub fn connect_over(self, sock: UnixStream) -> Guest {
        let mut guest = self.negotiate_over(sock);
        guest.start();
        guest
    }

    /// Connects, negotiates features and shares memory; `Guest::start` sets the queue up.
    #[track_caller]
    pub fn negotiate(self, path: &Path) -> Guest {
        let sock = UnixStream::connect(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        self.negotiate_over(sock)
    }

    #[track_caller]
    fn negotiate_over(self, sock: UnixStream) -> Guest {
        let guard = Guard::new(sock.try_clone().expect("dup"));
        let raw = Raw::over(sock.try_clone().expect("dup"));
        let mut frontend = Frontend::from_stream(sock, 1);
        frontend.set_owner().expect("SET_OWNER");
        let offered = frontend.get_features().expect("GET_FEATURES");
        let features = self.features & offered;
        let mut protocol = VhostUserProtocolFeatures::empty();
        if features & PROTOCOL_FEATURES != 0 {
            protocol = self.protocol
                & frontend
                    .get_protocol_features()
                    .expect("GET_PROTOCOL_FEATURES");
            frontend
                .set_protocol_features(protocol)
                .expect("SET_PROTOCOL_FEATURES");
        }
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            // From here on every message is acknowledged, so that a refused one is seen where it is sent.
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        frontend.set_features(features).expect("SET_FEATURES");
        let memory = Memory {
            regions: self.regions,
        };
        let layout = Layout::at(self.ring_gpa, self.queue_size);
        let ring = Ring::new(layout, features & EVENT_IDX != 0, &memory);
        let eventfd = || EventFd::new(EFD_NONBLOCK).expect("eventfd");
        let (kick, call, err) = (eventfd(), eventfd(), eventfd());
        let next = layout.end();
        let guest = Guest {
            frontend,
            raw,
            features,
            offered,
            memory,
            ring,
            kick,
            call,
            err,
            next,
            _guard: guard,
        };
        guest.share_memory();
        guest
    }
}

/// Ends a connection on which the crate would wait for ever: its receive loop has no time-out of its own.
pub(super) struct Guard(#[allow(dead_code, reason = "its drop wakes the thread")] mpsc::Sender<()>);

impl Guard {
    fn new(sock: UnixStream) -> Self {
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            // Longer than any single wait of the rig, so that those report first.
            if receiver.recv_timeout(PATIENCE * 6) == Err(mpsc::RecvTimeoutError::Timeout) {
                let _ = sock.shutdown(std::net::Shutdown::Both);
            }
        });
        Self(sender)
    }
}
