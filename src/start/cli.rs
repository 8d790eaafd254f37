// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line: arguments in, with what the environment adds, a [`Config`] or a usage error
//! out.
//!
//! Every option takes its value as `--opt=value` or `--opt value`, those with a short form also as
//! `-oVALUE`, `-o=VALUE` or `-o VALUE`. Must not: touch files, sockets or the process.

use std::cmp::Reverse;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use crate::config::{
    Config, GuestMemory, HoldPolicy, LogLevel, MAX_MESSAGE_MS, SeccompMode, TransferConfig, digits,
};
use crate::confine::seccomp;
use crate::error::{ExitCode, Fatal};
use crate::start::environment::{self, Variables};

mod chip;
mod device;
mod sockets;

const HELP: &str = include_str!("help.txt");
const VERSION: &str = concat!("vhost-device-spi ", env!("CARGO_PKG_VERSION"), "\n");
/// By QEMU's conventions for back-ends.
const CAPABILITIES: &str = "{\n  \"type\": \"spi\"\n}\n";

/// The command that the command line gives.
#[derive(Debug)]
pub enum Command {
    /// Serve.
    Run(Config),
    /// Print this text.
    Print(String),
}

/// How an option is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// With a value, once.
    Once,
    /// With a value, as often as wanted.
    Repeated,
    /// Alone.
    Flag,
}

use Form::{Flag, Once, Repeated};

/// Long form, short form, and how it is given.
const OPTIONS: [(&str, Option<u8>, Form); 22] = [
    ("socket-path", Some(b's'), Once),
    ("socket-count", Some(b'c'), Once),
    ("socket", None, Repeated),
    ("fd", None, Repeated),
    ("socket-fd", None, Repeated),
    ("socket-mode", None, Once),
    ("socket-group", None, Once),
    ("device", Some(b'l'), Repeated),
    ("cs-hold", None, Repeated),
    ("cs-hold-timeout-ms", None, Once),
    ("max-transfer-len", None, Once),
    ("max-transfer-ms", None, Once),
    ("max-message-ms", None, Once),
    ("poll-us", None, Once),
    ("guest-memory", None, Once),
    ("lock-memory", None, Flag),
    ("seccomp", None, Once),
    ("log-level", None, Once),
    ("print-syscalls", None, Flag),
    ("print-capabilities", None, Flag),
    ("help", Some(b'h'), Flag),
    ("version", Some(b'V'), Flag),
];

impl Command {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// One line that names the option or variable, the value and what is wrong with it.
    pub fn parse(
        arguments: impl Iterator<Item = OsString>,
        variables: Variables<'_>,
    ) -> Result<Self, Fatal> {
        let arguments: Vec<OsString> = arguments.collect();
        // QEMU's conventions: everything else is ignored.
        if arguments.iter().any(|a| a == "--print-capabilities") {
            return Ok(Self::Print(CAPABILITIES.to_owned()));
        }
        let mut options = Options(Vec::new());
        let mut arguments = arguments.iter().map(OsString::as_os_str);
        while let Some(argument) = arguments.next() {
            let (given, form) = split(argument, &mut arguments)?;
            match given.option {
                "help" => return Ok(Self::Print(HELP.to_owned())),
                "version" => return Ok(Self::Print(VERSION.to_owned())),
                "print-syscalls" => return Ok(Self::Print(seccomp::names().join(" ") + "\n")),
                option if form == Once && options.get(option).is_some() => {
                    return Err(usage(format!("option '--{option}' given twice")));
                }
                _ => options.0.push(given),
            }
        }
        options.config(variables).map(Self::Run)
    }
}

/// As [`Command::parse`], for a command line that is known to serve.
///
/// # Errors
/// As there, and for `--help` and `--version`.
#[cfg(test)]
pub(crate) fn parse_config<T: Into<OsString>>(
    arguments: impl IntoIterator<Item = T>,
) -> Result<Config, Fatal> {
    let arguments = arguments.into_iter().map(Into::into);
    match Command::parse(arguments, &|_| None)? {
        Command::Run(config) => Ok(config),
        Command::Print(_) => Err(usage("serves nobody")),
    }
}

/// Splits one argument into option and value, taking the value from `rest` where it stands alone.
fn split<'a>(
    argument: &'a OsStr,
    rest: &mut impl Iterator<Item = &'a OsStr>,
) -> Result<(Given<'a>, Form), Fatal> {
    let bytes = argument.as_bytes();
    let shown = argument.to_string_lossy();
    let (option, attached) = if let Some(long) = bytes.strip_prefix(b"--") {
        let mut parts = long.splitn(2, |&b| b == b'=');
        let name = parts.next().unwrap_or_default();
        let option = OPTIONS.iter().find(|o| o.0.as_bytes() == name);
        (option, parts.next())
    } else if let Some([short, value @ ..]) = bytes.strip_prefix(b"-") {
        let option = OPTIONS.iter().find(|o| o.1 == Some(*short));
        // `-s=PATH` is `-sPATH`, as the sibling daemons' parser has it.
        let value = (!value.is_empty()).then(|| value.strip_prefix(b"=").unwrap_or(value));
        (option, value)
    } else {
        return Err(usage(format!("unexpected argument '{shown}'")));
    };
    let &(option, _, form) = option.ok_or_else(|| unknown(argument))?;
    let value = match (form, attached) {
        (Flag, None) => OsStr::new(""),
        (Flag, Some(_)) => return Err(usage(format!("option '{shown}' takes no value"))),
        (Once | Repeated, Some(value)) => OsStr::from_bytes(value),
        (Once | Repeated, None) => rest
            .next()
            .ok_or_else(|| usage(format!("option '{shown}' needs a value")))?,
    };
    Ok((Given { option, value }, form))
}

/// The error of an unknown option. It names the option that was meant: the shortest of those that
/// begin with most of the same letters, at least three.
#[cold]
fn unknown(argument: &OsStr) -> Fatal {
    let given = argument.as_bytes().strip_prefix(b"--").unwrap_or_default();
    let alike = |long: &str| long.bytes().zip(given).take_while(|(a, b)| a == *b).count();
    let meant = OPTIONS
        .iter()
        .map(|(long, ..)| (alike(long), Reverse(long.len()), long))
        .max()
        .filter(|(alike, ..)| *alike >= 3);
    let shown = argument.to_string_lossy();
    usage(match meant {
        None => format!("unknown option '{shown}'; see --help"),
        Some((.., long)) => format!("unknown option '{shown}'; did you mean '--{long}'?"),
    })
}

/// The options that were given, in their order.
struct Options<'a>(Vec<Given<'a>>);

impl<'a> Options<'a> {
    /// The option with this long form, if it was given.
    fn get(&self, option: &str) -> Option<&Given<'a>> {
        self.0.iter().find(|given| given.option == option)
    }

    /// The same, with the value that it has by default if it was not given.
    fn get_or(&self, option: &'static str, default: &'static str) -> Given<'a> {
        let value = default.as_ref();
        let given = self.get(option).copied();
        given.unwrap_or(Given { option, value })
    }

    /// All options with this long form.
    fn all(&self, option: &str) -> impl Iterator<Item = &Given<'a>> {
        self.0.iter().filter(move |given| given.option == option)
    }

    fn config(&self, variables: Variables<'_>) -> Result<Config, Fatal> {
        let number = |option, default, min, max| self.get_or(option, default).number(min, max);
        let timeout = |given: &Given| given.number(1, 60_000);
        let mut config = Config {
            socket_mode: self.get_or("socket-mode", "600").mode()?,
            socket_group: self.get("socket-group").map(Given::group).transpose()?,
            hold_timeout_ms: self.get("cs-hold-timeout-ms").map(timeout).transpose()?,
            transfers: TransferConfig {
                max_len: number("max-transfer-len", "4194304", 1, u32::MAX.into())?,
                max_ms: number("max-transfer-ms", "10000", 1, 86_400_000)?,
                max_message_ms: number("max-message-ms", "100", 1, MAX_MESSAGE_MS)?,
            },
            poll: Duration::from_micros(number("poll-us", "0", 0, 100_000)?),
            guest_memory: self.get_or("guest-memory", "sealed").guest_memory()?,
            lock_memory: self.get("lock-memory").is_some(),
            seccomp: self.get_or("seccomp", "kill").seccomp()?,
            log_level: self.get_or("log-level", "info").log_level()?,
            guests: self.sources(environment::listen_fds(variables)?)?,
            notify_socket: variables("NOTIFY_SOCKET"),
            alive_every: environment::alive_every(variables)?,
            devices: Vec::new(),
            hold_policies: Vec::new(),
        };
        let guests = config.guests.len();
        // In the middle of a chip's command, as with the policies that do not guess.
        let timeout = config.hold_timeout(HoldPolicy::Spec);
        config.devices = self.devices(guests)?;
        for chip in config.devices.iter_mut().filter_map(|d| d.chip.as_mut()) {
            chip.timeout = timeout;
        }
        config.hold_policies = self.hold_policies(guests)?;
        Ok(config)
    }
}

#[cold]
fn usage(message: impl Into<String>) -> Fatal {
    Fatal::new(ExitCode::Usage, message)
}

/// The number that `value` is in plain digits, if it is one from `min` to `max`.
fn number_in<T: TryFrom<u64>>(value: &OsStr, min: u64, max: u64) -> Option<T> {
    let number = digits(value).filter(|number| (min..=max).contains(number))?;
    number.try_into().ok()
}

/// An option with its value.
#[derive(Debug, Clone, Copy)]
struct Given<'a> {
    /// Its long form.
    option: &'static str,
    value: &'a OsStr,
}

impl Given<'_> {
    #[cold]
    fn bad(&self, why: &str) -> Fatal {
        let (option, value) = (self.option, self.value.to_string_lossy());
        usage(format!("option '--{option}': '{value}' {why}"))
    }

    fn number<T: TryFrom<u64>>(&self, min: u64, max: u64) -> Result<T, Fatal> {
        let number = number_in(self.value, min, max);
        number.ok_or_else(|| self.bad(&format!("is not a number from {min} to {max}")))
    }

    fn guest_memory(&self) -> Result<GuestMemory, Fatal> {
        match self.value.as_bytes() {
            b"sealed" => Ok(GuestMemory::Sealed),
            b"any" => Ok(GuestMemory::Any),
            _ => Err(self.bad("is neither sealed nor any")),
        }
    }

    fn seccomp(&self) -> Result<SeccompMode, Fatal> {
        match self.value.as_bytes() {
            b"kill" => Ok(SeccompMode::Kill),
            b"log" => Ok(SeccompMode::Log),
            b"none" => Ok(SeccompMode::None),
            _ => Err(self.bad("is none of kill, log and none")),
        }
    }

    fn log_level(&self) -> Result<Option<LogLevel>, Fatal> {
        match self.value.as_bytes() {
            b"off" => Ok(None),
            b"error" => Ok(Some(LogLevel::Error)),
            b"warning" | b"warn" => Ok(Some(LogLevel::Warning)),
            b"info" => Ok(Some(LogLevel::Info)),
            _ => Err(self.bad("is none of off, error, warning (or warn) and info")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::device::guests;
    use super::*;
    use crate::config::{DevicePath, Source};

    fn parse(line: &[&str]) -> Result<Config, String> {
        parse_config(line).map_err(|fatal| {
            assert_eq!(fatal.code, ExitCode::Usage);
            fatal.message
        })
    }

    #[test]
    fn parse_all_forms_of_an_option_are_the_same() {
        for line in [
            &["--socket-path=s", "--device=d"][..],
            &["--socket-path", "s", "--device", "d"],
            &["-ss", "-ld"],
            &["-s=s", "-l=d"],
            &["-s", "s", "-l", "d"],
        ] {
            let config = parse(line).unwrap();
            assert_eq!(config.guests, [Source::Path("s0".into())]);
            assert_eq!(config.devices[0].path, DevicePath::Spidev("d".into()));
            assert_eq!(config.seccomp, SeccompMode::Kill);
        }
    }

    #[test]
    fn parse_each_guest_has_a_numbered_socket() {
        let config = parse(&["-s", "/run/spi", "-c12", "-l", "loopback"]).unwrap();
        assert_eq!(config.guests.len(), 12);
        assert_eq!(config.guests[11], Source::Path("/run/spi11".into()));
    }

    #[test]
    fn parse_wrong_lines_name_option_and_value() {
        let good = ["-s", "s", "-l", "d"];
        for (more, message) in [
            (
                &["--sockets=3"][..],
                "unknown option '--sockets=3'; did you mean '--socket'?",
            ),
            (
                &["--print-capabilites"],
                "unknown option '--print-capabilites'; did you mean '--print-capabilities'?",
            ),
            (&["--foo"], "unknown option '--foo'; see --help"),
            (&["-x"], "unknown option '-x'; see --help"),
            (&["x"], "unexpected argument 'x'"),
            (&["-"], "unexpected argument '-'"),
            (&["--"], "unknown option '--'; see --help"),
            (&["-c"], "option '-c' needs a value"),
            (
                &["-c0"],
                "option '--socket-count': '0' is not a number from 1 to 64",
            ),
            (
                &["-c65"],
                "option '--socket-count': '65' is not a number from 1 to 64",
            ),
            (
                &["-c+1"],
                "option '--socket-count': '+1' is not a number from 1 to 64",
            ),
            (
                &["-c", "1x"],
                "option '--socket-count': '1x' is not a number from 1 to 64",
            ),
            (&["-c1", "-c1"], "option '--socket-count' given twice"),
            (&["-s", "t"], "option '--socket-path' given twice"),
            (
                &["--seccomp=off"],
                "option '--seccomp': 'off' is none of kill, log and none",
            ),
            (
                &["--log-level=debug"],
                "option '--log-level': 'debug' is none of off, error, warning (or warn) and info",
            ),
            (
                &["--log-level=info", "--log-level=info"],
                "option '--log-level' given twice",
            ),
            (&["--help=yes"], "option '--help=yes' takes no value"),
            (&["-l", "d"], "option '--device': 'd' given twice"),
            (&["-l", ""], "option '--device': '' names no device"),
            (
                &["-l", "e,max-speed-hz=0"],
                "option '--device': 'e,max-speed-hz=0' has 'max-speed-hz=0', which is not a clock \
                 in Hz up to 4294967295, in plain digits",
            ),
            (
                &["-l", "e,min-speed-hz=10M"],
                "option '--device': 'e,min-speed-hz=10M' has 'min-speed-hz=10M', which is not a \
                 clock in Hz up to 4294967295, in plain digits",
            ),
            (
                &["-l", "e,cs-high=yes"],
                "option '--device': 'e,cs-high=yes' has 'cs-high=yes', which is neither on nor off",
            ),
            (
                &["-l", "e,speed=1"],
                "option '--device': 'e,speed=1' has 'speed=1', which is not an option of a device; \
                 those are guests, max-speed-hz, min-speed-hz, cs-high, loop, word-delay, cs-setup, \
                 exclusive-bus, chip, address-bytes, read-only, deny, fail and delay-ms",
            ),
            (
                &["-l", "e,/dev/spidev0.1"],
                "option '--device': 'e,/dev/spidev0.1' names two devices; repeat the option for \
                 each",
            ),
            (
                &["-l", "e,loopback"],
                "option '--device': 'e,loopback' names two devices; repeat the option for each",
            ),
            (
                &["-l", "e,guests=0,1"],
                "option '--device': 'e,guests=0,1' has a list of guests with a comma; write '+', \
                 as in 0+3-5",
            ),
            (
                &["-l", "e,guests=a"],
                "option '--device': 'e,guests=a' has 'guests=a', which is not a list of guests, \
                 such as 0, 0-2 or 0+3-5",
            ),
            (
                &["-l", "e,chip=nor,read-only=0,1"],
                "option '--device': 'e,chip=nor,read-only=0,1' has a list of guests with a comma; \
                 write '+', as in 0+3-5",
            ),
            (
                &["--cs-hold=0,1:spec"],
                "option '--cs-hold': '0,1:spec' has a list of guests with a comma; write '+', as \
                 in 0+3-5",
            ),
            (
                &["--cs-hold=x:spec"],
                "option '--cs-hold': 'x:spec' has 'x', which is not a list of guests, such as 0, \
                 0-2 or 0+3-5",
            ),
            (
                &["-l", "e,guests=1"],
                "option '--device': 'e' is for guest 1, but the only guest is 0; add a socket for it \
                 (--socket-count, --socket, --fd)",
            ),
            (
                &["--cs-hold=3:spec"],
                "option '--cs-hold': '3:spec' is for guest 3, but the only guest is 0; add a socket for it \
                 (--socket-count, --socket, --fd)",
            ),
            (
                &["-l", "e,guests=0-63"],
                "option '--device': 'e' is for guest 63, but the only guest is 0; add a socket for it \
                 (--socket-count, --socket, --fd)",
            ),
            (
                &["--cs-hold=0-63:spec"],
                "option '--cs-hold': '0-63:spec' is for guest 63, but the only guest is 0; add a socket for it \
                 (--socket-count, --socket, --fd)",
            ),
            (
                &["-l", "e,max-speed-hz=10000000,max-speed-hz=1000"],
                "option '--device': 'e,max-speed-hz=10000000,max-speed-hz=1000' has \
                 'max-speed-hz' twice",
            ),
            (
                &["--cs-hold=never"],
                "option '--cs-hold': 'never' is none of queued, spec and write-read",
            ),
        ] {
            let line: Vec<&str> = good.iter().chain(more).copied().collect();
            assert_eq!(parse(&line).unwrap_err(), message);
        }
        assert_eq!(
            parse(&["-l", "d"]).unwrap_err(),
            "no socket: one of the options '--socket-path', '--socket', '--fd' and '--socket-fd' \
             is missing; see --help"
        );
        assert_eq!(
            parse(&["-s", "s"]).unwrap_err(),
            "option '--device' is missing; see --help"
        );
        assert_eq!(
            parse(&["-s", "s", "-c2", "-l", "d,guests=0"]).unwrap_err(),
            "option '--device': no device for guest 1; add it to the guests= of one"
        );
        let two_guests = ["-s", "s", "-c2", "-l", "d,guests=0-2"];
        assert_eq!(
            parse(&two_guests).unwrap_err(),
            "option '--device': 'd' is for guest 2, but the guests are 0 to 1; add a socket for it \
             (--socket-count, --socket, --fd)"
        );
        for (name, level) in [
            ("off", None),
            ("error", Some(LogLevel::Error)),
            ("warn", Some(LogLevel::Warning)),
            ("warning", Some(LogLevel::Warning)),
            ("info", Some(LogLevel::Info)),
        ] {
            let option = format!("--log-level={name}");
            let config = parse(&["-s", "s", "-l", "d", &option]).unwrap();
            assert_eq!(config.log_level, level);
        }
    }

    #[test]
    fn parse_more_than_16_devices_are_refused() {
        let mut line = vec!["-s", "s"];
        line.extend(["-l", "loopback"].repeat(17));
        assert_eq!(
            parse(&line).unwrap_err(),
            "option '--device' given 17 times, at most 16"
        );
    }

    #[test]
    fn parse_options_of_a_device() {
        let options = "max-speed-hz=1000,min-speed-hz=10,cs-high=on,loop=off,word-delay=on";
        let config = parse(&["-s", "s", "-l", &format!("d,{options}")]).unwrap();
        let device = &config.devices[0];
        assert_eq!(device.max_speed_hz, Some(1000));
        assert_eq!(device.min_speed_hz, 10);
        let lowest = parse(&["-s", "s", "-l", "d,min-speed-hz=0"]).unwrap();
        assert_eq!(lowest.devices[0].min_speed_hz, 0, "its default");
        assert_eq!(device.cs_high, Some(true));
        assert_eq!(device.loop_mode, Some(false));
        assert!(device.word_delay && !device.cs_setup && !device.exclusive_bus);
    }

    #[test]
    fn guests_lists_and_ranges() {
        assert_eq!(guests("0"), Some(1));
        assert_eq!(guests("0-2"), Some(0b111));
        assert_eq!(guests("0+3-5"), Some(0b11_1001));
        assert_eq!(guests("63"), Some(1 << 63));
        assert_eq!(guests("0-63"), Some(u64::MAX));
        for wrong in ["", "64", "2-1", "1-", "-1", "a", "1-2-3", "1+"] {
            assert_eq!(guests(wrong), None);
        }
    }

    #[test]
    fn hold_policies_of_some_guests() {
        let line = [
            "-s",
            "s",
            "-c4",
            "-l",
            "d",
            "--cs-hold=spec",
            "--cs-hold=1-2:write-read",
        ];
        let config = parse(&line).unwrap();
        let (spec, guess) = (HoldPolicy::Spec, HoldPolicy::WriteRead);
        assert_eq!(config.hold_policies, [spec, guess, guess, spec]);
        assert_eq!(config.hold_timeout(spec), Duration::from_millis(100));
        assert_eq!(config.hold_timeout(guess), Duration::from_millis(1));
    }
}
