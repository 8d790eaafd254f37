# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Builds what tests/bench/run and tests/latency have in common: the daemon, its published predecessor, the crate
# tests/bench and the faked spidev, below target/bench. Sourced at the top of the tree.
# shellcheck shell=bash

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
bench=$target/bench
published=$bench/published
mkdir -p "$bench"
need() { command -v "$1" >/dev/null || { apt-get -q update && apt-get -qy install "$2"; }; }
need cc gcc

cargo build --release --locked --target-dir "$target"
if [ ! -x "$published/bin/vhost-device-spi" ]; then
    cargo install --locked vhost-device-spi --version 0.1.0 \
        --root "$published" --target-dir "$bench/published-build"
fi
cargo build --release --locked --manifest-path tests/bench/Cargo.toml --target-dir "$bench/build"
flags='-O2 -Wall -Wextra -Werror'
cc $flags -shared -fPIC -o "$bench/fake_spidev.so" tests/bench/fake_spidev.c
