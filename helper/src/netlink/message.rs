//! rtnetlink's bytes: built and parsed here and nowhere else, without a socket.
//!
//! Layouts: `linux/netlink.h`, `linux/rtnetlink.h`, `linux/if_link.h`. Trust: what is parsed came from the kernel (the
//! socket checks the sender), yet every length is checked: a short or overlong field is [`Errno::EBADMSG`].

use netreeve_shared::{ifname::IfName, mac::Mac};
use nix::errno::Errno;

/// Bytes of `struct nlmsghdr`, and of `struct ifinfomsg`.
const HEADER: usize = 16;
/// Marks an attribute that holds attributes.
const NESTED: u16 = 1 << 15;

// linux/if_link.h
pub(super) const INET6_ADDR_GEN_MODE: u16 = 8;
pub(super) const PORT_GUARD: u16 = 5;
pub(super) const PORT_PROTECT: u16 = 6;
pub(super) const PORT_ISOLATED: u16 = 33;
const TUN_QUEUES: u16 = 8;
const TUN_DISABLED_QUEUES: u16 = 9;

/// One message after its header: a `struct ifinfomsg` and attributes.
pub(super) struct Message(Vec<u8>);

impl Message {
    /// About the interface `index` (0: named by an attribute). `flags` are set where `change` has ones.
    pub(super) fn new(index: u32, flags: u32, change: u32) -> Self {
        let mut bytes = vec![0; 4];
        for word in [index, flags, change] {
            bytes.extend(word.to_ne_bytes());
        }
        Self(bytes)
    }

    /// Appends one attribute.
    pub(super) fn put(&mut self, kind: u16, value: &[u8]) {
        // Nothing here is longer than a name; the kernel refuses an attribute that overruns its message.
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// Appends one attribute that holds those that `fill` appends.
    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self(Vec::new());
        fill(&mut inner);
        self.put(kind | NESTED, &inner.0);
    }

    /// The message with its header before it.
    pub(super) fn with_header(&self, kind: u16, flags: u16, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(HEADER + self.0.len()).unwrap_or(u32::MAX);
        let (length, kind, flags) = (length.to_ne_bytes(), kind.to_ne_bytes(), flags.to_ne_bytes());
        [&length[..], &kind, &flags, &sequence.to_ne_bytes(), &[0; 4], &self.0].concat()
    }
}

/// `struct nlmsghdr` of a reply, and what follows it.
pub(super) struct Reply<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    pub(super) port: u32,
    pub(super) body: &'a [u8],
}

/// Takes the next reply off the front of `bytes`.
pub(super) fn next_reply<'a>(bytes: &mut &'a [u8]) -> Result<Reply<'a>, Errno> {
    let length = usize::try_from(u32_at(bytes, 0)?).map_err(|_| Errno::EBADMSG)?;
    let body = bytes.get(HEADER..length).ok_or(Errno::EBADMSG)?;
    let reply = Reply {
        kind: u16_at(bytes, 4)?,
        flags: u16_at(bytes, 6)?,
        sequence: u32_at(bytes, 8)?,
        port: u32_at(bytes, 12)?,
        body,
    };
    *bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Ok(reply)
}

/// The error number in an `NLMSG_ERROR`; 0 is an acknowledgement.
pub(super) fn error_in(body: &[u8]) -> Result<i32, Errno> {
    Ok(i32::from_ne_bytes(u32_at(body, 0)?.to_ne_bytes()).saturating_neg())
}

/// What the kernel says about one interface.
#[derive(Clone, Debug, Default)]
pub(crate) struct Link {
    /// Index in our network namespace.
    pub(crate) index: u32,
    /// Name; none if it is not one of ours to use (see [`IfName`]).
    pub(crate) name: Option<IfName>,
    /// `ARPHRD_*`.
    pub(crate) hardware: u16,
    /// MTU in bytes.
    pub(crate) mtu: u32,
    /// Ethernet address.
    pub(crate) mac: Option<Mac>,
    /// Kind of virtual device (`bridge`, `tun`, ...), empty for hardware.
    pub(crate) kind: String,
    /// Index of the bridge or bond it belongs to; 0: none.
    pub(crate) master: u32,
    /// Device group.
    pub(crate) group: u32,
    /// Queues of a multi-queue tap, detached ones (`TUNSETQUEUE`) too.
    pub(crate) tun_queues: Option<u32>,
    /// Alternative names.
    pub(crate) altnames: Vec<String>,
}

impl Link {
    /// Reads the body of an `RTM_NEWLINK`.
    pub(super) fn parse(body: &[u8]) -> Result<Self, Errno> {
        let mut link = Self { hardware: u16_at(body, 2)?, index: u32_at(body, 4)?, ..Self::default() };
        for (kind, value) in attributes(body.get(HEADER..).ok_or(Errno::EBADMSG)?)? {
            match kind {
                libc::IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac),
                libc::IFLA_IFNAME => link.name = IfName::new(&text(value)).ok(),
                libc::IFLA_MTU => link.mtu = u32_at(value, 0)?,
                libc::IFLA_MASTER => link.master = u32_at(value, 0)?,
                libc::IFLA_GROUP => link.group = u32_at(value, 0)?,
                libc::IFLA_LINKINFO => link.parse_info(value)?,
                libc::IFLA_PROP_LIST => {
                    let names =
                        attributes(value)?.into_iter().filter(|(kind, _)| *kind == libc::IFLA_ALT_IFNAME);
                    link.altnames.extend(names.map(|(_, name)| text(name)));
                }
                _ => {}
            }
        }
        Ok(link)
    }

    fn parse_info(&mut self, info: &[u8]) -> Result<(), Errno> {
        for (kind, value) in attributes(info)? {
            match kind {
                libc::IFLA_INFO_KIND => self.kind = text(value),
                // The kernel tells the kind first.
                libc::IFLA_INFO_DATA if self.kind == "tun" => {
                    let queues = attributes(value)?.into_iter();
                    for (_, count) in queues.filter(|(k, _)| matches!(*k, TUN_QUEUES | TUN_DISABLED_QUEUES)) {
                        self.tun_queues =
                            Some(self.tun_queues.unwrap_or(0).saturating_add(u32_at(count, 0)?));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Kinds and values of a row of attributes.
fn attributes(mut bytes: &[u8]) -> Result<Vec<(u16, &[u8])>, Errno> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let length = usize::from(u16_at(bytes, 0)?);
        let value = bytes.get(4..length).ok_or(Errno::EBADMSG)?;
        // The two highest bits are flags (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
        found.push((u16_at(bytes, 2)? & 0x3fff, value));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(found)
}

/// A text that ends at its NUL.
fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, Errno> {
    bytes.get(at..).and_then(|b| b.first_chunk()).map(|b| u16::from_ne_bytes(*b)).ok_or(Errno::EBADMSG)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Errno> {
    bytes.get(at..).and_then(|b| b.first_chunk()).map(|b| u32::from_ne_bytes(*b)).ok_or(Errno::EBADMSG)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Message {
        let mut m = Message::new(7, 0, 0);
        m.put(libc::IFLA_IFNAME, b"br0\0");
        m.put(libc::IFLA_ADDRESS, &[2, 0, 0, 0, 0, 1]);
        m.put(libc::IFLA_MTU, &9000_u32.to_ne_bytes());
        m.nest(libc::IFLA_LINKINFO, |m| {
            m.put(libc::IFLA_INFO_KIND, b"tun");
            m.nest(libc::IFLA_INFO_DATA, |m| {
                m.put(TUN_QUEUES, &3_u32.to_ne_bytes());
                m.put(TUN_DISABLED_QUEUES, &1_u32.to_ne_bytes());
            });
        });
        m.nest(libc::IFLA_PROP_LIST, |m| {
            m.put(libc::IFLA_ALT_IFNAME, b"one\0");
            m.put(libc::IFLA_ALT_IFNAME, b"two\0");
        });
        m
    }

    #[test]
    fn what_is_built_is_parsed() {
        let bytes = sample().with_header(16, 5, 99);
        let mut rest = &bytes[..];
        let reply = next_reply(&mut rest).unwrap();
        assert_eq!((reply.kind, reply.flags, reply.sequence, reply.port), (16, 5, 99, 0));
        assert!(rest.is_empty());
        let link = Link::parse(reply.body).unwrap();
        assert_eq!((link.index, link.mtu, link.tun_queues), (7, 9000, Some(4)));
        assert_eq!(link.name.unwrap().as_str(), "br0");
        assert_eq!(link.mac, Some(Mac([2, 0, 0, 0, 0, 1])));
        assert_eq!((link.kind.as_str(), link.altnames), ("tun", vec!["one".to_owned(), "two".to_owned()]));
    }

    #[test]
    fn a_cut_message_is_refused_and_an_attribute_cannot_overrun() {
        let bytes = sample().with_header(16, 0, 1);
        for cut in 0..bytes.len() {
            assert_eq!(next_reply(&mut &bytes[..cut]).err(), Some(Errno::EBADMSG), "cut at {cut}");
        }
        let mut long = Message::new(1, 0, 0).0;
        long.extend([200, 0, 3, 0, b'x']);
        assert_eq!(Link::parse(&long).err(), Some(Errno::EBADMSG));
        let mut stuck = Message::new(1, 0, 0).0;
        stuck.extend([0, 0, 3, 0]);
        assert_eq!(Link::parse(&stuck).err(), Some(Errno::EBADMSG), "an attribute of length 0 must not loop");
    }

    proptest! {
        #[test]
        fn garbage_never_panics_or_hangs(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let before = rest.len();
                let Ok(reply) = next_reply(&mut rest) else { break };
                prop_assert!(rest.len() < before);
                let _ = Link::parse(reply.body);
            }
        }
    }
}
