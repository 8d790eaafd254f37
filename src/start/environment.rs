// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The settings that a service manager makes in variables of the environment, by systemd's conventions:
//! sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).
//!
//! They are validated only if the process is to serve. Variables that are meant for another process, by its
//! number in `LISTEN_PID` or `WATCHDOG_PID`, are ignored.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::config::digits;
use crate::error::{ExitCode, Fatal};

/// Shortest time between two signs of life, whatever is asked for.
const MIN_INTERVAL: Duration = Duration::from_millis(1);

/// The value of a variable, if there is one: `std::env::var_os()`, but for tests.
pub type Variables<'v> = &'v dyn Fn(&str) -> Option<OsString>;

/// How many sockets were handed in, from fd 3 on. Their names do not matter: they are told apart by
/// their order.
///
/// # Errors
/// One line that names the variable, its value and what is wrong with it.
pub fn listen_fds(variables: Variables<'_>) -> Result<usize, Fatal> {
    let name = "LISTEN_FDS";
    if variables(name).is_none() || is_meant(variables, "LISTEN_PID")? != Some(true) {
        return Ok(0);
    }
    let count = number(variables, name, 1..=64, "a number from 1 to 64")?;
    Ok(count.and_then(|count| count.try_into().ok()).unwrap_or(0))
}

/// Half of the time that the service manager waits for a sign of life.
///
/// # Errors
/// As [`listen_fds`].
pub fn alive_every(variables: Variables<'_>) -> Result<Option<Duration>, Fatal> {
    let name = "WATCHDOG_USEC";
    if variables(name).is_none() || is_meant(variables, "WATCHDOG_PID")? == Some(false) {
        return Ok(None);
    }
    let usec = number(variables, name, 1..=u64::MAX, "a number of microseconds")?;
    Ok(usec.map(|usec| Duration::from_micros(usec / 2).max(MIN_INTERVAL)))
}

/// Whether the variable `name`, if there is one, has the number of this process.
fn is_meant(variables: Variables<'_>, name: &str) -> Result<Option<bool>, Fatal> {
    let pid = number(variables, name, 0..=u64::MAX, "the number of a process")?;
    Ok(pid.map(|pid| pid == u64::from(std::process::id())))
}

/// The number in the variable `name`, if there is one.
fn number(
    variables: Variables<'_>,
    name: &str,
    allowed: RangeInclusive<u64>,
    what: &str,
) -> Result<Option<u64>, Fatal> {
    let Some(value) = variables(name) else {
        return Ok(None);
    };
    let number = digits(&value).filter(|number| allowed.contains(number));
    if number.is_none() {
        let value = value.to_string_lossy();
        let message = format!("environment variable {name}: '{value}' is not {what}");
        return Err(Fatal::new(ExitCode::Usage, message));
    }
    Ok(number)
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
        let found = listen_fds(&|name| match name {
            "LISTEN_FDS" => Some(fds.into()),
            "LISTEN_PID" => pid.clone(),
            _ => None,
        });
        found.map_err(|fatal| fatal.message)
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
        let found = alive_every(&|name| match name {
            "WATCHDOG_USEC" => Some(usec.into()),
            "WATCHDOG_PID" => pid.clone(),
            _ => None,
        });
        found.map_err(|fatal| fatal.message)
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
