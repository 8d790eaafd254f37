//! `--device`: a device and its options, and whom they are for.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::{Name, bad, usage};
use crate::config::{DeviceConfig, DevicePath, MAX_GUESTS, digits};
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
        if !device_option(&mut device, part.as_bytes()) {
            let why = format!(
                "has an option that is unknown or malformed: '{}'",
                part.display()
            );
            return Err(bad(Name::Device, value, &why));
        }
    }
    Ok(device)
}

fn device_option(device: &mut DeviceOption, option: &[u8]) -> bool {
    let Some(at) = option.iter().position(|&b| b == b'=') else {
        return false;
    };
    let (name, value) = option.split_at(at);
    let value = value.get(1..).unwrap_or_default();
    let switch = match value {
        b"on" => Some(true),
        b"off" => Some(false),
        _ => None,
    };
    let hz = digits(OsStr::from_bytes(value)).and_then(|hz| u32::try_from(hz).ok());
    let hz = hz.filter(|&hz| hz > 0);
    let config = &mut device.config;
    match name {
        b"guests" => guests(value).map(|guests| device.guests = Some(guests)),
        b"max-speed-hz" => hz.map(|hz| config.max_speed_hz = Some(hz)),
        b"min-speed-hz" => hz.map(|hz| config.min_speed_hz = hz),
        b"cs-high" => switch.map(|on| config.cs_high = Some(on)),
        b"loop" => switch.map(|on| config.loop_mode = Some(on)),
        b"word-delay" => switch.map(|on| config.word_delay = on),
        b"cs-setup" => switch.map(|on| config.cs_setup = on),
        b"exclusive-bus" => switch.map(|on| config.exclusive_bus = on),
        _ => None,
    }
    .is_some()
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

pub(super) fn guests_below(count: usize) -> u64 {
    u32::try_from(count)
        .ok()
        .and_then(|count| 1u64.checked_shl(count))
        .map_or(u64::MAX, |bit| bit.wrapping_sub(1))
}

/// Those of `guests` that something is for, of `all` that there are: all, if none were given.
pub(super) fn check_guests(guests: Option<u64>, all: u64, what: &str) -> Result<u64, Fatal> {
    let guests = guests.unwrap_or(all);
    if guests & !all != 0 {
        let highest = u64::BITS
            .saturating_sub(1)
            .saturating_sub(guests.leading_zeros());
        return Err(usage(format!("{what} guest {highest}, which there is not")));
    }
    Ok(guests)
}

pub(super) fn check_devices(devices: &[DeviceConfig], count: usize) -> Result<(), Fatal> {
    if devices.len() > MAX_CHIP_SELECTS {
        let why = format!(
            "option '--device' given {} times, at most 16",
            devices.len()
        );
        return Err(usage(why));
    }
    for guest in 0..count {
        if !devices.iter().any(|device| device.guests >> guest & 1 != 0) {
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
