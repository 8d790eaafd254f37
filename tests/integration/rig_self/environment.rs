// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a service manager says is taken out of the environment: nobody who looks later is misled.

use super::*;
use vhost_device_spi::start::environment::Environment;

const NAMES: [&str; 6] = [
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

#[test]
fn environment_is_cleared_of_what_a_service_manager_said() {
    if is_program() {
        for name in NAMES {
            // SAFETY: the other thread of this program only waits.
            unsafe { std::env::set_var(name, "1") };
        }
        Environment::take();
        let left: Vec<_> = NAMES
            .iter()
            .filter(|name| std::env::var_os(name).is_some())
            .collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(std::env::var_os("PATH").is_some());
        return;
    }
    as_program(
        "environment::environment_is_cleared_of_what_a_service_manager_said",
        &Host::new(),
    );
}
