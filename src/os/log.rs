//! Lines on stderr.
//!
//! A line is written whole or not at all, never waits, and is cut at 512 bytes. What a guest or
//! front-end can cause goes through a [`Limiter`] of its own, which counts what it drops. Lines
//! about guests have fields: `guest=0 cs=1 request refused: cause="no chip select 9"`.
//!
//! Where stderr is the journal, which the environment says as systemd.exec(5) has it
//! (`JOURNAL_STREAM` is its device and inode), each line begins with sd-daemon's `<N>`. A terminal
//! or a file is spared that.

use std::ffi::OsStr;
use std::fmt::{self, Display, Write as _};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crate::config::LogLevel;
use crate::os::poll;
use crate::os::write_timeout;

const LINE_LEN: usize = 512;
const PREFIX: &str = "vhost-device-spi: ";

/// Lines of a higher number are not written.
static LEVEL: AtomicU8 = AtomicU8::new(LogLevel::Info.priority());
static IS_JOURNAL: AtomicBool = AtomicBool::new(false);

struct Line {
    bytes: [u8; LINE_LEN],
    len: usize,
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // The last place is the newline's.
            let Some(slot) = self
                .bytes
                .get_mut(self.len)
                .filter(|_| self.len < LINE_LEN - 1)
            else {
                break;
            };
            // A name from the command line must not make two lines of one.
            *slot = if byte.is_ascii_control() { b'?' } else { byte };
            self.len = self.len.saturating_add(1);
        }
        Ok(())
    }
}

/// Finds out whether stderr is the journal; once, before the first line.
pub fn look_at_stderr() {
    if let Some(named) = std::env::var_os("JOURNAL_STREAM") {
        IS_JOURNAL.store(is_stderr(&named).unwrap_or(false), Ordering::Relaxed);
    }
}

fn is_stderr(named: &OsStr) -> io::Result<bool> {
    let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let metadata = stderr.metadata()?;
    Ok(*named == *format!("{}:{}", metadata.dev(), metadata.ino()))
}

/// Writes only lines of `level` and above from now on.
pub fn set_level(level: LogLevel) {
    LEVEL.store(level.priority(), Ordering::Relaxed);
}

fn is_wanted(level: LogLevel) -> bool {
    level.priority() <= LEVEL.load(Ordering::Relaxed)
}

/// Writes one line, if lines of `level` are wanted.
pub fn line(level: LogLevel, text: fmt::Arguments<'_>) {
    if is_wanted(level) {
        write(level, text);
    }
}

/// Writes one line that was asked for, whatever the level; `false` if it was not written.
pub fn write(level: LogLevel, text: fmt::Arguments<'_>) -> bool {
    let mut line = Line {
        bytes: [0; LINE_LEN],
        len: 0,
    };
    if IS_JOURNAL.load(Ordering::Relaxed) {
        let _ = write!(line, "<{}>", level.priority());
    }
    let _ = write!(line, "{PREFIX}{text}");
    if let Some(slot) = line.bytes.get_mut(line.len) {
        *slot = b'\n';
        line.len = line.len.saturating_add(1);
    }
    if !poll::shows(libc::STDERR_FILENO, libc::POLLOUT) {
        return false;
    }
    // Somebody else may fill it before us: then the watchdog ends the wait.
    let _armed = write_timeout::arm();
    // Once, whatever comes of it: a failure costs the line alone.
    let written = io::stderr().write(line.bytes.get(..line.len).unwrap_or_default());
    written.is_ok()
}

/// A field's value that is text: in quotes, of which it has none itself.
pub struct Quoted<'a>(pub &'a dyn Display);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Inner<'f, 'g>(&'f mut fmt::Formatter<'g>);
        impl fmt::Write for Inner<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                let quote = |c| if c == '"' { '\'' } else { c };
                text.chars().try_for_each(|c| self.0.write_char(quote(c)))
            }
        }
        f.write_char('"')?;
        write!(Inner(f), "{}", self.0)?;
        f.write_char('"')
    }
}

/// Lets through ten lines in ten seconds.
#[derive(Debug, Default)]
pub struct Limiter {
    window: Option<Instant>,
    written: u32,
    dropped: u64,
}

impl Limiter {
    const LINES: u32 = 10;
    const WINDOW: Duration = Duration::from_secs(10);

    /// Writes a line about what became of `guest`, or of its request to a chip select, and why; or
    /// counts it.
    pub fn line(
        &mut self,
        level: LogLevel,
        guest: usize,
        what: fmt::Arguments<'_>,
        cause: &dyn Display,
    ) {
        if !is_wanted(level) {
            return;
        }
        let now = Instant::now();
        let fresh = self
            .window
            .is_none_or(|start| now.saturating_duration_since(start) >= Self::WINDOW);
        if fresh {
            self.window = Some(now);
            self.written = 0;
            if self.dropped > 0 {
                let dropped = std::mem::take(&mut self.dropped);
                line(
                    level,
                    format_args!("guest={guest} lines were dropped: count={dropped}"),
                );
            }
        }
        if self.written < Self::LINES {
            self.written = self.written.saturating_add(1);
            let cause = Quoted(cause);
            line(level, format_args!("guest={guest} {what}: cause={cause}"));
        } else {
            self.dropped = self.dropped.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_cannot_end_its_field() {
        let forged = "a\" guest=\"1";
        assert_eq!(Quoted(&forged).to_string(), "\"a' guest='1\"");
    }
}
