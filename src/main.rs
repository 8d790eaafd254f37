//! The program: its phases, in order.

use std::io::Write;
use std::process::ExitCode;

use vhost_device_spi::cli::{Command, HELP};
use vhost_device_spi::config::Config;
use vhost_device_spi::fate::Fatal;
use vhost_device_spi::{daemon, log, sandbox, way_out};

fn main() -> ExitCode {
    let result = match Command::parse(std::env::args_os().skip(1)) {
        Ok(Command::Run(config)) => serve(&config),
        Ok(Command::Help) => print(HELP),
        Ok(Command::Version) => print(concat!(
            "vhost-device-spi ",
            env!("CARGO_PKG_VERSION"),
            "\n"
        )),
        Err(fatal) => Err(fatal),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(fatal) => {
            log::line(format_args!("{}", fatal.message));
            ExitCode::from(fatal.code.number())
        }
    }
}

fn serve(config: &Config) -> Result<(), Fatal> {
    let hardware = daemon::open(config)?;
    let (listeners, files) = daemon::bind(config)?;
    let event_loop = daemon::assemble(config, hardware, listeners, files)?;
    let served = sandbox::restrict(config.seccomp).and_then(|()| event_loop.run());
    way_out::remove_sockets();
    served
}

fn print(text: &str) -> Result<(), Fatal> {
    // Whoever does not read the text does not miss it.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}
