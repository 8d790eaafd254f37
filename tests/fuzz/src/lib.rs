// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is fuzzed, as plain functions of the bytes of an input: each panics where the daemon does
//! not do what it must.
//!
//! | target | what the bytes are | what is compared |
//! |---|---|---|
//! | [`messages`] | vhost-user messages with fds, and what front-ends do between them | replies, fds left open, ends of connections |
//! | [`ring`] | ring and guest memory, and changes to them while requests run | every byte of memory, every used element |
//! | [`head`] | a request's head, lengths and limits | the judgement and the wire time |
//! | [`framing`] | commands of a flash chip in requests of any cut, and requests of any kind | what a model of the chip saw between two edges, and its state |
//! | [`plan`] | segments, word length and budget | every byte of every message |
//!
//! `fuzz_targets/` gives them to libFuzzer, `tests/replay.rs` replays what is kept in `corpus/` and
//! `regressions/` without it.

mod devices;
mod fds;
pub mod framing;
pub mod head;
pub mod input;
pub mod messages;
#[path = "../../integration/rig/nor.rs"]
mod nor;
pub mod plan;
pub mod ring;
mod watch;
