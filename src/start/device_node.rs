// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Finds the spidev that an option `--device` names.
//!
//! The kernel numbers controllers in the order in which it finds them, so that `/dev/spidevX.Y` can be
//! another device after the next boot. These names can stay the same:
//!
//! | name | what it is |
//! |---|---|
//! | a link, such as one of udev's, or a node of another name | the spidev with its device number, or else at the end of the link |
//! | a directory of sysfs, such as `/sys/bus/spi/devices/spi0.0` | the spidev that is bound to that device |
//!
//! A name of sysfs stays where the firmware gave it (`spi-PRP0001:00`); `spiX.Y` has the controller's
//! number, too.
//!
//! Must not: open a device. Called by `assemble`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::config::{DeviceConfig, DevicePath};
use crate::error::{ExitCode, Fatal};

const SYSFS: &str = "/sys";

/// Finds the device of `config`: its numbers, and the path of its node in place of a directory of sysfs.
///
/// # Errors
/// There is no such directory of sysfs, or no spidev is bound to its device.
pub fn find(config: &mut DeviceConfig) -> Result<(), Fatal> {
    if let DevicePath::Spidev(path) = &mut config.path {
        if path.starts_with(SYSFS) {
            *path = bound_to(path)?;
        }
        config.numbers = numbers_of(path);
    }
    Ok(())
}

/// Whether two devices are on one controller. Those whose controller the host's names do not tell count
/// as on one; each loopback is alone.
pub fn are_beside(one: &DeviceConfig, other: &DeviceConfig) -> bool {
    let bus = |device: &DeviceConfig| device.numbers.map(|(bus, _)| bus);
    let is_real = |device: &DeviceConfig| device.path != DevicePath::Loopback;
    bus(one) == bus(other) && is_real(one) && is_real(other)
}

/// What was found, if the device was named by something else.
pub fn finding(config: &DeviceConfig) -> Option<String> {
    let (name, found) = (&config.name, path_of(config.numbers?));
    (found != *name).then(|| format!("option '--device': '{name}' is {found}"))
}

/// The node of the spidev that is bound to the device in the directory `device` of sysfs.
fn bound_to(device: &Path) -> Result<PathBuf, Fatal> {
    let refused = |why: &str| {
        let what = format!("option '--device': '{}': {why}", device.to_string_lossy());
        Fatal::new(ExitCode::NoInput, what)
    };
    fs::read_dir(device).map_err(|error| refused(&error.to_string()))?;
    let entries = fs::read_dir(device.join("spidev")).into_iter().flatten();
    let mut numbers = entries.filter_map(|entry| numbers_in(&entry.ok()?.path()));
    let node = numbers.next().map(|numbers| path_of(numbers).into());
    node.ok_or_else(|| refused("no spidev below it; is the device bound to spidev?"))
}

fn path_of((bus, device): (u32, u32)) -> String {
    format!("/dev/spidev{bus}.{device}")
}

/// By its device number where the host's sysfs knows it, else by the name that the path leads to.
fn numbers_of(path: &Path) -> Option<(u32, u32)> {
    let by_number = fs::metadata(path).ok().and_then(|metadata| {
        let (major, minor) = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
        numbers_in(&fs::canonicalize(format!("/sys/dev/char/{major}:{minor}")).ok()?)
    });
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    by_number.or_else(|| numbers_in(&real))
}

fn numbers_in(path: &Path) -> Option<(u32, u32)> {
    let name = path.file_name()?.to_str()?;
    let (bus, device) = name.strip_prefix("spidev")?.split_once('.')?;
    Some((bus.parse().ok()?, device.parse().ok()?))
}
