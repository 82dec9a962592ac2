//! The two forms of a virtio ring as a driver sees them (virtio 1.2, 2.7 split and 2.8 packed), as small as they can be:
//! every buffer is one descriptor.
//!
//! Written for the benches alone and independent of netreeve's own rings, so that the same driver stands before netreeve
//! and before DPDK. Trust: none of the device's words can lead outside the mapping; wrong ones end in wrong figures.

use std::sync::atomic::{Ordering, fence};

use crate::sys::Shm;

/// A descriptor's flag: the device writes.
const WRITE: u16 = 2;
/// A packed descriptor is made available when this flag is the driver's wrap counter and the next one is not.
const AVAIL: u16 = 1 << 7;
/// A packed descriptor is used when both are the device's wrap counter.
const USED: u16 = 1 << 15;

/// Where a ring's three parts lie, in bytes from the start of the memory. For a packed ring: descriptors, the driver's
/// and the device's event words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Descriptors.
    pub desc: usize,
    /// Available ring.
    pub avail: usize,
    /// Used ring.
    pub used: usize,
}

/// A ring's positions.
#[derive(Debug)]
pub struct Ring {
    /// Entries, a power of two.
    size: u16,
    at: Parts,
    /// The device writes the buffers.
    receives: bool,
    event_idx: bool,
    sleeps: bool,
    /// Of a split ring: what each descriptor holds now.
    lens: Vec<u32>,
    packed: bool,
    /// Buffers made available, used, and seen by the device as far as it was told; they run over at 2^16 (split) or at
    /// twice the size (packed), where the lap's parity is the wrap counter.
    offered: u16,
    taken: u16,
    shown: u16,
    /// Of a split ring: how far the device was when it was last looked at.
    until: u16,
}

impl Ring {
    /// A ring that has nothing in it. A split ring's descriptors are written here: buffer `i` is `buffer(i)`.
    pub fn new(
        mem: &Shm,
        size: u16,
        at: Parts,
        receives: bool,
        packed: bool,
        buffer: impl Fn(u16) -> u64,
    ) -> Self {
        let r = Self {
            size,
            at,
            receives,
            event_idx: false,
            sleeps: false,
            lens: if packed { Vec::new() } else { vec![0; size.into()] },
            packed,
            offered: 0,
            taken: 0,
            shown: 0,
            until: 0,
        };
        for i in 0..if packed { 0 } else { size } {
            let at = at.desc + usize::from(i) * 16;
            mem.store64(at, buffer(i));
            mem.store64(at + 8, u64::from(if receives { WRITE } else { 0 }) << 32);
        }
        r
    }

    /// Says how this driver waits, before the device starts: by polling, or asleep until an interrupt.
    pub fn start(&mut self, mem: &Shm, event_idx: bool, sleeps: bool) {
        (self.event_idx, self.sleeps) = (event_idx, sleeps);
        // Split: "no interrupt". Packed: offset 0, and 1 is "disable".
        let word = u16::from(!sleeps);
        mem.store16(if self.packed { self.at.avail + 2 } else { self.at.avail }, word);
    }

    fn slot(&self, i: u16) -> usize {
        usize::from(i & (self.size - 1))
    }

    /// `i` moved on by `n`; a packed ring's lap has its parity in the bit above the position.
    fn on(&self, i: u16, n: u16) -> u16 {
        let next = i.wrapping_add(n);
        if self.packed { next & (2 * self.size - 1) } else { next }
    }

    /// The wrap counter of a packed ring's position.
    fn wrap(&self, i: u16) -> bool {
        i & self.size == 0
    }

    /// A packed ring's descriptor at `i` was used.
    fn is_used(&self, mem: &Shm, i: u16) -> bool {
        let flags = mem.load16(self.at.desc + self.slot(i) * 16 + 14);
        let both = if self.wrap(i) { AVAIL | USED } else { 0 };
        flags & (AVAIL | USED) == both
    }

    /// Makes buffer `id` of `len` bytes at `addr` available; surely seen by the device after `publish`.
    #[inline]
    pub fn offer(&mut self, mem: &Shm, id: u16, addr: u64, len: u32) {
        let slot = self.slot(self.offered);
        if self.packed {
            let at = self.at.desc + slot * 16;
            mem.store64(at, addr);
            mem.store32(at + 8, len);
            mem.store16(at + 12, id);
            let turn = if self.wrap(self.offered) { AVAIL } else { USED };
            mem.store16(at + 14, turn | if self.receives { WRITE } else { 0 });
        } else {
            let at = usize::from(id & (self.size - 1));
            // The descriptors stay as they are, so that they stay in both cores' caches.
            if let Some(now) = self.lens.get_mut(at).filter(|now| **now != len) {
                *now = len;
                mem.store32(self.at.desc + at * 16 + 8, len);
            }
            mem.store16(self.at.avail + 4 + slot * 2, id);
        }
        self.offered = self.on(self.offered, 1);
    }

    /// Shows what was offered. True: the device wants to be woken.
    #[inline]
    pub fn publish(&mut self, mem: &Shm) -> bool {
        if !self.packed {
            mem.store16(self.at.avail + 2, self.offered);
        }
        fence(Ordering::SeqCst);
        let (new, old) = (self.offered, self.shown);
        self.shown = new;
        if new == old {
            return false;
        }
        if self.packed {
            return match mem.load16(self.at.used + 2) & 3 {
                0 => true,
                1 => false,
                _ => {
                    // The event is at a position, and 2^15 is its lap's parity, which is 1 in the first lap.
                    let word = mem.load16(self.at.used);
                    let lap = if word >> 15 == 1 { 0 } else { self.size };
                    let event = (word & (self.size - 1)) | lap;
                    let laps = 2 * self.size - 1;
                    new.wrapping_sub(event).wrapping_sub(1) & laps < new.wrapping_sub(old) & laps
                }
            };
        }
        if self.event_idx {
            let event = mem.load16(self.at.used + 4 + usize::from(self.size) * 8);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            mem.load16(self.at.used) & 1 == 0
        }
    }

    /// Looks how far the device is; for a driver that polls, moves the point of the next interrupt out of reach.
    #[inline]
    pub fn look(&mut self, mem: &Shm) {
        if self.packed {
            return;
        }
        self.until = mem.load16(self.at.used + 2);
        if !self.sleeps && self.until != self.taken {
            mem.store16(self.at.avail + 4 + usize::from(self.size) * 2, self.taken.wrapping_sub(1));
        }
    }

    /// The next buffer that the device had used when it was looked at, with the bytes it wrote.
    #[inline]
    pub fn take(&mut self, mem: &Shm) -> Option<(u16, u32)> {
        let slot = self.slot(self.taken);
        let (id, len) = if self.packed {
            if self.taken == self.offered || !self.is_used(mem, self.taken) {
                return None;
            }
            let at = self.at.desc + slot * 16;
            (mem.load16(at + 12), mem.load32(at + 8))
        } else {
            if self.taken == self.until {
                return None;
            }
            let at = self.at.used + 4 + slot * 8;
            (u16::try_from(mem.load32(at) & 0xffff).unwrap_or(0), mem.load32(at + 4))
        };
        self.taken = self.on(self.taken, 1);
        Some((id & (self.size - 1), len))
    }

    /// The buffer that was used `ahead` places after the next one, if it was.
    #[inline]
    pub fn peek(&self, mem: &Shm, ahead: u16) -> Option<u16> {
        let i = self.on(self.taken, ahead);
        let id = if self.packed {
            if !self.is_used(mem, i) {
                return None;
            }
            mem.load16(self.at.desc + self.slot(i) * 16 + 12)
        } else {
            if self.until.wrapping_sub(self.taken) <= ahead {
                return None;
            }
            u16::try_from(mem.load32(self.at.used + 4 + self.slot(i) * 8) & 0xffff).unwrap_or(0)
        };
        Some(id & (self.size - 1))
    }

    /// Buffers that wait to be taken, of a packed ring those of the next 64.
    #[must_use]
    pub fn ready(&self, mem: &Shm) -> u16 {
        if !self.packed {
            return mem.load16(self.at.used + 2).wrapping_sub(self.taken);
        }
        let laps = 2 * self.size - 1;
        let most = self.offered.wrapping_sub(self.taken) & laps;
        let used = (0..most.min(64)).take_while(|n| self.is_used(mem, self.on(self.taken, *n)));
        u16::try_from(used.count()).unwrap_or(0)
    }

    /// Asks for an interrupt after `n` more buffers were used. True: they were already.
    pub fn arm(&mut self, mem: &Shm, n: u16) -> bool {
        if self.packed {
            let last = self.on(self.taken, n.saturating_sub(1));
            if self.event_idx {
                let wrap = u16::from(self.wrap(last)) << 15;
                mem.store16(self.at.avail, (last & (self.size - 1)) | wrap);
                mem.store16(self.at.avail + 2, 2);
            } else {
                mem.store16(self.at.avail + 2, 0);
            }
            fence(Ordering::SeqCst);
            return self.is_used(mem, last);
        }
        let at = self.at.avail + 4 + usize::from(self.size) * 2;
        mem.store16(at, self.taken.wrapping_add(n).wrapping_sub(1));
        fence(Ordering::SeqCst);
        mem.load16(self.at.used + 2).wrapping_sub(self.taken) >= n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Parts = Parts { desc: 0, avail: 0x200, used: 0x400 };

    fn ring(packed: bool) -> (Shm, Ring) {
        let mem = Shm::map(None, 0x1000, 0).unwrap();
        let r = Ring::new(&mem, 8, AT, true, packed, |i| 0x1_0000 + u64::from(i) * 0x100);
        (mem, r)
    }

    /// A packed ring's device, in order: uses the descriptor at its position and says so.
    fn use_packed(mem: &Shm, at: &mut u16, len: u32) -> bool {
        let (desc, wrap) = (usize::from(*at & 7) * 16, *at & 8 == 0);
        let flags = mem.load16(desc + 14);
        if (flags & AVAIL != 0) != wrap || (flags & USED != 0) == wrap {
            return false;
        }
        mem.store32(desc + 8, len);
        mem.store16(desc + 14, if wrap { AVAIL | USED } else { 0 });
        *at = (*at + 1) & 15;
        true
    }

    #[test]
    fn a_packed_ring_goes_round_and_round() {
        let (mem, mut r) = ring(true);
        let (mut device, mut next) = (0, 0_u16);
        assert!(r.take(&mem).is_none());
        for lap in 0..50_u32 {
            for _ in 0..5 {
                r.offer(&mem, next % 8, 0x1_0000, 100);
                next += 1;
            }
            assert!(r.publish(&mem), "a device that has said nothing wants to be woken");
            assert_eq!(r.ready(&mem), 0);
            for n in 0..5 {
                assert!(use_packed(&mem, &mut device, lap * 10 + n));
            }
            assert!(!use_packed(&mem, &mut device, 0), "more than was offered");
            assert_eq!(r.ready(&mem), 5);
            assert_eq!(r.peek(&mem, 4), Some((next - 1) % 8));
            for n in 0..5 {
                let id = u16::try_from(lap * 5 + n).unwrap() % 8;
                assert_eq!(r.take(&mem), Some((id, lap * 10 + n)));
            }
            assert!(r.take(&mem).is_none());
        }
    }

    #[test]
    fn a_packed_device_is_woken_at_its_event_and_at_no_other() {
        let (mem, mut r) = ring(true);
        mem.store16(AT.used + 2, 1);
        r.offer(&mem, 0, 0, 1);
        assert!(!r.publish(&mem), "disabled");
        // At position 2 of the first lap.
        mem.store16(AT.used, 2 | 1 << 15);
        mem.store16(AT.used + 2, 2);
        r.offer(&mem, 1, 0, 1);
        assert!(!r.publish(&mem), "not yet");
        r.offer(&mem, 2, 0, 1);
        r.offer(&mem, 3, 0, 1);
        assert!(r.publish(&mem), "passed it");
        r.offer(&mem, 4, 0, 1);
        assert!(!r.publish(&mem), "long past it");
    }

    #[test]
    fn arming_tells_what_came_in_the_meantime() {
        for packed in [true, false] {
            let (mem, mut r) = ring(packed);
            r.start(&mem, true, true);
            for i in 0..4 {
                r.offer(&mem, i, 0, 10);
            }
            r.publish(&mem);
            assert!(!r.arm(&mem, 2));
            let mut device = 0;
            for n in 1..=2_u16 {
                if packed {
                    assert!(use_packed(&mem, &mut device, 1));
                } else {
                    mem.store16(AT.used + 2, n);
                }
                assert_eq!(r.arm(&mem, 2), n == 2, "packed {packed}, {n}");
            }
            let event = if packed { mem.load16(AT.avail) & 7 } else { mem.load16(AT.avail + 4 + 16) };
            assert_eq!(event, 1);
        }
    }

    #[test]
    fn a_split_ring_takes_what_was_used() {
        let (mem, mut r) = ring(false);
        assert_eq!(mem.load64(AT.desc + 16), 0x1_0100);
        for i in [3, 1] {
            r.offer(&mem, i, 0, 20);
        }
        assert!(r.publish(&mem));
        assert_eq!(
            (mem.load16(AT.avail + 2), mem.load16(AT.avail + 4), mem.load32(AT.desc + 48 + 8)),
            (2, 3, 20)
        );
        mem.store32(AT.used + 4, 3);
        mem.store32(AT.used + 8, 9);
        mem.store16(AT.used + 2, 1);
        assert!(r.take(&mem).is_none(), "before a look");
        r.look(&mem);
        assert_eq!((r.take(&mem), r.take(&mem)), (Some((3, 9)), None));
    }
}
