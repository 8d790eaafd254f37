// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Listening sockets: those made here, in the file system, which the daemon removes at its end if they
//! are still its own; and those handed in, which it never removes.
//!
//! A socket that is made gets its mode when it is bound and its group before it listens: until then no
//! process can connect.
//!
//! A daemon locks the directory (`flock`) while it makes its sockets, and waits a while for the lock of
//! another daemon. So a socket that is bound but does not listen yet is not taken for a stale one.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::{Group, digits};
use crate::error::{ExitCode, Fatal};
use crate::os::deferred_close::Closer;
use crate::os::ffi;
use crate::os::log;

const GROUPS: &str = "/etc/group";
/// Everything but permissions.
const ALL: libc::mode_t = 0o777;

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    /// Where it is, for the log.
    pub name: String,
    /// Nobody else has it.
    is_ours: bool,
}

/// Who may connect to a socket that is made: its mode, and the number of its group, if that is not the
/// process's.
pub type Access = (libc::mode_t, Option<libc::gid_t>);

/// The number of `group`. By its name, from the file itself: the C library would ask whatever services
/// the host has configured, with system calls of theirs, and a static one could not.
///
/// # Errors
/// There is no such group.
pub fn number_of(group: &Group) -> Result<libc::gid_t, Fatal> {
    let name = match group {
        Group::Number(number) => return Ok(*number),
        Group::Name(name) => name,
    };
    let shown = format!("option '--socket-group': '{}'", name.to_string_lossy());
    let text = std::fs::read(GROUPS)
        .map_err(|error| Fatal::os(ExitCode::OsError, format!("{shown}: {GROUPS}"), &error))?;
    find_group(&String::from_utf8_lossy(&text), name)
        .ok_or_else(|| Fatal::new(ExitCode::Usage, format!("{shown} is not in {GROUPS}")))
}

/// The number in the line `name:password:number:members`.
fn find_group(text: &str, name: &OsStr) -> Option<libc::gid_t> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':').map(OsStr::new);
        let found = fields.next() == Some(name);
        digits(fields.nth(1).filter(|_| found)?)?.try_into().ok()
    })
}

/// A socket in the file system, identified so that it and nothing else is removed.
#[derive(Debug)]
pub struct SocketFile {
    directory: File,
    name: CString,
    /// Where it was made.
    pub path: PathBuf,
    identity: Identity,
}

/// Major and minor number of the file system's device, and the inode.
type Identity = (u32, u32, u64);

impl Listener {
    /// Makes the socket at `path`, in place of one that nobody listens on any more, for those who
    /// have `access`. If a lock on a directory was not released in time, `waited` says so: no other one is
    /// waited for.
    ///
    /// # Errors
    /// The path is too long, its directory cannot be used, something else is there (`AddrInUse` if it is a
    /// socket in use), or the socket may not be given to the group.
    pub fn create(
        path: &Path,
        (mode, group): Access,
        waited: &mut bool,
    ) -> io::Result<(Self, SocketFile)> {
        let (directory, name) = open_directory(path)?;
        lock(&directory, path, waited)?;
        remove_stale(path)?;
        let socket = bind(path, mode)?;
        let file = SocketFile {
            identity: identify(&directory, &name)?,
            directory,
            name,
            path: path.to_owned(),
        };
        let given = group.map_or(Ok(()), |group| file.give_to(group));
        given
            .and_then(|()| ffi::listen(&socket))
            .and_then(|()| ffi::unlock(file.directory()))
            // The start fails anyway, whether the socket can be removed or not.
            .inspect_err(|_| drop(file.remove()))?;
        let listener = Self {
            socket: socket.into(),
            name: path.to_string_lossy().into(),
            is_ours: true,
        };
        Ok((listener, file))
    }

    /// Takes over `socket`, which listens and does not wait, and was handed in as `fd`.
    pub fn adopt(socket: UnixListener, fd: RawFd) -> Self {
        let address = socket.local_addr().ok();
        let path = address.as_ref().and_then(|address| address.as_pathname());
        let path = path.map_or_else(String::new, |path| format!(", {}", path.to_string_lossy()));
        Self {
            socket,
            name: format!("fd {fd}{path}"),
            is_ours: false,
        }
    }

    /// Stops listening. Clients that wait at a socket made here see that now. Those that wait at one
    /// that was handed in stay: its owner may give it to the next daemon.
    pub fn stop(self, closer: &Closer) {
        if self.is_ours {
            ffi::shut_down(self.as_raw_fd());
        }
        // Clients that wait may have sent fds already.
        closer.defer_close(self.socket);
    }

    /// The next connection, if one waits.
    ///
    /// # Errors
    /// The kernel's; `WouldBlock` if none waits.
    pub fn accept(&self) -> io::Result<UnixStream> {
        self.socket.accept().map(|(stream, _)| stream)
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// The directory of `path`, opened, and the name in it.
fn open_directory(path: &Path) -> io::Result<(File, CString)> {
    let name = path.file_name().map(|name| CString::new(name.as_bytes()));
    let Some(Ok(name)) = name else {
        return Err(io::Error::other("names no file"));
    };
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    let parent = parent.unwrap_or(Path::new("."));
    // With "/." at its end nothing but a directory is opened: a FIFO would wait.
    let directory = File::open(parent.join(".")).map_err(|error| {
        let why = format!("its directory '{}': {error}", parent.to_string_lossy());
        io::Error::new(error.kind(), why)
    })?;
    Ok((directory, name))
}

/// Waits up to two seconds for another daemon that makes its sockets in the same directory. No longer,
/// and once in all, which `waited` says: every user who may read the directory can lock it.
fn lock(directory: &File, path: &Path, waited: &mut bool) -> io::Result<()> {
    for _ in 0..20 {
        if ffi::try_lock(directory.as_raw_fd())? || *waited {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    *waited = true;
    let path = path.to_string_lossy();
    log::warning(format_args!(
        "warning: socket '{path}': its directory is locked by another process, and not waited for any \
         longer"
    ));
    Ok(())
}

/// `result`, but `None` if it failed because a file is not there.
fn if_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// Removes the socket at `path`, if there is one and nobody listens on it.
///
/// # Errors
/// It is something else, or in use, and stays.
fn remove_stale(path: &Path) -> io::Result<()> {
    let Some(found) = if_there(std::fs::symlink_metadata(path))? else {
        return Ok(());
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::other("is there already and is not a socket"));
    }
    if is_taken(path)? {
        let why = "in use by another process";
        return Err(io::Error::new(io::ErrorKind::AddrInUse, why));
    }
    // It may have gone away just now.
    if_there(std::fs::remove_file(path)).map(drop)
}

/// Whether another process has the socket at `path`. A daemon that just ended may have left its own to the
/// kernel's collector (`deferred_close`), so the answer is yes only if the socket stays taken for a while.
///
/// Connecting a datagram socket tells this without waiting, and without a connection to a stream socket
/// (`EPROTOTYPE`).
///
/// # Errors
/// It may not be asked.
fn is_taken(path: &Path) -> io::Result<bool> {
    for _ in 0..20 {
        let Err(error) = UnixDatagram::unbound()?.connect(path) else {
            return Ok(true);
        };
        match error.raw_os_error() {
            Some(libc::EPROTOTYPE) => std::thread::sleep(Duration::from_millis(10)),
            Some(libc::ECONNREFUSED | libc::ENOENT) => return Ok(false),
            // Another user's socket, with or without a listener.
            Some(libc::EACCES | libc::EPERM) => return Err(error),
            Some(_) | None => return Ok(true),
        }
    }
    Ok(true)
}

/// A socket at `path` that does not listen yet. `bind()` has no mode: what is missing from it is
/// taken from the mask, which the process, with one thread yet, has to itself.
fn bind(path: &Path, mode: libc::mode_t) -> io::Result<OwnedFd> {
    let socket = ffi::stream_socket()?;
    let before = ffi::set_umask(ALL & !mode);
    let bound = ffi::bind(&socket, path);
    ffi::set_umask(before);
    bound.map(|()| socket)
}

impl SocketFile {
    /// The fd of the directory that it is in.
    pub fn directory(&self) -> RawFd {
        self.directory.as_raw_fd()
    }

    /// Gives it to `group`. Not by its name: a user who may write to the directory could have put
    /// another user's file there.
    fn give_to(&self, group: libc::gid_t) -> io::Result<()> {
        let file = ffi::open_path(self.directory(), &self.name)?;
        let found = file.metadata()?;
        if !found.file_type().is_socket() || found.nlink() != 1 {
            return Err(io::Error::other("was replaced by something else"));
        }
        ffi::give_to_group(&file, group).map_err(|error| {
            let why = format!("group {group}: {error}; the daemon must be a member of it");
            io::Error::new(error.kind(), why)
        })
    }

    /// Removes the socket, if it still has its name.
    ///
    /// # Errors
    /// It is still there: the directory is another user's, and the capability to write to it is gone.
    pub fn remove(&self) -> io::Result<()> {
        if if_there(identify(&self.directory, &self.name))? == Some(self.identity) {
            if_there(ffi::remove(self.directory(), &self.name))?;
        }
        Ok(())
    }
}

/// Which file `name` in `directory` is; a symbolic link is itself.
fn identify(directory: &File, name: &CStr) -> io::Result<Identity> {
    let (flags, mask) = (libc::AT_SYMLINK_NOFOLLOW, libc::STATX_INO);
    let found = ffi::statx(directory.as_raw_fd(), name, flags, mask)?;
    Ok((found.stx_dev_major, found.stx_dev_minor, found.stx_ino))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::SocketAddr;

    fn create(path: &Path) -> io::Result<(Listener, SocketFile)> {
        Listener::create(path, (0o600, None), &mut false)
    }

    #[test]
    fn create_then_remove_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s0");
        let (listener, file) = create(&path).unwrap();
        assert_eq!(listener.name, path.to_str().unwrap());
        let mode = std::fs::metadata(&path).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o600);
        file.remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn is_taken_by_a_socket_of_another_kind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("datagrams");
        let _other = UnixDatagram::bind(&path).unwrap();
        assert!(is_taken(&path).unwrap());
    }

    #[test]
    fn create_at_a_path_that_cannot_be_a_sockets_is_refused() {
        let error = create(Path::new("/tmp/..")).unwrap_err();
        assert!(error.to_string().contains("names no file"), "{error}");
        let too_long = "x".repeat(108);
        let error = create(Path::new(&too_long)).unwrap_err();
        let why = "path of 108 bytes is too long for a socket, at most 107";
        assert!(error.to_string().ends_with(why), "{error}");
    }

    #[test]
    fn adopt_names_a_socket_without_a_path_by_its_fd() {
        let name = format!("vhost-device-spi {}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let socket = UnixListener::bind_addr(&address).unwrap();
        assert_eq!(Listener::adopt(socket, 7).name, "fd 7");
    }

    #[test]
    fn remove_leaves_a_socket_of_somebody_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s0");
        let (_listener, file) = create(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        file.remove().unwrap();
        assert!(path.exists());
    }

    /// A user who may write to the directory could give another user's socket this name.
    #[test]
    fn give_to_a_group_refuses_a_socket_that_has_another_name_too() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s0");
        let (_listener, file) = create(&path).unwrap();
        let group = std::fs::metadata(&path).unwrap().gid();
        file.give_to(group).unwrap();
        let other = directory.path().join("other");
        std::fs::hard_link(&path, &other).unwrap();
        let error = file.give_to(group).unwrap_err();
        assert_eq!(error.to_string(), "was replaced by something else");
        std::fs::remove_file(&other).unwrap();
        file.give_to(group).unwrap();
    }

    #[test]
    fn give_to_a_group_refuses_what_is_not_a_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s0");
        let (_listener, file) = create(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        for make in [
            |path: &Path| std::fs::write(path, ""),
            |path: &Path| std::os::unix::fs::symlink("/dev/null", path),
        ] {
            make(&path).unwrap();
            assert!(file.give_to(0).is_err());
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn find_group_takes_the_number_of_the_whole_name() {
        let text = "root:x:0:\nspi:x:990:alice,kvm\n\nbroken\nkvm:x:78\nbad:x:-1:\nlast:x:7:";
        for (name, number) in [
            ("root", Some(0)),
            ("spi", Some(990)),
            ("kvm", Some(78)),
            ("last", Some(7)),
            ("bad", None),
            ("broken", None),
            ("sp", None),
            ("alice", None),
            ("", None),
        ] {
            assert_eq!(find_group(text, name.as_ref()), number, "{name}");
        }
    }
}
