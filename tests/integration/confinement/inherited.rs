// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Fds that whoever starts the daemon left open.

use super::*;
use crate::life::fds_in_a_session;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};

/// A directory, a connection and a file, each three times in the daemon, at low and high numbers.
struct Extra {
    dir: tempfile::TempDir,
    sock: UnixStream,
    other: UnixStream,
    file: File,
}

impl Extra {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("file")).unwrap();
        let (sock, other) = UnixStream::pair().unwrap();
        Self {
            dir,
            sock,
            other,
            file,
        }
    }

    /// Puts them into the process that calls this.
    fn give(&self) -> impl FnMut() -> std::io::Result<()> + Send + Sync + 'static {
        let dir = File::open(self.dir.path()).unwrap();
        let (file, sock) = (
            self.file.try_clone().unwrap(),
            self.sock.try_clone().unwrap(),
        );
        move || {
            for fd in [dir.as_raw_fd(), file.as_raw_fd(), sock.as_raw_fd()] {
                for least in [3, 10, 700] {
                    sys::check(unsafe { libc::fcntl(fd, libc::F_DUPFD, least) }.into())?;
                }
            }
            Ok(())
        }
    }
}

/// What the fds of the daemon lead to.
fn links(daemon: &Daemon) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
    let links = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links.collect()
}

fn assert_none_left(daemon: &Daemon, mut extra: Extra) {
    let fds = fds_in_a_session(daemon, 0);
    let left: Vec<_> = links(daemon)
        .into_iter()
        .filter(|link| link.starts_with(extra.dir.path()))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert_all_well(daemon);
    if traced() {
        // strace has inherited them too.
        return;
    }
    // The other end sees that nobody has it any more.
    drop(extra.sock);
    extra.other.set_read_timeout(Some(PATIENCE)).unwrap();
    let end = std::io::Read::read(&mut extra.other, &mut [0]);
    assert_eq!(end.unwrap(), 0);
    let host = Host::with_devices(1);
    let plain = Daemon::start(&host, &["/dev/spidev0.0"]);
    // The table of mounts is the one file that stays open of those that not every daemon finds.
    let table = |daemon: &Daemon| links(daemon).iter().any(|link| link.ends_with("mountinfo"));
    let expected = fds_in_a_session(&plain, 0) - usize::from(!table(daemon));
    assert!(table(&plain));
    assert_eq!(fds, expected);
}

#[test]
fn fds_inherited_are_all_closed() {
    let (host, extra) = (Host::with_devices(1), Extra::new());
    let setup = Setup::new(&host).device("/dev/spidev0.0");
    let daemon = setup.before_exec(extra.give()).start();
    assert_none_left(&daemon, extra);
}

#[test]
fn fds_inherited_are_all_closed_where_there_is_no_proc() {
    let (host, extra) = (Host::with_devices(1), Extra::new());
    let setup = Setup::new(&host).device("/dev/spidev0.0");
    let setup = setup.before_exec(extra.give()).before_exec(hide_proc);
    assert_none_left(&setup.start(), extra);
}

/// A socket that was handed in stays, and nothing else does.
#[test]
fn fds_inherited_are_closed_but_for_those_handed_in() {
    for with_proc in [true, false] {
        let (host, extra) = (Host::with_devices(1), Extra::new());
        let (dir, pair) = (tempfile::tempdir().unwrap(), UnixStream::pair().unwrap());
        let path = dir.path().join("ours");
        let listener = UnixListener::bind(&path).unwrap();
        let setup = Setup::new(&host).no_sockets().before_exec(extra.give());
        let setup = setup.hand_in(&listener, 520).hand_in(&pair.0, 510);
        // Below all that the daemon opens.
        let low = File::create(extra.dir.path().join("low")).unwrap();
        let setup = setup.hand_in(&low, 3);
        let setup = setup.arg("--fd=520").arg("--fd=510");
        let setup = setup.device("/dev/spidev0.0");
        let daemon = match with_proc {
            true => setup.launch(),
            false => setup.before_exec(hide_proc).launch(),
        };
        drop(pair.0);
        Plug::default().connect_to(&path).assert_served();
        Plug::default().connect_over(pair.1).assert_served();
        let left: Vec<_> = links(&daemon)
            .into_iter()
            .filter(|link| link.starts_with(extra.dir.path()))
            .collect();
        assert!(left.is_empty(), "{left:?}");
        if !traced() {
            let Extra {
                sock, mut other, ..
            } = extra;
            drop(sock);
            other.set_read_timeout(Some(PATIENCE)).unwrap();
            assert_eq!(std::io::Read::read(&mut other, &mut [0]).unwrap(), 0);
        }
        daemon.stop();
    }
}

fn hide_proc() -> std::io::Result<()> {
    let (none, null) = (c"none".as_ptr(), std::ptr::null::<libc::c_void>());
    let private = libc::MS_REC | libc::MS_PRIVATE;
    sys::check(unsafe { libc::unshare(libc::CLONE_NEWNS) }.into())?;
    sys::check(unsafe { libc::mount(none, c"/".as_ptr(), null.cast(), private, null) }.into())?;
    let (proc, tmpfs) = (c"/proc".as_ptr(), c"tmpfs".as_ptr());
    sys::check(unsafe { libc::mount(none, proc, tmpfs, 0, null) }.into())?;
    Ok(())
}

/// A library that is loaded before `main` keeps what it opened to be closed on execution.
#[test]
fn fds_of_a_preloaded_library_survive() {
    let (_dir, library) = preloadable(
        "#include <fcntl.h>\n__attribute__((constructor)) static void keep(void) {\
         fcntl(open(\"/dev/zero\", O_RDONLY | O_CLOEXEC), F_DUPFD_CLOEXEC, 500); }",
    );
    let host = Host::with_devices(1);
    let setup = Setup::new(&host).device("/dev/spidev0.0");
    let daemon = setup.env("LD_PRELOAD", &library).start();
    let kept = fs::read_link(format!("/proc/{}/fd/500", daemon.pid()));
    assert_eq!(kept.unwrap(), PathBuf::from("/dev/zero"));
    assert_all_well(&daemon);
}
