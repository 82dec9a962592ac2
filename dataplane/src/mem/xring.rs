//! AF_XDP's memory: the four rings of a socket, and the UMEM.
//!
//! A ring is an array of entries with two free-running 32-bit indices, each written by one side (`linux/if_xdp.h`,
//! Documentation/networking/af_xdp.rst). The pages are the socket's own: they outlive a process that is killed, and the
//! next one that maps them finds the indices where they stood.
//!
//! Trust: every index and entry may have changed since it was last read (a second holder of the socket could do that).
//! Promise: places are computed from checked offsets and masked indices, so nothing read from a ring leads outside it;
//! what an entry *says* is for the reader to check ([`Umem::seg`] does).

use std::io;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::mem::Seg;
use crate::mem::map::Shared;
use crate::sys;

/// Entries of rings: plain integers of which every bit pattern is a value.
pub trait Entry: Copy + private::Sealed {}

mod private {
    pub trait Sealed {}
    impl Sealed for u64 {}
    impl Sealed for super::Desc {}
}

impl Entry for u64 {}

/// `struct xdp_desc`: a piece of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Desc {
    /// Where in the UMEM.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// `XDP_PKT_CONTD`: the frame goes on in the next.
    pub options: u32,
}

impl Entry for Desc {}

/// Which of a socket's rings: its place in the socket's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Received frames.
    Rx,
    /// Frames to be sent.
    Tx,
    /// Chunks for frames to come.
    Fill,
    /// Chunks of frames that were sent.
    Completion,
}

/// One ring.
#[derive(Debug)]
pub struct Ring<T: Entry> {
    map: Shared,
    producer: NonNull<u32>,
    consumer: NonNull<u32>,
    flags: NonNull<u32>,
    entries: NonNull<T>,
    mask: u32,
    kind: PhantomData<T>,
}

// SAFETY: the pointers lead into the mapping that the ring owns; access is atomic or volatile.
unsafe impl<T: Entry> Send for Ring<T> {}

impl<T: Entry> Ring<T> {
    /// Maps a ring of `len` entries, a power of two.
    ///
    /// # Errors
    /// The kernel's, or offsets that cannot be.
    pub fn map(
        fd: BorrowedFd<'_>,
        which: Which,
        offsets: &libc::xdp_mmap_offsets,
        len: u32,
    ) -> io::Result<Self> {
        let (page, at) = match which {
            Which::Rx => (libc::XDP_PGOFF_RX_RING.unsigned_abs(), &offsets.rx),
            Which::Tx => (libc::XDP_PGOFF_TX_RING.unsigned_abs(), &offsets.tx),
            Which::Fill => (libc::XDP_UMEM_PGOFF_FILL_RING, &offsets.fr),
            Which::Completion => (libc::XDP_UMEM_PGOFF_COMPLETION_RING, &offsets.cr),
        };
        let bad = || io::Error::from(io::ErrorKind::InvalidData);
        if !len.is_power_of_two() {
            return Err(bad());
        }
        let offset = |o: u64| usize::try_from(o).map_err(|_| bad());
        let first = offset(at.desc)?;
        let bytes =
            size_of::<T>().checked_mul(len as usize).and_then(|n| n.checked_add(first)).ok_or_else(bad)?;
        let map = Shared::map(fd, bytes, page)?;
        let word = |o: u64| map.place::<u32>(offset(o)?).and_then(NonNull::new).ok_or_else(bad);
        let (producer, consumer, flags) = (word(at.producer)?, word(at.consumer)?, word(at.flags)?);
        let entries = map.place::<T>(first).and_then(NonNull::new).ok_or_else(bad)?;
        Ok(Self { map, producer, consumer, flags, entries, mask: len - 1, kind: PhantomData })
    }

    fn word(&self, at: NonNull<u32>) -> &AtomicU32 {
        debug_assert!(at.as_ptr().cast::<u8>() >= self.map.at.as_ptr());
        // SAFETY: `map` found an aligned word inside the mapping, which lives as long as self; it is only ever accessed
        // atomically here and in the kernel.
        unsafe { AtomicU32::from_ptr(at.as_ptr()) }
    }

    /// Entries that it holds at most.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "its capacity, which is never zero")]
    pub fn len(&self) -> u32 {
        self.mask + 1
    }

    /// How far its producer is. What it produced up to there can be read.
    #[must_use]
    #[inline]
    pub fn producer(&self) -> u32 {
        self.word(self.producer).load(Ordering::Acquire)
    }

    /// How far its consumer is. What lies before may be written.
    #[must_use]
    #[inline]
    pub fn consumer(&self) -> u32 {
        self.word(self.consumer).load(Ordering::Acquire)
    }

    /// As its producer: everything before `i` is written.
    #[inline]
    pub fn produce(&self, i: u32) {
        self.word(self.producer).store(i, Ordering::Release);
    }

    /// As its consumer: everything before `i` is read.
    #[inline]
    pub fn consume(&self, i: u32) {
        self.word(self.consumer).store(i, Ordering::Release);
    }

    /// Entries between two readings of its indices.
    ///
    /// # Errors
    /// `InvalidData` if they lie further apart than the ring is long.
    #[inline]
    pub fn between(&self, consumer: u32, producer: u32) -> io::Result<u32> {
        let n = producer.wrapping_sub(consumer);
        if n > self.len() { Err(io::ErrorKind::InvalidData.into()) } else { Ok(n) }
    }

    /// The kernel wants to be kicked (`XDP_RING_NEED_WAKEUP`).
    #[must_use]
    #[inline]
    pub fn wants_kick(&self) -> bool {
        self.word(self.flags).load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    fn entry(&self, i: u32) -> *mut T {
        self.entries.as_ptr().wrapping_add((i & self.mask) as usize)
    }

    /// Reads an entry.
    #[must_use]
    #[inline]
    pub fn get(&self, i: u32) -> T {
        // SAFETY: the masked index lies inside the mapping (`map` sized it so), aligned as its first entry is; volatile,
        // for another process may write it.
        unsafe { self.entry(i).read_volatile() }
    }

    /// Writes an entry.
    #[inline]
    pub fn set(&self, i: u32, to: T) {
        // SAFETY: as for get.
        unsafe { self.entry(i).write_volatile(to) };
    }
}

/// The memory that frames pass through, in chunks.
#[derive(Debug)]
pub struct Umem {
    map: Shared,
}

impl Umem {
    /// Maps `len` bytes of a memfd whose size is sealed.
    ///
    /// # Errors
    /// The kernel's; `InvalidData` if it is shorter.
    pub fn map(fd: BorrowedFd<'_>, len: u64) -> io::Result<Self> {
        let has = sys::fd::size(fd)?;
        if len == 0 || has < len {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        Ok(Self { map: Shared::map(fd, len, 0)? })
    }

    /// The `len` bytes at `addr`; none if they are not all inside.
    #[must_use]
    #[inline]
    pub fn seg(&self, addr: u64, len: u32) -> Option<Seg> {
        let at = usize::try_from(addr).ok()?;
        let end = at.checked_add(len as usize)?;
        if end > self.map.len {
            return None;
        }
        let first = self.map.at.as_ptr().wrapping_add(at);
        // SAFETY: the bytes lie inside the mapping, which lives as long as the port that owns this Umem.
        Some(unsafe { Seg::new(first, len) })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    fn offsets(desc: u64) -> libc::xdp_mmap_offsets {
        let ring = || libc::xdp_ring_offset { producer: 0, consumer: 64, flags: 4, desc };
        libc::xdp_mmap_offsets { rx: ring(), tx: ring(), fr: ring(), cr: ring() }
    }

    fn file(len: i64) -> std::os::fd::OwnedFd {
        let fd = memfd_create(c"xring-test", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&fd, len).unwrap();
        fd
    }

    #[test]
    fn indices_wrap_and_impossible_ones_are_seen() {
        let fd = file(8192);
        let ring = Ring::<Desc>::map(fd.as_fd(), Which::Rx, &offsets(128), 8).unwrap();
        assert_eq!((ring.len(), ring.producer(), ring.consumer(), ring.wants_kick()), (8, 0, 0, false));
        let desc = |i: u32| Desc { addr: i.into(), len: i, options: 0 };
        for i in u32::MAX - 3..=u32::MAX {
            ring.set(i, desc(i));
        }
        ring.set(0, desc(0));
        ring.consume(u32::MAX - 3);
        ring.produce(1);
        assert_eq!(ring.between(ring.consumer(), ring.producer()).unwrap(), 5);
        assert_eq!((ring.get(u32::MAX).len, ring.get(0).len), (u32::MAX, 0));
        ring.produce(u32::MAX - 4);
        assert!(ring.between(ring.consumer(), ring.producer()).is_err());
        // A second mapping sees the same, as the next process does.
        let again = Ring::<Desc>::map(fd.as_fd(), Which::Rx, &offsets(128), 8).unwrap();
        assert_eq!(again.consumer(), u32::MAX - 3);
    }

    #[test]
    fn offsets_that_lead_astray_are_refused() {
        let fd = file(1 << 20);
        for bad in [3, u64::MAX, u64::MAX - 100, 1 << 60] {
            assert!(Ring::<u64>::map(fd.as_fd(), Which::Rx, &offsets(bad), 8).is_err(), "{bad}");
            let mut o = offsets(128);
            o.rx.producer = bad;
            assert!(Ring::<u64>::map(fd.as_fd(), Which::Rx, &o, 8).is_err(), "{bad}");
        }
        assert!(Ring::<u64>::map(fd.as_fd(), Which::Rx, &offsets(128), 7).is_err());
    }

    #[test]
    fn umem_gives_nothing_outside() {
        let fd = file(8192);
        assert!(Umem::map(fd.as_fd(), 8193).is_err());
        assert!(Umem::map(fd.as_fd(), 0).is_err());
        let m = Umem::map(fd.as_fd(), 8192).unwrap();
        assert_eq!(m.seg(8000, 192).unwrap().len(), 192);
        assert!(m.seg(8000, 193).is_none());
        assert!(m.seg(u64::MAX, 1).is_none());
        assert!(m.seg(u64::MAX - 10, 100).is_none());
    }
}
