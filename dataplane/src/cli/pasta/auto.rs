//! Follows who listens inside a namespace, and has their ports forwarded: a process that stays there, looks once a second at
//! what the kernel says (`/proc/net`, proc_net(5)), and asks for changes as any client of the control socket does.
//!
//! Trust: the kernel; the supervisor. Promise: it ends with the supervisor; who listens at the loopback alone is not meant,
//! since nobody reaches him by a tap; a port that cannot be had is tried again.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
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

/// Goes on until the other end is closed.
///
/// # Errors
/// The other end does not speak as it should.
pub(super) fn follow(socket: UnixStream, autos: &[(Scene, Ports)]) -> io::Result<()> {
    let mut talk = Talk { socket: BufReader::new(socket), line: Vec::new() };
    talk.hear(PATIENCE)?;
    let hello = json!({ "execute": "qmp_capabilities" });
    if talk.ask(&hello)?.is_none() {
        return Err(ErrorKind::InvalidData.into());
    }
    let (mut have, mut refused) = (BTreeSet::new(), BTreeMap::new());
    loop {
        let wanted = wanted(autos, &|udp| listening(udp));
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
    autos.iter().flat_map(rules).collect()
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
    let state = if udp { UNCONNECTED } else { LISTENS };
    let port = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (local, _, is) = (words.next()?, words.next()?, words.next()?);
        let (ip, port) = local.split_once(':')?;
        let meant = is == state && !address(ip)?.is_loopback();
        meant.then(|| u16::from_str_radix(port, 16).ok()).flatten().filter(|p| *p > 0)
    };
    text.lines().skip(1).filter_map(port).collect()
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
        let scene = Scene { udp, v4: true, v6: true, free: false, auto: true, ephemeral: (32768, 60999) };
        (scene, read_ports(spec, &scene).unwrap())
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
        let follower = std::thread::spawn(move || follow(theirs, &[auto("1-65535,auto", false)]));
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
