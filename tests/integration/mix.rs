// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rings of many requests, good and bad in any order: each is judged and carried out as if it were alone.

use crate::rig::ask::*;
use crate::rig::kernel_rules as rules;
use crate::rig::memory::UNTOUCHED;
use crate::rig::record::Kind;
use crate::rig::*;
use std::collections::BTreeMap;

/// A generator whose whole sequence follows from its seed (xorshift64*), so that a failure can be seen again.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }

    fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

/// A request of the mix: what it asks, what it sends, and whether it is good.
struct Card {
    head: Head,
    tx: Vec<u8>,
    rx_len: usize,
    good: bool,
}

/// The `n`-th card: its number is in its first bytes, so that every message can be told.
fn card(dice: &mut Dice, n: u32) -> Card {
    let mode = dice.below(16) as u32 & !virtio::CS_HIGH;
    let head = let_go(dice.below(3) as u8)
        .mode(mode)
        .bits(dice.pick(&[8, 16, 32]))
        .freq(dice.pick(&[0, 123_456, 1_000_000, 10_000_000]))
        .cs_change(dice.below(2) as u8);
    let len = 4 + 4 * dice.pick(&[0, 1, 7, 30, 1500]);
    let mut tx = pattern(len);
    tx[..4].copy_from_slice(&n.to_le_bytes());
    let rx_len = dice.pick(&[0, len]);
    let good = Card {
        head,
        tx,
        rx_len,
        good: true,
    };
    let head = match dice.below(12) {
        0 => head.bits(dice.pick(&[0, 1, 9, 33, 255])),
        1 => head.chip_select(dice.pick(&[3, 16, 255])),
        2 => head.mode(mode | dice.pick(&[virtio::CS_HIGH, 1 << 5, 1 << 31])),
        3 => head.freq(dice.pick(&[1, 79, 10_000_001, u32::MAX])),
        4 => head.cs_change(dice.pick(&[2, 255])),
        5 => Head {
            tx_nbits: dice.pick(&[2, 3, 4, 8]),
            ..head
        },
        6 => Head {
            cs_delay_hold_ns: 40_000_001,
            ..head
        },
        7 => Head {
            word_delay_ns: 1,
            ..head
        },
        8 => {
            return Card {
                rx_len: good.tx.len() + 4,
                good: false,
                ..good
            };
        }
        _ => return good,
    };
    Card {
        head,
        good: false,
        ..good
    }
}

/// spidev's bits for VIRTIO's.
fn spidev_mode(mode: u32) -> u32 {
    let pairs = [
        (virtio::CPHA, rules::CPHA),
        (virtio::CPOL, rules::CPOL),
        (virtio::LSB_FIRST, rules::LSB_FIRST),
        (virtio::LOOP, rules::LOOP),
    ];
    let on = pairs.iter().filter(|(virtio, _)| mode & virtio != 0);
    on.map(|(_, spidev)| spidev).sum()
}

/// The good cards reached their devices in order, each once, with all that it asked for.
#[track_caller]
fn assert_on_wire(host: &Host, cards: &[Card], seed: u64) {
    let mut modes = BTreeMap::new();
    let mut good = cards.iter().filter(|card| card.good);
    let mut rest: Option<(&Card, usize)> = None;
    for record in host.records() {
        let transfers = match &record.kind {
            Kind::Write(mode) => {
                modes.insert(record.device, *mode);
                continue;
            }
            Kind::Message(transfers) => transfers,
            other => panic!("seed {seed}: {other:?}"),
        };
        let (card, done) = rest
            .take()
            .unwrap_or_else(|| (good.next().expect("too many"), 0));
        let device = [(0, 0), (0, 1), (1, 0)][usize::from(card.head.chip_select_id)];
        assert_eq!(record.device, device, "seed {seed}");
        let mode = modes.get(&device).copied().unwrap_or(0);
        assert_eq!(mode, spidev_mode(card.head.mode), "seed {seed}: mode");
        let speed = if card.head.freq == 0 {
            10_000_000
        } else {
            card.head.freq
        };
        for transfer in transfers {
            let own = (transfer.bits_per_word, transfer.speed_hz);
            assert_eq!(own, (card.head.bits_per_word, speed), "seed {seed}");
        }
        let end = done + record.tx().len();
        assert!(
            record.tx() == card.tx[done..end],
            "seed {seed}: its own bytes"
        );
        if end < card.tx.len() {
            rest = Some((card, end));
        }
    }
    assert!(
        rest.is_none() && good.next().is_none(),
        "seed {seed}: each once"
    );
}

/// Queues all cards at once, and looks at every answer and at the wire.
#[track_caller]
fn play(args: &[&str], seed: u64, count: u32) {
    let host = three_devices();
    let (daemon, _) = serve_three(&host, 1, args);
    let mut guest = Plug::default().queue_size(1024).connect(&daemon, 0);
    host.forget();
    let mut dice = Dice(seed);
    let cards: Vec<_> = (0..count).map(|n| card(&mut dice, n)).collect();
    let requests: Vec<_> = cards
        .iter()
        .map(|card| guest.request(card.head, &card.tx, card.rx_len))
        .collect();
    for request in &requests {
        guest.queue_indirect(request);
    }
    guest.kick();
    let used = guest.wait_used(requests.len());
    for (n, ((card, request), used)) in cards.iter().zip(&requests).zip(used).enumerate() {
        let outcome = guest.outcome(request, used);
        let what = format!("seed {seed}, request {n}: {:?}", card.head);
        let expected = if card.good { TRANS_OK } else { PARAM_ERR };
        assert_eq!(outcome.result, expected, "{what}");
        let untouched = outcome.rx.iter().all(|b| *b == UNTOUCHED);
        assert!(card.good || untouched, "{what}: rx of a refused one");
        assert!(
            !card.good || card.rx_len == 0 || outcome.rx == card.tx,
            "{what}: rx"
        );
        let tx = guest.memory.read(request.tx_gpa, card.tx.len());
        assert!(tx == card.tx, "{what}: tx is as it was");
    }
    assert_on_wire(&host, &cards, seed);
    assert_one_selected_at_a_time(&host);
}

#[test]
fn mix_of_good_and_bad_requests_does_each_once_in_order_as_its_own() {
    for seed in 1..=12 {
        play(&[], seed, 120);
    }
}

#[test]
fn mix_under_every_hold_policy_is_the_same() {
    for (n, policy) in ["--cs-hold=spec", "--cs-hold=write-read"]
        .into_iter()
        .enumerate()
    {
        for seed in 100..104 {
            play(&[policy], seed + 10 * n as u64, 120);
        }
    }
}

#[test]
fn mix_of_1024_queued_at_once_is_as_good_as_5() {
    play(&[], 4711, 1024);
}

#[test]
fn mix_of_only_bad_requests_touches_nothing() {
    let host = three_devices();
    let (_daemon, mut guests) = serve_three(&host, 1, &[]);
    let asks: Vec<_> = (0..60).map(|n| wrong(n % 3)).collect();
    assert_eq!(together(&mut guests[0], &asks), [PARAM_ERR; 60]);
    assert_eq!(trace(&host), "");
}

#[test]
fn mix_with_failing_transfers_fails_those_only() {
    for seed in 1..=6u64 {
        let host = three_devices();
        let (_daemon, mut guests) = serve_three(&host, 1, &[]);
        let mut dice = Dice(seed);
        let (mut asks, mut expected, mut messages) = (Vec::new(), Vec::new(), 0);
        for _ in 0..60 {
            if dice.below(4) == 0 {
                asks.push(wrong(0));
                expected.push(PARAM_ERR);
                continue;
            }
            asks.push(both(keep(0).cs_change(dice.below(2) as u8)));
            let fails = dice.below(3) == 0;
            expected.push(if fails { TRANS_ERR } else { TRANS_OK });
            if fails {
                let when = dice.pick(&[When::BeforeWire, When::OnWire, When::AfterWire]);
                host.fail_message(DEV, messages, when, libc::EIO);
            }
            messages += 1;
        }
        assert_eq!(together(&mut guests[0], &asks), expected, "seed {seed}");
        assert_eq!(host.messages(DEV).len() as u64, messages, "seed {seed}");
        assert!(sys::eventually(PATIENCE, || !host.selected(DEV)));
    }
}
