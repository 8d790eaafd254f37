// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `read-only=` and `deny=`, and what a chip could take for another command.

use super::{ASK_ID, Flash, ID, Part, command, serve};
use crate::judgement::refused;
use crate::rig::ask::*;
use crate::rig::record::Kind;
use crate::rig::*;
use std::os::unix::fs::FileExt;

/// Opcodes that the chip answers and that leave it as it is, by its data sheet.
const HARMLESS: [u8; 11] = [
    0x03, 0x05, 0x0b, 0x0c, 0x13, 0x3b, 0x3c, 0x5a, 0x6b, 0x6c, 0x9f,
];

#[test]
fn rule_read_only_leaves_the_chip_as_it_is_whatever_its_guest_sends() {
    let (flash, host, _daemon, mut guests) = serve(2, ",read-only=1", &[]);
    let [owner, reader] = &mut guests[..] else {
        panic!()
    };
    flash.see().cells[..4].copy_from_slice(b"data");
    // As vulnerable as it gets.
    command(owner, &[(&[0x06], 0)]);
    let before = flash.see().state;
    assert!(before.write_enabled);
    flash.commands(&host);
    for opcode in 0..=255u8 {
        let long = [opcode, 0, 0, 0, 0x20, 0, 0x20];
        for (tx, rx) in [
            (&long[..1], 1),
            (&long[..4], 4),
            (&long[..5], 5),
            (&long[..], 7),
        ] {
            let result = reader.transfer(keep(0), tx, rx).result;
            assert!(result == PARAM_ERR || result == TRANS_OK);
            assert!(result == TRANS_OK || host.records().is_empty());
            assert!(
                result == TRANS_OK || !HARMLESS.contains(&opcode),
                "{opcode:x}"
            );
            flash.commands(&host);
        }
        let flash = flash.see();
        assert_eq!(flash.state, before, "{opcode:x}");
        assert!(flash.cells[..4] == *b"data" && flash.cells[4..].iter().all(|&b| b == 0xff));
    }
    // Meanwhile it reads, and the owner writes.
    let read: &[Part] = &[(&[0x03], 0), (&[0, 0, 0], 0), (&[], 4)];
    assert_eq!(command(reader, read), b"data");
    command(owner, &[(&[0x02], 0), (&[0, 0, 4], 0), (&[0], 0)]);
    assert_eq!(flash.see().cells[..5], *b"data\0");
}

#[test]
fn rule_read_only_refusal_names_guest_opcode_and_cause() {
    let (_flash, host, daemon, mut guests) = serve(2, ",read-only=1,deny=9e", &[]);
    for (tx, words) in [
        (
            &[0xc7][..],
            "opcode 0xc7 changes the contents, and this guest is read-only",
        ),
        (
            &[0x06],
            "opcode 0x06 can change protection or mode, and this guest is read-only",
        ),
        (
            &[0xeb],
            "opcode 0xeb can leave the chip in continuous read, and this guest is read-only",
        ),
        (
            &[0xd5],
            "opcode 0xd5 is not in the table of chip=, and this guest is read-only",
        ),
        (&[0x9e], "opcode 0x9e is in deny="),
        (
            &[],
            "nothing is sent where read-only= or deny= needs an opcode",
        ),
    ] {
        let outcome = guests[1].transfer(keep(0), tx, tx.len().max(1));
        assert_eq!(outcome.result, PARAM_ERR);
        daemon.wait_line(&["guest=1 cs=0 request refused", words]);
    }
    assert!(host.records().is_empty());
}

#[test]
fn rule_deny_is_for_all_guests_of_the_device_and_for_no_other_opcode() {
    let (flash, host, _daemon, mut guests) = serve(2, ",deny=c7+60", &[]);
    for guest in &mut guests {
        for opcode in [0xc7, 0x60] {
            let outcome = guest.transfer(keep(0), &[opcode], 0);
            assert_eq!((outcome.result, trace(&host).as_str()), (PARAM_ERR, ""));
        }
        command(guest, &[(&[0x06], 0)]);
        // What follows an opcode is none.
        command(guest, &[(&[0x02], 0), (&[0xc7, 0x60, 0], 0), (&[0xc7], 0)]);
        assert_eq!(flash.commands(&host).len(), 2);
    }
    assert_eq!(flash.see().cells[0x6000], 0xc7);
}

/// The first word of the device's messages so far, with what was sent of each transfer.
fn sent(host: &Host) -> Vec<Vec<u8>> {
    let records = host.records();
    let sent = records.iter().filter_map(|record| match &record.kind {
        Kind::Message(transfers) => Some(transfers.iter().flat_map(|t| t.tx.clone()).collect()),
        _ => None,
    });
    sent.collect()
}

#[test]
fn opcode_that_changes_in_memory_after_it_was_judged_is_sent_as_judged() {
    for (options, tx, rx, decided) in [
        (",read-only=0", &[0x9f, 0, 0, 0][..], 4, 1),
        (",deny=c7", &[0x03, 0, 0, 0, 0], 5, 1),
        ("", &[0x06], 0, 1),
        // Its data say how commands go on.
        ("", &[0x17, 0x80, 0], 0, 2),
    ] {
        let (_flash, host, _daemon, mut guests) = serve(1, options, &[]);
        let guest = &mut guests[0];
        let request = guest.request(keep(0), tx, rx);
        let region = &guest.memory.regions[0];
        let (file, at) = (
            region.file.try_clone().unwrap(),
            request.tx_gpa - region.gpa,
        );
        let len = tx.len();
        // All of it, after the daemon has judged and before the kernel looks: an erasure of the chip.
        host.before_each_message(DEV, move || {
            file.write_all_at(&vec![0xc7; len], at).unwrap();
        });
        assert_eq!(guest.carry_out(&request).result, TRANS_OK);
        let expected = [&tx[..decided], &vec![0xc7; len - decided]].concat();
        assert_eq!(
            sent(&host),
            [expected],
            "the opcode as judged, data from memory"
        );
    }
}

#[test]
fn opcode_on_several_lanes_is_refused_where_a_rule_applies() {
    let flash = Flash::new();
    let lanes = kernel_rules::RX_QUAD | kernel_rules::TX_QUAD;
    let host = Host::new()
        .controller(0, |controller| controller.mode_bits |= lanes)
        .device_in_mode(DEV, 10_000_000, lanes, flash.clone());
    let device = "/dev/spidev0.0,chip=nor,read-only=1";
    let daemon = Setup::new(&host).guests(2).device(device).start();
    let (mut owner, mut reader) = (Guest::connect(&daemon, 0), Guest::connect(&daemon, 1));
    let head = |tx_nbits, rx_nbits| Head {
        tx_nbits,
        rx_nbits,
        ..keep(0)
    };
    host.forget();
    // Four bytes on four lanes are eight bits on one: 0c 00 10 01 would be 06.
    for (head, rx) in [(head(4, 1), 0), (head(2, 1), 0), (head(1, 4), 4)] {
        let outcome = reader.transfer(head, &[0x0c, 0, 0x10, 1], rx);
        assert_eq!((outcome.result, trace(&host).as_str()), (PARAM_ERR, ""));
    }
    daemon.wait_line(&["guest=1", "on one lane"]);
    let outcome = owner.transfer(head(4, 1), &[0x0c, 0, 0x10, 1], 0);
    assert_eq!(outcome.result, TRANS_OK);
    // After the opcode, lanes are the guest's to choose.
    assert!(sys::eventually(PATIENCE, || !host.selected(DEV)));
    assert_eq!(reader.transfer(head(1, 1), &[0x6b], 0).result, TRANS_OK);
    assert_eq!(
        reader.transfer(head(1, 1), &[0, 0, 0, 0], 0).result,
        TRANS_OK
    );
    assert_eq!(reader.transfer(head(1, 4), &[], 2).result, TRANS_OK);
}

#[test]
fn chip_is_spoken_to_in_bytes_highest_bit_first_in_mode_0_or_3() {
    let lanes = kernel_rules::RX_OCTAL | kernel_rules::TX_OCTAL;
    let host = Host::new()
        .controller(0, |controller| controller.mode_bits |= lanes)
        .device_in_mode(DEV, 10_000_000, lanes, Flash::new());
    let (_daemon, mut guest) = serve_with(&host, ",chip=nor", &[]);
    let config = guest.config();
    assert_eq!(config.bits_per_word_mask, 1 << 7);
    assert_eq!(
        config.mode_func_supported, 0b1111,
        "no LSB_FIRST, LOOP or CS_HIGH"
    );
    assert_eq!(
        (config.tx_nbits_supported, config.rx_nbits_supported),
        (3, 3)
    );
    let head = Head::default();
    for (what, head) in [
        ("16 bits", head.bits(16)),
        ("lowest bit first", head.mode(virtio::LSB_FIRST)),
        ("loop", head.mode(virtio::LOOP)),
        ("mode 1", head.mode(virtio::CPHA)),
        ("mode 2", head.mode(virtio::CPOL)),
        (
            "8 lanes",
            Head {
                rx_nbits: 8,
                ..head
            },
        ),
    ] {
        refused(&host, &mut guest, what, head, &[0x9f, 0, 0, 0], 4);
    }
    for mode in [0, virtio::CPHA | virtio::CPOL] {
        let outcome = guest.transfer(head.mode(mode), &[0x9f, 0, 0, 0], 4);
        assert_eq!((outcome.result, &outcome.rx[1..]), (TRANS_OK, &ID[..]));
    }
    assert_eq!(command(&mut guest, ASK_ID), ID);
}
