// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A request allocates nothing: the daemon's calls of malloc, calloc and realloc are counted by a
//! library that is preloaded into it.

use crate::rig::*;
use std::process::Command;

#[test]
fn request_allocates_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (library, file) = (
        directory.path().join("count.so"),
        directory.path().join("count"),
    );
    let source = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/integration/count_allocations.c"
    );
    let built = Command::new("cc")
        .args(["-O2", "-fno-builtin", "-shared", "-fPIC", source, "-o"])
        .arg(&library)
        .status()
        .unwrap();
    assert!(built.success());
    std::fs::write(&file, 0u64.to_ne_bytes()).unwrap();
    let count = || u64::from_ne_bytes(std::fs::read(&file).unwrap().try_into().unwrap());

    let host = Host::with_devices(1);
    let daemon = Setup::new(&host)
        .device("/dev/spidev0.0")
        .env("LD_PRELOAD", &library)
        .env("ALLOCATIONS", &file)
        .start();
    let mut guest = Guest::connect(&daemon, 0);
    guest.assert_served();
    let before = count();
    assert!(before > 0, "the daemon was not counted");
    for len in [1, 4096, 65_536] {
        for _ in 0..20 {
            let outcome = guest.transfer(Head::default(), &pattern(len), len);
            assert_eq!(outcome.result, TRANS_OK);
        }
    }
    let refused = guest.transfer(Head::default().bits(0), &[1], 1);
    assert_eq!(refused.result, PARAM_ERR);
    assert_eq!(count(), before);
    daemon.stop();
}
