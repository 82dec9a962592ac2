//! What is measured with frames: a path, a way through it, a size, a form of ring; and who may do it.

use super::xdp::Mode;

/// What lies on the far side of the guest's vhost-user device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// AF_XDP on one end of a veth pair.
    Xdp(Mode),
    /// A tap.
    Tap,
    /// A second guest's vhost-user device.
    Vhost,
    /// Nothing: the device itself drops what the guest sends and makes what it receives.
    Nothing,
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

/// The form of the guests' rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Three tables, virtio 1.0.
    Split,
    /// One table, virtio 1.1.
    Packed,
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
    /// The kernel's veth pair between two namespaces, with nobody in the middle.
    Veth,
    /// QEMU's own netdev in the same guest.
    Qemu,
    /// `vde_switch`.
    VdeSwitch,
    /// passt, which serves one VM without privilege.
    Passt,
    /// pasta, which is passt for a namespace.
    Pasta,
    /// slirp4netns, which is libslirp for a namespace.
    Slirp4netns,
    /// What QEMU's netdev `user` adds to a QEMU.
    QemuUser,
    /// netreeve, sandbox off.
    Open,
    /// netreeve, for one VM where the row is about many.
    One,
    /// netreeve, one process for sixteen VMs (it takes 32 ports) where the row is about one process each.
    Shared,
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
            Self::Veth => "veth alone",
            Self::Qemu => "QEMU's own netdev",
            Self::VdeSwitch => "vde_switch",
            Self::Passt => "passt",
            Self::Pasta => "pasta",
            Self::Slirp4netns => "slirp4netns",
            Self::QemuUser => "QEMU user",
            Self::Open => "netreeve, sandbox off",
            Self::One => "netreeve, one VM",
            Self::Shared => "netreeve, one process for 16 VMs",
            Self::Netreeve => "netreeve",
            Self::Busy => "netreeve, busy-poll",
        }
    }

    /// Measured to be compared with others, not to be one of them.
    #[must_use]
    pub fn is_ours(self) -> bool {
        matches!(self, Self::Netreeve | Self::Busy | Self::Shared)
    }
}

/// A stream of frames of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// The path.
    pub path: Path,
    /// The way.
    pub way: Way,
    /// Bytes of a frame, Ethernet header included.
    pub size: usize,
    /// The guests' rings.
    pub form: Form,
}

impl Case {
    /// For tables.
    #[must_use]
    pub fn name(&self) -> String {
        let form = if self.form == Form::Packed { ", packed rings" } else { "" };
        let far = match self.path {
            Path::Xdp(mode) => format!("af-xdp {}", mode.name()),
            Path::Tap => "tap".to_owned(),
            Path::Vhost => "vhost-user".to_owned(),
            Path::Nothing => "the device alone".to_owned(),
        };
        let road = match self.way {
            Way::Out => format!("vhost-user → {far}"),
            Way::In => format!("{far} → vhost-user"),
            Way::Both => format!("{far} ⇄ vhost-user, reflected"),
        };
        format!("{road}, {} B{form}", self.size)
    }

    /// Who makes the frames and who takes them.
    #[must_use]
    pub fn load(&self) -> &'static str {
        match (self.path, self.way) {
            (Path::Vhost, _) => {
                "our virtio driver, polling → our virtio driver, polling; every frame's head and length compared"
            }
            (Path::Nothing, Way::Out) => {
                "our virtio driver, polling → dropped by the device (testpmd: rxonly; netreeve: its vhost-user port \
                 without a wire)"
            }
            (Path::Nothing, _) => {
                "made by the device (testpmd: txonly; netreeve: its vhost-user port without a wire) → our virtio \
                 driver, polling"
            }
            (_, Way::Out) => {
                "our virtio driver, polling (raw loops: themselves) → the far interface's counter, then dropped by the \
                 stack"
            }
            (Path::Tap, _) => {
                "XDP_REDIRECT of live frames, in the kernel (testpmd: our packet socket) → our virtio driver, asleep \
                 between quarter rings (raw loop: itself)"
            }
            (_, Way::In) => {
                "XDP_REDIRECT of live frames, in the kernel → our virtio driver, asleep between quarter rings (raw \
                 loops: themselves)"
            }
            (_, Way::Both) => {
                "XDP_REDIRECT of live frames, in the kernel → our virtio driver, which sends them back → the far \
                 interface's counter"
            }
        }
    }
}
