// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--socket`, and who may connect to the sockets that the daemon makes.

use crate::rig::setup::run;
use crate::rig::*;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

const DEVICE: &str = "--device=/dev/spidev0.0";
/// Neither ours nor anybody's.
const GROUP: u32 = 54_321;
const NOBODY: u32 = 65_534;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn sockets_named_exactly_are_made_served_and_removed() {
    let host = Host::with_devices(1);
    let setup = Setup::new(&host).spelled(|base, _| {
        let path = format!("{base}-b");
        vec![format!("--socket={base}-a"), "--socket".into(), path]
    });
    let daemon = setup.device("/dev/spidev0.0").launch();
    daemon.wait_line(&["guest=1", "s-b"]);
    let paths = ["s-a", "s-b"].map(|name| daemon.base().with_file_name(name));
    for path in &paths {
        assert_eq!(mode(path), 0o600);
        Plug::default().connect_to(path).assert_served();
    }
    let count = || {
        let dir = daemon.base().parent().unwrap();
        fs::read_dir(dir).unwrap().count()
    };
    assert_eq!(count(), 2);
    let dir = daemon.base().parent().unwrap().to_owned();
    let keep = Setup::new(&host).in_dir_of(&daemon);
    daemon.stop();
    assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
    drop(keep);
}

#[test]
fn sockets_have_the_mode_that_is_given_whatever_the_umask() {
    for (given, umask, expected) in [
        ("660", 0o777, 0o660),
        ("0666", 0o022, 0o666),
        ("777", 0o077, 0o777),
        ("0", 0o000, 0o000),
    ] {
        let host = Host::with_devices(1);
        let setup = Setup::new(&host).before_exec(move || {
            unsafe { libc::umask(umask) };
            Ok(())
        });
        let setup = setup.guests(2).arg(format!("--socket-mode={given}"));
        let daemon = setup.device("/dev/spidev0.0").start();
        for n in 0..2 {
            assert_eq!(mode(&daemon.socket(n)), expected, "{given}");
        }
    }
}

/// Whether a process of `NOBODY` in `group` can connect.
fn connects(path: &Path, group: u32) -> bool {
    let mut child = Command::new("true");
    let path = path.to_owned();
    let connect = move || UnixStream::connect(&path).map(drop);
    child.uid(NOBODY).gid(group);
    // SAFETY: connecting allocates, but this process is not in the middle of that where it matters.
    unsafe { child.pre_exec(connect) };
    notify::spawn_alone(&mut child).is_ok_and(|mut child| child.wait().unwrap().success())
}

#[test]
fn sockets_are_given_to_the_group_by_number() {
    let host = Host::with_devices(1);
    let setup = Setup::new(&host).open_to_all();
    let setup = setup.arg("--socket-mode=0660").arg("--socket-group=54321");
    let daemon = setup.device("/dev/spidev0.0").start();
    let path = daemon.socket(0);
    assert_eq!(
        (mode(&path), fs::metadata(&path).unwrap().gid()),
        (0o660, GROUP)
    );
    assert!(connects(&path, GROUP));
    assert!(!connects(&path, NOBODY));
    daemon.stop();
    assert!(!path.exists());
}

#[test]
fn sockets_are_given_to_the_group_by_name() {
    let groups = fs::read_to_string("/etc/group").unwrap();
    let mut groups = groups
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>());
    let group = groups.find(|group| group[2] != "0").expect("a group");
    let host = Host::with_devices(1);
    let setup = Setup::new(&host).arg(format!("--socket-group={}", group[0]));
    let daemon = setup.device("/dev/spidev0.0").start();
    let gid = fs::metadata(daemon.socket(0)).unwrap().gid();
    assert_eq!(gid.to_string(), group[2]);
}

/// For a child before the program.
fn become_nobody() -> std::io::Result<()> {
    sys::check(unsafe { libc::setgroups(0, std::ptr::null()) }.into())?;
    sys::check(unsafe { libc::setgid(NOBODY) }.into())?;
    sys::check(unsafe { libc::setuid(NOBODY) }.into()).map(drop)
}

#[test]
fn socket_of_another_user_without_permission_is_refused_as_that_and_kept() {
    let host = Host::with_devices(1);
    let setup = Setup::new(&host).open_to_all().before_exec(become_nobody);
    // What another user's daemon left when it was killed: nobody listens.
    let spelled = setup.spelled(|base, _| {
        drop(std::os::unix::net::UnixListener::bind(base).unwrap());
        fs::set_permissions(base, fs::Permissions::from_mode(0o600)).unwrap();
        vec![format!("--socket={base}")]
    });
    let mut daemon = spelled.device("/dev/spidev0.0").launch();
    assert_eq!(daemon.wait(PATIENCE).code(), Some(77));
    daemon.wait_line(&["socket '", "ermission denied"]);
    assert!(daemon.base().exists());
}

#[test]
fn group_unknown_or_not_ours_to_give_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let base = format!("--socket-path={}", dir.path().join("s").display());
    let host = Host::with_devices(1);
    let finished = run(&host, &[DEVICE, &base, "--socket-group=no such group"]);
    let words = ["option '--socket-group': 'no such group' is not in /etc/group"];
    assert_eq!(finished.refused(&words), 64);

    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let setup = Setup::new(&host).open_to_all().before_exec(become_nobody);
    let mut daemon = setup
        .arg("--socket-group=0")
        .device("/dev/spidev0.0")
        .launch();
    assert_eq!(daemon.wait(PATIENCE).code(), Some(77));
    daemon.wait_line(&["s0'", "group 0", "not permitted"]);
    assert_eq!(daemon.stderr().len(), 1);
    assert!(!daemon.socket(0).exists());
}
