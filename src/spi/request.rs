//! From a descriptor chain to a request, and from its outcome to the used ring.
//!
//! VIRTIO 1.x fixes no framing: head, tx, rx and result may be cut into descriptors anywhere. All
//! device-readable bytes are one stream (32 of head, then tx), all device-writable bytes another
//! (rx, and the result as its last byte). The head is copied out once; tx and rx stay where they
//! are and are kept as guest addresses, split where memory regions meet.
//!
//! Should: find the result byte whatever else is wrong. Must not: judge values (`wire` does).

use crate::error::{ParamError, RingError};
use crate::spi::plan::Segment;
use crate::spi::wire::{HEAD_LEN, TransResult, TransferHead};
use crate::virtqueue::chain::{Chain, Descriptor};
use crate::virtqueue::memory::Memory;
use crate::virtqueue::vring::{Consumed, Vring};

/// Most segments that a request may have, both directions together.
pub const MAX_SEGMENTS: usize = 1024;

/// The segments of one request: tx first, then rx. Its room is made once and never grows; what is
/// not used of it costs no memory.
#[derive(Debug)]
pub struct Store {
    segments: Vec<Segment>,
    tx_count: usize,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            segments: Vec::with_capacity(MAX_SEGMENTS),
            tx_count: 0,
        }
    }
}

impl Store {
    /// Device-readable segments behind the head.
    pub fn tx(&self) -> &[Segment] {
        self.segments.get(..self.tx_count).unwrap_or_default()
    }

    /// Device-writable segments in front of the result byte.
    pub fn rx(&self) -> &[Segment] {
        self.segments.get(self.tx_count..).unwrap_or_default()
    }

    fn clear(&mut self) {
        self.segments.clear();
        self.tx_count = 0;
    }

    fn push(&mut self, segment: Segment) -> Result<(), ParamError> {
        if self.segments.len() >= MAX_SEGMENTS {
            return Err(ParamError::TooManyPieces);
        }
        self.segments.push(segment);
        Ok(())
    }

    /// What is there so far is tx.
    fn end_tx(&mut self) {
        self.tx_count = self.segments.len();
    }

    /// Takes the result byte off the end of rx.
    fn drop_last_byte(&mut self) {
        let Some(segment) = self.segments.last_mut() else {
            return;
        };
        segment.len = segment.len.saturating_sub(1);
        if segment.len == 0 {
            self.segments.pop();
        }
    }
}

/// How a chain is to be answered: a [`Chain`] that is next in its ring, or one that was [`Consumed`],
/// which is answered exactly once.
#[derive(Debug)]
pub struct Answer<C> {
    chain: C,
    /// Guest address of the result byte, if there is one.
    result: Option<u64>,
    /// All device-writable bytes: rx and result.
    used_len: u32,
}

impl Answer<Chain> {
    /// Takes the chain off its ring.
    pub fn consume(self, vring: &mut Vring) -> Answer<Consumed> {
        let Self {
            chain,
            result,
            used_len,
        } = self;
        let chain = vring.consume(chain);
        Answer {
            chain,
            result,
            used_len,
        }
    }
}

impl Answer<Consumed> {
    /// Writes `result` and gives the chain back: the only place where that is done.
    ///
    /// # Errors
    /// The used ring cannot be written.
    pub fn complete(
        self,
        vring: &mut Vring,
        memory: &Memory,
        result: TransResult,
    ) -> Result<(), RingError> {
        let written = self
            .result
            .and_then(|address| memory.write(address, &[result.byte()]));
        let len = if written.is_some() { self.used_len } else { 0 };
        vring.complete(memory, self.chain, len)
    }
}

/// A chain that has all the parts of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The decoded head.
    pub head: TransferHead,
    /// Bytes to send.
    pub tx_len: u64,
    /// Bytes to receive.
    pub rx_len: u64,
}

/// Reads `chain` into `store`: how to answer it, and the request or why it is
/// none. A chain without a result byte that can be written is never carried out.
pub fn parse(
    chain: Chain,
    memory: &Memory,
    store: &mut Store,
) -> (Answer<Chain>, Result<Request, ParamError>) {
    store.clear();
    let mut parser = Parser {
        memory,
        store,
        head: [0; HEAD_LEN],
        readable: 0,
        writable: 0,
        last_writable: None,
        error: None,
    };
    let walked = chain.walk(memory, |descriptor| parser.take(descriptor));
    let last = parser
        .last_writable
        .filter(|&a| memory.contiguous(a, 1).is_some());
    let mut answer = Answer {
        chain,
        result: None,
        used_len: 0,
    };
    let (Ok(()), Some(_)) = (walked, last) else {
        return (answer, Err(ParamError::Framing));
    };
    answer.result = last;
    answer.used_len = u32::try_from(parser.writable).unwrap_or(u32::MAX);
    (answer, parser.finish())
}

struct Parser<'a> {
    memory: &'a Memory,
    store: &'a mut Store,
    head: [u8; HEAD_LEN],
    readable: u64,
    writable: u64,
    last_writable: Option<u64>,
    /// The first thing that was wrong; the walk goes on to find the result byte.
    error: Option<ParamError>,
}

impl Parser<'_> {
    fn take(&mut self, descriptor: &Descriptor) {
        let (address, len) = (descriptor.addr().0, descriptor.len());
        let taken = match (descriptor.is_write_only(), len.checked_sub(1)) {
            (_, None) => Ok(()),
            (true, Some(last)) => {
                self.last_writable = address.checked_add(u64::from(last));
                self.writable = self.writable.saturating_add(u64::from(len));
                self.segments(address, len)
            }
            (false, Some(_)) if self.writable > 0 => Err(ParamError::Framing),
            (false, Some(_)) => self.take_readable(address, len),
        };
        if let Err(error) = taken {
            self.error.get_or_insert(error);
        }
    }

    fn take_readable(&mut self, address: u64, len: u32) -> Result<(), ParamError> {
        let from = usize::try_from(self.readable).unwrap_or(usize::MAX);
        self.readable = self.readable.saturating_add(u64::from(len));
        let Some(room) = self.head.get_mut(from..).filter(|room| !room.is_empty()) else {
            let pushed = self.segments(address, len);
            self.store.end_tx();
            return pushed;
        };
        let part = room.len().min(usize::try_from(len).unwrap_or(usize::MAX));
        let part = room.get_mut(..part).ok_or(ParamError::Framing)?;
        let part_len = u32::try_from(part.len()).map_err(|_| ParamError::Framing)?;
        self.memory
            .read(address, part)
            .ok_or(ParamError::Address(address))?;
        let behind = address.saturating_add(u64::from(part_len));
        let pushed = self.segments(behind, len.saturating_sub(part_len));
        self.store.end_tx();
        pushed
    }

    /// Stores a buffer, split where regions meet.
    fn segments(&mut self, mut address: u64, mut len: u32) -> Result<(), ParamError> {
        while len > 0 {
            let here = self
                .memory
                .contiguous(address, len)
                .ok_or(ParamError::Address(address))?;
            self.store.push(Segment { address, len: here })?;
            len = len.saturating_sub(here);
            // Behind the last address there is no region: the next turn refuses it.
            address = address.saturating_add(u64::from(here));
        }
        Ok(())
    }

    fn finish(self) -> Result<Request, ParamError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let head_len = u64::try_from(HEAD_LEN).unwrap_or(u64::MAX);
        let tx_len = self
            .readable
            .checked_sub(head_len)
            .ok_or(ParamError::Framing)?;
        self.store.drop_last_byte();
        Ok(Request {
            head: TransferHead::parse(&self.head),
            tx_len,
            rx_len: self.writable.saturating_sub(1),
        })
    }
}
