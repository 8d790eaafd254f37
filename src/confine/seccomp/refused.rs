// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Calls that the daemon must never be able to make, written down apart from the table: at least one
//! for each argument that a rule pins. A pin that is taken out of the table lets one of them through.

use super::{Pins, RULES, Rule, Test, c_long};
use crate::confine::bpf::tests::allows;

/// Rules that pin no argument, on purpose.
const UNPINNED: &[&str] = &[
    "SYS_brk",
    "SYS_close",
    "SYS_epoll_ctl",
    #[cfg(not(all(target_arch = "x86_64", target_env = "gnu")))]
    "SYS_epoll_pwait",
    #[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
    "SYS_epoll_wait",
    "SYS_exit_group",
    #[cfg(target_env = "musl")]
    "SYS_fstat",
    "SYS_fstatfs",
    "SYS_getpeername",
    "SYS_getpid",
    "SYS_gettid",
    #[cfg(target_env = "musl")]
    "SYS_madvise",
    "SYS_munmap",
    "SYS_rt_sigprocmask",
    "SYS_rt_sigreturn",
    "SYS_sigaltstack",
    "SYS_write",
];

const DEVICE: u32 = 40;
const DIRECTORY: u32 = 50;
/// Any file that is neither.
const OTHER: u32 = 51;
/// Not this process.
const PARENT: u32 = 1;

// Of the headers of Linux, not of the table.
const SPI_IOC_MESSAGE_1: u32 = 0x4020_6b00;
const SPI_IOC_WR_MODE32: u32 = 0x4004_6b05;
const SPI_IOC_WR_MAX_SPEED_HZ: u32 = 0x4004_6b04;
const TIOCSTI: u32 = 0x5412;
const TCP: i32 = libc::IPPROTO_TCP;
const CLOEXEC: i32 = libc::SOCK_CLOEXEC;
const CODE: i32 = libc::PROT_READ | libc::PROT_EXEC;
const NO_SIGPIPE: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// A call that is refused.
pub(super) struct Refused {
    /// What it would do.
    pub what: &'static str,
    pub number: c_long,
    pub arguments: [u64; 6],
}

macro_rules! refused {
    ($($(#[$target:meta])* $name:ident [$($argument:expr),+] $what:literal;)*) => {
        /// In the process that asks: some name it.
        pub(super) fn refused() -> Vec<Refused> {
            vec![$(
                $(#[$target])*
                Refused {
                    what: $what,
                    number: libc::$name,
                    arguments: padded(&[$($argument as u64),+]),
                },
            )*]
        }
    };
}

refused! {
    SYS_ioctl           [OTHER, SPI_IOC_MESSAGE_1]                  "a message to another file";
    SYS_ioctl           [OTHER, SPI_IOC_WR_MODE32]                  "the mode of another file";
    SYS_ioctl           [DEVICE, SPI_IOC_WR_MAX_SPEED_HZ]           "the speed of a device";
    SYS_ioctl           [DEVICE, TIOCSTI]                           "input for a terminal";

    SYS_setitimer       [libc::ITIMER_VIRTUAL]                      "a timer of CPU time";
    SYS_timerfd_settime [3, libc::TFD_TIMER_ABSTIME]                "a timer of absolute time";
    SYS_clock_gettime   [libc::CLOCK_REALTIME]                      "the time of day";

    SYS_accept4         [3, 0, 0, 0]                                "a connection that programs inherit";
    SYS_recvmsg         [3, 0, libc::MSG_OOB]                       "an urgent byte";
    SYS_sendmsg         [3, 0, 0]                                   "a message that may end in SIGPIPE";
    SYS_setsockopt      [3, TCP, libc::SO_OOBINLINE]                "an option of TCP";
    SYS_sendto          [3, 0, 0, 0]                                "bytes that may end in SIGPIPE";
    SYS_sendto          [3, 0, 0, NO_SIGPIPE, 0, 16]                "bytes to an address";
    SYS_setsockopt      [3, libc::SOL_SOCKET, libc::SO_SNDBUF]      "the size of a buffer";
    SYS_getsockopt      [3, TCP, libc::SO_DOMAIN]                   "an option of TCP, read";
    SYS_getsockopt      [3, libc::SOL_SOCKET, libc::SO_PEERCRED]    "another option, read";
    SYS_shutdown        [3, libc::SHUT_RD]                          "half of a shutdown";
    SYS_socketpair      [libc::AF_INET, libc::SOCK_STREAM | CLOEXEC, 0]  "a pair of the network";
    SYS_socketpair      [libc::AF_UNIX, libc::SOCK_DGRAM | CLOEXEC, 0]   "a pair for datagrams";
    SYS_socketpair      [libc::AF_UNIX, libc::SOCK_STREAM | CLOEXEC, 1]  "a pair of a protocol";

    SYS_fcntl           [3, libc::F_SETFL]                          "the flags of a file";
    SYS_statx           [libc::AT_FDCWD, 0, 0]                      "a file by its path";
    SYS_mmap            [0, 4096, CODE]                             "code";
    #[cfg(target_env = "musl")]
    SYS_mprotect        [0, 4096, CODE]                             "code of what was data";
    SYS_ppoll           [0, 2]                                      "a wait for two files";

    SYS_read            [3, 0, 4096]                                "a page of a file";
    SYS_pread64         [3, 0, 1]                                   "a byte of a file anywhere";
    SYS_statx           [OTHER, 0, libc::AT_SYMLINK_NOFOLLOW]       "a file of another directory";
    SYS_statx           [DIRECTORY, 0, 0]                           "what a link leads to";
    SYS_unlinkat        [OTHER, 0, 0]                               "a removal from another directory";
    SYS_unlinkat        [DIRECTORY, 0, libc::AT_REMOVEDIR]          "the removal of a directory";

    SYS_tgkill          [PARENT, PARENT, libc::SIGABRT]             "a signal to another process";
    SYS_tgkill          [own(), own(), libc::SIGUSR1]               "another signal";
    #[cfg(target_env = "musl")]
    SYS_tkill           [own(), libc::SIGUSR1]                      "another signal by the older call";
    SYS_rt_sigaction    [libc::SIGTERM]                             "a handler of another signal";
}

fn own() -> u32 {
    std::process::id()
}

fn padded(first: &[u64]) -> [u64; 6] {
    let mut arguments = [0; 6];
    arguments[..first.len()].copy_from_slice(first);
    arguments
}

/// With the numbers that the calls above have.
pub(super) fn pins() -> Pins {
    let fd = |number: u32| number.try_into().unwrap();
    Pins {
        devices: vec![fd(DEVICE)],
        directories: vec![fd(DIRECTORY)],
    }
}

fn fulfils(test: &Test, arguments: [u64; 6]) -> bool {
    let argument = arguments[test.argument as usize] as u32 & test.mask;
    pins().numbers(test.value).contains(&argument)
}

/// Whether a call keeps to a rule in all but one of its pins, which is `test`.
fn breaks_only(rule: &Rule, test: &Test, call: &Refused) -> bool {
    let others = rule
        .tests
        .iter()
        .filter(|other| !std::ptr::eq(*other, test));
    call.number == rule.number
        && !fulfils(test, call.arguments)
        && others
            .into_iter()
            .all(|other| fulfils(other, call.arguments))
}

#[test]
fn filter_refuses_every_call_that_must_not_be_made() {
    let rules: Vec<_> = pins().allowed().collect();
    for call in refused() {
        let number = call.number.try_into().unwrap();
        assert!(!allows(&rules, number, call.arguments), "{}", call.what);
    }
}

#[test]
fn rules_have_a_refused_call_for_every_argument_that_they_pin() {
    let refused = refused();
    for rule in RULES {
        for test in rule.tests {
            let shown = refused.iter().any(|call| breaks_only(rule, test, call));
            assert!(shown, "{}: no refused call differs in {test:?}", rule.name);
        }
    }
    for call in &refused {
        let of_one = |rule: &Rule| rule.tests.iter().any(|test| breaks_only(rule, test, call));
        assert!(RULES.iter().any(of_one), "{} differs in more", call.what);
    }
}

#[test]
fn rules_that_pin_nothing_are_those_listed() {
    let free = RULES.iter().filter(|rule| rule.tests.is_empty());
    let mut names: Vec<_> = free.map(|rule| rule.name).collect();
    names.sort_unstable();
    assert_eq!(names, UNPINNED);
}
