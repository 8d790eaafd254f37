// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Command sets of chips: tables to be read with a data sheet beside them.
//!
//! A command begins when chip select is asserted: an opcode, address bytes, dummy bytes, and data in
//! one direction or none. Of these the tables have what tells where a command ends, and what it does
//! to the chip. The number of dummy bytes is not needed, since a command that receives ends with the
//! request that receives; in many chips it can be set. The comments have it as it is after power-up.
//!
//! NOR is what Linux's `drivers/mtd/spi-nor` and flashrom send on up to four lanes. Where vendors
//! disagree, the table has Linux's meaning; and if a chip of one of them would change its mode, the
//! effect is [`Effect::State`] though the opcode only asks in most chips.
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
    /// As many as the chip's addresses have: of NOR flash, as its mode says.
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

/// One command of a chip: its opcode, how many bytes of address follow that, what follows the address,
/// after dummy bytes, and what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command(pub u8, pub Address, pub Data, pub Effect);

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
    Command(0x03, Width, Receive, Reads),         // READ
    Command(0x0b, Width, Receive, Reads),         // FAST READ, 1 dummy byte
    Command(0x3b, Width, Receive, Reads),         // dual output, 1 dummy byte
    Command(0x6b, Width, Receive, Reads),         // quad output, 1 dummy byte
    Command(0xbb, Width, Receive, Continuous),    // dual I/O, mode byte
    Command(0xeb, Width, Receive, Continuous),    // quad I/O, mode byte, 2 dummy bytes
    Command(0xe7, Width, Receive, Continuous),    // quad I/O of words, mode byte, 1 dummy byte
    Command(0x13, Fixed(4), Receive, Reads),      // READ
    Command(0x0c, Fixed(4), Receive, Reads),      // FAST READ, 1 dummy byte
    Command(0x3c, Fixed(4), Receive, Reads),      // dual output, 1 dummy byte
    Command(0x6c, Fixed(4), Receive, Reads),      // quad output, 1 dummy byte
    Command(0xbc, Fixed(4), Receive, Continuous), // dual I/O, mode byte
    Command(0xec, Fixed(4), Receive, Continuous), // quad I/O, mode byte, 2 dummy bytes
    Command(0x48, Width, Receive, Reads),         // security registers, 1 dummy byte
    // Identification.
    Command(0x9f, Zero, Receive, Reads),     // JEDEC id
    Command(0x9e, Zero, Receive, Reads),     // JEDEC id (Micron)
    Command(0xaf, Zero, Receive, Reads),     // JEDEC id on all lanes
    Command(0x90, Fixed(3), Receive, Reads), // manufacturer and device id
    Command(0x5a, Fixed(3), Receive, Reads), // SFDP, 1 dummy byte
    Command(0x4b, Zero, Receive, Reads),     // unique id, 4 dummy bytes
    // Registers, read.
    Command(0x05, Zero, Receive, Reads),     // status 1
    Command(0x07, Zero, Receive, Reads),     // status 2 (Spansion)
    Command(0x3f, Zero, Receive, Reads),     // status 2
    Command(0x15, Zero, Receive, Reads),     // status 3 (Winbond), configuration (Macronix)
    Command(0x35, Zero, Receive, State),     // configuration; enters QPI (Macronix)
    Command(0x70, Zero, Receive, State),     // flag status; busy on the data line (SST)
    Command(0x16, Zero, Receive, Reads),     // bank (Spansion)
    Command(0xc8, Zero, Receive, Reads),     // extended address
    Command(0x2b, Zero, Receive, Reads),     // security (Macronix)
    Command(0x65, Width, Receive, Reads), // any (Spansion); enhanced volatile (Micron: no address)
    Command(0x85, Zero, Receive, Reads),  // volatile (Micron)
    Command(0xb5, Zero, Receive, Reads),  // nonvolatile (Micron)
    Command(0x3d, Width, Receive, Reads), // block lock
    Command(0xe8, Width, Receive, Reads), // block lock (Micron)
    Command(0xe0, Fixed(4), Receive, Reads), // dynamic protection
    Command(0xe2, Fixed(4), Receive, Reads), // persistent protection
    Command(0xa7, Zero, Receive, Reads),  // lock of persistent protection
    // Writes.
    Command(0x02, Width, Send, Contents),       // PAGE PROGRAM
    Command(0x32, Width, Send, Contents),       // the same, quad input
    Command(0x38, Width, Send, Contents), // the same, quad I/O; enters QPI (Winbond: no address)
    Command(0xa2, Width, Send, Contents), // the same, dual input
    Command(0x12, Fixed(4), Send, Contents), // PAGE PROGRAM
    Command(0x34, Fixed(4), Send, Contents), // the same, quad input
    Command(0x3e, Fixed(4), Send, Contents), // the same, quad I/O
    Command(0xad, Once, Send, Contents),  // word after word (SST)
    Command(0x42, Width, Send, Contents), // security registers
    Command(0x20, Width, Nothing, Contents), // erase 4 KiB
    Command(0xd7, Width, Nothing, Contents), // erase 4 KiB (PMC)
    Command(0x52, Width, Nothing, Contents), // erase 32 KiB
    Command(0xd8, Width, Nothing, Contents), // erase 64 KiB
    Command(0x21, Fixed(4), Nothing, Contents), // erase 4 KiB
    Command(0x5c, Fixed(4), Nothing, Contents), // erase 32 KiB
    Command(0xdc, Fixed(4), Nothing, Contents), // erase 64 KiB
    Command(0xc4, Width, Nothing, Contents), // erase a die
    Command(0x44, Width, Nothing, Contents), // erase security registers
    Command(0xc7, Zero, Nothing, Contents), // erase all
    Command(0x60, Zero, Nothing, Contents), // erase all
    // Write enable, registers, protection.
    Command(0x06, Zero, Nothing, State),     // WRITE ENABLE
    Command(0x04, Zero, Nothing, State),     // WRITE DISABLE
    Command(0x50, Zero, Nothing, State),     // write enable of status (SST); clears flags (Micron)
    Command(0x82, Zero, Nothing, State),     // clears flags (Cypress)
    Command(0x01, Zero, Send, State),        // status 1, configuration
    Command(0x31, Zero, Send, State),        // status 2
    Command(0x11, Zero, Send, State),        // status 3
    Command(0x61, Zero, Send, State),        // enhanced volatile (Micron)
    Command(0x81, Zero, Send, State),        // volatile (Micron)
    Command(0xb1, Zero, Send, State),        // nonvolatile (Micron)
    Command(0x71, Width, Send, State),       // any (Spansion)
    Command(0xc5, Zero, Send, State),        // extended address
    Command(0xc2, Zero, Send, State),        // selects a die
    Command(0xc0, Zero, Send, State),        // read parameters
    Command(0x77, Zero, Send, State),        // burst with wrap, 3 dummy bytes
    Command(0x36, Width, Nothing, State),    // locks a block
    Command(0x39, Width, Nothing, State),    // unlocks a block
    Command(0x7e, Zero, Nothing, State),     // locks all
    Command(0x98, Zero, Nothing, State),     // unlocks all
    Command(0xe5, Width, Send, State),       // block lock (Micron)
    Command(0xe1, Fixed(4), Send, State),    // dynamic protection
    Command(0xe3, Fixed(4), Nothing, State), // persistent protection
    Command(0xe4, Zero, Nothing, State),     // erases persistent protection
    Command(0xa6, Zero, Nothing, State),     // locks persistent protection
    Command(0x2f, Zero, Nothing, State),     // security (Macronix)
    // Suspend, power, mode.
    Command(0x75, Zero, Nothing, State),       // suspends
    Command(0xb0, Zero, Nothing, State),       // suspends
    Command(0x7a, Zero, Nothing, State),       // resumes
    Command(0x30, Zero, Nothing, State),       // resumes; clears flags (Spansion)
    Command(0xb9, Zero, Nothing, State),       // deep power-down
    Command(0xab, Zero, ReceiveIfMore, State), // leaves it; electronic id, 3 dummy bytes
    Command(0xb7, Zero, Nothing, EnterFour),   // four-byte mode
    Command(0xe9, Zero, Nothing, LeaveFour),   // three-byte mode
    Command(0x17, Zero, Send, Bank),           // bank (Spansion)
    Command(0x66, Zero, Nothing, EnableReset), // enables reset
    Command(0x99, Zero, Nothing, Reset),       // reset
    Command(0xff, Zero, Nothing, State),       // leaves continuous read, or QPI
];

/// Microchip 23K256, 23LC512 and 23LC1024.
const SRAM: [Command; 7] = [
    Command(0x03, Width, Receive, Reads),
    Command(0x02, Width, Send, Contents),
    Command(0x05, Zero, Receive, Reads), // mode register
    Command(0x01, Zero, Send, State),    // mode register
    Command(0x3b, Zero, Nothing, State), // two lanes
    Command(0x38, Zero, Nothing, State), // four lanes
    Command(0xff, Zero, Nothing, State), // one lane
];

/// Atmel AT25 and ST M95, with what Microchip's 25AA and Cypress's FM25 have besides.
const EEPROM: [Command; 16] = [
    Command(0x03, Width, Receive, Reads),
    Command(0x0b, Width, Receive, Reads), // upper half (512 bytes); fast read, 1 dummy byte (FM25)
    Command(0x02, Width, Send, Contents),
    Command(0x0a, Width, Send, Contents), // upper half (512 bytes)
    Command(0x06, Zero, Nothing, State),  // WRITE ENABLE
    Command(0x04, Zero, Nothing, State),  // WRITE DISABLE
    Command(0x05, Zero, Receive, Reads),  // status
    Command(0x01, Zero, Send, State),     // status
    Command(0x83, Width, Receive, Reads), // identification page (M95)
    Command(0x82, Width, Send, Contents), // identification page (M95)
    Command(0x9f, Zero, Receive, Reads),  // id (FM25)
    Command(0x42, Width, Nothing, Contents), // erases a page (25AA512)
    Command(0xd8, Width, Nothing, Contents), // erases a sector (25AA512)
    Command(0xc7, Zero, Nothing, Contents), // erases all (25AA512)
    Command(0xb9, Zero, Nothing, State),  // power-down
    Command(0xab, Zero, ReceiveIfMore, State), // leaves it; electronic id
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_sets_have_each_opcode_once() {
        for kind in [ChipKind::Nor, ChipKind::Sram, ChipKind::Eeprom] {
            let mut opcodes: Vec<u8> = commands(kind).iter().map(|c| c.0).collect();
            let count = opcodes.len();
            opcodes.sort_unstable();
            opcodes.dedup();
            assert_eq!(opcodes.len(), count, "{kind:?}");
        }
    }
}
