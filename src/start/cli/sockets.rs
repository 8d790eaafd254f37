//! Where guests' front-ends come from: `--socket-path` with `--socket-count`; or `--socket`, `--fd`
//! and `--socket-fd` in the guests' order; or what a service manager hands in. One of the three, so
//! that it is plain which guest has which number.

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::{Name, bad, number, once, usage};
use crate::config::{AccessConfig, Group, MAX_GUESTS, Source};
use crate::error::Fatal;
use crate::start::environment::Environment;

/// Below are stdin, stdout and stderr.
const FIRST_FD: RawFd = 3;
const MAX_FD: u64 = 0x7fff_ffff;
const DEFAULT_MODE: u32 = 0o600;
const MAX_MODE: u32 = 0o777;
/// The next one stands for none.
const MAX_GROUP: u64 = 0xffff_fffe;
const LISTEN_FDS: &str = "environment variable LISTEN_FDS";

/// The options that are about sockets.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    base: Option<OsString>,
    count: Option<usize>,
    named: Vec<Source>,
    mode: Option<u32>,
    group: Option<Group>,
}

impl Sockets {
    pub(super) fn set_base(&mut self, name: Name, value: OsString) -> Result<(), Fatal> {
        once(&mut self.base, name, path(name, value)?)
    }

    pub(super) fn set_count(&mut self, name: Name, value: &OsStr) -> Result<(), Fatal> {
        let max = u64::try_from(MAX_GUESTS).unwrap_or(u64::MAX);
        let count = number(name, value, 1, max)?;
        let count = usize::try_from(count).unwrap_or(MAX_GUESTS);
        once(&mut self.count, name, count)
    }

    pub(super) fn set_mode(&mut self, name: Name, value: &OsStr) -> Result<(), Fatal> {
        let octal = value.to_str().filter(|text| {
            let digits = text.bytes().all(|b| b.is_ascii_digit());
            digits && !text.is_empty()
        });
        let mode = octal
            .and_then(|text| u32::from_str_radix(text, 8).ok())
            .filter(|&mode| mode <= MAX_MODE)
            .ok_or_else(|| bad(name, value, "is not an octal number from 0 to 777"))?;
        once(&mut self.mode, name, mode)
    }

    /// A number is a number, even if a group should have it for a name.
    pub(super) fn set_group(&mut self, name: Name, value: OsString) -> Result<(), Fatal> {
        let group = if value.as_bytes().iter().all(u8::is_ascii_digit) {
            let number = number(name, &value, 0, MAX_GROUP)?;
            Group::Number(number.try_into().unwrap_or(u32::MAX))
        } else {
            Group::Name(value)
        };
        once(&mut self.group, name, group)
    }

    pub(super) fn add_path(&mut self, name: Name, value: OsString) -> Result<(), Fatal> {
        let path = PathBuf::from(path(name, value)?);
        let same = |other: &Source| matches!(other, Source::Path(other) if *other == path);
        let twice = self.named.iter().any(same);
        self.add(name, path.clone().as_os_str(), twice, Source::Path(path))
    }

    /// `by` is how messages call the option.
    pub(super) fn add_fd(
        &mut self,
        name: Name,
        value: &OsStr,
        by: &'static str,
    ) -> Result<(), Fatal> {
        let fd = number(name, value, 3, MAX_FD)?;
        let fd = RawFd::try_from(fd).unwrap_or(RawFd::MAX);
        let same = |other: &Source| matches!(other, Source::Fd(other, _) if *other == fd);
        let twice = self.named.iter().any(same);
        self.add(name, value, twice, Source::Fd(fd, by))
    }

    fn add(&mut self, name: Name, value: &OsStr, twice: bool, source: Source) -> Result<(), Fatal> {
        if twice {
            return Err(bad(name, value, "is given twice"));
        }
        if self.named.len() >= MAX_GUESTS {
            let why = format!("is one socket more than {MAX_GUESTS} guests have");
            return Err(bad(name, value, &why));
        }
        self.named.push(source);
        Ok(())
    }

    /// Each guest's source, and who may connect to those that are made.
    pub(super) fn finish(
        self,
        environment: &Environment,
    ) -> Result<(Vec<Source>, AccessConfig), Fatal> {
        let passed = environment.listen_fds()?;
        self.check_place(passed)?;
        let mut sources = self.named;
        if let Some(base) = self.base {
            let numbers = 0..self.count.unwrap_or(1);
            sources.extend(numbers.map(|number| numbered(&base, number)));
        }
        let fds = (FIRST_FD..).map(|fd| Source::Fd(fd, LISTEN_FDS));
        sources.extend(fds.take(passed));
        let made = sources.iter().any(|s| matches!(s, Source::Path(_)));
        let (mode, group) = (self.mode, self.group);
        let given = [
            (mode.is_some(), Name::SocketMode),
            (group.is_some(), Name::SocketGroup),
        ];
        if let Some((_, name)) = given.iter().find(|(given, _)| *given && !made) {
            let name = name.long();
            let why = format!("option '--{name}' is for sockets that are made: there are none");
            return Err(usage(why));
        }
        let mode = mode.unwrap_or(DEFAULT_MODE);
        Ok((sources, AccessConfig { mode, group }))
    }

    /// That the sockets are named in one place, where `passed` of them were handed in by a service
    /// manager.
    fn check_place(&self, passed: usize) -> Result<(), Fatal> {
        let base = self.base.as_ref().map(|_| "option '--socket-path'");
        let named = self.named.first().map(|source| match source {
            Source::Path(_) => "option '--socket'",
            Source::Fd(_, by) => by,
        });
        match (base, named, passed) {
            (Some(base), Some(named), _) => Err(usage(format!("{base} excludes {named}"))),
            (Some(option), None, 1..) | (None, Some(option), 1..) => {
                let why = format!("{LISTEN_FDS}: '{passed}' excludes {option}");
                Err(usage(why))
            }
            (None, None, 0) => Err(usage(
                "no socket: one of the options '--socket-path', '--socket', '--fd' and \
                 '--socket-fd' is missing",
            )),
            (None, _, _) if self.count.is_some() => {
                Err(usage("option '--socket-count' needs '--socket-path'"))
            }
            (Some(_), None, 0) | (None, Some(_), 0) | (None, None, 1..) => Ok(()),
        }
    }
}

fn numbered(base: &OsStr, number: usize) -> Source {
    let mut path = base.to_owned();
    path.push(number.to_string());
    Source::Path(path.into())
}

fn path(name: Name, value: OsString) -> Result<OsString, Fatal> {
    if value.is_empty() {
        return Err(bad(name, &value, "is empty"));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::start::cli::{Command, parse_config};

    fn parse(line: &[&str]) -> Result<Vec<Source>, String> {
        let line = line.iter().chain(&["--device=loopback"]);
        let config = parse_config(line).map_err(|fatal| fatal.message)?;
        Ok(config.guests)
    }

    #[test]
    fn sockets_of_a_line_are_the_guests_in_its_order() {
        let line = ["--socket=b", "--fd=7", "--socket=a", "--socket-fd", "3"];
        let expected = [
            Source::Path("b".into()),
            Source::Fd(7, "option '--fd'"),
            Source::Path("a".into()),
            Source::Fd(3, "option '--socket-fd'"),
        ];
        assert_eq!(parse(&line).unwrap(), expected);
    }

    #[test]
    fn sockets_that_make_no_sense_are_refused() {
        let range = "is not a number from 3 to 2147483647";
        for (line, message) in [
            (
                &["-ss", "--fd=3"][..],
                "option '--socket-path' excludes option '--fd'".to_owned(),
            ),
            (
                &["--socket=s", "-ss"],
                "option '--socket-path' excludes option '--socket'".into(),
            ),
            (
                &["--socket=s", "-c2"],
                "option '--socket-count' needs '--socket-path'".into(),
            ),
            (
                &["--fd=3", "--socket-fd=3"],
                "option '--socket-fd': '3' is given twice".into(),
            ),
            (
                &["--socket=s", "--socket=s"],
                "option '--socket': 's' is given twice".into(),
            ),
            (&["--socket="], "option '--socket': '' is empty".into()),
            (&["--fd=2"], format!("option '--fd': '2' {range}")),
            (
                &["--socket-fd=x"],
                format!("option '--socket-fd': 'x' {range}"),
            ),
            (
                &["--fd=2147483648"],
                format!("option '--fd': '2147483648' {range}"),
            ),
            (
                &["--fd=3", "--socket-mode=660"],
                "option '--socket-mode' is for sockets that are made: there are none".into(),
            ),
            (
                &["--fd=3", "--socket-group=kvm"],
                "option '--socket-group' is for sockets that are made: there are none".into(),
            ),
            (
                &["-ss", "--socket-group="],
                "option '--socket-group': '' is not a number from 0 to 4294967294".into(),
            ),
            (
                &["-ss", "--socket-group=4294967295"],
                "option '--socket-group': '4294967295' is not a number from 0 to 4294967294".into(),
            ),
        ] {
            assert_eq!(parse(line).unwrap_err(), message);
        }
        for mode in ["", "8", "+7", "1777", "0o600", "rw"] {
            let line = ["-ss".to_owned(), format!("--socket-mode={mode}")];
            let message =
                format!("option '--socket-mode': '{mode}' is not an octal number from 0 to 777");
            let line: Vec<_> = line.iter().map(String::as_str).collect();
            assert_eq!(parse(&line).unwrap_err(), message);
        }
        let line: Vec<String> = (3..68).map(|fd| format!("--fd={fd}")).collect();
        let line: Vec<_> = line.iter().map(String::as_str).collect();
        assert_eq!(
            parse(&line).unwrap_err(),
            "option '--fd': '67' is one socket more than 64 guests have"
        );
        assert!(parse(&line[..64]).is_ok());
    }

    #[test]
    fn capabilities_are_printed_whatever_else_is_given() {
        let line = ["--nonsense", "--print-capabilities", "-c"].map(OsString::from);
        let command = Command::parse(line.into_iter(), &Environment::default());
        assert!(matches!(command, Ok(Command::Capabilities)));
    }

    #[test]
    fn mode_and_group_are_those_given() {
        let access = |line: &[&str]| {
            let line = line.iter().chain(&["-ss", "-lloopback"]);
            parse_config(line).unwrap().access
        };
        let usual = access(&[]);
        assert_eq!((usual.mode, usual.group), (0o600, None));
        let numbers = access(&["--socket-mode=0660", "--socket-group=36"]);
        assert_eq!(numbers.mode, 0o660);
        assert_eq!(numbers.group, Some(Group::Number(36)));
        let name = access(&["--socket-group=36kvm"]);
        assert_eq!(name.group, Some(Group::Name("36kvm".into())));
    }
}
