// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--device`: a device, its options and guests; and `--cs-hold`, which is for guests, too.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use super::chip::ChipOptions;
use super::{Given, cut, usage};
use crate::config::{DeviceConfig, DevicePath, GuestNumber, HoldPolicy, MAX_GUESTS, digits};
use crate::error::Fatal;
use crate::spi::wire::MAX_CHIP_SELECTS;

const COMMA: &str = "has a list of guests with a comma; write '+', as in 0+3-5";
const NOT_A_COUNT: &str = "not a number from 1 to 4294967295, in plain digits";
/// The longest that the loopback answers later.
const MAX_DELAY_MS: u32 = 60_000;
const NOT_A_DELAY: &str = "not a number from 1 to 60000, in plain digits";
const NOT_A_LIST: &str = "not a list of guests, such as 0, 0-2 or 0+3-5";

/// A device and its options, where there are `count` guests.
pub(super) fn device(given: &Given, count: usize) -> Result<DeviceConfig, Fatal> {
    let mut parts = given.value.as_bytes().split(|&b| b == b',');
    let path = match parts.next().unwrap_or_default() {
        b"" => return Err(given.bad("names no device")),
        b"loopback" => DevicePath::Loopback,
        path => DevicePath::Spidev(OsStr::from_bytes(path).into()),
    };
    let mut device = DeviceConfig::new(path, guests_below(count));
    let mut chip = ChipOptions::default();
    let mut seen = Vec::new();
    for part in parts {
        let (name, value) = cut(part, b'=');
        let value = OsStr::from_bytes(value.unwrap_or_default());
        check_name(name, &seen)
            .and_then(|()| {
                let not =
                    |what| format!("has '{}', which is {what}", String::from_utf8_lossy(part));
                set(&mut device, &mut chip, name, value).map_err(not)
            })
            .map_err(|why| given.bad(&why))?;
        seen.push(name);
    }
    let what = format!("option '--device': '{}'", device.path);
    check_guests(device.guests, count, &what)?;
    device.chip = chip.finish(&device, count)?;
    check_faults(&device).map_err(|why| usage(format!("{what} {why}")))?;
    Ok(device)
}

/// Why a device cannot have its faults.
fn check_faults(device: &DeviceConfig) -> Result<(), String> {
    let given = match (device.faults.fail_every, device.faults.delay) {
        (Some(_), _) => "fail",
        (None, Some(_)) => "delay-ms",
        (None, None) => return Ok(()),
    };
    if device.path == DevicePath::Loopback {
        return Ok(());
    }
    Err(format!(
        "has '{given}', which only loopback has; leave it out for a real device"
    ))
}

/// Why an option of a device cannot come after those `seen`.
fn check_name(name: &[u8], seen: &[&[u8]]) -> Result<(), String> {
    if seen.contains(&name) {
        let name = String::from_utf8_lossy(name);
        return Err(format!("has '{name}' twice"));
    }
    if name == b"loopback" || name.starts_with(b"/") {
        return Err("names two devices; repeat the option for each".to_owned());
    }
    // A list of guests with a comma was cut there.
    let has_list = seen
        .iter()
        .any(|name| matches!(*name, b"guests" | b"read-only"));
    if has_list && name.first().is_some_and(u8::is_ascii_digit) {
        return Err(COMMA.to_owned());
    }
    Ok(())
}

/// Sets an option of a device, or returns what it is instead.
fn set(
    device: &mut DeviceConfig,
    chip: &mut ChipOptions,
    name: &[u8],
    value: &OsStr,
) -> Result<(), &'static str> {
    let switch = || match value.as_bytes() {
        b"on" => Ok(true),
        b"off" => Ok(false),
        _ => Err("neither on nor off"),
    };
    let hz = || {
        let hz = digits(value).and_then(|hz| u32::try_from(hz).ok());
        hz.filter(|&hz| hz > 0)
            .ok_or("not a clock in Hz from 1 to 4294967295, in plain digits")
    };
    let number = |max: u32, what| {
        let number = digits(value).and_then(|number| u32::try_from(number).ok());
        number.filter(|n| (1..=max).contains(n)).ok_or(what)
    };
    match name {
        b"guests" => device.guests = guests(value.as_bytes()).ok_or(NOT_A_LIST)?,
        b"max-speed-hz" => device.max_speed_hz = Some(hz()?),
        b"min-speed-hz" => device.min_speed_hz = if value == "0" { 0 } else { hz()? },
        b"cs-high" => device.cs_high = Some(switch()?),
        b"loop" => device.loop_mode = Some(switch()?),
        b"word-delay" => device.word_delay = switch()?,
        b"cs-setup" => device.cs_setup = switch()?,
        b"exclusive-bus" => device.exclusive_bus = switch()?,
        b"chip" => chip.kind = Some(ChipOptions::kind(value)?),
        b"address-bytes" => chip.address_bytes = Some(ChipOptions::count(value)?),
        b"read-only" => chip.read_only = Some(guests(value.as_bytes()).ok_or(NOT_A_LIST)?),
        b"deny" => chip.deny = Some(ChipOptions::opcodes(value)?),
        b"fail" => device.faults.fail_every = Some(number(u32::MAX, NOT_A_COUNT)?),
        b"delay-ms" => {
            let ms = number(MAX_DELAY_MS, NOT_A_DELAY)?;
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

/// Sets the policy of some guests, or of all.
pub(super) fn hold(given: &Given, policies: &mut [HoldPolicy]) -> Result<(), Fatal> {
    let bytes = given.value.as_bytes();
    let (list, policy) = match cut(bytes, b':') {
        (policy, None) => (None, policy),
        (list, Some(policy)) => (Some(list), policy),
    };
    let policy = match policy {
        b"queued" => HoldPolicy::Queued,
        b"spec" => HoldPolicy::Spec,
        b"write-read" => HoldPolicy::WriteRead,
        _ => return Err(given.bad("is none of queued, spec and write-read")),
    };
    let guests = match list {
        None => guests_below(policies.len()),
        Some(list) => guests(list).ok_or_else(|| not_a_list(given, list))?,
    };
    let what = format!("option '--cs-hold': '{}'", given.value.to_string_lossy());
    check_guests(guests, policies.len(), &what)?;
    for (guest, slot) in GuestNumber::all().zip(policies) {
        if guest.is_in(guests) {
            *slot = policy;
        }
    }
    Ok(())
}

fn not_a_list(given: &Given, list: &[u8]) -> Fatal {
    if list.contains(&b',') {
        return given.bad(COMMA);
    }
    let list = String::from_utf8_lossy(list);
    given.bad(&format!("has '{list}', which is {NOT_A_LIST}"))
}

/// `0`, `0-2` or `0+3-5`, as a bit for each guest.
pub(super) fn guests(list: &[u8]) -> Option<u64> {
    let number = |text| usize::try_from(digits(OsStr::from_bytes(text))?).ok();
    let mut all = 0u64;
    for range in list.split(|&b| b == b'+') {
        let (first, last) = cut(range, b'-');
        let (first, last) = (number(first)?, number(last.unwrap_or(first))?);
        if first > last || last >= MAX_GUESTS {
            return None;
        }
        all |= guests_below(last.saturating_add(1)) & !guests_below(first);
    }
    Some(all)
}

fn guests_below(count: usize) -> u64 {
    u32::try_from(count)
        .ok()
        .and_then(|count| 1u64.checked_shl(count))
        .map_or(u64::MAX, |bit| bit.wrapping_sub(1))
}

/// That there are all `guests` that `what` is for, where there are `count`.
pub(super) fn check_guests(guests: u64, count: usize, what: &str) -> Result<(), Fatal> {
    if guests & !guests_below(count) == 0 {
        return Ok(());
    }
    let highest = guests.checked_ilog2().unwrap_or(0);
    let there_are = match count.saturating_sub(1) {
        0 => "the only guest is 0".to_owned(),
        last => format!("the guests are 0 to {last}"),
    };
    let remedy = "a socket more makes a guest more (--socket-count, --socket, --fd)";
    Err(usage(format!(
        "{what} is for guest {highest}, but {there_are}; {remedy}"
    )))
}

pub(super) fn check_devices(devices: &[DeviceConfig], count: usize) -> Result<(), Fatal> {
    if devices.is_empty() {
        return Err(usage("option '--device' is missing"));
    }
    let times = devices.len();
    if times > MAX_CHIP_SELECTS {
        let why = format!("option '--device' given {times} times, at most {MAX_CHIP_SELECTS}");
        return Err(usage(why));
    }
    for guest in GuestNumber::all().take(count) {
        if !devices.iter().any(|device| guest.is_in(device.guests)) {
            return Err(usage(format!(
                "option '--device': no device for guest {guest}"
            )));
        }
    }
    let mut paths = devices.iter().filter(|d| d.path != DevicePath::Loopback);
    while let Some(device) = paths.next() {
        if paths.clone().any(|other| other.path == device.path) {
            let path = &device.path;
            return Err(usage(format!("option '--device': '{path}' given twice")));
        }
    }
    Ok(())
}
