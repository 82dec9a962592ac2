//! What the provider makes, looked at from outside: each test in a network namespace of its own, which goes away with
//! the test's thread.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]
#![allow(clippy::print_stdout, reason = "a child test tells its parent that it is ready")]

mod crash;
mod door;
mod least;
mod packet;
mod ring;
mod socket;
mod support;
mod tap;
mod xsk;
