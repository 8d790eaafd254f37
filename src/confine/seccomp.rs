// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The seccomp filter: the system calls that the running daemon makes, and nothing else.
//!
//! `RULES` is the policy, to be read line by line: a system call, tests on its arguments, and the
//! function that needs it; a `cfg` in front says for which targets it is. Several rules for one
//! call are alternatives. A call that matches no rule, or comes from another architecture, ends the
//! process, or with `--seccomp=log` is logged.
//! `tests/syscalls` sees every rule used, but for those that `traces::UNSEEN` lists with the reason and the
//! test that shows them instead.
//!
//! `STARTUP` names the calls that are made before the filter is loaded, for service managers, which confine
//! the process from its first instruction on.

use std::io;
use std::os::fd::RawFd;

use libc::{
    AF_UNIX, AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW, CLOCK_MONOTONIC, F_GET_SEALS, F_GETFL,
    MSG_CMSG_CLOEXEC, MSG_DONTWAIT, MSG_NOSIGNAL, PROT_EXEC, SHUT_RDWR, SIGABRT, SIGBUS, SIGSEGV,
    SO_DOMAIN, SO_OOBINLINE, SOCK_CLOEXEC, SOCK_STREAM, SOL_SOCKET, c_int, c_long,
};

use crate::confine::bpf::{Allowed, Condition, program};
use crate::os::ffi;
use crate::spi::spidev::{MESSAGE_0, WR_MODE32};

/// The value that an argument must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    /// This number.
    Is(u32),
    /// The fd of an SPI device.
    Device,
    /// The fd of a directory with sockets.
    Directory,
    /// The number of this process.
    Process,
}

/// A test on one argument.
#[derive(Debug, Clone, Copy)]
struct Test {
    /// Its index.
    argument: u32,
    /// The bits that are looked at.
    mask: u32,
    value: Value,
}

/// A system call that is allowed.
#[derive(Debug, Clone, Copy)]
struct Rule {
    /// `SYS_` and its name.
    name: &'static str,
    number: c_long,
    tests: &'static [Test],
    /// The function that needs it.
    #[cfg(test)]
    by: &'static str,
}

/// Numbers that are only known at the end of start-up.
#[derive(Debug, Clone, Default)]
pub struct Pins {
    /// Fds of the SPI devices.
    pub devices: Vec<RawFd>,
    /// Fds of the directories with our sockets.
    pub directories: Vec<RawFd>,
}

const fn is(argument: u32, value: c_int) -> Test {
    test(argument, u32::MAX, Value::Is(bits(value)))
}

const fn test(argument: u32, mask: u32, value: Value) -> Test {
    Test {
        argument,
        mask,
        value,
    }
}

const fn bits(value: c_int) -> u32 {
    u32::from_ne_bytes(value.to_ne_bytes())
}

const DEVICE: Test = test(0, u32::MAX, Value::Device);
const DIRECTORY: Test = test(0, u32::MAX, Value::Directory);
const OWN_PID: Test = test(0, u32::MAX, Value::Process);
/// Bits of an ioctl's number that hold the size of its argument.
const SIZE_BITS: u32 = 0x3fff << 16;
const MESSAGE: Test = test(1, !SIZE_BITS, Value::Is(MESSAGE_0));
const WRITE_MODE: Test = test(1, u32::MAX, Value::Is(WR_MODE32));
const NOT_EXECUTABLE: Test = test(2, bits(PROT_EXEC), Value::Is(0));
const EMPTY_PATH: Test = test(2, bits(AT_EMPTY_PATH), Value::Is(bits(AT_EMPTY_PATH)));
/// musl and glibc do not agree on its type.
const ITIMER_REAL: c_int = 0;
const SIGINFO_LEN: c_int = 128;
const MOUNTS_LEN: c_int = 4096;
const PAIR_TYPE: c_int = SOCK_STREAM | SOCK_CLOEXEC;
const RECEIVE_FLAGS: c_int = MSG_DONTWAIT | MSG_CMSG_CLOEXEC;
const SEND_FLAGS: c_int = MSG_DONTWAIT | MSG_NOSIGNAL;

macro_rules! rules {
    ($(
        $(#[$target:meta])* $name:ident [$($test:expr),*] $by:literal;
    )*) => {
        /// The calls that are allowed, the data path first.
        const RULES: &[Rule] = &[$(
            $(#[$target])*
            Rule {
                name: stringify!($name),
                number: libc::$name,
                tests: &[$($test),*],
                #[cfg(test)]
                by: $by,
            },
        )*];
    };
}

rules! {
    // The way of one request.
    #[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
    SYS_epoll_wait      []                                              "serve::event_loop::serve_until_the_end";
    #[cfg(not(all(target_arch = "x86_64", target_env = "gnu")))]
    SYS_epoll_pwait     []                                              "serve::event_loop::serve_until_the_end";
    SYS_ioctl           [DEVICE, MESSAGE]                               "spi::spidev::transfer";
    SYS_ioctl           [DEVICE, WRITE_MODE]                            "spi::spidev::write_mode";
    SYS_write           []                                              "os::write_timeout::signal_eventfd";
    SYS_setitimer       [is(0, ITIMER_REAL)]                            "os::ffi::set_interval_timer";
    SYS_rt_sigreturn    []                                              "os::write_timeout::on_tick";
    SYS_timerfd_settime [is(1, 0)]                                      "os::deadline_timer::set";
    SYS_clock_gettime   [is(0, CLOCK_MONOTONIC)]                        "serve::event_loop::serve";

    // A front-end's connection and messages.
    SYS_accept4         [is(3, SOCK_CLOEXEC)]                           "os::listener::accept";
    SYS_setsockopt      [is(1, SOL_SOCKET), is(2, SO_OOBINLINE)]        "os::socket::receive_urgent_inline";
    SYS_epoll_ctl       []                                              "os::epoll::add";
    SYS_recvmsg         [is(2, RECEIVE_FLAGS)]                          "os::ffi::receive";
    SYS_sendto          [is(3, SEND_FLAGS), is(5, 0)]                   "os::ffi::send";
    SYS_recvmsg         [is(2, 0)]                                      "vhost_user::handler::hand_over";
    SYS_sendmsg         [is(2, MSG_NOSIGNAL)]                           "vhost_user::handler::hand_over";
    SYS_shutdown        [is(1, SHUT_RDWR)]                              "os::ffi::shut_down";
    SYS_socketpair      [is(0, AF_UNIX), is(1, PAIR_TYPE), is(2, 0)]    "os::deferred_close::collect";
    SYS_close           []                                              "os::deferred_close::collect";

    // What its fds are, and its memory.
    SYS_fcntl           [is(1, F_GET_SEALS)]                            "os::file_kind::of";
    SYS_fcntl           [is(1, F_GETFL)]                                "os::file_kind::of";
    SYS_statx           [EMPTY_PATH]                                    "os::file_kind::file_type";
    #[cfg(target_env = "musl")]
    SYS_fstat           []                                              "virtqueue::memory::check_file";
    SYS_fstatfs         []                                              "os::file_kind::huge_page_len";
    SYS_pread64         [is(2, MOUNTS_LEN)]                             "os::mounts::is_there";
    SYS_getsockopt      [is(1, SOL_SOCKET), is(2, SO_DOMAIN)]           "os::file_kind::is_unix";
    SYS_getpeername     []                                              "os::file_kind::unix_socket";
    SYS_mmap            [NOT_EXECUTABLE]                                "virtqueue::memory::add";
    SYS_munmap          []                                              "virtqueue::memory::remove";

    // The C library's allocator.
    SYS_brk             []                                              "serve::session::accept";
    #[cfg(target_env = "musl")]
    SYS_mprotect        [NOT_EXECUTABLE]                                "serve::session::accept";
    #[cfg(target_env = "musl")]
    SYS_madvise         []                                              "serve::session::accept";

    // Room on stderr.
    SYS_ppoll           [is(1, 1)]                                      "os::ffi::is_ready";

    // The end.
    SYS_read            [is(2, SIGINFO_LEN)]                            "os::signals::take";
    SYS_statx           [DIRECTORY, is(2, AT_SYMLINK_NOFOLLOW)]         "os::listener::identify";
    SYS_unlinkat        [DIRECTORY, is(2, 0)]                           "os::listener::remove";
    SYS_sigaltstack     []                                              "main::main";
    SYS_exit_group      []                                              "main::main";

    // A panic, and a fault of our own.
    SYS_gettid          []                                              "confine::emergency_cleanup::install";
    SYS_getpid          []                                              "confine::emergency_cleanup::install";
    SYS_rt_sigprocmask  []                                              "confine::emergency_cleanup::install";
    SYS_tgkill          [OWN_PID, is(2, SIGABRT)]                       "confine::emergency_cleanup::install";
    #[cfg(target_env = "musl")]
    SYS_tkill           [is(1, SIGABRT)]                                "confine::emergency_cleanup::install";
    SYS_rt_sigaction    [is(0, SIGABRT)]                                "confine::emergency_cleanup::install";
    SYS_rt_sigaction    [is(0, SIGBUS)]                                 "virtqueue::sigbus::on_sigbus";
    SYS_rt_sigaction    [is(0, SIGSEGV)]                                "main::main";

    // Debug builds check each fd that they close.
    #[cfg(debug_assertions)]
    SYS_fcntl           [is(1, libc::F_GETFD)]                          "os::deferred_close::collect";
}

/// The further calls of the daemon and of the C library's loader before the filter is there; a line for
/// each part of the start that needs them.
const STARTUP: &[&str] = &[
    // The loader and the start of the two C libraries, in the versions that are around.
    "execve fstat futex getrandom mprotect newfstatat openat pread64 prlimit64 rseq",
    "set_robust_list set_tid_address",
    #[cfg(target_arch = "x86_64")]
    "access arch_prctl open",
    #[cfg(not(target_arch = "x86_64"))]
    "faccessat",
    // The start of Rust's standard library: stdio that is closed is opened.
    "dup sched_getaffinity",
    #[cfg(target_arch = "x86_64")]
    "poll",
    // handed_in::adopt
    "getsockname",
    // assemble::prepare, assemble::open and assemble::assemble
    "epoll_create1 flock getcwd getdents64 signalfd4 timerfd_create",
    #[cfg(target_arch = "x86_64")]
    "readlink",
    #[cfg(not(target_arch = "x86_64"))]
    "readlinkat",
    // listener::create; the kernel goes on with a sleep by restart_syscall
    "bind clock_nanosleep connect fchownat listen restart_syscall socket umask",
    #[cfg(target_arch = "x86_64")]
    "unlink",
    // locked_memory::lock
    "mlockall",
    // stages::close_inherited and stages::restrict
    "capset close_range prctl seccomp",
    "landlock_add_rule landlock_create_ruleset landlock_restrict_self",
];

/// Every system call that the daemon may make from its first instruction on, by name, each
/// once: for a service manager's filter, such as systemd's `SystemCallFilter=`.
pub fn names() -> Vec<&'static str> {
    let rules = RULES
        .iter()
        .map(|rule| rule.name.trim_start_matches("SYS_"));
    let mut names = Vec::new();
    let startup = STARTUP.iter().flat_map(|names| names.split(' '));
    for name in rules.chain(startup) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

impl Pins {
    /// The numbers that stand for `value`.
    fn numbers(&self, value: Value) -> Vec<u32> {
        let fds = |fds: &[RawFd]| fds.iter().filter_map(|&fd| fd.try_into().ok()).collect();
        match value {
            Value::Is(number) => vec![number],
            Value::Device => fds(&self.devices),
            Value::Directory => fds(&self.directories),
            Value::Process => vec![std::process::id()],
        }
    }

    /// The rule with its numbers; `None` if it is about devices or directories and there are none.
    fn apply(&self, rule: &Rule) -> Option<Allowed> {
        let condition = |test: &Test| Condition {
            argument: test.argument,
            mask: test.mask,
            values: self.numbers(test.value),
        };
        let conditions: Vec<_> = rule.tests.iter().map(condition).collect();
        let is_possible = conditions.iter().all(|c| !c.values.is_empty());
        let number = rule.number.try_into().ok()?;
        is_possible.then_some(Allowed { number, conditions })
    }

    /// The calls that the filter allows.
    fn allowed(&self) -> impl Iterator<Item = Allowed> {
        RULES.iter().filter_map(|rule| self.apply(rule))
    }
}

/// Puts the process under the filter, which does `otherwise` on every call that no rule allows;
/// `no_new_privs` must be set. There is no way back.
///
/// # Errors
/// The kernel has no seccomp, or refused the filter.
pub fn install(otherwise: u32, pins: &Pins) -> io::Result<()> {
    ffi::seccomp(&mut program(pins.allowed(), otherwise))
}

#[cfg(test)]
#[allow(unsafe_code, reason = "UNSAFETY: processes that die of the filter")]
mod children;
#[cfg(test)]
mod refused;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod traces;
