// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The end of the loop: asked for by a signal, or by the last front-end's leaving.

use super::EventLoop;
use crate::error::SessionError;
use crate::os::log::{self, Quoted};
use crate::serve::requestq::GRACE;
use crate::serve::session::Session;
use crate::spi::device::Line;

impl EventLoop {
    /// The end is asked for: no new front-end is let in, and a transfer in progress may come to its
    /// end if it is short.
    pub(super) fn wind_up(&mut self) {
        if self.ends_at.is_none() {
            self.sd_notify.stopping();
        }
        for session in &mut self.sessions {
            session.stop_listening(&self.shared.poller);
            session.wind_up(&mut self.shared);
        }
        let now = self.shared.now;
        let ends_at = now.checked_add(GRACE).unwrap_or(now);
        // A second signal does not put it off.
        self.ends_at.get_or_insert(ends_at);
    }

    pub(super) fn is_over(&self) -> bool {
        let now = self.shared.now;
        self.ends_at
            .is_some_and(|at| at <= now || !self.sessions.iter().any(Session::is_active))
    }

    /// Ends every session; the devices go back to how they were found as they are closed.
    pub(super) fn end(mut self) {
        for session in &mut self.sessions {
            session.stop_listening(&self.shared.poller);
            session.close(&SessionError::Shutdown, &mut self.shared);
            session.tell_dropped_lines();
        }
        let devices = self
            .shared
            .buses
            .iter_mut()
            .flat_map(|bus| &mut bus.devices);
        for device in devices.filter(|device| device.line != Line::Released) {
            if let Err(error) = device.release(&mut self.shared.now) {
                let (name, cause) = (Quoted(&device.name), Quoted(&error));
                log::error(format_args!("device={name} stays selected: cause={cause}"));
            }
        }
    }
}
