// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What else is loaded into the process, and what it finds there.

use super::*;
use std::fs;

/// Without an unwinder (`src/no_unwinder.rs`) the program that ships needs none of the C compiler's.
#[test]
fn process_has_no_library_but_the_c_library() {
    let host = Host::with_devices(1);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    let maps = fs::read_to_string(format!("/proc/{}/maps", daemon.pid())).unwrap();
    let mut libraries: Vec<_> = maps
        .lines()
        .filter_map(|line| line.rsplit_once('/').map(|(_, name)| name))
        .filter(|name| name.contains(".so"))
        .collect();
    libraries.dedup();
    // A debug build, which is tested where no other is named, unwinds.
    let unwinds = std::env::var_os("DAEMON").is_none();
    libraries.retain(|name| !(unwinds && name.starts_with("libgcc_s")));
    let of_c = |name: &&str| name.starts_with("libc.so") || name.starts_with("ld-");
    let others: Vec<_> = libraries.iter().filter(|name| !of_c(name)).collect();
    assert!(others.is_empty(), "{others:?}");
}

/// What a library of the process would find in the program in place of its own.
#[test]
fn program_exports_nothing() {
    if traced() {
        // The daemon is a script there.
        return;
    }
    let nm = std::process::Command::new("nm")
        .args(["--dynamic", "--defined-only"])
        .arg(crate::rig::setup::binary())
        .output()
        .expect("nm, which comes with the linker");
    assert!(nm.status.success());
    assert_eq!(String::from_utf8(nm.stdout).unwrap(), "");
}

/// The program's stand-ins are its own: a library that looks at the stack, or unwinds it as C++ does,
/// has the unwinder that it brought.
#[test]
fn preloaded_library_has_an_unwinder_of_its_own() {
    let (_dir, library) = preloadable(
        "#include <fcntl.h>\n#include <unwind.h>\n\
         static _Unwind_Reason_Code each(struct _Unwind_Context *c, void *seen) {\
             *(int *)seen += _Unwind_GetIP(c) != 0; return _URC_NO_REASON; }\n\
         __attribute__((constructor)) static void look(void) {\
             int seen = 0; _Unwind_Backtrace(each, &seen);\
             fcntl(open(seen ? \"/dev/zero\" : \"/dev/null\", O_RDONLY | O_CLOEXEC), F_DUPFD_CLOEXEC, 500); }",
    );
    let host = Host::with_devices(1);
    let setup = Setup::new(&host).device("/dev/spidev0.0");
    let daemon = setup.env("LD_PRELOAD", &library).start();
    let seen = fs::read_link(format!("/proc/{}/fd/500", daemon.pid())).unwrap();
    assert_eq!(seen.to_str(), Some("/dev/zero"), "it saw no frame");
    assert_all_well(&daemon);
}
