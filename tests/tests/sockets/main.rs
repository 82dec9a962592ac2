//! Socket-shaped networks against foreign ends of the wire: QEMU's own backends, and sockets of this test's.
//!
//! QEMU runs without a machine: a hub joins its end of the wire to a stream, by which the test puts frames in and
//! takes them out. No privilege is needed.
//! Needs `NETREEVE_BIN_DIR` or binaries beside the test, and `tests/setup.sh`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

mod dump;
mod families;
mod filters;
mod hotplug;
mod partner;
mod reconnect;
mod stream;
mod support;
mod user;
mod vde;
mod wire;
mod wirefilter;
