//! Datagrams by the batch: `recvmmsg(2)` and `sendmmsg(2)`, or a `writev(2)` for each where the filter is to see that
//! nobody is named: [`Outgoing::send_each`].
//!
//! Neither ever waits, and neither names an address to the kernel, but for answers from a bound socket
//! ([`Outgoing::towards`]): who receives is what the socket is connected to. The kernel's own cutting and joining of equal datagrams (`UDP_SEGMENT`, `UDP_GRO`, linux/udp.h) is said for each message.

use std::io::{Error, Result};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use crate::mem::Seg;

/// Most messages of one call.
pub const MESSAGES: usize = 64;
/// Flags of every `recvmmsg`.
pub const RECV_FLAGS: u32 = libc::MSG_DONTWAIT.cast_unsigned();
/// Flags of every `sendmmsg`.
pub const SEND_FLAGS: u32 = (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL).cast_unsigned();

/// Most runs of memory in one call.
const PARTS: usize = 512;
/// `SOL_UDP` and its options (linux/udp.h).
pub const SOL_UDP: i32 = 17;
/// The size that a socket's messages are cut to.
pub const UDP_SEGMENT: i32 = 103;
const UDP_GRO: i32 = 104;
/// Bytes of a `struct cmsghdr` (cmsg(3)), and of a note: one of them with a size of segments (24), and one for each family
/// with a local address (32 and 40), both of which a socket of both families is told.
const HEAD: usize = 16;
const NOTE: usize = 96;
/// The local address of a datagram is told, or named: `struct in_pktinfo` (ip(7)), `struct in6_pktinfo` (ipv6(7)).
const LOCAL4: (i32, i32) = (libc::IPPROTO_IP, libc::IP_PKTINFO);
const LOCAL6: (i32, i32) = (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO);
/// Bytes of the largest address that is looked at, `struct sockaddr_in6`.
const NAME: usize = 28;
const NAME_LEN: u32 = 28;

/// Control messages, or room for them.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
struct Note([u8; NOTE]);

/// Room for an address.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
struct Name([u8; NAME]);

/// What came in one message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Got {
    /// Bytes.
    pub len: u32,
    /// The kernel joined datagrams of so many bytes each, the last of as many or fewer; 0: it is one datagram.
    pub segment: u16,
    /// There was more than the room that it found.
    pub truncated: bool,
}

/// Room for what the kernel says of messages that come in.
#[derive(Debug)]
pub struct Incoming {
    names: Vec<Name>,
    notes: Vec<Note>,
    /// Bytes that the kernel wrote to each note.
    noted: Vec<usize>,
    got: Vec<Got>,
    named: bool,
    noted_too: bool,
}

impl Incoming {
    /// Room for [`MESSAGES`]; `named`: with their sources.
    #[must_use]
    pub fn new(named: bool) -> Self {
        Self {
            names: vec![Name([0; NAME]); MESSAGES],
            notes: vec![Note([0; NOTE]); MESSAGES],
            noted: Vec::with_capacity(MESSAGES),
            got: Vec::with_capacity(MESSAGES),
            named,
            noted_too: true,
        }
    }

    /// Whether the kernel may say more of messages than who sent them. Not of those of UNIX sockets: what their senders
    /// pass along with a message are descriptors, which the kernel makes ours wherever there is room to name them.
    pub fn take_notes(&mut self, yes: bool) {
        self.noted_too = yes;
    }

    /// Receives as many messages as are there, one into each segment, [`MESSAGES`] at most.
    ///
    /// # Errors
    /// The kernel's; `EAGAIN` if there is none.
    pub fn recv(&mut self, fd: BorrowedFd<'_>, to: &[Seg]) -> Result<&[Got]> {
        self.got.clear();
        self.noted.clear();
        let mut list = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; MESSAGES];
        let mut n: u32 = 0;
        for (((m, seg), name), note) in list.iter_mut().zip(to).zip(&mut self.names).zip(&mut self.notes) {
            let named =
                if self.named { (ptr::from_mut(name).cast(), NAME_LEN) } else { (ptr::null_mut(), 0) };
            let room = if self.noted_too { NOTE } else { 0 };
            // A Seg has the layout of an iovec (asserted in mem::seg), and recvmmsg does not write to it.
            m.write(message(named, ptr::from_ref(seg).cast_mut().cast(), 1, (note, room)));
            n += 1;
        }
        // SAFETY: `n` headers are written; each points to one segment of mapped writable memory and to room of the length
        // that it says, all of which outlive the call. No timeout is given.
        let done = unsafe {
            libc::syscall(
                libc::SYS_recvmmsg,
                fd.as_raw_fd(),
                list.as_mut_ptr(),
                n,
                RECV_FLAGS,
                ptr::null_mut::<libc::timespec>(),
            )
        };
        let done = usize::try_from(done).map_err(|_| Error::last_os_error())?;
        for (m, note) in list.iter().zip(&self.notes).take(done.min(to.len())) {
            // SAFETY: at least `done` headers were written above, and the kernel updated them.
            let m = unsafe { m.assume_init_ref() };
            let noted = m.msg_hdr.msg_controllen;
            let segment = if noted > HEAD { joined(note, noted) } else { 0 };
            let truncated = m.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            self.noted.push(noted);
            self.got.push(Got { len: m.msg_len, segment, truncated });
        }
        Ok(&self.got)
    }

    /// The messages of the last call.
    #[must_use]
    pub fn got(&self) -> &[Got] {
        &self.got
    }

    /// Where a message of the last call came from. None: from no internet address, or nobody asked.
    #[must_use]
    pub fn source(&self, i: usize) -> Option<SocketAddr> {
        if !self.named {
            return None;
        }
        let Name(raw) = self.names.get(i)?;
        let [f0, f1, p0, p1, a0, a1, a2, a3, v6 @ ..] = *raw;
        let port = u16::from_be_bytes([p0, p1]);
        match i32::from(u16::from_ne_bytes([f0, f1])) {
            libc::AF_INET => Some(SocketAddrV4::new(Ipv4Addr::new(a0, a1, a2, a3), port).into()),
            libc::AF_INET6 => {
                let address: [u8; 16] = *v6.first_chunk()?;
                let scope = u32::from_ne_bytes(*v6.get(16..)?.first_chunk()?);
                Some(SocketAddrV6::new(Ipv6Addr::from(address), port, 0, scope).into())
            }
            _ => None,
        }
    }

    /// The local address that a message of the last call was sent to, from which an answer comes; of link scope with its
    /// link. Its port is 0; one of IPv4 is IPv4's on a socket of both families as well. None: the socket was not told to say it
    /// ([`tell_local`]), or it is for many.
    #[must_use]
    pub fn local(&self, i: usize) -> Option<SocketAddr> {
        let (note, noted) = (self.notes.get(i)?, *self.noted.get(i)?);
        said(note, noted).find_map(|(what, b)| match what {
            // The index of the link, the address to answer from, and that of the datagram's header.
            LOCAL4 => Some(SocketAddr::new(Ipv4Addr::from(*b.get(4..)?.first_chunk::<4>()?).into(), 0)),
            LOCAL6 => {
                let ip = Ipv6Addr::from(*b.first_chunk::<16>()?);
                let link = i32::from_ne_bytes(*b.get(16..)?.first_chunk()?);
                let scope = if ip.is_unicast_link_local() { u32::try_from(link).ok()? } else { 0 };
                // Of IPv4 it is the header's, which may be for many; what to answer from is said beside it.
                let one = !ip.is_multicast() && ip.to_ipv4_mapped().is_none();
                one.then(|| SocketAddrV6::new(ip, 0, 0, scope).into())
            }
            _ => None,
        })
    }
}

/// Has a UDP socket say of each datagram which local address it was sent to ([`Incoming::local`]).
///
/// # Errors
/// The kernel's.
pub fn tell_local(fd: BorrowedFd<'_>, v6: bool) -> Result<()> {
    if v6 {
        set(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
    }
    // One of both families, too: what comes by IPv4 is answered from where routes say, if it was for many.
    set(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)
}

fn message(
    (name, name_len): (*mut libc::c_void, u32),
    iov: *mut libc::iovec,
    parts: usize,
    (note, note_len): (*mut Note, usize),
) -> libc::mmsghdr {
    // SAFETY: all zeros is a valid mmsghdr: null pointers and no lengths. (Its padding differs between C libraries.)
    let mut m: libc::mmsghdr = unsafe { std::mem::zeroed() };
    m.msg_hdr.msg_name = name;
    m.msg_hdr.msg_namelen = name_len;
    m.msg_hdr.msg_iov = iov;
    m.msg_hdr.msg_iovlen = parts as _;
    m.msg_hdr.msg_control = if note_len > 0 { note.cast() } else { ptr::null_mut() };
    m.msg_hdr.msg_controllen = note_len as _;
    m
}

/// The control messages of a note: level and type, and what is behind the header.
fn said(Note(raw): &Note, len: usize) -> impl Iterator<Item = ((i32, i32), &[u8])> {
    let mut rest = raw.get(..len.min(NOTE)).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = usize::from_ne_bytes(*rest.first_chunk()?);
        let level = i32::from_ne_bytes(*rest.get(8..)?.first_chunk()?);
        let kind = i32::from_ne_bytes(*rest.get(12..)?.first_chunk()?);
        let body = rest.get(HEAD..length)?;
        rest = rest.get(length.next_multiple_of(8)..).unwrap_or_default();
        Some(((level, kind), body))
    })
}

/// The size of each datagram that the kernel joined, from its note.
fn joined(note: &Note, len: usize) -> u16 {
    let size = said(note, len).find(|(what, _)| *what == (SOL_UDP, UDP_GRO));
    let size = size.and_then(|(_, b)| b.first_chunk().map(|b| i32::from_ne_bytes(*b)));
    size.and_then(|n| u16::try_from(n).ok()).unwrap_or(0)
}

impl Note {
    /// Adds a control message behind the first `at` bytes; says where the next one begins. There is room.
    fn add(&mut self, at: usize, (level, kind): (i32, i32), body: &[u8]) -> usize {
        let length = (HEAD + body.len()).to_ne_bytes();
        let fields = length
            .into_iter()
            .chain(level.to_ne_bytes())
            .chain(kind.to_ne_bytes())
            .chain(body.iter().copied());
        let room = self.0.get_mut(at..).unwrap_or_default();
        room.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        (at + HEAD + body.len()).next_multiple_of(8)
    }

    /// A note that names the local address that messages come from; and its bytes.
    fn local(from: SocketAddr) -> (Self, usize) {
        let mut note = Self([0; NOTE]);
        let end = match from {
            // Which link they leave by, routes say.
            SocketAddr::V4(a) => {
                let mut body = [0; 12];
                body.iter_mut().skip(4).zip(a.ip().octets()).for_each(|(to, b)| *to = b);
                note.add(0, LOCAL4, &body)
            }
            SocketAddr::V6(a) => {
                let mut body = [0; 20];
                let fields = a.ip().octets().into_iter().chain(a.scope_id().to_ne_bytes());
                body.iter_mut().zip(fields).for_each(|(to, b)| *to = b);
                note.add(0, LOCAL6, &body)
            }
        };
        (note, end)
    }
}

/// What a UDP socket cuts its messages to: 0: it does not, none: nobody knows. To be kept with the socket.
pub type Cutting = Option<u16>;

/// Has a UDP socket cut what it is given to send into datagrams of `segment` bytes; 0: it does not.
fn set_cut(fd: BorrowedFd<'_>, segment: u16) -> Result<()> {
    set(fd, SOL_UDP, UDP_SEGMENT, segment.into())
}

fn set(fd: BorrowedFd<'_>, level: i32, option: i32, value: libc::c_int) -> Result<()> {
    let len = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or(0);
    let at = (&raw const value).cast();
    // SAFETY: an int of `len` bytes that outlives the call.
    let done = unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, at, len) };
    if done < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// One message to be sent: the end of its parts, and how it is to be cut.
#[derive(Clone, Copy, Debug, Default)]
struct Message {
    end: usize,
    segment: u16,
}

/// Messages gathered for one `sendmmsg`, from private memory (headers, heads) and shared memory (bodies). Lives on the
/// stack.
pub struct Outgoing<'a> {
    iov: [MaybeUninit<libc::iovec>; PARTS],
    parts: usize,
    list: [Message; MESSAGES],
    n: usize,
    /// To whom all go, and how long that is; 0: to whom the socket is connected to.
    name: (Name, u32),
    /// Which local address all come from, and how long that is; 0: the kernel chooses, or the socket has it.
    local: (Note, usize),
    private: PhantomData<&'a [u8]>,
}

impl Default for Outgoing<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Outgoing<'a> {
    /// None gathered.
    #[must_use]
    pub fn new() -> Self {
        let (iov, list) = ([const { MaybeUninit::uninit() }; PARTS], [Message::default(); MESSAGES]);
        Self {
            iov,
            parts: 0,
            list,
            n: 0,
            name: (Name([0; NAME]), 0),
            local: (Note([0; NOTE]), 0),
            private: PhantomData,
        }
    }

    /// All messages go to `peer`, from a socket that is not connected.
    pub fn towards(&mut self, peer: SocketAddr) {
        let (family, len) = if peer.is_ipv4() { (libc::AF_INET, 16) } else { (libc::AF_INET6, NAME_LEN) };
        let family = u16::try_from(family).unwrap_or(0).to_ne_bytes();
        let (four, six) = match peer.ip() {
            IpAddr::V4(a) => (a.octets(), [0; 16]),
            IpAddr::V6(a) => ([0; 4], a.octets()),
        };
        let scope = if let SocketAddr::V6(a) = peer { a.scope_id() } else { 0 };
        let fields = family.into_iter().chain(peer.port().to_be_bytes()).chain(four).chain(six);
        let (Name(raw), to) = &mut self.name;
        raw.iter_mut().zip(fields.chain(scope.to_ne_bytes())).for_each(|(to, from)| *to = from);
        *to = len;
    }

    /// All messages come from this address of the host's own, whatever its port; one of link scope names its link.
    pub fn from_local(&mut self, local: SocketAddr) {
        self.local = Note::local(local);
    }

    /// Messages gathered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.n
    }

    /// None gathered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// Another message of so many parts would fit.
    #[must_use]
    pub fn fits(&self, parts: usize) -> bool {
        self.n < MESSAGES && self.parts + parts <= PARTS
    }

    /// So many parts would fit.
    #[must_use]
    pub fn fits_parts(&self, parts: usize) -> bool {
        self.parts + parts <= PARTS
    }

    fn put(&mut self, v: libc::iovec) {
        if let Some(at) = self.iov.get_mut(self.parts) {
            at.write(v);
            self.parts += 1;
        }
    }

    /// Adds private memory to the message that is being made.
    #[inline]
    pub fn private(&mut self, b: &'a [u8]) {
        if !b.is_empty() {
            self.put(libc::iovec { iov_base: b.as_ptr().cast_mut().cast(), iov_len: b.len() });
        }
    }

    /// Adds shared memory to the message that is being made.
    #[inline]
    pub fn shared(&mut self, segs: &[Seg]) {
        segs.iter().for_each(|s| self.put(s.iovec()));
    }

    /// The message that is being made is whole; it is to be cut into datagrams of `segment` bytes, 0: into none.
    pub fn finish(&mut self, segment: u16) {
        if let Some(m) = self.list.get_mut(self.n) {
            *m = Message { end: self.parts, segment };
            self.n += 1;
        }
    }

    /// The last message is to be cut into datagrams of `segment` bytes, and has what was added since.
    pub fn extend_last(&mut self, segment: u16) {
        if let Some(m) = self.n.checked_sub(1).and_then(|i| self.list.get_mut(i)) {
            *m = Message { end: self.parts, segment };
        }
    }

    /// Sends them in order; says how many were taken.
    ///
    /// # Errors
    /// The kernel's about the first message.
    pub fn send(&mut self, fd: BorrowedFd<'_>) -> Result<usize> {
        let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; MESSAGES];
        let mut notes = [const { MaybeUninit::<Note>::uninit() }; MESSAGES];
        let mut from = 0;
        let mut n: u32 = 0;
        let iov = self.iov.as_mut_ptr().cast::<libc::iovec>();
        let name: (*mut libc::c_void, u32) = if self.name.1 > 0 {
            (ptr::from_mut(&mut self.name.0).cast(), self.name.1)
        } else {
            (ptr::null_mut(), 0)
        };
        for ((m, header), note) in self.list.iter().take(self.n).zip(&mut headers).zip(&mut notes) {
            let (mut said, mut control) = self.local;
            if m.segment > 0 {
                control = said.add(control, (SOL_UDP, UDP_SEGMENT), &m.segment.to_ne_bytes());
            }
            let parts = m.end.saturating_sub(from);
            header.write(message(name, iov.wrapping_add(from), parts, (note.write(said), control)));
            from = m.end;
            n += 1;
        }
        // SAFETY: `n` headers are written; the parts they point to were gathered from slices that live as long as self,
        // and from segments, which describe mapped memory; the name and the notes outlive the call.
        let done =
            unsafe { libc::syscall(libc::SYS_sendmmsg, fd.as_raw_fd(), headers.as_mut_ptr(), n, SEND_FLAGS) };
        usize::try_from(done).map_err(|_| Error::last_os_error())
    }

    /// Sends them in order by a call each, which cannot name an address: who receives is what the socket is connected to,
    /// whoever has this process in his hands. Says how many were taken. The socket must be non-blocking; `cutting` is
    /// `Some(0)` for one that is not UDP.
    ///
    /// # Errors
    /// The kernel's about the first message.
    pub fn send_each(&self, fd: BorrowedFd<'_>, cutting: &mut Cutting) -> Result<usize> {
        let mut from = 0;
        for (i, m) in self.list.iter().take(self.n).enumerate() {
            let parts = self.iov.get(from..m.end).unwrap_or_default();
            match prepare(fd, m.segment, parts, cutting).and_then(|()| write(fd, parts)) {
                Ok(()) => from = m.end,
                Err(e) if i == 0 => return Err(e),
                // The next call hears it again.
                Err(_) => return Ok(i),
            }
        }
        Ok(self.n)
    }
}

/// Has the socket cut a message as it is to be cut. One that is not may be sent by a socket that cuts longer ones.
fn prepare(
    fd: BorrowedFd<'_>,
    segment: u16,
    parts: &[MaybeUninit<libc::iovec>],
    cutting: &mut Cutting,
) -> Result<()> {
    // SAFETY: the parts of a message that was gathered are written (`Outgoing::put`).
    let lens = parts.iter().map(|v| unsafe { v.assume_init_ref() }.iov_len);
    let right = match (*cutting, segment) {
        (Some(0), 0) => true,
        (Some(size), 0) => lens.sum::<usize>() <= usize::from(size),
        (now, size) => now == Some(size),
    };
    if right {
        return Ok(());
    }
    *cutting = None;
    set_cut(fd, segment)?;
    *cutting = Some(segment);
    Ok(())
}

fn write(fd: BorrowedFd<'_>, parts: &[MaybeUninit<libc::iovec>]) -> Result<()> {
    // SAFETY: the parts of a message that was gathered are written, from slices that live as long as what gathered them,
    // and from segments, which describe mapped memory.
    let done = unsafe { libc::syscall(libc::SYS_writev, fd.as_raw_fd(), parts.as_ptr(), parts.len()) };
    if done < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use nix::sys::socket::{setsockopt, sockopt};

    use super::*;
    use crate::mem::Buf;

    #[test]
    fn batches_go_and_come_with_their_sources_cut_and_joined() {
        let (a, b) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        a.connect(b.local_addr().unwrap()).unwrap();
        b.set_nonblocking(true).unwrap();
        let mem = Buf::new(8192).unwrap();
        mem.seg(0, 8).copy_in(b"bodybody");
        let mut out = Outgoing::new();
        out.private(b"head ");
        out.shared(&[mem.seg(0, 4)]);
        out.finish(0);
        out.private(b"12341234123");
        out.finish(4);
        out.finish(0);
        assert_eq!(out.send(a.as_fd()).unwrap(), 3);
        let segs: Vec<Seg> = (0..64).map(|i| mem.seg(i * 100, 8)).collect();
        let mut incoming = Incoming::new(true);
        let got: Vec<Got> = incoming.recv(b.as_fd(), &segs).unwrap().to_vec();
        let lens: Vec<_> = got.iter().map(|g| (g.len, g.truncated)).collect();
        assert_eq!(lens, [(8, true), (4, false), (4, false), (3, false), (0, false)]);
        assert_eq!(incoming.source(4), Some(a.local_addr().unwrap()));
        assert_eq!(incoming.recv(b.as_fd(), &segs).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);

        setsockopt(&b, sockopt::UdpGroSegment, &true).unwrap();
        let mut out = Outgoing::new();
        out.private(b"12341234123");
        out.finish(4);
        assert_eq!(out.send(a.as_fd()).unwrap(), 1);
        let whole: Vec<Seg> = (0..64).map(|i| mem.seg(i * 100, 100)).collect();
        let got = incoming.recv(b.as_fd(), &whole).unwrap();
        assert_eq!(got, [Got { len: 11, segment: 4, truncated: false }]);
    }

    #[test]
    fn answers_go_to_whoever_is_named() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let (a, b) = (UdpSocket::bind(any).unwrap(), UdpSocket::bind(any).unwrap());
            let mem = Buf::new(64).unwrap();
            mem.seg(0, 64).copy_in(b"answer");
            let mut out = Outgoing::new();
            out.towards(b.local_addr().unwrap());
            for n in [6, 3] {
                out.shared(&[mem.seg(0, n)]);
                out.finish(0);
            }
            assert_eq!(out.send(a.as_fd()).unwrap(), 2);
            let mut got = [0; 64];
            assert_eq!(b.recv_from(&mut got).unwrap(), (6, a.local_addr().unwrap()));
            assert_eq!(b.recv(&mut got).unwrap(), 3);
        }
    }

    /// The address that was called answers, and no other that the host has; what the kernel cuts up comes from there too.
    #[test]
    fn answers_come_from_where_the_call_went() {
        for (any, called) in [("0.0.0.0:0", "127.0.0.2"), ("0.0.0.0:0", "127.0.0.1"), ("[::]:0", "::1")] {
            let bound = UdpSocket::bind(any).unwrap();
            let v6 = any.starts_with('[');
            tell_local(bound.as_fd(), v6).unwrap();
            let called = SocketAddr::new(called.parse().unwrap(), bound.local_addr().unwrap().port());
            let client = UdpSocket::bind(if v6 { "[::1]:0" } else { "127.0.0.1:0" }).unwrap();
            client.connect(called).unwrap();
            client.set_nonblocking(true).unwrap();
            client.send(b"x").unwrap();
            let mem = Buf::new(64).unwrap();
            let mut incoming = Incoming::new(true);
            assert_eq!(incoming.recv(bound.as_fd(), &[mem.seg(0, 64)]).unwrap().len(), 1);
            let local = incoming.local(0).unwrap();
            assert_eq!((local.ip(), incoming.local(1)), (called.ip(), None));
            let mut out = Outgoing::new();
            out.towards(client.local_addr().unwrap());
            out.from_local(local);
            out.private(b"one");
            out.finish(0);
            out.private(b"two and 3");
            out.finish(3);
            assert_eq!(out.send(bound.as_fd()).unwrap(), 2);
            let mut got = [0; 64];
            for want in [&b"one"[..], b"two", b" an", b"d 3"] {
                let n = client.recv(&mut got).unwrap();
                assert_eq!(&got[..n], want, "{called}");
            }
        }
    }

    /// A socket of both families, as of forwards at `*`: what is for many is answered from an address of the host's own.
    #[test]
    fn answers_of_both_families_come_from_one_who_was_called() {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn6, bind, socket};
        let fd = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::empty(), None).unwrap();
        setsockopt(&fd, sockopt::Ipv6V6Only, &false).unwrap();
        let any: SocketAddrV6 = "[::]:0".parse().unwrap();
        bind(fd.as_raw_fd(), &SockaddrIn6::from(any)).unwrap();
        let bound = UdpSocket::from(fd);
        tell_local(bound.as_fd(), true).unwrap();
        setsockopt(&bound, sockopt::UdpGroSegment, &true).unwrap();
        let port = bound.local_addr().unwrap().port();
        for (own, called, answers) in [
            ("127.0.0.1:0", "127.0.0.2", "127.0.0.2"),
            ("127.0.0.1:0", "127.255.255.255", "127.0.0.1"),
            ("[::1]:0", "::1", "::1"),
        ] {
            let client = UdpSocket::bind(own).unwrap();
            client.set_broadcast(true).unwrap();
            client.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
            // Joined, so that all there is to be said is said.
            setsockopt(&client, sockopt::UdpGsoSegment, &4).unwrap();
            client.send_to(b"12341234", (called, port)).unwrap();
            let mem = Buf::new(64).unwrap();
            let mut incoming = Incoming::new(true);
            let got = incoming.recv(bound.as_fd(), &[mem.seg(0, 64)]).unwrap();
            assert!(got.len() == 1 && got[0].len >= 4, "{called}: {got:?}");
            let local = incoming.local(0).unwrap();
            assert_eq!(local, SocketAddr::new(answers.parse().unwrap(), 0), "{called}");
            let mut out = Outgoing::new();
            out.towards(incoming.source(0).unwrap());
            out.from_local(local);
            out.private(b"there");
            out.finish(3);
            assert_eq!(out.send(bound.as_fd()).unwrap(), 1, "{called}");
            for bytes in [3, 2] {
                let from = SocketAddr::new(answers.parse().unwrap(), port);
                assert_eq!(client.recv_from(&mut [0; 64]).unwrap(), (bytes, from));
            }
            // What is left of a message that the kernel did not join.
            while incoming.recv(bound.as_fd(), &[mem.seg(0, 64)]).is_ok() {}
        }
        // Without the other family's word, nobody is named for IPv4.
        set(bound.as_fd(), libc::IPPROTO_IP, libc::IP_PKTINFO, 0).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"x", ("127.0.0.2", port)).unwrap();
        let (mem, mut incoming) = (Buf::new(64).unwrap(), Incoming::new(true));
        assert_eq!(incoming.recv(bound.as_fd(), &[mem.seg(0, 64)]).unwrap().len(), 1);
        assert_eq!(incoming.local(0), None);
    }

    #[test]
    fn one_by_one_they_are_cut_as_the_socket_was_told_last() {
        let (a, b) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        a.connect(b.local_addr().unwrap()).unwrap();
        b.set_nonblocking(true).unwrap();
        let mem = Buf::new(8192).unwrap();
        mem.seg(0, 8).copy_in(b"bodybody");
        let mut out = Outgoing::new();
        out.private(b"head ");
        out.shared(&[mem.seg(0, 4)]);
        out.finish(0);
        out.private(b"12341234123");
        out.finish(4);
        out.private(b"abc");
        out.finish(0);
        out.private(b"longer");
        out.finish(0);
        let mut cutting = None;
        assert_eq!(out.send_each(a.as_fd(), &mut cutting).unwrap(), 4);
        assert_eq!(cutting, Some(0), "the longer one is whole because the socket no longer cuts");
        let segs: Vec<Seg> = (0..64).map(|i| mem.seg(i * 100, 16)).collect();
        let mut incoming = Incoming::new(false);
        let lens: Vec<_> = incoming.recv(b.as_fd(), &segs).unwrap().iter().map(|g| g.len).collect();
        assert_eq!(lens, [9, 4, 4, 3, 3, 6]);
        // A socket that refuses is at fault for the message that it refuses, and for no other.
        let mut out = Outgoing::new();
        for bytes in [&b"ok"[..], &[0; 70_000]] {
            out.private(bytes);
            out.finish(0);
        }
        assert_eq!(out.send_each(a.as_fd(), &mut cutting).unwrap(), 1);
        let mut out = Outgoing::new();
        out.private(&[0; 70_000]);
        out.finish(0);
        let e = out.send_each(a.as_fd(), &mut cutting).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::EMSGSIZE));
    }

    #[test]
    fn sources_of_both_families() {
        let (a, b) = (UdpSocket::bind("[::1]:0").unwrap(), UdpSocket::bind("[::1]:0").unwrap());
        a.send_to(b"x", b.local_addr().unwrap()).unwrap();
        let mem = Buf::new(64).unwrap();
        let mut incoming = Incoming::new(true);
        assert_eq!(incoming.recv(b.as_fd(), &[mem.seg(0, 64)]).unwrap().len(), 1);
        assert_eq!(incoming.source(0), Some(a.local_addr().unwrap()));
        assert_eq!(incoming.source(64), None);
    }
}
