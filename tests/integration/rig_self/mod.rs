// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The rig itself, without any daemon: this test binary runs itself as a program that uses `/dev/spidevX.Y`.

mod lines;
mod way_out;

use crate::rig::kernel_rules as rules;
use crate::rig::peer::Memory;
use crate::rig::program::{self, is_program};
use crate::rig::record::Kind;
use crate::rig::{Counter, Host, Loopback, When, sys};
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;

const EPERM_ADDR: u64 = 0x10;

/// Runs the test `name` again, under `host`, as the program that uses the nodes.
#[track_caller]
fn as_program(name: &str, host: &Host) {
    let program = program::spawn(&format!("rig_self::{name}"), host, name, None);
    let output = program.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "in the program: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn node(path: &str) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
}

/// The ioctl's result; negative is an errno.
fn ioctl<T>(file: &File, request: u32, arg: *mut T) -> i32 {
    let ret = unsafe { libc::ioctl(file.as_raw_fd(), request as _, arg) };
    if ret < 0 {
        -std::io::Error::last_os_error().raw_os_error().unwrap()
    } else {
        ret
    }
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Xfer {
    tx: u64,
    rx: u64,
    len: u32,
    speed: u32,
    delay: u16,
    bits: u8,
    cs_change: u8,
    tx_nbits: u8,
    rx_nbits: u8,
    word_delay: u8,
    pad: u8,
}

fn xfer(tx: &[u8], rx: &mut [u8]) -> Xfer {
    let at = |p: *const u8, len: usize| if len == 0 { 0 } else { p as u64 };
    Xfer {
        tx: at(tx.as_ptr(), tx.len()),
        rx: at(rx.as_ptr(), rx.len()),
        len: tx.len().max(rx.len()) as u32,
        ..Xfer::default()
    }
}

fn message(file: &File, xfers: &mut [Xfer]) -> i32 {
    ioctl(file, rules::message(xfers.len() as u32), xfers.as_mut_ptr())
}

#[test]
fn fake_message_of_two_transfers_is_echoed_and_recorded() {
    if is_program() {
        let file = node("/dev/spidev0.0");
        let (mut rx, tx) = ([0; 3], *b"abc");
        let mut second = xfer(b"", &mut []);
        (second.tx, second.len, second.speed) = (tx.as_ptr() as u64, 2, 500_000);
        assert_eq!(message(&file, &mut [xfer(&tx, &mut rx), second]), 5);
        assert_eq!(&rx, b"abc");
        return;
    }
    let host = Host::with_devices(1);
    as_program(
        "fake_message_of_two_transfers_is_echoed_and_recorded",
        &host,
    );
    let all = host.records();
    assert_eq!(all[0].kind, Kind::Open);
    let sent = all[1].transfers().unwrap();
    assert_eq!(
        (
            sent[0].tx.as_slice(),
            sent[1].tx.as_slice(),
            sent[1].speed_hz
        ),
        (&b"abc"[..], &b"ab"[..], 500_000)
    );
    assert_eq!(
        (all[1].ret, all[1].edges, all[1].selected),
        (5, 2, (false, false))
    );
    assert_eq!(all.len(), 2);
}

#[test]
fn fake_settings_follow_spidev() {
    if is_program() {
        let file = node("/dev/spidev0.0");
        let mut word = 0u32;
        assert_eq!(ioctl(&file, rules::RD_MAX_SPEED_HZ, &mut word), 0);
        assert_eq!(word, 10_000_000);
        word = 0;
        assert_eq!(
            ioctl(&file, rules::WR_MAX_SPEED_HZ, &mut word),
            -libc::EINVAL
        );
        word = 99_000_000;
        assert_eq!(ioctl(&file, rules::WR_MAX_SPEED_HZ, &mut word), 0);
        word = 0;
        assert_eq!(ioctl(&file, rules::RD_MAX_SPEED_HZ, &mut word), 0);
        assert_eq!(word, 99_000_000, "not clamped by spidev");
        word = rules::CPHA | rules::TX_QUAD | rules::RX_OCTAL;
        assert_eq!(
            ioctl(&file, rules::WR_MODE32, &mut word),
            0,
            "wide modes are dropped"
        );
        assert_eq!(ioctl(&file, rules::RD_MODE32, &mut word), 0);
        assert_eq!(word, rules::CPHA);
        for refused in [rules::THREE_WIRE, 1 << 12, 1 << 18, 1 << 30] {
            word = refused;
            assert_eq!(
                ioctl(&file, rules::WR_MODE32, &mut word),
                -libc::EINVAL,
                "mode {refused:#x}"
            );
        }
        let mut byte = 9u8;
        assert_eq!(
            ioctl(&file, rules::WR_BITS_PER_WORD, &mut byte),
            -libc::EINVAL
        );
        byte = 16;
        assert_eq!(ioctl(&file, rules::WR_BITS_PER_WORD, &mut byte), 0);
        byte = 1;
        assert_eq!(ioctl(&file, rules::WR_LSB_FIRST, &mut byte), 0);
        assert_eq!(ioctl(&file, rules::RD_MODE, &mut byte), 0);
        assert_eq!(u32::from(byte), rules::CPHA | rules::LSB_FIRST);
        assert_eq!(
            ioctl(&file, rules::RD_MODE, EPERM_ADDR as *mut u8),
            -libc::EFAULT
        );
        assert_eq!(
            ioctl(&file, rules::WR_MODE, EPERM_ADDR as *mut u8),
            -libc::EFAULT
        );
        assert_eq!(ioctl(&file, 0x6b07, &mut byte), -libc::ENOTTY);
        let null = node("/dev/null");
        assert_eq!(ioctl(&null, rules::RD_MODE32, &mut word), -libc::ENOTTY);
        return;
    }
    as_program("fake_settings_follow_spidev", &Host::with_devices(1));
}

#[test]
fn fake_message_limits_follow_spidev() {
    if is_program() {
        let file = node("/dev/spidev0.0");
        let tx = vec![7; 4096];
        let (mut rx, mut big) = (vec![0; 4096], vec![0; 4097]);
        assert_eq!(message(&file, &mut [xfer(&tx, &mut rx)]), 4096);
        assert_eq!(message(&file, &mut [xfer(&[], &mut big)]), -libc::EMSGSIZE);
        // 128 charged for each of 33: one too many; tx and rx are counted apart.
        let mut many = vec![xfer(&tx[..1], &mut []); 33];
        assert_eq!(message(&file, &mut many), -libc::EMSGSIZE);
        assert_eq!(message(&file, &mut many[..32]), 32);
        many.truncate(32);
        many.extend(vec![xfer(&[], &mut rx[..1]); 32]);
        assert_eq!(message(&file, &mut many), 64);
        assert_eq!(
            message(&file, &mut vec![Xfer::default(); 512]),
            0,
            "the size field wraps to 0"
        );
        assert_eq!(message(&file, &mut vec![Xfer::default(); 511]), 0);
        assert_eq!(
            ioctl(&file, rules::message(1) + (1 << 16), &mut many[0]),
            -libc::EINVAL
        );
        assert_eq!(
            ioctl(&file, rules::message(1), EPERM_ADDR as *mut u8),
            -libc::EFAULT
        );
        let mut odd = xfer(&tx[..3], &mut []);
        odd.bits = 16;
        assert_eq!(message(&file, &mut [odd]), -libc::EINVAL);
        odd.bits = 12;
        odd.len = 4;
        assert_eq!(
            message(&file, &mut [odd]),
            -libc::EINVAL,
            "a word size not in the mask"
        );
        odd.bits = 8;
        odd.tx_nbits = 4;
        assert_eq!(message(&file, &mut [odd]), -libc::EINVAL);
        return;
    }
    let host = Host::with_devices(1).align(128);
    as_program("fake_message_limits_follow_spidev", &host);
    let failed = host.messages((0, 0)).into_iter().filter(|r| r.ret < 0);
    assert!(
        failed.into_iter().all(|r| r.edges == 0),
        "what is refused does not touch the bus"
    );
}

#[test]
fn fake_bad_pointers_are_efault_before_or_after_the_bus() {
    if is_program() {
        let file = node("/dev/spidev0.0");
        let mut bad = xfer(b"abc", &mut []);
        bad.tx = EPERM_ADDR;
        assert_eq!(message(&file, &mut [bad]), -libc::EFAULT);
        // Mapped but read-only: the kernel does not write there either.
        let text = b"constant";
        let mut read_only = xfer(text, &mut []);
        read_only.rx = text.as_ptr() as u64;
        assert_eq!(message(&file, &mut [read_only]), -libc::EFAULT);
        return;
    }
    let host = Host::with_devices(1);
    as_program(
        "fake_bad_pointers_are_efault_before_or_after_the_bus",
        &host,
    );
    assert_eq!(
        host.messages((0, 0))
            .iter()
            .map(|r| r.edges)
            .collect::<Vec<_>>(),
        [0, 2]
    );
}

#[test]
fn fake_chip_select_is_held_and_released_as_by_the_core() {
    if is_program() {
        let (first, second) = (node("/dev/spidev0.0"), node("/dev/spidev0.1"));
        let hold = |file: &File, keep: u8| {
            let mut one = xfer(b"x", &mut []);
            one.cs_change = keep;
            assert_eq!(message(file, &mut [one]), 1);
        };
        hold(&first, 1);
        hold(&first, 1);
        hold(&second, 0);
        let mut mode = 0u32;
        assert_eq!(ioctl(&first, rules::WR_MODE32, &mut mode), 0);
        hold(&first, 1);
        assert_eq!(message(&first, &mut [Xfer::default()]), 0);
        let mut middle = xfer(b"x", &mut []);
        middle.cs_change = 1;
        assert_eq!(message(&first, &mut [middle, xfer(b"y", &mut [])]), 2);
        return;
    }
    let host = Host::with_devices(2);
    as_program(
        "fake_chip_select_is_held_and_released_as_by_the_core",
        &host,
    );
    let seen: Vec<_> = host
        .records()
        .iter()
        .filter(|r| r.request != 0)
        .map(|r| (r.device.1, r.edges, r.selected))
        .collect();
    let expected = [
        (0, 1, (false, true)),
        (0, 0, (true, true)),
        (1, 2, (false, false)),
        (0, 1, (true, false)),
        (0, 1, (false, true)),
        (0, 1, (true, false)),
        (0, 4, (false, false)),
    ];
    assert_eq!(seen, expected);
    assert!(!host.selected((0, 0)));
}

#[test]
fn fake_faults_strike_where_they_are_told() {
    if is_program() {
        let file = node("/dev/spidev0.0");
        let mut rx = [9; 4];
        let mut held = xfer(b"abcd", &mut rx);
        held.cs_change = 1;
        assert_eq!(message(&file, &mut [held]), -libc::ENOMEM);
        assert_eq!(message(&file, &mut [held]), -libc::EIO);
        assert_eq!(message(&file, &mut [held]), -libc::EFAULT);
        assert_eq!(rx, [9; 4]);
        assert_eq!(message(&file, &mut [held]), 4);
        return;
    }
    let host = Host::with_devices(1);
    host.fail_message((0, 0), 0, When::BeforeWire, libc::ENOMEM);
    host.fail_message((0, 0), 1, When::OnWire, libc::EIO);
    host.fail_message((0, 0), 2, When::AfterWire, libc::EFAULT);
    as_program("fake_faults_strike_where_they_are_told", &host);
    let seen: Vec<_> = host
        .messages((0, 0))
        .iter()
        .map(|r| (r.edges, r.selected.1))
        .collect();
    assert_eq!(seen, [(0, false), (2, false), (1, true), (0, true)]);
}

#[test]
fn fake_memory_peer_reads_within_one_assertion_only() {
    if is_program() {
        let file = node("/dev/spidev0.0");
        let mut rx = [0; 2];
        assert_eq!(
            message(&file, &mut [xfer(&[3, 16], &mut []), xfer(&[], &mut rx)]),
            4
        );
        assert_eq!(rx, [!16, !17]);
        message(&file, &mut [xfer(&[3, 16], &mut [])]);
        message(&file, &mut [xfer(&[], &mut rx)]);
        assert_eq!(rx, [0xff; 2], "deselected in between: the command is lost");
        return;
    }
    let host = Host::new().device((0, 0), 1_000_000, Memory::new());
    as_program("fake_memory_peer_reads_within_one_assertion_only", &host);
}

#[test]
fn fake_node_is_locked_by_one_description_and_sysfs_is_served() {
    if is_program() {
        let (one, other) = (node("/dev/spidev1.2"), node("/dev/spidev1.2"));
        let lock =
            |file: &File| unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
        assert_eq!(lock(&one), 0);
        assert_eq!(lock(&other), -1);
        drop(one);
        assert_eq!(lock(&other), 0);
        assert_eq!(
            std::fs::read_to_string("/sys/module/spidev/parameters/bufsiz").unwrap(),
            "65536\n"
        );
        let names: Vec<_> = std::fs::read_dir("/sys/bus/spi/devices")
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(File::open("/dev/spidev9.9").is_err());
        let failure = File::open("/dev/spidev1.3").unwrap_err();
        assert!(failure.raw_os_error() == Some(libc::ENOENT));
        return;
    }
    let host = Host::new()
        .bufsiz(65_536)
        .device((1, 2), 1_000_000, Counter::default());
    host.neighbour((1, 5));
    as_program(
        "fake_node_is_locked_by_one_description_and_sysfs_is_served",
        &host,
    );
    assert_eq!(host.records().len(), 2);
}
