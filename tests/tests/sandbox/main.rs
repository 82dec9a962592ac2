//! The sandbox from within and from outside: named escapes run as code in the real thing, every rule of the filter and
//! every other system call tried, and what `/proc` says of a locked-in process. Needs root; makes its own namespaces.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::print_stderr,
    clippy::exit,
    clippy::macro_metavars_in_unsafe,
    unreachable_pub,
    missing_docs,
    reason = "a test fails by panicking, and an escape is attempted by raw system calls"
)]

mod escapes;
mod filter;
mod jail;
mod levels;
mod user;

use netreeve_dataplane::sandbox::call::Call;
use netreeve_dataplane::sandbox::seccomp::LOCKS;
use netreeve_dataplane::{engine, port};

/// What a dataplane with every port and several threads may call.
pub fn every_port() -> Vec<&'static [Call]> {
    use port::{dgram, hub, stream, tap, vhost_user, xsk};
    let ports = [tap::CALLS, xsk::CALLS, vhost_user::CALLS, stream::CALLS, dgram::CALLS, hub::CALLS];
    [engine::CALLS, LOCKS].into_iter().chain(ports).collect()
}
