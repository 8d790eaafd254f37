// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the benchmark (`main.rs`) and the measurement of latencies (`bin/latency`) share: guests, their
//! front-ends, the programs that serve them over a faked spidev, statistics and drawing.

pub mod guest;
pub mod process;
pub mod program;
pub mod stats;
pub mod svg;
pub mod sys;
pub mod vhost_user;
