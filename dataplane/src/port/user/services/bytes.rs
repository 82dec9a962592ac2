//! Reading bytes that nobody vouches for, and writing bounded ones.
//!
//! Trust: none. Promise: nothing is read beyond what there is, nothing is written beyond what there may be; what does
//! not fit is not there.
#![forbid(unsafe_code)]

/// Reads forward.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Begins at the first byte.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (first, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(first)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    /// The next byte.
    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[b]| b)
    }

    /// The next 16 bits, big-endian.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next 32 bits, big-endian.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// The bytes up to the next zero, which is passed as well. None: there is no zero.
    pub fn text(&mut self) -> Option<&'a [u8]> {
        let at = self.0.iter().position(|b| *b == 0)?;
        let text = self.take(at)?;
        self.take(1)?;
        Some(text)
    }

    /// All that is left.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// Nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The length of something that is bounded far below 65536, as a 16-bit field has it.
#[must_use]
pub fn n16(n: usize) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

/// The length of something that is bounded below 256, as a byte has it.
#[must_use]
pub fn n8(n: usize) -> u8 {
    u8::try_from(n).unwrap_or(u8::MAX)
}

/// Writes `bytes` over what stands at `at`; nothing if they do not fit there.
pub fn patch(out: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(to) = out.get_mut(at..).and_then(|o| o.get_mut(..bytes.len())) {
        to.copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_to_the_end_and_not_beyond() {
        let mut r = Reader::new(&[1, 2, 3, b'a', 0, 9]);
        assert_eq!(r.u8(), Some(1));
        assert_eq!(r.u16(), Some(0x0203));
        assert_eq!(r.u32(), None);
        assert_eq!(r.text(), Some(&b"a"[..]));
        assert_eq!(r.text(), None);
        assert_eq!(r.rest(), [9]);
        assert_eq!(r.take(2), None);
        assert_eq!(r.take(1), Some(&[9][..]));
        assert!(r.is_empty());
    }

    #[test]
    fn a_patch_that_does_not_fit_is_none() {
        let mut b = [0; 4];
        patch(&mut b, 2, &[1, 2]);
        patch(&mut b, 3, &[9, 9]);
        patch(&mut b, 9, &[9]);
        assert_eq!(b, [0, 0, 1, 2]);
    }
}
