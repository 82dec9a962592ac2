//! Tables: passt's words and netreeve's.

use super::*;
use crate::spec::Config;

fn plan(line: &str) -> Result<Plan, Fault> {
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    translate(&words, || Some("/tmp/passt_7.socket".into()))
}

fn run(line: &str) -> Vec<String> {
    match plan(line) {
        Ok(Plan::Run(words, _)) => words,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn the_contracts_of_those_who_start_us() {
    // QEMU's -netdev passt, by stream and by vhost-user.
    let start = "run --netdev user,id=net0,preset=qemu --device";
    assert_eq!(
        run("--quiet --pid /run/x.pid --fd 3").join(" "),
        format!("{start} stream,netdev=net0,addr.type=fd,addr.str=3 --pid /run/x.pid --one-off --daemonize")
    );
    assert_eq!(
        run("--vhost-user --quiet --pid=/p --fd=3").join(" "),
        format!("{start} vhost-user,netdev=net0,fd=3,server=off --pid /p --one-off --daemonize")
    );
    // libvirt's.
    assert_eq!(
        run("--one-off --socket /run/a,b.sock --pid /p").join(" "),
        format!(
            "{start} stream,netdev=net0,server=on,addr.type=unix,addr.path=/run/a,,b.sock --pid /p --one-off --daemonize"
        )
    );
    assert_eq!(run("--vhost-user -f -s /s").join(" "), format!("{start} vhost-user,netdev=net0,path=/s"));
    let words: Vec<String> =
        ["--log-file", "/l", "--runas", "nobody", "-f", "-s", "/s"].map(String::from).into();
    let Ok(Plan::Run(out, log)) = translate(&words, || None) else { panic!() };
    assert_eq!(log, Some(Log { path: "/l".into(), most: 1 << 20 }));
    let words: Vec<String> = ["--log-file=/l", "--log-size", "9000", "-s", "/s"].map(String::from).into();
    assert!(matches!(translate(&words, || None), Ok(Plan::Run(_, Some(Log { most: 9000, .. })))));
    assert!(out.join(" ").ends_with("--user nobody"), "{out:?}");
    // libkrun's tests.
    assert_eq!(
        run("-f --fd 5").join(" "),
        format!("{start} stream,netdev=net0,addr.type=fd,addr.str=5 --one-off")
    );
    assert!(run("").join(" ").contains("addr.path=/tmp/passt_7.socket --daemonize"));
    assert_eq!(
        plan("--fd 9 --print-capabilities --nonsense").unwrap(),
        Plan::Say(r#"{"type": "net"}"#.into())
    );
    assert!(matches!(plan("--version"), Ok(Plan::Say(v)) if v.contains("passt")));
}

/// What libvirt writes for an interface with addresses of both families, an MTU, a log and forwards (its passt back end).
#[test]
fn libvirts_whole_line() {
    let line = "--one-off --socket /run/libvirt/qemu/passt/1-vm-net0.socket --mac-addr 52:54:00:7a:5c:01 --mtu 1400 \
                --interface eth0 --log-file /var/log/passt.log --hostname vm --fqdn vm.example.org --address 172.17.2.4 --netmask 24 --address 2001:db8:ac10:fd01::feed \
                --tcp-ports 2022:22 --udp-ports 127.0.0.1/5000-5003:6000-6003,~5001-5002 --tcp-ports 2001:db8::1/8080 \
                --tcp-ports 192.0.2.7%eth0/22-80,~25 --udp-ports %eth0/53:5353 --tcp-ports 7000-8000:9000-10000";
    let words = run(line);
    let netdev = words[2].clone();
    assert_eq!(
        netdev,
        "user,id=net0,preset=qemu,net=172.17.2.4/24,dhcpstart=172.17.2.4,ipv6-prefix=2001:db8:ac10:fd01::,\
         ipv6-dhcpstart=2001:db8:ac10:fd01::feed,outbound-if4=eth0,outbound-if6=eth0,hostname=vm,\
         domainname=example.org,mac=52:54:00:7a:5c:01,mtu=1400,hostfwd=tcp:*:2022-:22,\
         hostfwd=tcp:[2001:db8::1]:8080-:8080,hostfwd=tcp:192.0.2.7%eth0:22-24-:22,\
         hostfwd=tcp:192.0.2.7%eth0:26-80-:26,hostfwd=tcp:*:7000-8000-:9000,hostfwd=udp:127.0.0.1:5000-:6000,\
         hostfwd=udp:127.0.0.1:5003-:6003,hostfwd=udp:*%eth0:53-:5353"
    );
    Config::read(&[netdev], &[], None).unwrap();
    let device =
        "stream,netdev=net0,server=on,addr.type=unix,addr.path=/run/libvirt/qemu/passt/1-vm-net0.socket";
    assert_eq!(words[4], device);
    assert_eq!(words[5..], ["--one-off", "--daemonize"]);
}

#[test]
fn what_a_network_is_told() {
    let table = [
        ("-4", "ipv6=off"),
        ("-6", "ipv4=off"),
        ("-a 192.168.1.9", "net=192.168.1.9/24,dhcpstart=192.168.1.9"),
        ("-a 192.168.1.9/16 -g 192.168.1.1", "net=192.168.1.9/16,dhcpstart=192.168.1.9,host=192.168.1.1"),
        ("--address 10.1.0.9 --netmask 255.255.0.0", "net=10.1.0.9/255.255.0.0,dhcpstart=10.1.0.9"),
        ("-a 192.168.1.2", "net=192.168.1.2/24,dhcpstart=192.168.1.2,host=192.168.1.3,dns=192.168.1.4"),
        ("-a 192.168.1.3/16", "net=192.168.1.3/16,dhcpstart=192.168.1.3,dns=192.168.1.4"),
        ("-a 2001:db8::feed", "ipv6-prefix=2001:db8::,ipv6-dhcpstart=2001:db8::feed"),
        ("-4 -a fd00::9", "ipv6=off"),
        (
            "-a 10.9.0.9 -a fd00::9/64 -g 10.9.0.1 -g fd00::1",
            "net=10.9.0.9/24,dhcpstart=10.9.0.9,host=10.9.0.1,ipv6-prefix=fd00::,ipv6-dhcpstart=fd00::9,ipv6-host=fd00::1",
        ),
        ("-M 52:55:00:d1:55:01", "mac=52:55:00:d1:55:01"),
        ("-D 1.1.1.1 -D 9.9.9.9", "resolver=1.1.1.1,resolver=9.9.9.9"),
        ("-D none", "without=resolver"),
        ("--no-dhcp-dns --no-dhcp --no-dhcpv6 --no-ndp --no-ra", "without=dhcp:dhcpv6:ndp:ra:resolver"),
        ("-D 1.1.1.1 --dns-host 9.9.9.9", "resolver=9.9.9.9"),
        ("--dns-forward 169.254.1.1 --dns-forward fec0::53", "dns=169.254.1.1,ipv6-dns=fec0::53"),
        ("--dns-forward 10.0.2.53 --dns none", "dns=10.0.2.53,without=resolver"),
        ("-S a.org --search b", "dnssearch=a.org,dnssearch=b"),
        ("-S x -S none --search c", "dnssearch=c"),
        ("-S x --no-dhcp-search", ""),
        ("--fqdn vm.x.org", "hostname=vm,domainname=x.org"),
        ("-H other --fqdn vm.x.org", "hostname=other,domainname=x.org"),
        ("-H vm", "hostname=vm"),
        ("--mtu 9000", "mtu=9000"),
        ("-m0", "mtu=1500"),
        ("--no-udp --no-icmp", "deny=udp:any,deny=in:udp:any,deny=icmp:any,deny=in:icmp:any"),
        ("--no-map-gw", "deny=loopback"),
        ("--map-host-loopback none --map-guest-addr none", "deny=loopback"),
        ("--map-host-loopback 10.0.2.9", "alias=10.0.2.9-127.0.0.1,without=host"),
        (
            "--map-guest-addr 169.254.1.2 --map-guest-addr fd01::2",
            "alias=169.254.1.2-host,alias=fd01::2-host",
        ),
        ("-4 --map-guest-addr 169.254.1.2 --map-guest-addr fd01::2", "ipv6=off,alias=169.254.1.2-host"),
        ("-6 --no-map-gw --map-host-loopback fd01::1", "ipv4=off,alias=fd01::1-::1,without=host"),
        ("-o 192.0.2.1 -o fd00::9", "outbound=192.0.2.1,outbound=fd00::9"),
        ("--outbound-if4 a0 --outbound-if6 b0", "outbound-if4=a0,outbound-if6=b0"),
        ("-i a0 --outbound-if6 b0", "outbound-if4=a0,outbound-if6=b0"),
        ("-4 -i a0", "ipv6=off,outbound-if4=a0"),
        ("--repair-path none --chroot-fallback", ""),
        ("-t ::1/8000-8002:9000-9002,~8001", "hostfwd=tcp:[::1]:8000-:9000,hostfwd=tcp:[::1]:8002-:9002"),
    ];
    table.iter().for_each(told);
}

/// A line comes to these keys, which make a network.
fn told((line, want): &(&str, &str)) {
    let netdev = run(line)[2].clone();
    let comma = if want.is_empty() { "" } else { "," };
    assert_eq!(netdev, format!("user,id=net0,preset=qemu{comma}{want}"), "{line}");
    Config::read(&[netdev], &[], None).unwrap_or_else(|e| panic!("{line}: {e}"));
}

#[test]
fn which_ports_are_forwarded() {
    let table = [
        ("-t none -u none", ""),
        ("-t 127.0.0.1/2222:22", "hostfwd=tcp:127.0.0.1:2222-:22"),
        ("-4 -t 80,81 -u 53:5353", "ipv6=off,hostfwd=tcp:0.0.0.0:80-81-:80,hostfwd=udp:0.0.0.0:53-:5353"),
        ("-6 -t 8080", "ipv4=off,hostfwd=tcp:[::]:8080-:8080"),
        ("-t 22", "hostfwd=tcp:0.0.0.0:22-:22,hostfwd=tcp:[::]:22-:22"),
        ("-t 2222:22", "hostfwd=tcp:*:2222-:22"),
        ("-t 1-10000", "hostfwd=tcp:*:1-10000-:1"),
        ("-u 2000-5000,~3000-3010", "hostfwd=udp:*:2000-2999-:2000,hostfwd=udp:*:3011-5000-:3011"),
        ("-t 192.0.2.1%eth0/2222", "hostfwd=tcp:192.0.2.1%eth0:2222-:2222"),
        ("-t %eth0/22 --freebind", "hostfwd=tcp+freebind:*%eth0:22-:22"),
        ("--freebind -u fd00::9/53", "hostfwd=udp+freebind:[fd00::9]:53-:53"),
        ("-t 5000:10.0.2.16/6000", "hostfwd=tcp:*:5000-10.0.2.16:6000"),
        ("-t 0.0.0.0/5000-5001:10.0.2.16", "hostfwd=tcp:0.0.0.0:5000-5001-10.0.2.16:5000"),
        ("-t [::1]/5000:fec0::16/6000", "hostfwd=tcp:[::1]:5000-[fec0::16]:6000"),
        ("-t 2222,2222,2223", "hostfwd=tcp:*:2222-2223-:2222"),
    ];
    table.iter().for_each(told);
}

#[test]
fn what_cannot_be_had_is_refused() {
    for (line, what, why) in [
        ("--nonsense", "passt: --nonsense", "no such option"),
        ("-Z", "passt: -Z", "no such option"),
        ("x", "passt: x", "no option"),
        ("-", "passt: -", "no option"),
        ("--fd", "passt: --fd", "value is missing"),
        ("--quiet=1", "passt: --quiet", "takes no value"),
        ("--fd 3 --socket /s", "passt: --fd and --socket", "mutually exclusive"),
        ("-4 -6", "passt: -4 and -6", "mutually exclusive"),
        ("-a 1.2.3", "passt: --address 1.2.3", "no address"),
        ("-a fd00::9/48", "passt: --address fd00::9/48", "64 bits"),
        ("-a 10.0.0.9/8 -n 16", "passt: --address and --netmask", "mutually exclusive"),
        ("-g fe80::1", "passt: --gateway fe80::1", "follows from"),
        ("--dns-forward x", "passt: --dns-forward x", "no address"),
        ("--log-size 1", "passt: --log-size 1", "no size"),
        ("-o eth0", "passt: --outbound eth0", "no address"),
        ("-t auto", "passt: --tcp-ports auto", "looks into"),
        ("-t 1-5,~1-9", "passt: --tcp-ports 1-5,~1-9", "every port"),
        ("-t ~1-65535", "passt: --tcp-ports ~1-65535", "every port"),
        ("-t 80:x/1", "passt: --tcp-ports 80:x/1", "no address"),
        ("-t 80:x", "passt: --tcp-ports 80:x", "no address"),
        ("-t all:x", "passt: --tcp-ports all:x", "no address"),
        ("--repair-path /r", "passt: --repair-path /r", "no such socket"),
        ("-t 0", "passt: --tcp-ports 0", "no port"),
        ("-t 9-8", "passt: --tcp-ports 9-8", "no port"),
        ("-u 1-3:1-2", "passt: --udp-ports 1-3:1-2", "differ in length"),
        ("-t x/22", "passt: --tcp-ports x/22", "no address"),
        ("-t 1.2.3.4%/22", "passt: --tcp-ports 1.2.3.4%/22", "no interface"),
    ] {
        let fault = plan(line).unwrap_err();
        assert_eq!((fault.exit, fault.what.as_str()), (Exit::Usage, what), "{line}");
        assert!(fault.why.contains(why) && !fault.fix.is_empty(), "{line}: {fault}");
    }
    assert!(translate(&[], || None).is_err());
}

/// Every option of passt(1), of the versions of 2025-05-03 (Debian 13) and 2026-10-02: long name, short name, a value, and
/// who has it.
const MANUAL: &[(&str, char, &str, &str)] = &[
    ("debug", 'd', "", "both"),
    ("trace", '\0', "", "both"),
    ("stats", '\0', "5", "refused"),
    ("quiet", 'q', "", "both"),
    ("foreground", 'f', "", "both"),
    ("stderr", 'e', "", "both"),
    ("log-file", 'l', "/l", "both"),
    ("log-size", '\0', "1048576", "both"),
    ("runas", '\0', "nobody:nogroup", "both"),
    ("help", 'h', "", "both"),
    ("version", '\0', "", "both"),
    ("pcap", 'p', "/p", "both"),
    ("pid", 'P', "/p", "both"),
    ("conf-path", 'c', "/c", "refused"),
    ("mtu", 'm', "1500", "both"),
    ("address", 'a', "192.0.2.9/24", "both"),
    ("netmask", 'n', "24", "both"),
    ("mac-addr", 'M', "52:55:00:d1:55:01", "both"),
    ("gateway", 'g', "10.0.2.1", "both"),
    ("interface", 'i', "eth0", "both"),
    ("outbound", 'o', "192.0.2.1", "both"),
    ("outbound-if4", '\0', "eth0", "both"),
    ("outbound-if6", '\0', "eth0", "both"),
    ("dns", 'D', "9.9.9.9", "both"),
    ("dns-forward", '\0', "10.0.2.53", "both"),
    ("dns-host", '\0', "9.9.9.9", "both"),
    ("search", 'S', "example.org", "both"),
    ("no-dhcp-dns", '\0', "", "passt"),
    ("dhcp-dns", '\0', "", "pasta"),
    ("no-dhcp-search", '\0', "", "passt"),
    ("dhcp-search", '\0', "", "pasta"),
    ("no-tcp", '\0', "", "both"),
    ("no-udp", '\0', "", "both"),
    ("no-icmp", '\0', "", "both"),
    ("no-dhcp", '\0', "", "both"),
    ("no-ndp", '\0', "", "both"),
    ("no-dhcpv6", '\0', "", "both"),
    ("no-ra", '\0', "", "both"),
    ("freebind", '\0', "", "both"),
    ("map-host-loopback", '\0', "10.0.2.9", "both"),
    ("no-map-gw", '\0', "", "both"),
    ("map-guest-addr", '\0', "10.0.2.9", "both"),
    ("chroot-fallback", '\0', "", "both"),
    ("ipv4-only", '4', "", "both"),
    ("ipv6-only", '6', "", "both"),
    ("hostname", 'H', "vm", "both"),
    ("fqdn", '\0', "vm.example.org", "both"),
    ("socket-path", '\0', "/s", "passt"),
    ("socket", 's', "/s", "passt"),
    ("vhost-user", '\0', "", "passt"),
    ("repair-path", '\0', "none", "passt"),
    ("migrate-exit", '\0', "", "refused"),
    ("migrate-no-linger", '\0', "", "refused"),
    ("fd", 'F', "3", "passt"),
    ("one-off", '1', "", "passt"),
    ("tcp-ports", 't', "all", "both"),
    ("udp-ports", 'u', "all", "both"),
    ("ns-ifname", 'I', "tap0", "pasta"),
    ("tcp-ns", 'T', "8080:80,auto", "pasta"),
    ("udp-ns", 'U', "all,~53", "pasta"),
    ("host-lo-to-ns-lo", '\0', "", "refused"),
    ("userns", '\0', "/u", "pasta"),
    ("netns", '\0', "/n", "pasta"),
    ("netns-only", '\0', "", "pasta"),
    ("no-netns-quit", '\0', "", "pasta"),
    ("no-pidns", '\0', "", "pasta"),
    ("config-net", '\0', "", "pasta"),
    ("no-copy-routes", '\0', "", "pasta"),
    ("no-copy-addrs", '\0', "", "pasta"),
    ("ns-mac-addr", '\0', "52:54:00:12:34:56", "pasta"),
    ("no-splice", '\0', "", "pasta"),
    ("splice-only", '\0', "", "refused"),
];

/// Nothing is forgotten: what the other programs' manual has is taken, or refused with a reason and what to do.
#[test]
fn every_option_of_the_manual_is_taken_or_refused_with_a_reason() {
    for (long, short, value, whose) in MANUAL {
        for (mode, name) in [(Mode::Passt, "passt"), (Mode::Pasta, "pasta")] {
            let forms = [Some(format!("--{long}")), (*short != '\0').then(|| format!("-{short}"))];
            for form in forms.into_iter().flatten() {
                let mut words = vec![form.clone()];
                words.extend((!value.is_empty()).then(|| (*value).to_owned()));
                match (read(&words, mode), *whose) {
                    (Ok((_, rest)), "both") => assert!(rest.is_empty(), "{name} {form}"),
                    (Ok((_, rest)), one) => assert!(rest.is_empty() && one == name, "{name} {form}"),
                    (Err(e), "refused") => {
                        assert!(
                            e.why.starts_with("it is refused: ") && !e.fix.is_empty(),
                            "{name} {form}: {e}"
                        );
                    }
                    (Err(e), one) => assert!(one != "both" && one != name, "{name} {form}: {e}"),
                }
                if mode == Mode::Passt && matches!(*whose, "both" | "passt") {
                    let with = words.iter().map(String::as_str).chain(["-f"]).collect::<Vec<_>>().join(" ");
                    plan(&with).unwrap_or_else(|e| panic!("{with}: {e}"));
                }
            }
        }
    }
    assert!(matches!(plan("--print-capabilities"), Ok(Plan::Say(_))));
}

#[test]
fn all_ports_are_those_that_nobody_else_is_given() {
    let scene = Scene {
        udp: false,
        inside: false,
        v4: true,
        v6: true,
        free: false,
        auto: false,
        ephemeral: (32_768, 60_999),
    };
    let rules = |spec: &str| ports::read(spec, &scene).unwrap().rules(&scene);
    let low = "tcp+try:*:1-32767-:1";
    let high = "tcp+try:*:61000-65535-:61000";
    assert_eq!(rules("all"), [low, high]);
    assert_eq!(rules("127.0.0.1/all")[0], "tcp+try:127.0.0.1:1-32767-:1");
    assert_eq!(rules("%eth0/"), ["tcp+try:*%eth0:1-32767-:1", "tcp+try:*%eth0:61000-65535-:61000"]);
    assert_eq!(rules("all:10.0.2.16")[1], "tcp+try:*:61000-65535-10.0.2.16:61000");
    assert_eq!(rules("~25"), ["tcp+try:*:1-24-:1", "tcp+try:*:26-32767-:26", high]);
    assert_eq!(rules("~1-32767"), [high]);
    assert_eq!(
        rules("all,8080:80,~22"),
        ["tcp+try:*:1-21-:1", "tcp+try:*:23-8079-:23", "tcp:*:8080-:80", "tcp+try:*:8081-32767-:8081", high]
    );
    let (first, last) = ports::ephemeral();
    assert!(first > 1024 && last > first);
}

#[test]
fn it_is_known_by_its_name() {
    for (name, is) in
        [("passt", true), ("/usr/libexec/netreeve-passt", true), ("netreeve", false), ("passt.avx2", false)]
    {
        assert_eq!(is_name(OsStr::new(name)), is, "{name}");
    }
}
