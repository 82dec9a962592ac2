//! What a client of DHCPv6 asks (RFC 8415).
//!
//! Trust: none. Promise: a message whose options are not whole is none; every slice lies in the message.
#![forbid(unsafe_code)]

use std::net::Ipv6Addr;

use super::super::bytes::Reader;

/// Options, by number.
pub(super) mod code {
    pub(crate) const CLIENT: u16 = 1;
    pub(crate) const SERVER: u16 = 2;
    pub(crate) const ADDRESSES: u16 = 3;
    pub(crate) const TEMPORARY: u16 = 4;
    pub(crate) const ADDRESS: u16 = 5;
    pub(crate) const LIST: u16 = 6;
    pub(crate) const STATUS: u16 = 13;
    pub(crate) const RAPID: u16 = 14;
    pub(crate) const DNS: u16 = 23;
    pub(crate) const SEARCH: u16 = 24;
    pub(crate) const PREFIXES: u16 = 25;
    pub(crate) const FQDN: u16 = 39;
    pub(crate) const BOOT: u16 = 59;
}

/// Longest identifier of a client in bytes (RFC 8415 §11.1).
const ID: usize = 130;

/// What kind of message it is (RFC 8415 §7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Who has addresses for me?
    Solicit,
    /// These, please.
    Request,
    /// Do these still belong to this link?
    Confirm,
    /// May I keep these, you who gave them?
    Renew,
    /// May I keep these, whoever there is?
    Rebind,
    /// They are not needed any more.
    Release,
    /// They are in use by somebody.
    Decline,
    /// Only the rest, please.
    Information,
}

/// Options, one behind the other; whole.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a>(&'a [u8]);

impl<'a> Options<'a> {
    /// None: they are not whole.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut r = Reader::new(bytes);
        while !r.is_empty() {
            r.u16()?;
            let len = r.u16()?;
            r.take(len.into())?;
        }
        Some(Self(bytes))
    }

    /// Each with its number.
    pub fn iter(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut r = Reader::new(self.0);
        std::iter::from_fn(move || {
            let (code, len) = (r.u16()?, r.u16()?);
            Some((code, r.take(len.into())?))
        })
    }

    /// The first of this number.
    #[must_use]
    pub fn get(self, code: u16) -> Option<&'a [u8]> {
        self.iter().find(|(c, _)| *c == code).map(|(_, data)| data)
    }
}

/// A group of addresses that a client wants or has (`IA_NA`).
#[derive(Clone, Copy, Debug)]
pub struct Group<'a> {
    /// The client's number for it.
    pub id: [u8; 4],
    options: Options<'a>,
}

impl<'a> Group<'a> {
    /// None: it is not whole.
    #[must_use]
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let mut r = Reader::new(data);
        let id = r.array()?;
        r.take(8)?;
        Some(Self { id, options: Options::parse(r.rest())? })
    }

    /// The addresses in it.
    pub fn addresses(self) -> impl Iterator<Item = Ipv6Addr> {
        let all = self.options.iter().filter(|(c, _)| *c == code::ADDRESS);
        all.filter_map(|(_, data)| Reader::new(data).array::<16>().map(Ipv6Addr::from))
    }
}

/// A client's message.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Its kind.
    pub kind: Kind,
    /// The client's number for it.
    pub xid: [u8; 3],
    /// Its options.
    pub options: Options<'a>,
    /// The client's identifier.
    pub client: Option<&'a [u8]>,
    list: Option<&'a [u8]>,
}

impl<'a> Request<'a> {
    /// The request in a datagram to the server with the identifier `us`. None: it is none, broken, or for another.
    #[must_use]
    pub fn parse(datagram: &'a [u8], us: &[u8]) -> Option<Self> {
        let mut r = Reader::new(datagram);
        let kind = match r.u8()? {
            1 => Kind::Solicit,
            3 => Kind::Request,
            4 => Kind::Confirm,
            5 => Kind::Renew,
            6 => Kind::Rebind,
            8 => Kind::Release,
            9 => Kind::Decline,
            11 => Kind::Information,
            _ => return None,
        };
        let xid = r.array()?;
        let options = Options::parse(r.rest())?;
        let client = options.get(code::CLIENT);
        if client.is_none_or(|c| c.is_empty() || c.len() > ID)
            && (kind != Kind::Information || client.is_some())
        {
            return None;
        }
        // RFC 8415 §16: who must name the server, who must not, and who may.
        let server = options.get(code::SERVER);
        let right = match kind {
            Kind::Request | Kind::Renew | Kind::Release | Kind::Decline => server == Some(us),
            Kind::Solicit | Kind::Confirm | Kind::Rebind => server.is_none(),
            Kind::Information => server.is_none_or(|s| s == us),
        };
        right.then_some(Self { kind, xid, options, client, list: options.get(code::LIST) })
    }

    /// The client asks for this option; who has no list asks for all.
    #[must_use]
    pub fn wants(&self, code: u16) -> bool {
        self.list.is_none_or(|l| l.chunks_exact(2).any(|c| c == code.to_be_bytes()))
    }
}
