//! What a client of DHCP or BOOTP asks (RFC 2131, RFC 2132, RFC 951).
//!
//! Trust: none. Promise: a message whose options are not whole is none; every slice lies in the message.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;

use netreeve_shared::mac::Mac;

use super::super::bytes::Reader;

/// What stands before the options of DHCP (RFC 1497).
pub(super) const COOKIE: [u8; 4] = [99, 130, 83, 99];

/// What kind of message it is (RFC 2132 §9.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Without a kind: BOOTP.
    Bootp,
    /// Who has an address for me?
    Discover,
    /// This one, please; or: may I keep it?
    Request,
    /// It is in use by somebody.
    Decline,
    /// It is not needed any more.
    Release,
    /// Only the rest, please.
    Inform,
}

/// A client's message.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Its kind.
    pub kind: Kind,
    /// The client's number for it.
    pub xid: [u8; 4],
    /// Flags; the highest bit asks for an answer to all.
    pub flags: [u8; 2],
    /// The address that it uses.
    pub uses: Ipv4Addr,
    /// The relay on the way.
    pub relay: [u8; 4],
    /// Its Ethernet address.
    pub mac: Mac,
    /// Options are understood.
    pub options: bool,
    /// The address that it wants (50).
    pub wants: Option<Ipv4Addr>,
    /// The server that it chose (54).
    pub server: Option<Ipv4Addr>,
    /// The options that it asks for (55).
    pub list: Option<&'a [u8]>,
    /// The longest message that it takes, in bytes (57).
    pub max: Option<u16>,
    /// Its kind of client (60).
    pub vendor: &'a [u8],
    /// Its name for itself (61).
    pub id: Option<&'a [u8]>,
    /// Its domain name, with flags (81).
    pub fqdn: Option<&'a [u8]>,
}

impl<'a> Request<'a> {
    /// The request in a datagram. None: it is none, or broken.
    #[must_use]
    pub fn parse(datagram: &'a [u8]) -> Option<Self> {
        let mut r = Reader::new(datagram);
        let (op, kind, len) = (r.u8()?, r.u8()?, r.u8()?);
        r.take(1)?;
        let (xid, _, flags) = (r.array()?, r.u16()?, r.array::<2>()?);
        let uses = Ipv4Addr::from(r.array::<4>()?);
        r.take(8)?;
        let relay = r.array()?;
        let mac = Mac(r.array()?);
        r.take(10)?;
        let (sname, file) = (r.take(64)?, r.take(128)?);
        if (op, kind, len) != (1, 1, 6) || !mac.is_station() {
            return None;
        }
        let options = r.array::<4>() == Some(COOKIE);
        let mut q = Self {
            kind: Kind::Bootp,
            xid,
            flags,
            uses,
            relay,
            mac,
            options,
            wants: None,
            server: None,
            list: None,
            max: None,
            vendor: &[],
            id: None,
            fqdn: None,
        };
        if options {
            let overload = q.read(r.rest())?;
            for (bit, field) in [(1, file), (2, sname)] {
                if overload & bit != 0 {
                    q.read(field)?;
                }
            }
        }
        Some(q)
    }

    /// Reads a field of options; gives what it says of others (52, RFC 2132 §9.3). Of options that come twice the first
    /// counts.
    fn read(&mut self, field: &'a [u8]) -> Option<u8> {
        let mut r = Reader::new(field);
        let mut overload = 0;
        while let Some(code) = r.u8() {
            if code == 0 {
                continue;
            }
            if code == 255 {
                break;
            }
            let len = r.u8()?;
            let data = r.take(len.into())?;
            let four = || <[u8; 4]>::try_from(data).ok().map(Ipv4Addr::from);
            let two = || <[u8; 2]>::try_from(data).ok().map(u16::from_be_bytes);
            match code {
                50 => self.wants = self.wants.or_else(four),
                52 => overload = data.first().copied().unwrap_or(0),
                53 if self.kind == Kind::Bootp => self.kind = kind(data)?,
                54 => self.server = self.server.or_else(four),
                55 => self.list = self.list.or(Some(data)),
                57 => self.max = self.max.or_else(two),
                60 if self.vendor.is_empty() => self.vendor = data,
                61 => self.id = self.id.or(Some(data)),
                81 => self.fqdn = self.fqdn.or(Some(data)),
                _ => {}
            }
        }
        Some(overload)
    }

    /// The client has no address yet and hears only what goes to all.
    #[must_use]
    pub fn broadcast(&self) -> bool {
        u16::from_be_bytes(self.flags) >> 15 == 1
    }
}

fn kind(data: &[u8]) -> Option<Kind> {
    match data {
        [1] => Some(Kind::Discover),
        [3] => Some(Kind::Request),
        [4] => Some(Kind::Decline),
        [7] => Some(Kind::Release),
        [8] => Some(Kind::Inform),
        _ => None,
    }
}
