//! Virtqueues, split and packed (virtio 1.2 §2.7, §2.8), device side and driver side, and how frames pass through them.
//!
//! Trust: none; the other side writes the rings and buffers as it likes. Promise: bounded work for each chain and each
//! turn, every descriptor read once, bad chains completed with length 0 and counted, every chain completed in ring order
//! (which is what `IN_ORDER` promises).
#![forbid(unsafe_code)]

pub mod chain;
pub mod device;
pub mod driver;
pub mod give;
mod packed;
mod split;
pub mod take;
pub mod terms;
#[cfg(test)]
pub(crate) mod testing;

pub use chain::{Chain, Chains};
pub use device::{Device, recover};
pub use driver::{Buf, Driver};
pub use give::Giver;
pub use take::Taker;
pub use terms::Terms;
