// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Controllers and chip selects as fuzzed guests have them: all loopbacks, and quick.

use std::time::Duration;

use vhost_device_spi::config::{DeviceConfig, DevicePath, GuestMemory, HoldPolicy, TransferConfig};
use vhost_device_spi::os::deferred_close::DeferredClose;
use vhost_device_spi::os::epoll::Poller;
use vhost_device_spi::os::mounts::Mounts;
use vhost_device_spi::serve::grant::{Grant, Shared};
use vhost_device_spi::spi::bus::Bus;
use vhost_device_spi::spi::device::Device;
use vhost_device_spi::spi::wire::ConfigSpace;

/// Longest request, in nanoseconds: short enough to wait for.
const MAX_TRANSFER_NS: u64 = 50_000;
const MAX_DELAY_NS: u32 = 2_000;
/// Bytes of a message of the second device, so that requests take several.
const SHORT_MESSAGE: u32 = 256;

/// Two controllers, one of them with two chip selects.
pub fn buses() -> Vec<Bus> {
    let mut short = device();
    short.bufsiz = SHORT_MESSAGE;
    vec![
        Bus::new(vec![device(), short], None, 1),
        Bus::new(vec![device()], None, 1),
    ]
}

/// All of them for one guest, whose config space is `config`.
pub fn grant(config: ConfigSpace) -> Grant {
    Grant {
        guest_memory: GuestMemory::Sealed,
        max_memory_len: 1 << 40,
        config,
        chip_selects: vec![(0, 0), (0, 1), (1, 0)],
        policy: HoldPolicy::Queued,
        hold_timeout: Duration::from_millis(1),
        poll: Duration::ZERO,
    }
}

/// What a loop over `buses` shares.
pub fn shared(buses: Vec<Bus>) -> Shared {
    let deferred = DeferredClose::new(1);
    Shared::new(buses, Poller::new().unwrap(), Mounts::read(), deferred)
}

fn device() -> Device {
    let config = DeviceConfig {
        word_delay: true,
        cs_setup: true,
        ..DeviceConfig::new(DevicePath::Loopback, 1)
    };
    let transfers = TransferConfig {
        max_len: 1 << 20,
        max_ms: 1,
        max_message_ms: 100,
    };
    let mut device = Device::open(&config, &transfers, 0, &[]).unwrap();
    device.limits.max_transfer_ns = MAX_TRANSFER_NS;
    device.limits.max_cs_inactive_ns = MAX_DELAY_NS;
    device.limits.max_cs_setup_ns = MAX_DELAY_NS;
    device.limits.max_word_delay_ns = MAX_DELAY_NS;
    device
}
