//! The seccomp filter: the system calls that the running daemon makes, and nothing else.
//!
//! `RULES` is the policy, to be read line by line: a system call, tests on its arguments, and the
//! function that needs it; a `cfg` in front says for which targets it is. Several rules for one
//! call are alternatives. Whatever matches no rule, or comes from another architecture, is fatal.
//!
//! `STARTUP` names what the daemon needs before the filter is there, for service managers, which
//! confine it from its first instruction on.

use std::io;
use std::os::fd::RawFd;

use libc::{c_long, sock_fprog};

use crate::bpf::{Allowed, Condition, program};
use crate::config::SeccompMode;
use crate::spidev::{MESSAGE_0, WR_MODE32};

/// What an argument must be.
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
    argument: u32,
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

const fn is(argument: u32, value: u32) -> Test {
    masked(argument, u32::MAX, value)
}

const fn masked(argument: u32, mask: u32, value: u32) -> Test {
    Test {
        argument,
        mask,
        value: Value::Is(value),
    }
}

const fn any_of(argument: u32, value: Value) -> Test {
    Test {
        argument,
        mask: u32::MAX,
        value,
    }
}

const DEVICE: Test = any_of(0, Value::Device);
const DIRECTORY: Test = any_of(0, Value::Directory);
const OWN_PID: Test = any_of(0, Value::Process);
/// Bits of an ioctl's number that hold the size of its argument.
const SIZE_BITS: u32 = 0x3fff << 16;
const NOT_EXECUTABLE: Test = masked(2, 4, 0); // PROT_EXEC
const FIONREAD: u32 = 0x541b;
const SIOCOUTQ: u32 = 0x5411;
const F_GETFD: u32 = 1;
const F_GET_SEALS: u32 = 1034;
const AT_EMPTY_PATH: u32 = 0x1000;
const AT_SYMLINK_NOFOLLOW: u32 = 0x100;
/// `SOCK_CLOEXEC | SOCK_NONBLOCK`
const ACCEPT_FLAGS: u32 = 0o2_004_000;
/// `SOCK_STREAM | SOCK_CLOEXEC`
const PAIR_TYPE: u32 = 0o2_000_001;
const AF_UNIX: u32 = 1;
const SHUT_RDWR: u32 = 2;
const MSG_NOSIGNAL: u32 = 0x4000;
const CLOCK_MONOTONIC: u32 = 1;
const ITIMER_REAL: u32 = 0;
const SIGABRT: u32 = 6;
const SIGBUS: u32 = 7;
const SIGINFO_LEN: u32 = 128;

macro_rules! rules {
    ($($(#[$target:meta])* $name:ident [$($test:expr),*] $by:literal;)*) => {
        /// What is allowed, the data path first.
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
    SYS_epoll_wait      []                                              "event_loop::serve_until_signal";
    #[cfg(not(all(target_arch = "x86_64", target_env = "gnu")))]
    SYS_epoll_pwait     []                                              "event_loop::serve_until_signal";
    SYS_ioctl           [DEVICE, masked(1, !SIZE_BITS, MESSAGE_0)]      "spidev::transfer";
    SYS_ioctl           [DEVICE, is(1, WR_MODE32)]                      "spidev::write_mode";
    SYS_write           []                                              "vring::signal";
    SYS_setitimer       [is(0, ITIMER_REAL)]                            "watchdog::set_timer";
    SYS_rt_sigreturn    []                                              "watchdog::on_tick";
    SYS_timerfd_settime [is(1, 0)]                                      "event_loop::arm";
    SYS_clock_gettime   [is(0, CLOCK_MONOTONIC)]                        "event_loop::serve";

    // A front-end's connection and messages.
    SYS_accept4         [is(3, ACCEPT_FLAGS)]                           "listener::accept";
    SYS_epoll_ctl       []                                              "epoll::add";
    SYS_recvmsg         []                                              "gate::peek";
    SYS_ioctl           [is(1, FIONREAD)]                               "gate::count";
    SYS_ioctl           [is(1, SIOCOUTQ)]                               "gate::count";
    SYS_sendmsg         [is(2, MSG_NOSIGNAL)]                           "session::handle";
    SYS_shutdown        [is(1, SHUT_RDWR)]                              "listener::hang_up";
    SYS_socketpair      [is(0, AF_UNIX), is(1, PAIR_TYPE), is(2, 0)]    "garbage::new";
    SYS_close           []                                              "session::end";

    // What its fds are, and its memory.
    SYS_fcntl           [is(1, F_GET_SEALS)]                            "memory::check_file";
    SYS_statx           [masked(2, AT_EMPTY_PATH, AT_EMPTY_PATH)]       "gate::close_may_wait";
    #[cfg(target_env = "musl")]
    SYS_fstat           []                                              "backend::file_type";
    SYS_fstatfs         []                                              "memory::fits_pages";
    SYS_getpeername     []                                              "gate::is_socketpair";
    SYS_mmap            [NOT_EXECUTABLE]                                "memory::add";
    SYS_munmap          []                                              "memory::remove";

    // The C library's allocator.
    SYS_brk             []                                              "session::accept";
    SYS_mremap          []                                              "session::accept";
    #[cfg(target_env = "musl")]
    SYS_mprotect        [NOT_EXECUTABLE]                                "session::accept";
    #[cfg(target_env = "musl")]
    SYS_madvise         []                                              "session::accept";

    // Lines on stderr.
    SYS_ppoll           [is(1, 1)]                                      "log::is_writable";

    // The end.
    SYS_read            [is(2, SIGINFO_LEN)]                            "event_loop::wind_up";
    SYS_newfstatat      [DIRECTORY, is(3, AT_SYMLINK_NOFOLLOW)]         "listener::stat";
    SYS_unlinkat        [DIRECTORY, is(2, 0)]                           "listener::remove";
    SYS_sigaltstack     []                                              "main::main";
    SYS_exit_group      []                                              "main::main";

    // A panic, and a fault of our own.
    SYS_gettid          []                                              "way_out::install";
    SYS_getpid          []                                              "way_out::install";
    SYS_rt_sigprocmask  []                                              "way_out::install";
    SYS_rt_sigaction    [is(0, SIGABRT)]                                "way_out::install";
    SYS_tgkill          [OWN_PID, is(2, SIGABRT)]                       "way_out::install";
    #[cfg(target_env = "musl")]
    SYS_tkill           [is(1, SIGABRT)]                                "way_out::install";
    SYS_rt_sigaction    [is(0, SIGBUS)]                                 "sigbus::on_sigbus";

    // Debug builds check each fd that they close.
    SYS_fcntl           [is(1, F_GETFD)]                                "session::end";
}

/// What the daemon and the C library's loader need before the filter is there, in addition.
const STARTUP: &[&str] = &[
    "bind",
    "capset",
    "clock_nanosleep",
    "close_range",
    "connect",
    "dup",
    "epoll_create1",
    "execve",
    "flock",
    "fstat",
    "futex",
    "getcwd",
    "getdents64",
    "getrandom",
    "landlock_add_rule",
    "landlock_create_ruleset",
    "landlock_restrict_self",
    "listen",
    "lseek",
    "mprotect",
    "openat",
    "prctl",
    "pread64",
    "prlimit64",
    "readlinkat",
    "restart_syscall",
    "rseq",
    "sched_getaffinity",
    "seccomp",
    "set_robust_list",
    "set_tid_address",
    "signalfd4",
    "socket",
    "timerfd_create",
    "umask",
    #[cfg(target_arch = "aarch64")]
    "faccessat",
    #[cfg(target_arch = "x86_64")]
    "access",
    #[cfg(target_arch = "x86_64")]
    "arch_prctl",
    #[cfg(target_arch = "x86_64")]
    "open",
    #[cfg(target_arch = "x86_64")]
    "poll",
    #[cfg(target_arch = "x86_64")]
    "readlink",
    #[cfg(target_arch = "x86_64")]
    "unlink",
];

/// Every system call that the daemon may make from its first instruction on, by name, in order:
/// for a service manager's filter, such as systemd's `SystemCallFilter=`.
pub fn names() -> Vec<&'static str> {
    let rules = RULES
        .iter()
        .map(|rule| rule.name.trim_start_matches("SYS_"));
    let mut names: Vec<_> = rules.chain(STARTUP.iter().copied()).collect();
    names.sort_unstable();
    names.dedup();
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

    /// The rules with their numbers: one for each device or directory that a rule is about.
    fn apply(&self, rules: &[Rule]) -> Vec<Allowed> {
        rules
            .iter()
            .flat_map(|rule| self.alternatives(rule))
            .collect()
    }

    fn alternatives(&self, rule: &Rule) -> Vec<Allowed> {
        let numbers: Vec<Vec<u32>> = rule
            .tests
            .iter()
            .map(|test| self.numbers(test.value))
            .collect();
        // At most one of the tests has several.
        let count = if numbers.iter().any(Vec::is_empty) {
            0
        } else {
            numbers.iter().map(Vec::len).max().unwrap_or(1)
        };
        (0..count)
            .filter_map(|index| {
                let conditions = rule
                    .tests
                    .iter()
                    .zip(&numbers)
                    .filter_map(|(test, numbers)| {
                        Some(Condition {
                            argument: test.argument,
                            mask: test.mask,
                            value: *numbers.get(index).or_else(|| numbers.first())?,
                        })
                    });
                Some(Allowed {
                    number: rule.number.try_into().ok()?,
                    conditions: conditions.collect(),
                })
            })
            .collect()
    }
}

/// Puts the process under the filter; `no_new_privs` must be set. There is no way back.
///
/// # Errors
/// The kernel has no seccomp, or refused the filter.
pub fn install(mode: SeccompMode, pins: &Pins) -> io::Result<()> {
    let otherwise = match mode {
        SeccompMode::Kill => libc::SECCOMP_RET_KILL_PROCESS,
        SeccompMode::Log => libc::SECCOMP_RET_LOG,
        SeccompMode::None => return Ok(()),
    };
    let mut program = program(&pins.apply(RULES), otherwise);
    let filter = sock_fprog {
        len: program.len().try_into().map_err(io::Error::other)?,
        filter: program.as_mut_ptr(),
    };
    let operation = libc::c_ulong::from(libc::SECCOMP_SET_MODE_FILTER);
    // SAFETY: `filter` points to as many instructions as it says; the kernel copies them.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, operation, 0, &raw const filter) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::tests::allows;

    fn pins() -> Pins {
        Pins {
            devices: vec![7, 40],
            directories: vec![5],
        }
    }

    fn allowed(number: c_long, arguments: [u64; 6]) -> bool {
        allows(&pins().apply(RULES), number.try_into().unwrap(), arguments)
    }

    #[test]
    fn filter_allows_exactly_the_numbers_of_the_table() {
        for number in 0..1024 {
            // Numbers whose every rule looks at arguments are looked at below.
            let listed = RULES
                .iter()
                .any(|r| r.number == number && r.tests.is_empty());
            let tested = RULES
                .iter()
                .any(|r| r.number == number && !r.tests.is_empty());
            assert!(
                tested || listed == allowed(number, [0; 6]),
                "system call {number}"
            );
            assert!(!(tested && listed), "system call {number}: a rule too many");
        }
    }

    /// For each rule: arguments that pass, and for each of its tests some that do not.
    #[test]
    fn filter_wants_every_argument_of_every_rule() {
        for allowed in pins().apply(RULES) {
            let alone = [allowed.clone()];
            let mut good = [0u64; 6];
            for condition in &allowed.conditions {
                good[condition.argument as usize] = condition.value.into();
            }
            assert!(allows(&alone, allowed.number, good), "{allowed:?}");
            for condition in &allowed.conditions {
                let mut bad = good;
                // The lowest bit that is looked at.
                bad[condition.argument as usize] ^=
                    u64::from(condition.mask & condition.mask.wrapping_neg());
                assert!(!allows(&alone, allowed.number, bad), "{allowed:?}");
            }
        }
    }

    #[test]
    fn filter_pins_spi_ioctls_to_the_devices() {
        let message = u64::from(MESSAGE_0 | (32 << 16));
        let ioctl = |fd, request| allowed(libc::SYS_ioctl, [fd, request, 0, 0, 0, 0]);
        assert!(ioctl(7, message));
        assert!(ioctl(40, message));
        assert!(ioctl(40, WR_MODE32.into()));
        assert!(!ioctl(8, message));
        assert!(!ioctl(8, WR_MODE32.into()));
        assert!(!ioctl(7, u64::from(MESSAGE_0 | 4))); // WR_MAX_SPEED_HZ without its size
        assert!(!ioctl(7, 0x5401)); // TCGETS
    }

    #[test]
    fn filter_without_devices_has_no_spi_ioctl() {
        let pins = Pins::default();
        let rules = pins.apply(RULES);
        let ioctl = u32::try_from(libc::SYS_ioctl).unwrap();
        let message = u64::from(MESSAGE_0 | (32 << 16));
        assert!(!allows(&rules, ioctl, [0, message, 0, 0, 0, 0]));
        assert!(allows(&rules, ioctl, [0, FIONREAD.into(), 0, 0, 0, 0]));
    }

    #[test]
    fn filter_has_no_way_to_files_processes_or_networks() {
        for number in [
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_execve,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_io_uring_setup,
        ] {
            assert!(!RULES.iter().any(|rule| rule.number == number), "{number}");
        }
        let executable = (libc::PROT_READ | libc::PROT_EXEC) as u64;
        assert!(!allowed(libc::SYS_mmap, [0, 4096, executable, 0, 0, 0]));
    }

    /// Each rule names a function of ours that is there.
    #[test]
    fn rules_name_functions_that_exist() {
        for rule in RULES {
            let (module, function) = rule.by.split_once("::").unwrap();
            let path = format!("{}/src/{module}.rs", env!("CARGO_MANIFEST_DIR"));
            let source = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                source.contains(&format!("fn {function}(")),
                "{}: there is no {}",
                rule.name,
                rule.by
            );
        }
    }
}
