//! A guest's memory as the front end lays it out: regions of files, mapped here.
//!
//! Trust: none. The front end chooses files, offsets, sizes and addresses. Promise: a region is mapped only if it is a
//! file of tmpfs or hugetlbfs (a FUSE file could stall a thread for ever) that is long enough and overlaps no other
//! region; an address is translated only where it lies in a region; a file that shrinks later breaks the table
//! ([`GuestMemory::broken`]), not the process. The mappings go away with the last [`GuestMemory`] that holds them.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Seg;
use super::sigbus::Guard;
use crate::sys::fd::{self, Kind};

/// Most regions of one guest.
pub const MAX_REGIONS: usize = 64;

const TMPFS_MAGIC: i64 = 0x0102_1994;
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

/// Where a region lies. All in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Guest physical address.
    pub gpa: u64,
    /// Address in the front end's own space (ring addresses are given in it).
    pub uva: u64,
    /// Length.
    pub len: u64,
    /// Offset into the file.
    pub offset: u64,
}

impl Layout {
    fn is_sane(&self) -> bool {
        self.len > 0
            && self.gpa.checked_add(self.len).is_some()
            && self.uva.checked_add(self.len).is_some()
            && self.offset.checked_add(self.len).is_some_and(|e| e <= i64::MAX as u64)
    }

    fn overlaps(&self, o: &Self) -> bool {
        self.gpa < o.gpa + o.len && o.gpa < self.gpa + self.len
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

/// One mapping. Unmapped on drop.
#[derive(Debug)]
struct Mapping {
    base: *mut u8,
    len: usize,
    guard: Option<Guard>,
}

// SAFETY: the pointer is an address range owned by this value; access goes through raw copies that tolerate races.
unsafe impl Send for Mapping {}
// SAFETY: as above; no method gives a reference into the mapping.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd` from `offset`, both multiples of the file's page size.
    fn new(fd: &OwnedFd, offset: u64, len: u64) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(|_| invalid("region too large"))?;
        let offset = i64::try_from(offset).map_err(|_| invalid("region offset too large"))?;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses; it cannot disturb any other.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, prot, flags, fd.as_raw_fd(), offset) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mut m = Self { base: base.cast(), len, guard: None };
        // SAFETY: the range was just mapped and is ours.
        unsafe { libc::madvise(base, len, libc::MADV_DONTDUMP) };
        m.guard = Some(Guard::new(m.base.expose_provenance(), len)?);
        Ok(m)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // Out of the handler's table first: after the unmapping the address may be somebody else's.
        self.guard = None;
        // SAFETY: base and len are the mapping's own, and nobody holds it any more.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}

/// The page size in bytes of a file that lies in memory and has `len` bytes at least.
fn page_size_of(fd: BorrowedFd<'_>, len: u64) -> io::Result<u64> {
    match fd::kind(fd)? {
        Kind::File(size) if size < len => {
            return Err(invalid("guest memory's file is shorter than the region"));
        }
        Kind::File(_) => {}
        _ => return Err(invalid("guest memory is not a file")),
    }
    match fd::file_system(fd)? {
        (TMPFS_MAGIC | HUGETLBFS_MAGIC, size) if size.is_power_of_two() => Ok(size),
        _ => Err(invalid("guest memory must be a file of tmpfs or hugetlbfs (memfd, /dev/shm, huge pages)")),
    }
}

/// One region: its place and its mapping, which a later table shares.
#[derive(Clone, Debug)]
pub struct Region {
    layout: Layout,
    host: *mut u8,
    mapping: Arc<Mapping>,
    file: Arc<OwnedFd>,
}

// SAFETY: `host` points into `mapping`, which is Send and lives as long as the region.
unsafe impl Send for Region {}
// SAFETY: as above; no method gives a reference into the memory.
unsafe impl Sync for Region {}

impl Region {
    /// Maps a region.
    ///
    /// # Errors
    /// The layout wraps, the file is not in memory or is too short, or the kernel refuses the mapping.
    pub fn map(layout: Layout, fd: OwnedFd) -> io::Result<Self> {
        if !layout.is_sane() {
            return Err(invalid("region is empty or wraps around"));
        }
        let page = page_size_of(fd.as_fd(), layout.offset + layout.len)?;
        // Front ends may start a region inside a page; the mapping then begins at the page's start.
        let skip = layout.offset & (page - 1);
        let len =
            (skip + layout.len).checked_next_multiple_of(page).ok_or_else(|| invalid("region too large"))?;
        let mapping = Mapping::new(&fd, layout.offset - skip, len)?;
        let skip = usize::try_from(skip).map_err(|_| invalid("region too large"))?;
        let host = mapping.base.wrapping_add(skip);
        Ok(Self { layout, host, mapping: Arc::new(mapping), file: Arc::new(fd) })
    }

    /// Its file, for whoever maps it after us.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Its place.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The run from `off` on, of at most `want` bytes; empty if `off` is outside.
    #[inline]
    fn run(&self, off: u64, want: u32) -> Option<Seg> {
        if off >= self.layout.len {
            return None;
        }
        let n = u64::from(want).min(self.layout.len - off);
        let (at, n) = (usize::try_from(off).ok()?, u32::try_from(n).ok()?);
        // SAFETY: off + n is within the region, which was checked to be within the mapping. The mapping lives while
        // anybody holds the table; ports hold it for the turn in which they use the Seg.
        Some(unsafe { Seg::new(self.host.wrapping_add(at), n) })
    }
}

/// One region of a table, for many look-ups in a row.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    gpa: u64,
    len: u64,
    host: *mut u8,
    table: PhantomData<&'a GuestMemory>,
}

impl Window<'_> {
    /// The `len` bytes at guest physical address `gpa`, if they are some and lie in this region.
    #[must_use]
    #[inline]
    pub fn whole(&self, gpa: u64, len: u32) -> Option<Seg> {
        let off = gpa.wrapping_sub(self.gpa);
        if len == 0 || off >= self.len || u64::from(len) > self.len - off {
            return None;
        }
        let at = usize::try_from(off).ok()?;
        // SAFETY: off + len is within the region, which was checked to be within the mapping. The mapping lives while
        // anybody holds the table; ports hold it for the turn in which they use the Seg.
        Some(unsafe { Seg::new(self.host.wrapping_add(at), len) })
    }
}

/// A guest's regions. Never changed: a new layout is a new table, which shares the mappings that stay.
#[derive(Debug, Default)]
pub struct GuestMemory {
    regions: Vec<Region>,
}

impl GuestMemory {
    /// A table of these regions.
    ///
    /// # Errors
    /// Too many regions, or two overlap.
    pub fn new(regions: Vec<Region>) -> io::Result<Self> {
        if regions.len() > MAX_REGIONS {
            return Err(invalid("more than 64 memory regions"));
        }
        for (i, a) in regions.iter().enumerate() {
            if regions.iter().skip(i + 1).any(|b| a.layout.overlaps(&b.layout)) {
                return Err(invalid("memory regions overlap"));
            }
        }
        Ok(Self { regions })
    }

    /// Its regions.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// No regions.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// A file was cut short and its mapping replaced by zero pages: the guest is not to be served any longer.
    #[must_use]
    pub fn broken(&self) -> bool {
        self.regions.iter().any(|r| r.mapping.guard.as_ref().is_some_and(Guard::broken))
    }

    /// Region number `hint`, or an empty one.
    #[must_use]
    #[inline]
    pub fn window(&self, hint: usize) -> Window<'_> {
        let (gpa, len, host) =
            self.regions.get(hint).map_or((0, 0, ptr::null_mut()), |r| (r.layout.gpa, r.layout.len, r.host));
        Window { gpa, len, host, table: PhantomData }
    }

    /// The run at guest physical address `gpa`, of `want` bytes or, where the region ends, fewer. `hint` remembers
    /// the region of the last look-up.
    #[inline]
    pub fn run(&self, gpa: u64, want: u32, hint: &mut usize) -> Option<Seg> {
        if let Some(r) = self.regions.get(*hint)
            && let Some(s) = r.run(gpa.wrapping_sub(r.layout.gpa), want)
        {
            return Some(s);
        }
        self.search(gpa, want, hint)
    }

    #[cold]
    fn search(&self, gpa: u64, want: u32, hint: &mut usize) -> Option<Seg> {
        self.regions.iter().enumerate().find_map(|(i, r)| {
            let s = r.run(gpa.wrapping_sub(r.layout.gpa), want)?;
            *hint = i;
            Some(s)
        })
    }

    /// The `len` bytes at guest physical address `gpa`, if they lie in one region.
    #[must_use]
    pub fn at_gpa(&self, gpa: u64, len: u32) -> Option<Seg> {
        self.run(gpa, len, &mut 0).filter(|s| s.len() == len)
    }

    /// A ring's table of `len` bytes at a front end's address, aligned to `align` (a power of two); none if it does not
    /// lie in one region.
    #[must_use]
    pub fn table(&self, uva: u64, len: u32, align: usize) -> Option<Seg> {
        self.at_uva(uva, len).filter(|s| s.iovec().iov_base.addr() & (align - 1) == 0)
    }

    /// The `len` bytes at the front end's address `uva`, if they lie in one region.
    #[must_use]
    pub fn at_uva(&self, uva: u64, len: u32) -> Option<Seg> {
        self.regions
            .iter()
            .find_map(|r| r.run(uva.wrapping_sub(r.layout.uva), len))
            .filter(|s| s.len() == len)
    }
}

#[cfg(test)]
#[path = "guest_tests.rs"]
mod tests;
