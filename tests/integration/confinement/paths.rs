// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Ways out and rare ways under the real filter: each ends as it would without, not by SIGSYS. (A panic: `rig_self`.)
//!
//! Nothing is known that makes the binary take them, so programs of our own do, on its own code.

use super::*;
use crate::rig::program::{self, is_program};
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use vhost_device_spi::config::SeccompMode;
use vhost_device_spi::confine::seccomp::Pins;
use vhost_device_spi::confine::stages;
use vhost_device_spi::virtqueue::sigbus;

fn restrict() {
    stages::restrict(SeccompMode::Kill, &Pins::default()).unwrap();
}

/// Runs a test as a program; the signal that ended it, and its stderr.
fn ended(test: &str, host: &Host, argument: &Path) -> (Option<i32>, String) {
    let test = format!("confinement::paths::{test}");
    let program = program::spawn(&test, host, argument, None);
    let output = program.wait_with_output().unwrap();
    let shown = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.signal(), shown)
}

#[test]
fn abort_under_the_filter_with_sigabrt_ignored_ends_by_it() {
    if is_program() {
        unsafe { libc::signal(libc::SIGABRT, libc::SIG_IGN) };
        restrict();
        std::process::abort();
    }
    let test = "abort_under_the_filter_with_sigabrt_ignored_ends_by_it";
    let (signal, shown) = ended(test, &Host::new(), Path::new("1"));
    assert_eq!(signal, Some(libc::SIGABRT), "{shown}");
}

/// A page of a file that has none: reading it is SIGBUS, and no guest's memory is near.
#[test]
fn fault_of_our_own_under_the_filter_ends_by_sigbus() {
    if is_program() {
        sigbus::install().unwrap();
        let (file, null) = (sys::memfd(0), std::ptr::null_mut());
        let (read, shared) = (libc::PROT_READ, libc::MAP_SHARED);
        let at = unsafe { libc::mmap(null, 4096, read, shared, file.as_raw_fd(), 0) };
        restrict();
        unsafe { at.cast::<u8>().read_volatile() };
        return;
    }
    let test = "fault_of_our_own_under_the_filter_ends_by_sigbus";
    let (signal, shown) = ended(test, &Host::new(), Path::new("1"));
    assert_eq!(signal, Some(libc::SIGBUS), "{shown}");
}

/// The standard library's handler takes itself away, and the access is made again.
#[test]
fn segfault_under_the_filter_ends_by_sigsegv() {
    if is_program() {
        restrict();
        unsafe { std::ptr::without_provenance::<u8>(8).read_volatile() };
        return;
    }
    let test = "segfault_under_the_filter_ends_by_sigsegv";
    let (signal, shown) = ended(test, &Host::new(), Path::new("1"));
    assert_eq!(signal, Some(libc::SIGSEGV), "{shown}");
}

#[test]
fn stack_overflow_under_the_filter_ends_by_sigabrt() {
    #[allow(unconditional_recursion, reason = "it is what is tested")]
    fn deeper(n: u64) -> u64 {
        std::hint::black_box(deeper(std::hint::black_box(n) + 1) + 1)
    }
    if is_program() {
        restrict();
        deeper(0);
    }
    let test = "stack_overflow_under_the_filter_ends_by_sigabrt";
    let (signal, shown) = ended(test, &Host::new(), Path::new("1"));
    assert_eq!(signal, Some(libc::SIGABRT), "{shown}");
    assert!(shown.contains("overflow"), "{shown}");
}

/// Goes on in a child, which has this thread alone, like the daemon: another one may hold the allocator's lock, for which
/// no rule allows to wait. Ends as the child does.
fn leave_other_threads() {
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork");
    if child > 0 {
        let mut status = 0;
        unsafe { libc::waitpid(child, &mut status, 0) };
        if libc::WIFSIGNALED(status) {
            unsafe { libc::raise(libc::WTERMSIG(status)) };
        }
        unsafe { libc::_exit(libc::WEXITSTATUS(status)) };
    }
}

/// Far more than the daemon ever has, in pieces that come from the heap and from mappings, grown
/// piece by piece, given back in another order. No piece that is a mapping is grown: `mremap()` is
/// not allowed, and nothing in the daemon is that large.
#[test]
fn allocations_under_the_filter_are_served() {
    if is_program() {
        leave_other_threads();
        restrict();
        let mut pieces = Vec::with_capacity(4000);
        for n in 0..4000usize {
            let mut piece = vec![0u8; n % 60_000 * 16];
            piece.shrink_to_fit();
            pieces.push(piece);
        }
        while pieces.len() > 1 {
            pieces.swap_remove(pieces.len() / 2);
        }
        let mut grown = Vec::new();
        (0..100_000u32).for_each(|n| grown.push(n as u8));
        drop((pieces, grown));
        unsafe { libc::_exit(0) };
    }
    let (signal, shown) = ended(
        "allocations_under_the_filter_are_served",
        &Host::new(),
        Path::new("1"),
    );
    assert_eq!(signal, None, "{shown}");
}

#[test]
fn debug_build_serves_under_its_filter() {
    if traced() {
        return;
    }
    let host = Host::with_devices(1);
    let setup = Setup::new(&host).program(env!("CARGO_BIN_EXE_vhost-device-spi"));
    let daemon = setup.device("/dev/spidev0.0").start();
    assert_all_well(&daemon);
    assert_eq!(daemon.status("Seccomp_filters"), "2");
    daemon.stop();
}

/// Hides the vDSO from the program that the calling thread is about to be the parent of.
fn trace_me() -> std::io::Result<()> {
    let null = std::ptr::null_mut::<u8>();
    sys::check(unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, null, null) }).map(drop)
}

/// Turns the entry of the auxiliary vector that says where the vDSO is into one that says nothing.
fn hide_vdso(pid: u32) {
    const IGNORE: u64 = 1; // AT_IGNORE
    const VDSO: u64 = 33; // AT_SYSINFO_EHDR
    let vector = fs::read(format!("/proc/{pid}/auxv")).unwrap();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let stack = maps.lines().find(|line| line.ends_with("[stack]")).unwrap();
    let (start, end) = stack.split_once(' ').unwrap().0.split_once('-').unwrap();
    let hex = |text| u64::from_str_radix(text, 16).unwrap();
    let (start, end) = (hex(start), hex(end));
    let mut bytes = vec![0; (end - start) as usize];
    assert!(sys::read_memory(pid, start, &mut bytes));
    let at = bytes.windows(vector.len()).position(|part| part == vector);
    let words = vector
        .chunks_exact(16)
        .map(|entry| u64::from_ne_bytes(entry[..8].try_into().unwrap()));
    let entry = words.into_iter().position(|kind| kind == VDSO).unwrap();
    let at = start + (at.unwrap() + 16 * entry) as u64;
    assert!(sys::write_memory(pid, at, &IGNORE.to_ne_bytes()));
}

#[test]
fn clock_without_vdso_serves() {
    if traced() {
        return;
    }
    let host = Host::with_devices(1);
    let setup = Setup::new(&host).device("/dev/spidev0.0");
    let daemon = setup.before_exec(trace_me).launch();
    let pid = daemon.pid();
    let mut status = 0;
    // Stopped at the first instruction of the program.
    assert_eq!(
        unsafe { libc::waitpid(pid.cast_signed(), &mut status, 0) },
        pid.cast_signed()
    );
    assert!(libc::WIFSTOPPED(status));
    hide_vdso(pid);
    let null = std::ptr::null_mut::<u8>();
    unsafe { libc::ptrace(libc::PTRACE_DETACH, pid, null, null) };
    daemon.wait_listening();
    let calls = crate::syscalls::counted(&daemon, || assert_all_well(&daemon));
    assert!(
        calls.get("clock_gettime").is_some_and(|count| *count > 0),
        "{calls:?}"
    );
    daemon.stop();
}
