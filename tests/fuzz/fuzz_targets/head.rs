// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vhost_device_spi_fuzz::head::run(bytes));
