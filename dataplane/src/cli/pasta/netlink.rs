//! Configures an interface of the network namespace that this process is in, by rtnetlink (`linux/rtnetlink.h`).
//!
//! Trust: the kernel. Promise: a request is answered before the next one is sent; an answer that is none is an error.
#![forbid(unsafe_code)]

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::net::if_::if_nametoindex;
use nix::sys::socket::{self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType};

const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
/// `NLM_F_REQUEST | NLM_F_ACK`, and `NLM_F_CREATE | NLM_F_EXCL`.
const ASK: u16 = 5;
const MAKE: u16 = 0x600;
/// `NLMSG_ERROR`: an answer, whose number 0 is *done*.
const ANSWER: u16 = 2;
/// Bytes before a message's body.
const HEADER: usize = 16;

/// `IFA_F_NODAD`: nobody else is on this link who could have the address.
const NO_DAD: u8 = 2;
/// `RT_TABLE_MAIN`, `RTPROT_BOOT`, `RTN_UNICAST`, `RTNH_F_ONLINK`.
const MAIN: u8 = 254;
const BOOT: u8 = 3;
const UNICAST: u8 = 1;
const ON_LINK: u32 = 4;

/// An interface, and the way to say something of it.
#[derive(Debug)]
pub(super) struct Link {
    socket: OwnedFd,
    index: u32,
    said: u32,
}

impl Link {
    /// The interface of this name.
    ///
    /// # Errors
    /// The kernel's; `ENODEV` if there is none.
    pub(super) fn new(name: &str) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket =
            socket::socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { socket, index: if_nametoindex(name)?, said: 0 })
    }

    /// Brings it up, with this MTU in bytes.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn up(&mut self, mtu: Option<u16>) -> io::Result<()> {
        let up = u32::try_from(libc::IFF_UP).unwrap_or(1);
        self.link(up, mtu.map(|m| (4, u32::from(m).to_ne_bytes().to_vec())))
    }

    /// Gives it an Ethernet address.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn mac(&mut self, mac: [u8; 6]) -> io::Result<()> {
        self.link(0, Some((1, mac.to_vec())))
    }

    fn link(&mut self, flags: u32, attribute: Option<(u16, Vec<u8>)>) -> io::Result<()> {
        let mut body = vec![0; 4];
        body.extend(self.index.to_ne_bytes());
        body.extend(flags.to_ne_bytes());
        body.extend(flags.to_ne_bytes());
        if let Some((kind, data)) = attribute {
            put(&mut body, kind, &data);
        }
        self.ask(NEW_LINK, ASK, &body)
    }

    /// Gives it an address of a network of so many bits.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn address(&mut self, ip: IpAddr, bits: u8) -> io::Result<()> {
        let flags = if ip.is_ipv6() { NO_DAD } else { 0 };
        let mut body = vec![family(ip), bits, flags, 0];
        body.extend(self.index.to_ne_bytes());
        put(&mut body, 1, &octets(ip));
        put(&mut body, 2, &octets(ip));
        self.ask(NEW_ADDRESS, ASK | MAKE, &body)
    }

    /// Sends what has no other way through it, to this gateway, which is on the link whatever the network's bits say.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn default_route(&mut self, gateway: IpAddr) -> io::Result<()> {
        let mut body = vec![family(gateway), 0, 0, 0, MAIN, BOOT, 0, UNICAST];
        body.extend(ON_LINK.to_ne_bytes());
        put(&mut body, 5, &octets(gateway));
        put(&mut body, 4, &self.index.to_ne_bytes());
        self.ask(NEW_ROUTE, ASK | MAKE, &body)
    }

    fn ask(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.said += 1;
        let long = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
        let mut message = long.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(self.said.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(body);
        socket::send(self.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        let mut answer = [0; 4096];
        let n = socket::recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        answer_of(answer.get(..n).unwrap_or_default(), self.said)
    }
}

/// What an answer to message `said` comes to.
fn answer_of(answer: &[u8], said: u32) -> io::Result<()> {
    let number =
        |at: usize| answer.get(at..at + 4).and_then(|b| b.first_chunk()).map(|b| u32::from_ne_bytes(*b));
    let kind = answer.get(4..6).and_then(|b| b.first_chunk()).map(|b| u16::from_ne_bytes(*b));
    match (kind, number(8), number(HEADER)) {
        (Some(ANSWER), Some(n), Some(0)) if n == said => Ok(()),
        (Some(ANSWER), Some(n), Some(e)) if n == said => {
            Err(io::Error::from_raw_os_error(e.cast_signed().wrapping_neg()))
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Appends an attribute, to a multiple of 4 bytes.
fn put(body: &mut Vec<u8>, kind: u16, data: &[u8]) {
    let long = u16::try_from(4 + data.len()).unwrap_or(u16::MAX);
    body.extend(long.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(data);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn family(ip: IpAddr) -> u8 {
    let family = if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    u8::try_from(family).unwrap_or(0)
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_judged() {
        let answer = |kind: u16, said: u32, number: i32| {
            let mut a = vec![20, 0, 0, 0];
            a.extend(kind.to_ne_bytes());
            a.extend([0, 0]);
            a.extend(said.to_ne_bytes());
            a.extend([0; 4]);
            a.extend(number.to_ne_bytes());
            a
        };
        assert!(answer_of(&answer(2, 7, 0), 7).is_ok());
        assert_eq!(answer_of(&answer(2, 7, -17), 7).unwrap_err().raw_os_error(), Some(17));
        for bad in [answer(2, 8, 0), answer(3, 7, 0), answer(2, 7, 0)[..18].to_vec(), Vec::new()] {
            assert_eq!(answer_of(&bad, 7).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn attributes_fill_words() {
        let mut body = Vec::new();
        put(&mut body, 1, &[1, 2, 3, 4, 5, 6]);
        assert_eq!((body.len(), &body[10..]), (12, &[0, 0][..]));
        assert_eq!(u16::from_ne_bytes([body[0], body[1]]), 10);
    }

    #[test]
    fn who_may_not_is_told() {
        assert!(Link::new("nobody-has-this").is_err());
        // Whoever runs this: the loopback has an index, and asking costs nothing.
        assert!(Link::new("lo").is_ok_and(|l| l.index > 0));
    }
}
