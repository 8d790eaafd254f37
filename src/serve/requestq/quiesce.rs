// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Before a message is handled that stops or changes the ring, or takes memory away, the request in
//! progress comes to its end or is aborted.

use std::time::Duration;

use super::{Active, Requestq, Turn};
use crate::error::{SessionError, TransferError};
use crate::serve::grant::Shared;
use crate::spi::wire::TransResult;
use crate::vhost_user::backend::Guest;
use crate::vhost_user::message::Request;

/// How much wire time a transfer may have left to be finished when its ring stops.
pub const GRACE: Duration = Duration::from_secs(1);

/// Whether requests are taken off the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Intake {
    /// They are.
    Open,
    /// A message waits for the request in progress to come to its end.
    Paused,
    /// The same, and that message stops the ring: no request follows, for which chip select would be kept.
    Stopping,
    /// The daemon ends: none is taken any more.
    Ended,
}

impl Requestq {
    /// Takes no request any more.
    pub fn stop_accepting(&mut self) {
        self.intake = Intake::Ended;
    }

    /// Brings the request in progress to where the message `request` can be handled; `false` if that
    /// must wait for its end.
    ///
    /// A ring that stops (in QEMU: SET_VRING_ENABLE, then GET_VRING_BASE) lets a short request finish,
    /// and so does memory that changes, which is no reason to release chip select either. A message
    /// that changes the ring otherwise ends the request. A region that is added takes nothing away.
    ///
    /// # Errors
    /// The call eventfd blocked.
    pub fn quiesce_for(
        &mut self,
        request: Request,
        guest: &mut Guest,
        shared: &mut Shared,
    ) -> Result<bool, SessionError> {
        if matches!(request, Request::SET_MEM_TABLE | Request::REM_MEM_REG) {
            return self.pause(Intake::Paused, guest, shared);
        }
        if matches!(
            request,
            Request::GET_VRING_BASE | Request::SET_VRING_ENABLE | Request::RESET_OWNER
        ) {
            return self.stop(guest, shared);
        }
        if matches!(
            request,
            Request::SET_VRING_NUM
                | Request::SET_VRING_ADDR
                | Request::SET_VRING_BASE
                | Request::SET_FEATURES
                | Request::RESET_DEVICE
        ) {
            self.abort(guest, shared)?;
        }
        Ok(true)
    }

    /// As [`Requestq::quiesce_for`] a message that stops the ring.
    ///
    /// # Errors
    /// The call eventfd blocked.
    pub fn stop(&mut self, guest: &mut Guest, shared: &mut Shared) -> Result<bool, SessionError> {
        self.pause(Intake::Stopping, guest, shared)
    }

    /// Lets no other request begin. The one in progress goes on, with this `intake` meanwhile, if it has
    /// at most [`GRACE`] to go, and is aborted otherwise. Returns whether none is in progress any more;
    /// the driver was then notified of all completed chains.
    ///
    /// # Errors
    /// As [`Requestq::abort`].
    fn pause(
        &mut self,
        intake: Intake,
        guest: &mut Guest,
        shared: &mut Shared,
    ) -> Result<bool, SessionError> {
        let remaining = |active: &Active| active.transfer.remaining(shared.now);
        if self
            .active
            .as_ref()
            .map(remaining)
            .is_some_and(|time| time <= GRACE)
        {
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

    /// Ends the request in progress with `TRANS_ERR`, releases chip select, and tells the driver
    /// all that it was not told yet.
    ///
    /// # Errors
    /// The call eventfd blocked.
    pub fn abort(&mut self, guest: &mut Guest, shared: &mut Shared) -> Result<(), SessionError> {
        self.set_intake(Intake::Open);
        self.waits_since = None;
        let active = self.active.take();
        if let Some(active) = &active {
            if let Some(bus) = shared.buses.get_mut(active.bus) {
                bus.abandon(&active.transfer, &mut shared.now);
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

    /// What the loop does after a turn that ended a request: `turn`, unless a message may have waited for
    /// that.
    pub(super) fn after_request(&self, turn: Turn) -> Turn {
        match self.intake {
            Intake::Open => turn,
            Intake::Paused | Intake::Stopping | Intake::Ended => Turn::Messages,
        }
    }
}
