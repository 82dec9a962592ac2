//! What is measured: a path, a way through it, and who does it.

use super::xdp::Mode;

/// The netdev on the far side of the guest's vhost-user device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// AF_XDP on one end of a veth pair.
    Xdp(Mode),
    /// A tap.
    Tap,
    /// A second guest's vhost-user device.
    Vhost,
}

/// Which way frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the guest to the netdev (and on into the host's stack, where they die).
    Out,
    /// From the netdev to the guest.
    In,
    /// From the netdev to the guest, which sends them back (a raw loop: layer-2 forwarding on one socket).
    Both,
}

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// The smallest loop on the kernel's interface, no guest: the raw limit.
    Raw,
    /// The same by xsk-rs (libxdp), in a process of its own: says that our raw limit is one.
    XskRs,
    /// dpdk-testpmd, forwarding between net_vhost and the matching driver.
    Dpdk,
    /// netreeve, sandbox on.
    Netreeve,
    /// netreeve with its busy-poll window open.
    Busy,
}

impl Who {
    /// For tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw loop",
            Self::XskRs => "xsk-rs loop",
            Self::Dpdk => "DPDK testpmd",
            Self::Netreeve => "netreeve",
            Self::Busy => "netreeve, busy-poll",
        }
    }
}

/// One row of the table: the same work, done by several.
#[derive(Clone, Debug)]
pub struct Case {
    /// The path.
    pub path: Path,
    /// The way.
    pub way: Way,
    /// In the order of measuring.
    pub who: Vec<Who>,
}

impl Case {
    /// For tables.
    #[must_use]
    pub fn name(&self) -> String {
        let far = match self.path {
            Path::Xdp(mode) => format!("af-xdp, veth {}", mode.name()),
            Path::Tap => "tap".to_owned(),
            Path::Vhost => return "vhost-user → vhost-user".to_owned(),
        };
        match self.way {
            Way::Out => format!("vhost-user → {far}"),
            Way::In => format!("{far} → vhost-user"),
            Way::Both => format!("{far} ⇄ vhost-user (reflected)"),
        }
    }

    /// All that the benches measure.
    #[must_use]
    pub fn all() -> Vec<Self> {
        use Who::{Busy, Dpdk, Netreeve, Raw, XskRs};
        let mut all = Vec::new();
        for (path, who) in [
            (Path::Xdp(Mode::Native), vec![Raw, XskRs, Dpdk, Netreeve, Busy]),
            // DPDK's net_af_xdp has no option for skb mode.
            (Path::Xdp(Mode::Skb), vec![Raw, XskRs, Netreeve, Busy]),
        ] {
            all.extend([Way::Out, Way::In, Way::Both].map(|way| Self { path, way, who: who.clone() }));
        }
        let tap = vec![Raw, Dpdk, Netreeve, Busy];
        all.extend([Way::Out, Way::In].map(|way| Self { path: Path::Tap, way, who: tap.clone() }));
        all.push(Self { path: Path::Vhost, way: Way::Out, who: vec![Dpdk, Netreeve, Busy] });
        all
    }
}
