// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests by what they ask: queued one by one or together, and what reached the wire of them in one line of text.

use super::daemon::Daemon;
use super::frontend::Guest;
use super::host::{Host, PATIENCE};
use super::kernel_rules as rules;
use super::record::Kind;
use super::request::Request;
use super::setup::Setup;
use super::virtio::Head;
use super::{pattern, sys};
use std::collections::BTreeSet;
use std::time::Duration;

/// A request to be: its head, and how many bytes it sends and receives.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    pub head: Head,
    pub tx: usize,
    pub rx: usize,
}

/// Sends one byte.
pub fn write(head: Head) -> Ask {
    Ask { head, tx: 1, rx: 0 }
}

/// Receives one byte.
pub fn read(head: Head) -> Ask {
    Ask { head, tx: 0, rx: 1 }
}

/// Sends and receives one byte.
pub fn both(head: Head) -> Ask {
    Ask { head, tx: 1, rx: 1 }
}

/// The head of a request that asks for chip select to stay asserted.
pub fn keep(chip_select: u8) -> Head {
    Head::default().chip_select(chip_select)
}

/// The head of a request that asks for chip select to be released.
pub fn let_go(chip_select: u8) -> Head {
    keep(chip_select).cs_change(1)
}

/// A request that every device refuses.
pub fn wrong(chip_select: u8) -> Ask {
    both(keep(chip_select).bits(0))
}

/// Queues all and shows them at once: queued together, as far as any device can tell.
pub fn queue(guest: &mut Guest, asks: &[Ask]) -> Vec<Request> {
    let lay_out = |ask: &Ask| guest.request(ask.head, &pattern(ask.tx), ask.rx);
    let requests: Vec<_> = asks.iter().map(lay_out).collect();
    for request in &requests {
        guest.queue(request);
    }
    guest.kick();
    requests
}

/// Waits for all of them; their results.
#[track_caller]
pub fn results(guest: &mut Guest, requests: &[Request]) -> Vec<u8> {
    let used = guest.wait_used(requests.len());
    let outcome = |(request, used)| guest.outcome(request, used).result;
    requests.iter().zip(used).map(outcome).collect()
}

/// Queued together, from end to end.
#[track_caller]
pub fn together(guest: &mut Guest, asks: &[Ask]) -> Vec<u8> {
    let requests = queue(guest, asks);
    results(guest, &requests)
}

/// Each only when the one before is done.
#[track_caller]
pub fn in_turn(guest: &mut Guest, asks: &[Ask]) -> Vec<u8> {
    asks.iter().map(|ask| together(guest, &[*ask])[0]).collect()
}

/// What reached the devices since `Host::forget`, in order: `0` is a message to chip select 0 of bus 0 and `1:0` one to
/// chip select 0 of bus 1, with `+` behind it if its last transfer keeps chip select asserted; `w0` is a WR_MODE32; `!`
/// stands behind what failed, and `?` is anything else.
pub fn trace(host: &Host) -> String {
    let words: Vec<_> = host
        .records()
        .iter()
        .map(|record| {
            let name = match record.device {
                (0, chip_select) => format!("{chip_select}"),
                (bus, chip_select) => format!("{bus}:{chip_select}"),
            };
            let failed = if record.ret < 0 { "!" } else { "" };
            match &record.kind {
                Kind::Message(transfers) => {
                    let kept = transfers.last().is_some_and(|last| last.cs_change != 0);
                    format!("{name}{}{failed}", if kept { "+" } else { "" })
                }
                Kind::Write(_) if record.request == rules::WR_MODE32 => format!("w{name}{failed}"),
                _ => format!("?{name}{failed}"),
            }
        })
        .collect();
    words.join(" ")
}

/// Waits until the trace is `expected`; it must not go beyond it in the next moment.
#[track_caller]
pub fn assert_trace(host: &Host, expected: &str) {
    sys::eventually(PATIENCE, || trace(host) == expected);
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(trace(host), expected);
}

/// Asserts that no message went to a device while another one of its bus was selected.
#[track_caller]
pub fn assert_one_selected_at_a_time(host: &Host) {
    let mut selected = BTreeSet::new();
    for record in host.records() {
        let beside = selected
            .iter()
            .find(|(bus, cs)| *bus == record.device.0 && *cs != record.device.1);
        let message = record.transfers().is_some();
        assert!(!message || beside.is_none(), "{record:?} beside {beside:?}");
        if record.selected.1 {
            selected.insert(record.device);
        } else {
            selected.remove(&record.device);
        }
    }
}

/// Two devices on bus 0 and one on bus 1, all loopbacks: a guest's chip selects 0, 1 and 2.
pub fn three_devices() -> Host {
    Host::with_devices(2).device((1, 0), 10_000_000, super::Loopback)
}

/// A daemon that serves them to `guests` guests, with further arguments.
#[track_caller]
pub fn serve_three(host: &Host, guests: usize, args: &[&str]) -> (Daemon, Vec<Guest>) {
    let setup = Setup::new(host)
        .guests(guests)
        .device("/dev/spidev0.0")
        .device("/dev/spidev0.1")
        .device("/dev/spidev1.0");
    let daemon = args
        .iter()
        .fold(setup, |setup, arg| setup.arg(*arg))
        .start();
    let guests = (0..guests).map(|n| Guest::connect(&daemon, n)).collect();
    host.forget();
    (daemon, guests)
}

/// One guest on `host`'s first device, which is given with these options behind its name.
#[track_caller]
pub fn serve_with(host: &Host, options: &str, args: &[&str]) -> (Daemon, Guest) {
    let setup = Setup::new(host).device(&format!("/dev/spidev0.0{options}"));
    let daemon = args
        .iter()
        .fold(setup, |setup, arg| setup.arg(*arg))
        .start();
    let guest = Guest::connect(&daemon, 0);
    host.forget();
    (daemon, guest)
}
