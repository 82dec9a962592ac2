//! The Internet checksum (RFC 1071) over bytes and over memory that others change.
//!
//! Sums are kept in native byte order, which the algorithm allows (RFC 1071 §2(B)); only the folded result is stored,
//! in the same order in which the bytes were read, and so is right on the wire on every machine.
#![forbid(unsafe_code)]

use crate::mem::{Seg, sum};

/// A running one's complement sum that knows whether it stands at an odd byte.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    total: u64,
    odd: bool,
}

impl Sum {
    /// Adds bytes.
    #[inline]
    pub fn bytes(&mut self, b: &[u8]) {
        self.add(sum::bytes(b), b.len() % 2 == 1);
    }

    /// Adds the bytes of a run of shared memory.
    #[inline]
    pub fn seg(&mut self, seg: &Seg) {
        self.add(sum::seg(seg), seg.len() % 2 == 1);
    }

    #[inline]
    fn add(&mut self, words: u64, odd: bool) {
        let part = fold(words);
        let part = if self.odd { part.swap_bytes() } else { part };
        self.total += u64::from(part);
        self.odd ^= odd;
    }

    /// Adds a 16-bit value as it stands on the wire (big-endian). Only at an even byte.
    #[inline]
    pub fn be16(&mut self, v: u16) {
        self.total += u64::from(u16::from_ne_bytes(v.to_be_bytes()));
    }

    /// The checksum: the complement of the sum, as the two bytes to be stored. All zero is stored as all one, which
    /// means the same sum and cannot be read as "no checksum" (RFC 768).
    #[must_use]
    #[inline]
    pub fn finish(self) -> [u8; 2] {
        match !fold(self.total) {
            0 => [0xff, 0xff],
            c => c.to_ne_bytes(),
        }
    }

    /// The sum itself, as the two bytes of a field that is to be completed later.
    #[must_use]
    #[inline]
    pub fn partial(self) -> [u8; 2] {
        fold(self.total).to_ne_bytes()
    }
}

/// Folds to 16 bits with end-around carry.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "the last folds leave at most 16 bits")]
fn fold(mut s: u64) -> u16 {
    s = (s >> 32) + (s & 0xffff_ffff);
    s = (s >> 32) + (s & 0xffff_ffff);
    s = (s >> 16) + (s & 0xffff);
    s = (s >> 16) + (s & 0xffff);
    s = (s >> 16) + (s & 0xffff);
    s as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 §4.1, word by word.
    fn slow(b: &[u8]) -> u16 {
        let mut s = 0u32;
        for w in b.chunks(2) {
            s += u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0));
            s = (s & 0xffff) + (s >> 16);
        }
        s as u16
    }

    #[test]
    fn rfc_1071_example() {
        let mut s = Sum::default();
        s.bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(s.partial(), [0xdd, 0xf2]);
        assert_eq!(s.finish(), [0x22, 0x0d]);
    }

    proptest! {
        #[test]
        fn equals_the_slow_way_however_it_is_cut(b in prop::collection::vec(any::<u8>(), 0..3000), cuts in prop::collection::vec(0usize..3000, 0..5)) {
            let mut at = 0;
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(b.len())).collect();
            cuts.push(b.len());
            cuts.sort_unstable();
            let mut s = Sum::default();
            for c in cuts {
                s.bytes(&b[at..c]);
                at = c;
            }
            let got = u16::from_be_bytes(s.partial());
            let want = slow(&b);
            // Zero has two forms.
            prop_assert!(got == want || got % 0xffff == want % 0xffff);
        }
    }
}
