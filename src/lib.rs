//! A vhost-user back-end of the VIRTIO SPI controller (device id 45).
#![deny(unsafe_code)]

pub mod backend;
pub mod bus;
pub mod cli;
pub mod daemon;
pub mod device;
pub mod epoll;
pub mod event_loop;
pub mod fate;
#[allow(unsafe_code)]
pub mod gate;
#[allow(unsafe_code)]
pub mod listener;
#[allow(unsafe_code)]
pub mod log;
pub mod loopback;
#[allow(unsafe_code)]
pub mod memory;
pub mod plan;
pub mod request;
pub mod requestq;
#[allow(unsafe_code)]
pub mod sandbox;
#[allow(unsafe_code)]
pub mod seccomp;
pub mod session;
#[allow(unsafe_code)]
pub mod signals;
#[allow(unsafe_code)]
pub mod spidev;
pub mod transfer;
pub mod virtio_spi;
#[allow(unsafe_code)]
pub mod vring;
#[allow(unsafe_code)]
pub mod watchdog;
pub mod way_out;
