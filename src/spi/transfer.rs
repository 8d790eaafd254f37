//! One request in progress, one message at a time.
//!
//! A transfer lives across turns of the loop: between two messages, chip select stays asserted and
//! other things are attended to. What is kept meanwhile is guest addresses and lengths; each step
//! translates them anew, so that memory which went away is an error and not a stray pointer.

use std::time::{Duration, Instant};

use crate::error::TransferError;
use crate::spi::device::{Device, Line, Port};
use crate::spi::hold::{Claim, Direction};
use crate::spi::loopback;
use crate::spi::message::{Buffer, Message, Scratch};
use crate::spi::plan::{
    Budget, MAX_PIECES, Place, Position, Progress, Segment, Work, plan_message,
};
use crate::spi::request::{Request, Store};
use crate::spi::spidev::Spidev;
use crate::spi::wire::{Timing, TransferHead};
use crate::virtqueue::memory::Memory;

/// Whether chip select stays asserted after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// It is released.
    Never,
    /// It stays if the guest has queued another request by then.
    IfFollowed,
    /// It stays.
    Always,
}

/// What a step led to.
#[derive(Debug)]
pub enum Step {
    /// There is more to do.
    More,
    /// Nothing to do before this moment.
    Until(Instant),
    /// The transfer is over; chip select stayed asserted or not.
    Done {
        /// Chip select stayed asserted.
        kept: bool,
    },
}

/// What bounds the next message.
struct NextMessage<'s> {
    work: Work<'s>,
    budget: Budget,
    /// A setup delay is in front of it.
    sets_up: bool,
}

/// A request that was accepted, and how far it has got.
#[derive(Debug)]
pub struct Transfer {
    /// What it wants of the bus.
    pub claim: Claim,
    /// The request's head.
    pub head: TransferHead,
    timing: Timing,
    len: u64,
    word_len: u32,
    keep: Keep,
    progress: Progress,
    busy_until: Option<Instant>,
}

impl Transfer {
    /// A transfer that has not begun.
    pub fn new(request: &Request, timing: Timing, claim: Claim, keep: Keep) -> Self {
        let head = request.head;
        Self {
            claim,
            head,
            timing,
            len: request.tx_len.max(request.rx_len),
            word_len: u32::try_from(head.word_len()).unwrap_or(4),
            keep,
            progress: Progress::default(),
            busy_until: None,
        }
    }

    /// Whether it only writes, and keeps chip select only for a request that is queued.
    pub fn may_begin_a_pair(&self) -> bool {
        self.keep == Keep::IfFollowed && self.claim.direction == Direction::Write
    }

    /// Releases chip select at its end, whatever the request says.
    pub fn never_keep(&mut self) {
        self.keep = Keep::Never;
    }

    /// All of it on the wire: bytes in one direction, and nanoseconds with its delays.
    pub fn whole(&self) -> (u64, u64) {
        (self.len, self.timing.total_ns)
    }

    /// How long it will still take on the wire.
    pub fn remaining(&self, now: Instant) -> Duration {
        let left = self.len.saturating_sub(self.progress.done);
        let wire = self.timing.wire_ns(left, self.word_len.into());
        let wire = Duration::from_nanos(wire.saturating_add(self.head.cs_delay_hold_ns.into()));
        let busy_until = self.busy_until.unwrap_or(now);
        wire.saturating_add(busy_until.saturating_duration_since(now))
    }

    /// How long the next message will take on the wire, at most.
    pub fn next_message_ns(&self) -> u64 {
        self.timing.words_budget_ns.min(self.timing.total_ns)
    }

    /// Whether one message holds all of it.
    pub fn fits_one_message(&self, device: &Device, store: &Store) -> bool {
        let mut progress = Progress::default();
        let NextMessage { work, budget, .. } = self.next_message(device, store);
        let planned = plan_message(&work, self.len, &budget, &mut progress, |_| {
            Ok::<(), std::convert::Infallible>(())
        });
        planned.is_ok() && progress.done == self.len
    }

    /// Sends the next message. `follows` says whether the guest has queued another request; `now`
    /// moves on by the time that the ioctl takes.
    ///
    /// # Errors
    /// The transfer is over; the device knows what became of its line.
    pub fn step(
        &mut self,
        device: &mut Device,
        store: &Store,
        memory: &Memory,
        scratch: &mut Scratch,
        follows: bool,
        now: &mut Instant,
    ) -> Result<Step, TransferError> {
        match self.busy_until {
            Some(until) if until > *now => return Ok(Step::Until(until)),
            Some(_) => {
                self.busy_until = None;
                return Ok(self.after_message(device, follows));
            }
            None => (),
        }
        let mode = self.claim.mode;
        device.use_mode(mode).map_err(TransferError::Ioctl)?;
        let before = device.line;
        let next = self.next_message(device, store);
        // Commit point: below this line the bus has been touched.
        device.line = Line::Asserted;
        let sent = match &device.port {
            Port::Spidev(spidev) => {
                let sent = self.send(spidev, &next, memory, scratch, follows);
                *now = Instant::now();
                sent
            }
            Port::Loopback => self.echo(&next, memory, *now),
        };
        if sent.as_ref().is_err_and(TransferError::is_shutdown) && before == Line::Released {
            // spidev of a device that is gone, and the core of a controller that is suspended, refuse
            // before the line is touched (`spidev_sync()`, `__spi_sync()`).
            device.line = Line::Untouched;
        }
        sent?;
        let busy = self.busy_until.map(Step::Until);
        Ok(busy.unwrap_or_else(|| self.after_message(device, follows)))
    }

    fn after_message(&self, device: &mut Device, follows: bool) -> Step {
        if self.progress.done < self.len {
            return Step::More;
        }
        let kept = self.keeps(follows);
        if !kept {
            device.line = Line::Released;
        }
        Step::Done { kept }
    }

    fn keeps(&self, follows: bool) -> bool {
        self.keep == Keep::Always || (self.keep == Keep::IfFollowed && follows)
    }

    /// The bounds of the next message. The setup delay is due where chip select is to be asserted,
    /// and takes a transfer of its own.
    fn next_message<'s>(&self, device: &Device, store: &'s Store) -> NextMessage<'s> {
        let sets_up = self.head.cs_setup_ns > 0 && device.line != Line::Asserted;
        let words = self.timing.words_budget_ns.checked_div(self.timing.word_ns);
        let bytes = words.map(|words| words.saturating_mul(self.word_len.into()));
        NextMessage {
            work: Work {
                tx: store.tx(),
                rx: store.rx(),
                // Bytes are all the same to the loopback: no word needs to stay whole.
                word_len: match device.port {
                    Port::Spidev(_) => self.word_len,
                    Port::Loopback => 1,
                },
            },
            budget: Budget {
                bufsiz: device.bufsiz,
                align: device.align(),
                pieces: MAX_PIECES.saturating_sub(usize::from(sets_up)),
                bytes: bytes.unwrap_or(u64::MAX),
            },
            sets_up,
        }
    }

    /// Plans the next message, and calls `emit` with the buffers and the length of each of its pieces.
    /// Returns the message's length in bytes, which is never 0: each step makes progress.
    fn plan<'m>(
        &mut self,
        next: &NextMessage<'_>,
        memory: &'m Memory,
        mut emit: impl FnMut(&Buffer<'m>, &Buffer<'m>, u32) -> Result<(), TransferError>,
    ) -> Result<u32, TransferError> {
        let NextMessage { work, budget, .. } = next;
        let len = plan_message(work, self.len, budget, &mut self.progress, |piece| {
            let tx = buffer(memory, work.tx, piece.tx, piece.len)?;
            let rx = buffer(memory, work.rx, piece.rx, piece.len)?;
            emit(&tx, &rx, piece.len)
        })?;
        match len {
            0 => Err(TransferError::NoMessage),
            len => Ok(len),
        }
    }

    /// Sends the next message to a spidev, in one ioctl.
    fn send(
        &mut self,
        spidev: &Spidev,
        next: &NextMessage<'_>,
        memory: &Memory,
        scratch: &mut Scratch,
        follows: bool,
    ) -> Result<(), TransferError> {
        let mut message = Message::new(scratch, &self.head, self.timing.speed_hz);
        if next.sets_up {
            message.push_delay(self.head.cs_setup_ns)?;
        }
        self.plan(next, memory, |tx, rx, len| message.push(tx, rx, len))?;
        let keep = self.progress.done < self.len || self.keeps(follows);
        // The hold delay is between the last bit and the release of chip select (VIRTIO 1.4,
        // `cs_delay_hold_ns`); where chip select stays, the bus waits it out before it releases.
        let hold_ns = if keep { 0 } else { self.head.cs_delay_hold_ns };
        message.finish(keep, hold_ns);
        spidev.transfer(&message)?;
        for (position, mut word) in message.rx_words() {
            let (rx, len) = (next.work.rx, self.word_len);
            each_part(rx, position, len, &mut word, |address, part| {
                memory.write(address, part)
            })?;
        }
        Ok(())
    }

    /// Moves the bytes of the next message at once, then lets the time pass that it would take on the
    /// wire.
    fn echo(
        &mut self,
        next: &NextMessage<'_>,
        memory: &Memory,
        now: Instant,
    ) -> Result<(), TransferError> {
        let len = self.plan(next, memory, |tx, rx, _| {
            loopback::transfer(tx, rx);
            Ok(())
        })?;
        let mut ns = self.timing.wire_ns(len.into(), self.word_len.into());
        if next.sets_up {
            ns = ns.saturating_add(self.head.cs_setup_ns.into());
        }
        if self.progress.done == self.len {
            ns = ns.saturating_add(self.head.cs_delay_hold_ns.into());
        }
        self.busy_until = now.checked_add(Duration::from_nanos(ns));
        Ok(())
    }
}

/// The buffer of one direction of a piece. Its guest address is translated here, for this step alone.
#[inline(always)]
fn buffer<'m>(
    memory: &'m Memory,
    segments: &[Segment],
    place: Place,
    len: u32,
) -> Result<Buffer<'m>, TransferError> {
    match place {
        Place::Absent => Ok(Buffer::Absent),
        Place::At(address) => memory
            .slice(address, len)
            .map(Buffer::Guest)
            .ok_or(TransferError::Memory),
        Place::Cut(position) => {
            let mut word = [0; 4];
            each_part(segments, position, len, &mut word, |address, part| {
                memory.read(address, part)
            })?;
            Ok(Buffer::Word(position, word))
        }
    }
}

/// Calls `each` with the guest address of each contiguous part of the `len` bytes at `position`, which
/// are a word that is cut, and with the same part of `word`.
fn each_part(
    segments: &[Segment],
    mut position: Position,
    len: u32,
    word: &mut [u8; 4],
    mut each: impl FnMut(u64, &mut [u8]) -> Option<()>,
) -> Result<(), TransferError> {
    let mut rest = word.as_mut_slice();
    let mut all = Some(());
    position.walk(segments, len, |address, run| {
        let at = usize::try_from(run).unwrap_or(usize::MAX).min(rest.len());
        let (part, left) = std::mem::take(&mut rest).split_at_mut(at);
        all = all.and_then(|()| each(address, part));
        rest = left;
    });
    all.ok_or(TransferError::Memory)
}
