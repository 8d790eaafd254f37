// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Landlock alone, without the filter that would come first: on a thread of its own, which is as far
//! as it reaches.

use super::*;
use std::fs::{self, File};
use std::io::{Error, ErrorKind};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use vhost_device_spi::confine::landlock;

/// The kernel's version of Landlock; not positive without.
fn version() -> i64 {
    let nothing = std::ptr::null::<u8>();
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0usize, 1) }
}

/// Runs `work` under Landlock as the daemon with a socket in `dir` would.
fn restricted<T: Send>(dir: &File, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
            assert!(landlock::restrict(&[dir.as_raw_fd()]).unwrap());
            work()
        });
        thread.join().unwrap()
    })
}

fn denied<T: std::fmt::Debug>(result: std::io::Result<T>) {
    let kind = result.map_err(|error| error.kind());
    assert_eq!(kind.unwrap_err(), ErrorKind::PermissionDenied);
}

fn unlinkat(dir: &File, name: &std::ffi::CStr) -> std::io::Result<i64> {
    sys::check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), 0) }.into())
}

#[test]
fn landlock_leaves_the_removal_of_files_in_the_sockets_directories_and_no_other_way_to_files() {
    if version() < 1 {
        eprintln!("this kernel has no Landlock: nothing is shown");
        return;
    }
    let (ours, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&ours, &others] {
        UnixListener::bind(dir.path().join("s")).unwrap();
        fs::write(dir.path().join("f"), "text").unwrap();
        fs::create_dir(dir.path().join("below")).unwrap();
        fs::write(dir.path().join("below/f"), "text").unwrap();
    }
    let (dir, other) = (
        File::open(ours.path()).unwrap(),
        File::open(others.path()).unwrap(),
    );
    restricted(&dir, || {
        denied(fs::read(ours.path().join("f")));
        denied(fs::read_dir(ours.path()).map(drop));
        denied(fs::read("/etc/passwd"));
        denied(fs::write(ours.path().join("new"), ""));
        denied(fs::create_dir(ours.path().join("new")));
        denied(UnixListener::bind(ours.path().join("new")));
        denied(std::os::unix::fs::symlink("f", ours.path().join("new")));
        denied(fs::rename(ours.path().join("f"), ours.path().join("new")));
        denied(std::process::Command::new("/bin/true").status());
        denied(unlinkat(&other, c"s"));
        unlinkat(&dir, c"s").unwrap();
        // More than it is for, as the documentation says: any file there and below.
        unlinkat(&dir, c"f").unwrap();
        unlinkat(&dir, c"below/f").unwrap();
    });
    assert!(!ours.path().join("s").exists() && others.path().join("s").exists());
}

#[test]
fn landlock_takes_networks_and_signals_to_others() {
    let directory = tempfile::tempdir().unwrap();
    let dir = File::open(directory.path()).unwrap();
    let version = version();
    let tcp = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let name = format!("landlock-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let _listener = UnixListener::bind_addr(&address).unwrap();
    let parent = std::os::unix::process::parent_id().cast_signed();
    if version >= 4 {
        restricted(&dir, || {
            denied(TcpStream::connect(tcp.local_addr().unwrap()));
            denied(TcpListener::bind(("127.0.0.1", 0)));
        });
    }
    if version >= 6 {
        restricted(&dir, || {
            denied(std::os::unix::net::UnixStream::connect_addr(&address));
            let sent = unsafe { libc::kill(parent, 0) };
            assert_eq!(
                (sent, Error::last_os_error().raw_os_error()),
                (-1, Some(libc::EPERM))
            );
        });
    }
}
