// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where guests' front-ends come from: `--socket-path` with `--socket-count`; or `--socket`, `--fd`
//! and `--socket-fd` in the guests' order; or a service manager hands them in. Only one of the three
//! can be used, so that it is plain which guest has which number.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;

use super::{Given, Options, usage};
use crate::config::{Group, MAX_GUESTS, Source, digits};
use crate::error::Fatal;

/// Below are stdin, stdout and stderr.
const FIRST_FD: RawFd = 3;
const MAX_FD: u64 = 0x7fff_ffff;
/// The next one stands for none.
const MAX_GROUP: u64 = 0xffff_fffe;
const LISTEN_FDS: &str = "environment variable LISTEN_FDS";
const NO_SOCKET: &str = "no socket: one of the options '--socket-path', '--socket', '--fd' and \
                         '--socket-fd' is missing; see --help";

impl Given<'_> {
    pub(super) fn path(&self) -> Result<OsString, Fatal> {
        if self.value.is_empty() {
            return Err(self.bad("is empty"));
        }
        Ok(self.value.to_owned())
    }

    pub(super) fn mode(&self) -> Result<u32, Fatal> {
        // `from_str_radix` would also take a sign.
        digits(self.value)
            .and_then(|_| u32::from_str_radix(self.value.to_str()?, 8).ok())
            .filter(|&mode| mode <= 0o777)
            .ok_or_else(|| self.bad("is not an octal number from 0 to 777"))
    }

    /// A number is a number, even if a group should have it for a name.
    pub(super) fn group(&self) -> Result<Group, Fatal> {
        if !self.value.as_bytes().iter().all(u8::is_ascii_digit) {
            return Ok(Group::Name(self.value.to_owned()));
        }
        self.number(0, MAX_GROUP).map(Group::Number)
    }
}

impl Options<'_> {
    /// The guests' sources, where a service manager handed in `passed` sockets.
    pub(super) fn sources(&self, passed: usize) -> Result<Vec<Source>, Fatal> {
        let count: u64 = self.get_or("socket-count", "1").number(1, 64)?;
        let mut sources = self.listed()?;
        self.check_place(sources.first(), passed)?;
        if let Some(base) = self.get("socket-path") {
            let base = base.path()?;
            sources.extend((0..count).map(|number| {
                let mut path = base.clone();
                path.push(number.to_string());
                Source::Path(path.into())
            }));
        }
        let fds = (FIRST_FD..).map(|fd| Source::Fd(fd, LISTEN_FDS));
        sources.extend(fds.take(passed));
        let made = sources.iter().any(|s| matches!(s, Source::Path(_)));
        let mut access = ["socket-mode", "socket-group"].iter();
        match access.find(|name| !made && self.get(name).is_some()) {
            None => Ok(sources),
            Some(name) => Err(usage(format!(
                "option '--{name}' is for sockets that the daemon makes, and it makes none"
            ))),
        }
    }

    /// The sources that have an option each.
    fn listed(&self) -> Result<Vec<Source>, Fatal> {
        let mut sources = Vec::new();
        for given in &self.0 {
            let source = match given.option {
                "socket" => Source::Path(given.path()?.into()),
                "fd" => Source::Fd(given.number(3, MAX_FD)?, "option '--fd'"),
                "socket-fd" => Source::Fd(given.number(3, MAX_FD)?, "option '--socket-fd'"),
                _ => continue,
            };
            let is_same = |other: &Source| match (other, &source) {
                (Source::Fd(other, _), Source::Fd(fd, _)) => other == fd,
                _ => *other == source,
            };
            if sources.iter().any(is_same) {
                return Err(given.bad("is given twice"));
            }
            if sources.len() >= MAX_GUESTS {
                let why = format!("is one socket too many: at most {MAX_GUESTS}");
                return Err(given.bad(&why));
            }
            sources.push(source);
        }
        Ok(sources)
    }

    /// Checks that the sockets are named in one place, where the command line lists `first` and `passed` of
    /// them were handed in by a service manager.
    fn check_place(&self, first: Option<&Source>, passed: usize) -> Result<(), Fatal> {
        let base = self.get("socket-path").map(|_| "option '--socket-path'");
        let listed = first.map(|source| match source {
            Source::Path(_) => "option '--socket'",
            Source::Fd(_, by) => by,
        });
        let has_count = self.get("socket-count").is_some();
        let passed = (passed > 0).then(|| format!("{LISTEN_FDS}: '{passed}'"));
        let mut places = [passed.as_deref(), base, listed].into_iter().flatten();
        match (places.next(), places.next()) {
            (None, _) => Err(usage(NO_SOCKET)),
            (Some(one), Some(other)) => Err(usage(format!("{one} excludes {other}"))),
            _ if has_count && base.is_none() => {
                Err(usage("option '--socket-count' needs '--socket-path'"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::start::cli::{CAPABILITIES, Command, parse_config};

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
                "option '--socket-mode' is for sockets that the daemon makes, and it makes none"
                    .into(),
            ),
            (
                &["--fd=3", "--socket-group=kvm"],
                "option '--socket-group' is for sockets that the daemon makes, and it makes none"
                    .into(),
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
            "option '--fd': '67' is one socket too many: at most 64"
        );
        assert!(parse(&line[..64]).is_ok());
    }

    #[test]
    fn capabilities_are_printed_whatever_else_is_given() {
        let line = ["--nonsense", "--print-capabilities", "-c"].map(OsString::from);
        let command = Command::parse(line.into_iter(), &|_| None);
        assert!(matches!(command, Ok(Command::Print(text)) if text == CAPABILITIES));
    }

    #[test]
    fn mode_and_group_are_those_given() {
        let access = |line: &[&str]| {
            let line = line.iter().chain(&["-ss", "-lloopback"]);
            let config = parse_config(line).unwrap();
            (config.socket_mode, config.socket_group)
        };
        assert_eq!(access(&[]), (0o600, None));
        let numbers = access(&["--socket-mode=0660", "--socket-group=36"]);
        assert_eq!(numbers, (0o660, Some(Group::Number(36))));
        let (_, name) = access(&["--socket-group=36kvm"]);
        assert_eq!(name, Some(Group::Name("36kvm".into())));
    }
}
