// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests of every length, word size and cut around spidev's limits: one assertion, every byte once, in order.

use crate::judgement::refused;
use crate::requests::one_assertion;
use crate::rig::ask::*;
use crate::rig::record::Record;
use crate::rig::*;

fn sent(messages: &[Record]) -> Vec<u8> {
    messages.iter().flat_map(Record::tx).collect()
}

/// Carries out tx only, rx only and both with `len` bytes each, and looks at every byte.
#[track_caller]
fn all_directions(host: &Host, guest: &mut Guest, head: Head, len: usize, what: &str) {
    for (tx_len, rx_len) in [(len, len), (len, 0), (0, len)] {
        host.forget();
        let tx = pattern(tx_len);
        let outcome = guest.transfer(head, &tx, rx_len);
        assert_eq!(outcome.result, TRANS_OK, "{what}, {len} bytes");
        let messages = one_assertion(host, DEV);
        assert!(sent(&messages) == tx, "{what}, {len} bytes: tx");
        let echo = if tx_len == 0 { vec![0; rx_len] } else { tx };
        assert!(rx_len == 0 || outcome.rx == echo, "{what}, {len} bytes: rx");
        for transfer in messages.iter().flat_map(|m| m.transfers().unwrap()) {
            assert_eq!(transfer.bits_per_word, head.bits_per_word, "{what}");
            assert_eq!(transfer.speed_hz, head.freq, "{what}");
            assert_eq!(
                (transfer.tx_buf != 0, transfer.rx_buf != 0),
                (tx_len > 0, rx_len > 0)
            );
            assert_ne!(transfer.len, 0, "{what}");
        }
        // Held by each message but the last.
        let kept: Vec<_> = messages.iter().map(|m| m.selected.1).collect();
        assert!(kept.iter().rev().skip(1).all(|k| *k) && kept.last() == Some(&false));
    }
}

#[test]
fn length_around_an_odd_bufsiz_is_one_assertion() {
    // Below 128 spidev of a host with an alignment of 128 would take nothing at all.
    let hosts = [
        (8, 8),
        (9, 8),
        (100, 8),
        (127, 8),
        (129, 8),
        (129, 128),
        (1000, 8),
        (1000, 128),
    ];
    for (bufsiz, align) in hosts {
        let host = Host::with_devices(1).bufsiz(bufsiz).align(align);
        let (host, _daemon, mut guest) = plugged_into(host);
        let limit = bufsiz as usize;
        let what = format!("bufsiz {bufsiz}, alignment {align}");
        for len in [1, limit - 1, limit, limit + 1, 2 * limit + 1, 1500] {
            all_directions(&host, &mut guest, Head::default(), len, &what);
        }
        refused(&host, &mut guest, &what, Head::default(), &[], 0);
    }
}

#[test]
fn length_around_bufsiz_and_64_kib_is_one_assertion_in_every_direction() {
    for (bufsiz, align) in [(4096, 8), (4096, 128), (65_536, 128)] {
        let host = Host::with_devices(1).bufsiz(bufsiz).align(align);
        let (host, _daemon, mut guest) = plugged_into(host);
        let limit = bufsiz as usize;
        let head = Head::default().freq(10_000_000);
        for len in [limit - 1, limit, limit + 1, 65_535, 65_536, 65_537] {
            all_directions(&host, &mut guest, head, len, &format!("bufsiz {bufsiz}"));
            let fits = host.messages(DEV).len();
            assert_eq!(fits, len.div_ceil(limit), "{len} bytes, bufsiz {bufsiz}");
        }
    }
}

#[test]
fn length_of_4_mib_over_the_default_bufsiz_is_one_assertion() {
    let (host, _daemon, mut guest) = plugged();
    let tx = pattern(4 << 20);
    let outcome = guest.transfer(Head::default().freq(10_000_000), &tx, 4 << 20);
    assert_eq!(outcome.result, TRANS_OK);
    assert!(outcome.rx == tx);
    let messages = one_assertion(&host, DEV);
    assert_eq!(messages.len(), 1024);
    assert!(sent(&messages) == tx);
}

#[test]
fn length_of_words_of_1_to_32_bits_is_whole_words_or_refused() {
    let host = Host::new()
        .bufsiz(129)
        .controller(0, |c| c.bits_per_word_mask = u32::MAX);
    let (host, _daemon, mut guest) = plugged_into(host.device(DEV, 10_000_000, Loopback));
    for bits in 1..=32u8 {
        let word = kernel_rules::word_size(bits) as usize;
        let head = Head::default().bits(bits);
        for words in [1, 2, 31, 33, 65, 100] {
            let what = format!("{bits} bits");
            all_directions(&host, &mut guest, head, words * word, &what);
            let whole = |m: Record| {
                m.transfers()
                    .unwrap()
                    .iter()
                    .all(|t| t.len % word as u32 == 0)
            };
            assert!(host.messages(DEV).into_iter().all(whole), "{what}");
        }
        for len in (1..=9).filter(|len| len % word != 0) {
            let what = format!("{len} bytes of {bits} bits");
            refused(&host, &mut guest, &what, head, &pattern(len), len);
            refused(&host, &mut guest, &what, head, &pattern(len), 0);
            refused(&host, &mut guest, &what, head, &[], len);
        }
    }
}

#[test]
fn length_beyond_bufsiz_cut_anywhere_is_the_same_request() {
    // Two messages and a bit; a cut on either side at every place near a boundary of messages, words and the head.
    let len = 300u32;
    let near = |at: u32| at.saturating_sub(4)..=at + 4;
    for bits in [8, 16, 32] {
        let host = Host::with_devices(1).bufsiz(129);
        let (host, daemon, _) = plugged_into(host);
        let places: Vec<_> = [4u32, 128, 256, len - 2]
            .into_iter()
            .flat_map(near)
            .filter(|at| (1..len).contains(at))
            .collect();
        let mut guest = Guest::connect(&daemon, 0);
        let whole = guest.contiguous(
            Head::default().bits(bits),
            &pattern(len as usize),
            len as usize,
        );
        for (n, at) in places.iter().enumerate() {
            let rx_at = places[(n * 7 + 3) % places.len()];
            let out = [Head::SIZE as u32 - 1, Head::SIZE as u32 + at];
            let request = whole.cut(&out, &[rx_at, len]);
            host.forget();
            guest
                .memory
                .fill(whole.rx_gpa, len as usize + 1, memory::UNTOUCHED);
            if n % 2 == 0 {
                guest.queue(&request);
            } else {
                guest.queue_indirect(&request);
            }
            guest.kick();
            let used = guest.wait_used(1)[0];
            let outcome = guest.outcome(&request, used);
            let what = format!("{bits} bits, tx cut at {at}, rx at {rx_at}");
            assert_eq!(outcome.result, TRANS_OK, "{what}");
            assert!(outcome.rx == pattern(len as usize), "{what}");
            assert!(sent(&one_assertion(&host, DEV)) == outcome.rx, "{what}");
        }
    }
}

#[test]
fn length_of_0_is_param_err_however_it_is_written() {
    let (host, _daemon, mut guest) = plugged();
    let mut request = guest.request(Head::default(), &[1], 1);
    for segment in &mut request.segments[1..3] {
        segment.len = 0;
    }
    request.rx_len = 0;
    let used = {
        guest.queue(&request);
        guest.kick();
        guest.wait_used(1)[0]
    };
    assert_eq!(guest.outcome(&request, used).result, PARAM_ERR);
    assert_eq!(trace(&host), "");
    guest.assert_served();
}

#[test]
fn request_of_any_length_is_one_assertion() {
    let peers = [(4096, 8), (4096, 128), (65_536, 8), (1000, 128), (128, 128)];
    for (bufsiz, align) in peers {
        let limit = bufsiz as usize;
        let lengths = [
            1,
            2,
            limit - 1,
            limit,
            limit + 1,
            2 * limit - 1,
            2 * limit,
            2 * limit + 1,
            65_536,
        ];
        for len in lengths {
            let (host, _daemon, mut guest) =
                plugged_into(Host::with_devices(1).bufsiz(bufsiz).align(align));
            let tx = pattern(len);
            let outcome = guest.transfer(Head::default().freq(10_000_000), &tx, len);
            assert_eq!(
                outcome.result, TRANS_OK,
                "{len} bytes, bufsiz {bufsiz}, alignment {align}"
            );
            assert!(
                outcome.rx == tx,
                "{len} bytes, bufsiz {bufsiz}, alignment {align}"
            );
            let messages = one_assertion(&host, DEV);
            assert!(sent(&messages) == tx);
            let needed = len.div_ceil(limit / align as usize * align as usize);
            assert!(
                messages.len() <= needed,
                "{} messages, {needed} would do",
                messages.len()
            );
        }
    }
}

#[test]
fn request_of_4_mib_is_one_assertion() {
    for (tx_len, rx_len) in [(4 << 20, 4 << 20), (4 << 20, 0), (0, 4 << 20)] {
        let (host, _daemon, mut guest) = plugged_into(Host::new().bufsiz(65_536).device(
            DEV,
            50_000_000,
            Counter::default(),
        ));
        let tx = pattern(tx_len);
        let outcome = guest.transfer(Head::default().freq(50_000_000), &tx, rx_len);
        assert_eq!(outcome.result, TRANS_OK);
        let counted: Vec<_> = (0..rx_len as u64).map(|n| (n % 251) as u8).collect();
        assert!(
            outcome.rx == counted,
            "rx has every byte of one assertion in order"
        );
        assert!(sent(&one_assertion(&host, DEV)) == tx);
    }
}

#[test]
fn request_of_more_than_511_pieces_is_one_assertion() {
    for pieces in [511, 512, 513, 900] {
        let (host, _daemon, mut guest) = plugged_into(Host::with_devices(1).bufsiz(65_536));
        let tx = pattern(pieces);
        let cuts: Vec<_> = (0..pieces as u32).map(|n| Head::SIZE as u32 + n).collect();
        let request = guest
            .contiguous(Head::default(), &tx, pieces)
            .cut(&cuts, &[pieces as u32]);
        guest.queue_indirect(&request);
        guest.kick();
        let used = guest.wait_used(1)[0];
        let outcome = guest.outcome(&request, used);
        assert_eq!(outcome.result, TRANS_OK, "{pieces} pieces");
        assert!(outcome.rx == tx && sent(&one_assertion(&host, DEV)) == tx);
    }
}

#[test]
fn request_of_words_near_bufsiz_is_cut_at_words() {
    for (bits, size) in [(16, 2), (32, 4)] {
        // Neither is a multiple of the word, so that a plain cut at the limit would split one.
        for bufsiz in [4093, 4095, 1001] {
            let (host, _daemon, mut guest) = plugged_into(Host::with_devices(1).bufsiz(bufsiz));
            let tx = pattern(10_000);
            let outcome = guest.transfer(Head::default().bits(bits), &tx, 10_000);
            assert_eq!(outcome.result, TRANS_OK);
            assert!(outcome.rx == tx);
            let messages = one_assertion(&host, DEV);
            assert!(
                messages
                    .iter()
                    .flat_map(|m| m.transfers().unwrap())
                    .all(|t| t.len % size == 0)
            );
        }
    }
}

#[test]
fn request_bufsiz_unreadable_is_taken_as_4096() {
    let (host, _daemon, mut guest) = plugged_into(Host::with_devices(1).without_sysfs());
    assert_eq!(
        guest.transfer(Head::default(), &pattern(9000), 9000).result,
        TRANS_OK
    );
    assert_eq!(one_assertion(&host, DEV).len(), 3);
}
