// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Commands that do not come to their end, and what is left of a guest that is gone.

use super::{ASK_ID, Flash, ID, Part, command, serve};
use crate::rig::ask::*;
use crate::rig::*;
use std::time::Duration;

const TIMEOUT: &[&str] = &["--cs-hold-timeout-ms=60"];

#[test]
fn chip_command_that_stops_half_way_ends_after_the_time_out_and_costs_one_request() {
    for policy in ["queued", "spec", "write-read"] {
        let policy = format!("--cs-hold={policy}");
        let (flash, host, daemon, mut guests) = serve(1, "", &[TIMEOUT[0], &policy]);
        let guest = &mut guests[0];
        for _ in 0..2 {
            command(guest, &[(&[0x03], 0), (&[0, 0, 0], 0)]);
            // Kicks and messages that bring nothing change nothing.
            guest.kick_anyway();
            guest.config();
            assert_eq!(flash.commands(&host), [[0x03, 0, 0, 0]]);
            let cut = guest.transfer(keep(0), &[], 4);
            assert_eq!(cut.result, TRANS_ERR, "{policy}");
            assert_eq!(trace(&host), "");
            assert_eq!(command(guest, ASK_ID), ID);
            assert_eq!(flash.commands(&host).len(), 1);
        }
        daemon.wait_line(&["guest=0", "chip select", "--cs-hold-timeout-ms"]);
    }
}

#[test]
fn chip_command_is_held_for_100_ms_by_default_whatever_the_policy() {
    let (_flash, host, _daemon, mut guests) = serve(1, "", &["--cs-hold=write-read"]);
    command(&mut guests[0], &[(&[0x9f], 0)]);
    assert!(sys::eventually(PATIENCE, || !host.selected(DEV)));
    let records = host.records();
    let held = records[1].at - records[0].at;
    assert!(held >= Duration::from_millis(100), "{held:?}");
}

#[test]
fn chip_command_of_which_a_request_is_refused_ends_there() {
    let (flash, host, _daemon, mut guests) = serve(1, "", &["--cs-hold-timeout-ms=20000"]);
    let guest = &mut guests[0];
    for refused in [
        keep(0).bits(16),
        keep(0).mode(virtio::LSB_FIRST),
        keep(0).chip_select(1),
        keep(0).freq(u32::MAX),
    ] {
        command(guest, &[(&[0x02], 0), (&[0, 0, 0], 0)]);
        assert_eq!(guest.transfer(refused, &[1, 2], 0).result, PARAM_ERR);
        // The driver has given up the message: this is the next one, and no data.
        assert_eq!(command(guest, ASK_ID), ID);
        let expected = [vec![0x02, 0, 0, 0], vec![0x9f, 0, 0, 0]];
        assert_eq!(flash.commands(&host), expected);
    }
    // After the time-out the refusal is all that it costs.
    let (flash, host, _daemon, mut guests) = serve(1, "", TIMEOUT);
    let guest = &mut guests[0];
    command(guest, &[(&[0x02], 0)]);
    assert_eq!(flash.commands(&host), [[0x02]]);
    assert_eq!(guest.transfer(keep(0).bits(0), &[1], 0).result, PARAM_ERR);
    assert_eq!(command(guest, ASK_ID), ID);
}

#[test]
fn chip_command_that_fails_on_the_wire_ends_there() {
    let (flash, host, _daemon, mut guests) = serve(1, "", &[]);
    let guest = &mut guests[0];
    command(guest, &[(&[0x03], 0)]);
    host.fail_message(DEV, 0, When::BeforeWire, libc::ENOMEM);
    assert_eq!(guest.transfer(keep(0), &[0, 0, 0], 0).result, TRANS_ERR);
    assert_eq!(command(guest, ASK_ID), ID);
    let expected = [vec![0x03], vec![0x9f, 0, 0, 0]];
    assert_eq!(flash.commands(&host), expected);
}

#[test]
fn chip_width_after_a_mode_command_that_failed_is_four() {
    // Seen by the chip or not: too short a width would make data a command of its own.
    for (opcode, before) in [(0xb7, 0xe9), (0xe9, 0xb7)] {
        let (flash, host, _daemon, mut guests) = serve(1, "", TIMEOUT);
        let guest = &mut guests[0];
        command(guest, &[(&[before], 0)]);
        host.fail_message(DEV, 0, When::AfterWire, libc::EIO);
        assert_eq!(guest.transfer(keep(0), &[opcode], 0).result, TRANS_ERR);
        flash.commands(&host);
        let program: &[Part] = &[(&[0x02], 0), (&[0, 0, 0, 0], 0), (&[1], 0)];
        command(guest, program);
        assert_eq!(flash.commands(&host), [[0x02, 0, 0, 0, 0, 1]]);
    }
}

#[test]
fn chip_state_left_by_a_guest_is_found_by_the_next_one() {
    let (flash, host, daemon, mut guests) = serve(2, "", &[]);
    command(&mut guests[0], &[(&[0xb7], 0)]);
    command(&mut guests[0], &[(&[0xb9], 0)]);
    flash.commands(&host);
    drop(guests);
    daemon.wait_line(&["guest=0", "left"]);
    // The daemon has told the chip nothing.
    assert_eq!(flash.commands(&host).len(), 0);
    let mut next = Guest::connect(&daemon, 1);
    assert_eq!(command(&mut next, ASK_ID), [0xff; 3], "deep power-down");
    command(&mut next, &[(&[0xab], 0)]);
    command(&mut next, &[(&[0x06], 0)]);
    flash.commands(&host);
    let program: &[Part] = &[(&[0x02], 0), (&[0, 0, 0, 0], 0), (&[0x11], 0)];
    command(&mut next, program);
    assert_eq!(flash.commands(&host), [[0x02, 0, 0, 0, 0, 0x11]]);
    assert_eq!(flash.see().cells[0], 0x11);
}

#[test]
fn chip_found_in_four_byte_mode_is_served_with_address_bytes_4() {
    let (flash, host, _daemon, mut guests) = serve(1, ",address-bytes=4", &[]);
    flash.see().state.four_byte = true;
    flash.see().state.write_enabled = true;
    let program: &[Part] = &[(&[0x02], 0), (&[0, 0, 0, 0], 0), (&[0x11], 0)];
    command(&mut guests[0], program);
    assert_eq!(flash.commands(&host), [[0x02, 0, 0, 0, 0, 0x11]]);
    assert_eq!(flash.see().cells[0], 0x11);
}

#[test]
fn chip_command_of_a_guest_that_leaves_ends_there() {
    let (flash, host, daemon, mut guests) = serve(1, "", &["--cs-hold-timeout-ms=20000"]);
    command(&mut guests[0], &[(&[0x02], 0)]);
    drop(guests);
    assert_eq!(flash.commands(&host), [[0x02]]);
    assert_eq!(command(&mut Guest::connect(&daemon, 0), ASK_ID), ID);
}

#[test]
fn chip_command_of_several_requests_beside_a_device_of_others_is_param_err() {
    let flash = Flash::new();
    let host = Host::new().device(DEV, 10_000_000, flash.clone());
    host.neighbour((0, 7));
    let (daemon, mut guest) = serve_with(&host, ",chip=nor", &[]);
    assert_eq!(guest.transfer(keep(0), &[0x9f], 0).result, PARAM_ERR);
    daemon.wait_line(&["spi0.7", "exclusive-bus=on"]);
    let whole = guest.transfer(keep(0), &[0x9f, 0, 0, 0], 4);
    assert_eq!((whole.result, &whole.rx[1..]), (TRANS_OK, &ID[..]));
    assert_eq!(flash.commands(&host), [[0x9f, 0, 0, 0]]);
}
