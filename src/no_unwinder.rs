// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The unwinder of the shipped program: there is none.
//!
//! A panic ends the process at once (`panic = "abort"`), after a hook that prints no backtrace
//! (`emergency_cleanup`). The standard library's own hook would print one, for which it brings a reader of
//! debug information that opens files: four tenths of the program. That hook reaches the stack only by
//! `_Unwind_Backtrace`. The one below does not return, so the linker sees that nothing after it is reached,
//! and leaves out the reader.
//!
//! Only an unwinder would call the other functions. Since they are here, the program does not load
//! `libgcc_s`, the C compiler's library, which would take time and 16 KiB of memory at each start.
//!
//! All are hidden: a library that is loaded with the program, such as a preloaded one, may have an
//! unwinder of its own, which must not find these. The tables for unwinding stay in the program, for
//! debuggers.

use std::arch::global_asm;
use std::process;

macro_rules! never_called {
    ($($name:ident)*) => {$(
        global_asm!(concat!(".hidden ", stringify!($name)));

        #[unsafe(no_mangle)]
        extern "C" fn $name() -> ! {
            process::abort()
        }
    )*};
}

never_called! {
    _Unwind_Backtrace
    _Unwind_GetDataRelBase
    _Unwind_GetIP
    _Unwind_GetIPInfo
    _Unwind_GetLanguageSpecificData
    _Unwind_GetRegionStart
    _Unwind_GetTextRelBase
    _Unwind_Resume
    _Unwind_SetGR
    _Unwind_SetIP
}
