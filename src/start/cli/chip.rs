// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `chip=` and the options of a device that need it.

use super::number_in;
use crate::config::{ChipConfig, ChipKind, DeviceConfig, DevicePath, GuestNumber};

/// The kind, or what the value is instead.
pub(super) fn kind(value: &str) -> Result<ChipKind, &'static str> {
    match value {
        "nor" => Ok(ChipKind::Nor),
        "sram" => Ok(ChipKind::Sram),
        "eeprom" => Ok(ChipKind::Eeprom),
        _ => Err("none of nor, sram and eeprom"),
    }
}

/// A number of bytes, or what the value is instead.
pub(super) fn count(value: &str) -> Result<u8, &'static str> {
    number_in(value.as_ref(), 0, 255).ok_or("not a number of bytes, in plain digits")
}

/// The opcodes of `c7` or `c7+60`, or what the value is instead.
pub(super) fn opcodes(value: &str) -> Result<Vec<u8>, &'static str> {
    let opcode = |text: &str| {
        let opcode = u8::from_str_radix(text, 16).ok();
        opcode.filter(|_| text.len() <= 2)
    };
    let all: Option<_> = value.split('+').map(opcode).collect();
    all.ok_or("not a list of opcodes in hexadecimal, such as c7 or c7+60")
}

/// Why `device` cannot be `chip`.
pub(super) fn check(chip: &ChipConfig, device: &DeviceConfig) -> Result<(), String> {
    if device.path == DevicePath::Loopback {
        return Err("is not a chip; chip= needs /dev/spidevX.Y".to_owned());
    }
    if device.cs_high == Some(true) || device.loop_mode == Some(true) {
        let why = "has chip=, for which guests may choose neither polarity nor loop; leave out \
                   cs-high=on and loop=on";
        return Err(why.to_owned());
    }
    let beside = chip.read_only & !device.guests;
    match GuestNumber::all().find(|guest| guest.is_in(beside)) {
        None => Ok(()),
        Some(guest) => Err(format!(
            "is read-only for guest {guest}, but not given to it by guests="
        )),
    }
}

/// How many bytes an address has, or why it cannot have as many as were given.
pub(super) fn address_bytes(kind: ChipKind, given: Option<u8>) -> Result<u8, String> {
    let (name, min, max, default) = match kind {
        ChipKind::Nor => ("nor", 3, 4, Some(3)),
        ChipKind::Sram => ("sram", 2, 3, Some(2)),
        ChipKind::Eeprom => ("eeprom", 1, 3, None),
    };
    match given.or(default) {
        Some(count) if (min..=max).contains(&count) => Ok(count),
        Some(count) => Err(format!(
            "has address-bytes={count}, but chip={name} has {min} to {max}"
        )),
        None => Err(format!(
            "has chip={name}, which needs address-bytes= from {min} to {max}; the chip's data \
             sheet says which"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::start::cli::parse_config;
    use std::time::Duration;

    fn parse(options: &str) -> Result<ChipConfig, String> {
        let device = format!("--device=d{options}");
        let parsed = parse_config(["-s", "s", "-c", "3", &device]);
        let mut config = parsed.map_err(|fatal| fatal.message)?;
        Ok(config.devices.remove(0).chip.unwrap())
    }

    #[test]
    fn chip_has_the_address_bytes_of_its_kind_or_those_given() {
        for (options, kind, address_bytes) in [
            (",chip=nor", ChipKind::Nor, 3),
            (",address-bytes=4,chip=nor", ChipKind::Nor, 4),
            (",chip=sram", ChipKind::Sram, 2),
            (",chip=sram,address-bytes=3", ChipKind::Sram, 3),
            (",chip=eeprom,address-bytes=1", ChipKind::Eeprom, 1),
        ] {
            let chip = parse(options).unwrap();
            assert_eq!((chip.kind, chip.address_bytes), (kind, address_bytes));
            assert_eq!((chip.read_only, chip.deny), (0, Vec::new()));
            assert_eq!(chip.timeout, Duration::from_millis(100));
        }
        let chip = parse(",chip=nor,read-only=1-2,deny=c7+60+3,cs-high=off,loop=off").unwrap();
        assert_eq!((chip.read_only, chip.deny), (0b110, vec![0xc7, 0x60, 3]));
    }

    #[test]
    fn chip_options_that_make_no_sense_name_value_cause_and_remedy() {
        for (options, words) in [
            (
                ",chip=nand",
                "'chip=nand', which is none of nor, sram and eeprom",
            ),
            (",chip=eeprom", "needs address-bytes= from 1 to 3"),
            (
                ",chip=nor,address-bytes=2",
                "has address-bytes=2, but chip=nor has 3 to 4",
            ),
            (",chip=sram,address-bytes=1", "but chip=sram has 2 to 3"),
            (
                ",chip=nor,address-bytes=x",
                "'address-bytes=x', which is not a number of bytes",
            ),
            (
                ",chip=nor,read-only=x",
                "'read-only=x', which is not a list of guests",
            ),
            (
                ",chip=nor,read-only=3",
                "'d' with read-only= is for guest 3, but the guests are 0 to 2",
            ),
            (
                ",chip=nor,read-only=1,guests=0+2",
                "read-only for guest 1, but not given to it by",
            ),
            (
                ",chip=nor,deny=",
                "'deny=', which is not a list of opcodes in hexadecimal",
            ),
            (
                ",chip=nor,deny=0xc7",
                "'deny=0xc7', which is not a list of opcodes",
            ),
            (
                ",chip=nor,deny=c7+",
                "'deny=c7+', which is not a list of opcodes",
            ),
            (
                ",chip=nor,deny=+c",
                "'deny=+c', which is not a list of opcodes",
            ),
            (
                ",read-only=1",
                "has 'read-only', which needs to know the chip's commands; add chip=",
            ),
            (",deny=c7", "has 'deny', which needs"),
            (",address-bytes=3", "has 'address-bytes', which needs"),
            (",chip=nor,cs-high=on", "leave out cs-high=on and loop=on"),
            (",chip=nor,loop=on", "leave out cs-high=on and loop=on"),
        ] {
            let message = parse(options).unwrap_err();
            assert!(message.starts_with("option '--device': 'd"), "{message}");
            assert!(message.contains(words), "{message}");
        }
        let loopback = parse_config(["-s", "s", "-l", "loopback,chip=nor"]).unwrap_err();
        assert!(
            loopback
                .message
                .contains("'loopback' is not a chip; chip= needs /dev/spidevX.Y")
        );
    }
}
