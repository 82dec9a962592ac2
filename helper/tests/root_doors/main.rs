//! The helper's doors from outside: the program itself, with a policy of its own, asked by ordinary users.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod bridge;
mod exec;
mod kill;
mod place;
mod service;
