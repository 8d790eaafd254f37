// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;
use crate::config::{GuestMemory, HoldPolicy};
use crate::os::deferred_close::DeferredClose;
use crate::os::epoll::Poller;
use crate::os::handed_in::Socket;
use crate::os::mounts::Mounts;
use crate::serve::grant::Grant;
use crate::spi::wire::ConfigSpace;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

/// A loop with one front-end, whose end is returned.
fn connected() -> (EventLoop, UnixStream) {
    let poller = Poller::new().unwrap();
    let grant = Grant {
        chip_selects: Vec::new(),
        guest_memory: GuestMemory::Sealed,
        max_memory_len: 0,
        config: ConfigSpace::default(),
        policy: HoldPolicy::Queued,
        hold_timeout: Duration::ZERO,
        poll: Duration::ZERO,
    };
    let deferred = DeferredClose::new(1);
    let (front_end, ours) = UnixStream::pair().unwrap();
    let session = Session::new(
        GuestNumber::default(),
        Socket::Connected(ours, 3),
        grant,
        &poller,
        &deferred,
    )
    .unwrap();
    let (signals, _) = UnixStream::pair().unwrap();
    let shared = Shared::new(Vec::new(), poller, Mounts::default(), deferred);
    let sd_notify = SdNotify::default();
    let signals = OwnedFd::from(signals).into();
    let event_loop = EventLoop::new(vec![session], shared, signals, sd_notify).unwrap();
    (event_loop, front_end)
}

/// Gives the session a turn, in which it looks for messages.
fn turn(event_loop: &mut EventLoop) {
    let now = event_loop.shared.now;
    event_loop.turns.queue(GuestNumber::default(), true, now);
    let Some(Next::Session(taken)) = event_loop.turns.take() else {
        panic!("it is the session's turn");
    };
    event_loop.turn(taken);
}

#[test]
fn turn_goes_by_a_clock_that_was_read_after_its_messages() {
    let (mut event_loop, mut front_end) = connected();
    front_end.write_all(&[1, 0, 0]).unwrap();
    turn(&mut event_loop);
    // A second after the look at the half message.
    let deadline = event_loop.sessions[0].deadline().unwrap();
    assert!(event_loop.shared.now >= deadline - Duration::from_secs(1));
}

#[test]
fn session_whose_other_part_is_there_when_its_time_is_over_is_not_silent() {
    let (mut event_loop, mut front_end) = connected();
    let number_of_parts = 3;
    for part in 1..=number_of_parts {
        front_end.write_all(&[1, 0, 0]).unwrap();
        turn(&mut event_loop);
        if part < number_of_parts {
            // Before the loop gets to it.
            front_end.write_all(&[0]).unwrap();
        }
        event_loop.shared.now = event_loop.sessions[0].deadline().unwrap();
        event_loop.expire();
        assert_eq!(
            event_loop.sessions[0].is_connected(),
            part < number_of_parts
        );
    }
}
