// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `chip=`: what a command is between two edges, whatever requests it comes in, and what a guest may tell the chip.

mod board;
mod commands;
mod ends;
mod rules;

use crate::rig::ask::*;
use crate::rig::nor::Nor;
use crate::rig::peer::Peer;
use crate::rig::*;
use std::sync::{Arc, Mutex, MutexGuard};

/// A flash chip on the bus, and the test's view of it.
#[derive(Clone)]
struct Flash(Arc<Mutex<Nor>>);

impl Flash {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Nor::new())))
    }

    fn see(&self) -> MutexGuard<'_, Nor> {
        self.0.lock().unwrap()
    }

    /// What each assertion had since the last call; two edges each.
    #[track_caller]
    fn commands(&self, host: &Host) -> Vec<Vec<u8>> {
        let released = || !host.selected(DEV);
        assert!(sys::eventually(PATIENCE, released), "released");
        let commands = std::mem::take(&mut self.see().commands);
        assert_eq!(host.edges(DEV) as usize, 2 * commands.len(), "edges");
        host.forget();
        commands
    }
}

impl Peer for Flash {
    fn select(&mut self, selected: bool) {
        self.see().select(selected);
    }

    fn exchange(&mut self, out: &[u8]) -> Vec<u8> {
        self.see().exchange(out)
    }
}

/// A host with a flash chip at chip select 0, and a daemon that knows it, for `guests` guests.
#[track_caller]
fn serve(guests: usize, options: &str, args: &[&str]) -> (Flash, Host, Daemon, Vec<Guest>) {
    let flash = Flash::new();
    let host = Host::new().device(DEV, 10_000_000, flash.clone());
    let device = format!("/dev/spidev0.0,chip=nor{options}");
    let setup = Setup::new(&host).guests(guests).device(&device);
    // On a busy machine two requests of a command can be far apart.
    let timeout = "--cs-hold-timeout-ms=";
    let given = args.iter().any(|arg| arg.starts_with(timeout));
    let patient = (!given).then(|| format!("{timeout}20000"));
    let args = args.iter().map(|arg| (*arg).to_owned()).chain(patient);
    let daemon = args.fold(setup, Setup::arg).start();
    let guests = (0..guests).map(|n| Guest::connect(&daemon, n)).collect();
    host.forget();
    (flash, host, daemon, guests)
}

/// A request of a command: what it sends, and how many bytes it receives.
type Part<'a> = (&'a [u8], usize);

/// Sends the requests of one command one by one, all successful; what the last one received.
#[track_caller]
fn command(guest: &mut Guest, parts: &[Part]) -> Vec<u8> {
    let mut rx = Vec::new();
    for (tx, rx_len) in parts {
        let outcome = guest.transfer(keep(0), tx, *rx_len);
        assert_eq!(outcome.result, TRANS_OK, "{tx:x?}, {rx_len} in");
        rx = outcome.rx;
    }
    rx
}

/// The JEDEC id as the stock driver asks for it.
const ASK_ID: &[Part] = &[(&[0x9f], 0), (&[], 3)];
const ID: [u8; 3] = [0xef, 0x40, 0x17];
