// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One guest's memory: the regions that its front-end shared, mapped, and the ways to a byte in it.
//!
//! Two address spaces meet here. The front-end names rings by *user address* (its own virtual
//! address), descriptors name buffers by *guest address*; they have distinct types, so that they
//! cannot be mixed up. Bytes are only ever reached through a [`VolatileSlice`] that borrows this
//! table: no reference or slice over guest memory exists, and no pointer outlives a step. The table
//! is a [`GuestMemoryBackend`], so that `virtio-queue` works on it.
//!
//! Invariant: a region is whole pages of a file that lives in memory (with `--guest-memory=any`, of any
//! file), within that file when it was mapped, and overlaps no other region, in guest or in user
//! addresses. The file may shrink later: `sigbus` is told about every mapping.
//!
//! Must not: know rings or SPI. Called by `with_fds` and `backend` for messages about memory, and by
//! `chain`, `vring` and files of `spi` for each access.

use std::fmt::Display;
use std::fs::File;
use std::sync::atomic::Ordering;

use vm_memory::{
    ByteValued, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion,
    GuestRegionMmap, MemoryRegionAddress, VolatileSlice,
};

use crate::config::MAX_REGIONS;
use crate::os::deferred_close::FrontendFile;
use crate::os::file_kind;
use crate::virtqueue::sigbus::Watch;

/// Bytes of the smallest page: a region is whole pages. Where the kernel's are larger, it refuses to map
/// parts of them.
const PAGE_LEN: u64 = 4096;

/// Most bytes of memory that each of `guests` guests may have: an equal share of half of the
/// process's address space. This is the only limit: a mapping takes addresses and no memory, and a
/// front-end must not use up the addresses that another one needs.
pub fn max_len(guests: usize) -> u64 {
    let local = 0u8;
    // The stack is at the top of the address space (39, 47 or 48 bits), which is a power of two.
    let top = (&raw const local).addr().checked_next_power_of_two();
    let half = top.unwrap_or(usize::MAX) / 2;
    u64::try_from(half.checked_div(guests).unwrap_or(half)).unwrap_or(u64::MAX)
}

/// An address in the front-end's own address space, as vhost-user messages name rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UserAddress(pub u64);

/// A region as a front-end describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionDescription {
    /// First guest address.
    pub guest: GuestAddress,
    /// First user address.
    pub user: UserAddress,
    /// Length in bytes.
    pub len: u64,
    /// Where the region starts in its file, in bytes.
    pub file_offset: u64,
}

/// One of the four numbers is not on a page boundary, or the region is empty or wraps.
const SHAPE: &str = "region is empty, wraps or is not page aligned";
/// It overlaps another one, in guest or in user addresses.
const OVERLAP: &str = "regions overlap";
/// GET_MAX_MEM_SLOTS offers as many.
const TOO_MANY: &str = "more than 32 regions of memory";
const BEYOND_FILE: &str = "region ends beyond the end of its file";
/// An access to a file on a disk could wait for the disk; to one of a FUSE server, for ever.
const NOT_MEMORY: &str = "guest memory must be a memfd or a file on tmpfs or hugetlbfs, and a \
                          region's file is not; see --guest-memory";

fn cannot_map(error: impl Display) -> String {
    format!("cannot map region: {error}")
}

/// A region that is mapped. Fields are dropped in this order: the close of the file is deferred after
/// the mapping, which shares it, is gone.
#[derive(Debug)]
pub struct Region {
    description: RegionDescription,
    mapping: GuestRegionMmap,
    watch: Watch,
    _file: FrontendFile,
}

/// The region table of one guest.
#[derive(Debug)]
pub struct Memory {
    regions: Vec<Region>,
    max_len: u64,
}

impl GuestMemoryBackend for Memory {
    type R = GuestRegionMmap;

    fn iter(&self) -> impl Iterator<Item = &GuestRegionMmap> {
        self.regions.iter().map(|region| &region.mapping)
    }

    /// The region that `address` lies in, and the offset there. Every access comes here. One region after
    /// the other: a guest has few, and for the first four this takes fewer instructions than a binary search.
    #[inline(always)]
    fn to_region_addr(&self, address: GuestAddress) -> Option<(&Self::R, MemoryRegionAddress)> {
        self.regions.iter().find_map(|region| {
            let offset = address.0.wrapping_sub(region.description.guest.0);
            let is_in = offset < region.description.len;
            is_in.then_some((&region.mapping, MemoryRegionAddress(offset)))
        })
    }
}

impl Memory {
    /// An empty table, for regions of at most `max_len` bytes in all.
    pub const fn new(max_len: u64) -> Self {
        Self {
            regions: Vec::new(),
            max_len,
        }
    }

    /// Removes all regions.
    pub fn clear(&mut self) {
        self.regions.clear();
    }

    /// Adds one region backed by `file`.
    ///
    /// # Errors
    /// A region that is malformed, overlaps, is not backed by memory, or cannot be mapped; the
    /// table is then as before.
    pub fn add(&mut self, region: RegionDescription, file: FrontendFile) -> Result<(), String> {
        self.check(&region)?;
        // The kind comes first: a system call on a file of a FUSE server may wait for its answer.
        let memory = file.memory().ok_or(NOT_MEMORY)?;
        check_file(&region, &memory)?;
        let len = usize::try_from(region.len).map_err(|_| SHAPE)?;
        let part = FileOffset::from_arc(memory, region.file_offset);
        let mapping =
            GuestRegionMmap::from_range(region.guest, len, Some(part)).map_err(cannot_map)?;
        let watch = Watch::new(mapping.as_ptr(), len);
        let region = Region {
            description: region,
            mapping,
            watch,
            _file: file,
        };
        self.regions.push(region);
        Ok(())
    }

    /// Removes the region with these addresses and this length. The file offset of the message is
    /// not compared: vhost-user gives REM_MEM_REG no file to compare it with.
    ///
    /// # Errors
    /// There is no such region.
    pub fn remove(&mut self, region: &RegionDescription) -> Result<(), String> {
        let index = self
            .described()
            .position(|r| r.guest == region.guest && r.user == region.user && r.len == region.len)
            .ok_or("no such region")?;
        self.regions.remove(index);
        Ok(())
    }

    fn described(&self) -> impl Iterator<Item = &RegionDescription> {
        self.regions.iter().map(|region| &region.description)
    }

    fn check(&self, region: &RegionDescription) -> Result<(), String> {
        let starts = [region.guest.0, region.user.0, region.file_offset];
        let is_shaped = starts
            .iter()
            .all(|start| start % PAGE_LEN == 0 && start.checked_add(region.len).is_some());
        if region.len == 0 || region.len % PAGE_LEN != 0 || !is_shaped {
            return Err(SHAPE.into());
        }
        let total = self
            .described()
            .fold(region.len, |sum, r| sum.saturating_add(r.len));
        if self.regions.len() >= MAX_REGIONS {
            return Err(TOO_MANY.into());
        }
        if total > self.max_len {
            let gib = self.max_len >> 30;
            let share = "a guest's share of the address space";
            return Err(format!("more than {gib} GiB of memory, {share}"));
        }
        let overlaps = |a: u64, b: u64, b_len: u64| {
            a < b.saturating_add(b_len) && b < a.saturating_add(region.len)
        };
        if self.described().any(|r| {
            overlaps(region.guest.0, r.guest.0, r.len) || overlaps(region.user.0, r.user.0, r.len)
        }) {
            return Err(OVERLAP.into());
        }
        Ok(())
    }

    /// The guest address of the byte at user address `user`, if it is in a region.
    pub fn translate(&self, user: UserAddress) -> Option<GuestAddress> {
        self.described().find_map(|region| {
            let offset = user.0.checked_sub(region.user.0)?;
            let guest = region.guest.0.checked_add(offset)?;
            (offset < region.len).then_some(GuestAddress(guest))
        })
    }

    /// Whether a region's file was truncated while it was mapped: its content is lost.
    pub fn is_truncated(&self) -> bool {
        self.regions.iter().any(|region| region.watch.is_hit())
    }

    /// How many of the `len` bytes from `address` on lie in one region; `None` if `address` is in none.
    #[inline(always)]
    pub fn contiguous(&self, address: u64, len: u32) -> Option<u32> {
        let (region, offset) = self.to_region_addr(GuestAddress(address))?;
        let left = region.len().saturating_sub(offset.0);
        u32::try_from(left.min(len.into())).ok()
    }

    #[inline(always)]
    fn whole_slice(&self, address: u64, len: usize) -> Option<VolatileSlice<'_>> {
        let (region, offset) = self.to_region_addr(GuestAddress(address))?;
        region.get_slice(offset, len).ok()
    }

    /// `len` bytes at guest address `address`, if one region holds them all; valid while the table is
    /// borrowed.
    pub fn slice(&self, address: u64, len: u32) -> Option<VolatileSlice<'_>> {
        self.whole_slice(address, usize::try_from(len).ok()?)
    }

    /// The object at guest address `address`, in as many regions as it lies in; `None` outside of memory.
    #[inline(always)]
    pub fn read_object<T: ByteValued>(&self, address: u64) -> Option<T> {
        let mut object = T::zeroed();
        self.read(address, object.as_mut_slice()).map(|()| object)
    }

    /// Copies the bytes at guest address `address` into `bytes`, from as many regions as they lie in;
    /// `None` outside of memory.
    #[inline(always)]
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Option<()> {
        // Nearly all bytes lie in one region, and `read_slice` alone takes twice the instructions.
        let Some(slice) = self.whole_slice(address, bytes.len()) else {
            return self.read_slice(bytes, GuestAddress(address)).ok();
        };
        slice.copy_to(bytes);
        Some(())
    }

    /// Writes `byte` to guest address `address`; `None` outside of memory.
    #[inline(always)]
    pub fn write_byte(&self, address: u64, byte: u8) -> Option<()> {
        let slice = self.whole_slice(address, 1)?;
        slice.store(byte, 0, Ordering::Relaxed).ok()
    }

    /// Loads the 16-bit number at the even guest address `address` (acquire: what is read after it is not
    /// older). `None` outside of memory.
    #[inline(always)]
    pub fn load(&self, address: u64) -> Option<u16> {
        let slice = self.whole_slice(address, 2)?;
        slice.load(0, Ordering::Acquire).ok().map(u16::from_le)
    }
}

/// Checks that the region is whole pages of `file`, and ends within it if it has a length.
fn check_file(region: &RegionDescription, file: &File) -> Result<(), String> {
    // A part of a huge page could be mapped, but neither unmapped nor, after SIGBUS, replaced.
    let page_len = file_kind::huge_page_len(file).map_err(cannot_map)?;
    let numbers = [region.len, region.file_offset];
    if page_len.is_some_and(|len| !numbers.iter().all(|n| n.checked_rem(len) == Some(0))) {
        return Err(SHAPE.into());
    }
    let metadata = file.metadata().map_err(cannot_map)?;
    // A driver's file has length 0, and its mapping is the driver's to refuse.
    let has_length = metadata.is_file() || metadata.len() > 0;
    let end = region.file_offset.saturating_add(region.len);
    if has_length && end > metadata.len() {
        return Err(BEYOND_FILE.into());
    }
    Ok(())
}

#[cfg(test)]
#[allow(unsafe_code, reason = "memfd_create, which std has no name for")]
pub(crate) mod tests {
    use super::*;
    use crate::os::deferred_close::Closer;
    use crate::os::file_kind::FileKind;
    use std::os::fd::FromRawFd;

    const MIB: u64 = 1 << 20;

    fn file(name: &std::ffi::CStr, flags: u32, len: u64) -> File {
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
        assert!(fd >= 0, "{name:?}: {}", std::io::Error::last_os_error());
        // SAFETY: memfd_create gave this fd to us alone.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len).unwrap();
        file
    }

    fn received(file: File, kind: FileKind) -> FrontendFile {
        FrontendFile::new(file, kind, &Closer::default())
    }

    pub(crate) fn memfd(len: u64) -> FrontendFile {
        received(file(c"memory", 0, len), FileKind::Memory)
    }

    pub(crate) fn region(guest: u64, user: u64, len: u64) -> RegionDescription {
        RegionDescription {
            guest: GuestAddress(guest),
            user: UserAddress(user),
            len,
            file_offset: 0,
        }
    }

    /// 64 KiB from guest address 0 on, whose user addresses are the same numbers.
    pub(crate) fn flat_memory() -> Memory {
        let (mut memory, len) = (Memory::new(1 << 40), 0x1_0000);
        memory.add(region(0, 0, len), memfd(len)).unwrap();
        memory
    }

    #[test]
    fn add_region_translates_user_addresses() {
        let mut memory = Memory::new(1 << 40);
        memory.add(region(MIB, 16 * MIB, MIB), memfd(MIB)).unwrap();
        let translate = |user| memory.translate(UserAddress(user));
        assert_eq!(translate(16 * MIB + 5), Some(GuestAddress(MIB + 5)));
        assert_eq!(translate(17 * MIB - 1), Some(GuestAddress(2 * MIB - 1)));
        assert_eq!(translate(17 * MIB), None);
        assert_eq!(translate(16 * MIB - 1), None);
        assert_eq!(translate(u64::MAX), None);
    }

    #[test]
    fn check_range_goes_on_into_the_next_region_and_ends_at_a_gap() {
        let mut memory = Memory::new(1 << 40);
        memory.add(region(0, 4 * MIB, 4096), memfd(4096)).unwrap();
        memory.add(region(4096, MIB, 4096), memfd(4096)).unwrap();
        memory.add(region(MIB, 2 * MIB, 4096), memfd(4096)).unwrap();
        for (address, len, held) in [
            (0, 8192, true),
            (4095, 2, true),
            (1, 8192, false),
            (8192, 0, true),
            (8192, 1, false),
            (MIB, 4096, true),
            (MIB, usize::MAX, false),
            (u64::MAX, 2, false),
        ] {
            assert_eq!(
                memory.check_range(GuestAddress(address), len),
                held,
                "{address:#x} {len:#x}"
            );
        }
    }

    #[test]
    fn read_and_write_go_on_into_the_next_region_and_fail_at_a_gap() {
        let mut memory = Memory::new(1 << 40);
        memory.add(region(0, 4 * MIB, 4096), memfd(4096)).unwrap();
        memory.add(region(4096, MIB, 4096), memfd(4096)).unwrap();
        let number = 0x0807_0605_0403_0201u64;
        // In one region, on both sides of the boundary, and up to the end.
        for address in [16, 4089, 4095, 8184] {
            assert_eq!(memory.read_object::<u64>(address), Some(0), "{address}");
            let at = GuestAddress(address);
            memory.write_slice(&number.to_le_bytes(), at).unwrap();
            assert_eq!(memory.read_object(address), Some(number), "{address}");
            let mut bytes = [0; 8];
            memory.read(address, &mut bytes).unwrap();
            assert_eq!(bytes, number.to_le_bytes(), "{address}");
            memory.write_slice(&[0; 7], at).unwrap();
            memory.write_byte(address + 7, 0).unwrap();
        }
        for address in [8185, 8192, u64::MAX - 3, u64::MAX] {
            assert_eq!(memory.read_object::<u64>(address), None, "{address}");
            assert_eq!(memory.read(address, &mut [0; 8]), None, "{address}");
            memory
                .write_slice(&[0; 8], GuestAddress(address))
                .unwrap_err();
            let last = address.wrapping_add(7);
            assert_eq!(
                memory.write_byte(last, 0).is_none(),
                last > 8191,
                "{address}"
            );
        }
    }

    #[test]
    fn max_len_of_all_guests_is_at_most_half_of_the_address_space() {
        let one = max_len(1);
        for guests in [1, 3, 64] {
            let all = max_len(guests) * u64::try_from(guests).unwrap();
            assert!(all <= one && all > one - 64, "{guests} guests");
        }
        // Of 39, 47 or 48 bits.
        assert!((1 << 38..=1 << 47).contains(&one) && one.is_power_of_two());
    }

    #[test]
    fn add_malformed_regions_are_refused() {
        let mut memory = Memory::new(1 << 40);
        memory.add(region(MIB, 16 * MIB, MIB), memfd(MIB)).unwrap();
        let mut add = |r, len| memory.add(r, memfd(len)).unwrap_err();
        assert_eq!(add(region(4 * MIB, 0, 0), MIB), SHAPE);
        assert_eq!(add(region(4 * MIB + 1, 0, MIB), MIB), SHAPE);
        assert_eq!(add(region(4 * MIB, 8, MIB), MIB), SHAPE);
        assert_eq!(add(region(0u64.wrapping_sub(4096), 0, 8192), MIB), SHAPE);
        let too_much = add(region(0, 0, 1 << 41), MIB);
        assert!(
            too_much.starts_with("more than 1024 GiB of memory"),
            "{too_much}"
        );
        assert_eq!(add(region(2 * MIB - 4096, 0, MIB), MIB), OVERLAP);
        assert_eq!(add(region(4 * MIB, 15 * MIB, 2 * MIB), 2 * MIB), OVERLAP);
        assert_eq!(add(region(4 * MIB, 0, 2 * MIB), MIB), BEYOND_FILE);
    }

    #[test]
    fn add_file_outside_memory_is_refused() {
        let file = File::open("/proc/version").unwrap();
        let file = received(file, FileKind::Unwanted);
        let error = Memory::new(1 << 40)
            .add(region(0, 0, 4096), file)
            .unwrap_err();
        assert_eq!(error, NOT_MEMORY);
    }

    /// Its close is deferred, whether it was mapped or not.
    #[test]
    fn add_file_that_is_too_short_leaves_its_close_to_the_kernel() {
        let closer = Closer::default();
        let given = |len| FrontendFile::new(file(c"memory", 0, len), FileKind::Memory, &closer);
        let mut memory = Memory::new(1 << 40);
        memory.add(region(0, 0, 8192), given(4096)).unwrap_err();
        assert_eq!(closer.pending(), 1);
        memory.add(region(0, 0, 8192), given(8192)).unwrap();
        assert_eq!(closer.pending(), 1);
        memory.clear();
        assert_eq!(closer.pending(), 2);
    }

    #[test]
    fn add_part_of_a_huge_page_is_refused() {
        let file = file(c"huge", libc::MFD_HUGETLB, 1 << 30);
        let file = received(file, FileKind::Memory);
        let error = Memory::new(1 << 40)
            .add(region(0, 0, 4096), file)
            .unwrap_err();
        assert_eq!(error, SHAPE);
    }

    #[test]
    fn add_sealed_file_is_taken_unless_it_cannot_be_written() {
        for (seals, taken) in [
            (
                libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL,
                true,
            ),
            (libc::F_SEAL_WRITE, false),
        ] {
            let file = file(c"sealed", libc::MFD_ALLOW_SEALING, MIB);
            let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
            // SAFETY: no pointers.
            assert_eq!(unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) }, 0);
            let file = received(file, FileKind::Memory);
            let added = Memory::new(1 << 40).add(region(0, 0, MIB), file);
            assert_eq!(added.is_ok(), taken, "{seals:#x}: {added:?}");
        }
    }

    #[test]
    fn add_more_than_32_regions_is_refused() {
        let mut memory = Memory::new(1 << 40);
        for i in 0..32 {
            memory
                .add(region(i * MIB, i * MIB, 4096), memfd(4096))
                .unwrap();
        }
        let error = memory
            .add(region(64 * MIB, 64 * MIB, 4096), memfd(4096))
            .unwrap_err();
        assert_eq!(error, TOO_MANY);
    }

    #[test]
    fn remove_only_the_region_described() {
        let mut memory = Memory::new(1 << 40);
        memory.add(region(MIB, 16 * MIB, MIB), memfd(MIB)).unwrap();
        assert!(memory.remove(&region(MIB, 16 * MIB, 4096)).is_err());
        assert!(memory.remove(&region(MIB, 0, MIB)).is_err());
        memory.remove(&region(MIB, 16 * MIB, MIB)).unwrap();
        assert_eq!(memory.num_regions(), 0);
    }

    #[test]
    fn contiguous_ends_at_the_region() {
        let mut memory = Memory::new(1 << 40);
        memory.add(region(0, 0, 4096), memfd(4096)).unwrap();
        memory.add(region(4096, MIB, 4096), memfd(4096)).unwrap();
        assert_eq!(memory.contiguous(4000, 200), Some(96));
        assert_eq!(memory.contiguous(4096, 200), Some(200));
        assert_eq!(memory.contiguous(8192, 1), None);
        assert!(memory.slice(4000, 97).is_none());
        assert!(memory.slice(4000, 96).is_some());
    }
}
