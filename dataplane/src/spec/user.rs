//! `user`: a network of its own for the guest, out of ordinary sockets. QEMU's options, defaults, checks and words
//! (`-netdev user`, net/slirp.c), and a few of ours: `preset`, `allow`, `deny`, `drop`, `rules`, `mtu`, and those of
//! [`crate::spec::quota`].
//!
//! Trust: the text is the user's. Promise: what would start a program (`smb`, `guestfwd=...-cmd:`) is refused.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use netreeve_shared::mac::Mac;

use crate::fault::Fault;
use crate::port::user::plan::{Outbound, Service, V4, V6};
use crate::port::user::policy::{Direction, Preset, Rule, Verdict, WORDS, Where};
use crate::spec::addr::inet_aton;
use crate::spec::fields::{Fields, integer};
use crate::spec::forward::{GuestForward, HostForward};
use crate::spec::quota::{self, Quota};

/// A `user` network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// IPv4, if there is any.
    pub v4: Option<V4>,
    /// IPv6, if there is any.
    pub v6: Option<V6>,
    /// The guest's name; empty: none.
    pub hostname: String,
    /// The guest's domain; empty: none.
    pub domain: String,
    /// Domains to search.
    pub search: Vec<String>,
    /// A directory to be read by TFTP.
    pub tftp: Option<PathBuf>,
    /// The file to boot; empty: none.
    pub bootfile: String,
    /// The server to boot from, by its name; empty: none.
    pub server_name: String,
    /// Nothing goes out.
    pub restrict: bool,
    /// The user's own rules, in order.
    pub rules: Vec<Rule>,
    /// Those behind them.
    pub preset: Preset,
    /// Who is asked for names; empty: whom the host asks.
    pub resolvers: Vec<SocketAddr>,
    /// MTU in bytes; none: what fits the device.
    pub mtu: Option<u16>,
    /// From the host to the guest.
    pub forwards: Vec<HostForward>,
    /// From the guest to something on the host.
    pub guest_forwards: Vec<GuestForward>,
    /// What the guest does not find on its link.
    pub without: Vec<Service>,
    /// Addresses that mean others.
    pub aliases: Vec<(IpAddr, IpAddr)>,
    /// Our Ethernet address; none: QEMU's.
    pub mac: Option<Mac>,
    /// The first address that is lent by DHCPv6.
    pub lease6: Option<Ipv6Addr>,
    /// How sockets leave the host.
    pub outbound: Outbound,
    /// How much of the host it may have.
    pub quota: Quota,
    /// Through this descriptor sockets are bound inside the namespace that is the guest.
    pub ns_fd: Option<i32>,
}

/// Least and most of an MTU: IPv6's least, and what a packet of 64 KiB leaves for an Ethernet header (as passt's).
pub const MTU: (u16, u16) = (1280, 65_520);
/// Bytes of a name in a DHCP option, and of a file's name in BOOTP, which ends with a NUL (RFC 951).
const NAME: usize = 255;
const FILE: usize = 127;
/// Bytes of a label of a domain name (RFC 1035).
const LABEL: usize = 63;
/// Most search domains, and most rules.
const SEARCH: usize = 32;
const RULES: usize = 256;
/// Most resolvers.
const RESOLVERS: usize = 8;
/// Most forwards, each way. As many with IPv4 addresses and single ports fit what a dataplane is told; of IPv6's, and of
/// ranges, fewer do, and what does not fit is refused with a sentence.
pub const FORWARDS: usize = 128;

/// Reads the options of `user`.
///
/// # Errors
/// QEMU's complaints and rules.
pub fn read(f: &mut Fields) -> Result<User, Fault> {
    let smb = "it would start a Samba server beside the VMM";
    let fix = "start one yourself that listens at 127.0.0.1:PORT and give guestfwd=tcp:10.0.2.4:445-tcp:127.0.0.1:PORT";
    ["smb", "smbserver"].into_iter().try_for_each(|key| f.refuse(key, smb, fix))?;
    let restrict = f.flag("restrict")?.unwrap_or(false);
    let (ipv4, ipv6) = families(f)?;
    let v4 = v4(f, ipv4, restrict)?;
    let v6 = v6(f, ipv6, restrict)?;
    let [hostname, domain] = [name(f, "hostname", "vhostname")?, domain(f)?];
    let search = search(f)?;
    let server_name = name(f, "tftp-server-name", "tftp-server-name")?;
    let tftp = f.text("tftp").map(PathBuf::from);
    let bootfile = f.text("bootfile").unwrap_or_default();
    if bootfile.len() > FILE {
        return Err(
            f.fault(format!("'bootfile' parameter cannot exceed {FILE} bytes"), "give a shorter path")
        );
    }
    let preset = preset(f)?;
    let rules = rules(f)?;
    if restrict && rules.iter().any(|r| r.direction == Direction::In && r.at == Where::Host) {
        // Its dataplane lives where the host has no addresses, and makes no socket to ask with.
        let why = "with restrict=on nobody knows the host's own addresses at a rule of in:host";
        return Err(f.fault(why, "give in:loopback, and the addresses themselves"));
    }
    let mtu = f.number16("mtu", MTU.0, MTU.1)?;
    let resolvers = resolvers(f)?;
    let mac = mac(f)?;
    let without = without(f)?;
    let aliases = aliases(f)?;
    let lease6 = lease6(f, v6.as_ref())?;
    let outbound = outbound(f, restrict)?;
    let quota = quota::read(f)?;
    let forwards = forwards(f, v4.as_ref(), v6.as_ref())?;
    let guest_forwards = guest_forwards(f, v4.as_ref(), v6.as_ref())?;
    Ok(User {
        v4,
        v6,
        hostname,
        domain,
        search,
        tftp,
        bootfile,
        server_name,
        restrict,
        rules,
        preset,
        resolvers,
        mtu,
        forwards,
        guest_forwards,
        without,
        aliases,
        mac,
        lease6,
        outbound,
        quota,
        ns_fd: f.parsed("ns-fd")?,
    })
}

/// The rules behind the user's own.
fn preset(f: &mut Fields) -> Result<Preset, Fault> {
    let Some(p) = f.text("preset") else { return Ok(Preset::default()) };
    Preset::named(&p).ok_or_else(|| f.bad_value("preset", &p, "the presets are vm and qemu"))
}

/// Both, unless only one is named.
fn families(f: &mut Fields) -> Result<(bool, bool), Fault> {
    let (ipv4, ipv6) = (f.flag("ipv4")?, f.flag("ipv6")?);
    let on = (ipv4.unwrap_or(ipv6 != Some(true)), ipv6.unwrap_or(ipv4 != Some(true)));
    if on == (false, false) {
        return Err(f.fault("IPv4 and IPv6 disabled", "leave one of ipv4= and ipv6= on"));
    }
    Ok(on)
}

fn v4(f: &mut Fields, on: bool, restrict: bool) -> Result<Option<V4>, Fault> {
    let legacy = f.text("ip").map(|ip| format!("{ip}/24"));
    let net = f.text("net").or(legacy);
    let [host, dns, dhcp] = ["host", "dns", "dhcpstart"].map(|k| f.text(k));
    if !on {
        if net.is_some() || host.is_some() || dns.is_some() {
            return Err(f.fault("IPv4 disabled but netmask/host/dns provided", "give ipv4=on"));
        }
        return Ok(None);
    }
    let (net, prefix) = match net {
        None => (Ipv4Addr::new(10, 0, 2, 0), 24),
        Some(text) => network(&text).map_err(|why| f.fault(why, "net=10.0.2.0/24 for instance"))?,
    };
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    let own = |n: u32| Ipv4Addr::from_bits(net.to_bits() | n & !mask);
    let given = |text: Option<String>, default: u32, what: &str, key: &str| match text {
        None => Ok(own(default)),
        Some(t) => inet_aton(&t)
            .ok_or_else(|| f.fault(format!("Failed to parse {what}"), format!("{key}= is an IPv4 address"))),
    };
    let inside = |a: Ipv4Addr| a.to_bits() & mask == net.to_bits();
    let within = format!("it must be one of {net}/{prefix}");
    let host = given(host, 0x0202, "host", "host")?;
    if !inside(host) {
        return Err(f.fault("Host doesn't belong to network", within));
    }
    let dns = given(dns, 0x0203, "DNS", "dns")?;
    if restrict && !inside(dns) {
        return Err(f.fault("DNS doesn't belong to network", within));
    }
    if dns == host {
        return Err(f.fault("DNS must be different from host", "give another dns= or host="));
    }
    let dhcp_start = given(dhcp, 0x020f, "DHCP start address", "dhcpstart")?;
    if !inside(dhcp_start) {
        return Err(f.fault("DHCP doesn't belong to network", within));
    }
    if dhcp_start == host || dhcp_start == dns {
        return Err(f.fault("DHCP must be different from host and DNS", "give another dhcpstart="));
    }
    Ok(Some(V4 { net, prefix, host, dns, dhcp_start }))
}

/// `ADDRESS`, whose class says the mask, `ADDRESS/BITS` or `ADDRESS/MASK`.
fn network(text: &str) -> Result<(Ipv4Addr, u8), &'static str> {
    let (addr, mask) = text.split_once('/').map_or((text, None), |(a, m)| (a, Some(m)));
    let addr = inet_aton(addr).ok_or("Failed to parse netmask")?;
    let bits = match mask {
        None => by_class(addr),
        Some(m) => match m.parse::<i64>() {
            Ok(n) => u8::try_from(n)
                .ok()
                .filter(|n| (4..=32).contains(n))
                .ok_or("Invalid netmask provided (must be in range 4-32)")?,
            Err(_) => {
                let m = inet_aton(m).ok_or("Failed to parse netmask (trailing chars)")?.to_bits();
                let bits = u8::try_from(m.leading_ones())
                    .ok()
                    .filter(|_| m.leading_ones() + m.trailing_zeros() == 32);
                bits.filter(|n| (4..=32).contains(n))
                    .ok_or("Invalid netmask provided (must be in range 4-32)")?
            }
        },
    };
    let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
    Ok((Ipv4Addr::from_bits(addr.to_bits() & mask), bits))
}

/// The prefix that an address without one has (net/slirp.c, with its private and test networks).
fn by_class(a: Ipv4Addr) -> u8 {
    match a.octets() {
        [0..128, ..] => 8,
        [172, 16..32, ..] => 12,
        [128..192, ..] => 16,
        [192, 168, ..] => 16,
        // QEMU compares the upper half with 198.18 alone.
        [198, 18, ..] => 15,
        [224..=255, ..] => 24,
        _ => 28,
    }
}

fn v6(f: &mut Fields, on: bool, restrict: bool) -> Result<Option<V6>, Fault> {
    let (mut prefix, mut len) = (f.text("ipv6-prefix"), None);
    if let Some(text) = f.text("ipv6-prefixlen") {
        let words = "Parameter 'ipv6-prefixlen' expects an int64 value";
        let number = text.parse().ok().or_else(|| integer(&text).and_then(|n| i64::try_from(n).ok()));
        len = Some(number.ok_or_else(|| f.fault(words, "64 is usual"))?);
    }
    if let Some(net) = f.text("ipv6-net") {
        let (p, l) = net.split_once('/').map_or((net.as_str(), None), |(p, l)| (p, Some(l)));
        prefix = Some(p.to_owned());
        let words = "parameter 'ipv6-net' expects a number after '/'";
        len = Some(match l {
            None => 64,
            Some(l) => l.parse().map_err(|_| f.fault(words, "ipv6-net=fec0::/64 for instance"))?,
        });
    }
    let [host, dns] = ["ipv6-host", "ipv6-dns"].map(|k| f.text(k));
    if !on {
        if prefix.is_some() || host.is_some() || dns.is_some() {
            return Err(f.fault("IPv6 disabled but prefix/host6/dns6 provided", "give ipv6=on"));
        }
        return Ok(None);
    }
    let parse = |text: &str, what: &str| -> Result<Ipv6Addr, Fault> {
        text.parse().map_err(|_| f.fault(format!("Failed to parse {what}"), "fec0::2 for instance"))
    };
    let prefix = parse(prefix.as_deref().unwrap_or("fec0::"), "IPv6 prefix")?;
    let len = match len {
        None | Some(0) => 64,
        Some(n) => u8::try_from(n).ok().filter(|n| *n <= 126).ok_or_else(|| {
            f.fault(
                "Invalid IPv6 prefix provided (IPv6 prefix length must be between 0 and 126)",
                "64 is usual",
            )
        })?,
    };
    let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
    let inside = |a: Ipv6Addr| (a.to_bits() ^ prefix.to_bits()) & mask == 0;
    let own = |n: u128| Ipv6Addr::from_bits(prefix.to_bits() | n);
    let within = format!("it must be one of {prefix}/{len}");
    let host = host.map_or(Ok(own(2)), |t| parse(&t, "IPv6 host"))?;
    if !inside(host) {
        return Err(f.fault("IPv6 Host doesn't belong to network", within));
    }
    let dns = dns.map_or(Ok(own(3)), |t| parse(&t, "IPv6 DNS"))?;
    if restrict && !inside(dns) {
        return Err(f.fault("IPv6 DNS doesn't belong to network", within));
    }
    if dns == host {
        // QEMU takes it, and its guests get no names.
        return Err(f.fault("IPv6 DNS must be different from host", "give another ipv6-dns= or ipv6-host="));
    }
    Ok(Some(V6 { prefix: Ipv6Addr::from_bits(prefix.to_bits() & mask), len, host, dns }))
}

/// A name for DHCP; `shown` is what QEMU calls the key.
fn name(f: &mut Fields, key: &str, shown: &str) -> Result<String, Fault> {
    let text = f.text(key).unwrap_or_default();
    if text.len() > NAME {
        return Err(f.fault(format!("'{shown}' parameter cannot exceed {NAME} bytes"), "give a shorter one"));
    }
    Ok(text)
}

fn domain(f: &mut Fields) -> Result<String, Fault> {
    if f.peek("domainname") == Some("") {
        return Err(f.fault("'domainname' parameter cannot be empty", "leave it out, or give a domain"));
    }
    name(f, "domainname", "domainname")
}

fn search(f: &mut Fields) -> Result<Vec<String>, Fault> {
    let all = f.every("dnssearch");
    if all.len() > SEARCH {
        return Err(f.fault(format!("more than {SEARCH} dnssearch="), "give the important ones"));
    }
    for d in &all {
        let label = |l: &str| !l.is_empty() && l.len() <= LABEL && l.bytes().all(|b| b.is_ascii_graphic());
        if d.len() > NAME - 2 || !d.strip_suffix('.').unwrap_or(d).split('.').all(label) {
            return Err(f.bad_value("dnssearch", d, "give a domain, as example.org"));
        }
    }
    Ok(all)
}

/// Who is asked instead of the host's resolvers.
fn resolvers(f: &mut Fields) -> Result<Vec<SocketAddr>, Fault> {
    let all = f.every("resolver");
    if all.len() > RESOLVERS {
        return Err(f.fault(format!("more than {RESOLVERS} resolver="), "give the important ones"));
    }
    let read = |text: String| {
        let ip = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(&text);
        let ip: IpAddr =
            ip.parse().map_err(|_| f.bad_value("resolver", &text, "give an address, as 9.9.9.9"))?;
        Ok(SocketAddr::new(ip, 53))
    };
    all.into_iter().map(read).collect()
}

/// Our Ethernet address.
fn mac(f: &mut Fields) -> Result<Option<Mac>, Fault> {
    let mac: Option<Mac> = f.parsed("mac")?;
    if mac.is_some_and(|m| !m.is_station()) {
        let fix = "its first byte is even, as in 52:55:0a:00:02:02";
        return Err(f.fault("mac= is no station's address", fix));
    }
    Ok(mac)
}

/// What the guest is spared.
fn without(f: &mut Fields) -> Result<Vec<Service>, Fault> {
    let words = f.list("without", ':').unwrap_or_default();
    let read = |word: String| {
        let found = Service::ALL.iter().find(|(name, _)| *name == word).map(|(_, s)| *s);
        found.ok_or_else(|| {
            f.bad_value("without", &word, "of dhcp, dhcpv6, ndp, ra, resolver and host, between them ':'")
        })
    };
    words.into_iter().map(read).collect()
}

/// One address, and what it stands for.
fn alias(stands: &str, meant: &str) -> Option<(IpAddr, IpAddr)> {
    let stands: IpAddr = stands.parse().ok().filter(|a: &IpAddr| !a.is_multicast())?;
    if meant == "host" {
        let host = if stands.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        return Some((stands, host));
    }
    let meant: IpAddr = meant.parse().ok()?;
    let good = meant.is_ipv4() == stands.is_ipv4() && !meant.is_multicast() && !meant.is_unspecified();
    good.then_some((stands, meant))
}

/// `ADDRESS-MEANT`, both of one family, or `ADDRESS-host`: whatever address the host goes out by.
fn aliases(f: &mut Fields) -> Result<Vec<(IpAddr, IpAddr)>, Fault> {
    let all = f.every("alias");
    if all.len() > RESOLVERS {
        return Err(f.fault(format!("more than {RESOLVERS} alias="), "one of each family is usual"));
    }
    let read = |text: String| {
        let fix = "ADDRESS-MEANT, as in 169.254.1.2-192.0.2.7, or ADDRESS-host";
        let pair = text.split_once('-').and_then(|(a, b)| alias(a, b));
        pair.ok_or_else(|| f.bad_value("alias", &text, fix))
    };
    all.into_iter().map(read).collect()
}

/// Addresses and interfaces by which sockets leave; of each family the last address.
fn outbound(f: &mut Fields, restrict: bool) -> Result<Outbound, Fault> {
    let mut out = Outbound::default();
    for text in f.every("outbound") {
        let ip = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(&text).parse();
        match ip {
            Ok(IpAddr::V4(a)) if !a.is_unspecified() && !a.is_multicast() => out.v4 = Some(a),
            Ok(IpAddr::V6(a)) if !a.is_unspecified() && !a.is_multicast() => out.v6 = Some(a),
            _ => return Err(f.bad_value("outbound", &text, "give an address of the host's, as 192.0.2.1")),
        }
    }
    out.device4 = f.parsed("outbound-if4")?;
    out.device6 = f.parsed("outbound-if6")?;
    if restrict && !out.is_free() {
        return Err(f.fault("with restrict=on nothing leaves", "leave outbound= and outbound-if4/6= out"));
    }
    Ok(out)
}

fn lease6(f: &mut Fields, v6: Option<&V6>) -> Result<Option<Ipv6Addr>, Fault> {
    let Some(text) = f.text("ipv6-dhcpstart") else { return Ok(None) };
    let within = "give an IPv6 address of the network that is neither ipv6-host= nor ipv6-dns=";
    let good = |a: &Ipv6Addr| v6.is_some_and(|v| v.holds(*a) && *a != v.host && *a != v.dns);
    let read = text.parse().ok().filter(good);
    read.map(Some).ok_or_else(|| f.bad_value("ipv6-dhcpstart", &text, within))
}

/// Rules in the order given.
fn rules(f: &mut Fields) -> Result<Vec<Rule>, Fault> {
    let mut texts = f
        .ordered(&["allow", "deny", "drop"])
        .map_err(|why| f.fault(why, "give one list instead: \"rules\": [\"deny=private\", \"allow=any\"]"))?;
    for text in f.every("rules") {
        let pair = text.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
        let pair = pair.filter(|(k, _)| ["allow", "deny", "drop"].contains(&k.as_str()));
        texts.push(
            pair.ok_or_else(|| f.bad_value("rules", &text, "as in deny=private or allow=tcp:host:5432"))?,
        );
    }
    if texts.len() > RULES {
        return Err(f.fault(format!("more than {RULES} rules"), "join them by prefixes"));
    }
    let rule = |(key, text): (String, String)| {
        let rule: Rule = text.parse().map_err(|why: String| {
            let fix = format!(
                "[in:][tcp:|udp:|icmp:]WHERE[:PORT[-PORT]]; WHERE is {WORDS}, 10.0.0.0/8 or [fd00::/8]"
            );
            f.fault(format!("Parameter '{key}' does not accept value '{text}': {why}"), fix)
        })?;
        let verdict = match key.as_str() {
            "allow" => Verdict::Pass,
            "deny" => Verdict::Refuse,
            _ => Verdict::Drop,
        };
        Ok(Rule { verdict, ..rule })
    };
    texts.into_iter().map(rule).collect()
}

fn forwards(f: &mut Fields, v4: Option<&V4>, v6: Option<&V6>) -> Result<Vec<HostForward>, Fault> {
    let texts = f.every("hostfwd");
    if texts.len() > FORWARDS {
        return Err(f.fault(format!("more than {FORWARDS} hostfwd="), "one guest needs fewer"));
    }
    let read = |text: String| HostForward::read(&text, v4, v6).map_err(|e| f.fault(e.why, e.fix));
    texts.into_iter().map(read).collect()
}

fn guest_forwards(f: &mut Fields, v4: Option<&V4>, v6: Option<&V6>) -> Result<Vec<GuestForward>, Fault> {
    let texts = f.every("guestfwd");
    if texts.len() > FORWARDS {
        return Err(f.fault(format!("more than {FORWARDS} guestfwd="), "one guest needs fewer"));
    }
    let mut all: Vec<GuestForward> = Vec::new();
    for text in texts {
        let new = GuestForward::read(&text, v4, v6).map_err(|e| f.fault(e.why, e.fix))?;
        if all.iter().any(|g| g.at == new.at) {
            let why = format!("Conflicting/invalid host:port in guest forwarding rule '{text}'");
            return Err(f.fault(why, "another rule has that address and port"));
        }
        all.push(new);
    }
    Ok(all)
}

#[cfg(test)]
#[path = "user_tests.rs"]
mod tests;
