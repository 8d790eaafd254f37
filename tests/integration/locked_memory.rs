// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--lock-memory`: which pages are locked, what that is good for, and what the host must allow.

use crate::rig::ask::*;
use crate::rig::*;
use std::fs;

/// A mapping of the daemon.
struct Mapping {
    start: u64,
    len: u64,
    line: String,
    is_guests: bool,
    is_accessible: bool,
    is_locked: bool,
}

fn mappings(daemon: &Daemon) -> Vec<Mapping> {
    let text = fs::read_to_string(format!("/proc/{}/smaps", daemon.pid())).unwrap();
    let mut all: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let mapping = all.last_mut().unwrap();
            mapping.is_locked = flags.split_whitespace().any(|flag| flag == "lo");
        } else if let Some((start, end)) = words[0].split_once('-') {
            let hex = |text| u64::from_str_radix(text, 16).unwrap();
            let name = words.get(5).copied().unwrap_or_default();
            all.push(Mapping {
                start: hex(start),
                len: hex(end) - hex(start),
                line: line.to_owned(),
                is_guests: words[1].ends_with('s'),
                // What the kernel itself provides has no pages that could go.
                is_accessible: words[1].starts_with('r') && !name.starts_with("[v"),
                is_locked: false,
            });
        }
    }
    all
}

/// Minor and major page faults of the daemon so far.
fn page_faults(daemon: &Daemon) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
    let fields: Vec<&str> = text
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    fields[7].parse::<u64>().unwrap() + fields[9].parse::<u64>().unwrap()
}

/// Has the kernel take the daemon's own pages away, where it can.
fn page_out(daemon: &Daemon) {
    let pid = daemon.pid();
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    for mapping in mappings(daemon)
        .iter()
        .filter(|m| m.is_accessible && !m.is_guests)
    {
        let part = libc::iovec {
            iov_base: mapping.start as *mut _,
            iov_len: mapping.len as usize,
        };
        // Refused for what is locked.
        let advice = libc::MADV_PAGEOUT;
        unsafe { libc::syscall(libc::SYS_process_madvise, fd, &part, 1, advice, 0) };
    }
    unsafe { libc::close(fd as i32) };
}

/// Refused and carried out, short and in several messages, alone and together.
fn work(guest: &mut Guest) {
    let long = Ask {
        head: let_go(0),
        tx: 20_000,
        rx: 20_000,
    };
    let asks = [
        both(let_go(0)),
        long,
        both(keep(0)),
        both(let_go(0).bits(99)),
    ];
    let expected = [TRANS_OK, TRANS_OK, TRANS_OK, PARAM_ERR];
    assert_eq!(in_turn(guest, &asks), expected);
    assert_eq!(together(guest, &asks), expected);
}

#[test]
fn lock_memory_locks_all_pages_of_the_daemon_and_none_of_its_guests() {
    let host = Host::with_devices(1);
    let setup = Setup::new(&host).guests(64).device("/dev/spidev0.0");
    let daemon = setup.arg("--lock-memory").start();
    let mut guests: Vec<_> = (0..64).map(|n| Guest::connect(&daemon, n)).collect();
    guests.iter_mut().for_each(work);
    let (theirs, ours): (Vec<_>, Vec<_>) = mappings(&daemon).into_iter().partition(|m| m.is_guests);
    assert!(theirs.len() >= 64);
    for mapping in &theirs {
        assert!(!mapping.is_locked, "locked: {}", mapping.line);
    }
    // musl's allocator gives back what is free, and takes other pages for connections.
    let program = fs::read(setup::binary()).unwrap();
    let keeps_heap = program.windows(8).any(|bytes| bytes == b"ld-linux");
    let is_anonymous = |m: &Mapping| m.line.split_whitespace().count() == 5;
    for mapping in ours.iter().filter(|m| m.is_accessible) {
        let is_excused = !keeps_heap && is_anonymous(mapping);
        assert!(
            mapping.is_locked || is_excused,
            "not locked: {}",
            mapping.line
        );
    }
}

#[test]
fn lock_memory_keeps_requests_free_of_page_faults_when_pages_are_wanted_elsewhere() {
    let host = Host::with_devices(1);
    let dir = tempfile::tempdir().unwrap();
    // A program of its own: the pages of one that other processes run, too, stay anyway.
    let program = dir.path().join("daemon");
    fs::copy(setup::binary(), &program).unwrap();
    let setup = Setup::new(&host).program(program).device("/dev/spidev0.0");
    let daemon = setup.arg("--lock-memory").start();
    let mut guest = Guest::connect(&daemon, 0);
    // The guest's pages are met here for the first time, and no others later.
    let first = guest.alloc(1);
    work(&mut guest);
    page_out(&daemon);
    let before = page_faults(&daemon);
    for _ in 0..100 {
        guest.alloc_from(first);
        work(&mut guest);
    }
    assert_eq!(page_faults(&daemon) - before, 0);
}

#[test]
fn lock_memory_that_the_host_does_not_allow_is_refused_with_what_to_do() {
    let host = Host::with_devices(1);
    let dir = tempfile::tempdir().unwrap();
    let socket = format!("--socket={}", dir.path().join("s").display());
    let args = [&socket, "--device=/dev/spidev0.0", "--lock-memory"];
    let finished = setup::run_after(&host, &args, || {
        let none = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // Without the capability in the bounding set root does not get it by execution.
        let result = unsafe {
            libc::prctl(libc::PR_CAPBSET_DROP, 14 /* CAP_IPC_LOCK */, 0, 0, 0)
                | libc::setrlimit(libc::RLIMIT_MEMLOCK, &none)
        };
        (result == 0)
            .then_some(())
            .ok_or_else(std::io::Error::last_os_error)
    });
    let words = ["--lock-memory", "CAP_IPC_LOCK", "LimitMEMLOCK="];
    assert_eq!(finished.refused(&words), 77);
    assert!(!dir.path().join("s").exists());
}
