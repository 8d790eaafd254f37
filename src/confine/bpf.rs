// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The seccomp filter's program: a list of allowed system calls as instructions of classic BPF.
//!
//! Pure: numbers in, instructions out (`Documentation/userspace-api/seccomp_filter.rst` in Linux).

use libc::sock_filter;

/// A test on one argument, on its lower 32 bits: `argument & mask` is one of `values`. The arguments
/// that are tested are ints, of which the kernel looks at no more. Two are longer: `mmap()`'s protection,
/// whose bits are all in the lower half, and `read()`'s count, whose upper half makes no file
/// readable that is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Which argument, from 0 on.
    pub argument: u32,
    /// Bits that are looked at.
    pub mask: u32,
    /// What they may be: with none, the call is never allowed. A jump reaches over 255 instructions,
    /// which 64 numbers and a few further conditions stay below.
    pub values: Vec<u32>,
}

/// A system call that is allowed if all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    /// Its number.
    pub number: u32,
    /// Tests on its arguments.
    pub conditions: Vec<Condition>,
}

// Another architecture needs its number here, and its names of system calls in `seccomp`; the arguments
// are taken for 64 bits, little-endian.
#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;
#[cfg(target_arch = "riscv64")]
const AUDIT_ARCH: u32 = 0xc000_00f3;

// Offsets in `struct seccomp_data`: number, architecture, instruction pointer, six arguments of
// 64 bits, little-endian.
const DATA_NUMBER: u32 = 0;
const DATA_ARCH: u32 = 4;
const DATA_ARGUMENTS: u32 = 16;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

const fn statement(code: u16, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

const fn jump(code: u16, k: u32, if_true: u8, if_false: u8) -> sock_filter {
    sock_filter {
        code,
        jt: if_true,
        jf: if_false,
        k,
    }
}

/// The program that allows what is `allowed`; `otherwise` is the action on every other call. Those of x32,
/// on x86_64 the same calls by numbers of their own, are others.
pub fn program(allowed: impl Iterator<Item = Allowed>, otherwise: u32) -> Vec<sock_filter> {
    let mut program = vec![
        statement(LOAD, DATA_ARCH),
        jump(JUMP_EQUAL, AUDIT_ARCH, 1, 0),
        statement(RETURN, otherwise),
        statement(LOAD, DATA_NUMBER),
    ];
    for call in allowed {
        push(&mut program, &call);
    }
    program.push(statement(RETURN, otherwise));
    program
}

/// One call: a condition that does not hold jumps to after the return, where the number is loaded
/// anew for the next call.
fn push(program: &mut Vec<sock_filter>, call: &Allowed) {
    // For each condition its argument, the mask, and a jump for each value, the last of which fails.
    let len = |condition: &Condition| condition.values.len().saturating_add(2);
    let mut left: usize = call.conditions.iter().map(len).sum();
    let next_call = left.saturating_add(2);
    program.push(jump(JUMP_EQUAL, call.number, 0, distance(next_call)));
    for condition in &call.conditions {
        left = left.saturating_sub(len(condition));
        let offset = DATA_ARGUMENTS.saturating_add(condition.argument.saturating_mul(8));
        program.push(statement(LOAD, offset));
        program.push(statement(AND, condition.mask));
        for (others, &value) in (0..condition.values.len()).rev().zip(&condition.values) {
            let fails = if others == 0 {
                distance(left).saturating_add(1)
            } else {
                0
            };
            program.push(jump(JUMP_EQUAL, value, distance(others), fails));
        }
    }
    program.push(statement(RETURN, libc::SECCOMP_RET_ALLOW));
    program.push(statement(LOAD, DATA_NUMBER));
}

fn distance(instructions: usize) -> u8 {
    instructions.try_into().unwrap_or(u8::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const DENY: u32 = libc::SECCOMP_RET_KILL_PROCESS;

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
                code => panic!("instruction {code:#x}"),
            };
            at += usize::from(if taken { i.jt } else { i.jf });
        }
    }

    /// Whether a call of this architecture gets through.
    pub(crate) fn allows(allowed: &[Allowed], number: u32, arguments: [u64; 6]) -> bool {
        let program = program(allowed.iter().cloned(), DENY);
        run(&program, AUDIT_ARCH, number, arguments) == libc::SECCOMP_RET_ALLOW
    }

    fn call(number: u32, conditions: &[(u32, u32, &[u32])]) -> Allowed {
        let conditions = conditions
            .iter()
            .map(|&(argument, mask, values)| Condition {
                argument,
                mask,
                values: values.to_vec(),
            })
            .collect();
        Allowed { number, conditions }
    }

    #[test]
    fn program_wants_every_condition_of_one_alternative() {
        let allowed = [
            call(7, &[(0, u32::MAX, &[1]), (5, 0xf0, &[0x20])]),
            call(7, &[(0, u32::MAX, &[2])]),
            call(9, &[]),
        ];
        let seven = |first, last| allows(&allowed, 7, [first, 0, 0, 0, 0, last]);
        assert!(seven(1, 0x2f));
        assert!(!seven(1, 0x30));
        assert!(seven(2, 0x30));
        assert!(!seven(3, 0x2f));
        assert!(allows(&allowed, 9, [u64::MAX; 6]));
        assert!(!allows(&allowed, 8, [0; 6]));
    }

    #[test]
    fn program_wants_one_of_the_values_of_every_condition() {
        let numbers: Vec<u32> = (100..164).collect();
        let allowed = [
            call(7, &[(0, u32::MAX, &numbers), (1, u32::MAX, &[3, 5, 9])]),
            call(9, &[]),
        ];
        let seven = |first, second| allows(&allowed, 7, [first, second, 0, 0, 0, 0]);
        for first in 0..200 {
            for second in 0..11 {
                let expected = (100..164).contains(&first) && [3, 5, 9].contains(&second);
                assert_eq!(seven(first, second), expected, "{first} {second}");
            }
        }
        assert!(allows(&allowed, 9, [0; 6]));
    }

    #[test]
    fn program_refuses_other_architectures_and_x32() {
        let program = program([call(3, &[])].into_iter(), DENY);
        let run = |arch, number| run(&program, arch, number, [0; 6]);
        assert_eq!(run(AUDIT_ARCH, 3), libc::SECCOMP_RET_ALLOW);
        assert_eq!(run(0x4000_0003, 3), DENY);
        assert_eq!(run(AUDIT_ARCH, 3 | 0x4000_0000), DENY);
    }
}
