// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vhost-user back-end of the VIRTIO SPI controller (device id 45): it gives virtual machines the
//! SPI devices of their host.
//!
//! # How one request is carried out
//!
//! 1. A kick wakes [`serve::event_loop`], which gives the guest's [`serve::session`] a turn.
//! 2. The session's [`serve::requestq`] reads the next descriptor chain of the [`virtqueue::vring`], and
//!    [`spi::request`] finds head, tx, rx and result in it.
//! 3. [`serve::grant`] finds the [`spi::device`], validates the request against the device's limits
//!    ([`spi::wire::validate`]) and makes a [`spi::transfer`]. If the device has `chip=`, [`spi::framing`]
//!    says which part of a command the request is.
//! 4. When the device's [`spi::bus`] is free, the chain is taken off the ring and the transfer begins:
//!    [`spi::plan`] cuts it into messages that spidev accepts, [`spi::message`] points each of them into
//!    guest memory, and [`spi::spidev`] carries them out, one each turn. The built-in [`spi::loopback`]
//!    needs no messages.
//! 5. At the end the result byte is written, the chain is returned to the ring, and the driver is notified.
//!
//! One process, one thread, one epoll set. Only the SPI ioctl blocks, for at most `--max-message-ms` of
//! wire time; [`threats`] says what a hostile front-end can add. A request costs no allocation, no copy
//! of payload (but for a few bytes: see [`spi::lead`] and [`spi::message`]) and no log line, and three
//! system calls or fewer where requests come one at a time: `epoll_wait`, the ioctl, and the `write` that
//! notifies.
//!
//! # How one vhost-user message is handled
//!
//! 1. An event of the connection gives the [`serve::session`] a turn. [`vhost_user::reader`] receives bytes and
//!    fds without waiting, classifies each fd, and says when a message is whole.
//! 2. If the message affects the request in progress, [`serve::requestq`] waits for the end of that request,
//!    or aborts it.
//! 3. [`vhost_user::handler`] passes a message that may bring fds to [`vhost_user::with_fds`], and all others to
//!    the `vhost` crate, which calls [`vhost_user::backend`]. These change the guest's [`virtqueue::memory`] and
//!    [`virtqueue::vring`].
//! 4. The handler keeps the reply and sends as much of it as the front-end takes. Until all is sent, no further
//!    message of this front-end is received.
//!
//! [`virtqueue::sigbus`] catches accesses to pages that the front-end truncates later, and
//! [`os::deferred_close`] closes the fds that it brought.
//!
//! # In which order to read
//!
//! Hostile bytes reach three rooms: read [`vhost_user`], [`virtqueue`] and [`spi`] first, then [`serve`]. It is
//! enough to know of [`os`] that it wraps the kernel. [`start`] and [`confine`] run before the first byte of a
//! front-end is read, but for the clean-up at the end. What bounds time is in [`threats`].
//!
//! Unsafe code is in [`os::ffi`], [`os::stdout`], [`spi::spidev`], [`virtqueue::sigbus`] and the program's
//! `no_unwinder`; the `mod` line of each has the reason.
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | guest | a virtual machine: its driver, and its front-end at a socket of its own |
//! | session | a guest's socket, and the connection of the front-end that is there now |
//! | request | a descriptor chain of the driver. vhost-user calls the code of a message a request, too: only in [`vhost_user`] |
//! | transfer | a request that was accepted, on its way over the wire |
//! | message | in [`vhost_user`], what a front-end sends; in [`spi`], one SPI ioctl: a transfer is one or several |
//! | piece | the part of a transfer that is one `struct spi_ioc_transfer` of a message |
//! | bus | an SPI controller of the host with its devices |
//! | device | a chip select of the host: a spidev, or the loopback |
//! | line | the signal of a device's chip select; elsewhere, a line of the log |
//! | hold | chip select that stays asserted between two requests |
//! | rest | after a message of a millisecond or more, a bus begins no other until each session that is queued has had a turn |
//!
//! # From an error to the log
//!
//! The types in [`error`] say whom an error costs. A request that is refused (`ParamError`) or fails
//! (`TransferError`) goes no further than [`serve::requestq`]: that completes the chain with the result byte and
//! logs the cause by the guest's [`os::log::GuestLines`], which limit how many lines are written. A broken ring
//! (`RingError`) stops there, too. A `SessionError` goes up to [`serve::event_loop`], which has
//! [`serve::session`] log it and close the connection. `Fatal` ends `main`, which logs it and exits with its
//! code.
//!
//! # Trust
//!
//! All input is validated: [`threats`] says who is trusted with what, which attacks were tried, and
//! what is not defended. Before the first byte from a front-end is read, [`confine::stages`] drops every
//! privilege that the process no longer needs.
//!
//! # Modules, top to bottom: each uses only those below it
//!
//! | module | what it does |
//! |---|---|
//! | [`start`] | from the command line, builds all that the event loop runs on |
//! | [`serve`] | decides whose turn it is, and serves one guest's requests |
//! | [`confine`] | confines the process before the first byte from a front-end is read |
//! | [`vhost_user`] | handles a front-end's messages |
//! | [`spi`] | carries a request from its bytes to the wire |
//! | [`virtqueue`] | reads what a driver writes: guest memory, descriptor chains |
//! | [`os`] | wraps what the kernel offers |
//! | [`error`], [`config`] | errors and settings, as values |
//!
//! # What a request may ask
//!
//! Each field of a request is validated before anything is sent. `PARAM_ERR` answers what is invalid
//! or not supported by the device; such a request has touched neither the bus nor the receive buffer.
//! Where VIRTIO leaves a choice, these were made:
//!
//! - `cs_change` other than 0 and 1 is refused; the reserved bytes are ignored.
//! - `freq` 0 means the highest clock that the device allows (`max-speed-hz=`).
//! - Delays are rounded up to microseconds. Inactive delays go up to 40 ms, hold delays up to two fifths of
//!   `--max-message-ms`.
//! - The word sizes that are offered are those that the controller accepted at the start, when the daemon
//!   tried each of 1 to 32 bits.
//! - Used length: 0 for a malformed chain, else the number of all device-writable bytes, the last of which
//!   is the result.
//! - With `chip=`, the tables of [`spi::command_set`] say where a command ends, and so how long chip
//!   select is held; `read-only=` and `deny=` say which opcodes a guest may send: see [`spi::framing`].
//!   A request that is refused ends the command that it belonged to.
//! - An SPI ioctl cannot be interrupted. So a transfer goes out in messages of at most
//!   `--max-message-ms` on the wire, with chip select held in between. The daemon handles vhost-user
//!   messages and signals between two of them.
//!
//! # What a front-end may ask
//!
//! The device has one queue of at most 1,024 descriptors, the virtio features VERSION_1, EVENT_IDX,
//! INDIRECT_DESC and IN_ORDER, and the protocol features MQ, REPLY_ACK, CONFIG, RESET_DEVICE and
//! CONFIGURE_MEM_SLOTS (32 of them). Memory is shared as memfd, tmpfs or hugetlbfs;
//! with `--guest-memory=any`, as any file that can be mapped.
//!
//! A front-end may send as many messages as it likes before it reads a reply: each reply is sent when
//! there is room, and until then no further message is received. A message that is malformed, unknown
//! or refused ends the connection; if it asked for an acknowledgement, it is answered first.
//! SET_CONFIG is acknowledged and changes nothing. A GET_CONFIG of no bytes, of more
//! than 4,084 (a body has 4,096 bytes, 12 of them before the config), or beyond offset 4,096 ends the
//! connection.
//!
//! All guests together may use half of the daemon's address space, in equal shares: on x86_64, 64 TiB for
//! one guest or 1 TiB for each of 64; on arm64 with 39-bit addresses, 256 GiB and 4 GiB.
//!
//! Some messages affect a transfer that is on the wire. A message that replaces or removes guest memory, or
//! stops the ring, waits for a transfer that has at most a second to go, and ends a longer one with
//! `TRANS_ERR`. A message that changes the ring or its features in another way ends any transfer with
//! `TRANS_ERR`.
//!
//! # Confinement
//!
//! `main` runs these stages, in this order, before the first byte from a front-end is read:
//!
//! | stage | what is left |
//! |---|---|
//! | close inherited fds, before anything is opened | stdin, stdout, stderr, sockets that were handed in, and what a preloaded library opened close-on-exec |
//! | limit of fds, before the devices are opened | all fds that the host allows, with a warning if the guests can need more; with too few for one guest, the daemon does not start |
//! | `no_new_privs`, no capabilities | the rights of its user, also where that is root |
//! | not dumpable | no core dumps; debuggers and `/proc/PID` for root alone |
//! | resource limits | no other process, no core file |
//! | Landlock | of the file system, only the right to remove files in the directories of its sockets and below: any file that its user may remove there. No TCP, no abstract sockets, no signals to others, if the kernel's version of Landlock has these. A kernel without Landlock is logged once. |
//! | seccomp | the system calls in the table of [`confine::seccomp`], with their arguments: SPI ioctls only on the devices' fds, no file opened, no socket made, no program, process or executable memory. Anything else ends the process (`--seccomp=kill`) or is logged (`log`). |
//!
//! `--seccomp=none` leaves out the filter and Landlock, for a wrapper that cannot run under them, such as
//! `qemu-aarch64`.
//!
//! # Crates and lines
//!
//! `tests/footprint` prints the lines of each file and the crates that are linked. Of the latter,
//! `vhost` reads, checks and answers vhost-user messages; `virtio-queue` keeps the vring; `vm-memory`
//! maps guest memory and accesses it as memory that others change; `vmm-sys-util` has epoll, signals,
//! and fds over sockets; `libc` has the system calls that std does not make. The others come with
//! these: `bitflags` 2 and `uuid` with `vhost`; `rand` and its crates with `uuid`, of which the linker
//! drops all code; `virtio-bindings` and `log` with `virtio-queue`; `thiserror` with `vm-memory`;
//! `bitflags` 1 with `vmm-sys-util`.

#![deny(unsafe_code, unsafe_op_in_unsafe_fn, missing_docs, unreachable_pub)]
#![cfg_attr(
    not(test),
    deny(
        clippy::allow_attributes_without_reason,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::exit,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::multiple_unsafe_ops_per_block,
        clippy::panic,
        clippy::print_stderr,
        clippy::print_stdout,
        clippy::undocumented_unsafe_blocks,
        clippy::unwrap_used,
        clippy::wildcard_enum_match_arm
    )
)]

pub mod config;
/// Confinement before a front-end's first byte is read: stages, Landlock, seccomp, emergency cleanup.
pub mod confine {
    pub mod bpf;
    pub mod emergency_cleanup;
    pub mod landlock;
    pub mod seccomp;
    pub mod stages;
}
pub mod error;
/// What the kernel offers: epoll, timer, signals, sockets, files and their close, log.
pub mod os {
    pub mod deadline_timer;
    pub mod deferred_close;
    pub mod epoll;
    #[allow(unsafe_code, reason = "UNSAFETY: system calls without a safe name")]
    pub mod ffi;
    pub mod file_kind;
    pub mod handed_in;
    pub mod listener;
    pub mod log;
    pub mod mounts;
    pub mod sd_notify;
    pub mod signals;
    pub mod socket;
    #[allow(unsafe_code, reason = "UNSAFETY: a function that runs before `main`")]
    pub mod stdout;
    pub mod write_timeout;
}
/// Whose turn it is, and what becomes of one guest's requests: event loop, turns, session, requestq, grant, counters.
pub mod serve {
    pub mod counters;
    pub mod event_loop;
    pub mod grant;
    pub mod histogram;
    pub mod requestq;
    pub mod session;
    pub mod turns;
}
/// From a request's bytes to the wire: wire format and validation, plan, transfer, bus, device.
pub mod spi {
    pub mod bus;
    pub mod command_set;
    pub mod device;
    pub mod framing;
    pub mod hold;
    pub mod lead;
    pub mod loopback;
    pub mod message;
    pub mod plan;
    pub mod probe;
    pub mod request;
    #[allow(unsafe_code, reason = "UNSAFETY: ioctls that point into guest memory")]
    pub mod spidev;
    pub mod transfer;
    pub mod wire;
}
/// From the command line to all that the loop runs on: command line, environment, devices, sockets.
pub mod start {
    pub mod assemble;
    pub mod cli;
    pub mod device_node;
    pub mod environment;
    pub mod locked_memory;
}
pub mod threats;
/// What a front-end says: reading its messages, and what each of them does.
pub mod vhost_user {
    pub mod backend;
    pub mod handler;
    pub mod message;
    pub mod reader;
    pub mod with_fds;
}
/// What a driver writes: guest memory, SIGBUS, vring, descriptor chain.
pub mod virtqueue {
    pub mod chain;
    pub mod memory;
    #[allow(unsafe_code, reason = "UNSAFETY: a signal handler that maps memory")]
    pub mod sigbus;
    pub mod vring;
}
