// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Framing and rules of `chip=nor`, with a model of the chip as the oracle: what is on the wire between
//! two edges must be one command, and a guest that may only read leaves the chip as it is.

use std::time::Duration;

use vhost_device_spi::config::{ChipConfig, ChipKind, GuestNumber};
use vhost_device_spi::spi::framing::{Chip, Phase};
use vhost_device_spi::spi::lead;
use vhost_device_spi::spi::wire::TransferHead;

use crate::input::Input;
use crate::nor::{Nor, State};

/// What commands the fuzzed driver knows: opcode, address bytes of its own, and what follows.
const COMMANDS: [(u8, Option<usize>, Data); 28] = [
    (0x03, None, Data::In),
    (0x0b, None, Data::In),
    (0x6b, None, Data::In),
    (0xeb, None, Data::In),
    (0x13, Some(4), Data::In),
    (0x0c, Some(4), Data::In),
    (0xec, Some(4), Data::In),
    (0x5a, Some(3), Data::In),
    (0x9f, Some(0), Data::In),
    (0x05, Some(0), Data::In),
    (0x35, Some(0), Data::In),
    (0x02, None, Data::Out),
    (0x32, None, Data::Out),
    (0x12, Some(4), Data::Out),
    (0x3e, Some(4), Data::Out),
    (0x01, Some(0), Data::Out),
    (0x17, Some(0), Data::Out),
    (0x20, None, Data::None),
    (0xd8, None, Data::None),
    (0xdc, Some(4), Data::None),
    (0xc7, Some(0), Data::None),
    (0x06, Some(0), Data::None),
    (0x04, Some(0), Data::None),
    (0xb7, Some(0), Data::None),
    (0xe9, Some(0), Data::None),
    (0x66, Some(0), Data::None),
    (0x99, Some(0), Data::None),
    (0xff, Some(0), Data::None),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Data {
    In,
    Out,
    None,
}

/// The daemon's view of the chip, and the chip.
struct Rig {
    framed: Chip,
    chip: Nor,
    phase: Phase,
    writer: GuestNumber,
    reader: GuestNumber,
}

/// Sends the chip what `bytes` describe.
pub fn run(bytes: &[u8]) {
    let mut guests = GuestNumber::all();
    let (writer, reader) = (guests.next().unwrap(), guests.next().unwrap());
    let mut rig = Rig {
        framed: Chip::new(ChipConfig {
            kind: ChipKind::Nor,
            address_bytes: 3,
            read_only: 0b10,
            deny: Vec::new(),
            timeout: Duration::ZERO,
        }),
        chip: Nor::new(),
        phase: Phase::Opcode,
        writer,
        reader,
    };
    let input = &mut Input::new(bytes);
    while !input.is_empty() {
        match input.u8() % 8 {
            0..4 => rig.command(input),
            4..7 => rig.anything(input, reader),
            _ => rig.anything(input, writer),
        }
    }
}

/// What a request has on the wire: zeros, where it only receives.
fn on_the_wire(tx: &[u8], rx_len: usize) -> Vec<u8> {
    let mut bytes = tx.to_vec();
    bytes.resize(tx.len().max(rx_len), 0);
    bytes
}

impl Rig {
    /// One request; whether it was permitted.
    fn request(&mut self, guest: GuestNumber, tx: &[u8], rx_len: usize) -> bool {
        if guest == self.writer {
            self.wake();
        }
        let lead = &tx[..tx.len().min(lead::MAX_LEN)];
        let receives = rx_len > 0;
        let head = TransferHead::default();
        let permitted = self.framed.permit(guest, self.phase, &head, lead, receives);
        if permitted.is_err() {
            return false;
        }
        let len = tx.len().max(rx_len);
        let framed = self
            .framed
            .frame(self.phase, lead, len.try_into().unwrap(), receives);
        if self.phase == Phase::Opcode {
            self.chip.select(true);
        }
        self.chip.exchange(&on_the_wire(tx, rx_len));
        self.framed.note_outcome(&framed, true);
        self.phase = match framed.remaining {
            Some(begun) => Phase::Within(begun),
            None => {
                self.chip.select(false);
                Phase::Opcode
            }
        };
        true
    }

    /// The chip listens: while it is busy or asleep, or takes an opcode for an address, it is not told
    /// what it is sent, and its driver knows that.
    fn wake(&mut self) {
        self.chip.busy_polls = 0;
        self.chip.state.continuous = false;
        self.chip.state.asleep = false;
    }

    /// What is not at its end runs out.
    fn end(&mut self) {
        if self.phase != Phase::Opcode {
            self.chip.select(false);
            self.phase = Phase::Opcode;
        }
    }

    /// A whole command, cut as a driver may cut it: anywhere before its data, which come at once.
    fn command(&mut self, input: &mut Input) {
        let (opcode, own, data) = input.pick(&COMMANDS);
        // A driver knows the chip's mode, or has another opcode.
        if own.is_none() && !self.is_in_step() {
            return;
        }
        let width = own.unwrap_or(if self.chip.state.four_byte { 4 } else { 3 });
        let mut tx = vec![opcode];
        tx.extend((0..width).map(|_| input.u8()));
        let (cuts, len) = (input.u8(), 1 + usize::from(input.u8() % 8));
        if data == Data::In {
            tx.resize(tx.len() + usize::from(cuts >> 6), 0xff);
        }
        let mut parts: Vec<(Vec<u8>, usize)> = vec![(Vec::new(), 0)];
        for (at, byte) in tx.iter().enumerate() {
            if at > 0 && cuts >> (at % 6) & 1 != 0 {
                parts.push((Vec::new(), 0));
            }
            parts.last_mut().unwrap().0.push(*byte);
        }
        let joined = !input.u8().is_multiple_of(2);
        let last = parts.last_mut().unwrap();
        match data {
            Data::In if joined => {
                last.0.resize(last.0.len() + len, 0);
                last.1 = last.0.len();
            }
            Data::In => parts.push((Vec::new(), len)),
            Data::Out if joined => last.0.extend((0..len).map(|_| input.u8())),
            Data::Out => parts.push(((0..len).map(|_| input.u8()).collect(), 0)),
            Data::None => (),
        }
        self.chip.commands.clear();
        let mut expected = Vec::new();
        let count = parts.len();
        for (n, (tx, rx_len)) in parts.into_iter().enumerate() {
            assert!(self.request(self.writer, &tx, rx_len));
            let goes_on = self.phase != Phase::Opcode;
            assert_eq!(
                goes_on,
                n + 1 < count,
                "request {n} of {count} of {opcode:x}"
            );
            expected.extend(on_the_wire(&tx, rx_len));
        }
        assert_eq!(self.chip.commands, [expected]);
    }

    /// Requests of any kind, one after the other.
    fn anything(&mut self, input: &mut Input, guest: GuestNumber) {
        self.wake();
        let before = (self.chip.state, self.chip.cells.clone());
        for _ in 0..=input.u8() % 4 {
            let tx_len = usize::from(input.u8() % 8);
            let tx = input.take(tx_len).to_vec();
            // As validation has it: one of both, or as long.
            let rx_len = match input.u8() % 4 {
                0 => tx.len(),
                1..3 if !tx.is_empty() => 0,
                _ if tx.is_empty() => 1 + usize::from(input.u8() % 8),
                _ => 0,
            };
            if tx.is_empty() && rx_len == 0 {
                continue;
            }
            if !self.request(guest, &tx, rx_len) {
                // Refused: the command that it belonged to ends.
                self.end();
            }
        }
        self.end();
        if guest == self.reader {
            // Whatever comes after an opcode that enables a reset disables it.
            let reset_enabled = self.chip.state.reset_enabled && before.0.reset_enabled;
            let expected = State {
                reset_enabled,
                ..before.0
            };
            assert_eq!(self.chip.state, expected);
            assert!(self.chip.cells == before.1);
        }
        assert!(self.width_is(4) || !self.chip.state.four_byte, "too short");
    }

    /// Whether the daemon's width is the chip's: it may be longer, but never shorter.
    fn is_in_step(&self) -> bool {
        self.width_is(if self.chip.state.four_byte { 4 } else { 3 })
    }

    fn width_is(&self, width: u64) -> bool {
        let ends = |len| {
            let framed = self.framed.frame(Phase::Opcode, &[0x20, 0], len, false);
            framed.remaining.is_none()
        };
        ends(1 + width) && !ends(width)
    }
}
