// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From a descriptor chain to a request, and from its result to the used ring.
//!
//! VIRTIO 1.4, "Message Framing", lets a driver cut a request into descriptors anywhere. All
//! device-readable bytes are one stream (32 of head, then tx), all device-writable bytes another
//! (rx, and the result as its last byte). The head is copied out once; tx and rx stay where they
//! are and are kept as guest addresses, split where memory regions meet.
//!
//! Should: find the result byte whatever else is wrong, so that the driver learns of it. Must not:
//! validate values (`wire` does), keep pointers, or allocate.
//!
//! Called by `requestq`.

use crate::error::{ParamError, RingError};
use crate::spi::plan::Segment;
use crate::spi::wire::{HEAD_LEN, TransResult, TransferHead, ensure};
use crate::virtqueue::chain::{Chain, Descriptor};
use crate::virtqueue::memory::Memory;
use crate::virtqueue::vring::{Consumed, Vring};

/// Most segments of a request, both directions together: as many as a chain has buffers. Buffers that
/// cross regions have several each, and can exceed this.
pub const MAX_SEGMENTS: usize = 1024;

/// A request that has all its parts, in memory; its values are not validated. The capacity for its segments
/// is allocated once, since a request must not allocate; a page of it that was never written to takes no
/// memory.
#[derive(Debug)]
pub struct Request {
    /// The decoded head.
    pub head: TransferHead,
    /// Length of tx in bytes.
    pub tx_len: u64,
    /// Length of rx in bytes.
    pub rx_len: u64,
    /// tx, then rx; never more than [`MAX_SEGMENTS`].
    segments: Vec<Segment>,
    /// How many of them are tx.
    tx_count: usize,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            head: TransferHead::default(),
            tx_len: 0,
            rx_len: 0,
            segments: Vec::with_capacity(MAX_SEGMENTS),
            tx_count: 0,
        }
    }
}

impl Request {
    /// tx, the device-readable bytes after the head, and rx, the device-writable ones before the result.
    pub fn buffers(&self) -> (&[Segment], &[Segment]) {
        let parts = self.segments.split_at_checked(self.tx_count);
        parts.unwrap_or_default()
    }

    /// Appends a buffer, which is not empty, as one segment for each region that it lies in.
    #[inline]
    fn push(&mut self, memory: &Memory, mut address: u64, mut len: u32) -> Result<(), ParamError> {
        loop {
            let here = memory.contiguous(address, len);
            let here = here.ok_or(ParamError::Address(address))?;
            // Within the capacity: this never allocates.
            let has_room = self.segments.len() < self.segments.capacity();
            ensure(has_room, ParamError::TooManySegments)?;
            self.segments.push(Segment { address, len: here });
            if here == len {
                return Ok(());
            }
            len = len.saturating_sub(here);
            // No region holds the last address of all, so a buffer that would wrap is refused here.
            address = address.saturating_add(u64::from(here));
        }
    }
}

/// How to answer a chain: a [`Chain`] that is next in its ring, or one that was [`Consumed`] and is
/// then answered exactly once.
#[derive(Debug)]
pub struct Answer<C> {
    chain: C,
    /// Guest address of the result byte, if the chain has one in memory.
    result: Option<u64>,
    /// Length of all device-writable bytes, whatever the result is: a used length counts from the
    /// first of them, and the result is the last.
    used_len: u32,
}

impl Answer<Chain> {
    /// Takes the chain off its ring.
    pub fn consume(self, vring: &mut Vring) -> Answer<Consumed> {
        Answer {
            chain: vring.consume(self.chain),
            result: self.result,
            used_len: self.used_len,
        }
    }
}

impl Answer<Consumed> {
    /// Writes `result` and gives the chain back. Nothing else in the program does either.
    ///
    /// # Errors
    /// The used ring is outside of memory.
    pub fn complete(
        self,
        vring: &mut Vring,
        memory: &Memory,
        result: TransResult,
    ) -> Result<(), RingError> {
        // The memory may have changed since the chain was parsed: a result that cannot be written must
        // not be announced, as the driver would read what was there before.
        let write = |address| memory.write_byte(address, result.byte());
        let written = self.result.and_then(write);
        let len = if written.is_some() { self.used_len } else { 0 };
        vring.complete(memory, self.chain, len)
    }
}

/// Parses `chain` into `request`. Returns how to answer it, and why it is invalid, if it is.
///
/// A chain that is malformed, or has no result byte in memory, is answered without a result and with
/// length 0. It is never carried out, since the driver could not be told.
pub fn parse(
    chain: Chain,
    memory: &Memory,
    request: &mut Request,
) -> (Answer<Chain>, Result<(), ParamError>) {
    request.segments.clear();
    (request.tx_count, request.tx_len, request.rx_len) = (0, 0, 0);
    let mut parser = Parser {
        memory,
        request,
        head: [0; HEAD_LEN],
        head_len: 0,
        writable: 0,
        last_writable: None,
        error: None,
    };
    let walked = chain.walk(memory, |descriptor| parser.add(descriptor));
    let last = parser.last_writable.filter(|_| walked.is_ok());
    // Where no buffer was refused, the last one is in memory.
    let none_refused = parser.error.is_none();
    let result = last.filter(|&last| none_refused || memory.contiguous(last, 1).is_some());
    let used_len = u32::try_from(parser.writable).unwrap_or(u32::MAX);
    let has_result = ensure(result.is_some(), ParamError::Malformed);
    let request = has_result.and_then(|()| parser.finish());
    let answer = Answer {
        chain,
        result,
        used_len,
    };
    (answer, request)
}

/// What was found in a chain up to some descriptor.
struct Parser<'a> {
    memory: &'a Memory,
    request: &'a mut Request,
    head: [u8; HEAD_LEN],
    /// How many bytes of the head were read.
    head_len: usize,
    /// Device-writable bytes: of at most 1,024 buffers, so that the sum cannot wrap.
    writable: u64,
    /// Guest address of the last device-writable byte: the result, if the chain ends here.
    last_writable: Option<u64>,
    /// The first error. The walk continues after it, to find the result byte.
    error: Option<ParamError>,
}

impl Parser<'_> {
    /// Adds the next buffer of the chain.
    fn add(&mut self, descriptor: &Descriptor) {
        let (address, len) = (descriptor.addr().0, descriptor.len());
        let added = match (descriptor.is_write_only(), len.checked_sub(1)) {
            // VIRTIO does not forbid empty buffers; they change nothing.
            (_, None) => Ok(()),
            (true, Some(last)) => {
                self.last_writable = address.checked_add(u64::from(last));
                self.writable = self.writable.wrapping_add(u64::from(len));
                self.request.push(self.memory, address, len)
            }
            // VIRTIO 1.4, "Message Framing": device-readable buffers come first.
            (false, Some(_)) if self.writable > 0 => Err(ParamError::Malformed),
            (false, Some(_)) => self.add_readable(address, len),
        };
        if let Err(error) = added {
            self.error.get_or_insert(error);
        }
    }

    /// Adds a device-readable buffer: to the head until that is complete, then to tx.
    fn add_readable(&mut self, address: u64, len: u32) -> Result<(), ParamError> {
        let missing = self.head.get_mut(self.head_len..).unwrap_or_default();
        let mut part_len = 0;
        if !missing.is_empty() {
            let most = usize::try_from(len).unwrap_or(usize::MAX);
            let (part, _) = missing.split_at_mut(most.min(missing.len()));
            // The head is copied once, validated and used from the copy: the driver may still write to it.
            let read = self.memory.read(address, part);
            read.ok_or(ParamError::Address(address))?;
            self.head_len = self.head_len.saturating_add(part.len());
            part_len = u32::try_from(part.len()).unwrap_or(len);
        }
        let tx_len = len.saturating_sub(part_len);
        let request = &mut self.request;
        request.tx_len = request.tx_len.wrapping_add(u64::from(tx_len));
        // tx is not copied: a driver that changes it meanwhile changes what it sends, and nothing else.
        let tx = address.saturating_add(part_len.into());
        if tx_len > 0 {
            request.push(self.memory, tx, tx_len)?;
            request.tx_count = request.segments.len();
        }
        Ok(())
    }

    /// Ends the request after the last buffer: its last device-writable byte is the result.
    fn finish(self) -> Result<(), ParamError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        ensure(self.head_len == HEAD_LEN, ParamError::Malformed)?;
        self.request.head = TransferHead::parse(&self.head);
        self.request.rx_len = self.writable.saturating_sub(1);
        let segments = &mut self.request.segments;
        if let Some(Segment {
            address,
            len: len @ 2..,
        }) = segments.pop()
        {
            let len = len.saturating_sub(1);
            segments.push(Segment { address, len });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtqueue::memory::tests::flat_memory;

    #[test]
    fn push_beyond_the_capacity_is_refused_and_allocates_nothing() {
        let (mut request, memory) = (Request::default(), flat_memory());
        let capacity = request.segments.capacity();
        for _ in 0..MAX_SEGMENTS {
            request.push(&memory, 0, 1).unwrap();
        }
        let error = request.push(&memory, 0, 1).unwrap_err();
        assert!(matches!(error, ParamError::TooManySegments), "{error}");
        assert_eq!(request.segments.capacity(), capacity);
    }
}
