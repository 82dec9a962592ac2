//! What the network says of datagrams that were sent: a socket's error queue (ip(7), `IP_RECVERR`).

use std::io::{Error, ErrorKind, Result};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::sys::sock_name::Name;

/// What the network said of something that was sent (linux/errqueue.h, `struct sock_extended_err`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// Error number, as a call would have it.
    pub errno: i32,
    /// An ICMP message (2), an ICMPv6 message (3), or the kernel's own word (1).
    pub origin: u8,
    /// Type of the message.
    pub kind: u8,
    /// Its code.
    pub code: u8,
    /// What else it says: the MTU of "packet too big".
    pub info: u32,
    /// Who said it.
    pub by: Option<IpAddr>,
}

/// Takes the next error out of a socket's queue ([`Opt::RecvErr`]) with the first bytes of what was sent; None: there is no
/// more.
///
/// # Errors
/// The kernel's.
pub fn said(fd: BorrowedFd<'_>, sent: &mut [u8]) -> Result<Option<(Said, usize)>> {
    const SPACE: usize = 256;
    #[repr(C, align(8))]
    struct Room([u8; SPACE]);
    let mut room = Room([0; SPACE]);
    let mut iov = libc::iovec { iov_base: sent.as_mut_ptr().cast(), iov_len: sent.len() };
    // SAFETY: all zeros is a msghdr without a name and without control messages.
    let mut m: libc::msghdr = unsafe { std::mem::zeroed() };
    m.msg_iov = &raw mut iov;
    m.msg_iovlen = 1;
    m.msg_control = room.0.as_mut_ptr().cast();
    m.msg_controllen = SPACE as _;
    // SAFETY: all that the header points to is ours, as long as is said, and outlives the call.
    let n = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut m, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) };
    let n = match usize::try_from(n).map_err(|_| Error::last_os_error()) {
        Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
        other => other?,
    };
    #[allow(clippy::useless_conversion, reason = "the field's type differs between C libraries")]
    let used = usize::try_from(m.msg_controllen).unwrap_or(0).min(SPACE);
    let mut rest = room.0.get(..used).unwrap_or_default();
    // A struct cmsghdr: length, level, type; then its bytes, padded to eight.
    while let Some((len, level, kind)) = header(rest) {
        let body = rest.get(16..len).unwrap_or_default();
        let errors = [(libc::IPPROTO_IP, libc::IP_RECVERR), (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)];
        if errors.contains(&(level, kind))
            && let Some(said) = extended(body)
        {
            return Ok(Some((said, n)));
        }
        rest = rest.get(len.next_multiple_of(8)..).unwrap_or_default();
    }
    let said = Said { errno: 0, origin: 0, kind: 0, code: 0, info: 0, by: None };
    Ok(Some((said, n)))
}

fn header(b: &[u8]) -> Option<(usize, i32, i32)> {
    let len = usize::from_ne_bytes(*b.first_chunk()?);
    let level = i32::from_ne_bytes(*b.get(8..)?.first_chunk()?);
    let kind = i32::from_ne_bytes(*b.get(12..)?.first_chunk()?);
    (16..=b.len()).contains(&len).then_some((len, level, kind))
}

fn extended(b: &[u8]) -> Option<Said> {
    let errno = u32::from_ne_bytes(*b.first_chunk()?);
    let [origin, kind, code] = *b.get(4..)?.first_chunk()?;
    let info = u32::from_ne_bytes(*b.get(8..)?.first_chunk()?);
    // The offender's address follows the struct's 16 bytes.
    let mut name = Name::room();
    let offender = b.get(16..).unwrap_or_default();
    name.raw.iter_mut().zip(offender).for_each(|(to, from)| *to = *from);
    let errno = i32::try_from(errno).unwrap_or(0);
    Some(Said { errno, origin, kind, code, info, by: name.get().map(|a| a.ip()) })
}
