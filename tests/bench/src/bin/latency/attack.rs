// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the other guests do, each in a process of its own until it is killed; and the load.

use std::error::Error;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bench::guest::{AVAIL, DESC, Guest, REGION_LEN, USED, Work};
use bench::sys;
use bench::vhost_user::{Connection, SET_MEM_TABLE, SET_VRING_ADDR, SET_VRING_NUM};

/// Clock of short requests, in Hz.
pub const FAST_HZ: u32 = 10_000_000;
/// Bytes of a long transfer: the published daemon makes one message of all that are queued.
pub const LONG_LEN: usize = 2048;
/// Milliseconds that it takes.
pub const LONG_MS: u32 = 20;
/// Regions of a front-end that changes its memory.
pub const REGIONS: usize = 8;
/// Nobody waits longer for a socket or an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What one of the others does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// Keeps 32 short requests queued; each releases chip select.
    Flood,
    /// The same, in which chip select may stay asserted.
    HeldFlood,
    /// Keeps transfers of 20 ms queued.
    Long,
    /// Connects, is served, and dies.
    Connect,
    /// Sends what is wrong.
    Lie,
    /// Exchanges all of its memory, and gives pages back while they are in use.
    Memory,
    /// Its call eventfd is full and blocks.
    Block,
    /// Not a guest: keeps a CPU and its caches busy.
    Load,
}

const NAMES: [(Attack, &str); 8] = [
    (Attack::Flood, "flood"),
    (Attack::HeldFlood, "held-flood"),
    (Attack::Long, "long"),
    (Attack::Connect, "connect"),
    (Attack::Lie, "lie"),
    (Attack::Memory, "memory"),
    (Attack::Block, "block"),
    (Attack::Load, "load"),
];

impl Attack {
    fn name(self) -> &'static str {
        let found = NAMES.iter().find(|(attack, _)| *attack == self);
        found.map_or("", |(_, name)| name)
    }

    /// Bytes of guest memory that its front-end shares.
    pub fn memory_len(self) -> usize {
        match self {
            Self::Memory => REGIONS * REGION_LEN,
            Self::Load => 0,
            _ => REGION_LEN,
        }
    }
}

/// A process that attacks. Dropped, it is killed.
pub struct Attacker(Child);

impl Drop for Attacker {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Attacker {
    /// Starts one at a guest's socket, on `cpu`.
    pub fn start(attack: Attack, socket: &Path, cpu: usize) -> std::io::Result<Self> {
        let child = Command::new(std::env::current_exe()?)
            .args(["attack", attack.name(), &cpu.to_string()])
            .arg(socket)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self(child))
    }
}

/// Attacks until killed: `attack NAME CPU SOCKET`.
pub fn run(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    let [name, cpu, socket] = arguments else {
        return Err("attack NAME CPU SOCKET".into());
    };
    let found = NAMES.iter().find(|(_, known)| known == name);
    let (attack, _) = found.ok_or("no such attack")?;
    sys::end_with_parent()?;
    sys::pin(0, cpu.parse()?)?;
    let socket = Path::new(socket);
    for round in 0u32.. {
        let failed = match attack {
            Attack::Flood => flood(socket, short(true)),
            Attack::HeldFlood => flood(socket, short(false)),
            Attack::Long => flood(socket, long()),
            Attack::Connect => connect_and_die(socket, round),
            Attack::Lie => lie(socket, round),
            Attack::Memory => change_memory(socket),
            Attack::Block => block(socket),
            Attack::Load => keep_busy(),
        };
        if failed.is_err() {
            // The socket rests, or listens again in a moment.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

fn short(lets_go: bool) -> Work {
    Work {
        len: 64,
        depth: 32,
        speed_hz: FAST_HZ,
        lets_go,
        ..Work::default()
    }
}

fn long() -> Work {
    Work {
        len: LONG_LEN,
        depth: 2,
        speed_hz: LONG_LEN as u32 * 8 * 1000 / LONG_MS,
        lets_go: true,
        ..Work::default()
    }
}

fn connect(socket: &Path, guest: &Guest) -> std::io::Result<Connection> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Connection::start(stream, guest)
}

fn flood(socket: &Path, work: Work) -> Result<(), Box<dyn Error>> {
    let mut guest = Guest::new(work)?;
    let _connection = connect(socket, &guest)?;
    guest.flood().map_err(|failure| failure.to_string().into())
}

/// Dies with requests queued, or before, or after.
fn connect_and_die(socket: &Path, round: u32) -> Result<(), Box<dyn Error>> {
    let mut guest = Guest::new(short(true))?;
    let connection = connect(socket, &guest)?;
    match round % 3 {
        0 => guest.post()?,
        1 => drop(guest.batch_within(PATIENCE)),
        _ => (),
    }
    drop(connection);
    Ok(())
}

fn lie(socket: &Path, round: u32) -> Result<(), Box<dyn Error>> {
    let mut guest = Guest::new(short(true))?;
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    match round % 6 {
        0 => sys::send_with_fds(&stream, &noise(round, 4000), &[])?,
        1 => sys::send_with_fds(&stream, &noise(round, 30), &[guest.kick.as_raw_fd(); 8])?,
        2 => {
            let mut connection = Connection::start(stream, &guest)?;
            let region = [0, REGION_LEN as u64, 0, 0];
            let table = [&[2][..], &region, &region].concat();
            let file = guest.regions[0].file.as_raw_fd();
            connection.tell(SET_MEM_TABLE, &table, &[file, file])?;
        }
        3 => {
            let mut connection = Connection::start(stream, &guest)?;
            connection.tell(SET_VRING_NUM, &[3 << 32], &[])?;
        }
        4 => {
            let mut connection = Connection::start(stream, &guest)?;
            let ring = guest.regions[0].base as u64;
            let [desc, used, avail] = [DESC, USED, AVAIL].map(|part| ring + part as u64 + 1);
            connection.tell(SET_VRING_ADDR, &[0, desc, used, avail, 0], &[])?;
        }
        _ => {
            let _connection = Connection::start(stream, &guest)?;
            guest.post()?;
            guest.regions[0].file.set_len(0)?;
            guest.ring()?;
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

/// Bytes that look random, the same ones in the same round.
fn noise(round: u32, len: usize) -> Vec<u8> {
    let mut state = round | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

fn change_memory(socket: &Path) -> Result<(), Box<dyn Error>> {
    let work = Work {
        regions: REGIONS,
        ..short(true)
    };
    let mut guest = Guest::new(work)?;
    let mut connection = connect(socket, &guest)?;
    // All of it has pages.
    for region in &guest.regions[1..] {
        unsafe { std::ptr::write_bytes(region.base, 1, REGION_LEN / 2) };
    }
    loop {
        guest.batch_within(PATIENCE).map_err(|f| f.to_string())?;
        connection.share_memory(&guest)?;
        for region in &guest.regions[1..] {
            let (hole, len) = (REGION_LEN / 2, REGION_LEN / 2);
            sys::punch_hole(&region.file, hole, len)?;
            unsafe { std::ptr::write_bytes(region.base.add(hole), 1, len) };
        }
    }
}

fn block(socket: &Path) -> Result<(), Box<dyn Error>> {
    let mut guest = Guest::new(short(true))?;
    let _connection = connect(socket, &guest)?;
    guest.fill_call()?;
    guest.post()?;
    std::thread::sleep(Duration::from_millis(200));
    Ok(())
}

fn keep_busy() -> Result<(), Box<dyn Error>> {
    // More than the caches near a CPU hold.
    let (mut from, mut to) = (vec![1u64; 1 << 18], vec![0u64; 1 << 18]);
    loop {
        to.copy_from_slice(&from);
        std::hint::black_box(&mut to);
        std::mem::swap(&mut from, &mut to);
    }
}
