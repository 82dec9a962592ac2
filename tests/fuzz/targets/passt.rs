//! passt's and pasta's command lines, words cut at NUL bytes: each is a `netreeve run` that reads, or one clear error.
//! Nothing that a value says becomes another option or key, and what it says of a socket and of ports is what is opened.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netreeve_dataplane::cli::fuzz::{self, For};
use netreeve_dataplane::port::user::Plan;
use netreeve_dataplane::spec::addr::Addr;
use netreeve_dataplane::spec::forward::{HostForward, Listen};
use netreeve_dataplane::spec::{Config, Kind, text};

/// Keys of a `user` network that the options come to.
const KEYS: &[&str] = &[
    "type",
    "id",
    "preset",
    "ipv4",
    "ipv6",
    "net",
    "dhcpstart",
    "host",
    "dns",
    "ipv6-prefix",
    "ipv6-dhcpstart",
    "ipv6-host",
    "ipv6-dns",
    "alias",
    "outbound",
    "outbound-if4",
    "outbound-if6",
    "resolver",
    "dnssearch",
    "hostname",
    "domainname",
    "without",
    "mac",
    "mtu",
    "deny",
    "hostfwd",
];
/// Options of `netreeve run` that they come to, and whether a value follows.
const OPTIONS: &[(&str, bool)] = &[
    ("--netdev", true),
    ("--device", true),
    ("--object", true),
    ("--pid", true),
    ("--user", true),
    ("--one-off", false),
    ("--daemonize", false),
];

/// Its keys are those, and the network is what is always meant.
fn network(netdev: &str) {
    let Ok(parsed) = text::parse(netdev, |_| true) else { return };
    assert!(parsed.pairs.iter().all(|p| KEYS.contains(&p.key.as_str())), "{netdev}");
    for (key, value) in [("type", "user"), ("id", "net0"), ("preset", "qemu")] {
        let all: Vec<_> = parsed.pairs.iter().filter(|p| p.key == key).map(|p| p.value.as_str()).collect();
        assert_eq!(all, [value], "{netdev}");
    }
}

/// The value of an option that was said last, where words are only options and the values of these.
fn said<'a>(words: &'a [String], option: &str) -> Option<&'a str> {
    let at = words.iter().rposition(|w| w == option)?;
    words.get(at + 1).map(String::as_str)
}

fn runs(words: &[String]) {
    let Ok(Some(run)) = fuzz::passt(words) else { return };
    let mut rest = run.iter();
    assert_eq!(rest.next().map(String::as_str), Some("run"));
    while let Some(word) = rest.next() {
        let known =
            OPTIONS.iter().find(|(name, _)| name == word).unwrap_or_else(|| panic!("{word}: {run:?}"));
        assert!(!known.1 || rest.next().is_some());
    }
    let netdev = said(&run[..3], "--netdev").unwrap();
    network(netdev);
    let Some((netdevs, devices)) = fuzz::run(&run) else { return };
    assert_eq!((netdevs.len(), devices.len()), (1, 1));
    let Ok(config) = Config::read(&netdevs, &devices, None) else { return };
    assert_eq!((config.ports.len(), config.wires.len()), (2, 1));
    // A socket that is named once is the one that is opened.
    let named: Vec<usize> = (0..words.len()).filter(|n| words[*n] == "--socket").collect();
    let others =
        words.iter().any(|w| w.starts_with("-s") || w.starts_with("--socket-") || w.starts_with("--socket="));
    if let ([0], false, Some(path)) = (&named[..], others, words.get(1)) {
        let at = config.ports.iter().find_map(|p| match &p.kind {
            Kind::Stream(s) => Some(&s.addr),
            Kind::VhostUser(v) => Some(&v.addr),
            _ => None,
        });
        let short = words.iter().skip(2).any(|w| w.starts_with('-') && !w.starts_with("--"));
        assert!(short || at == Some(&Addr::Unix(path.into())), "{words:?}: {at:?}");
    }
}

/// What is read of a `hostfwd`, printed and read again.
fn forward(text: &str, plan: &Plan) -> Option<HostForward> {
    let read = |t: &str| HostForward::read(t, plan.v4.as_ref(), plan.v6.as_ref());
    let one = read(text).ok()?;
    assert_eq!(read(&one.to_string()).as_ref(), Ok(&one), "{text}");
    Some(one)
}

fn ports(spec: &str, to: u16, how: u8) {
    let who = For { udp: how & 1 != 0, v4: how & 6 != 2, v6: how & 6 != 4, inside: how & 8 != 0 };
    let Ok((rules, single)) = fuzz::ports(spec, to, who) else { return };
    let plan = Plan::qemu();
    let mut sockets = 0;
    for rule in rules {
        let one = forward(&rule, &plan).unwrap_or_else(|| panic!("{spec}: {rule}"));
        assert_eq!(matches!(one.listen, Listen::Udp(_)), who.udp);
        assert_eq!(one.listen.inside().is_some(), who.inside, "{spec}: {rule}");
        sockets += one.listen.ports();
    }
    assert!(sockets <= 2 * 65_535 * spec.len().max(1));
    for rule in single {
        let one = forward(&rule, &plan).unwrap_or_else(|| panic!("{spec}: {rule}"));
        assert_eq!((one.guest.port(), one.listen.ports()), (to, 1), "{spec}: {rule}");
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&[how, high, low], rest)) = data.split_first_chunk::<3>() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    if how & 0x80 != 0 {
        return ports(text, u16::from_be_bytes([high, low]), how);
    }
    let words: Vec<String> = text.split('\0').take(64).map(str::to_owned).collect();
    if how & 0x40 == 0 {
        runs(&words);
    } else if let Ok((netdev, left)) = fuzz::pasta(&words) {
        assert!(left <= words.len());
        network(&netdev);
        let _ = Config::read(&[netdev], &[], None);
    }
});
