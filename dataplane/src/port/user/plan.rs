//! What a `user` network is made of, as the supervisor says it, and what it may be told while it runs.
//!
//! Trust: the supervisor, which has read the user's options and opened what needs a name or a privilege. Promise: plain
//! values; the descriptors that belong to them travel beside, in the order that [`Plan`] says.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netreeve_shared::ifname::IfName;
use netreeve_shared::mac::Mac;
use serde::{Deserialize, Serialize};

use super::policy::{Policy, Verdict};

/// Our own Ethernet address, the one that QEMU's user network has: `52:55` and the host's IPv4 address.
pub const MAC: Mac = Mac([0x52, 0x55, 0x0a, 0x00, 0x02, 0x02]);

/// Ports that are listed one by one for the sandbox, at most.
pub const PORTS: usize = 256;

/// A `user` network as the dataplane opens it. Descriptors, in this order: those of each of [`Plan::forwards`] (listening
/// or bound sockets), one for each of [`Plan::guest_forwards`] that is no [`To::Address`] (its door), and, if
/// [`Boot::tftp`], the directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// IPv4, if there is any.
    pub v4: Option<V4>,
    /// IPv6, if there is any.
    pub v6: Option<V6>,
    /// MTU in bytes that the guest is told of, 1280 to 65520.
    pub mtu: u16,
    /// Our Ethernet address.
    pub mac: Mac,
    /// The guest's name for DHCP; empty: none.
    pub hostname: String,
    /// The guest's domain for DHCP; empty: none.
    pub domain: String,
    /// Domains to search.
    pub search: Vec<String>,
    /// The host's resolvers, in order; DNS is answered from them. Empty: nobody answers.
    pub resolvers: Vec<SocketAddr>,
    /// What a guest boots from.
    pub boot: Boot,
    /// Nothing goes out but answers to forwards and what goes to guest forwards; no socket is ever made.
    pub restrict: bool,
    /// Which destinations there are.
    pub policy: Policy,
    /// From the host to the guest.
    pub forwards: Vec<Forward>,
    /// From the guest to something on the host.
    pub guest_forwards: Vec<GuestForward>,
    /// What the guest does not find on its link, though such a network has it.
    pub without: Vec<Service>,
    /// Addresses by which the guest reaches others of the same family: it names the first, and the second is meant.
    /// Meant is, if unspecified, the address by which the host speaks to the world when a flow begins.
    pub aliases: Vec<(IpAddr, IpAddr)>,
    /// The first address that is lent by DHCPv6; none: `::15` of the prefix.
    pub lease6: Option<Ipv6Addr>,
    /// How its sockets leave the host.
    pub outbound: Outbound,
    /// How much of everything.
    pub limits: Limits,
}

/// How sockets leave the host, where its routes alone shall not decide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outbound {
    /// From this address.
    pub v4: Option<Ipv4Addr>,
    /// From this address.
    pub v6: Option<Ipv6Addr>,
    /// By this interface, IPv4.
    pub device4: Option<IfName>,
    /// By this interface, IPv6.
    pub device6: Option<IfName>,
}

impl Outbound {
    /// Address and interface in the family of `like`.
    #[must_use]
    pub fn of(&self, like: IpAddr) -> (Option<IpAddr>, Option<IfName>) {
        match like {
            IpAddr::V4(_) => (self.v4.map(IpAddr::from), self.device4),
            IpAddr::V6(_) => (self.v6.map(IpAddr::from), self.device6),
        }
    }

    /// The routes decide.
    #[must_use]
    pub fn is_free(&self) -> bool {
        *self == Self::default()
    }
}

/// What the guest finds on its link, and may be spared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Service {
    /// DHCP for IPv4, and BOOTP.
    Dhcp4,
    /// DHCPv6.
    Dhcp6,
    /// Neighbour discovery: solicitations are answered. Without it there is no advertisement either.
    Neighbours,
    /// Router advertisements.
    Advertisements,
    /// DHCP, DHCPv6 and advertisements name a server for names.
    Resolver,
    /// The gateway's address leads to the host's loopback.
    Host,
}

impl Service {
    /// Each with the word that options have for it.
    pub const ALL: &[(&str, Self)] = &[
        ("dhcp", Self::Dhcp4),
        ("dhcpv6", Self::Dhcp6),
        ("ndp", Self::Neighbours),
        ("ra", Self::Advertisements),
        ("resolver", Self::Resolver),
        ("host", Self::Host),
    ];
}

/// IPv4 of a `user` network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct V4 {
    /// The network's first address.
    pub net: Ipv4Addr,
    /// Bits of the network's prefix, 1 to 31.
    pub prefix: u8,
    /// We, as the guest sees the host: its gateway.
    pub host: Ipv4Addr,
    /// The address at which names are resolved.
    pub dns: Ipv4Addr,
    /// The first address that is lent by DHCP.
    pub dhcp_start: Ipv4Addr,
}

impl V4 {
    /// The prefix as a mask.
    #[must_use]
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0))
    }

    /// The address is of this network.
    #[must_use]
    pub fn holds(&self, a: Ipv4Addr) -> bool {
        let mask = u32::from(self.mask());
        u32::from(a) & mask == u32::from(self.net) & mask
    }

    /// The network's broadcast address.
    #[must_use]
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.net) | !u32::from(self.mask()))
    }
}

/// IPv6 of a `user` network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct V6 {
    /// The prefix.
    pub prefix: Ipv6Addr,
    /// Its bits, 1 to 126.
    pub len: u8,
    /// We, as the guest sees the host.
    pub host: Ipv6Addr,
    /// The address at which names are resolved.
    pub dns: Ipv6Addr,
}

impl V6 {
    /// The address is of this network.
    #[must_use]
    pub fn holds(&self, a: Ipv6Addr) -> bool {
        let mask = u128::MAX.checked_shl(128 - u32::from(self.len.min(128))).unwrap_or(0);
        u128::from(a) & mask == u128::from(self.prefix) & mask
    }
}

/// What a guest may boot from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// A directory was handed over, to be read by TFTP.
    pub tftp: bool,
    /// The file that DHCP names; empty: none.
    pub file: String,
    /// The server that DHCP names (option 66); empty: none.
    pub server_name: String,
}

/// Ways into the guest and, where it is a network namespace, out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Way {
    /// A listening TCP socket.
    Tcp,
    /// A bound UDP socket.
    Udp,
    /// A listening UNIX stream socket, whose connections reach the guest as TCP.
    Unix,
    /// A listening TCP socket in the guest's network namespace: it leads out of it, to the host's loopback.
    OutTcp,
    /// A bound UDP socket in the guest's network namespace, which leads there too.
    OutUdp,
}

impl Way {
    /// It leads from the guest's namespace to the host.
    #[must_use]
    pub fn is_out(self) -> bool {
        matches!(self, Self::OutTcp | Self::OutUdp)
    }
}

/// From the host to the guest, or the other way ([`Way::is_out`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// Its number, of the supervisor's choice, that no other has. Of a range: its first socket's, and the others have the
    /// numbers behind it.
    pub id: u32,
    /// What was handed over.
    pub way: Way,
    /// Where in the guest, or on the host's loopback if it leads out. Of a range: where its first port leads.
    pub guest: SocketAddr,
    /// It is a range of ports.
    pub range: Option<Range>,
}

/// Ports in a row, some of which may be missing: a socket for each of those that are there. Which one it has, a socket
/// knows itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// The host's first port.
    pub first: u16,
    /// Sockets that were handed over.
    pub sockets: u32,
}

impl Forward {
    /// How many sockets were handed over for it.
    #[must_use]
    pub fn sockets(&self) -> u32 {
        self.range.map_or(1, |r| r.sockets)
    }

    /// That of its socket `n`, which is bound to `port`.
    #[must_use]
    pub fn part(&self, n: u32, port: u16) -> Self {
        let Some(range) = self.range else { return *self };
        let (id, on) = (self.id.wrapping_add(n), port.wrapping_sub(range.first));
        let guest = SocketAddr::new(self.guest.ip(), self.guest.port().wrapping_add(on));
        Self { id, guest, range: None, ..*self }
    }
}

/// Where what comes to a [`GuestForward`] goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum To {
    /// To an address, by a connection of ours for each of the guest's; the policy is not asked.
    Address(SocketAddr),
    /// To connections that the supervisor makes, one for each of the guest's: they are asked for through the door that was
    /// handed over ([`super::door`]).
    Asked {
        /// They are of TCP; else of a UNIX socket.
        tcp: bool,
    },
}

/// From the guest to something on the host, by TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestForward {
    /// Where the guest finds it.
    pub at: SocketAddr,
    /// What it finds.
    pub to: To,
}

/// Bounds of what a guest can make us hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// TCP connections.
    pub tcp: u32,
    /// UDP flows.
    pub udp: u32,
    /// Echo flows.
    pub pings: u32,
    /// Bytes held for all sockets that take nothing at the moment.
    pub held: u32,
    /// Bytes held for one of them.
    pub held_each: u32,
    /// Bytes that a flow's socket keeps for one direction, which the kernel doubles; none: as it likes.
    pub buffer: Option<u32>,
    /// Connections that pass from the guest's namespace to the host's loopback, and four times the UDP flows that do; 0: no
    /// forward leads out.
    pub out: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { tcp: 16_384, udp: 1024, pings: 64, held: 16 << 20, held_each: 1 << 20, buffer: None, out: 0 }
    }
}

/// Sockets of forwards that may come while a dataplane runs, beyond those that it began with: how many descriptors it may
/// have is settled at its start, and flows take what is left.
pub const LATER: u64 = 128;
/// Descriptors beside those of flows: those, resolvers' sockets, files that are read by TFTP, and what the port itself has.
const OWN: u64 = 128 + LATER;

/// Connections that pass to the host's loopback, where forwards may lead there.
pub const OUT: u32 = 1024;

impl Limits {
    /// Descriptors that so much takes.
    #[must_use]
    pub fn descriptors(&self) -> u64 {
        // Of what passes out, two for a connection and one for a UDP flow.
        let out = 2 * u64::from(self.out) + u64::from(self.out_udp());
        u64::from(self.tcp) + u64::from(self.udp) + u64::from(self.pings) + out + OWN
    }

    /// UDP flows that pass to the host's loopback.
    #[must_use]
    pub fn out_udp(&self) -> u32 {
        self.out.div_ceil(4)
    }

    /// What of it so many descriptors are enough for.
    #[must_use]
    pub fn within(self, descriptors: u64) -> Self {
        let (have, want) = (descriptors.saturating_sub(OWN), self.descriptors() - OWN);
        if have >= want {
            return self;
        }
        let part = |n: u32| u32::try_from(u64::from(n) * have / want).unwrap_or(n).max(1).min(n);
        let (tcp, udp, pings) = (part(self.tcp), part(self.udp), part(self.pings));
        Self { tcp, udp, pings, out: part(self.out), ..self }
    }
}

impl Plan {
    /// A network with the addresses that QEMU's has, without resolvers, and with every destination open.
    #[must_use]
    pub fn qemu() -> Self {
        let four = |last| Ipv4Addr::new(10, 0, 2, last);
        let six = |last| Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, last);
        Self {
            v4: Some(V4 { net: four(0), prefix: 24, host: four(2), dns: four(3), dhcp_start: four(15) }),
            v6: Some(V6 { prefix: six(0), len: 64, host: six(2), dns: six(3) }),
            mtu: 1500,
            mac: MAC,
            hostname: String::new(),
            domain: String::new(),
            search: Vec::new(),
            resolvers: Vec::new(),
            boot: Boot::default(),
            restrict: false,
            policy: Policy { rules: Vec::new(), otherwise: Verdict::Pass },
            forwards: Vec::new(),
            guest_forwards: Vec::new(),
            without: Vec::new(),
            aliases: Vec::new(),
            lease6: None,
            outbound: Outbound::default(),
            limits: Limits::default(),
        }
    }

    /// The ports to which its sockets go out by TCP; none: to any, or to more than [`PORTS`]. A restricted network has none.
    #[must_use]
    pub fn tcp_ports(&self) -> Option<Vec<u16>> {
        if self.restrict {
            return Some(Vec::new());
        }
        let mut all = self.policy.tcp_ports(PORTS)?;
        all.extend(self.guest_forwards.iter().filter_map(|g| match g.to {
            To::Address(at) => Some(at.port()),
            _ => None,
        }));
        // Others may come later.
        (self.limits.out == 0).then_some(all)
    }

    /// How many descriptors travel with it.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        let handed = self.guest_forwards.iter().filter(|g| !matches!(g.to, To::Address(_))).count();
        let sockets = usize::try_from(self.sockets()).unwrap_or(usize::MAX);
        sockets.saturating_add(handed + usize::from(self.boot.tftp))
    }

    /// How many of them are forwards' sockets.
    #[must_use]
    pub fn sockets(&self) -> u64 {
        self.forwards.iter().map(|f| u64::from(f.sockets())).sum()
    }

    /// The guest's first address of the family of `like`, if the network has that family and the address is known.
    #[must_use]
    pub fn first_guest(&self, like: IpAddr) -> Option<IpAddr> {
        match like {
            IpAddr::V4(_) => self.v4.map(|v| v.dhcp_start.into()),
            IpAddr::V6(_) => None,
        }
    }
}

/// What a running `user` network is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tell {
    /// The whole list of forwards from now on. Those whose number it has already stay as they are, with their
    /// connections; a descriptor comes for each of the others, in order. What is not in it is closed; its connections
    /// live on.
    Forwards(Vec<Forward>),
    /// The host's resolvers have changed.
    Resolvers(Vec<SocketAddr>),
}
