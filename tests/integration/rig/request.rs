// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One SPI request in guest memory, and what came of it.

use super::ring::Segment;

/// One SPI request as it lies in guest memory.
#[derive(Clone, Debug)]
pub struct Request {
    /// In the order of the chain, not cut yet: head, tx, rx and result (those that are there).
    pub segments: Vec<Segment>,
    pub tx_gpa: u64,
    pub rx_gpa: u64,
    pub rx_len: u32,
    pub result_gpa: u64,
}

impl Request {
    /// Cuts the device-readable and the device-writable bytes at these offsets from the start of each.
    pub fn cut(&self, out: &[u32], into: &[u32]) -> Self {
        let mut segments = Vec::new();
        let mut start = [0, 0];
        for whole in &self.segments {
            let begin = start[usize::from(whole.write)];
            let end = begin + whole.len;
            start[usize::from(whole.write)] = end;
            let mut from = begin;
            for at in if whole.write { into } else { out } {
                if (from + 1..end).contains(at) {
                    segments.push(Segment {
                        gpa: whole.gpa + u64::from(from - begin),
                        len: at - from,
                        ..*whole
                    });
                    from = *at;
                }
            }
            segments.push(Segment {
                gpa: whole.gpa + u64::from(from - begin),
                len: end - from,
                ..*whole
            });
        }
        Self {
            segments,
            ..self.clone()
        }
    }
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub result: u8,
    pub rx: Vec<u8>,
    pub used_len: u32,
}
