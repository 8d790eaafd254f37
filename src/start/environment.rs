//! What a service manager says in variables of the environment, by systemd's conventions:
//! sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).
//!
//! They are taken out of the environment when the process begins, and judged when it is known that
//! it is to serve. What they say of another process, by its number, is not for us.

use std::ffi::{OsStr, OsString};
use std::time::Duration;

use crate::config::{MAX_GUESTS, ServiceConfig, digits};
use crate::error::{ExitCode, Fatal};
use crate::os::ffi::remove_variable;

/// Shortest time between two signs of life, whatever is asked for.
const MIN_INTERVAL: Duration = Duration::from_millis(1);

/// The variables, as they were.
#[derive(Debug, Default)]
pub struct Environment {
    listen_pid: Option<OsString>,
    listen_fds: Option<OsString>,
    notify_socket: Option<OsString>,
    watchdog_pid: Option<OsString>,
    watchdog_usec: Option<OsString>,
}

impl Environment {
    /// Takes the variables out of the environment; before there is a second thread.
    pub fn take() -> Self {
        // The sockets are told apart by their order.
        take("LISTEN_FDNAMES");
        Self {
            listen_pid: take("LISTEN_PID"),
            listen_fds: take("LISTEN_FDS"),
            notify_socket: take("NOTIFY_SOCKET"),
            watchdog_pid: take("WATCHDOG_PID"),
            watchdog_usec: take("WATCHDOG_USEC"),
        }
    }

    /// How many sockets were handed in, from fd 3 on.
    ///
    /// # Errors
    /// One line that names the variable, its value and what is wrong with it.
    pub fn listen_fds(&self) -> Result<usize, Fatal> {
        let (Some(pid), Some(count)) = (&self.listen_pid, &self.listen_fds) else {
            return Ok(0);
        };
        if !is_own("LISTEN_PID", pid)? {
            return Ok(0);
        }
        let why = format!("is not a number from 1 to {MAX_GUESTS}");
        digits(count)
            .and_then(|count| usize::try_from(count).ok())
            .filter(|count| (1..=MAX_GUESTS).contains(count))
            .ok_or_else(|| bad("LISTEN_FDS", count, &why))
    }

    /// What the service manager wants to be told.
    ///
    /// # Errors
    /// As above.
    pub fn service(&self) -> Result<ServiceConfig, Fatal> {
        Ok(ServiceConfig {
            notify_socket: self.notify_socket.clone(),
            alive_every: self.alive_every()?,
        })
    }

    /// Half of the time that the service manager waits for a sign of life.
    fn alive_every(&self) -> Result<Option<Duration>, Fatal> {
        let Some(usec) = &self.watchdog_usec else {
            return Ok(None);
        };
        if let Some(pid) = &self.watchdog_pid
            && !is_own("WATCHDOG_PID", pid)?
        {
            return Ok(None);
        }
        let half = digits(usec)
            .filter(|&usec| usec > 0)
            .ok_or_else(|| bad("WATCHDOG_USEC", usec, "is not a number of microseconds"))?
            / 2;
        Ok(Some(Duration::from_micros(half).max(MIN_INTERVAL)))
    }
}

fn take(name: &str) -> Option<OsString> {
    let value = std::env::var_os(name)?;
    remove_variable(name);
    Some(value)
}

fn is_own(name: &str, value: &OsStr) -> Result<bool, Fatal> {
    digits(value)
        .map(|pid| pid == u64::from(std::process::id()))
        .ok_or_else(|| bad(name, value, "is not the number of a process"))
}

fn bad(name: &str, value: &OsStr, why: &str) -> Fatal {
    let value = value.display();
    Fatal::new(
        ExitCode::Usage,
        format!("environment variable {name}: '{value}' {why}"),
    )
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
        let environment = Environment {
            listen_pid: pid,
            listen_fds: Some(fds.into()),
            ..Environment::default()
        };
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
        let environment = Environment {
            watchdog_pid: pid,
            watchdog_usec: Some(usec.into()),
            ..Environment::default()
        };
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
