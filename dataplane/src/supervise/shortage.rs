//! What a `user` network has less of than it might: said once, at the start, or what is to be done.
//!
//! Trust: the kernel, which says what there is. Promise: nothing is refused that would work.
#![forbid(unsafe_code)]

use nix::sys::resource::{Resource, getrlimit};

use super::{make_room, say};
use crate::fault::{Exit, Fault};
use crate::port::user::icmp;
use crate::port::user::plan::Limits;

/// Descriptors beside those of forwards, at least: what else there is, and a few flows.
const SPARE: usize = 512;

/// Says once what a guest's pings will come to, where that is less than what they might.
fn say_pings(what: &str, (four, six): (bool, bool)) {
    let of = match (four, six) {
        (true, true) => return,
        (false, true) => "IPv4 ",
        (true, false) => "IPv6 ",
        (false, false) => "",
    };
    say::say(&format!(
        "{what}: only the gateway answers a guest's {of}pings: the kernel gives this user no socket for others \
         (sysctl net.ipv4.ping_group_range)"
    ));
}

/// Says once what a guest will find less of than elsewhere; so many sockets listen for it.
pub(super) fn say_limits(what: &str, restrict: bool, listen: usize) {
    if !restrict {
        say_pings(what, icmp::allowed());
    }
    let limits = Limits::default();
    let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let most = limits.within(hard.saturating_sub(listen as u64)).tcp;
    if most < limits.tcp {
        let too = if listen > SPARE { format!(", {listen} of them for ports") } else { String::new() };
        say::say(&format!(
            "{what}: {most} TCP connections at a time, not {}: nothing here may have more than {hard} descriptors{too} \
             (ulimit -Hn)",
            limits.tcp
        ));
    }
}

/// Makes room for the sockets of so many ports: each is one here and one in the dataplane.
///
/// # Errors
/// The limit is too low.
pub(super) fn room_for(what: &str, ports: usize) -> Result<(), Fault> {
    let wanted = ports.saturating_add(SPARE) as u64;
    make_room(wanted);
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return Ok(()) };
    if soft >= wanted {
        return Ok(());
    }
    let why = format!(
        "its forwards listen at {ports} ports, and nothing here may have more than {hard} descriptors"
    );
    let fix = format!("forward fewer ports, or raise the limit (ulimit -Hn {wanted})");
    Err(Fault::new(Exit::Unavailable, what, why, fix))
}
