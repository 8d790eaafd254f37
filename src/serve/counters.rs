// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Counters of requests, for each guest and chip select, and of connections; and the report that
//! prints them.
//!
//! Counting costs a request a few additions: no clock is read for it, and the room is made once, for
//! the chip selects that a guest was given. Two times of each request are counted: how long it waited
//! for others when the guest's own requests before it were done, and how long it was served after that.
//! The counts belong to the socket: they continue when another front-end connects, until the daemon ends.
//!
//! The lines are an interface: fields may be added at their ends, and no field changes its meaning.

use std::fmt;
use std::time::{Duration, Instant};

use crate::config::GuestNumber;
use crate::serve::histogram::Histogram;
use crate::spi::wire::TransResult;

/// How long until a line is tried again for which stderr had no room.
const RETRY: Duration = Duration::from_millis(10);
/// Most tries of a line. After them the report is given up, as nobody seems to read stderr.
const TRIES: u32 = 100;

/// The requests to one chip select: how many, and how long they took.
#[derive(Debug, Clone, Copy, Default)]
struct Counters {
    ok: u64,
    param_err: u64,
    trans_err: u64,
    bytes: u64,
    wire_ns: u64,
    waited: Histogram,
    served: Histogram,
}

impl Counters {
    /// How many requests were answered.
    fn requests(&self) -> u64 {
        let refused = self.param_err.wrapping_add(self.trans_err);
        self.ok.wrapping_add(refused)
    }

    /// How long they took, as fields.
    fn times(&self) -> String {
        let fields = |name, times: &Histogram| {
            let [a, b, c] = times.percentiles_us();
            format!(" {name}_p50_us={a} {name}_p99_us={b} {name}_p999_us={c}")
        };
        let (wait, service) = (
            fields("wait", &self.waited),
            fields("service", &self.served),
        );
        let longest = self.served.longest_us;
        format!("{wait}{service} longest_service_us={longest}")
    }
}

/// The fields that each line about requests has.
impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (requests, bytes, wire_us) = (self.requests(), self.bytes, self.wire_ns / 1000);
        let (ok, param_err, trans_err) = (self.ok, self.param_err, self.trans_err);
        let longest = self.waited.longest_us;
        write!(
            f,
            "requests={requests} bytes={bytes} ok={ok} param_err={param_err} trans_err={trans_err} \
             wire_us={wire_us} longest_wait_us={longest}"
        )
    }
}

/// The requests of one guest.
#[derive(Debug)]
pub struct Tally {
    /// Those to each of its chip selects.
    known: Box<[Counters]>,
    /// Those that name none of them, and never go on the wire.
    unknown: Box<Counters>,
}

impl Tally {
    /// Nothing counted yet, of `chip_selects` chip selects.
    pub fn new(chip_selects: usize) -> Self {
        Self {
            known: vec![Counters::default(); chip_selects].into(),
            unknown: Box::default(),
        }
    }

    /// Counts a request to `chip_select`, of the guest's own or none, that was answered; one without
    /// a result byte counts as `PARAM_ERR`.
    pub fn count(&mut self, chip_select: Option<u8>, result: TransResult) {
        let counters = self.of(chip_select);
        let counter = match result {
            TransResult::TransOk => &mut counters.ok,
            TransResult::ParamErr => &mut counters.param_err,
            TransResult::TransErr => &mut counters.trans_err,
        };
        *counter = counter.wrapping_add(1);
    }

    /// Counts how long a request waited that now goes on the wire.
    pub fn count_wait(&mut self, chip_select: Option<u8>, waited: Duration) {
        self.of(chip_select).waited.count(waited);
    }

    /// Counts how long a request was served that was on the wire; and the bytes in one direction and the
    /// nanoseconds there, which are 0 unless it succeeded.
    pub fn count_service(
        &mut self,
        chip_select: Option<u8>,
        served: Duration,
        (len, wire_ns): (u64, u64),
    ) {
        let counters = self.of(chip_select);
        counters.served.count(served);
        counters.bytes = counters.bytes.wrapping_add(len);
        counters.wire_ns = counters.wire_ns.wrapping_add(wire_ns);
    }

    fn of(&mut self, chip_select: Option<u8>) -> &mut Counters {
        let known = chip_select.and_then(|number| self.known.get_mut(usize::from(number)));
        known.unwrap_or(&mut self.unknown)
    }
}

/// The front-ends of one guest.
#[derive(Debug, Clone, Copy, Default)]
pub struct Connections {
    /// How many connected.
    pub begun: u64,
    /// How many the daemon ended, for a fault of the front-end or because the host lacked something.
    pub faults: u64,
}

/// All that is counted of one guest.
#[derive(Debug, Clone, Copy)]
pub struct Counted<'t> {
    /// Which guest.
    pub guest: GuestNumber,
    /// Its requests.
    pub tally: &'t Tally,
    /// Its front-ends.
    pub connections: Connections,
    /// Lines about it that the log's limit dropped.
    pub lines_dropped: u64,
}

impl Counted<'_> {
    /// The n-th line about the guest: first one about its front-ends, then one about each of its chip
    /// selects, then one about requests that name none of them, if there were any. `None` after the last.
    fn line(&self, number: usize) -> Option<String> {
        let guest = self.guest;
        let Tally { known, unknown } = self.tally;
        let Some(chip_select) = number.checked_sub(1) else {
            let Connections { begun, faults } = self.connections;
            let dropped = self.lines_dropped;
            return Some(format!(
                "guest={guest} connections={begun} faults={faults} lines_dropped={dropped}"
            ));
        };
        if let Some(counters) = known.get(chip_select) {
            let times = counters.times();
            return Some(format!("guest={guest} cs={chip_select} {counters}{times}"));
        }
        let is_last = chip_select == known.len() && unknown.requests() > 0;
        is_last.then(|| format!("guest={guest} cs=- {unknown}"))
    }
}

/// A chip select as a field; `cs=-` is none of the guest's.
#[derive(Debug, Clone, Copy)]
pub struct ChipSelect(pub Option<u8>);

impl fmt::Display for ChipSelect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(number) => write!(f, "cs={number}"),
            None => f.write_str("cs=-"),
        }
    }
}

/// Writing out all counters: a line at a time, so that nobody waits for the whole of it, and as
/// fast as stderr is read. The last line says how long the daemon has run.
#[derive(Debug)]
pub struct Report {
    /// When the daemon began to serve.
    started: Instant,
    /// Guest and number of the next line, while a report is under way.
    next: Option<(usize, usize)>,
    /// Asked for once more meanwhile: lines that are written already may be out of date.
    again: bool,
    /// How often stderr had no room for the next line.
    tries: u32,
    /// When it is tried again, if it had none.
    pub retry_at: Option<Instant>,
}

impl Report {
    /// None is asked for yet. The daemon began to serve at `started`.
    pub fn new(started: Instant) -> Self {
        Self {
            started,
            next: None,
            again: false,
            tries: 0,
            retry_at: None,
        }
    }

    /// Begins a report. If one is under way, another one follows it.
    pub fn begin(&mut self) {
        self.again = self.next.is_some();
        self.next.get_or_insert((0, 0));
    }

    /// Whether the next line can be tried at once.
    pub fn is_due(&self) -> bool {
        self.next.is_some() && self.retry_at.is_none()
    }

    /// Gives `write` the next line, with the counters that `of` has of its guest, unless it is to be
    /// tried again later.
    pub fn step<'t>(
        &mut self,
        now: Instant,
        of: impl FnOnce(usize) -> Option<Counted<'t>>,
        write: impl FnOnce(fmt::Arguments<'_>) -> bool,
    ) {
        let Some((guest, number)) = self.next else {
            return;
        };
        if self.retry_at.is_some_and(|at| at > now) {
            return;
        }
        let (line, next) = match of(guest).map(|counted| counted.line(number)) {
            Some(Some(line)) => (line, Some((guest, number.saturating_add(1)))),
            Some(None) => {
                self.next = Some((guest.saturating_add(1), 0));
                return;
            }
            None => {
                let uptime_s = now.saturating_duration_since(self.started).as_secs();
                (format!("uptime_s={uptime_s}"), None)
            }
        };
        if write(format_args!("{line}")) {
            (self.tries, self.retry_at) = (0, None);
            self.next = next.or_else(|| std::mem::take(&mut self.again).then_some((0, 0)));
        } else if self.tries < TRIES {
            self.tries = self.tries.saturating_add(1);
            self.retry_at = now.checked_add(RETRY);
        } else {
            *self = Self::new(self.started);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(number: usize, tally: &Tally) -> Option<Counted<'_>> {
        (number < 2).then_some(Counted {
            guest: GuestNumber::new(number).unwrap(),
            tally,
            connections: Connections {
                begun: 3,
                faults: 1,
            },
            lines_dropped: 7,
        })
    }

    /// Steps until the report is over; the lines, and how often none could be written.
    fn steps(
        report: &mut Report,
        tally: &Tally,
        mut has_room: impl FnMut() -> bool,
    ) -> (Vec<String>, u32) {
        let (mut now, mut lines, mut waits) = (report.started, Vec::new(), 0);
        while report.next.is_some() {
            let write = |text: fmt::Arguments<'_>| {
                let room = has_room();
                lines.extend(room.then(|| text.to_string()));
                room
            };
            report.step(now, |number| guest(number, tally), write);
            if let Some(at) = report.retry_at {
                assert!(!report.is_due() && at > now);
                now = at;
                waits += 1;
            }
        }
        (lines, waits)
    }

    #[test]
    fn report_has_a_line_for_each_guest_and_chip_select_and_one_at_the_end() {
        let mut tally = Tally::new(2);
        tally.count(Some(1), TransResult::TransOk);
        tally.count(None, TransResult::ParamErr);
        let mut report = Report::new(Instant::now());
        report.begin();
        let (lines, _) = steps(&mut report, &tally, || true);
        let of = |guest: usize| {
            let rest = |requests, ok, param_err| {
                format!(
                    "requests={requests} bytes=0 ok={ok} param_err={param_err} trans_err=0 \
                     wire_us=0 longest_wait_us=0"
                )
            };
            let times = "wait_p50_us=0 wait_p99_us=0 wait_p999_us=0 service_p50_us=0 \
                         service_p99_us=0 service_p999_us=0 longest_service_us=0";
            [
                format!("guest={guest} connections=3 faults=1 lines_dropped=7"),
                format!("guest={guest} cs=0 {} {times}", rest(0, 0, 0)),
                format!("guest={guest} cs=1 {} {times}", rest(1, 1, 0)),
                format!("guest={guest} cs=- {}", rest(1, 0, 1)),
            ]
        };
        let expected = [&of(0)[..], &of(1), &["uptime_s=0".into()]].concat();
        assert_eq!(lines, expected);
    }

    #[test]
    fn report_asked_for_while_one_is_under_way_is_written_once_more() {
        let tally = Tally::new(1);
        let mut report = Report::new(Instant::now());
        report.begin();
        report.step(report.started, |number| guest(number, &tally), |_| true);
        (0..3).for_each(|_| report.begin());
        let (lines, _) = steps(&mut report, &tally, || true);
        assert_eq!(lines.iter().filter(|line| *line == "uptime_s=0").count(), 2);
    }

    #[test]
    fn report_goes_on_where_it_was_when_there_is_room_again() {
        let tally = Tally::new(1);
        let mut report = Report::new(Instant::now());
        report.begin();
        let mut asked = 0;
        // Room at every second time of asking.
        let (lines, waits) = steps(&mut report, &tally, || {
            asked += 1;
            asked % 2 == 0
        });
        assert_eq!((lines.len(), waits), (5, 5));
    }

    #[test]
    fn report_ends_when_stderr_is_full_for_good_and_can_be_asked_for_again() {
        let tally = Tally::new(1);
        let mut report = Report::new(Instant::now());
        for _ in 0..2 {
            report.begin();
            let (lines, waits) = steps(&mut report, &tally, || false);
            assert_eq!((lines.len(), waits), (0, TRIES));
        }
        report.begin();
        assert_eq!(steps(&mut report, &tally, || true).0.len(), 5);
    }

    #[test]
    fn longest_wait_is_not_replaced_by_a_shorter_one() {
        let mut tally = Tally::new(1);
        for (waited, longest) in [(5, 5), (3, 5), (7, 7), (0, 7)] {
            tally.count_wait(Some(0), Duration::from_micros(waited));
            let line = tally.known[0].to_string();
            let field = format!(" longest_wait_us={longest}");
            assert!(line.ends_with(&field), "{line}");
        }
    }
}
