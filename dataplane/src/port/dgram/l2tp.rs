//! L2TPv3 data messages (RFC 3931 §4.1): what stands before each frame.
//!
//! | field | bytes | where |
//! |---|---|---|
//! | IPv4 header with its options | 20 to 60 | received from a raw IPv4 socket |
//! | flags and version, reserved | 4 | over UDP: `00 03 00 00` |
//! | session | 4 | always; 0 over IP is a control message |
//! | cookie | 0, 4 or 8 | as agreed |
//! | counter | 0 or 4 | as QEMU and User-Mode Linux have it: a plain number from 1, not looked at by who receives |
//! | offset | 0 to 256 | zeros |
//!
//! All numbers are big-endian. Trust: none in what comes. Promise: only what has the session and the cookie that were
//! agreed upon becomes a frame; nothing but zeros fills the offset.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use crate::mem::Seg;
use crate::stats::Reason;

/// Largest offset in bytes.
pub const MAX_OFFSET: u16 = 256;
/// Most bytes of a header that is received: IPv4 with options, session, cookie, counter, offset; over UDP it is less.
pub const MAX_HEADER: u32 = 60 + 4 + 8 + 4 + MAX_OFFSET as u32;
/// Most bytes before the counter.
const FIXED: usize = 16;
/// Flags and version of a data message over UDP.
const DATA: [u8; 4] = [0, 3, 0, 0];

/// What carries the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Carrier {
    /// UDP.
    Udp,
    /// IP protocol 115 over IPv4: what is received begins with the IP header.
    Ip4,
    /// IP protocol 115 over IPv6.
    Ip6,
}

/// The cookies of both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cookie {
    /// None.
    None,
    /// Of 4 bytes: that which is sent, that which is expected.
    Four(u32, u32),
    /// Of 8 bytes.
    Eight(u64, u64),
}

/// The counter of what is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Counter {
    /// None.
    None,
    /// Goes up by one with each frame, from 1.
    Counts,
    /// Stays 0.
    Pinned,
}

/// A session as the two ends have agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// What carries it.
    pub carrier: Carrier,
    /// Its number in what is sent.
    pub tx: u32,
    /// Its number in what is received.
    pub rx: u32,
    /// The cookies.
    pub cookie: Cookie,
    /// The counter.
    pub counter: Counter,
    /// Bytes of zeros before each frame, at most [`MAX_OFFSET`].
    pub offset: u16,
}

/// Offsets are cut out of this.
pub static ZEROS: [u8; MAX_OFFSET as usize] = [0; MAX_OFFSET as usize];

/// The bytes before a frame that is sent, but for the zeros of the offset.
#[derive(Clone, Copy, Debug, Default)]
pub struct Head {
    bytes: [u8; FIXED + 4],
    len: u8,
}

impl Head {
    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    fn push(&mut self, more: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(usize::from(self.len)).zip(more) {
            *to = *from;
            self.len += 1;
        }
    }
}

impl Session {
    /// What stands before the frame number `count` (from 1) that is sent.
    #[must_use]
    pub fn head(&self, count: u32) -> Head {
        let mut head = Head::default();
        if self.carrier == Carrier::Udp {
            head.push(&DATA);
        }
        head.push(&self.tx.to_be_bytes());
        match self.cookie {
            Cookie::None => {}
            Cookie::Four(tx, _) => head.push(&tx.to_be_bytes()),
            Cookie::Eight(tx, _) => head.push(&tx.to_be_bytes()),
        }
        match self.counter {
            Counter::None => {}
            Counter::Counts => head.push(&count.to_be_bytes()),
            Counter::Pinned => head.push(&[0; 4]),
        }
        head
    }

    /// The zeros behind it.
    #[must_use]
    pub fn zeros(&self) -> &'static [u8] {
        ZEROS.get(..usize::from(self.offset)).unwrap_or(&ZEROS)
    }

    /// Bytes before a frame, IP headers aside.
    #[must_use]
    pub fn overhead(&self) -> u32 {
        let fixed = u32::from(self.head(0).len);
        fixed + u32::from(self.offset.min(MAX_OFFSET))
    }

    /// The frame in a message that was received.
    ///
    /// # Errors
    /// Why there is none.
    pub fn open(&self, message: &Seg) -> Result<Seg, Reason> {
        let mut rest = *message;
        match self.carrier {
            Carrier::Udp => {
                let [flags, version, ..] = rest.first::<4>().ok_or(Reason::BadHeader)?;
                if flags & 0x80 != 0 {
                    return Err(Reason::Control);
                }
                if version & 0x0f != 3 {
                    return Err(Reason::BadHeader);
                }
                rest = rest.skip(4);
            }
            Carrier::Ip4 => {
                let [first] = rest.first::<1>().ok_or(Reason::BadHeader)?;
                let header = u32::from(first & 0x0f) * 4;
                if first >> 4 != 4 || header < 20 {
                    return Err(Reason::BadHeader);
                }
                rest = rest.skip(header);
            }
            Carrier::Ip6 => {}
        }
        let session = u32::from_be_bytes(rest.first().ok_or(Reason::BadHeader)?);
        if session == 0 && self.carrier != Carrier::Udp {
            return Err(Reason::Control);
        }
        if session != self.rx {
            return Err(Reason::Session);
        }
        rest = rest.skip(4);
        let right = match self.cookie {
            Cookie::None => true,
            Cookie::Four(_, rx) => {
                let cookie = rest.first().ok_or(Reason::BadHeader)?;
                rest = rest.skip(4);
                same(&cookie, &rx.to_be_bytes())
            }
            Cookie::Eight(_, rx) => {
                let cookie = rest.first::<8>().ok_or(Reason::BadHeader)?;
                rest = rest.skip(8);
                same(&cookie, &rx.to_be_bytes())
            }
        };
        if !right {
            return Err(Reason::Cookie);
        }
        let counter = if self.counter == Counter::None { 0 } else { 4 };
        let more = counter + u32::from(self.offset.min(MAX_OFFSET));
        if rest.len() < more {
            return Err(Reason::BadHeader);
        }
        Ok(rest.skip(more))
    }
}

/// Compared in whole: how long it takes says nothing of where they differ.
fn same<const N: usize>(a: &[u8; N], b: &[u8; N]) -> bool {
    a.iter().zip(b).fold(0, |d, (x, y)| d | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(carrier: Carrier, cookie: Cookie, counter: Counter, offset: u16) -> Session {
        Session { carrier, tx: 0x0102_0304, rx: 0x0a0b_0c0d, cookie, counter, offset }
    }

    /// The session as the other end has it.
    fn mirror(s: &Session) -> Session {
        let cookie = match s.cookie {
            Cookie::None => Cookie::None,
            Cookie::Four(a, b) => Cookie::Four(b, a),
            Cookie::Eight(a, b) => Cookie::Eight(b, a),
        };
        Session { tx: s.rx, rx: s.tx, cookie, ..*s }
    }

    fn wire(s: &Session, count: u32, frame: &[u8]) -> Vec<u8> {
        [s.head(count).bytes(), s.zeros(), frame].concat()
    }

    #[test]
    fn the_bytes_are_those_of_the_standard() {
        let cookie = Cookie::Eight(0x1112_1314_1516_1718, 1);
        let s = session(Carrier::Udp, cookie, Counter::Counts, 3);
        let want =
            [0, 3, 0, 0, 1, 2, 3, 4, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0, 0, 0, 9, 0, 0, 0];
        assert_eq!(wire(&s, 9, b""), want);
        let s = session(Carrier::Ip6, Cookie::Four(0x2122_2324, 1), Counter::Pinned, 0);
        assert_eq!(wire(&s, 9, b"f"), [1, 2, 3, 4, 0x21, 0x22, 0x23, 0x24, 0, 0, 0, 0, b'f']);
        let s = session(Carrier::Ip4, Cookie::None, Counter::None, 0);
        assert_eq!(wire(&s, 9, b""), [1, 2, 3, 4]);
    }

    #[test]
    fn every_form_is_opened_by_the_other_end_and_by_nobody_else() {
        let cookies = [Cookie::None, Cookie::Four(5, 6), Cookie::Eight(7 << 40, 8 << 40)];
        for carrier in [Carrier::Udp, Carrier::Ip4, Carrier::Ip6] {
            for cookie in cookies {
                for counter in [Counter::None, Counter::Counts, Counter::Pinned] {
                    for offset in [0, 1, 256] {
                        both_ways(&session(carrier, cookie, counter, offset));
                    }
                }
            }
        }
    }

    fn both_ways(s: &Session) {
        let peer = mirror(s);
        let header: &[u8] = match s.carrier {
            // With four bytes of options.
            Carrier::Ip4 => &[0x46; 24],
            _ => &[],
        };
        let mut bytes = [header, &wire(&peer, 77, b"frame")].concat();
        assert_eq!(s.overhead() as usize, bytes.len() - header.len() - 5);
        let whole = Seg::over(&mut bytes);
        let frame = s.open(&whole).unwrap();
        assert_eq!(frame.first(), Some(*b"frame"));
        for n in 0..whole.len() - 5 {
            assert_eq!(s.open(&whole.take(n)).unwrap_err(), Reason::BadHeader, "{s:?} {n}");
        }
        assert!(s.open(&whole.take(whole.len() - 5)).unwrap().is_empty());
        let at = header.len() + if s.carrier == Carrier::Udp { 4 } else { 0 };
        if s.cookie != Cookie::None {
            let mut wrong = bytes.clone();
            wrong[at + 4] ^= 1;
            assert_eq!(s.open(&Seg::over(&mut wrong)).unwrap_err(), Reason::Cookie);
        }
        let mut wrong = bytes.clone();
        wrong[at + 3] ^= 1;
        assert_eq!(s.open(&Seg::over(&mut wrong)).unwrap_err(), Reason::Session);
        let mut control = bytes;
        if s.carrier == Carrier::Udp {
            control[0] |= 0x80;
        } else {
            control[at..at + 4].fill(0);
        }
        assert_eq!(s.open(&Seg::over(&mut control)).unwrap_err(), Reason::Control);
    }

    #[test]
    fn headers_that_cannot_be() {
        let udp = session(Carrier::Udp, Cookie::None, Counter::None, 0);
        let mut version = [0, 2, 0, 0, 0x0a, 0x0b, 0x0c, 0x0d, 1];
        assert_eq!(udp.open(&Seg::over(&mut version)).unwrap_err(), Reason::BadHeader);
        let ip = session(Carrier::Ip4, Cookie::None, Counter::None, 0);
        for first in [0x44, 0x65, 0] {
            let mut bytes = [first; 40];
            assert_eq!(ip.open(&Seg::over(&mut bytes)).unwrap_err(), Reason::BadHeader);
        }
    }
}
