//! One request in progress, one message at a time.
//!
//! A transfer lives across turns of the loop: between two messages, chip select stays asserted and
//! other things are attended to. What is kept meanwhile is guest addresses and lengths; each step
//! translates them anew, so that memory which went away is an error and not a stray pointer.

use std::time::{Duration, Instant};

use crate::error::TransferError;
use crate::spi::device::{Device, Line, Port};
use crate::spi::hold::Claim;
use crate::spi::loopback;
use crate::spi::message::{Buffer, Common, Message, Scratch};
use crate::spi::plan::{Budget, MAX_PIECES, Piece, Place, Progress, Segment, Work, plan_message};
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
        match self.busy_until {
            Some(until) => wire.saturating_add(until.saturating_duration_since(now)),
            None => wire,
        }
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
        if let Some(until) = self.busy_until {
            if until > *now {
                return Ok(Step::Until(until));
            }
            self.busy_until = None;
            return Ok(self.after_message(device, follows));
        }
        let mode = self.claim.mode;
        device.use_mode(mode).map_err(TransferError::Ioctl)?;
        let before = device.line();
        let next = self.next_message(device, store);
        // Commit point: below this line the bus has been touched.
        device.set_line(Line::Asserted);
        let sent = match &device.port {
            Port::Spidev(spidev) => {
                let sent = self.send(spidev, &next, memory, scratch, follows);
                *now = Instant::now();
                sent.map(|()| None)
            }
            Port::Loopback => self.echo(&next, memory, *now),
        };
        match sent {
            Ok(None) => Ok(self.after_message(device, follows)),
            Ok(Some(until)) => {
                self.busy_until = Some(until);
                Ok(Step::Until(until))
            }
            Err(error) => {
                if error.is_shutdown() && before == Line::Released {
                    device.set_line(Line::Untouched);
                }
                Err(error)
            }
        }
    }

    fn after_message(&self, device: &mut Device, follows: bool) -> Step {
        if self.progress.done < self.len {
            return Step::More;
        }
        let kept = self.keeps(follows);
        if !kept {
            device.set_line(Line::Released);
        }
        Step::Done { kept }
    }

    fn keeps(&self, follows: bool) -> bool {
        match self.keep {
            Keep::Never => false,
            Keep::IfFollowed => follows,
            Keep::Always => true,
        }
    }

    /// The bounds of the next message. The setup delay is due where chip select is to be asserted,
    /// and takes a transfer of its own.
    fn next_message<'s>(&self, device: &Device, store: &'s Store) -> NextMessage<'s> {
        let sets_up = self.head.cs_setup_ns > 0 && device.line() != Line::Asserted;
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

    fn common(&self) -> Common {
        let word_delay = self.head.word_delay_ns.div_ceil(1000);
        Common {
            speed_hz: self.timing.speed_hz,
            bits_per_word: self.head.bits_per_word,
            tx_nbits: self.head.tx_nbits,
            rx_nbits: self.head.rx_nbits,
            word_delay_usecs: u8::try_from(word_delay).unwrap_or(u8::MAX),
        }
    }

    /// Plans the next message; its length in bytes, which is never 0: each step makes progress.
    fn plan(
        &mut self,
        next: &NextMessage<'_>,
        emit: impl FnMut(Piece) -> Result<(), TransferError>,
    ) -> Result<u32, TransferError> {
        match plan_message(&next.work, self.len, &next.budget, &mut self.progress, emit)? {
            0 => Err(TransferError::NoMessage),
            len => Ok(len),
        }
    }

    fn send(
        &mut self,
        spidev: &Spidev,
        next: &NextMessage<'_>,
        memory: &Memory,
        scratch: &mut Scratch,
        follows: bool,
    ) -> Result<(), TransferError> {
        let mut message = Message::new(scratch, self.common());
        if next.sets_up {
            message.push_delay(usecs(self.head.cs_setup_ns))?;
        }
        let before = self.progress;
        let mut rx_cut = false;
        self.plan(next, |piece| {
            rx_cut |= matches!(piece.rx, Place::Cut(_));
            let tx = buffer(memory, next.work.tx, piece.tx, piece.len)?;
            let rx = buffer(memory, next.work.rx, piece.rx, piece.len)?;
            message.push(&tx, &rx, piece.len)
        })?;
        let keep = self.progress.done < self.len || self.keeps(follows);
        let delay = if keep {
            0
        } else {
            usecs(self.head.cs_delay_hold_ns)
        };
        message.finish(keep, delay);
        spidev.transfer(&message)?;
        if rx_cut {
            scatter(next, self.len, before, memory, &message)?;
        }
        Ok(())
    }

    fn echo(
        &mut self,
        next: &NextMessage<'_>,
        memory: &Memory,
        now: Instant,
    ) -> Result<Option<Instant>, TransferError> {
        let len = self.plan(next, |piece| {
            let tx = buffer(memory, next.work.tx, piece.tx, piece.len)?;
            let rx = buffer(memory, next.work.rx, piece.rx, piece.len)?;
            loopback::transfer(&tx, &rx);
            Ok(())
        })?;
        let mut ns = self.timing.wire_ns(len.into(), self.word_len.into());
        if next.sets_up {
            ns = ns.saturating_add(self.head.cs_setup_ns.into());
        }
        if self.progress.done == self.len {
            ns = ns.saturating_add(self.head.cs_delay_hold_ns.into());
        }
        Ok(now.checked_add(Duration::from_nanos(ns)))
    }
}

/// Nanoseconds as microseconds, rounded up; validation keeps them within 16 bits.
fn usecs(ns: u32) -> u16 {
    u16::try_from(ns.div_ceil(1000)).unwrap_or(u16::MAX)
}

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
        Place::Cut(mut position) => {
            let mut word = [0; 4];
            let mut rest = word.as_mut_slice();
            let mut whole = Some(());
            position.walk(segments, len, |address, run| {
                let taken = std::mem::take(&mut rest);
                let at = usize::try_from(run).unwrap_or(usize::MAX).min(taken.len());
                let (part, left) = taken.split_at_mut(at);
                whole = whole.and_then(|()| memory.read(address, part));
                rest = left;
            });
            whole
                .map(|()| Buffer::Word(word))
                .ok_or(TransferError::Memory)
        }
    }
}

/// Puts the words that were received into our own storage where they belong, by planning the same
/// message once more.
fn scatter(
    next: &NextMessage<'_>,
    len: u64,
    mut progress: Progress,
    memory: &Memory,
    message: &Message<'_>,
) -> Result<(), TransferError> {
    let NextMessage { work, budget, .. } = next;
    let mut index = usize::from(next.sets_up);
    plan_message(work, len, budget, &mut progress, |piece: Piece| {
        let word = message.rx_word(index);
        index = index.saturating_add(1);
        let Place::Cut(mut position) = piece.rx else {
            return Ok(());
        };
        let mut rest = word.as_slice();
        let mut whole = Some(());
        position.walk(work.rx, piece.len, |address, run| {
            let at = usize::try_from(run).unwrap_or(usize::MAX).min(rest.len());
            let (part, left) = rest.split_at(at);
            whole = whole.and_then(|()| memory.write(address, part));
            rest = left;
        });
        whole.ok_or(TransferError::Memory)
    })?;
    Ok(())
}
