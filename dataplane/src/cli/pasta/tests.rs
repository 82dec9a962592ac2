//! Tables: pasta's words, and what is to be made of them.

use super::*;

fn try_wish(line: &str) -> Result<Wish, Fault> {
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let (given, rest) = read(&words, Mode::Pasta)?;
    let rest: Vec<OsString> = rest.iter().map(OsString::from).collect();
    wish(given, &rest)
}

fn wished(line: &str) -> Wish {
    try_wish(line).unwrap_or_else(|e| panic!("{line}: {e}"))
}

fn there(user: Option<&str>, net: &str) -> Target {
    Target::There(user.map(PathBuf::from), net.into())
}

#[test]
fn whose_namespace_is_meant() {
    let command = |words: &[&str]| Target::New(words.iter().map(OsString::from).collect());
    for (line, target) in [
        ("--config-net ip a", command(&["ip", "a"])),
        ("-- -x", command(&["-x"])),
        ("-4 sh -c -6", command(&["sh", "-c", "-6"])),
        ("17", there(Some("/proc/17/ns/user"), "/proc/17/ns/net")),
        ("--netns-only 17", there(None, "/proc/17/ns/net")),
        ("--userns /u 17", there(Some("/u"), "/proc/17/ns/net")),
        ("17 18", command(&["17", "18"])),
        ("--netns /run/x", there(None, "/run/x")),
        ("--netns=name", there(None, "/run/netns/name")),
        ("--userns /u --netns ./n", there(Some("/u"), "./n")),
    ] {
        assert_eq!(wished(line).target, target, "{line}");
    }
    assert!(matches!(wished("").target, Target::New(shell) if shell.len() == 1));
}

/// Podman's words (5 and later), bubblewrap's friends', RootlessKit's.
#[test]
fn those_who_start_pasta_are_understood() {
    let podman = "--config-net --pid /run/p.pid --dns-forward 169.254.1.1 -t none -u none -T none -U none --no-map-gw \
                  --quiet --netns /run/user/1000/netns/netns-1 --map-guest-addr 169.254.1.2";
    let w = wished(podman);
    assert_eq!(w.target, there(None, "/run/user/1000/netns/netns-1"));
    assert!(w.netdev.starts_with("user,id=net0,preset=qemu,dns=169.254.1.1"), "{}", w.netdev);
    assert!(w.netdev.ends_with(",without=resolver,deny=loopback"), "{}", w.netdev);
    assert!(!w.netdev.contains("hostfwd") && w.order.config);
    assert_eq!(w.order.addresses[0], ("10.0.2.15".parse().unwrap(), 24));
    assert_eq!(w.order.addresses[1], ("fec0::15".parse().unwrap(), 64));
    assert_eq!(w.order.gateways[0], "10.0.2.2".parse::<IpAddr>().unwrap());
    let published = "--config-net -t 0.0.0.0/8080-8080:80-80 -u none -T none -U none --netns /n --foreground";
    assert!(wished(published).netdev.ends_with(",hostfwd=tcp:0.0.0.0:8080-:80"));
    let auto = wished("--config-net -t auto,~22 -u 127.0.0.1/auto -t 8080 -i lo true");
    let key = "outbound-if4=lo,outbound-if6=lo,without=resolver,hostfwd=tcp:*:8080-:8080";
    assert!(auto.netdev.ends_with(key), "{}", auto.netdev);
    assert_eq!((auto.order.autos.len(), auto.order.ifname.as_str()), (2, "lo"));
    assert!(auto.order.autos[0].1.rules_to(22, &auto.order.autos[0].0).is_empty());
    let rootlesskit = "--foreground --stderr --ns-ifname=tap0 --mtu=1500 --config-net --address=10.0.2.100 --netmask=24 \
                       --gateway=10.0.2.2 --dns-forward=10.0.2.3 --no-map-gw --ipv4-only --tcp-ports=none \
                       --udp-ports=none --tcp-ns=none --udp-ns=none 4711";
    let w = wished(rootlesskit);
    assert_eq!((w.order.ifname.as_str(), w.order.mtu), ("tap0", Some(1500)));
    assert_eq!(w.order.addresses, [("10.0.2.100".parse().unwrap(), 24)]);
}

#[test]
fn what_leads_out_of_the_namespace() {
    let w = wished("-T 8080:80,9000-9003,~9002 -U 53 -U auto -T none -t 2222:22 --no-map-gw true");
    assert!(!w.netdev.contains("+ns"), "the namespace is asked first what it has: {}", w.netdev);
    let (both, four) = (leading_out(&w.netdev, &w.out, true), leading_out(&w.netdev, &w.out, false));
    let rules: Vec<&str> = both.split(",hostfwd=").skip(1).collect();
    let want = [
        "tcp:*:2222-:22",
        "tcp+ns:127.0.0.1:8080-:80",
        "tcp+ns:[::1]:8080-:80",
        "tcp+ns:127.0.0.1:9000-9001-:9000",
        "tcp+ns:[::1]:9000-9001-:9000",
        "tcp+ns:127.0.0.1:9003-:9003",
        "tcp+ns:[::1]:9003-:9003",
        "udp+ns:127.0.0.1:53-:53",
        "udp+ns:[::1]:53-:53",
    ];
    assert_eq!(rules, want);
    assert!(four.contains("udp+ns:127.0.0.1:53") && !four.contains("+ns:["), "{four}");
    assert!(w.order.inside && w.order.autos.len() == 1 && w.order.autos[0].0.inside);
    assert_eq!(w.order.own, [(false, 2222, 2222)]);
    // None of them is waited for on the host.
    assert!(w.listens.iter().any(|l| l.inside().is_some()));
    vacated(&w.listens);
    let six = wished("-6 -T all,~1-8000 true");
    let text = leading_out(&six.netdev, &six.out, true);
    assert_eq!(text.matches(",hostfwd=tcp+ns+try:[::1]:").count(), text.matches("hostfwd").count());
    assert!(!wished("-T none -U none true").order.inside);
}

#[test]
fn what_the_namespace_is_told() {
    let w =
        wished("--config-net -4 -S a.org -I e0 --ns-mac-addr 52:54:00:12:34:56 -a 10.9.0.9 -g 10.9.0.1 true");
    assert_eq!((w.order.ifname.as_str(), w.order.mac), ("e0", Some([0x52, 0x54, 0, 0x12, 0x34, 0x56])));
    assert_eq!(w.order.addresses, [("10.9.0.9".parse().unwrap(), 24)]);
    assert_eq!(w.order.gateways, ["10.9.0.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(w.order.resolv.as_deref(), Some("nameserver 10.9.0.3\nsearch a.org\n"));
    assert_eq!(wished("-D none --config-net true").order.resolv, None);
    assert_eq!(wished("true").order.resolv, None);
    assert!(wished("--dhcp-dns true").netdev.ends_with("preset=qemu"));
    let words = served(&wished("--config-net -P /p true x"), true, Made::default());
    assert!(words.is_err(), "there is no tap");
}

#[test]
fn what_cannot_be_had_is_refused() {
    for (line, what, why) in [
        ("-T 127.0.0.1/80 true", "--tcp-ns 127.0.0.1/80", "no other address or interface"),
        ("-U %eth0/80 true", "--udp-ns %eth0/80", "no other address or interface"),
        ("-T 80:192.0.2.1/80 true", "--tcp-ns 80:192.0.2.1/80", "no other address"),
        ("-U all:192.0.2.1 true", "--udp-ns all:192.0.2.1", "no other address"),
        ("-T 80:79-81 true", "--tcp-ns 80:79-81", "differ in length"),
        ("-T 80 --no-tcp true", "--no-tcp and --tcp-ns", "mutually exclusive"),
        ("-U 80 --no-udp true", "--no-udp and --udp-ns", "mutually exclusive"),
        ("--netns /n true", "--netns", "in place of"),
        ("--userns /u true", "--userns and --netns-only", "of its own"),
        ("--userns /u --netns-only 7", "--userns and --netns-only", "mutually exclusive"),
        ("--ns-mac-addr 01:00:00:00:00:01 true", "--ns-mac-addr", "no station"),
        ("-I much-too-long-for-one true", "--ns-ifname much-too-long-for-one", ""),
        ("--host-lo-to-ns-lo true", "--host-lo-to-ns-lo", "by a tap"),
        ("--vhost-user true", "--vhost-user", "no such option"),
        ("-s /s true", "-s", "no such option"),
    ] {
        let fault = try_wish(line).unwrap_err();
        assert_eq!(fault.exit, Exit::Usage, "{line}");
        assert!(
            fault.what.contains(what) && fault.why.contains(why) && !fault.fix.is_empty(),
            "{line}: {fault}"
        );
    }
}

#[test]
fn it_is_known_by_its_name() {
    for (name, is) in
        [("pasta", true), ("/usr/bin/netreeve-pasta", true), ("passt", false), ("netreeve", false)]
    {
        assert_eq!(is_name(OsStr::new(name)), is, "{name}");
    }
    assert!(stage(&["run".into()]).is_none() && stage(&[stage::WORD.into(), "x".into()]).is_none());
}
