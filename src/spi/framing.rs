// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where a command of a chip begins and ends, whatever part of it a request holds.
//!
//! A driver may divide the bytes of a command into any number of requests. A command ends:
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
//! that `bus` says; and by `device` when the request has ended.

use crate::config::{ChipConfig, GuestNumber};
use crate::error::ParamError;
use crate::spi::command_set::{Address, Command, Data, Effect, commands};
use crate::spi::wire::{CPHA, CPOL, TransferHead, ensure};

/// A chip whose commands are known.
#[derive(Debug)]
pub struct Chip {
    /// What is known of it, and who may do what with it.
    pub config: ChipConfig,
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

impl ChipState {
    /// With this width, after a command that has no part in a procedure of several.
    const fn new(width: u8) -> Self {
        Self {
            width,
            reset_enabled: false,
            once: false,
        }
    }
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
    /// The command that the request belongs to has ended: it will not reach the wire.
    Lost,
}

/// The part of a command that a request is, and the state in which it leaves the chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Framed {
    /// What is left of the command, for which chip select stays asserted; `None` if it has ended.
    pub remaining: Option<Begun>,
    /// How many of its first bytes decided this: they must be sent as they were seen.
    pub lead_len: usize,
    next_state: ChipState,
}

impl Begun {
    /// What is left of the command after a request with `len` bytes of it after the opcode, which
    /// `receives`; `None` if it has ended.
    fn advance(mut self, len: u64, receives: bool) -> Option<Self> {
        let ends = match self.command.data {
            Data::Nothing => len >= self.address_left,
            Data::Send => len > self.address_left,
            Data::Receive => receives,
            Data::ReceiveIfMore => receives || len == 0,
        };
        self.address_left = self.address_left.saturating_sub(len);
        (!ends).then_some(self)
    }
}

impl Chip {
    /// A chip as it is after power-up.
    pub fn new(config: ChipConfig) -> Self {
        let state = ChipState::new(config.address_bytes);
        Self { config, state }
    }

    fn command(&self, opcode: u8) -> Option<Command> {
        let mut commands = commands(self.config.kind).iter();
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
        let is_seen_in_time = (head.mode & CPHA != 0) == (head.mode & CPOL != 0);
        ensure(
            is_seen_in_time,
            ParamError::ChipMode(head.mode & (CPHA | CPOL)),
        )?;
        let read_only = guest.is_in(self.config.read_only);
        if phase != Phase::Opcode || (!read_only && self.config.deny.is_empty()) {
            return Ok(());
        }
        let opcode = *lead.first().ok_or(ParamError::NoOpcode)?;
        // On several lanes, a chip that listens on one would see another opcode.
        let nbits = head.tx_nbits.max(if receives { head.rx_nbits } else { 0 });
        ensure(nbits <= 1, ParamError::OpcodeNbits(nbits))?;
        let why = if self.config.deny.contains(&opcode) {
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

    /// Finds which part of a command a request of `len` bytes is. `lead` has its first bytes: all of them, or
    /// [`lead::MAX_LEN`](crate::spi::lead::MAX_LEN).
    pub fn frame(&self, phase: Phase, lead: &[u8], len: u64, receives: bool) -> Framed {
        let (begun, opcode_len) = match (phase, lead) {
            (Phase::Opcode, [opcode, ..]) => (self.begin(*opcode), 1),
            (Phase::Within(begun), _) => (Some(begun), 0),
            (Phase::Opcode, []) | (Phase::Lost, _) => (None, 0),
        };
        let mut framed = Framed {
            remaining: None,
            lead_len: opcode_len,
            next_state: ChipState::new(self.state.width),
        };
        let Some(begun) = begun else {
            return framed;
        };
        let Command {
            opcode,
            address,
            data,
            effect,
        } = begun.command;
        let next_state = &mut framed.next_state;
        let len = len.saturating_sub(u64::from(opcode_len > 0));
        framed.remaining = begun.advance(len, receives);
        // Reading the status (`05`) does not end a procedure of [`Address::Once`], even in a request before
        // the answer.
        let asks_status = opcode == 0x05;
        next_state.once = asks_status && self.state.once;
        if framed.remaining.is_none() {
            // Many chips ignore a command with more bytes than it has. Those to which this matters have one
            // byte of data, or none.
            let exact = len == u64::from(data == Data::Send);
            next_state.width = self.width_after(effect, exact, lead.get(opcode_len));
            next_state.reset_enabled = exact && effect == Effect::EnableReset;
            next_state.once |= address == Address::Once;
        }
        if effect == Effect::Bank {
            framed.lead_len = lead.len();
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

    /// Bytes of an address after a command with this effect, which had as many bytes as it should if
    /// `exact`, and `data` as the first of its data.
    fn width_after(&self, effect: Effect, exact: bool, data: Option<&u8>) -> u8 {
        let four = data.is_none_or(|data| data & 0x80 != 0);
        if effect == Effect::EnterFour || effect == Effect::Bank && four {
            4
        } else if exact && matches!(effect, Effect::Bank | Effect::LeaveFour) {
            3
        } else if exact && effect == Effect::Reset && self.state.reset_enabled {
            self.config.address_bytes
        } else {
            self.state.width
        }
    }

    /// A request was carried out, or failed after the chip may have seen it.
    pub fn note_outcome(&mut self, framed: &Framed, carried_out: bool) {
        let (before, after) = (self.state, framed.next_state);
        self.state = if carried_out {
            after
        } else {
            ChipState::new(before.width.max(after.width))
        };
    }
}

#[cfg(test)]
mod tests;
