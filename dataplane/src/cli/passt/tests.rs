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
    assert_eq!(log.as_deref(), Some("/l"));
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
                --log-file /var/log/passt.log --address 172.17.2.4 --netmask 24 --address 2001:db8:ac10:fd01::feed \
                --tcp-ports 2022:22 --udp-ports 127.0.0.1/5000-5003:6000-6003,~5001-5002 --tcp-ports 2001:db8::1/8080";
    let words = run(line);
    let netdev = words[2].clone();
    assert_eq!(
        netdev,
        "user,id=net0,preset=qemu,net=172.17.2.4/24,dhcpstart=172.17.2.4,ipv6-prefix=2001:db8:ac10:fd01::,\
         ipv6-dhcpstart=2001:db8:ac10:fd01::feed,mac=52:54:00:7a:5c:01,mtu=1400,hostfwd=tcp:0.0.0.0:2022-:22,\
         hostfwd=tcp:[::]:2022-:22,hostfwd=tcp:[2001:db8::1]:8080-:8080,hostfwd=udp:127.0.0.1:5000-:6000,\
         hostfwd=udp:127.0.0.1:5003-:6003"
    );
    Config::read(&[netdev], &[], None).unwrap();
    let device =
        "stream,netdev=net0,server=on,addr.type=unix,addr.path=/run/libvirt/qemu/passt/1-vm-net0.socket";
    assert_eq!(words[4], device);
    assert_eq!(words[5..], ["--one-off", "--daemonize"]);
    // What a range of nothing comes to there.
    assert!(plan("--tcp-ports 1.2.3.4/all").is_err());
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
        ("-6 --no-map-gw --map-host-loopback fd01::1", "ipv4=off,alias=fd01::1-::1,without=host"),
        ("-t none -u none", ""),
        ("-t 127.0.0.1/2222:22", "hostfwd=tcp:127.0.0.1:2222-:22"),
        ("-4 -t 80,81 -u 53:5353", {
            "ipv6=off,hostfwd=tcp:0.0.0.0:80-:80,hostfwd=tcp:0.0.0.0:81-:81,hostfwd=udp:0.0.0.0:53-:5353"
        }),
        ("-t 22", "hostfwd=tcp:0.0.0.0:22-:22,hostfwd=tcp:[::]:22-:22"),
        ("-t ::1/8000-8002:9000-9002,~8001", "hostfwd=tcp:[::1]:8000-:9000,hostfwd=tcp:[::1]:8002-:9002"),
    ];
    for (line, want) in table {
        let netdev = run(line)[2].clone();
        let comma = if want.is_empty() { "" } else { "," };
        assert_eq!(netdev, format!("user,id=net0,preset=qemu{comma}{want}"), "{line}");
        Config::read(&[netdev], &[], None).unwrap_or_else(|e| panic!("{line}: {e}"));
    }
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
        ("--interface eth0", "passt: --interface", "no interface's addresses are copied"),
        ("-i eth0", "passt: -i", "no interface's addresses are copied"),
        ("-a 1.2.3", "passt: --address 1.2.3", "no address"),
        ("-a fd00::9/48", "passt: --address fd00::9/48", "64 bits"),
        ("-a 10.0.0.9/8 -n 16", "passt: --address and --netmask", "mutually exclusive"),
        ("-g fe80::1", "passt: --gateway fe80::1", "follows from"),
        ("--dns-forward x", "passt: --dns-forward x", "no address"),
        ("--runas 1:2", "passt: --runas 1:2", "the user's own"),
        ("--log-size 1", "passt: --log-size", "not cut"),
        ("-o 192.0.2.1", "passt: -o", "host's routes"),
        ("-t all", "passt: --tcp-ports all", "every port"),
        ("-t ~25", "passt: --tcp-ports ~25", "only excludes"),
        ("-t 0", "passt: --tcp-ports 0", "no port"),
        ("-t 9-8", "passt: --tcp-ports 9-8", "no port"),
        ("-u 1-3:1-2", "passt: --udp-ports 1-3:1-2", "differ in length"),
        ("-t 1-65", "passt: --tcp-ports 1-65", "more than 64"),
        ("-t x/22", "passt: --tcp-ports x/22", "no address"),
        ("-t 1.2.3.4%eth0/22", "passt: --tcp-ports 1.2.3.4%eth0/22", "not bound to interfaces"),
    ] {
        let fault = plan(line).unwrap_err();
        assert_eq!((fault.exit, fault.what.as_str()), (Exit::Usage, what), "{line}");
        assert!(fault.why.contains(why) && !fault.fix.is_empty(), "{line}: {fault}");
    }
    assert!(translate(&[], || None).is_err());
}

#[test]
fn it_is_known_by_its_name() {
    for (name, is) in
        [("passt", true), ("/usr/libexec/netreeve-passt", true), ("netreeve", false), ("passt.avx2", false)]
    {
        assert_eq!(is_name(OsStr::new(name)), is, "{name}");
    }
}
