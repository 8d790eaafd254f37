//! `--device`: a device and its options, and whom they are for.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::{Name, bad, usage};
use crate::config::{DeviceConfig, DevicePath, GuestNumber, MAX_GUESTS, digits};
use crate::error::Fatal;
use crate::spi::wire::MAX_CHIP_SELECTS;

/// A device, and the guests that it is for as they were given: all, if they were not.
#[derive(Debug)]
pub(super) struct DeviceOption {
    pub(super) config: DeviceConfig,
    pub(super) guests: Option<u64>,
}

pub(super) fn device(value: &OsStr) -> Result<DeviceOption, Fatal> {
    let mut parts = value
        .as_bytes()
        .split(|&b| b == b',')
        .map(OsStr::from_bytes);
    let path = match parts.next() {
        None => return Err(bad(Name::Device, value, "is empty")),
        Some(path) if path.is_empty() => return Err(bad(Name::Device, value, "names no device")),
        Some(path) if path == "loopback" => DevicePath::Loopback,
        Some(path) => DevicePath::Spidev(path.into()),
    };
    let config = DeviceConfig {
        path,
        guests: 0,
        max_speed_hz: None,
        min_speed_hz: 0,
        cs_high: None,
        loop_mode: None,
        word_delay: false,
        cs_setup: false,
        exclusive_bus: false,
    };
    let mut device = DeviceOption {
        config,
        guests: None,
    };
    let mut seen = Vec::new();
    for part in parts {
        let name = part.as_bytes().split(|&b| b == b'=').next();
        if seen.contains(&name) {
            let name = OsStr::from_bytes(name.unwrap_or_default());
            let why = format!("has '{}' twice", name.display());
            return Err(bad(Name::Device, value, &why));
        }
        seen.push(name);
        device_option(&mut device, part).map_err(|why| bad(Name::Device, value, &why))?;
    }
    Ok(device)
}

/// Takes an option of a device, or says why it is of no use.
fn device_option(device: &mut DeviceOption, option: &OsStr) -> Result<(), String> {
    let bytes = option.as_bytes();
    let at = bytes.iter().position(|&b| b == b'=');
    let (name, value) = bytes.split_at(at.unwrap_or(bytes.len()));
    let value = value.get(1..).unwrap_or_default();
    let not = |what: &str| format!("has '{}', which is {what}", option.display());
    let switch = || match value {
        b"on" => Ok(true),
        b"off" => Ok(false),
        _ => Err(not("neither on nor off")),
    };
    let hz = || {
        let hz = digits(OsStr::from_bytes(value)).and_then(|hz| u32::try_from(hz).ok());
        hz.filter(|&hz| hz > 0)
            .ok_or_else(|| not("not a clock in Hz from 1 to 4294967295, in plain digits"))
    };
    let config = &mut device.config;
    match name {
        b"guests" => {
            let list = guests(value).ok_or_else(|| not_a_list(option, OsStr::from_bytes(value)));
            device.guests = Some(list?);
        }
        b"max-speed-hz" => config.max_speed_hz = Some(hz()?),
        b"min-speed-hz" => config.min_speed_hz = hz()?,
        b"cs-high" => config.cs_high = Some(switch()?),
        b"loop" => config.loop_mode = Some(switch()?),
        b"word-delay" => config.word_delay = switch()?,
        b"cs-setup" => config.cs_setup = switch()?,
        b"exclusive-bus" => config.exclusive_bus = switch()?,
        b"loopback" | [b'/', ..] => {
            return Err("names two devices; repeat the option for each".to_owned());
        }
        // What follows a comma in a list.
        [b'0'..=b'9', ..] if device.guests.is_some() => return Err(COMMA.to_owned()),
        _ => {
            return Err(not(
                "not an option of a device; those are guests, max-speed-hz, \
                 min-speed-hz, cs-high, loop, word-delay, cs-setup and exclusive-bus",
            ));
        }
    }
    Ok(())
}

const COMMA: &str = "has a list of guests with a comma; write '+', as in 0+3-5";

/// Why `list`, shown as `option`, is not one.
#[cold]
pub(super) fn not_a_list(option: &OsStr, list: &OsStr) -> String {
    if list.as_bytes().contains(&b',') {
        return COMMA.to_owned();
    }
    let shown = option.display();
    format!("has '{shown}', which is not a list of guests, such as 0, 0-2 or 0+3-5")
}

/// `0`, `0-2` or `0+3-5`, as a bit for each guest.
pub(super) fn guests(list: &[u8]) -> Option<u64> {
    let mut all = 0u64;
    for range in list.split(|&b| b == b'+') {
        let mut ends = range.split(|&b| b == b'-').map(OsStr::from_bytes);
        let first = usize::try_from(digits(ends.next()?)?).ok()?;
        let last = match ends.next() {
            Some(last) => usize::try_from(digits(last)?).ok()?,
            None => first,
        };
        if ends.next().is_some() || first > last || last >= MAX_GUESTS {
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

/// Those of `guests` that something is for, of `count` that there are: all, if none were given.
pub(super) fn check_guests(guests: Option<u64>, count: usize, what: &str) -> Result<u64, Fatal> {
    let all = guests_below(count);
    let guests = guests.unwrap_or(all);
    if guests & !all == 0 {
        return Ok(guests);
    }
    let highest = u64::BITS
        .saturating_sub(1)
        .saturating_sub(guests.leading_zeros());
    let there_are = match count.saturating_sub(1) {
        0 => "the only guest is 0".to_owned(),
        last => format!("the guests are 0 to {last}"),
    };
    let remedy = "a socket more makes a guest more (--socket-count, --socket, --fd)";
    Err(usage(format!(
        "{what} guest {highest}, but {there_are}; {remedy}"
    )))
}

pub(super) fn check_devices(devices: &[DeviceConfig], count: usize) -> Result<(), Fatal> {
    if devices.len() > MAX_CHIP_SELECTS {
        let why = format!(
            "option '--device' given {} times, at most 16",
            devices.len()
        );
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
