//! A virtio driver's split ring in shared memory, as small as it can be: single-descriptor chains.
//!
//! Written for the benches alone and independent of netreeve's own rings, so that the same driver stands before
//! netreeve and before DPDK. It writes every frame's bytes anew, as a guest does: the other core has to fetch them.
//!
//! Trust: none of the device's words can lead outside the mapping; a wrong used index ends in wrong figures.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use nix::sys::eventfd::EventFd;

use crate::sys::Shm;

/// Bytes of a buffer: header and frame.
const BUFFER: u32 = 2048;
/// From one buffer to the next: an odd number of cache lines, so that their beginnings do not fight for the same places in
/// a cache, as those of guests' buffers do not.
const STRIDE: usize = 2048 + 64;
/// Places to look ahead when receiving.
const AHEAD: u16 = 8;
/// The virtio-net header of VERSION_1.
pub const HEADER: usize = 12;
/// A descriptor's flag: the device writes.
const WRITE: u64 = 2;

/// One ring. Offsets are in bytes from the start of the memory, which is also guest address 0 plus `base`.
pub struct Vring {
    mem: Arc<Shm>,
    /// Entries, a power of two.
    pub size: u16,
    /// Descriptor table.
    pub desc: usize,
    /// Available ring.
    pub avail: usize,
    /// Used ring.
    pub used: usize,
    buffers: usize,
    event_idx: bool,
    sleeps: bool,
    /// The device's interrupts.
    pub call: EventFd,
    /// Written to wake the device.
    pub kick: EventFd,
    free: Vec<u16>,
    lens: Vec<u32>,
    avail_idx: u16,
    kicked_at: u16,
    used_idx: u16,
}

/// Bytes that a ring of `size` entries and its buffers take.
#[must_use]
pub fn footprint(size: u16) -> usize {
    usize::from(size) * (STRIDE + 16 + 2 + 8) + 3 * 4096
}

impl Vring {
    /// Lays a ring out at `at` of `mem`. The device writes its buffers if `receives`.
    ///
    /// # Errors
    /// No eventfd.
    pub fn new(mem: Arc<Shm>, at: usize, size: u16, base: u64, receives: bool) -> io::Result<Self> {
        let n = usize::from(size);
        let page = |x: usize| x.next_multiple_of(4096);
        let desc = page(at);
        let avail = desc + n * 16;
        let used = (avail + 4 + n * 2 + 2).next_multiple_of(64);
        let buffers = page(used + 4 + n * 8 + 2);
        for i in 0..size {
            let at = desc + usize::from(i) * 16;
            mem.store64(at, base + (buffers + usize::from(i) * STRIDE) as u64);
            mem.store64(at + 8, u64::from(BUFFER) | if receives { WRITE << 32 } else { 0 });
        }
        let event = || {
            use nix::sys::eventfd::EfdFlags;
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(io::Error::from)
        };
        Ok(Self {
            mem,
            size,
            desc,
            avail,
            used,
            buffers,
            event_idx: false,
            sleeps: false,
            call: event()?,
            kick: event()?,
            free: (0..size).rev().collect(),
            lens: vec![BUFFER; n],
            avail_idx: 0,
            kicked_at: 0,
            used_idx: 0,
        })
    }

    /// Says how this driver waits, before the device starts: by polling, or asleep until an interrupt.
    pub fn start(&mut self, event_idx: bool, sleeps: bool) {
        (self.event_idx, self.sleeps) = (event_idx, sleeps);
        self.mem.store16(self.avail, u16::from(!sleeps));
    }

    /// Asks for an interrupt after `n` more buffers were used. True: they were already.
    pub fn arm(&mut self, n: u16) -> bool {
        let at = self.avail + 4 + usize::from(self.size) * 2;
        self.mem.store16(at, self.used_idx.wrapping_add(n).wrapping_sub(1));
        fence(Ordering::SeqCst);
        self.mem.load16(self.used + 2).wrapping_sub(self.used_idx) >= n
    }

    /// Forgets interrupts that came.
    pub fn calm(&self) {
        // None to forget is as well.
        let _none = self.call.read();
    }

    /// Buffers that wait to be taken back.
    #[must_use]
    pub fn ready(&self) -> u16 {
        self.mem.load16(self.used + 2).wrapping_sub(self.used_idx)
    }

    /// Frames that `send` would find room for.
    #[must_use]
    pub fn room(&self) -> usize {
        self.free.len() + usize::from(self.ready())
    }

    /// Where a buffer lies.
    fn buffer(&self, id: u16) -> usize {
        self.buffers + usize::from(id & (self.size - 1)) * STRIDE
    }

    /// Makes buffer `id` of `len` bytes available; seen by the device after `publish`.
    #[inline]
    fn offer(&mut self, id: u16, len: u32) {
        let at = usize::from(id & (self.size - 1));
        // The descriptors stay as they are, so that they stay in both cores' caches.
        if let Some(now) = self.lens.get_mut(at).filter(|now| **now != len) {
            *now = len;
            self.mem.store32(self.desc + at * 16 + 8, len);
        }
        let slot = usize::from(self.avail_idx & (self.size - 1));
        self.mem.store16(self.avail + 4 + slot * 2, id);
        self.avail_idx = self.avail_idx.wrapping_add(1);
    }

    /// Shows what was offered and wakes the device if it asked for that.
    fn publish(&mut self) {
        self.mem.store16(self.avail + 2, self.avail_idx);
        fence(Ordering::SeqCst);
        let (new, old) = (self.avail_idx, self.kicked_at);
        self.kicked_at = new;
        let wanted = if self.event_idx {
            let event = self.mem.load16(self.used + 4 + usize::from(self.size) * 8);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.mem.load16(self.used) & 1 == 0
        };
        if wanted && new != old {
            // A full counter is a wake-up as well.
            let _full = self.kick.write(1);
        }
    }

    /// Asks for the first bytes of a buffer that the device has used some places ahead.
    #[inline]
    fn look_ahead(&self, until: u16) {
        let at = self.used_idx.wrapping_add(AHEAD);
        if until.wrapping_sub(self.used_idx) > AHEAD {
            let at = self.used + 4 + usize::from(at & (self.size - 1)) * 8;
            let id = u16::try_from(self.mem.load32(at) & u32::from(self.size - 1)).unwrap_or(0);
            self.mem.prefetch(self.buffer(id));
        }
    }

    /// The next buffer that the device has used, with the bytes it wrote.
    #[inline]
    fn take(&mut self, until: u16) -> Option<(u16, u32)> {
        if self.used_idx == until {
            return None;
        }
        let at = self.used + 4 + usize::from(self.used_idx & (self.size - 1)) * 8;
        self.used_idx = self.used_idx.wrapping_add(1);
        let id = u16::try_from(self.mem.load32(at) & u32::from(self.size - 1)).unwrap_or(0);
        Some((id, self.mem.load32(at + 4)))
    }

    /// Where the device stands; for a driver that polls, moves the point of the next interrupt out of reach.
    fn used_until(&mut self) -> u16 {
        let until = self.mem.load16(self.used + 2);
        if !self.sleeps && until != self.used_idx {
            self.mem.store16(self.avail + 4 + usize::from(self.size) * 2, self.used_idx.wrapping_sub(1));
        }
        until
    }

    /// Driver's transmit side: takes sent buffers back, sends up to `n` copies of `frame`. Says how many found room.
    pub fn send(&mut self, frame: &[u8], n: usize) -> usize {
        let until = self.used_until();
        while let Some((id, _)) = self.take(until) {
            self.free.push(id);
        }
        let n = n.min(self.free.len());
        let len = u32::try_from(HEADER + frame.len()).unwrap_or(0);
        for id in self.free.split_off(self.free.len() - n) {
            let at = self.buffer(id);
            self.mem.put(at, &[0; HEADER]);
            self.mem.put(at + HEADER, frame);
            self.offer(id, len);
        }
        if n > 0 {
            self.publish();
        }
        n
    }

    /// Driver's receive side: gives all free buffers to the device.
    pub fn refill(&mut self) {
        while let Some(id) = self.free.pop() {
            self.offer(id, BUFFER);
        }
        self.publish();
    }

    /// Driver's receive side: takes up to `max` frames, shows each to `each`, and gives the buffers back at once.
    /// Says how many there were.
    pub fn recv(&mut self, max: usize, mut each: impl FnMut(&[u8; 64], u32)) -> usize {
        let until = self.used_until();
        let mut n = 0;
        let mut head = [0; 64];
        while n < max {
            self.look_ahead(until);
            let Some((id, len)) = self.take(until) else { break };
            self.mem.get(self.buffer(id) + HEADER, &mut head);
            each(&head, len.saturating_sub(12));
            self.offer(id, BUFFER);
            n += 1;
        }
        if n > 0 {
            self.publish();
        }
        n
    }
}
