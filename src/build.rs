//! Leaves out of the shipped program what only unwinding would read: a panic ends it at once
//! (`panic = "abort"`), so these tables, a tenth of its size, are of no use there.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=src/no_unwinding.ld");
    if env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        let root = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo:rustc-link-arg-bins=-Wl,-T,{root}/src/no_unwinding.ld");
        println!("cargo:rustc-link-arg-bins=-Wl,--no-eh-frame-hdr");
    }
}
