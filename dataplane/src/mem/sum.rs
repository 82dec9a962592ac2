//! One's complement sums over memory (RFC 1071), as fast as the processor reads: 32 bytes a step where it has AVX2, else
//! eight, in four chains that do not wait for each other.
//!
//! Trust: the bytes may change while they are read; then the sum is of some mixture, as a copy's would be. Promise:
//! exactly the run's bytes are read.

use crate::mem::Seg;

/// The sum of the run's 16-bit words in native byte order, an odd last byte counting as a word's first: not folded, but
/// so small that thousands of them can be added.
#[must_use]
#[inline]
pub fn seg(s: &Seg) -> u64 {
    let v = s.iovec();
    // SAFETY: the run is mapped and readable (Seg's type invariant).
    unsafe { run(v.iov_base.cast(), v.iov_len) }
}

/// The same of a slice.
#[must_use]
#[inline]
pub fn bytes(b: &[u8]) -> u64 {
    // SAFETY: a slice is readable.
    unsafe { run(b.as_ptr(), b.len()) }
}

/// # Safety
/// `n` bytes from `p` are readable.
#[inline]
unsafe fn run(p: *const u8, n: usize) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if n >= 128 && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2; the caller vouches for the run.
        return unsafe { wide(p, n) };
    }
    // SAFETY: the caller vouches for the run.
    unsafe { narrow(p, n) }
}

/// Brings a sum of 64-bit words down to 34 bits.
fn halves(s: u64) -> u64 {
    (s >> 32) + (s & 0xffff_ffff)
}

/// # Safety
/// `n` bytes from `p` are readable.
#[allow(clippy::multiple_unsafe_ops_per_block, reason = "reads inside one run, all for one reason")]
unsafe fn narrow(p: *const u8, n: usize) -> u64 {
    let (mut chains, mut at) = ([0u64; 4], 0);
    while n - at >= 32 {
        for (i, c) in chains.iter_mut().enumerate() {
            // SAFETY: at + 32 <= n, so the four words lie in the run; alignment is not assumed.
            let w = unsafe { p.add(at + i * 8).cast::<u64>().read_unaligned() };
            let (s, carry) = c.overflowing_add(w);
            // A carry out of 64 bits comes in again below (RFC 1071 §2): it cannot overflow a second time.
            *c = s.wrapping_add(u64::from(carry));
        }
        at += 32;
    }
    let mut sum = chains.iter().map(|c| halves(*c)).sum::<u64>();
    while n - at >= 8 {
        // SAFETY: at + 8 <= n.
        sum += halves(unsafe { p.add(at).cast::<u64>().read_unaligned() });
        at += 8;
    }
    let mut last = [0u8; 8];
    for (i, b) in last.iter_mut().take(n - at).enumerate() {
        // SAFETY: at + i < n.
        *b = unsafe { p.add(at + i).read() };
    }
    sum + halves(u64::from_ne_bytes(last))
}

/// # Safety
/// The processor has AVX2, and `n` bytes from `p` are readable.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[allow(clippy::multiple_unsafe_ops_per_block, reason = "reads inside one run, all for one reason")]
unsafe fn wide(p: *const u8, n: usize) -> u64 {
    use std::arch::x86_64::{
        __m256i, _mm256_add_epi64, _mm256_and_si256, _mm256_loadu_si256, _mm256_set1_epi64x,
        _mm256_setzero_si256, _mm256_srli_epi64, _mm256_storeu_si256,
    };
    let low = _mm256_set1_epi64x(0xffff_ffff);
    let (mut a, mut b, mut at) = (_mm256_setzero_si256(), _mm256_setzero_si256(), 0);
    while n - at >= 64 {
        // SAFETY: at + 64 <= n; the loads do not need alignment.
        let (v, w) = unsafe {
            (_mm256_loadu_si256(p.add(at).cast()), _mm256_loadu_si256(p.add(at + 32).cast::<__m256i>()))
        };
        // Each 64-bit lane takes one half of every word: no carry before 2^32 steps.
        a = _mm256_add_epi64(a, _mm256_add_epi64(_mm256_and_si256(v, low), _mm256_and_si256(w, low)));
        b = _mm256_add_epi64(b, _mm256_add_epi64(_mm256_srli_epi64::<32>(v), _mm256_srli_epi64::<32>(w)));
        at += 64;
    }
    let mut lanes = [0u64; 4];
    // SAFETY: four lanes of eight bytes are room for 32.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), _mm256_add_epi64(a, b)) };
    // SAFETY: what is left of the run.
    let rest = unsafe { narrow(p.add(at), n - at) };
    lanes.iter().map(|l| halves(*l)).sum::<u64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071 §4.1 in native order.
    fn slow(b: &[u8]) -> u64 {
        b.chunks(2).map(|w| u64::from(u16::from_ne_bytes([w[0], *w.get(1).unwrap_or(&0)]))).sum()
    }

    /// Equal as one's complement numbers.
    fn same(a: u64, b: u64) -> bool {
        a % 0xffff == b % 0xffff && (a == 0) == (b == 0)
    }

    #[test]
    fn every_length_at_every_alignment_is_right() {
        let memory: Vec<u8> = (0..5000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 23) as u8).collect();
        for at in 0..9 {
            for n in (0..400).chain([1447, 1448, 1499, 4000]) {
                let b = &memory[at..at + n];
                assert!(same(bytes(b), slow(b)), "{at} {n}");
                // SAFETY: a slice is readable.
                assert!(same(unsafe { narrow(b.as_ptr(), n) }, slow(b)), "{at} {n}");
            }
        }
        let ones = vec![0xff; 70_000];
        assert!(same(bytes(&ones), slow(&ones)));
        assert!(bytes(&ones) < 1 << 48, "many can be added");
        assert_eq!(bytes(&[0; 3000]), 0);
    }
}
