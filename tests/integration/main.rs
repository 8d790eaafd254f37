//! Drives the real, unmodified daemon from outside: a faked `/dev/spidevX.Y` under it, real front-ends above it.
//!
//! `DAEMON=path` tests another build. Names are `<unit>_<condition>_<outcome>`.

#![allow(dead_code, reason = "the rig offers more than the tests of today use")]

mod rig;

mod cli;
mod guests;
mod heads;
mod judgement;
mod life;
mod linux;
mod loopback;
mod requests;
mod rig_self;
mod sequences;
mod sockets;
mod startup;
mod vhost_user;
mod vring;
