//! A guest memory file that is truncated ends that guest's session, not the process.
//!
//! The file behind a mapping is the front-end's: it can shrink it at any moment, and the next
//! access of ours beyond its end raises SIGBUS. The handler then puts anonymous memory in place of
//! the whole region, so that the access goes on harmlessly, and marks the region; the loop ends
//! the session to which it belongs. Any other SIGBUS is a fault of our own and ends the process.
//!
//! The handler reads nothing but atomics, in a table that is big enough for all guests.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use vmm_sys_util::signal::register_signal_handler;

use crate::config::{MAX_GUESTS, MAX_REGIONS};

/// A table is replaced by a new one while the old is still mapped: room for both.
const SLOTS: usize = 2 * MAX_GUESTS * MAX_REGIONS;

struct Slot {
    /// Address of the mapping; 0 if the slot is free.
    start: AtomicUsize,
    len: AtomicUsize,
    hit: AtomicBool,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        hit: AtomicBool::new(false),
    }
}; SLOTS];

/// Some region was hit since the last [`take_hit`].
static HIT: AtomicBool = AtomicBool::new(false);

/// A mapping that the handler knows, for as long as this lives.
#[derive(Debug)]
pub struct Watch(usize);

impl Watch {
    /// Has the handler know the mapping of `len` bytes at `start`; `None` if its table is full.
    pub fn new(start: *mut u8, len: usize) -> Option<Self> {
        let free = |slot: &Slot| slot.start.load(Ordering::Relaxed) == 0;
        let index = TABLE.iter().position(free)?;
        let slot = TABLE.get(index)?;
        slot.hit.store(false, Ordering::Relaxed);
        slot.len.store(len, Ordering::Relaxed);
        slot.start
            .store(start.expose_provenance(), Ordering::Release);
        Some(Self(index))
    }

    /// Whether the mapping's file was truncated under it.
    pub fn is_hit(&self) -> bool {
        let slot = TABLE.get(self.0);
        slot.is_some_and(|slot| slot.hit.load(Ordering::Relaxed))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(slot) = TABLE.get(self.0) {
            slot.start.store(0, Ordering::Release);
        }
    }
}

/// Whether any region was hit since the last call.
pub fn take_hit() -> bool {
    // Most of the time this is a plain load.
    HIT.load(Ordering::Relaxed) && HIT.swap(false, Ordering::Relaxed)
}

/// Installs the handler.
///
/// # Errors
/// The kernel's.
pub fn install() -> io::Result<()> {
    register_signal_handler(libc::SIGBUS, on_sigbus)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

extern "C" fn on_sigbus(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel hands a SA_SIGINFO handler a valid siginfo.
    let info = unsafe { &*info };
    // SAFETY: SIGBUS has an address.
    let address = unsafe { info.si_addr() }.addr();
    for slot in &TABLE {
        let start = slot.start.load(Ordering::Acquire);
        let len = slot.len.load(Ordering::Relaxed);
        let inside = address
            .checked_sub(start)
            .is_some_and(|offset| offset < len);
        if start != 0 && inside && replace(start, len) {
            slot.hit.store(true, Ordering::Relaxed);
            HIT.store(true, Ordering::Relaxed);
            return;
        }
    }
    // A fault of our own: without the handler, the access that is made again ends the process.
    // SAFETY: SIG_DFL is a valid disposition.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

/// Puts anonymous memory in place of a mapping.
fn replace(start: usize, len: usize) -> bool {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    let at = ptr::with_exposed_provenance_mut(start);
    // SAFETY: the range is a mapping of guest memory that a `Watch` vouches for, which nothing
    // holds references to.
    let result = unsafe { libc::mmap(at, len, protection, flags, -1, 0) };
    result != libc::MAP_FAILED
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::{AsRawFd, FromRawFd};

    #[test]
    fn access_to_a_truncated_mapping_goes_on_and_is_told() {
        install().unwrap();
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(c"truncated".as_ptr(), 0) };
        // SAFETY: memfd_create gave this fd to us alone.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(8192).unwrap();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping of a file of that length.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                8192,
                protection,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        }
        .cast::<u8>();
        let watch = Watch::new(start, 8192).unwrap();
        assert!(!watch.is_hit());
        file.set_len(0).unwrap();
        // SAFETY: within the mapping; the handler makes the access good.
        unsafe { start.add(5000).write_volatile(1) };
        assert!(watch.is_hit());
        assert!(take_hit());
        assert!(!take_hit());
        // SAFETY: the mapping made above, which nothing uses any more.
        unsafe { libc::munmap(start.cast(), 8192) };
    }
}
