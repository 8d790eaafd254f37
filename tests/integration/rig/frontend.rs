// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest with its front-end: shares memory, starts the queue and does SPI requests.
//!
//! The session messages go through the `vhost` crate's `Frontend`; `Guest::raw` is the same connection byte by byte.

use super::daemon::Daemon;
use super::host::PATIENCE;
use super::memory::{Memory, Region, UNTOUCHED};
use super::plug::{Guard, PROTOCOL_FEATURES, Plug};
use super::raw::Raw;
use super::request::{Outcome, Request};
use super::ring::{Ring, Segment, Used};
use super::sys;
use super::virtio::{Config, Head};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

/// A connected guest. Its methods panic where the daemon breaks the protocol.
pub struct Guest {
    pub frontend: Frontend,
    pub raw: Raw,
    /// Acknowledged features.
    pub features: u64,
    /// Offered ones.
    pub offered: u64,
    pub memory: Memory,
    pub ring: Ring,
    pub kick: EventFd,
    pub call: EventFd,
    pub err: EventFd,
    pub(super) next: u64,
    pub(super) _guard: Guard,
}

impl Guest {
    /// Guest `n` with everything as `Plug::default` has it.
    #[track_caller]
    pub fn connect(daemon: &Daemon, n: usize) -> Self {
        Plug::default().connect(daemon, n)
    }

    /// SET_MEM_TABLE with all regions.
    #[track_caller]
    pub fn share_memory(&self) {
        let table: Vec<_> = self.memory.regions.iter().map(Region::info).collect();
        self.frontend.set_mem_table(&table).expect("SET_MEM_TABLE");
    }

    /// Sets the queue up from the driver's position and enables it.
    #[track_caller]
    pub fn start(&mut self) {
        self.set_up_ring();
        if self.features & PROTOCOL_FEATURES != 0 {
            self.frontend
                .set_vring_enable(0, true)
                .expect("SET_VRING_ENABLE");
        }
    }

    /// All of `start` but the enabling.
    #[track_caller]
    pub fn set_up_ring(&mut self) {
        let layout = self.ring.layout;
        let f = &self.frontend;
        f.set_vring_num(0, layout.size).expect("SET_VRING_NUM");
        f.set_vring_base(0, self.ring.used_idx)
            .expect("SET_VRING_BASE");
        let config = self.ring_config();
        f.set_vring_addr(0, &config).expect("SET_VRING_ADDR");
        f.set_vring_call(0, &self.call).expect("SET_VRING_CALL");
        f.set_vring_err(0, &self.err).expect("SET_VRING_ERR");
        f.set_vring_kick(0, &self.kick).expect("SET_VRING_KICK");
    }

    /// The ring's addresses as SET_VRING_ADDR takes them.
    pub fn ring_config(&self) -> VringConfigData {
        let layout = self.ring.layout;
        VringConfigData {
            queue_max_size: layout.size,
            queue_size: layout.size,
            flags: 0,
            desc_table_addr: self.memory.user_addr(layout.desc),
            used_ring_addr: self.memory.user_addr(layout.used),
            avail_ring_addr: self.memory.user_addr(layout.avail),
            log_addr: None,
        }
    }

    /// GET_VRING_BASE.
    #[track_caller]
    pub fn stop(&self) -> u32 {
        self.frontend.get_vring_base(0).expect("GET_VRING_BASE")
    }

    /// The 32 bytes of the configuration space.
    #[track_caller]
    pub fn config(&mut self) -> Config {
        let flags = VhostUserConfigFlags::WRITABLE;
        let (_, bytes) = self
            .frontend
            .get_config(0, 32, flags, &[0; 32])
            .expect("GET_CONFIG");
        Config::parse(&bytes)
    }

    /// Takes `len` bytes of guest memory, all `UNTOUCHED`. Never given back: memory is there for each test anew.
    pub fn alloc(&mut self, len: usize) -> u64 {
        // An odd distance from the last piece: no buffer is aligned by accident, and none touches another.
        let gpa = self.next + 3;
        self.next = gpa + len as u64;
        self.memory.fill(gpa, len, UNTOUCHED);
        gpa
    }

    /// Continues allocating from `gpa`.
    pub fn alloc_from(&mut self, gpa: u64) {
        self.next = gpa;
    }

    /// Lays a request out. Without tx and without rx there is no such segment.
    pub fn request(&mut self, head: Head, tx: &[u8], rx_len: usize) -> Request {
        let head_gpa = self.alloc(Head::SIZE);
        self.memory.write(head_gpa, &head.to_bytes());
        let tx_gpa = self.alloc(tx.len());
        self.memory.write(tx_gpa, tx);
        let rx_gpa = self.alloc(rx_len);
        let result_gpa = self.alloc(1);
        let mut segments = vec![Segment::out(head_gpa, Head::SIZE as u32)];
        if !tx.is_empty() {
            segments.push(Segment::out(tx_gpa, tx.len() as u32));
        }
        if rx_len != 0 {
            segments.push(Segment::into(rx_gpa, rx_len as u32));
        }
        segments.push(Segment::into(result_gpa, 1));
        Request {
            segments,
            tx_gpa,
            rx_gpa,
            rx_len: rx_len as u32,
            result_gpa,
        }
    }

    /// The same with head and tx in one descriptor, and rx and result in another: `Request::cut` makes any cut of it.
    pub fn contiguous(&mut self, head: Head, tx: &[u8], rx_len: usize) -> Request {
        let head_gpa = self.alloc(Head::SIZE + tx.len());
        self.memory
            .write(head_gpa, &[&head.to_bytes(), tx].concat());
        let rx_gpa = self.alloc(rx_len + 1);
        let out = Segment::out(head_gpa, (Head::SIZE + tx.len()) as u32);
        let segments = vec![out, Segment::into(rx_gpa, rx_len as u32 + 1)];
        let (tx_gpa, result_gpa) = (head_gpa + Head::SIZE as u64, rx_gpa + rx_len as u64);
        Request {
            segments,
            tx_gpa,
            rx_gpa,
            rx_len: rx_len as u32,
            result_gpa,
        }
    }

    /// Queues it as it is; to be seen after `kick`.
    pub fn queue(&mut self, request: &Request) -> u16 {
        self.ring.place(&request.segments, &self.memory)
    }

    /// Queues it behind an indirect table.
    pub fn queue_indirect(&mut self, request: &Request) -> u16 {
        let table = self
            .alloc(request.segments.len() * 16 + 16)
            .next_multiple_of(16);
        self.ring
            .place_indirect(&request.segments, table, &self.memory)
    }

    /// Shows the device what is queued, and kicks it if it asked for that.
    pub fn kick(&mut self) {
        if self.ring.publish(&self.memory) {
            self.kick_anyway();
        }
    }

    /// Kicks without looking.
    pub fn kick_anyway(&self) {
        self.kick.write(1).expect("kick");
    }

    /// Waits for `count` used chains; each must be announced by the call eventfd.
    #[track_caller]
    pub fn wait_used(&mut self, count: usize) -> Vec<Used> {
        match self.try_used(count, PATIENCE) {
            Ok(all) => all,
            Err(done) => {
                let seen = self
                    .ring
                    .device_idx(&self.memory)
                    .wrapping_sub(self.ring.used_idx);
                panic!(
                    "{done} of {count} chains were used before the end of patience or session, {seen} more in silence"
                )
            }
        }
    }

    /// The same with a limit of time: `Err` has the count that came.
    #[track_caller]
    pub fn try_used(&mut self, count: usize, timeout: Duration) -> Result<Vec<Used>, usize> {
        let end = Instant::now() + timeout;
        let mut all = Vec::new();
        loop {
            if self.ring.event_idx {
                self.ring.set_used_event(self.ring.used_idx, &self.memory);
            }
            while all.len() < count
                && let Some(used) = self.ring.take(&self.memory)
            {
                all.push(used);
            }
            if all.len() == count {
                return Ok(all);
            }
            if self.ring.event_idx {
                self.ring.set_used_event(self.ring.used_idx, &self.memory);
                // What was used before the device could see the new event is not announced again.
                if self.ring.device_idx(&self.memory) != self.ring.used_idx {
                    continue;
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            let event =
                sys::readable_or_hung_up(self.call.as_raw_fd(), self.raw.sock.as_raw_fd(), left);
            if event == sys::Event::Readable {
                let _ = self.call.read();
            } else if self.ring.device_idx(&self.memory) == self.ring.used_idx
                || event == sys::Event::Timeout
            {
                return Err(all.len());
            }
        }
    }

    /// What came of a used request: result, rx, and the rules that hold for every used request.
    #[track_caller]
    pub fn outcome(&self, request: &Request, used: Used) -> Outcome {
        let result = self.memory.read(request.result_gpa, 1)[0];
        let rx = self.memory.read(request.rx_gpa, request.rx_len as usize);
        assert!(result <= 2, "result byte {result:#x} (0xee: never written)");
        assert_eq!(
            used.len,
            request.rx_len + 1,
            "the used length covers rx and result whatever the result"
        );
        Outcome {
            result,
            rx,
            used_len: used.len,
        }
    }

    /// One request, from end to end.
    #[track_caller]
    pub fn transfer(&mut self, head: Head, tx: &[u8], rx_len: usize) -> Outcome {
        let request = self.request(head, tx, rx_len);
        self.carry_out(&request)
    }

    /// Queues one laid-out request and waits for its end.
    #[track_caller]
    pub fn carry_out(&mut self, request: &Request) -> Outcome {
        self.queue(request);
        self.kick();
        let used = self.wait_used(1)[0];
        self.outcome(request, used)
    }

    /// Asserts that a one-byte transfer works: the session and the bus are alive.
    #[track_caller]
    pub fn assert_served(&mut self) {
        let outcome = self.transfer(Head::default(), &[0x5a], 1);
        assert_eq!(outcome.result, 0, "result of a plain transfer");
    }
}
