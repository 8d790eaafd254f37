// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--guest-memory=any`: guest memory in files of every kind that can be mapped.

use crate::life::fds_in_a_session;
use crate::rig::setup::run;
use crate::rig::*;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

const LEN: u64 = 16 << 20;
const GPA: u64 = 0x1_0000_0000;

/// Two guests on one echo.
fn two(options: &[&str]) -> (Host, Daemon) {
    let host = Host::with_devices(1);
    let setup = Setup::new(&host).guests(2).device("/dev/spidev0.0");
    let setup = options
        .iter()
        .fold(setup, |setup, option| setup.arg(*option));
    let daemon = setup.start();
    (host, daemon)
}

/// A file without a name, where the tests are built: on a disk, as a rule.
fn on_disk(len: u64) -> File {
    let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    file.set_len(len).unwrap();
    file
}

/// Shares one region of `len` bytes, `offset` into `file`; whether that was accepted.
fn share(front_end: &Raw, file: &File, len: u64, offset: u64) -> bool {
    let table = [1, 0, len, 0x1_0000, offset].map(u64::to_le_bytes).concat();
    front_end.ack(raw::SET_MEM_TABLE, &table, &[file.as_raw_fd()]) == 0
}

fn connected(daemon: &Daemon) -> Raw {
    let front_end = Raw::connect(&daemon.socket(0));
    front_end.negotiate_reply_ack();
    front_end
}

#[test]
fn guest_memory_any_takes_a_plain_file_and_its_guest_is_served() {
    let (_host, daemon) = two(&["--guest-memory=any"]);
    let fds = fds_in_a_session(&daemon, 0);
    for offset in [0, 1 << 20] {
        let file = on_disk(LEN + offset);
        let kept = file.try_clone().unwrap();
        let region = Region::in_file(file, GPA, LEN, offset);
        let mut guest = Plug::default().regions(vec![region]).connect(&daemon, 0);
        let request = guest.contiguous(Head::default(), b"plain", 5);
        let outcome = guest.carry_out(&request);
        assert_eq!((outcome.result, &outcome.rx[..]), (TRANS_OK, &b"plain"[..]));
        // The daemon wrote to the file itself.
        let (_, at) = guest.memory.file_behind(request.result_gpa);
        let mut result = [0xff];
        kept.read_exact_at(&mut result, at).unwrap();
        assert_eq!(result, [TRANS_OK]);
    }
    let as_before = || fds_in_a_session(&daemon, 0) == fds;
    assert!(sys::eventually(PATIENCE, as_before), "fds are left open");
}

#[test]
fn guest_memory_any_is_one_warning_and_sealed_is_the_default() {
    let line = |daemon: &Daemon| {
        let lines = daemon.stderr();
        let said = lines.iter().filter(|line| line.contains("--guest-memory"));
        said.cloned().collect::<Vec<_>>()
    };
    let (_host, daemon) = two(&["--guest-memory=any"]);
    // Written after the warning.
    daemon.wait_line(&["guest=1 listening"]);
    let [warning] = &line(&daemon)[..] else {
        panic!("not one line: {:?}", daemon.stderr());
    };
    assert!(
        warning.contains("warning: --guest-memory=any: "),
        "{warning}"
    );
    for options in [&[][..], &["--guest-memory=sealed"]] {
        let (_host, daemon) = two(options);
        assert!(!share(&connected(&daemon), &on_disk(1 << 16), 1 << 16, 0));
        daemon.wait_line(&["guest memory must be a memfd", "see --guest-memory"]);
        assert!(line(&daemon).iter().all(|line| !line.contains("=any")));
        Guest::connect(&daemon, 1).assert_served();
    }
}

#[test]
fn guest_memory_of_another_word_is_a_usage_error() {
    for word in ["", "all", "ANY"] {
        let option = format!("--guest-memory={word}");
        let line = ["--socket-path=s", "--device=/dev/spidev0.0", &option];
        let finished = run(&Host::with_devices(1), &line);
        let words = [
            &*format!("'--guest-memory': '{word}'"),
            "neither sealed nor any",
        ];
        assert_eq!(finished.refused(&words), 64);
    }
}

/// A plain file has a length; /dev/zero, as other drivers' files, has none.
#[test]
fn guest_memory_any_is_checked_where_the_file_says_its_length() {
    let (_host, daemon) = two(&["--guest-memory=any"]);
    let file = on_disk(1 << 16);
    for (len, offset, taken) in [
        (1 << 16, 0, true),
        (1 << 15, 1 << 15, true),
        (1 << 16, 4096, false),
        (1 << 17, 0, false),
        (4096, 2048, false),
        (2048, 0, false),
    ] {
        let shared = share(&connected(&daemon), &file, len, offset);
        assert_eq!(shared, taken, "{len:#x} at {offset:#x}");
    }
    daemon.wait_line(&["region ends beyond the end of its file"]);
    let zero = File::options().read(true).write(true).open("/dev/zero");
    let zero = zero.unwrap();
    assert!(share(&connected(&daemon), &zero, 1 << 16, 0));
    assert!(!share(&connected(&daemon), &zero, 1 << 16, 2048));
    let (_host, sealed) = two(&[]);
    assert!(!share(&connected(&sealed), &zero, 1 << 16, 0));
}

#[test]
fn guest_memory_any_that_cannot_be_mapped_is_refused_and_closed() {
    let (_host, daemon) = two(&["--guest-memory=any"]);
    let mut second = Guest::connect(&daemon, 1);
    let fds = fds_in_a_session(&daemon, 0);
    let (pipe, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let files = [
        // Of procfs, which would be left open as anything but memory.
        File::open("/proc/version").unwrap(),
        File::open("/dev/null").unwrap(),
        File::open("/").unwrap(),
        File::from(std::os::fd::OwnedFd::from(pipe)),
        // It may not be written.
        File::open("/proc/self/exe").unwrap(),
    ];
    for n in 0..40 {
        let file = &files[n % files.len()];
        assert!(!share(&connected(&daemon), file, 4096, 0), "{n}");
    }
    let as_before = || fds_in_a_session(&daemon, 0) == fds;
    assert!(sys::eventually(PATIENCE, as_before), "fds are left open");
    Guest::connect(&daemon, 0).assert_served();
    second.assert_served();
}

#[test]
fn guest_memory_any_leaves_open_what_is_not_memory_and_may_wait_when_closed() {
    let (_host, daemon) = two(&["--guest-memory=any"]);
    let mut second = Guest::connect(&daemon, 1);
    let file = File::open("/proc/version").unwrap();
    for n in 1..=17 {
        let front_end = Raw::connect(&daemon.socket(0));
        let (payload, fds) = (0u64.to_le_bytes(), [file.as_raw_fd()]);
        let sent = front_end.send(raw::SET_VRING_CALL, raw::VERSION, &payload, &fds);
        sent.unwrap();
        assert!(front_end.recv().is_err(), "connection {n} goes on");
    }
    daemon.wait_line(&["guest=0", "not listening any more"]);
    second.assert_served();
}

#[test]
fn guest_memory_any_in_a_file_that_shrinks_ends_its_guest_alone() {
    let (_host, daemon) = two(&["--guest-memory=any"]);
    let mut second = Guest::connect(&daemon, 1);
    let file = on_disk(LEN);
    let kept = file.try_clone().unwrap();
    let region = Region::in_file(file, GPA, LEN, 0);
    let guest = Plug::default().regions(vec![region]).connect(&daemon, 0);
    kept.set_len(0).unwrap();
    guest.kick_anyway();
    daemon.wait_line(&["guest=0", "guest memory was truncated"]);
    drop(guest);
    second.assert_served();
    Guest::connect(&daemon, 0).assert_served();
}

/// A DMA-BUF: the pages of a memfd, which may not shrink, by the kernel's driver udmabuf.
fn dma_buf(len: u64) -> File {
    #[repr(C)]
    struct Create {
        memfd: u32,
        flags: u32,
        offset: u64,
        size: u64,
    }
    const CREATE: u64 = 1 << 30 | 24 << 16 | (b'u' as u64) << 8 | 0x42;
    const CLOEXEC: u32 = 1;
    let memfd = sys::memfd(len);
    let sealed = unsafe { libc::fcntl(memfd.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) };
    sys::check(sealed.into()).expect("seal");
    let create = Create {
        memfd: memfd.as_raw_fd() as u32,
        flags: CLOEXEC,
        offset: 0,
        size: len,
    };
    let device = File::open("/dev/udmabuf").expect("/dev/udmabuf");
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), CREATE as _, &create) };
    unsafe { File::from_raw_fd(sys::check(fd.into()).expect("UDMABUF_CREATE") as RawFd) }
}

/// DMA_BUF_ANY is the socket of a daemon with `--guest-memory=any`, DMA_BUF_SEALED that of one without; chip select 0 of
/// either is a loopback.
#[test]
#[ignore = "needs a host with /dev/udmabuf: that of tests/guest/host"]
fn guest_memory_any_takes_a_dma_buf_and_sealed_refuses_it() {
    let [any, sealed] = ["DMA_BUF_ANY", "DMA_BUF_SEALED"].map(|name| std::env::var(name).unwrap());
    let region = Region::in_file(dma_buf(LEN), GPA, LEN, 0);
    let mut guest = Plug::default()
        .regions(vec![region])
        .connect_to(any.as_ref());
    // Longer than a page and than a message.
    for len in [5, 4096, 65_536] {
        let outcome = guest.transfer(Head::default(), &pattern(len), len);
        assert_eq!(outcome.result, TRANS_OK);
        assert!(outcome.rx == pattern(len), "{len} bytes");
    }
    drop(guest);

    let file = dma_buf(LEN);
    let shares = |socket: &str, len| {
        let front_end = Raw::connect(Path::new(socket));
        front_end.negotiate_reply_ack();
        share(&front_end, &file, len, 0)
    };
    assert!(!shares(&any, 2 * LEN), "more than there is");
    assert!(!shares(&sealed, LEN));
    assert!(shares(&any, LEN));
}
