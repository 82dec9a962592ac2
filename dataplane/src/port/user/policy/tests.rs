//! Tables: what is allowed, by which rule, in whatever clothes an address comes.

use proptest::prelude::*;

use super::*;

fn rules(texts: &[&str]) -> Vec<Rule> {
    let read = |t: &&str| {
        let (verb, rule) = t.split_once('=').unwrap();
        let verdict = match verb {
            "allow" => Verdict::Pass,
            "deny" => Verdict::Refuse,
            "drop" => Verdict::Drop,
            _ => panic!("{t}"),
        };
        Rule { verdict, ..rule.parse().unwrap() }
    };
    texts.iter().map(read).collect()
}

fn vm(texts: &[&str]) -> Policy {
    Policy::new(&rules(texts), Preset::Vm, false)
}

/// The host's addresses in these tables.
fn own(ip: IpAddr) -> bool {
    ["192.168.7.1", "10.1.0.9", "2001:db8::9"].iter().any(|a| a.parse() == Ok(ip))
}

fn may(p: &Policy, proto: Proto, to: &str) -> bool {
    p.may(proto, to.parse().unwrap(), &own) == Verdict::Pass
}

#[test]
fn a_guest_reaches_the_world_and_not_its_host() {
    let p = vm(&[]);
    for to in
        ["1.1.1.1:53", "10.0.0.1:22", "192.168.1.1:80", "[2001:db8::1]:443", "[fd00::1]:1", "239.1.1.1:5"]
    {
        assert!(may(&p, Proto::Tcp, to) && may(&p, Proto::Udp, to) && may(&p, Proto::Icmp, to), "{to}");
    }
    for to in [
        "127.0.0.1:22",
        "127.255.255.254:1",
        "0.0.0.0:22",
        "0.1.2.3:22",
        "169.254.0.1:80",
        "169.254.169.254:80",
        "100.100.100.200:80",
        "192.0.0.192:80",
        "168.63.129.16:80",
        "224.0.0.251:5353",
        "255.255.255.255:67",
        "[::]:22",
        "[::1]:22",
        "[fe80::1]:22",
        "[febf::1]:22",
        "[ff02::fb]:5353",
        "[ff12::1]:1",
        "[ff01::1]:1",
        "[fd00:ec2::254]:80",
        "[fd00:ec2::23]:80",
        "[fd00:c1::a9fe:a9fe]:80",
        "[fd00:42::42]:80",
        "[fd00:a9fe:a9fe::1]:80",
        "[fd00:100::100:200]:80",
        "[fd20:ce::254]:80",
    ] {
        for proto in [Proto::Tcp, Proto::Udp, Proto::Icmp] {
            assert!(!may(&p, proto, to), "{to} {proto:?}");
        }
    }
    for to in
        ["[fec0::1]:1", "[ff05::1]:1", "[fe00::1]:1", "126.255.255.255:1", "128.0.0.1:1", "169.253.1.1:1"]
    {
        assert!(may(&p, Proto::Tcp, to), "{to}");
    }
}

#[test]
fn an_address_in_other_clothes_is_the_same_address() {
    let p = vm(&[]);
    for inner in ["127.0.0.1", "169.254.169.254", "0.0.0.9", "100.100.100.200"] {
        let v4: Ipv4Addr = inner.parse().unwrap();
        let [a, b, c, d] = v4.octets();
        let hex = format!("{a:02x}{b:02x}:{c:02x}{d:02x}");
        for to in [
            format!("[::ffff:{inner}]:80"),
            format!("[::{inner}]:80"),
            format!("[::ffff:0:{inner}]:80"),
            format!("[64:ff9b::{inner}]:80"),
            format!("[64:ff9b:1::{inner}]:80"),
            format!("[64:ff9b:1:7:8:9:{hex}]:80"),
            format!("[2002:{hex}::1]:80"),
        ] {
            assert!(!may(&p, Proto::Tcp, &to), "{to}");
            assert!(may(&Policy::new(&[], Preset::Qemu, false), Proto::Tcp, &to), "{to}");
        }
    }
    for to in
        ["[::ffff:1.1.1.1]:80", "[64:ff9b::1.1.1.1]:80", "[2002:101:101::1]:80", "[64:ff9b:2::7f00:1]:80"]
    {
        assert!(may(&p, Proto::Tcp, to), "{to}");
    }
    // NAT64 of one's own (RFC 8215): prefixes of 48, 56, 64 and 96 bits, as RFC 6052 §2.2 lays them out.
    for to in ["7f00:0:100::", "17f:0:1::", "1:7f:0:100::", "2:3:4:7f00:1", "0:a9:fea9:fe00::"] {
        assert!(!may(&p, Proto::Tcp, &format!("[64:ff9b:1:{to}]:80")), "{to}");
    }
    for to in [":1.1.1.1", "2::1.1.1.1", "2:3:4:1.1.1.1", "101:1:100::", "1:1:101:100::"] {
        assert!(may(&p, Proto::Tcp, &format!("[64:ff9b:1:{to}]:80")), "{to}");
    }
    // What is let through by its own name is let through in its clothes as well, and not the other way round.
    assert!(may(&vm(&["allow=host"]), Proto::Tcp, "[::ffff:127.0.0.1]:80"));
    assert!(may(&vm(&["allow=host"]), Proto::Tcp, "[64:ff9b::127.0.0.1]:80"));
    assert!(!may(&vm(&["allow=[64:ff9b::/96]"]), Proto::Tcp, "[64:ff9b::127.0.0.1]:80"));
}

#[test]
fn the_host_is_itself_at_each_of_its_addresses() {
    let p = vm(&[]);
    for to in ["192.168.7.1:22", "[2001:db8::9]:22", "[::ffff:10.1.0.9]:22", "[64:ff9b::10.1.0.9]:22"] {
        for proto in [Proto::Tcp, Proto::Udp, Proto::Icmp] {
            assert!(!may(&p, proto, to), "{to}");
            assert!(may(&Policy::new(&[], Preset::Qemu, false), proto, to), "{to}");
        }
    }
    assert!(may(&p, Proto::Tcp, "192.168.7.2:22"));
    let table: [(&[&str], &str, bool); 7] = [
        (&["allow=tcp:host:22"], "192.168.7.1:22", true),
        (&["allow=tcp:host:22"], "127.0.0.1:22", true),
        (&["allow=tcp:host:22"], "192.168.7.1:23", false),
        (&["allow=loopback"], "127.0.0.1:22", true),
        (&["allow=loopback"], "192.168.7.1:22", false),
        (&["deny=loopback", "allow=host"], "192.168.7.1:22", true),
        (&["deny=loopback", "allow=host"], "127.0.0.1:22", false),
    ];
    for (texts, to, want) in table {
        assert_eq!(may(&vm(texts), Proto::Tcp, to), want, "{texts:?} {to}");
    }
    // Nobody is asked where no rule depends on it.
    let asked = |texts: &[&str], preset, to: &str| {
        let n = std::cell::Cell::new(0);
        let count = |_| {
            n.set(n.get() + 1);
            false
        };
        let _ = Policy::new(&rules(texts), preset, false).may(Proto::Tcp, to.parse().unwrap(), &count);
        n.get()
    };
    assert_eq!(asked(&[], Preset::Qemu, "1.1.1.1:80"), 0);
    assert_eq!(asked(&["allow=any"], Preset::Vm, "1.1.1.1:80"), 0);
    assert_eq!(asked(&["deny=udp:host"], Preset::Qemu, "1.1.1.1:80"), 0);
    assert_eq!(asked(&[], Preset::Vm, "127.0.0.1:80"), 0);
    assert_eq!(
        asked(&["deny=tcp:host:1", "deny=tcp:host:80"], Preset::Vm, "1.1.1.1:80"),
        1,
        "once for all rules"
    );
}

#[test]
fn names_are_asked_for_unless_a_rule_says_so() {
    let (all, none) = ((true, true), (false, false));
    let table: [(&[&str], (bool, bool)); 12] = [
        (&[], all),
        // Whom the resolver asks is not what the guest reaches.
        (&["deny=host", "deny=private", "deny=0.0.0.0/0", "deny=[::/0]"], all),
        (&["deny=any"], none),
        (&["drop=any"], none),
        (&["deny=tcp:any"], (false, true)),
        (&["deny=udp:any"], (true, false)),
        (&["deny=any:53"], none),
        (&["deny=any:1-52", "deny=tcp:any:54-65535"], all),
        (&["allow=dns", "deny=any"], all),
        (&["allow=udp:dns", "deny=any"], (false, true)),
        (&["deny=dns"], none),
        (&["deny=in:any"], all),
    ];
    for (texts, (tcp, udp)) in table {
        let p = vm(texts);
        assert_eq!(p.may_ask(Proto::Tcp) == Verdict::Pass, tcp, "{texts:?} tcp");
        assert_eq!(p.may_ask(Proto::Udp) == Verdict::Pass, udp, "{texts:?} udp");
    }
    // It is nobody's address.
    assert!(may(&vm(&["deny=dns"]), Proto::Udp, "1.1.1.1:53"));
}

#[test]
fn few_ports_are_listed_and_many_are_not() {
    let table: [(&[&str], Option<&[u16]>); 11] = [
        (&[], None),
        (&["deny=private"], None),
        (&["deny=any"], Some(&[])),
        (&["deny=tcp:any"], Some(&[53])),
        (&["allow=tcp:any:443", "deny=any"], Some(&[443])),
        (&["allow=dns", "allow=10.0.0.0/8:80-82", "allow=tcp:host:82", "deny=any"], Some(&[53, 80, 81, 82])),
        (&["deny=any:80", "allow=any:79-81", "deny=any"], Some(&[79, 81])),
        (&["deny=10.0.0.0/8:80", "allow=any:80", "deny=any"], Some(&[80])),
        (&["allow=udp:any", "allow=icmp:any", "deny=any"], Some(&[53])),
        (&["allow=in:any", "deny=tcp:any:1-65534", "deny=dns"], Some(&[0, 65535])),
        (&["allow=tcp:any:1000-2000", "deny=any"], None),
    ];
    for (texts, want) in table {
        assert_eq!(vm(texts).tcp_ports(256).as_deref(), want, "{texts:?}");
    }
    assert_eq!(Policy::new(&[], Preset::Qemu, true).tcp_ports(0), Some(Vec::new()));
}

#[test]
fn the_first_rule_that_fits_decides() {
    let p = vm(&["allow=tcp:host:5432", "deny=tcp:10.0.0.0/8:1-1023", "allow=10.1.0.0/16", "deny=private"]);
    let table = [
        (Proto::Tcp, "127.0.0.1:5432", true),
        (Proto::Tcp, "[::1]:5432", true),
        (Proto::Udp, "127.0.0.1:5432", false),
        (Proto::Tcp, "127.0.0.1:5433", false),
        (Proto::Icmp, "127.0.0.1:0", false),
        (Proto::Tcp, "10.1.0.1:80", false),
        (Proto::Tcp, "10.1.0.1:1023", false),
        (Proto::Tcp, "10.1.0.1:1024", true),
        (Proto::Udp, "10.1.0.1:80", true),
        (Proto::Icmp, "10.1.0.1:0", true),
        (Proto::Tcp, "10.2.0.1:8080", false),
        (Proto::Tcp, "172.16.0.1:80", false),
        (Proto::Tcp, "100.64.0.1:80", false),
        (Proto::Tcp, "[fc00::1]:80", false),
        (Proto::Tcp, "9.9.9.9:80", true),
    ];
    for (proto, to, want) in table {
        assert_eq!(may(&p, proto, to), want, "{proto:?} {to}");
    }
    assert!(!may(&vm(&["deny=any"]), Proto::Tcp, "9.9.9.9:1"));
    assert!(may(&vm(&["allow=[fe80::/10]", "deny=any"]), Proto::Udp, "[fe80::1]:1"));
    assert!(may(&vm(&["deny=[::/0]"]), Proto::Udp, "9.9.9.9:1"));
    assert!(!may(&vm(&["deny=[::/0]"]), Proto::Udp, "[2001::9]:1"));
}

#[test]
fn qemus_openness_and_restriction() {
    let open = Policy::new(&[], Preset::named("qemu").unwrap(), false);
    let shut = Policy::new(&rules(&["allow=any"]), Preset::Qemu, true);
    for to in ["127.0.0.1:22", "169.254.169.254:80", "[::1]:1", "1.1.1.1:1"] {
        assert!(may(&open, Proto::Tcp, to), "{to}");
        assert!(!may(&shut, Proto::Tcp, to) && !may(&shut, Proto::Icmp, to), "{to}");
    }
    assert_eq!(shut.may_enter(Proto::Tcp, "127.0.0.1:80".parse().unwrap(), &own), Verdict::Pass);
    assert_eq!(Preset::named("passt"), None);
}

#[test]
fn who_may_come_over_a_forward() {
    let come = |p: &Policy, from: &str| {
        p.may_enter(Proto::Tcp, SocketAddr::new(from.parse().unwrap(), 40_000), &own)
    };
    let p = vm(&["allow=in:tcp:192.168.7.0/24", "drop=in:10.0.0.0/8", "deny=in:any"]);
    assert_eq!((come(&p, "192.168.7.9"), come(&p, "::ffff:192.168.7.9")), (Verdict::Pass, Verdict::Pass));
    assert_eq!((come(&p, "192.168.8.9"), come(&p, "::1")), (Verdict::Refuse, Verdict::Refuse));
    assert_eq!(come(&p, "10.9.9.9"), Verdict::Drop);
    assert!(may(&p, Proto::Tcp, "10.9.9.9:22"), "no rule of the other direction counts");
    assert_eq!(come(&vm(&["deny=any"]), "127.0.0.1"), Verdict::Pass);
}

#[test]
fn rules_are_read_and_written_alike() {
    for text in [
        "allow=any",
        "deny=host",
        "allow=loopback:80",
        "allow=udp:dns",
        "deny=in:host",
        "allow=tcp:host:22",
        "drop=in:udp:link-local",
        "allow=icmp:metadata",
        "deny=private:80",
        "allow=10.0.0.0/8:80-90",
        "allow=1.2.3.4/32",
        "deny=tcp:[fd00::/8]:443",
        "deny=[::1/128]",
        "deny=0.0.0.0/0",
        "deny=[::/0]",
    ] {
        assert_eq!(rules(&[text])[0].to_string(), text);
    }
    assert_eq!(rules(&["allow=out:tcp:1.2.3.4"])[0].to_string(), "allow=tcp:1.2.3.4/32");
    for bad in [
        "",
        "tcp",
        "tcp:",
        "tcp:any:",
        "any:0",
        "any:65536",
        "any:9-8",
        "any:+1",
        "any:1-",
        "icmp:any:1",
        "10.0.0.1/8",
        "10.0.0.0/33",
        "10.0.0.0/",
        "10.0.0",
        "fd00::/8",
        "[fd00::/8",
        "[fd00::/8]x",
        "[fd00::/8]:",
        "[fd00::1/8]",
        "[::/129]",
        "[1.2.3.4]",
        "in:any:22",
        "sctp:any",
        "in:in:any",
        "tcp:in:any",
        "localhost",
        "dns:53",
        "icmp:dns",
        "in:dns",
        "*",
    ] {
        assert!(bad.parse::<Rule>().is_err(), "{bad}");
    }
}

proptest! {
    /// Whatever the rules are: a port that is not listed leads nowhere.
    #[test]
    fn what_is_reached_is_listed(
        texts in proptest::collection::vec(
            "(allow|deny|drop)=(tcp:|udp:|)(any|host|private|dns|1\\.2\\.3\\.0/24|9\\.9\\.9\\.9)", 0..5),
        ports in proptest::collection::vec((0_u16..12, 0_u16..4), 5),
    ) {
        let mut all = rules(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        for (rule, (first, more)) in all.iter_mut().zip(ports) {
            rule.ports = (more > 0 && rule.at != Where::Dns).then_some((first, first + more));
        }
        let p = Policy { otherwise: Verdict::Refuse, ..Policy::new(&all, Preset::Vm, false) };
        let listed = p.tcp_ports(usize::MAX).unwrap();
        prop_assert!(listed.is_sorted_by(|a, b| a < b));
        for port in (0..16).chain([53, 65535]) {
            for to in ["1.2.3.4", "9.9.9.9", "10.0.0.1", "192.168.7.1", "127.0.0.1"] {
                let at = SocketAddr::new(to.parse().unwrap(), port);
                prop_assert!(p.may(Proto::Tcp, at, &own) != Verdict::Pass || listed.contains(&port), "{to} {port}");
            }
        }
    }

    #[test]
    fn no_text_is_read_otherwise_than_it_is_written(text in "(in:|tcp:|udp:|any|host|1.2.3.4|\\[::1|/|]|8|:|-|90){0,7}") {
        if let Ok(rule) = text.parse::<Rule>() {
            let written = rule.to_string();
            prop_assert_eq!(written.strip_prefix("allow=").unwrap().parse::<Rule>(), Ok(rule));
        }
    }

    #[test]
    fn loopback_is_denied_in_every_form(host in 0_u32..1 << 24, port: u16, form in 0_usize..5) {
        let v4 = Ipv4Addr::from_bits(127 << 24 | host);
        let low = u128::from(v4.to_bits());
        let ip: IpAddr = match form {
            0 => v4.into(),
            1 => v4.to_ipv6_mapped().into(),
            2 => Ipv6Addr::from_bits(low).into(),
            3 => Ipv6Addr::from_bits(0x64_ff9b << 96 | low).into(),
            _ => Ipv6Addr::from_bits(0x2002 << 112 | low << 80).into(),
        };
        for proto in [Proto::Tcp, Proto::Udp, Proto::Icmp] {
            prop_assert_eq!(vm(&[]).may(proto, SocketAddr::new(ip, port), &own), Verdict::Refuse);
        }
    }
}
