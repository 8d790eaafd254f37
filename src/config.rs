// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The settings of the command line, as values.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

/// The longest message in milliseconds on the wire that the administrator can allow.
pub const MAX_MESSAGE_MS: u64 = 100;
/// Most guests, each with a socket of its own.
pub const MAX_GUESTS: usize = 64;
/// Most regions of memory that a guest may have.
pub const MAX_REGIONS: usize = 32;
const DEFAULT_HOLD_MS: u64 = 100;
const DEFAULT_READ_HOLD_MS: u64 = 1;

/// How the daemon is to run.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where each guest's front-end comes from.
    pub guests: Vec<Source>,
    /// The permissions of the sockets that are made.
    pub socket_mode: u32,
    /// The group that they are given to; else they have the process's.
    pub socket_group: Option<Group>,
    /// The service manager's socket: a path, or `@` and an abstract name.
    pub notify_socket: Option<OsString>,
    /// How often it is told that the daemon lives.
    pub alive_every: Option<Duration>,
    /// The devices, in order.
    pub devices: Vec<DeviceConfig>,
    /// Each guest's chip-select policy.
    pub hold_policies: Vec<HoldPolicy>,
    /// How long a chip select may be held, if the administrator says.
    pub hold_timeout_ms: Option<u64>,
    /// Bounds of a transfer.
    pub transfers: TransferConfig,
    /// How long a ring is watched for the next request after one was served.
    pub poll: Duration,
    /// What guest memory may be.
    pub guest_memory: GuestMemory,
    /// Whether the daemon's own pages are locked in memory.
    pub lock_memory: bool,
    /// The seccomp filter's action.
    pub seccomp: SeccompMode,
    /// Which lines are written: those of this level and above, or none.
    pub log_level: Option<LogLevel>,
}

/// Where a guest's front-end comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A socket that the daemon makes at this path.
    Path(PathBuf),
    /// A socket that was handed in as this fd; and the option or variable that names it.
    Fd(RawFd, &'static str),
}

/// A group of users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Group {
    /// By its number.
    Number(u32),
    /// By its name in `/etc/group`.
    Name(OsString),
}

/// Bounds of a transfer.
#[derive(Debug, Clone, Copy)]
pub struct TransferConfig {
    /// Most bytes.
    pub max_len: u64,
    /// Most milliseconds on the wire.
    pub max_ms: u64,
    /// Most milliseconds on the wire of one of the messages that a transfer is cut into.
    pub max_message_ms: u64,
}

/// The files that guest memory may be in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum GuestMemory {
    /// Those that live in memory: memfd, tmpfs, hugetlbfs. An access to a page waits for no other program.
    #[default]
    Sealed,
    /// All that can be mapped shared. An access to a page may wait for ever, for a disk or another program.
    Any,
}

/// The seccomp filter's action on a system call that is not in its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeccompMode {
    /// It ends the process.
    Kill,
    /// The kernel logs it.
    Log,
    /// There is no filter.
    None,
}

/// How much a line matters, in syslog's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// The daemon, a socket or a request fails.
    Error = 3,
    /// A refused request or message, or less protection than there could be.
    Warning = 4,
    /// A socket listens, a front-end came or left.
    Info = 6,
}

impl LogLevel {
    /// syslog's number, as in `LOG_ERR`, `LOG_WARNING` and `LOG_INFO`.
    #[allow(clippy::as_conversions, reason = "the numbers are below 8")]
    pub const fn priority(self) -> u8 {
        self as u8
    }
}

/// The meaning of `cs_change` 0 for a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldPolicy {
    /// Chip select stays asserted between requests that are queued together.
    Queued,
    /// Chip select stays asserted until the next request.
    Spec,
    /// Chip select stays asserted from a request that only writes to one that only reads.
    WriteRead,
}

/// A guest's number: the place of its socket in the order of the command line, from 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GuestNumber(u8);

impl GuestNumber {
    /// The guest at `index`, if there can be so many.
    pub fn new(index: usize) -> Option<Self> {
        let number = u8::try_from(index).ok()?;
        (index < MAX_GUESTS).then_some(Self(number))
    }

    /// All possible numbers, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..MAX_GUESTS).filter_map(Self::new)
    }

    /// Its index among all guests.
    pub fn index(self) -> usize {
        self.0.into()
    }

    /// As a byte.
    pub fn byte(self) -> u8 {
        self.0
    }

    /// Whether its bit is set in `guests`.
    pub fn is_in(self, guests: u64) -> bool {
        guests >> self.0 & 1 != 0
    }
}

impl fmt::Display for GuestNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A device and its options.
#[derive(Debug, Clone, Default)]
pub struct DeviceConfig {
    /// As on the command line.
    pub name: String,
    /// Its path; `start` replaces a directory of sysfs by the path of the node.
    pub path: DevicePath,
    /// X and Y of `/dev/spidevX.Y`, whatever the node is called; `start` finds them.
    pub numbers: Option<(u32, u32)>,
    /// Guests that may use it, a bit each.
    pub guests: u64,
    /// Highest clock in Hz.
    pub max_speed_hz: Option<u32>,
    /// Lowest clock in Hz.
    pub min_speed_hz: u32,
    /// Whether guests may choose the polarity of chip select.
    pub cs_high: Option<bool>,
    /// Whether guests may loop the controller back.
    pub loop_mode: Option<bool>,
    /// Whether the controller carries out delays between words.
    pub word_delay: bool,
    /// Whether the controller carries out setup delays.
    pub cs_setup: bool,
    /// Whether nobody else uses the controller.
    pub exclusive_bus: bool,
    /// The chip, if `chip=` was given.
    pub chip: Option<ChipConfig>,
    /// Faults of the loopback.
    pub faults: Faults,
}

/// Faults of the loopback, for tests of guests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Every n-th transfer fails.
    pub fail_every: Option<u32>,
    /// By how much each answer is delayed.
    pub delay: Option<Duration>,
}

/// What is known of a chip, and who may do what with it.
#[derive(Debug, Clone, Default)]
pub struct ChipConfig {
    /// Its command set.
    pub kind: ChipKind,
    /// Bytes of an address; of NOR flash, after power-up or reset.
    pub address_bytes: u8,
    /// Guests that may only read, a bit each.
    pub read_only: u64,
    /// Opcodes that nobody may send.
    pub deny: Vec<u8>,
    /// How long chip select is held in the middle of a command.
    pub timeout: Duration,
}

/// A kind of chip.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ChipKind {
    /// SPI NOR flash.
    #[default]
    Nor,
    /// 23K256 and compatible SRAM.
    Sram,
    /// AT25 and compatible EEPROM.
    Eeprom,
}

impl DeviceConfig {
    /// The option that gave it, for errors, and its node if that has another name.
    pub fn option(&self) -> String {
        let (name, path) = (&self.name, self.path.to_string());
        let is_named = path == *name;
        let which = if is_named {
            String::new()
        } else {
            format!(", which is '{path}'")
        };
        format!("option '--device': '{name}'{which}")
    }

    /// The device at `path` for `guests`, without options.
    pub fn new(path: DevicePath, guests: u64) -> Self {
        Self {
            name: path.to_string(),
            path,
            guests,
            ..Self::default()
        }
    }
}

/// Which device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum DevicePath {
    /// A spidev.
    Spidev(PathBuf),
    /// The built-in one.
    #[default]
    Loopback,
}

impl fmt::Display for DevicePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spidev(path) => f.write_str(&path.to_string_lossy()),
            Self::Loopback => f.write_str("loopback"),
        }
    }
}

impl Config {
    /// How long a guest may hold chip select.
    pub fn hold_timeout(&self, policy: HoldPolicy) -> Duration {
        let default = match policy {
            HoldPolicy::Queued | HoldPolicy::Spec => DEFAULT_HOLD_MS,
            HoldPolicy::WriteRead => DEFAULT_READ_HOLD_MS,
        };
        Duration::from_millis(self.hold_timeout_ms.unwrap_or(default))
    }
}

/// Decimal digits and nothing else: `from_str` would also take a sign.
pub fn digits(value: &OsStr) -> Option<u64> {
    let text = value.to_str()?;
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}
