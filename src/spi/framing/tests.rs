// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::time::Duration;

use super::*;
use crate::config::ChipKind;
use crate::spi::lead;

fn chip(kind: ChipKind, address_bytes: u8) -> Chip {
    Chip::new(ChipConfig {
        kind,
        address_bytes,
        read_only: 0,
        deny: Vec::new(),
        timeout: Duration::ZERO,
    })
}

fn nor() -> Chip {
    chip(ChipKind::Nor, 3)
}

/// A request: what it sends, and how many bytes it receives.
type Part<'a> = (&'a [u8], u64);

fn frame(chip: &Chip, phase: Phase, (tx, rx): Part<'_>) -> Framed {
    let lead = &tx[..tx.len().min(lead::MAX_LEN)];
    chip.frame(phase, lead, rx.max(tx.len() as u64), rx > 0)
}

/// Carries out `requests`, one after the other: for each `+` if chip select stays asserted after it,
/// or `.` if it is released.
fn edges(chip: &mut Chip, requests: &[Part<'_>]) -> String {
    let mut phase = Phase::Opcode;
    let mut all = String::new();
    for request in requests {
        let framed = frame(chip, phase, *request);
        chip.note_outcome(&framed, true);
        phase = framed.remaining.map_or(Phase::Opcode, Phase::Within);
        all.push(if framed.remaining.is_some() { '+' } else { '.' });
    }
    all
}

/// How many bytes of address the chip expects.
fn width(chip: &Chip) -> u64 {
    let framed = frame(chip, Phase::Opcode, (&[0x02], 0));
    framed.remaining.unwrap().address_left
}

fn head() -> TransferHead {
    TransferHead {
        bits_per_word: 8,
        ..TransferHead::default()
    }
}

#[test]
fn framing_of_the_stock_drivers_probe_is_one_assertion_a_command() {
    let requests: &[Part<'_>] = &[
        (&[0x9f], 0),
        (&[], 6),
        (&[0x5a], 0),
        (&[0, 0, 0], 0),
        (&[0xff], 0),
        (&[], 4),
        (&[0x05], 0),
        (&[], 1),
    ];
    assert_eq!(edges(&mut nor(), requests), "+.+++.+.");
}

#[test]
fn framing_of_a_write_then_a_read_is_one_assertion() {
    // flashrom: all that is sent in one request, all that is received in the next.
    let requests: &[Part<'_>] = &[
        (&[0x9f], 0),
        (&[], 3),
        (&[0x03, 0, 0, 0], 0),
        (&[], 4096),
        (&[0x5a, 0, 0, 0, 0], 0),
        (&[], 8),
        (&[0x06], 0),
        (&[0x20, 0, 0x10, 0], 0),
        (&[0x02, 0, 0x10, 0, 1, 2, 3], 0),
    ];
    assert_eq!(edges(&mut nor(), requests), "+.+.+....");
}

#[test]
fn framing_of_full_duplex_is_one_assertion_a_request() {
    let requests: &[Part<'_>] = &[
        (&[0x9f, 0, 0, 0], 4),
        (&[0x03, 0, 0, 0, 0, 0], 6),
        (&[0x06], 1),
        (&[0x02, 0, 0, 0, 9], 5),
        (&[0x20, 0, 0, 0], 4),
    ];
    assert_eq!(edges(&mut nor(), requests), ".....");
}

#[test]
fn framing_of_program_and_erase_ends_with_data_or_address() {
    let requests: &[Part<'_>] = &[
        (&[0x06], 0),
        (&[0x02], 0),
        (&[0, 0x10, 0], 0),
        (&[0xaa; 256], 0),
        (&[0xd8], 0),
        (&[0, 0, 0], 0),
        (&[0xc7], 0),
        (&[0x01], 0),
        (&[0x40], 0),
        // An address that comes in pieces, and one byte of data.
        (&[0x02, 0], 0),
        (&[0x10], 0),
        (&[0], 0),
        (&[0x77], 0),
    ];
    assert_eq!(edges(&mut nor(), requests), ".++.+..+.+++.");
}

#[test]
fn framing_follows_three_and_four_byte_modes() {
    let mut chip = nor();
    assert_eq!(edges(&mut chip, &[(&[0xb7], 0)]), ".");
    assert_eq!(width(&chip), 4);
    let program: &[Part<'_>] = &[(&[0x02], 0), (&[0, 0, 0], 0), (&[0], 0), (&[1], 0)];
    assert_eq!(edges(&mut chip, program), "+++.");
    // Opcodes with an address length of their own: 5a has three bytes, and a dummy.
    let own: &[Part<'_>] = &[(&[0x5a], 0), (&[0, 0, 0], 0), (&[0xff], 0), (&[], 4)];
    assert_eq!(edges(&mut chip, own), "+++.");
    assert_eq!(edges(&mut chip, &[(&[0xe9], 0)]), ".");
    assert_eq!(width(&chip), 3);
    let own: &[Part<'_>] = &[(&[0x12], 0), (&[0, 0, 0, 0], 0), (&[1], 0)];
    assert_eq!(edges(&mut chip, own), "++.");
    let own: &[Part<'_>] = &[(&[0xdc], 0), (&[0, 0, 0], 0), (&[0], 0)];
    assert_eq!(edges(&mut chip, own), "++.");
    // Spansion's, in one request and in two.
    for (requests, edges_of_it, expected) in [
        (&[(&[0x17, 0x80][..], 0)][..], ".", 4),
        (&[(&[0x17], 0), (&[0], 0)], "+.", 3),
        (&[(&[0x17], 0), (&[0x80], 0)], "+.", 4),
        (&[(&[0x17, 0x7f], 0)], ".", 3),
    ] {
        assert_eq!(edges(&mut chip, requests), edges_of_it);
        assert_eq!(width(&chip), expected);
    }
}

#[test]
fn framing_after_a_reset_has_the_width_of_power_up() {
    for first in [3, 4] {
        let mut chip = chip(ChipKind::Nor, first);
        assert_eq!(width(&chip), u64::from(first));
        let other = if first == 3 { 0xb7 } else { 0xe9 };
        edges(&mut chip, &[(&[other], 0)]);
        // Without 66 directly in front of it, 99 does nothing.
        edges(&mut chip, &[(&[0x99], 0)]);
        edges(&mut chip, &[(&[0x66], 0), (&[0x05], 1), (&[0x99], 0)]);
        edges(&mut chip, &[(&[0x66], 0), (&[0xd5], 0), (&[0x99], 0)]);
        assert_eq!(width(&chip), u64::from(7 - first));
        assert_eq!(edges(&mut chip, &[(&[0x66], 0), (&[0x99], 0)]), "..");
        assert_eq!(width(&chip), u64::from(first));
    }
}

#[test]
fn framing_in_doubt_has_the_longer_width() {
    let four = || {
        let mut chip = nor();
        edges(&mut chip, &[(&[0xb7], 0)]);
        chip
    };
    // Bytes after their end, for which a chip may ignore them.
    for wrong in [&[0xe9, 0][..], &[0x17, 0, 0], &[0x99], &[0x66, 0]] {
        let mut chip = four();
        edges(&mut chip, &[(wrong, 0), (&[0x99, 0], 0)]);
        assert_eq!(width(&chip), 4, "{wrong:x?}");
    }
    // Failed on the wire.
    let mut chip = four();
    chip.note_outcome(&frame(&chip, Phase::Opcode, (&[0xe9], 0)), false);
    assert_eq!(width(&chip), 4);
    let mut chip = nor();
    chip.note_outcome(&frame(&chip, Phase::Opcode, (&[0xb7], 0)), false);
    assert_eq!(width(&chip), 4);
    let mut chip = four();
    chip.note_outcome(&frame(&chip, Phase::Opcode, (&[0x66], 0)), false);
    edges(&mut chip, &[(&[0x99], 0)]);
    assert_eq!(width(&chip), 4);
}

#[test]
fn framing_of_suspend_reset_and_power_commands_is_one_request_each() {
    let requests: &[Part<'_>] = &[
        (&[0x75], 0),
        (&[0x7a], 0),
        (&[0xb9], 0),
        (&[0xab], 0),
        (&[0x66], 0),
        (&[0x99], 0),
        (&[0xff, 0xff], 0),
        // ab with dummy bytes asks for the electronic id.
        (&[0xab, 0, 0, 0], 0),
        (&[], 1),
    ];
    assert_eq!(edges(&mut nor(), requests), ".......+.");
}

#[test]
fn framing_of_an_unknown_opcode_or_none_is_one_request() {
    let requests: &[Part<'_>] = &[(&[0xd5], 0), (&[0xd5, 1, 2], 0), (&[], 5), (&[0], 1)];
    assert_eq!(edges(&mut nor(), requests), "....");
    // A request that belongs to a command that was cut ends nothing and begins nothing.
    assert_eq!(frame(&nor(), Phase::Lost, (&[0x03], 0)).remaining, None);
}

#[test]
fn framing_of_words_one_after_the_other_has_one_address() {
    let mut chip = nor();
    let requests: &[Part<'_>] = &[
        (&[0xad], 0),
        (&[0, 0, 0], 0),
        (&[1, 2], 0),
        (&[0x05], 0),
        (&[], 1),
        (&[0xad], 0),
        (&[3, 4], 0),
        (&[0x04], 0),
        (&[0xad], 0),
        (&[0, 0], 0),
    ];
    assert_eq!(edges(&mut chip, requests), "++.+.+..++");
}

#[test]
fn framing_of_sram_and_eeprom_has_their_addresses() {
    for (kind, count) in [
        (ChipKind::Sram, 2),
        (ChipKind::Sram, 3),
        (ChipKind::Eeprom, 1),
        (ChipKind::Eeprom, 2),
        (ChipKind::Eeprom, 3),
    ] {
        let mut chip = chip(kind, count);
        let address = &[0; 3][..count.into()];
        // mchp23k256 sends opcode and address in one transfer, data in another.
        let together = [&[0x02], address].concat();
        let requests: &[Part<'_>] = &[
            (&together, 0),
            (&[1], 0),
            (&[0x03], 0),
            (address, 0),
            (&[], 2),
            (&[0x05], 0),
            (&[], 1),
            (&[0x01, 0x40], 0),
            (&[0x02], 0),
            (address, 0),
            (&[1], 0),
        ];
        assert_eq!(
            edges(&mut chip, requests),
            "+.++.+..++.",
            "{kind:?} {count}"
        );
    }
}

#[test]
fn framing_sends_the_bytes_that_it_was_decided_by() {
    let chip = nor();
    let lead_len = |phase, part| frame(&chip, phase, part).lead_len;
    assert_eq!(lead_len(Phase::Opcode, (&[0x02, 1, 2, 3, 4], 0)), 1);
    assert_eq!(lead_len(Phase::Opcode, (&[0xd5, 1], 0)), 1);
    assert_eq!(lead_len(Phase::Opcode, (&[], 1)), 0);
    assert_eq!(lead_len(Phase::Opcode, (&[0x17, 0x80], 0)), 2);
    for (opcode, expected) in [(0x17, 2), (0x02, 0)] {
        let begun = frame(&chip, Phase::Opcode, (&[opcode], 0))
            .remaining
            .unwrap();
        assert_eq!(lead_len(Phase::Within(begun), (&[1, 2], 0)), expected);
    }
}

#[test]
fn rules_leave_a_read_only_guest_the_opcodes_that_only_ask() {
    let guests: Vec<GuestNumber> = GuestNumber::all().take(2).collect();
    let mut chip = nor();
    chip.config.read_only = 0b10;
    let allowed = |guest: GuestNumber| -> Vec<u8> {
        let all = 0..=255u8;
        let permit = |&opcode: &u8| chip.permit(guest, Phase::Opcode, &head(), &[opcode], false);
        all.filter(|opcode| permit(opcode).is_ok()).collect()
    };
    assert_eq!(allowed(guests[0]).len(), 256);
    // Written out, so that a row that is added is looked at here too.
    assert_eq!(
        allowed(guests[1]),
        [
            0x03, 0x05, 0x07, 0x0b, 0x0c, 0x13, 0x16, 0x2b, 0x3b, 0x3c, 0x3d, 0x3f, 0x48, 0x4b,
            0x5a, 0x65, 0x6b, 0x6c, 0x90, 0x9e, 0x9f, 0xa7, 0xb5, 0xc8, 0xe0, 0xe2
        ]
    );
    let none = chip.permit(guests[1], Phase::Opcode, &head(), &[], true);
    assert_eq!(none, Err(ParamError::NoOpcode));
    // What follows is not checked, and neither is what does not reach the wire.
    let begun = frame(&chip, Phase::Opcode, (&[0x03], 0)).remaining.unwrap();
    for phase in [Phase::Within(begun), Phase::Lost] {
        let permitted = chip.permit(guests[1], phase, &head(), &[0xc7], false);
        assert_eq!(permitted, Ok(()));
    }
}

#[test]
fn rules_of_denied_opcodes_are_for_everybody() {
    let mut chip = nor();
    chip.config.deny = vec![0xc7, 0xd5];
    for opcode in 0..=255 {
        let permitted = chip.permit(
            GuestNumber::default(),
            Phase::Opcode,
            &head(),
            &[opcode],
            false,
        );
        let expected = match opcode {
            0xc7 | 0xd5 => Err(ParamError::Opcode(opcode, "is in deny=")),
            _ => Ok(()),
        };
        assert_eq!(permitted, expected);
    }
}

#[test]
fn rules_refuse_what_a_chip_could_take_for_another_opcode() {
    let mut ruled = nor();
    ruled.config.read_only = 1;
    let permit = |chip: &Chip, head: TransferHead, receives| {
        chip.permit(
            GuestNumber::default(),
            Phase::Opcode,
            &head,
            &[0x03],
            receives,
        )
    };
    // On four lanes, a chip that listens on one sees two bits of each byte.
    for (tx_nbits, rx_nbits, receives, expected) in [
        (4, 1, false, Err(ParamError::OpcodeNbits(4))),
        (2, 0, false, Err(ParamError::OpcodeNbits(2))),
        (1, 4, true, Err(ParamError::OpcodeNbits(4))),
        (1, 4, false, Ok(())),
        (0, 0, true, Ok(())),
    ] {
        let head = TransferHead {
            tx_nbits,
            rx_nbits,
            ..head()
        };
        assert_eq!(permit(&ruled, head, receives), expected);
        assert_eq!(permit(&nor(), head, receives), Ok(()), "without a rule");
    }
    // In modes 1 and 2, a chip sees each bit late: 05 as 02.
    for (mode, expected) in [
        (0, Ok(())),
        (CPHA, Err(ParamError::ChipMode(1))),
        (CPOL, Err(ParamError::ChipMode(2))),
        (CPHA | CPOL, Ok(())),
    ] {
        for chip in [&ruled, &nor()] {
            let head = TransferHead { mode, ..head() };
            assert_eq!(permit(chip, head, false), expected);
        }
    }
}

#[test]
fn framing_of_word_after_word_counts_no_command_that_was_cut() {
    let mut chip = nor();
    let word: &[u8] = &[0xad, 0, 0, 0, 1, 2];
    assert_eq!(edges(&mut chip, &[(word, 0), (&[0xad, 3, 4], 0)]), "..");
    // Cut after its address: what the chip makes of it is in doubt.
    assert_eq!(edges(&mut chip, &[(&[0x03, 0, 0, 0], 0)]), "+");
    assert_eq!(
        edges(&mut chip, &[(&[0xad, 0, 0, 0], 0), (&[5, 6], 0)]),
        "+."
    );
    // 05 between two words, in two requests, is part of the procedure.
    assert_eq!(
        edges(&mut chip, &[(&[0x05], 0), (&[], 1), (&[0xad, 7, 8], 0)]),
        "+.."
    );
}
