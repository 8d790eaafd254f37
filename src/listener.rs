//! A listening socket in the file system: made with mode 0600, removed if it is still ours.
//!
//! Between daemons the directory is the lock: while one of them makes its sockets it holds `flock`
//! on it, so that a socket that is bound but does not listen yet is not taken for a stale one.

use std::ffi::{CString, OsStr};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::fate::{ExitCode, Fatal};

/// Permissions of a socket, taken from the mask since `bind()` has no mode.
const UMASK: libc::mode_t = 0o177;

/// Bytes of a path that fit into a `sockaddr_un` before its terminating zero.
const MAX_PATH_LEN: usize = 107;

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

/// What identifies a socket in the file system, to remove it and nothing else.
#[derive(Debug)]
pub struct SocketFile {
    directory: OwnedFd,
    name: CString,
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Listener {
    /// Makes the socket at `path`, in place of one that nobody listens on any more.
    ///
    /// # Errors
    /// The path is too long, its directory cannot be used, or something else is there.
    pub fn create(path: &Path) -> Result<(Self, SocketFile), Fatal> {
        let shown = format!("socket '{}'", path.display());
        let cannot = |error: io::Error| Fatal::os(ExitCode::CantCreate, &shown, &error);
        let (parent, name) = split(path)
            .ok_or_else(|| Fatal::new(ExitCode::CantCreate, format!("{shown}: names no file")))?;
        let len = path.as_os_str().len();
        if len > MAX_PATH_LEN {
            let why =
                format!("path of {len} bytes is too long for a socket, at most {MAX_PATH_LEN}");
            return Err(Fatal::new(ExitCode::CantCreate, format!("{shown}: {why}")));
        }
        let directory = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(parent)
            .map_err(cannot)?;
        lock(&directory).map_err(cannot)?;
        clear_the_way(path, &shown)?;
        let socket = bind(path).map_err(cannot)?;
        socket.set_nonblocking(true).map_err(cannot)?;
        let file = SocketFile::new(directory, name, path).map_err(cannot)?;
        let path = path.to_owned();
        Ok((Self { socket, path }, file))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next connection, if one waits. Reading from it never waits, whatever the gate believes:
    /// an urgent byte is counted by `FIONREAD`, but not read.
    ///
    /// # Errors
    /// The kernel's; `WouldBlock` if none waits.
    pub fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.socket.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Ends the connection `fd` in both directions, for all who have it.
pub fn hang_up(fd: RawFd) {
    // SAFETY: no pointers. It fails where there is no connection any more.
    unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
}

/// Waits up to two seconds for another daemon that makes its sockets in the same directory.
fn lock(directory: &File) -> io::Result<()> {
    for _ in 0..20 {
        match directory.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(100)),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(io::Error::other("directory is locked by another process"))
}

fn split(path: &Path) -> Option<(&Path, CString)> {
    let name = CString::new(path.file_name()?.as_bytes()).ok()?;
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    Some((parent.unwrap_or(Path::new(OsStr::new("."))), name))
}

/// Removes a socket that nobody listens on; leaves everything else and says what it is.
fn clear_the_way(path: &Path, shown: &str) -> Result<(), Fatal> {
    let found = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(|e| Fatal::os(ExitCode::CantCreate, shown, &e))?,
    };
    if !found.file_type().is_socket() {
        let why = "is there already and is not a socket";
        return Err(Fatal::new(ExitCode::CantCreate, format!("{shown}: {why}")));
    }
    if is_taken(path).map_err(|e| Fatal::os(ExitCode::CantCreate, shown, &e))? {
        let error = io::Error::from_raw_os_error(libc::EADDRINUSE);
        let message = format!("{shown}: {error}");
        return Err(Fatal::new(ExitCode::Unavailable, message));
    }
    match std::fs::remove_file(path) {
        // It went away just now.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|e| Fatal::os(ExitCode::CantCreate, shown, &e)),
    }
}

/// Whether somebody has the socket at `path`. A daemon that just ended may have left its own to the
/// kernel's collector (`garbage`), so the answer is yes only if it stays that for a while.
///
/// A datagram socket finds out without waiting for anybody, and without getting through to a stream
/// socket (`EPROTOTYPE`).
fn is_taken(path: &Path) -> io::Result<bool> {
    for _ in 0..20 {
        match UnixDatagram::unbound()?.connect(path) {
            Err(error) if error.raw_os_error() == Some(libc::EPROTOTYPE) => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Ok(()) | Err(_) => return Ok(true),
        }
    }
    Ok(true)
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    // SAFETY: umask takes no pointer; the process has one thread yet.
    let before = unsafe { libc::umask(UMASK) };
    let socket = UnixListener::bind(path);
    // SAFETY: as above.
    unsafe { libc::umask(before) };
    socket
}

impl SocketFile {
    fn new(directory: File, name: CString, path: &Path) -> io::Result<Self> {
        directory.unlock()?;
        let directory = OwnedFd::from(directory);
        let mut file = Self {
            directory,
            name,
            path: path.to_owned(),
            device: 0,
            inode: 0,
        };
        (file.device, file.inode) = file.stat()?;
        Ok(file)
    }

    /// The fd of the directory that it is in.
    pub fn directory(&self) -> RawFd {
        self.directory.as_raw_fd()
    }

    fn stat(&self) -> io::Result<(u64, u64)> {
        let mut stat = MaybeUninit::<libc::stat>::uninit();
        // SAFETY: the name is a C string, and the result has room for a `stat`.
        let result = unsafe {
            libc::fstatat(
                self.directory.as_raw_fd(),
                self.name.as_ptr(),
                stat.as_mut_ptr(),
                libc::AT_SYMLINK_NOFOLLOW,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: fstatat succeeded, so it filled it in.
        let stat = unsafe { stat.assume_init() };
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Where it was made.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the socket, if what has its name is still it.
    ///
    /// # Errors
    /// It is still there: a directory of somebody else's, without the capability to write to it.
    pub fn remove(&self) -> io::Result<()> {
        let removed = self.stat().and_then(|found| {
            let ours = found == (self.device, self.inode);
            if ours { self.unlink() } else { Ok(()) }
        });
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn unlink(&self) -> io::Result<()> {
        // SAFETY: the name is a C string.
        let result = unsafe { libc::unlinkat(self.directory.as_raw_fd(), self.name.as_ptr(), 0) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn create_then_remove_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s0");
        let (listener, file) = Listener::create(&path).unwrap();
        assert_eq!(listener.path(), path);
        let mode = std::fs::metadata(&path).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o600);
        file.remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn remove_leaves_a_socket_of_somebody_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s0");
        let (_listener, file) = Listener::create(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        file.remove().unwrap();
        assert!(path.exists());
    }
}
