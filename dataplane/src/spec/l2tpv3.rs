//! `l2tpv3`: frames in an L2TPv3 tunnel that both ends have been told of (RFC 3931 without its control connection).
//!
//! Names and defaults are QEMU's (qapi/net.json); its defects are not: `cookie64=off` is off, `pincounter=on` alone has
//! a counter, and a session of number 0 is refused, for that is how control messages are marked.
#![forbid(unsafe_code)]

use crate::fault::Fault;
use crate::port::dgram::l2tp::{Carrier, Cookie, Counter, MAX_OFFSET, Session};
use crate::spec::dgram::Host;
use crate::spec::fields::{Fields, U32};

/// A tunnel's session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L2tpv3 {
    /// Our end; the port counts over UDP only.
    pub src: Host,
    /// The peer's end.
    pub dst: Host,
    /// What both have agreed on.
    pub session: Session,
}

/// Reads the options of `l2tpv3`.
///
/// # Errors
/// QEMU's complaints and rules.
pub fn read(f: &mut Fields) -> Result<L2tpv3, Fault> {
    let src = f.need("src", "give src=ADDRESS, one of this machine's")?;
    let dst = f.need("dst", "give dst=ADDRESS, the peer's")?;
    let (udp, ipv6) = (f.flag("udp")?.unwrap_or(false), f.flag("ipv6")?.unwrap_or(false));
    let (srcport, dstport) = (port(f, "srcport")?, port(f, "dstport")?);
    let carrier = match (udp, ipv6) {
        (true, _) => Carrier::Udp,
        (false, false) => Carrier::Ip4,
        (false, true) => Carrier::Ip6,
    };
    if udp && (srcport.is_none() || dstport.is_none()) {
        return Err(f.fault("need both src and dst port for udp", "give srcport=PORT,dstport=PORT"));
    }
    f.need("txsession", "give txsession=N, the peer's number of the session")?;
    let tx = session(f, "txsession")?.unwrap_or(0);
    let rx = session(f, "rxsession")?.unwrap_or(tx);
    let cookie = cookie(f)?;
    let counter = match (f.flag("counter")?.unwrap_or(false), f.flag("pincounter")?.unwrap_or(false)) {
        (_, true) => Counter::Pinned,
        (true, false) => Counter::Counts,
        (false, false) => Counter::None,
    };
    let offset = f.number32("offset", 0, u32::MAX)?.unwrap_or(0);
    let offset = u16::try_from(offset)
        .ok()
        .filter(|n| *n <= MAX_OFFSET)
        .ok_or_else(|| f.fault("offset must be less than 256 bytes", "256 itself is taken, as in QEMU"))?;
    let end = |host, port: Option<u16>| Host { host, port: port.unwrap_or(0), ipv4: !ipv6, ipv6 };
    let session = Session { carrier, tx, rx, cookie, counter, offset };
    if !udp && (srcport.is_some() || dstport.is_some()) {
        f.warn("srcport= and dstport= mean nothing without udp=on");
    }
    Ok(L2tpv3 { src: end(src, srcport), dst: end(dst, dstport), session })
}

fn port(f: &mut Fields, key: &str) -> Result<Option<u16>, Fault> {
    f.number16(key, 1, u16::MAX)
}

fn session(f: &mut Fields, key: &str) -> Result<Option<u32>, Fault> {
    f.number32(key, 1, u32::MAX)
}

fn cookie(f: &mut Fields) -> Result<Cookie, Fault> {
    let long = f.flag("cookie64")?.unwrap_or(false);
    let most = if long { u64::MAX } else { U32 };
    let (tx, rx) = (f.number("txcookie", 0, most)?, f.number("rxcookie", 0, most)?);
    match (tx, rx) {
        (None, None) => Ok(Cookie::None),
        (Some(tx), Some(rx)) if long => Ok(Cookie::Eight(tx, rx)),
        (Some(tx), Some(rx)) => {
            let short = |n| u32::try_from(n).unwrap_or(u32::MAX);
            Ok(Cookie::Four(short(tx), short(rx)))
        }
        _ => {
            let why = "require both 'rxcookie' and 'txcookie' or neither";
            Err(f.fault(why, "give both, or leave both out"))
        }
    }
}
