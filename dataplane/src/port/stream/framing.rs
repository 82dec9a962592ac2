//! How frames stand in a connection.
//!
//! | framing | before each frame | who speaks it |
//! |---|---|---|
//! | `qemu` | 32-bit big-endian length | QEMU's `stream` and `socket`, passt, libkrun, gvproxy's `qemu`, socket_vmnet |
//! | `u16le` | 16-bit little-endian length | HyperKit, gvproxy's `stdio` and `vpnkit` |
//! | `u16be` | 16-bit big-endian length | `vde_plug` and `dpipe` on their standard streams |
//! | `seqpacket` | nothing: a message each (`SOCK_SEQPACKET`) | gvproxy's `bess`, `vde_plug seqpacket://` |
//! | `vnet` | 32-bit big-endian length, header included; 32-bit big-endian length of the virtio-net header; that header | QEMU's filters and `colo-compare` with `vnet_hdr_support` |
#![forbid(unsafe_code)]

use netreeve_shared::vnet::{self, Vnet};
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
    /// A length, a header's length, and that virtio-net header.
    Vnet,
}

/// Longest virtio-net header that is read; its first ten bytes are the same in all of them.
pub const MOST_HEADER: u32 = 64;
/// Shortest one.
pub const LEAST_HEADER: u32 = 10;
/// Most bytes before a frame.
pub const PREFIX: u32 = 8 + MOST_HEADER;
/// Bytes before a frame that are written where the header goes with it: the two lengths and the header with `num_buffers`.
const WITH_HEADER: usize = 8 + vnet::LEN;

impl Framing {
    /// The framing of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "qemu" => Self::Qemu,
            "u16le" => Self::Little16,
            "u16be" => Self::Big16,
            "seqpacket" => Self::Packets,
            "vnet" => Self::Vnet,
            _ => return None,
        })
    }

    /// The largest frame in bytes.
    #[must_use]
    #[inline]
    pub fn max_frame(self) -> u32 {
        match self {
            Self::Qemu | Self::Packets | Self::Vnet => MAX_FRAME,
            Self::Little16 | Self::Big16 => 0xffff,
        }
    }
}

/// What stands before a frame that is sent, as the loop over frames is compiled for it.
pub(super) trait Form {
    /// The bytes.
    type Prefix: Copy + AsRef<[u8]>;
    /// Before a frame that is not to be sent.
    const NONE: Self::Prefix;

    /// Before a frame of `len` bytes, at most [`Framing::max_frame`].
    fn encode(len: u32, v: &Vnet) -> Self::Prefix;

    /// The frame's bytes; none for [`Form::NONE`].
    fn length(p: &Self::Prefix) -> u32;
}

/// [`Framing::Qemu`], and our own of messages.
pub(super) struct Big32;
/// [`Framing::Little16`].
pub(super) struct Little;
/// [`Framing::Big16`].
pub(super) struct Big;
/// [`Framing::Vnet`].
pub(super) struct WithVnet;

fn short(len: u32) -> u16 {
    u16::try_from(len).unwrap_or(0)
}

impl Form for Big32 {
    type Prefix = [u8; 4];
    const NONE: [u8; 4] = [0; 4];

    #[inline]
    fn encode(len: u32, _: &Vnet) -> [u8; 4] {
        len.to_be_bytes()
    }

    #[inline]
    fn length(p: &[u8; 4]) -> u32 {
        u32::from_be_bytes(*p)
    }
}

impl Form for Little {
    type Prefix = [u8; 2];
    const NONE: [u8; 2] = [0; 2];

    fn encode(len: u32, _: &Vnet) -> [u8; 2] {
        short(len).to_le_bytes()
    }

    fn length(p: &[u8; 2]) -> u32 {
        u16::from_le_bytes(*p).into()
    }
}

impl Form for Big {
    type Prefix = [u8; 2];
    const NONE: [u8; 2] = [0; 2];

    fn encode(len: u32, _: &Vnet) -> [u8; 2] {
        short(len).to_be_bytes()
    }

    fn length(p: &[u8; 2]) -> u32 {
        u16::from_be_bytes(*p).into()
    }
}

impl Form for WithVnet {
    type Prefix = [u8; WITH_HEADER];
    const NONE: Self::Prefix = [0; WITH_HEADER];

    fn encode(len: u32, v: &Vnet) -> Self::Prefix {
        let mut p = Self::NONE;
        let header = u32::try_from(vnet::LEN).unwrap_or(0);
        let words = [len + header, header].into_iter().flat_map(u32::to_be_bytes);
        p.iter_mut().zip(words.chain(v.to_le(1))).for_each(|(to, from)| *to = from);
        p
    }

    fn length(p: &Self::Prefix) -> u32 {
        let len = p.first_chunk().map_or(0, |len| u32::from_be_bytes(*len));
        len.saturating_sub(u32::try_from(vnet::LEN).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<F: Form>(most: u32) {
        for len in [1, 60, 255, 256, 1514, 0xfffe, most] {
            assert_eq!(F::length(&F::encode(len, &Vnet::default())), len);
        }
        assert_eq!(F::length(&F::NONE), 0);
    }

    #[test]
    fn lengths_are_read_as_they_are_written() {
        check::<Big32>(MAX_FRAME);
        check::<WithVnet>(MAX_FRAME);
        check::<Little>(0xffff);
        check::<Big>(0xffff);
        let plain = Vnet::default();
        assert_eq!(Big32::encode(0x0102, &plain), [0, 0, 1, 2]);
        assert_eq!(Little::encode(0x0102, &plain), [2, 1]);
        assert_eq!(Big::encode(0x0102, &plain), [1, 2]);
        let v = Vnet { flags: 1, csum_start: 34, csum_offset: 6, ..plain };
        let with = WithVnet::encode(0x0102, &v);
        assert_eq!(with, [0, 0, 1, 14, 0, 0, 0, 12, 1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 1, 0]);
    }
}
