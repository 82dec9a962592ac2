//! A VMM that says nothing of what its guest left undone (libkrun's way): the guest's kernel makes half checksums and
//! super-frames, which come bare by a stream or as datagrams and go to a tap, whose host takes whole, right frames only.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use netreeve_dataplane::port::dgram::{self, Sources};
use netreeve_dataplane::port::{Port, stream};
use netreeve_dataplane::stats::Reason;
use netreeve_tests::netns::Netns;
use netreeve_tests::sys::tap_with_header;
use netreeve_tests::transfer::Noise;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::support::*;

/// Bytes of a transfer: many super-frames.
const BYTES: usize = 4 << 20;
/// How long what comes on a busy machine may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of a tap's virtio-net header.
const HEADER: usize = 12;

/// The VMM's end of the wire.
enum Line {
    Stream(UnixStream),
    Datagrams(UnixDatagram),
}

impl Line {
    fn put(&mut self, frame: &[u8]) -> io::Result<()> {
        match self {
            Self::Stream(s) => s.write_all(&[&(frame.len() as u32).to_be_bytes(), frame].concat()),
            Self::Datagrams(d) => d.send(frame).map(|_| ()),
        }
    }

    fn get(&mut self) -> io::Result<Vec<u8>> {
        let mut frame = vec![0; 1 << 17];
        let n = match self {
            Self::Stream(s) => {
                let mut len = [0; 4];
                s.read_exact(&mut len)?;
                let n = u32::from_be_bytes(len) as usize;
                s.read_exact(&mut frame[..n])?;
                n
            }
            Self::Datagrams(d) => d.recv(&mut frame)?,
        };
        frame.truncate(n);
        Ok(frame)
    }
}

/// What the guest left undone, in frames.
#[derive(Default)]
struct Seen {
    halves: usize,
    supers: usize,
}

/// Carries frames between the guest's device and the line, bare.
fn vmm(device: OwnedFd, mut line: Line, stop: Arc<AtomicBool>) -> JoinHandle<Seen> {
    thread::spawn(move || {
        let (mut seen, mut frame) = (Seen::default(), vec![0; 1 << 17]);
        while !stop.load(Ordering::Relaxed) {
            let ends = {
                let far = match &line {
                    Line::Stream(s) => s.as_fd(),
                    Line::Datagrams(d) => d.as_fd(),
                };
                let mut fds = [device.as_fd(), far].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
                poll(&mut fds, PollTimeout::from(20_u8)).unwrap();
                fds.map(|p| p.any() == Some(true))
            };
            if ends[0]
                && let Ok(n) = nix::unistd::read(&device, &mut frame)
            {
                seen.halves += usize::from(frame[0] & 1);
                seen.supers += usize::from(n > HEADER + 1514);
                if line.put(&frame[HEADER..n]).is_err() {
                    break;
                }
            }
            if ends[1] {
                let Ok(got) = line.get() else { break };
                // A device whose link is not up yet refuses.
                let _refused = nix::unistd::write(&device, &[&[0; HEADER][..], &got].concat());
            }
        }
        seen
    })
}

/// The line, and our port at its other end.
fn wire(datagrams: bool, undone: Option<u16>) -> (Line, Box<dyn Port>) {
    if datagrams {
        let (theirs, ours) = UnixDatagram::pair().unwrap();
        let plan = dgram::Plan {
            sources: Sources::Any,
            l2tp: None,
            cut: false,
            waits: false,
            max_frame: 69632,
            undone,
        };
        return (Line::Datagrams(theirs), one(dgram::open(&plan, vec![ours.into()]).unwrap()));
    }
    let (theirs, ours) = UnixStream::pair().unwrap();
    let plan = stream::Plan { undone, ..stream::Plan::default() };
    (Line::Stream(theirs), one(stream::open(&plan, vec![ours.into()]).unwrap()))
}

/// A guest, its VMM, our lane and a host with a tap.
struct Stand {
    guest: Netns,
    host: Netns,
    stop: Arc<AtomicBool>,
    vmm: JoinHandle<Seen>,
    lane: Running,
}

fn stand(datagrams: bool, undone: Option<u16>, vnet_header: bool) -> Stand {
    let (guest, host) = (Netns::new("undone-guest").unwrap(), Netns::new("undone-host").unwrap());
    let device = guest.enter(|| tap_with_header("g0", true)).unwrap().unwrap();
    let (line, port) = wire(datagrams, undone);
    let lane = run(tap_port(&host, "t0", vnet_header), port);
    let stop = Arc::new(AtomicBool::new(false));
    let vmm = vmm(device, line, Arc::clone(&stop));
    for (ns, link, n) in [(&guest, "g0", 1), (&host, "t0", 2)] {
        ns.sh(&format!("ip addr add 10.9.0.{n}/24 dev {link}; ip addr add fd09::{n}/64 dev {link} nodad"))
            .unwrap();
        ns.sh(&format!("ip link set {link} up")).unwrap();
    }
    Stand { guest, host, stop, vmm, lane }
}

/// From the guest to the host by TCP, byte for byte.
fn send(s: &Stand, to: IpAddr, seed: u64) {
    let l = s.host.enter(|| TcpListener::bind((to, 0)).unwrap()).unwrap();
    let mut data = vec![0; BYTES];
    Noise::new(seed).fill(&mut data);
    let near: TcpStream = s
        .guest
        .enter(|| TcpStream::connect_timeout(&l.local_addr().unwrap(), Duration::from_secs(20)).unwrap())
        .unwrap();
    let (mut far, _) = l.accept().unwrap();
    far.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut got = vec![0; BYTES];
    thread::scope(|t| {
        t.spawn(|| (&near).write_all(&data).unwrap());
        far.read_exact(&mut got).unwrap();
    });
    assert!(got == data, "the bytes are others");
}

/// How many segments the host's TCP found broken.
fn broken(host: &Netns) -> u64 {
    let all = host.sh("cat /proc/net/snmp").unwrap();
    let mut lines = all.lines().filter(|l| l.starts_with("Tcp:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split_whitespace().position(|n| n == "InCsumErrors").unwrap();
    values.split_whitespace().nth(at).unwrap().parse().unwrap()
}

#[test]
fn what_a_guest_left_undone_comes_finished_to_a_host() {
    for (datagrams, vnet_header) in [(false, false), (false, true), (true, false), (true, true)] {
        let s = stand(datagrams, Some(1500), vnet_header);
        send(&s, "10.9.0.2".parse().unwrap(), 1);
        send(&s, "fd09::2".parse().unwrap(), 2);
        let far = s.host.enter(|| UdpSocket::bind("10.9.0.2:0").unwrap()).unwrap();
        far.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let to: SocketAddr = far.local_addr().unwrap();
        s.guest.enter(|| UdpSocket::bind("10.9.0.1:0").unwrap().send_to(b"half", to).unwrap()).unwrap();
        assert_eq!(far.recv(&mut [0; 9]).unwrap(), 4);
        assert_eq!(broken(&s.host), 0);
        let (tap, port) = s.lane.end();
        s.stop.store(true, Ordering::Relaxed);
        let seen = s.vmm.join().unwrap();
        assert!(seen.halves > 100 && seen.supers > 20, "{} and {}: nothing to do", seen.halves, seen.supers);
        assert_eq!(port.drops, [0; Reason::COUNT]);
        if !vnet_header {
            let least = (2 * BYTES / 1500) as u64;
            assert!(tap.tx_frames > least, "{} frames to a tap that takes no super-frames", tap.tx_frames);
        }
    }
}

#[test]
fn nobody_finishes_what_nobody_said() {
    let s = stand(true, None, true);
    let l = s.host.enter(|| TcpListener::bind("10.9.0.2:0").unwrap()).unwrap();
    let at = l.local_addr().unwrap();
    let until = Instant::now() + PATIENCE;
    while broken(&s.host) == 0 {
        assert!(Instant::now() < until, "the host's TCP finds nothing broken");
        let came = s.guest.enter(|| TcpStream::connect_timeout(&at, Duration::from_secs(1))).unwrap();
        assert!(
            came.is_err(),
            "the guest's kernel finishes its checksums itself: the other test proves nothing"
        );
    }
    s.lane.end();
    s.stop.store(true, Ordering::Relaxed);
    s.vmm.join().unwrap();
}
