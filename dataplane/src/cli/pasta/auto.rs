//! Follows who listens inside a namespace, and has their ports forwarded: a process that stays there, looks once a second at
//! what the kernel says (`/proc/net`, proc_net(5)), and asks for changes as any client of the control socket does. The same
//! for who listens on the host, whose tables it has opened before it came.
//!
//! Trust: the kernel; the supervisor. Promise: it ends with the supervisor; who listens at the loopback alone is not meant,
//! since nobody reaches him by a tap; on the host only who is reached by the loopback is, and not we ourselves; a port that
//! cannot be had is tried again.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cli::passt::{Ports, Scene};
use crate::spec::user::FORWARDS;

/// How often it is looked (as often as pasta does).
const LOOK: Duration = Duration::from_secs(1);
/// How long an answer may take: somebody else may be asking, or a dataplane be replaced.
const PATIENCE: Duration = Duration::from_secs(30);
/// When what was refused is tried again: who had its port may be gone.
const AGAIN: Duration = Duration::from_secs(10);
/// Changes between two looks.
const AT_ONCE: usize = 32;
/// Bytes of an answer or an event, at most.
const LINE: usize = 1 << 20;
/// States of a socket (`net/tcp_states.h`): TCP that listens; UDP that nobody connected.
const LISTENS: &str = "0A";
const UNCONNECTED: &str = "07";

/// Ports of the host's that we listen at ourselves: UDP or not, the first, the last.
pub(super) type Own = (bool, u16, u16);

/// Goes on until the other end is closed.
///
/// # Errors
/// The other end does not speak as it should.
pub(super) fn follow(
    socket: UnixStream,
    autos: &[(Scene, Ports)],
    own: &[Own],
    mut host: Option<Listeners>,
) -> io::Result<()> {
    let mut talk = Talk { socket: BufReader::new(socket), line: Vec::new() };
    talk.hear(PATIENCE)?;
    let hello = json!({ "execute": "qmp_capabilities" });
    if talk.ask(&hello)?.is_none() {
        return Err(ErrorKind::InvalidData.into());
    }
    let (mut have, mut refused) = (BTreeSet::new(), BTreeMap::new());
    loop {
        let mut wanted = wanted(autos, &|udp| listening(udp));
        if let Some(host) = &mut host {
            // Those that are about to go are in the host's tables still, and are ours.
            let into =
                have.iter().filter(|rule: &&String| !rule.contains("+ns")).chain(&wanted).cloned().collect();
            let out = wanted_out(autos, own, &into, &mut |udp| host.look(udp));
            wanted.extend(out);
        }
        for (change, rule) in due(&have, &wanted, &mut refused, Instant::now()) {
            match (talk.ask(&change)?.is_some(), wanted.contains(&rule)) {
                (true, true) => drop(have.insert(rule)),
                (true, false) => drop(have.remove(&rule)),
                (false, _) => drop(refused.insert(rule, Instant::now() + AGAIN)),
            }
        }
        let until = Instant::now() + LOOK;
        while talk.hear(until.saturating_duration_since(Instant::now()))?.is_some() {}
    }
}

/// What is to be forwarded, if `look` says who listens.
fn wanted(autos: &[(Scene, Ports)], look: &dyn Fn(bool) -> BTreeSet<u16>) -> BTreeSet<String> {
    let rules = |(scene, ports): &(Scene, Ports)| {
        look(scene.udp).into_iter().flat_map(|p| ports.rules_to(p, scene)).collect::<Vec<_>>()
    };
    autos.iter().filter(|(scene, _)| !scene.inside).flat_map(rules).collect()
}

/// What is to lead from the namespace to the host, if `look` says who listens there, and by which family (true: IPv6). Ports that
/// we listen at ourselves, for what leads `into` the namespace or is our `own`, are left out: they would lead back.
fn wanted_out(
    autos: &[(Scene, Ports)],
    own: &[Own],
    into: &BTreeSet<String>,
    look: &mut dyn FnMut(bool) -> BTreeSet<(bool, u16)>,
) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for (scene, ports) in autos.iter().filter(|(scene, _)| scene.inside) {
        let of = |rule: &&String| rule.starts_with("udp") == scene.udp;
        let taken: BTreeSet<u16> = into.iter().filter(of).filter_map(|rule| host_port(rule)).collect();
        let ours = |port| {
            let is_own = |(udp, first, last): &Own| *udp == scene.udp && (*first..=*last).contains(&port);
            taken.contains(&port) || own.iter().any(is_own)
        };
        for (six, port) in look(scene.udp).into_iter().filter(|(_, port)| !ours(*port)) {
            out.extend(ports.of_family(six).rules_to(port, scene));
        }
    }
    out
}

/// At which port of the host's a rule for one port listens.
fn host_port(rule: &str) -> Option<u16> {
    rule.rsplit_once('-')?.0.rsplit_once(':')?.1.parse().ok()
}

/// The tables of a namespace in which we were when they were opened.
#[derive(Debug)]
pub(super) struct Listeners([[Option<File>; 2]; 2]);

impl Listeners {
    /// Of the namespace that we are in.
    pub(super) fn here() -> Self {
        let open = |kind: &str, family: &str| File::open(format!("/proc/net/{kind}{family}")).ok();
        Self(["tcp", "udp"].map(|kind| ["", "6"].map(|family| open(kind, family))))
    }

    /// Ports at which somebody is reached by the loopback, and by which family of it (true: IPv6).
    fn look(&mut self, udp: bool) -> BTreeSet<(bool, u16)> {
        let Self([tcp, of_udp]) = self;
        let files = if udp { of_udp } else { tcp };
        let mut all = BTreeSet::new();
        for file in files.iter_mut().flatten() {
            let mut text = String::new();
            // A table that cannot be read has nobody in it.
            if file.rewind().and_then(|()| file.read_to_string(&mut text)).is_ok() {
                all.extend(reached(&text, udp));
            }
        }
        all
    }
}

/// Those of one table.
fn reached(text: &str, udp: bool) -> BTreeSet<(bool, u16)> {
    let mut all = BTreeSet::new();
    for (ip, port) in sockets(text, udp) {
        match ip {
            IpAddr::V4(a) if a.is_unspecified() || a == Ipv4Addr::LOCALHOST => all.extend([(false, port)]),
            // Mostly of both families; who came for nothing by the other one is told so.
            IpAddr::V6(a) if a.is_unspecified() => all.extend([(false, port), (true, port)]),
            IpAddr::V6(Ipv6Addr::LOCALHOST) => all.extend([(true, port)]),
            _ => {}
        }
    }
    all
}

/// What to ask for now: whoever listens inside decides how much that would be, so no more than there may be forwards, few at
/// a time, and what was refused not before it is due.
fn due(
    have: &BTreeSet<String>,
    wanted: &BTreeSet<String>,
    refused: &mut BTreeMap<String, Instant>,
    now: Instant,
) -> Vec<(Value, String)> {
    refused.retain(|rule, at| now < *at && (wanted.contains(rule) || have.contains(rule)));
    let mut room = FORWARDS.saturating_sub(have.len());
    let mut fits = |(_, rule): &(Value, String)| {
        let (new, may) = (wanted.contains(rule), !refused.contains_key(rule));
        let fits = may && (!new || room > 0);
        room -= usize::from(fits && new);
        fits
    };
    changes(have, wanted).into_iter().filter(|change| fits(change)).take(AT_ONCE).collect()
}

/// One by one, since one that cannot be made shall not keep the others from it: first what goes.
fn changes(have: &BTreeSet<String>, wanted: &BTreeSet<String>) -> Vec<(Value, String)> {
    let ask =
        |key: &str, what: &str| json!({ "execute": "netreeve-set-hostfwd", "arguments": { key: [what] } });
    // Where it listens stands before the guest's end.
    let place = |rule: &String| rule.rsplit_once('-').map_or("", |(at, _)| at).to_owned();
    let gone = have.difference(wanted).map(|r| (ask("remove", &place(r)), r.clone()));
    let new = wanted.difference(have).map(|r| (ask("add", r), r.clone()));
    gone.chain(new).collect()
}

/// Ports at which somebody listens in this network namespace, but those who do so at the loopback alone.
fn listening(udp: bool) -> BTreeSet<u16> {
    let kind = if udp { "udp" } else { "tcp" };
    let read = |family: &str| fs::read_to_string(format!("/proc/net/{kind}{family}")).unwrap_or_default();
    ["", "6"].iter().flat_map(|family| ports(&read(family), udp)).collect()
}

/// Those of one file.
fn ports(text: &str, udp: bool) -> Vec<u16> {
    sockets(text, udp).filter(|(ip, _)| !ip.is_loopback()).map(|(_, port)| port).collect()
}

/// Where those of one file listen.
fn sockets(text: &str, udp: bool) -> impl Iterator<Item = (IpAddr, u16)> {
    let state = if udp { UNCONNECTED } else { LISTENS };
    let socket = move |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (local, _, is) = (words.next()?, words.next()?, words.next()?);
        let (ip, port) = local.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok().filter(|p| is == state && *p > 0)?;
        Some((address(ip)?, port))
    };
    text.lines().skip(1).filter_map(socket)
}

/// An address as the kernel shows it: words of 32 bits, as they lie in its memory.
fn address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(hex.get(8 * at..8 * at + 8)?, 16).ok();
    if hex.len() == 8 {
        return Some(Ipv4Addr::from(word(0)?.to_ne_bytes()).into());
    }
    let mut bytes = [0; 16];
    for (n, to) in bytes.chunks_exact_mut(4).enumerate() {
        to.copy_from_slice(&word(n)?.to_ne_bytes());
    }
    Some(IpAddr::from(Ipv6Addr::from(bytes)).to_canonical())
}

/// A conversation with the supervisor.
struct Talk {
    socket: BufReader<UnixStream>,
    /// What came of a line.
    line: Vec<u8>,
}

impl Talk {
    /// Asks and waits for the answer. None: it is refused.
    fn ask(&mut self, what: &Value) -> io::Result<Option<Value>> {
        let text = format!("{what}\n");
        self.socket.get_mut().write_all(text.as_bytes())?;
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let Some(mut said) = self.hear(left)? else { return Err(ErrorKind::TimedOut.into()) };
            if said.get("error").is_some() {
                return Ok(None);
            }
            if let Some(answer) = said.get_mut("return") {
                return Ok(Some(answer.take()));
            }
        }
    }

    /// The next thing that is said, within `wait`. None: nothing.
    fn hear(&mut self, wait: Duration) -> io::Result<Option<Value>> {
        if wait.is_zero() {
            return Ok(None);
        }
        self.socket.get_ref().set_read_timeout(Some(wait))?;
        match self.socket.read_until(b'\n', &mut self.line) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) if self.line.last() != Some(&b'\n') => Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => {
                let said = serde_json::from_slice(&self.line).map_err(io::Error::from);
                self.line.clear();
                said.map(Some)
            }
            Err(e)
                if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
                    && self.line.len() < LINE =>
            {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::passt::read_ports;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n\
        \x20  0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1 0 100 0 0 10 0\n\
        \x20  1: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 2 1 0 100 0 0 10 0\n\
        \x20  2: 0F02000A:0051 0202000A:0052 01 00000000:00000000 00:00000000 00000000  1000        0 3 1 0 100 0 0 10 0\n\
        \x20  3: 0F02000A:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4 1 0 100 0 0 10 0\n";
    const TCP6: &str = "  sl  local_address                         remote_address                        st\n\
        \x20  0: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0:0\n\
        \x20  1: 00000000000000000000000000000000:0017 00000000000000000000000000000000:0000 0A 0:0\n\
        \x20  2: 0000000000000000FFFF00000100007F:0018 00000000000000000000000000000000:0000 0A 0:0\n\
        short\n";

    #[test]
    fn who_listens_is_read_from_the_kernels_tables() {
        assert_eq!(ports(TCP, false), [0x1f90, 22]);
        assert_eq!(ports(TCP6, false), [23]);
        assert_eq!(ports(&TCP.replace(" 0A ", " 07 "), true), [0x1f90, 22]);
        assert!(ports(TCP, true).is_empty() && ports("", false).is_empty());
        // Ours, as the kernel has it.
        let here = std::net::TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
        let held = std::net::TcpListener::bind(("0.0.0.0", here)).unwrap();
        assert!(listening(false).contains(&here));
        drop(held);
    }

    fn auto(spec: &str, udp: bool) -> (Scene, Ports) {
        let scene = scene(udp, false);
        (scene, read_ports(spec, &scene).unwrap())
    }

    fn scene(udp: bool, inside: bool) -> Scene {
        Scene { udp, inside, v4: true, v6: true, free: false, auto: true, ephemeral: (32768, 60999) }
    }

    #[test]
    fn what_leads_out_follows_who_listens_on_the_host() {
        let out = |spec: &str, udp| (scene(udp, true), read_ports(spec, &scene(udp, true)).unwrap());
        let autos = [auto("auto", false), out("auto,~22", false), out("9000-9010:7000-7010,auto", true)];
        let own = [(false, 440, 450), (true, 80, 80)];
        let into = wanted(&autos, &|udp| if udp { BTreeSet::new() } else { BTreeSet::from([8080]) });
        let mut look = |udp: bool| {
            let (tcp, of_udp) =
                ([(false, 22), (false, 80), (true, 80), (true, 81)], [(false, 7001), (true, 5)]);
            // We are listening there ourselves: 443 in any case, 8080 as somebody does inside.
            if udp {
                BTreeSet::from(of_udp)
            } else {
                [(false, 443), (false, 8080)].into_iter().chain(tcp).collect()
            }
        };
        let all = wanted_out(&autos, &own, &into, &mut look);
        let want = [
            "tcp+ns+try:127.0.0.1:80-:80",
            "tcp+ns+try:[::1]:80-:80",
            "tcp+ns+try:[::1]:81-:81",
            "udp+ns+try:127.0.0.1:9001-:7001",
        ];
        assert_eq!(all, want.iter().map(|w| (*w).to_owned()).collect());
        let (ask, _) = changes(&all, &BTreeSet::new()).remove(3);
        assert_eq!(ask["arguments"]["remove"][0], "udp+ns+try:127.0.0.1:9001");
    }

    #[test]
    fn who_is_reached_by_the_loopback_is_read_again_and_again() {
        assert_eq!(reached(TCP, false), BTreeSet::from([(false, 0x1f90), (false, 80)]));
        assert_eq!(reached(TCP6, false), BTreeSet::from([(true, 80), (true, 23), (false, 23), (false, 24)]));
        let mut tables = Listeners::here();
        let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let there = (false, held.local_addr().unwrap().port());
        assert!(tables.look(false).contains(&there), "opened before he listened");
        let udp = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        assert!(tables.look(true).contains(&(false, udp.local_addr().unwrap().port())));
        drop(held);
        let until = Instant::now() + PATIENCE;
        while tables.look(false).contains(&there) {
            assert!(Instant::now() < until, "he is still in the table");
        }
    }

    #[test]
    fn what_is_to_be_forwarded_follows() {
        let autos = [auto("auto,~22", false), auto("127.0.0.1/8000-8010:9000-9010,auto", true)];
        let look = |udp: bool| BTreeSet::from(if udp { [9003, 8003] } else { [22, 8080] });
        let all = wanted(&autos, &look);
        let [tcp, udp] = ["tcp+try:*:8080-:8080", "udp+try:127.0.0.1:8003-:9003"].map(String::from);
        assert_eq!(all, BTreeSet::from([tcp.clone(), udp.clone()]));
        let steps = changes(&BTreeSet::from([tcp.clone(), "tcp+try:*:5-:5".into()]), &all);
        let texts: Vec<String> = steps.iter().map(|(v, _)| v["arguments"].to_string()).collect();
        assert_eq!(texts, [r#"{"remove":["tcp+try:*:5"]}"#, &format!(r#"{{"add":["{udp}"]}}"#)]);
    }

    #[test]
    fn who_listens_at_everything_keeps_nobody_busy() {
        let all: BTreeSet<String> = (1..=20_000).map(|p| format!("tcp:*:{p}-:{p}")).collect();
        let (mut have, mut refused, now) = (BTreeSet::new(), BTreeMap::new(), Instant::now());
        let mut asked = 0;
        for _ in 0..10 {
            let due = due(&have, &all, &mut refused, now);
            assert!(due.len() <= AT_ONCE);
            asked += due.len();
            have.extend(due.into_iter().map(|(_, rule)| rule));
        }
        assert_eq!((asked, have.len()), (FORWARDS, FORWARDS));
        // What is gone goes, and makes room; what is refused waits.
        let gone = have.pop_first().unwrap();
        let less: BTreeSet<String> = all.iter().filter(|r| **r != gone).cloned().collect();
        let next = due(&have, &less, &mut refused, now).remove(0).1;
        assert!(!have.contains(&next));
        refused.insert(next.clone(), now + AGAIN);
        assert_ne!(due(&have, &less, &mut refused, now)[0].1, next);
        assert_eq!(due(&have, &less, &mut refused, now + AGAIN)[0].1, next);
    }

    #[test]
    fn it_speaks_as_clients_do_and_ends_with_the_other_end() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let held = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = held.local_addr().unwrap().port();
        let follower = std::thread::spawn(move || follow(theirs, &[auto("1-65535,auto", false)], &[], None));
        let mut read = BufReader::new(ours.try_clone().unwrap());
        let mut next = || {
            let mut line = String::new();
            read.read_line(&mut line).unwrap();
            serde_json::from_str::<Value>(&line).unwrap()
        };
        let say = |text: &str| (&ours).write_all(text.as_bytes()).unwrap();
        say("{\"QMP\": {}}\n{\"event\": \"X\"}\n");
        assert_eq!(next()["execute"], "qmp_capabilities");
        say("{\"return\": {}}\n");
        let want = format!("tcp+try:*:{port}-:{port}");
        // Others of this machine may listen as well.
        loop {
            let asked = next();
            assert_eq!(asked["execute"], "netreeve-set-hostfwd");
            let refuse = asked["arguments"]["add"][0] != want.as_str();
            say(if refuse { "{\"error\": {}}\n" } else { "{\"event\": \"Y\"}\n{\"return\": {}}\n" });
            if !refuse {
                break;
            }
        }
        drop(held);
        loop {
            let asked = next();
            say("{\"return\": {}}\n");
            if asked["arguments"]["remove"][0] == format!("tcp+try:*:{port}").as_str() {
                break;
            }
        }
        drop((ours, read));
        assert!(follower.join().unwrap().is_err());
    }
}
