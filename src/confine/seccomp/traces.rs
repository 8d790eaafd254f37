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

    let unseen = (0..RULES.len()).filter(|index| !seen.rules.contains(index));
    let missing: Vec<_> = unseen
        .map(|index| RULES[index])
        .filter(|rule| rule.unseen.is_empty())
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
    for rule in RULES {
        for (why, shown) in rule.unseen {
            assert!(!why.is_empty());
            let test = format!("#[test]\nfn {shown}()");
            assert!(tests.contains(&test), "{}: no test {shown}", rule.name);
        }
    }
}
