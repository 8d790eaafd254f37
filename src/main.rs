// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The program: its phases, in order.

#![deny(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::ExitCode;

use vhost_device_spi::config::{Config, Source};
use vhost_device_spi::confine::{emergency_cleanup, stages};
use vhost_device_spi::error::{self, Fatal};
use vhost_device_spi::os::handed_in::{self, Socket};
use vhost_device_spi::os::mounts::Mounts;
use vhost_device_spi::os::{log, stdout};
use vhost_device_spi::start::cli::Command;
use vhost_device_spi::start::{assemble, locked_memory};

#[cfg(panic = "abort")]
#[allow(unsafe_code, reason = "UNSAFETY: names that std calls")]
mod no_unwinder;

fn main() -> ExitCode {
    let ended = run();
    emergency_cleanup::remove_sockets();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(fatal) => {
            log::error(format_args!("{}", fatal.message));
            ExitCode::from(fatal.code.number())
        }
    }
}

fn run() -> Result<(), Fatal> {
    // The options and the sockets handed in say which fds stay. Their errors are reported after
    // `prepare`, which finds out what a line on stderr has to begin with.
    let command = Command::parse(std::env::args_os().skip(1), &|name| std::env::var_os(name));
    let mut guests: &[Source] = &[];
    if let Ok(Command::Run(config)) = &command {
        guests = &config.guests;
    }
    let handed_in = handed_in::adopt(guests);
    let adopted = handed_in.iter().flatten().map(Socket::as_raw_fd);
    stages::close_inherited(adopted.max().unwrap_or(libc::STDERR_FILENO));
    let signals = assemble::prepare()?;
    match command? {
        Command::Run(config) => serve(config, handed_in?, signals),
        Command::Print(text) => stdout::print(&text)
            .map_err(|error| Fatal::os(error::ExitCode::IoError, "stdout", &error)),
    }
}

fn serve(mut config: Config, handed_in: Vec<Socket>, signals: File) -> Result<(), Fatal> {
    log::set_level(config.log_level);
    stages::allow_fds(config.guests.len(), config.devices.len())?;
    let hardware = assemble::open(&mut config)?;
    if config.lock_memory {
        locked_memory::lock(0)?;
    }
    let sockets = assemble::bind(&config, handed_in)?;
    let mounts = Mounts::read();
    let event_loop = assemble::assemble(&config, hardware, sockets, mounts, signals)?;
    if config.lock_memory {
        locked_memory::lock(config.guests.len())?;
    }
    stages::restrict(config.seccomp, &emergency_cleanup::pins())?;
    event_loop.run()
}
