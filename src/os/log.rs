//! Lines on stderr.
//!
//! A line is written whole or not at all, never waits, and is cut at 512 bytes. What a guest or
//! front-end can cause goes through its [`GuestLines`], which limit how many are written and count
//! the others. Lines about guests have fields:
//! `guest=0 cs=1 request refused: cause="no chip select 9"`.
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

use crate::config::{GuestNumber, LogLevel};
use crate::os::ffi;
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

impl Line {
    fn new(level: LogLevel, is_journal: bool, text: fmt::Arguments<'_>) -> Self {
        let mut line = Self {
            bytes: [0; LINE_LEN],
            len: 0,
        };
        if is_journal {
            let _ = write!(line, "<{}>", level.priority());
        }
        let _ = write!(line, "{PREFIX}{text}");
        if let Some(slot) = line.bytes.get_mut(line.len) {
            *slot = b'\n';
            line.len = line.len.saturating_add(1);
        }
        line
    }
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

/// Writes only lines of `level` and above from now on, or none.
pub fn set_level(level: Option<LogLevel>) {
    LEVEL.store(level.map_or(0, LogLevel::priority), Ordering::Relaxed);
}

fn is_wanted(level: LogLevel) -> bool {
    level.priority() <= LEVEL.load(Ordering::Relaxed)
}

/// Writes one line, if lines of `level` are wanted.
#[cold]
pub fn line(level: LogLevel, text: fmt::Arguments<'_>) {
    if is_wanted(level) {
        write(level, text);
    }
}

/// Writes one line that was asked for, whatever the level; `false` if it was not written.
pub fn write(level: LogLevel, text: fmt::Arguments<'_>) -> bool {
    let line = Line::new(level, IS_JOURNAL.load(Ordering::Relaxed), text);
    if !ffi::is_ready(libc::STDERR_FILENO, libc::POLLOUT) {
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

/// [`write`], or what stands for it in a unit test.
type Write = fn(LogLevel, fmt::Arguments<'_>) -> bool;

/// Lines about one guest: about its requests and about its connections, each with a limit of their
/// own, so that a guest cannot hide by its requests why it was cut off.
#[derive(Debug)]
pub struct GuestLines {
    guest: GuestNumber,
    requests: Limiter,
    connections: Limiter,
    write: Write,
}

impl GuestLines {
    /// Those about `guest`.
    pub fn new(guest: GuestNumber) -> Self {
        Self {
            guest,
            requests: Limiter::default(),
            connections: Limiter::default(),
            write,
        }
    }

    /// Writes a line about one of its requests or its ring, or counts it.
    pub fn request(&mut self, level: LogLevel, what: fmt::Arguments<'_>) {
        self.requests.line(self.write, level, self.guest, what);
    }

    /// Writes a line about its connection, or counts it.
    pub fn connection(&mut self, level: LogLevel, what: fmt::Arguments<'_>) {
        self.connections.line(self.write, level, self.guest, what);
    }

    /// Writes how many lines about the requests of a connection that ends were dropped. That counts
    /// as a line about connections: a front-end may come and go as often as it likes.
    pub fn tell_dropped_requests(&mut self) {
        if self.requests.unsaid > 0 && self.connections.admit(Instant::now()) {
            self.requests.tell_dropped(self.write, self.guest);
        }
    }

    /// Writes how many lines were dropped since that was last written.
    pub fn tell_dropped(&mut self) {
        self.requests.tell_dropped(self.write, self.guest);
        self.connections.tell_dropped(self.write, self.guest);
    }

    /// How many lines were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.requests.dropped.wrapping_add(self.connections.dropped)
    }
}

/// Lets through ten lines in ten seconds, and counts those that it drops.
#[derive(Debug, Default)]
struct Limiter {
    window: Option<Instant>,
    written: u32,
    dropped: u64,
    /// Those of them that no line has told of.
    unsaid: u64,
}

impl Limiter {
    const LINES: u32 = 10;
    const WINDOW: Duration = Duration::from_secs(10);

    fn line(
        &mut self,
        write: Write,
        level: LogLevel,
        guest: GuestNumber,
        what: fmt::Arguments<'_>,
    ) {
        if !is_wanted(level) {
            return;
        }
        if self.admit(Instant::now()) {
            self.tell_dropped(write, guest);
            write(level, format_args!("guest={guest} {what}"));
        } else {
            self.dropped = self.dropped.wrapping_add(1);
            self.unsaid = self.unsaid.wrapping_add(1);
        }
    }

    /// Whether a line may be written at `now`, which counts as one.
    fn admit(&mut self, now: Instant) -> bool {
        let fresh = self
            .window
            .is_none_or(|start| now.saturating_duration_since(start) >= Self::WINDOW);
        if fresh {
            self.window = Some(now);
            self.written = 0;
        }
        let admitted = self.written < Self::LINES;
        self.written = self.written.saturating_add(u32::from(admitted));
        admitted
    }

    /// Only lines that are wanted are counted, so this one is wanted, too.
    fn tell_dropped(&mut self, write: Write, guest: GuestNumber) {
        let count = self.unsaid;
        let what = format_args!("guest={guest} lines were dropped: count={count}");
        if count > 0 && write(LogLevel::Warning, what) {
            self.unsaid = 0;
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

    fn composed(is_journal: bool, text: &str) -> Vec<u8> {
        let line = Line::new(LogLevel::Warning, is_journal, format_args!("{text}"));
        line.bytes[..line.len].to_vec()
    }

    #[test]
    fn line_longer_than_512_bytes_is_cut_and_ends_with_its_newline() {
        for is_journal in [false, true] {
            let prefix = if is_journal { "<4>" } else { "" };
            let room = LINE_LEN - prefix.len() - PREFIX.len() - 1;
            for len in [room - 1, room, room + 1, 3 * LINE_LEN] {
                let text = "x".repeat(len);
                let kept = "x".repeat(len.min(room));
                let expected = format!("{prefix}{PREFIX}{kept}\n");
                assert_eq!(composed(is_journal, &text), expected.as_bytes(), "{len}");
            }
        }
    }

    #[test]
    fn line_with_control_characters_stays_one_line() {
        let expected = format!("{PREFIX}a?b?c\n");
        assert_eq!(composed(false, "a\nb\x1bc"), expected.as_bytes());
    }

    #[test]
    fn limiter_admits_ten_lines_in_each_window_of_ten_seconds() {
        let mut limiter = Limiter::default();
        let start = Instant::now();
        let admitted = |limiter: &mut Limiter, at: Duration| {
            (0..20).filter(|_| limiter.admit(start + at)).count()
        };
        assert_eq!(admitted(&mut limiter, Duration::ZERO), 10);
        let end = Limiter::WINDOW - Duration::from_nanos(1);
        assert_eq!(admitted(&mut limiter, end), 0);
        assert_eq!(admitted(&mut limiter, Limiter::WINDOW), 10);
        assert_eq!(admitted(&mut limiter, Limiter::WINDOW + end), 0);
    }

    /// Stderr with room for every line; not the real one, whose writes arm a timer.
    fn taken(_level: LogLevel, _text: fmt::Arguments<'_>) -> bool {
        true
    }

    #[test]
    fn limiter_tells_of_each_dropped_line_once_and_counts_all() {
        let mut limiter = Limiter::default();
        let lines = |limiter: &mut Limiter, count| {
            (0..count).for_each(|n| {
                limiter.line(
                    taken,
                    LogLevel::Error,
                    GuestNumber::default(),
                    format_args!("line {n}"),
                )
            });
        };
        lines(&mut limiter, 15);
        assert_eq!((limiter.dropped, limiter.unsaid), (5, 5));
        // Without room it is told of later.
        limiter.tell_dropped(|_, _| false, GuestNumber::default());
        assert_eq!(limiter.unsaid, 5);
        limiter.tell_dropped(taken, GuestNumber::default());
        lines(&mut limiter, 3);
        assert_eq!((limiter.dropped, limiter.unsaid), (8, 3));
        // The next line that is written tells of those alone that were dropped since.
        limiter.window = None;
        lines(&mut limiter, 1);
        assert_eq!((limiter.dropped, limiter.unsaid), (8, 0));
    }

    #[test]
    fn lines_about_requests_leave_room_for_those_about_the_connection() {
        let mut lines = GuestLines {
            write: taken,
            ..GuestLines::new(GuestNumber::default())
        };
        (0..30).for_each(|_| lines.request(LogLevel::Error, format_args!("request")));
        assert_eq!(lines.dropped(), 20);
        lines.tell_dropped_requests();
        lines.connection(LogLevel::Error, format_args!("ended"));
        assert_eq!((lines.dropped(), lines.connections.written), (20, 2));
        // A front-end that comes and goes: its counts are no way around the limit.
        for _ in 0..30 {
            lines.request(LogLevel::Error, format_args!("request"));
            lines.tell_dropped_requests();
        }
        assert_eq!(lines.connections.written, Limiter::LINES);
        assert_eq!(lines.requests.unsaid, 22);
    }
}
