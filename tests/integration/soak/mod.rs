// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Many guests at once that behave, crash, stall and lie at random, for a bounded time.
//!
//! At its end the daemon must be as it was before them, and no request of those that behave was lost, done twice or
//! reported wrongly: each carries a tag by which the fake's record is compared with it while the test runs (`ledger`).
//! On half of the sockets all guests behave, on the others the next front-end may be of any kind; all share two
//! controllers whose devices fail now and then. The short run is one of the usual tests; an hour on the release build is
//!
//! ```sh
//! SOAK_SECONDS=3600 SOAK_SEED=1 DAEMON=$PWD/target/release/vhost-device-spi cargo test soak_ -- --nocapture
//! ```
//!
//! after `cargo build --release`. What the front-ends of a socket do follows from the seed and the socket's number; only
//! where time ends a session, and how the sockets interleave, is up to the machine.

mod actor;
mod asks;
mod behave;
mod crash;
mod dice;
mod faults;
mod figures;
mod ledger;
mod lie;
mod stall;
mod wire;

use crate::rig::host::Id;
use crate::rig::peer::Peer;
use crate::rig::*;
use actor::Actor;
use behave::Behaved;
use dice::{Dice, mix};
use figures::Figures;
use ledger::{Ledger, MAX_SPEED_HZ};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

const GUESTS: usize = 16;
/// Below this number sockets have guests that behave, and no others.
const WELL_BEHAVED: usize = 8;

/// A device, and which guests have it.
type Shared = (Id, fn(usize) -> bool);

const DEVICES: [Shared; 5] = [
    ((0, 0), |_| true),
    ((0, 1), |guest| guest % 2 == 0),
    ((0, 2), |guest| guest % 2 == 1),
    ((1, 0), |_| true),
    ((1, 1), |guest| guest % 8 < 4),
];

/// How guests hold chip select, each the one of its number.
const POLICIES: [&str; 3] = ["queued", "spec", "write-read"];

/// Answers what it is sent, exclusive-or something that is never the same again: bytes that were received for another
/// request, or twice, are seen. They stay below 0x80, like all that a liar has in its memory.
struct Cipher(u64);

impl Peer for Cipher {
    fn exchange(&mut self, out: &[u8]) -> Vec<u8> {
        let mut answer = Vec::with_capacity(out.len());
        for word in out.chunks(8) {
            self.0 += 1;
            let key = mix(self.0).to_le_bytes();
            answer.extend(word.iter().zip(key).map(|(byte, key)| (byte ^ key) & 0x7f));
        }
        answer
    }
}

/// What all take part in.
struct Soak {
    seed: u64,
    host: Host,
    daemon: Daemon,
    ledger: Arc<Mutex<Ledger>>,
    counts: Mutex<BTreeMap<String, u64>>,
    /// Somebody failed: the others need not go on.
    stop: AtomicBool,
}

impl Soak {
    fn start(seed: u64) -> Self {
        let host = DEVICES
            .iter()
            .zip(1..)
            .fold(Host::new(), |host, ((id, _), n)| {
                let unlimited = host.controller(id.0, |controller| controller.max_speed_hz = 0);
                unlimited.device(*id, MAX_SPEED_HZ, Cipher(n << 56))
            });
        // So short that holds are cut now and then.
        let mut setup = Setup::new(&host)
            .guests(GUESTS)
            .arg("--cs-hold-timeout-ms=3");
        for ((bus, chip_select), has) in DEVICES {
            let guests = (0..GUESTS)
                .filter(|guest| has(*guest))
                .map(|guest| guest.to_string());
            let guests = guests.collect::<Vec<_>>().join("+");
            setup = setup.device(&format!("/dev/spidev{bus}.{chip_select},guests={guests}"));
        }
        for guest in 0..GUESTS {
            setup = setup.arg(format!("--cs-hold={guest}:{}", policy_of(guest)));
        }
        let daemon = setup.start();
        let ledger = Arc::new(Mutex::new(Ledger::new(&host, &DEVICES.map(|(id, _)| id))));
        let seen = Arc::clone(&ledger);
        host.watch(move |record| locked(&seen).see(record));
        let (counts, stop) = (Mutex::default(), AtomicBool::new(false));
        Self {
            seed,
            host,
            daemon,
            ledger,
            counts,
            stop,
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        locked(&self.ledger)
    }

    fn count(&self, what: &str) {
        let mut counts = locked(&self.counts);
        match counts.get_mut(what) {
            Some(count) => *count += 1,
            None => drop(counts.insert(what.to_owned(), 1)),
        }
    }

    /// The devices of a guest, in the order of its chip selects.
    fn devices(&self, guest: usize) -> Vec<Id> {
        let own = DEVICES.iter().filter(|(_, has)| has(guest));
        own.map(|(id, _)| *id).collect()
    }

    fn is_over(&self, until: Instant) -> bool {
        Instant::now() >= until || self.stop.load(Ordering::Relaxed)
    }

    /// Lets all act for some time, then be gone; whoever comes after them is served.
    fn act(&self, actors: &mut [Actor], time: Duration) {
        let until = Instant::now() + time;
        std::thread::scope(|scope| {
            for actor in actors {
                scope.spawn(move || actor.run(self, until));
            }
            scope.spawn(move || faults::run(self, until));
            self.look_on(until);
        });
        self.look();
        assert!(
            self.ledger().is_settled(),
            "requests are left without an answer"
        );
        self.serve_all();
    }

    fn look_on(&self, until: Instant) {
        let mut minute = Instant::now();
        while !self.is_over(until) {
            std::thread::sleep(Duration::from_millis(100));
            self.look();
            if minute.elapsed() >= Duration::from_secs(60) {
                minute = Instant::now();
                let left = until.saturating_duration_since(minute).as_secs();
                println!("{left} s to go, {}", Figures::of(&self.daemon));
            }
        }
    }

    /// What must hold at any time.
    fn look(&self) {
        let wrong = std::mem::take(&mut self.ledger().wrong);
        let (exited, threads) = (self.daemon.exited(), self.daemon.status("Threads"));
        if !wrong.is_empty() || exited || threads != "1" {
            self.stop.store(true, Ordering::Relaxed);
            let (seed, wrong) = (self.seed, wrong.join("\n"));
            panic!("SOAK_SEED={seed}: exited: {exited}, {threads} threads; on the wire: {wrong}");
        }
        self.daemon.forget_stderr(200);
    }

    /// The figures with all front-ends gone: fds may take a moment, for sessions end in their own time.
    fn quiet(&self, fds: usize) -> Figures {
        sys::eventually(PATIENCE, || self.daemon.fd_count() == fds);
        let (figures, stderr) = (Figures::of(&self.daemon), self.daemon.stderr());
        let left = "with all front-ends gone";
        assert_eq!(figures.fds, fds, "fds {left}; stderr: {stderr:#?}");
        self.assert_devices_as_found(left);
        figures
    }

    fn assert_devices_as_found(&self, when: &str) {
        for (id, _) in DEVICES {
            let (kept, selected) = (self.host.kept(id), self.host.selected(id));
            let found = (kept.mode, kept.bits_per_word, kept.speed_hz);
            assert_eq!(found, (0, 8, MAX_SPEED_HZ), "{id:?} {when}");
            assert!(!selected, "{id:?} is selected {when}");
        }
    }

    /// Requests on every socket and chip select, with nothing going wrong any more.
    fn serve_all(&self) {
        let failed = || -> u64 {
            let counts = locked(&self.counts);
            let failed = counts.iter().filter(|(what, _)| what.contains("TRANS_ERR"));
            failed.map(|(_, count)| count).sum()
        };
        let before = failed();
        for number in 0..GUESTS {
            let mut dice = Dice::new(self.seed, 1000 + number as u64);
            let mut guest = Behaved::connect(self, number, &mut dice);
            guest.visit(&mut dice);
            (0..3).for_each(|_| guest.batch(&mut dice));
        }
        self.look();
        assert_eq!(failed(), before, "TRANS_ERR on a host that is well");
    }

    /// SIGTERM: exit code 0, sockets removed, devices as they were found.
    fn end(mut self) {
        self.daemon.signal(libc::SIGTERM);
        let status = self.daemon.wait(PATIENCE);
        assert_eq!(
            status.code(),
            Some(0),
            "{status}; stderr: {:#?}",
            self.daemon.stderr()
        );
        for number in 0..GUESTS {
            let path = self.daemon.socket(number);
            assert!(!path.exists(), "{} was left", path.display());
        }
        self.assert_devices_as_found("at the end");
    }

    fn report(&self, figures: [(&str, &Figures); 3]) {
        for (when, figures) in figures {
            println!("{when:<13} {figures}");
        }
        let ledger = self.ledger();
        let (messages, wild) = (ledger.messages, ledger.wild);
        drop(ledger);
        println!("{messages:>9} messages on the wire, {wild} of them of liars");
        for (what, count) in &*locked(&self.counts) {
            println!("{count:>9} {what}");
        }
    }
}

fn policy_of(guest: usize) -> &'static str {
    POLICIES[guest % POLICIES.len()]
}

/// A lock that a failure elsewhere does not make another failure.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

fn setting(name: &str, usual: u64) -> u64 {
    let set = std::env::var(name).ok();
    set.map_or(usual, |text| {
        text.parse()
            .unwrap_or_else(|e| panic!("{name}={text}: {e}"))
    })
}

#[test]
fn soak_leaves_the_daemon_as_it_was_and_every_request_answered_by_what_came_of_it() {
    let (seed, seconds) = (setting("SOAK_SEED", 1), setting("SOAK_SECONDS", 8));
    println!("SOAK_SEED={seed} SOAK_SECONDS={seconds}");
    let time = Duration::from_secs(seconds);
    let soak = Soak::start(seed);
    // The last that it does of its start is to put itself under its filter, behind the rig's.
    let started = || soak.daemon.status("Seccomp_filters") == "2";
    assert!(sys::eventually(PATIENCE, started), "it does not start");
    let start = Figures::of(&soak.daemon);
    let mut actors: Vec<_> = (0..GUESTS).map(|number| Actor::new(seed, number)).collect();
    // What grows once and is kept has grown after this: the last of it after some minutes.
    let warm_up = (time / 2).min(Duration::from_secs(600));
    soak.act(&mut actors, warm_up);
    let warm = soak.quiet(start.fds);
    soak.act(&mut actors, time - warm_up);
    let end = soak.quiet(start.fds);
    soak.report([
        ("at the start:", &start),
        ("warmed up:", &warm),
        ("at the end:", &end),
    ]);
    end.assert_like(&start, &warm);
    figures::assert_no_cpu_time(&soak.daemon);
    soak.end();
}
