//! The command line: arguments in, with what the environment adds, a [`Config`] or a usage error
//! out.
//!
//! Every option takes its value as `--opt=value` or `--opt value`, those with a short form also as
//! `-oVALUE`, `-o=VALUE` or `-o VALUE`. Must not: touch files, sockets or the process.

use std::cmp::Reverse;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use self::device::{DeviceOption, check_devices, check_guests, device, guests, not_a_list};
use self::sockets::Sockets;
use crate::config::{
    Config, GuestNumber, HoldPolicy, LogLevel, SeccompMode, TransferConfig, digits,
};
use crate::error::{ExitCode, Fatal};
use crate::start::environment::Environment;

mod device;
mod sockets;

const MAX_HOLD_MS: u64 = 60_000;
const MAX_POLL_US: u64 = 100_000;

/// The text of `--help`.
pub const HELP: &str = "\
Usage: vhost-device-spi --socket-path=PATH --device=DEVICE [OPTION]...
       vhost-device-spi --socket=PATH... --device=DEVICE [OPTION]...
       vhost-device-spi --fd=FDNUM... --device=DEVICE [OPTION]...

Gives virtual machines an SPI bus: a vhost-user back-end of the VIRTIO SPI
controller. The manual page, vhost-device-spi(1), explains each option.

Sockets, one for each guest: numbered (--socket-path), or any of the three
others in the guests' order, or from a service manager (LISTEN_FDS):
  -s, --socket-path=PATH      base path; each socket has its number added:
                              PATH0, PATH1, ...
  -c, --socket-count=INT      how many of them; 1 to 64 (default 1)
      --socket=PATH           path of one guest's socket
      --fd=FDNUM, --socket-fd=FDNUM
                              one guest's socket, handed in as this fd:
                              listening, or connected, for one front-end
      --socket-mode=OCTAL     permissions of the sockets (default 600)
      --socket-group=GROUP    group of the sockets: a name in /etc/group, or a
                              number (default: the process's)

Devices:
  -l, --device=DEVICE         /dev/spidevX.Y or 'loopback'; the n-th is chip
                              select n of the bus; may be given 16 times.
                              Options follow it, separated by commas:
    guests=LIST               only for these guests, such as 0-1 (default all)
    max-speed-hz=N            highest clock (default: what the device reports)
    min-speed-hz=N            lowest clock (default 0)
    cs-high=on|off            guests may choose the polarity of chip select
                              (default: the device's only)
    loop=on|off               guests may loop the controller back (default on)
    word-delay=on|off         the controller does word delays (default off)
    cs-setup=on|off           the controller does setup delays (default off)
    exclusive-bus=on|off      nobody else uses the controller (default off)

Requests:
      --cs-hold=[LIST:]POLICY
                              what cs_change=0 means, for all guests or for
                              those in LIST: queued (default), spec or
                              write-read; may be repeated
      --cs-hold-timeout-ms=N  how long chip select may be held after a
                              transfer (default 100; write-read: 1)
      --max-transfer-len=N    longest transfer in bytes (default 4194304)
      --max-transfer-ms=N     longest transfer on the wire (default 10000)
      --poll-us=N             how long to watch for the next request before
                              sleeping (default 0)

Operation:
      --log-level=LEVEL       lines on stderr: off, error, warning (or warn),
                              info (default); each with those before it
      --seccomp=kill|log|none
                              what happens to a system call that is not
                              allowed (default kill)
      --print-syscalls        print the system calls that it makes, for a
                              service manager's filter
      --print-capabilities    print what kind of back-end it is, as JSON,
                              whatever else is given
  -h, --help                  print this text
  -V, --version               print the version

Lists of guests look like 0, 0-2 or 0+3-5. SIGUSR1 prints the counters.
";

/// What `--print-capabilities` prints, by QEMU's conventions for back-ends.
pub const CAPABILITIES: &str = "{\n  \"type\": \"spi\"\n}\n";

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// Serve.
    Run(Config),
    /// Print [`HELP`].
    Help,
    /// Print the version.
    Version,
    /// Print the names of the system calls that the daemon makes.
    Syscalls,
    /// Print [`CAPABILITIES`].
    Capabilities,
}

impl Command {
    /// Reads the arguments behind the program's name.
    ///
    /// # Errors
    /// One line that names the option or variable, the value and what is wrong with it.
    pub fn parse(
        arguments: impl Iterator<Item = OsString>,
        environment: &Environment,
    ) -> Result<Self, Fatal> {
        let arguments: Vec<OsString> = arguments.collect();
        // QEMU's conventions: everything else is ignored.
        if arguments
            .iter()
            .any(|argument| argument == "--print-capabilities")
        {
            return Ok(Self::Capabilities);
        }
        let mut options = Options::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            match split(&argument, &mut arguments)? {
                (Name::Help, _) => return Ok(Self::Help),
                (Name::Version, _) => return Ok(Self::Version),
                (Name::PrintSyscalls, _) => return Ok(Self::Syscalls),
                (name, value) => options.set(name, value)?,
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
        Command::Help | Command::Version | Command::Syscalls | Command::Capabilities => {
            Err(usage("serves nobody"))
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    SocketPath,
    SocketCount,
    Socket,
    Fd,
    SocketFd,
    SocketMode,
    SocketGroup,
    Device,
    CsHold,
    CsHoldTimeout,
    MaxTransferLen,
    MaxTransferMs,
    Poll,
    Seccomp,
    LogLevel,
    PrintSyscalls,
    PrintCapabilities,
    Help,
    Version,
}

/// Name, long form, short form.
const OPTIONS: [(Name, &str, Option<u8>); 19] = [
    (Name::SocketPath, "socket-path", Some(b's')),
    (Name::SocketCount, "socket-count", Some(b'c')),
    (Name::Socket, "socket", None),
    (Name::Fd, "fd", None),
    (Name::SocketFd, "socket-fd", None),
    (Name::SocketMode, "socket-mode", None),
    (Name::SocketGroup, "socket-group", None),
    (Name::Device, "device", Some(b'l')),
    (Name::CsHold, "cs-hold", None),
    (Name::CsHoldTimeout, "cs-hold-timeout-ms", None),
    (Name::MaxTransferLen, "max-transfer-len", None),
    (Name::MaxTransferMs, "max-transfer-ms", None),
    (Name::Poll, "poll-us", None),
    (Name::Seccomp, "seccomp", None),
    (Name::LogLevel, "log-level", None),
    (Name::PrintSyscalls, "print-syscalls", None),
    (Name::PrintCapabilities, "print-capabilities", None),
    (Name::Help, "help", Some(b'h')),
    (Name::Version, "version", Some(b'V')),
];

impl Name {
    const fn takes_value(self) -> bool {
        !matches!(
            self,
            Self::PrintSyscalls | Self::PrintCapabilities | Self::Help | Self::Version
        )
    }

    fn long(self) -> &'static str {
        OPTIONS
            .iter()
            .find(|option| option.0 == self)
            .map_or("", |option| option.1)
    }
}

/// Splits one argument into option and value, taking the value from `rest` where it stands alone.
fn split(
    argument: &OsStr,
    rest: &mut impl Iterator<Item = OsString>,
) -> Result<(Name, OsString), Fatal> {
    let bytes = argument.as_bytes();
    let shown = argument.display();
    let (option, attached) = if let Some(long) = bytes.strip_prefix(b"--") {
        let (name, value) = match long.iter().position(|&b| b == b'=') {
            Some(at) => (long.get(..at), long.get(at.saturating_add(1)..)),
            None => (Some(long), None),
        };
        let option = OPTIONS.iter().find(|o| Some(o.1.as_bytes()) == name);
        (option, value)
    } else if let Some([short, value @ ..]) = bytes.strip_prefix(b"-") {
        let option = OPTIONS.iter().find(|o| o.2 == Some(*short));
        // `-s=PATH` is `-sPATH`, as the sibling daemons' parser has it.
        let value = (!value.is_empty()).then(|| value.strip_prefix(b"=").unwrap_or(value));
        (option, value)
    } else {
        return Err(usage(format!("unexpected argument '{shown}'")));
    };
    let Some(&(name, ..)) = option else {
        return Err(unknown(argument));
    };
    match (name.takes_value(), attached) {
        (true, Some(value)) => Ok((name, OsString::from_vec(value.to_vec()))),
        (true, None) => match rest.next() {
            Some(value) => Ok((name, value)),
            None => Err(usage(format!("option '{shown}' needs a value"))),
        },
        (false, None) => Ok((name, OsString::new())),
        (false, Some(_)) => Err(usage(format!("option '{shown}' takes no value"))),
    }
}

/// An option that there is not, and the one that was meant: the shortest of those that
/// begin like it for most letters, at least three.
#[cold]
fn unknown(argument: &OsStr) -> Fatal {
    let given = argument.as_bytes().strip_prefix(b"--").unwrap_or_default();
    let alike = |long: &str| long.bytes().zip(given).take_while(|(a, b)| a == *b).count();
    let meant = OPTIONS
        .iter()
        .map(|(_, long, _)| (alike(long), Reverse(long.len()), long))
        .max()
        .filter(|(alike, ..)| *alike >= 3);
    let shown = argument.display();
    usage(match meant {
        None => format!("unknown option '{shown}'"),
        Some((.., long)) => format!("unknown option '{shown}'; did you mean '--{long}'?"),
    })
}

#[derive(Debug, Default)]
struct Options {
    sockets: Sockets,
    devices: Vec<DeviceOption>,
    holds: Vec<(Option<u64>, HoldPolicy, String)>,
    hold_timeout_ms: Option<u64>,
    max_len: Option<u64>,
    max_ms: Option<u64>,
    poll_us: Option<u64>,
    seccomp: Option<SeccompMode>,
    log_level: Option<Option<LogLevel>>,
}

impl Options {
    fn set(&mut self, name: Name, value: OsString) -> Result<(), Fatal> {
        match name {
            Name::SocketPath => self.sockets.set_base(name, value),
            Name::SocketCount => self.sockets.set_count(name, &value),
            Name::Socket => self.sockets.add_path(name, value),
            Name::Fd => self.sockets.add_fd(name, &value, "option '--fd'"),
            Name::SocketFd => self.sockets.add_fd(name, &value, "option '--socket-fd'"),
            Name::SocketMode => self.sockets.set_mode(name, &value),
            Name::SocketGroup => self.sockets.set_group(name, value),
            Name::Device => {
                self.devices.push(device(&value)?);
                Ok(())
            }
            Name::CsHold => {
                self.holds.push(hold(&value)?);
                Ok(())
            }
            Name::CsHoldTimeout => {
                let ms = number(name, &value, 1, MAX_HOLD_MS)?;
                once(&mut self.hold_timeout_ms, name, ms)
            }
            Name::MaxTransferLen => {
                let len = number(name, &value, 1, u64::from(u32::MAX))?;
                once(&mut self.max_len, name, len)
            }
            Name::MaxTransferMs => {
                let ms = number(name, &value, 1, 86_400_000)?;
                once(&mut self.max_ms, name, ms)
            }
            Name::Poll => {
                let us = number(name, &value, 0, MAX_POLL_US)?;
                once(&mut self.poll_us, name, us)
            }
            Name::Seccomp => {
                let mode = match value.as_bytes() {
                    b"kill" => SeccompMode::Kill,
                    b"log" => SeccompMode::Log,
                    b"none" => SeccompMode::None,
                    _ => return Err(bad(name, &value, "is none of kill, log and none")),
                };
                once(&mut self.seccomp, name, mode)
            }
            Name::LogLevel => {
                let level = match value.as_bytes() {
                    b"off" => None,
                    b"error" => Some(LogLevel::Error),
                    b"warning" | b"warn" => Some(LogLevel::Warning),
                    b"info" => Some(LogLevel::Info),
                    _ => {
                        let why = "is none of off, error, warning (or warn) and info";
                        return Err(bad(name, &value, why));
                    }
                };
                once(&mut self.log_level, name, level)
            }
            Name::PrintSyscalls | Name::PrintCapabilities | Name::Help | Name::Version => Ok(()),
        }
    }

    fn finish(self, environment: &Environment) -> Result<Config, Fatal> {
        let (sources, access) = self.sockets.finish(environment)?;
        let count = sources.len();
        if self.devices.is_empty() {
            return Err(usage("option '--device' is missing"));
        }
        let mut devices = Vec::new();
        for DeviceOption { mut config, guests } in self.devices {
            let option = format!("option '--device': '{}' is for", config.path);
            config.guests = check_guests(guests, count, &option)?;
            devices.push(config);
        }
        check_devices(&devices, count)?;
        let mut hold_policies = vec![HoldPolicy::Queued; count];
        for (guests, policy, shown) in self.holds {
            let option = format!("option '--cs-hold': '{shown}' is for");
            let guests = check_guests(guests, count, &option)?;
            for (guest, slot) in GuestNumber::all().zip(&mut hold_policies) {
                if guest.is_in(guests) {
                    *slot = policy;
                }
            }
        }
        Ok(Config {
            guests: sources,
            access,
            service: environment.service()?,
            devices,
            hold_policies,
            hold_timeout_ms: self.hold_timeout_ms,
            transfers: TransferConfig {
                max_len: self.max_len.unwrap_or(4 << 20),
                max_ms: self.max_ms.unwrap_or(10_000),
            },
            poll: Duration::from_micros(self.poll_us.unwrap_or(0)),
            seccomp: self.seccomp.unwrap_or(SeccompMode::Kill),
            log_level: self.log_level.unwrap_or(Some(LogLevel::Info)),
        })
    }
}

#[cold]
fn usage(message: impl Into<String>) -> Fatal {
    Fatal::new(ExitCode::Usage, message)
}

#[cold]
fn bad(name: Name, value: &OsStr, why: &str) -> Fatal {
    usage(format!(
        "option '--{}': '{}' {why}",
        name.long(),
        value.display()
    ))
}

fn once<T>(slot: &mut Option<T>, name: Name, value: T) -> Result<(), Fatal> {
    if slot.replace(value).is_some() {
        return Err(usage(format!("option '--{}' given twice", name.long())));
    }
    Ok(())
}

fn number(name: Name, value: &OsStr, min: u64, max: u64) -> Result<u64, Fatal> {
    let why = format!("is not a number from {min} to {max}");
    digits(value)
        .filter(|n| (min..=max).contains(n))
        .ok_or_else(|| bad(name, value, &why))
}

fn hold(value: &OsStr) -> Result<(Option<u64>, HoldPolicy, String), Fatal> {
    let bytes = value.as_bytes();
    let (list, policy) = match bytes.iter().position(|&b| b == b':') {
        Some(at) => (bytes.get(..at), bytes.get(at.saturating_add(1)..)),
        None => (None, Some(bytes)),
    };
    let list = match list {
        Some(list) => Some(guests(list).ok_or_else(|| {
            let list = OsStr::from_bytes(list);
            bad(Name::CsHold, value, &not_a_list(list, list))
        })?),
        None => None,
    };
    let policy = match policy {
        Some(b"queued") => HoldPolicy::Queued,
        Some(b"spec") => HoldPolicy::Spec,
        Some(b"write-read") => HoldPolicy::WriteRead,
        _ => {
            return Err(bad(
                Name::CsHold,
                value,
                "is none of queued, spec and write-read",
            ));
        }
    };
    Ok((list, policy, value.display().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DevicePath, Source};
    use std::time::Duration;

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
                 those are guests, max-speed-hz, min-speed-hz, cs-high, loop, word-delay, cs-setup \
                 and exclusive-bus",
            ),
            (
                &["-l", "e,/dev/spidev0.1"],
                "option '--device': 'e,/dev/spidev0.1' names two devices; repeat the option for \
                 each",
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
