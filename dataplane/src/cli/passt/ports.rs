//! passt's port grammar: `none`, or `[ADDRESS/]SPEC,...` of ports, ranges, targets behind a colon and exclusions behind
//! a tilde.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use super::bad;
use crate::fault::Fault;

/// Most ports of one specification: each is a socket of its own.
const MOST: usize = 64;

/// `hostfwd` texts of a specification. Without an address a port is bound in each family that is on.
///
/// # Errors
/// It is none, or stands for too much.
pub(super) fn forwards(spec: &str, proto: &str, v4: bool, v6: bool) -> Result<Vec<String>, Fault> {
    let option = format!("--{proto}-ports {spec}");
    let fault =
        |why: &str| bad(&option, why, "as in 22, 2222:22, 8000-8010:9000-9010, 127.0.0.1/8080 or none");
    match spec {
        "none" => return Ok(Vec::new()),
        "all" | "auto" => {
            let fix = "name the ports: each is a socket that listens";
            return Err(bad(&option, "netreeve does not take every port of the host", fix));
        }
        _ => {}
    }
    let (hosts, list) = match spec.rsplit_once('/') {
        None => {
            let any = [(v4, "0.0.0.0"), (v6, "[::]")];
            (any.iter().filter(|(on, _)| *on).map(|(_, a)| (*a).to_owned()).collect(), spec)
        }
        Some((address, list)) if !address.contains('%') => match address.parse::<IpAddr>() {
            Ok(IpAddr::V4(a)) => (vec![a.to_string()], list),
            Ok(IpAddr::V6(a)) => (vec![format!("[{a}]")], list),
            Err(_) => return Err(fault("what stands before '/' is no address")),
        },
        Some(_) => return Err(fault("forwards are not bound to interfaces; give an address")),
    };
    let mut pairs: Vec<(u16, u16)> = Vec::new();
    let mut without: Vec<(u16, u16)> = Vec::new();
    for item in list.split(',') {
        if let Some(excluded) = item.strip_prefix('~') {
            without.push(range(excluded).ok_or_else(|| fault("an exclusion is no port and no range"))?);
            continue;
        }
        let (from, to) = item.split_once(':').map_or((item, None), |(f, t)| (f, Some(t)));
        let (first, last) = range(from).ok_or_else(|| fault("there is no port, or no range of ports"))?;
        let (target, end) = match to {
            None => (first, last),
            Some(t) => range(t).ok_or_else(|| fault("the target is no port and no range"))?,
        };
        if last - first != end - target {
            return Err(fault("the ranges before and behind ':' differ in length"));
        }
        pairs.extend((first..=last).zip(target..=end));
    }
    if pairs.is_empty() {
        return Err(fault("it only excludes ports"));
    }
    pairs.retain(|(p, _)| !without.iter().any(|(a, b)| (a..=b).contains(&p)));
    if pairs.len() > MOST {
        return Err(fault(&format!("more than {MOST} ports")));
    }
    let rule = |host: &String| {
        let host = host.clone();
        pairs.iter().map(move |(port, to)| format!("{proto}:{host}:{port}-:{to}")).collect::<Vec<_>>()
    };
    Ok(hosts.iter().flat_map(rule).collect())
}

fn range(text: &str) -> Option<(u16, u16)> {
    let port = |t: &str| t.parse::<u16>().ok().filter(|n| *n > 0 && !t.starts_with('+'));
    let (first, last) = match text.split_once('-') {
        None => (port(text)?, port(text)?),
        Some((a, b)) => (port(a)?, port(b)?),
    };
    (first <= last).then_some((first, last))
}
