//! What users write of a `user` network's forwards and rules, and what a host's `resolv.conf` may say: any text is read
//! or refused, and what is read is printed so that it reads the same. The first byte says which, and for which network.
#![no_main]

use std::fmt::{Debug, Display};
use std::net::SocketAddr;

use libfuzzer_sys::fuzz_target;
use netreeve_dataplane::port::user::Plan;
use netreeve_dataplane::port::user::policy::Rule;
use netreeve_dataplane::spec::forward::{GuestForward, HostForward, Listen};
use netreeve_dataplane::supervise::resolvers;

/// What is read of `text`, read again from what it prints.
fn again<T: Display + Debug + PartialEq, E: Debug>(
    text: &str,
    read: impl Fn(&str) -> Result<T, E>,
) -> Option<T> {
    let one = read(text).ok()?;
    let printed = one.to_string();
    match read(&printed) {
        Ok(two) => assert_eq!(one, two, "{text} {printed}"),
        Err(e) => panic!("{text} is printed as {printed}: {e:?}"),
    }
    Some(one)
}

fn resolv_conf(text: &str) {
    let (list, whole) = resolvers::parse(text);
    assert!(list.len() <= resolvers::RESOLVERS);
    assert!(list.iter().enumerate().all(|(n, at)| at.port() == 53 && !list[..n].contains(at)));
    // What is no resolver's line changes nothing, and each that was found is a line of its own.
    let more = format!("# x\noptions edns0\n{text}\n;\nsearch nameserver\n");
    assert_eq!(resolvers::parse(&more), (list.clone(), whole));
    let lines = list.iter().map(|at| match at {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("nameserver {}%{}\n", v6.ip(), v6.scope_id()),
        at => format!("nameserver {}\n", at.ip()),
    });
    assert_eq!(resolvers::parse(&lines.collect::<String>()), (list, true));
}

fuzz_target!(|data: &[u8]| {
    let Some((&how, rest)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let plan = Plan::qemu();
    let v4 = plan.v4.as_ref().filter(|_| how & 0x40 == 0);
    let v6 = plan.v6.as_ref().filter(|_| how & 0x80 == 0);
    match how % 5 {
        0 => {
            let Some(f) = again(text, |t| HostForward::read(t, v4, v6)) else { return };
            assert!(f.guest.port() > 0);
            // By this name it is taken away again.
            let named = again(&f.listen.to_string(), Listen::read).unwrap();
            assert!(named.is_at(&f.listen) && named.ports() == f.listen.ports());
        }
        1 => {
            let Some(f) = again(text, |t| GuestForward::read(t, v4, v6)) else { return };
            assert!(f.at.port() > 0);
        }
        2 => drop(again(text, Listen::read)),
        3 => {
            let read = |t: &str| t.strip_prefix("allow=").unwrap_or(t).parse::<Rule>();
            let _ = again(text, read);
        }
        _ => resolv_conf(text),
    }
});
