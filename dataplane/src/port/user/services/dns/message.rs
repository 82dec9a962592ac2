//! As much of a DNS message (RFC 1035) as a relay has to understand: its number, its question, how long an answer may be.
//!
//! Trust: none. Promise: every loop ends with the message; nothing is followed that points elsewhere in it.
#![forbid(unsafe_code)]

use super::super::bytes::Reader;

/// Bytes of a header.
const HEADER: usize = 12;
/// The longest answer for who says nothing of it (RFC 1035 §4.2.1).
const PLAIN: u16 = 512;
/// The record that says how long an answer may be (RFC 6891).
const OPT: u16 = 41;

/// What stands at the beginning of every message.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Its number.
    pub id: [u8; 2],
    flags: [u8; 2],
    counts: [u16; 4],
}

impl Header {
    /// None: there are not that many bytes.
    #[must_use]
    pub fn parse(message: &[u8]) -> Option<(Self, Reader<'_>)> {
        let mut r = Reader::new(message);
        let (id, flags) = (r.array()?, r.array()?);
        let counts = [r.u16()?, r.u16()?, r.u16()?, r.u16()?];
        Some((Self { id, flags, counts }, r))
    }

    /// It is an answer.
    #[must_use]
    pub fn answers(&self) -> bool {
        self.flags[0] & 0x80 != 0
    }

    /// The server could not or would not answer: another may (`SERVFAIL`, `NOTIMP`, `REFUSED`).
    #[must_use]
    pub fn failed(&self) -> bool {
        matches!(self.flags[1] & 0x0f, 2 | 4 | 5)
    }

    /// It was cut short.
    #[must_use]
    pub fn cut(&self) -> bool {
        self.flags[0] & 2 != 0
    }
}

/// Passes a name; one that points elsewhere (RFC 1035 §4.1.4) ends there.
fn name(r: &mut Reader<'_>, pointers: bool) -> Option<()> {
    let before = r.rest().len();
    loop {
        let len = r.u8()?;
        match len {
            0 => break,
            1..=63 => r.take(len.into())?,
            192.. if pointers => {
                r.u8()?;
                break;
            }
            _ => return None,
        };
    }
    (before - r.rest().len() <= 255).then_some(())
}

/// The one question of a message, in bytes as they stand behind the header.
#[must_use]
pub fn question(message: &[u8]) -> Option<&[u8]> {
    let (h, mut r) = Header::parse(message)?;
    let body = r.rest();
    if h.counts[0] != 1 {
        return None;
    }
    name(&mut r, false)?;
    r.u32()?;
    body.get(..body.len() - r.rest().len())
}

/// How long an answer to this question may be, in bytes.
#[must_use]
pub fn room(message: &[u8]) -> u16 {
    opt(message).unwrap_or(0).max(PLAIN)
}

/// The asker's size in the question's OPT record.
fn opt(message: &[u8]) -> Option<u16> {
    let (h, mut r) = Header::parse(message)?;
    r.take(question(message)?.len())?;
    let records = h.counts.iter().skip(1).map(|n| usize::from(*n)).sum::<usize>();
    for _ in 0..records {
        name(&mut r, true)?;
        let (kind, class) = (r.u16()?, r.u16()?);
        r.u32()?;
        let len = r.u16()?;
        r.take(len.into())?;
        if kind == OPT {
            return Some(class);
        }
    }
    None
}

/// Appends an answer without content: to `message`, which has been seen to hold one question; `code` says why (RFC 1035
/// §4.1.1).
fn empty(message: &[u8], id: [u8; 2], flags: [u8; 2], out: &mut Vec<u8>) {
    out.extend_from_slice(&id);
    out.extend_from_slice(&flags);
    out.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    out.extend_from_slice(question(message).unwrap_or_default());
}

/// Appends what says that nobody could answer `asked` (`SERVFAIL`).
pub fn failure(asked: &[u8], id: [u8; 2], out: &mut Vec<u8>) {
    let flags = Header::parse(asked).map_or([0; 2], |(h, _)| h.flags);
    empty(asked, id, [0x80 | flags[0] & 0x79, 0x82], out);
}

/// Appends `answer` under another number; cut short, with the bit that says so, if it is longer than `room` bytes.
pub fn renumbered(answer: &[u8], id: [u8; 2], room: usize, out: &mut Vec<u8>) {
    if answer.len() <= room {
        out.extend_from_slice(&id);
        out.extend_from_slice(answer.get(2..).unwrap_or_default());
        return;
    }
    let flags = Header::parse(answer).map_or([0; 2], |(h, _)| h.flags);
    empty(answer, id, [flags[0] | 2, flags[1]], out);
}

/// Bytes of the shortest message.
pub const LEAST: usize = HEADER + 5;

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A question for `a.bc`, with an OPT record of this size.
    pub(in super::super) fn ask(id: u16, size: Option<u16>) -> Vec<u8> {
        let mut m = id.to_be_bytes().to_vec();
        m.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(size.is_some())]);
        m.extend(b"\x01a\x02bc\0\0\x01\0\x01");
        if let Some(s) = size {
            m.extend([0, 0, 41]);
            m.extend(s.to_be_bytes());
            m.extend([0, 0, 0, 0, 0, 0]);
        }
        m
    }

    #[test]
    fn the_question_and_the_room() {
        let q = ask(7, Some(1232));
        assert_eq!(question(&q), Some(&b"\x01a\x02bc\0\0\x01\0\x01"[..]));
        assert_eq!(room(&q), 1232);
        assert_eq!(room(&ask(7, Some(100))), 512);
        assert_eq!(room(&ask(7, None)), 512);
        for n in 0..q.len() {
            let cut = &q[..n];
            assert_eq!(question(cut).is_some(), n >= 22, "{n}");
            assert_eq!(room(cut), 512);
        }
    }

    #[test]
    fn names_that_lead_elsewhere_or_nowhere() {
        let with = |name: &[u8]| [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], name, &[0, 1, 0, 1]].concat();
        assert!(question(&with(b"\0")).is_some());
        // A pointer in the question, to itself: it is not followed.
        assert!(question(&with(&[0xc0, 12])).is_none());
        assert!(question(&with(&[0x40, 1, 0])).is_none());
        let long =
            [b"\x3fxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx".repeat(4), vec![0]]
                .concat();
        assert!(question(&with(&long)).is_none());
        assert!(question(&with(&long[64..])).is_some());
        let mut two = with(b"\0");
        two[5] = 2;
        assert!(question(&two).is_none());
        // Records may point; more are promised than there are.
        let mut q = ask(1, Some(4096));
        q[11] = 255;
        assert_eq!(room(&q), 4096);
        let mut q = with(b"\0");
        q[11] = 1;
        q.extend([0xc0, 12, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(room(&q), 4096);
        q[11] = 0xff;
        let last = q.len() - 1;
        q[last] = 9;
        assert_eq!(room(&q), 512);
    }

    #[test]
    fn what_we_say_ourselves() {
        let (q, mut out) = (ask(0x0102, Some(4096)), Vec::new());
        failure(&q, [3, 4], &mut out);
        assert_eq!(out, b"\x03\x04\x81\x82\0\x01\0\0\0\0\0\0\x01a\x02bc\0\0\x01\0\x01");
        let mut a = ask(9, None);
        (a[2], a[3], a[7]) = (0x85, 0x80, 1);
        a.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 1, 2, 3, 4]);
        out.clear();
        renumbered(&a, [5, 6], a.len(), &mut out);
        assert_eq!((&out[..2], &out[2..]), (&[5, 6][..], &a[2..]));
        out.clear();
        renumbered(&a, [5, 6], a.len() - 1, &mut out);
        assert_eq!(out, b"\x05\x06\x87\x80\0\x01\0\0\0\0\0\0\x01a\x02bc\0\0\x01\0\x01");
        assert!(Header::parse(&out).unwrap().0.cut());
    }
}
