//! The smallest possible holder of a granted AF_XDP socket: maps it, lends it all its memory, receives, sends.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, poll};

/// Where things are in this socket, and how large.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) ring: u32,
    pub(crate) chunk: u32,
    pub(crate) chunks: u32,
}

pub(crate) struct Holder {
    socket: OwnedFd,
    memory: Map,
    shape: Shape,
    rx: Ring,
    fill: Ring,
    tx: Ring,
}

struct Map(*mut u8, usize);

struct Ring {
    map: Map,
    at: libc::xdp_ring_offset,
    mask: u32,
}

impl Map {
    fn new(fd: BorrowedFd<'_>, bytes: usize, offset: i64) -> Self {
        let (rw, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping at no fixed address.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, rw, shared, fd.as_raw_fd(), offset) };
        assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self(at.cast(), bytes)
    }

    fn at<T>(&self, offset: u64) -> *mut T {
        let offset = usize::try_from(offset).unwrap();
        assert!(offset + size_of::<T>() <= self.1);
        // SAFETY: inside the mapping.
        unsafe { self.0.add(offset) }.cast()
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: made by Map::new, and nothing points into it any more.
        unsafe { libc::munmap(self.0.cast(), self.1) };
    }
}

impl Ring {
    fn new(socket: BorrowedFd<'_>, at: libc::xdp_ring_offset, page: i64, entries: u32, entry: usize) -> Self {
        let bytes = usize::try_from(at.desc).unwrap() + entries as usize * entry;
        Self { map: Map::new(socket, bytes, page), at, mask: entries - 1 }
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: the kernel keeps an aligned u32 there.
        unsafe { AtomicU32::from_ptr(self.map.at(self.at.producer)) }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: the kernel keeps an aligned u32 there.
        unsafe { AtomicU32::from_ptr(self.map.at(self.at.consumer)) }
    }

    fn slot<T>(&self, index: u32) -> *mut T {
        self.map.at(self.at.desc + u64::from(index & self.mask) * size_of::<T>() as u64)
    }
}

impl Holder {
    /// Maps rings and memory and puts all chunks but the last, which is for sending, into the fill ring.
    pub(crate) fn new(socket: OwnedFd, memory: OwnedFd, shape: Shape) -> Self {
        use std::os::fd::AsFd;
        // SAFETY: a structure of integers.
        let mut at: libc::xdp_mmap_offsets = unsafe { std::mem::zeroed() };
        let mut size = libc::socklen_t::try_from(size_of_val(&at)).unwrap();
        let (level, option) = (libc::SOL_XDP, libc::XDP_MMAP_OFFSETS);
        // SAFETY: the pointer is good for `size` bytes.
        let answer = unsafe {
            libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut at).cast(), &raw mut size)
        };
        assert_eq!(answer, 0);
        let page = |offset: u64| i64::try_from(offset).unwrap();
        let (n, fd) = (shape.ring, socket.as_fd());
        let rx = Ring::new(fd, at.rx, libc::XDP_PGOFF_RX_RING, n, 16);
        let tx = Ring::new(fd, at.tx, libc::XDP_PGOFF_TX_RING, n, 16);
        let fill = Ring::new(fd, at.fr, page(libc::XDP_UMEM_PGOFF_FILL_RING), n, 8);
        let memory = Map::new(memory.as_fd(), (shape.chunk * shape.chunks) as usize, 0);
        let mut holder = Self { socket, memory, shape, rx, fill, tx };
        for chunk in 0..(shape.chunks - 1).min(shape.ring) {
            holder.lend(u64::from(chunk) * u64::from(shape.chunk));
        }
        holder
    }

    fn lend(&mut self, address: u64) {
        let index = self.fill.producer().load(Ordering::Relaxed);
        // SAFETY: a slot that the kernel does not read before the producer index says so.
        unsafe { self.fill.slot::<u64>(index).write(address & !u64::from(self.shape.chunk - 1)) };
        self.fill.producer().store(index.wrapping_add(1), Ordering::Release);
    }

    /// The next frame, put together from its chunks; none if none comes in time.
    pub(crate) fn receive(&mut self, wait: Duration) -> Option<Vec<u8>> {
        use std::os::fd::AsFd;
        let mut frame = Vec::new();
        loop {
            let index = self.rx.consumer().load(Ordering::Relaxed);
            if index == self.rx.producer().load(Ordering::Acquire) {
                let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
                if poll(&mut fds, u16::try_from(wait.as_millis()).unwrap()).unwrap() == 0 {
                    return None;
                }
                continue;
            }
            // SAFETY: the producer index says that the kernel has written this slot.
            let desc = unsafe { self.rx.slot::<libc::xdp_desc>(index).read() };
            for i in 0..u64::from(desc.len) {
                // SAFETY: `at` checks the bounds; the kernel is done with the chunk.
                frame.push(unsafe { self.memory.at::<u8>(desc.addr + i).read() });
            }
            self.rx.consumer().store(index.wrapping_add(1), Ordering::Release);
            self.lend(desc.addr);
            if desc.options & libc::XDP_PKT_CONTD == 0 {
                return Some(frame);
            }
        }
    }

    /// Sends one frame from the last chunk.
    pub(crate) fn send(&mut self, frame: &[u8]) {
        let addr = u64::from(self.shape.chunk) * u64::from(self.shape.chunks - 1);
        for (i, byte) in (0..).zip(frame) {
            // SAFETY: `at` checks the bounds; the chunk was never lent.
            unsafe { self.memory.at::<u8>(addr + i).write(*byte) };
        }
        let index = self.tx.producer().load(Ordering::Relaxed);
        let desc = libc::xdp_desc { addr, len: u32::try_from(frame.len()).unwrap(), options: 0 };
        // SAFETY: a slot that the kernel does not read before the producer index says so.
        unsafe { self.tx.slot::<libc::xdp_desc>(index).write(desc) };
        self.tx.producer().store(index.wrapping_add(1), Ordering::Release);
        // SAFETY: no data, no address: only the kick.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                std::ptr::null(),
                0,
                libc::MSG_DONTWAIT,
                std::ptr::null(),
                0,
            )
        };
        assert_eq!(sent, 0, "{}", std::io::Error::last_os_error());
    }
}
