//! A guest in this process: memory in a memfd, a ring in it, a driver on the ring.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

use super::{Buf, Device, Driver, Terms, recover};
use crate::mem::guest::{GuestMemory, Layout, Region};
use crate::mem::packed::PackedRing;
use crate::mem::split::{RingAddr, SplitRing};

/// Guest physical address of the memory.
pub(crate) const GPA: u64 = 0x4000_0000;
/// The front end's address of the memory.
pub(crate) const UVA: u64 = 0x7f00_0000_0000;
/// Bytes of memory.
pub(crate) const SIZE: u64 = 4 << 20;
/// Where buffers may lie: after the rings.
pub(crate) const BUFS: u64 = GPA + 0x10_0000;

pub(crate) fn memfd(len: u64) -> OwnedFd {
    let fd = memfd_create(c"nt-test", MFdFlags::MFD_CLOEXEC).unwrap();
    ftruncate(&fd, i64::try_from(len).unwrap()).unwrap();
    fd
}

pub(crate) fn layout() -> Layout {
    Layout { gpa: GPA, uva: UVA, len: SIZE, offset: 0 }
}

pub(crate) fn memory() -> (Arc<GuestMemory>, OwnedFd) {
    let fd = memfd(SIZE);
    let region = Region::map(layout(), fd.try_clone().unwrap()).unwrap();
    (Arc::new(GuestMemory::new(vec![region]).unwrap()), fd)
}

/// Addresses of ring number `n`, 64 KiB each.
pub(crate) fn addr(n: u64, size: u16) -> RingAddr {
    let desc = UVA + n * 0x1_0000;
    let avail = desc + 16 * u64::from(size);
    RingAddr { desc, avail, used: (avail + 6 + 2 * u64::from(size)).next_multiple_of(4) }
}

pub(crate) struct Guest {
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) driver: Driver,
}

impl Guest {
    /// A guest and the device for its ring.
    pub(crate) fn new(size: u16, terms: &Terms) -> (Self, Device) {
        let (memory, _fd) = memory();
        let at = addr(0, size);
        let driver = Driver::new(&memory, size, at, terms).unwrap();
        let base = u16::try_from(driver.base() & 0xffff).unwrap();
        let device = Device::new(&memory, size, at, base, terms).unwrap();
        (Self { memory, driver }, device)
    }

    /// The split ring, to be tampered with.
    pub(crate) fn split(&self) -> &SplitRing {
        self.driver.split().unwrap()
    }

    /// Places completed in a ring that has not gone round twice.
    pub(crate) fn completed(&self) -> u16 {
        let packed = self.driver.packed();
        let size = packed.map_or_else(|| self.split().size(), PackedRing::size);
        let at = recover(&self.memory, size, addr(0, size), packed.is_some()).unwrap();
        let Some(_) = packed else { return at };
        if at & 0x8000 == 0 { size + at } else { at & 0x7fff }
    }

    pub(crate) fn put(&self, gpa: u64, bytes: &[u8]) {
        let seg = self.memory.at_gpa(gpa, u32::try_from(bytes.len()).unwrap()).unwrap();
        assert_eq!(seg.copy_in(bytes), bytes.len());
    }

    pub(crate) fn get(&self, gpa: u64, len: u32) -> Vec<u8> {
        let mut v = vec![0; len as usize];
        assert_eq!(self.memory.at_gpa(gpa, len).unwrap().copy_out(&mut v), v.len());
        v
    }

    /// Lends one chain to be read.
    pub(crate) fn readable(&mut self, bufs: &[(u64, u32)]) -> u16 {
        let bufs: Vec<_> = bufs.iter().map(|&(addr, len)| Buf { addr, len, write: false }).collect();
        let head = self.driver.add(&bufs).unwrap();
        self.driver.publish();
        head
    }

    /// Lends one chain to be written.
    pub(crate) fn writable(&mut self, bufs: &[(u64, u32)]) -> u16 {
        let bufs: Vec<_> = bufs.iter().map(|&(addr, len)| Buf { addr, len, write: true }).collect();
        let head = self.driver.add(&bufs).unwrap();
        self.driver.publish();
        head
    }
}
