//! The seccomp filter: the system calls that the running daemon makes, and nothing else.
//!
//! `RULES` is the policy, to be read line by line; the rest turns it into BPF. A rule is a system
//! call, tests on its arguments, and who needs it; several rules for one call are alternatives.
//! Whatever matches no rule, or comes from another architecture, is fatal.
//!
//! The C libraries and architectures differ in a few calls (`epoll_wait` or `epoll_pwait`, `fstat`
//! or `newfstatat`); their rules stand side by side.

use std::io;

use libc::{c_long, sock_filter, sock_fprog};

use crate::config::SeccompMode;
use crate::spidev::{MESSAGE_0, WR_MODE32};

/// A test on one argument, on its lower 32 bits: `argument & mask == value`.
#[derive(Debug, Clone, Copy)]
struct Test {
    argument: u32,
    mask: u32,
    value: u32,
}

/// A system call that is allowed.
#[derive(Debug, Clone, Copy)]
struct Rule {
    number: c_long,
    tests: &'static [Test],
}

const fn any(number: c_long) -> Rule {
    Rule { number, tests: &[] }
}

const fn test(number: c_long, tests: &'static [Test]) -> Rule {
    Rule { number, tests }
}

const fn equal(argument: u32, value: u32) -> Test {
    Test {
        argument,
        mask: u32::MAX,
        value,
    }
}

const SIZE_BITS: u32 = 0x3fff << 16;
const PROT_EXEC: u32 = 4;
const F_GETFD: u32 = 1;
const F_GET_SEALS: u32 = 1034;
const SOL_SOCKET: u32 = 1;
const SO_DOMAIN: u32 = 39;
const FIONREAD: u32 = 0x541b;
const SIOCOUTQ: u32 = 0x5411;

/// What is allowed, the data path first.
const RULES: &[Rule] = &[
    // event_loop
    #[cfg(target_arch = "x86_64")]
    any(libc::SYS_epoll_wait),
    any(libc::SYS_epoll_pwait),
    // spidev: SPI_IOC_MESSAGE of any size, and the mode
    test(
        libc::SYS_ioctl,
        &[Test {
            argument: 1,
            mask: !SIZE_BITS,
            value: MESSAGE_0,
        }],
    ),
    test(libc::SYS_ioctl, &[equal(1, WR_MODE32)]),
    // vring: call and err eventfds; log: stderr
    any(libc::SYS_write),
    // gate
    any(libc::SYS_recvmsg),
    test(libc::SYS_ioctl, &[equal(1, FIONREAD)]),
    test(libc::SYS_ioctl, &[equal(1, SIOCOUTQ)]),
    // gate: what the front-end's sockets are
    test(
        libc::SYS_getsockopt,
        &[equal(1, SOL_SOCKET), equal(2, SO_DOMAIN)],
    ),
    any(libc::SYS_getpeername),
    // the vhost crate's replies
    any(libc::SYS_sendmsg),
    // session, epoll
    any(libc::SYS_accept4),
    any(libc::SYS_epoll_ctl),
    any(libc::SYS_close),
    // std: debug builds check each fd that they close
    test(libc::SYS_fcntl, &[equal(1, F_GETFD)]),
    // event_loop: deadlines and signals
    any(libc::SYS_timerfd_settime),
    any(libc::SYS_read),
    any(libc::SYS_clock_gettime),
    // watchdog
    any(libc::SYS_setitimer),
    any(libc::SYS_rt_sigreturn),
    // memory, backend: what the front-end's fds are
    test(libc::SYS_fcntl, &[equal(1, F_GET_SEALS)]),
    any(libc::SYS_fstat),
    any(libc::SYS_newfstatat),
    any(libc::SYS_statx),
    any(libc::SYS_fstatfs),
    // memory, and the C library's allocator
    test(
        libc::SYS_mmap,
        &[Test {
            argument: 2,
            mask: PROT_EXEC,
            value: 0,
        }],
    ),
    any(libc::SYS_munmap),
    any(libc::SYS_mremap),
    any(libc::SYS_brk),
    any(libc::SYS_madvise),
    #[cfg(target_env = "musl")]
    test(
        libc::SYS_mprotect,
        &[Test {
            argument: 2,
            mask: PROT_EXEC,
            value: 0,
        }],
    ),
    // log
    #[cfg(target_arch = "x86_64")]
    any(libc::SYS_poll),
    any(libc::SYS_ppoll),
    // way_out
    any(libc::SYS_unlinkat),
    // the end of main, and of a panic
    any(libc::SYS_sigaltstack),
    any(libc::SYS_exit_group),
    any(libc::SYS_rt_sigprocmask),
    any(libc::SYS_rt_sigaction),
    any(libc::SYS_gettid),
    any(libc::SYS_getpid),
    any(libc::SYS_tgkill),
    #[cfg(target_env = "musl")]
    any(libc::SYS_tkill),
];

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;

/// Numbers from here on are x32's, on x86_64: the same calls by another door.
const X32_BIT: u32 = 0x4000_0000;

// Offsets in `struct seccomp_data`: number, architecture, instruction pointer, six arguments of
// 64 bits, little-endian.
const DATA_NUMBER: u32 = 0;
const DATA_ARCH: u32 = 4;
const DATA_ARGUMENTS: u32 = 16;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

const fn statement(code: u16, k: u32) -> sock_filter {
    sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

const fn jump(code: u16, k: u32, if_true: u8, if_false: u8) -> sock_filter {
    sock_filter {
        code,
        jt: if_true,
        jf: if_false,
        k,
    }
}

/// The filter as a program; `otherwise` is what becomes of a call that is not allowed.
fn program(rules: &[Rule], otherwise: u32) -> Vec<sock_filter> {
    let mut program = vec![
        statement(LOAD, DATA_ARCH),
        jump(JUMP_EQUAL, AUDIT_ARCH, 1, 0),
        statement(RETURN, otherwise),
        statement(LOAD, DATA_NUMBER),
        jump(JUMP_AT_LEAST, X32_BIT, 0, 1),
        statement(RETURN, otherwise),
    ];
    for rule in rules {
        push_rule(&mut program, rule);
    }
    program.push(statement(RETURN, otherwise));
    program
}

/// One rule: each failed test jumps behind it, where the number is loaded anew for the next rule.
fn push_rule(program: &mut Vec<sock_filter>, rule: &Rule) {
    let number = u32::try_from(rule.number).unwrap_or(u32::MAX);
    // Three instructions for each test, the return, and the number loaded anew.
    let tests_len = u8::try_from(rule.tests.len())
        .unwrap_or(u8::MAX)
        .saturating_mul(3);
    let reload = u8::from(tests_len > 0);
    let behind = tests_len.saturating_add(1).saturating_add(reload);
    program.push(jump(JUMP_EQUAL, number, 0, behind));
    let mut left = tests_len;
    for test in rule.tests {
        left = left.saturating_sub(3);
        let offset = DATA_ARGUMENTS.saturating_add(test.argument.saturating_mul(8));
        program.push(statement(LOAD, offset));
        program.push(statement(AND, test.mask));
        // A failed test goes on where the number is loaded anew.
        program.push(jump(JUMP_EQUAL, test.value, 0, left.saturating_add(1)));
    }
    program.push(statement(RETURN, libc::SECCOMP_RET_ALLOW));
    if reload > 0 {
        program.push(statement(LOAD, DATA_NUMBER));
    }
}

/// Puts the process under the filter; `no_new_privs` must be set. There is no way back.
///
/// # Errors
/// The kernel has no seccomp, or refused the filter.
pub fn install(mode: SeccompMode) -> io::Result<()> {
    let otherwise = match mode {
        SeccompMode::Kill => libc::SECCOMP_RET_KILL_PROCESS,
        SeccompMode::Log => libc::SECCOMP_RET_LOG,
        SeccompMode::None => return Ok(()),
    };
    let mut program = program(RULES, otherwise);
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

    const DENY: u32 = libc::SECCOMP_RET_KILL_PROCESS;

    /// Runs a filter as the kernel would, on the instructions that it uses.
    fn run(program: &[sock_filter], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend(number.to_le_bytes());
        data.extend(arch.to_le_bytes());
        data.extend([0; 8]);
        data.extend(arguments.iter().flat_map(|a| a.to_le_bytes()));
        let (mut at, mut accumulator) = (0, 0u32);
        loop {
            let i = program[at];
            at += 1;
            let taken = match i.code {
                LOAD => {
                    let k = i.k as usize;
                    accumulator = u32::from_le_bytes(data[k..k + 4].try_into().unwrap());
                    continue;
                }
                AND => {
                    accumulator &= i.k;
                    continue;
                }
                RETURN => return i.k,
                JUMP_EQUAL => accumulator == i.k,
                JUMP_AT_LEAST => accumulator >= i.k,
                code => panic!("instruction {code:#x}"),
            };
            at += usize::from(if taken { i.jt } else { i.jf });
        }
    }

    fn allowed(number: c_long, arguments: [u64; 6]) -> bool {
        let program = program(RULES, DENY);
        let number = u32::try_from(number).unwrap();
        run(&program, AUDIT_ARCH, number, arguments) == libc::SECCOMP_RET_ALLOW
    }

    #[test]
    fn filter_allows_exactly_the_numbers_of_the_table() {
        let program = program(RULES, DENY);
        for number in 0..1024u32 {
            // All-zero arguments pass no ioctl or fcntl test, so these are looked at below.
            let listed = RULES.iter().any(|r| r.number == c_long::from(number));
            let tested = RULES
                .iter()
                .any(|r| r.number == c_long::from(number) && !r.tests.is_empty());
            let allowed = run(&program, AUDIT_ARCH, number, [0; 6]) == libc::SECCOMP_RET_ALLOW;
            assert!(tested || listed == allowed, "system call {number}");
        }
    }

    #[test]
    fn filter_refuses_other_architectures_and_x32() {
        let program = program(RULES, DENY);
        let close = u32::try_from(libc::SYS_close).unwrap();
        assert_eq!(
            run(&program, AUDIT_ARCH, close, [0; 6]),
            libc::SECCOMP_RET_ALLOW
        );
        assert_eq!(run(&program, 0x4000_0003, close, [0; 6]), DENY);
        assert_eq!(run(&program, AUDIT_ARCH, close | X32_BIT, [0; 6]), DENY);
    }

    #[test]
    fn filter_looks_at_arguments() {
        let ioctl = |request: u32| allowed(libc::SYS_ioctl, [3, request.into(), 0, 0, 0, 0]);
        assert!(ioctl(MESSAGE_0 | (32 << 16)));
        assert!(ioctl(MESSAGE_0 | ((511 * 32) << 16)));
        assert!(ioctl(WR_MODE32));
        assert!(ioctl(FIONREAD));
        assert!(!ioctl(0x5401)); // TCGETS
        assert!(!ioctl(MESSAGE_0 | 4)); // WR_MAX_SPEED_HZ without its size
        let mmap = |prot: u64| allowed(libc::SYS_mmap, [0, 4096, prot, 0, 0, 0]);
        assert!(mmap(3));
        assert!(!mmap(5));
        let fcntl = |command: u64| allowed(libc::SYS_fcntl, [3, command, 0, 0, 0, 0]);
        assert!(fcntl(F_GET_SEALS.into()));
        assert!(!fcntl(4)); // F_SETFL
    }

    #[test]
    fn filter_has_no_way_to_files_processes_or_networks() {
        for number in [
            libc::SYS_openat,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_execve,
            libc::SYS_clone,
            libc::SYS_ptrace,
            libc::SYS_mprotect,
            libc::SYS_process_vm_readv,
        ] {
            assert!(!allowed(number, [0; 6]), "system call {number}");
        }
    }
}
