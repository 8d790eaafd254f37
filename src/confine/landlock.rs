//! Landlock: the file system out of reach, but for removing files in the directories of our sockets
//! and below them. It knows no single files: other files there can be removed too, as far as the
//! process's user may, so the sockets are best in a directory of their own.
//!
//! The seccomp filter already lets no path through to the kernel but that of `unlinkat`. This is
//! the second wall behind it, which also covers what a mistake in the table would let through, and
//! TCP, abstract sockets and signals to others (`Documentation/userspace-api/landlock.rst` in
//! Linux). Files that are open stay as usable as they were.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// `struct landlock_ruleset_attr` of version 6 and later.
#[repr(C)]
struct Ruleset {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`
#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: RawFd,
}

const CREATE_RULESET_VERSION: u32 = 1;
const RULE_PATH_BENEATH: u32 = 1;
const ACCESS_FS_REMOVE_FILE: u64 = 1 << 5;

/// What is taken away: every access to files, networks and processes that the kernel's version of
/// Landlock knows, up to version 6.
const fn ruleset(version: i64) -> Ruleset {
    Ruleset {
        handled_access_fs: match version {
            ..=1 => 0x1fff,
            2 => 0x3fff,
            3 | 4 => 0x7fff,
            _ => 0xffff,
        },
        handled_access_net: if version >= 4 { 0b11 } else { 0 },
        scoped: if version >= 6 { 0b11 } else { 0 },
    }
}

/// Length of `struct landlock_ruleset_attr` in a version.
const fn ruleset_len(version: i64) -> usize {
    match version {
        ..=3 => 8,
        4 | 5 => 16,
        _ => size_of::<Ruleset>(),
    }
}

/// Takes everything away but the removal of files in `directories`; `no_new_privs` must be set.
/// `false` where the kernel has no Landlock.
///
/// # Errors
/// The kernel has it, and refused.
pub fn restrict(directories: &[RawFd]) -> io::Result<bool> {
    let nothing = std::ptr::null::<Ruleset>();
    // SAFETY: with this flag no attributes are read.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            nothing,
            0usize,
            CREATE_RULESET_VERSION,
        )
    };
    if version < 0 {
        return Ok(false);
    }
    let attributes = ruleset(version);
    let (address, len) = (&raw const attributes, ruleset_len(version));
    // SAFETY: `attributes` has at least `len` readable bytes.
    let fd = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, address, len, 0) };
    let fd = RawFd::try_from(checked(fd)?).map_err(io::Error::other)?;
    // SAFETY: the kernel made this fd for us alone.
    let ruleset = unsafe { OwnedFd::from_raw_fd(fd) };
    for &directory in directories {
        allow_removal(&ruleset, directory)?;
    }
    // SAFETY: no pointers.
    let result = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
    checked(result).map(|_| true)
}

fn allow_removal(ruleset: &OwnedFd, directory: RawFd) -> io::Result<()> {
    let rule = PathBeneath {
        allowed_access: ACCESS_FS_REMOVE_FILE,
        parent_fd: directory,
    };
    // SAFETY: `rule` is what a rule of this type is described by.
    let result = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            ruleset.as_raw_fd(),
            RULE_PATH_BENEATH,
            &raw const rule,
            0,
        )
    };
    checked(result).map(|_| ())
}

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
