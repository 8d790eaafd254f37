// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

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
/// `--max-message-ms` of the daemon.
pub const MAX_MESSAGE_MS: u64 = 5;
/// What the daemon, the kernel and the front-end do for a request of each guest.
const OWN_NS: u64 = MS;
/// A write that blocks, the first time and later.
const BLOCKED_FIRST_NS: u64 = 100 * MS;
const BLOCKED_NS: u64 = 10 * MS;
/// Each GiB of another front-end's memory.
const GIB_NS: u64 = 400 * MS;

/// The longest time in ns from a request to its completion, as the README states it.
pub fn bound_ns(case: &Case) -> u64 {
    let wire = LEN as u64 * 8 * 1_000_000_000 / u64::from(FAST_HZ);
    let round = round_ns(case);
    // Each of them: a transfer of MAX_TRANSFER_LEN is a message, but for its time.
    let messages = MAX_TRANSFER_MS.div_ceil(MAX_MESSAGE_MS) + 1;
    let assertion = 2 * MAX_TRANSFER_MS * MS + messages * round;
    // The first write that blocks in the daemon's life takes longer.
    let once = match blocking(case) {
        0 => 0,
        _ => BLOCKED_FIRST_NS - BLOCKED_NS,
    };
    wire + round + case.same.len() as u64 * assertion + once
}

/// Until everybody who wants something else than the same controller had a turn.
fn round_ns(case: &Case) -> u64 {
    let guests = 1 + case.others().count() as u64;
    let message = u64::from(!case.elsewhere.is_empty()) * MAX_MESSAGE_MS * MS;
    let hostile = case.others().filter(|attack| *attack == Attack::Memory);
    let memory: usize = hostile.map(Attack::memory_len).sum();
    let memory = (memory as u64 * GIB_NS) >> 30;
    OWN_NS * guests + message + memory + blocking(case) * BLOCKED_NS
}

/// How many of the others have a write to their eventfd block.
fn blocking(case: &Case) -> u64 {
    case.others().filter(|a| *a == Attack::Block).count() as u64
}
