// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The settings that a service manager makes in variables of the environment, by systemd's conventions:
//! sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).
//!
//! They are validated when it is known that the process is to serve. Those with the number of another
//! process are ignored.

use std::ffi::{OsStr, OsString};
use std::time::Duration;

use crate::config::{MAX_GUESTS, ServiceConfig, digits};
use crate::error::{ExitCode, Fatal};

/// Shortest time between two signs of life, whatever is asked for.
const MIN_INTERVAL: Duration = Duration::from_millis(1);

/// The variables that matter; the sockets' names do not, which are told apart by their order.
const NAMES: [&str; 5] = [
    "LISTEN_PID",
    "LISTEN_FDS",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// The variables, as they were.
#[derive(Debug, Default)]
pub struct Environment(Vec<(&'static str, OsString)>);

impl Environment {
    /// Those of this process.
    pub fn read() -> Self {
        let found = NAMES
            .into_iter()
            .filter_map(|name| Some((name, std::env::var_os(name)?)));
        Self(found.collect())
    }

    fn get(&self, name: &str) -> Option<&OsStr> {
        let found = self.0.iter().find(|(other, _)| *other == name);
        found.map(|(_, value)| &**value)
    }

    /// How many sockets were handed in, from fd 3 on.
    ///
    /// # Errors
    /// One line that names the variable, its value and what is wrong with it.
    pub fn listen_fds(&self) -> Result<usize, Fatal> {
        let Some(count) = self.get("LISTEN_FDS") else {
            return Ok(0);
        };
        if self.is_meant("LISTEN_PID")? != Some(true) {
            return Ok(0);
        }
        let why = format!("is not a number from 1 to {MAX_GUESTS}");
        digits(count)
            .and_then(|count| usize::try_from(count).ok())
            .filter(|count| (1..=MAX_GUESTS).contains(count))
            .ok_or_else(|| bad("LISTEN_FDS", count, &why))
    }

    /// Where and how often the service manager is to be notified.
    ///
    /// # Errors
    /// As above.
    pub fn service(&self) -> Result<ServiceConfig, Fatal> {
        Ok(ServiceConfig {
            notify_socket: self.get("NOTIFY_SOCKET").map(ToOwned::to_owned),
            alive_every: self.alive_every()?,
        })
    }

    /// Half of the time that the service manager waits for a sign of life.
    fn alive_every(&self) -> Result<Option<Duration>, Fatal> {
        let Some(usec) = self.get("WATCHDOG_USEC") else {
            return Ok(None);
        };
        if self.is_meant("WATCHDOG_PID")? == Some(false) {
            return Ok(None);
        }
        let half = digits(usec)
            .filter(|&usec| usec > 0)
            .ok_or_else(|| bad("WATCHDOG_USEC", usec, "is not a number of microseconds"))?
            / 2;
        Ok(Some(Duration::from_micros(half).max(MIN_INTERVAL)))
    }

    /// Whether the variable `name`, if there is one, has the number of this process.
    fn is_meant(&self, name: &str) -> Result<Option<bool>, Fatal> {
        let own = u64::from(std::process::id());
        let is_own = |value| {
            let pid = digits(value).map(|pid| pid == own);
            pid.ok_or_else(|| bad(name, value, "is not the number of a process"))
        };
        self.get(name).map(is_own).transpose()
    }
}

#[cold]
fn bad(name: &str, value: &OsStr, why: &str) -> Fatal {
    let value = value.to_string_lossy();
    let message = format!("environment variable {name}: '{value}' {why}");
    Fatal::new(ExitCode::Usage, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Option<OsString> {
        Some(std::process::id().to_string().into())
    }

    fn other() -> Option<OsString> {
        Some((std::process::id() + 1).to_string().into())
    }

    fn sockets(pid: Option<OsString>, fds: &str) -> Result<usize, String> {
        let mut environment = Environment(vec![("LISTEN_FDS", fds.into())]);
        environment.0.extend(pid.map(|pid| ("LISTEN_PID", pid)));
        environment.listen_fds().map_err(|fatal| fatal.message)
    }

    #[test]
    fn listen_fds_count_for_the_process_that_they_are_meant_for() {
        assert_eq!(sockets(own(), "2"), Ok(2));
        assert_eq!(sockets(own(), "64"), Ok(64));
        assert_eq!(sockets(other(), "2"), Ok(0));
        assert_eq!(sockets(other(), "junk"), Ok(0));
        assert_eq!(sockets(None, "2"), Ok(0));
        for count in ["", "0", "65", "-1", "+1", "1 ", "99999999999999999999"] {
            let message =
                format!("environment variable LISTEN_FDS: '{count}' is not a number from 1 to 64");
            assert_eq!(sockets(own(), count), Err(message));
        }
        let message = "environment variable LISTEN_PID: 'me' is not the number of a process";
        assert_eq!(sockets(Some("me".into()), "1"), Err(message.into()));
    }

    fn interval(pid: Option<OsString>, usec: &str) -> Result<Option<Duration>, String> {
        let mut environment = Environment(vec![("WATCHDOG_USEC", usec.into())]);
        environment.0.extend(pid.map(|pid| ("WATCHDOG_PID", pid)));
        let service = environment.service().map_err(|fatal| fatal.message)?;
        Ok(service.alive_every)
    }

    #[test]
    fn alive_every_is_half_of_what_the_watchdog_waits() {
        let half = Ok(Some(Duration::from_secs(1)));
        assert_eq!(interval(own(), "2000000"), half);
        assert_eq!(interval(None, "2000000"), half);
        assert_eq!(interval(other(), "2000000"), Ok(None));
        // Not a loop that does nothing else.
        assert_eq!(interval(None, "1"), Ok(Some(MIN_INTERVAL)));
        for usec in ["", "0", "-1", "1s", "18446744073709551616"] {
            let message = format!(
                "environment variable WATCHDOG_USEC: '{usec}' is not a number of microseconds"
            );
            assert_eq!(interval(None, usec), Err(message));
        }
        let message = "environment variable WATCHDOG_PID: '' is not the number of a process";
        assert_eq!(interval(Some("".into()), "1"), Err(message.into()));
    }
}
