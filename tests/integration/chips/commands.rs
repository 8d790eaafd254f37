// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whole commands: one assertion each, for every driver.

use super::{ASK_ID, Flash, ID, Part, command, serve};
use crate::rig::ask::*;
use crate::rig::*;

const PAGE: [u8; 256] = [0x5a; 256];

/// A driver's life on a flash chip, a command a row, as the stock driver cuts it: opcode, address, dummy bytes and data.
const STOCK: &[&[Part]] = &[
    &[(&[0x9f], 0), (&[], 6)],
    &[(&[0x5a], 0), (&[0, 0, 0], 0), (&[0xff], 0), (&[], 4)],
    &[(&[0x06], 0)],
    &[(&[0x20], 0), (&[0, 0x10, 0], 0)],
    &[(&[0x05], 0), (&[], 1)],
    &[(&[0x05], 0), (&[], 1)],
    &[(&[0x05], 0), (&[], 1)],
    &[(&[0x06], 0)],
    &[(&[0x02], 0), (&[0, 0x10, 0], 0), (&PAGE, 0)],
    &[(&[0x0b], 0), (&[0, 0x10, 0], 0), (&[0xff], 0), (&[], 256)],
    // Four-byte mode, and an opcode that has four bytes of its own.
    &[(&[0xb7], 0)],
    &[(&[0x06], 0)],
    &[(&[0x02], 0), (&[0, 0, 0x20, 0], 0), (&[0x77], 0)],
    &[(&[0x03], 0), (&[0, 0, 0x20, 0], 0), (&[], 1)],
    &[(&[0xe9], 0)],
    &[(&[0x13], 0), (&[0, 0, 0x20, 0], 0), (&[], 1)],
    &[(&[0x03], 0), (&[0, 0x20, 0], 0), (&[], 1)],
    &[(&[0x66], 0)],
    &[(&[0x99], 0)],
];

/// The bytes on the wire of a command: zeros are clocked out where it only receives.
fn on_the_wire(parts: &[Part]) -> Vec<u8> {
    let part = |(tx, rx): &Part| {
        let mut bytes = tx.to_vec();
        bytes.resize(tx.len().max(*rx), 0);
        bytes
    };
    parts.iter().flat_map(part).collect()
}

/// The commands as another driver cuts them, with `cs_change` as `head` says for the last request and for those before.
#[track_caller]
fn live(commands: &[Vec<(Vec<u8>, usize)>], heads: [Head; 2], args: &[&str], together: bool) {
    let (flash, host, _daemon, mut guests) = serve(1, "", args);
    let guest = &mut guests[0];
    for parts in commands {
        let last = parts.len() - 1;
        let requests: Vec<_> = parts
            .iter()
            .enumerate()
            .map(|(n, (tx, rx))| guest.request(heads[usize::from(n < last)], tx, *rx))
            .collect();
        for request in &requests {
            guest.queue(request);
            if !together {
                guest.kick();
                let used = guest.wait_used(1)[0];
                assert_eq!(guest.outcome(request, used).result, TRANS_OK);
            }
        }
        if together {
            guest.kick();
            assert!(
                results(guest, &requests)
                    .iter()
                    .all(|&result| result == TRANS_OK)
            );
        }
    }
    let expected: Vec<_> = STOCK.iter().map(|parts| on_the_wire(parts)).collect();
    assert_eq!(flash.commands(&host), expected);
    let flash = flash.see();
    assert_eq!(flash.cells[0x1000..0x1100], PAGE);
    assert_eq!(flash.cells[0x2000], 0x77);
    assert!(!flash.state.four_byte);
}

fn stock() -> Vec<Vec<(Vec<u8>, usize)>> {
    let owned = |parts: &&[Part]| parts.iter().map(|(tx, rx)| (tx.to_vec(), *rx)).collect();
    STOCK.iter().map(owned).collect()
}

#[test]
fn chip_nor_command_in_four_requests_is_one_assertion_whatever_cs_change_and_policy_say() {
    let (zero, one) = (keep(0), let_go(0));
    for policy in ["queued", "spec", "write-read"] {
        let policy = format!("--cs-hold={policy}");
        // The stock driver; Zephyr and the corrected driver; one that means the reverse.
        for heads in [[zero, zero], [one, zero], [zero, one]] {
            live(&stock(), heads, &[&policy], false);
        }
        live(&stock(), [zero, zero], &[&policy], true);
    }
}

#[test]
fn chip_nor_command_in_a_write_and_a_read_is_one_assertion() {
    // flashrom: all that is sent, then all that is received.
    let gather = |parts: &Vec<(Vec<u8>, usize)>| {
        let tx = parts.iter().flat_map(|(tx, _)| tx.clone()).collect();
        let rx = parts.iter().map(|(_, rx)| rx).sum();
        let mut gathered = vec![(tx, 0)];
        gathered.extend((rx > 0).then_some((Vec::new(), rx)));
        gathered
    };
    let commands: Vec<_> = stock().iter().map(gather).collect();
    live(&commands, [keep(0), keep(0)], &[], false);
}

#[test]
fn chip_nor_command_in_one_full_duplex_request_is_one_assertion() {
    let whole = |parts: &Vec<(Vec<u8>, usize)>| {
        let parts: Vec<Part> = parts.iter().map(|(tx, rx)| (&tx[..], *rx)).collect();
        let tx = on_the_wire(&parts);
        let rx = tx.len();
        vec![(tx, rx)]
    };
    let commands: Vec<_> = stock().iter().map(whole).collect();
    live(&commands, [keep(0), keep(0)], &[], false);
}

#[test]
fn chip_nor_request_cut_anywhere_is_the_same_command() {
    let (flash, host, _daemon, mut guests) = serve(1, "", &[]);
    let guest = &mut guests[0];
    let tx = [0x9f, 1, 2, 3];
    for cut in 1..4u32 {
        for rx_cut in 1..4 {
            let whole = guest.contiguous(keep(0), &tx, 4);
            let request = whole.cut(&[Head::SIZE as u32 + cut], &[rx_cut]);
            let outcome = guest.carry_out(&request);
            assert_eq!((outcome.result, &outcome.rx[1..]), (TRANS_OK, &ID[..]));
        }
    }
    assert_eq!(flash.commands(&host), vec![tx.to_vec(); 9]);
    // One whose end follows from its second byte, received where it is cut.
    let whole = guest.contiguous(keep(0), &[0x17, 0x80], 2);
    let request = whole.cut(&[Head::SIZE as u32 + 1], &[1]);
    assert_eq!(guest.carry_out(&request).rx, [0xff, 0xff]);
    assert_eq!(flash.commands(&host), [[0x17, 0x80]]);
    assert!(flash.see().state.four_byte);
}

#[test]
fn chip_nor_data_longer_than_bufsiz_is_in_the_same_assertion() {
    let (flash, host, _daemon, mut guests) = serve(1, "", &[]);
    flash.see().cells[..10_000].copy_from_slice(&pattern(10_000));
    let read: &[Part] = &[(&[0x03], 0), (&[0, 0, 0], 0), (&[], 10_000)];
    assert!(command(&mut guests[0], read) == pattern(10_000));
    assert_eq!(flash.commands(&host).len(), 1);
}

#[test]
fn chip_nor_reads_on_two_and_four_lanes_are_one_assertion() {
    let flash = Flash::new();
    let host = Host::new()
        .controller(0, |controller| {
            controller.mode_bits |= kernel_rules::RX_QUAD | kernel_rules::TX_QUAD;
        })
        .device_in_mode(
            DEV,
            10_000_000,
            kernel_rules::RX_QUAD | kernel_rules::TX_QUAD,
            flash.clone(),
        );
    let (_daemon, mut guest) = serve_with(&host, ",chip=nor", &[]);
    flash.see().cells[0x100] = 0x42;
    let four = Head {
        tx_nbits: 4,
        rx_nbits: 4,
        ..keep(0)
    };
    for (opcode, dummy) in [(0x6b, 1), (0xeb, 3)] {
        let parts = [
            (keep(0), vec![opcode], 0),
            (
                if opcode == 0xeb { four } else { keep(0) },
                vec![0, 1, 0],
                0,
            ),
            (
                if opcode == 0xeb { four } else { keep(0) },
                vec![0xff; dummy],
                0,
            ),
            (four, vec![], 1),
        ];
        let outcomes: Vec<_> = parts
            .iter()
            .map(|(head, tx, rx)| guest.transfer(*head, tx, *rx))
            .collect();
        assert!(outcomes.iter().all(|outcome| outcome.result == TRANS_OK));
        assert_eq!(outcomes[3].rx, [0x42]);
        assert_eq!(flash.commands(&host).len(), 1);
    }
}

#[test]
fn chip_sram_and_eeprom_commands_are_one_assertion() {
    for (options, address) in [
        (",chip=sram", 2),
        (",chip=sram,address-bytes=3", 3),
        (",chip=eeprom,address-bytes=1", 1),
        (",chip=eeprom,address-bytes=2", 2),
        (",chip=eeprom,address-bytes=3", 3),
    ] {
        let host = Host::with_devices(1);
        let (_daemon, mut guest) = serve_with(&host, options, &[]);
        let mut send = |tx: &[u8], rx| assert_eq!(guest.transfer(keep(0), tx, rx).result, TRANS_OK);
        // mchp23k256 and at25: opcode with address, then data.
        let opcode = |opcode| [&[opcode], &[0; 3][..address]].concat();
        send(&opcode(0x02), 0);
        send(&[1, 2, 3], 0);
        send(&opcode(0x03), 0);
        send(&[], 3);
        send(&[0x05], 0);
        send(&[], 1);
        send(&[0x01, 0x40], 0);
        assert_trace(&host, "0+ 0 0+ 0 0+ 0 0");
        assert_eq!(host.edges(DEV), 8, "{options}");
    }
}

#[test]
fn chip_nor_serves_two_guests_command_by_command() {
    let (flash, host, _daemon, mut guests) = serve(2, "", &[]);
    let [one, other] = &mut guests[..] else {
        panic!()
    };
    for _ in 0..20 {
        assert_eq!(one.transfer(keep(0), &[0x03], 0).result, TRANS_OK);
        let waiting = other.request(keep(0), &[0x9f, 0, 0, 0], 4);
        other.queue(&waiting);
        other.kick();
        assert_eq!(one.transfer(keep(0), &[0, 0, 0], 0).result, TRANS_OK);
        assert_eq!(one.transfer(keep(0), &[], 2).rx, [0xff, 0xff]);
        assert_eq!(results(other, &[waiting]), [TRANS_OK]);
    }
    let commands = flash.commands(&host);
    assert_eq!(commands.len(), 40);
    for pair in commands.chunks(2) {
        assert_eq!(pair, [vec![0x03, 0, 0, 0, 0, 0], vec![0x9f, 0, 0, 0]]);
    }
}

#[test]
fn chip_nor_busy_with_one_guests_erase_answers_another_as_it_pleases() {
    let (flash, host, _daemon, mut guests) = serve(2, ",read-only=1", &[]);
    let [writer, reader] = &mut guests[..] else {
        panic!()
    };
    flash.see().cells[0x2000] = 0x42;
    command(writer, &[(&[0x06], 0)]);
    command(writer, &[(&[0x20], 0), (&[0, 0x10, 0], 0)]);
    // Neither kept waiting nor answered by the daemon: it is the reader's to look at the status.
    let read: &[Part] = &[(&[0x03], 0), (&[0, 0x20, 0], 0), (&[], 1)];
    assert_eq!(command(reader, read), [0xff]);
    let status: &[Part] = &[(&[0x05], 0), (&[], 1)];
    while command(reader, status)[0] & nor::BUSY != 0 {}
    assert_eq!(command(reader, read), [0x42]);
    assert_eq!(command(reader, ASK_ID), ID);
    assert_eq!(flash.commands(&host).len(), 9);
}
