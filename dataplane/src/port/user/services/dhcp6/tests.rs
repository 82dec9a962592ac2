use proptest::prelude::*;

use super::super::conf::{tests::qemu, wire_names};
use super::*;
use crate::port::user::Boot;

const GUEST: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
const US: [u8; 10] = [0, 3, 0, 1, 0x52, 0x55, 10, 0, 2, 2];
const THEM: &[u8] = &[0, 3, 0, 1, 0x52, 0x54, 0, 0x12, 0x34, 0x56];

fn ip(s: &str) -> Ipv6Addr {
    s.parse().unwrap()
}

fn option(code: u16, data: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes()[..], &(data.len() as u16).to_be_bytes(), data].concat()
}

fn message(kind: u8, options: &[Vec<u8>]) -> Vec<u8> {
    [&[kind, 1, 2, 3][..], &options.concat()].concat()
}

/// A group with these addresses.
fn group(id: u8, addresses: &[&str]) -> Vec<u8> {
    let mut data = vec![0, 0, 0, id, 0, 0, 0, 0, 0, 0, 0, 0];
    for a in addresses {
        data.extend(option(5, &[&ip(a).octets()[..], &[0; 8]].concat()));
    }
    option(3, &data)
}

struct Bench(Conf, Server, Instant);

impl Bench {
    fn new(c: Conf) -> Self {
        let s = Server::new(&c);
        Self(c, s, Instant::now())
    }

    fn from(&mut self, mac: Mac, m: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        self.1.take(&self.0, (mac, ip("fe80::1:1")), m, self.2, &mut out)?;
        (!out.is_empty()).then(|| out[62..].to_vec())
    }

    fn tell(&mut self, kind: u8, options: &[Vec<u8>]) -> Option<Vec<u8>> {
        self.from(GUEST, &message(kind, options))
    }
}

fn options(m: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut r = super::super::bytes::Reader::new(&m[4..]);
    let mut out = Vec::new();
    while !r.is_empty() {
        let (c, n) = (r.u16().unwrap(), r.u16().unwrap());
        out.push((c, r.take(n.into()).unwrap().to_vec()));
    }
    out
}

fn get(m: &[u8], code: u16) -> Option<Vec<u8>> {
    options(m).into_iter().find(|(c, _)| *c == code).map(|(_, d)| d)
}

/// The address of the first group in an answer with its lifetime, or the status there.
fn given(m: &[u8]) -> Result<(Ipv6Addr, u32), u16> {
    let g = get(m, 3).unwrap();
    if g[12..14] == [0, 13] {
        return Err(u16::from_be_bytes(g[16..18].try_into().unwrap()));
    }
    assert_eq!(g[12..16], [0, 5, 0, 24]);
    let a: [u8; 16] = g[16..32].try_into().unwrap();
    Ok((a.into(), u32::from_be_bytes(g[36..40].try_into().unwrap())))
}

#[test]
fn information_in_bytes() {
    let mut b = Bench::new(qemu());
    let mut out = Vec::new();
    let m = message(11, &[option(1, THEM), option(6, &[0, 23, 0, 24])]);
    let seen = b.1.take(&b.0, (GUEST, ip("fe80::1:1")), &m, b.2, &mut out).unwrap();
    assert_eq!(seen, Seen { mac: Some(GUEST), ip: None });
    assert_eq!(out[..14], [0x52, 0x54, 0, 0x12, 0x34, 0x56, 0x52, 0x55, 10, 0, 2, 2, 0x86, 0xdd]);
    assert_eq!((&out[22..38], &out[38..54]), (&b.0.link_local.octets()[..], &ip("fe80::1:1").octets()[..]));
    assert_eq!(out[54..60], [2, 35, 2, 34, 0, 60]);
    let want = message(7, &[option(2, &US), option(1, THEM), option(23, &ip("fec0::3").octets())]);
    assert_eq!(out[62..], want);
    // Who does not say who it is may ask as well.
    assert!(b.tell(11, &[]).is_some());
}

#[test]
fn an_address_is_offered_given_kept_and_let_go() {
    let mut b = Bench::new(qemu());
    let (us, them) = (option(2, &US), option(1, THEM));
    let offer = b.tell(1, &[them.clone(), group(7, &[])]).unwrap();
    assert_eq!((offer[0], &offer[1..4], given(&offer)), (2, &[1, 2, 3][..], Ok((ip("fec0::15"), LEASE))));
    assert_eq!(get(&offer, 3).unwrap()[..12], [0, 0, 0, 7, 0, 0, 0xa8, 0xc0, 0, 1, 0x0e, 0]);
    let reply = b.tell(3, &[them.clone(), us.clone(), group(7, &["fec0::15"])]).unwrap();
    assert_eq!((reply[0], given(&reply)), (7, Ok((ip("fec0::15"), LEASE))));
    for kind in [5, 6] {
        let mut about = vec![them.clone(), group(7, &["fec0::15", "2001:db8::1"])];
        if kind == 5 {
            about.push(us.clone());
        }
        let reply = b.tell(kind, &about).unwrap();
        assert_eq!(given(&reply), Ok((ip("fec0::15"), LEASE)));
        // What is not of this link is said to be over.
        let g = get(&reply, 3).unwrap();
        assert_eq!((&g[44..60], &g[60..]), (&ip("2001:db8::1").octets()[..], &[0; 8][..]));
    }
    // Another machine cannot take it.
    let m = message(3, &[them.clone(), us.clone(), group(1, &["fec0::15"])]);
    let reply = b.from(Mac([2; 6]), &m).unwrap();
    assert_eq!(given(&reply), Ok((ip("fec0::16"), LEASE)));
    let confirm = |b: &mut Bench, a: &[&str]| b.tell(4, &[them.clone(), group(7, a)]);
    assert_eq!(get(&confirm(&mut b, &["fec0::99"]).unwrap(), 13).unwrap(), [0, 0]);
    assert_eq!(get(&confirm(&mut b, &["fec0::15", "2001:db8::1"]).unwrap(), 13).unwrap(), [0, 4]);
    assert!(confirm(&mut b, &[]).is_none());
    let reply = b.tell(8, &[them.clone(), us.clone(), group(7, &["fec0::16"])]).unwrap();
    assert_eq!(given(&reply), Err(NO_BINDING));
    let reply = b.tell(9, &[them.clone(), us, group(7, &["fec0::15"])]).unwrap();
    assert_eq!((get(&reply, 13).unwrap(), get(&reply, 3)), (vec![0, 0], None));
    let offer = b.tell(1, &[them, group(7, &["fec0::15"])]).unwrap();
    assert_eq!(given(&offer), Ok((ip("fec0::17"), LEASE)));
}

#[test]
fn the_short_way_and_what_is_not_given() {
    let mut b = Bench::new(qemu());
    let prefix = option(25, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    let all =
        [option(1, THEM), option(14, &[]), group(1, &[]), group(2, &[]), option(4, &[0, 0, 0, 3]), prefix];
    let reply = b.tell(1, &all).unwrap();
    assert_eq!((reply[0], get(&reply, 14), given(&reply)), (7, Some(vec![]), Ok((ip("fec0::15"), LEASE))));
    let last = |code| options(&reply).into_iter().rfind(|(c, _)| *c == code).unwrap().1;
    assert_eq!(last(3), [0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 13, 0, 2, 0, 2]);
    assert_eq!(last(4), [0, 0, 0, 3, 0, 13, 0, 2, 0, 2]);
    assert_eq!(last(25)[12..], [0, 13, 0, 2, 0, 6]);
    let mut b = Bench::new(qemu());
    for n in 0..17 {
        let reply = b.from(Mac([2, 0, 0, 0, 0, n]), &message(1, &all[..3])).unwrap();
        let want = if n < 16 { Ok((lease6(&b.0.v6.unwrap(), None, n), LEASE)) } else { Err(NO_ADDRESSES) };
        assert_eq!(given(&reply), want);
    }
}

#[test]
fn names_and_boot_files() {
    let c = Conf {
        hostname: "vm".into(),
        domain: "example.org".into(),
        search: wire_names(&["a.bc".into()]),
        boot: Boot { tftp: true, file: "/efi/boot.efi".into(), server_name: String::new() },
        ..qemu()
    };
    let list = option(6, &[0, 24, 0, 59, 0, 39, 0]);
    let mut b = Bench::new(c.clone());
    let reply = b.tell(11, &[list.clone(), option(39, b"\x01\x01x\0")]).unwrap();
    assert_eq!(get(&reply, 23), None);
    assert_eq!(get(&reply, 24).unwrap(), b"\x01a\x02bc\0");
    assert_eq!(get(&reply, 59).unwrap(), b"tftp://[fec0::2]/efi/boot.efi");
    assert_eq!(get(&reply, 39).unwrap(), b"\x06\x02vm\x07example\x03org\0");
    let with = |file: &str, server: &str| {
        let boot = Boot { tftp: false, file: file.into(), server_name: server.into() };
        let reply = Bench::new(Conf { boot, ..c.clone() }).tell(11, std::slice::from_ref(&list)).unwrap();
        get(&reply, 59).map(|d| String::from_utf8(d).unwrap())
    };
    assert_eq!(with("http://x/y", "").as_deref(), Some("http://x/y"));
    assert_eq!(with("a", "boot.example").as_deref(), Some("tftp://boot.example/a"));
    assert_eq!(with("a", "2001:db8::1").as_deref(), Some("tftp://[2001:db8::1]/a"));
    assert_eq!((with("a", ""), with("", "x")), (None, None));
    // Nobody to ask where nobody may be reached.
    let mut b = Bench::new(Conf { restrict: true, ..c });
    assert_eq!(get(&b.tell(11, &[]).unwrap(), 23), None);
}

#[test]
fn who_must_be_named_and_who_must_not() {
    let mut b = Bench::new(qemu());
    let (us, them, other) = (option(2, &US), option(1, THEM), option(2, &[0, 3, 0, 1, 2, 2, 2, 2, 2, 2]));
    for kind in [3, 5, 8, 9] {
        assert!(b.tell(kind, &[them.clone(), group(1, &[])]).is_none(), "{kind} without us");
        assert!(b.tell(kind, &[them.clone(), other.clone(), group(1, &[])]).is_none(), "{kind} to another");
        assert!(b.tell(kind, &[us.clone(), group(1, &[])]).is_none(), "{kind} from nobody");
    }
    for kind in [1, 4, 6] {
        assert!(b.tell(kind, &[them.clone(), us.clone(), group(1, &["fec0::15"])]).is_none(), "{kind} to us");
    }
    assert!(b.tell(11, &[other]).is_none());
    for kind in [0, 2, 7, 10, 12, 13, 255] {
        assert!(b.tell(kind, &[them.clone(), us.clone()]).is_none(), "{kind}");
    }
    assert!(b.tell(1, &[option(1, &[1; 131])]).is_none());
    assert!(b.tell(1, &[option(1, &[])]).is_none());
}

/// CVE-2021-3593 and its like: lengths that lead beyond the message.
#[test]
fn cve_2021_3593_what_is_cut_is_no_message() {
    let mut b = Bench::new(qemu());
    let whole = message(1, &[option(1, THEM), group(1, &["fec0::15"])]);
    for n in 0..whole.len() {
        // Cut between options, it is a message without the rest.
        assert_eq!(b.from(GUEST, &whole[..n]).is_some(), n == 18, "{n} bytes");
    }
    // A group whose own options run over its end is passed over.
    let mut bent = whole.clone();
    bent[18 + 4 + 12 + 3] = 25;
    let reply = b.from(GUEST, &bent).unwrap();
    assert_eq!(get(&reply, 3), None);
    assert!(b.from(GUEST, &message(1, &[option(1, THEM), option(3, &[0; 11])])).is_some());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes: an answer is well-formed, bounded, and its address is of the pool.
    #[test]
    fn any_message(
        kind in 0u8..13,
        list in proptest::collection::vec((0u16..64, proptest::collection::vec(any::<u8>(), 0..60)), 0..20),
        named in any::<bool>(),
        groups in 0u8..20,
        cut in 0usize..2000,
    ) {
        let mut b = Bench::new(Conf { search: wire_names(&vec!["a.bc".into(); 100]), ..qemu() });
        let mut all = vec![option(1, THEM)];
        if named { all.push(option(2, &US)); }
        all.extend((0..groups).map(|n| group(n, &["fec0::15", "fec0::16", "fec0::17", "2001:db8::1", "::"])));
        all.extend(list.iter().map(|(c, d)| option(*c, d)));
        let mut m = message(kind, &all);
        m.truncate(cut);
        if let Some(reply) = b.from(GUEST, &m) {
            prop_assert!(reply.len() <= ROOM);
            for (code, data) in options(&reply) {
                prop_assert!(code != 3 || data.len() >= 18);
            }
        }
    }
}
