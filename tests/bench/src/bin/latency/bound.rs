//! How long a request may take at most: the formula of the README, with the settings of this run.

use crate::attack::{Attack, FAST_HZ, LONG_LEN};
use crate::cases::Case;

/// `--max-transfer-ms` of the daemon.
pub const MAX_TRANSFER_MS: u64 = 25;
/// `--max-transfer-len` of the daemon: such a transfer is one message.
pub const MAX_TRANSFER_LEN: usize = LONG_LEN;
/// Bytes of the measured guest's requests.
pub const LEN: usize = 16;

const MS: u64 = 1_000_000;
/// Most of the wire time of a message: 100 ms, or all that a transfer may have.
const MESSAGE_NS: u64 = min(100, MAX_TRANSFER_MS) * MS;
/// What the daemon, the kernel and the front-end do for a request, and for each other guest before
/// it; without its time on the wire.
const OWN_NS: u64 = MS;
/// A write that blocks, the first time and later.
const BLOCKED_FIRST_NS: u64 = 100 * MS;
const BLOCKED_NS: u64 = 10 * MS;
/// Each GiB of another front-end's memory.
const GIB_NS: u64 = 400 * MS;

/// The longest time in ns from a request to its completion, as the README states it.
pub fn bound_ns(case: &Case) -> u64 {
    let wire = LEN as u64 * 8 * 1_000_000_000 / u64::from(FAST_HZ);
    let others = case.others().count() as u64;
    let same = case.same.len() as u64 * 2 * MAX_TRANSFER_MS * MS;
    let elsewhere = if case.elsewhere.is_empty() {
        0
    } else {
        MESSAGE_NS
    };
    let memory: usize = case.others().map(Attack::memory_len).sum();
    let memory = ((memory as u64) * GIB_NS) >> 30;
    let blocks = case.others().filter(|a| *a == Attack::Block).count() as u64;
    let blocked = match blocks {
        0 => 0,
        _ => BLOCKED_FIRST_NS + BLOCKED_NS * (blocks - 1),
    };
    wire + OWN_NS * (1 + others) + same + elsewhere + memory + blocked
}

const fn min(a: u64, b: u64) -> u64 {
    if a < b { a } else { b }
}
