// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Command lines of the daemon: those that run until they are stopped, and those that end by themselves.

use super::daemon::Daemon;
use super::host::{Host, PATIENCE};
use super::{notify, sys};
use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

/// The program under test: `DAEMON` names another build of it.
pub fn binary() -> PathBuf {
    std::env::var_os("DAEMON").map_or_else(
        || env!("CARGO_BIN_EXE_vhost-device-spi").into(),
        PathBuf::from,
    )
}

/// A command line that ends by itself, and what came of it.
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// Asserts that it failed with one line on stderr that holds all of `words`; the exit code.
    #[track_caller]
    pub fn refused(&self, words: &[&str]) -> i32 {
        let code = self.status.code().expect("an exit code, not a signal");
        assert!(
            (64..=78).contains(&code),
            "exit code {code} is not of sysexits.h; stderr: {}",
            self.stderr
        );
        let text = self.stderr.trim_end_matches('\n');
        assert!(
            !text.is_empty() && !text.contains('\n'),
            "not exactly one line on stderr: {text:?}"
        );
        for word in words {
            assert!(
                text.to_lowercase().contains(&word.to_lowercase()),
                "{word:?} is not in {text:?}"
            );
        }
        code
    }
}

/// Runs the daemon with exactly these arguments until it ends.
#[track_caller]
pub fn run<A: AsRef<std::ffi::OsStr>>(host: &Host, args: &[A]) -> Finished {
    run_after(host, args, || Ok(()))
}

/// The same, with `action` run in the child before the program; only system calls may be made there.
#[track_caller]
pub fn run_after<A: AsRef<std::ffi::OsStr>>(
    host: &Host,
    args: &[A],
    action: impl FnMut() -> std::io::Result<()> + Send + Sync + 'static,
) -> Finished {
    let mut command = Command::new(binary());
    // SAFETY: the callers promise to make system calls only.
    unsafe { command.pre_exec(action) };
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = notify::spawn(command, host).expect("start the daemon");
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let ended = sys::eventually(PATIENCE, || child.try_wait().unwrap().is_some());
    if !ended {
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    let (mut stdout, mut stderr) = (String::new(), String::new());
    out.read_to_string(&mut stdout).unwrap();
    err.read_to_string(&mut stderr).unwrap();
    assert!(
        ended,
        "the daemon runs on where it should have ended; stderr: {stderr}"
    );
    Finished {
        status,
        stdout,
        stderr,
    }
}

/// What is behind the daemon's stderr.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stderr {
    /// The lines are kept for the test.
    Captured,
    /// A pipe that is full and never read.
    FullPipe,
    /// A pipe whose reader is gone.
    BrokenPipe,
    /// No descriptor 2 at all.
    Closed,
}

/// How to start a daemon.
pub struct Setup<'a> {
    host: &'a Host,
    program: PathBuf,
    args: Vec<String>,
    guests: usize,
    stderr: Stderr,
    closed_stdin: bool,
    env: Vec<(&'static str, OsString)>,
    spelling: Option<fn(&str, usize) -> Vec<String>>,
    shell: Option<String>,
    dir: Option<Arc<tempfile::TempDir>>,
    before: Vec<Box<dyn FnMut() -> std::io::Result<()> + Send + Sync>>,
}

impl<'a> Setup<'a> {
    /// One guest, no device yet.
    pub fn new(host: &'a Host) -> Self {
        let (args, before, stderr) = (Vec::new(), Vec::new(), Stderr::Captured);
        Self {
            host,
            program: binary(),
            args,
            guests: 1,
            stderr,
            closed_stdin: false,
            env: Vec::new(),
            spelling: None,
            shell: None,
            dir: None,
            before,
        }
    }

    /// The program and its directory are open to every user, wherever the program is built.
    pub fn open_to_all(self) -> Self {
        let dir = tempfile::tempdir().expect("directory of the sockets");
        let open = Permissions::from_mode(0o777);
        fs::set_permissions(dir.path(), open).expect("permissions of the directory");
        let program = dir.path().join("daemon");
        // Not by this process: a child of another test would have the copy open for writing, and then it cannot be run.
        let mut cp = Command::new("cp");
        let copied =
            notify::spawn_alone(cp.arg(&self.program).arg(&program)).and_then(|mut cp| cp.wait());
        assert!(
            copied.is_ok_and(|status| status.success()),
            "copy of the program"
        );
        self.program(program).in_dir(Arc::new(dir))
    }

    /// Another build of the daemon.
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = program.into();
        self
    }

    /// Adds `--device=DEVICE`.
    pub fn device(self, device: &str) -> Self {
        self.arg(format!("--device={device}"))
    }

    /// Adds any argument.
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// A variable of the daemon's environment.
    pub fn env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    /// Sets `--socket-count`.
    pub fn guests(mut self, guests: usize) -> Self {
        self.guests = guests;
        self
    }

    pub fn stderr(mut self, stderr: Stderr) -> Self {
        self.stderr = stderr;
        self
    }

    pub fn closed_stdin(mut self) -> Self {
        self.closed_stdin = true;
        self
    }

    /// Spells the options of the sockets otherwise than `--socket-path=BASE --socket-count=N`. The working directory is
    /// the one of the sockets.
    pub fn spelled(mut self, spelling: fn(&str, usize) -> Vec<String>) -> Self {
        self.spelling = Some(spelling);
        self
    }

    /// Gives no option of sockets at all.
    pub fn no_sockets(self) -> Self {
        self.spelled(|_, _| Vec::new())
    }

    /// Leaves `fd` open in the daemon, as `number`.
    pub fn hand_in(self, fd: &impl AsRawFd, number: RawFd) -> Self {
        // Far from `number`: dup2() of a descriptor onto itself would leave it close-on-exec.
        let fd = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 800) };
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        self.before_exec(move || {
            sys::check(unsafe { libc::dup2(fd.as_raw_fd(), number) }.into()).map(drop)
        })
    }

    /// Has a shell run this in front of the daemon, in its process: `$$` is its number.
    pub fn shell(mut self, script: &str) -> Self {
        self.shell = Some(format!("{script}; exec \"$0\" \"$@\""));
        self
    }

    /// Limits the fds of the daemon, softly and hard: in a shell, since between fork and exec all those are open that the
    /// tests have.
    pub fn max_fds(self, soft: usize, hard: usize) -> Self {
        self.shell(&format!("ulimit -Sn {soft}; ulimit -Hn {hard}"))
    }

    /// Hands `sockets` in as a service manager does: from fd 3 on.
    pub fn activate(mut self, sockets: &[&dyn AsRawFd]) -> Self {
        // By way of high numbers: the low ones may be the test's own between fork and exec.
        const HIGH: RawFd = 600;
        let count = sockets.len();
        for (number, socket) in (HIGH..).zip(sockets) {
            self = self.hand_in(&socket.as_raw_fd(), number);
        }
        let moved = (0..count).map(|n| format!("{}<&{} ", n + 3, HIGH as usize + n));
        let closed = (0..count).map(|n| format!("{}<&- ", HIGH as usize + n));
        let script = format!(
            "exec {}{}; export LISTEN_PID=$$ LISTEN_FDS={count} LISTEN_FDNAMES=x",
            moved.collect::<String>(),
            closed.collect::<String>()
        );
        self.no_sockets().shell(&script)
    }

    /// Puts the sockets where another daemon of this test has (or had) its own.
    pub fn in_dir_of(mut self, other: &Daemon) -> Self {
        self.dir = Some(other.dir.clone());
        self
    }

    /// Puts the sockets there.
    pub fn in_dir(mut self, dir: Arc<tempfile::TempDir>) -> Self {
        self.dir = Some(dir);
        self
    }

    /// Runs `action` in the child before the program; only system calls may be made there.
    pub fn before_exec(
        mut self,
        action: impl FnMut() -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.before.push(Box::new(action));
        self
    }

    /// Starts it and waits until all its sockets listen.
    #[track_caller]
    pub fn start(self) -> Daemon {
        let daemon = self.launch();
        daemon.wait_listening();
        daemon
    }

    /// Starts it and waits for nothing.
    #[track_caller]
    pub fn launch(mut self) -> Daemon {
        let dir = self.dir.take().unwrap_or_else(|| {
            Arc::new(
                tempfile::Builder::new()
                    .prefix("vd")
                    .tempdir()
                    .expect("directory of the sockets"),
            )
        });
        let base = dir.path().join("s");
        let mut command = match &self.shell {
            None => Command::new(&self.program),
            Some(script) => {
                let mut command = Command::new("bash");
                command.args(["-c", script]).arg(&self.program);
                command
            }
        };
        let usual = |base: &str, n: usize| {
            vec![
                format!("--socket-path={base}"),
                format!("--socket-count={n}"),
            ]
        };
        let path = base.to_str().expect("a path of ASCII");
        let sockets = self.spelling.map_or_else(
            || usual(path, self.guests),
            |spell| spell(path, self.guests),
        );
        command
            .args(sockets)
            .args(&self.args)
            .envs(std::mem::take(&mut self.env))
            .current_dir(dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let (ours, theirs) = pipe();
        match self.stderr {
            Stderr::FullPipe => fill(&theirs),
            Stderr::Captured | Stderr::BrokenPipe | Stderr::Closed => {}
        }
        command.stderr(theirs);
        let ours = (self.stderr != Stderr::BrokenPipe).then_some(ours);
        let (no_stdin, no_stderr) = (self.closed_stdin, self.stderr == Stderr::Closed);
        for action in self.before {
            // SAFETY: the callers promise to make system calls only.
            unsafe { command.pre_exec(action) };
        }
        if no_stdin || no_stderr {
            // SAFETY: close is a system call.
            unsafe {
                command.pre_exec(move || {
                    if no_stdin {
                        libc::close(0);
                    }
                    if no_stderr {
                        libc::close(2);
                    }
                    Ok(())
                });
            }
        }
        let child = notify::spawn(command, self.host).expect("start the daemon");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let mut kept_pipe = None;
        if self.stderr == Stderr::Captured {
            let (lines, ours) = (lines.clone(), ours.expect("our end"));
            std::thread::spawn(move || {
                for line in BufReader::new(ours).lines().map_while(Result::ok) {
                    lines.lock().unwrap().push(line);
                }
            });
        } else {
            kept_pipe = ours;
        }
        Daemon {
            child,
            base,
            lines,
            guests: self.guests,
            dir,
            _pipe: kept_pipe,
        }
    }
}

fn pipe() -> (File, OwnedFd) {
    let mut fds = [0; 2];
    sys::check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) }.into()).expect("pipe");
    unsafe { (File::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) }
}

fn fill(pipe: &OwnedFd) {
    let fd = pipe.as_raw_fd();
    let mut file = File::from(pipe.try_clone().expect("dup"));
    // The blocking mode belongs to the description, which the daemon shares: put back, so that a write would block.
    unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK) };
    while file.write(&[0; 4096]).is_ok() {}
    while file.write(&[0]).is_ok() {}
    unsafe { libc::fcntl(fd, libc::F_SETFL, 0) };
}
