use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use super::l2tp::{Carrier, Cookie, Counter};
use super::*;
use crate::frame::MAX_FRAME;
use crate::frame::{BATCH, Frame};
use crate::mem::Buf;
use crate::spec::dgram::Host;
use crate::supervise::datagram;

const PLAIN: Plan =
    Plan { sources: Sources::Any, l2tp: None, cut: false, waits: false, max_frame: MAX_FRAME, undone: None };

fn port(plan: &Plan, fds: Vec<OwnedFd>) -> Box<dyn Port> {
    open(plan, fds).unwrap().pop().unwrap()
}

fn unix() -> (Box<dyn Port>, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    nix::sys::socket::setsockopt(&ours, nix::sys::socket::sockopt::SndBuf, &(1 << 20)).unwrap();
    nix::sys::socket::setsockopt(&theirs, nix::sys::socket::sockopt::SndBuf, &(1 << 20)).unwrap();
    theirs.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    (port(&PLAIN, vec![ours.into()]), theirs)
}

fn host(s: &UdpSocket) -> Host {
    let at = s.local_addr().unwrap();
    Host { host: at.ip().to_string(), port: at.port(), ipv4: true, ipv6: true }
}

const ANY_PORT: fn() -> Host = || Host { host: "127.0.0.1".into(), port: 0, ipv4: true, ipv6: true };

/// A UDP port as the supervisor opens it, and its peer.
fn udp(strict: bool, l2tp: Option<Session>) -> (Box<dyn Port>, UdpSocket, SocketAddr) {
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let opened = datagram::udp("p", &ANY_PORT(), &host(&peer), strict, l2tp).unwrap();
    let at = UdpSocket::from(opened.sockets[0].try_clone().unwrap()).local_addr().unwrap();
    (port(&opened.plan, opened.sockets), peer, at)
}

fn pattern(len: usize, salt: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i * 7 + i / 251 + salt) % 256).unwrap()).collect()
}

fn bytes(b: &Batch, f: &Frame) -> Vec<u8> {
    let mut v = f.head().to_vec();
    for s in b.body(f) {
        let at = v.len();
        v.resize(at + s.len() as usize, 0);
        s.copy_out(&mut v[at..]);
    }
    assert_eq!(v.len(), f.len as usize);
    v
}

/// Puts frames into a batch, bodies in `mem` cut into two segments.
fn fill(b: &mut Batch, mem: &Buf, frames: &[Vec<u8>]) {
    b.clear();
    let mut at = 0;
    for bytes in frames {
        let len = u32::try_from(bytes.len()).unwrap();
        let seg = mem.seg(at, len);
        assert_eq!(seg.copy_in(bytes), bytes.len());
        at += len;
        let f = b.push().unwrap();
        f.len = len;
        let n = f.head_from(&seg);
        let body = seg.skip(n);
        b.push_seg(body.take(body.len() / 3));
        b.push_seg(body.skip(body.len() / 3));
    }
}

fn recv(p: &mut dyn Port, b: &mut Batch) -> Vec<Vec<u8>> {
    b.clear();
    p.recv(b).unwrap();
    b.frames().iter().map(|f| bytes(b, f)).collect()
}

/// Receives until `n` frames are here.
fn gather(p: &mut dyn Port, n: usize) -> Vec<Vec<u8>> {
    let (mut b, mut all) = (Batch::new(), Vec::new());
    for _ in 0..2000 {
        all.extend(recv(p, &mut b));
        if all.len() >= n {
            return all;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{} of {n} frames: {:?}", all.len(), p.stats());
}

fn drops(p: &dyn Port, why: Reason) -> u64 {
    p.stats().drops[why as usize]
}

/// The kernel makes descriptors that come along ours wherever there is room for their numbers.
#[test]
fn what_else_a_peer_sends_along_is_nobodys() {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::io::{IoSlice, Read};
    let waits = Plan::plugged(1518);
    for (later, plan) in [(false, &PLAIN), (true, &waits)] {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let mut p = if later {
            let mut p = port(plan, vec![]);
            p.connect(ours.into()).unwrap();
            p
        } else {
            port(plan, vec![ours.into()])
        };
        let (mut end, held) = std::io::pipe().unwrap();
        set_nonblocking(end.as_fd()).unwrap();
        let frame = pattern(60, 3);
        let rights = [held.as_raw_fd(); 20];
        let rights = [ControlMessage::ScmRights(&rights)];
        for _ in 0..3 {
            let part = [IoSlice::new(&frame)];
            sendmsg::<()>(theirs.as_raw_fd(), &part, &rights, MsgFlags::empty(), None).unwrap();
        }
        drop(held);
        let mut b = Batch::new();
        assert_eq!(recv(p.as_mut(), &mut b), vec![frame; 3]);
        assert_eq!(end.read(&mut [0; 1]).unwrap(), 0, "later: {later}: nobody has it any more");
    }
}

#[test]
fn sizes_both_ways_over_unix_sockets() {
    let (mut p, peer) = unix();
    let (mut b, mem) = (Batch::new(), Buf::new(1 << 17).unwrap());
    for len in [1, 10, 60, 1514, 65550, 69632] {
        let frame = pattern(len, 3);
        peer.send(&frame).unwrap();
        assert_eq!(recv(p.as_mut(), &mut b), std::slice::from_ref(&frame));
        fill(&mut b, &mem, std::slice::from_ref(&frame));
        assert_eq!(p.send(&b).unwrap(), 1);
        let mut raw = vec![0; 70_000];
        let n = peer.recv(&mut raw).unwrap();
        assert_eq!(raw[..n], frame);
    }
    peer.send(&vec![1; 69_633]).unwrap();
    peer.send(&vec![1; 80_000]).unwrap();
    peer.send(b"").unwrap();
    peer.send(b"good").unwrap();
    assert_eq!(gather(p.as_mut(), 1), [b"good"]);
    assert_eq!((drops(p.as_ref(), Reason::Oversize), drops(p.as_ref(), Reason::Runt)), (2, 1));
    assert_eq!((p.stats().rx_frames, p.stats().tx_frames), (7, 6));
}

#[test]
fn mixed_lengths_go_over_udp_in_order_one_datagram_each() {
    let (mut p, peer, at) = udp(false, None);
    let (mut b, mem) = (Batch::new(), Buf::new(1 << 20).unwrap());
    let lens = [60, 60, 60, 10, 60, 1514, 1514, 1, 1514, 9000, 9000, 9000, 65507, 64, 64];
    let frames: Vec<Vec<u8>> = lens.iter().enumerate().map(|(i, n)| pattern(*n, i)).collect();
    fill(&mut b, &mem, &frames);
    b.frames_mut()[1].dropped = true;
    assert_eq!(p.send(&b).unwrap(), lens.len());
    let mut raw = vec![0; 70_000];
    for (i, f) in frames.iter().enumerate().filter(|(i, _)| *i != 1) {
        let n = peer.recv(&mut raw).unwrap();
        assert!(raw[..n] == *f, "frame {i} of {} bytes came with {n}", f.len());
    }
    assert_eq!(p.stats().tx_frames, 14);
    fill(&mut b, &mem, &[pattern(65508, 1), pattern(30, 2)]);
    assert_eq!(p.send(&b).unwrap(), 2);
    assert_eq!(drops(p.as_ref(), Reason::Oversize), 1);
    assert_eq!(peer.recv(&mut raw).unwrap(), 30);
    for f in &frames {
        peer.send_to(f, at).unwrap();
    }
    assert_eq!(gather(p.as_mut(), frames.len()), frames);
}

#[test]
fn what_the_kernel_joined_is_taken_apart_over_several_turns() {
    let (mut p, peer, at) = udp(true, None);
    peer.connect(at).unwrap();
    let mut q = port(&Plan { cut: true, ..PLAIN }, vec![peer.try_clone().unwrap().into()]);
    let (mut b, mem) = (Batch::new(), Buf::new(1 << 20).unwrap());
    let mut want = Vec::new();
    for round in 0..4 {
        let mut frames: Vec<Vec<u8>> = (0..BATCH).map(|i| pattern(60, round * BATCH + i)).collect();
        frames[BATCH - 1].truncate(31);
        fill(&mut b, &mem, &frames);
        assert_eq!(q.send(&b).unwrap(), BATCH);
        want.extend(frames);
    }
    assert_eq!(gather(p.as_mut(), want.len()), want);
    assert_eq!(p.stats().drops, [0; Reason::COUNT]);
}

#[test]
fn strangers_are_heard_only_without_strict() {
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    for strict in [true, false] {
        let (mut p, peer, at) = udp(strict, None);
        stranger.send_to(b"stranger", at).unwrap();
        peer.send_to(b"peer", at).unwrap();
        let mut got = gather(p.as_mut(), if strict { 1 } else { 2 });
        got.sort();
        let want: &[&[u8]] = if strict { &[b"peer"] } else { &[b"peer", b"stranger"] };
        assert_eq!(got, want);
        assert!(recv(p.as_mut(), &mut Batch::new()).is_empty());
        assert_eq!(drops(p.as_ref(), Reason::Source), u64::from(strict));
        // Nobody can bind the port beside us, whatever he says.
        let second = UdpSocket::bind(at).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
    }
}

#[test]
fn the_second_socket_cannot_send() {
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    let opened = datagram::udp("p", &ANY_PORT(), &host(&peer), false, None).unwrap();
    let second = UdpSocket::from(opened.sockets[1].try_clone().unwrap());
    let e = second.send_to(b"x", peer.local_addr().unwrap()).unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_peer_that_refuses_is_counted_and_nothing_ends() {
    let (mut p, peer, at) = udp(false, None);
    let there = peer.local_addr().unwrap();
    drop(peer);
    let (mut b, mem) = (Batch::new(), Buf::new(1 << 16).unwrap());
    for i in 0..6 {
        fill(&mut b, &mem, &[pattern(60, i)]);
        assert_eq!(p.send(&b).unwrap(), 1);
        recv(p.as_mut(), &mut b);
    }
    assert!(drops(p.as_ref(), Reason::PeerDown) > 0, "{:?}", p.stats());
    let peer = UdpSocket::bind(there).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    fill(&mut b, &mem, &[b"back".to_vec()]);
    assert_eq!(p.send(&b).unwrap(), 1);
    let mut raw = [0; 100];
    assert_eq!(peer.recv(&mut raw).unwrap(), 4);
    peer.send_to(b"here", at).unwrap();
    assert_eq!(gather(p.as_mut(), 1), [b"here"]);

    let (mut p, peer) = unix();
    drop(peer);
    fill(&mut b, &mem, &[vec![1; 60], vec![2; 60]]);
    assert_eq!(p.send(&b).unwrap(), 2);
    assert_eq!(drops(p.as_ref(), Reason::PeerDown), 2);
    assert!(recv(p.as_mut(), &mut b).is_empty());
}

#[test]
fn a_full_peer_makes_the_giver_wait_and_loses_nothing() {
    let (mut p, peer) = unix();
    let (mut b, mem) = (Batch::new(), Buf::new(1 << 20).unwrap());
    let frames: Vec<Vec<u8>> = (0..BATCH).map(|i| pattern(1 + i * 90, i)).collect();
    let rounds = 30;
    let reader = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        let mut raw = vec![0; 70_000];
        (0..rounds * BATCH).map(|_| peer.recv(&mut raw).unwrap()).collect::<Vec<_>>()
    });
    let mut waited = 0;
    for _ in 0..rounds {
        fill(&mut b, &mem, &frames);
        while !b.is_empty() {
            let n = p.send(&b).unwrap();
            b.advance(n);
            if n == 0 {
                waited += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    let lens = reader.join().unwrap();
    assert!(waited > 0, "a socket that takes everything proves nothing");
    assert!(lens.iter().enumerate().all(|(i, n)| *n == 1 + (i % BATCH) * 90));
    assert_eq!(p.stats().drops, [0; Reason::COUNT]);
}

#[test]
fn our_own_multicast_frames_are_dropped_and_others_are_not() {
    let group: SocketAddr = "239.77.1.2:47001".parse().unwrap();
    let lo = Some("127.0.0.1".parse().unwrap());
    let open = || {
        let opened = datagram::multicast("p", group, lo).unwrap();
        port(&opened.plan, opened.sockets)
    };
    let (mut a, mut z) = (open(), open());
    let (mut b, mem) = (Batch::new(), Buf::new(1 << 16).unwrap());
    let frames: Vec<Vec<u8>> = (0..5).map(|i| pattern(60 + i * 20, i)).collect();
    fill(&mut b, &mem, &frames);
    assert_eq!(a.send(&b).unwrap(), 5);
    assert_eq!(gather(z.as_mut(), 5), frames);
    fill(&mut b, &mem, &[b"answer".to_vec()]);
    assert_eq!(z.send(&b).unwrap(), 1);
    assert_eq!(gather(a.as_mut(), 1), [b"answer"]);
    assert!(recv(z.as_mut(), &mut b).is_empty());
    assert_eq!((drops(a.as_ref(), Reason::Echo), drops(z.as_ref(), Reason::Echo)), (5, 1));
}

fn session(counter: Counter) -> Session {
    let cookie = Cookie::Eight(0x1111_2222_3333_4444, 0x5555_6666_7777_8888);
    Session { carrier: Carrier::Udp, tx: 7, rx: 9, cookie, counter, offset: 5 }
}

#[test]
fn l2tp_over_udp_counts_what_is_not_ours() {
    let s = session(Counter::Counts);
    let (mut p, peer, at) = udp(true, Some(s));
    let (mut b, mem) = (Batch::new(), Buf::new(1 << 20).unwrap());
    let frames: Vec<Vec<u8>> = (0..70).map(|i| pattern(60 + i % 3, i)).collect();
    let mut raw = vec![0; 70_000];
    for (round, part) in frames.chunks(BATCH).enumerate() {
        fill(&mut b, &mem, part);
        assert_eq!(p.send(&b).unwrap(), part.len());
        for (i, f) in part.iter().enumerate() {
            let n = peer.recv(&mut raw).unwrap();
            let count = u32::try_from(round * BATCH + i + 1).unwrap();
            assert!(raw[..n] == [s.head(count).bytes(), &[0; 5], f].concat(), "frame {count}");
        }
    }
    let back = Session { tx: 9, rx: 7, cookie: Cookie::Eight(0x5555_6666_7777_8888, 0), ..s };
    let good = [back.head(1).bytes(), &[0; 5], &frames[0][..]].concat();
    let wrong = |at: usize, value: u8| {
        let mut w = good.clone();
        w[at] = value;
        w
    };
    for message in
        [wrong(0, 0xc8), wrong(1, 2), wrong(7, 8), wrong(8, 0), good[..20].to_vec(), good[..25].to_vec()]
    {
        peer.send_to(&message, at).unwrap();
    }
    peer.send_to(&good, at).unwrap();
    assert_eq!(gather(p.as_mut(), 1), [frames[0].clone()]);
    let count = |why| drops(p.as_ref(), why);
    let got = [Reason::Control, Reason::BadHeader, Reason::Session, Reason::Cookie, Reason::Runt].map(count);
    assert_eq!(got, [1, 2, 1, 1, 1]);
}

#[test]
fn what_is_no_datagram_socket_is_refused() {
    assert!(open(&PLAIN, vec![]).is_err());
    let stream = std::os::unix::net::UnixStream::pair().unwrap().0;
    assert!(open(&PLAIN, vec![stream.into()]).is_err());
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(open(&PLAIN, vec![file.into()]).is_err());
    let pair = || OwnedFd::from(UnixDatagram::pair().unwrap().0);
    assert!(open(&PLAIN, vec![pair(), pair(), pair()]).is_err());
    let mut p = port(&PLAIN, vec![pair()]);
    assert!(p.connect(pair()).is_err());
    let mut waits = port(&Plan { waits: true, ..PLAIN }, vec![]);
    assert!(!waits.traits().up);
    assert_eq!(waits.alone().unwrap(), Change::default(), "nobody was there");
    assert_eq!(waits.connect(pair()).unwrap().link, Some(true));
    let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
    theirs.send(&[7; 60]).unwrap();
    assert_eq!(waits.connect(ours.into()).unwrap().link, Some(true));
    assert!(waits.traits().up && p.alone().is_err());
    assert_eq!(waits.alone().unwrap(), Change { rewire: true, link: Some(false), ..Change::default() });
    assert!(!waits.traits().up && theirs.send(&[7; 60]).is_err(), "it has let it go");
    assert_eq!(waits.connect(pair()).unwrap().link, Some(true));
    assert!(waits.traits().up);
}

#[test]
fn what_a_peer_leaves_undone_is_said() {
    let mut frame = vec![2; 12];
    frame.extend([8, 0, 0x45, 0, 0x20, 0x28, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    frame.resize(14 + 0x2028, 0);
    for mtu in [None, Some(1500), Some(9000)] {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let mut p = port(&Plan { undone: mtu, ..PLAIN }, vec![ours.into()]);
        let gives = if mtu.is_some() { Offloads::ALL } else { Offloads::NONE };
        assert_eq!((p.traits().gives, p.traits().takes), (gives, Offloads::NONE));
        theirs.send(&frame).unwrap();
        let mut b = Batch::new();
        p.recv(&mut b).unwrap();
        let v = b.frames()[0].vnet;
        assert_eq!(v.is_plain(), mtu != Some(1500), "it is no super-frame where it fits");
        if mtu == Some(1500) {
            assert_eq!((v.gso_size, v.csum_start, v.csum_offset, v.needs_csum()), (1460, 34, 16, true));
        }
    }
}
