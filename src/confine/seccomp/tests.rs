// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The table and its filter, without the kernel: the filter is run by an interpreter.

use super::*;
use crate::confine::bpf::tests::allows;

fn pins() -> Pins {
    Pins {
        devices: vec![7, 40],
        directories: vec![5],
    }
}

fn allowed(number: c_long, arguments: [u64; 6]) -> bool {
    let rules: Vec<_> = pins().allowed().collect();
    allows(&rules, number.try_into().unwrap(), arguments)
}

/// Every number of the architecture, with two sets of arguments, one of which every test refuses.
#[test]
fn filter_allows_exactly_the_numbers_of_the_table() {
    for number in 0..1024 {
        let rules = || RULES.iter().filter(|rule| rule.number == number);
        let free = rules().any(|rule| rule.tests.is_empty());
        let whatever = allowed(number, [0; 6]) && allowed(number, [u64::MAX; 6]);
        assert_eq!(free, whatever, "system call {number}");
        assert!(
            !free || rules().count() == 1,
            "system call {number}: a rule too many"
        );
    }
}

/// For each rule: arguments that pass, and for each of its tests some that do not.
#[test]
fn filter_wants_every_argument_of_every_rule() {
    for allowed in pins().allowed() {
        let alone = [allowed.clone()];
        let mut good = [0u64; 6];
        for condition in &allowed.conditions {
            good[condition.argument as usize] = condition.values[0].into();
        }
        for condition in &allowed.conditions {
            for &value in &condition.values {
                let mut good = good;
                good[condition.argument as usize] = value.into();
                assert!(allows(&alone, allowed.number, good), "{allowed:?}");
            }
        }
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
    let rules: Vec<_> = Pins::default().allowed().collect();
    let ioctl = u32::try_from(libc::SYS_ioctl).unwrap();
    let message = u64::from(MESSAGE_0 | (32 << 16));
    assert!(!allows(&rules, ioctl, [0, message, 0, 0, 0, 0]));
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
        let (module, function) = rule.by.rsplit_once("::").unwrap();
        let module = module.replace("::", "/");
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
