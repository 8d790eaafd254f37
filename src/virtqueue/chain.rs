// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A descriptor chain: the buffers of one request, in order.
//!
//! The walk is ours, because `virtio_queue::DescriptorChain` follows indirect tables that were not
//! negotiated, ignores NEXT beside INDIRECT, and ends a broken chain as if it were complete. The walk of
//! a hostile chain stops after [`MAX_SIZE`] buffers, at the end of the table, or at a descriptor that
//! VIRTIO forbids.
//!
//! Invariant: each descriptor is read exactly once, so that nothing can change between a check and
//! its use. Must not: know what the bytes of a request mean. Called by `request`.

pub use virtio_queue::desc::split::Descriptor;

use crate::virtqueue::memory::Memory;
use crate::virtqueue::vring::MAX_SIZE;

/// Length of a descriptor in bytes.
const DESC_LEN: u32 = 16;

/// A chain that is malformed: it loops, leaves its table, or uses an indirect table as VIRTIO forbids.
#[derive(Debug, PartialEq, Eq)]
pub struct BrokenChain;

/// The next chain of a ring, and where to read it. It stays in the available ring until
/// [`Vring::consume`](crate::virtqueue::vring::Vring::consume) takes it.
#[derive(Debug)]
pub struct Chain {
    /// Guest address of the descriptor table.
    pub(super) table: u64,
    /// Descriptors in the table.
    pub(super) table_len: u16,
    /// Indirect tables were acknowledged.
    pub(super) indirect: bool,
    /// The first descriptor.
    pub(super) head: u16,
}

impl Chain {
    /// Calls `each` with the descriptor of each buffer, in order (VIRTIO 1.4, "The Virtqueue Descriptor
    /// Table"). Where the buffers lie is not checked.
    ///
    /// # Errors
    /// The chain is malformed; `each` has seen the buffers before that place.
    pub fn walk(
        &self,
        memory: &Memory,
        mut each: impl FnMut(&Descriptor),
    ) -> Result<(), BrokenChain> {
        let (mut table, mut table_len) = (self.table, u32::from(self.table_len));
        let (mut index, mut nested) = (self.head, false);
        let mut buffers = 0u16;
        // No chain may be longer than its ring; the longest ring counts, and empty buffers do, too.
        while buffers < MAX_SIZE {
            if u32::from(index) >= table_len {
                return Err(BrokenChain);
            }
            let descriptor = read_descriptor(memory, table, index).ok_or(BrokenChain)?;
            if descriptor.refers_to_indirect_table() {
                // VIRTIO 1.4, "Indirect Descriptors": only if negotiated, no table in a table, no NEXT
                // beside it. The flag WRITE has no meaning here.
                let alone = !nested && !descriptor.has_next();
                let whole = descriptor.len() % DESC_LEN == 0;
                if !(self.indirect && alone && whole) {
                    return Err(BrokenChain);
                }
                (table, table_len) = (descriptor.addr().0, descriptor.len() / DESC_LEN);
                (index, nested) = (0, true);
                continue;
            }
            buffers = buffers.saturating_add(1);
            each(&descriptor);
            if !descriptor.has_next() {
                return Ok(());
            }
            index = descriptor.next();
        }
        Err(BrokenChain)
    }
}

/// Entry `index` of the descriptor table at guest address `table`; `None` outside of memory.
fn read_descriptor(memory: &Memory, table: u64, index: u16) -> Option<Descriptor> {
    let offset = u64::from(index).checked_mul(DESC_LEN.into())?;
    memory.read_object(table.checked_add(offset)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    use crate::virtqueue::memory::tests::flat_memory;

    const DESC_F_NEXT: u16 = 1;
    const DESC_F_WRITE: u16 = 2;
    const DESC_F_INDIRECT: u16 = 4;
    const TABLE: u64 = 0;
    /// Away from the ring's own table, which has 1,024 entries of 16 bytes.
    const INDIRECT: u64 = 0x8000;

    /// A guest that writes descriptors into 64 KiB of memory.
    struct Driver {
        memory: Memory,
        chain: Chain,
    }

    impl Driver {
        fn new() -> Self {
            Self {
                memory: flat_memory(),
                chain: Chain {
                    table: TABLE,
                    table_len: 1024,
                    indirect: true,
                    head: 0,
                },
            }
        }

        /// Writes entry `index` of `table`.
        fn set(&self, table: u64, index: u16, buffer: (u64, u32), flags: u16, next: u16) {
            let descriptor = Descriptor::new(buffer.0, buffer.1, flags, next);
            let address = table + 16 * u64::from(index);
            let address = GuestAddress(address);
            self.memory.write_obj(descriptor, address).unwrap();
        }

        /// Links `count` buffers of `len` bytes each in `table`.
        fn link(&self, table: u64, count: u16, len: u32) {
            for index in 0..count {
                let flags = if index + 1 == count { 0 } else { DESC_F_NEXT };
                self.set(table, index, (u64::from(index), len), flags, index + 1);
            }
        }

        /// Lets the ring's first descriptor point at an indirect table of `count` entries.
        fn point_at_indirect(&self, count: u32, flags: u16) {
            let table = (INDIRECT, count * 16);
            self.set(TABLE, 0, table, DESC_F_INDIRECT | flags, 1);
        }

        /// Address, length and direction of each buffer.
        fn walk(&self) -> Result<Vec<(u64, u32, bool)>, BrokenChain> {
            let mut buffers = Vec::new();
            self.chain.walk(&self.memory, |buffer| {
                buffers.push((buffer.addr().0, buffer.len(), buffer.is_write_only()));
            })?;
            Ok(buffers)
        }

        fn count(&self) -> Result<usize, BrokenChain> {
            self.walk().map(|buffers| buffers.len())
        }
    }

    #[test]
    fn walk_shows_each_buffer_in_order() {
        let driver = Driver::new();
        driver.set(TABLE, 0, (0x100, 32), DESC_F_NEXT, 7);
        driver.set(TABLE, 7, (0x200, 5), DESC_F_NEXT | DESC_F_WRITE, 1023);
        driver.set(TABLE, 1023, (u64::MAX, u32::MAX), DESC_F_WRITE, 0);
        let expected = [
            (0x100, 32, false),
            (0x200, 5, true),
            (u64::MAX, u32::MAX, true),
        ];
        assert_eq!(driver.walk().unwrap(), expected);
    }

    #[test]
    fn walk_of_more_than_1024_buffers_is_broken_even_where_they_are_empty() {
        for len in [1, 0] {
            let driver = Driver::new();
            for (count, result) in [(1024, Ok(1024)), (1025, Err(BrokenChain))] {
                driver.link(INDIRECT, count, len);
                driver.point_at_indirect(count.into(), 0);
                assert_eq!(driver.count(), result, "{count} buffers of {len} bytes");
            }
        }
    }

    #[test]
    fn walk_of_a_loop_is_broken() {
        let driver = Driver::new();
        driver.set(TABLE, 0, (0, 1), DESC_F_NEXT, 0);
        assert_eq!(driver.count(), Err(BrokenChain));
    }

    #[test]
    fn walk_out_of_its_table_is_broken() {
        let mut driver = Driver::new();
        driver.chain.table_len = 4;
        driver.set(TABLE, 0, (0, 1), DESC_F_NEXT, 3);
        driver.set(TABLE, 3, (0, 1), 0, 0);
        driver.set(TABLE, 4, (0, 1), 0, 0);
        assert_eq!(driver.count(), Ok(2));
        driver.set(TABLE, 0, (0, 1), DESC_F_NEXT, 4);
        assert_eq!(driver.count(), Err(BrokenChain));
        // An indirect table has an end of its own, here after two entries, whatever lies after it.
        driver.link(INDIRECT, 3, 1);
        driver.point_at_indirect(3, 0);
        assert_eq!(driver.count(), Ok(3));
        driver.point_at_indirect(2, 0);
        assert_eq!(driver.count(), Err(BrokenChain));
    }

    #[test]
    fn walk_of_an_indirect_table_that_was_not_negotiated_is_broken() {
        let mut driver = Driver::new();
        driver.link(INDIRECT, 2, 1);
        driver.point_at_indirect(2, 0);
        assert_eq!(driver.count(), Ok(2));
        driver.chain.indirect = false;
        assert_eq!(driver.count(), Err(BrokenChain));
    }

    #[test]
    fn walk_of_indirect_beside_next_is_broken() {
        let driver = Driver::new();
        driver.link(INDIRECT, 2, 1);
        driver.point_at_indirect(2, DESC_F_NEXT);
        driver.set(TABLE, 1, (0, 1), 0, 0);
        assert_eq!(driver.count(), Err(BrokenChain));
    }

    #[test]
    fn walk_of_an_indirect_table_in_a_table_is_broken() {
        let driver = Driver::new();
        driver.set(INDIRECT, 0, (0, 1), DESC_F_NEXT, 1);
        driver.set(INDIRECT, 1, (INDIRECT, 16), DESC_F_INDIRECT, 0);
        driver.point_at_indirect(2, 0);
        assert_eq!(driver.count(), Err(BrokenChain));
    }

    #[test]
    fn walk_of_an_indirect_table_of_no_whole_descriptors_is_broken() {
        let driver = Driver::new();
        driver.link(INDIRECT, 1, 1);
        for (len, count) in [(16, Ok(1)), (0, Err(BrokenChain)), (24, Err(BrokenChain))] {
            driver.set(TABLE, 0, (INDIRECT, len), DESC_F_INDIRECT, 0);
            assert_eq!(driver.count(), count, "{len} bytes");
        }
    }

    #[test]
    fn walk_of_a_table_outside_memory_is_broken() {
        let mut driver = Driver::new();
        for table in [0x1_0000, 0xfff1, u64::MAX - 15, u64::MAX] {
            driver.chain.table = table;
            assert_eq!(driver.count(), Err(BrokenChain), "{table:#x}");
        }
    }
}
