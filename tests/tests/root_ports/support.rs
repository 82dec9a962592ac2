//! Ports from the helper, lanes that run, and the far side of a device.

use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netreeve_dataplane::frame::{Batch, Frame};
use netreeve_dataplane::lane::{Lane, Outcome, Side};
use netreeve_dataplane::mem::{Buf, Pool};
use netreeve_dataplane::port::{Port, Queues, tap, xsk};
use netreeve_dataplane::stats::Stats;
use netreeve_helper::provide::{Provider, Quota};
use netreeve_shared::grant::{Grant, TapGrant, XskGrant};
use netreeve_shared::ifname::IfName;
use netreeve_shared::request::{Request, Steer, TapRequest, XdpMode, XskRequest};
use netreeve_tests::netns::Netns;
use netreeve_tests::peers::{iperf_server, parse_iperf};
use netreeve_tests::sys::packet_socket;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

pub(crate) const UID: u32 = 4243;
pub(crate) const LIMITS: Quota = Quota { sessions: 1, requests: 1, taps: 16, umem: 1 << 30 };

/// IEEE's EtherType for local experiments: no stack answers to it.
pub(crate) const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

pub(crate) fn name(text: &str) -> IfName {
    IfName::new(text).unwrap()
}

/// A tap of this name in `ns`, up.
pub(crate) fn tap_grant(ns: &Netns, link: &str, queues: u16, vnet_header: bool) -> (TapGrant, Vec<OwnedFd>) {
    let asked =
        TapRequest { name: Some(name(link)), persist: false, queues, vnet_header, mtu: None, bridge: None };
    let made = ns.enter(|| Provider::default().provide(&Request::Tap(asked), UID, &LIMITS)).unwrap().unwrap();
    let Grant::Tap(grant) = made.0 else { panic!("{:?}", made.0) };
    (grant, made.1)
}

pub(crate) fn tap_port(ns: &Netns, link: &str, vnet_header: bool) -> Box<dyn Port> {
    let (grant, fds) = tap_grant(ns, link, 1, vnet_header);
    let plan = tap::Plan { queues: 1, vnet_header: grant.vnet_header, mtu: grant.mtu };
    one(tap::open(&plan, fds).unwrap())
}

pub(crate) fn one(mut queues: Queues) -> Box<dyn Port> {
    assert_eq!(queues.len(), 1);
    queues.pop().unwrap()
}

/// AF_XDP on one queue of `link`, live; the session and the link's descriptor come along, to be kept.
pub(crate) struct Xdp {
    pub(crate) plan: xsk::Plan,
    pub(crate) fds: Vec<OwnedFd>,
    _session: Provider,
    _link: Vec<OwnedFd>,
}

impl Xdp {
    /// Opens the port (which fills the rings), then lets the frames come.
    pub(crate) fn make(ns: &Netns, link: &str, mode: XdpMode, ring: u32) -> (Self, Box<dyn Port>) {
        let asked = XskRequest {
            interface: name(link),
            mode: Some(mode),
            queues: 1,
            start_queue: 0,
            force_copy: false,
            ring,
            chunk: 2048,
            chunks: ring * 2,
            steer: Steer::All,
        };
        let mut session = Provider::default();
        let made = ns.enter(|| session.provide(&Request::Xsk(asked), UID, &LIMITS)).unwrap().unwrap();
        let Grant::Xsk(grant) = made.0 else { panic!("{:?}", made.0) };
        let plan = plan(&grant);
        let port = one(xsk::open(&plan, copies(&made.1)).unwrap());
        let live =
            ns.enter(|| session.provide(&Request::Activate(grant.ticket), UID, &LIMITS)).unwrap().unwrap();
        (Self { plan, fds: made.1, _session: session, _link: live.1 }, port)
    }

    /// A port over the same descriptors, as a dataplane's successor opens it.
    pub(crate) fn resume(&self) -> Box<dyn Port> {
        one(xsk::open(&xsk::Plan { resume: true, ..self.plan.clone() }, copies(&self.fds)).unwrap())
    }
}

fn plan(g: &XskGrant) -> xsk::Plan {
    xsk::Plan {
        queues: g.queues,
        mtu: g.mtu,
        ring: g.ring,
        chunk: g.chunk,
        chunks: g.chunks,
        headroom: g.headroom,
        multi_buffer: g.multi_buffer,
        resume: false,
        late: false,
    }
}

pub(crate) fn copies(fds: &[OwnedFd]) -> Vec<OwnedFd> {
    fds.iter().map(|f| f.try_clone().unwrap()).collect()
}

/// A lane that runs on a thread of its own until dropped.
pub(crate) struct Running {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<(Stats, Stats)>>,
}

pub(crate) fn run(netdev: Box<dyn Port>, device: Box<dyn Port>) -> Running {
    let stop = Arc::new(AtomicBool::new(false));
    let mut lane = Lane::new(netdev, device, None).unwrap();
    let seen = Arc::clone(&stop);
    let thread = std::thread::spawn(move || {
        while !seen.load(Ordering::Relaxed) {
            let mut idle = true;
            for side in [Side::Netdev, Side::Device] {
                match lane.turn(side) {
                    Outcome::Dead(side, e) => panic!("{side:?} died: {e}"),
                    Outcome::Dry | Outcome::Full => {}
                    _ => idle = false,
                }
            }
            if idle {
                std::thread::sleep(Duration::from_micros(30));
            }
        }
        (lane.stats(Side::Netdev), lane.stats(Side::Device))
    });
    Running { stop, thread: Some(thread) }
}

impl Running {
    /// Ends it; counters of the netdev and the device.
    pub(crate) fn end(mut self) -> (Stats, Stats) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// TCP from `from` to a server in `to`, in bit/s.
pub(crate) fn iperf(from: &Netns, to: &Netns, address: &str, more: &str) -> f64 {
    let _server = iperf_server(to, 5201).unwrap();
    let mut client = Command::new("iperf3");
    client.args(["-J", "-t", "1", "-c", address]).args(more.split_whitespace());
    parse_iperf(&from.run("iperf3", client, Duration::from_secs(20)).unwrap().text).unwrap()
}

/// Frames in and out of a port without a lane.
pub(crate) struct Hands {
    pub(crate) batch: Batch,
    pool: Pool,
    mem: Buf,
}

impl Hands {
    pub(crate) fn new() -> Self {
        Self { batch: Batch::new(), pool: Pool::new(Pool::BYTES).unwrap(), mem: Buf::new(1 << 20).unwrap() }
    }

    /// Receives what is there, without releasing it.
    pub(crate) fn recv(&mut self, p: &mut dyn Port) -> Vec<Vec<u8>> {
        self.batch.clear();
        if p.traits().needs_memory {
            self.pool.lend(&mut self.batch.landing);
        }
        p.recv(&mut self.batch).unwrap();
        self.batch.frames().iter().map(|f| bytes(&self.batch, f)).collect()
    }

    /// Receives until a frame of our EtherType comes, or for a second.
    pub(crate) fn recv_ours(&mut self, p: &mut dyn Port) -> Vec<Vec<u8>> {
        let until = Instant::now() + Duration::from_secs(1);
        loop {
            let mut got = self.recv(p);
            p.release(&self.batch, got.len());
            got.retain(|f| f.get(12..14) == Some(&ETHERTYPE[..]));
            if !got.is_empty() || Instant::now() > until {
                return got;
            }
        }
    }

    /// A batch of these frames, in two pieces each.
    pub(crate) fn fill(&mut self, frames: &[Vec<u8>]) -> &mut Batch {
        self.batch.clear();
        let mut at = 0;
        for bytes in frames {
            let len = bytes.len() as u32;
            let seg = self.mem.seg(at, len);
            assert_eq!(seg.copy_in(bytes), bytes.len());
            at += len;
            let f = self.batch.push().unwrap();
            f.len = len;
            let n = f.head_from(&seg);
            let body = seg.skip(n);
            self.batch.push_seg(body.take(body.len() / 2));
            self.batch.push_seg(body.skip(body.len() / 2));
        }
        &mut self.batch
    }
}

pub(crate) fn bytes(b: &Batch, f: &Frame) -> Vec<u8> {
    let mut v = f.head().to_vec();
    for s in b.body(f) {
        let at = v.len();
        v.resize(at + s.len() as usize, 0);
        s.copy_out(&mut v[at..]);
    }
    assert_eq!(v.len(), f.len as usize);
    v
}

/// A frame of our EtherType with a number in it.
pub(crate) fn frame(number: u32, len: usize) -> Vec<u8> {
    let mut f = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 0x77], &ETHERTYPE, &number.to_be_bytes()].concat();
    f.extend((f.len()..len).map(|i| (i as u32).wrapping_add(number).to_le_bytes()[0]));
    f
}

pub(crate) fn number(frame: &[u8]) -> u32 {
    u32::from_be_bytes(frame[14..18].try_into().unwrap())
}

/// Packet sockets on an interface.
pub(crate) struct Far {
    tx: OwnedFd,
    rx: OwnedFd,
}

impl Far {
    pub(crate) fn new(ns: &Netns, link: &str) -> Self {
        ns.enter(|| {
            let index = nix::net::if_::if_nametoindex(link).unwrap();
            let rx =
                socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll);
            let rx = rx.unwrap();
            setsockopt(&rx, sockopt::ReceiveTimeout, &TimeVal::new(0, 20_000)).unwrap();
            setsockopt(&rx, sockopt::RcvBufForce, &(64 << 20)).unwrap();
            Self { tx: packet_socket(index).unwrap(), rx }
        })
        .unwrap()
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        assert_eq!(send(self.tx.as_raw_fd(), frame, MsgFlags::empty()).unwrap(), frame.len());
    }

    /// The next frame of our EtherType that we did not send, which has to come.
    pub(crate) fn next(&self) -> Vec<u8> {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(f) = self.receive() {
                return f;
            }
            assert!(Instant::now() < until, "nothing comes");
        }
    }

    /// The next frame of our EtherType that we did not send; `None` if there is none for a little while.
    pub(crate) fn receive(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 70_000];
        while let Ok(n) = recv(self.rx.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            let f = &buffer[..n];
            // The echo swaps the addresses, so our own frames, which a packet socket sees as well, are known.
            if f.get(12..14) == Some(&ETHERTYPE[..]) && f[..6] != [0xff; 6] {
                return Some(f.to_vec());
            }
        }
        None
    }
}
