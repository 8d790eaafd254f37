// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The sockets as files.

use crate::rig::daemon::listens;
use crate::rig::setup::run;
use crate::rig::*;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

const DEVICE: &str = "--device=/dev/spidev0.0";

fn dir() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("vs").tempdir().unwrap()
}

fn base(dir: &tempfile::TempDir) -> String {
    format!("--socket-path={}", dir.path().join("s").display())
}

fn names(dir: &Path) -> Vec<String> {
    let mut all: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    all.sort();
    all
}

#[test]
fn socket_mode_is_0600_whatever_the_umask() {
    for umask in [0o000, 0o022, 0o777] {
        let host = Host::with_devices(1);
        let action = move || {
            unsafe { libc::umask(umask) };
            Ok(())
        };
        let daemon = Setup::new(&host)
            .device("/dev/spidev0.0")
            .before_exec(action)
            .start();
        let mode = fs::metadata(daemon.socket(0)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "umask {umask:o}");
        Guest::connect(&daemon, 0).assert_served();
    }
}

#[test]
fn socket_names_are_the_path_with_numbers_from_0() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host)
        .guests(12)
        .device("/dev/spidev0.0")
        .start();
    let mut expected: Vec<_> = (0..12).map(|n| format!("s{n}")).collect();
    expected.sort();
    assert_eq!(names(daemon.base().parent().unwrap()), expected);
}

#[test]
fn socket_stale_after_a_kill_is_replaced() {
    let host = Host::with_devices(1);
    let mut first = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
    first.kill();
    assert!(first.socket(0).exists() && first.socket(1).exists());
    let second = Setup::new(&host)
        .guests(2)
        .device("/dev/spidev0.0")
        .in_dir_of(&first)
        .start();
    Guest::connect(&second, 1).assert_served();
    second.stop();
    assert!(!first.socket(0).exists());
}

#[test]
fn socket_of_a_live_daemon_is_never_taken() {
    let host = Host::with_devices(2);
    let first = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
    let inode = |n| fs::metadata(first.socket(n)).unwrap().ino();
    let before = (inode(0), inode(1));
    let arg = format!("--socket-path={}", first.base().display());
    let socket = first.socket(0);
    let words = [socket.to_str().unwrap(), "in use by another process"];
    let code = run(&host, &["--device=/dev/spidev0.1", &arg]).refused(&words);
    assert_eq!(code, 69);
    assert_eq!((inode(0), inode(1)), before);
    Guest::connect(&first, 0).assert_served();
}

#[test]
fn socket_of_a_live_daemon_with_a_guest_is_never_taken() {
    let host = Host::with_devices(2);
    let first = Daemon::start(&host, &["/dev/spidev0.0"]);
    let mut guest = Guest::connect(&first, 0);
    let arg = format!("--socket-path={}", first.base().display());
    run(&host, &["--device=/dev/spidev0.1", &arg]).refused(&[first.socket(0).to_str().unwrap()]);
    guest.assert_served();
}

#[test]
fn socket_of_a_listener_with_a_full_backlog_is_never_taken() {
    let dir = dir();
    let path = dir.path().join("s0");
    let _listener = UnixListener::bind(&path).unwrap();
    let mut waiting = Vec::new();
    // connect(2) would wait once the backlog is full: a socket that must not wait finds the end of it.
    loop {
        let sock = unsafe {
            libc::socket(
                libc::AF_UNIX,
                libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
                0,
            )
        };
        let mut addr: libc::sockaddr_un = unsafe { std::mem::zeroed() };
        addr.sun_family = libc::AF_UNIX as _;
        for (to, from) in addr
            .sun_path
            .iter_mut()
            .zip(path.as_os_str().as_encoded_bytes())
        {
            *to = *from as _;
        }
        let len = size_of_val(&addr) as u32;
        let done = unsafe { libc::connect(sock, (&raw const addr).cast(), len) };
        waiting.push(sock);
        if done < 0 || waiting.len() > 6000 {
            break;
        }
    }
    run(&Host::with_devices(1), &[DEVICE, &base(&dir)]).refused(&[path.to_str().unwrap()]);
    assert!(fs::metadata(&path).unwrap().file_type().is_socket());
    waiting.iter().for_each(|sock| unsafe {
        libc::close(*sock);
    });
}

#[test]
fn socket_path_of_another_kind_of_file_is_refused_and_never_deleted() {
    type Make = fn(&Path);
    let kinds: [(&str, Make); 5] = [
        ("file", |p| fs::write(p, "precious").unwrap()),
        ("directory", |p| fs::create_dir(p).unwrap()),
        ("link to a file", |p| {
            fs::write(p.with_extension("target"), "precious").unwrap();
            symlink(p.with_extension("target"), p).unwrap();
        }),
        ("dangling link", |p| {
            symlink("/nonexistent/target", p).unwrap()
        }),
        ("fifo", |p| {
            let name = std::ffi::CString::new(p.to_str().unwrap()).unwrap();
            assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        }),
    ];
    for (kind, make) in kinds {
        let dir = dir();
        let path = dir.path().join("s0");
        make(&path);
        let before = (
            names(dir.path()),
            fs::symlink_metadata(&path).unwrap().ino(),
        );
        run(&Host::with_devices(1), &[DEVICE, &base(&dir)]).refused(&[path.to_str().unwrap()]);
        let after = (
            names(dir.path()),
            fs::symlink_metadata(&path).unwrap().ino(),
        );
        assert_eq!(before, after, "{kind}");
    }
}

#[test]
fn socket_second_refused_removes_the_first() {
    let dir = dir();
    fs::write(dir.path().join("s1"), "precious").unwrap();
    run(
        &Host::with_devices(1),
        &[DEVICE, &base(&dir), "--socket-count=3"],
    )
    .refused(&["s1"]);
    assert_eq!(names(dir.path()), ["s1"]);
}

#[test]
fn socket_files_are_removed_at_exit_and_nothing_else() {
    let host = Host::with_devices(1);
    let mut daemon = Setup::new(&host).guests(3).device("/dev/spidev0.0").start();
    let dir = daemon.base().parent().unwrap().to_path_buf();
    fs::write(dir.join("s9"), "another's").unwrap();
    daemon.signal(libc::SIGTERM);
    assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
    assert_eq!(names(&dir), ["s9"]);
}

#[test]
fn socket_replaced_by_another_program_is_kept_at_exit() {
    let host = Host::with_devices(1);
    let mut daemon = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
    fs::remove_file(daemon.socket(0)).unwrap();
    let listener = UnixListener::bind(daemon.socket(0)).unwrap();
    daemon.signal(libc::SIGTERM);
    assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
    assert!(daemon.socket(0).exists() && !daemon.socket(1).exists());
    UnixStream::connect(daemon.socket(0)).unwrap();
    drop(listener);
}

#[test]
fn socket_removed_by_another_program_does_not_disturb_the_exit() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
    fs::remove_file(daemon.socket(1)).unwrap();
    daemon.stop();
}

#[test]
fn socket_directory_gone_does_not_disturb_the_exit() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host).device("/dev/spidev0.0").start();
    fs::remove_dir_all(daemon.base().parent().unwrap()).unwrap();
    daemon.stop();
}

#[test]
fn socket_listens_while_a_guest_is_served() {
    let host = Host::with_devices(1);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    let mut guest = Guest::connect(&daemon, 0);
    guest.assert_served();
    assert!(listens(&daemon.socket(0)));
}

/// Whoever may read a directory may lock it: that must not keep the daemon from its start.
#[test]
fn socket_directory_locked_by_another_process_delays_the_start_by_two_seconds() {
    let (host, dir) = (Host::with_devices(1), Arc::new(dir()));
    let lock = fs::File::open(dir.path()).unwrap();
    lock.lock_shared().unwrap();
    let setup = Setup::new(&host).in_dir(dir).arg("--log-level=warning");
    // Once for all sockets: two seconds for each would be more than the rig has patience.
    let daemon = setup.guests(16).device("/dev/spidev0.0").start();
    daemon.wait_line(&["is locked by another process"]);
    assert_eq!(daemon.said().len(), 1, "{:?}", daemon.stderr());
    Guest::connect(&daemon, 0).assert_served();
    daemon.stop();
    drop(lock);
}

#[test]
fn cli_socket_directory_unusable_is_refused_with_path_and_reason() {
    let host = Host::with_devices(1);
    let file = tempfile::NamedTempFile::new().unwrap();
    let below_file = format!("{}/s", file.path().display());
    for (path, reason) in [
        (
            "/nonexistent/s",
            "its directory '/nonexistent': no such file",
        ),
        (below_file.as_str(), "not a directory"),
        ("/sys/s", ""),
    ] {
        run(&host, &[DEVICE, &format!("--socket-path={path}")]).refused(&[path, reason]);
    }
}

#[test]
fn cli_socket_path_too_long_is_refused_with_the_path() {
    let dir = dir();
    let path = dir.path().join("x".repeat(120));
    let finished = run(
        &Host::with_devices(1),
        &[DEVICE, &format!("--socket-path={}", path.display())],
    );
    finished.refused(&[path.to_str().unwrap()]);
}

#[test]
fn socket_path_of_107_bytes_is_served() {
    let (host, dir) = (Host::with_devices(1), dir());
    let path = dir
        .path()
        .join("x".repeat(107 - dir.path().as_os_str().len() - 1));
    let path = path.to_str().unwrap().to_owned();
    let arg = format!("--socket={path}");
    let setup = Setup::new(&host).no_sockets().arg(arg);
    let daemon = setup.device("/dev/spidev0.0").launch();
    daemon.wait_line(&["guest=0", "listening"]);
    Plug::default().connect_to(Path::new(&path)).assert_served();
    daemon.stop();
}

#[test]
fn cli_socket_path_too_long_with_its_last_number_only_leaves_nothing() {
    let dir = dir();
    let room = 107 - dir.path().as_os_str().len() - 1;
    // One character is left for the number: 0 to 9 fit, 10 does not.
    let path = dir.path().join("x".repeat(room - 1));
    let path = format!("--socket-path={}", path.display());
    run(
        &Host::with_devices(1),
        &[DEVICE, &path, "--socket-count=11"],
    )
    .refused(&["xxx"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn cli_socket_of_a_live_listener_is_refused_and_kept() {
    let dir = dir();
    let path = dir.path().join("s0");
    let listener = UnixListener::bind(&path).unwrap();
    let arg = format!("--socket-path={}", dir.path().join("s").display());
    run(&Host::with_devices(1), &[DEVICE, &arg]).refused(&[path.to_str().unwrap()]);
    assert!(path.exists());
    // The listener's next connection is a real one or the probe; either way it still is what the path leads to.
    UnixStream::connect(&path).unwrap();
    drop(listener);
}
