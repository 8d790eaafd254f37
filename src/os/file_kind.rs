// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kind of file that a front-end's fd is, found without waiting: nothing here asks the file's file
//! system, which may be a front-end's own FUSE server.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use crate::os::ffi;
use crate::os::mounts::{DeviceNumber, Mounts};

/// As in `linux/magic.h`; the C libraries do not agree on its type.
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// The use that a front-end's file can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// Memory: a memfd, or a file on tmpfs or hugetlbfs.
    Memory,
    /// Memory, if it can be mapped: a driver's file, a DMA-BUF, a file on a disk. An access to its pages,
    /// and its close, may wait for that driver or disk, or for a FUSE server.
    Mappable,
    /// An anonymous inode: of these, only an eventfd takes a write of zero, which is tried where an
    /// eventfd is wanted.
    Anonymous,
    /// One end of a socketpair.
    SocketEnd,
    /// None.
    Unwanted,
}

/// Classifies `fd`. If `mappable`, a file that is not memory but that the kernel may be able to map is
/// [`FileKind::Mappable`].
///
/// # Errors
/// `fd` itself, where closing it may wait for somebody, even if that is not the last close: a file of
/// a FUSE server or of a network file system, or one that cannot be told from these by `mounts`. A
/// FUSE server is sent a FLUSH, and its answer, which may never come, is waited for uninterruptibly.
pub fn of(fd: OwnedFd, mounts: &Mounts, mappable: bool) -> Result<(OwnedFd, FileKind), OwnedFd> {
    let number = fd.as_raw_fd();
    // Succeeds on shmem (memfd, tmpfs) and hugetlbfs alone.
    if ffi::fcntl(number, libc::F_GET_SEALS).is_ok() {
        return Ok((fd, FileKind::Memory));
    }
    // A file is not told of the close of such an fd.
    if ffi::fcntl(number, libc::F_GETFL).is_ok_and(|flags| flags & libc::O_PATH != 0) {
        return Ok((fd, FileKind::Unwanted));
    }
    match file_type(number) {
        Ok((0 | libc::S_IFREG | libc::S_IFCHR | libc::S_IFBLK, _)) if mappable => {
            Ok((fd, FileKind::Mappable))
        }
        Ok((0, _)) => Ok((fd, FileKind::Anonymous)),
        Ok((libc::S_IFSOCK, _)) if is_unix(number) => Ok(unix_socket(fd)),
        Ok((libc::S_IFREG, device)) if !mounts.close_at_once(device) => Err(fd),
        Ok(_) => Ok((fd, FileKind::Unwanted)),
        Err(_) => Err(fd),
    }
}

/// The file type of `fd`, `S_IFSOCK` and the like, or 0 for an anonymous inode such as an eventfd;
/// and the device number of its file system.
fn file_type(fd: RawFd) -> io::Result<(u32, DeviceNumber)> {
    // Without the last flag a FUSE server would be asked.
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
    let found = ffi::statx(fd, c"", flags, libc::STATX_TYPE)?;
    let device = (found.stx_dev_major, found.stx_dev_minor);
    Ok((u32::from(found.stx_mode) & libc::S_IFMT, device))
}

/// Bytes of a page of `file`, which is memory, if they are huge pages of hugetlbfs.
///
/// # Errors
/// The kernel's.
pub fn huge_page_len(file: &File) -> io::Result<Option<u64>> {
    let found = ffi::file_system(file)?;
    let is_huge = u64::try_from(found.f_type) == Ok(HUGETLBFS_MAGIC);
    Ok(is_huge.then(|| u64::try_from(found.f_bsize).unwrap_or(u64::MAX)))
}

/// Whether `fd`, which is a socket, is one of Unix: asking one of TCP for its peer would wait for its
/// lock.
fn is_unix(fd: RawFd) -> bool {
    let domain = ffi::socket_option(fd, libc::SO_DOMAIN);
    domain.is_ok_and(|domain| domain == libc::AF_UNIX)
}

/// Whether a Unix socket is one end of a socketpair: then its peer has no name. A front-end's end of
/// its own connection is not: holding it, we would never see that connection end.
fn unix_socket(fd: OwnedFd) -> (OwnedFd, FileKind) {
    let stream = UnixStream::from(fd);
    let is_pair = stream.peer_addr().is_ok_and(|peer| peer.is_unnamed());
    let kind = is_pair.then_some(FileKind::SocketEnd);
    (stream.into(), kind.unwrap_or(FileKind::Unwanted))
}
