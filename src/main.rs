//! The program: its phases, in order.

use std::fs::File;
use std::io::Write;
use std::process::ExitCode;

use vhost_device_spi::cli::{Command, HELP};
use vhost_device_spi::config::{Config, LogLevel};
use vhost_device_spi::fate::Fatal;
use vhost_device_spi::seccomp::{self, Pins};
use vhost_device_spi::{daemon, log, sandbox, way_out};

fn main() -> ExitCode {
    match daemon::prepare().and_then(obey) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fatal) => {
            log::line(LogLevel::Error, format_args!("{}", fatal.message));
            ExitCode::from(fatal.code.number())
        }
    }
}

fn obey(signals: File) -> Result<(), Fatal> {
    match Command::parse(std::env::args_os().skip(1))? {
        Command::Run(config) => serve(&config, signals),
        Command::Help => print(HELP),
        Command::Version => print(concat!(
            "vhost-device-spi ",
            env!("CARGO_PKG_VERSION"),
            "\n"
        )),
        Command::Syscalls => print(&(seccomp::names().join(" ") + "\n")),
    }
}

fn serve(config: &Config, signals: File) -> Result<(), Fatal> {
    log::set_level(config.log_level);
    let hardware = daemon::open(config)?;
    let listeners = daemon::bind(config)?;
    let served = daemon::assemble(config, hardware, listeners, signals).and_then(|event_loop| {
        let (devices, directories) = way_out::fds();
        let pins = Pins {
            devices,
            directories,
        };
        sandbox::restrict(config.seccomp, config.sockets.len(), &pins)?;
        event_loop.run()
    });
    way_out::remove_sockets();
    served
}

fn print(text: &str) -> Result<(), Fatal> {
    // Whoever does not read the text does not miss it.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}
