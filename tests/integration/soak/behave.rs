// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that keeps to all rules, and holds the daemon to them: each of its requests is answered once, by what came of
//! it on the wire.

use super::dice::Dice;
use super::ledger::Asked;
use super::{Soak, asks, policy_of};
use crate::rig::host::Id;
use crate::rig::memory::UNTOUCHED;
use crate::rig::plug::{INDIRECT_DESC, PROTOCOL_FEATURES};
use crate::rig::ring::Used;
use crate::rig::*;
use std::collections::VecDeque;
use vhost::vhost_user::VhostUserFrontend;

/// A request that was queued.
struct Pending {
    tag: u32,
    request: Request,
    tx: Vec<u8>,
    refused: bool,
    silent: bool,
    /// The one before it asked for chip select to stay asserted for this one.
    may_continue: bool,
}

pub struct Behaved<'a> {
    soak: &'a Soak,
    pub number: usize,
    pub guest: Guest,
    pending: VecDeque<Pending>,
    taken: usize,
    /// Device and mode of the last valid request, if it asked for chip select to stay asserted.
    held: Option<(Id, u32)>,
}

impl<'a> Behaved<'a> {
    /// Connects; the session before has then ended.
    pub fn connect(soak: &'a Soak, number: usize, dice: &mut Dice) -> Self {
        let guest = asks::plug(dice).connect(&soak.daemon, number);
        soak.ledger().arrive(number);
        soak.count("connections, guests");
        let (pending, taken, held) = (VecDeque::new(), 0, None);
        Self {
            soak,
            number,
            guest,
            pending,
            taken,
            held,
        }
    }

    /// Queues some requests, shows them to the device and waits for all answers.
    pub fn batch(&mut self, dice: &mut Dice) {
        let count = dice.pick(&[1, 1, 1, 2, 3, 5, 8, 16]);
        let at_once = !dice.once_in(4);
        for _ in 0..count {
            self.queue(dice, None);
            if !at_once {
                self.guest.kick();
            }
        }
        self.guest.kick();
        if dice.once_in(8) {
            self.look(dice);
        }
        self.collect();
    }

    /// Messages while requests are on their way.
    fn look(&mut self, dice: &mut Dice) {
        if self.guest.features & PROTOCOL_FEATURES != 0 {
            let count = usize::from(self.guest.config().cs_max_number);
            assert_eq!(
                count,
                self.soak.devices(self.number).len(),
                "chip selects in the config space"
            );
        }
        if dice.once_in(4) {
            self.guest.kick_anyway();
        }
    }

    /// Queues one request of `len` bytes or so, if there is room for it; it is not shown to the device yet.
    pub fn queue(&mut self, dice: &mut Dice, len: Option<usize>) {
        if self.pending.is_empty() {
            let joint = asks::JOINT - 1 - dice.below(3000) as u64;
            let starts = [self.guest.ring.layout.end(), joint];
            self.guest.alloc_from(dice.pick(&starts));
            self.taken = 0;
        }
        let indirect = self.guest.features & INDIRECT_DESC != 0 && dice.once_in(2);
        let room = usize::from(self.guest.ring.layout.size) - self.taken;
        if room < 4 {
            return;
        }
        let asked = self.draw(dice, len);
        self.put(dice, asked, indirect, room);
    }

    /// Queues a request through an indirect table or in at most `room` descriptors.
    fn put(&mut self, dice: &mut Dice, asked: Asked, indirect: bool, room: usize) {
        let tag = asked.tag;
        let request = self.lay_out(dice, &asked, if indirect { 64 } else { room });
        let (tx, refused, silent) = (asked.tx.clone(), asked.refused, asked.silent);
        let may_continue = self.goes_on(&asked);
        self.soak.ledger().ask(asked);
        if indirect {
            self.guest.queue_indirect(&request);
            self.taken += 1;
        } else {
            self.guest.queue(&request);
            self.taken += request.segments.len();
        }
        self.pending.push_back(Pending {
            tag,
            request,
            tx,
            refused,
            silent,
            may_continue,
        });
    }

    /// A request that is valid three times in four.
    fn draw(&self, dice: &mut Dice, len: Option<usize>) -> Asked {
        let devices = self.soak.devices(self.number);
        let chip_select = dice.below(devices.len());
        let len = len.unwrap_or_else(|| asks::len(dice));
        let mut asked = self.valid(dice, chip_select, len);
        if dice.once_in(4) {
            asks::spoil(&mut asked, devices.len(), dice);
        }
        asked.silent = dice.once_in(100);
        asked.refused |= asked.silent;
        asked
    }

    fn valid(&self, dice: &mut Dice, chip_select: usize, len: usize) -> Asked {
        let tag = self.soak.ledger().tag(self.number);
        let device = self.soak.devices(self.number)[chip_select];
        asks::request(
            dice,
            tag,
            (chip_select, device),
            len,
            policy_of(self.number),
        )
    }

    /// One valid request to each of its chip selects.
    pub fn visit(&mut self, dice: &mut Dice) {
        for chip_select in 0..self.soak.devices(self.number).len() {
            let asked = self.valid(dice, chip_select, 10);
            self.taken = 0;
            self.put(dice, asked, false, 4);
            self.guest.kick();
            self.collect();
        }
    }

    /// Whether it would go on in the assertion that the valid request before it asked for.
    fn goes_on(&mut self, asked: &Asked) -> bool {
        let aim = (asked.device, asked.head.mode);
        let goes_on = self.held == Some(aim);
        if !asked.refused {
            let holds = asked.head.cs_change == 0 && policy_of(self.number) != "write-read";
            self.held = holds.then_some(aim);
        }
        goes_on
    }

    /// Puts it into memory, cut at random into at most `room` pieces.
    fn lay_out(&mut self, dice: &mut Dice, asked: &Asked, room: usize) -> Request {
        let (head, tx, rx_len) = (asked.head, &asked.tx, asked.rx_len);
        let whole = if dice.once_in(2) {
            self.guest.request(head, tx, rx_len)
        } else {
            self.guest.contiguous(head, tx, rx_len)
        };
        let cuts = dice.below(room.min(24) - 3);
        let out = asks::offsets(dice, cuts / 2, Head::SIZE + tx.len());
        let into = asks::offsets(dice, cuts - cuts / 2, rx_len + 1);
        let mut request = whole.cut(&out, &into);
        if asked.silent {
            request.segments.retain(|segment| !segment.write);
        }
        request
    }

    /// Waits for the answers to all that is queued.
    pub fn collect(&mut self) {
        for used in self.guest.wait_used(self.pending.len()) {
            self.judge(used);
        }
    }

    /// Takes the answers that are there.
    fn collect_done(&mut self) {
        while let Some(used) = self.guest.ring.take(&self.guest.memory) {
            self.judge(used);
        }
    }

    fn judge(&mut self, used: Used) {
        let pending = self.pending.pop_front().expect("the rig counts");
        let (tag, request) = (pending.tag, &pending.request);
        let sent = self.guest.memory.read(request.tx_gpa, pending.tx.len());
        assert!(sent == pending.tx, "{tag:x}: tx was changed");
        let (mut result, mut rx) = (PARAM_ERR, Vec::new());
        if pending.silent {
            assert_eq!(used.len, 0, "{tag:x}: used length without a result");
        } else {
            let outcome = self.guest.outcome(request, used);
            (result, rx) = (outcome.result, outcome.rx);
        }
        let untouched = rx.iter().all(|byte| *byte == UNTOUCHED);
        assert!(!pending.refused || untouched, "{tag:x}: rx of a refusal");
        let mut ledger = self.soak.ledger();
        let word = ledger.answer(tag, result, &rx, pending.may_continue);
        drop(ledger);
        match word {
            Ok(word) => self.soak.count(&format!("requests, {word}")),
            Err(wrong) => panic!("request {tag:x}: {wrong}"),
        }
    }

    /// Stops the ring, perhaps with requests in it, and goes on in the same session or the next.
    pub fn restart(mut self, dice: &mut Dice) -> Self {
        for _ in 0..dice.below(4) {
            self.queue(dice, None);
        }
        self.guest.kick();
        std::thread::sleep(dice.moment(1000));
        let base = self.guest.stop();
        self.collect_done();
        assert_eq!(
            base,
            u32::from(self.guest.ring.used_idx),
            "what was taken off the ring was answered"
        );
        if self.pending.is_empty() {
            self.held = None;
        }
        if dice.once_in(2) {
            self = self.reconnect();
            self.soak.count("restarts, in another session");
        } else {
            self.soak.count("restarts, in the same session");
        }
        self.guest.start();
        self.guest.kick_anyway();
        self.collect();
        self
    }

    /// Leaves and comes again with memory and ring as they are.
    fn reconnect(self) -> Self {
        let Self { mut guest, .. } = self;
        let (layout, ring) = (guest.ring.layout, guest.ring.clone());
        let saved = guest
            .memory
            .read(layout.desc, (layout.end() - layout.desc) as usize);
        let plug = Plug::default()
            .features(guest.features)
            .queue_size(layout.size);
        let plug = plug.regions(std::mem::take(&mut guest.memory.regions));
        drop(guest);
        let mut guest = plug.negotiate(&self.soak.daemon.socket(self.number));
        self.soak.count("connections, guests");
        guest.memory.write(layout.desc, &saved);
        guest.ring = ring;
        Self { guest, ..self }
    }

    /// Requests on a ring that is not enabled stay where they are; on a ring that is, they are served.
    pub fn disabled(&mut self, dice: &mut Dice) {
        if self.guest.features & PROTOCOL_FEATURES == 0 {
            return;
        }
        self.enable(false);
        for _ in 0..1 + dice.below(3) {
            self.queue(dice, None);
        }
        let held_back: Vec<_> = self
            .pending
            .iter()
            .filter(|p| !p.refused)
            .map(|p| p.tag)
            .collect();
        held_back
            .iter()
            .for_each(|tag| self.soak.ledger().forbid(*tag, true));
        self.guest.kick();
        self.guest.kick_anyway();
        std::thread::sleep(dice.moment(5000));
        let used = self.guest.ring.device_idx(&self.guest.memory);
        assert_eq!(
            used, self.guest.ring.used_idx,
            "answered on a ring that is not enabled"
        );
        held_back
            .iter()
            .for_each(|tag| self.soak.ledger().forbid(*tag, false));
        self.enable(true);
        self.guest.kick_anyway();
        self.collect();
    }

    fn enable(&mut self, enable: bool) {
        let done = self.guest.frontend.set_vring_enable(0, enable);
        done.expect("SET_VRING_ENABLE");
    }

    /// From here on nobody waits for what is queued: it may be done, once, or not.
    pub fn forsake(&self) {
        self.soak.ledger().leave(self.number);
    }

    /// Goes away without a word, whatever is on its way.
    pub fn vanish(self) {
        self.forsake();
    }
}
