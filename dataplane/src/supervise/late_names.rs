//! Names in ports that come while others run: they are looked up before the port is opened, and nobody waits but the
//! client that asked for it.
//!
//! What a port dials is not among them: its dialler looks it up itself, again and again ([`crate::supervise::dial`]).
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::time::Instant;

use serde_json::{Map, Value};

use crate::fault::{Exit, Fault};
use crate::spec::Kind;
use crate::spec::addr::{Addr, Inet};
use crate::spec::dgram::{Ends, Host};
use crate::supervise::Supervisor;
use crate::supervise::control::Key;
use crate::supervise::control::message::Refusal;
use crate::supervise::control::ports;
use crate::supervise::names::{self, Lookup};

/// A port that is to be added when its names are known.
#[derive(Debug)]
pub(super) struct Sought {
    /// The names, in the order of [`unknown`].
    pub(super) lookup: Lookup,
    /// What was asked for.
    pub(super) options: Map<String, Value>,
    /// As a device.
    pub(super) device: bool,
}

/// Who asked for it.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) by: Key,
    pub(super) id: Option<Value>,
    pub(super) sought: Sought,
}

/// Where a port's names stand.
enum Places<'a> {
    None,
    /// A server's.
    Listens(&'a mut Inet),
    /// The peer's, ours.
    Ends(&'a mut Host, &'a mut Host),
}

fn places(kind: &mut Kind) -> Places<'_> {
    match kind {
        Kind::Stream(s) if s.server => match &mut s.addr {
            Addr::Inet(inet) => Places::Listens(inet),
            _ => Places::None,
        },
        Kind::VhostUser(v) if v.server => match &mut v.addr {
            Addr::Inet(inet) => Places::Listens(inet),
            _ => Places::None,
        },
        Kind::Dgram(d) => match &mut d.ends {
            Ends::Udp(local, remote) => Places::Ends(remote, local),
            _ => Places::None,
        },
        Kind::L2tpv3(l) => Places::Ends(&mut l.dst, &mut l.src),
        _ => Places::None,
    }
}

/// The names of a port that somebody has to be asked about.
pub(super) fn unknown(kind: &mut Kind) -> Vec<String> {
    let all: Vec<&String> = match places(kind) {
        Places::None => vec![],
        Places::Listens(inet) => vec![&inet.host],
        Places::Ends(remote, local) => vec![&remote.host, &local.host],
    };
    all.into_iter().filter(|host| names::known(host).is_none()).cloned().collect()
}

/// Puts in what they were found to be.
///
/// # Errors
/// A host has no address of the families wanted.
pub(super) fn settle(what: &str, kind: &mut Kind, found: Vec<Vec<SocketAddr>>) -> Result<(), Fault> {
    let mut found = found.into_iter();
    match places(kind) {
        Places::None => {}
        Places::Listens(inet) => inet.found = found.next().unwrap_or_default(),
        Places::Ends(remote, local) => {
            put(what, remote, &mut found, None)?;
            // In numbers by now: nobody is asked.
            let there = remote.resolve(what, None)?;
            put(what, local, &mut found, Some(there))?;
        }
    }
    Ok(())
}

/// The first address that fits, in numbers, if this host is one of those that were looked up.
fn put(
    what: &str,
    host: &mut Host,
    found: &mut impl Iterator<Item = Vec<SocketAddr>>,
    like: Option<SocketAddr>,
) -> Result<(), Fault> {
    if names::known(&host.host).is_some() {
        return Ok(());
    }
    let wanted = |a: &SocketAddr| if a.is_ipv4() { host.ipv4 } else { host.ipv6 };
    let fits = |a: &SocketAddr| wanted(a) && like.is_none_or(|l| l.is_ipv4() == a.is_ipv4());
    let first = found.next().into_iter().flatten().find(fits).ok_or_else(|| {
        let fix = "give an address in numbers, of the other end's family";
        let what = format!("{what}: finding the address of {host}");
        Fault::new(Exit::Unavailable, what, "no address of this family", fix)
    })?;
    host.host = match first {
        SocketAddr::V6(a) if a.scope_id() != 0 => format!("{}%{}", a.ip(), a.scope_id()),
        other => other.ip().to_string(),
    };
    Ok(())
}

impl Supervisor {
    /// Goes on with ports whose names are known now.
    pub(super) fn follow_names(&mut self, now: Instant) {
        for asked in std::mem::take(&mut self.sought) {
            let Some(found) = asked.sought.lookup.take() else {
                self.sought.push(asked);
                continue;
            };
            let Asked { by, id, sought: Sought { options, device, .. } } = asked;
            let outcome = match found {
                Ok(found) => ports::add(self, by, options, device, Some(found)),
                Err(e) => Err(Refusal::generic(e.to_string())),
            };
            self.settle(by, outcome, id, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::late::Late;

    fn kind(options: &str) -> Kind {
        Late::read(false, options, Vec::new()).unwrap().port.kind
    }

    fn at(all: &[&str]) -> Vec<SocketAddr> {
        all.iter().map(|a| SocketAddr::new(a.parse().unwrap(), 0)).collect()
    }

    #[test]
    fn names_of_late_ports_are_asked_for_and_put_in_as_numbers() {
        let udp = |local: &str, remote: &str| {
            kind(&format!(
                r#"{{"type":"dgram","id":"d","local":{{"type":"inet","host":"{local}","port":"1"}},"remote":{{"type":"inet","host":"{remote}","port":"2"}}}}"#
            ))
        };
        assert!(unknown(&mut udp("127.0.0.1", "::1")).is_empty());
        let mut both = udp("here", "there");
        assert_eq!(unknown(&mut both), ["there", "here"]);
        settle("p", &mut both, vec![at(&["::1", "127.0.0.2"]), at(&["127.0.0.3", "fe80::1"])]).unwrap();
        assert_eq!(both, udp("fe80::1", "::1"), "ours is of the peer's family");
        let mut one = udp("here", "127.0.0.2");
        assert_eq!(unknown(&mut one), ["here"]);
        let e = settle("p", &mut one.clone(), vec![at(&["::1"])]).unwrap_err();
        assert!(e.what.contains("finding the address of here:1") && e.why.contains("family"), "{e}");
        settle("p", &mut one, vec![at(&["::1", "127.0.0.1"])]).unwrap();
        assert_eq!(one, udp("127.0.0.1", "127.0.0.2"));
        let mut scoped = udp("127.0.0.1", "there");
        let link = "[fe80::2%1]:0".parse().unwrap();
        let e = settle("p", &mut scoped, vec![vec![link]]);
        assert!(
            matches!(&scoped, Kind::Dgram(d) if matches!(&d.ends, Ends::Udp(_, r) if r.host == "fe80::2%1"))
        );
        assert!(e.is_ok(), "its address is nobody's to be asked for");

        let mut tunnel = kind(r#"{"type":"l2tpv3","id":"l","src":"a","dst":"b","txsession":1}"#);
        assert_eq!(unknown(&mut tunnel), ["b", "a"]);

        let stream = |server: bool| {
            let server = format!(r#""server":{server},"addr":{{"type":"inet","host":"h","port":"7"}}"#);
            kind(&format!(r#"{{"type":"stream","id":"s",{server}}}"#))
        };
        assert!(unknown(&mut stream(false)).is_empty(), "its dialler does that");
        let mut server = stream(true);
        assert_eq!(unknown(&mut server), ["h"]);
        settle("p", &mut server, vec![at(&["::1", "127.0.0.1"])]).unwrap();
        let Kind::Stream(s) = server else { panic!() };
        let Addr::Inet(inet) = s.addr else { panic!() };
        let found = crate::supervise::dial::resolve(&inet).unwrap();
        assert_eq!(found, ["[::1]:7".parse().unwrap(), "127.0.0.1:7".parse().unwrap()]);
    }
}
