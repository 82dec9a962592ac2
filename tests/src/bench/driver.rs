//! A guest without a guest: the VMM's half of vhost-user (handshake, memory) with one transmit and one receive ring.
//!
//! It stands before netreeve and before DPDK's net_vhost alike. Features: VERSION_1, MRG_RXBUF, EVENT_IDX if offered;
//! no offloads, because 64-byte frames have no use for them.

use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::vring::{Vring, footprint};
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

/// Guest address of the memory, and the driver's own (any number that is not the device's will do).
const GUEST: u64 = 0x4000_0000;
const USER: u64 = 0x7000_0000_0000;

/// A connected driver.
pub struct Driver {
    /// Frames to the device.
    pub tx: Vring,
    /// Frames from the device.
    pub rx: Vring,
    sock: UnixStream,
    _memory: OwnedFd,
}

impl Driver {
    /// Connects to a vhost-user server, waiting up to ten seconds for its socket, and starts both rings.
    ///
    /// # Errors
    /// No server, or it ended the connection.
    pub fn connect(path: &Path, rx_size: u16, tx_size: u16, sleeps: bool) -> io::Result<Self> {
        let sock = dial(path)?;
        sock.set_read_timeout(Some(Duration::from_secs(10)))?;
        let len = (footprint(rx_size) + footprint(tx_size)).next_multiple_of(2 << 20);
        let memory = sys::memfd(len)?;
        let mem = Arc::new(Shm::map(Some(memory.as_fd()), len, 0)?);
        let rx = Vring::new(Arc::clone(&mem), 0, rx_size, GUEST, true)?;
        let tx = Vring::new(mem, footprint(rx_size), tx_size, GUEST, false)?;
        let mut d = Self { tx, rx, sock, _memory: memory };
        d.start(len as u64, sleeps)?;
        Ok(d)
    }

    fn start(&mut self, len: u64, sleeps: bool) -> io::Result<()> {
        self.tell(SET_OWNER, &[], &[])?;
        let offered = self.ask(GET_FEATURES)?;
        if offered & VERSION_1 == 0 {
            return Err(io::Error::other("the device does not offer VERSION_1"));
        }
        if offered & PROTOCOL != 0 {
            self.ask(GET_PROTOCOL_FEATURES)?;
            self.tell(SET_PROTOCOL_FEATURES, &[0], &[])?;
        }
        let acked = offered & (VERSION_1 | MRG_RXBUF | EVENT_IDX | PROTOCOL);
        self.tell(SET_FEATURES, &[acked], &[])?;
        self.tell(SET_MEM_TABLE, &[1, GUEST, len, USER, 0], &[self._memory.as_raw_fd()])?;
        self.rx.start(acked & EVENT_IDX != 0, sleeps);
        self.tx.start(acked & EVENT_IDX != 0, sleeps);
        for (i, ring) in [(0_u64, &self.rx), (1, &self.tx)] {
            let at = |x: usize| USER + x as u64;
            let wide = |low: u64, high: u64| low | high << 32;
            self.tell(SET_VRING_NUM, &[wide(i, ring.size.into())], &[])?;
            self.tell(SET_VRING_BASE, &[wide(i, 0)], &[])?;
            self.tell(SET_VRING_ADDR, &[i, at(ring.desc), at(ring.used), at(ring.avail), 0], &[])?;
            self.tell(SET_VRING_CALL, &[i], &[ring.call.as_fd().as_raw_fd()])?;
            self.tell(SET_VRING_KICK, &[i], &[ring.kick.as_fd().as_raw_fd()])?;
        }
        if acked & PROTOCOL != 0 {
            for i in [0, 1] {
                self.tell(SET_VRING_ENABLE, &[i | 1 << 32], &[])?;
            }
        }
        // An answer after the last message says that all before it were obeyed.
        self.ask(GET_FEATURES)?;
        self.rx.refill();
        Ok(())
    }

    /// Sleeps until the device has used `n` receive buffers, or half of the transmit ring if `n` is 0; at most 1 ms.
    pub fn wait(&mut self, n: u16) {
        let ring = if n > 0 { &mut self.rx } else { &mut self.tx };
        if !ring.arm(if n > 0 { n } else { ring.size / 2 }) {
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
