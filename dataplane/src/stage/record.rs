//! How a captured frame lies in a spool, between the dataplane that saw it and the supervisor that writes it out.
//!
//! Little-endian: time (8 bytes), length on the wire (4), frames lost before it (4), bytes kept (4), direction (4), then
//! the bytes kept.
//!
//! Trust: the reader believes nothing; [`Head::read`] cuts what is kept to what is there.
#![forbid(unsafe_code)]

use crate::mem::Seg;

/// Bytes before the frame's.
pub const HEAD: u32 = 24;

/// What is known of a captured frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// When its batch was seen: nanoseconds since 1970 (UTC).
    pub time: u64,
    /// Bytes of the frame.
    pub len: u32,
    /// Frames of this queue that were lost between the one before and this one.
    pub lost: u32,
    /// Bytes of the frame that were kept.
    pub kept: u32,
    /// The port received it (QEMU's rx); else the port sent it.
    pub rx: bool,
}

impl Head {
    /// As it lies in the spool.
    #[must_use]
    pub fn bytes(&self) -> [u8; HEAD as usize] {
        let mut out = [0; HEAD as usize];
        let fields = self.time.to_le_bytes().into_iter();
        let words =
            [self.len, self.lost, self.kept, u32::from(self.rx)].into_iter().flat_map(u32::to_le_bytes);
        out.iter_mut().zip(fields.chain(words)).for_each(|(to, from)| *to = from);
        out
    }

    /// Reads a record's head; none: it is too short to be one.
    #[must_use]
    pub fn read(record: &Seg) -> Option<Self> {
        let room = record.len().checked_sub(HEAD)?;
        let bytes: [u8; HEAD as usize] = record.first()?;
        let (time, rest) = bytes.split_first_chunk::<8>()?;
        let (words, _) = rest.as_chunks::<4>();
        let word = |n: usize| words.get(n).map_or(0, |w| u32::from_le_bytes(*w));
        let kept = word(2).min(room).min(word(0));
        Some(Self {
            time: u64::from_le_bytes(*time),
            len: word(0),
            lost: word(1),
            kept,
            rx: word(3) & 1 == 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_cannot_be_is_cut() {
        let head = Head { time: u64::MAX - 1, len: 1514, lost: 3, kept: 100, rx: true };
        let mut bytes = head.bytes().to_vec();
        bytes.extend([7; 100]);
        assert_eq!(Head::read(&Seg::over(&mut bytes)), Some(head));
        let mut short = bytes[..HEAD as usize + 60].to_vec();
        assert_eq!(Head::read(&Seg::over(&mut short)), Some(Head { kept: 60, ..head }));
        assert_eq!(Head::read(&Seg::over(&mut bytes[..23])), None);
        let lies = Head { len: 10, kept: 100, ..head };
        let mut bytes = lies.bytes().to_vec();
        bytes.extend([7; 100]);
        assert_eq!(Head::read(&Seg::over(&mut bytes)).unwrap().kept, 10, "no more than the frame has");
    }
}
