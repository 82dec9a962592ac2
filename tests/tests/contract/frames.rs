//! Frames that can be told apart: by check, by number and by every byte.

use std::sync::LazyLock;

use netreeve_tests::transfer::Noise;

use crate::far::MOST;

/// IEEE's EtherType for local experiments: no stack answers to it.
pub(crate) const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
/// RARP's.
pub(crate) const OTHERS: [u8; 2] = [0x80, 0x35];
/// Frames of this check are only to find out whether a way is open. They may come late, or never.
pub(crate) const PROBE: u32 = 0xffff_ffff;
/// Bytes that a frame needs to say which it is.
pub(crate) const TELLS: usize = 22;

/// Frames begin at one of so many places in the noise.
const PLACES: usize = 1021;

/// Bytes without a pattern, so that a frame that is shifted or torn is like no other.
static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut noise = vec![0; MOST + 2 + PLACES];
    Noise::new(1).fill(&mut noise);
    noise
});

/// Frame number `n` of a check, of `len` bytes, sent by the netdev's side or by the device's.
pub(crate) fn frame(check: u32, n: u32, len: usize, by_netdev: bool) -> Vec<u8> {
    let from = if by_netdev { 1 } else { 2 };
    let mut f = [&[0xff; 6][..], &[2, 0, 0, 0, 0, from], &ETHERTYPE].concat();
    f.extend(check.to_be_bytes());
    f.extend(n.to_be_bytes());
    let at = (n as usize).wrapping_mul(31).wrapping_add(check as usize * 7) % PLACES;
    f.extend(&NOISE[at..at + len.saturating_sub(f.len())]);
    f.truncate(len);
    f
}

/// Which check's a frame is, and its number.
pub(crate) fn read(frame: &[u8]) -> Option<(u32, u32)> {
    let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
    (frame.len() >= TELLS && frame[12..14] == ETHERTYPE).then(|| (word(14), word(18)))
}
