//! What is said through the door of a guest forward: the dataplane asks for one more connection, the supervisor makes it.
//!
//! A door is a pair of connected `SOCK_SEQPACKET` sockets. A question is a number of the asker's choice, an answer the same
//! number and the kernel's error (0: the connection travels with it).
//!
//! Trust: the reader judges lengths; an answer to what was not asked is passed over. Promise: pure functions.
#![forbid(unsafe_code)]

/// A question.
#[must_use]
pub fn ask(number: u32) -> [u8; 4] {
    number.to_ne_bytes()
}

/// Its number.
#[must_use]
pub fn read_ask(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

/// An answer; `errno` 0: the connection travels with it.
#[must_use]
pub fn answer(number: u32, errno: i32) -> [u8; 8] {
    let [a, b, c, d] = number.to_ne_bytes();
    let [e, f, g, h] = errno.to_ne_bytes();
    [a, b, c, d, e, f, g, h]
}

/// Its number and error.
#[must_use]
pub fn read_answer(bytes: &[u8]) -> Option<(u32, i32)> {
    let [a, b, c, d, e, f, g, h] = *<&[u8; 8]>::try_from(bytes).ok()?;
    Some((u32::from_ne_bytes([a, b, c, d]), i32::from_ne_bytes([e, f, g, h])))
}
