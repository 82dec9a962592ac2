//! The system calls and shared memory that the benches' own AF_XDP, tap and vhost-user loops need: the only unsafe
//! file of this crate.
//!
//! Trust: the kernel, and a peer that maps the same memory. A peer's indices are masked or checked by the callers; an
//! offset outside a mapping reads as 0 and writes nothing, so that a broken peer gives wrong figures, never a crash.
//! Promise: every function here is safe to call with any argument.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// Memory that the kernel or another process changes under us. Offsets are in bytes.
#[derive(Debug)]
pub struct Shm {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to no thread; words are reached as atomics, bytes by copies that form no reference.
unsafe impl Send for Shm {}
// SAFETY: as above; concurrent byte copies are as racy as the peer's own, and their bytes are never relied on.
unsafe impl Sync for Shm {}

impl Shm {
    /// Maps `len` bytes of `fd` from `offset`, shared and populated; without `fd`, anonymous memory.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub fn map(fd: Option<BorrowedFd<'_>>, len: usize, offset: i64) -> io::Result<Self> {
        let (raw, anon) = fd.map_or((-1, libc::MAP_ANONYMOUS), |f| (f.as_raw_fd(), 0));
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE | anon;
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory of ours.
        let p = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, raw, offset) };
        if p == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(p.cast::<u8>()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { base, len })
    }

    /// Bytes mapped.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Nothing is mapped (never true: mmap(2) refuses length 0).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of the mapping, for a kernel interface that wants it as a number.
    #[must_use]
    pub fn addr(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// A pointer to `n` aligned bytes at `off`.
    #[inline]
    fn at(&self, off: usize, n: usize) -> Option<NonNull<u8>> {
        if off.checked_add(n)? > self.len || off & (n - 1) != 0 {
            return None;
        }
        // SAFETY: checked above to lie inside the mapping.
        Some(unsafe { self.base.add(off) })
    }

    /// The word at `off`, Acquire.
    #[must_use]
    #[inline]
    pub fn load16(&self, off: usize) -> u16 {
        // SAFETY: inside the mapping and aligned (`at`), and only ever reached as an atomic.
        self.at(off, 2)
            .map_or(0, |p| unsafe { AtomicU16::from_ptr(p.as_ptr().cast()) }.load(Ordering::Acquire))
    }

    /// Sets the word at `off`, Release.
    #[inline]
    pub fn store16(&self, off: usize, v: u16) {
        if let Some(p) = self.at(off, 2) {
            // SAFETY: as in `load16`.
            unsafe { AtomicU16::from_ptr(p.as_ptr().cast()) }.store(v, Ordering::Release);
        }
    }

    /// The word at `off`, Acquire.
    #[must_use]
    #[inline]
    pub fn load32(&self, off: usize) -> u32 {
        // SAFETY: as in `load16`.
        self.at(off, 4)
            .map_or(0, |p| unsafe { AtomicU32::from_ptr(p.as_ptr().cast()) }.load(Ordering::Acquire))
    }

    /// Sets the word at `off`, Release.
    #[inline]
    pub fn store32(&self, off: usize, v: u32) {
        if let Some(p) = self.at(off, 4) {
            // SAFETY: as in `load16`.
            unsafe { AtomicU32::from_ptr(p.as_ptr().cast()) }.store(v, Ordering::Release);
        }
    }

    /// The word at `off`, Acquire.
    #[must_use]
    #[inline]
    pub fn load64(&self, off: usize) -> u64 {
        // SAFETY: as in `load16`.
        self.at(off, 8)
            .map_or(0, |p| unsafe { AtomicU64::from_ptr(p.as_ptr().cast()) }.load(Ordering::Acquire))
    }

    /// Sets the word at `off`, Release.
    #[inline]
    pub fn store64(&self, off: usize, v: u64) {
        if let Some(p) = self.at(off, 8) {
            // SAFETY: as in `load16`.
            unsafe { AtomicU64::from_ptr(p.as_ptr().cast()) }.store(v, Ordering::Release);
        }
    }

    /// Asks the processor for the two cache lines at `off`, which another core has written.
    #[inline]
    pub fn prefetch(&self, off: usize) {
        #[cfg(target_arch = "x86_64")]
        for off in [off, off + 64] {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a hint, which no address can make fail.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.base.as_ptr().wrapping_add(off).cast()) };
        }
    }

    /// Copies `bytes` in at `off`; false if they do not fit.
    #[inline]
    pub fn put(&self, off: usize, bytes: &[u8]) -> bool {
        if off.checked_add(bytes.len()).is_none_or(|end| end > self.len) {
            return false;
        }
        // SAFETY: inside the mapping, checked above.
        let to = unsafe { self.base.add(off) };
        // SAFETY: both sides have `bytes.len()` bytes; a Rust slice cannot overlap a mapping that only we point into.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
        true
    }

    /// Copies bytes from `off` out; false if the mapping has fewer.
    #[inline]
    pub fn get(&self, off: usize, bytes: &mut [u8]) -> bool {
        if off.checked_add(bytes.len()).is_none_or(|end| end > self.len) {
            return false;
        }
        // SAFETY: inside the mapping, checked above.
        let from = unsafe { self.base.add(off) };
        // SAFETY: as in `put`.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
        true
    }
}

/// Reads once from `fd` into at most `len` bytes of `mem` at `off`; says how many came.
///
/// # Errors
/// read(2)'s; `InvalidInput` if the bytes are not in the mapping.
pub fn read_into(fd: BorrowedFd<'_>, mem: &Shm, off: usize, len: u32) -> io::Result<usize> {
    let (at, len) = mem.span(off, len)?;
    // SAFETY: `span` has checked that these bytes are in the mapping; no reference to them exists.
    let n = unsafe { libc::read(fd.as_raw_fd(), at.as_ptr().cast(), len) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Writes `len` bytes of `mem` at `off` to `fd` by one call; says how many went.
///
/// # Errors
/// write(2)'s; `InvalidInput` if the bytes are not in the mapping.
pub fn write_from(fd: BorrowedFd<'_>, mem: &Shm, off: usize, len: u32) -> io::Result<usize> {
    let (at, len) = mem.span(off, len)?;
    // SAFETY: `span` has checked that these bytes are in the mapping.
    let n = unsafe { libc::write(fd.as_raw_fd(), at.as_ptr().cast(), len) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

impl Shm {
    /// A pointer to `len` bytes at `off`, for a system call.
    fn span(&self, off: usize, len: u32) -> io::Result<(NonNull<u8>, usize)> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        if off.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: inside the mapping, checked above.
        Ok((unsafe { self.base.add(off) }, len))
    }
}

impl Drop for Shm {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `map`; nothing borrows from it.
        unsafe { libc::munmap(self.base.as_ptr().cast::<c_void>(), self.len) };
    }
}

/// Turns a system call's result into a descriptor.
fn fd(r: i64) -> io::Result<OwnedFd> {
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    let raw = i32::try_from(r).map_err(io::Error::other)?;
    // SAFETY: a descriptor that the kernel has just given to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Turns a system call's result into success.
fn ok(r: i64) -> io::Result<()> {
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A memfd of `len` bytes that cannot shrink or grow, as QEMU's guest memory.
///
/// # Errors
/// What the kernel says.
pub fn memfd(len: usize) -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string; the call touches no other memory.
    let f = fd(i64::from(unsafe {
        libc::memfd_create(c"bench".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
    }))?;
    let size = i64::try_from(len).map_err(io::Error::other)?;
    // SAFETY: plain numbers.
    ok(i64::from(unsafe { libc::ftruncate(f.as_raw_fd(), size) }))?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: plain numbers.
    ok(i64::from(unsafe { libc::fcntl(f.as_raw_fd(), libc::F_ADD_SEALS, seals) }))?;
    Ok(f)
}

/// Whether this descriptor is readable, or writable if that is what is asked, at this moment.
#[must_use]
pub fn is_ready(fd: RawFd, writable: bool) -> bool {
    let events = if writable { libc::POLLOUT } else { libc::POLLIN };
    let mut one = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: the kernel reads and writes one pollfd.
    unsafe { libc::poll(&raw mut one, 1, 0) == 1 }
}

/// An AF_XDP socket.
///
/// # Errors
/// EPERM without CAP_NET_RAW.
pub fn xsk_socket() -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    fd(i64::from(unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) }))
}

/// Sets a socket option of SOL_XDP (linux/if_xdp.h).
///
/// # Errors
/// What the kernel says.
pub fn xdp_set(s: &OwnedFd, option: i32, value: &[u8]) -> io::Result<()> {
    let len = u32::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `len` bytes of `value`.
    ok(i64::from(unsafe {
        libc::setsockopt(s.as_raw_fd(), libc::SOL_XDP, option, value.as_ptr().cast(), len)
    }))
}

/// Reads a socket option of SOL_XDP into `value`.
///
/// # Errors
/// What the kernel says.
pub fn xdp_get(s: &OwnedFd, option: i32, value: &mut [u8]) -> io::Result<()> {
    let mut len = u32::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `len` bytes of `value`.
    ok(i64::from(unsafe {
        libc::getsockopt(s.as_raw_fd(), libc::SOL_XDP, option, value.as_mut_ptr().cast(), &raw mut len)
    }))
}

/// Binds an AF_XDP socket to a queue. `flags` are XDP_COPY and so on.
///
/// # Errors
/// What the kernel says; EBUSY for some milliseconds after another socket left the queue.
pub fn xdp_bind(s: &OwnedFd, ifindex: u32, queue: u32, flags: u16) -> io::Result<()> {
    let a = libc::sockaddr_xdp {
        sxdp_family: u16::try_from(libc::AF_XDP).map_err(io::Error::other)?,
        sxdp_flags: flags,
        sxdp_ifindex: ifindex,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: 0,
    };
    let len = u32::try_from(size_of_val(&a)).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `len` bytes of `a`.
    ok(i64::from(unsafe { libc::bind(s.as_raw_fd(), (&raw const a).cast(), len) }))
}

/// Makes the kernel look at an AF_XDP socket's transmit ring. Its errors say only "later" and are left out.
#[inline]
pub fn xdp_kick(s: &OwnedFd) {
    // SAFETY: no address and no data.
    unsafe { libc::sendto(s.as_raw_fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0) };
}

/// Makes a tap of this name, without packet information and virtio-net header: a plain read or write is a frame.
///
/// # Errors
/// What the kernel says.
pub fn tap(name: &str) -> io::Result<OwnedFd> {
    tap_with(name, libc::IFF_TAP | libc::IFF_NO_PI)
}

/// Makes a tap of this name whose frames have a virtio-net header of 12 bytes and, with `offloads`, may be super-frames
/// with checksums left to complete, both ways; reads of it do not wait.
///
/// # Errors
/// What the kernel says.
pub fn tap_with_header(name: &str, offloads: bool) -> io::Result<OwnedFd> {
    /// TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 (linux/if_tun.h).
    const OFFLOADS: libc::c_ulong = 1 | 2 | 4;
    let dev = tap_with(name, libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR)?;
    let header = 12_i32;
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    ok(i64::from(unsafe { libc::ioctl(dev.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header) }))?;
    // SAFETY: TUNSETOFFLOAD takes a number.
    ok(i64::from(unsafe {
        libc::ioctl(dev.as_raw_fd(), libc::TUNSETOFFLOAD, if offloads { OFFLOADS } else { 0 })
    }))?;
    // SAFETY: plain numbers.
    ok(i64::from(unsafe { libc::fcntl(dev.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }))?;
    Ok(dev)
}

fn tap_with(name: &str, flags: i32) -> io::Result<OwnedFd> {
    let dev = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all zeroes is a valid ifreq.
    let mut req: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in req.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = i8::from_ne_bytes([from]);
    }
    req.ifr_ifru.ifru_flags = i16::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    ok(i64::from(unsafe { libc::ioctl(dev.as_raw_fd(), libc::TUNSETIFF, &raw mut req) }))?;
    Ok(dev.into())
}

/// A packet socket that sends straight to an interface's driver, past its queueing discipline.
///
/// # Errors
/// What the kernel says.
pub fn packet_socket(ifindex: u32) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    let s = fd(i64::from(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) }))?;
    let on = 1_i32;
    // SAFETY: the kernel reads one int.
    ok(i64::from(unsafe {
        libc::setsockopt(
            s.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_QDISC_BYPASS,
            (&raw const on).cast(),
            u32::try_from(size_of::<i32>()).map_err(io::Error::other)?,
        )
    }))?;
    // SAFETY: all zeroes is a valid sockaddr_ll.
    let mut a: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    a.sll_family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    a.sll_ifindex = i32::try_from(ifindex).map_err(io::Error::other)?;
    let len = u32::try_from(size_of_val(&a)).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `len` bytes of `a`.
    ok(i64::from(unsafe { libc::bind(s.as_raw_fd(), (&raw const a).cast(), len) }))?;
    Ok(s)
}

/// Sends `frame` 64 times by one call; says how many the driver took. It gives up at the first that was dropped.
pub fn packet_send(s: &OwnedFd, frame: &[u8]) -> usize {
    let mut iov = libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() };
    // SAFETY: all zeroes is a valid mmsghdr.
    let mut one: libc::mmsghdr = unsafe { std::mem::zeroed() };
    one.msg_hdr.msg_iov = &raw mut iov;
    one.msg_hdr.msg_iovlen = 1;
    let mut all = [one; 64];
    // SAFETY: 64 headers that all point at one iovec, which points at `frame`; the kernel only reads the latter.
    let n = unsafe { libc::sendmmsg(s.as_raw_fd(), all.as_mut_ptr(), 64, 0) };
    usize::try_from(n).unwrap_or(0)
}

/// Runs at the best niceness that root has, this process and its future children.
///
/// # Errors
/// EACCES without CAP_SYS_NICE.
pub fn first_in_line() -> io::Result<()> {
    // SAFETY: plain numbers.
    ok(i64::from(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) }))
}

/// Puts the calling thread before every ordinary thread of its processor (SCHED_FIFO, lowest priority). It must sleep.
///
/// # Errors
/// EPERM without CAP_SYS_NICE.
pub fn real_time() -> io::Result<()> {
    let p = libc::sched_param { sched_priority: 1 };
    // SAFETY: the kernel reads one sched_param.
    ok(i64::from(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const p) }))
}

/// Words of `union bpf_attr` (linux/bpf.h) that the commands used here need.
type Attr = [u64; 16];

/// bpf(2). Not public: the pointers inside `attr` must be good.
fn bpf(cmd: i32, attr: &mut Attr) -> i64 {
    // SAFETY: the kernel reads and writes `size_of::<Attr>()` bytes of `attr`; the callers vouch for pointers inside.
    unsafe { libc::syscall(libc::SYS_bpf, cmd, attr.as_mut_ptr(), size_of::<Attr>()) }
}

/// Two 32-bit fields as the word that they share on a little-endian machine.
fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// A raw descriptor as the number that bpf(2) wants.
fn num(f: &OwnedFd) -> u32 {
    f.as_fd().as_raw_fd().unsigned_abs()
}

/// Makes a BPF map with 4-byte keys and values.
///
/// # Errors
/// EPERM without CAP_BPF and CAP_NET_ADMIN.
pub fn bpf_map(kind: u32, entries: u32) -> io::Result<OwnedFd> {
    let mut a: Attr = [0; 16];
    [a[0], a[1]] = [pair(kind, 4), pair(4, entries)];
    fd(bpf(0, &mut a))
}

/// Sets a map's entry.
///
/// # Errors
/// What the kernel says.
pub fn bpf_map_set(map: &OwnedFd, key: u32, value: u32) -> io::Result<()> {
    let mut a: Attr = [0; 16];
    [a[0], a[1], a[2]] = [num(map).into(), (&raw const key) as u64, (&raw const value) as u64];
    ok(bpf(2, &mut a))
}

/// Loads an XDP program of raw instructions.
///
/// # Errors
/// What the verifier says, as an error number.
pub fn bpf_prog(code: &[u64]) -> io::Result<OwnedFd> {
    const PROG_TYPE_XDP: u32 = 6;
    const ATTACH_XDP: u32 = 37;
    let mut a: Attr = [0; 16];
    let n = u32::try_from(code.len()).map_err(io::Error::other)?;
    [a[0], a[1], a[2]] = [pair(PROG_TYPE_XDP, n), code.as_ptr() as u64, c"GPL".as_ptr() as u64];
    a[8] = pair(0, ATTACH_XDP);
    fd(bpf(5, &mut a))
}

/// Attaches a program; it is gone when the link is dropped. `flags`: 2 skb, 4 native.
///
/// # Errors
/// What the kernel says.
pub fn bpf_link(prog: &OwnedFd, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    const ATTACH_XDP: u32 = 37;
    let mut a: Attr = [0; 16];
    [a[0], a[1]] = [pair(num(prog), ifindex), pair(ATTACH_XDP, flags)];
    fd(bpf(28, &mut a))
}

/// Runs a program over `repeat` copies of `frame` as live frames, 64 at a time, and lets its verdicts happen.
///
/// # Errors
/// What the kernel says.
pub fn bpf_run_live(prog: &OwnedFd, frame: &[u8], repeat: u32) -> io::Result<()> {
    const LIVE_FRAMES: u32 = 2;
    let n = u32::try_from(frame.len()).map_err(io::Error::other)?;
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
    let md = [0, n, 0, 0, 0, 0_u32];
    let mut a: Attr = [0; 16];
    a[0] = num(prog).into();
    a[1] = pair(n, 0);
    a[2] = frame.as_ptr() as u64;
    a[4] = pair(repeat, 0);
    a[5] = pair(24, 0);
    a[6] = md.as_ptr() as u64;
    a[8] = pair(LIVE_FRAMES, 0);
    a[9] = 64;
    ok(bpf(10, &mut a))
}

/// Options that every IPv4 packet of a socket carries from now on (`IP_OPTIONS`, ip(7)).
///
/// # Errors
/// What setsockopt(2) says.
pub fn ip_options(fd: BorrowedFd<'_>, options: &[u8]) -> io::Result<()> {
    let len = libc::socklen_t::try_from(options.len()).map_err(io::Error::other)?;
    let (level, name) = (libc::IPPROTO_IP, libc::IP_OPTIONS);
    // SAFETY: the slice has `len` bytes and outlives the call.
    match unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, options.as_ptr().cast(), len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
