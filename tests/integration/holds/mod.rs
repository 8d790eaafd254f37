// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Chip select between requests, as `--cs-hold` says: what reached the lines, not only what was answered.

mod ends;
mod others;
mod queued;
mod spec;
mod write_read;

use crate::rig::ask::*;
use crate::rig::*;
use std::time::Duration;

/// A hold that nobody waits for, of which the trace is `0+ w0`, lasts as long as this, and no longer on a machine that has
/// time for it.
#[track_caller]
fn assert_held(host: &Host, ms: u64) -> Result<(), String> {
    let records = host.records();
    let held = records[1].at - records[0].at;
    assert!(held >= Duration::from_millis(ms), "{held:?} of {ms} ms");
    sys::within(held, Duration::from_millis(ms + 80))
}

/// One sequence of requests, its results and the trace that it must leave.
type Case<'a> = (&'a str, &'a [Ask], &'a [u8], &'a str);

/// Each case on a daemon of its own, requests given to `ask`; every line is released in the end by the time-out at most.
#[track_caller]
fn check(args: &[&str], ask: fn(&mut Guest, &[Ask]) -> Vec<u8>, cases: &[Case]) {
    for (name, asks, expected, expected_trace) in cases {
        let host = three_devices();
        let (_daemon, mut guests) = serve_three(&host, 1, args);
        assert_eq!(ask(&mut guests[0], asks), *expected, "{name}: results");
        let done = || trace(&host) == *expected_trace;
        sys::eventually(PATIENCE, done);
        assert_eq!(trace(&host), *expected_trace, "{name}");
        assert_one_selected_at_a_time(&host);
        let devices = [(0, 0), (0, 1), (1, 0)];
        assert!(
            !devices.iter().any(|id| host.selected(*id)),
            "{name}: released"
        );
        // Each assertion begins with one edge and ends with one, whoever ends it.
        let assertions: u32 = devices.iter().map(|id| host.edges(*id)).sum::<u32>() / 2;
        let begun = host
            .records()
            .iter()
            .filter(|r| r.transfers().is_some() && !r.selected.0)
            .count();
        assert_eq!(assertions as usize, begun, "{name}: edges");
    }
}
