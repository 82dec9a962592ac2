//! The ports tap and af-xdp on real kernel objects, given by the helper's own code: traffic of the kernel's stacks
//! through lanes, odd frames, devices that go away, and dataplanes that are killed. Needs root, iproute2, iperf3 and ping.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking, and its figures are small and chosen"
)]

#[path = "root_ports/changes.rs"]
mod changes;
#[path = "root_ports/crowd.rs"]
mod crowd;
#[path = "root_ports/datagrams.rs"]
mod datagrams;
#[path = "root_ports/own.rs"]
mod own;
#[path = "root_ports/streams.rs"]
mod streams;
#[path = "root_ports/support.rs"]
mod support;
#[path = "root_ports/tap.rs"]
mod tap;
#[path = "root_ports/undone.rs"]
mod undone;
#[path = "root_ports/user.rs"]
mod user;
#[path = "root_ports/xsk.rs"]
mod xsk;
