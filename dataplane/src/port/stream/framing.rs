//! How frames stand in a connection.
//!
//! | framing | before each frame | who speaks it |
//! |---|---|---|
//! | `qemu` | 32-bit big-endian length | QEMU's `stream` and `socket`, passt, libkrun, gvproxy's `qemu`, socket_vmnet |
//! | `u16le` | 16-bit little-endian length | HyperKit, gvproxy's `stdio` and `vpnkit` |
//! | `u16be` | 16-bit big-endian length | `vde_plug` and `dpipe` on their standard streams |
//! | `seqpacket` | nothing: a message each (`SOCK_SEQPACKET`) | gvproxy's `bess`, `vde_plug seqpacket://` |
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use crate::frame::MAX_FRAME;

/// A framing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Framing {
    /// A 32-bit big-endian length.
    #[default]
    Qemu,
    /// A 16-bit little-endian length.
    Little16,
    /// A 16-bit big-endian length.
    Big16,
    /// A message for each frame.
    Packets,
}

/// Most bytes of a length.
pub const PREFIX: u32 = 4;

impl Framing {
    /// The framing of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "qemu" => Self::Qemu,
            "u16le" => Self::Little16,
            "u16be" => Self::Big16,
            "seqpacket" => Self::Packets,
            _ => return None,
        })
    }

    /// Bytes of length before each frame; a message has none on the wire, but one in our [`super::inbox::Inbox`].
    #[must_use]
    #[inline]
    pub fn prefix(self) -> u32 {
        match self {
            Self::Qemu | Self::Packets => 4,
            Self::Little16 | Self::Big16 => 2,
        }
    }

    /// The largest frame in bytes.
    #[must_use]
    #[inline]
    pub fn max_frame(self) -> u32 {
        match self {
            Self::Qemu | Self::Packets => MAX_FRAME,
            Self::Little16 | Self::Big16 => 0xffff,
        }
    }

    /// A length, at most [`Framing::max_frame`], as it stands before its frame: the first [`Framing::prefix`] bytes.
    #[must_use]
    #[inline]
    pub fn encode(self, len: u32) -> [u8; 4] {
        let short = || u16::try_from(len).unwrap_or(0);
        match self {
            Self::Qemu | Self::Packets => len.to_be_bytes(),
            Self::Little16 => {
                let [a, b] = short().to_le_bytes();
                [a, b, 0, 0]
            }
            Self::Big16 => {
                let [a, b] = short().to_be_bytes();
                [a, b, 0, 0]
            }
        }
    }

    /// The bytes of an encoded length that stand before the frame.
    #[must_use]
    #[inline]
    pub fn written(self, encoded: &[u8; 4]) -> &[u8] {
        let n = if self.prefix() == 2 { 2 } else { 4 };
        encoded.get(..n).unwrap_or_default()
    }

    /// The length that stands so.
    #[must_use]
    #[inline]
    pub fn decode(self, [a, b, c, d]: [u8; 4]) -> u32 {
        match self {
            Self::Qemu | Self::Packets => u32::from_be_bytes([a, b, c, d]),
            Self::Little16 => u16::from_le_bytes([a, b]).into(),
            Self::Big16 => u16::from_be_bytes([a, b]).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_as_they_are_written() {
        for framing in [Framing::Qemu, Framing::Little16, Framing::Big16, Framing::Packets] {
            for len in [1, 60, 255, 256, 1514, 0xfffe, framing.max_frame()] {
                assert_eq!(framing.decode(framing.encode(len)), len, "{framing:?}");
            }
        }
        assert_eq!(Framing::Qemu.encode(0x0102), [0, 0, 1, 2]);
        assert_eq!(Framing::Little16.encode(0x0102), [2, 1, 0, 0]);
        assert_eq!(Framing::Big16.encode(0x0102), [1, 2, 0, 0]);
    }
}
