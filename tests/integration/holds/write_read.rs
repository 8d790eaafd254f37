// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--cs-hold=write-read`: a guess that a read belongs to the write in front of it.

use super::{assert_held, check};
use crate::rig::ask::*;
use crate::rig::*;
use std::time::Duration;

/// Long enough for the read of any test.
const LONG: &[&str] = &["--cs-hold=write-read", "--cs-hold-timeout-ms=20000"];
const CPOL: u32 = virtio::CPOL;

#[test]
fn hold_write_read_joins_a_write_and_the_read_behind_it_and_nothing_else() {
    let (ok, no) = (TRANS_OK, PARAM_ERR);
    let (w, r, b) = (write(keep(0)), read(keep(0)), both(let_go(0)));
    for ask in [in_turn, together] {
        check(
            LONG,
            ask,
            &[
                ("write, read", &[w, r], &[ok; 2], "0+ 0"),
                ("twice", &[w, r, w, r], &[ok; 4], "0+ 0 0+ 0"),
                ("read, read", &[r, r], &[ok; 2], "0 0"),
                (
                    "read that asks to keep, both",
                    &[w, r, b],
                    &[ok; 3],
                    "0+ 0 0",
                ),
                ("write, write, read", &[w, w, r], &[ok; 3], "0+ w0 0+ 0"),
                ("write, both", &[w, b], &[ok; 2], "0+ w0 0"),
                ("both, read", &[both(keep(0)), r], &[ok; 2], "0 0"),
                (
                    "another chip select",
                    &[w, read(keep(1))],
                    &[ok; 2],
                    "0+ w0 1",
                ),
                (
                    "another controller",
                    &[w, read(keep(2))],
                    &[ok; 2],
                    "0+ w0 1:0",
                ),
                (
                    "another mode",
                    &[w, read(keep(0).mode(CPOL))],
                    &[ok; 2],
                    "0+ w0 w0 0",
                ),
                (
                    "a write that lets go",
                    &[write(let_go(0)), r],
                    &[ok; 2],
                    "0 0",
                ),
                (
                    "refused in between",
                    &[w, wrong(1), r],
                    &[ok, no, ok],
                    "0+ 0",
                ),
            ],
        );
    }
}

#[test]
fn hold_write_read_makes_a_register_read_work() {
    let host = Host::new().device(DEV, 10_000_000, peer::Memory::new());
    let (_daemon, mut guest) = serve_with(&host, "", LONG);
    for register in [0u8, 7, 0x80] {
        assert_eq!(guest.transfer(keep(0), &[3, register], 0).result, TRANS_OK);
        let read = guest.transfer(keep(0), &[], 2);
        assert_eq!(read.rx, [!register, !(register + 1)]);
    }
    assert_eq!(
        (host.edges(DEV), trace(&host).as_str()),
        (6, "0+ 0 0+ 0 0+ 0")
    );
}

#[test]
fn hold_write_read_not_continued_ends_after_1_ms_by_default() {
    for (args, ms) in [
        (&["--cs-hold=write-read"][..], 1),
        (&["--cs-hold=write-read", "--cs-hold-timeout-ms=60"], 60),
    ] {
        let host = three_devices();
        let (_daemon, mut guests) = serve_three(&host, 1, args);
        sys::on_time(|| {
            host.forget();
            assert_eq!(in_turn(&mut guests[0], &[write(keep(0))]), [TRANS_OK]);
            assert_trace(&host, "0+ w0");
            assert_held(&host, ms)
        });
        // The read comes too late to be joined, which is no error.
        host.forget();
        assert_eq!(in_turn(&mut guests[0], &[read(keep(0))]), [TRANS_OK]);
        assert_trace(&host, "0");
    }
}

#[test]
fn hold_write_read_cut_for_another_guest_is_no_error() {
    let host = three_devices();
    let args = ["--cs-hold=write-read", "--cs-hold-timeout-ms=50"];
    let (daemon, mut guests) = serve_three(&host, 2, &args);
    let [guesser, other] = &mut guests[..] else {
        panic!()
    };
    for _ in 0..5 {
        assert_eq!(in_turn(guesser, &[write(keep(0))]), [TRANS_OK]);
        let waiting = queue(other, &[both(let_go(1))]);
        assert_eq!(results(other, &waiting), [TRANS_OK]);
        assert_eq!(
            in_turn(guesser, &[read(keep(0)), read(keep(0))]),
            [TRANS_OK; 2]
        );
    }
    assert_trace(&host, &["0+ w0 1 0 0"; 5].join(" "));
    assert_one_selected_at_a_time(&host);
    assert!(daemon.said().is_empty(), "{:?}", daemon.said());
}

#[test]
fn hold_write_read_read_that_races_with_the_cut_is_never_an_error() {
    let host = three_devices();
    let args = ["--cs-hold=write-read", "--cs-hold-timeout-ms=1"];
    let (_daemon, mut guests) = serve_three(&host, 2, &args);
    let [guesser, other] = &mut guests[..] else {
        panic!()
    };
    for n in 0..300u64 {
        assert_eq!(in_turn(guesser, &[write(keep(0))]), [TRANS_OK]);
        let waiting = queue(other, &[both(let_go(1))]);
        // Around the end of the hold, a little earlier or later each time.
        std::thread::sleep(Duration::from_micros(600 + n % 30 * 20));
        assert_eq!(in_turn(guesser, &[read(keep(0))]), [TRANS_OK], "round {n}");
        assert_eq!(results(other, &waiting), [TRANS_OK]);
    }
    assert_one_selected_at_a_time(&host);
}
