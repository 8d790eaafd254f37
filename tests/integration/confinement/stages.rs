// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Each stage, as `/proc` and the log show it.

use super::*;
use crate::rig::host::Landlock;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Arc;

/// Somebody who is not root and owns nothing.
const NOBODY: u32 = 65_534;
const CAPABILITIES: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

/// Soft and hard limit.
fn limits(daemon: &Daemon, name: &str) -> (String, String) {
    let text = fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let mut fields = line.expect("a limit").split_whitespace();
    let mut next = || fields.next().unwrap().to_owned();
    (next(), next())
}

/// Filters that the daemon is under; it answers nobody before its own, the last stage, is there.
fn filters(daemon: &Daemon) -> u32 {
    Raw::connect(&daemon.socket(0)).ask(raw::GET_FEATURES, &[]);
    daemon.status("Seccomp_filters").parse().unwrap()
}

#[test]
fn stages_all_show_in_proc() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
    assert_eq!(filters(&daemon), 2, "the rig's and its own");
    assert_eq!(daemon.status("Seccomp:"), "2");
    for set in CAPABILITIES {
        assert_eq!(daemon.status(set), "0".repeat(16), "{set}");
    }
    assert_eq!(daemon.status("NoNewPrivs"), "1");
    let zero = || ("0".to_owned(), "0".to_owned());
    assert_eq!(limits(&daemon, "Max core file size"), zero());
    assert_eq!(limits(&daemon, "Max processes"), zero());
    let (soft, hard) = limits(&daemon, "Max open files");
    assert_eq!(soft, hard);
    daemon.stop();
}

/// Bytes that the other end has not read.
fn unread(sock: &impl AsRawFd) -> i32 {
    let mut count = 0;
    let done = unsafe { libc::ioctl(sock.as_raw_fd(), libc::TIOCOUTQ, &mut count) };
    sys::check(done.into()).unwrap();
    count
}

/// Held up in the last stage but one, the daemon has a front-end's message waiting.
#[test]
fn stages_come_before_the_first_byte_from_a_front_end() {
    let host = Host::with_devices(1).landlock(Landlock::Waits);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    let early = Raw::connect(&daemon.socket(0));
    let message = Raw::encode(raw::GET_FEATURES, raw::VERSION, &[]);
    early.send_bytes(&message, &[]).unwrap();
    let confined = || limits(&daemon, "Max processes").1 == "0";
    assert!(sys::eventually(PATIENCE, confined));
    assert_eq!(daemon.status("Seccomp_filters"), "1", "the rig's");
    assert!(unread(&early.sock) > 0);
    host.set_landlock(Landlock::Kernel);
    assert_eq!(early.recv().unwrap().request, raw::GET_FEATURES);
    assert_eq!(daemon.status("Seccomp_filters"), "2");
    assert_eq!(unread(&early.sock), 0);
}

#[test]
fn stages_but_filter_and_landlock_are_there_with_seccomp_none() {
    let host = Host::with_devices(1).landlock(Landlock::Refuses);
    let setup = Setup::new(&host).device("/dev/spidev0.0");
    let daemon = setup.arg("--seccomp=none").start();
    daemon.wait_line(&["--seccomp=none"]);
    assert_eq!(filters(&daemon), 1, "the rig's");
    for set in CAPABILITIES {
        assert_eq!(daemon.status(set), "0".repeat(16), "{set}");
    }
    assert_eq!(daemon.status("NoNewPrivs"), "1");
    assert_eq!(limits(&daemon, "Max core file size").0, "0");
    assert_eq!(limits(&daemon, "Max processes").0, "0");
    assert_all_well(&daemon);
    daemon.stop();
}

#[test]
fn stages_are_all_there_with_seccomp_log() {
    let host = Host::with_devices(1);
    let setup = Setup::new(&host).device("/dev/spidev0.0");
    let daemon = setup.arg("--seccomp=log").start();
    daemon.wait_line(&["--seccomp=log"]);
    assert_eq!(filters(&daemon), 2);
    assert_all_well(&daemon);
    daemon.stop();
}

/// Run by somebody, `/proc/PID` of a process that is not dumpable is root's all the same, and so
/// closed to the other processes of that user.
#[test]
fn process_of_a_user_is_closed_to_that_users_other_processes() {
    if traced() {
        return;
    }
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host)
        .open_to_all()
        .device("/dev/spidev0.0")
        .before_exec(become_nobody)
        .start();
    assert_all_well(&daemon);
    let uids = format!("{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}");
    assert_eq!(daemon.status("Uid"), uids);
    let owner = |file: &str| {
        fs::metadata(format!("/proc/{}/{file}", daemon.pid()))
            .unwrap()
            .uid()
    };
    assert_eq!((owner("fd"), owner("mem")), (0, 0));
    daemon.stop();
}

fn become_nobody() -> std::io::Result<()> {
    sys::check(unsafe { libc::setgroups(0, std::ptr::null()) }.into())?;
    sys::check(unsafe { libc::setresgid(NOBODY, NOBODY, NOBODY) }.into())?;
    sys::check(unsafe { libc::setresuid(NOBODY, NOBODY, NOBODY) }.into())?;
    Ok(())
}

#[test]
fn landlock_that_the_kernel_has_not_is_one_line_and_the_daemon_serves() {
    let host = Host::with_devices(1).landlock(Landlock::Absent);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    daemon.wait_line(&["warning", "Landlock"]);
    assert_eq!(daemon.said().len(), 1, "{:#?}", daemon.said());
    assert_eq!(filters(&daemon), 2);
    assert_all_well(&daemon);
    daemon.stop();
}

#[test]
fn landlock_that_refuses_ends_the_start_and_leaves_nothing() {
    let host = Host::with_devices(1).landlock(Landlock::Refuses);
    let dir = tempfile::tempdir().unwrap();
    let path = format!("--socket-path={}", dir.path().join("s").display());
    let finished = setup::run(&host, &[path.as_str(), "--device=/dev/spidev0.0"]);
    let lines: Vec<_> = finished.stderr.lines().collect();
    assert_eq!(finished.status.code(), Some(71), "{lines:?}");
    assert!(lines.last().unwrap().contains("Landlock"), "{lines:?}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Without capabilities root cannot remove its socket from a directory that is somebody else's.
#[test]
fn socket_in_a_directory_of_somebody_else_stays_and_the_log_says_so() {
    let host = Host::with_devices(1);
    let dir = Arc::new(tempfile::tempdir().unwrap());
    std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let setup = || {
        Setup::new(&host)
            .in_dir(dir.clone())
            .guests(2)
            .device("/dev/spidev0.0")
    };
    for _ in 0..2 {
        let mut daemon = setup().start();
        assert_all_well(&daemon);
        daemon.signal(libc::SIGTERM);
        assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
        for n in 0..2 {
            let socket = daemon.socket(n);
            daemon.wait_line(&[socket.to_str().unwrap(), "stays", "denied"]);
            assert!(socket.exists(), "the next start replaces it");
            // The kernel closes it a moment after the end.
            assert!(sys::eventually(PATIENCE, || !daemon::listens(&socket)));
        }
    }
}
