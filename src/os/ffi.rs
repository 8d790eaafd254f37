// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! System calls that neither std nor vmm-sys-util has a safe name for, each wrapped once.
//!
//! A wrapper makes one call and returns its result; the callers know when and why to make it. A safe
//! wrapper makes pointers only of references, and returns only memory that the kernel filled in.
//!
//! A wrapper takes an fd as a number where the caller has only the number. A wrong number costs an error, or
//! changes a file that was not meant, but no memory. An [`OwnedFd`] is made of a number only if the call
//! itself made that fd.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem::{MaybeUninit, size_of_val};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use libc::{c_int, c_long, c_short, rlimit};

/// The result of a call, all of which give an int that is negative where they failed.
fn checked(result: c_long) -> io::Result<c_int> {
    match c_int::try_from(result) {
        Ok(result @ 0..) => Ok(result),
        Ok(_) | Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Owns the fd that a call made.
fn owned(made: io::Result<c_int>) -> io::Result<OwnedFd> {
    // SAFETY: each fd that is given to this was made by a call below, and nothing else knows it.
    made.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The value that `call` fills in, if its result is not negative.
fn filled<T, R: Into<c_long>>(call: impl FnOnce(*mut T) -> R) -> io::Result<T> {
    let mut value = MaybeUninit::uninit();
    checked(call(value.as_mut_ptr()).into())?;
    // SAFETY: the call succeeded, and those below fill in all of it then.
    Ok(unsafe { value.assume_init() })
}

/// A call whose arguments are numbers.
fn numbers(call: c_long, [a, b, c]: [c_long; 3]) -> io::Result<c_int> {
    // SAFETY: none of the calls below that are made by this takes a pointer or changes a mapping.
    // `prctl()` wants zeros as unused arguments.
    checked(unsafe { libc::syscall(call, a, b, c, 0, 0) })
}

/// A call whose third argument points to `value`; the others are numbers.
fn reading<T>(call: c_long, [a, b]: [c_long; 2], value: &T) -> io::Result<c_int> {
    // SAFETY: the calls below that are made by this only read the value and what it points to.
    checked(unsafe { libc::syscall(call, a, b, ptr::from_ref(value), 0) })
}

/// A call about `path` below the directory `fd`, or about `fd` itself; its other arguments are
/// numbers.
fn at(call: c_long, fd: RawFd, path: &CStr, [a, b, c]: [c_long; 3]) -> io::Result<c_int> {
    // SAFETY: the path is a C string, which the calls below that are made by this only read.
    checked(unsafe { libc::syscall(call, fd, path.as_ptr(), a, b, c) })
}

// Fds.

/// `fcntl()` with a command that takes no argument: `F_GETFD`, `F_GETFL`, `F_GET_SEALS`.
///
/// # Errors
/// The kernel's: the fd is not open, or its file has no such thing.
pub fn fcntl(fd: RawFd, command: c_int) -> io::Result<c_int> {
    numbers(libc::SYS_fcntl, [fd.into(), command.into(), 0])
}

/// Locks the file `fd` if nobody else has locked it; whether it did.
///
/// # Errors
/// The kernel's: the file cannot be locked.
pub fn try_lock(fd: RawFd) -> io::Result<bool> {
    let operation = (libc::LOCK_EX | libc::LOCK_NB).into();
    match numbers(libc::SYS_flock, [fd.into(), operation, 0]) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives up the lock of the file `fd`.
///
/// # Errors
/// The kernel's: it is not open.
pub fn unlock(fd: RawFd) -> io::Result<()> {
    numbers(libc::SYS_flock, [fd.into(), libc::LOCK_UN.into(), 0]).map(drop)
}

/// A second fd of the file `fd`, closed on execution, and never one of stdio.
///
/// # Errors
/// The kernel's: it is not open.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    let lowest = c_long::from(libc::STDERR_FILENO).saturating_add(1);
    let command = libc::F_DUPFD_CLOEXEC.into();
    owned(numbers(libc::SYS_fcntl, [fd.into(), command, lowest]))
}

/// Closes all fds from `first` to `last`, which nothing in this process may own.
///
/// # Errors
/// The kernel's.
pub fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    numbers(libc::SYS_close_range, [first.into(), last.into(), 0]).map(drop)
}

/// Whether `event`, such as `POLLOUT`, is there on `fd` now.
pub fn is_ready(fd: RawFd, event: c_short) -> bool {
    let mut asked = libc::pollfd {
        fd,
        events: event,
        revents: 0,
    };
    let at_once = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // Not poll(): stopped or frozen within it, the kernel goes on by restart_syscall(), even where
    // nothing is waited for.
    // SAFETY: one pollfd and the time-out, both alive; no signal mask is asked for.
    let ready = unsafe { libc::ppoll(&raw mut asked, 1, &raw const at_once, ptr::null()) };
    ready > 0 && asked.revents & event != 0
}

// Files.

/// The facts in `mask` about the file `name` in `directory`, or with `AT_EMPTY_PATH` and no name about
/// the file `directory`.
///
/// # Errors
/// The kernel's.
pub fn statx(directory: RawFd, name: &CStr, flags: c_int, mask: u32) -> io::Result<libc::statx> {
    let name = name.as_ptr();
    // SAFETY: the name is a C string, and `filled` has room for the result.
    filled(|to| unsafe { libc::statx(directory, name, flags, mask, to) })
}

/// The file system of `file`.
///
/// # Errors
/// The kernel's.
pub fn file_system(file: &File) -> io::Result<libc::statfs> {
    // SAFETY: `filled` has room for the result.
    filled(|to| unsafe { libc::fstatfs(file.as_raw_fd(), to) })
}

/// The file `name` in `directory`, whatever it is, as a path only: neither for reading nor writing.
///
/// # Errors
/// The kernel's.
pub fn open_path(directory: RawFd, name: &CStr) -> io::Result<File> {
    // std's `OpenOptions` loses O_PATH with musl, where it counts as an access mode.
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    owned(at(libc::SYS_openat, directory, name, [flags.into(), 0, 0])).map(File::from)
}

/// Gives `file` to `group`; its owner stays.
///
/// # Errors
/// The kernel's.
pub fn give_to_group(file: &File, group: libc::gid_t) -> io::Result<()> {
    let nobody_else = libc::uid_t::MAX.into();
    let arguments = [nobody_else, group.into(), libc::AT_EMPTY_PATH.into()];
    at(libc::SYS_fchownat, file.as_raw_fd(), c"", arguments).map(drop)
}

/// Removes the file `name` in `directory`.
///
/// # Errors
/// The kernel's.
pub fn remove(directory: RawFd, name: &CStr) -> io::Result<()> {
    at(libc::SYS_unlinkat, directory, name, [0; 3]).map(drop)
}

/// New files get none of the permissions in `mask`. Returns the mask before.
pub fn set_umask(mask: libc::mode_t) -> libc::mode_t {
    // It cannot fail.
    let before = numbers(libc::SYS_umask, [mask.into(), 0, 0]).unwrap_or_default();
    before.try_into().unwrap_or_default()
}

// Sockets.

/// A Unix stream socket that does not wait.
///
/// # Errors
/// The kernel's.
pub fn stream_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let made = numbers(libc::SYS_socket, [libc::AF_UNIX.into(), kind.into(), 0]);
    owned(made)
}

/// Gives `socket` the name `path`.
///
/// # Errors
/// The kernel's, or the path is longer than that of a socket may be.
pub fn bind(socket: &OwnedFd, path: &Path) -> io::Result<()> {
    let mut address = libc::sockaddr_un {
        sun_family: libc::AF_UNIX.try_into().unwrap_or_default(),
        sun_path: [0; 108],
    };
    let (bytes, to) = (path.as_os_str().as_bytes(), &mut address.sun_path);
    let (len, most) = (bytes.len(), to.len().saturating_sub(1));
    if len > most {
        let why = format!("path of {len} bytes is too long for a socket, at most {most}");
        return Err(io::Error::other(why));
    }
    for (to, from) in to.iter_mut().zip(bytes) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    let len = size_of_val(&address).try_into().unwrap_or_default();
    let socket = socket.as_raw_fd();
    // SAFETY: `address` is a path with a zero after it, and as long as `len` says.
    let result = unsafe { libc::bind(socket, (&raw const address).cast(), len) };
    checked(result.into()).map(drop)
}

/// Makes `socket` listen, with as many connections waiting as the kernel allows.
///
/// # Errors
/// The kernel's.
pub fn listen(socket: &OwnedFd) -> io::Result<()> {
    let socket = socket.as_raw_fd().into();
    numbers(libc::SYS_listen, [socket, c_int::MAX.into(), 0]).map(drop)
}

/// Ends the connection `fd` in both directions, in all processes that have it.
pub fn shut_down(fd: RawFd) {
    // It fails where there is no connection any more.
    let _ = numbers(libc::SYS_shutdown, [fd.into(), libc::SHUT_RDWR.into(), 0]);
}

/// The value of `option`, an int of the level `SOL_SOCKET`.
///
/// # Errors
/// The kernel's: `fd` is not a socket.
pub fn socket_option(fd: RawFd, option: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut len = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or_default();
    let (level, to) = (libc::SOL_SOCKET, (&raw mut value).cast());
    // SAFETY: `value` has room for `len` bytes.
    let result = unsafe { libc::getsockopt(fd, level, option, to, &raw mut len) };
    checked(result.into()).map(|_| value)
}

/// Sets `option`, an int of the level `SOL_SOCKET`.
///
/// # Errors
/// The kernel's.
pub fn set_socket_option(fd: RawFd, option: c_int, value: c_int) -> io::Result<()> {
    let len = size_of_val(&value).try_into().unwrap_or_default();
    let (level, from) = (libc::SOL_SOCKET, (&raw const value).cast());
    // SAFETY: `value` has `len` bytes.
    checked(unsafe { libc::setsockopt(fd, level, option, from, len) }.into()).map(drop)
}

/// Sends as many of `bytes` as the socket `fd` has room for, without waiting; returns how many, which may
/// be 0.
///
/// # Errors
/// The kernel's; `BrokenPipe` if the peer is gone.
pub fn send(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the bytes are as many as are said.
    let len = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) };
    let sent = usize::try_from(len).map_err(|_| io::Error::last_os_error());
    sent.or_else(|error| match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EINTR) => Ok(0),
        Some(_) | None => Err(error),
    })
}

/// Receives bytes on the socket `fd`, without waiting, and at most [`MAX_RECEIVED_FDS`] fds that come with
/// them, close-on-exec. Gives how many bytes there are, and whether the kernel dropped fds.
///
/// # Errors
/// The kernel's.
#[allow(clippy::useless_conversion, reason = "msg_controllen is a u32 in musl")]
pub fn receive(fd: RawFd, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<(usize, bool)> {
    let mut control = [0; CONTROL_LEN];
    let mut part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all-zero bytes are a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control).try_into().unwrap_or_default();
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: `message` points to one part and a control buffer, both alive and as long as it says.
    let len = unsafe { libc::recvmsg(fd, &raw mut message, flags) };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    // recvmsg made these fds.
    fds.extend(fds_in(&control).filter_map(|fd| owned(Ok(fd)).ok()));
    Ok((len, message.msg_flags & libc::MSG_CTRUNC != 0))
}

/// Most fds that one receipt can bring: `SCM_MAX_FD` of Linux.
pub const MAX_RECEIVED_FDS: usize = 253;
/// `struct cmsghdr` of both C libraries: a length (of 8 bytes, or 4 and padding), level, type.
const CMSGHDR_LEN: usize = 16;
/// A cmsghdr and the fds, in ints; an odd number of fds is padded.
const CONTROL_LEN: usize = CMSGHDR_LEN / 4 + MAX_RECEIVED_FDS + 1;
const _: () = assert!(size_of::<libc::cmsghdr>() == CMSGHDR_LEN);

/// The fds in a control buffer that recvmsg filled: `struct cmsghdr` (a length, of which the lower
/// half is enough, level, type), and as many ints as the length says. Where there are none the
/// length is 0. Only sockets to which the kernel adds nothing else are received from (`handed_in`).
fn fds_in(control: &[c_int; CONTROL_LEN]) -> impl Iterator<Item = RawFd> {
    let [len, _, level, kind, fds @ ..] = control;
    let ours = [*level, *kind] == [libc::SOL_SOCKET, libc::SCM_RIGHTS];
    let len = usize::try_from(*len).unwrap_or(0);
    let count = len.saturating_sub(CMSGHDR_LEN) / 4;
    fds.iter().take(if ours { count } else { 0 }).copied()
}

// Signals and timers.

/// A file from which the signals of `set` are read, without waiting.
///
/// # Errors
/// The kernel's.
pub fn signal_file(set: &libc::sigset_t) -> io::Result<File> {
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the set is initialised, and -1 asks for a new fd.
    let made = unsafe { libc::signalfd(-1, set, flags) };
    owned(checked(made.into())).map(File::from)
}

/// Raises SIGALRM every `ms` milliseconds, less than 1,000; 0 ends that.
pub fn set_interval_timer(ms: u32) {
    let interval = libc::timeval {
        tv_sec: 0,
        tv_usec: ms.saturating_mul(1000).into(),
    };
    let timer = libc::itimerval {
        it_interval: interval,
        it_value: interval,
    };
    // SAFETY: `timer` is readable, and no old value is asked for. It cannot fail with valid times.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, ptr::null_mut()) };
}

// The process.

/// `prctl()` with an option that takes a number.
///
/// # Errors
/// The kernel's.
pub fn prctl(option: c_int, value: u32) -> io::Result<()> {
    numbers(libc::SYS_prctl, [option.into(), value.into(), 0]).map(drop)
}

/// Locks all pages that are mapped now, and none that are mapped later.
///
/// # Errors
/// The kernel's: it may not, or not so many.
pub fn lock_pages() -> io::Result<()> {
    numbers(libc::SYS_mlockall, [libc::MCL_CURRENT.into(), 0, 0]).map(drop)
}

/// Empties the effective, permitted and inheritable sets of capabilities.
///
/// # Errors
/// The kernel's.
pub fn drop_capabilities() -> io::Result<()> {
    /// `_LINUX_CAPABILITY_VERSION_3`
    const VERSION: u32 = 0x2008_0522;
    // `struct __user_cap_header_struct`, with 0 for this process, and two of
    // `struct __user_cap_data_struct`.
    let (header, none) = ([VERSION, 0], [0u32; 6]);
    // SAFETY: this version reads two structures of three u32 each.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    checked(result).map(drop)
}

/// Returns the limits of `resource`, whose type differs between the C libraries, and then sets them to
/// `new`, if given.
///
/// # Errors
/// The kernel's.
pub fn limits<R: Into<c_long>>(resource: R, new: Option<&rlimit>) -> io::Result<rlimit> {
    let (resource, new) = (resource.into(), new.map_or(ptr::null(), ptr::from_ref));
    // SAFETY: the new limits are none or initialised, `filled` has room for those before.
    filled(|to| unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, new, to) })
}

// Confinement.

/// The kernel's version of Landlock.
///
/// # Errors
/// It has none.
pub fn landlock_version() -> io::Result<c_int> {
    /// `LANDLOCK_CREATE_RULESET_VERSION`, which wants no attributes.
    const VERSION: c_long = 1;
    numbers(libc::SYS_landlock_create_ruleset, [0, 0, VERSION])
}

/// A ruleset of Landlock: `attributes` are those of `struct landlock_ruleset_attr` that the
/// kernel's version knows.
///
/// # Errors
/// The kernel's.
pub fn landlock_ruleset(attributes: &[u64]) -> io::Result<OwnedFd> {
    let (call, len) = (libc::SYS_landlock_create_ruleset, size_of_val(attributes));
    // SAFETY: there are as many bytes at the address as are said to be.
    let made = unsafe { libc::syscall(call, attributes.as_ptr(), len, 0) };
    owned(checked(made))
}

/// Lets `ruleset` allow `access` to everything below `directory`.
///
/// # Errors
/// The kernel's.
pub fn landlock_allow(ruleset: &OwnedFd, directory: RawFd, access: u64) -> io::Result<()> {
    const RULE_PATH_BENEATH: c_long = 1;
    /// `struct landlock_path_beneath_attr`: the accesses, and the directory that they are allowed below.
    #[repr(C, packed)]
    struct PathBeneath(u64, RawFd);
    let numbers = [ruleset.as_raw_fd().into(), RULE_PATH_BENEATH];
    let rule = PathBeneath(access, directory);
    reading(libc::SYS_landlock_add_rule, numbers, &rule).map(drop)
}

/// Puts this thread under `ruleset`; `no_new_privs` must be set.
///
/// # Errors
/// The kernel's.
pub fn landlock_restrict(ruleset: &OwnedFd) -> io::Result<()> {
    let ruleset = ruleset.as_raw_fd().into();
    numbers(libc::SYS_landlock_restrict_self, [ruleset, 0, 0]).map(drop)
}

/// Puts this thread under the seccomp filter `program`; `no_new_privs` must be set.
///
/// # Errors
/// The kernel's.
pub fn seccomp(program: &mut [libc::sock_filter]) -> io::Result<()> {
    let filter = libc::sock_fprog {
        // More instructions than this can say are more than the kernel takes.
        len: program.len().try_into().unwrap_or_default(),
        filter: program.as_mut_ptr(),
    };
    let operation = libc::SECCOMP_SET_MODE_FILTER.into();
    reading(libc::SYS_seccomp, [operation, 0], &filter).map(drop)
}
