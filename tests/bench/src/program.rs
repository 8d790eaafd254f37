// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The programs that are compared, and how a guest gets to them.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::guest::{AVAIL, DESC, Failure, Guest, REGION_LEN, USED, Work};
use crate::process::Process;
use crate::sys;
use crate::vhost_user::Connection;

/// The device, of a bus that no host has.
pub const DEVICE: &str = "/dev/spidev100.0";
/// How long a daemon may take to listen.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a connection whose first kick got lost is made anew.
const ATTEMPTS: u32 = 8;

/// What is needed to start any of them.
#[derive(Debug, Clone)]
pub struct Bench {
    /// Where everything was built and results go.
    pub directory: PathBuf,
}

impl Bench {
    pub fn fake_spidev(&self) -> PathBuf {
        self.directory.join("fake_spidev.so")
    }

    pub fn allocation_counter(&self) -> PathBuf {
        self.directory.join("count_allocations.so")
    }
}

/// One of the programs.
#[derive(Debug, Clone)]
pub struct Contender {
    pub name: String,
    pub path: PathBuf,
    pub arguments: Vec<String>,
    /// It is not a daemon, but the least that could be done.
    pub is_floor: bool,
}

/// How a daemon is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Setting {
    pub sockets: usize,
    pub bufsiz: usize,
}

/// A daemon that runs. Dropped, it is killed, and its sockets are removed.
pub struct Daemon {
    child: Child,
    socket: PathBuf,
    sockets: usize,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for number in 0..self.sockets {
            let _ = std::fs::remove_file(self.socket(number));
        }
    }
}

/// A guest that was served at least once, and who serves it.
pub struct Served {
    pub guest: Guest,
    pub process: Process,
    /// Connections whose first kick was lost before this one.
    pub lost_kicks: u32,
    _connection: Option<Connection>,
    _floor: Option<Daemon>,
}

impl Daemon {
    /// Starts `contender` without waiting for it. `more` is preloaded into it, too.
    pub fn spawn(
        bench: &Bench,
        contender: &Contender,
        setting: Setting,
        more: Option<(&Path, &Path)>,
    ) -> io::Result<Self> {
        let mut preload = bench.fake_spidev().into_os_string();
        let (mut command, socket) = Self::command(bench, contender, setting, &[DEVICE]);
        if let Some((library, count)) = more {
            preload.push(":");
            preload.push(library);
            command.env("ALLOCATIONS", count);
        }
        command.env("LD_PRELOAD", preload);
        Self::run(&mut command, socket, setting.sockets)
    }

    /// The command that starts `contender` on faked `devices`, and the path of its sockets without
    /// their number.
    pub fn command(
        bench: &Bench,
        contender: &Contender,
        setting: Setting,
        devices: &[&str],
    ) -> (Command, PathBuf) {
        let name = contender.name.replace(|c: char| !c.is_alphanumeric(), "-");
        let socket = format!("{name}-{}-{}.sock", setting.sockets, setting.bufsiz);
        let socket = bench.directory.join(socket);
        let mut command = Command::new(&contender.path);
        command
            .arg("--socket-path")
            .arg(&socket)
            .args(["--socket-count", &setting.sockets.to_string()])
            .args(devices.iter().flat_map(|device| ["--device", device]))
            .args(&contender.arguments)
            .env("LD_PRELOAD", bench.fake_spidev())
            .env("FAKE_BUFSIZ", setting.bufsiz.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        (command, socket)
    }

    /// Starts a command of [`Daemon::command`] without waiting for it.
    pub fn run(command: &mut Command, socket: PathBuf, sockets: usize) -> io::Result<Self> {
        let child = command.spawn()?;
        Ok(Self {
            child,
            socket,
            sockets,
        })
    }

    pub fn process(&self) -> Process {
        Process(self.child.id())
    }

    /// Where the n-th guest is listened for.
    pub fn socket(&self, number: usize) -> PathBuf {
        numbered(&self.socket, number)
    }

    /// Connects to a socket as soon as it is listened on.
    pub fn connect(&mut self, number: usize) -> io::Result<UnixStream> {
        let path = self.socket(number);
        let end = Instant::now() + PATIENCE;
        loop {
            match UnixStream::connect(&path) {
                Ok(stream) => return Ok(stream),
                Err(error) if Instant::now() > end => return Err(error),
                Err(_) => std::hint::spin_loop(),
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("the daemon ended: {status}")));
            }
        }
    }

    /// Connects a guest that does `work` to a socket, until its first requests are answered.
    pub fn serve(&mut self, number: usize, work: Work) -> Result<Served, Failure> {
        for lost_kicks in 0..ATTEMPTS {
            let mut guest = Guest::new(work)?;
            let stream = self.connect(number)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let connection = Connection::start(stream, &guest)?;
            match guest.first_batch() {
                Err(Failure::Silent) => continue,
                served => served?,
            }
            return Ok(Served {
                guest,
                process: self.process(),
                lost_kicks,
                _connection: Some(connection),
                _floor: None,
            });
        }
        Err(Failure::Silent)
    }
}

/// Starts the floor, which serves one guest that it inherits.
pub fn floor(
    bench: &Bench,
    contender: &Contender,
    bufsiz: usize,
    work: Work,
) -> Result<Served, Failure> {
    let mut guest = Guest::new(work)?;
    let mut command = floor_command(bench, contender, bufsiz, &guest)?;
    let daemon = Daemon {
        child: command.spawn()?,
        socket: PathBuf::new(),
        sockets: 0,
    };
    guest.first_batch()?;
    Ok(Served {
        guest,
        process: daemon.process(),
        lost_kicks: 0,
        _connection: None,
        _floor: Some(daemon),
    })
}

fn floor_command(
    bench: &Bench,
    contender: &Contender,
    bufsiz: usize,
    guest: &Guest,
) -> Result<Command, Failure> {
    let [region] = &guest.regions[..] else {
        return Err(Failure::Wrong("the floor knows one region"));
    };
    let files = [&region.file, &guest.kick, &guest.call];
    let fds = files.map(AsRawFd::as_raw_fd);
    let numbers = [
        REGION_LEN,
        guest.work.ring_size.into(),
        DESC,
        AVAIL,
        USED,
        guest.work.event_idx.into(),
        bufsiz,
    ];
    let mut command = Command::new(&contender.path);
    command
        .args(numbers.map(|number| number.to_string()))
        .env("LD_PRELOAD", bench.fake_spidev())
        .env("FAKE_BUFSIZ", bufsiz.to_string());
    // SAFETY: `inherit` makes system calls only.
    unsafe { command.pre_exec(move || sys::inherit(&fds)) };
    Ok(command)
}

fn numbered(socket: &Path, number: usize) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(number.to_string());
    path.into()
}
