// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host's part: messages that fail or take their time, devices that are gone for a while.

use super::dice::Dice;
use super::{DEVICES, Soak};
use crate::rig::When;
use std::time::{Duration, Instant};

const WHEN: [When; 3] = [When::BeforeWire, When::OnWire, When::AfterWire];
const ERRORS: [i32; 4] = [libc::ESHUTDOWN, libc::EIO, libc::ETIMEDOUT, libc::ENOMEM];

/// Lets things go wrong until the time is over; then all is well.
pub fn run(soak: &Soak, until: Instant) {
    let mut dice = Dice::new(soak.seed, 2000);
    while !soak.is_over(until) {
        std::thread::sleep(dice.moment(40_000));
        let (id, _) = dice.pick(&DEVICES);
        let nth = dice.below(4) as u64;
        match dice.below(20) {
            0 => {
                soak.host.fail_ioctls(id, libc::ESHUTDOWN);
                std::thread::sleep(dice.moment(50_000));
                soak.host.fail_ioctls(id, 0);
                soak.count("faults, device gone for a while");
            }
            1..4 => {
                soak.host.short_message(id, nth);
                soak.count("faults, message cut short");
            }
            4..8 => {
                soak.host.delay_message(
                    id,
                    nth,
                    dice.moment(10_000).max(Duration::from_micros(100)),
                );
                soak.count("faults, message delayed");
            }
            _ => {
                let when = dice.pick(&WHEN);
                // Whose message was clocked as a whole was not gone (ESHUTDOWN): spidev only fails to copy.
                let unlikely = usize::from(when == When::AfterWire);
                let error = dice.pick(&ERRORS[unlikely..]);
                soak.host.fail_message(id, nth, when, error);
                soak.count("faults, message failed");
            }
        }
    }
    DEVICES.iter().for_each(|(id, _)| soak.host.mend(*id));
}
