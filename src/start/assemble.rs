// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From a configuration to everything that the loop runs on.
//!
//! Should: open all that will ever be opened. Must not: serve. Called by `main`.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::config::{Config, DeviceConfig, GuestMemory, GuestNumber, HoldPolicy, Source};
use crate::confine::emergency_cleanup;
use crate::error::{ExitCode, Fatal, SessionError};
use crate::os::deferred_close::DeferredClose;
use crate::os::epoll::Poller;
use crate::os::handed_in::Socket;
use crate::os::listener::{Listener, number_of};
use crate::os::mounts::Mounts;
use crate::os::sd_notify::SdNotify;
use crate::os::{log, signals, write_timeout};
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
}

fn failed(error: io::Error) -> Fatal {
    Fatal::os(ExitCode::OsError, "cannot start", &error)
}

/// Prepares what all else relies on: log lines, the handlers of panics, SIGALRM and SIGBUS, and the
/// signalfd of the signals that end the daemon or print its counters.
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
pub fn open(config: &mut Config) -> Result<Hardware, Fatal> {
    let (bufsiz, transfers) = (bufsiz()?, config.transfers);
    for device in &mut config.devices {
        device_node::find(device)?;
    }
    let mut controllers: Vec<(Vec<&DeviceConfig>, Vec<Device>)> = Vec::new();
    let (mut places, mut modes) = (Vec::new(), Vec::new());
    for config in &config.devices {
        let opened: Vec<&Device> = controllers.iter().flat_map(|group| &group.1).collect();
        let device = Device::open(config, &transfers, bufsiz, &opened)?;
        if let Port::Spidev(spidev) = &device.port {
            modes.push((spidev.fd(), spidev.found_mode()));
        }
        let is_beside = |other: &&DeviceConfig| device_node::are_beside(config, other);
        let mut known = controllers.iter_mut().enumerate();
        match known.find(|(_, (configs, _))| configs.iter().any(is_beside)) {
            Some((bus, (configs, devices))) => {
                places.push((bus, devices.len()));
                configs.push(config);
                devices.push(device);
            }
            None => {
                places.push((controllers.len(), 0));
                controllers.push((vec![config], vec![device]));
            }
        }
    }
    let _ = emergency_cleanup::MODES.set(modes);
    let guests = config.guests.len();
    let buses = controllers
        .into_iter()
        .map(|(configs, devices)| Bus::new(devices, neighbour(&configs), guests));
    Ok(Hardware {
        buses: buses.collect(),
        places,
    })
}

/// A device of the controller of `devices` that this daemon was not given, unless the administrator
/// says that nobody uses it. Without a list of the host's SPI devices none is assumed.
fn neighbour(devices: &[&DeviceConfig]) -> Option<&'static str> {
    let (bus, _) = devices.first()?.numbers?;
    if devices.iter().any(|device| device.exclusive_bus) {
        return None;
    }
    let numbers = devices.iter().filter_map(|device| device.numbers);
    let ours: Vec<String> = numbers.map(own_name).collect();
    let mut names = fs::read_dir(SPI_DEVICES).ok()?.filter_map(|entry| {
        let entry = entry.ok()?;
        let name = entry.file_name().into_string().ok()?;
        is_on_bus(bus, &name, &entry.path()).then_some(name)
    });
    let other = names.find(|name| !ours.contains(name))?;
    Some(&*other.leak())
}

/// The name of the SPI device behind `/dev/spidevX.Y`: `spiX.Y`, or the name that ACPI gives it.
fn own_name((bus, device): (u32, u32)) -> String {
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

/// The guests' sockets: those that were `handed_in`, in their order, and the others made. Those that
/// were made are removed at the end of the process, also if an error here ends it.
///
/// # Errors
/// The first socket that cannot be made.
pub fn bind(config: &Config, handed_in: Vec<Socket>) -> Result<Vec<Socket>, Fatal> {
    let group = config.socket_group.as_ref().map(number_of).transpose()?;
    let (access, mut waited) = ((config.socket_mode, group), false);
    let mut handed_in = handed_in.into_iter();
    let mut files = Vec::new();
    let sockets = config.guests.iter().filter_map(|source| match source {
        Source::Fd(..) => handed_in.next().map(Ok),
        Source::Path(path) => {
            let created = Listener::create(path, access, &mut waited).map(|(listener, file)| {
                files.push(file);
                Socket::Listening(listener)
            });
            Some(created.map_err(|error| not_made(path, &error)))
        }
    });
    let sockets = sockets.collect();
    let _ = emergency_cleanup::SOCKETS.set(files);
    sockets
}

fn not_made(socket: &Path, error: &io::Error) -> Fatal {
    let is_taken = error.kind() == io::ErrorKind::AddrInUse;
    let code = if is_taken {
        ExitCode::Unavailable
    } else {
        ExitCode::CantCreate
    };
    Fatal::os(
        code,
        format_args!("socket '{}'", socket.to_string_lossy()),
        error,
    )
}

/// Puts everything together.
///
/// # Errors
/// The host refused a system call.
pub fn assemble(
    config: &Config,
    hardware: Hardware,
    sockets: Vec<Socket>,
    mounts: Mounts,
    signals: File,
) -> Result<EventLoop, Fatal> {
    if config.guest_memory == GuestMemory::Any {
        log::warning(format_args!(
            "warning: --guest-memory=any: every front-end can stall the daemon, and so all guests"
        ));
    }
    let poller = Poller::new().map_err(failed)?;
    for finding in config.devices.iter().filter_map(device_node::finding) {
        log::info(format_args!("{finding}"));
    }
    let deferred = DeferredClose::new(config.guests.len());
    let mut sessions = Vec::with_capacity(config.guests.len());
    let guests = GuestNumber::all().zip(sockets);
    for ((number, socket), policy) in guests.zip(&config.hold_policies) {
        announce(config, number, &socket);
        let grant = grant(config, &hardware, number, *policy);
        sessions.push(Session::new(number, socket, grant, &poller, &deferred).map_err(refused)?);
    }
    let shared = Shared::new(hardware.buses, poller, mounts, deferred);
    let sd_notify = SdNotify::connect(config.notify_socket.as_deref(), config.alive_every);
    EventLoop::new(sessions, shared, signals, sd_notify)
}

fn refused(error: SessionError) -> Fatal {
    Fatal::new(ExitCode::OsError, format!("cannot start: {error}"))
}

/// The grant of guest `number`: the devices that are for it, numbered in order.
fn grant(config: &Config, hardware: &Hardware, number: GuestNumber, policy: HoldPolicy) -> Grant {
    let chip_selects: Vec<(usize, usize)> = config
        .devices
        .iter()
        .zip(&hardware.places)
        .filter(|(device, _)| number.is_in(device.guests))
        .map(|(_, place)| *place)
        .collect();
    let devices = chip_selects
        .iter()
        .filter_map(|&(bus, device)| hardware.buses.get(bus)?.devices.get(device));
    Grant {
        config: wire::ConfigSpace::new(devices.map(|device| &device.limits)),
        guest_memory: config.guest_memory,
        max_memory_len: memory::max_len(config.guests.len()),
        chip_selects,
        policy,
        hold_timeout: config.hold_timeout(policy),
        poll: config.poll,
    }
}

fn announce(config: &Config, number: GuestNumber, socket: &Socket) {
    let devices = config.devices.iter().filter(|d| number.is_in(d.guests));
    let names = (0..)
        .zip(devices)
        .map(|(chip_select, d)| format!(" {chip_select}={}", d.name));
    let names: String = names.collect();
    let source = match socket {
        Socket::Listening(listener) => format!("listening on {}", listener.name),
        Socket::Connected(_, fd) => format!("connected by fd {fd}"),
    };
    log::info(format_args!("guest={number} {source}, chip selects{names}"));
}
