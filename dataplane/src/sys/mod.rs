//! System calls of the data path that no safe wrapper gives: scatter/gather into memory that others change, and the
//! options of taps and AF_XDP sockets.
//!
//! Trust: segments were made by `mem`, so they are mapped. Promise: each function is one call, short, and returns the
//! kernel's error as `io::Error`; no pointer outlives its call.

pub mod beneath;
pub mod fd;
pub mod io;
pub mod kernel;
pub mod mmsg;
pub mod poll;
pub mod process;
pub mod sandbox;
pub mod sock;
mod sock_name;
mod sock_said;
pub mod timer;
pub mod tun;
pub mod uring;
pub mod xdp;
