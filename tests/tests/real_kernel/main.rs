//! netreeve on a Debian kernel that is not this machine's: Linux 6.1 where this is Debian 12. A guest is booted that is
//! no VM of netreeve's but its machine, and the tests of [`inside`] are run in it, by this very program.
//!
//! By hand, as root, where the machine has what they want: `cargo test --test real_kernel -- --ignored inside::`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]
#![allow(clippy::print_stderr, reason = "figures for whoever reads the log")]

mod inside;

use netreeve_tests::guest::proving::Proving;
use std::env;
use std::time::{Duration, Instant};

/// The tests of [`inside`], of which none may be missing.
const INSIDE: &[&str] = &[
    "helper::a_tap_on_a_bridge_carries_streams",
    "helper::an_interfaces_queue_carries_streams",
    "socket::a_hub_of_streams_carries_frames",
    "socket::a_virtual_machines_socket_is_dialled",
    "socket::a_virtual_machines_socket_is_listened_at",
    "user::a_command_of_roots_has_a_network",
    "user::an_ordinary_users_command_has_a_network",
    "user::what_this_machine_can_do_is_said",
];

/// How long all of them may take: nothing there is quick.
const PATIENCE: Duration = Duration::from_secs(300);

#[test]
fn netreeve_works_on_debians_kernel() {
    let began = Instant::now();
    let guest = Proving::boot(&[("real_kernel", env::current_exe().unwrap())]).unwrap();
    eprintln!("Linux {} after {:?}", guest.kernel().unwrap(), began.elapsed());
    let script = "./real_kernel --ignored --test-threads=1 --show-output inside::";
    let end = guest.run(script, PATIENCE).unwrap();
    eprintln!("{}\nafter {:?}", end.text, began.elapsed());
    assert_eq!(end.code, 0, "in the guest");
    for name in INSIDE {
        assert!(end.text.contains(&format!("test inside::{name} ... ok")), "{name} was not run");
    }
    guest.power_off().unwrap();
}
