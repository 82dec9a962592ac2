//! As much of TCP as a guest needs on a link that loses nothing, on our virtio driver: connections to one address, one at a
//! time, with super-frames and checksums left to the device both ways.
//!
//! It has no kernel, no tap and no thread of its own: what a bare guest costs beside its frames is not in it. What a guest
//! must do is: each byte is copied once, into a buffer of the ring or out of it, and the driver sleeps until its interrupt.
//! A segment out of its order is an error.

use std::io::{self, ErrorKind};
use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::driver::{Driver, Make};
use super::load::MAC;

/// The guest's address, and the Ethernet address of the user network.
const GUEST: [u8; 4] = [10, 0, 2, 15];
const GATEWAY: [u8; 6] = [0x52, 0x55, 10, 0, 2, 2];
/// Bytes of a segment on the wire, of a super-frame's payload (44 of them), and of a frame's buffer.
const MSS: u16 = 1460;
const CHUNK: u32 = 44 * 1460;
const FRAME: usize = 68 << 10;
/// Scale of our window (RFC 7323), which is 8 MiB less a bit.
const SCALE: u8 = 7;
/// Frames in one go.
const BURST: usize = 32;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of the three headers.
const HEADERS: usize = 54;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;

/// A guest that speaks TCP.
pub struct Talk {
    driver: Driver,
    line: Line,
    buffer: Vec<u8>,
}

/// One connection.
#[derive(Debug)]
struct Line {
    to: SocketAddrV4,
    port: u16,
    /// What we send next, and what of it is acknowledged.
    next: u32,
    una: u32,
    /// How much more the other end takes from `una` on.
    window: u32,
    scale: u8,
    /// What comes next from the other end.
    got: u32,
    /// Its SYN has come.
    met: bool,
    /// Its end has come.
    end: bool,
    /// It is owed an acknowledgement.
    owed: bool,
    /// Bytes of payload that have come.
    bytes: u64,
    trouble: Option<&'static str>,
    /// Segments of connections that were left, to be answered: port, sequence, acknowledgement.
    late: Vec<(u16, u32, u32)>,
}

fn be16(b: &[u8], at: usize) -> u16 {
    b.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_be_bytes)
}

fn be32(b: &[u8], at: usize) -> u32 {
    b.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
}

impl Line {
    fn new(to: SocketAddrV4, port: u16) -> Self {
        let next = u32::from(port) << 12;
        Self {
            to,
            port,
            next,
            una: next,
            window: 0,
            scale: 0,
            got: 0,
            met: false,
            end: false,
            owed: false,
            bytes: 0,
            trouble: None,
            late: Vec::new(),
        }
    }

    /// Judges a frame.
    fn hear(&mut self, f: &[u8]) {
        let tcp = be16(f, 12) == 0x0800 && f.get(23) == Some(&6);
        if !tcp || be16(f, 34) != self.to.port() {
            return;
        }
        let (seq, ack, flags) = (be32(f, 38), be32(f, 42), f.get(47).copied().unwrap_or(0));
        let head = 34 + usize::from(f.get(46).copied().unwrap_or(0) >> 4) * 4;
        let len = u32::try_from((14 + usize::from(be16(f, 16))).saturating_sub(head)).unwrap_or(0);
        let span = len + u32::from(flags & FIN != 0);
        if be16(f, 36) != self.port {
            if flags & (FIN | RST) == FIN {
                self.late.push((be16(f, 36), ack, seq.wrapping_add(span)));
            }
            return;
        }
        if flags & RST != 0 {
            self.trouble = Some("the connection was reset");
            return;
        }
        if flags & SYN != 0 {
            self.greeted(f, head, seq);
        } else if span > 0 && seq != self.got {
            self.trouble = Some("a segment out of its order");
            return;
        }
        self.una = ack;
        self.window = u32::from(be16(f, 48)) << if flags & SYN == 0 { self.scale } else { 0 };
        self.got = self.got.wrapping_add(span);
        self.bytes += u64::from(len);
        self.owed |= span > 0;
        self.end |= flags & FIN != 0;
    }

    /// Its SYN: where it begins, and its window's scale.
    fn greeted(&mut self, f: &[u8], head: usize, seq: u32) {
        self.met = true;
        self.got = seq.wrapping_add(1);
        let mut options = f.get(HEADERS..head).unwrap_or_default();
        while let Some((kind, rest)) = options.split_first() {
            let skip = match (kind, rest.first()) {
                (0, _) => break,
                (1, _) => 0,
                (3, _) => {
                    self.scale = rest.get(1).copied().unwrap_or(0).min(14);
                    2
                }
                (_, len) => usize::from(len.copied().unwrap_or(2)).saturating_sub(1),
            };
            options = rest.get(skip..).unwrap_or_default();
        }
    }

    /// What more it takes now.
    fn room(&self) -> u32 {
        self.una.wrapping_add(self.window).wrapping_sub(self.next).cast_signed().max(0).unsigned_abs()
    }

    /// The virtio-net header and the headers of a segment with `len` bytes of payload.
    fn head(&self, (port, seq, ack): (u16, u32, u32), flags: u8, len: u32) -> Vec<u8> {
        // MSS, no operation, window scale.
        let options: &[u8] = if flags & SYN != 0 { &[2, 4, 5, 0xb4, 1, 3, 3, SCALE] } else { &[] };
        let tcp = u16::try_from(20 + options.len()).unwrap_or(20);
        let payload = u16::try_from(len).unwrap_or(0);
        let (gso, size) = if payload > MSS { (1, MSS) } else { (0, 0) };
        let mut h = vec![1, gso];
        for word in [34 + tcp, size, 34, 16, 0] {
            h.extend(word.to_le_bytes());
        }
        h.extend(GATEWAY);
        h.extend(MAC);
        h.extend([8, 0]);
        let mut ip = vec![0x45, 0];
        ip.extend((20 + tcp + payload).to_be_bytes());
        ip.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
        ip.extend(GUEST);
        ip.extend(self.to.ip().octets());
        let check = !sum(&ip);
        if let Some(at) = ip.get_mut(10..12) {
            at.copy_from_slice(&check.to_be_bytes());
        }
        // The device completes it from the pseudo-header's sum.
        let mut pseudo = ip.get(12..20).unwrap_or_default().to_vec();
        pseudo.extend([0, 6]);
        pseudo.extend((tcp + payload).to_be_bytes());
        h.extend(ip);
        h.extend(port.to_be_bytes());
        h.extend(self.to.port().to_be_bytes());
        h.extend(seq.to_be_bytes());
        h.extend(ack.to_be_bytes());
        h.extend([u8::try_from(tcp << 2).unwrap_or(0x50), flags]);
        h.extend(u16::MAX.to_be_bytes());
        h.extend(sum(&pseudo).to_be_bytes());
        h.extend([0, 0]);
        h.extend(options);
        h
    }
}

/// The sum of RFC 1071 over an even number of bytes, not complemented.
fn sum(bytes: &[u8]) -> u16 {
    let all: u32 = (0..bytes.len()).step_by(2).map(|i| u32::from(be16(bytes, i))).sum();
    let folded = (all & 0xffff) + (all >> 16);
    u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(0)
}

impl Talk {
    /// Connects to a vhost-user server that is a user network's.
    ///
    /// # Errors
    /// No server, or it offers no offloads.
    pub fn start(socket: &Path, to: SocketAddrV4) -> io::Result<Self> {
        let make = Make { rx: 256, tx: 256, offloads: true, ..Make::usual(true) };
        let driver = Driver::connect(socket, make)?;
        Ok(Self { driver, line: Line::new(to, 32_768), buffer: vec![0; FRAME] })
    }

    /// Opens the next connection.
    ///
    /// # Errors
    /// It was refused, or nobody answered.
    pub fn connect(&mut self) -> io::Result<()> {
        let port = self.line.port.checked_add(1).unwrap_or(32_768);
        let to = self.line.to;
        self.line = Line { late: std::mem::take(&mut self.line.late), ..Line::new(to, port) };
        self.say(SYN, &[])?;
        self.line.next = self.line.next.wrapping_add(1);
        self.until(|l| l.met)?;
        self.say(ACK, &[])
    }

    /// Sends `payload`, which there is room for.
    fn say(&mut self, flags: u8, payload: &[u8]) -> io::Result<()> {
        let len = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let head = self.line.head((self.line.port, self.line.next, self.line.got), flags, len);
        self.line.owed &= flags & ACK == 0;
        self.line.next = self.line.next.wrapping_add(len);
        self.put(&[&head, payload])
    }

    fn put(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let until = Instant::now() + PATIENCE;
        while !self.driver.tx.send_parts(parts) {
            if Instant::now() > until {
                return Err(ErrorKind::TimedOut.into());
            }
            self.driver.wait(0);
        }
        Ok(())
    }

    /// Takes what has come. False: nothing has.
    fn hear(&mut self) -> io::Result<bool> {
        let line = &mut self.line;
        let n = self.driver.rx.recv_copy(BURST, &mut self.buffer, |f| line.hear(f));
        for (port, seq, ack) in std::mem::take(&mut self.line.late) {
            let head = self.line.head((port, seq, ack), ACK, 0);
            self.put(&[&head])?;
        }
        match self.line.trouble {
            Some(why) => Err(io::Error::other(why)),
            None => Ok(n > 0),
        }
    }

    /// Sleeps until something comes.
    fn sleep(&mut self) {
        let rx = &mut self.driver.rx;
        if !rx.arm(1) {
            let mut fds = [PollFd::new(rx.call.as_fd(), PollFlags::POLLIN)];
            // An interrupted wait is a wait.
            let _again = poll(&mut fds, PollTimeout::from(100_u8));
        }
        rx.calm();
    }

    fn until(&mut self, done: impl Fn(&Line) -> bool) -> io::Result<()> {
        let until = Instant::now() + PATIENCE;
        while !done(&self.line) {
            if !self.hear()? {
                if Instant::now() > until {
                    return Err(ErrorKind::TimedOut.into());
                }
                self.sleep();
            }
        }
        Ok(())
    }

    /// A byte there and back.
    ///
    /// # Errors
    /// It did not come back.
    pub fn ask(&mut self) -> io::Result<()> {
        let wanted = self.line.bytes + 1;
        self.say(ACK | PSH, &[1])?;
        self.until(|l| l.bytes >= wanted)
    }

    /// Says that it is the end, and does not wait for the other's.
    ///
    /// # Errors
    /// The device takes nothing more.
    pub fn close(&mut self) -> io::Result<()> {
        self.say(ACK | FIN, &[])
    }

    /// Sends as fast as it goes for a time.
    ///
    /// # Errors
    /// The connection broke.
    pub fn send(&mut self, window: Duration) -> io::Result<()> {
        let words = vec![7; usize::try_from(CHUNK).unwrap_or(0)];
        let until = Instant::now() + window;
        while Instant::now() < until {
            let mut n = 0;
            while n < BURST {
                let len = self.line.room().min(CHUNK);
                let flies = self.line.next != self.line.una;
                if len == 0 || (flies && len < CHUNK && len < self.line.window / 2) {
                    break;
                }
                self.say(ACK | PSH, words.get(..usize::try_from(len).unwrap_or(0)).unwrap_or_default())?;
                n += 1;
            }
            if !self.hear()? && n == 0 {
                self.sleep();
            }
        }
        Ok(())
    }

    /// Takes what comes for a time; how many bytes there were.
    ///
    /// # Errors
    /// The connection broke.
    pub fn receive(&mut self, window: Duration) -> io::Result<u64> {
        let (until, before) = (Instant::now() + window, self.line.bytes);
        while Instant::now() < until {
            if !self.hear()? {
                self.sleep();
            }
            if self.line.owed {
                self.say(ACK, &[])?;
            }
        }
        Ok(self.line.bytes - before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_good_ones() {
        let l = Line::new("10.9.0.2:7".parse().unwrap(), 40_000);
        let h = l.head((l.port, 5, 6), SYN, 0);
        assert_eq!(h.len(), 12 + HEADERS + 8);
        assert_eq!(sum(&h[26..46]), 0xffff, "IPv4's checksum");
        assert_eq!((be16(&h, 28), be16(&h, 46), be16(&h, 48)), (48, 40_000, 7));
        let h = l.head((l.port, 5, 6), ACK, CHUNK);
        assert_eq!((h[1], be16(&h, 28)), (1, u16::try_from(CHUNK).unwrap() + 40));
    }

    #[test]
    fn what_comes_is_counted_in_order() {
        let to: SocketAddrV4 = "10.9.0.2:7".parse().unwrap();
        let mut l = Line::new(to, 40_000);
        // The other end's words are ours with the ports turned round.
        let from_there = |seq: u32, flags: u8, len: u32| {
            let mut f = l_head(to, seq, flags, len);
            f.resize(f.len() + len as usize, 9);
            f
        };
        l.hear(&from_there(100, SYN | ACK, 0));
        assert!((l.met, l.got, l.scale) == (true, 101, SCALE));
        l.hear(&from_there(101, ACK, 3000));
        assert_eq!((l.got, l.bytes, l.owed, l.window), (3101, 3000, true, 0xffff << SCALE));
        l.hear(&from_there(101, ACK, 3000));
        assert!(l.trouble.is_some(), "it has come already");
    }

    fn l_head(to: SocketAddrV4, seq: u32, flags: u8, len: u32) -> Vec<u8> {
        let other = Line::new(SocketAddrV4::new(*to.ip(), 40_000), to.port());
        other.head((to.port(), seq, 0), flags, len).split_off(12)
    }
}
