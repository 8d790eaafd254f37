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
