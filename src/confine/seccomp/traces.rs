// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The table against what `strace` saw of the daemon in all integration tests; `tests/syscalls` has
//! it look, and then runs this.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use super::*;

/// What start-up needs elsewhere, and why not in the traces.
const STARTUP_UNSEEN: &[(&str, &str)] = &[
    ("fstat", "glibc before 2.33 and from 2.39 on, and musl"),
    ("futex", "pthread_once() of glibc, where its start uses it"),
    ("open", "musl"),
    ("restart_syscall", "only when stopped while it sleeps"),
];

/// Rules that the traces need not show: call and function as in the table, why, and the test that shows it
/// instead.
const UNSEEN: &[[&str; 4]] = &[
    [
        "clock_gettime",
        "serve::event_loop::serve",
        "only where the kernel gives no vDSO",
        "clock_without_vdso_serves",
    ],
    [
        "pread64",
        "os::mounts::is_there",
        "only for a file on overlay and the like",
        "memory_in_a_plain_file_is_refused_and_its_socket_serves_on",
    ],
    [
        "brk",
        "serve::session::accept",
        "only where the heap's first piece is too small",
        "allocations_under_the_filter_are_served",
    ],
    [
        "gettid",
        "confine::emergency_cleanup::install",
        "abort()",
        "panic_releases_chip_select_restores_the_mode_and_removes_the_sockets",
    ],
    [
        "getpid",
        "confine::emergency_cleanup::install",
        "abort()",
        "panic_releases_chip_select_restores_the_mode_and_removes_the_sockets",
    ],
    [
        "rt_sigprocmask",
        "confine::emergency_cleanup::install",
        "abort()",
        "panic_releases_chip_select_restores_the_mode_and_removes_the_sockets",
    ],
    [
        "tgkill",
        "confine::emergency_cleanup::install",
        "abort()",
        "panic_releases_chip_select_restores_the_mode_and_removes_the_sockets",
    ],
    [
        "tkill",
        "confine::emergency_cleanup::install",
        "abort()",
        "panic_releases_chip_select_restores_the_mode_and_removes_the_sockets",
    ],
    [
        "rt_sigaction",
        "confine::emergency_cleanup::install",
        "abort() where SIGABRT is ignored",
        "abort_under_the_filter_with_sigabrt_ignored_ends_by_it",
    ],
    [
        "rt_sigaction",
        "virtqueue::sigbus::on_sigbus",
        "nothing known makes it happen",
        "fault_of_our_own_under_the_filter_ends_by_sigbus",
    ],
    [
        "rt_sigaction",
        "main::main",
        "nothing known makes it happen",
        "segfault_under_the_filter_ends_by_sigsegv",
    ],
    [
        "fcntl",
        "os::deferred_close::collect",
        "not in what ships",
        "debug_build_serves_under_its_filter",
    ],
];

/// The entries of [`UNSEEN`] about `rule`.
fn unseen(rule: &Rule) -> impl Iterator<Item = &'static [&'static str; 4]> {
    let call = rule.name.trim_start_matches("SYS_");
    UNSEEN
        .iter()
        .filter(move |[name, by, ..]| (*name, *by) == (call, rule.by))
}

/// One call of a trace.
struct Call {
    name: String,
    arguments: Vec<u64>,
}

impl Call {
    /// A line as `strace -e raw=all` writes it; `None` if it is no whole call.
    fn parse(line: &str) -> Option<Self> {
        let (name, rest) = line.split_once('(')?;
        let named = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if !name.bytes().all(named) {
            return None;
        }
        let (arguments, _) = rest.split_once(')')?;
        let arguments = arguments.split(", ").filter(|text| !text.is_empty());
        let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
        Some(Self {
            name: name.to_owned(),
            arguments: arguments.map(number).collect::<Option<_>>()?,
        })
    }

    /// Pins are the filter's to check: the traces do not tell which fd is what.
    fn matches(&self, rule: &Rule) -> bool {
        rule.name.trim_start_matches("SYS_") == self.name
            && rule.tests.iter().all(|test| match test.value {
                Value::Is(value) => self
                    .arguments
                    .get(test.argument as usize)
                    .is_some_and(|argument| *argument as u32 & test.mask == value),
                Value::Device | Value::Directory | Value::Process => true,
            })
    }
}

/// What was seen: names before the filter, rules after it, and calls that no rule allows.
#[derive(Default)]
struct Seen {
    before: BTreeSet<String>,
    rules: BTreeSet<usize>,
    outside: BTreeSet<String>,
}

impl Seen {
    fn read(&mut self, trace: &str) {
        let mut filtered = false;
        for line in trace.lines() {
            let Some(call) = Call::parse(line) else {
                continue;
            };
            match call.name.as_str() {
                // A number that went around is another process.
                "execve" => filtered = false,
                "seccomp" if line.ends_with("= 0") => {
                    self.before.insert(call.name);
                    filtered = true;
                    continue;
                }
                _ => (),
            }
            if filtered {
                self.check(&call, line);
            } else {
                self.before.insert(call.name);
            }
        }
    }

    fn check(&mut self, call: &Call, line: &str) {
        match RULES.iter().position(|rule| call.matches(rule)) {
            Some(rule) => {
                self.rules.insert(rule);
            }
            None => {
                self.outside.insert(line.to_owned());
            }
        }
    }
}

#[test]
#[ignore = "tests/syscalls runs it, on what it recorded"]
fn traces_show_the_table_and_nothing_else() {
    let traces = PathBuf::from(std::env::var_os("SYSCALL_TRACES").expect("set by tests/syscalls"));
    let mut seen = Seen::default();
    for file in fs::read_dir(traces).unwrap() {
        seen.read(&fs::read_to_string(file.unwrap().path()).unwrap());
    }
    assert_eq!(seen.outside, BTreeSet::new(), "allowed by no rule");

    let others = (0..RULES.len()).filter(|index| !seen.rules.contains(index));
    let missing: Vec<_> = others
        .map(|index| RULES[index])
        .filter(|rule| unseen(rule).count() == 0)
        .collect();
    assert!(missing.is_empty(), "never seen: {missing:#?}");

    let names: BTreeSet<_> = names().into_iter().map(str::to_owned).collect();
    let outside: Vec<_> = seen.before.difference(&names).collect();
    assert!(outside.is_empty(), "not for start-up: {outside:?}");
    let missing: Vec<_> = STARTUP
        .iter()
        .flat_map(|names| names.split(' '))
        .filter(|name| !seen.before.contains(*name))
        .filter(|name| !STARTUP_UNSEEN.iter().any(|(unseen, _)| unseen == name))
        .collect();
    assert!(missing.is_empty(), "never seen at start-up: {missing:?}");
}

#[test]
fn traces_are_read_as_strace_writes_them() {
    let mut seen = Seen::default();
    seen.read(
        "execve(0x7, 0x7, 0x7) = 0\nopenat(0xffffff9c, 0x7, 0, 0) = 0x3\n\
         seccomp(0x1, 0, 0x7) = 0\n--- SIGALRM {si_signo=SIGALRM} ---\n\
         shutdown(0x5, 0x2)   = 0\nshutdown(0x5, 0x1)   = 0\n\
         epoll_wait(0x7,  <unfinished ...>\n???()  = ?\n+++ exited with 0 +++\n",
    );
    let before: Vec<_> = seen.before.iter().map(String::as_str).collect();
    assert_eq!(before, ["execve", "openat", "seccomp"]);
    let rules: Vec<_> = seen.rules.iter().map(|&index| RULES[index].name).collect();
    assert_eq!(rules, ["SYS_shutdown"]);
    let outside: Vec<_> = seen.outside.iter().map(String::as_str).collect();
    assert_eq!(outside, ["shutdown(0x5, 0x1)   = 0"]);
}

/// A rule that needs not be seen is shown by a test of its own.
#[test]
fn rules_unseen_have_a_test_of_their_own() {
    let mut tests = String::new();
    let mut paths = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/integration")];
    while let Some(path) = paths.pop() {
        match fs::read_dir(&path) {
            Ok(entries) => paths.extend(entries.map(|entry| entry.unwrap().path())),
            Err(_) => tests += &fs::read_to_string(path).unwrap(),
        }
    }
    for [_, _, why, shown] in UNSEEN {
        assert!(!why.is_empty());
        let test = format!("#[test]\nfn {shown}()");
        assert!(tests.contains(&test), "no test {shown}");
    }
    let source = include_str!("../seccomp.rs");
    for [call, by, ..] in UNSEEN {
        let is_it = |line: &str| {
            line.contains(&format!("SYS_{call} ")) && line.contains(&format!("{by}\";"))
        };
        assert!(source.lines().any(is_it), "no rule {call} of {by}");
    }
}
