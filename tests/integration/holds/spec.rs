// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--cs-hold=spec`: `cs_change` 0 keeps chip select asserted until the guest's next request, however much later.

use super::{assert_held, check};
use crate::rig::ask::*;
use crate::rig::*;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Longer than any test of which the time-out is no part.
const LONG: &[&str] = &["--cs-hold=spec", "--cs-hold-timeout-ms=20000"];
const CPOL: u32 = virtio::CPOL;

#[test]
fn hold_spec_follows_cs_change_however_requests_come() {
    let (ok, no) = (TRANS_OK, PARAM_ERR);
    let (k, g) = (both(keep(0)), both(let_go(0)));
    for ask in [in_turn, together] {
        check(
            LONG,
            ask,
            &[
                ("kept and let go", &[k, k, g], &[ok; 3], "0+ 0+ 0"),
                ("let go each time", &[g, g], &[ok; 2], "0 0"),
                (
                    "write, read, both",
                    &[write(keep(0)), read(keep(0)), g, k, read(let_go(0))],
                    &[ok; 5],
                    "0+ 0+ 0 0+ 0",
                ),
                (
                    "another word size and speed",
                    &[
                        k,
                        Ask {
                            head: let_go(0).bits(32).freq(0),
                            tx: 4,
                            rx: 4,
                        },
                    ],
                    &[ok; 2],
                    "0+ 0",
                ),
                (
                    "another chip select",
                    &[k, both(let_go(1))],
                    &[ok; 2],
                    "0+ w0 1",
                ),
                (
                    "another chip select, kept too",
                    &[k, both(keep(1)), g],
                    &[ok; 3],
                    "0+ w0 1+ w1 0",
                ),
                (
                    "another controller",
                    &[k, both(let_go(2))],
                    &[ok; 2],
                    "0+ w0 1:0",
                ),
                (
                    "another mode: released, then set",
                    &[k, both(let_go(0).mode(CPOL))],
                    &[ok; 2],
                    "0+ w0 w0 0",
                ),
                (
                    "refused in between",
                    &[k, wrong(0), g],
                    &[ok, no, ok],
                    "0+ 0",
                ),
                (
                    "refused elsewhere",
                    &[k, wrong(1), g],
                    &[ok, no, ok],
                    "0+ 0",
                ),
            ],
        );
    }
}

#[test]
fn hold_spec_without_a_next_request_ends_by_the_time_out() {
    let k = both(keep(0));
    for (args, ms) in [
        (&["--cs-hold=spec"][..], 100),
        (&["--cs-hold=spec", "--cs-hold-timeout-ms=30"], 30),
        (&["--cs-hold-timeout-ms=250", "--cs-hold=0:spec"], 250),
    ] {
        sys::on_time(|| {
            let host = three_devices();
            let (_daemon, mut guests) = serve_three(&host, 1, args);
            assert_eq!(together(&mut guests[0], &[k]), [TRANS_OK]);
            assert_trace(&host, "0+ w0");
            assert_eq!(host.edges(DEV), 2);
            let held = assert_held(&host, ms);
            // The request that would have continued it is told, once, with nothing on the wire.
            host.forget();
            let after = [both(let_go(0)), both(let_go(0))];
            assert_eq!(in_turn(&mut guests[0], &after), [TRANS_ERR, TRANS_OK]);
            assert_trace(&host, "0");
            held
        });
    }
}

#[test]
fn hold_spec_continued_with_nobody_waiting_outlasts_the_time_out() {
    sys::on_time(|| {
        let host = three_devices();
        let args = ["--cs-hold=spec", "--cs-hold-timeout-ms=500"];
        let (_daemon, mut guests) = serve_three(&host, 1, &args);
        let (k, g) = (both(keep(0)), both(let_go(0)));
        let mut last = Instant::now();
        for ask in [k, k, k, k, g] {
            sleep(Duration::from_millis(200));
            let results = together(&mut guests[0], &[ask]);
            sys::within(last.elapsed(), Duration::from_millis(400))?;
            assert_eq!(results, [TRANS_OK]);
            last = Instant::now();
        }
        assert_trace(&host, "0+ 0+ 0+ 0+ 0");
        assert_eq!(host.edges(DEV), 2);
        Ok(())
    });
}

#[test]
fn hold_spec_lets_a_command_and_its_data_be_separate_requests() {
    let host = Host::new().device(DEV, 10_000_000, peer::Memory::new());
    let (_daemon, mut guest) = serve_with(&host, "", LONG);
    assert_eq!(guest.transfer(keep(0), &[3], 0).result, TRANS_OK);
    assert_eq!(guest.transfer(keep(0), &[0x20], 0).result, TRANS_OK);
    assert_eq!(guest.transfer(let_go(0), &[], 3).rx, [!0x20, !0x21, !0x22]);
    assert_trace(&host, "0+ 0+ 0");
}

#[test]
fn hold_spec_is_asked_of_long_transfers_too() {
    let host = three_devices();
    let (_daemon, mut guests) = serve_three(&host, 1, LONG);
    let long = |head| Ask {
        head,
        tx: 9000,
        rx: 9000,
    };
    let asks = [long(keep(0)), both(keep(0)), long(let_go(0))];
    assert_eq!(in_turn(&mut guests[0], &asks), [TRANS_OK; 3]);
    assert_trace(&host, "0+ 0+ 0+ 0+ 0+ 0+ 0");
    assert_eq!(host.edges(DEV), 2);
}

#[test]
fn hold_policies_are_each_guests_own_and_the_last_one_given_counts() {
    // Guest, policy as its trace shows it after a write and a read, one at a time.
    let (queued, spec, write_read) = ("0 0", "0+ 0+", "0+ 0");
    let lists: [(&[&str], [&str; 4]); 5] = [
        (&["--cs-hold=1:spec"], [queued, spec, queued, queued]),
        (
            &["--cs-hold=spec", "--cs-hold=1:queued"],
            [spec, queued, spec, spec],
        ),
        (
            &["--cs-hold=0-1:spec", "--cs-hold=1-2:write-read"],
            [spec, write_read, write_read, queued],
        ),
        (
            &["--cs-hold=0+2-3:write-read"],
            [write_read, queued, write_read, write_read],
        ),
        (&["--cs-hold=2:spec", "--cs-hold=queued"], [queued; 4]),
    ];
    for (args, expected) in lists {
        let host = three_devices();
        let args = [args, &["--cs-hold-timeout-ms=20000"]].concat();
        let (_daemon, mut guests) = serve_three(&host, 4, &args);
        for (n, expected) in expected.into_iter().enumerate() {
            host.forget();
            let asks = [write(keep(0)), read(keep(0))];
            assert_eq!(in_turn(&mut guests[n], &asks), [TRANS_OK; 2]);
            assert_eq!(trace(&host), expected, "{args:?}, guest {n}");
            // Whatever is held would keep the next guest waiting.
            assert_eq!(in_turn(&mut guests[n], &[both(let_go(0))]), [TRANS_OK]);
        }
    }
}

#[test]
fn hold_policy_or_time_out_that_makes_no_sense_is_a_usage_error() {
    let host = three_devices();
    for (args, words) in [
        (&["--cs-hold=maybe"][..], &["cs-hold", "maybe"][..]),
        (&["--cs-hold="], &["cs-hold"]),
        (&["--cs-hold=1:spec"], &["cs-hold", "guest 1"]),
        (&["--cs-hold=2-1:spec"], &["cs-hold", "2-1"]),
        (&["--cs-hold-timeout-ms=0"], &["cs-hold-timeout-ms", "'0'"]),
        (&["--cs-hold-timeout-ms=1s"], &["cs-hold-timeout-ms", "1s"]),
    ] {
        let args = [&["--socket-path=s", "--device=/dev/spidev0.0"], args].concat();
        assert_eq!(setup::run(&host, &args).refused(words), 64, "{args:?}");
    }
}
