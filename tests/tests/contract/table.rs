//! THE table: every kind of port in every form, what passes through it, what it waits for, and what it cannot do.
//!
//! Sizes are in bytes, virtio-net headers aside.

use crate::far::{MOST, MOST_OF_GUESTS};
use crate::stand::{self, Place, Stand};

/// Which frames pass a port's border in one direction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passes {
    /// All from this size,
    pub(crate) least: usize,
    /// to this one. What is shorter is dropped and counted as a runt.
    pub(crate) most: usize,
    /// And from this size on they are dropped, and counted as oversize. (Between the two, the kernel decides.)
    pub(crate) above: usize,
}

const fn to(least: usize, most: usize) -> Passes {
    Passes { least, most, above: most + 1 }
}

/// What becomes of frames when the other side does not take them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flood {
    /// They wait at their source, which is stopped by and by.
    Stops,
    /// They wait as well, after so many that this test does not send as many.
    Waits,
    /// They may be lost, for this reason.
    Loses(&'static str),
}

/// What becomes of a port whose far end goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goes {
    /// It is told: this port is down until another comes. (None: the port of that side.)
    Down(Option<&'static str>),
    /// It finds out when it sends, and counts what is lost.
    Counts,
    /// As before; and who comes then is another, who is not known at once.
    Unnoticed(&'static str),
    /// There is nobody who could go.
    Never(&'static str),
}

/// What becomes of a port with its dataplane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dies {
    /// Its far end notices nothing.
    Lives,
    /// Its connection ends, and another is made.
    Again,
    /// Nothing is left of it, and of its wire.
    Ends(&'static str),
}

/// What counters say of a number of frames that were put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counts {
    /// They were given on or dropped, each of them once, and nothing else was.
    Exactly,
    /// They and perhaps others, for this reason.
    AtLeast(&'static str),
    /// Nothing, for this reason: what comes from one port of the wire is given on or dropped nevertheless.
    Apart(&'static str),
}

/// A kind of port in one of its forms.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    /// The kind, as `netreeve list` has it.
    pub(crate) kind: &'static str,
    pub(crate) form: &'static str,
    pub(crate) stand: for<'a> fn(&Place<'a>, &str) -> Stand<'a>,
    /// For `stand`.
    pub(crate) options: &'static str,
    /// Sizes that a far end can put in at all.
    pub(crate) can: (usize, usize),
    /// What the port gives of that.
    pub(crate) gives: Passes,
    /// What it takes.
    pub(crate) takes: Passes,
    /// What comes in while the port is not read,
    pub(crate) in_flood: Flood,
    /// and what goes out while the far end does not read.
    pub(crate) out_flood: Flood,
    pub(crate) goes: Goes,
    /// Frames for it wait while its far end is away.
    pub(crate) is_waited_for: bool,
    pub(crate) dies: Dies,
    /// Why its far end cannot close one half.
    pub(crate) whole: Option<&'static str>,
    /// Why nothing can be said to it that is no frame.
    pub(crate) clean: Option<&'static str>,
    pub(crate) counts: Counts,
}

impl Row {
    pub(crate) fn name(&self) -> String {
        format!("{} {}", self.kind, self.form).trim().to_owned()
    }

    /// What this kind does not do, and why.
    pub(crate) fn exceptions(&self) -> Vec<String> {
        let flood = |way, f| match f {
            Flood::Loses(why) => Some(format!("{way} may be lost: {why}")),
            Flood::Stops | Flood::Waits => None,
        };
        let goes = match self.goes {
            Goes::Unnoticed(why) => Some(format!("that its far end goes is not noticed: {why}")),
            Goes::Never(why) => Some(format!("its far end does not go and come: {why}")),
            Goes::Down(_) | Goes::Counts => None,
        };
        let dies = match self.dies {
            Dies::Ends(why) => Some(format!("it ends with its dataplane: {why}")),
            Dies::Lives | Dies::Again => None,
        };
        let counts = match self.counts {
            Counts::AtLeast(why) => Some(format!("it may count more than was put in: {why}")),
            Counts::Apart(why) => Some(format!("it does not count what was put in: {why}")),
            Counts::Exactly => None,
        };
        let (whole, clean) =
            (self.whole.map(|why| ("half close", why)), self.clean.map(|why| ("garbage", why)));
        let none = [whole, clean].into_iter().flatten().map(|(what, why)| format!("no {what}: {why}"));
        let floods =
            [flood("what comes in a flood", self.in_flood), flood("what leaves in one", self.out_flood)];
        floods.into_iter().chain([goes, dies, counts]).flatten().chain(none).collect()
    }
}

const DATAGRAMS: &str = "datagrams have no halves";
const KERNEL: &str = "what comes from an interface are frames, whatever was put into it";
const LINK: &str = "a link has no connection";
const DROPS: &str = "the kernel drops what a queue does not hold";
const STATELESS: &str = "nobody knows who is at an address";

/// A stream with QEMU's framing that both ends can open again.
const STREAM: Row = Row {
    kind: "stream",
    form: "",
    stand: stand::unix_server,
    options: "",
    can: (1, MOST),
    gives: to(1, MOST),
    takes: to(1, MOST),
    in_flood: Flood::Stops,
    out_flood: Flood::Stops,
    goes: Goes::Down(None),
    is_waited_for: true,
    dies: Dies::Again,
    whole: None,
    clean: None,
    counts: Counts::Exactly,
};

const SHORT: Row = Row { can: (1, 0xffff), gives: to(1, 0xffff), takes: to(1, 0xffff), ..STREAM };

const MESSAGES: Row = Row { can: (1, MOST + 1), ..STREAM };

/// Datagrams of UNIX: queues of the kernel's that wait, the one of what is sent being long (4 MiB are asked for).
const DGRAM: Row = Row {
    kind: "dgram",
    can: (1, MOST + 1),
    out_flood: Flood::Waits,
    goes: Goes::Counts,
    is_waited_for: false,
    dies: Dies::Lives,
    whole: Some(DATAGRAMS),
    ..STREAM
};

/// The most of a UDP datagram over IPv4.
const UDP: usize = 65507;
/// The heads of the tunnels here: version (UDP), session, cookie.
const TUNNEL: usize = UDP - 16;
/// The same without UDP.
const RAW_TUNNEL: usize = UDP + 8 - 12;

const INET: Row = Row {
    can: (1, UDP),
    gives: to(1, UDP),
    takes: to(1, UDP),
    in_flood: Flood::Loses(DROPS),
    out_flood: Flood::Loses(DROPS),
    goes: Goes::Unnoticed(STATELESS),
    ..DGRAM
};

const GROUP: Row = Row { goes: Goes::Never("a group has no peer"), ..INET };

const TAP: Row = Row {
    kind: "tap",
    form: "vnet_hdr",
    stand: stand::tap,
    can: (14, 1514),
    gives: to(14, 1514),
    // Four bytes more for a VLAN tag.
    takes: Passes { least: 14, most: 1514, above: 1519 },
    in_flood: Flood::Loses(DROPS),
    out_flood: Flood::Loses("a packet socket is a bystander: nobody waits for it"),
    goes: Goes::Never(LINK),
    dies: Dies::Lives,
    whole: Some(LINK),
    clean: Some(KERNEL),
    counts: Counts::AtLeast("the kernel may have something to say on an interface as well"),
    ..STREAM
};

/// A hub drops what is too short for Ethernet, and for nobody.
const HUB: Row = Row {
    kind: "hubport",
    form: "with a stream",
    stand: stand::hub,
    gives: to(14, MOST),
    takes: to(14, MOST),
    in_flood: Flood::Waits,
    out_flood: Flood::Waits,
    goes: Goes::Down(Some("m0")),
    is_waited_for: false,
    counts: Counts::Apart("other members of a hub drop what they cannot take, after it took it"),
    ..STREAM
};

const GUEST: Row = Row {
    kind: "vhost-user",
    form: "split",
    stand: stand::guest,
    can: (1, MOST_OF_GUESTS + 1),
    gives: to(14, MOST_OF_GUESTS),
    takes: to(14, MOST_OF_GUESTS),
    dies: Dies::Lives,
    whole: Some("rings have no halves"),
    ..STREAM
};

/// Payloads of UDP that need no fragments.
const USER: Row = Row {
    kind: "user",
    form: "UDP with the host",
    stand: stand::user,
    can: (1, 1472),
    gives: to(1, 1472),
    takes: to(1, 1472),
    in_flood: Flood::Loses(DROPS),
    out_flood: Flood::Loses(DROPS),
    goes: Goes::Never("its far side is the host"),
    dies: Dies::Lives,
    whole: Some(DATAGRAMS),
    clean: Some("its far side are sockets: every datagram is one"),
    counts: Counts::Apart("its frames are its own, and the guest's are for itself as well"),
    ..STREAM
};

const NO_ADDRESS: &str = "a connection that was handed over has no address to be dialled";
const ONCE: &str = "QEMU's connect= dials once";

/// The host side.
pub(crate) const NETDEVS: &[Row] = &[
    TAP,
    Row { form: "without header", options: ",vnet_hdr=off", ..TAP },
    Row { kind: "bridge", form: "", stand: stand::bridge, ..TAP },
    Row { kind: "af-xdp", form: "native", stand: stand::xdp, options: ",mode=native", ..TAP },
    Row { kind: "af-xdp", form: "skb", stand: stand::xdp, options: ",mode=skb", ..TAP },
    Row { form: "unix server", ..STREAM },
    Row { form: "unix client", stand: stand::unix_client, ..STREAM },
    Row { form: "tcp server", stand: stand::tcp_server, ..STREAM },
    Row { form: "tcp client", stand: stand::tcp_client, ..STREAM },
    Row { form: "u16be server", options: ",framing=u16be", ..SHORT },
    Row { form: "u16le client", stand: stand::unix_client, options: ",framing=u16le", ..SHORT },
    Row { form: "vnet client", stand: stand::unix_client, options: ",framing=vnet", ..STREAM },
    Row { form: "seqpacket client", stand: stand::packets_client, ..MESSAGES },
    Row { form: "unix", stand: stand::unix_datagrams, ..DGRAM },
    Row { form: "udp", stand: stand::udp, ..INET },
    Row { form: "multicast", stand: stand::multicast, ..GROUP },
    Row { kind: "socket", form: "listen=", stand: stand::tcp_server, options: "socket", ..STREAM },
    Row {
        kind: "socket",
        form: "connect=",
        stand: stand::tcp_client,
        options: "socket",
        goes: Goes::Never(ONCE),
        dies: Dies::Ends(ONCE),
        whole: Some(ONCE),
        clean: Some(ONCE),
        ..STREAM
    },
    Row { kind: "socket", form: "mcast=", stand: stand::multicast, options: "socket", ..GROUP },
    Row { kind: "socket", form: "udp=", stand: stand::udp, options: "socket", ..INET },
    Row {
        kind: "socket",
        form: "fd= of a stream",
        stand: stand::inherited,
        options: "stream",
        goes: Goes::Never(NO_ADDRESS),
        dies: Dies::Ends(NO_ADDRESS),
        whole: Some(NO_ADDRESS),
        clean: Some(NO_ADDRESS),
        ..STREAM
    },
    Row {
        kind: "socket",
        form: "fd= of datagrams",
        stand: stand::inherited,
        options: "datagrams",
        goes: Goes::Never(NO_ADDRESS),
        ..DGRAM
    },
    Row {
        kind: "l2tpv3",
        form: "udp",
        stand: stand::udp,
        options: "l2tpv3",
        can: (1, TUNNEL),
        gives: to(1, TUNNEL),
        takes: to(1, TUNNEL),
        ..INET
    },
    Row {
        kind: "l2tpv3",
        form: "ip",
        stand: stand::tunnel,
        can: (1, RAW_TUNNEL),
        gives: to(1, RAW_TUNNEL),
        takes: to(1, RAW_TUNNEL),
        ..INET
    },
    Row {
        kind: "vde",
        form: "client",
        stand: stand::vde,
        takes: to(1, 1518),
        goes: Goes::Down(None),
        ..DGRAM
    },
    Row {
        kind: "vde",
        form: "server=on",
        stand: stand::vde_switch,
        can: (1, MOST + 1),
        takes: to(14, 1518),
        goes: Goes::Counts,
        dies: Dies::Lives,
        whole: Some(DATAGRAMS),
        ..HUB
    },
    HUB,
    GUEST,
    USER,
];

/// The most of a UDP datagram over IPv6, of a tunnel in one, and of a tunnel without UDP.
const UDP6: usize = 65527;
const TUNNEL6: usize = UDP6 - 16;
const RAW_TUNNEL6: usize = UDP6 + 8 - 12;

const ABSTRACT: &str = ",addr.abstract=on";

/// The host side by other kinds of address: what a port does with a device does not depend on them, so that they are
/// shown with one device of each kind.
pub(crate) const ADDRESSES: &[Row] = &[
    Row { form: "tcp6 server", stand: stand::tcp_server, options: "v6", ..STREAM },
    Row { form: "tcp6 client", stand: stand::tcp_client, options: "v6", ..STREAM },
    Row { form: "abstract server", options: ABSTRACT, ..STREAM },
    Row { form: "abstract client", stand: stand::unix_client, options: ABSTRACT, ..STREAM },
    Row { form: "abstract", stand: stand::unix_datagrams, options: ABSTRACT, ..DGRAM },
    Row {
        form: "udp6",
        stand: stand::udp,
        options: "v6",
        can: (1, UDP6),
        gives: to(1, UDP6),
        takes: to(1, UDP6),
        ..INET
    },
    Row {
        kind: "l2tpv3",
        form: "udp6",
        stand: stand::udp,
        options: "l2tpv3 v6",
        can: (1, TUNNEL6),
        gives: to(1, TUNNEL6),
        takes: to(1, TUNNEL6),
        ..INET
    },
    Row {
        kind: "l2tpv3",
        form: "ip6",
        stand: stand::tunnel,
        options: "v6",
        can: (1, RAW_TUNNEL6),
        gives: to(1, RAW_TUNNEL6),
        takes: to(1, RAW_TUNNEL6),
        ..INET
    },
];

/// The VM's side.
pub(crate) const DEVICES: &[Row] = &[
    GUEST,
    Row { form: "packed", options: "packed", ..GUEST },
    Row { form: "unix server", ..STREAM },
    Row { form: "unix client", stand: stand::unix_client, ..STREAM },
    Row { form: "u16le", options: ",framing=u16le", ..SHORT },
    Row { form: "u16be client", stand: stand::unix_client, options: ",framing=u16be", ..SHORT },
    Row { form: "seqpacket", stand: stand::packets_server, ..MESSAGES },
    Row { form: "vnet", options: ",framing=vnet", ..STREAM },
    Row { form: "visitors", stand: stand::visitors, goes: Goes::Down(None), is_waited_for: true, ..DGRAM },
    Row { form: "unix", stand: stand::unix_datagrams, ..DGRAM },
    Row { form: "udp", stand: stand::udp, ..INET },
];

/// Kinds that no VMM attaches to, and why. (A device is a port like any other; their contract is kept as a netdev.)
pub(crate) const NO_DEVICES: &[(&str, &str)] = &[
    ("user", "it is a network, and refused as a device"),
    ("tap", "a VMM that takes a tap takes it from `netreeve grant` or `attach`"),
    ("bridge", "likewise"),
    ("af-xdp", "likewise"),
    ("socket", "the older words for stream and dgram"),
    ("l2tpv3", "no VMM attaches that way"),
    ("vde", "a VMM with VDE plugs into server=on, which is a netdev"),
    ("hubport", "a device in a hub is the device and a netdev that is its place"),
];
