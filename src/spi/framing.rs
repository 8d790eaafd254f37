// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where a command of a chip begins and ends, in requests that may hold any part of it.
//!
//! The bytes of a command arrive in however many requests its driver makes of them. A command ends:
//!
//! - with the first request that receives, if the chip answers it: whatever was sent after the
//!   address is dummy bytes;
//! - with the first data after its address, if the chip is to receive data;
//! - with its address, if there is no data;
//! - with its first request, if its opcode is not in the table, or nothing is sent.
//!
//! Until then chip select stays asserted, whatever `cs_change` says.
//!
//! The width of the address is state of the chip, whichever guest changed it, and is followed from the
//! commands that the chip has seen: `b7`, `e9`, `17`, and `99` after `66`. Where it is in doubt the
//! longer width counts, since a width that is too short would make data a command. It is followed
//! over guests that leave and come; the daemon itself sends nothing to the chip. What registers say
//! of the next reset, and widths that are set by `71` or `b8`, are not followed.
//!
//! Pure: bytes and lengths in, values out. Called by `grant` for each request to a chip, in the phase
//! that `bus` says; and by `bus` when the request has ended.

use std::time::Duration;

use crate::config::{ChipConfig, GuestNumber};
use crate::error::ParamError;
use crate::spi::command_set::{Address, Command, Data, Effect, commands};
use crate::spi::wire::{CPHA, CPOL, TransferHead};

/// A chip whose commands are known.
#[derive(Debug)]
pub struct Chip {
    commands: &'static [Command],
    /// Bytes of an address after power-up or reset.
    first_width: u8,
    /// How long chip select is held in the middle of a command.
    pub timeout: Duration,
    /// Guests that may only read, a bit each.
    read_only: u64,
    /// Opcodes that nobody may send.
    deny: Vec<u8>,
    state: ChipState,
}

/// What is known of the chip's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ChipState {
    /// Bytes of an address.
    width: u8,
    /// The last command was `66`.
    reset_enabled: bool,
    /// The last command, `05` aside, had [`Address::Once`].
    once: bool,
}

/// A command whose opcode the chip has seen, but not its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    command: Command,
    /// Bytes of its address that are still to come.
    address_left: u64,
}

/// In which phase a request finds the chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It waits for an opcode.
    Opcode,
    /// It is in the middle of a command.
    Within(Begun),
    /// The command that the request belongs to was cut: it will not reach the wire.
    Cut,
}

/// The part of a command that a request is, and the state in which it leaves the chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Framed {
    /// What is left of the command, for which chip select stays asserted; `None` if it has ended.
    pub remaining: Option<Begun>,
    /// How many bytes at its start this was decided by: they must be sent as they were seen.
    pub lead_len: usize,
    next_state: ChipState,
}

impl Begun {
    /// What is left of the command after a request with `len` bytes of it, which `receives`; `None` if
    /// it has ended. `bare`: that was its opcode alone.
    fn advance(self, len: u64, receives: bool, bare: bool) -> Option<Self> {
        let ends = match self.command.data {
            Data::Nothing => len >= self.address_left,
            Data::Send => len > self.address_left,
            Data::Receive => receives,
            Data::ReceiveIfMore => receives || bare,
        };
        let address_left = self.address_left.saturating_sub(len);
        (!ends).then_some(Self {
            address_left,
            ..self
        })
    }
}

impl Chip {
    /// A chip as it is after power-up.
    pub fn new(config: &ChipConfig) -> Self {
        Self {
            commands: commands(config.kind),
            first_width: config.address_bytes,
            timeout: config.timeout,
            read_only: config.read_only,
            deny: config.deny.clone(),
            state: ChipState {
                width: config.address_bytes,
                reset_enabled: false,
                once: false,
            },
        }
    }

    fn command(&self, opcode: u8) -> Option<Command> {
        let mut commands = self.commands.iter();
        commands.find(|known| known.opcode == opcode).copied()
    }

    /// Checks that `guest` may send a request that finds the chip in `phase`; `lead` has the first bytes
    /// that it sends, as they will be on the wire.
    ///
    /// # Errors
    /// `guest` may not send this, or the chip could see another opcode than `lead` has.
    pub fn permit(
        &self,
        guest: GuestNumber,
        phase: Phase,
        head: &TransferHead,
        lead: &[u8],
        receives: bool,
    ) -> Result<(), ParamError> {
        // In the two other modes the chip would see each bit half a clock late.
        if (head.mode & CPHA != 0) != (head.mode & CPOL != 0) {
            return Err(ParamError::Mode(head.mode));
        }
        let read_only = guest.is_in(self.read_only);
        if phase != Phase::Opcode || (!read_only && self.deny.is_empty()) {
            return Ok(());
        }
        let opcode = *lead.first().ok_or(ParamError::NoOpcode)?;
        // On several lanes, a chip that listens on one would see another opcode.
        let nbits = head.tx_nbits.max(if receives { head.rx_nbits } else { 0 });
        if nbits > 1 {
            return Err(ParamError::OpcodeNbits(nbits));
        }
        let why = if self.deny.contains(&opcode) {
            Some("is in deny=")
        } else if read_only {
            self.command(opcode).map_or(
                Some("is not in the table of chip=, and this guest is read-only"),
                |command| command.effect.why_not_read_only(),
            )
        } else {
            None
        };
        why.map_or(Ok(()), |why| Err(ParamError::Opcode(opcode, why)))
    }

    /// Frames a request of `len` bytes on the wire, of which `lead` are the first that it sends: as many
    /// as a [`crate::spi::lead::Lead`] has.
    pub fn frame(&self, phase: Phase, lead: &[u8], len: u64, receives: bool) -> Framed {
        let begins = phase == Phase::Opcode;
        let begun = match phase {
            Phase::Opcode => lead.first().and_then(|&opcode| self.begin(opcode)),
            Phase::Within(begun) => Some(begun),
            Phase::Cut => None,
        };
        let mut framed = Framed {
            remaining: None,
            lead_len: usize::from(begins && !lead.is_empty()),
            next_state: ChipState {
                reset_enabled: false,
                once: false,
                ..self.state
            },
        };
        let Some(begun) = begun else {
            return framed;
        };
        // Without the opcode, which `begin` has taken.
        let len = len.saturating_sub(u64::from(begins));
        let mut value = None;
        if begun.command.effect == Effect::Bank {
            value = lead.get(usize::from(begins)).copied();
            framed.lead_len = lead.len();
        }
        framed.remaining = begun.advance(len, receives, begins && len == 0);
        match framed.remaining {
            // A question for the status is part of the procedure, also before its answer.
            Some(_) => framed.next_state.once = self.state.once && asks_status(begun),
            None => framed.next_state = self.state_after(begun, len, value),
        }
        framed
    }

    fn begin(&self, opcode: u8) -> Option<Begun> {
        let command = self.command(opcode)?;
        let address_left = match command.address {
            Address::Zero => 0,
            Address::Once if self.state.once => 0,
            Address::Width | Address::Once => self.state.width,
            Address::Fixed(count) => count,
        };
        Some(Begun {
            command,
            address_left: address_left.into(),
        })
    }

    /// The chip's state after a command that ends with a request which has `len` bytes of it after the
    /// opcode; `value` is the first of its data, if that matters.
    fn state_after(&self, begun: Begun, len: u64, value: Option<u8>) -> ChipState {
        let (before, command) = (self.state, begun.command);
        // Many chips ignore a command with more bytes than it has. Those to which this matters have one
        // byte of data, or none.
        let exact = len == u64::from(command.data == Data::Send);
        let asks = asks_status(begun) && before.once;
        let four = value.is_none_or(|value| value & 0x80 != 0);
        let width = match command.effect {
            Effect::EnterFour => Some(4),
            Effect::Bank if four => Some(4),
            Effect::Bank | Effect::LeaveFour => exact.then_some(3),
            Effect::Reset => (exact && before.reset_enabled).then_some(self.first_width),
            Effect::Reads
            | Effect::Contents
            | Effect::State
            | Effect::Continuous
            | Effect::EnableReset => None,
        };
        ChipState {
            width: width.unwrap_or(before.width),
            reset_enabled: command.effect == Effect::EnableReset && exact,
            once: asks || command.address == Address::Once,
        }
    }

    /// A request was carried out, or failed after the chip may have seen it.
    pub fn note_outcome(&mut self, framed: &Framed, carried_out: bool) {
        let before = self.state;
        self.state = framed.next_state;
        if !carried_out {
            self.state.width = before.width.max(framed.next_state.width);
            self.state.reset_enabled = false;
            self.state.once = false;
        }
    }
}

/// Whether a command asks for the status: whether the chip is ready for the next word.
fn asks_status(begun: Begun) -> bool {
    begun.command.opcode == 0x05
}

#[cfg(test)]
mod tests;
