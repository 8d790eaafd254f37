//! A descriptor chain: the buffers of one request, in order.
//!
//! What matters in a chain that a hostile driver made is when to stop: it is believed for at most
//! [`MAX_DESCRIPTORS`] descriptors, follows an indirect table only where the feature was
//! acknowledged, and each descriptor is read exactly once.
//!
//! Must not: know what the bytes of a request mean.

use crate::virtqueue::memory::Memory;

/// Most buffers of one chain that are believed.
pub const MAX_DESCRIPTORS: usize = 1024;
/// Length of a descriptor in bytes.
pub const DESC_LEN: u64 = 16;

const DESC_F_NEXT: u16 = 1 << 0;
const DESC_F_WRITE: u16 = 1 << 1;
const DESC_F_INDIRECT: u16 = 1 << 2;

/// One buffer of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest address.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
    /// Device-writable, or else device-readable.
    pub writable: bool,
}

/// A chain whose end cannot be found: it loops, leaves its table, or its table is malformed.
#[derive(Debug, PartialEq, Eq)]
pub struct BrokenChain;

/// Where a chain is to be read.
#[derive(Debug, Clone, Copy)]
pub struct Chain {
    /// Guest address of the descriptor table.
    pub table: u64,
    /// Descriptors in the table.
    pub table_len: u16,
    /// Indirect tables were acknowledged.
    pub indirect: bool,
    /// The first descriptor.
    pub head: u16,
}

impl Chain {
    /// Shows each buffer to `each`, in order.
    ///
    /// # Errors
    /// The chain has no end that can be believed.
    pub fn walk(
        self,
        memory: &Memory,
        mut each: impl FnMut(Descriptor),
    ) -> Result<(), BrokenChain> {
        let (mut table, mut table_len) = (self.table, u32::from(self.table_len));
        let (mut index, mut nested) = (self.head, false);
        let mut buffers = 0;
        while buffers < MAX_DESCRIPTORS {
            if u32::from(index) >= table_len {
                return Err(BrokenChain);
            }
            let raw = read_descriptor(memory, table, index).ok_or(BrokenChain)?;
            if raw.flags & DESC_F_INDIRECT != 0 {
                // VIRTIO 1.4, "Indirect Descriptors": no table in a table, no NEXT beside it.
                let alone = !nested && raw.flags & DESC_F_NEXT == 0;
                let whole = u64::from(raw.len).is_multiple_of(DESC_LEN);
                if !(self.indirect && alone && whole) {
                    return Err(BrokenChain);
                }
                let entries = u64::from(raw.len).checked_div(DESC_LEN);
                table_len = entries.and_then(|n| n.try_into().ok()).unwrap_or(0);
                (table, index, nested) = (raw.address, 0, true);
                continue;
            }
            buffers = buffers.saturating_add(1);
            each(Descriptor {
                address: raw.address,
                len: raw.len,
                writable: raw.flags & DESC_F_WRITE != 0,
            });
            if raw.flags & DESC_F_NEXT == 0 {
                return Ok(());
            }
            index = raw.next;
        }
        Err(BrokenChain)
    }
}

struct RawDescriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

fn read_descriptor(memory: &Memory, table: u64, index: u16) -> Option<RawDescriptor> {
    let offset = u64::from(index).checked_mul(DESC_LEN)?;
    let mut bytes = [0; 16];
    memory.read(table.checked_add(offset)?, &mut bytes)?;
    let [
        a0,
        a1,
        a2,
        a3,
        a4,
        a5,
        a6,
        a7,
        l0,
        l1,
        l2,
        l3,
        f0,
        f1,
        n0,
        n1,
    ] = bytes;
    Some(RawDescriptor {
        address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
        len: u32::from_le_bytes([l0, l1, l2, l3]),
        flags: u16::from_le_bytes([f0, f1]),
        next: u16::from_le_bytes([n0, n1]),
    })
}
