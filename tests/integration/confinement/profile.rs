// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon inside the filter that a service manager makes of `--print-syscalls`, from its first
//! instruction on.
//!
//! For `tests/syscalls` these are starts of all kinds, without the profile: strace needs more.

use super::*;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use vhost_device_spi::confine::bpf::{Allowed, program};

const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;

/// The kernel's numbers, by name, from the C compiler's headers.
fn numbers() -> BTreeMap<String, u32> {
    let mut cc = Command::new("cc");
    cc.args([
        "-E",
        "-dM",
        "-include",
        "sys/syscall.h",
        "-x",
        "c",
        "/dev/null",
    ]);
    let output = cc.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let define = |line: &str| {
        let (name, number) = line.strip_prefix("#define __NR_")?.split_once(' ')?;
        Some((name.to_owned(), number.parse().ok()?))
    };
    text.lines().filter_map(define).collect()
}

fn names() -> Vec<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_vhost-device-spi"))
        .arg("--print-syscalls")
        .output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Puts the process under the profile, but for `without`; for `before_exec`.
fn profile(
    otherwise: u32,
    without: &str,
) -> impl FnMut() -> io::Result<()> + Send + Sync + 'static {
    let numbers = numbers();
    let names = names().into_iter().filter(|name| name != without);
    let allow = |name: String| Allowed {
        number: numbers[&name],
        conditions: Vec::new(),
    };
    let mut program = program(names.map(allow), otherwise);
    let traced = traced();
    move || {
        if traced {
            return Ok(());
        }
        let filter = libc::sock_fprog {
            len: program.len() as u16,
            filter: program.as_mut_ptr(),
        };
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        sys::check(unsafe { libc::syscall(libc::SYS_seccomp, mode, 0, &filter) }).map(drop)
    }
}

fn inside(host: &Host) -> Setup<'_> {
    Setup::new(host).before_exec(profile(KILL, ""))
}

#[test]
fn profile_leaves_the_daemon_its_whole_life() {
    for otherwise in [KILL, REFUSE] {
        let host = Host::with_devices(2);
        let setup = Setup::new(&host).before_exec(profile(otherwise, ""));
        let setup = setup.device("/dev/spidev0.0").device("/dev/spidev0.1");
        let mut daemon = setup.guests(3).env("RUST_BACKTRACE", "1").start();
        assert_all_well(&daemon);
        if !traced() {
            assert_eq!(daemon.status("Seccomp_filters"), "3");
        }
        host.fail_message(DEV, 0, When::OnWire, libc::EIO);
        let mut guest = Guest::connect(&daemon, 1);
        assert_eq!(guest.transfer(Head::default(), &[1], 0).result, TRANS_ERR);
        guest.memory.regions[0].file.set_len(0).unwrap();
        guest.kick.write(1).unwrap();
        daemon.signal(libc::SIGTERM);
        assert_eq!(
            daemon.wait(PATIENCE).code(),
            Some(0),
            "{:#?}",
            daemon.stderr()
        );
        assert!(!daemon.socket(0).exists());
    }
}

/// That the profile is a real one, and the names in it are not there for nothing.
#[test]
fn profile_without_a_name_that_is_needed_ends_the_daemon() {
    if traced() {
        return;
    }
    for name in [
        "openat",
        "capset",
        "unlinkat",
        "flock",
        "landlock_create_ruleset",
    ] {
        let host = Host::with_devices(1);
        let setup = Setup::new(&host).before_exec(profile(KILL, name));
        let mut daemon = setup.device("/dev/spidev0.0").launch();
        sys::eventually(PATIENCE, || {
            !daemon.alive() || daemon::listens(&daemon.socket(0))
        });
        if daemon.alive() {
            daemon.signal(libc::SIGTERM);
        }
        let status = daemon.wait(PATIENCE);
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        assert_eq!(signal, Some(libc::SIGSYS), "{name}");
    }
}

#[test]
fn profile_leaves_every_kind_of_start_alone() {
    let host = Host::with_devices(2);
    let stdio = inside(&host).closed_stdin().stderr(Stderr::Closed);
    let daemon = stdio.device("/dev/spidev0.0").start();
    Guest::connect(&daemon, 0).assert_served();
    daemon.stop();

    // Relative paths of the socket and, by a symbolic link, of a device.
    let dir = Arc::new(tempfile::tempdir().unwrap());
    symlink("/dev/spidev0.1", dir.path().join("link")).unwrap();
    let relative = inside(&host)
        .in_dir(dir.clone())
        .spelled(|_, _| vec!["--socket-path=s".into()]);
    let mut daemon = relative.device("link").launch();
    daemon.wait_line(&["listening on s"]);
    Guest::connect(&daemon, 0).assert_served();

    // In place of one that was killed.
    daemon.kill();
    let next = inside(&host).in_dir(dir).device("/dev/spidev0.1").start();
    assert_all_well(&next);
    next.stop();
}

/// With sockets handed in and made for a group, and a service manager that is told.
#[test]
fn profile_leaves_what_a_service_manager_brings_alone() {
    let (host, dir) = (Host::with_devices(1), tempfile::tempdir().unwrap());
    let path = dir.path().join("ours");
    let listener = UnixListener::bind(&path).unwrap();
    let manager = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let setup = Setup::new(&host).hand_in(&listener, 500);
    let setup = setup.before_exec(profile(KILL, "")).arg("--socket-fd=500");
    let setup = setup.spelled(|base, _| vec![format!("--socket={base}0")]);
    let setup = setup.arg("--socket-group=0").device("/dev/spidev0.0");
    let setup = setup.env("NOTIFY_SOCKET", dir.path().join("notify"));
    let daemon = setup.env("WATCHDOG_USEC", "2000").start();
    Plug::default().connect_to(&path).assert_served();
    Guest::connect(&daemon, 0).assert_served();
    let mut message = [0; 64];
    let mut next = || {
        loop {
            let len = manager.recv(&mut message).unwrap();
            let text = String::from_utf8(message[..len].to_vec()).unwrap();
            // The number of guests may be told at any time.
            if !text.starts_with("STATUS=") {
                return text;
            }
        }
    };
    assert_eq!(next(), "READY=1");
    assert_eq!(next(), "WATCHDOG=1");
    daemon.stop();
}

/// Two daemons that are started at once wait for each other's sockets.
#[test]
fn profile_leaves_the_wait_for_the_directory_alone() {
    let host = Host::with_devices(1);
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let lock = File::open(dir.path()).unwrap();
    lock.lock().unwrap();
    let daemon = inside(&host).in_dir(dir).device("/dev/spidev0.0").launch();
    std::thread::sleep(Duration::from_millis(500));
    assert!(!daemon::listens(&daemon.socket(0)));
    lock.unlock().unwrap();
    daemon.wait_listening();
    assert_all_well(&daemon);
    daemon.stop();
}

#[test]
fn profile_leaves_starts_that_end_alone() {
    let cases: [(&[&str], Option<i32>); 8] = [
        (&["--help"], Some(0)),
        (&["--print-capabilities"], Some(0)),
        (&["--fd=500", "--device=/dev/spidev0.0"], Some(64)),
        (&["--version"], Some(0)),
        (&["--print-syscalls"], Some(0)),
        (&["--no-such-option"], Some(64)),
        (
            &["--socket-path=/nowhere/s", "--device=/dev/spidev0.0"],
            Some(73),
        ),
        (
            &["--socket-path=/nowhere/s", "--device=/dev/spidev9.9"],
            Some(66),
        ),
    ];
    for (args, code) in cases {
        let host = Host::with_devices(1);
        let finished = setup::run_after(&host, args, profile(KILL, ""));
        assert_eq!(
            finished.status.code(),
            code,
            "{args:?}: {}",
            finished.stderr
        );
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("s0"), "").unwrap();
    let path = format!("--socket-path={}", dir.path().join("s").display());
    let args = [path.as_str(), "--device=/dev/spidev0.0"];
    let host = Host::with_devices(1);
    setup::run_after(&host, &args, profile(KILL, "")).refused(&["not a socket"]);
}
