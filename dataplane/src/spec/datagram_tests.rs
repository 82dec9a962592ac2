//! Tables: `dgram`, `socket` and `l2tpv3`; QEMU's rules in QEMU's words.

use proptest::prelude::*;

use super::dgram::{Dgram, Ends, Host, UnixName};
use super::l2tpv3::L2tpv3;
use super::*;
use crate::port::dgram::l2tp::{Carrier, Cookie, Counter, Session};

fn read(text: &str) -> Result<Kind, Fault> {
    let mut c = Config::read(&[text.to_owned()], &[], None)?;
    Ok(c.ports.remove(0).kind)
}

fn host(host: &str, port: u16) -> Host {
    Host { host: host.into(), port, ipv4: true, ipv6: true }
}

fn dgram(ends: Ends) -> Kind {
    Kind::Dgram(Dgram { ends, strict: false, undone: None })
}

const UDP: &str =
    "dgram,id=a,local.type=inet,local.host=h,local.port=1,remote.type=inet,remote.host=p,remote.port=2";
const UNIX: &str = "dgram,id=a,local.type=unix,local.path=/l,remote.type=unix,remote.path=/r";
const MCAST: &str = "dgram,id=a,remote.type=inet,remote.host=239.1.2.3,remote.port=5";

#[test]
fn every_form_of_dgram() {
    let udp = Ends::Udp(host("h", 1), host("p", 2));
    let unix = |l: &str, r| Ends::Unix(UnixName::Path(l.into()), r);
    let group =
        |text: &str, at: Option<&str>| Ends::Multicast(text.parse().unwrap(), at.map(|a| a.parse().unwrap()));
    let v4 = Host { ipv6: false, ..host("h", 1) };
    let json = r#"{"type":"dgram","id":"a","local":{"type":"unix","path":"/l"},"remote":{"type":"unix","path":"/r"}}"#;
    let table = [
        (UDP.to_owned(), dgram(udp.clone())),
        (format!("{UDP},strict=on"), Kind::Dgram(Dgram { ends: udp.clone(), strict: true, undone: None })),
        (
            format!("{UDP},finish=on"),
            Kind::Dgram(Dgram { ends: udp.clone(), strict: false, undone: Some(1500) }),
        ),
        (
            format!("{UDP},finish=on,mtu=9000"),
            Kind::Dgram(Dgram { ends: udp.clone(), strict: false, undone: Some(9000) }),
        ),
        (format!("{UDP},local.ipv6=off"), dgram(Ends::Udp(v4, host("p", 2)))),
        (UNIX.to_owned(), dgram(unix("/l", UnixName::Path("/r".into())))),
        (format!("{UNIX},remote.abstract=on"), dgram(unix("/l", UnixName::Abstract(b"/r".to_vec())))),
        (json.to_owned(), dgram(unix("/l", UnixName::Path("/r".into())))),
        (MCAST.to_owned(), dgram(group("239.1.2.3:5", None))),
        (format!("{MCAST},local.type=inet,local.host=10.0.0.1,local.port=0"), {
            dgram(group("239.1.2.3:5", Some("10.0.0.1")))
        }),
        (MCAST.replace("239.1.2.3", "ff15::7"), dgram(group("[ff15::7]:5", None))),
        ("dgram,id=a,local.type=fd,local.str=9".to_owned(), dgram(Ends::Fd(9))),
        ("socket,id=a,mcast=230.0.0.1:1234".to_owned(), dgram(group("230.0.0.1:1234", None))),
        ("socket,id=a,mcast=230.0.0.1:1234,localaddr=1.2.3.4".to_owned(), {
            dgram(group("230.0.0.1:1234", Some("1.2.3.4")))
        }),
        ("socket,id=a,udp=h:7,localaddr=:8".to_owned(), {
            let v4 = |h, p| Host { ipv6: false, ..host(h, p) };
            dgram(Ends::Udp(v4("", 8), v4("h", 7)))
        }),
    ];
    for (text, want) in table {
        assert_eq!(read(&text).unwrap(), want, "{text}");
    }
    let inherited = Config::read(&["dgram,id=a,local.type=fd,local.str=9".into()], &[], None).unwrap();
    assert_eq!(inherited.ports[0].kind.inherited(), [9]);
    let wire = Config::read(&["tap,id=n0".into()], &[UDP.replace("id=a", "netdev=n0")], None).unwrap();
    assert_eq!(wire.wires.len(), 1);
    let visited = "dgram,netdev=n0,local.type=unix,local.path=/l".to_owned();
    let wire = Config::read(&["tap,id=n0".into()], &[visited], None).unwrap();
    assert_eq!(wire.ports[1].kind, dgram(Ends::Visitors("/l".into())));
}

#[test]
fn what_qemu_says_of_wrong_datagrams() {
    let table = [
        ("dgram,id=a", "dgram requires local= parameter"),
        ("dgram,id=a,remote.type=unix,remote.path=/r", "dgram requires local= parameter"),
        ("dgram,id=a,local.type=unix,local.path=/l", "type=inet or type=unix requires remote parameter"),
        (
            "dgram,id=a,local.type=inet,local.host=h,local.port=1",
            "type=inet or type=unix requires remote parameter",
        ),
        (
            "dgram,id=a,local.type=fd,local.str=9,remote.type=unix,remote.path=/r",
            "don't set remote with local.fd",
        ),
        (
            "dgram,id=a,local.type=unix,local.path=/l,remote.type=inet,remote.host=h,remote.port=1",
            "remote and local types must be the same",
        ),
        (
            "dgram,id=a,local.type=unix,local.path=/l,remote.type=inet,remote.host=239.0.0.1,remote.port=1",
            "only support inet or fd type for local",
        ),
        (
            "dgram,id=a,local.type=inet,local.host=x,local.port=0,remote.type=inet,remote.host=239.0.0.1,remote.port=1",
            "localaddr 'x' is not a valid IPv4 address",
        ),
        ("dgram,id=a,local=x", "Invalid parameter type for 'local', expected: object"),
        ("dgram,id=a,local.type=fd,local.str=x", "local.str=x is no descriptor number"),
        ("dgram,id=a,local.type=inet,local.port=1", "Parameter 'local.host' is missing"),
        ("dgram,id=a,local.type=inet,local.host=h,local.port=70000", "expects a value from 0 to 65535"),
        ("dgram,id=a,local.type=inet,local.host=h,local.port=1,local.to=5", "local.to= is refused"),
        ("dgram,id=a,local.type=fd,local.str=9,strict=on", "strict= is refused"),
        ("dgram,id=a,local.type=fd,local.str=9,foo=1", "Parameter 'foo' is unexpected"),
        ("socket,id=a", "exactly one of listen=, connect=, mcast= or udp= is required"),
        (
            "socket,id=a,listen=:1,udp=h:2,localaddr=:3",
            "exactly one of listen=, connect=, mcast= or udp= is required",
        ),
        ("socket,id=a,udp=h:2", "localaddr= is mandatory with udp="),
        ("socket,id=a,listen=:1,localaddr=:3", "localaddr= is only valid with mcast= or udp="),
        ("socket,id=a,udp=h,localaddr=:3", "host address 'h' doesn't contain ':' separating host from port"),
        ("socket,id=a,udp=h:x,localaddr=:3", "port number 'x' is invalid"),
        (
            "socket,id=a,mcast=10.0.0.1:5",
            "specified mcastaddr 10.0.0.1 (0x0a000001) does not contain a multicast address",
        ),
        ("socket,id=a,mcast=230.0.0.1:5,localaddr=x", "localaddr 'x' is not a valid IPv4 address"),
    ];
    for (text, want) in table {
        let fault = read(text).unwrap_err();
        assert!(fault.why.contains(want), "{text}: {fault}");
    }
}

const TUNNEL: &str = "l2tpv3,id=a,src=s,dst=d,udp=on,srcport=1,dstport=2,txsession=0x10";

#[test]
fn every_option_of_l2tpv3() {
    let v4 = |h, p| Host { ipv6: false, ..host(h, p) };
    let session = Session {
        carrier: Carrier::Udp,
        tx: 16,
        rx: 16,
        cookie: Cookie::None,
        counter: Counter::None,
        offset: 0,
    };
    let plain = L2tpv3 { src: v4("s", 1), dst: v4("d", 2), session };
    let with = |session| L2tpv3 { session, ..plain.clone() };
    let table = [
        ("", plain.clone()),
        (",rxsession=5", with(Session { rx: 5, ..session })),
        (",txcookie=1,rxcookie=2", with(Session { cookie: Cookie::Four(1, 2), ..session })),
        (",txcookie=1,rxcookie=2,cookie64=off", with(Session { cookie: Cookie::Four(1, 2), ..session })),
        (",txcookie=0x100000000,rxcookie=2,cookie64=on", {
            with(Session { cookie: Cookie::Eight(1 << 32, 2), ..session })
        }),
        (",counter=on", with(Session { counter: Counter::Counts, ..session })),
        (",pincounter=on", with(Session { counter: Counter::Pinned, ..session })),
        (",counter=on,pincounter=on", with(Session { counter: Counter::Pinned, ..session })),
        (",pincounter=off", plain.clone()),
        (",offset=256", with(Session { offset: 256, ..session })),
        (",ipv6=on", {
            let v6 = |h, p| Host { ipv4: false, ..host(h, p) };
            L2tpv3 { src: v6("s", 1), dst: v6("d", 2), session }
        }),
    ];
    for (more, carrier) in [("", Carrier::Ip4), (",ipv6=on", Carrier::Ip6)] {
        let Kind::L2tpv3(l) = read(&format!("l2tpv3,id=a,src=s,dst=d,txsession=1{more}")).unwrap() else {
            panic!()
        };
        assert_eq!((l.session.carrier, l.src.ipv6), (carrier, carrier == Carrier::Ip6));
    }
    for (more, want) in table {
        assert_eq!(read(&format!("{TUNNEL}{more}")).unwrap(), Kind::L2tpv3(want), "{more}");
    }
}

#[test]
fn what_qemu_says_of_wrong_tunnels() {
    let of = |more: &str| format!("{TUNNEL},{more}");
    let table = [
        ("l2tpv3,id=a,dst=d,txsession=1".to_owned(), "Parameter 'src' is missing"),
        ("l2tpv3,id=a,src=s,txsession=1".to_owned(), "Parameter 'dst' is missing"),
        (TUNNEL.replace(",txsession=0x10", ""), "Parameter 'txsession' is missing"),
        (TUNNEL.replace(",srcport=1", ""), "need both src and dst port for udp"),
        (TUNNEL.replace("0x10", "0"), "Parameter 'txsession' expects a value from 1"),
        (of("rxsession=0"), "Parameter 'rxsession' expects a value from 1"),
        (of("txcookie=1"), "require both 'rxcookie' and 'txcookie' or neither"),
        (of("txcookie=0x100000000,rxcookie=2"), "Parameter 'txcookie' expects a value from 0 to 4294967295"),
        (of("offset=257"), "offset must be less than 256 bytes"),
        (of("counter=maybe"), "Parameter 'counter' expects 'on' or 'off'"),
    ];
    for (text, want) in table {
        let fault = read(&text).unwrap_err();
        assert!(fault.why.contains(want), "{text}: {fault}");
        assert!(!fault.fix.is_empty() || want.contains("expects"), "{text}: {fault}");
    }
}

proptest! {
    #[test]
    fn any_text_is_a_port_or_a_complaint(text in "(dgram|socket|l2tpv3)(,(id=a|local[.](type|path|host|port|str)=[a-z0-9/]{0,5}|remote[.](type|path|host|port)=(inet|unix|fd|[0-9.]{1,9})|udp=[a-z0-9:]{0,6}|mcast=[0-9.:]{0,9}|localaddr=[0-9.:]{0,9}|src=s|dst=d|txsession=[0-9]{1,3}|strict=on)){0,8}") {
        let _either = read(&text);
    }
}
