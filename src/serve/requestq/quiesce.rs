//! What a message means for the requests of its guest: the one in progress comes to its end first, or
//! is ended.

use std::time::{Duration, Instant};

use super::{Requestq, Turn};
use crate::error::{SessionError, TransferError};
use crate::serve::grant::Shared;
use crate::spi::wire::TransResult;
use crate::vhost_user::backend::Guest;

/// How much wire time a transfer may have left to be finished when its ring stops.
pub const GRACE: Duration = Duration::from_secs(1);

/// Whether requests are taken off the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Intake {
    /// They are.
    Open,
    /// A message waits for the request in progress to come to its end.
    Paused,
    /// The same, and after that message none follows.
    Stopping,
    /// The daemon ends: none is taken any more.
    Ended,
}

impl Requestq {
    /// Takes no request any more.
    pub fn stop_accepting(&mut self) {
        self.intake = Intake::Ended;
    }

    /// A message waits for the request in progress: no other begins. It may come to its end if it
    /// has at most [`GRACE`] to go. Returns whether there is none any more; then the driver was told
    /// of all that went before.
    ///
    /// # Errors
    /// The call eventfd blocked.
    pub fn pause(&mut self, guest: &mut Guest, shared: &mut Shared) -> Result<bool, SessionError> {
        if self.is_finishing(Intake::Paused, shared.now) {
            return Ok(false);
        }
        if self.is_active() {
            self.abort(guest, shared)?;
        } else {
            guest.vring.notify(&guest.memory)?;
        }
        Ok(true)
    }

    /// As [`Requestq::pause`], and releases what is held.
    ///
    /// # Errors
    /// The call eventfd blocked.
    pub fn stop(&mut self, guest: &mut Guest, shared: &mut Shared) -> Result<bool, SessionError> {
        if self.is_finishing(Intake::Stopping, shared.now) {
            return Ok(false);
        }
        self.abort(guest, shared)?;
        Ok(true)
    }

    /// Whether the request in progress may come to its end: with this intake until then.
    fn is_finishing(&mut self, intake: Intake, now: Instant) -> bool {
        let active = self.active.as_ref();
        let finishing = active.is_some_and(|active| active.transfer.remaining(now) <= GRACE);
        self.set_intake(if finishing { intake } else { Intake::Open });
        finishing
    }

    fn set_intake(&mut self, intake: Intake) {
        if self.intake != Intake::Ended {
            self.intake = intake;
        }
    }

    /// Ends the request in progress with `TRANS_ERR`, releases chip select, and tells the driver
    /// all that it was not told yet.
    ///
    /// # Errors
    /// The call eventfd blocked.
    pub fn abort(&mut self, guest: &mut Guest, shared: &mut Shared) -> Result<(), SessionError> {
        self.set_intake(Intake::Open);
        self.waits_since = None;
        let active = self.active.take();
        if let Some(active) = &active
            && let Some(bus) = shared.buses.get_mut(active.bus)
        {
            bus.abandon(&active.transfer, &mut shared.now);
        }
        for bus in &mut shared.buses {
            bus.leave(self.number, &mut shared.now);
        }
        if let Some(active) = active {
            self.log_failure(active.chip_select, &TransferError::Aborted);
            let (answer, chip_select) = (active.answer, active.chip_select);
            // The ring may be gone with its front-end: then there is nobody to answer.
            let _ = self.finish(guest, answer, chip_select, TransResult::TransErr);
        }
        guest.vring.notify(&guest.memory)
    }

    /// What a turn that ended a request comes to: a message may have waited for that.
    pub(super) fn after_request(&self, turn: Turn) -> Turn {
        match self.intake {
            Intake::Open => turn,
            Intake::Paused | Intake::Stopping | Intake::Ended => Turn::Control,
        }
    }
}
