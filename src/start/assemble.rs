// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From a configuration to everything that the loop runs on.
//!
//! Should: open all that will ever be opened. Must not: serve.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::config::{
    Config, DeviceConfig, DevicePath, GuestMemory, GuestNumber, HoldPolicy, Source,
};
use crate::confine::emergency_cleanup;
use crate::error::{ExitCode, Fatal, SessionError};
use crate::os::deferred_close::DeferredClose;
use crate::os::epoll::Poller;
use crate::os::handed_in::Socket;
use crate::os::listener::{Access, Listener, SocketFile};
use crate::os::log;
use crate::os::mounts::Mounts;
use crate::os::sd_notify::SdNotify;
use crate::os::signals;
use crate::os::write_timeout;
use crate::serve::event_loop::EventLoop;
use crate::serve::grant::{Grant, Shared};
use crate::serve::session::Session;
use crate::spi::bus::Bus;
use crate::spi::device::{Device, Port};
use crate::spi::wire;
use crate::start::device_node;
use crate::virtqueue::{memory, sigbus};

const BUFSIZ_PATH: &str = "/sys/module/spidev/parameters/bufsiz";
const DEFAULT_BUFSIZ: u32 = 4096;
/// Below this not even one word fits with what spidev charges for it.
const MIN_BUFSIZ: u32 = 8;
const SPI_DEVICES: &str = "/sys/bus/spi/devices";

/// The devices, opened, by controller.
#[derive(Debug)]
pub struct Hardware {
    buses: Vec<Bus>,
    /// Where the n-th device of the command line is: index of the bus, index of the device on it.
    places: Vec<(usize, usize)>,
    /// What was found of devices that are named by something else than their node.
    findings: Vec<String>,
}

/// Which controller a device is on.
#[derive(Debug, PartialEq, Eq)]
enum Controller {
    /// The host's, by its number.
    Host(u32),
    /// One that the host's names do not tell: all such devices count as on one controller.
    Unknown,
    /// Each loopback is alone.
    Loopback(usize),
}

fn failed(error: io::Error) -> Fatal {
    Fatal::os(ExitCode::OsError, "cannot start", &error)
}

/// Installs the handlers of panics, SIGALRM and SIGBUS, on which all else relies, and the
/// signalfd of the signals that end the daemon.
///
/// # Errors
/// The host refused a system call.
pub fn prepare() -> Result<File, Fatal> {
    log::look_at_stderr();
    emergency_cleanup::install();
    write_timeout::install().map_err(failed)?;
    sigbus::install().map_err(failed)?;
    signals::catch().map_err(failed)
}

/// Opens all devices.
///
/// # Errors
/// The first device that cannot be served.
pub fn open(config: &Config) -> Result<Hardware, Fatal> {
    let bufsiz = bufsiz()?;
    let mut groups: Vec<(Controller, Vec<Device>, Vec<&DeviceConfig>)> = Vec::new();
    let mut places = Vec::new();
    let devices = config.devices.iter().map(device_node::resolve);
    let devices: Vec<DeviceConfig> = devices.collect::<Result<_, _>>()?;
    let paths = devices.iter().map(|device| &device.path);
    let controllers: Vec<Controller> = (0..).zip(paths).map(controller).collect();
    for (device_config, controller) in devices.iter().zip(controllers) {
        let opened: Vec<&Device> = groups.iter().flat_map(|group| &group.1).collect();
        let device = Device::open(device_config, &config.transfers, bufsiz, &opened)?;
        let known = groups.iter().position(|group| group.0 == controller);
        let bus = known.unwrap_or(groups.len());
        if known.is_none() {
            groups.push((controller, Vec::new(), Vec::new()));
        }
        if let Some((_, devices, configs)) = groups.get_mut(bus) {
            places.push((bus, devices.len()));
            devices.push(device);
            configs.push(device_config);
        }
    }
    let guests = config.guests.len();
    let buses = groups
        .into_iter()
        .map(|(controller, devices, configs)| {
            Bus::new(devices, neighbour(&controller, &configs), guests)
        })
        .collect();
    let hardware = Hardware {
        buses,
        places,
        findings: devices.iter().filter_map(device_node::finding).collect(),
    };
    emergency_cleanup::set_modes(modes(&hardware));
    Ok(hardware)
}

/// The controller of the device with this number and path.
fn controller((number, path): (usize, &DevicePath)) -> Controller {
    match device_node::numbers(path) {
        Some((bus, _)) => Controller::Host(bus),
        None if *path == DevicePath::Loopback => Controller::Loopback(number),
        None => Controller::Unknown,
    }
}

/// A device of the controller that this daemon was not given, unless the administrator says that
/// nobody uses it. Without a list of the host's SPI devices none is assumed.
fn neighbour(controller: &Controller, configs: &[&DeviceConfig]) -> Option<&'static str> {
    let Controller::Host(bus) = *controller else {
        return None;
    };
    if configs.iter().any(|config| config.exclusive_bus) {
        return None;
    }
    let numbers = configs
        .iter()
        .filter_map(|config| device_node::numbers(&config.path));
    let ours: Vec<String> = numbers.map(|(bus, device)| own_name(bus, device)).collect();
    let entries = fs::read_dir(SPI_DEVICES).ok()?;
    let names = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let name = entry.file_name().into_string().ok()?;
        is_on_bus(bus, &name, &entry.path()).then_some(name)
    });
    let mut others = names.filter(|name| !ours.contains(name));
    others.next().map(|name| &*name.leak())
}

/// The name of the SPI device behind `/dev/spidevX.Y`: `spiX.Y`, or the name that ACPI gives it.
fn own_name(bus: u32, device: u32) -> String {
    let link = format!("/sys/class/spidev/spidev{bus}.{device}/device");
    let real = fs::canonicalize(link).ok();
    let name = real.as_ref().and_then(|path| path.file_name()?.to_str());
    name.map_or_else(|| format!("spi{bus}.{device}"), ToOwned::to_owned)
}

/// Devices from a device tree have the bus in their name; others (`spi-` and what ACPI or a
/// software node says, see `spi_dev_set_name()`) only in their path.
fn is_on_bus(bus: u32, name: &str, path: &Path) -> bool {
    let controller = format!("spi{bus}");
    let named = name
        .strip_prefix(&controller)
        .is_some_and(|rest| rest.starts_with('.'));
    let real = fs::canonicalize(path).unwrap_or_default();
    named || real.iter().any(|part| part == controller.as_str())
}

fn bufsiz() -> Result<u32, Fatal> {
    let text = fs::read_to_string(Path::new(BUFSIZ_PATH)).unwrap_or_default();
    let bufsiz = text.trim().parse().unwrap_or(DEFAULT_BUFSIZ);
    if bufsiz < MIN_BUFSIZ {
        let why = format!("spidev.bufsiz of {bufsiz} bytes holds no transfer");
        return Err(Fatal::new(ExitCode::Config, why));
    }
    Ok(bufsiz)
}

/// The guests' sockets: those that were `handed_in`, in their order, and the others made. If one
/// cannot be made, those before it are removed again.
///
/// # Errors
/// The first socket that cannot be made.
pub fn bind(config: &Config, handed_in: Vec<Socket>) -> Result<Vec<Socket>, Fatal> {
    let access = Access::new(&config.access)?;
    let mut handed_in = handed_in.into_iter();
    let (mut sockets, mut files): (Vec<Socket>, Vec<SocketFile>) = (Vec::new(), Vec::new());
    for source in &config.guests {
        let Source::Path(path) = source else {
            sockets.extend(handed_in.next());
            continue;
        };
        match Listener::create(path, &access) {
            Ok((listener, file)) => {
                sockets.push(Socket::Listening(listener));
                files.push(file);
            }
            Err(error) => {
                emergency_cleanup::remove(&files);
                return Err(error);
            }
        }
    }
    emergency_cleanup::set_sockets(files);
    Ok(sockets)
}

/// Puts everything together.
///
/// # Errors
/// The host refused a system call.
pub fn assemble(
    config: &Config,
    hardware: Hardware,
    sockets: Vec<Socket>,
    signals: File,
) -> Result<EventLoop, Fatal> {
    if config.guest_memory == GuestMemory::Any {
        log::warning(format_args!(
            "warning: --guest-memory=any: a front-end can stall the daemon, for all guests, by what is \
             behind a page of its memory"
        ));
    }
    let poller = Poller::new().map_err(failed)?;
    for finding in &hardware.findings {
        log::info(format_args!("{finding}"));
    }
    let deferred = DeferredClose::new(config.guests.len());
    let mut sessions = Vec::new();
    for (number, socket) in GuestNumber::all().zip(sockets) {
        let grant = grant(config, &hardware, number);
        announce(number, &socket, &grant, &hardware);
        sessions.push(Session::new(number, socket, grant, &poller, &deferred).map_err(refused)?);
    }
    let shared = Shared::new(hardware.buses, poller, Mounts::read(), deferred);
    let sd_notify = SdNotify::connect(config.notify_socket.as_deref(), config.alive_every);
    EventLoop::new(sessions, shared, signals, sd_notify)
}

fn refused(error: SessionError) -> Fatal {
    Fatal::new(ExitCode::OsError, format!("cannot start: {error}"))
}

fn modes(hardware: &Hardware) -> Vec<(std::os::fd::RawFd, u32)> {
    let devices = hardware.buses.iter().flat_map(|bus| &bus.devices);
    devices
        .filter_map(|device| match &device.port {
            Port::Spidev(spidev) => Some((spidev.fd(), spidev.found_mode())),
            Port::Loopback(_) => None,
        })
        .collect()
}

fn device_at(hardware: &Hardware, place: (usize, usize)) -> Option<&Device> {
    hardware.buses.get(place.0)?.devices.get(place.1)
}

/// The grant of guest `number`: the devices that are for it, numbered in order.
fn grant(config: &Config, hardware: &Hardware, number: GuestNumber) -> Grant {
    let chip_selects: Vec<(usize, usize)> = config
        .devices
        .iter()
        .zip(&hardware.places)
        .filter(|(device, _)| number.is_in(device.guests))
        .map(|(_, place)| *place)
        .collect();
    let limits = chip_selects
        .iter()
        .filter_map(|&place| device_at(hardware, place).map(|device| &device.limits));
    let policy = config.hold_policies.get(number.index()).copied();
    let policy = policy.unwrap_or(HoldPolicy::Queued);
    Grant {
        config: wire::Config::new(limits),
        guest_memory: config.guest_memory,
        max_memory_len: memory::max_len(config.guests.len()),
        chip_selects,
        policy,
        hold_timeout: config.hold_timeout(policy),
        poll: config.poll,
    }
}

fn announce(number: GuestNumber, socket: &Socket, grant: &Grant, hardware: &Hardware) {
    let mut names = String::new();
    for (chip_select, &place) in grant.chip_selects.iter().enumerate() {
        if let Some(device) = device_at(hardware, place) {
            names.push_str(&format!(" {chip_select}={}", device.name));
        }
    }
    match socket {
        Socket::Listening(listener) => log::info(format_args!(
            "guest={number} listening on {}, chip selects{names}",
            listener.name()
        )),
        Socket::Connected(_, fd) => log::info(format_args!(
            "guest={number} connected by fd {fd}, chip selects{names}"
        )),
    }
}
