// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest memory file that is truncated ends that guest's session, not the process.
//!
//! The file of a mapping is the front-end's, which can shrink it at any moment: our next access beyond
//! its end raises SIGBUS. The handler then puts anonymous memory in place of the block that was touched,
//! so that the access goes on harmlessly, and marks the region; the loop ends the session to which it
//! belongs. Any other SIGBUS is a fault of our own and ends the process.
//!
//! Only a block: where the kernel does not overcommit (`vm.overcommit_memory=2`), it would refuse to
//! replace a region of more than the host can grant, and the process would end. So it is the smallest
//! block that the kernel cuts out: a huge page, or all of a mapping of a driver that allows no cut.
//!
//! The handler reads nothing but atomics: a list of slots, which grows by one where a mapping finds none
//! that is free, and never shrinks. An access that raises SIGBUS is never made while it grows.

use std::io;
use std::iter;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use vmm_sys_util::signal::register_signal_handler;

/// Bytes that are replaced at once, where the kernel can: whole pages on all architectures.
const BLOCK_LEN: usize = 64 * 1024;

#[derive(Debug, Default)]
struct Slot {
    /// Address of the mapping; 0 if the slot is free.
    start: AtomicUsize,
    len: AtomicUsize,
    hit: AtomicBool,
    next: OnceLock<Box<Slot>>,
}

static FIRST: OnceLock<Box<Slot>> = OnceLock::new();

/// Some region was hit since the last [`take_hit`].
static HIT: AtomicBool = AtomicBool::new(false);

/// A mapping that the handler knows, for as long as this lives.
#[derive(Debug)]
pub struct Watch(&'static Slot);

impl Watch {
    /// Tells the handler about the mapping of `len` bytes at `start`.
    pub fn new(start: *mut u8, len: usize) -> Self {
        let mut slot = FIRST.get_or_init(Box::default);
        while slot.start.load(Ordering::Relaxed) != 0 {
            slot = slot.next.get_or_init(Box::default);
        }
        slot.hit.store(false, Ordering::Relaxed);
        slot.len.store(len, Ordering::Relaxed);
        slot.start
            .store(start.expose_provenance(), Ordering::Release);
        Self(slot)
    }

    /// Whether the mapping's file was truncated under it.
    pub fn is_hit(&self) -> bool {
        self.0.hit.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.start.store(0, Ordering::Release);
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
    Ok(register_signal_handler(libc::SIGBUS, on_sigbus)?)
}

extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands a SA_SIGINFO handler a valid siginfo.
    let info = unsafe { &*info };
    // SAFETY: SIGBUS has an address.
    let address = unsafe { info.si_addr() }.addr();
    for slot in iter::successors(FIRST.get(), |slot| slot.next.get()) {
        let start = slot.start.load(Ordering::Acquire);
        let end = start.saturating_add(slot.len.load(Ordering::Relaxed));
        let is_hit = start != 0 && (start..end).contains(&address);
        let mut block_lens = iter::successors(Some(BLOCK_LEN), |len| len.checked_mul(2));
        if is_hit && block_lens.any(|len| replace_block(start, end, address, len)) {
            slot.hit.store(true, Ordering::Relaxed);
            HIT.store(true, Ordering::Relaxed);
            return;
        }
    }
    // A fault of our own: without the handler, the access that is made again ends the process.
    // SAFETY: SIG_DFL is a valid disposition.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

/// Puts anonymous memory in place of the block of `block_len` bytes, a power of two, that `address` lies
/// in, as far as it belongs to the mapping from `start` to `end`.
fn replace_block(start: usize, end: usize, address: usize, block_len: usize) -> bool {
    let first = address & !block_len.saturating_sub(1);
    let last = first.saturating_add(block_len).min(end);
    let first = first.max(start);
    let len = last.saturating_sub(first);
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    let at = ptr::with_exposed_provenance_mut(first);
    // SAFETY: the range is in a mapping of guest memory that has a `Watch`, and no reference to
    // guest memory exists.
    let result = unsafe { libc::mmap(at, len, protection, flags, -1, 0) };
    result != libc::MAP_FAILED
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::{AsRawFd, FromRawFd};

    /// A new file of `len` bytes, mapped.
    fn map(len: usize) -> (File, *mut u8) {
        map_memfd(len, 0)
    }

    fn map_memfd(len: usize, memfd_flags: libc::c_uint) -> (File, *mut u8) {
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(c"truncated".as_ptr(), memfd_flags) };
        // SAFETY: memfd_create gave this fd to us alone.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len as u64).unwrap();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let (at, flags, fd) = (
            ptr::null_mut(),
            libc::MAP_SHARED | libc::MAP_NORESERVE,
            file.as_raw_fd(),
        );
        // SAFETY: a new mapping of a file of that length.
        let start = unsafe { libc::mmap(at, len, protection, flags, fd, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        (file, start.cast())
    }

    #[test]
    fn access_to_a_truncated_mapping_goes_on_and_is_told() {
        install().unwrap();
        let (file, start) = map(8192);
        let watch = Watch::new(start, 8192);
        assert!(!watch.is_hit());
        file.set_len(0).unwrap();
        // SAFETY: within the mapping; the handler makes the access good.
        unsafe { start.add(5000).write_volatile(1) };
        assert!(watch.is_hit());
        drop(watch);
        // SAFETY: the mapping made above, which nothing uses any more.
        unsafe { libc::munmap(start.cast(), 8192) };
    }

    /// Huge pages stand for any mapping that the kernel does not cut into blocks of 64 KiB.
    #[test]
    fn access_to_a_truncated_mapping_that_cannot_be_cut_there_replaces_more_of_it() {
        const LEN: usize = 1 << 30;
        install().unwrap();
        let (file, start) = map_memfd(LEN, libc::MFD_HUGETLB);
        let watch = Watch::new(start, LEN);
        file.set_len(0).unwrap();
        // SAFETY: within the mapping; the handler makes the access good.
        unsafe { start.add(5000).write_volatile(1) };
        assert!(watch.is_hit());
        drop(watch);
        // SAFETY: the mapping made above, which nothing uses any more.
        unsafe { libc::munmap(start.cast(), LEN) };
    }

    #[test]
    fn access_to_a_truncated_mapping_replaces_one_block() {
        const LEN: usize = 3 * BLOCK_LEN;
        install().unwrap();
        let (file, start) = map(LEN);
        let watch = Watch::new(start, LEN);
        file.set_len(4096).unwrap();
        // SAFETY: within the mapping; the handler makes the access good.
        unsafe { start.add(LEN - 1).write_volatile(1) };
        assert!(watch.is_hit());
        // What is left of the file is still mapped.
        std::os::unix::fs::FileExt::write_all_at(&file, &[7], 0).unwrap();
        // SAFETY: within the mapping.
        assert_eq!(unsafe { start.read_volatile() }, 7);
        drop(watch);
        // SAFETY: the mapping made above, which nothing uses any more.
        unsafe { libc::munmap(start.cast(), LEN) };
    }
}
