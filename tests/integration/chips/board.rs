// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A flash chip's use from end to end: on the model, and by `tests/guest/board` on a chip that others modelled.
//!
//! There, BOARD_SOCKETS is what `--socket-path` was, and BOARD_IMAGE the file that is written to the start of the chip.

use super::{Part, command, serve};
use crate::rig::ask::*;
use crate::rig::nor::BUSY;
use crate::rig::*;
use std::ffi::OsString;
use std::fs;

const PAGE: usize = 256;
const SECTOR: usize = 4096;

/// The address of a command.
fn at(address: usize) -> [u8; 3] {
    [16, 8, 0].map(|shift| (address >> shift) as u8)
}

/// What changes the contents, as drivers do it: enabled before, waited for afterwards.
#[track_caller]
fn change(guest: &mut Guest, parts: &[Part]) {
    command(guest, &[(&[0x06], 0)]);
    command(guest, parts);
    while command(guest, &[(&[0x05], 0), (&[], 1)])[0] & BUSY != 0 {}
}

#[track_caller]
fn erase_sector(guest: &mut Guest, address: usize) {
    change(guest, &[(&[0x20], 0), (&at(address), 0)]);
}

#[track_caller]
fn program(guest: &mut Guest, from: usize, bytes: &[u8]) {
    for (n, page) in bytes.chunks(PAGE).enumerate() {
        let address = at(from + n * PAGE);
        change(guest, &[(&[0x02], 0), (&address, 0), (page, 0)]);
    }
}

/// The stock driver's fast read: a request each for opcode, address, dummy byte and data.
#[track_caller]
fn read(guest: &mut Guest, address: usize, len: usize) -> Vec<u8> {
    command(
        guest,
        &[(&[0x0b], 0), (&at(address), 0), (&[0xff], 0), (&[], len)],
    )
}

/// The same bytes in one full-duplex request.
#[track_caller]
fn read_at_once(guest: &mut Guest, address: usize, len: usize) -> Vec<u8> {
    let mut tx = [&[0x03][..], &at(address)].concat();
    tx.resize(4 + len, 0);
    let outcome = guest.transfer(keep(0), &tx, tx.len());
    assert_eq!(outcome.result, TRANS_OK);
    outcome.rx[4..].to_vec()
}

/// Two guests of one flash, the second of which may only read.
#[track_caller]
fn drive(owner: &mut Guest, reader: &mut Guest, id: &[u8], image: &[u8]) {
    // The first command of all: a chip select that was asserted before the daemon came would show.
    assert_eq!(command(owner, &[(&[0x9f], 0), (&[], id.len())]), id);
    let (len, erased) = (image.len(), |bytes: &[u8]| bytes.iter().all(|&b| b == 0xff));
    change(owner, &[(&[0xd8], 0), (&at(0), 0)]);
    assert!(erased(&read(owner, 0, len)), "after the block was erased");
    program(owner, 0, image);
    assert!(read(owner, 0, len) == image, "after it was programmed");
    erase_sector(owner, SECTOR);
    let sector = SECTOR..2 * SECTOR;
    let mut expected = image.to_vec();
    expected[sector.clone()].fill(0xff);
    assert!(read(owner, 0, len) == expected, "after a sector was erased");
    program(owner, SECTOR, &image[sector]);

    for parts in [
        &[(&[0x06][..], 0)][..],
        &[(&[0x20], 0), (&at(0), 0)],
        &[(&[0x02], 0), (&at(0), 0), (&[0], 0)],
    ] {
        let (tx, rx) = parts[0];
        assert_eq!(
            reader.transfer(keep(0), tx, rx).result,
            PARAM_ERR,
            "{tx:x?}"
        );
    }
    for guest in [reader, owner] {
        assert!(read(guest, 0, len) == image, "what was written");
        assert!(read_at_once(guest, PAGE, SECTOR) == image[PAGE..][..SECTOR]);
    }
}

#[test]
fn chip_nor_flash_is_identified_erased_written_and_read_by_its_guests() {
    let Some(sockets) = std::env::var_os("BOARD_SOCKETS") else {
        let (_flash, _host, _daemon, mut guests) = serve(2, ",read-only=1", &[]);
        let [owner, reader] = &mut guests[..] else {
            panic!()
        };
        return drive(owner, reader, &super::ID, &pattern(16 << 10));
    };
    let connect = |n: &str| {
        let socket: OsString = [&*sockets, n.as_ref()].into_iter().collect();
        Plug::default().connect_to(socket.as_ref())
    };
    let image = fs::read(std::env::var_os("BOARD_IMAGE").unwrap()).unwrap();
    // SST25WF080.
    let id = [0xbf, 0x25, 0x05];
    drive(&mut connect("0"), &mut connect("1"), &id, &image);
}
