//! A packed ring in shared memory (virtio 1.2 §2.8): one table of descriptors that both sides write, and for each side
//! a word that says which notifications it wants.
//!
//! Both sides' primitives are here; what they mean is `virtq`'s business. Trust: none; every word may change between
//! two reads, so each is read exactly once and as one load. Promise: the view keeps its memory mapped, every place is
//! inside the table, and ordering is said at each access. What tells the sides apart (length, name and flags of a
//! descriptor) is one 64-bit word: it changes hands in one store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use super::guest::GuestMemory;
use super::split::{DESC, MAX_SIZE, RingAddr};

/// `VIRTQ_DESC_F_AVAIL`.
pub const F_AVAIL: u16 = 1 << 7;
/// `VIRTQ_DESC_F_USED`.
pub const F_USED: u16 = 1 << 15;

/// `RING_EVENT_FLAGS_ENABLE`: notify always.
pub const EVENT_ENABLE: u16 = 0;
/// `RING_EVENT_FLAGS_DISABLE`: never.
pub const EVENT_DISABLE: u16 = 1;
/// `RING_EVENT_FLAGS_DESC`: when the other side passes a place.
pub const EVENT_DESC: u16 = 2;

/// A place in the ring, and in which of two alternating rounds it is: 16 bits as vhost-user and the event words have them,
/// the descriptor's number and on top the wrap counter. (One number, because two fields that are written one by one and
/// read as one are waited for at every frame.)
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Place(u16);

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.at(), if self.wrap() { "+" } else { "-" })
    }
}

impl Place {
    /// Descriptor `at`, which is below 32768, under this wrap counter.
    #[must_use]
    #[inline]
    pub fn new(at: u16, wrap: bool) -> Self {
        Self((at & 0x7fff) | u16::from(wrap) << 15)
    }

    /// From its 16 bits.
    #[must_use]
    #[inline]
    pub fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// As 16 bits.
    #[must_use]
    #[inline]
    pub fn bits(self) -> u16 {
        self.0
    }

    /// Descriptor number.
    #[must_use]
    #[inline]
    pub fn at(self) -> u16 {
        self.0 & 0x7fff
    }

    /// Wrap counter.
    #[must_use]
    #[inline]
    pub fn wrap(self) -> bool {
        self.0 >> 15 != 0
    }

    /// The place `n` further on in a ring of `size`, which is `n` at least.
    #[must_use]
    #[inline]
    pub fn after(self, n: u16, size: u16) -> Self {
        let at = self.at().wrapping_add(n);
        let wrap = self.0 & 0x8000;
        Self(if at >= size { at.wrapping_sub(size) | (wrap ^ 0x8000) } else { at | wrap })
    }

    /// The place `n` before in a ring of `size`, which is `n` at least.
    #[must_use]
    #[inline]
    pub fn before(self, n: u16, size: u16) -> Self {
        let (at, wrap) = (self.at(), self.0 & 0x8000);
        Self(if n > at {
            at.wrapping_add(size).wrapping_sub(n) | (wrap ^ 0x8000)
        } else {
            at.wrapping_sub(n) | wrap
        })
    }

    /// The flags of what is used at this place.
    #[must_use]
    #[inline]
    pub fn used(self) -> u16 {
        if self.wrap() { F_AVAIL | F_USED } else { 0 }
    }

    /// The flags of what is available at this place.
    #[must_use]
    #[inline]
    pub fn available(self) -> u16 {
        if self.wrap() { F_AVAIL } else { F_USED }
    }
}

/// The half of a descriptor that changes hands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Bytes of the buffer, or bytes written into the buffers.
    pub len: u32,
    /// The chain's name.
    pub id: u16,
    /// `F_*`.
    pub flags: u16,
}

impl Entry {
    /// What lies at `place` is available in that round.
    #[must_use]
    #[inline]
    pub fn is_available(&self, place: Place) -> bool {
        self.flags & (F_AVAIL | F_USED) == place.available()
    }

    /// What lies at `place` is used in that round.
    #[must_use]
    #[inline]
    pub fn is_used(&self, place: Place) -> bool {
        self.flags & (F_AVAIL | F_USED) == place.used()
    }

    #[inline]
    fn from_word(w: u64) -> Self {
        let [l0, l1, l2, l3, i0, i1, f0, f1] = w.to_le_bytes();
        Self {
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            id: u16::from_le_bytes([i0, i1]),
            flags: u16::from_le_bytes([f0, f1]),
        }
    }

    #[inline]
    fn word(self) -> u64 {
        u64::from(self.len) | u64::from(self.id) << 32 | u64::from(self.flags) << 48
    }
}

/// One entry of the table, where it lies.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct Slot {
    addr: AtomicU64,
    rest: AtomicU64,
}

impl Slot {
    /// Length, name and flags, with Acquire: what their writer wrote before may be read.
    #[must_use]
    #[inline]
    pub fn entry(&self) -> Entry {
        Entry::from_word(u64::from_le(self.rest.load(Ordering::Acquire)))
    }

    /// The buffer's guest physical address.
    #[must_use]
    #[inline]
    pub fn addr(&self) -> u64 {
        u64::from_le(self.addr.load(Ordering::Relaxed))
    }
}

/// Which notifications a side wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// With [`EVENT_DESC`]: when the other side passes this place.
    pub place: Place,
    /// `EVENT_*`.
    pub flags: u16,
}

impl Event {
    /// Whether somebody who moved from `old` on to `new` in a ring of `size` notifies.
    #[must_use]
    #[inline]
    pub fn wants(self, new: Place, moved: u16, size: u16) -> bool {
        match self.flags & 3 {
            EVENT_DISABLE => false,
            EVENT_DESC => {
                // The places in a line that ends at `new` (virtio 1.2 §2.8.10; Linux does the same).
                let behind = if self.place.wrap() == new.wrap() { 0 } else { size };
                let event = self.place.at().wrapping_sub(behind);
                new.at().wrapping_sub(event).wrapping_sub(1) < moved
            }
            _ => true,
        }
    }
}

/// A packed ring in shared memory.
#[derive(Debug)]
pub struct PackedRing {
    size: u16,
    desc: *const Slot,
    driver: *mut u32,
    device: *mut u32,
    memory: Arc<GuestMemory>,
}

// SAFETY: the pointers lead into `memory`, which the view holds; access is by atomic operations that tolerate other
// parties' writes, so any thread may make them.
unsafe impl Send for PackedRing {}

impl PackedRing {
    /// A view of a ring of `size` entries: descriptors at `desc`, the driver's event word at `avail`, the device's at
    /// `used`. None if the size is 0 or above 32768, or a part does not lie in one region at its natural alignment.
    #[must_use]
    pub fn new(memory: Arc<GuestMemory>, size: u16, at: RingAddr) -> Option<Self> {
        if size == 0 || size > MAX_SIZE {
            return None;
        }
        let desc =
            memory.table(at.desc, DESC * u32::from(size), 16)?.iovec().iov_base.cast::<Slot>().cast_const();
        let driver = memory.table(at.avail, 4, 4)?.iovec().iov_base.cast();
        let device = memory.table(at.used, 4, 4)?.iovec().iov_base.cast();
        Some(Self { size, desc, driver, device, memory })
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

    /// The table.
    #[inline]
    fn table(&self) -> &[Slot] {
        // SAFETY: the table has `size` entries of two words (as `Slot` has), was checked to be mapped and 16-aligned,
        // and is mapped as long as self; who else accesses it is another process or another view that also uses
        // atomics, and atomics may be shared.
        unsafe { std::slice::from_raw_parts(self.desc, usize::from(self.size)) }
    }

    /// The entries from a place on, to the table's end.
    #[inline]
    pub fn from(&self, at: u16) -> std::slice::Iter<'_, Slot> {
        self.table().get(usize::from(at)..).unwrap_or_default().iter()
    }

    /// The entry at a place; the first one for a place outside.
    #[must_use]
    #[inline]
    pub fn slot(&self, at: u16) -> &Slot {
        let at = if at < self.size { at } else { 0 };
        // SAFETY: within the table, for the rest as for `table`.
        unsafe { &*self.desc.wrapping_add(usize::from(at)) }
    }

    /// Length, name and flags at a place, with Acquire: what their writer wrote before may be read.
    #[must_use]
    #[inline]
    pub fn entry(&self, at: u16) -> Entry {
        self.slot(at).entry()
    }

    /// Writes length, name and flags, with Release: what was written before is seen first.
    #[inline]
    pub fn set_entry(&self, at: u16, e: Entry) {
        self.slot(at).rest.store(e.word().to_le(), Ordering::Release);
    }

    /// The buffer's guest physical address.
    #[must_use]
    #[inline]
    pub fn addr(&self, at: u16) -> u64 {
        self.slot(at).addr()
    }

    /// Driver: writes the buffer's guest physical address.
    #[inline]
    pub fn set_addr(&self, at: u16, gpa: u64) {
        self.slot(at).addr.store(gpa.to_le(), Ordering::Relaxed);
    }

    /// Device: marks a place as used without a word about the buffer that was there: an inner place of a chain.
    #[inline]
    pub fn mark_used(&self, place: Place) {
        let word = self.slot(place.at()).rest.as_ptr().cast::<u16>().wrapping_add(3);
        // SAFETY: the last two bytes of a word that lives as long as self, 2-aligned.
        let flags = unsafe { AtomicU16::from_ptr(word) };
        let now = u16::from_le(flags.load(Ordering::Relaxed)) & !(F_AVAIL | F_USED);
        flags.store((now | place.used()).to_le(), Ordering::Release);
    }

    #[inline]
    fn event(word: &AtomicU32) -> Event {
        let [p0, p1, f0, f1] = u32::from_le(word.load(Ordering::Relaxed)).to_le_bytes();
        let place = Place::from_bits(u16::from_le_bytes([p0, p1]));
        Event { place, flags: u16::from_le_bytes([f0, f1]) }
    }

    #[inline]
    fn set_event(word: &AtomicU32, e: Event) {
        word.store((u32::from(e.place.bits()) | u32::from(e.flags) << 16).to_le(), Ordering::Release);
    }

    #[inline]
    fn driver_word(&self) -> &AtomicU32 {
        // SAFETY: checked to be mapped and 4-aligned, and mapped as long as self.
        unsafe { AtomicU32::from_ptr(self.driver) }
    }

    #[inline]
    fn device_word(&self) -> &AtomicU32 {
        // SAFETY: as for `driver_word`.
        unsafe { AtomicU32::from_ptr(self.device) }
    }

    /// When the driver wants interrupts.
    #[must_use]
    #[inline]
    pub fn driver_event(&self) -> Event {
        Self::event(self.driver_word())
    }

    /// Driver: says when it wants interrupts.
    #[inline]
    pub fn set_driver_event(&self, e: Event) {
        Self::set_event(self.driver_word(), e);
    }

    /// When the device wants kicks.
    #[must_use]
    #[inline]
    pub fn device_event(&self) -> Event {
        Self::event(self.device_word())
    }

    /// Device: says when it wants kicks.
    #[inline]
    pub fn set_device_event(&self, e: Event) {
        Self::set_event(self.device_word(), e);
    }

    /// Orders all writes before against all reads after: between handing over and reading the other side's event word,
    /// and between arming and looking again.
    #[inline]
    pub fn barrier() {
        fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_go_round_and_back() {
        let p = Place::new(5, true);
        assert_eq!(p.after(2, 7), Place::new(0, false));
        assert_eq!(p.after(7, 7), Place::new(5, false));
        for n in 0..=7 {
            assert_eq!(p.after(n, 7).before(n, 7), p);
        }
        assert_eq!(Place::from_bits(p.bits()), p);
        let far = Place::new(32767, false);
        assert_eq!(far.after(32768, 32768), Place::new(32767, true));
        assert_eq!(far.after(32768, 32768).before(32768, 32768), far);
    }

    #[test]
    fn events_are_passed_or_not() {
        let at = Place::new;
        let event = |place| Event { place, flags: EVENT_DESC };
        // From 2 to 5 of 8.
        for (e, want) in [(1, false), (2, true), (4, true), (5, false)] {
            assert_eq!(event(at(e, true)).wants(at(5, true), 3, 8), want, "{e}");
        }
        // From 6 over the end to 1.
        let new = at(1, false);
        for (e, w, want) in
            [(5, true, false), (6, true, true), (7, true, true), (0, false, true), (1, false, false)]
        {
            assert_eq!(event(at(e, w)).wants(new, 3, 8), want, "{e}");
        }
        assert!(Event::default().wants(new, 1, 8));
        assert!(!Event { flags: EVENT_DISABLE, ..Event::default() }.wants(new, 1, 8));
    }
}
