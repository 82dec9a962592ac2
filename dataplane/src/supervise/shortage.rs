//! What a `user` network has less of than it might, or than was asked for: said at the start, or refused with what is to be
//! done.
//!
//! Descriptors are what there may be too few of. A port that a forward listens at takes one here and one in the dataplane;
//! a flow takes one there. Both processes have one limit.
//!
//! Trust: the kernel, which says what there is. Promise: what was asked for by number fits, or is refused before anything is
//! opened, with the numbers; nothing is refused that would work.
#![forbid(unsafe_code)]

use nix::sys::resource::{Resource, getrlimit};

use super::{make_room, say};
use crate::fault::{Exit, Fault};
use crate::port::user::icmp;
use crate::port::user::plan::{LATER, Limits};
use crate::spec::user::User;
use crate::spec::{Config, Kind};

/// Descriptors beside those of forwards, at least: what else there is, and a few flows.
const SPARE: u64 = 512;

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
pub(super) fn say_limits(what: &str, restrict: bool, listen: usize, limits: Limits) {
    if !restrict {
        say_pings(what, icmp::allowed());
    }
    let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let most = limits.within(hard.saturating_sub(listen as u64)).tcp;
    if most < limits.tcp {
        let too = if listen as u64 > SPARE { format!(", {listen} of them for ports") } else { String::new() };
        say::say(&format!(
            "{what}: {most} TCP connections at a time, not {}: nothing here may have more than {hard} descriptors{too} \
             (ulimit -Hn)",
            limits.tcp
        ));
    }
}

/// Makes room for all that is asked for by number.
///
/// # Errors
/// The limit is too low.
pub(super) fn check(config: &Config) -> Result<(), Fault> {
    let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return Ok(()) };
    let mut taken = 0;
    for p in &config.ports {
        if let Kind::User(user) = &p.kind {
            // All are in one dataplane, where what is spared is spared once.
            let left = hard.saturating_sub(taken);
            taken += fits(&format!("port '{}'", p.id), user, left)?.saturating_sub(SPARE);
        }
    }
    make_room(taken + SPARE);
    Ok(())
}

/// How many descriptors a process of a network's takes, of `hard` that it may have.
fn fits(what: &str, user: &User, hard: u64) -> Result<u64, Fault> {
    let ports: usize = user.forwards.iter().map(|f| f.listen.ports()).sum();
    // Each may be a door, which has another end here.
    let others = ports as u64 + 2 * user.guest_forwards.len() as u64 + SPARE;
    let limits = user.limits();
    let flows = if user.quota.flows.is_some() { limits.descriptors() } else { 0 };
    let wanted = others.saturating_add(flows);
    if wanted <= hard {
        return Ok(wanted);
    }
    let fault = |why: String, fix: String| Err(Fault::new(Exit::Unavailable, what, why, fix));
    let raise = format!("raise the limit (ulimit -Hn {wanted})");
    let most = format!("nothing here may have more than {hard} descriptors");
    if flows == 0 || others >= hard {
        let why = format!("its forwards listen at {ports} ports, and {most}");
        return fault(why, format!("forward fewer ports, or {raise}"));
    }
    let less = Limits::within(limits, (hard - others).saturating_sub(u64::from(limits.pings)));
    let with = if ports > 0 { format!(" and {ports} ports of forwards") } else { String::new() };
    let why = format!("flows={}:{}{with} take {wanted} descriptors, and {most}", limits.tcp, limits.udp);
    fault(why, format!("give flows={}:{}, or {raise}", less.tcp, less.udp))
}

/// Sees that there is room for so many more sockets of forwards while a dataplane runs that began with so many, beside
/// those that there are now: both are open for a moment.
///
/// # Errors
/// The dataplane, or we, can have no more.
pub(super) fn room_later(what: &str, began: usize, now: usize, more: usize) -> Result<(), Fault> {
    let (wanted, most) = ((now + more) as u64, began as u64 + LATER);
    if more > 0 && wanted > most {
        let why = format!(
            "its forwards would listen at {wanted} ports, and a dataplane that began with {began} has room for {most}"
        );
        let fix = "remove some first, or start netreeve again with all of them";
        return Err(Fault::new(Exit::Unavailable, what, why, fix));
    }
    make_room(wanted + SPARE);
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if more > 0 && wanted + SPARE > soft => {
            let why = format!(
                "its forwards would listen at {wanted} ports, and nothing here may have more than {hard} descriptors"
            );
            let fix = format!("remove some first, or raise the limit (ulimit -Hn {})", wanted + SPARE);
            Err(Fault::new(Exit::Unavailable, what, why, fix))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(options: &str) -> User {
        let mut c = Config::read(&[format!("user,id=n{options}")], &[], None).unwrap();
        match c.ports.remove(0).kind {
            Kind::User(u) => *u,
            other => panic!("{other:?}"),
        }
    }

    fn refused(options: &str, hard: u64) -> (String, String) {
        let f = fits("n", &user(options), hard).unwrap_err();
        assert_eq!((f.exit, f.what.as_str()), (Exit::Unavailable, "n"));
        (f.why, f.fix)
    }

    #[test]
    fn what_is_asked_for_by_number_fits_or_is_refused_with_the_numbers() {
        // Nothing was asked for: what there is has to do.
        assert_eq!(fits("n", &user(""), SPARE), Ok(SPARE));
        let ports = ",hostfwd=tcp+try:127.77.4.1:1-1000-:1,hostfwd=udp:127.77.4.2:1-500-:1";
        assert_eq!(fits("n", &user(ports), 2012), Ok(2012));
        let (why, fix) = refused(ports, 2011);
        assert_eq!(
            why,
            "its forwards listen at 1500 ports, and nothing here may have more than 2011 descriptors"
        );
        assert_eq!(fix, "forward fewer ports, or raise the limit (ulimit -Hn 2012)");
        let flows = ",flows=2000:100,guestfwd=::80-unix:/x";
        let wanted = 2000 + 100 + 64 + 256 + 2 + SPARE;
        assert_eq!(fits("n", &user(flows), wanted), Ok(wanted));
        let (why, fix) = refused(flows, 2048);
        assert_eq!(
            why,
            "flows=2000:100 take 2934 descriptors, and nothing here may have more than 2048 descriptors"
        );
        // What it says to give is accepted, and hardly any more would be.
        let (less, raise) = fix.strip_prefix("give ").unwrap().split_once(", or ").unwrap();
        assert_eq!(raise, "raise the limit (ulimit -Hn 2934)");
        let most = fits("n", &user(&format!(",{less},guestfwd=::80-unix:/x")), 2048).unwrap();
        assert!((1980..=2048).contains(&most), "{less}: {most}");
        let (why, _) = refused(&format!(",flows=2000{ports}"), 4000);
        assert!(why.starts_with("flows=2000:125 and 1500 ports of forwards take 4457 descriptors"), "{why}");
        let (why, _) = refused(&format!(",flows=16{ports}"), 1900);
        assert!(why.starts_with("its forwards listen at 1500 ports"), "{why}");
    }

    #[test]
    fn a_running_dataplane_gets_no_more_sockets_than_it_has_room_for() {
        assert_eq!(room_later("n", 0, 112, 16), Ok(()));
        assert_eq!(room_later("n", 500, 600, 16), Ok(()));
        let f = room_later("n", 3, 116, 16).unwrap_err();
        assert!(
            f.why.contains("listen at 132 ports") && f.why.contains("began with 3 has room for 131"),
            "{f}"
        );
        assert_eq!(room_later("n", 3, 200, 0), Ok(()), "what takes nothing is never refused");
    }
}
