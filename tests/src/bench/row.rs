//! The rows of the benches: the work, who does it, the figures that come of it, the goals set for them.

use super::case::{Case, Form, Path, Way, Who};
use super::datagram::DatagramCase;
use super::forward::{ForwardCase, Kind};
use super::tcp::{Guest, TcpCase};
use super::user::{Attach, Look, UserCase};
use super::xdp::Mode;

/// What a figure counts, and which way is better.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// What it is, in a word or two; empty where the row's name says it.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// More is better.
    pub more: bool,
    /// What is wanted of netreeve.
    pub goals: &'static [Goal],
}

/// What is wanted of a figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// So many times as good as this one.
    Times(Who, f64),
    /// At most so much more than this one, in the figure's unit.
    Above(Who, f64),
    /// At most so much.
    AtMost(f64),
    /// At least so much.
    AtLeast(f64),
}

/// One measured figure.
#[derive(Clone, Copy, Debug, Default)]
pub struct Value {
    /// In the figure's unit.
    pub value: f64,
    /// CPU time in nanoseconds for one frame of who is measured.
    pub ns_frame: Option<f64>,
    /// CPU time in seconds for one GiB of frames.
    pub s_gib: Option<f64>,
    /// Share of its processor that who is measured had.
    pub share: Option<f64>,
    /// The load could not offer more: the figure is the load's limit.
    pub load_bound: bool,
}

/// The work of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A stream of frames.
    Frames(Case),
    /// Frames from one datagram port to another.
    Datagrams(DatagramCase),
    /// Frames from one socket-shaped port to others.
    Forward(ForwardCase),
    /// TCP between a guest and a namespace, or a second guest.
    Tcp(TcpCase),
    /// A guest on a network made of sockets.
    User(UserCase),
    /// Round trips of one byte.
    Trip(Path),
    /// A VM that does nothing.
    Idle(Path),
    /// Many VMs at once.
    Scale,
}

/// One row.
#[derive(Clone, Debug)]
pub struct Row {
    /// The work.
    pub work: Work,
    /// In the order of measuring.
    pub who: Vec<Who>,
    /// The figures of one sample, in this order.
    pub figures: &'static [Figure],
    /// Part of the short run.
    pub quick: bool,
}

/// VMs in the rows about many.
pub const MANY: usize = 64;

const fn rate(goals: &'static [Goal]) -> Figure {
    Figure { name: "", unit: "Mpps", more: true, goals }
}

const fn less(name: &'static str, unit: &'static str, goals: &'static [Goal]) -> Figure {
    Figure { name, unit, more: false, goals }
}

const fn gbit(name: &'static str, goals: &'static [Goal]) -> Figure {
    Figure { name, unit: "Gbit/s", more: true, goals }
}

/// The sandbox may cost one part in a hundred.
const FREE: Goal = Goal::Times(Who::Open, 0.99);

const XDP: &[Figure] = &[rate(&[Goal::Times(Who::Dpdk, 1.2), Goal::Times(Who::Raw, 0.95), FREE])];
const TAP: &[Figure] = &[rate(&[Goal::Times(Who::Dpdk, 1.5), Goal::Times(Who::Raw, 0.95), FREE])];
const SPLIT: &[Figure] = &[rate(&[Goal::Times(Who::Dpdk, 1.15), FREE])];
const PACKED: &[Figure] = &[rate(&[Goal::Times(Who::Dpdk, 1.0), FREE])];
const DGRAM_SMALL: &[Figure] = &[rate(&[Goal::Times(Who::Qemu, 3.0), FREE])];
const DGRAM_LARGE: &[Figure] = &[rate(&[Goal::Times(Who::Qemu, 2.0), FREE])];
const SOCKET_SMALL: &[Figure] = &[rate(&[Goal::Times(Who::Qemu, 3.0)])];
const SOCKET_LARGE: &[Figure] = &[rate(&[Goal::Times(Who::Qemu, 2.0)])];
const SWITCH_SMALL: &[Figure] = &[rate(&[Goal::Times(Who::VdeSwitch, 3.0)])];
const SWITCH_LARGE: &[Figure] = &[rate(&[Goal::Times(Who::VdeSwitch, 2.0)])];
const TCP_TAP: [Goal; 3] = [Goal::Times(Who::Qemu, 2.0), Goal::Times(Who::Veth, 0.8), FREE];
const TCP_XDP: [Goal; 3] = [Goal::Times(Who::Qemu, 2.0), Goal::Times(Who::Veth, 0.5), FREE];
const OVER_TAP: &[Figure] = &[gbit("from the guest", &TCP_TAP), gbit("to the guest", &TCP_TAP)];
const OVER_XDP: &[Figure] = &[gbit("from the guest", &TCP_XDP), gbit("to the guest", &TCP_XDP)];
const BETWEEN: &[Figure] = &[gbit("from the guest", &[]), gbit("to the guest", &[])];
const TRIP: &[Figure] =
    &[less("median", "µs", &[Goal::Above(Who::Veth, 25.0)]), less("99th of a hundred", "µs", &[])];
const IDLE: &[Figure] = &[
    less("memory but what is shared with guest and kernel", "MiB", &[Goal::AtMost(4.0)]),
    less("all memory", "MiB", &[]),
    less("wake-ups", "1/s", &[]),
];
/// Beside the best of the others, which is beside each of them.
const USER_DEVICE: [Goal; 4] = [
    Goal::Times(Who::Pasta, 8.0),
    Goal::Times(Who::Slirp4netns, 8.0),
    Goal::Times(Who::QemuUser, 8.0),
    Goal::Times(Who::Veth, 0.7),
];
const USER_STREAM: [Goal; 3] =
    [Goal::Times(Who::Passt, 1.5), Goal::Times(Who::Slirp4netns, 1.5), Goal::Times(Who::QemuUser, 1.5)];
const USER_RATE: &[Figure] = &[gbit("from the guest", &USER_DEVICE), gbit("to the guest", &USER_DEVICE)];
const DRIVEN: [Goal; 1] = [Goal::Times(Who::Veth, 0.7)];
const USER_DRIVEN: &[Figure] = &[gbit("from the guest", &DRIVEN), gbit("to the guest", &DRIVEN)];
const USER_SLOW: &[Figure] = &[gbit("from the guest", &USER_STREAM), gbit("to the guest", &USER_STREAM)];
const USER_NARROW: &[Figure] = &[
    gbit("from the guest", &[Goal::AtLeast(0.9)]),
    gbit("to the guest", &[Goal::AtLeast(0.9)]),
    less("sent again by the guest", "segments", &[Goal::AtMost(0.0)]),
];
const USER_TRIPS: &[Figure] = &[
    less("there and back, median", "µs", &[Goal::Above(Who::Veth, 20.0)]),
    less("there and back, 99th of a hundred", "µs", &[]),
    less("connect, there and back, close, median", "µs", &[Goal::Above(Who::Veth, 20.0)]),
    less("connect, there and back, close, 99th of a hundred", "µs", &[]),
];
/// 10 MB in MiB.
const TEN_MB: Goal = Goal::AtMost(9.54);
const USER_MEMORY: &[Figure] = &[
    less("idle, resident but for the guest's", "MiB", &[TEN_MB]),
    less("idle, the same but its part of what is shared", "MiB", &[]),
    less("idle, wake-ups", "1/s", &[]),
    less("with 1000 connections, resident but for the guest's", "MiB", &[]),
];
const SCALE: &[Figure] = &[
    less("start to ready, median", "ms", &[]),
    less("start to ready, longest", "ms", &[]),
    less("memory of an idle VM but what is shared with it", "MiB", &[Goal::AtMost(4.0)]),
    less("wake-ups of all while idle", "1/s", &[]),
    Figure { name: "frames of all together, each VM pushing", unit: "Mpps", more: true, goals: &[] },
    Figure { name: "least to most served VM", unit: "of 1", more: true, goals: &[] },
];

impl Row {
    fn of(work: Work, who: &[Who], figures: &'static [Figure], quick: bool) -> Self {
        Self { work, who: who.to_vec(), figures, quick }
    }

    /// For tables, and what `--only` looks into.
    #[must_use]
    pub fn name(&self) -> String {
        match self.work {
            Work::Frames(c) => c.name(),
            Work::Datagrams(c) => c.name(),
            Work::Forward(c) => c.name(),
            Work::Tcp(c) => c.name(),
            Work::User(c) => c.name(),
            Work::Trip(p) => format!("round trip of 1 byte over {}", over(p)),
            Work::Idle(p) => format!("idle VM on {}", over(p)),
            Work::Scale => format!("{MANY} VMs on taps"),
        }
    }

    /// Generator and sink.
    #[must_use]
    pub fn load(&self) -> &'static str {
        match self.work {
            Work::Frames(c) => c.load(),
            Work::Datagrams(_) => {
                "our UDP socket → a UDP socket that nobody reads: the kernel's count of what it drops there"
            }
            Work::Forward(c) => c.load(),
            Work::Tcp(c) => c.load(),
            Work::User(c) => c.load(),
            Work::Trip(_) => {
                "our virtio driver, asleep until its interrupt (veth alone: a UDP socket, blocked) ⇄ our UDP echo on a \
                 kernel socket, on the measured processor"
            }
            Work::Idle(_) => {
                "our virtio driver connected, some frames sent before; nothing while it is watched"
            }
            Work::Scale => {
                "our virtio drivers, all polled in turn by one thread → the taps' counters, then dropped by the stack"
            }
        }
    }

    /// All rows.
    #[must_use]
    pub fn all() -> Vec<Self> {
        use Who::{Busy, Dpdk, Netreeve, Open, Qemu, Raw, XskRs};
        let frames = |path, way, size, form| Work::Frames(Case { path, way, size, form });
        let mut all = Vec::new();
        for (form, figures) in [(Form::Split, SPLIT), (Form::Packed, PACKED)] {
            for size in [64, 1500] {
                let who = [Dpdk, Netreeve, Open, Busy];
                all.push(Self::of(frames(Path::Vhost, Way::Out, size, form), &who, figures, size == 64));
            }
            for way in [Way::Out, Way::In] {
                let work = frames(Path::Nothing, way, 64, form);
                all.push(Self::of(work, &[Dpdk, Netreeve], figures, false));
            }
        }
        let ways = [Way::Out, Way::In, Way::Both];
        for way in ways {
            let who = [Raw, XskRs, Dpdk, Netreeve, Open, Busy];
            all.push(Self::of(frames(Path::Xdp(Mode::Native), way, 64, Form::Split), &who, XDP, true));
        }
        for way in ways {
            // DPDK's net_af_xdp has no option for skb mode.
            let who = [Raw, XskRs, Netreeve, Busy];
            all.push(Self::of(frames(Path::Xdp(Mode::Skb), way, 64, Form::Split), &who, XDP, false));
        }
        for way in [Way::Out, Way::In] {
            let who = [Raw, Dpdk, Netreeve, Open, Busy];
            all.push(Self::of(frames(Path::Tap, way, 64, Form::Split), &who, TAP, true));
        }
        all.extend(Self::streams());
        for (size, figures) in [(64, DGRAM_SMALL), (1500, DGRAM_LARGE)] {
            for cut in [false, true] {
                let work = Work::Datagrams(DatagramCase { size, cut });
                all.push(Self::of(work, &[Qemu, Netreeve, Open], figures, size == 64));
            }
        }
        all.extend(Self::sockets());
        all.extend(Self::users());
        all.extend(Self::small());
        all
    }

    /// Rows of one TCP stream.
    fn streams() -> Vec<Self> {
        use Who::{Netreeve, Open, Qemu, Raw, Veth};
        let native = Path::Xdp(Mode::Native);
        let of = |guest, path, offloads, who: &[Who], figures, quick| {
            Self::of(Work::Tcp(TcpCase { guest, path, offloads }), who, figures, quick)
        };
        let mut all = vec![
            of(Guest::Host, Path::Tap, true, &[Veth, Raw, Netreeve, Open], OVER_TAP, true),
            of(Guest::Host, Path::Tap, false, &[Raw, Netreeve], BETWEEN, false),
            of(Guest::Host, native, true, &[Veth, Netreeve], OVER_XDP, true),
            of(Guest::Host, native, false, &[Netreeve], BETWEEN, false),
            of(Guest::Qemu, Path::Tap, true, &[Qemu, Netreeve], OVER_TAP, true),
            of(Guest::Qemu, native, true, &[Qemu, Netreeve], OVER_XDP, false),
        ];
        for (path, offloads) in [
            (Path::Tap, true),
            (Path::Tap, false),
            (native, true),
            (native, false),
            (Path::Xdp(Mode::Skb), true),
            (Path::Vhost, true),
            (Path::Vhost, false),
        ] {
            // Nobody beside us: the guest itself is the limit.
            all.push(of(Guest::Uml, path, offloads, &[Netreeve], BETWEEN, false));
        }
        all
    }

    /// Rows of ports that are sockets, beside QEMU's netdevs of the same kind, or beside `vde_switch`.
    fn sockets() -> Vec<Self> {
        use Who::{Netreeve, Qemu, VdeSwitch};
        let mut all = Vec::new();
        for (kind, cut) in [
            (Kind::Stream, false),
            (Kind::Capture, false),
            (Kind::Unix, false),
            (Kind::L2tp, false),
            (Kind::L2tp, true),
            (Kind::Plug, false),
            (Kind::Switch, false),
            (Kind::Hub, false),
            (Kind::Hub, true),
        ] {
            let (beside, small, large) = match kind {
                Kind::Switch => (VdeSwitch, SWITCH_SMALL, SWITCH_LARGE),
                _ => (Qemu, SOCKET_SMALL, SOCKET_LARGE),
            };
            for (size, figures) in [(64, small), (1500, large)] {
                let work = Work::Forward(ForwardCase { kind, size, cut });
                all.push(Self::of(work, &[beside, Netreeve], figures, false));
            }
        }
        all
    }

    /// Rows of networks that are made of sockets.
    fn users() -> Vec<Self> {
        use Who::{Busy, Netreeve, Open, Passt, Pasta, QemuUser, Slirp4netns, Veth};
        let of = |look, attach, mtu, who: &[Who], figures, quick| {
            Self::of(Work::User(UserCase { look, attach, mtu }), who, figures, quick)
        };
        let (device, stream) = (Attach::Device, Attach::Stream);
        let all = [Veth, Pasta, Slirp4netns, QemuUser, Netreeve];
        let timed = [Veth, Pasta, Slirp4netns, QemuUser, Netreeve, Busy];
        let framed = [Veth, Passt, Slirp4netns, QemuUser, Netreeve];
        // QEMU's user network has an MTU of 1500 and no word for another.
        let (large, large_framed) =
            ([Veth, Pasta, Slirp4netns, Netreeve], [Veth, Passt, Slirp4netns, Netreeve]);
        vec![
            of(Look::Rate, device, 1500, &all, USER_RATE, true),
            of(Look::Rate, device, 65_520, &large, BETWEEN, false),
            of(Look::Rate, stream, 1500, &framed, USER_SLOW, false),
            of(Look::Rate, stream, 65_520, &large_framed, USER_SLOW, false),
            of(Look::Narrow, device, 1500, &all, USER_NARROW, false),
            of(Look::Driven, device, 1500, &[Veth, Netreeve, Open], USER_DRIVEN, false),
            of(Look::Trips, device, 1500, &timed, USER_TRIPS, true),
            of(Look::DrivenTrips, device, 1500, &[Veth, Netreeve, Busy], USER_TRIPS, false),
            of(Look::Memory, device, 1500, &[Pasta, Slirp4netns, QemuUser, Netreeve], USER_MEMORY, false),
        ]
    }

    /// Rows that are about time and memory.
    fn small() -> [Self; 5] {
        use Who::{Busy, Dpdk, Netreeve, One, Passt, QemuUser, Shared, Veth};
        let native = Path::Xdp(Mode::Native);
        [
            Self::of(Work::Trip(Path::Tap), &[Veth, Dpdk, Netreeve, Busy], TRIP, true),
            Self::of(Work::Trip(native), &[Veth, Dpdk, Netreeve, Busy], TRIP, true),
            Self::of(Work::Idle(Path::Tap), &[Passt, QemuUser, Netreeve], IDLE, true),
            Self::of(Work::Idle(native), &[Netreeve], IDLE, true),
            Self::of(Work::Scale, &[One, Netreeve, Shared], SCALE, false),
        ]
    }

    /// Rows for a short run, and in each only those who are needed for a ratio.
    pub fn shorten(rows: &mut Vec<Self>) {
        rows.retain(|r| r.quick);
        for r in rows {
            let trip = matches!(r.work, Work::Trip(_));
            let more = |w: &Who| matches!(w, Who::XskRs | Who::Busy | Who::Open) || (trip && *w == Who::Dpdk);
            r.who.retain(|w| !more(w));
        }
    }
}

/// A path's far side, for the rows that have no way through it.
fn over(path: Path) -> String {
    match path {
        Path::Xdp(mode) => format!("af-xdp {}", mode.name()),
        Path::Tap => "a tap".to_owned(),
        Path::Vhost => "a second vhost-user device".to_owned(),
        Path::Nothing => "nothing".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_row_has_a_name_of_its_own_and_somebody_to_compare() {
        let all = Row::all();
        let names: BTreeSet<String> = all.iter().map(Row::name).collect();
        assert_eq!(names.len(), all.len());
        for r in &all {
            assert!(r.who.contains(&Who::Netreeve), "{}: netreeve is not in it", r.name());
            assert!(!r.figures.is_empty() && !r.load().is_empty(), "{}", r.name());
        }
    }

    #[test]
    fn a_short_run_keeps_a_ratio_in_every_row_about_frames() {
        let mut rows = Row::all();
        Row::shorten(&mut rows);
        for r in rows.iter().filter(|r| matches!(r.work, Work::Frames(_))) {
            assert!(r.who.iter().any(|w| !w.is_ours()), "{} has nobody beside netreeve", r.name());
        }
    }
}
