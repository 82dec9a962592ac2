//! What a server of DHCP answers, in bytes: the fixed part, and options where they fit.
//!
//! Options go into the field for options first; those that do not fit there go, whole, into the fields for the boot
//! file's and the server's name, if these are free (option overload, RFC 2132 §9.3), and else are left out: what matters
//! most comes first.
//!
//! Trust: the configuration; of the request only what is quoted. Promise: never longer than the client takes.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;

use super::super::bytes::{n8, patch};
use super::super::conf::{Conf, LEASE, wire_name};
use super::request::{COOKIE, Kind, Request};
use crate::port::user::V4;

/// Bytes before the options.
const FIXED: usize = 240;
/// The smallest message that every client takes, without IP and UDP headers (RFC 2131 §2).
const LEAST: usize = 576 - 28;
/// The shortest message of BOOTP (RFC 951).
const SHORTEST: usize = 300;
const SNAME: (usize, usize) = (44, 64);
const FILE: (usize, usize) = (108, 128);

/// Told in any case, and first.
const ALWAYS: [u8; 4] = [1, 3, 6, 61];
/// Told to who asks for nothing in particular.
const USUAL: [u8; 10] = [12, 15, 26, 28, 58, 59, 66, 67, 119, 81];

/// What is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This address could be yours.
    Offer(Ipv4Addr),
    /// This address is yours; to BOOTP: for ever.
    Ack(Ipv4Addr),
    /// Nothing but options.
    Inform,
    /// No.
    Nak,
}

/// The body of an option of ours; none: there is nothing to say.
fn value(c: &Conf, v4: &V4, q: &Request<'_>, code: u8) -> Option<Vec<u8>> {
    let text = |t: &str| (!t.is_empty() && t.len() <= 255).then(|| t.as_bytes().to_vec());
    let open = !c.restrict;
    match code {
        1 => Some(v4.mask().octets().to_vec()),
        3 => open.then(|| v4.host.octets().to_vec()),
        6 => c.names().then(|| v4.dns.octets().to_vec()),
        12 => text(&c.hostname),
        15 => text(&c.domain),
        26 => Some(c.mtu.to_be_bytes().to_vec()),
        28 => Some(v4.broadcast().octets().to_vec()),
        // UEFI takes an address with a scheme only from a server that says it is one for that.
        60 => {
            let http = c.boot.file.starts_with("http");
            (http && q.vendor.starts_with(b"HTTPClient")).then(|| b"HTTPClient".to_vec())
        }
        61 => q.id.map(<[u8]>::to_vec),
        66 => text(&c.boot.server_name).or_else(|| c.boot.tftp.then(|| v4.host.to_string().into_bytes())),
        67 => text(&c.boot.file),
        81 => fqdn(c, q.fqdn?),
        119 => (!c.search.is_empty()).then(|| c.search.clone()),
        121 => open.then(|| routes(v4)),
        _ => None,
    }
}

/// The default route for clients that look at nothing else then (RFC 3442).
fn routes(v4: &V4) -> Vec<u8> {
    let mut out = Vec::new();
    if !v4.holds(v4.host) {
        // The router is outside: it is on the link all the same.
        out.push(32);
        out.extend_from_slice(&v4.host.octets());
        out.extend_from_slice(&[0; 4]);
    }
    out.push(0);
    out.extend_from_slice(&v4.host.octets());
    out
}

/// The client's domain name (RFC 4702): nobody here updates DNS for it. Its own name goes back if we have none for it.
fn fqdn(c: &Conf, theirs: &[u8]) -> Option<Vec<u8>> {
    let (&[flags, ..], name) = theirs.split_first_chunk::<3>()?;
    let wire = flags & 4 != 0;
    // No updates; and that we override, if it wanted some by us.
    let mut out = vec![8 | flags & 4 | (flags & 1) << 1, 255, 255];
    let ours = c.full_name();
    match (ours.is_empty(), wire) {
        (true, _) => out.extend_from_slice(name),
        (_, true) => out.extend(wire_name(&ours)?),
        (_, false) => out.extend_from_slice(ours.as_bytes()),
    }
    (out.len() <= 255).then_some(out)
}

/// Options of a message, in up to three fields.
struct Fields {
    options: Vec<u8>,
    room: usize,
    file: Option<Vec<u8>>,
    sname: Vec<u8>,
}

/// Appends an option to a field; in parts if it is long (RFC 3396). False: it does not fit.
fn put(field: &mut Vec<u8>, room: usize, code: u8, data: &[u8]) -> bool {
    let parts = data.len().div_ceil(255).max(1);
    if field.len() + data.len() + 2 * parts > room {
        return false;
    }
    for part in data.chunks(255) {
        field.extend_from_slice(&[code, n8(part.len())]);
        field.extend_from_slice(part);
    }
    true
}

impl Fields {
    fn add(&mut self, code: u8, data: &[u8]) {
        // Four bytes are kept for the option that tells of the other fields, and the end; one for theirs.
        let done = put(&mut self.options, self.room.saturating_sub(4), code, data)
            || self.file.as_mut().is_some_and(|f| put(f, FILE.1 - 1, code, data));
        if !done {
            put(&mut self.sname, SNAME.1 - 1, code, data);
        }
    }

    /// Writes the fields into the message, whose fixed part is there.
    fn write(mut self, out: &mut Vec<u8>) {
        let file = self.file.filter(|f| !f.is_empty());
        let told = u8::from(file.is_some()) | u8::from(!self.sname.is_empty()) << 1;
        if told != 0 {
            self.options.extend_from_slice(&[52, 1, told]);
        }
        self.options.push(255);
        let from = out.len() - FIXED;
        for (mut field, (at, _)) in [(file.unwrap_or_default(), FILE), (self.sname, SNAME)] {
            if !field.is_empty() {
                field.push(255);
                patch(out, from + at, &field);
            }
        }
        out.extend_from_slice(&self.options);
    }
}

/// How long the message may be, in bytes: what the client takes of an IP packet, and what the link takes.
fn room(c: &Conf, q: &Request<'_>) -> usize {
    let client = usize::from(q.max.unwrap_or(0)).saturating_sub(28);
    client.min(usize::from(c.mtu).saturating_sub(28)).max(LEAST)
}

/// Appends the answer to `out`.
pub fn write(c: &Conf, v4: &V4, q: &Request<'_>, a: Answer, out: &mut Vec<u8>) {
    let start = out.len();
    let yours = match a {
        Answer::Offer(a) | Answer::Ack(a) => a,
        Answer::Inform | Answer::Nak => Ipv4Addr::UNSPECIFIED,
    };
    let uses = if a == Answer::Nak { Ipv4Addr::UNSPECIFIED } else { q.uses };
    out.extend_from_slice(&[2, 1, 6, 0]);
    out.extend_from_slice(&q.xid);
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&q.flags);
    for ip in [uses, yours, if a == Answer::Nak { Ipv4Addr::UNSPECIFIED } else { v4.host }] {
        out.extend_from_slice(&ip.octets());
    }
    out.extend_from_slice(&q.relay);
    out.extend_from_slice(&q.mac.0);
    out.resize(start + FIXED - 4, 0);
    let mut fields =
        Fields { options: Vec::new(), room: room(c, q) - FIXED, file: Some(Vec::new()), sname: Vec::new() };
    // A name that fits its field stands there as well as in its option, which only some read.
    let file = c.boot.file.as_bytes();
    if !file.is_empty() && file.len() < FILE.1 && a != Answer::Nak {
        patch(out, start + FILE.0, file);
        fields.file = None;
    }
    if q.options {
        out.extend_from_slice(&COOKIE);
        fill(c, v4, q, a, &mut fields);
        fields.write(out);
    }
    out.resize(out.len().max(start + SHORTEST), 0);
}

fn fill(c: &Conf, v4: &V4, q: &Request<'_>, a: Answer, fields: &mut Fields) {
    if q.kind != Kind::Bootp {
        let kind = match a {
            Answer::Offer(_) => 2,
            Answer::Ack(_) | Answer::Inform => 5,
            Answer::Nak => 6,
        };
        fields.add(53, &[kind]);
        fields.add(54, &v4.host.octets());
    }
    if a == Answer::Nak {
        if let Some(id) = q.id {
            fields.add(61, id);
        }
        return fields.add(56, b"this address is not yours");
    }
    let leased = q.kind != Kind::Bootp && a != Answer::Inform;
    if leased {
        fields.add(51, &LEASE.to_be_bytes());
    }
    let mut told = [false; 256];
    let asked = q.list.unwrap_or(&USUAL);
    // Who sends his name hears of it without asking (RFC 4702 §3.1).
    for code in ALWAYS.iter().chain(asked).chain(&[60, 81]) {
        let time = match code {
            58 if leased => Some(LEASE / 2),
            59 if leased => Some(LEASE / 8 * 7),
            _ => None,
        };
        let data = time.map(|t| t.to_be_bytes().to_vec()).or_else(|| value(c, v4, q, *code));
        let new = told.get_mut(usize::from(*code)).is_some_and(|t| !std::mem::replace(t, true));
        if let (true, Some(data)) = (new, data) {
            fields.add(*code, &data);
        }
    }
}
