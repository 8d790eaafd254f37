// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon's session, driven as its event loop does it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vhost_device_spi::config::GuestNumber;
use vhost_device_spi::error::SessionError;
use vhost_device_spi::os::epoll::Token;
use vhost_device_spi::os::handed_in::Socket;
use vhost_device_spi::os::listener::{Listener, SocketFile};
use vhost_device_spi::serve::grant::Shared;
use vhost_device_spi::serve::requestq::Turn;
use vhost_device_spi::serve::session::Session;
use vhost_device_spi::spi::bus::Bus;
use vhost_device_spi::spi::wire::ConfigSpace;
use vhost_device_spi::virtqueue::sigbus;
use vmm_sys_util::epoll::EpollEvent;

use super::front::Front;
use crate::devices;

/// Turns between two acts of the front-end, at most: more than all that it may have queued needs.
const TURNS: u32 = 3000;
/// Waits for a moment that are waited out between two acts.
const WAITS: u32 = 4;
/// What is waited for at most.
const WAIT: Duration = Duration::from_millis(2);
/// Fds that one socket's front-ends may have the daemon leave open.
const MAX_LEFT_OPEN: usize = 16;

pub struct Rig {
    _directory: TempDir,
    _file: SocketFile,
    path: PathBuf,
    session: Session,
    shared: Shared,
    is_connected: bool,
    /// It is to have a turn; to look for messages first.
    due: bool,
    has_messages: bool,
    left_open: usize,
    left_open_ever: usize,
}

impl Rig {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let Ok((listener, file)) = Listener::create(&path, (0o600, None), &mut false) else {
            panic!("no socket at {}", path.display());
        };
        let buses = devices::buses();
        let devices = buses.iter().flat_map(|bus| &bus.devices);
        let grant = devices::grant(ConfigSpace::new(devices.map(|device| &device.limits)));
        let shared = devices::shared(buses);
        Self {
            _directory: directory,
            _file: file,
            path,
            session: Session::new(
                GuestNumber::default(),
                Socket::Listening(listener),
                grant,
                &shared.poller,
                &shared.deferred,
            )
            .unwrap(),
            shared,
            is_connected: false,
            due: false,
            has_messages: false,
            left_open: 0,
            left_open_ever: 0,
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn listens(&self) -> bool {
        self.left_open_ever < MAX_LEFT_OPEN
    }

    pub fn is_connected(&self) -> bool {
        self.is_connected
    }

    pub fn take_left_open(&mut self) -> usize {
        std::mem::take(&mut self.left_open)
    }

    /// Events and turns, until there are none.
    pub fn serve(&mut self, front: &mut Front) {
        let mut waits = WAITS;
        for _ in 0..TURNS {
            self.look();
            if !(self.due || self.has_messages || front.is_deaf) {
                // What it takes now may have been waited for.
                front.listen();
                self.look();
            }
            if !(self.due || self.has_messages) {
                return self.check(front, waits > 0);
            }
            if let Some(at) = self.turn() {
                let left = at.saturating_duration_since(Instant::now());
                if waits == 0 || left > WAIT {
                    continue;
                }
                waits -= 1;
                std::thread::sleep(left);
                self.due = true;
            }
        }
        panic!("no end of turns");
    }

    fn look(&mut self) {
        let mut events = [EpollEvent::default(); 8];
        let count = self.shared.poller.wait(0, &mut events).unwrap();
        for event in &events[..count] {
            match Token::decode(event.data()).unwrap() {
                Token::Listener(_) => {
                    let accepted = self.session.accept(&self.shared.poller).unwrap();
                    self.is_connected |= accepted;
                    self.has_messages |= accepted;
                }
                Token::Connection(_) => self.has_messages = true,
                Token::Kick(_) => self.due = true,
                Token::Signal | Token::Timer => panic!("nobody registered that"),
            }
        }
    }

    /// A turn; returns the moment that it waits for.
    fn turn(&mut self) -> Option<Instant> {
        self.shared.now = Instant::now();
        let mut handled = Ok(false);
        if std::mem::take(&mut self.has_messages) {
            handled = self.session.handle_messages(&mut self.shared);
        }
        let more = matches!(handled, Ok(true));
        let turn = handled.and_then(|_| self.session.turn(&mut self.shared));
        self.due = false;
        for bus in &mut self.shared.buses {
            bus.clear_reservation(GuestNumber::default());
            bus.expire(&mut Instant::now(), |_| false);
            self.due |= bus.next_waiter().is_some();
        }
        self.has_messages |= more;
        let mut at = None;
        match turn {
            Ok(Turn::Idle) => (),
            Ok(Turn::Again) => self.due = true,
            Ok(Turn::Messages) => self.has_messages = true,
            Ok(Turn::At(moment)) => at = Some(moment),
            Err(error) => self.close(&error),
        }
        self.settle();
        let deadlines = self.shared.buses.iter().filter_map(Bus::deadline);
        at.or_else(|| deadlines.min().filter(|_| !self.due))
    }

    /// What the loop does when a session's turn is over.
    fn settle(&mut self) {
        if let Err(error) = self.session.notify() {
            self.close(&error);
        }
        if sigbus::take_hit() && self.session.is_truncated() {
            self.close(&SessionError::Truncated);
        }
    }

    fn close(&mut self, error: &SessionError) {
        self.session.close(error, &mut self.shared);
        self.is_connected = false;
        if let SessionError::LeftOpen(count) = error {
            let count = usize::try_from(*count).unwrap();
            self.left_open += count;
            self.left_open_ever += count;
        }
        // The pause behind an eventfd that blocked is the loop's to keep.
        if !self.is_connected && self.session.deadline().is_some() {
            let now = self.shared.now;
            self.session.expire(now, &self.shared.poller).unwrap();
        }
    }

    /// With nothing more to do for now: the front-end hears what it must, and no less.
    fn check(&self, front: &mut Front, is_idle: bool) {
        if !self.is_connected {
            front.is_deaf = false;
        }
        if !front.is_deaf {
            let is_open = front.listen();
            assert!(
                self.is_connected || !is_open,
                "closed, but not for the front-end"
            );
            front.check(self.is_connected && is_idle && !self.session.is_active());
        }
    }

    /// The front-end goes away, and the session ends with it.
    pub fn end(&mut self, mut front: Front) {
        let was_connected = self.is_connected;
        front.shut_down(std::net::Shutdown::Write);
        self.serve(&mut front);
        drop(front);
        if was_connected && self.is_connected {
            // What it has running, a transfer or an urgent byte, may keep the session.
            self.close(&SessionError::Disconnected);
        }
        self.due = false;
        self.has_messages = false;
    }
}
