//! A guest without a guest: the VMM's half of vhost-user (handshake, memory) with one transmit and one receive ring.
//!
//! It stands before netreeve and before DPDK's net_vhost alike. Features: VERSION_1, MRG_RXBUF, EVENT_IDX if offered; the
//! packed form and offloads where they are asked for, and then they must be offered.

use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg};

use super::vring::{PLAIN, SUPER, Shape, Vring};
use crate::sys::{self, Shm};

const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_VRING_ENABLE: u32 = 18;

const MRG_RXBUF: u64 = 1 << 15;
const EVENT_IDX: u64 = 1 << 29;
const PROTOCOL: u64 = 1 << 30;
const VERSION_1: u64 = 1 << 32;
const PACKED: u64 = 1 << 34;
/// CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6.
const OFFLOADS: u64 = 1 | 1 << 1 | 1 << 7 | 1 << 8 | 1 << 11 | 1 << 12;

/// Guest address of the memory, and the driver's own (any number that is not the device's will do).
const GUEST: u64 = 0x4000_0000;
const USER: u64 = 0x7000_0000_0000;

/// What a driver is to be.
#[derive(Clone, Copy, Debug)]
pub struct Make {
    /// Entries of the receive ring.
    pub rx: u16,
    /// Entries of the transmit ring.
    pub tx: u16,
    /// It waits for interrupts instead of polling.
    pub sleeps: bool,
    /// Rings in the packed form.
    pub packed: bool,
    /// Checksum and segmentation offloads both ways, and buffers for super-frames.
    pub offloads: bool,
    /// Such buffers without offloads: every frame that there may be fits into one.
    pub large: bool,
}

impl Make {
    /// Rings of what QEMU allows at most for receive, and its default for transmit; split, no offloads.
    #[must_use]
    pub fn usual(sleeps: bool) -> Self {
        Self { rx: 1024, tx: 256, sleeps, packed: false, offloads: false, large: false }
    }

    /// The features that must be offered.
    fn wants(self) -> u64 {
        let of = |on: bool, bits: u64| if on { bits } else { 0 };
        VERSION_1 | of(self.packed, PACKED) | of(self.offloads, OFFLOADS)
    }
}

/// A connected driver.
pub struct Driver {
    /// Frames to the device.
    pub tx: Vring,
    /// Frames from the device.
    pub rx: Vring,
    /// The rings of further queue pairs: receive and transmit.
    pub more: Vec<[Vring; 2]>,
    sock: UnixStream,
    _memory: OwnedFd,
}

impl Driver {
    /// Connects to a vhost-user server, waiting up to ten seconds for its socket, and starts both rings.
    ///
    /// # Errors
    /// No server, it ended the connection, or (`Unsupported`) it does not offer what `make` wants.
    pub fn connect(path: &Path, make: Make) -> io::Result<Self> {
        Self::connect_pairs(path, make, 1)
    }

    /// The same with this many queue pairs, at least one; all of them are in use from the start.
    ///
    /// # Errors
    /// As for [`Driver::connect`].
    pub fn connect_pairs(path: &Path, make: Make, pairs: usize) -> io::Result<Self> {
        let sock = dial(path)?;
        sock.set_read_timeout(Some(Duration::from_secs(10)))?;
        let buffer = if make.offloads || make.large { SUPER } else { PLAIN };
        let [rx, tx] = [make.rx, make.tx].map(|size| Shape { size, buffer, packed: make.packed });
        let pair = rx.footprint() + tx.footprint();
        let len = (pairs.max(1) * pair).next_multiple_of(2 << 20);
        let memory = sys::memfd(len)?;
        let mem = Arc::new(Shm::map(Some(memory.as_fd()), len, 0)?);
        let at = |i: usize| -> io::Result<[Vring; 2]> {
            let below = i * pair + rx.footprint();
            let rx = Vring::new(Arc::clone(&mem), i * pair, rx, GUEST, true)?;
            Ok([rx, Vring::new(Arc::clone(&mem), below, tx, GUEST, false)?])
        };
        let more = (1..pairs).map(at).collect::<io::Result<_>>()?;
        let [rx, tx] = at(0)?;
        let mut d = Self { tx, rx, more, sock, _memory: memory };
        d.start(len as u64, make)?;
        Ok(d)
    }

    fn start(&mut self, len: u64, make: Make) -> io::Result<()> {
        self.tell(SET_OWNER, &[], &[])?;
        let offered = self.ask(GET_FEATURES)?;
        let wants = make.wants();
        if offered & wants != wants {
            let why = format!("the device does not offer feature bits {:#x}", wants & !offered);
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        if offered & PROTOCOL != 0 {
            self.ask(GET_PROTOCOL_FEATURES)?;
            self.tell(SET_PROTOCOL_FEATURES, &[0], &[])?;
        }
        let acked = offered & (wants | MRG_RXBUF | EVENT_IDX | PROTOCOL);
        self.tell(SET_FEATURES, &[acked], &[])?;
        self.tell(SET_MEM_TABLE, &[1, GUEST, len, USER, 0], &[self._memory.as_raw_fd()])?;
        for ring in [&mut self.rx, &mut self.tx].into_iter().chain(self.more.iter_mut().flatten()) {
            ring.start(acked & EVENT_IDX != 0, make.sleeps);
        }
        let rings = || (0_u64..).zip([&self.rx, &self.tx].into_iter().chain(self.more.iter().flatten()));
        // A packed ring begins at position 0 of the lap with parity 1, both for what is offered and for what is used.
        let base = if make.packed { 0x8000_8000 } else { 0 };
        for (i, ring) in rings() {
            let p = ring.parts;
            let at = |x: usize| USER + x as u64;
            let wide = |low: u64, high: u64| low | high << 32;
            self.tell(SET_VRING_NUM, &[wide(i, ring.shape.size.into())], &[])?;
            self.tell(SET_VRING_BASE, &[wide(i, base)], &[])?;
            self.tell(SET_VRING_ADDR, &[i, at(p.desc), at(p.used), at(p.avail), 0], &[])?;
            self.tell(SET_VRING_CALL, &[i], &[ring.call.as_fd().as_raw_fd()])?;
            self.tell(SET_VRING_KICK, &[i], &[ring.kick.as_fd().as_raw_fd()])?;
        }
        if acked & PROTOCOL != 0 {
            for (i, _) in rings() {
                self.tell(SET_VRING_ENABLE, &[i | 1 << 32], &[])?;
            }
        }
        // An answer after the last message says that all before it were obeyed.
        self.ask(GET_FEATURES)?;
        self.rx.refill();
        self.more.iter_mut().for_each(|[rx, _]| rx.refill());
        Ok(())
    }

    /// The back end has not ended the connection.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        let peek = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        match recv(self.sock.as_raw_fd(), &mut [0; 1], peek) {
            Ok(n) => n > 0,
            Err(e) => e == Errno::EAGAIN,
        }
    }

    /// Sleeps until the device has used `n` receive buffers, or half of the transmit ring if `n` is 0; at most 1 ms.
    pub fn wait(&mut self, n: u16) {
        let ring = if n > 0 { &mut self.rx } else { &mut self.tx };
        if !ring.arm(if n > 0 { n } else { ring.shape.size / 2 }) {
            let mut fds = [PollFd::new(ring.call.as_fd(), PollFlags::POLLIN)];
            // An interrupted wait is a wait.
            let _again = poll(&mut fds, PollTimeout::from(1_u8));
        }
        ring.calm();
    }

    /// Sends one message.
    fn tell(&self, request: u32, body: &[u64], fds: &[RawFd]) -> io::Result<()> {
        let size = u32::try_from(body.len() * 8).map_err(io::Error::other)?;
        let mut b: Vec<u8> = [request, 1, size].iter().flat_map(|w| w.to_ne_bytes()).collect();
        b.extend(body.iter().flat_map(|w| w.to_ne_bytes()));
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[] } else { &rights[..] };
        let n = sendmsg::<()>(self.sock.as_raw_fd(), &[IoSlice::new(&b)], control, MsgFlags::empty(), None)?;
        if n == b.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Sends a message and reads its 64-bit answer.
    fn ask(&mut self, request: u32) -> io::Result<u64> {
        self.tell(request, &[], &[])?;
        let mut answer = [0; 20];
        self.sock.read_exact(&mut answer)?;
        let (head, value) = answer.split_at(12);
        if head.get(..4) != Some(&request.to_ne_bytes()[..]) {
            return Err(io::Error::other(format!("an answer to something else than request {request}")));
        }
        Ok(u64::from_ne_bytes(value.try_into().map_err(io::Error::other)?))
    }
}

/// Connects as soon as somebody listens.
fn dial(path: &Path) -> io::Result<UnixStream> {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match UnixStream::connect(path) {
            Ok(s) => return Ok(s),
            Err(e) if Instant::now() > until => {
                return Err(io::Error::new(e.kind(), format!("vhost-user server {}: {e}", path.display())));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
