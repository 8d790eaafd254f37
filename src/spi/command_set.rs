// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Command sets of chips: tables to be read with a data sheet beside them.
//!
//! A command begins when chip select is asserted: an opcode, address bytes, dummy bytes, and data in
//! one direction or none. The tables say where a command ends and what it does to the chip. They need no
//! number of dummy bytes, which many chips can change: a command that receives ends with the request that
//! receives. The comments have the number after power-up.
//!
//! NOR is what Linux's `drivers/mtd/spi-nor` and flashrom send on up to four lanes. Where vendors
//! disagree, the table has Linux's meaning; but an opcode that changes the mode of one vendor's chips, or
//! writes, has [`Effect::State`], even if it only reads in most others. `65` is the exception: it sets read
//! parameters in ISSI's chips, but without it Linux does not accept Infineon's.
//!
//! Must not: keep state. Called by `framing`.

use self::Address::{Fixed, Once, Width, Zero};
use self::Data::{Nothing, Receive, ReceiveIfMore, Send};
use self::Effect::{
    Bank, Contents, Continuous, EnableReset, EnterFour, LeaveFour, Reads, Reset, State,
};
use crate::config::ChipKind;

/// How many bytes of address follow the opcode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// None.
    Zero,
    /// This many, whatever mode the chip is in.
    Fixed(u8),
    /// The width of the chip's addresses; that of NOR flash depends on its mode.
    Width,
    /// As `Width`; but none if the command before, `05` aside, was this one too.
    Once,
}

/// What follows address and dummy bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// Nothing.
    Nothing,
    /// The chip sends.
    Receive,
    /// The chip sends if the request with the opcode has more bytes than that; else nothing follows.
    ReceiveIfMore,
    /// The chip receives.
    Send,
}

/// What a command does to the chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: it reads, or asks.
    Reads,
    /// It changes the contents.
    Contents,
    /// It changes protection, mode or power, or does so in the chips of one vendor.
    State,
    /// It reads, with a mode byte after the address that can leave the chip without opcodes.
    Continuous,
    /// Addresses have four bytes from now on.
    EnterFour,
    /// Addresses have three bytes from now on.
    LeaveFour,
    /// The next command may be a reset.
    EnableReset,
    /// All is as after power-up, if the command before enabled it.
    Reset,
    /// Addresses have four bytes from now on if bit 7 of its data is set, else three.
    Bank,
}

impl Effect {
    /// Why a guest that may only read may not have it, if so.
    pub const fn why_not_read_only(self) -> Option<&'static str> {
        match self {
            Self::Reads => None,
            Self::Contents => Some("changes the contents, and this guest is read-only"),
            Self::Continuous => {
                Some("can leave the chip in continuous read, and this guest is read-only")
            }
            Self::State
            | Self::EnterFour
            | Self::LeaveFour
            | Self::EnableReset
            | Self::Reset
            | Self::Bank => Some("can change protection or mode, and this guest is read-only"),
        }
    }
}

/// One command of a chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command {
    /// Its first byte.
    pub opcode: u8,
    /// How many bytes of address follow the opcode.
    pub address: Address,
    /// What follows the address, after dummy bytes.
    pub data: Data,
    /// What it does.
    pub effect: Effect,
}

const fn row(opcode: u8, address: Address, data: Data, effect: Effect) -> Command {
    Command {
        opcode,
        address,
        data,
        effect,
    }
}

/// The commands of chips of this kind.
pub fn commands(kind: ChipKind) -> &'static [Command] {
    match kind {
        ChipKind::Nor => &NOR,
        ChipKind::Sram => &SRAM,
        ChipKind::Eeprom => &EEPROM,
    }
}

/// SPI NOR flash.
const NOR: [Command; 94] = [
    // Reads.
    row(0x03, Width, Receive, Reads),         // READ
    row(0x0b, Width, Receive, Reads),         // FAST READ, 1 dummy byte
    row(0x3b, Width, Receive, Reads),         // dual output, 1 dummy byte
    row(0x6b, Width, Receive, Reads),         // quad output, 1 dummy byte
    row(0xbb, Width, Receive, Continuous),    // dual I/O, mode byte
    row(0xeb, Width, Receive, Continuous),    // quad I/O, mode byte, 2 dummy bytes
    row(0xe7, Width, Receive, Continuous),    // quad I/O of words, mode byte, 1 dummy byte
    row(0x13, Fixed(4), Receive, Reads),      // READ
    row(0x0c, Fixed(4), Receive, Reads),      // FAST READ, 1 dummy byte
    row(0x3c, Fixed(4), Receive, Reads),      // dual output, 1 dummy byte
    row(0x6c, Fixed(4), Receive, Reads),      // quad output, 1 dummy byte
    row(0xbc, Fixed(4), Receive, Continuous), // dual I/O, mode byte
    row(0xec, Fixed(4), Receive, Continuous), // quad I/O, mode byte, 2 dummy bytes
    row(0x48, Width, Receive, Reads),         // security registers, 1 dummy byte
    // Identification.
    row(0x9f, Zero, Receive, Reads),     // JEDEC id
    row(0x9e, Zero, Receive, Reads),     // JEDEC id (Micron)
    row(0xaf, Zero, Receive, State),     // JEDEC id on all lanes; programs bytes (SST)
    row(0x90, Fixed(3), Receive, Reads), // manufacturer and device id
    row(0x5a, Fixed(3), Receive, Reads), // SFDP, 1 dummy byte
    row(0x4b, Zero, Receive, Reads),     // unique id, 4 dummy bytes
    // Registers, read.
    row(0x05, Zero, Receive, Reads),     // status 1
    row(0x07, Zero, Receive, Reads),     // status 2 (Spansion)
    row(0x3f, Zero, Receive, Reads),     // status 2
    row(0x15, Zero, Receive, State),     // status 3 (Winbond); writes autoboot (Spansion)
    row(0x35, Zero, Receive, State),     // configuration; enters QPI (Macronix)
    row(0x70, Zero, Receive, State),     // flag status; busy on the data line (SST)
    row(0x16, Zero, Receive, Reads),     // bank (Spansion)
    row(0xc8, Zero, Receive, Reads),     // extended address
    row(0x2b, Zero, Receive, Reads),     // security (Macronix)
    row(0x65, Width, Receive, Reads),    // any (Spansion); enhanced volatile (Micron: no address)
    row(0x85, Zero, Receive, State),     // volatile (Micron); writes drive strength (ISSI)
    row(0xb5, Zero, Receive, Reads),     // nonvolatile (Micron)
    row(0x3d, Width, Receive, Reads),    // block lock
    row(0xe8, Width, Receive, State),    // block lock (Micron); programs the password (Spansion)
    row(0xe0, Fixed(4), Receive, Reads), // dynamic protection
    row(0xe2, Fixed(4), Receive, Reads), // persistent protection
    row(0xa7, Zero, Receive, Reads),     // lock of persistent protection
    // Writes.
    row(0x02, Width, Send, Contents),       // PAGE PROGRAM
    row(0x32, Width, Send, Contents),       // the same, quad input
    row(0x38, Width, Send, Contents),       // the same, quad I/O; enters QPI (Winbond: no address)
    row(0xa2, Width, Send, Contents),       // the same, dual input
    row(0x12, Fixed(4), Send, Contents),    // PAGE PROGRAM
    row(0x34, Fixed(4), Send, Contents),    // the same, quad input
    row(0x3e, Fixed(4), Send, Contents),    // the same, quad I/O
    row(0xad, Once, Send, Contents),        // word after word (SST)
    row(0x42, Width, Send, Contents),       // security registers
    row(0x20, Width, Nothing, Contents),    // erase 4 KiB
    row(0xd7, Width, Nothing, Contents),    // erase 4 KiB (PMC)
    row(0x52, Width, Nothing, Contents),    // erase 32 KiB
    row(0xd8, Width, Nothing, Contents),    // erase 64 KiB
    row(0x21, Fixed(4), Nothing, Contents), // erase 4 KiB
    row(0x5c, Fixed(4), Nothing, Contents), // erase 32 KiB
    row(0xdc, Fixed(4), Nothing, Contents), // erase 64 KiB
    row(0xc4, Width, Nothing, Contents),    // erase a die
    row(0x44, Width, Nothing, Contents),    // erase security registers
    row(0xc7, Zero, Nothing, Contents),     // erase all
    row(0x60, Zero, Nothing, Contents),     // erase all
    // Write enable, registers, protection.
    row(0x06, Zero, Nothing, State),     // WRITE ENABLE
    row(0x04, Zero, Nothing, State),     // WRITE DISABLE
    row(0x50, Zero, Nothing, State),     // write enable of status (SST); clears flags (Micron)
    row(0x82, Zero, Nothing, State),     // clears flags (Cypress)
    row(0x01, Zero, Send, State),        // status 1, configuration
    row(0x31, Zero, Send, State),        // status 2
    row(0x11, Zero, Send, State),        // status 3
    row(0x61, Zero, Send, State),        // enhanced volatile (Micron)
    row(0x81, Zero, Send, State),        // volatile (Micron)
    row(0xb1, Zero, Send, State),        // nonvolatile (Micron)
    row(0x71, Width, Send, State),       // any (Spansion)
    row(0xc5, Zero, Send, State),        // extended address
    row(0xc2, Zero, Send, State),        // selects a die
    row(0xc0, Zero, Send, State),        // read parameters
    row(0x77, Zero, Send, State),        // burst with wrap, 3 dummy bytes
    row(0x36, Width, Nothing, State),    // locks a block
    row(0x39, Width, Nothing, State),    // unlocks a block
    row(0x7e, Zero, Nothing, State),     // locks all
    row(0x98, Zero, Nothing, State),     // unlocks all
    row(0xe5, Width, Send, State),       // block lock (Micron)
    row(0xe1, Fixed(4), Send, State),    // dynamic protection
    row(0xe3, Fixed(4), Nothing, State), // persistent protection
    row(0xe4, Zero, Nothing, State),     // erases persistent protection
    row(0xa6, Zero, Nothing, State),     // locks persistent protection
    row(0x2f, Zero, Nothing, State),     // security (Macronix)
    // Suspend, power, mode.
    row(0x75, Zero, Nothing, State),       // suspends
    row(0xb0, Zero, Nothing, State),       // suspends
    row(0x7a, Zero, Nothing, State),       // resumes
    row(0x30, Zero, Nothing, State),       // resumes; clears flags (Spansion)
    row(0xb9, Zero, Nothing, State),       // deep power-down
    row(0xab, Zero, ReceiveIfMore, State), // leaves it; electronic id, 3 dummy bytes
    row(0xb7, Zero, Nothing, EnterFour),   // four-byte mode
    row(0xe9, Zero, Nothing, LeaveFour),   // three-byte mode
    row(0x17, Zero, Send, Bank),           // bank (Spansion)
    row(0x66, Zero, Nothing, EnableReset), // enables reset
    row(0x99, Zero, Nothing, Reset),       // reset
    row(0xff, Zero, Nothing, State),       // leaves continuous read, or QPI
];

/// Microchip 23K256, 23LC512 and 23LC1024.
const SRAM: [Command; 7] = [
    row(0x03, Width, Receive, Reads),
    row(0x02, Width, Send, Contents),
    row(0x05, Zero, Receive, Reads), // mode register
    row(0x01, Zero, Send, State),    // mode register
    row(0x3b, Zero, Nothing, State), // two lanes
    row(0x38, Zero, Nothing, State), // four lanes
    row(0xff, Zero, Nothing, State), // one lane
];

/// Atmel AT25 and ST M95, with what Microchip's 25AA and Cypress's FM25 have besides.
const EEPROM: [Command; 16] = [
    row(0x03, Width, Receive, Reads),
    row(0x0b, Width, Receive, Reads), // upper half (512 bytes); fast read, 1 dummy byte (FM25)
    row(0x02, Width, Send, Contents),
    row(0x0a, Width, Send, Contents),      // upper half (512 bytes)
    row(0x06, Zero, Nothing, State),       // WRITE ENABLE
    row(0x04, Zero, Nothing, State),       // WRITE DISABLE
    row(0x05, Zero, Receive, Reads),       // status
    row(0x01, Zero, Send, State),          // status
    row(0x83, Width, Receive, Reads),      // identification page (M95)
    row(0x82, Width, Send, Contents),      // identification page (M95)
    row(0x9f, Zero, Receive, Reads),       // id (FM25)
    row(0x42, Width, Nothing, Contents),   // erases a page (25AA512)
    row(0xd8, Width, Nothing, Contents),   // erases a sector (25AA512)
    row(0xc7, Zero, Nothing, Contents),    // erases all (25AA512)
    row(0xb9, Zero, Nothing, State),       // power-down
    row(0xab, Zero, ReceiveIfMore, State), // leaves it; electronic id
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_sets_have_each_opcode_once() {
        for kind in [ChipKind::Nor, ChipKind::Sram, ChipKind::Eeprom] {
            let mut opcodes: Vec<u8> = commands(kind).iter().map(|c| c.opcode).collect();
            let count = opcodes.len();
            opcodes.sort_unstable();
            opcodes.dedup();
            assert_eq!(opcodes.len(), count, "{kind:?}");
        }
    }
}
