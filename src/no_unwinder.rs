// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The unwinder of the shipped program: there is none.
//!
//! A panic ends the process at once (`panic = "abort"`), after a hook that prints no backtrace
//! (`emergency_cleanup`). The standard library's own hook would print one, and brings a reader of debug
//! information for that, which opens files: four tenths of the program. It gets at the stack by
//! `_Unwind_Backtrace` alone. With the one below, which does not return, the linker sees that none of that
//! is ever reached, and leaves it out.
//!
//! The others only an unwinder would call. With them the C compiler's library, `libgcc_s`, need not
//! be loaded, which takes time and 16 KiB of memory at each start.
//!
//! All are hidden: libraries that are loaded beside the program, such as preloaded ones, may have an
//! unwinder, and must not find these instead. The tables that unwinding reads stay in the program,
//! for debuggers.

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
