// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest's memory: memory files mapped by the test as a front-end does, addressed by guest addresses.

use super::sys;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use vhost::VhostUserMemoryRegionInfo;

/// What nobody has written to yet looks like this.
pub const UNTOUCHED: u8 = 0xee;

/// One region.
pub struct Region {
    pub gpa: u64,
    pub len: u64,
    /// Where the region starts in its file.
    pub file_offset: u64,
    pub file: File,
    base: *mut u8,
}

// The mapping lives as long as the region and is accessed by volatile copies only.
unsafe impl Send for Region {}

impl Region {
    /// Maps `len` bytes of a new memory file as guest address `gpa`.
    pub fn new(gpa: u64, len: u64) -> Self {
        Self::at_offset(gpa, len, 0)
    }

    /// The same, with the region starting `file_offset` into the file.
    pub fn at_offset(gpa: u64, len: u64, file_offset: u64) -> Self {
        Self::in_file(sys::memfd(file_offset + len), gpa, len, file_offset)
    }

    /// Maps `len` bytes of `file`, from `file_offset` on, as guest address `gpa`.
    pub fn in_file(file: File, gpa: u64, len: u64, file_offset: u64) -> Self {
        let (prot, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len as usize,
                prot,
                libc::MAP_SHARED,
                fd,
                file_offset as i64,
            )
        };
        assert_ne!(base, libc::MAP_FAILED, "map the guest's memory");
        Self {
            gpa,
            len,
            file_offset,
            file,
            base: base.cast(),
        }
    }

    /// What SET_MEM_TABLE and ADD_MEM_REG say of it.
    pub fn info(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: self.gpa,
            memory_size: self.len,
            userspace_addr: self.base as u64,
            mmap_offset: self.file_offset,
            mmap_handle: self.file.as_raw_fd(),
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        unsafe { libc::munmap(self.base.cast(), self.len as usize) };
    }
}

/// All regions of a guest.
#[derive(Default)]
pub struct Memory {
    pub regions: Vec<Region>,
}

impl Memory {
    fn region(&self, gpa: u64) -> &Region {
        let found = self
            .regions
            .iter()
            .find(|r| (r.gpa..r.gpa + r.len).contains(&gpa));
        found.unwrap_or_else(|| panic!("the test uses guest address {gpa:#x}, where no memory is"))
    }

    /// The front-end's own address of a guest address, as the ring addresses are given.
    pub fn user_addr(&self, gpa: u64) -> u64 {
        let region = self.region(gpa);
        region.base as u64 + (gpa - region.gpa)
    }

    /// Inode and offset in the memory file behind a guest address.
    pub fn file_behind(&self, gpa: u64) -> (u64, u64) {
        let region = self.region(gpa);
        (
            region.file.metadata().expect("fstat").ino(),
            region.file_offset + gpa - region.gpa,
        )
    }

    /// Calls `each` for every contiguous piece: pointer, offset from `gpa`, length.
    fn pieces(&self, gpa: u64, len: usize, mut each: impl FnMut(*mut u8, usize, usize)) {
        let mut done = 0;
        while done < len {
            let at = gpa + done as u64;
            let region = self.region(at);
            let offset = at - region.gpa;
            let piece = (len - done).min((region.len - offset) as usize);
            each(unsafe { region.base.add(offset as usize) }, done, piece);
            done += piece;
        }
    }

    /// Writes, over region boundaries too.
    pub fn write(&self, gpa: u64, bytes: &[u8]) {
        self.pieces(gpa, bytes.len(), |to, offset, len| unsafe {
            std::ptr::copy_nonoverlapping(bytes[offset..].as_ptr(), to, len);
        });
    }

    /// Fills with one value.
    pub fn fill(&self, gpa: u64, len: usize, value: u8) {
        self.pieces(gpa, len, |to, _, len| unsafe {
            std::ptr::write_bytes(to, value, len)
        });
    }

    /// Reads, over region boundaries too.
    pub fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.pieces(gpa, len, |from, offset, len| unsafe {
            std::ptr::copy_nonoverlapping(from, bytes[offset..].as_mut_ptr(), len);
        });
        bytes
    }

    /// One little-endian u16, atomically: the ring indices are shared with the daemon.
    pub fn load_u16(&self, gpa: u64) -> u16 {
        let at = self.user_addr(gpa) as *mut u16;
        u16::from_le(
            unsafe { std::sync::atomic::AtomicU16::from_ptr(at) }
                .load(std::sync::atomic::Ordering::SeqCst),
        )
    }

    /// The counterpart of `load_u16`.
    pub fn store_u16(&self, gpa: u64, value: u16) {
        let at = self.user_addr(gpa) as *mut u16;
        let atomic = unsafe { std::sync::atomic::AtomicU16::from_ptr(at) };
        atomic.store(value.to_le(), std::sync::atomic::Ordering::SeqCst);
    }
}
