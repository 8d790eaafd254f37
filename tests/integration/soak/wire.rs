// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ledger's other side: each call on a device, held against what was asked and what came before.
//!
//! It panics nowhere, since it runs in the fake's thread: what is wrong is written down.

use super::WELL_BEHAVED;
use super::asks::spidev_mode;
use super::ledger::{Asked, Entry, Ledger, guest_of};
use crate::rig::kernel_rules as rules;
use crate::rig::record::{Kind, Record, Transfer};

/// How many calls are remembered, and how many mistakes: others follow from the first.
const CALLS: usize = 100;
const MISTAKES: usize = 3;

/// One controller.
#[derive(Default)]
pub struct Wire {
    /// The request in the middle of its messages.
    unfinished: Option<u32>,
    /// Calls that failed without a message that could be told: any request may have met them.
    pub trouble: u64,
}

/// One device.
pub struct Line {
    mode: u32,
    selected: bool,
    /// Whose the last message was, as far as that is known, its tag, and whether it failed.
    last: Option<(Option<usize>, u32, bool)>,
}

impl Line {
    pub fn new(mode: u32, selected: bool) -> Self {
        let last = None;
        Self {
            mode,
            selected,
            last,
        }
    }

    /// Whether a message of `guest` may go on in the assertion of the last one.
    fn may_continue(&self, guest: Option<usize>) -> Result<(), String> {
        match self.last {
            Some((_, _, true)) => Err("in an assertion that failed".into()),
            // A guest that lies may have begun as one that behaves.
            Some((Some(other), ..)) if guest.is_none() && other >= WELL_BEHAVED => Ok(()),
            Some((other, ..)) if other != guest => {
                Err(format!("in the assertion of guest {other:?}"))
            }
            Some(_) | None => Ok(()),
        }
    }
}

impl Ledger {
    /// One call on a device.
    pub fn see(&mut self, record: &Record) {
        let seen = match &record.kind {
            Kind::Message(transfers) => self.message(record, transfers),
            Kind::Write(mode) if record.request == rules::WR_MODE32 => {
                self.mode_written(record, *mode)
            }
            other => Err(format!("nothing that the steady state has: {other:?}")),
        };
        if self.calls.len() == CALLS {
            self.calls.pop_front();
        }
        let tag = tag_of(record.transfers().unwrap_or(&[]));
        let call = (record.device, tag, record.ret, record.selected);
        self.calls.push_back(call);
        if let Err(wrong) = seen
            && self.wrong.len() < MISTAKES
        {
            let tale = self.tale(record.device.0);
            self.wrong.push(format!("a call {wrong}, {tale}"));
        }
        self.line(record).selected = record.selected.1;
    }

    /// The last calls on a bus.
    pub fn tale(&self, bus: u32) -> String {
        let calls = self.calls.iter().filter(|(device, ..)| device.0 == bus);
        let lines = calls.map(|((_, chip_select), tag, ret, selected)| {
            let guest = tag.and_then(guest_of);
            format!("\n    chip select {chip_select}: tag {tag:x?} (guest {guest:?}) -> {ret}, selected {selected:?}")
        });
        format!("the last calls:{}", lines.collect::<String>())
    }

    fn line(&mut self, record: &Record) -> &mut Line {
        let line = self.lines.get_mut(&record.device);
        line.expect("a device of ours")
    }

    fn wire(&mut self, record: &Record) -> &mut Wire {
        let wire = self.wires.get_mut(&record.device.0);
        wire.expect("a bus of ours")
    }

    fn mode_written(&mut self, record: &Record, mode: u32) -> Result<(), String> {
        let line = self.line(record);
        let changed = line.mode != mode;
        // A release that fails has ended the hold all the same: it is tried again before the next message.
        if let (true, Some((Some(guest), tag, _))) = (record.selected.0, line.last) {
            self.released[guest].insert(tag);
        }
        if record.ret < 0 {
            self.trouble(record);
        } else {
            self.line(record).mode = mode;
        }
        // The same mode once more is a release, which must be possible at any time.
        if changed {
            self.check_alone(record)
        } else {
            Ok(())
        }
    }

    /// A call failed that may have been any request's.
    fn trouble(&mut self, record: &Record) {
        let wire = self.wire(record);
        wire.trouble += 1;
        let unfinished = wire.unfinished.take();
        if let Some(entry) = unfinished.and_then(|tag| self.entries.get_mut(&tag)) {
            entry.failed = true;
        }
    }

    fn message(&mut self, record: &Record, transfers: &[Transfer]) -> Result<(), String> {
        self.messages += 1;
        self.check_alone(record)?;
        let Some(tag) = tag_of(transfers) else {
            self.trouble(record);
            return Ok(());
        };
        let guest = self.owner(tag);
        let line = self.line(record);
        let continued = if record.selected.0 {
            line.may_continue(guest)
        } else {
            Ok(())
        };
        line.last = Some((guest, tag, record.ret < 0));
        continued?;
        let unfinished = self.wire(record).unfinished.take_if(|other| *other != tag);
        if let Some(other) = unfinished.filter(|other| self.is_awaited(*other)) {
            return Err(format!("in the middle of {other:x}"));
        }
        match guest {
            Some(guest) => self.tagged(record, transfers, tag, guest),
            None => {
                self.wild += 1;
                Ok(())
            }
        }
    }

    /// Nothing is done to a device while another one of its bus is selected.
    fn check_alone(&self, record: &Record) -> Result<(), String> {
        let (bus, _) = record.device;
        let mut others = self.lines.iter().filter(|(id, _)| **id != record.device);
        match others.find(|(id, line)| id.0 == bus && line.selected) {
            Some((beside, _)) => Err(format!("while {beside:?} is selected")),
            None => Ok(()),
        }
    }

    fn tagged(
        &mut self,
        record: &Record,
        transfers: &[Transfer],
        tag: u32,
        guest: usize,
    ) -> Result<(), String> {
        if tag < std::mem::replace(&mut self.seen[guest], tag) {
            return Err("out of order".into());
        }
        let mode = self.line(record).mode;
        let entry = self.entries.get_mut(&tag);
        let entry = entry.ok_or("of a request that is over")?;
        entry.check(record, transfers, mode)?;
        let over = entry.advance(record, transfers);
        let kept = (entry.asked.keeps, entry.failed, record.selected.1);
        self.wire(record).unfinished = (!over).then_some(tag);
        match kept {
            (_, true, _) => Ok(()),
            (_, _, false) if !over => Err("released between two messages".into()),
            (Some(keeps), _, selected) if over && keeps != selected => {
                Err(format!("selected at its end: {selected}"))
            }
            _ => Ok(()),
        }
    }
}

/// The clock frequency, unless nothing was there to be sent.
fn tag_of(transfers: &[Transfer]) -> Option<u32> {
    transfers.first().map(|first| first.speed_hz)
}

impl Entry {
    /// Whether this message may be the next of the request.
    fn check(&self, record: &Record, transfers: &[Transfer], mode: u32) -> Result<(), String> {
        let Asked { device, head, .. } = &self.asked;
        let same = [
            ("valid, or its ring enabled", !self.asked.refused),
            ("before its failure", !self.failed),
            ("to its device", record.device == *device),
            ("in its mode", mode == spidev_mode(head.mode)),
            ("in one assertion", self.done == 0 || record.selected.0),
        ];
        if let Some((what, _)) = same.iter().find(|(_, same)| !same) {
            return Err(format!("that is not {what}"));
        }
        let mut done = self.done;
        for transfer in transfers {
            let end = done + transfer.len as usize;
            if !self.is_next(transfer, done, end) {
                return Err(format!("of bytes {done} to {end}: not its own, or again"));
            }
            done = end;
        }
        Ok(())
    }

    fn is_next(&self, transfer: &Transfer, done: usize, end: usize) -> bool {
        let Asked {
            head, tx, rx_len, ..
        } = &self.asked;
        let sent = match tx.as_slice() {
            [] => transfer.tx_buf == 0,
            tx => tx.get(done..end) == Some(&transfer.tx),
        };
        let received = (transfer.rx_buf != 0) == (*rx_len != 0);
        let words = transfer.bits_per_word == head.bits_per_word;
        sent && received && words && end <= self.asked.len()
    }

    /// Takes a message into account; whether it is the last one.
    fn advance(&mut self, record: &Record, transfers: &[Transfer]) -> bool {
        let total: u32 = transfers.iter().map(|transfer| transfer.len).sum();
        self.failed = record.ret != i64::from(total);
        self.done += total as usize;
        if self.asked.rx_len != 0 {
            transfers.iter().for_each(|t| self.rx.extend(&t.rx));
        }
        self.failed || self.done == self.asked.len()
    }
}
