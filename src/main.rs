//! The program: its phases, in order.

#![deny(unsafe_code)]

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::process::ExitCode;

use vhost_device_spi::cli::{CAPABILITIES, Command, HELP};
use vhost_device_spi::config::{Config, LogLevel, Source};
use vhost_device_spi::environment::Environment;
use vhost_device_spi::fate::{self, Fatal};
use vhost_device_spi::handed_in::Socket;
use vhost_device_spi::seccomp::{self, Pins};
use vhost_device_spi::{daemon, handed_in, log, sandbox, way_out};

#[cfg(panic = "abort")]
#[allow(
    unsafe_code,
    reason = "UNSAFETY: names that the standard library calls, and nothing else in the program has"
)]
mod no_unwinder;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(fatal) => {
            log::line(LogLevel::Error, format_args!("{}", fatal.message));
            ExitCode::from(fatal.code.number())
        }
    }
}

fn run() -> Result<(), Fatal> {
    // These say which fds stay. What is wrong with them is told when the ground is prepared.
    let command = Command::parse(std::env::args_os().skip(1), &Environment::take());
    let mut guests: &[Source] = &[];
    if let Ok(Command::Run(config)) = &command {
        guests = &config.guests;
    }
    let handed_in = handed_in::adopt(guests);
    let fds: Vec<RawFd> = handed_in.iter().flatten().map(Socket::as_raw_fd).collect();
    sandbox::leave_inherited(&fds);
    let signals = daemon::prepare()?;
    match command? {
        Command::Run(config) => serve(&config, handed_in?, signals),
        Command::Help => print(HELP),
        Command::Version => print(concat!(
            "vhost-device-spi ",
            env!("CARGO_PKG_VERSION"),
            "\n"
        )),
        Command::Syscalls => print(&(seccomp::names().join(" ") + "\n")),
        Command::Capabilities => print(CAPABILITIES),
    }
}

fn serve(config: &Config, handed_in: Vec<Socket>, signals: File) -> Result<(), Fatal> {
    log::set_level(config.log_level);
    let hardware = daemon::open(config)?;
    let sockets = daemon::bind(config, handed_in)?;
    let served = daemon::assemble(config, hardware, sockets, signals).and_then(|event_loop| {
        let (devices, directories) = way_out::fds();
        let pins = Pins {
            devices,
            directories,
        };
        sandbox::restrict(config.seccomp, config.guests.len(), &pins)?;
        event_loop.run()
    });
    way_out::remove_sockets();
    served
}

fn print(text: &str) -> Result<(), Fatal> {
    let mut stdout = std::io::stdout();
    let written = stdout.write_all(text.as_bytes());
    written
        .and_then(|()| stdout.flush())
        .map_err(|error| Fatal::os(fate::ExitCode::IoError, "stdout", &error))
}
