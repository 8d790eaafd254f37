// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--lock-memory`: the daemon's own pages stay in memory, so that no request waits for a disk.
//!
//! All that is mapped at that time is locked, and nothing that is mapped later: guest memory is the VMM's to
//! lock, and may exceed the host's. So the stack and the heap are first made as large as they get.
//! glibc keeps that heap; musl gives back what is free of it, so that connections take other pages, which
//! are not locked.
//! Called twice: before the sockets listen, so that a host which refuses it has no guest yet, and
//! before the first byte of a guest is read, for all that was allocated since.

use std::hint::black_box;

use crate::error::{ExitCode, Fatal};
use crate::os::ffi;

/// Bytes of stack, far more than the deepest way of a request or message takes.
const STACK: usize = 128 << 10;
/// Blocks of heap for each guest: about twice what a connection was measured to take.
const BLOCKS_OF_GUEST: usize = 8;
/// Bytes of a block: so few that the allocator takes it from the heap and not by a mapping of its own.
const BLOCK: usize = 4096;

/// Locks all pages that the daemon has, and those that its stack and heap take when `guests` more are
/// connected.
///
/// # Errors
/// The host allows less locked memory than that.
pub fn lock(guests: usize) -> Result<(), Fatal> {
    touch_stack();
    grow_heap(guests);
    ffi::lock_pages().map_err(|error| {
        let message = format!(
            "option '--lock-memory': cannot lock memory: {error}; allow it by the capability \
             CAP_IPC_LOCK or a larger RLIMIT_MEMLOCK (systemd: LimitMEMLOCK=64M and \
             SystemCallFilter=mlockall)"
        );
        Fatal::new(ExitCode::NoPermission, message)
    })
}

#[inline(never)]
fn touch_stack() {
    black_box(&mut [0u8; STACK]);
}

fn grow_heap(guests: usize) {
    let count = guests.saturating_mul(BLOCKS_OF_GUEST);
    let block = || Box::new([1u8; BLOCK]);
    let blocks: Vec<_> = (0..count).map(|_| block()).collect();
    black_box(&blocks);
    // It stays at the end of the heap: what is free below it does not go back to the kernel.
    std::mem::forget(black_box(block()));
}
