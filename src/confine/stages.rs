// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The stages of confinement. [`close_inherited`] comes before the process opens anything, [`allow_fds`]
//! before it opens devices and sockets. [`restrict`] runs all others, between the last file opened and the
//! first byte from a front-end.
//!
//! | stage | takes away |
//! |---|---|
//! | [`close_inherited`] | fds that were inherited and not handed in |
//! | `no_new_privs` | rights that a program executed could gain |
//! | `drop_capabilities` | every capability, even where the daemon runs as root |
//! | `PR_SET_DUMPABLE` | core dumps, debuggers and `/proc/PID` of other processes of this user |
//! | `limit` | core dumps, other processes |
//! | [`landlock`] | the file system, but for removing our sockets; TCP; signals to others |
//! | [`seccomp`] | every system call that its table does not list |
//!
//! Should: skip nothing but what `--seccomp` turns off. Must not: leave a file open. Called by `main`.

use std::fs;
use std::io;
use std::os::fd::RawFd;

use crate::config::{MAX_REGIONS, SeccompMode};
use crate::confine::landlock;
use crate::confine::seccomp::{self, Pins};
use crate::error::{ExitCode, Fatal};
use crate::os::ffi::{self, prctl};
use crate::os::log;

/// Fds of the daemon itself: stdio, signals, timer, epoll, the service manager, and the table of mounts.
const FDS: u64 = 8;
/// Fds of a guest that is not connected: its socket, and the directory of that.
const FDS_OF_SOCKET: u64 = 2;
/// Fds of a guest that is served, beside its regions: connection, a pair of sockets, kick, call, err;
/// and what may have to be left open, which is 16 and all that a further message brings.
const FDS_OF_GUEST: u64 = 6 + 16 + 253;
/// Fds that one message can bring or need, for one guest at a time: all that a receipt brings beside
/// a table of regions, what waits for the kernel to close it, and a pair of sockets for that.
const FDS_OF_MESSAGE: u64 = 253 + 32 + 32 + 2;
/// With fewer, no guest of a usual front-end can be served: connection, a pair of sockets, kick, call,
/// err; eight regions, which is what vhost-user takes for granted, when they replace eight others;
/// and a pair of sockets to have these closed.
const FDS_TO_SERVE: u64 = 24;

/// Closes the fds that the process inherited, but stdio: none is used, and a front-end's socket or a
/// directory among them would get around the stages that follow.
///
/// An fd that is closed on execution was not inherited, and stays: a library that was loaded before
/// `main` may own it, or it was handed in and adopted. If the list of fds cannot be read, each number up to
/// `last_adopted` is tried, and all above it are closed.
pub fn close_inherited(last_adopted: RawFd) {
    let number = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
    let fds: Vec<RawFd> = match fs::read_dir("/proc/self/fd") {
        Ok(entries) => entries.filter_map(number).collect(),
        Err(_) => {
            // Nothing in this process knows them.
            let _ = ffi::close_range(last_adopted.saturating_add(1), RawFd::MAX);
            (0..=last_adopted).collect()
        }
    };
    for fd in fds.into_iter().filter(|&fd| fd > libc::STDERR_FILENO) {
        let is_inherited = |flags| flags & libc::FD_CLOEXEC == 0;
        if ffi::fcntl(fd, libc::F_GETFD).is_ok_and(is_inherited) {
            // Nothing in this process knows it.
            let _ = ffi::close_range(fd, fd);
        }
    }
}

/// Takes all rights from the process that it no longer needs.
///
/// # Errors
/// The kernel refused a stage.
pub fn restrict(mode: SeccompMode, pins: &Pins) -> Result<(), Fatal> {
    let failed = |stage: &str, error: &io::Error| {
        let what = format!("cannot confine the process: {stage}");
        Fatal::os(ExitCode::OsError, what, error)
    };
    let stages = [
        ("no_new_privs", prctl(libc::PR_SET_NO_NEW_PRIVS, 1)),
        ("capabilities", drop_capabilities()),
        ("dumpable", prctl(libc::PR_SET_DUMPABLE, 0)),
        ("resource limits", limit()),
    ];
    for (stage, result) in stages {
        result.map_err(|error| failed(stage, &error))?;
    }
    let otherwise = match mode {
        SeccompMode::Kill => libc::SECCOMP_RET_KILL_PROCESS,
        SeccompMode::Log => {
            log::warning(format_args!(
                "warning: --seccomp=log: the kernel only logs system calls that are not allowed"
            ));
            libc::SECCOMP_RET_LOG
        }
        SeccompMode::None => {
            log::warning(format_args!(
                "warning: --seccomp=none: there is neither a filter nor Landlock"
            ));
            return Ok(());
        }
    };
    if !landlock::restrict(&pins.directories).map_err(|error| failed("Landlock", &error))? {
        log::warning(format_args!(
            "warning: this kernel has no Landlock, only seccomp keeps the daemon from files"
        ));
    }
    seccomp::install(otherwise, pins).map_err(|error| failed("seccomp", &error))
}

/// Empties all five sets of capabilities.
fn drop_capabilities() -> io::Result<()> {
    // Refused without CAP_SETPCAP, and where the numbers end. What stays in the bounding set could
    // only be gained by execution, which no_new_privs rules out.
    let _ = (0..64).try_for_each(|capability| prctl(libc::PR_CAPBSET_DROP, capability));
    prctl(libc::PR_CAP_AMBIENT, CLEAR_AMBIENT)?;
    ffi::drop_capabilities()
}

const CLEAR_AMBIENT: u32 = 4; // PR_CAP_AMBIENT_CLEAR_ALL

/// Raises the limit of fds to all that the host allows, before devices and sockets are opened. Warns if
/// `guests` guests of `devices` devices can need more: then one guest can leave too few for another.
///
/// Not fewer than the host allows: their number also bounds how many of this user's files may be in
/// flight when the kernel is to close a front-end's fds (`deferred_close`).
///
/// # Errors
/// They are too few for a single guest.
pub fn allow_fds(guests: usize, devices: usize) -> Result<(), Fatal> {
    let failed = |error| Fatal::os(ExitCode::OsError, "cannot set RLIMIT_NOFILE", &error);
    let mut limits = ffi::limits(libc::RLIMIT_NOFILE, None).map_err(failed)?;
    let most = limits.rlim_max;
    let (least, wanted) = fds_needed(guests, devices);
    if most < least {
        let why = format!(
            "at most {most} open files are allowed (RLIMIT_NOFILE), but {least} are needed to serve a guest"
        );
        return Err(Fatal::new(ExitCode::OsError, why));
    }
    if most < wanted {
        log::warning(format_args!(
            "warning: at most {most} open files are allowed, the guests may need {wanted}"
        ));
    }
    limits.rlim_cur = most;
    ffi::limits(libc::RLIMIT_NOFILE, Some(&limits))
        .map(drop)
        .map_err(failed)
}

/// How many fds it takes to serve one of the guests, and all of them whatever they do.
fn fds_needed(guests: usize, devices: usize) -> (u64, u64) {
    let count = |n| u64::try_from(n).unwrap_or(u64::MAX);
    let each = |fds: u64| count(guests).saturating_mul(fds);
    let opened = [FDS, count(devices), each(FDS_OF_SOCKET)].iter().sum();
    let of_guests = each(count(MAX_REGIONS).saturating_add(FDS_OF_GUEST));
    let least = [opened, FDS_TO_SERVE].iter().sum();
    (least, [opened, of_guests, FDS_OF_MESSAGE].iter().sum())
}

/// Sets the limits that rule out core dumps and other processes.
fn limit() -> io::Result<()> {
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    ffi::limits(libc::RLIMIT_CORE, Some(&none))?;
    ffi::limits(libc::RLIMIT_NPROC, Some(&none)).map(drop)
}
