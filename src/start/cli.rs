// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line: arguments in, with what the environment adds, a [`Config`] or a usage error
//! out.
//!
//! Every option takes its value as `--opt=value` or `--opt value`, those with a short form also as
//! `-oVALUE`, `-o=VALUE` or `-o VALUE`. Must not: touch files, sockets or the process.

use std::cmp::Reverse;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use self::device::{check_devices, device, hold};
use crate::config::{
    AccessConfig, Config, GuestMemory, HoldPolicy, LogLevel, MAX_MESSAGE_MS, SeccompMode,
    ServiceConfig, Source, TransferConfig, digits,
};
use crate::confine::seccomp;
use crate::error::{ExitCode, Fatal};
use crate::start::environment::Environment;

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
        environment: &Environment,
    ) -> Result<Self, Fatal> {
        let arguments: Vec<OsString> = arguments.collect();
        // QEMU's conventions: everything else is ignored.
        if arguments.iter().any(|a| a == "--print-capabilities") {
            return Ok(Self::Print(CAPABILITIES.to_owned()));
        }
        let mut options = Options::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let (given, form) = split(&argument, &mut arguments)?;
            match given.option {
                "help" => return Ok(Self::Print(HELP.to_owned())),
                "version" => return Ok(Self::Print(VERSION.to_owned())),
                "print-syscalls" => return Ok(Self::Print(seccomp::names().join(" ") + "\n")),
                _ => options.set(given, form)?,
            }
        }
        options.finish(environment).map(Self::Run)
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
    match Command::parse(arguments, &Environment::default())? {
        Command::Run(config) => Ok(config),
        Command::Print(_) => Err(usage("serves nobody")),
    }
}

/// Splits one argument into option and value, taking the value from `rest` where it stands alone.
fn split(
    argument: &OsStr,
    rest: &mut impl Iterator<Item = OsString>,
) -> Result<(Given, Form), Fatal> {
    let bytes = argument.as_bytes();
    let shown = argument.to_string_lossy();
    let (option, attached) = if let Some(long) = bytes.strip_prefix(b"--") {
        let (name, value) = cut(long, b'=');
        (OPTIONS.iter().find(|o| o.0.as_bytes() == name), value)
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
        (Flag, None) => OsString::new(),
        (Flag, Some(_)) => return Err(usage(format!("option '{shown}' takes no value"))),
        (Once | Repeated, Some(value)) => OsString::from_vec(value.to_vec()),
        (Once | Repeated, None) => rest
            .next()
            .ok_or_else(|| usage(format!("option '{shown}' needs a value")))?,
    };
    Ok((Given { option, value }, form))
}

/// The bytes before and after the first `separator`, if there is one.
fn cut(bytes: &[u8], separator: u8) -> (&[u8], Option<&[u8]>) {
    let mut parts = bytes.splitn(2, |&b| b == separator);
    (parts.next().unwrap_or_default(), parts.next())
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
        None => format!("unknown option '{shown}'"),
        Some((.., long)) => format!("unknown option '{shown}'; did you mean '--{long}'?"),
    })
}

/// The options that were given so far.
struct Options {
    /// Long forms of the options that were given.
    seen: Vec<&'static str>,
    /// The start of the paths of numbered sockets.
    base: Option<OsString>,
    count: u64,
    devices: Vec<Given>,
    holds: Vec<Given>,
    /// All else, with the defaults of what was not given.
    config: Config,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seen: Vec::new(),
            base: None,
            count: 1,
            devices: Vec::new(),
            holds: Vec::new(),
            config: Config {
                guests: Vec::new(),
                access: AccessConfig {
                    mode: 0o600,
                    group: None,
                },
                service: ServiceConfig::default(),
                devices: Vec::new(),
                hold_policies: Vec::new(),
                hold_timeout_ms: None,
                transfers: TransferConfig {
                    max_len: 4 << 20,
                    max_ms: 10_000,
                    max_message_ms: MAX_MESSAGE_MS,
                },
                poll: Duration::ZERO,
                guest_memory: GuestMemory::Sealed,
                lock_memory: false,
                seccomp: SeccompMode::Kill,
                log_level: Some(LogLevel::Info),
            },
        }
    }
}

impl Options {
    fn set(&mut self, given: Given, form: Form) -> Result<(), Fatal> {
        let config = &mut self.config;
        match given.option {
            "socket-path" => self.base = Some(given.path()?),
            "socket-count" => self.count = given.number(1, 64)?,
            "socket" => self.add_socket(&given, Source::Path(given.path()?.into()))?,
            "fd" => self.add_socket(&given, Source::Fd(given.fd()?, "option '--fd'"))?,
            "socket-fd" => {
                self.add_socket(&given, Source::Fd(given.fd()?, "option '--socket-fd'"))?
            }
            "socket-mode" => config.access.mode = given.mode()?,
            "socket-group" => config.access.group = Some(given.group()?),
            "device" => self.devices.push(given.clone()),
            "cs-hold" => self.holds.push(given.clone()),
            "cs-hold-timeout-ms" => config.hold_timeout_ms = Some(given.number(1, 60_000)?),
            "max-transfer-len" => config.transfers.max_len = given.number(1, u32::MAX.into())?,
            "max-transfer-ms" => config.transfers.max_ms = given.number(1, 86_400_000)?,
            "max-message-ms" => {
                config.transfers.max_message_ms = given.number(1, MAX_MESSAGE_MS)?
            }
            "poll-us" => config.poll = Duration::from_micros(given.number(0, 100_000)?),
            "guest-memory" => config.guest_memory = given.guest_memory()?,
            "lock-memory" => config.lock_memory = true,
            "seccomp" => config.seccomp = given.seccomp()?,
            "log-level" => config.log_level = given.log_level()?,
            _ => return Err(unknown(given.option.as_ref())),
        }
        if form == Once && self.seen.contains(&given.option) {
            return Err(usage(format!("option '--{}' given twice", given.option)));
        }
        self.seen.push(given.option);
        Ok(())
    }

    fn finish(mut self, environment: &Environment) -> Result<Config, Fatal> {
        self.finish_sockets(environment.listen_fds()?)?;
        let mut config = self.config;
        let count = config.guests.len();
        config.service = environment.service()?;
        for given in &self.devices {
            config.devices.push(device(given, count)?);
        }
        // As with the policies that do not guess.
        let timeout = config.hold_timeout(HoldPolicy::Spec);
        for chip in config.devices.iter_mut().filter_map(|d| d.chip.as_mut()) {
            chip.timeout = timeout;
        }
        check_devices(&config.devices, count)?;
        config.hold_policies = vec![HoldPolicy::Queued; count];
        for given in &self.holds {
            hold(given, &mut config.hold_policies)?;
        }
        Ok(config)
    }
}

#[cold]
fn usage(message: impl Into<String>) -> Fatal {
    Fatal::new(ExitCode::Usage, message)
}

/// An option with its value.
#[derive(Debug, Clone)]
struct Given {
    /// Its long form.
    option: &'static str,
    value: OsString,
}

impl Given {
    #[cold]
    fn bad(&self, why: &str) -> Fatal {
        let (option, value) = (self.option, self.value.to_string_lossy());
        usage(format!("option '--{option}': '{value}' {why}"))
    }

    fn number(&self, min: u64, max: u64) -> Result<u64, Fatal> {
        digits(&self.value)
            .filter(|n| (min..=max).contains(n))
            .ok_or_else(|| self.bad(&format!("is not a number from {min} to {max}")))
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
    use crate::config::DevicePath;

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
            (&["--foo"], "unknown option '--foo'"),
            (&["-x"], "unknown option '-x'"),
            (&["x"], "unexpected argument 'x'"),
            (&["-"], "unexpected argument '-'"),
            (&["--"], "unknown option '--'"),
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
                 in Hz from 1 to 4294967295, in plain digits",
            ),
            (
                &["-l", "e,min-speed-hz=10M"],
                "option '--device': 'e,min-speed-hz=10M' has 'min-speed-hz=10M', which is not a \
                 clock in Hz from 1 to 4294967295, in plain digits",
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
                "option '--device': 'e' is for guest 1, but the only guest is 0; a socket more \
                 makes a guest more (--socket-count, --socket, --fd)",
            ),
            (
                &["--cs-hold=3:spec"],
                "option '--cs-hold': '3:spec' is for guest 3, but the only guest is 0; a socket \
                 more makes a guest more (--socket-count, --socket, --fd)",
            ),
            (
                &["-l", "e,guests=0-63"],
                "option '--device': 'e' is for guest 63, but the only guest is 0; a socket more \
                 makes a guest more (--socket-count, --socket, --fd)",
            ),
            (
                &["--cs-hold=0-63:spec"],
                "option '--cs-hold': '0-63:spec' is for guest 63, but the only guest is 0; a socket \
                 more makes a guest more (--socket-count, --socket, --fd)",
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
             is missing"
        );
        assert_eq!(
            parse(&["-s", "s"]).unwrap_err(),
            "option '--device' is missing"
        );
        assert_eq!(
            parse(&["-s", "s", "-c2", "-l", "d,guests=0"]).unwrap_err(),
            "option '--device': no device for guest 1"
        );
        let two_guests = ["-s", "s", "-c2", "-l", "d,guests=0-2"];
        assert_eq!(
            parse(&two_guests).unwrap_err(),
            "option '--device': 'd' is for guest 2, but the guests are 0 to 1; a socket more makes \
             a guest more (--socket-count, --socket, --fd)"
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
        assert_eq!(guests(b"0"), Some(1));
        assert_eq!(guests(b"0-2"), Some(0b111));
        assert_eq!(guests(b"0+3-5"), Some(0b11_1001));
        assert_eq!(guests(b"63"), Some(1 << 63));
        assert_eq!(guests(b"0-63"), Some(u64::MAX));
        for wrong in [&b""[..], b"64", b"2-1", b"1-", b"-1", b"a", b"1-2-3", b"1+"] {
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
