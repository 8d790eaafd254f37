// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests that are right, and how they reach the wire.

use crate::rig::kernel_rules as rules;
use crate::rig::record::{Kind, Record};
use crate::rig::*;

/// Two edges in all, no failed call, and nothing but messages.
#[track_caller]
pub fn one_assertion(host: &Host, id: host::Id) -> Vec<Record> {
    let all: Vec<_> = host
        .records()
        .into_iter()
        .filter(|r| r.device == id)
        .collect();
    for record in &all {
        assert!(record.ret >= 0, "an ioctl failed with {}", record.ret);
        let release = matches!(record.kind, Kind::Write(_)) && record.request == rules::WR_MODE32;
        assert!(record.transfers().is_some() || release, "{:?}", record.kind);
    }
    assert_eq!(
        host.edges(id),
        2,
        "chip select is held from the first byte to the last"
    );
    assert!(!host.selected(id));
    host.messages(id)
}

fn sent(messages: &[Record]) -> Vec<u8> {
    messages.iter().flat_map(|m| m.tx()).collect()
}

#[test]
fn request_full_duplex_reaches_the_device_as_one_transfer() {
    let (host, _daemon, mut guest) = plugged();
    let head = Head {
        freq: 2_000_000,
        ..Head::default()
    };
    let outcome = guest.transfer(head, b"hello", 5);
    assert_eq!(
        (outcome.result, outcome.rx.as_slice()),
        (TRANS_OK, &b"hello"[..])
    );
    let messages = one_assertion(&host, DEV);
    assert_eq!(host.records().len(), 1, "one system call a request");
    let [transfer] = messages[0].transfers().unwrap() else {
        panic!("{messages:?}")
    };
    assert_eq!(
        (transfer.len, transfer.speed_hz, transfer.bits_per_word),
        (5, 2_000_000, 8)
    );
    assert_eq!(
        (
            transfer.delay_usecs,
            transfer.word_delay_usecs,
            transfer.pad
        ),
        (0, 0, 0)
    );
    assert!(transfer.tx_nbits <= 1 && transfer.rx_nbits <= 1);
    assert_eq!(transfer.tx, b"hello");
}

#[test]
fn request_write_only_and_read_only_have_no_other_buffer() {
    let (host, _daemon, mut guest) =
        plugged_into(Host::new().device(DEV, 10_000_000, Counter::default()));
    assert_eq!(guest.transfer(Head::default(), b"out", 0).result, TRANS_OK);
    assert_eq!(guest.transfer(Head::default(), b"", 4).rx, [0, 1, 2, 3]);
    let all = host.messages(DEV);
    let (write, read) = (
        &all[0].transfers().unwrap()[0],
        &all[1].transfers().unwrap()[0],
    );
    assert_eq!((write.rx_buf, write.tx.as_slice()), (0, &b"out"[..]));
    assert_eq!((read.tx_buf, read.len), (0, 4));
}

#[test]
fn request_frequency_0_is_the_devices_own() {
    let (host, _daemon, mut guest) = plugged();
    assert_eq!(
        guest.transfer(Head::default().freq(0), &[1], 1).result,
        TRANS_OK
    );
    assert!([0, 10_000_000].contains(&host.messages(DEV)[0].transfers().unwrap()[0].speed_hz));
}

#[test]
fn request_cut_anywhere_is_the_same_request() {
    let (host, _daemon, mut guest) = plugged();
    let tx = *b"abcde";
    let (out_len, in_len) = (Head::SIZE as u32 + 5, 6);
    let every = |len: u32| (1..len).collect::<Vec<_>>();
    let mut cuts: Vec<(Vec<u32>, Vec<u32>)> = (1..out_len).map(|at| (vec![at], vec![])).collect();
    cuts.extend((1..in_len).map(|at| (vec![], vec![at])));
    cuts.extend((1..5).flat_map(|a| {
        (1..6).map(move |b| (vec![Head::SIZE as u32, Head::SIZE as u32 + a], vec![b]))
    }));
    cuts.push((vec![], vec![]));
    cuts.push((every(out_len), every(in_len)));
    for (out, into) in &cuts {
        for indirect in [false, true] {
            host.forget();
            let request = guest.contiguous(Head::default(), &tx, 5).cut(out, into);
            if indirect {
                guest.queue_indirect(&request)
            } else {
                guest.queue(&request)
            };
            guest.kick();
            let used = guest.wait_used(1)[0];
            let outcome = guest.outcome(&request, used);
            assert_eq!(
                (outcome.result, outcome.rx.as_slice()),
                (TRANS_OK, &tx[..]),
                "{out:?} {into:?}"
            );
            let messages = one_assertion(&host, DEV);
            assert_eq!(
                (messages.len(), sent(&messages)),
                (1, tx.to_vec()),
                "{out:?} {into:?}"
            );
        }
    }
}

#[test]
fn request_with_empty_descriptors_is_the_same_request() {
    let (host, _daemon, mut guest) = plugged();
    let mut request = guest.request(Head::default(), b"abc", 3);
    let nothing = |s: Segment| Segment { len: 0, ..s };
    let s = request.segments.clone();
    request.segments = vec![
        s[0],
        nothing(s[1]),
        s[1],
        nothing(s[1]),
        nothing(s[2]),
        s[2],
        nothing(s[2]),
        s[3],
        nothing(s[3]),
    ];
    guest.queue(&request);
    guest.kick();
    // VIRTIO says nothing of empty descriptors: carried out or refused, but answered, and not half done.
    let used = guest.wait_used(1)[0];
    let outcome = guest.outcome(&request, used);
    match outcome.result {
        TRANS_OK => assert_eq!(
            (outcome.rx.as_slice(), sent(&one_assertion(&host, DEV))),
            (&b"abc"[..], b"abc".to_vec())
        ),
        result => assert_eq!((result, host.records().len()), (PARAM_ERR, 0)),
    }
}

#[test]
fn request_payload_pointers_are_the_guests_memory() {
    let (host, daemon, mut guest) = plugged();
    let request = guest
        .request(Head::default(), &pattern(300), 300)
        .cut(&[132], &[50, 51]);
    assert_eq!(guest.carry_out(&request).result, TRANS_OK);
    let messages = host.messages(DEV);
    let mut at = 0;
    for transfer in messages[0].transfers().unwrap() {
        assert_eq!(
            daemon.file_behind(transfer.tx_buf),
            Some(guest.memory.file_behind(request.tx_gpa + at))
        );
        assert_eq!(
            daemon.file_behind(transfer.rx_buf),
            Some(guest.memory.file_behind(request.rx_gpa + at))
        );
        at += u64::from(transfer.len);
    }
    assert_eq!(at, 300);
}

#[test]
fn request_large_payload_pointers_are_the_guests_memory() {
    let (host, daemon, mut guest) = plugged_into(Host::with_devices(1).bufsiz(65_536));
    let len = 300_000;
    let request = guest.request(Head::default().freq(10_000_000), &pattern(len), len);
    assert_eq!(guest.carry_out(&request).result, TRANS_OK);
    let mut at = 0;
    for message in host.messages(DEV) {
        for transfer in message.transfers().unwrap().iter().filter(|t| t.len != 0) {
            assert_eq!(
                daemon.file_behind(transfer.tx_buf),
                Some(guest.memory.file_behind(request.tx_gpa + at))
            );
            assert_eq!(
                daemon.file_behind(transfer.rx_buf),
                Some(guest.memory.file_behind(request.rx_gpa + at))
            );
            at += u64::from(transfer.len);
        }
    }
    assert_eq!(at, len as u64);
}

#[test]
fn request_across_memory_regions_is_one_assertion() {
    let host = Host::with_devices(1);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    let regions = (0..3)
        .map(|n| Region::new(0x1_0000_0000 + n * 0x10_0000, 0x10_0000))
        .collect();
    let mut guest = Plug::default().regions(regions).connect(&daemon, 0);
    let border = 0x1_0010_0000;
    // Every part of the request in turn lies on the border.
    for back in [0, 1, 16, 31, 32, 33, 34, 36, 40, 45, 46, 47, 50] {
        host.forget();
        guest.alloc_from(border - back - 3);
        let request = guest.contiguous(Head::default(), b"0123456789", 10);
        assert_eq!(
            guest.carry_out(&request).rx,
            b"0123456789",
            "{back} bytes before the border"
        );
        assert_eq!(sent(&one_assertion(&host, DEV)), b"0123456789");
    }
    // The ring of descriptors of an indirect table, too.
    guest.alloc_from(border + 0x1000);
    let request = guest.request(Head::default(), b"abc", 3);
    guest
        .ring
        .place_indirect(&request.segments, border - 32, &guest.memory);
    guest.kick();
    let used = guest.wait_used(1)[0];
    assert_eq!(guest.outcome(&request, used).rx, b"abc");
}

#[test]
fn request_tx_is_never_changed() {
    let (_host, _daemon, mut guest) =
        plugged_into(Host::new().device(DEV, 10_000_000, Reads(0x77)));
    let tx = pattern(5000);
    let request = guest.request(Head::default(), &tx, 5000);
    assert_eq!(guest.carry_out(&request).rx, [0x77; 5000]);
    assert!(guest.memory.read(request.tx_gpa, 5000) == tx);
}

#[test]
fn request_does_not_write_beside_its_buffers() {
    let (_host, _daemon, mut guest) = plugged();
    for len in [1, 7, 4097] {
        let request = guest.request(Head::default(), &pattern(len), len);
        guest.carry_out(&request);
        // Between the pieces that `alloc` gives lie three bytes of memory that is still zero.
        for (gpa, len) in [(request.rx_gpa, len), (request.result_gpa, 1)] {
            assert_eq!(guest.memory.read(gpa - 3, 3), [0; 3]);
            assert_eq!(guest.memory.read(gpa + len as u64, 3), [0; 3]);
        }
    }
}

#[test]
fn request_words_of_16_and_32_bits_cut_oddly_arrive_whole() {
    for (bits, size) in [(16, 2), (32, 4)] {
        for cut in 1..12u32 {
            for rx_cut in [cut, 12 - cut] {
                let (host, daemon, mut guest) = plugged();
                let tx = pattern(12);
                let whole = guest.contiguous(Head::default().bits(bits), &tx, 12);
                let request =
                    whole.cut(&[Head::SIZE as u32, Head::SIZE as u32 + cut], &[rx_cut, 12]);
                // The pieces far from each other, so that only the device's copying can join a word.
                let moved = scatter(&mut guest, &request);
                guest.queue(&moved.0);
                guest.kick();
                let used = guest.wait_used(1)[0];
                assert_eq!(used.len, 13);
                assert_eq!(
                    gather(&guest, &moved.1),
                    [tx.as_slice(), &[TRANS_OK]].concat(),
                    "{bits} bits, {cut}, {rx_cut}"
                );
                let messages = one_assertion(&host, DEV);
                assert_eq!(sent(&messages), tx);
                let inode = guest.memory.file_behind(request.tx_gpa).0;
                let mut copied = 0;
                for transfer in messages.iter().flat_map(|m| m.transfers().unwrap()) {
                    assert_eq!(transfer.len % size, 0);
                    assert_eq!(transfer.bits_per_word, bits);
                    let theirs = |addr| {
                        daemon
                            .file_behind(addr)
                            .is_some_and(|(found, _)| found == inode)
                    };
                    copied += if theirs(transfer.tx_buf) && theirs(transfer.rx_buf) {
                        0
                    } else {
                        transfer.len
                    };
                }
                // Two cuts, on either side: at most the two words that they are in.
                assert!(
                    copied <= 2 * size,
                    "{bits} bits, {cut}, {rx_cut}: {copied} bytes were copied"
                );
            }
        }
    }
}

/// The same request with every segment at a place of its own; the device-writable ones are listed.
fn scatter(guest: &mut Guest, request: &Request) -> (Request, Vec<Segment>) {
    let mut moved = request.clone();
    for segment in &mut moved.segments {
        let gpa = guest.alloc(segment.len as usize);
        guest
            .memory
            .write(gpa, &guest.memory.read(segment.gpa, segment.len as usize));
        segment.gpa = gpa;
    }
    let writable = moved.segments.iter().copied().filter(|s| s.write).collect();
    (moved, writable)
}

fn gather(guest: &Guest, segments: &[Segment]) -> Vec<u8> {
    segments
        .iter()
        .flat_map(|s| guest.memory.read(s.gpa, s.len as usize))
        .collect()
}
