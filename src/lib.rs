//! A vhost-user back-end of the VIRTIO SPI controller (device id 45): it gives virtual machines the
//! SPI devices of their host.
//!
//! # The way of one request
//!
//! A kick wakes [`event_loop`], which gives the guest's [`session`] a turn. Its [`requestq`] looks
//! at the next chain of the [`vring`], [`request`] finds head, tx, rx and result in it, and
//! [`virtio_spi::validate`] judges it against the limits of its [`device`]. When its [`bus`] is
//! free the chain is taken off the ring and becomes a [`transfer`], for which [`plan`] makes
//! messages that spidev accepts and [`spidev`] (or the built-in [`loopback`]) carries them out, one
//! each turn. At the end the result byte is written, the chain given back, and the driver notified.
//!
//! One process, one thread, one epoll set. Nothing blocks but the SPI ioctl, and that for at most
//! 100 ms of wire time. A request costs no allocation, no copy of payload and no log line, and
//! three system calls where requests come one at a time: `epoll_wait`, the ioctl, and the `write`
//! that notifies.
//!
//! # Trust
//!
//! Nobody's input is believed: [`threats`] says who is trusted with what, which attacks were tried,
//! and what is not defended. Messages pass the [`gate`] before the `vhost` crate reads them and
//! calls [`backend`]; shared memory passes [`memory`], and [`sigbus`] catches what its owner takes
//! away later; what a front-end leaves behind goes to [`garbage`]; requests pass [`request`] and
//! [`virtio_spi`]. What goes wrong has one of the fates in [`fate`]. Before the first byte from a
//! front-end is read, [`sandbox`] takes from the process all that it needs no longer.
//!
//! # Modules, top to bottom: each uses only those below it
//!
//! | modules | job |
//! |---|---|
//! | [`daemon`] | from the command line to all that the loop runs on |
//! | [`cli`], [`environment`] | what it is told |
//! | [`sandbox`], [`landlock`], [`seccomp`], [`bpf`], [`way_out`] | confinement and the end |
//! | [`event_loop`], [`turns`], [`alarm`], [`signals`], [`sd_notify`] | events; whose turn it is; deadlines; signals; the service manager |
//! | [`session`], [`requestq`], [`grant`], [`counters`] | one guest: its socket and messages; its requests; what it may ask, what became of it |
//! | [`backend`], [`gate`] | vhost-user messages: what each does; whether one may be read |
//! | [`bus`], [`hold`], [`transfer`] | who has the controller; one request on its way over the wire |
//! | [`device`], [`probe`], [`loopback`], [`spidev`], [`message`] | chip selects: what they may be asked, how they do it |
//! | [`request`], [`vring`], [`chain`], [`memory`], [`sigbus`] | requests, rings, guest memory |
//! | [`virtio_spi`], [`plan`] | pure: the wire format and its judgement; messages from segments |
//! | [`handed_in`], [`listener`] | sockets |
//! | [`log`], [`watchdog`], [`poll`] | lines; writes that must not wait |
//! | [`epoll`], [`garbage`], [`kind`] | fds and their end |
//! | [`fate`], [`config`] | errors and settings, as values |

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

pub mod alarm;
pub mod backend;
pub mod bpf;
pub mod bus;
pub mod chain;
pub mod cli;
pub mod config;
pub mod counters;
pub mod daemon;
pub mod device;
#[allow(unsafe_code, reason = "UNSAFETY: remove_var")]
pub mod environment;
pub mod epoll;
pub mod event_loop;
pub mod fate;
pub mod garbage;
#[allow(
    unsafe_code,
    reason = "UNSAFETY: recvmsg with MSG_PEEK, which std has no name for"
)]
pub mod gate;
pub mod grant;
#[allow(
    unsafe_code,
    reason = "UNSAFETY: fds that are only known by their number"
)]
pub mod handed_in;
pub mod hold;
#[allow(
    unsafe_code,
    reason = "UNSAFETY: fcntl, statx, fstatfs and getsockopt as std does not make them"
)]
pub mod kind;
#[allow(unsafe_code, reason = "UNSAFETY: Landlock's system calls")]
pub mod landlock;
#[allow(
    unsafe_code,
    reason = "UNSAFETY: a socket with permissions and a group, shutdown, and the *at calls"
)]
pub mod listener;
pub mod log;
pub mod loopback;
pub mod memory;
pub mod message;
pub mod plan;
#[allow(unsafe_code, reason = "UNSAFETY: ppoll")]
pub mod poll;
pub mod probe;
pub mod request;
pub mod requestq;
#[allow(
    unsafe_code,
    reason = "UNSAFETY: prctl, capset, limits, and closing fds"
)]
pub mod sandbox;
pub mod sd_notify;
#[allow(unsafe_code, reason = "UNSAFETY: the seccomp system call")]
pub mod seccomp;
pub mod session;
#[allow(
    unsafe_code,
    reason = "UNSAFETY: a signal handler that maps memory in place of guest memory"
)]
pub mod sigbus;
#[allow(unsafe_code, reason = "UNSAFETY: signal and signalfd")]
pub mod signals;
#[allow(
    unsafe_code,
    reason = "UNSAFETY: the SPI ioctls, whose transfers point into guest memory"
)]
pub mod spidev;
pub mod threats;
pub mod transfer;
pub mod turns;
pub mod virtio_spi;
pub mod vring;
#[allow(unsafe_code, reason = "UNSAFETY: setitimer")]
pub mod watchdog;
pub mod way_out;
