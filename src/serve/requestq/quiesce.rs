// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Before a message is handled that stops or changes the ring, or takes memory away, the request in
//! progress comes to its end or is aborted. Called by `session`, and by `requestq` when a ring breaks.

use std::time::Duration;

use super::{Requestq, Turn};
use crate::error::{SessionError, TransferError};
use crate::serve::grant::Shared;
use crate::spi::wire::TransResult;
use crate::vhost_user::backend::Guest;
use crate::vhost_user::message::RequestCode;

/// How much wire time a transfer may have left to be finished when its ring stops.
pub const GRACE: Duration = Duration::from_secs(1);

/// Whether requests are taken off the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Intake {
    /// They are.
    Open,
    /// A message waits for the request in progress to come to its end.
    Paused,
    /// The same, and that message stops the ring: chip select is not kept for a request that follows.
    Stopping,
    /// They are not any more: the daemon ends.
    Ended,
}

impl Requestq {
    /// Takes no request any more.
    pub fn stop_accepting(&mut self) {
        self.intake = Intake::Ended;
    }

    /// Brings the request in progress to where `message` can be handled; `false` if that must wait for the
    /// request's end.
    ///
    /// A ring that stops (in QEMU: SET_VRING_ENABLE, then GET_VRING_BASE) lets a short request finish,
    /// and so does memory that changes, which is no reason to release chip select either. A message
    /// that changes the ring otherwise aborts the request. A region that is added takes nothing away.
    ///
    /// # Errors
    /// The call eventfd blocked, or cannot be written to.
    pub fn quiesce_for(
        &mut self,
        message: RequestCode,
        guest: &mut Guest,
        shared: &mut Shared,
    ) -> Result<bool, SessionError> {
        if matches!(
            message,
            RequestCode::SET_MEM_TABLE | RequestCode::REM_MEM_REG
        ) {
            return self.pause(Intake::Paused, guest, shared);
        }
        if matches!(
            message,
            RequestCode::GET_VRING_BASE | RequestCode::SET_VRING_ENABLE | RequestCode::RESET_OWNER
        ) {
            return self.stop(guest, shared);
        }
        if matches!(
            message,
            RequestCode::SET_VRING_NUM
                | RequestCode::SET_VRING_ADDR
                | RequestCode::SET_VRING_BASE
                | RequestCode::SET_FEATURES
                | RequestCode::RESET_DEVICE
        ) {
            self.abort(guest, shared)?;
        }
        Ok(true)
    }

    /// The same as [`Requestq::quiesce_for`] does for a message that stops the ring.
    ///
    /// # Errors
    /// As [`Requestq::abort`].
    pub fn stop(&mut self, guest: &mut Guest, shared: &mut Shared) -> Result<bool, SessionError> {
        self.pause(Intake::Stopping, guest, shared)
    }

    /// Lets the request in progress go on if it has at most [`GRACE`] to go, with this `intake` until its
    /// end, so that no other begins; else aborts it. Returns whether none is in progress any more; the
    /// driver was then notified of all completed chains.
    ///
    /// # Errors
    /// As [`Requestq::abort`].
    fn pause(
        &mut self,
        intake: Intake,
        guest: &mut Guest,
        shared: &mut Shared,
    ) -> Result<bool, SessionError> {
        if self.is_active() && self.transfer.remaining(shared.now) <= GRACE {
            self.set_intake(intake);
            return Ok(false);
        }
        self.set_intake(Intake::Open);
        if intake == Intake::Stopping || self.is_active() {
            self.abort(guest, shared)?;
        } else {
            guest.vring.notify(&guest.memory)?;
        }
        Ok(true)
    }

    fn set_intake(&mut self, intake: Intake) {
        if self.intake != Intake::Ended {
            self.intake = intake;
        }
    }

    /// Ends the request in progress with `TRANS_ERR`, releases chip select, and notifies the driver of
    /// all completed chains.
    ///
    /// # Errors
    /// The call eventfd blocked, or cannot be written to.
    pub fn abort(&mut self, guest: &mut Guest, shared: &mut Shared) -> Result<(), SessionError> {
        self.set_intake(Intake::Open);
        self.waits_since = None;
        let active = self.active.take();
        if let Some(active) = &active {
            if let Some(bus) = shared.buses.get_mut(active.bus) {
                bus.abandon(&self.transfer, &mut shared.now);
            }
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

    /// The loop's next action after a turn that ended a request: `turn`, unless a message may have waited
    /// for that end.
    pub(super) fn after_request(&self, turn: Turn) -> Turn {
        match self.intake {
            Intake::Open => turn,
            Intake::Paused | Intake::Stopping | Intake::Ended => Turn::Messages,
        }
    }
}
