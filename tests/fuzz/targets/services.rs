//! What a guest finds on its link: DHCP of both families, neighbour discovery, DNS (from the guest and from a resolver) and
//! TFTP. The first byte says which; what is answered is well-formed and bounded, whatever was asked.
#![no_main]

use std::net::Ipv6Addr;
use std::sync::OnceLock;
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use netreeve_dataplane::port::user::services::conf::Conf;
use netreeve_dataplane::port::user::services::dns::message;
use netreeve_dataplane::port::user::services::tftp::request::{self, Message};
use netreeve_dataplane::port::user::services::{arp, dhcp4, dhcp6, ndp};
use netreeve_dataplane::port::user::{Boot, Plan};
use netreeve_shared::mac::Mac;

const GUEST: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

fn conf() -> &'static Conf {
    static CONF: OnceLock<Conf> = OnceLock::new();
    CONF.get_or_init(|| {
        let search = (0..40).map(|n| format!("n{n}.example.org")).collect();
        let boot = Boot { tftp: true, file: "pxelinux.0".into(), server_name: String::new() };
        Conf::new(&Plan { hostname: "vm".into(), domain: "example.org".into(), search, boot, ..Plan::qemu() })
    })
}

/// Messages, each behind its length.
fn each(mut data: &[u8], mut take: impl FnMut(&[u8])) {
    while let Some((&[high, low], rest)) = data.split_first_chunk::<2>() {
        let (one, more) = rest.split_at(usize::from(u16::from_be_bytes([high, low])).min(rest.len()));
        take(one);
        data = more;
    }
}

/// A field of options of DHCP has an end, and lies within.
fn ends(mut f: &[u8]) {
    loop {
        match f {
            [0, rest @ ..] => f = rest,
            [255, ..] => return,
            [_, n, rest @ ..] => f = &rest[usize::from(*n)..],
            _ => panic!("options without an end"),
        }
    }
}

fn whole6(mut o: &[u8]) {
    while !o.is_empty() {
        o = &o[4 + usize::from(u16::from_be_bytes([o[2], o[3]]))..];
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&kind, rest)) = data.split_first() else { return };
    let (c, now, mut out) = (conf(), Instant::now(), Vec::new());
    match kind % 7 {
        0 => {
            let mut s = dhcp4::Server::new(c);
            each(rest, |m| {
                if s.take(c, m, now, &mut out).is_some() && !out.is_empty() {
                    let m = &out[42..];
                    assert!((300..=1472).contains(&m.len()));
                    if m[236..240] == [99, 130, 83, 99] {
                        ends(&m[240..]);
                    }
                }
            });
        }
        1 => {
            let mut s = dhcp6::Server::new(c);
            let from = (GUEST, Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 1, 1));
            each(rest, |m| {
                if s.take(c, from, m, now, &mut out).is_some() && !out.is_empty() {
                    assert!(out.len() <= 14 + 1280);
                    whole6(&out[66..]);
                }
            });
        }
        2 => {
            let Some((&[hops, a, b], message)) = rest.split_first_chunk::<3>() else { return };
            let some = |n: u8| match n % 4 {
                0 => Ipv6Addr::UNSPECIFIED,
                1 => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 1, 1),
                2 => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 2),
                _ => Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, n.into()),
            };
            let from = ndp::From { mac: GUEST, src: some(a), dst: some(b), hops };
            let seen = ndp::take(c, true, &from, message, &mut out);
            assert!(out.len() <= 14 + 1280);
            assert!(out.is_empty() || seen.is_some());
            assert!(seen.and_then(|s| s.ip).is_none_or(|ip| !c.owns(ip)));
        }
        3 => {
            let seen = arp::take(c, rest, &mut out);
            assert!(matches!(out.len(), 0 | 42) && (out.is_empty() || seen.is_some()));
            assert!(seen.and_then(|s| s.ip).is_none_or(|ip| !c.owns(ip)));
        }
        4 | 5 => {
            let takes = usize::from(message::room(rest));
            assert!(takes >= 512);
            if let Some(q) = message::question(rest) {
                message::renumbered(rest, [1, 2], takes, &mut out);
                assert!(out.len() <= takes && out[..2] == [1, 2]);
                assert_eq!(message::question(&out), Some(q));
                out.clear();
                message::failure(rest, [1, 2], &mut out);
                assert_eq!((out.len(), message::question(&out)), (12 + q.len(), Some(q)));
            }
        }
        _ => {
            if let Some(Message::Read(q)) = request::parse(rest)
                && let Some(path) = request::path(q.name)
            {
                let path = path.as_bytes();
                assert!(!path.is_empty() && path[0] != b'/' && path.len() <= 512);
                assert!(path.split(|b| *b == b'/').all(|step| step != b".."));
            }
        }
    }
});
