//! What kind of file a front-end's fd is, found out without waiting: nothing here asks the file
//! system behind it, which may be a front-end's own FUSE server.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use crate::os::mounts::{DeviceNumber, Mounts};

use crate::os::ffi;

/// As in `linux/magic.h`; the C libraries do not agree on its type.
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// Whether closing `fd` may wait for somebody, even if it is not the last close. With a file of a
/// FUSE server it does: it sends it a FLUSH and waits, uninterruptibly, for an answer that may never
/// come. So do network file systems. Believed are memory, and what is on one of `mounts` that are.
pub fn close_may_wait(fd: &OwnedFd, mounts: &Mounts) -> bool {
    if is_memory(fd) || is_only_a_path(fd) {
        return false;
    }
    let Ok((kind, device)) = file_type(fd) else {
        return true;
    };
    kind == libc::S_IFREG && !mounts.close_at_once(device)
}

/// The file type of `fd`, `S_IFSOCK` and the like, or 0 for an anonymous inode such as an eventfd;
/// and the device number of its file system.
///
/// # Errors
/// The kernel's.
pub fn file_type(fd: &impl AsRawFd) -> io::Result<(u32, DeviceNumber)> {
    let mut stat = MaybeUninit::<libc::statx>::uninit();
    // Without the last flag a FUSE server would be asked.
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
    let (fd, path, wanted) = (fd.as_raw_fd(), c"".as_ptr(), libc::STATX_TYPE);
    // SAFETY: the path is a C string, and the result has room for a `statx`.
    let result = unsafe { libc::statx(fd, path, flags, wanted, stat.as_mut_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: statx succeeded, so it filled it in.
    let stat = unsafe { stat.assume_init() };
    let device = (stat.stx_dev_major, stat.stx_dev_minor);
    Ok((u32::from(stat.stx_mode) & libc::S_IFMT, device))
}

/// Whether `fd` is a file that lives in memory: `F_GET_SEALS` succeeds on shmem (memfd, tmpfs) and
/// hugetlbfs alone.
pub fn is_memory(fd: &impl AsRawFd) -> bool {
    // SAFETY: F_GET_SEALS takes no pointer.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) >= 0 }
}

/// Whether `fd` was opened by `O_PATH`: the file behind it is not told of its close.
fn is_only_a_path(fd: &impl AsRawFd) -> bool {
    // SAFETY: F_GETFL takes no pointer.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    flags >= 0 && flags & libc::O_PATH != 0
}

/// Bytes of a page of `file`, which lives in memory, if they are huge pages of hugetlbfs.
///
/// # Errors
/// The kernel's.
pub fn huge_page_len(file: &File) -> io::Result<Option<u64>> {
    let mut stat = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `file` is open, and the result has room for a `statfs`.
    if unsafe { libc::fstatfs(file.as_raw_fd(), stat.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fstatfs succeeded, so it filled it in.
    let stat = unsafe { stat.assume_init() };
    let is_huge = u64::try_from(stat.f_type) == Ok(HUGETLBFS_MAGIC);
    Ok(is_huge.then(|| u64::try_from(stat.f_bsize).unwrap_or(u64::MAX)))
}

/// Whether `file` is one end of a socketpair: a Unix socket whose peer has no name; and `file`
/// again. A front-end's end of its own connection is none: holding it, we would never see that
/// connection end.
pub fn is_socketpair(file: File) -> (bool, File) {
    // Whose socket it is comes first: asking one of TCP for its peer waits for its lock.
    if !is_unix_socket(&file) {
        return (false, file);
    }
    let socket = UnixStream::from(OwnedFd::from(file));
    let unnamed = socket.peer_addr().is_ok_and(|peer| peer.is_unnamed());
    (unnamed, File::from(OwnedFd::from(socket)))
}

fn is_unix_socket(file: &File) -> bool {
    ffi::socket_option(file.as_raw_fd(), libc::SO_DOMAIN)
        .is_ok_and(|domain| domain == libc::AF_UNIX)
}
