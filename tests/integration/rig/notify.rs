// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Runs a program whose `open` and SPI `ioctl` calls are answered by a thread of the test.
//!
//! Between fork and exec the child puts a seccomp filter on itself that turns these calls into user notifications and
//! hands the listener over. Whatever filter the program stacks on top later, USER_NOTIF still ranks above its ALLOW (and
//! below its KILL), so the shipped binary runs unmodified. Should: decide nothing about SPI (that is `Host`'s).

use super::host::Host;
use super::sys;
use super::ticker::Ticker;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::RwLock;

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;

const fn ioc(dir: u64, nr: u64, size: u64) -> u64 {
    dir << 30 | size << 16 | (b'!' as u64) << 8 | nr
}
const NOTIF_RECV: u64 = ioc(3, 0, size_of::<libc::seccomp_notif>() as u64);
const NOTIF_SEND: u64 = ioc(3, 1, size_of::<libc::seccomp_notif_resp>() as u64);
const NOTIF_ID_VALID: u64 = ioc(1, 2, 8);
const NOTIF_ADDFD: u64 = ioc(1, 3, size_of::<libc::seccomp_notif_addfd>() as u64);

/// Held for writing from fork to exec, and for reading while a descriptor that is to be handed over is open here: a
/// child of another test would hold a copy of it, and with it the lock that a daemon has on its device.
static FORK: RwLock<()> = RwLock::new(());

/// How one intercepted call goes on.
pub enum Answer {
    /// The kernel carries it out as if nobody had looked.
    Continue,
    /// The call returns this; negative is an errno.
    Return(i64),
    /// The call returns a new descriptor of the caller that shares this one's file description; close-on-exec if true.
    Descriptor(OwnedFd, bool),
}

/// One call of the program, alive until it is answered.
pub struct Call<'a> {
    listener: &'a OwnedFd,
    id: u64,
    /// Thread that made it.
    pub tid: u32,
    /// System call number.
    pub nr: i64,
    /// Its arguments.
    pub args: [u64; 6],
}

impl Call<'_> {
    /// False once the caller is gone: a blocked answer must not wait for a test that already failed.
    pub fn alive(&self) -> bool {
        unsafe { libc::ioctl(self.listener.as_raw_fd(), NOTIF_ID_VALID as _, &self.id) == 0 }
    }

    /// A path argument, if it is one.
    pub fn path(&self, addr: u64) -> Option<String> {
        let mut path = Vec::new();
        // Page by page: a string may end right before an unmapped page.
        while path.len() < 4096 {
            let at = addr + path.len() as u64;
            let mut piece = vec![0; (4096 - at % 4096) as usize];
            if !sys::read_memory(self.tid, at, &mut piece) {
                return None;
            }
            if let Some(end) = piece.iter().position(|&b| b == 0) {
                path.extend_from_slice(&piece[..end]);
                return String::from_utf8(path).ok();
            }
            path.extend_from_slice(&piece);
        }
        None
    }
}

/// Starts `command` under the eyes of `host`. The thread that answers ends when the program does.
pub fn spawn(mut command: Command, host: &Host) -> io::Result<Child> {
    let (here, there) = UnixStream::pair()?;
    let there_fd = there.as_raw_fd();
    // SAFETY: only system calls between fork and exec, on memory that was allocated before.
    unsafe {
        command.pre_exec(move || install(there_fd));
    }
    // The answering thread first: the loader of the new program opens its libraries.
    let host = host.clone();
    let thread = std::thread::Builder::new()
        .name("spidev".into())
        .spawn(move || {
            if let Ok(listener) = sys::recv_fd(&here) {
                serve(&listener, &host);
            }
        })?;
    let child = spawn_alone(&mut command);
    drop(there);
    drop(thread);
    child
}

/// Starts any other program while no descriptor that is to be handed over is open here.
pub fn spawn_alone(command: &mut Command) -> io::Result<Child> {
    let _alone = FORK.write().unwrap_or_else(|poison| poison.into_inner());
    command.spawn()
}

fn install(socket: RawFd) -> io::Result<()> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let stmt = |code, k| libc::sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    };
    let jump = |k, jt, jf| libc::sock_filter {
        code: EQUAL,
        jt,
        jf,
        k,
    };
    #[cfg(target_arch = "x86_64")]
    let open = libc::SYS_open as u32;
    // No such call there: the number of openat twice does no harm.
    #[cfg(not(target_arch = "x86_64"))]
    let open = libc::SYS_openat as u32;
    #[cfg(target_arch = "x86_64")]
    let readlink = libc::SYS_readlink as u32;
    #[cfg(not(target_arch = "x86_64"))]
    let readlink = libc::SYS_readlinkat as u32;
    let program = [
        stmt(LOAD, 4), // arch
        jump(AUDIT_ARCH, 0, 12),
        stmt(LOAD, 0), // nr
        jump(libc::SYS_openat as u32, 11, 0),
        jump(libc::SYS_openat2 as u32, 10, 0),
        jump(open, 9, 0),
        jump(readlink, 8, 0),
        jump(libc::SYS_readlinkat as u32, 7, 0),
        jump(libc::SYS_setitimer as u32, 6, 0),
        jump(libc::SYS_landlock_create_ruleset as u32, 5, 0),
        jump(libc::SYS_ioctl as u32, 0, 3),
        stmt(LOAD, 24), // low half of args[1], the request
        stmt(AND, 0xff00),
        jump((b'k' as u32) << 8, 1, 0),
        stmt(RETURN, libc::SECCOMP_RET_ALLOW),
        stmt(RETURN, libc::SECCOMP_RET_USER_NOTIF),
    ];
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr() as *mut _,
    };
    // WAIT_KILLABLE_RECV: as in the real driver, a signal does not end an SPI transfer that has begun.
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | 1 << 5;
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    let mut fd = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &filter) };
    // Root needs no no_new_privs for a filter, and with it a test could not see that the daemon sets it itself.
    if fd < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EACCES) {
        sys::check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())?;
        fd = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &filter) };
    }
    let fd = sys::check(fd)? as RawFd;
    sys::send_with_fds(socket, &[0], &[fd])?;
    unsafe { libc::close(fd) };
    // Tests that are interrupted, or stopped by the first failure, leave no program behind.
    sys::check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) }.into()).map(drop)
}

fn serve(listener: &OwnedFd, host: &Host) {
    // Until a call is received here, a signal ends it with EINTR, which it never does to the real driver's: taken at
    // once, the moment in which that can happen is a few microseconds. Only root may have it; others go without.
    // SAFETY: all-zero bytes are a valid `sched_param`, which has more fields with musl.
    let mut first: libc::sched_param = unsafe { std::mem::zeroed() };
    first.sched_priority = 1;
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &first) };
    // SYNC_WAKE_UP: caller and answerer take turns; the scheduler may keep them on one core. Not there before 6.6.
    unsafe { libc::ioctl(listener.as_raw_fd(), ioc(1, 4, 8) as _, 1u64) };
    let mut ticker = Ticker::default();
    loop {
        let mut poll = libc::pollfd {
            fd: listener.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        unsafe { libc::poll(&mut poll, 1, ticker.patience()) };
        if poll.revents & libc::POLLIN == 0 {
            if poll.revents != 0 {
                return;
            }
            ticker.tick_if_blocked();
            continue;
        }
        let mut notif: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        if unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_RECV as _, &mut notif) } < 0 {
            // The caller died between poll and receive.
            continue;
        }
        let call = Call {
            listener,
            id: notif.id,
            tid: notif.pid,
            nr: notif.data.nr.into(),
            args: notif.data.args,
        };
        let opens = ![libc::SYS_ioctl, libc::SYS_setitimer].contains(&call.nr);
        let _no_fork = opens.then(|| FORK.read().unwrap_or_else(|poison| poison.into_inner()));
        let answer = if call.nr == libc::SYS_setitimer {
            ticker.set(&call)
        } else {
            ticker.tick_if_due();
            host.answer(&call)
        };
        reply(listener, notif.id, answer);
    }
}

fn reply(listener: &OwnedFd, id: u64, answer: Answer) {
    let mut response = libc::seccomp_notif_resp {
        id,
        val: 0,
        error: 0,
        flags: 0,
    };
    match answer {
        Answer::Continue => response.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
        Answer::Return(value) if value < 0 => response.error = value as i32,
        Answer::Return(value) => response.val = value,
        Answer::Descriptor(fd, close_on_exec) => {
            let add = libc::seccomp_notif_addfd {
                id,
                flags: 0,
                srcfd: fd.as_raw_fd() as u32,
                newfd: 0,
                newfd_flags: if close_on_exec {
                    libc::O_CLOEXEC as u32
                } else {
                    0
                },
            };
            let remote = unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_ADDFD as _, &add) };
            // A full descriptor table of the caller shows here, as it would in open().
            match sys::check(remote.into()) {
                Ok(remote) => response.val = remote,
                Err(error) => response.error = -error.raw_os_error().unwrap_or(libc::EMFILE),
            }
        }
    }
    unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_SEND as _, &response) };
}
