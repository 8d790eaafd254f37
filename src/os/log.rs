// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Lines on stderr.
//!
//! A line is cut at 512 bytes and written by one call if stderr has room, else dropped. If another process
//! takes the room first, a tick of `write_timeout` ends the wait. What a guest or front-end can cause goes
//! through its [`GuestLines`], which limit how many are written and count the others. Lines about guests
//! have fields:
//! `guest=0 cs=1 request refused: cause="bits_per_word 0 is not supported"`.
//!
//! Where stderr is the journal, which the environment says as systemd.exec(5) has it
//! (`JOURNAL_STREAM` is its device and inode), each line begins with sd-daemon's `<N>` in place of the
//! program's name, which the journal adds.

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

// Statics, because the panic hook logs.

/// Lines of a higher number are not written.
static LEVEL: AtomicU8 = AtomicU8::new(LogLevel::Info.priority());
static IS_JOURNAL: AtomicBool = AtomicBool::new(false);

/// Puts a line into `buffer`, cut where that ends.
fn compose<'b>(buffer: &'b mut [u8; LINE_LEN], text: fmt::Arguments<'_>) -> &'b [u8] {
    // The last place is the newline's. Writing fails where the line is cut.
    let (mut room, _) = buffer.split_at_mut(LINE_LEN - 1);
    let _ = room.write_fmt(text);
    let len = (LINE_LEN - 1).saturating_sub(room.len());
    // A name from the command line must not make two lines of one.
    let written = buffer.iter_mut().take(len);
    for byte in written.filter(|byte| byte.is_ascii_control()) {
        *byte = b'?';
    }
    if let Some(end) = buffer.get_mut(len) {
        *end = b'\n';
    }
    buffer.get(..=len).unwrap_or_default()
}

/// Finds out whether stderr is the journal; once, before the first line.
pub fn look_at_stderr() {
    let Ok(journal) = std::env::var("JOURNAL_STREAM") else {
        return;
    };
    let stderr = io::stderr().as_fd().try_clone_to_owned();
    let found = stderr.and_then(|fd| File::from(fd).metadata());
    let is_journal = found.is_ok_and(|file| journal == format!("{}:{}", file.dev(), file.ino()));
    IS_JOURNAL.store(is_journal, Ordering::Relaxed);
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

/// [`line()`] of this level.
pub fn error(text: fmt::Arguments<'_>) {
    line(LogLevel::Error, text);
}

/// [`line()`] of this level.
pub fn warning(text: fmt::Arguments<'_>) {
    line(LogLevel::Warning, text);
}

/// [`line()`] of this level.
pub fn info(text: fmt::Arguments<'_>) {
    line(LogLevel::Info, text);
}

/// Writes one line that was asked for, whatever the level; `false` if it was not written.
pub fn write(level: LogLevel, text: fmt::Arguments<'_>) -> bool {
    let mut buffer = [0; LINE_LEN];
    let line = if IS_JOURNAL.load(Ordering::Relaxed) {
        // The journal has the program's name of its own.
        compose(&mut buffer, format_args!("<{}>{text}", level.priority()))
    } else {
        compose(&mut buffer, format_args!("{PREFIX}{text}"))
    };
    if !ffi::is_ready(libc::STDERR_FILENO, libc::POLLOUT) {
        return false;
    }
    // Somebody else may fill it before us: then a tick ends the wait.
    // Once, whatever comes of it: a failure costs the line alone.
    write_timeout::bounded(|| io::stderr().write(line)).is_ok()
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

/// Lines about one guest: about its requests and about its connections. Each kind has its own limit, so that
/// lines about requests cannot use up those that say why a connection ended.
#[derive(Debug)]
pub struct GuestLines {
    /// Those about its requests and its ring.
    pub requests: Limiter,
    /// Those about its connections.
    pub connections: Limiter,
}

impl GuestLines {
    /// Those about `guest`.
    pub fn new(guest: GuestNumber) -> Self {
        Self {
            requests: Limiter::new(guest),
            connections: Limiter::new(guest),
        }
    }

    /// Writes how many lines about the requests of a connection that ends were dropped. That counts
    /// as a line about connections: a front-end may come and go as often as it likes.
    pub fn tell_dropped_requests(&mut self) {
        if self.requests.unsaid > 0 && self.connections.admit(Instant::now()) {
            self.requests.tell_dropped();
        }
    }

    /// Writes how many lines were dropped since that was last written.
    pub fn tell_dropped(&mut self) {
        self.requests.tell_dropped();
        self.connections.tell_dropped();
    }

    /// How many lines were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.requests.dropped.wrapping_add(self.connections.dropped)
    }
}

/// Writes ten lines about a guest in ten seconds, and counts those that it drops.
#[derive(Debug)]
pub struct Limiter {
    guest: GuestNumber,
    /// [`write`], or what stands for it in a unit test.
    write: fn(LogLevel, fmt::Arguments<'_>) -> bool,
    window_end: Option<Instant>,
    written: u32,
    dropped: u64,
    /// Those of them that no line has told of.
    unsaid: u64,
}

impl Limiter {
    const LINES: u32 = 10;
    const WINDOW: Duration = Duration::from_secs(10);

    fn new(guest: GuestNumber) -> Self {
        Self {
            guest,
            write,
            window_end: None,
            written: 0,
            dropped: 0,
            unsaid: 0,
        }
    }

    /// Writes a line, or counts it.
    pub fn line(&mut self, level: LogLevel, what: fmt::Arguments<'_>) {
        if !is_wanted(level) {
            return;
        }
        if self.admit(Instant::now()) {
            self.tell_dropped();
            (self.write)(level, format_args!("guest={} {what}", self.guest));
        } else {
            self.dropped = self.dropped.wrapping_add(1);
            self.unsaid = self.unsaid.wrapping_add(1);
        }
    }

    /// Whether a line may be written at `now`, which counts as one.
    fn admit(&mut self, now: Instant) -> bool {
        if self.window_end.is_none_or(|end| end <= now) {
            self.window_end = now.checked_add(Self::WINDOW);
            self.written = 0;
        }
        let admitted = self.written < Self::LINES;
        self.written = self.written.saturating_add(u32::from(admitted));
        admitted
    }

    /// Tells how many lines were dropped, whatever the level: they were of a level that is wanted.
    fn tell_dropped(&mut self) {
        let (guest, count) = (self.guest, self.unsaid);
        let write = |what| (self.write)(LogLevel::Warning, what);
        if count > 0
            && write(format_args!(
                "guest={guest} lines were dropped: count={count}"
            ))
        {
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

    fn composed(prefix: &str, text: &str) -> Vec<u8> {
        compose(&mut [0; LINE_LEN], format_args!("{prefix}{text}")).to_vec()
    }

    #[test]
    fn line_longer_than_512_bytes_is_cut_and_ends_with_its_newline() {
        for prefix in ["<4>", PREFIX] {
            let room = LINE_LEN - prefix.len() - 1;
            for len in [room - 1, room, room + 1, 3 * LINE_LEN] {
                let text = "x".repeat(len);
                let kept = "x".repeat(len.min(room));
                let expected = format!("{prefix}{kept}\n");
                assert_eq!(composed(prefix, &text), expected.as_bytes(), "{len}");
            }
        }
    }

    #[test]
    fn line_with_control_characters_stays_one_line() {
        let expected = format!("{PREFIX}a?b?c\n");
        assert_eq!(composed(PREFIX, "a\nb\x1bc"), expected.as_bytes());
    }

    #[test]
    fn limiter_admits_ten_lines_in_each_window_of_ten_seconds() {
        let mut limiter = Limiter::new(GuestNumber::default());
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

    /// To stderr with room for every line; not the real one, whose writes arm a timer.
    fn limiter() -> Limiter {
        Limiter {
            write: |_, _| true,
            ..Limiter::new(GuestNumber::default())
        }
    }

    #[test]
    fn limiter_tells_of_each_dropped_line_once_and_counts_all() {
        let mut limiter = limiter();
        let lines = |limiter: &mut Limiter, count| {
            (0..count).for_each(|n| limiter.line(LogLevel::Error, format_args!("line {n}")));
        };
        lines(&mut limiter, 15);
        assert_eq!((limiter.dropped, limiter.unsaid), (5, 5));
        // Without room it is told of later.
        limiter.write = |_, _| false;
        limiter.tell_dropped();
        assert_eq!(limiter.unsaid, 5);
        limiter.write = |_, _| true;
        limiter.tell_dropped();
        lines(&mut limiter, 3);
        assert_eq!((limiter.dropped, limiter.unsaid), (8, 3));
        // The next line that is written tells of those alone that were dropped since.
        limiter.window_end = None;
        lines(&mut limiter, 1);
        assert_eq!((limiter.dropped, limiter.unsaid), (8, 0));
    }

    #[test]
    fn lines_about_requests_leave_room_for_those_about_the_connection() {
        let mut lines = GuestLines {
            requests: limiter(),
            connections: limiter(),
        };
        (0..30).for_each(|_| {
            lines
                .requests
                .line(LogLevel::Error, format_args!("request"))
        });
        assert_eq!(lines.dropped(), 20);
        lines.tell_dropped_requests();
        lines
            .connections
            .line(LogLevel::Error, format_args!("ended"));
        assert_eq!((lines.dropped(), lines.connections.written), (20, 2));
        // A front-end that comes and goes: its counts are no way around the limit.
        for _ in 0..30 {
            lines
                .requests
                .line(LogLevel::Error, format_args!("request"));
            lines.tell_dropped_requests();
        }
        assert_eq!(lines.connections.written, Limiter::LINES);
        assert_eq!(lines.requests.unsaid, 22);
    }
}
