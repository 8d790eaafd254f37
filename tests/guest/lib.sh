# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Names and paths that the scripts of the guest lab share; sourced, not run.
# shellcheck shell=bash disable=SC2034  # used by those who source it
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
cache=$top/target/guest
root=$cache/debian
lab=$root/lab

die() {
    echo "guest lab: $*" >&2
    exit 1
}

arm64_root() { # DIRECTORY: a shell for arm64 in it, and the C library; artefact cross-arm64
    local library
    mkdir -p "$1"/{bin,lib}
    cp "$lab/cross-arm64/usr/bin/busybox" "$1/bin/"
    for library in ld-linux-aarch64.so.1 libc.so.6 libgcc_s.so.1 libm.so.6; do
        cp "$root/usr/aarch64-linux-gnu/lib/$library" "$1/lib/"
    done
}
