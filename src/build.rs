//! Leaves out of the shipped program what only unwinding would read: a panic ends it at once
//! (`panic = "abort"`), so these tables, a tenth of its size, are of no use there.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=src/no_unwinding.ld");
    if env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        let root = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        // The linker is called by the C compiler, unless cargo was told to call it itself.
        let by_itself = ["ld", "lld", "ld.lld", "ld.bfd", "rust-lld"];
        let linker = env::var("RUSTC_LINKER").unwrap_or_default();
        let name = Path::new(&linker).file_name();
        let prefix = match name {
            Some(name) if by_itself.iter().any(|own| name == *own) => "",
            Some(_) | None => "-Wl,",
        };
        println!("cargo:rustc-link-arg-bins={prefix}--script={root}/src/no_unwinding.ld");
        println!("cargo:rustc-link-arg-bins={prefix}--no-eh-frame-hdr");
    }
}
