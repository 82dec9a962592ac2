//! The two file formats: classic pcap (draft-ietf-opsawg-pcap) and pcapng (draft-ietf-opsawg-pcapng), little-endian.
//!
//! Promise: whatever the frames are, what is written is well-formed; each call appends whole records.
#![forbid(unsafe_code)]

use crate::mem::spool::Counts;
pub use crate::spec::filter::Format;
use crate::stage::record::Head;

/// `LINKTYPE_ETHERNET`.
const ETHERNET: u16 = 1;
/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;
/// Who writes.
const APPLICATION: &str = concat!("netreeve ", env!("CARGO_PKG_VERSION"));

/// What stands in a capture's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// How it is written.
    pub format: Format,
    /// Most bytes that are kept of a frame.
    pub keep: u32,
    /// The port's name.
    pub port: String,
    /// The port's type.
    pub kind: String,
    /// Queues of the port.
    pub queues: u16,
}

/// pcapng's blocks.
mod block {
    pub(super) const SECTION: u32 = 0x0a0d_0d0a;
    pub(super) const INTERFACE: u32 = 1;
    pub(super) const STATISTICS: u32 = 5;
    pub(super) const PACKET: u32 = 6;
}

fn u32_of(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Appends zeros up to a multiple of four bytes from `start`.
fn pad(out: &mut Vec<u8>, start: usize) {
    let len = out.len() - start;
    out.resize(start + len.next_multiple_of(4), 0);
}

/// Appends an option: code, length, value, padding.
fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = value.get(..value.len().min(1024)).unwrap_or_default();
    out.extend(code.to_le_bytes());
    out.extend(u16::try_from(value.len()).unwrap_or(0).to_le_bytes());
    let start = out.len();
    out.extend_from_slice(value);
    pad(out, start);
}

/// Appends a block: type, length, what `body` appends, length.
fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    body(out);
    let len = u32_of(out.len() - start + 4).to_le_bytes();
    if let Some(to) = out.get_mut(start + 4..start + 8) {
        to.copy_from_slice(&len);
    }
    out.extend(len);
}

/// A time in the two halves of a 64-bit number, the high one first.
fn halves(time: u64) -> [u8; 8] {
    let (mut out, time) = ([0; 8], time.to_le_bytes());
    out.iter_mut().zip(time.iter().skip(4).chain(time.iter().take(4))).for_each(|(to, from)| *to = *from);
    out
}

impl About {
    /// Appends what a file begins with.
    pub fn begin(&self, out: &mut Vec<u8>) {
        let magic: u32 = match self.format {
            Format::Pcapng => return self.begin_ng(out),
            Format::Pcap => 0xa1b2_c3d4,
            Format::PcapNs => 0xa1b2_3c4d,
        };
        out.extend(magic.to_le_bytes());
        out.extend([2, 0, 4, 0]);
        out.extend([0; 8]);
        out.extend(self.keep.to_le_bytes());
        out.extend(u32::from(ETHERNET).to_le_bytes());
    }

    fn begin_ng(&self, out: &mut Vec<u8>) {
        block(out, block::SECTION, |out| {
            out.extend(0x1a2b_3c4d_u32.to_le_bytes());
            out.extend([1, 0, 0, 0]);
            // Its length is not known.
            out.extend([0xff; 8]);
            option(out, 4, APPLICATION.as_bytes());
            option(out, 0, &[]);
        });
        block(out, block::INTERFACE, |out| {
            out.extend(ETHERNET.to_le_bytes());
            out.extend([0; 2]);
            out.extend(self.keep.to_le_bytes());
            option(out, 2, self.port.as_bytes());
            option(out, 3, format!("netreeve port of type {}", self.kind).as_bytes());
            // Times count nanoseconds.
            option(out, 9, &[9]);
            option(out, 0, &[]);
        });
    }

    /// Appends one frame; `copy` fills in what was kept of it.
    pub fn frame(&self, out: &mut Vec<u8>, h: &Head, queue: u16, copy: impl FnOnce(&mut [u8])) {
        if self.format == Format::Pcapng {
            return block(out, block::PACKET, |out| self.packet(out, h, queue, copy));
        }
        let scale = if self.format == Format::Pcap { 1000 } else { 1 };
        let (seconds, rest) = (h.time / SECOND, h.time % SECOND / scale);
        for word in [seconds, rest, u64::from(h.kept), u64::from(h.len)] {
            // Seconds are 32 bits without a sign: until 2106.
            out.extend(u32::try_from(word & 0xffff_ffff).unwrap_or(0).to_le_bytes());
        }
        bytes(out, h.kept, copy);
    }

    fn packet(&self, out: &mut Vec<u8>, h: &Head, queue: u16, copy: impl FnOnce(&mut [u8])) {
        out.extend([0; 4]);
        out.extend(halves(h.time));
        out.extend(h.kept.to_le_bytes());
        out.extend(h.len.to_le_bytes());
        let start = out.len();
        bytes(out, h.kept, copy);
        pad(out, start);
        let direction: u32 = if h.rx { 1 } else { 2 };
        option(out, 2, &direction.to_le_bytes());
        if h.lost > 0 {
            option(out, 4, &u64::from(h.lost).to_le_bytes());
        }
        if self.queues > 1 {
            option(out, 6, &u32::from(queue).to_le_bytes());
        }
        option(out, 0, &[]);
    }

    /// Appends the counts so far: frames that were to be captured, those of them that were lost, and those written.
    /// Classic pcap has no place for them.
    pub fn statistics(&self, out: &mut Vec<u8>, counts: Counts, written: u64, from: u64, to: u64) {
        if self.format != Format::Pcapng {
            return;
        }
        block(out, block::STATISTICS, |out| {
            out.extend([0; 4]);
            out.extend(halves(to));
            option(out, 2, &halves(from));
            option(out, 3, &halves(to));
            option(out, 4, &counts.seen.to_le_bytes());
            option(out, 5, &counts.lost.to_le_bytes());
            option(out, 8, &written.to_le_bytes());
            option(out, 0, &[]);
        });
    }
}

fn bytes(out: &mut Vec<u8>, kept: u32, copy: impl FnOnce(&mut [u8])) {
    let start = out.len();
    out.resize(start + kept as usize, 0);
    copy(out.get_mut(start..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(format: Format, queues: u16) -> About {
        About { format, keep: 65536, port: "n0".into(), kind: "tap".into(), queues }
    }

    fn hex(bytes: &[u8]) -> String {
        let words: Vec<String> =
            bytes.chunks(4).map(|w| w.iter().map(|b| format!("{b:02x}")).collect()).collect();
        words.join(" ")
    }

    /// 2025-01-02T03:04:05.123456789Z
    const TIME: u64 = 1_735_787_045_123_456_789;

    fn head(lost: u32) -> Head {
        Head { time: TIME, len: 60, lost, kept: 5, rx: true }
    }

    fn fill(to: &mut [u8]) {
        to.copy_from_slice(&[1, 2, 3, 4, 5]);
    }

    #[test]
    fn classic_pcap_byte_by_byte() {
        let mut out = Vec::new();
        about(Format::Pcap, 1).begin(&mut out);
        about(Format::Pcap, 1).frame(&mut out, &head(3), 0, fill);
        // What QEMU's filter-dump writes on a little-endian machine: 24 bytes, then 16 before each frame.
        let file = "d4c3b2a1 02000400 00000000 00000000 00000100 01000000";
        let frame = "25027667 40e20100 05000000 3c000000 01020304 05";
        assert_eq!(hex(&out), format!("{file} {frame}"));
        let mut out = Vec::new();
        about(Format::PcapNs, 1).begin(&mut out);
        about(Format::PcapNs, 1).frame(&mut out, &head(0), 0, fill);
        assert!(hex(&out).starts_with("4d3cb2a1 02000400"));
        assert!(hex(&out).ends_with("25027667 15cd5b07 05000000 3c000000 01020304 05"));
        about(Format::Pcap, 1).statistics(&mut out, Counts::default(), 0, 0, 0);
        assert_eq!(out.len(), 24 + 16 + 5, "no place for counts");
    }

    #[test]
    fn pcapng_byte_by_byte() {
        let ng = about(Format::Pcapng, 1);
        let mut out = Vec::new();
        ng.begin(&mut out);
        let version = hex(APPLICATION.as_bytes());
        assert_eq!(APPLICATION.len(), 14, "the text below is for that");
        let section = format!(
            "0a0d0d0a 34000000 4d3c2b1a 01000000 ffffffff ffffffff 04000e00 {version}0000 00000000 34000000"
        );
        let interface = "01000000 48000000 01000000 00000100 02000200 6e300000 03001900 \
                         6e657472 65657665 20706f72 74206f66 20747970 65207461 70000000 09000100 09000000 00000000 48000000";
        assert_eq!(hex(&out), format!("{section} {interface}"));
        let mut out = Vec::new();
        ng.frame(&mut out, &head(0), 0, fill);
        let time = format!("{:08x} {:08x}", ((TIME >> 32) as u32).swap_bytes(), (TIME as u32).swap_bytes());
        let packet = "06000000 34000000 00000000";
        let rest = "05000000 3c000000 01020304 05000000 02000400 01000000 00000000 34000000";
        assert_eq!(hex(&out), format!("{packet} {time} {rest}"));
        let mut out = Vec::new();
        about(Format::Pcapng, 4).frame(&mut out, &Head { rx: false, ..head(7) }, 3, fill);
        let packet = "06000000 48000000 00000000";
        let rest = "05000000 3c000000 01020304 05000000 02000400 02000000 \
                    04000800 07000000 00000000 06000400 03000000 00000000 48000000";
        assert_eq!(hex(&out), format!("{packet} {time} {rest}"));
        let mut out = Vec::new();
        ng.statistics(&mut out, Counts { seen: 9, lost: 2 }, 7, TIME, TIME);
        let statistics = format!(
            "05000000 58000000 00000000 {time} 02000800 {time} 03000800 {time} 04000800 09000000 00000000 \
             05000800 02000000 00000000 08000800 07000000 00000000 00000000 58000000"
        );
        assert_eq!(hex(&out), statistics);
    }

    #[test]
    fn every_length_is_padded_and_named_twice() {
        for kept in 0..9 {
            let mut out = vec![9; 3];
            about(Format::Pcapng, 1)
                .frame(&mut out, &Head { kept, len: kept, ..head(0) }, 0, |to| to.fill(7));
            let len = out.len() - 3;
            assert_eq!(len % 4, 0);
            assert_eq!(out[7..11], (len as u32).to_le_bytes());
            assert_eq!(out[out.len() - 4..], (len as u32).to_le_bytes());
        }
    }
}
