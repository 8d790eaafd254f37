// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The real filter in the real kernel: children that put themselves under it, make one call, and
//! live or die of SIGSYS.
//!
//! The test binary runs itself as a program with nothing but this in it, which forks the children:
//! a fork of the test binary itself would copy whatever its other tests are in the middle of.

use std::process::{Command, Stdio};

use super::refused::pins;
use super::*;

const ROLE: &str = "SECCOMP_CHILDREN";
/// What a child exits with when all its calls came back.
const ALIVE: i32 = 42;

/// Runs the test `name` again as the program; `true` in there.
fn is_program(name: &str) -> bool {
    if std::env::var_os(ROLE).is_some() {
        return true;
    }
    let name = format!("confine::seccomp::children::{name}");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &name, "--nocapture", "--test-threads=1"])
        .env(ROLE, "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (out, err) = (&output.stdout, &output.stderr);
    let shown = [out.as_slice(), err].map(String::from_utf8_lossy).concat();
    assert!(output.status.success(), "{shown}");
    assert!(shown.contains("1 passed"), "{shown}");
    false
}

/// Makes a call, whatever comes of it.
fn raw(number: c_long, a: [u64; 6]) {
    // SAFETY: the calls made here get no pointers but null and invalid ones, or do not come back.
    unsafe { libc::syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]) };
}

/// Forks a child that puts itself under the filter and then does `work`; its status.
fn child(work: impl FnOnce()) -> libc::c_int {
    // SAFETY: the other thread of this program only waits.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let one: libc::c_ulong = 1;
        // SAFETY: no pointers.
        unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, one, 0, 0, 0) };
        // The device and the directory, each with a neighbour that is neither.
        for fd in [40, 41, 50, 51] {
            // SAFETY: no pointers.
            unsafe { libc::dup2(0, fd) };
        }
        let ready = install(libc::SECCOMP_RET_KILL_PROCESS, &pins()).is_ok();
        if ready {
            work();
        }
        let code = if ready { ALIVE } else { 1 };
        // SAFETY: no pointers; nothing of the parent's is cleaned up.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: `status` has room for the result.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(waited, child);
    status
}

fn lives(work: impl FnOnce()) -> bool {
    let status = child(work);
    libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == ALIVE
}

fn dies(work: impl FnOnce()) -> bool {
    let status = child(work);
    libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS
}

/// Arguments that a rule allows. The others say fd -1 or null, so that the call does nothing.
fn good(allowed: &Allowed) -> [u64; 6] {
    let mut arguments = [u64::MAX, 0, 0, 0, 0, 0];
    for condition in &allowed.conditions {
        arguments[condition.argument as usize] = condition.values[0].into();
    }
    arguments
}

/// The rule as this process has it: the child's number is another one than its parent's.
fn here(rule: &Rule) -> Allowed {
    pins().apply(rule).unwrap()
}

#[test]
fn child_lives_by_every_rule_of_the_table() {
    if !is_program("child_lives_by_every_rule_of_the_table") {
        return;
    }
    // Its own exit, and a handler's return to nowhere, look like death: both are below.
    let special = [libc::SYS_exit_group, libc::SYS_rt_sigreturn];
    for rule in RULES {
        let number = rule.number;
        if !special.contains(&number) {
            let lives = lives(|| raw(number, good(&here(rule))));
            assert!(lives, "{} {:?}", rule.name, rule.tests);
        }
    }
    let status = child(|| raw(libc::SYS_exit_group, [7, 0, 0, 0, 0, 0]));
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7);
}

#[test]
fn child_returns_from_a_signal_handler() {
    if !is_program("child_returns_from_a_signal_handler") {
        return;
    }
    extern "C" fn on_abort(_signal: libc::c_int) {}
    let handler = on_abort as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: the handler does nothing.
    unsafe { libc::signal(libc::SIGABRT, handler) };
    assert!(lives(|| {
        // SAFETY: no pointers.
        let thread = unsafe { libc::gettid() };
        let (process, thread) = (std::process::id().into(), thread as u64);
        let abort = SIGABRT as u64;
        raw(libc::SYS_tgkill, [process, thread, abort, 0, 0, 0]);
    }));
}

/// Every test of every rule, one bit that it looks at changed at a time.
#[test]
fn child_dies_of_every_argument_that_is_another() {
    if !is_program("child_dies_of_every_argument_that_is_another") {
        return;
    }
    for rule in RULES {
        for test in rule.tests {
            let bits = (0..32).map(|shift| 1 << shift);
            for bit in bits.filter(|bit| test.mask & bit != 0) {
                let changed = || {
                    let mut arguments = good(&here(rule));
                    arguments[test.argument as usize] ^= u64::from(bit);
                    arguments
                };
                // SIGABRT and SIGBUS, each of which has a rule, are one bit apart.
                if !others_allow(rule, changed()) {
                    let dies = dies(|| raw(rule.number, changed()));
                    assert!(dies, "{} {test:?}, bit {bit:#x}", rule.name);
                }
            }
        }
    }
}

#[test]
fn child_dies_of_every_call_that_must_not_be_made() {
    if !is_program("child_dies_of_every_call_that_must_not_be_made") {
        return;
    }
    for (index, call) in refused::refused().into_iter().enumerate() {
        // The child's own number is another one than its parent's.
        let dies = dies(|| {
            let call = refused::refused().remove(index);
            raw(call.number, call.arguments);
        });
        assert!(dies, "{}", call.what);
    }
}

fn others_allow(rule: &Rule, arguments: [u64; 6]) -> bool {
    let others = RULES.iter().filter(|other| other.number == rule.number);
    others
        .filter(|other| !std::ptr::eq(*other, rule))
        .any(|other| {
            let conditions = here(other).conditions;
            conditions.iter().all(|condition| {
                let argument = arguments[condition.argument as usize] as u32;
                condition.values.contains(&(argument & condition.mask))
            })
        })
}

/// `uretprobe` and `uprobe`: Linux 6.14 and later let them through any filter. They do nothing for
/// who calls them by hand.
#[cfg(target_arch = "x86_64")]
const UNFILTERED: [c_long; 2] = [335, 336];
#[cfg(not(target_arch = "x86_64"))]
const UNFILTERED: [c_long; 0] = [];

/// Every number of this architecture that is not in the table, up to well beyond the last one.
#[test]
fn child_dies_of_every_call_that_no_rule_names() {
    if !is_program("child_dies_of_every_call_that_no_rule_names") {
        return;
    }
    let named = |number| RULES.iter().any(|rule| rule.number == number);
    for number in (0..512).filter(|number| !named(*number) && !UNFILTERED.contains(number)) {
        let dies = dies(|| raw(number, [u64::MAX; 6]));
        assert!(dies, "system call {number}");
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn child_dies_of_calls_by_another_door() {
    if !is_program("child_dies_of_calls_by_another_door") {
        return;
    }
    let x32 = 0x4000_0000 | libc::SYS_getpid;
    assert!(dies(|| raw(x32, [0; 6])));
    let status = child(|| {
        // SAFETY: getpid() of 32-bit programs, which reads no memory.
        unsafe { std::arch::asm!("int 0x80", inlateout("eax") 20 => _) };
    });
    // A kernel without 32-bit programs has no such entry.
    let ends = [libc::SIGSYS, libc::SIGSEGV];
    assert!(libc::WIFSIGNALED(status) && ends.contains(&libc::WTERMSIG(status)));
}
