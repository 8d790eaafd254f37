// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--device`: a device, its options and guests; and `--cs-hold`, which is for guests, too.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use super::{Given, Options, chip, number_in, usage};
use crate::config::{ChipConfig, DeviceConfig, DevicePath, GuestNumber, HoldPolicy};
use crate::error::Fatal;
use crate::spi::wire::MAX_CHIP_SELECTS;

const COMMA: &str = "has a list of guests with a comma; write '+', as in 0+3-5";
const NOT_A_CLOCK: &str = "not a clock in Hz up to 4294967295, in plain digits";
const NOT_A_COUNT: &str = "not a number from 1 to 4294967295, in plain digits";
const NOT_A_DELAY: &str = "not a number from 1 to 60000, in plain digits";
const NOT_A_LIST: &str = "not a list of guests, such as 0, 0-2 or 0+3-5";

impl Options<'_> {
    /// The devices, where there are `count` guests.
    pub(super) fn devices(&self, count: usize) -> Result<Vec<DeviceConfig>, Fatal> {
        let mut devices: Vec<DeviceConfig> = Vec::new();
        for given in self.all("device") {
            let device = device(given, count)?;
            let path = &device.path;
            if *path != DevicePath::Loopback && devices.iter().any(|other| other.path == *path) {
                return Err(usage(format!("option '--device': '{path}' given twice")));
            }
            devices.push(device);
        }
        if devices.is_empty() {
            return Err(usage("option '--device' is missing; see --help"));
        }
        let times = devices.len();
        if times > MAX_CHIP_SELECTS {
            let why = format!("option '--device' given {times} times, at most {MAX_CHIP_SELECTS}");
            return Err(usage(why));
        }
        let has_device = |guest: &GuestNumber| devices.iter().any(|d| guest.is_in(d.guests));
        match GuestNumber::all().take(count).find(|g| !has_device(g)) {
            None => Ok(devices),
            Some(guest) => Err(usage(format!(
                "option '--device': no device for guest {guest}; add it to the guests= of one"
            ))),
        }
    }

    /// The policy of each of `count` guests.
    pub(super) fn hold_policies(&self, count: usize) -> Result<Vec<HoldPolicy>, Fatal> {
        let mut policies = vec![HoldPolicy::Queued; count];
        for given in self.all("cs-hold") {
            let (guests, policy) = hold(given, count)?;
            for (guest, slot) in GuestNumber::all().zip(&mut policies) {
                if guest.is_in(guests) {
                    *slot = policy;
                }
            }
        }
        Ok(policies)
    }
}

/// A device and its options.
fn device(given: &Given, count: usize) -> Result<DeviceConfig, Fatal> {
    let path = given.value.as_bytes().split(|&b| b == b',').next();
    let path = match path.unwrap_or_default() {
        b"" => return Err(given.bad("names no device")),
        b"loopback" => DevicePath::Loopback,
        path => DevicePath::Spidev(OsStr::from_bytes(path).into()),
    };
    let mut device = DeviceConfig::new(path, guests_below(count));
    let mut chip = ChipConfig::default();
    let text = given.value.to_string_lossy();
    let mut seen = Vec::new();
    for option in text.split(',').skip(1) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        check_name(name, &seen).map_err(|why| given.bad(&why))?;
        set(&mut device, &mut chip, name, value)
            .map_err(|what| given.bad(&format!("has '{option}', which is {what}")))?;
        seen.push(name);
    }
    let what = format!("option '--device': '{}'", device.path);
    let wrong = |why: String| usage(format!("{what} {why}"));
    check_guests(device.guests, count, &what)?;
    check_needs(&device.path, &seen).map_err(wrong)?;
    check_guests(chip.read_only, count, &format!("{what} with read-only="))?;
    if seen.contains(&"chip") {
        chip::check(&chip, &device).map_err(wrong)?;
        let given = seen
            .contains(&"address-bytes")
            .then_some(chip.address_bytes);
        chip.address_bytes = chip::address_bytes(chip.kind, given).map_err(wrong)?;
        device.chip = Some(chip);
    }
    Ok(device)
}

/// Why an option of a device cannot come after those `seen`.
fn check_name(name: &str, seen: &[&str]) -> Result<(), String> {
    if seen.contains(&name) {
        return Err(format!("has '{name}' twice"));
    }
    if name == "loopback" || name.starts_with('/') {
        return Err("names two devices; repeat the option for each".to_owned());
    }
    // A list of guests with a comma was cut there.
    let has_list = seen.contains(&"guests") || seen.contains(&"read-only");
    if has_list && name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(COMMA.to_owned());
    }
    Ok(())
}

/// Why the device at `path` cannot have one of the options `seen`, which others or itself would need.
fn check_needs(path: &DevicePath, seen: &[&str]) -> Result<(), String> {
    let is_real = *path != DevicePath::Loopback;
    let why = |name: &&str| match *name {
        "address-bytes" | "read-only" | "deny" if !seen.contains(&"chip") => {
            Some("needs to know the chip's commands; add chip=nor, sram or eeprom")
        }
        "fail" | "delay-ms" if is_real => Some("only loopback has; leave it out for a real device"),
        _ => None,
    };
    let found = seen.iter().find_map(|name| Some((name, why(name)?)));
    found.map_or(Ok(()), |(name, why)| {
        Err(format!("has '{name}', which {why}"))
    })
}

/// Sets an option of a device, or returns what the option is instead.
fn set(
    device: &mut DeviceConfig,
    chip: &mut ChipConfig,
    name: &str,
    value: &str,
) -> Result<(), &'static str> {
    let switch = || match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("neither on nor off"),
    };
    let number = |min, max: u32, what| number_in(value.as_ref(), min, max.into()).ok_or(what);
    let guests = || guests(value).ok_or(NOT_A_LIST);
    match name {
        "guests" => device.guests = guests()?,
        "max-speed-hz" => device.max_speed_hz = Some(number(1, u32::MAX, NOT_A_CLOCK)?),
        "min-speed-hz" => device.min_speed_hz = number(0, u32::MAX, NOT_A_CLOCK)?,
        "cs-high" => device.cs_high = Some(switch()?),
        "loop" => device.loop_mode = Some(switch()?),
        "word-delay" => device.word_delay = switch()?,
        "cs-setup" => device.cs_setup = switch()?,
        "exclusive-bus" => device.exclusive_bus = switch()?,
        "chip" => chip.kind = chip::kind(value)?,
        "address-bytes" => chip.address_bytes = chip::count(value)?,
        "read-only" => chip.read_only = guests()?,
        "deny" => chip.deny = chip::opcodes(value)?,
        "fail" => device.faults.fail_every = Some(number(1, u32::MAX, NOT_A_COUNT)?),
        "delay-ms" => {
            let ms: u32 = number(1, 60_000, NOT_A_DELAY)?;
            device.faults.delay = Some(Duration::from_millis(ms.into()));
        }
        _ => {
            return Err(
                "not an option of a device; those are guests, max-speed-hz, \
                 min-speed-hz, cs-high, loop, word-delay, cs-setup, exclusive-bus, chip, \
                 address-bytes, read-only, deny, fail and delay-ms",
            );
        }
    }
    Ok(())
}

/// A policy, and the guests that it is for.
fn hold(given: &Given, count: usize) -> Result<(u64, HoldPolicy), Fatal> {
    let text = given.value.to_string_lossy();
    let listed = text.split_once(':');
    let (list, policy) = listed.map_or((None, &*text), |(list, policy)| (Some(list), policy));
    let policy = match policy {
        "queued" => HoldPolicy::Queued,
        "spec" => HoldPolicy::Spec,
        "write-read" => HoldPolicy::WriteRead,
        _ => return Err(given.bad("is none of queued, spec and write-read")),
    };
    let Some(list) = list else {
        return Ok((guests_below(count), policy));
    };
    if list.contains(',') {
        return Err(given.bad(COMMA));
    }
    let not_a_list = || given.bad(&format!("has '{list}', which is {NOT_A_LIST}"));
    let guests = guests(list).ok_or_else(not_a_list)?;
    check_guests(guests, count, &format!("option '--cs-hold': '{text}'"))?;
    Ok((guests, policy))
}

/// `0`, `0-2` or `0+3-5`, as a bit for each guest.
pub(super) fn guests(list: &str) -> Option<u64> {
    let guest = |text: &str| number_in::<usize>(text.as_ref(), 0, 63);
    let mut all = 0u64;
    for range in list.split('+') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (guest(first)?, guest(last)?);
        if first > last {
            return None;
        }
        all |= guests_below(last.saturating_add(1)) & !guests_below(first);
    }
    Some(all)
}

fn guests_below(count: usize) -> u64 {
    (0..count).fold(0, |guests, _| guests << 1 | 1)
}

/// Checks that all `guests` that `what` is for exist, where there are `count`.
fn check_guests(guests: u64, count: usize, what: &str) -> Result<(), Fatal> {
    if guests & !guests_below(count) == 0 {
        return Ok(());
    }
    let highest = guests.checked_ilog2().unwrap_or(0);
    let there_are = match count.saturating_sub(1) {
        0 => "the only guest is 0".to_owned(),
        last => format!("the guests are 0 to {last}"),
    };
    let remedy = "add a socket for it (--socket-count, --socket, --fd)";
    Err(usage(format!(
        "{what} is for guest {highest}, but {there_are}; {remedy}"
    )))
}
