// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Standard output: for the options that print a text and end.
//!
//! Before `main`, Rust's standard library opens `/dev/null` in place of a stdout that is closed,
//! where a text is lost without an error. So stdout is looked at even earlier, by a function in
//! `.init_array`, which the C library calls first. `/dev/null` itself does not tell: the program
//! may have been started with it, to discard the text.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::os::ffi::fcntl;

/// Stdout was closed when the process began. A static, since a function that runs before `main` has
/// no owner that it could give this to.
static WAS_CLOSED: AtomicBool = AtomicBool::new(false);

#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

extern "C" fn look() {
    let is_closed = fcntl(libc::STDOUT_FILENO, libc::F_GETFD).is_err();
    WAS_CLOSED.store(is_closed, Ordering::Relaxed);
}

/// Writes `text`, all of it.
///
/// # Errors
/// The kernel's; `EBADF` if stdout was closed when the process began.
pub fn print(text: &str) -> io::Result<()> {
    if WAS_CLOSED.load(Ordering::Relaxed) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    let mut stdout = io::stdout();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}
