// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What was asked, and how it was answered: both are held against what reached the wire (`wire`) while all goes on.
//!
//! Every request of a guest that behaves has a tag of its own, which is its clock frequency: so each message tells whose
//! it is, whatever its length and direction. The ledger sees a message before the ioctl returns, and so before the
//! guest can have an answer.

use super::GUESTS;
use super::wire::{Line, Wire};
use crate::rig::host::Id;
use crate::rig::*;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// Tags are above all frequencies that others use, and below what four untouched bytes of memory would be.
const FIRST_TAG: u32 = 1 << 31;
const TAGS: u32 = 1 << 26;
/// The devices' highest clock: right above the last tag.
pub const MAX_SPEED_HZ: u32 = FIRST_TAG + GUESTS as u32 * TAGS;

/// What a request asks for.
pub struct Asked {
    pub tag: u32,
    pub device: Id,
    pub head: Head,
    pub tx: Vec<u8>,
    pub rx_len: usize,
    /// It must never reach the wire: not valid, or its ring is not enabled.
    pub refused: bool,
    /// It has no result byte: there is nothing to be answered but the end.
    pub silent: bool,
    /// Chip select after it, where that is certain.
    pub keeps: Option<bool>,
}

impl Asked {
    pub fn len(&self) -> usize {
        self.tx.len().max(self.rx_len)
    }
}

/// A request and what has come of it so far.
pub struct Entry {
    pub asked: Asked,
    pub done: usize,
    pub rx: Vec<u8>,
    pub failed: bool,
    /// Failed calls on its bus when it was asked.
    trouble: u64,
}

/// Device, tag or none for a mode that is set, what was returned, and whether the device was selected before and after.
pub type Call = (Id, Option<u32>, i64, (bool, bool));

#[derive(Default)]
pub struct Ledger {
    pub entries: HashMap<u32, Entry>,
    pub wires: BTreeMap<u32, Wire>,
    pub lines: BTreeMap<Id, Line>,
    /// For each guest: how many tags it had, and the last one seen on the wire.
    issued: [u32; GUESTS],
    pub seen: [u32; GUESTS],
    /// It lies now: whatever is done with its tags is its own doing.
    lies: [bool; GUESTS],
    /// The last one answered that had been on the wire.
    answered: [u32; GUESTS],
    /// Requests of each guest after which chip select stayed asserted, and was released without another.
    pub released: [BTreeSet<u32>; GUESTS],
    /// Requests of guests that left, which may or may not be done until the next session.
    left: BTreeSet<u32>,
    pub messages: u64,
    pub wild: u64,
    /// What is wrong on the wire, and the last calls.
    pub wrong: Vec<String>,
    pub calls: VecDeque<Call>,
}

/// The guest that has this tag, if it is one.
pub fn guest_of(tag: u32) -> Option<usize> {
    let number = tag.checked_sub(FIRST_TAG)? / TAGS;
    ((number as usize) < GUESTS).then_some(number as usize)
}

fn tag_of(guest: usize, count: u32) -> u32 {
    FIRST_TAG + guest as u32 * TAGS + count
}

impl Ledger {
    pub fn new(host: &Host, devices: &[Id]) -> Self {
        let line = |id: &Id| (*id, Line::new(host.kept(*id).mode, host.selected(*id)));
        let lines = devices.iter().map(line).collect();
        let wires = devices.iter().map(|id| (id.0, Wire::default())).collect();
        Self {
            lines,
            wires,
            ..Self::default()
        }
    }

    /// A tag that no request ever had.
    pub fn tag(&mut self, guest: usize) -> u32 {
        self.issued[guest] += 1;
        assert!(self.issued[guest] < TAGS, "out of tags");
        tag_of(guest, self.issued[guest])
    }

    /// To be called before the device can see the request.
    pub fn ask(&mut self, asked: Asked) {
        let tag = asked.tag;
        let entry = Entry {
            trouble: self.wires[&asked.device.0].trouble,
            asked,
            done: 0,
            rx: Vec::new(),
            failed: false,
        };
        self.entries.insert(tag, entry);
    }

    /// Whether a request may not reach the wire, since its ring is not enabled.
    pub fn forbid(&mut self, tag: u32, forbidden: bool) {
        let entry = self.entries.get_mut(&tag);
        entry.expect("a request that was asked").asked.refused = forbidden;
    }

    /// The guest left: what it asked may still be carried out, once.
    pub fn leave(&mut self, guest: usize) {
        let own = |tag: &&u32| guest_of(**tag) == Some(guest);
        self.left.extend(self.entries.keys().filter(own));
        self.released[guest].clear();
    }

    /// The guest begins to lie, and may have anything done, what it had done before too.
    pub fn distrust(&mut self, guest: usize) {
        self.leave(guest);
        self.lies[guest] = true;
    }

    /// The guest is here again, so the session before has ended: nothing of it may come any more.
    pub fn arrive(&mut self, guest: usize) {
        self.lies[guest] = false;
        let own = |tag: &u32| guest_of(*tag) == Some(guest);
        self.entries
            .retain(|tag, _| !(own(tag) && self.left.contains(tag)));
        self.left.retain(|tag| !own(tag));
    }

    /// Whose request a message is, as far as that can be believed.
    pub fn owner(&self, tag: u32) -> Option<usize> {
        guest_of(tag).filter(|&guest| tag <= tag_of(guest, self.issued[guest]) && !self.lies[guest])
    }

    /// Whether somebody waits for this request.
    pub fn is_awaited(&self, tag: u32) -> bool {
        self.entries.contains_key(&tag) && !self.left.contains(&tag)
    }

    /// Whether nothing is asked any more, by those who behave.
    pub fn is_settled(&self) -> bool {
        !self.entries.keys().any(|tag| self.is_awaited(*tag))
    }

    /// Takes a request that was answered: what came of it in a word, or what is wrong with that.
    pub fn answer(
        &mut self,
        tag: u32,
        result: u8,
        rx: &[u8],
        may_continue: bool,
    ) -> Result<&'static str, String> {
        let entry = self.entries.remove(&tag).ok_or("answered twice")?;
        let cut = self.was_cut(tag, &entry) && may_continue;
        let down = self.wires[&entry.asked.device.0].trouble > entry.trouble;
        let whole = !entry.failed && entry.done == entry.asked.len();
        match (result, entry.asked.refused) {
            (PARAM_ERR, true) => Ok("PARAM_ERR"),
            (TRANS_OK, false) if whole && rx != entry.rx => {
                Err("rx is not what the device answered".into())
            }
            (TRANS_OK, false) if whole => Ok(entry.asked.kind()),
            (TRANS_ERR, false) if entry.failed => Ok("TRANS_ERR, on the wire"),
            (TRANS_ERR, false) if !whole && down => Ok("TRANS_ERR, device down"),
            (TRANS_ERR, false) if entry.done == 0 && cut => Ok("TRANS_ERR, hold cut"),
            _ => {
                let tale = self.tale(entry.asked.device.0);
                let told = format!("cut: {cut}, device down: {down}, {}", entry.tell());
                Err(format!("result {result}, but {told}, {tale}"))
            }
        }
    }

    /// Whether chip select was released behind the valid request before this one, and this is the first after that.
    fn was_cut(&mut self, tag: u32, entry: &Entry) -> bool {
        let guest = guest_of(tag).expect("a tag of ours");
        let cut = !entry.asked.refused && self.released[guest].remove(&self.answered[guest]);
        if entry.done > 0 || entry.failed {
            self.answered[guest] = tag;
            self.released[guest] = self.released[guest].split_off(&tag);
        }
        cut
    }
}

impl Asked {
    fn kind(&self) -> &'static str {
        match (self.tx.is_empty(), self.rx_len) {
            (true, _) => "OK, read",
            (false, 0) => "OK, write",
            (false, _) => "OK, full duplex",
        }
    }
}

impl Entry {
    fn tell(&self) -> String {
        let Self {
            asked,
            done,
            failed,
            ..
        } = self;
        let (device, len, refused) = (asked.device, asked.len(), asked.refused);
        format!(
            "{done} of {len} bytes on the wire of {device:?}, failed: {failed}, not valid: {refused}"
        )
    }
}
