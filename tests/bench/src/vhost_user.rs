// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The front-end's side of vhost-user: what it takes to start a queue.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use crate::guest::{AVAIL, DESC, Guest, REGION_LEN, USED, region_address};
use crate::sys;

const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_VRING_ENABLE: u32 = 18;

const VERSION: u32 = 1;
const NEED_REPLY: u32 = 1 << 3;
const F_EVENT_IDX: u64 = 1 << 29;
const F_PROTOCOL_FEATURES: u64 = 1 << 30;
const F_VERSION_1: u64 = 1 << 32;
const PROTOCOL_F_REPLY_ACK: u64 = 1 << 3;
const PROTOCOL_F_CONFIG: u64 = 1 << 9;

/// A connection to a daemon.
pub struct Connection {
    stream: UnixStream,
    /// Messages without an answer of their own are acknowledged.
    acknowledged: bool,
}

impl Connection {
    /// Starts the queue of `guest` on the daemon behind `stream`.
    pub fn start(stream: UnixStream, guest: &Guest) -> io::Result<Self> {
        let mut connection = Self {
            stream,
            acknowledged: false,
        };
        connection.negotiate(guest.work.event_idx)?;
        connection.share_memory(guest)?;
        connection.start_queue(guest)?;
        Ok(connection)
    }

    fn negotiate(&mut self, event_idx: bool) -> io::Result<()> {
        let offered = self.ask(GET_FEATURES)?;
        let mut features = F_VERSION_1 | F_PROTOCOL_FEATURES;
        if event_idx {
            features |= F_EVENT_IDX;
        }
        if offered & features != features {
            return Err(io::Error::other("a feature is not offered"));
        }
        let protocol = PROTOCOL_F_REPLY_ACK | PROTOCOL_F_CONFIG;
        if self.ask(GET_PROTOCOL_FEATURES)? & protocol != protocol {
            return Err(io::Error::other("a protocol feature is not offered"));
        }
        self.tell(SET_PROTOCOL_FEATURES, &[protocol], &[])?;
        self.acknowledged = true;
        self.tell(SET_OWNER, &[], &[])?;
        self.tell(SET_FEATURES, &[features], &[])
    }

    /// Tells where the guest's memory is.
    pub fn share_memory(&mut self, guest: &Guest) -> io::Result<()> {
        let mut payload = vec![guest.regions.len() as u64];
        for (number, region) in guest.regions.iter().enumerate() {
            let guest_address = region_address(number) as u64;
            payload.extend([guest_address, REGION_LEN as u64, region.base as u64, 0]);
        }
        let fds = guest.regions.iter().map(|region| region.file.as_raw_fd());
        self.tell(SET_MEM_TABLE, &payload, &fds.collect::<Vec<_>>())
    }

    fn start_queue(&mut self, guest: &Guest) -> io::Result<()> {
        let ring = guest.regions[0].base as u64;
        // The number of the queue is the lower half of the first word, and 0.
        self.tell(SET_VRING_NUM, &[u64::from(guest.work.ring_size) << 32], &[])?;
        self.tell(SET_VRING_BASE, &[0], &[])?;
        let addresses = [DESC, USED, AVAIL].map(|part| ring + part as u64);
        let [desc, used, avail] = addresses;
        self.tell(SET_VRING_ADDR, &[0, desc, used, avail, 0], &[])?;
        self.tell(SET_VRING_CALL, &[0], &[guest.call.as_raw_fd()])?;
        self.tell(SET_VRING_KICK, &[0], &[guest.kick.as_raw_fd()])?;
        self.tell(SET_VRING_ENABLE, &[1 << 32], &[])
    }

    fn send(&self, request: u32, flags: u32, payload: &[u64], fds: &[RawFd]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for word in [request, flags, size_of_val(payload) as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(payload.iter().flat_map(|word| word.to_ne_bytes()));
        sys::send_with_fds(&self.stream, &bytes, fds)
    }

    /// The one number that all answers of this module's messages have.
    fn answer(&mut self, request: u32) -> io::Result<u64> {
        let mut bytes = [0; 20];
        self.stream.read_exact(&mut bytes)?;
        let (header, payload) = bytes.split_at(12);
        if header[..4] != request.to_ne_bytes() {
            return Err(io::Error::other("an answer to another message"));
        }
        Ok(u64::from_ne_bytes(payload.try_into().unwrap()))
    }

    fn ask(&mut self, request: u32) -> io::Result<u64> {
        self.send(request, VERSION, &[], &[])?;
        self.answer(request)
    }

    /// Sends a message that is acknowledged where that was agreed on.
    pub fn tell(&mut self, request: u32, payload: &[u64], fds: &[RawFd]) -> io::Result<()> {
        if !self.acknowledged {
            return self.send(request, VERSION, payload, fds);
        }
        self.send(request, VERSION | NEED_REPLY, payload, fds)?;
        match self.answer(request)? {
            0 => Ok(()),
            _ => Err(io::Error::other(format!("message {request} was refused"))),
        }
    }
}
