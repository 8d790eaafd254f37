// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One running daemon: watched, stopped, and killed when the test ends early.

use super::host::{Host, PATIENCE};
use super::setup::Setup;
use super::sys;
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A running daemon.
pub struct Daemon {
    pub(super) child: Child,
    pub(super) base: PathBuf,
    pub(super) lines: Arc<Mutex<Vec<String>>>,
    pub(super) guests: usize,
    pub(super) dir: Arc<tempfile::TempDir>,
    pub(super) _pipe: Option<File>,
}

impl Daemon {
    /// One guest with the given devices.
    #[track_caller]
    pub fn start(host: &Host, devices: &[&str]) -> Self {
        devices
            .iter()
            .fold(Setup::new(host), |setup, device| setup.device(device))
            .start()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The socket of guest `n`.
    pub fn socket(&self, n: usize) -> PathBuf {
        format!("{}{n}", self.base.display()).into()
    }

    /// What was given as `--socket-path`.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Waits until every socket listens; looks from outside, since a connection made to find out would be served.
    #[track_caller]
    pub fn wait_listening(&self) {
        let all = || (0..self.guests).all(|n| listens(&self.socket(n)));
        sys::eventually(PATIENCE, || all() || self.exited());
        assert!(
            all(),
            "the sockets do not listen; stderr: {:#?}",
            self.stderr()
        );
    }

    /// The lines of stderr so far.
    pub fn stderr(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Forgets all but the last `count` lines of stderr, for a test that runs long.
    pub fn forget_stderr(&self, count: usize) {
        let mut lines = self.lines.lock().unwrap();
        let surplus = lines.len().saturating_sub(count);
        lines.drain(..surplus);
    }

    /// The lines beside those of the start, and of front-ends that come and go in order; what was written a moment ago
    /// may still be on its way here.
    pub fn said(&self) -> Vec<String> {
        let usual = |line: &String| {
            let words = [
                "listening",
                "front-end connected",
                "another front-end waits",
                "front-end left",
            ];
            words.iter().any(|word| line.contains(word))
        };
        let lines = self.stderr().into_iter();
        lines.filter(|line| !usual(line)).collect()
    }

    /// Waits for a line of stderr that holds all of `words`.
    #[track_caller]
    pub fn wait_line(&self, words: &[&str]) -> String {
        let find = || {
            self.stderr()
                .into_iter()
                .find(|line| words.iter().all(|word| line.contains(word)))
        };
        sys::eventually(PATIENCE, || find().is_some());
        find().unwrap_or_else(|| panic!("no line with {words:?} in {:#?}", self.stderr()))
    }

    pub fn signal(&self, signal: i32) {
        assert_eq!(unsafe { libc::kill(self.pid() as i32, signal) }, 0, "kill");
    }

    /// Whether it has ended, without taking its status away.
    pub fn exited(&self) -> bool {
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        let done = unsafe { libc::waitid(libc::P_PID, self.pid(), &mut info, flags) };
        done == 0 && info.si_signo == libc::SIGCHLD
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self, timeout: Duration) -> ExitStatus {
        let ended = sys::eventually(timeout, || self.child.try_wait().unwrap().is_some());
        assert!(
            ended,
            "the daemon still runs after {timeout:?}; stderr: {:#?}",
            self.stderr()
        );
        self.child.wait().unwrap()
    }

    /// SIGTERM, and asserts that it exits with 0.
    #[track_caller]
    pub fn stop(mut self) {
        self.signal(libc::SIGTERM);
        let status = self.wait(PATIENCE);
        assert_eq!(
            status.code(),
            Some(0),
            "{status}; stderr: {:#?}",
            self.stderr()
        );
    }

    /// SIGKILL: it leaves everything as it is.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn proc(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.pid()))
            .unwrap_or_else(|e| panic!("{file}: {e}"))
    }

    /// Count of open descriptors.
    pub fn fd_count(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .expect("fd directory")
            .count()
    }

    /// Count of threads.
    pub fn thread_count(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.pid()))
            .expect("task directory")
            .count()
    }

    fn kilobytes(&self, file: &str, field: &str) -> u64 {
        let text = self.proc(file);
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .unwrap_or_else(|| panic!("no {field}"));
        line.split_whitespace()
            .find_map(|word| word.parse().ok())
            .expect("a number")
    }

    /// Anonymous resident memory in kB: what the process itself holds, without guests' shared memory.
    pub fn rss_kb(&self) -> u64 {
        self.kilobytes("status", "RssAnon:")
    }

    /// Private memory in kB that was written to: what the process alone costs the machine.
    pub fn private_dirty_kb(&self) -> u64 {
        self.kilobytes("smaps_rollup", "Private_Dirty:")
    }

    /// Count of mappings.
    pub fn mapping_count(&self) -> usize {
        self.proc("maps").lines().count()
    }

    /// Proportional set size in kB.
    pub fn pss_kb(&self) -> u64 {
        self.kilobytes("smaps_rollup", "Pss:")
    }

    /// A field of `/proc/PID/status`.
    pub fn status(&self, field: &str) -> String {
        let text = self.proc("status");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .unwrap_or_else(|| panic!("no {field}"));
        line.trim_start_matches(':').trim().to_owned()
    }

    /// User and system time used so far.
    pub fn cpu_time(&self) -> Duration {
        let text = self.proc("stat");
        let fields: Vec<_> = text
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as u64;
        Duration::from_millis(ticks * 1000 / per_second)
    }

    /// Where `addr` of the daemon lies: inode and offset of the file that is mapped there.
    pub fn file_behind(&self, addr: u64) -> Option<(u64, u64)> {
        self.proc("maps").lines().find_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let (start, end) = fields[0].split_once('-')?;
            let hex = |text| u64::from_str_radix(text, 16).unwrap();
            let (start, end) = (hex(start), hex(end));
            (start..end)
                .contains(&addr)
                .then(|| (fields[4].parse().unwrap(), hex(fields[2]) + addr - start))
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let early = self.child.try_wait();
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            // An end by SIGSYS is its own seccomp filter; the kernel's log then has the number of the call.
            let how = early
                .ok()
                .flatten()
                .map_or("ran to the end of the test".into(), |s| {
                    format!("had ended: {s}")
                });
            eprintln!("the daemon {how}; its stderr: {:#?}", self.stderr());
        }
    }
}

/// Whether a socket of that path is in the listening state.
pub fn listens(path: &Path) -> bool {
    let path = path.to_string_lossy();
    let table = fs::read_to_string("/proc/net/unix").expect("/proc/net/unix");
    table.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        // The fourth column has __SO_ACCEPTCON when it listens; a relative path shows as it was bound.
        fields.get(7).is_some_and(|bound| *bound == path) && fields[3] == "00010000"
    })
}

/// Connects without a word.
pub fn connect(path: &Path) -> UnixStream {
    UnixStream::connect(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
