// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The system calls of a request, counted by `strace`, which `tests/run` installs.

use crate::rig::*;
use std::collections::BTreeMap;
use std::process::{Command, Stdio};

/// The daemon's system calls by name while `work` is done.
pub fn counted(daemon: &Daemon, work: impl FnOnce()) -> BTreeMap<String, usize> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("calls");
    let mut strace = Command::new("strace")
        .args(["-q", "-p", &daemon.pid().to_string(), "-o"])
        .arg(&path)
        .stderr(Stdio::null())
        .spawn()
        .expect("strace is installed");
    assert!(sys::eventually(PATIENCE, || daemon.status("TracerPid") != "0"));
    work();
    // SAFETY: no pointers; it is our child and was not waited for.
    unsafe { libc::kill(strace.id().cast_signed(), libc::SIGINT) };
    strace.wait().unwrap();
    let mut calls = BTreeMap::new();
    for line in std::fs::read_to_string(&path).unwrap().lines() {
        // Signals and calls that go on are no calls of their own.
        if let Some((name, _)) = line.split_once('(')
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        {
            *calls.entry(name.to_owned()).or_default() += 1;
        }
    }
    calls
}

/// All of them but what the ticks cost that interrupt writes which block, and which come by the clock: arming them, their
/// handler, and the waits that they interrupt.
fn without_ticks(calls: &BTreeMap<String, usize>) -> usize {
    let count = |name: &str| calls.get(name).copied().unwrap_or_default();
    let all: usize = calls.values().sum();
    all - count("setitimer") - 2 * count("rt_sigreturn")
}

#[test]
fn request_alone_is_three_system_calls() {
    let (_host, daemon, mut guest) = plugged();
    let calls = counted(&daemon, || {
        for _ in 0..500 {
            assert_eq!(guest.transfer(Head::default(), b"abcd", 4).result, TRANS_OK);
        }
    });
    let count = |name: &str| calls.get(name).copied().unwrap_or_default();
    assert_eq!(count("ioctl"), 500, "{calls:?}");
    assert!(count("write") <= 500, "{calls:?}");
    // The wait into which strace came is one more.
    assert!(without_ticks(&calls) <= 3 * 500 + 2, "{calls:?}");
}

#[test]
fn requests_queued_together_share_the_wait_and_the_signal() {
    let (_host, daemon, mut guest) = plugged();
    sys::on_time(|| {
        let calls = counted(&daemon, || {
            for _ in 0..20 {
                for _ in 0..32 {
                    let request = guest.request(Head::default().cs_change(1), b"abcd", 4);
                    guest.queue(&request);
                }
                guest.kick();
                guest.wait_used(32);
            }
        });
        assert_eq!(calls["ioctl"], 640, "{calls:?}");
        // The faked device is slow, so that a batch may end for its length in time, several times.
        let few = without_ticks(&calls) < 640 * 3 / 2;
        few.then_some(()).ok_or(format!("{calls:?}"))
    });
}
