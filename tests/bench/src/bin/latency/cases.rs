// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What goes on beside the measured guest.

use crate::attack::Attack;

/// Other guests, by the controller that their devices are on.
pub struct Case {
    pub name: &'static str,
    /// On the controller of the measured guest.
    pub same: &'static [Attack],
    /// On another one.
    pub elsewhere: &'static [Attack],
}

impl Case {
    /// All of the others, in the order of their sockets.
    pub fn others(&self) -> impl Iterator<Item = Attack> {
        self.same.iter().chain(self.elsewhere).copied()
    }

    /// Whether nobody but front-ends, which need no device, is elsewhere.
    pub fn needs_one_controller(&self) -> bool {
        self.elsewhere
            .iter()
            .all(|attack| FRONT_ENDS.contains(attack))
    }

    /// The daemon's devices.
    pub fn devices(&self) -> Vec<String> {
        let same = self.same.len();
        let mut devices = vec![format!("/dev/spidev100.0,guests=0-{same}")];
        if !self.elsewhere.is_empty() {
            let (first, last) = (same + 1, same + self.elsewhere.len());
            devices.push(format!("/dev/spidev101.0,guests={first}-{last}"));
        }
        devices
    }
}

const FRONT_ENDS: [Attack; 4] = [Attack::Connect, Attack::Lie, Attack::Memory, Attack::Block];

pub static CASES: [Case; 7] = [
    Case {
        name: "nothing beside it",
        same: &[],
        elsewhere: &[],
    },
    Case {
        name: "two floods, same controller",
        same: &[Attack::Flood, Attack::HeldFlood],
        elsewhere: &[],
    },
    Case {
        name: "two floods, another controller",
        same: &[],
        elsewhere: &[Attack::Flood, Attack::HeldFlood],
    },
    Case {
        name: "two with 20 ms transfers, same controller",
        same: &[Attack::Long, Attack::Long],
        elsewhere: &[],
    },
    Case {
        name: "two with 20 ms transfers, another controller",
        same: &[],
        elsewhere: &[Attack::Long, Attack::Long],
    },
    Case {
        name: "front-ends that connect, die, lie, change memory",
        same: &[],
        elsewhere: &FRONT_ENDS,
    },
    Case {
        name: "all at once",
        same: &[Attack::Flood, Attack::HeldFlood, Attack::Long],
        elsewhere: &[
            Attack::Flood,
            Attack::Long,
            Attack::Connect,
            Attack::Lie,
            Attack::Memory,
            Attack::Block,
        ],
    },
];
