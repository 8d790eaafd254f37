// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Front-ends and guests that mean harm, each of which stopped an earlier version of the daemon.

use crate::life::fds_in_a_session;
use crate::rig::stall::Stall;
use crate::rig::*;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Two guests on one echo.
fn two() -> (Host, Daemon, Guest, Guest) {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
    let (first, second) = (Guest::connect(&daemon, 0), Guest::connect(&daemon, 1));
    host.forget();
    (host, daemon, first, second)
}

/// A blocking eventfd whose counter is at 2^64 - 1, which no write can reach: the kernel adds to it
/// when an AIO read ends.
fn overfull_eventfd() -> File {
    // SAFETY: no pointers.
    let fd = unsafe { libc::eventfd(0, 0) };
    // SAFETY: eventfd gave this fd to us alone.
    let mut eventfd = unsafe { File::from_raw_fd(fd) };
    eventfd.write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
    let (source, mut byte, mut context) = (File::open("/proc/self/exe").unwrap(), 0u8, 0usize);
    // `struct iocb` of <linux/aio_abi.h>: opcode and fd in the third word, then buffer, length and
    // offset, and in the last word IOCB_FLAG_RESFD and the eventfd.
    let fd_of = |file: &File| u64::from(file.as_raw_fd().cast_unsigned());
    let iocb = [
        0,
        0,
        fd_of(&source) << 32,
        &raw mut byte as u64,
        1,
        0,
        0,
        1 | fd_of(&eventfd) << 32,
    ];
    let mut iocbs = [&raw const iocb];
    // SAFETY: `context` takes the result.
    let set_up = unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) };
    // SAFETY: one valid iocb, alive until it is done.
    let submitted = unsafe { libc::syscall(libc::SYS_io_submit, context, 1, iocbs.as_mut_ptr()) };
    assert_eq!((set_up, submitted), (0, 1));
    // SAFETY: waits until nothing refers to `byte` any more.
    unsafe { libc::syscall(libc::SYS_io_destroy, context) };
    eventfd
}

#[test]
fn eventfd_beyond_its_end_does_not_hold_up_other_guests() {
    for request in [raw::SET_VRING_KICK, raw::SET_VRING_CALL, raw::SET_VRING_ERR] {
        let (_host, daemon, first, mut second) = two();
        let eventfd = overfull_eventfd();
        let payload = 0u64.to_le_bytes();
        let fds = [eventfd.as_raw_fd()];
        first
            .raw
            .send(request, raw::VERSION, &payload, &fds)
            .unwrap();
        second.assert_served();
        daemon.stop();
    }
}

#[test]
fn messages_in_a_flood_do_not_keep_a_transfer_from_ending() {
    let (host, _daemon, mut flood, mut modest) = two();
    let gate = host.gate_message(DEV, 1);
    let long = flood.request(Head::default(), &[0xf0; 20_000], 0);
    flood.queue(&long);
    flood.kick();
    gate.reached();
    let (socket, stop) = (
        flood.raw.sock.try_clone().unwrap(),
        Arc::new(AtomicBool::new(false)),
    );
    let stopped = Arc::clone(&stop);
    let sender = std::thread::spawn(move || {
        let many = Raw::encode(raw::SET_OWNER, raw::VERSION, &[]).repeat(500);
        while !stopped.load(Ordering::Relaxed) && (&socket).write_all(&many).is_ok() {}
    });
    let other = modest.request(Head::default(), &[0x0d], 0);
    modest.queue(&other);
    modest.kick();
    gate.release();
    // The flood goes on until then.
    let came = modest.try_used(1, PATIENCE).is_ok();
    stop.store(true, Ordering::Relaxed);
    drop(flood);
    sender.join().unwrap();
    assert!(came);
}

#[test]
fn inactive_delays_in_a_flood_delay_another_guest_by_one_request() {
    let (host, _daemon, mut flood, mut modest) = two();
    let mut head = Head::default().cs_change(1);
    head.cs_change_delay_inactive_ns = 10_000_000;
    for _ in 0..80 {
        let request = flood.request(head, &[0xf0], 0);
        flood.queue(&request);
    }
    // The third, during which the other one comes.
    let gate = host.gate_message(DEV, 2);
    flood.kick();
    gate.reached();
    let other = modest.request(Head::default().cs_change(1), &[0x0d], 0);
    modest.queue(&other);
    modest.kick();
    gate.release();
    modest.wait_used(1);
    let sent: Vec<u8> = host.messages(DEV).iter().flat_map(|m| m.tx()).collect();
    let place = sent.iter().position(|&byte| byte == 0x0d).unwrap();
    // One may go out before the kick is seen, one because it waited first.
    assert!(place <= 5, "{sent:x?}");
}

/// Lets the daemon have no fd whose number is `count` or more.
fn limit_fds(daemon: &Daemon, count: u64) {
    let limit = libc::rlimit {
        rlim_cur: count,
        rlim_max: 1024,
    };
    let pid = daemon.pid().cast_signed();
    let (resource, old) = (libc::RLIMIT_NOFILE, std::ptr::null_mut());
    // SAFETY: `limit` is readable, and no old one is asked for.
    let set = unsafe { libc::prlimit(pid, resource, &raw const limit, old) };
    assert_eq!(set, 0);
}

#[test]
fn fds_for_which_the_process_has_no_room_end_their_connection_alone() {
    let (_host, daemon, guest, mut other) = two();
    drop(guest);
    let sender = Raw::connect(&daemon.socket(0));
    sender.ask(raw::GET_FEATURES, &[]);
    let eventfd = overfull_eventfd();
    // There is room for one more, or for as many as were closed below the highest.
    limit_fds(&daemon, daemon.fd_count() as u64 + 1);
    let fds = [eventfd.as_raw_fd(); 8];
    sender
        .send(raw::SET_MEM_TABLE, raw::VERSION, &[0; 8 + 8 * 32], &fds)
        .unwrap();
    assert!(sender.hung_up(PATIENCE));
    daemon.wait_line(&["guest=0", "more than the process may have"]);
    other.assert_served();
    limit_fds(&daemon, 1024);
    Guest::connect(&daemon, 0).assert_served();
}

#[test]
fn socket_without_an_fd_for_a_connection_listens_again_when_there_is_one() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host).guests(2).device("/dev/spidev0.0").start();
    // Answered only after the daemon has set its own limit.
    Raw::connect(&daemon.socket(1)).ask(raw::GET_FEATURES, &[]);
    limit_fds(&daemon, 3);
    let refused = daemon::connect(&daemon.socket(0));
    daemon.wait_line(&["guest=0", "os error 24"]); // each C library has words of its own
    limit_fds(&daemon, 1024);
    drop(refused);
    Guest::connect(&daemon, 0).assert_served();
}

#[test]
fn vring_call_set_after_a_completion_is_signalled() {
    let (_host, _daemon, mut guest) = plugged();
    guest
        .raw
        .ack(raw::SET_VRING_CALL, &raw::NO_FD.to_le_bytes(), &[]);
    let request = guest.request(Head::default(), &[1], 0);
    guest.queue(&request);
    guest.kick();
    assert!(sys::eventually(PATIENCE, || {
        guest.ring.device_idx(&guest.memory) != guest.ring.used_idx
    }));
    let call = guest.call.as_raw_fd();
    guest
        .raw
        .ack(raw::SET_VRING_CALL, &0u64.to_le_bytes(), &[call]);
    assert!(sys::readable(call, PATIENCE));
}

#[test]
fn indirect_table_of_1024_is_a_whole_chain() {
    let host = Host::with_devices(1);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    let mut guest = Plug::default().queue_size(1024).connect(&daemon, 0);
    let request = guest.contiguous(Head::default(), &[5; 2000], 0);
    // The head, 1,021 single bytes, the rest, and the result.
    let offsets: Vec<u32> = (32..=32 + 1021).collect();
    let request = request.cut(&offsets, &[]);
    assert_eq!(request.segments.len(), 1024);
    guest.queue_indirect(&request);
    guest.kick();
    guest.wait_used(1);
    assert_eq!(guest.memory.read(request.result_gpa, 1), [TRANS_OK]);
}

#[test]
fn memory_of_part_of_a_huge_page_is_refused() {
    let (_host, daemon, first, mut second) = two();
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"huge".as_ptr(), libc::MFD_HUGETLB) };
    assert!(fd >= 0, "this machine has no hugetlbfs");
    // SAFETY: memfd_create gave this fd to us alone.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(2 << 20).unwrap();
    let table: Vec<u8> = [1u64, 0, 4096, 0x1_0000, 0]
        .iter()
        .flat_map(|n| n.to_le_bytes())
        .collect();
    let fds = [file.as_raw_fd()];
    first
        .raw
        .send(raw::SET_MEM_TABLE, raw::VERSION, &table, &fds)
        .unwrap();
    daemon.wait_line(&["guest=0", "page aligned"]);
    second.assert_served();
}

#[test]
fn fds_of_unknown_file_systems_are_left_open_and_end_that_socket_after_a_few() {
    let (_host, daemon, first, mut second) = two();
    drop(first);
    // Of procfs nothing is known here but that it is not a block device's: like a FUSE server's
    // file, whose close could wait for ever.
    let file = File::open("/proc/version").unwrap();
    let before = daemon.fd_count();
    for n in 1..=17 {
        let front_end = Raw::connect(&daemon.socket(0));
        let (payload, fds) = (0u64.to_le_bytes(), [file.as_raw_fd()]);
        front_end
            .send(raw::SET_VRING_CALL, raw::VERSION, &payload, &fds)
            .unwrap();
        assert!(front_end.recv().is_err(), "connection {n} goes on");
        second.assert_served();
    }
    daemon.wait_line(&["guest=0", "not listening any more"]);
    let refused = std::os::unix::net::UnixStream::connect(daemon.socket(0));
    assert!(refused.is_err());
    assert!(daemon.fd_count() <= before + 17);
    second.assert_served();
}

/// A file system mounted for a test.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(kind: &std::ffi::CStr, options: &std::ffi::CStr) -> Self {
        let at = tempfile::tempdir().unwrap();
        let (path, flags) = (Self::path(&at), libc::MS_NOSUID | libc::MS_NODEV);
        let (kind, options) = (kind.as_ptr(), options.as_ptr().cast());
        let mounted = unsafe { libc::mount(kind, path.as_ptr(), kind, flags, options) };
        assert_eq!(mounted, 0, "mount: {}", std::io::Error::last_os_error());
        Self(at)
    }

    fn path(at: &tempfile::TempDir) -> std::ffi::CString {
        std::ffi::CString::new(at.path().as_os_str().as_bytes()).unwrap()
    }

    /// A new file of 64 KiB.
    fn file(&self) -> File {
        let mut options = File::options();
        let options = options.read(true).write(true).create(true);
        let file = options.open(self.0.path().join("memory")).unwrap();
        file.set_len(1 << 16).unwrap();
        file
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unsafe { libc::umount2(Self::path(&self.0).as_ptr(), libc::MNT_DETACH) };
    }
}

#[test]
fn memory_in_a_plain_file_is_refused_and_its_socket_serves_on() {
    let layers = tempfile::tempdir().unwrap();
    for layer in ["lower", "upper", "work"] {
        std::fs::create_dir(layers.path().join(layer)).unwrap();
    }
    let at = |layer| layers.path().join(layer).display().to_string();
    let overlay = format!(
        "lowerdir={},upperdir={},workdir={}",
        at("lower"),
        at("upper"),
        at("work")
    );
    let overlay = std::ffi::CString::new(overlay).unwrap();
    for mounted in [
        Mounted::new(c"ramfs", c""),
        Mounted::new(c"overlay", &overlay),
    ] {
        let file = mounted.file();
        let (_host, daemon, first, mut second) = two();
        drop(first);
        let fds = fds_in_a_session(&daemon, 0);
        for n in 0..40 {
            let front_end = Raw::connect(&daemon.socket(0));
            front_end.negotiate_reply_ack();
            let table = [1u64, 0, 1 << 16, 0x1_0000, 0]
                .map(u64::to_le_bytes)
                .concat();
            let given = [file.as_raw_fd()];
            assert_ne!(front_end.ack(raw::SET_MEM_TABLE, &table, &given), 0, "{n}");
            assert!(front_end.hung_up(PATIENCE));
        }
        daemon.wait_line(&["guest=0", "guest memory must be a memfd"]);
        let as_before = || fds_in_a_session(&daemon, 0) == fds;
        assert!(sys::eventually(PATIENCE, as_before), "fds are left open");
        Guest::connect(&daemon, 0).assert_served();
        second.assert_served();
    }
}

/// An urgent byte that brings `fd`.
fn send_urgent(to: &Raw, fd: &impl AsRawFd) {
    let (socket, fds) = (to.sock.as_raw_fd(), [fd.as_raw_fd()]);
    let sent = sys::send_flagged(socket, &[1], &fds, libc::MSG_OOB);
    assert_eq!(sent.expect("an urgent byte"), 1);
    // So that it is looked at before anything follows it.
    std::thread::sleep(Duration::from_millis(50));
}

#[test]
fn urgent_byte_in_place_of_a_body_does_not_hold_up_other_guests() {
    let (_host, daemon, first, mut second) = two();
    let header = [24u32, raw::VERSION, 1].map(u32::to_le_bytes).concat();
    first.raw.send_bytes(&header, &[]).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let (socket, byte) = (first.raw.sock.as_raw_fd(), [1u8]);
    // SAFETY: one readable byte.
    let sent = unsafe { libc::send(socket, byte.as_ptr().cast(), 1, libc::MSG_OOB) };
    assert_eq!(sent, 1, "this kernel has no urgent bytes on Unix sockets");
    second.assert_served();
    daemon.stop();
}

#[test]
fn urgent_byte_with_an_fd_in_front_of_a_message_does_not_hold_up_other_guests() {
    let (_host, _daemon, first, mut second) = two();
    let (_stall, pipe) = Stall::pipe();
    send_urgent(&first.raw, &pipe);
    drop(pipe);
    let _ = first.raw.send(raw::GET_FEATURES, raw::VERSION, &[], &[]);
    assert!(first.raw.hung_up(PATIENCE));
    second.assert_served();
}

#[test]
fn urgent_byte_with_an_fd_between_header_and_body_does_not_hold_up_other_guests() {
    let (_host, _daemon, first, mut second) = two();
    let (_stall, pipe) = Stall::pipe();
    let message = Raw::encode(raw::SET_VRING_CALL, raw::VERSION, &raw::NO_FD.to_le_bytes());
    first.raw.send_bytes(&message[..12], &[]).unwrap();
    send_urgent(&first.raw, &pipe);
    drop(pipe);
    let _ = first.raw.send_bytes(&message[12..], &[]);
    assert!(first.raw.hung_up(PATIENCE));
    second.assert_served();
}

#[test]
fn fds_of_a_message_that_waits_for_the_transfer_are_not_gathered() {
    for request in [raw::SET_VRING_ENABLE, raw::GET_VRING_BASE] {
        let host = Host::new();
        let daemon = Setup::new(&host).guests(2).device("loopback").start();
        let (mut first, mut second) = (Guest::connect(&daemon, 0), Guest::connect(&daemon, 1));
        // 800 ms: short enough to be waited for.
        let transfer = first.request(Head::default(), &pattern(100_000), 0);
        first.queue(&transfer);
        first.kick();
        first.config();
        let (before, null) = (daemon.fd_count(), File::open("/dev/null").unwrap());
        let (payload, fds) = (Raw::vring_state(0, 0), [null.as_raw_fd(); 32]);
        first
            .raw
            .send(request, raw::VERSION, &payload, &fds)
            .unwrap();
        for _ in 0..100 {
            // Each wakes the loop, which looks at the queue from its front.
            let _ = first.raw.send_bytes(&[1], &[]);
            std::thread::sleep(Duration::from_millis(2));
        }
        let during = daemon.fd_count();
        assert!(during < before + 100, "{during} fds, {before} before");
        second.assert_served();
    }
}

#[test]
fn memory_that_is_an_o_path_fd_is_refused_and_not_left_open() {
    for request in [raw::SET_MEM_TABLE, raw::ADD_MEM_REG] {
        let (_host, daemon, first, mut second) = two();
        drop(first);
        let (memory, before) = (sys::memfd(4096), fds_in_a_session(&daemon, 0));
        let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
        // More often than files may be left open before the socket listens no more.
        for _ in 0..20 {
            let mut options = File::options();
            let file = options
                .read(true)
                .custom_flags(libc::O_PATH)
                .open(&path)
                .unwrap();
            let front_end = Raw::connect(&daemon.socket(0));
            // Of either message: a count or padding, then one region.
            let count = u64::from(request == raw::SET_MEM_TABLE);
            let region = [count, 0, 4096, 0x1_0000, 0].map(u64::to_le_bytes).concat();
            let fds = [file.as_raw_fd()];
            front_end
                .send(request, raw::VERSION, &region, &fds)
                .unwrap();
            assert!(front_end.hung_up(PATIENCE));
        }
        let as_before = || fds_in_a_session(&daemon, 0) == before;
        assert!(sys::eventually(PATIENCE, as_before), "fds are left open");
        Guest::connect(&daemon, 0).assert_served();
        second.assert_served();
    }
}

#[test]
fn connection_given_as_its_own_call_is_refused() {
    // Whoever holds its own other end never sees it close.
    let (_host, daemon, first, mut second) = two();
    drop(first);
    for request in [raw::SET_VRING_CALL, raw::SET_VRING_ERR] {
        let front_end = Raw::connect(&daemon.socket(0));
        let fds = [front_end.sock.as_raw_fd()];
        let payload = 0u64.to_le_bytes();
        front_end
            .send(request, raw::VERSION, &payload, &fds)
            .unwrap();
        assert!(front_end.hung_up(PATIENCE));
        second.assert_served();
    }
    Guest::connect(&daemon, 0).assert_served();
}
