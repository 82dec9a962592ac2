//! A split ring's three tables in shared memory (virtio 1.2 §2.7): checked once, then reached by index.
//!
//! Both sides' primitives are here; what they mean is `virtq`'s business. Trust: none; every word may change between
//! two reads, so each is read exactly once and as one load. Promise: the view keeps its memory mapped, every index is
//! bounded by the ring's size, and ordering is said at each access.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use serde::{Deserialize, Serialize};

use super::guest::GuestMemory;

/// Largest ring (virtio 1.2 §2.7).
pub const MAX_SIZE: u16 = 32768;
/// `VIRTQ_DESC_F_NEXT`.
pub const F_NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`.
pub const F_WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`.
pub const F_INDIRECT: u16 = 4;
/// Bytes of a descriptor.
pub const DESC: u32 = 16;

/// One descriptor, copied out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Desc {
    /// Guest physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// `F_*`.
    pub flags: u16,
    /// Next descriptor, with [`F_NEXT`].
    pub next: u16,
}

impl Desc {
    /// From its 16 little-endian bytes.
    #[must_use]
    #[inline]
    pub fn from_le(b: [u8; DESC as usize]) -> Self {
        let v = u128::from_le_bytes(b);
        let low = |shift: u32| u64::try_from((v >> shift) & u128::from(u64::MAX)).unwrap_or(0);
        let part = low(64);
        Self {
            addr: low(0),
            len: u32::try_from(part & 0xffff_ffff).unwrap_or(0),
            flags: u16::try_from((part >> 32) & 0xffff).unwrap_or(0),
            next: u16::try_from(part >> 48).unwrap_or(0),
        }
    }

    /// Its 16 little-endian bytes.
    #[must_use]
    pub fn to_le(self) -> [u8; DESC as usize] {
        let part = u64::from(self.len) | u64::from(self.flags) << 32 | u64::from(self.next) << 48;
        (u128::from(self.addr) | u128::from(part) << 64).to_le_bytes()
    }
}

/// The ring's place: the front end's addresses of its three tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingAddr {
    /// Descriptor table, 16 bytes an entry.
    pub desc: u64,
    /// Available ring: flags, idx, entries, used_event; 16 bits each.
    pub avail: u64,
    /// Used ring: flags, idx (16 bits), entries (32 bits twice), avail_event (16 bits).
    pub used: u64,
}

/// A split ring in shared memory.
#[derive(Debug)]
pub struct SplitRing {
    size: u16,
    desc: *mut [u64; 2],
    avail: *mut u16,
    used: *mut u16,
    memory: Arc<GuestMemory>,
}

// SAFETY: the pointers lead into `memory`, which the view holds; access is by volatile or atomic operations that
// tolerate other parties' writes, so any thread may make them.
unsafe impl Send for SplitRing {}

impl SplitRing {
    /// A view of a ring of `size` entries. None if the size is not a power of two up to 32768, or a table does not lie
    /// in one region at its natural alignment.
    #[must_use]
    pub fn new(memory: Arc<GuestMemory>, size: u16, at: RingAddr) -> Option<Self> {
        if !size.is_power_of_two() || size > MAX_SIZE {
            return None;
        }
        let n = u32::from(size);
        let desc = memory.table(at.desc, DESC * n, 16)?.iovec().iov_base.cast();
        let avail = memory.table(at.avail, 6 + 2 * n, 2)?.iovec().iov_base.cast();
        let used = memory.table(at.used, 6 + 8 * n, 4)?.iovec().iov_base.cast();
        Some(Self { size, desc, avail, used, memory })
    }

    /// Entries.
    #[must_use]
    #[inline]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The memory that the ring and its buffers lie in.
    #[must_use]
    #[inline]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// A 16-bit word of the available ring; `i` is at most 2 + size.
    #[inline]
    fn avail_word(&self, i: usize) -> &AtomicU16 {
        // SAFETY: the table has 3 + size words, was checked to be mapped and 2-aligned, and is mapped as long as
        // self; who else accesses it is another process or another view that also uses atomics.
        unsafe { AtomicU16::from_ptr(self.avail.wrapping_add(i)) }
    }

    /// A 16-bit word of the used ring; `i` is at most 2 + 4 * size.
    #[inline]
    fn used_word(&self, i: usize) -> &AtomicU16 {
        // SAFETY: the table has 3 + 4 * size words; else as for `avail_word`.
        unsafe { AtomicU16::from_ptr(self.used.wrapping_add(i)) }
    }

    #[inline]
    fn slot(&self, pos: u16) -> usize {
        // A power of two, and so never zero.
        usize::from(pos & self.size.wrapping_sub(1))
    }

    /// Descriptor `i`, copied once; none if the table has no such entry.
    #[must_use]
    #[inline]
    pub fn desc(&self, i: u16) -> Option<Desc> {
        if i >= self.size {
            return None;
        }
        let at = self.desc.wrapping_add(usize::from(i));
        // SAFETY: i is within the table, which was checked to be mapped and 16-aligned.
        let [a, b] = unsafe { ptr::read_volatile(at) };
        let [l0, l1, l2, l3, f0, f1, n0, n1] = b.to_ne_bytes();
        Some(Desc {
            addr: u64::from_le(a),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        })
    }

    /// Driver: writes descriptor `i` (modulo the size).
    #[inline]
    pub fn set_desc(&self, i: u16, d: Desc) {
        let at = self.desc.wrapping_add(self.slot(i));
        let part = u64::from(d.len) | u64::from(d.flags) << 32 | u64::from(d.next) << 48;
        // SAFETY: as in `desc`.
        unsafe { ptr::write_volatile(at, [d.addr.to_le(), part.to_le()]) };
    }

    /// The available entry at position `pos` (modulo the size).
    #[must_use]
    #[inline]
    pub fn avail_entry(&self, pos: u16) -> u16 {
        u16::from_le(self.avail_word(2 + self.slot(pos)).load(Ordering::Relaxed))
    }

    /// Driver: writes the available entry at position `pos`.
    #[inline]
    pub fn set_avail_entry(&self, pos: u16, head: u16) {
        self.avail_word(2 + self.slot(pos)).store(head.to_le(), Ordering::Relaxed);
    }

    /// `avail.idx`, with Acquire: entries and descriptors before it may be read.
    #[must_use]
    #[inline]
    pub fn avail_idx(&self) -> u16 {
        u16::from_le(self.avail_word(1).load(Ordering::Acquire))
    }

    /// Driver: publishes `avail.idx`, with Release.
    #[inline]
    pub fn set_avail_idx(&self, v: u16) {
        self.avail_word(1).store(v.to_le(), Ordering::Release);
    }

    /// `avail.flags` (bit 0: no interrupts, please).
    #[must_use]
    #[inline]
    pub fn avail_flags(&self) -> u16 {
        u16::from_le(self.avail_word(0).load(Ordering::Relaxed))
    }

    /// Driver: writes `avail.flags`.
    #[inline]
    pub fn set_avail_flags(&self, v: u16) {
        self.avail_word(0).store(v.to_le(), Ordering::Relaxed);
    }

    /// `used_event`, behind the available ring.
    #[must_use]
    #[inline]
    pub fn used_event(&self) -> u16 {
        u16::from_le(self.avail_word(2 + usize::from(self.size)).load(Ordering::Relaxed))
    }

    /// Driver: writes `used_event`.
    #[inline]
    pub fn set_used_event(&self, v: u16) {
        self.avail_word(2 + usize::from(self.size)).store(v.to_le(), Ordering::Relaxed);
    }

    #[inline]
    fn used_at(&self, pos: u16) -> *mut [u32; 2] {
        self.used.wrapping_add(2 + 4 * self.slot(pos)).cast()
    }

    /// Driver: the used element at position `pos`: descriptor head and bytes written.
    #[must_use]
    #[inline]
    pub fn used_entry(&self, pos: u16) -> (u32, u32) {
        // SAFETY: the slot is within the ring, which was checked to be mapped and 4-aligned.
        let [id, len] = unsafe { ptr::read_volatile(self.used_at(pos)) };
        (u32::from_le(id), u32::from_le(len))
    }

    /// Writes the used element at position `pos`. Seen by the driver after [`SplitRing::set_used_idx`].
    #[inline]
    pub fn set_used_entry(&self, pos: u16, id: u16, len: u32) {
        // SAFETY: as in `used_entry`.
        unsafe { ptr::write_volatile(self.used_at(pos), [u32::from(id).to_le(), len.to_le()]) };
    }

    /// `used.idx`, with Acquire.
    #[must_use]
    #[inline]
    pub fn used_idx(&self) -> u16 {
        u16::from_le(self.used_word(1).load(Ordering::Acquire))
    }

    /// Publishes `used.idx`, with Release: elements and buffers written before are seen first.
    #[inline]
    pub fn set_used_idx(&self, v: u16) {
        self.used_word(1).store(v.to_le(), Ordering::Release);
    }

    /// Driver: `used.flags` (bit 0: no kicks, please).
    #[must_use]
    #[inline]
    pub fn used_flags(&self) -> u16 {
        u16::from_le(self.used_word(0).load(Ordering::Relaxed))
    }

    /// Writes `used.flags`.
    #[inline]
    pub fn set_used_flags(&self, v: u16) {
        self.used_word(0).store(v.to_le(), Ordering::Relaxed);
    }

    #[inline]
    fn avail_event_word(&self) -> &AtomicU16 {
        self.used_word(2 + 4 * usize::from(self.size))
    }

    /// Driver: `avail_event`, behind the used ring.
    #[must_use]
    #[inline]
    pub fn avail_event(&self) -> u16 {
        u16::from_le(self.avail_event_word().load(Ordering::Relaxed))
    }

    /// Writes `avail_event`: kick me when `avail.idx` passes `v`.
    #[inline]
    pub fn set_avail_event(&self, v: u16) {
        self.avail_event_word().store(v.to_le(), Ordering::Relaxed);
    }

    /// Orders all writes before against all reads after: between publishing an index and reading the other side's
    /// event word, and between arming and looking again.
    #[inline]
    pub fn barrier() {
        fence(Ordering::SeqCst);
    }
}
