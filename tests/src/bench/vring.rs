//! A virtio driver's ring in shared memory, with its buffers and its two eventfds.
//!
//! Written for the benches alone. It writes every frame's bytes anew, as a guest does: the other core has to fetch them.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use nix::sys::eventfd::EventFd;

use super::rings::{Parts, Ring};
use crate::sys::{self, Shm};

/// Bytes of a buffer for plain frames: header and frame.
pub const PLAIN: u32 = 2048;
/// Bytes of a buffer for super-frames: header, Ethernet header and 64 KiB.
pub const SUPER: u32 = 68 << 10;
/// Places to look ahead when receiving.
const AHEAD: u16 = 8;
/// The virtio-net header of VERSION_1.
pub const HEADER: usize = 12;

/// What a ring is to be.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Entries, a power of two.
    pub size: u16,
    /// Bytes of a buffer.
    pub buffer: u32,
    /// In the packed form.
    pub packed: bool,
}

impl Shape {
    /// From one buffer to the next: an odd number of cache lines, so that their beginnings do not fight for the same
    /// places in a cache, as those of guests' buffers do not.
    fn stride(self) -> usize {
        usize::try_from(self.buffer).unwrap_or(0) + 64
    }

    /// Bytes that a ring and its buffers take.
    #[must_use]
    pub fn footprint(self) -> usize {
        usize::from(self.size) * (self.stride() + 16 + 2 + 8) + 3 * 4096
    }
}

/// One ring. Offsets are in bytes from the start of the memory, which is also guest address 0 plus `base`.
pub struct Vring {
    mem: Arc<Shm>,
    /// Its shape.
    pub shape: Shape,
    /// Where its parts lie.
    pub parts: Parts,
    ring: Ring,
    base: u64,
    buffers: usize,
    /// The device's interrupts.
    pub call: EventFd,
    /// Written to wake the device.
    pub kick: EventFd,
    free: Vec<u16>,
}

impl Vring {
    /// Lays a ring out at `at` of `mem`. The device writes its buffers if `receives`.
    ///
    /// # Errors
    /// No eventfd.
    pub fn new(mem: Arc<Shm>, at: usize, shape: Shape, base: u64, receives: bool) -> io::Result<Self> {
        let n = usize::from(shape.size);
        let page = |x: usize| x.next_multiple_of(4096);
        let desc = page(at);
        let avail = desc + n * 16;
        let used = (avail + 4 + n * 2 + 2).next_multiple_of(64);
        let buffers = page(used + 4 + n * 8 + 2);
        let parts = Parts { desc, avail, used };
        let buffer = |i: u16| base + (buffers + usize::from(i) * shape.stride()) as u64;
        let ring = Ring::new(&mem, shape.size, parts, receives, shape.packed, buffer);
        let event = || {
            use nix::sys::eventfd::EfdFlags;
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(io::Error::from)
        };
        let free = (0..shape.size).rev().collect();
        Ok(Self { mem, shape, parts, ring, base, buffers, call: event()?, kick: event()?, free })
    }

    /// Says how this driver waits, before the device starts: by polling, or asleep until an interrupt.
    pub fn start(&mut self, event_idx: bool, sleeps: bool) {
        self.ring.start(&self.mem, event_idx, sleeps);
    }

    /// Asks for an interrupt after `n` more buffers were used. True: they were already.
    pub fn arm(&mut self, n: u16) -> bool {
        self.ring.arm(&self.mem, n)
    }

    /// Forgets interrupts that came.
    pub fn calm(&self) {
        // None to forget is as well.
        let _none = self.call.read();
    }

    /// Frames that `send` would find room for.
    #[must_use]
    pub fn room(&self) -> usize {
        self.free.len() + usize::from(self.ring.ready(&self.mem))
    }

    /// Where a buffer lies.
    fn buffer(&self, id: u16) -> usize {
        self.buffers + usize::from(id & (self.shape.size - 1)) * self.shape.stride()
    }

    #[inline]
    fn offer(&mut self, id: u16, len: u32) {
        let addr = self.base + self.buffer(id) as u64;
        self.ring.offer(&self.mem, id, addr, len);
    }

    /// Shows what was offered and wakes the device if it asked for that.
    fn publish(&mut self) {
        if self.ring.publish(&self.mem) {
            // A full counter is a wake-up as well.
            let _full = self.kick.write(1);
        }
    }

    /// Takes sent buffers back.
    fn reclaim(&mut self) {
        self.ring.look(&self.mem);
        while let Some((id, _)) = self.ring.take(&self.mem) {
            self.free.push(id);
        }
    }

    /// Driver's transmit side: takes sent buffers back, sends up to `n` copies of `frame`. Says how many found room.
    pub fn send(&mut self, frame: &[u8], n: usize) -> usize {
        self.reclaim();
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

    /// Driver's transmit side: sends one frame, which the parts make up together, its virtio-net header first. False: there is
    /// no room for it now.
    pub fn send_parts(&mut self, parts: &[&[u8]]) -> bool {
        self.reclaim();
        let Some(id) = self.free.pop() else { return false };
        let first = self.buffer(id);
        let mut at = first;
        for part in parts {
            self.mem.put(at, part);
            at += part.len();
        }
        self.offer(id, u32::try_from(at - first).unwrap_or(0));
        self.publish();
        true
    }

    /// Driver's transmit side: sends up to `n` frames, each read from `fd` (a tap with a virtio-net header of
    /// [`HEADER`] bytes) straight into a buffer. Says how many there were.
    ///
    /// # Errors
    /// The descriptor's, but for "nothing there".
    pub fn send_from(&mut self, fd: BorrowedFd<'_>, n: usize) -> io::Result<usize> {
        self.reclaim();
        let (mut sent, mut result) = (0, Ok(()));
        while sent < n {
            let Some(id) = self.free.pop() else { break };
            match sys::read_into(fd, &self.mem, self.buffer(id), self.shape.buffer) {
                Ok(len) if len > HEADER => {
                    self.offer(id, u32::try_from(len).unwrap_or(0));
                    sent += 1;
                    continue;
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => result = Err(e),
            }
            self.free.push(id);
            break;
        }
        if sent > 0 {
            self.publish();
        }
        result.map(|()| sent)
    }

    /// Driver's receive side: gives all free buffers to the device.
    pub fn refill(&mut self) {
        while let Some(id) = self.free.pop() {
            self.offer(id, self.shape.buffer);
        }
        self.publish();
    }

    /// Driver's receive side: takes up to `max` frames, shows each to `each`, and gives the buffers back at once.
    /// Says how many there were.
    pub fn recv(&mut self, max: usize, mut each: impl FnMut(&[u8; 64], u32)) -> usize {
        self.ring.look(&self.mem);
        let mut n = 0;
        let mut head = [0; 64];
        while n < max {
            if let Some(id) = self.ring.peek(&self.mem, AHEAD) {
                self.mem.prefetch(self.buffer(id));
            }
            let Some((id, len)) = self.ring.take(&self.mem) else { break };
            self.mem.get(self.buffer(id) + HEADER, &mut head);
            each(&head, len.saturating_sub(12));
            self.offer(id, self.shape.buffer);
            n += 1;
        }
        if n > 0 {
            self.publish();
        }
        n
    }

    /// Driver's receive side: copies up to `max` frames into `to`, one after the other and without their headers, shows each to
    /// `each`, and gives the buffers back. Says how many there were.
    pub fn recv_copy(&mut self, max: usize, to: &mut [u8], mut each: impl FnMut(&[u8])) -> usize {
        self.ring.look(&self.mem);
        let mut n = 0;
        while n < max {
            let Some((id, len)) = self.ring.take(&self.mem) else { break };
            let len = usize::try_from(len.min(self.shape.buffer)).unwrap_or(0).saturating_sub(HEADER);
            if let Some(frame) = to.get_mut(..len) {
                self.mem.get(self.buffer(id) + HEADER, frame);
                each(frame);
            }
            self.offer(id, self.shape.buffer);
            n += 1;
        }
        if n > 0 {
            self.publish();
        }
        n
    }

    /// Driver's receive side: writes up to `max` frames to `fd` as they lie, header first, and gives the buffers back.
    /// What the descriptor does not take is lost. Says how many there were.
    pub fn recv_into(&mut self, fd: BorrowedFd<'_>, max: usize) -> usize {
        self.ring.look(&self.mem);
        let mut n = 0;
        while n < max {
            let Some((id, len)) = self.ring.take(&self.mem) else { break };
            // A tap that is full drops, as a NIC does.
            let _full = sys::write_from(fd, &self.mem, self.buffer(id), len.min(self.shape.buffer));
            self.offer(id, self.shape.buffer);
            n += 1;
        }
        if n > 0 {
            self.publish();
        }
        n
    }
}
