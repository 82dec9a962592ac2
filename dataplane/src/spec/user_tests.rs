//! Tables: every option of `user`, its defaults, its checks, QEMU's words.

use super::*;
use crate::spec::forward::{Listen, Target};
use crate::spec::{Config, Kind, late::Late};

fn user(text: &str) -> Result<User, Fault> {
    let mut c = Config::read(&[format!("user,id=n{text}")], &[], None)?;
    match c.ports.remove(0).kind {
        Kind::User(u) => Ok(*u),
        other => panic!("{other:?}"),
    }
}

fn ip4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn ip6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn four(net: &str, prefix: u8, host: &str, dns: &str, dhcp: &str) -> Option<V4> {
    Some(V4 { net: ip4(net), prefix, host: ip4(host), dns: ip4(dns), dhcp_start: ip4(dhcp) })
}

fn six(prefix: &str, len: u8, host: &str, dns: &str) -> Option<V6> {
    Some(V6 { prefix: ip6(prefix), len, host: ip6(host), dns: ip6(dns) })
}

fn plain() -> User {
    User {
        v4: four("10.0.2.0", 24, "10.0.2.2", "10.0.2.3", "10.0.2.15"),
        v6: six("fec0::", 64, "fec0::2", "fec0::3"),
        hostname: String::new(),
        domain: String::new(),
        search: Vec::new(),
        tftp: None,
        bootfile: String::new(),
        server_name: String::new(),
        restrict: false,
        rules: Vec::new(),
        preset: Preset::Vm,
        resolvers: Vec::new(),
        mtu: None,
        forwards: Vec::new(),
        guest_forwards: Vec::new(),
        without: Vec::new(),
        aliases: Vec::new(),
        mac: None,
        lease6: None,
        outbound: Outbound::default(),
        quota: Quota::default(),
        ns_fd: None,
    }
}

#[test]
fn every_address_of_a_network() {
    let net9 =
        || User { v4: four("192.168.9.0", 24, "192.168.9.2", "192.168.9.3", "192.168.9.15"), ..plain() };
    let v4 = |net, prefix, host, dns, dhcp| User { v4: four(net, prefix, host, dns, dhcp), ..plain() };
    let v6 = |prefix, len, host, dns| User { v6: six(prefix, len, host, dns), ..plain() };
    let table: Vec<(&str, User)> = vec![
        ("", plain()),
        (",ipv4=on,ipv6=on", plain()),
        (",ipv4=on", User { v6: None, ..plain() }),
        (",ipv6=off", User { v6: None, ..plain() }),
        (",ipv6=on", User { v4: None, ..plain() }),
        (",ipv4=off", User { v4: None, ..plain() }),
        (",ipv4=off,ipv6=on", User { v4: None, ..plain() }),
        (",net=192.168.9.0/24", net9()),
        (",net=192.168.9.77/24", net9()),
        (",net=192.168.9.0/255.255.255.0", net9()),
        (",ip=192.168.9.0", net9()),
        (",ip=1.2.3.4,net=192.168.9.0/24", net9()),
        (",net=10.0.0.0", v4("10.0.0.0", 8, "10.0.2.2", "10.0.2.3", "10.0.2.15")),
        (",net=172.20.1.1", v4("172.16.0.0", 12, "172.16.2.2", "172.16.2.3", "172.16.2.15")),
        (",net=150.1.2.3", v4("150.1.0.0", 16, "150.1.2.2", "150.1.2.3", "150.1.2.15")),
        (",net=192.168.4.4", v4("192.168.0.0", 16, "192.168.2.2", "192.168.2.3", "192.168.2.15")),
        (",net=198.18.4.4", v4("198.18.0.0", 15, "198.18.2.2", "198.18.2.3", "198.18.2.15")),
        (",net=10.0.5.0/28", v4("10.0.5.0", 28, "10.0.5.2", "10.0.5.3", "10.0.5.15")),
        (",net=0x0a000500/28", v4("10.0.5.0", 28, "10.0.5.2", "10.0.5.3", "10.0.5.15")),
        (",host=10.0.2.200", v4("10.0.2.0", 24, "10.0.2.200", "10.0.2.3", "10.0.2.15")),
        (",dns=1.1.1.1", v4("10.0.2.0", 24, "10.0.2.2", "1.1.1.1", "10.0.2.15")),
        (",dhcpstart=10.0.2.100", v4("10.0.2.0", 24, "10.0.2.2", "10.0.2.3", "10.0.2.100")),
        (",ipv6-prefix=fd00:1::", v6("fd00:1::", 64, "fd00:1::2", "fd00:1::3")),
        (",ipv6-prefix=fd00:1::,ipv6-prefixlen=120", v6("fd00:1::", 120, "fd00:1::2", "fd00:1::3")),
        (",ipv6-prefixlen=0", plain()),
        (",ipv6-net=fd00:2::", v6("fd00:2::", 64, "fd00:2::2", "fd00:2::3")),
        (",ipv6-net=fd00:2::/80", v6("fd00:2::", 80, "fd00:2::2", "fd00:2::3")),
        (",ipv6-host=fec0::9,ipv6-dns=2001::9", v6("fec0::", 64, "fec0::9", "2001::9")),
    ];
    for (text, want) in table {
        assert_eq!(user(text), Ok(want), "{text}");
    }
}

#[test]
fn every_other_option() {
    let rules = |texts: &[&str]| -> Vec<Rule> {
        texts.iter().map(|t| Rule { verdict: Verdict::Refuse, ..t.parse().unwrap() }).collect()
    };
    let table: Vec<(&str, User)> = vec![
        (",restrict=on", User { restrict: true, ..plain() }),
        (",restrict=y", User { restrict: true, ..plain() }),
        (",restrict=no", plain()),
        (",hostname=vm", User { hostname: "vm".into(), ..plain() }),
        (",domainname=x.org", User { domain: "x.org".into(), ..plain() }),
        (",dnssearch=a.org,dnssearch=b", User { search: vec!["a.org".into(), "b".into()], ..plain() }),
        (",tftp=/srv/,,tftp,bootfile=pxe.0", {
            User { tftp: Some("/srv/,tftp".into()), bootfile: "pxe.0".into(), ..plain() }
        }),
        (",tftp-server-name=boot", User { server_name: "boot".into(), ..plain() }),
        (",preset=qemu", User { preset: Preset::Qemu, ..plain() }),
        (",resolver=9.9.9.9,resolver=fd00::1", {
            User {
                resolvers: vec!["9.9.9.9:53".parse().unwrap(), "[fd00::1]:53".parse().unwrap()],
                ..plain()
            }
        }),
        (",mtu=9000", User { mtu: Some(9000), ..plain() }),
        (",flows=2000", User { quota: Quota { flows: Some((2000, 125)), buffer: None }, ..plain() }),
        (",flows=16", User { quota: Quota { flows: Some((16, 16)), buffer: None }, ..plain() }),
        (",flows=4096:262144,socket-buffer=256k", {
            User { quota: Quota { flows: Some((4096, 1 << 18)), buffer: Some(256 << 10) }, ..plain() }
        }),
        (",deny=private,deny=tcp:any:25", User { rules: rules(&["private", "tcp:any:25"]), ..plain() }),
        (",rules=deny=private", User { rules: rules(&["private"]), ..plain() }),
    ];
    for (text, want) in table {
        assert_eq!(user(text), Ok(want), "{text}");
    }
    let order = user(",allow=tcp:host:22,deny=private,allow=any,drop=in:any").unwrap();
    let written: Vec<String> = order.rules.iter().map(Rule::to_string).collect();
    assert_eq!(written, ["allow=tcp:host:22", "deny=private", "allow=any", "drop=in:any"]);
}

#[test]
fn lists_in_json() {
    let read = |members: &str| {
        let late = Late::read(false, &format!(r#"{{"type":"user","id":"n",{members}}}"#), Vec::new());
        late.map(|l| if let Kind::User(u) = l.port.kind { *u } else { panic!() })
    };
    let u = read(r#""dnssearch":[{"str":"a"},{"str":"b"}],"hostfwd":[{"str":"tcp::0-:22"}],"restrict":true"#)
        .unwrap();
    assert_eq!((u.search, u.forwards.len(), u.restrict), (vec!["a".into(), "b".into()], 1, true));
    let u = read(r#""deny":["private","icmp:any"]"#).unwrap();
    assert_eq!(u.rules.len(), 2);
    let u = read(r#""rules":["allow=tcp:host:1","deny=any"]"#).unwrap();
    assert_eq!(u.rules.iter().map(Rule::to_string).collect::<Vec<_>>(), ["allow=tcp:host:1", "deny=any"]);
    let why = read(r#""deny":["private"],"allow":["any"]"#).unwrap_err().why;
    assert_eq!(why, "the order of rules is lost between several lists");
}

/// Text of the options, and QEMU's words, where QEMU refuses it.
const REFUSED: &[(&str, &str)] = &[
    ("ipv4=off,ipv6=off", "IPv4 and IPv6 disabled"),
    ("ipv4=off,net=10.0.0.0/8", "IPv4 disabled but netmask/host/dns provided"),
    ("ipv6=on,host=10.0.2.2", "IPv4 disabled but netmask/host/dns provided"),
    ("ipv4=off,dns=10.0.2.3", "IPv4 disabled but netmask/host/dns provided"),
    ("ipv6=off,ipv6-prefix=fec0::", "IPv6 disabled but prefix/host6/dns6 provided"),
    ("ipv4=on,ipv6-host=fec0::2", "IPv6 disabled but prefix/host6/dns6 provided"),
    ("ipv6=off,ipv6-dns=fec0::3", "IPv6 disabled but prefix/host6/dns6 provided"),
    ("net=x", "Failed to parse netmask"),
    ("net=10.0.0.256", "Failed to parse netmask"),
    ("net=x/8", "Failed to parse netmask"),
    ("net=10.0.0.0/x", "Failed to parse netmask (trailing chars)"),
    ("net=10.0.0.0/3", "Invalid netmask provided (must be in range 4-32)"),
    ("net=10.0.0.0/33", "Invalid netmask provided (must be in range 4-32)"),
    ("net=10.0.0.0/-1", "Invalid netmask provided (must be in range 4-32)"),
    ("net=10.0.0.0/255.0.255.0", "Invalid netmask provided (must be in range 4-32)"),
    ("net=10.0.0.0/32", "DNS must be different from host"),
    ("host=x", "Failed to parse host"),
    ("host=10.0.3.2", "Host doesn't belong to network"),
    ("dns=x", "Failed to parse DNS"),
    ("dns=1.1.1.1,restrict=on", "DNS doesn't belong to network"),
    ("dns=10.0.2.2", "DNS must be different from host"),
    ("dhcpstart=x", "Failed to parse DHCP start address"),
    ("dhcpstart=10.0.3.15", "DHCP doesn't belong to network"),
    ("dhcpstart=10.0.2.2", "DHCP must be different from host and DNS"),
    ("dhcpstart=10.0.2.3", "DHCP must be different from host and DNS"),
    ("ipv6-prefix=x", "Failed to parse IPv6 prefix"),
    ("ipv6-prefixlen=127", "Invalid IPv6 prefix provided (IPv6 prefix length must be between 0 and 126)"),
    ("ipv6-net=fec0::/127", "Invalid IPv6 prefix provided (IPv6 prefix length must be between 0 and 126)"),
    ("ipv6-net=fec0::/x", "parameter 'ipv6-net' expects a number after '/'"),
    ("ipv6-prefixlen=x", "Parameter 'ipv6-prefixlen' expects an int64 value"),
    ("ipv6-prefixlen=-1", "Invalid IPv6 prefix provided (IPv6 prefix length must be between 0 and 126)"),
    ("ipv6-host=x", "Failed to parse IPv6 host"),
    ("ipv6-host=fec1::2", "IPv6 Host doesn't belong to network"),
    ("ipv6-dns=x", "Failed to parse IPv6 DNS"),
    ("ipv6-dns=2001::1,restrict=on", "IPv6 DNS doesn't belong to network"),
    ("ipv6-dns=fec0::2", "IPv6 DNS must be different from host"),
    ("domainname=", "'domainname' parameter cannot be empty"),
    ("dnssearch=a..b", "Parameter 'dnssearch' does not accept value 'a..b'"),
    ("restrict=maybe", "Parameter 'restrict' expects 'on' or 'off'"),
    ("preset=open", "Parameter 'preset' does not accept value 'open'"),
    ("mtu=1279", "Parameter 'mtu' expects a value from 1280 to 65520"),
    ("flows=15", "Parameter 'flows' does not accept value '15'"),
    ("flows=16:", "Parameter 'flows' does not accept value '16:'"),
    ("flows=16:262145", "Parameter 'flows' does not accept value '16:262145'"),
    ("socket-buffer=63k", "Parameter 'socket-buffer' expects a value from 65536 to 16777216"),
    ("resolver=x", "Parameter 'resolver' does not accept value 'x'"),
    ("deny=dns:53", {
        "Parameter 'deny' does not accept value 'dns:53': dns is where the guest asks for names, by udp or tcp at port 53: \
         give no more than that"
    }),
    (
        "restrict=on,allow=in:host",
        "with restrict=on nobody knows the host's own addresses at a rule of in:host",
    ),
    ("rules=private", "Parameter 'rules' does not accept value 'private'"),
    ("smb=/srv", "smb= is refused: it would start a Samba server beside the VMM"),
    ("smbserver=10.0.2.4", "smbserver= is refused: it would start a Samba server beside the VMM"),
    ("foo=1", "Invalid parameter 'foo'"),
    ("hostfwd=x", "Invalid host forwarding rule 'x' (No : separators)"),
    ("hostfwd=sctp::1-:1", "Invalid host forwarding rule 'sctp::1-:1' (Bad protocol name)"),
    ("hostfwd=tcp:1", "Invalid host forwarding rule 'tcp:1' (Missing : separator)"),
    ("hostfwd=tcp:x:1-:1", "Invalid host forwarding rule 'tcp:x:1-:1' (Bad host address)"),
    ("hostfwd=tcp::1", "Invalid host forwarding rule 'tcp::1' (Bad host port separator)"),
    ("hostfwd=tcp::x-:1", "Invalid host forwarding rule 'tcp::x-:1' (Bad host port)"),
    ("hostfwd=tcp::65536-:1", "Invalid host forwarding rule 'tcp::65536-:1' (Bad host port)"),
    ("hostfwd=tcp::1-1", "Invalid host forwarding rule 'tcp::1-1' (Missing guest address)"),
    ("hostfwd=tcp::1-x:1", "Invalid host forwarding rule 'tcp::1-x:1' (Bad guest address)"),
    ("hostfwd=tcp::1-:0", "Invalid host forwarding rule 'tcp::1-:0' (Bad guest port)"),
    ("hostfwd=tcp::1-:", "Invalid host forwarding rule 'tcp::1-:' (Bad guest port)"),
    ("hostfwd=unix:a-:1", "Invalid host forwarding rule 'unix:a-:1' (Bad unix socket path)"),
    ("ipv6=off,hostfwd=tcp::1-[::1]:1", {
        "Invalid host forwarding rule 'tcp::1-[::1]:1' (Bad guest address: its family is off)"
    }),
    ("guestfwd=x", "Invalid guest forwarding rule 'x'"),
    ("guestfwd=udp:10.0.2.4:1-tcp:h:1", "Invalid guest forwarding rule 'udp:10.0.2.4:1-tcp:h:1'"),
    ("guestfwd=tcp:10.0.2.4:0-tcp:h:1", "Invalid guest forwarding rule 'tcp:10.0.2.4:0-tcp:h:1'"),
    (
        "guestfwd=:10.0.3.4:1-tcp:h:1",
        "Conflicting/invalid host:port in guest forwarding rule ':10.0.3.4:1-tcp:h:1'",
    ),
    (
        "guestfwd=:10.0.2.2:1-tcp:h:1",
        "Conflicting/invalid host:port in guest forwarding rule ':10.0.2.2:1-tcp:h:1'",
    ),
    (
        "guestfwd=::1-tcp:h:1,guestfwd=::1-unix:/x",
        "Conflicting/invalid host:port in guest forwarding rule '::1-unix:/x'",
    ),
    (
        "guestfwd=::1-cmd:cat",
        "cmd: is refused, it would start a program for the guest: guest forwarding rule '::1-cmd:cat'",
    ),
    ("guestfwd=::1-stdio", "Could not open guest forwarding device 'stdio'"),
    ("guestfwd=::1-tcp:h", "Could not open guest forwarding device 'tcp:h'"),
];

#[test]
fn what_cannot_stand() {
    for (text, why) in REFUSED {
        let fault = user(&format!(",{text}")).unwrap_err();
        assert_eq!(fault.why, *why, "{text}");
        assert!(
            ["restrict=", "mtu=", "socket-buffer="].iter().any(|k| text.starts_with(k))
                || !fault.fix.is_empty(),
            "{text}: what is to be done?"
        );
    }
    for (key, shown) in
        [("hostname", "vhostname"), ("domainname", "domainname"), ("tftp-server-name", "tftp-server-name")]
    {
        let why = user(&format!(",{key}={}", "x".repeat(256))).unwrap_err().why;
        assert_eq!(why, format!("'{shown}' parameter cannot exceed 255 bytes"));
        assert!(user(&format!(",{key}={}", "x".repeat(255))).is_ok());
    }
    assert!(user(&format!(",bootfile={}", "x".repeat(128))).is_err());
    let many = |key: &str, n: usize| user(&format!(",{key}").repeat(n));
    assert!(many("hostfwd=tcp::0-:1", FORWARDS).is_ok() && many("hostfwd=tcp::0-:1", FORWARDS + 1).is_err());
    assert!(many("dnssearch=a", 33).is_err() && many("deny=any", 257).is_err());
}

#[test]
fn forwards_to_the_guest() {
    let table = [
        ("tcp::2222-:22", "tcp:0.0.0.0:2222-10.0.2.15:22"),
        ("::2222-:22", "tcp:0.0.0.0:2222-10.0.2.15:22"),
        ("udp:127.0.0.1:0-10.0.2.20:53", "udp:127.0.0.1:0-10.0.2.20:53"),
        ("tcp:127.1:0x10-0.0.0.0:22", "tcp:127.0.0.1:16-10.0.2.15:22"),
        ("tcp:[::1]:80-[fec0::15]:80", "tcp:[::1]:80-[fec0::15]:80"),
        ("tcp:[::]:80-:80", "tcp:[::]:80-10.0.2.15:80"),
        ("unix:/run/a-b.sock-:22", "unix:/run/a-b.sock-10.0.2.15:22"),
        ("tcp::8000-8010-:9000", "tcp:0.0.0.0:8000-8010-10.0.2.15:9000"),
        ("udp+try:*:1-65535-:1", "udp+try:*:1-65535-10.0.2.15:1"),
        ("tcp+freebind+try:[fd00::9]%eth0:80-:8080", "tcp+try+freebind:[fd00::9]%eth0:80-10.0.2.15:8080"),
        (":%eth0:80-[fec0::15]:80", "tcp:0.0.0.0%eth0:80-[fec0::15]:80"),
    ];
    for (text, want) in table {
        let u = user(&format!(",hostfwd={text}")).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(u.forwards[0].to_string(), want);
        let again = user(&format!(",hostfwd={want}")).unwrap();
        assert_eq!(again.forwards, u.forwards);
    }
    let six = user(",ipv4=off,hostfwd=tcp::1-:1").unwrap();
    assert_eq!(six.forwards[0].guest, "[::]:1".parse().unwrap());
    assert_eq!(Listen::read("udp:[::1]:5").unwrap().to_string(), "udp:[::1]:5");
    assert_eq!(Listen::read(":127.0.0.1:5").unwrap().to_string(), "tcp:127.0.0.1:5");
    assert_eq!(Listen::read("unix:/a").unwrap().to_string(), "unix:/a");
    let range = Listen::read("udp+try:*%e0:5-9").unwrap();
    assert_eq!((range.to_string().as_str(), range.ports()), ("udp+try:*%e0:5-9", 5));
    assert!(range.is_at(&Listen::read("udp:*%e0:5-9").unwrap()));
    for other in ["udp:*%e0:5-8", "udp:*:5-9", "tcp:*%e0:5-9", "udp:[::]%e0:5-9", "unix:/a"] {
        assert!(!range.is_at(&Listen::read(other).unwrap()), "{other}");
    }
    for bad in
        ["", "5", "tcp:5", "tcp::x", "unix:a", "sctp::1", "tcp:x:1", "tcp::0-5", "tcp::9-8", "tcp+x::1"]
    {
        assert!(Listen::read(bad).is_err(), "{bad}");
    }
    for (text, why) in [
        ("tcp::65530-65535-:65531", "Bad guest port"),
        ("tcp::9-8-:1", "Bad host port"),
        ("tcp::0-8-:1", "Bad host port"),
        ("tcp+all::8-:1", "Bad protocol name"),
        ("unix+try:/x-:1", "Bad protocol name"),
        ("tcp:1.2.3.4%much-too-long-for-one:8-:1", "Bad host interface"),
        ("tcp:*1:8-:1", "Bad host address"),
    ] {
        let fault = user(&format!(",hostfwd={text}")).unwrap_err();
        assert_eq!(fault.why, format!("Invalid host forwarding rule '{text}' ({why})"));
    }
}

#[test]
fn forwards_that_lead_out_of_a_namespace() {
    for (text, want) in [
        ("tcp+ns::8080-:80", "tcp+ns:127.0.0.1:8080-127.0.0.1:80"),
        ("udp+try+ns:[::1]:5-9-:5", "udp+ns+try:[::1]:5-9-[::1]:5"),
        ("tcp+ns:127.0.0.2:0-127.0.0.3:80", "tcp+ns:127.0.0.2:0-127.0.0.3:80"),
    ] {
        let u = user(&format!(",ns-fd=9,hostfwd={text}")).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((u.forwards[0].to_string().as_str(), u.ns_fd), (want, Some(9)));
        assert_eq!(user(&format!(",hostfwd={want}")).unwrap().forwards, u.forwards);
    }
    let inside = Listen::read("tcp+ns+try:127.0.0.1:80").unwrap();
    assert!(inside.is_at(&Listen::read("tcp+ns::80").unwrap()) && inside.inside().is_some());
    assert!(!inside.is_at(&Listen::read("tcp:127.0.0.1:80").unwrap()), "another place");
    let (inside, host) = (
        "Bad address: inside a namespace it is the loopback's",
        "Bad host address: from a namespace it is the loopback's, of the same family",
    );
    for (text, why) in [
        ("tcp+ns:*:8-:1", inside),
        ("tcp+ns:10.0.2.15:8-:1", inside),
        ("udp+ns:127.0.0.1%lo:8-:1", inside),
        ("tcp+ns+freebind::8-:1", inside),
        ("tcp+ns::8-192.0.2.1:1", host),
        ("tcp+ns::8-[::1]:1", host),
        ("unix+ns:/x-:1", "Bad protocol name"),
    ] {
        let fault = user(&format!(",hostfwd={text}")).unwrap_err();
        assert_eq!(fault.why, format!("Invalid host forwarding rule '{text}' ({why})"));
    }
}

#[test]
fn forwards_from_the_guest() {
    let table = [
        ("tcp:10.0.2.100:80-tcp:127.0.0.1:8080", "tcp:10.0.2.100:80-tcp:127.0.0.1:8080"),
        ("::80-tcp:localhost:1", "tcp:10.0.2.4:80-tcp:localhost:1"),
        (":10.0.2.9:80-unix:/run/x", "tcp:10.0.2.9:80-unix:/run/x"),
        ("tcp:[fec0::9]:80-tcp:[::1]:8080", "tcp:[fec0::9]:80-tcp:[::1]:8080"),
    ];
    for (text, want) in table {
        let u = user(&format!(",guestfwd={text}")).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(u.guest_forwards[0].to_string(), want);
    }
    let u = user(",net=10.9.0.0/16,guestfwd=::80-tcp:[::1]:1").unwrap();
    assert_eq!(u.guest_forwards[0].at, "10.9.2.4:80".parse().unwrap());
    assert_eq!(u.guest_forwards[0].to, Target::Tcp("::1".into(), 1));
}

#[test]
fn addresses_as_inet_aton_reads_them() {
    let table = [
        ("1.2.3.4", Some("1.2.3.4")),
        ("1.2.3", Some("1.2.0.3")),
        ("1.2", Some("1.0.0.2")),
        ("1", Some("0.0.0.1")),
        ("0x7f.1", Some("127.0.0.1")),
        ("010.0.0.1", Some("8.0.0.1")),
        ("1.2.65535", Some("1.2.255.255")),
        ("1.2.65536", None),
        ("256.1.1.1", None),
        ("1.2.3.4.5", None),
        ("", None),
        ("1..2", None),
        ("-1", None),
        ("4294967296", None),
    ];
    for (text, want) in table {
        assert_eq!(inet_aton(text), want.map(ip4), "{text}");
    }
}

#[test]
fn what_stands_for_another() {
    let read = |alias: &str| user(&format!(",alias={alias}"));
    let pair = |a: &str, b: &str| (a.parse().unwrap(), b.parse().unwrap());
    assert_eq!(read("169.254.1.2-192.0.2.7").unwrap().aliases[0], pair("169.254.1.2", "192.0.2.7"));
    assert_eq!(read("169.254.1.2-host").unwrap().aliases[0], pair("169.254.1.2", "0.0.0.0"));
    assert_eq!(read("fd01::2-host").unwrap().aliases[0], pair("fd01::2", "::"));
    for bad in [
        "169.254.1.2",
        "169.254.1.2-::1",
        "169.254.1.2-0.0.0.0",
        "224.0.0.1-host",
        "host-10.0.0.1",
        "fd01::2-hos",
    ] {
        assert!(read(bad).unwrap_err().fix.contains("ADDRESS-host"), "{bad}");
    }
}
