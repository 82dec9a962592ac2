//! The few rtnetlink requests that the helper makes: look interfaces up, make a bridge, set attributes, delete.
//!
//! Trust: only the kernel (port 0) is believed, and only answers to our own sequence number and port.
//! Promise: no call waits longer than [`PATIENCE`]; an answer that does not parse is an error, never a guess.

mod message;

use std::os::fd::{AsRawFd, OwnedFd};

use netreeve_shared::{ifname::IfName, mac::Mac};
use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sockopt,
};
use nix::sys::time::TimeVal;

pub(crate) use message::Link;
use message::{self as attr, Message};

type Result<T> = nix::Result<T>;

/// Longest wait for the kernel's answer, in seconds. It answers at once; the limit only keeps a deadline honest.
const PATIENCE: i64 = 2;
/// The kernel cuts dumps into pieces of at most 32 KiB.
const BUFFER: usize = 64 << 10;
/// Dumps that another change has torn are asked for again, so often.
const DUMPS: u32 = 8;

// linux/netlink.h, linux/rtnetlink.h
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const DUMP_TORN: u16 = 0x10;
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const NEWLINKPROP: u16 = 108;
/// `RTEXT_FILTER_SKIP_STATS`: counters would be most of every answer.
const SKIP_STATS: u32 = 8;
/// `IN6_ADDR_GEN_MODE_NONE`.
const GENERATE_NONE: u8 = 1;
/// `IFF_UP`.
const UP: u32 = libc::IFF_UP.cast_unsigned();

/// One attribute to set on an interface.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Set {
    /// Up.
    Up,
    /// MTU in bytes.
    Mtu(u32),
    /// Ethernet address.
    Mac(Mac),
    /// Join the bridge of this index.
    Master(u32),
    /// Device group.
    Group(u32),
    /// No IPv6 link-local address of its own, so that the host does not answer the guest there.
    NoOwnAddress,
    /// On a bridge port: a guest cannot become root of a spanning tree (`root_block`) nor speak it (`guard`);
    /// an isolated port reaches only ports that are not.
    BridgePort {
        /// `IFLA_BRPORT_ISOLATED`.
        isolated: bool,
    },
}

/// A socket to rtnetlink in the current network namespace.
pub(crate) struct Netlink {
    socket: OwnedFd,
    port: u32,
    sequence: u32,
}

impl Netlink {
    /// Opens the socket. Changes need `CAP_NET_ADMIN` when it is opened and when they are asked for.
    pub(crate) fn open() -> Result<Self> {
        let (family, flags) = (AddressFamily::Netlink, SockFlag::SOCK_CLOEXEC);
        let socket = socket::socket(family, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        socket::setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE, 0))?;
        let port = socket::getsockname::<NetlinkAddr>(socket.as_raw_fd())?.pid();
        Ok(Self { socket, port, sequence: 0 })
    }

    /// The interface of this name; an alternative name does not count.
    pub(crate) fn by_name(&mut self, name: IfName) -> Result<Link> {
        let mut message = Message::new(0, 0, 0);
        message.put(libc::IFLA_IFNAME, &name.to_ifr_name());
        let link = self.get(message)?;
        if link.name == Some(name) { Ok(link) } else { Err(Errno::ENODEV) }
    }

    /// The interface of this index.
    pub(crate) fn by_index(&mut self, index: u32) -> Result<Link> {
        self.get(Message::new(index, 0, 0))
    }

    /// Every interface of the namespace.
    pub(crate) fn all(&mut self) -> Result<Vec<Link>> {
        let mut message = Message::new(0, 0, 0);
        message.put(libc::IFLA_EXT_MASK, &SKIP_STATS.to_ne_bytes());
        let mut dumps = (0..DUMPS).map(|_| self.talk(libc::RTM_GETLINK, REQUEST | DUMP, &message));
        dumps.find(|links| !matches!(links, Err(Errno::EAGAIN))).unwrap_or(Err(Errno::EAGAIN))
    }

    /// Sets attributes of an interface, all in one message.
    pub(crate) fn set(&mut self, index: u32, changes: &[Set]) -> Result<()> {
        let up = if changes.iter().any(|c| matches!(c, Set::Up)) { UP } else { 0 };
        let mut message = Message::new(index, up, up);
        for change in changes {
            put(&mut message, *change);
        }
        self.talk(libc::RTM_NEWLINK, REQUEST | ACK, &message).map(drop)
    }

    /// Gives an interface one more name.
    pub(crate) fn add_altname(&mut self, index: u32, name: &str) -> Result<()> {
        let mut message = Message::new(index, 0, 0);
        let bytes = [name.as_bytes(), b"\0"].concat();
        message.nest(libc::IFLA_PROP_LIST, |m| m.put(libc::IFLA_ALT_IFNAME, &bytes));
        self.talk(NEWLINKPROP, REQUEST | ACK | CREATE | EXCLUSIVE | APPEND, &message).map(drop)
    }

    /// Makes a bridge, down, in device group `group`.
    pub(crate) fn create_bridge(&mut self, name: IfName, group: u32) -> Result<()> {
        let mut message = Message::new(0, 0, 0);
        message.put(libc::IFLA_IFNAME, &name.to_ifr_name());
        message.put(libc::IFLA_GROUP, &group.to_ne_bytes());
        message.nest(libc::IFLA_LINKINFO, |m| m.put(libc::IFLA_INFO_KIND, b"bridge"));
        self.talk(libc::RTM_NEWLINK, REQUEST | ACK | CREATE | EXCLUSIVE, &message).map(drop)
    }

    /// Deletes an interface.
    pub(crate) fn delete(&mut self, index: u32) -> Result<()> {
        self.talk(libc::RTM_DELLINK, REQUEST | ACK, &Message::new(index, 0, 0)).map(drop)
    }

    fn get(&mut self, mut message: Message) -> Result<Link> {
        message.put(libc::IFLA_EXT_MASK, &SKIP_STATS.to_ne_bytes());
        let mut links = self.talk(libc::RTM_GETLINK, REQUEST | ACK, &message)?;
        match (links.pop(), links.is_empty()) {
            (Some(link), true) => Ok(link),
            _ => Err(Errno::EBADMSG),
        }
    }

    /// One request and its whole answer: the interfaces in it. `EAGAIN`: another change tore the dump.
    fn talk(&mut self, kind: u16, flags: u16, message: &Message) -> Result<Vec<Link>> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = message.with_header(kind, flags, self.sequence);
        socket::sendto(self.socket.as_raw_fd(), &bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let (mut links, mut torn, mut buffer) = (Vec::new(), false, vec![0; BUFFER]);
        loop {
            let (got, from) = socket::recvfrom::<NetlinkAddr>(self.socket.as_raw_fd(), &mut buffer)?;
            if from.is_none_or(|a| a.pid() != 0) {
                continue;
            }
            let mut rest = buffer.get(..got).unwrap_or_default();
            while !rest.is_empty() {
                let reply = attr::next_reply(&mut rest)?;
                if reply.sequence != self.sequence || reply.port != self.port {
                    continue;
                }
                torn |= reply.flags & DUMP_TORN != 0;
                match reply.kind {
                    libc::RTM_NEWLINK => links.push(Link::parse(reply.body)?),
                    DONE if torn => return Err(Errno::EAGAIN),
                    DONE => return Ok(links),
                    ERROR => match attr::error_in(reply.body)? {
                        0 => return Ok(links),
                        number => return Err(Errno::from_raw(number)),
                    },
                    _ => return Err(Errno::EBADMSG),
                }
            }
        }
    }
}

fn put(message: &mut Message, change: Set) {
    match change {
        Set::Up => {}
        Set::Mtu(bytes) => message.put(libc::IFLA_MTU, &bytes.to_ne_bytes()),
        Set::Mac(mac) => message.put(libc::IFLA_ADDRESS, &mac.0),
        Set::Master(index) => message.put(libc::IFLA_MASTER, &index.to_ne_bytes()),
        Set::Group(group) => message.put(libc::IFLA_GROUP, &group.to_ne_bytes()),
        Set::NoOwnAddress => message.nest(libc::IFLA_AF_SPEC, |m| {
            // The family is the attribute's kind here (linux/rtnetlink.h).
            let inet6 = u16::try_from(libc::AF_INET6).unwrap_or_default();
            m.nest(inet6, |m| m.put(attr::INET6_ADDR_GEN_MODE, &[GENERATE_NONE]));
        }),
        Set::BridgePort { isolated } => message.nest(libc::IFLA_LINKINFO, |m| {
            m.put(libc::IFLA_INFO_SLAVE_KIND, b"bridge");
            m.nest(libc::IFLA_INFO_SLAVE_DATA, |m| {
                m.put(attr::PORT_GUARD, &[1]);
                m.put(attr::PORT_PROTECT, &[1]);
                m.put(attr::PORT_ISOLATED, &[isolated.into()]);
            });
        }),
    }
}
