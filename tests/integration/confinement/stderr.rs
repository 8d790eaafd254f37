// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The log under the filter, whatever is behind stderr.

use super::*;
use crate::rig::program::{self, is_program};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;
use vhost_device_spi::config::{LogLevel, SeccompMode};
use vhost_device_spi::confine::seccomp::Pins;
use vhost_device_spi::confine::stages;
use vhost_device_spi::os::log;
use vhost_device_spi::os::write_timeout;

fn terminal() -> (OwnedFd, OwnedFd) {
    let (mut ours, mut theirs) = (0, 0);
    let null = std::ptr::null_mut::<u8>();
    let (name, mode, size) = (null.cast(), null.cast(), null.cast());
    let done = unsafe { libc::openpty(&mut ours, &mut theirs, name, mode, size) };
    sys::check(done.into()).unwrap();
    unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) }
}

/// Starts a daemon with `stderr` as its descriptor 2, has it log and end.
fn logs_to(stderr: &impl AsRawFd) {
    let host = Host::with_devices(1);
    let fd = unsafe { libc::dup(stderr.as_raw_fd()) };
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    let setup = Setup::new(&host).device("/dev/spidev0.0");
    let setup = setup.before_exec(move || {
        sys::check(unsafe { libc::dup2(owned.as_raw_fd(), 2) }.into()).map(drop)
    });
    let daemon = setup.start();
    for _ in 0..30 {
        let hostile = Raw::connect(&daemon.socket(0));
        hostile.send(999, raw::VERSION, &[], &[]).unwrap();
        assert!(hostile.hung_up(PATIENCE));
    }
    Guest::connect(&daemon, 0).assert_served();
    daemon.stop();
}

#[test]
fn stderr_of_every_kind_takes_lines_under_the_filter() {
    let dir = tempfile::tempdir().unwrap();
    let file = File::create(dir.path().join("log")).unwrap();
    logs_to(&file);
    let text = fs::read_to_string(dir.path().join("log")).unwrap();
    assert!(text.contains("listening") && text.contains("999"), "{text}");
    logs_to(&File::options().write(true).open("/dev/full").unwrap());
    logs_to(&terminal().1);
    let (sock, other) = UnixStream::pair().unwrap();
    logs_to(&sock);
    drop(other);
    logs_to(&sock);
}

/// A write beyond the limit would end the process by SIGXFSZ.
#[test]
fn stderr_file_as_long_as_files_may_be_takes_no_more_and_the_daemon_serves() {
    if traced() {
        // strace's own file would end there too.
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = File::create(dir.path().join("log")).unwrap();
    let limit = libc::rlimit {
        rlim_cur: 600,
        rlim_max: 600,
    };
    let host = Host::with_devices(1);
    let setup = Setup::new(&host).device("/dev/spidev0.0");
    let daemon = setup.before_exec(move || {
        sys::check(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) }.into())?;
        sys::check(unsafe { libc::dup2(file.as_raw_fd(), 2) }.into()).map(drop)
    });
    let daemon = daemon.start();
    let mut guest = Guest::connect(&daemon, 0);
    for _ in 0..12 {
        let refused = guest.transfer(Head::default().bits(0), &[1], 1);
        assert_eq!(refused.result, PARAM_ERR);
    }
    let written = fs::metadata(dir.path().join("log")).unwrap().len();
    assert!(written > 400, "{written} bytes");
    guest.assert_served();
    daemon.stop();
}

fn full_pipe() -> (OwnedFd, OwnedFd) {
    let mut fds = [0; 2];
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    sys::check(unsafe { libc::pipe2(fds.as_mut_ptr(), flags) }.into()).unwrap();
    let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) };
    let mut file = File::from(theirs.try_clone().unwrap());
    while file.write(&[0; 4096]).is_ok() {}
    (ours, theirs)
}

/// Where a wait is interrupted by a stop (or the freezer), some calls go on by `restart_syscall()`,
/// which no rule allows.
#[test]
fn line_stopped_on_its_way_to_a_full_pipe_goes_on() {
    let name = "confinement::stderr::line_stopped_on_its_way_to_a_full_pipe_goes_on";
    if is_program() {
        write_timeout::install().unwrap();
        stages::restrict(SeccompMode::Kill, &Pins::default()).unwrap();
        loop {
            log::line(LogLevel::Info, format_args!("into a full pipe"));
        }
    }
    let (_ours, theirs) = full_pipe();
    let mut program = program::spawn(name, &Host::new(), "1", Some(theirs));
    let pid = program.id().cast_signed();
    assert!(sys::eventually(PATIENCE, || filtered(pid)));
    for _ in 0..200 {
        for signal in [libc::SIGSTOP, libc::SIGCONT] {
            unsafe { libc::kill(pid, signal) };
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    assert_eq!(program.try_wait().unwrap(), None, "it goes on");
    program.kill().unwrap();
    assert_eq!(program.wait().unwrap().signal(), Some(libc::SIGKILL));
}

/// Whether some thread of the program is under two filters, the rig's and its own.
fn filtered(pid: i32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    tasks.flatten().any(|task| {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        status.lines().any(|line| line == "Seccomp_filters:\t2")
    })
}
