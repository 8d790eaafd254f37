// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Drives the real, unmodified daemon from outside: a faked `/dev/spidevX.Y` under it, real front-ends above it.
//!
//! `DAEMON=path` tests another build. Names are `<unit>_<condition>_<outcome>`.

#![allow(dead_code, reason = "the rig offers more than the tests of today use")]
#![allow(
    clippy::incompatible_msrv,
    reason = "only the daemon must compile with an old compiler"
)]

mod rig;

mod access;
mod allocations;
mod chips;
mod cli;
mod closing;
mod config;
mod confinement;
mod counters;
mod delays;
mod errors;
mod guest_memory;
mod guests;
mod handed_in;
mod heads;
mod holds;
mod hostile;
mod judgement;
mod lengths;
mod life;
mod linux;
mod locked_memory;
mod log;
mod loopback;
mod messages;
mod mix;
mod naming;
mod neighbours;
mod options;
mod packaging;
mod passing;
mod polling;
mod requests;
mod rig_self;
mod rules;
mod sd_notify;
mod sequences;
mod soak;
mod sockets;
mod startup;
mod steady;
mod syscalls;
mod time;
mod turns;
mod vhost_user;
mod vring;
mod vring_edges;
