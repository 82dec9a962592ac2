//! Memory that others change under us: guest memory, UMEM, rings, and our own pools.
//!
//! Trust: none; every byte and index read here may change between two reads. Promise: such memory is reached only
//! through [`Seg`] (copy in, copy out, iovec) and the ring views, never as `&[u8]`; every bound is checked in release
//! builds. With `sys` this is the only unsafe code of the data path.

pub mod buf;
pub mod guest;
mod map;
pub mod packed;
pub mod seg;
pub mod sigbus;
pub mod split;
pub mod spool;
pub mod sum;
pub mod uring;
pub mod xring;

pub use buf::{Buf, Pool};
pub use guest::GuestMemory;
pub use seg::Seg;
