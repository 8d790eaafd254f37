// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Wire time: pieces of at most 100 ms with chip select held between them, and what goes on meanwhile.

use crate::judgement::refused;
use crate::requests::one_assertion;
use crate::rig::ask::*;
use crate::rig::*;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Microseconds that one message takes, as a controller would.
fn usecs(message: &record::Record) -> u64 {
    let time = |t: &record::Transfer| {
        let word = u64::from(kernel_rules::word_size(t.bits_per_word));
        let words = u64::from(t.len) / word;
        let bits = words * u64::from(t.bits_per_word);
        let delays = words * u64::from(t.word_delay_usecs) + u64::from(t.delay_usecs);
        bits * 1_000_000 / u64::from(t.speed_hz) + delays
    };
    message.transfers().unwrap().iter().map(time).sum()
}

#[test]
fn time_of_each_message_at_a_low_speed_is_at_most_100_ms() {
    let host = Host::new()
        .bufsiz(65_536)
        .controller(0, |c| c.bits_per_word_mask = u32::MAX);
    let host = host.device(DEV, 10_000_000, Loopback);
    let (_daemon, mut guest) = serve_with(&host, ",word-delay=on", &[]);
    let cases = [
        // Bits, Hz, word delay in ns, bytes, and the fewest messages that keep the bound.
        (8, 80, 0, 5, 5),
        (8, 159, 0, 5, 5),
        (8, 160, 0, 6, 3),
        (16, 160, 0, 8, 4),
        (24, 240, 0, 8, 2),
        (32, 320, 0, 12, 3),
        (1, 1000, 0, 250, 3),
        (8, 1000, 0, 50, 5),
        (8, 10_000, 0, 500, 4),
        (8, 10_000, 200_000, 500, 5),
        (8, 100_000, 0, 5000, 4),
        (12, 100_000, 0, 5000, 4),
        (8, 1_000_000, 0, 50_000, 4),
        (8, 1_000_000, 255_000, 2000, 6),
    ];
    for (bits, hz, word_delay_ns, len, fewest) in cases {
        host.forget();
        let head = Head {
            word_delay_ns,
            ..let_go(0).bits(bits).freq(hz)
        };
        let ask = Ask {
            head,
            tx: len,
            rx: len,
        };
        let what = format!("{bits} bits at {hz} Hz, {len} bytes");
        assert_eq!(together(&mut guest, &[ask]), [TRANS_OK], "{what}");
        let messages = one_assertion(&host, DEV);
        let times: Vec<_> = messages.iter().map(usecs).collect();
        assert!(times.iter().all(|t| *t <= 100_000), "{what}: {times:?}");
        assert_eq!(messages.len(), fewest, "{what}: {times:?}");
    }
}

#[test]
fn time_of_the_hold_and_setup_delays_is_within_the_100_ms() {
    let host = Host::with_devices(1).bufsiz(65_536);
    let (_daemon, mut guest) = serve_with(&host, ",cs-setup=on", &[]);
    let cs_setup_ns = guest.config().max_cs_setup_ns;
    let head = Head {
        cs_setup_ns,
        cs_delay_hold_ns: 40_000_000,
        ..let_go(0).freq(10_000)
    };
    let ask = Ask {
        head,
        tx: 400,
        rx: 0,
    };
    host.forget();
    assert_eq!(together(&mut guest, &[ask]), [TRANS_OK]);
    let times: Vec<_> = one_assertion(&host, DEV).iter().map(usecs).collect();
    assert!(times.iter().all(|t| *t <= 100_000), "{times:?}");
}

#[test]
fn time_of_one_word_above_100_ms_is_param_err() {
    let host = Host::new().controller(0, |c| c.bits_per_word_mask = u32::MAX);
    let (host, _daemon, mut guest) = plugged_into(host.device(DEV, 10_000_000, Loopback));
    for bits in [1u8, 8, 9, 16, 24, 32] {
        let slowest = u32::from(bits) * 10;
        let len = kernel_rules::word_size(bits) as usize;
        let ask = Ask {
            head: let_go(0).bits(bits).freq(slowest),
            tx: len,
            rx: len,
        };
        assert_eq!(together(&mut guest, &[ask]), [TRANS_OK], "{bits} bits");
        let head = let_go(0).bits(bits).freq(slowest - 1);
        refused(
            &host,
            &mut guest,
            &format!("{bits} bits"),
            head,
            &pattern(len),
            len,
        );
    }
    // With its delays it takes too long at a speed that would do without.
    let head = Head {
        cs_delay_hold_ns: 40_000_000,
        ..let_go(0).freq(134)
    };
    assert_eq!(together(&mut guest, &[both(head)]), [TRANS_OK]);
    refused(&host, &mut guest, "hold delay", head.freq(133), &[1], 1);
}

/// A guest whose transfer of `ms` milliseconds is on the wire of a bus that takes its time, and another guest.
fn slow(ms: usize) -> (Host, Daemon, Guest, Guest, Request) {
    let host = three_devices().real_time();
    let (daemon, mut guests) = serve_three(&host, 2, &[]);
    let (mut slow, other) = (guests.remove(0), guests.remove(0));
    // 10 kHz: 1.25 bytes a millisecond.
    let request = slow.request(let_go(0).freq(10_000), &pattern(ms * 5 / 4), 0);
    slow.queue(&request);
    slow.kick();
    assert!(sys::eventually(PATIENCE, || !host.records().is_empty()));
    (host, daemon, slow, other, request)
}

#[test]
fn time_between_two_pieces_is_used_to_answer_other_guests() {
    sys::on_time(|| {
        let (host, _daemon, mut slow, mut other, request) = slow(700);
        let mut count = 0;
        while slow.ring.device_idx(&slow.memory) == 0 {
            assert_eq!(other.config().cs_max_number, 3);
            count += 1;
        }
        assert_eq!(results(&mut slow, &[request]), [TRANS_OK]);
        assert!(host.messages(DEV).iter().all(|m| usecs(m) <= 100_000));
        assert_eq!(host.edges(DEV), 2);
        // The last of them may have come with the end.
        (count > 2).then_some(()).ok_or(format!("{count} answers"))
    });
}

#[test]
fn time_between_two_pieces_answers_another_guests_message_that_came_during_the_first() {
    let host = three_devices();
    let (_daemon, mut guests) = serve_three(&host, 2, &[]);
    let gates = [0, 1].map(|n| host.gate_message(DEV, n));
    let [first, second] = gates;
    let long = Ask {
        head: let_go(0),
        tx: 9000,
        rx: 0,
    };
    let queued = queue(&mut guests[0], &[long]);
    first.reached();
    let question: Vec<u8> = [0u32, 4, 0, 0]
        .iter()
        .flat_map(|w| w.to_le_bytes())
        .collect();
    let other = &guests[1].raw;
    other
        .send(raw::GET_CONFIG, raw::VERSION, &question, &[])
        .unwrap();
    first.release();
    second.reached();
    let answered = sys::readable(other.sock.as_raw_fd(), Duration::ZERO);
    second.release();
    assert_eq!(results(&mut guests[0], &queued), [TRANS_OK]);
    assert!(answered, "the second piece went first");
}

#[test]
fn time_between_two_pieces_is_used_to_serve_other_controllers() {
    sys::on_time(|| {
        let (host, _daemon, mut slow, mut other, request) = slow(700);
        assert_eq!(in_turn(&mut other, &[both(let_go(2)); 3]), [TRANS_OK; 3]);
        assert_eq!(results(&mut slow, &[request]), [TRANS_OK]);
        assert_eq!(host.edges(DEV), 2);
        // The other guest's transfers on a controller of their own did not wait for the end of the first.
        let last = host.messages((1, 0)).pop().unwrap().at;
        let before = last < host.messages(DEV).pop().unwrap().at;
        before.then_some(()).ok_or(trace(&host))
    });
}

#[test]
fn time_between_two_pieces_is_used_to_notice_signals() {
    // More than it would finish.
    let (host, mut daemon, slow, _other, request) = slow(5000);
    daemon.signal(libc::SIGTERM);
    assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
    assert!(!host.selected(DEV));
    assert_eq!(slow.memory.read(request.result_gpa, 1), [TRANS_ERR]);
}

#[test]
fn time_of_each_message_is_at_most_what_is_set() {
    let several = || three_devices().bufsiz(65_536);
    let alone = || Host::with_devices(1).bufsiz(65_536);
    // 20 ms at a MHz.
    let ask = |cs| Ask {
        head: let_go(cs).bits(8).freq(1_000_000),
        tx: 2500,
        rx: 0,
    };
    let sent = |host: &Host, guest: &mut Guest, cs| {
        host.forget();
        assert_eq!(together(guest, &[ask(cs)]), [TRANS_OK]);
        let device = if cs == 2 { (1, 0) } else { DEV };
        let times: Vec<u64> = one_assertion(host, device).iter().map(usecs).collect();
        times
    };
    for (args, most) in [
        (&["--max-message-ms=5"][..], 5000),
        (&["--max-message-ms=2"], 2000),
    ] {
        let host = several();
        let setup = Setup::new(&host)
            .device("/dev/spidev0.0")
            .device("/dev/spidev0.1");
        let setup = setup.device("/dev/spidev1.0");
        let daemon = args
            .iter()
            .fold(setup, |setup, arg| setup.arg(*arg))
            .start();
        let mut guest = Guest::connect(&daemon, 0);
        for cs in [0, 2] {
            let times = sent(&host, &mut guest, cs);
            assert!(times.iter().all(|t| *t <= most), "{args:?}: {times:?}");
            assert_eq!(times.len() as u64, 20_000 / most, "{args:?}: {times:?}");
        }
    }
    let host = alone();
    let (_daemon, mut guest) = serve_with(&host, "", &[]);
    assert_eq!(sent(&host, &mut guest, 0), [20_000]);
}
