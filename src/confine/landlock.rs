// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Landlock takes away all access to the file system but the removal of files in the directories of our
//! sockets and below them. It cannot name single files: other files there can be removed too, if the
//! process's user may. So sockets are best in a directory of their own.
//!
//! The seccomp filter already lets no path through to the kernel but those of `unlinkat` and `statx`, and
//! addresses of sockets (`sendmsg`). Landlock is a second layer, which also covers what a
//! mistake in the table would let through, and TCP, abstract sockets and signals to others
//! (`Documentation/userspace-api/landlock.rst` in Linux). It restricts neither `statx` nor datagrams to a
//! socket with a path. Files that are open stay as usable as they were.

use std::io;
use std::os::fd::RawFd;

use crate::os::ffi;

/// Access to the removal of files.
const ACCESS_FS_REMOVE_FILE: u64 = 1 << 5;

/// The accesses that are taken away: all to files, networks and processes that the kernel's version
/// of Landlock knows, up to version 6; as the three fields of `struct landlock_ruleset_attr`, and how
/// many of them the version has.
const fn ruleset(version: i32) -> ([u64; 3], usize) {
    let files = match version {
        ..=1 => 0x1fff,
        2 => 0x3fff,
        3 | 4 => 0x7fff,
        _ => 0xffff,
    };
    let fields = match version {
        ..=3 => 1,
        4 | 5 => 2,
        _ => 3,
    };
    // Binding and connecting TCP sockets; abstract Unix sockets and signals.
    ([files, 0b11, 0b11], fields)
}

/// Takes everything away but the removal of files in `directories`; `no_new_privs` must be set.
/// `false` where the kernel has no Landlock.
///
/// # Errors
/// The kernel has it, and refused.
pub fn restrict(directories: &[RawFd]) -> io::Result<bool> {
    let Ok(version) = ffi::landlock_version() else {
        return Ok(false);
    };
    let (attributes, fields) = ruleset(version);
    let ruleset = ffi::landlock_ruleset(attributes.get(..fields).unwrap_or_default())?;
    for &directory in directories {
        ffi::landlock_allow(&ruleset, directory, ACCESS_FS_REMOVE_FILE)?;
    }
    ffi::landlock_restrict(&ruleset).map(|()| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ruleset_takes_away_all_that_the_version_knows() {
        // LANDLOCK_ACCESS_FS_: 13 of them, then REFER, TRUNCATE, IOCTL_DEV; NET and SCOPE are later fields.
        for (version, files, fields) in [
            (1, 13, 1),
            (2, 14, 1),
            (3, 15, 1),
            (4, 15, 2),
            (5, 16, 2),
            (6, 16, 3),
            (7, 16, 3),
        ] {
            let ([accesses, network, scope], count) = ruleset(version);
            assert_eq!((accesses.trailing_ones(), count), (files, fields));
            assert_eq!(accesses.count_ones(), files, "version {version}");
            assert_eq!((network, scope), (0b11, 0b11));
        }
    }
}
