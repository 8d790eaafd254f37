// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Errors, sorted by whom they cost.
//!
//! | type | cause | consequence |
//! |---|---|---|
//! | [`ParamError`] | driver | `PARAM_ERR` in the result byte, or used length 0 where there is none; the queue goes on |
//! | [`TransferError`] | host or wire | `TRANS_ERR` in the result byte, the queue goes on |
//! | [`RingError`] | driver | that vring stops, its err eventfd is signalled |
//! | [`SessionError`] | front-end | the connection ends, the socket listens again |
//! | [`Fatal`] | host or administrator | one line on stderr and an exit code |
//!
//! There is no `From` between them: each conversion is written out.

use std::fmt;
use std::io;

use vhost::vhost_user::Error;
use vhost::vhost_user::message::FrontendReq as RequestCode;

use crate::config::LogLevel;

/// Declares an error: its variants, each with its text.
macro_rules! errors {
    (
        $(#[$attribute:meta])*
        $error:ident {
            $(
                $(#[$doc:meta])*
                $variant:ident $(($($field:ident: $kind:ty),+))? => $text:literal $(, $argument:expr)?;
            )*
        }
    ) => {
        $(#[$attribute])*
        pub enum $error {
            $($(#[$doc])* $variant $(($($kind),+))?,)*
        }

        impl fmt::Display for $error {
            #[allow(unused_variables, reason = "a text need not show every field")]
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$variant $(($($field),+))? => write!(f, $text $(, $argument)?),)*
                }
            }
        }
    };
}

errors! {
    /// Why a request was refused before it touched the bus: answered `PARAM_ERR`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    ParamError {
        /// The chain is malformed or has no result byte in memory, device-readable bytes came after
        /// device-writable ones, or there are fewer than the 32 of the head.
        Malformed => "no whole head at the start, or no result byte at the end";
        /// More segments than a request may have.
        TooManySegments =>
            "more than 1024 segments: a buffer counts once for each memory region that it lies in";
        /// A buffer lies outside the guest's memory.
        Address(address: u64) => "buffer at {address:#x} is outside guest memory";
        /// `chip_select_id` names no device of this guest.
        ChipSelect(id: u8) => "this guest has no chip select {id}";
        /// `bits_per_word` is 0, above 32 or not supported by the device.
        BitsPerWord(bits: u8) => "bits_per_word {bits} is not supported";
        /// `tx_nbits` or `rx_nbits` is not a lane count that the device has.
        Nbits(nbits: u8) => "tx_nbits or rx_nbits {nbits} is not supported";
        /// The mode bits that are unknown, unsupported or not allowed.
        Mode(bits: u32) =>
            "mode bits {bits:#x} are not supported or not allowed{}", option_for(*bits);
        /// The SPI mode is one in which a chip would see each bit half a clock late.
        ChipMode(mode: u32) => "SPI mode {mode} is not allowed: chip= has 0 and 3";
        /// `freq` is above the device's limit or below its floor; all in Hz.
        Frequency(asked: u32, min: u32, max: u32) =>
            "freq {asked} Hz is not allowed: 0 or {min} to {max} Hz are";
        /// One of the delays, in nanoseconds, is above what the config space offers.
        Delay(ns: u32) => "a delay of {ns} ns is longer than the device offers";
        /// `cs_change` is neither 0 nor 1.
        CsChange(value: u8) => "cs_change {value} is neither 0 nor 1";
        /// Both buffers are there and their lengths in bytes differ.
        Duplex(tx: u64, rx: u64) => "tx of {tx} bytes and rx of {rx} differ in length";
        /// Both buffers are there, and the device has one data line for both directions.
        HalfDuplex => "tx and rx at once on a half-duplex device";
        /// Neither tx nor rx.
        NoPayload => "neither tx nor rx";
        /// The length in bytes is not a multiple of the word size.
        PartialWord(len: u64) => "{len} bytes are not whole words";
        /// More bytes than `--max-transfer-len`.
        TooLong(len: u64) => "{len} bytes are above --max-transfer-len";
        /// More milliseconds on the wire than `--max-transfer-ms`.
        TooSlow => "takes longer on the wire than --max-transfer-ms allows";
        /// More milliseconds for one word, with the delays of its message, than `--max-message-ms`.
        SlowWord =>
            "one word and the delays take longer on the wire than --max-message-ms allows";
        /// It needs chip select held between messages, and the controller has devices that are not
        /// this daemon's: the name of one.
        SharedBus(name: &'static str) =>
            "needs chip select held, but {name} on its controller is not ours: give this daemon that \
             one too, raise spidev.bufsiz or --max-message-ms, or set exclusive-bus=on";
        /// An opcode that the guest may not send, and why.
        Opcode(opcode: u8, why: &'static str) => "opcode {opcode:#04x} {why}";
        /// It sends nothing where `read-only=` or `deny=` needs an opcode to check.
        NoOpcode => "nothing is sent where read-only= or deny= needs an opcode";
        /// An opcode that `read-only=` or `deny=` has to check is sent on several lanes, or data with it
        /// is received so.
        OpcodeNbits(nbits: u8) =>
            "tx_nbits or rx_nbits {nbits} with an opcode, which read-only= and deny= need on one lane";
    }
}

/// The device option that allows a mode bit, for its error.
fn option_for(mode_bits: u32) -> &'static str {
    match mode_bits {
        0x4 => ": CS_HIGH, see the device option cs-high=",
        0x10 => ": LOOP, see the device option loop=",
        _ => "",
    }
}

errors! {
    /// Why a request that was valid was not carried out, or not to its end: answered `TRANS_ERR`.
    #[derive(Debug)]
    TransferError {
        /// The SPI ioctl failed.
        Ioctl(error: io::Error) => "{error}";
        /// The ioctl reported fewer bytes than the message has.
        Short(len: i32) => "the kernel reports {len} bytes, which is not all";
        /// The session stopped, or its memory or ring changed, in the middle of it.
        Aborted => "its ring or connection ended or changed";
        /// It would have continued an assertion of chip select that ran out, or ended for other guests.
        HoldLost =>
            "chip select, which it would have found asserted, was released before: \
             --cs-hold-timeout-ms was over, or others waited for --max-transfer-ms";
        /// A device of its bus is selected and cannot be released.
        Stuck => "a device of its controller is selected and cannot be released";
        /// Its buffers vanished from the guest's memory.
        Memory => "its buffers are no longer in guest memory";
        /// Not even one further word of it fits a message.
        NoMessage => "spidev.bufsiz holds not even one word of it";
        /// The loopback was told to fail it.
        Injected => "failed on purpose: device option fail=";
    }
}

impl TransferError {
    /// Whether the device is gone or suspended.
    pub fn is_shutdown(&self) -> bool {
        matches!(self, Self::Ioctl(error) if error.raw_os_error() == Some(libc::ESHUTDOWN))
    }

    /// The log level: error if the device failed, info if the front-end ended the transfer.
    pub fn level(&self) -> LogLevel {
        match self {
            Self::Ioctl(_) | Self::Short(_) | Self::Stuck | Self::NoMessage => LogLevel::Error,
            Self::HoldLost | Self::Memory | Self::Injected => LogLevel::Warning,
            Self::Aborted => LogLevel::Info,
        }
    }
}

errors! {
    /// The driver broke the rules of the ring itself: the vring stops.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    RingError {
        /// The available index is further ahead than the ring is long.
        AvailIndex(index: u16) => "avail index jumped to {index}, by more than the ring holds";
        /// A chain's head is not an index of the descriptor table.
        Head(head: u16) => "chain head {head} is beyond the descriptor table";
        /// Part of the ring is no longer in the guest's memory.
        Memory => "part of the ring is outside guest memory";
    }
}

errors! {
    /// Why a connection ends.
    #[derive(Debug)]
    SessionError {
        /// The front-end closed the connection.
        Disconnected => "front-end left";
        /// The daemon ends.
        Shutdown => "the daemon ends";
        /// A message that is not allowed, with the header's request code.
        Message(code: u32, why: &'static str) => "message {code} {why}";
        /// It sent fds that do not belong there.
        Fds(why: &'static str) => "fds {why}";
        /// It sent this many fds that were left open, since their close could wait for ever.
        LeftOpen(count: u32) =>
            "fd of a file whose close may wait (FUSE, a network or unknown file system): left open; \
             guest memory must be a memfd or a file on tmpfs or hugetlbfs, see --guest-memory";
        /// The kernel does not take its fds, to close them: too many files are in flight.
        Uncollected => "too many files of the daemon's user are in flight";
        /// Silent for a second in the middle of a message.
        Silent => "front-end was silent in the middle of a message";
        /// It filled its call or err eventfd and made it blocking.
        CallBlocked => "call or err eventfd is full and blocking";
        /// Its call or err fd cannot be written to.
        NotNotified(error: io::Error) => "call or err cannot be written to: {error}";
        /// It truncated a file of its guest's memory.
        Truncated => "guest memory was truncated";
        /// The `vhost` crate, or one of our handlers through it, refused the message.
        Vhost(request: RequestCode, error: Error) => "message refused: {error} ({request:?})";
        /// The host refused a system call that the session needs.
        Host(error: io::Error) => "{error}";
    }
}

impl SessionError {
    /// Whether the connection ends in the usual way, which is no warning in the log.
    pub fn is_in_order(&self) -> bool {
        matches!(self, Self::Disconnected | Self::Shutdown)
    }

    /// The `SessionError` for an error of the `vhost` crate with this request.
    pub fn of_vhost(request: RequestCode, error: Error) -> Self {
        if matches!(error, Error::Disconnected) {
            return Self::Disconnected;
        }
        if matches!(&error, Error::ReqHandlerError(cause) if cause.kind() == io::ErrorKind::Interrupted)
        {
            return Self::CallBlocked;
        }
        Self::Vhost(request, error)
    }
}

/// An exit code of sysexits.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitCode {
    /// `EX_USAGE`: the command line is wrong.
    Usage = 64,
    /// `EX_NOINPUT`: a device is not there, or is not a spidev.
    NoInput = 66,
    /// `EX_UNAVAILABLE`: another process has the device or socket.
    Unavailable = 69,
    /// `EX_OSERR`: the host refused a system call.
    OsError = 71,
    /// `EX_CANTCREAT`: a socket cannot be made.
    CantCreate = 73,
    /// `EX_IOERR`: the text of `--help` or the like cannot be written to stdout.
    IoError = 74,
    /// `EX_NOPERM`: a device or socket directory may not be used.
    NoPermission = 77,
    /// `EX_CONFIG`: a device cannot be served as configured.
    Config = 78,
}

impl ExitCode {
    /// The number that the process exits with.
    #[allow(clippy::as_conversions, reason = "the numbers are below 256")]
    pub const fn number(self) -> u8 {
        self as u8
    }
}

/// The daemon cannot start or go on: one line on stderr and an exit code.
#[derive(Debug)]
pub struct Fatal {
    /// The subject and what is wrong with it, in lower case, without a final full stop.
    pub message: String,
    /// The process's exit code.
    pub code: ExitCode,
}

impl Fatal {
    /// A fatal error of class `code`, described by `message`.
    #[cold]
    pub fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            code,
        }
    }

    /// A system call that failed on `subject`: exit code `code`, or `NoPermission` if permission was denied.
    #[cold]
    pub fn os(code: ExitCode, subject: impl fmt::Display, error: &io::Error) -> Self {
        let denied = error.kind() == io::ErrorKind::PermissionDenied;
        let code = if denied { ExitCode::NoPermission } else { code };
        Self::new(code, format!("{subject}: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_seldom_come_say_what_they_are_about() {
        for (error, words) in [
            (ParamError::TooManySegments.to_string(), "segments"),
            (ParamError::HalfDuplex.to_string(), "half-duplex"),
            (TransferError::Memory.to_string(), "guest memory"),
            (RingError::Head(7).to_string(), "head 7"),
            (RingError::Memory.to_string(), "guest memory"),
            (
                SessionError::NotNotified(io::ErrorKind::BrokenPipe.into()).to_string(),
                "call or err cannot be written to: ",
            ),
        ] {
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn of_vhost_tells_an_end_and_a_blocked_eventfd_from_a_refusal() {
        let of = |error| SessionError::of_vhost(RequestCode::SET_OWNER, error);
        assert!(matches!(
            of(Error::Disconnected),
            SessionError::Disconnected
        ));
        let blocked = Error::ReqHandlerError(io::ErrorKind::Interrupted.into());
        assert!(matches!(of(blocked), SessionError::CallBlocked));
        let refused = Error::ReqHandlerError(io::ErrorKind::Other.into());
        assert!(matches!(of(refused), SessionError::Vhost(..)));
        let refused = of(Error::InvalidParam).to_string();
        assert_eq!(refused, "message refused: invalid parameters (SET_OWNER)");
    }
}
