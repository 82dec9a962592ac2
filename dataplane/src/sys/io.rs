//! Scatter/gather reading and writing.

use std::io::{Error, ErrorKind, Result};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use crate::mem::Seg;

/// The most parts that the kernel takes in one call (`UIO_MAXIOV`).
pub const MAX_PARTS: usize = 1024;

// The calls of the data path are made without the C library's wrappers: in a process with threads those would look
// before and after each whether the thread is to be cancelled, which costs as much as a short frame's copy.
fn done<N>(n: N) -> Result<usize>
where
    usize: TryFrom<N>,
{
    usize::try_from(n).map_err(|_| Error::last_os_error())
}

fn parts(n: usize) -> Result<libc::c_int> {
    if n > MAX_PARTS {
        return Err(ErrorKind::InvalidInput.into());
    }
    libc::c_int::try_from(n).map_err(|_| ErrorKind::InvalidInput.into())
}

/// `readv(2)` into segments, in order; the number of bytes read.
///
/// # Errors
/// The kernel's; `InvalidInput` above [`MAX_PARTS`].
pub fn readv(fd: BorrowedFd<'_>, to: &[Seg]) -> Result<usize> {
    let n = parts(to.len())?;
    // SAFETY: a Seg has the layout of an iovec (asserted in mem::seg) and describes mapped writable memory.
    done(unsafe { libc::syscall(libc::SYS_readv, fd.as_raw_fd(), to.as_ptr(), n) })
}

/// `writev(2)` from segments, in order; the number of bytes written.
///
/// # Errors
/// The kernel's; `InvalidInput` above [`MAX_PARTS`].
pub fn writev(fd: BorrowedFd<'_>, from: &[Seg]) -> Result<usize> {
    let n = parts(from.len())?;
    // SAFETY: a Seg has the layout of an iovec (asserted in mem::seg) and describes mapped readable memory.
    done(unsafe { libc::syscall(libc::SYS_writev, fd.as_raw_fd(), from.as_ptr(), n) })
}

/// `write(2)` of private bytes; the number of bytes written.
///
/// # Errors
/// The kernel's.
pub fn write(fd: BorrowedFd<'_>, from: &[u8]) -> Result<usize> {
    // SAFETY: the slice is readable for its length, and the kernel only reads from it.
    done(unsafe { libc::syscall(libc::SYS_write, fd.as_raw_fd(), from.as_ptr(), from.len()) })
}

/// `recv(2)` with `flags` into one segment; 0 at the end of a stream.
///
/// # Errors
/// The kernel's.
pub fn recv(fd: BorrowedFd<'_>, to: &Seg, flags: libc::c_int) -> Result<usize> {
    let v = to.iovec();
    // SAFETY: the segment describes mapped writable memory of this length.
    done(unsafe { libc::recv(fd.as_raw_fd(), v.iov_base, v.iov_len, flags) })
}

/// `send(2)` with `flags` from one segment.
///
/// # Errors
/// The kernel's.
pub fn send(fd: BorrowedFd<'_>, from: &Seg, flags: libc::c_int) -> Result<usize> {
    let v = from.iovec();
    // SAFETY: the segment describes mapped readable memory of this length.
    done(unsafe { libc::send(fd.as_raw_fd(), v.iov_base, v.iov_len, flags) })
}

/// As [`accept`], with the address that the connection comes from, if it is one in numbers.
///
/// # Errors
/// The kernel's; `EAGAIN` if none waits.
pub fn accept_from(listener: BorrowedFd<'_>) -> Result<(OwnedFd, Option<SocketAddr>)> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let mut address = [0_u8; size_of::<libc::sockaddr_storage>()];
    let mut len = libc::socklen_t::try_from(address.len()).unwrap_or(0);
    let to = address.as_mut_ptr().cast();
    // SAFETY: `to` has room for `len` bytes, which is what any address needs, and bytes have no invalid values.
    let fd = unsafe { libc::accept4(listener.as_raw_fd(), to, &raw mut len, flags) };
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
    Ok((unsafe { OwnedFd::from_raw_fd(fd) }, inet(&address)))
}

/// An internet address as the kernel writes it (`struct sockaddr_in`, `struct sockaddr_in6`).
fn inet(bytes: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(*bytes.first_chunk()?));
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    let ip = match family {
        libc::AF_INET => IpAddr::from(*bytes.get(4..)?.first_chunk::<4>()?),
        libc::AF_INET6 => IpAddr::from(*bytes.get(8..)?.first_chunk::<16>()?),
        _ => return None,
    };
    // A client of an IPv6 socket that speaks IPv4 is called by the address that he knows.
    Some(SocketAddr::new(ip.to_canonical(), port))
}

/// `accept4(2)`: the next connection of a listening socket, non-blocking and close-on-exec.
///
/// # Errors
/// The kernel's; `EAGAIN` if none waits.
pub fn accept(listener: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no address is asked for, so both pointers may be null.
    let fd = unsafe { libc::accept4(listener.as_raw_fd(), ptr::null_mut(), ptr::null_mut(), flags) };
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Parts of private memory (headers, heads) and of shared memory (bodies) gathered for one write. Lives on the stack
/// and costs nothing to make.
pub struct Gather<'a, const N: usize> {
    iov: [MaybeUninit<libc::iovec>; N],
    n: usize,
    bytes: usize,
    private: PhantomData<&'a [u8]>,
}

impl<const N: usize> Default for Gather<'_, N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a, const N: usize> Gather<'a, N> {
    /// Nothing gathered. `N` may be [`MAX_PARTS`] at most.
    #[must_use]
    pub fn new() -> Self {
        const { assert!(N <= MAX_PARTS) };
        Self { iov: [const { MaybeUninit::uninit() }; N], n: 0, bytes: 0, private: PhantomData }
    }

    /// Bytes gathered.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Parts that can still be added.
    #[must_use]
    pub fn room(&self) -> usize {
        N - self.n
    }

    fn put(&mut self, v: libc::iovec) -> bool {
        let Some(at) = self.iov.get_mut(self.n) else { return false };
        at.write(v);
        self.n += 1;
        self.bytes += v.iov_len;
        true
    }

    /// Adds private memory. False: no room for another part.
    #[inline]
    pub fn private(&mut self, b: &'a [u8]) -> bool {
        b.is_empty() || self.put(libc::iovec { iov_base: b.as_ptr().cast_mut().cast(), iov_len: b.len() })
    }

    /// Adds shared memory. False: no room for all of it; what fitted is added.
    #[inline]
    pub fn shared(&mut self, segs: &[Seg]) -> bool {
        segs.iter().all(|s| self.put(s.iovec()))
    }

    /// `writev(2)`; the number of bytes written.
    ///
    /// # Errors
    /// The kernel's.
    pub fn writev(&self, fd: BorrowedFd<'_>) -> Result<usize> {
        let n = parts(self.n)?;
        // SAFETY: the first n entries were written by `put` and describe memory that lives for 'a or the turn; the
        // kernel only reads from them.
        done(unsafe { libc::syscall(libc::SYS_writev, fd.as_raw_fd(), self.iov.as_ptr(), n) })
    }

    /// `sendmsg(2)` on a connected socket with `flags`; the number of bytes sent.
    ///
    /// # Errors
    /// The kernel's.
    pub fn sendmsg(&self, fd: BorrowedFd<'_>, flags: libc::c_int) -> Result<usize> {
        // SAFETY: msghdr is plain data, all zero is its "no name, no control" form.
        let mut m: libc::msghdr = unsafe { std::mem::zeroed() };
        m.msg_iov = self.iov.as_ptr().cast_mut().cast();
        // The field's type differs between C libraries.
        m.msg_iovlen = self.n as _;
        // SAFETY: as for writev; the header is valid for the call and nothing is written back to the parts.
        done(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const m, flags) })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::mem::Buf;

    #[test]
    fn scattered_and_gathered() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let m = Buf::new(64).unwrap();
        a.write_all(b"headbodytail").unwrap();
        assert_eq!(readv(b.as_fd(), &[m.seg(0, 4), m.seg(8, 4), m.seg(16, 40)]).unwrap(), 12);
        let mut out = [0; 20];
        m.seg(0, 20).copy_out(&mut out);
        assert_eq!(&out, b"head\0\0\0\0body\0\0\0\0tail");
        let private = *b"first ";
        let mut g = Gather::<4>::new();
        assert!(g.private(&private) && g.private(b"") && g.shared(&[m.seg(0, 4), m.seg(16, 4)]));
        assert_eq!((g.bytes(), g.room()), (14, 1));
        assert!(!g.shared(&[m.seg(0, 1), m.seg(1, 1)]));
        assert_eq!(g.sendmsg(b.as_fd(), libc::MSG_NOSIGNAL).unwrap(), 15);
        assert_eq!(writev(b.as_fd(), &[m.seg(8, 4)]).unwrap(), 4);
        let mut got = [0; 19];
        a.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"first headtailhbody");
        let many = vec![Seg::EMPTY; MAX_PARTS + 1];
        assert_eq!(readv(b.as_fd(), &many).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
