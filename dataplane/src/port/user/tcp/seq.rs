//! Sequence numbers: positions in a stream of bytes, counted around 2^32 (RFC 9293 §3.4).
//!
//! Trust: none needed. Promise: comparisons are right for positions less than 2^31 bytes apart.
#![forbid(unsafe_code)]

/// A position in one direction of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seq(pub(super) u32);

impl Seq {
    /// This many bytes further.
    #[must_use]
    #[inline]
    pub(super) fn plus(self, n: u32) -> Self {
        Self(self.0.wrapping_add(n))
    }

    /// This many bytes back.
    #[must_use]
    #[inline]
    pub(super) fn minus(self, n: u32) -> Self {
        Self(self.0.wrapping_sub(n))
    }

    /// Bytes from `from` to here.
    #[must_use]
    #[inline]
    pub(super) fn since(self, from: Self) -> u32 {
        self.0.wrapping_sub(from.0)
    }

    /// It lies before `other`.
    #[must_use]
    #[inline]
    pub(super) fn before(self, other: Self) -> bool {
        self.since(other).cast_signed() < 0
    }

    /// The later of both.
    #[must_use]
    #[inline]
    pub(super) fn max(self, other: Self) -> Self {
        if self.before(other) { other } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_counted_around() {
        let (a, b) = (Seq(u32::MAX - 1), Seq(u32::MAX - 1).plus(10));
        assert_eq!(b, Seq(8));
        assert!(a.before(b) && !b.before(a) && !a.before(a));
        assert_eq!((b.since(a), b.minus(10), a.max(b), b.max(a)), (10, a, b, b));
    }
}
