use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use super::*;
use crate::frame::BATCH;
use crate::mem::Buf;

const CLIENT: Plan = Plan { server: false, redial: true, framing: Framing::Qemu, undone: None };

fn client() -> (Box<dyn Port>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    (short(&CLIENT, ours.into(), 100_000), theirs)
}

/// A stream whose send queue has `bytes`, so that tests meet its end.
fn short(plan: &Plan, ours: OwnedFd, bytes: usize) -> Box<dyn Port> {
    let same = ours.try_clone().unwrap();
    let p = open(plan, vec![ours]).unwrap().pop().unwrap();
    nix::sys::socket::setsockopt(&same, nix::sys::socket::sockopt::SndBuf, &bytes).unwrap();
    p
}

fn wire(frame: &[u8]) -> Vec<u8> {
    [&u32::try_from(frame.len()).unwrap().to_be_bytes(), frame].concat()
}

/// Distinct at every place, so that a shifted or torn frame does not look right.
fn pattern(len: usize, salt: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i * 7 + i / 251 + salt) % 256).unwrap()).collect()
}

fn contents(b: &Batch) -> Vec<Vec<u8>> {
    let whole = |f: &Frame| {
        let mut v = f.head().to_vec();
        for s in b.body(f) {
            let at = v.len();
            v.resize(at + s.len() as usize, 0);
            s.copy_out(&mut v[at..]);
        }
        assert_eq!(v.len(), f.len as usize);
        v
    };
    b.frames().iter().map(whole).collect()
}

/// Puts frames into a batch, bodies in `mem` cut into two segments.
fn fill(b: &mut Batch, mem: &Buf, frames: &[Vec<u8>]) {
    b.clear();
    let mut at = 0;
    for (i, bytes) in frames.iter().enumerate() {
        let len = u32::try_from(bytes.len()).unwrap();
        let seg = mem.seg(at, len);
        assert_eq!(seg.copy_in(bytes), bytes.len());
        at += len;
        let f = b.push().unwrap();
        f.len = len;
        f.cookie = i as u64;
        let n = f.head_from(&seg);
        let body = seg.skip(n);
        b.push_seg(body.take(body.len() / 3));
        b.push_seg(body.skip(body.len() / 3));
    }
}

fn recv(p: &mut dyn Port, b: &mut Batch) -> Vec<Vec<u8>> {
    b.clear();
    p.recv(b).unwrap();
    let got = contents(b);
    p.release(b, got.len());
    got
}

#[test]
fn sizes_both_ways() {
    for len in [1, 10, 60, 1514, 65550, 69632] {
        let (mut p, mut peer) = client();
        let frame = pattern(len, 3);
        let out = wire(&frame);
        let (mut b, mem) = (Batch::new(), Buf::new(1 << 17).unwrap());
        let writer = std::thread::spawn({
            let (mut peer, out) = (peer.try_clone().unwrap(), out.clone());
            move || peer.write_all(&out).unwrap()
        });
        let mut got = Vec::new();
        while got.is_empty() {
            got = recv(p.as_mut(), &mut b);
        }
        writer.join().unwrap();
        assert_eq!(got, std::slice::from_ref(&frame));
        assert_eq!(p.stats().rx_bytes, len as u64);
        let reader = std::thread::spawn(move || {
            let mut raw = vec![0; len + 4];
            peer.read_exact(&mut raw).unwrap();
            (raw, peer)
        });
        fill(&mut b, &mem, std::slice::from_ref(&frame));
        while p.send(&b).unwrap() == 0 {}
        let (raw, _peer) = reader.join().unwrap();
        assert_eq!(raw, out);
        assert_eq!((p.stats().tx_frames, p.stats().tx_bytes), (1, len as u64));
    }
}

#[test]
fn empty_frames_are_passed_over_and_oversize_ends_the_connection() {
    let (mut p, mut peer) = client();
    let mut b = Batch::new();
    let a = pattern(60, 1);
    peer.write_all(&[wire(&a), wire(b""), wire(b""), wire(&a), 69633_u32.to_be_bytes().to_vec()].concat())
        .unwrap();
    assert_eq!(
        recv(p.as_mut(), &mut b),
        std::slice::from_ref(&a),
        "what is odd waits until what came before is gone"
    );
    assert!(p.arm_gives());
    assert_eq!(recv(p.as_mut(), &mut b), [a]);
    assert_eq!(p.stats().drops[Reason::Runt as usize], 2);
    assert!(p.arm_gives());
    assert!(recv(p.as_mut(), &mut b).is_empty());
    assert_eq!(p.stats().drops[Reason::Oversize as usize], 1);
    assert_eq!(peer.read(&mut [0; 1]).unwrap(), 0, "the peer sees the end");
    let mut w = Watch::default();
    p.watch(&mut w);
    let gone = p.event(w.fds()[0].0, Interest::Gives).unwrap();
    assert_eq!(gone, Change { rewire: true, redial: true, link: Some(false), later: false });
    assert!(!p.traits().up);
    let (again, mut peer) = UnixStream::pair().unwrap();
    assert_eq!(p.connect(again.into()).unwrap().link, Some(true));
    assert!(p.traits().up);
    peer.write_all(&wire(&[9; 20])).unwrap();
    assert_eq!(recv(p.as_mut(), &mut b), [[9; 20]]);
    assert_eq!(p.stats().reconnects, 1);
}

#[test]
fn frames_that_nobody_took_come_again() {
    let (mut p, mut peer) = client();
    let mut b = Batch::new();
    for i in 0..100 {
        peer.write_all(&wire(&[i; 100])).unwrap();
    }
    p.recv(&mut b).unwrap();
    assert_eq!(b.len(), BATCH);
    p.release(&b, 10);
    let got = recv(p.as_mut(), &mut b);
    assert_eq!((got.len(), got[0][0], got[63][0]), (64, 10, 73));
    let got = recv(p.as_mut(), &mut b);
    assert_eq!((got.len(), got[0][0], got[25][0]), (26, 74, 99));
    assert_eq!(p.stats().rx_frames, 100);
    assert!(recv(p.as_mut(), &mut b).is_empty());
}

#[test]
fn a_full_stream_makes_the_giver_wait_and_loses_nothing() {
    let (mut p, mut peer) = client();
    let (mut b, mem) = (Batch::new(), Buf::new(1 << 20).unwrap());
    let frames: Vec<Vec<u8>> = (0..BATCH).map(|i| pattern(1 + i * 97, i)).collect();
    let rounds = 40;
    let want: Vec<u8> = frames.iter().flat_map(|f| wire(f)).collect();
    let total = want.len() * rounds;
    fill(&mut b, &mem, &frames);
    // Until it is full, with nobody reading.
    let mut done = 0;
    let mut n = p.send(&b).unwrap();
    while n == BATCH {
        done += 1;
        fill(&mut b, &mem, &frames);
        n = p.send(&b).unwrap();
    }
    assert!(done < rounds, "a socket that takes everything proves nothing");
    b.advance(n);
    assert_eq!(p.send(&b).unwrap(), 0);
    let reader = std::thread::spawn(move || {
        let mut all = vec![0; total];
        // In odd pieces, so that the stream is cut everywhere.
        for piece in all.chunks_mut(1237) {
            peer.read_exact(piece).unwrap();
        }
        all
    });
    while done < rounds {
        let n = p.send(&b).unwrap();
        b.advance(n);
        if b.is_empty() {
            done += 1;
            fill(&mut b, &mem, &frames);
        }
    }
    let all = reader.join().unwrap();
    assert!(all.chunks(want.len()).all(|c| c == want));
    assert_eq!(p.stats().tx_frames, (rounds * BATCH) as u64);
    assert_eq!(p.stats().drops, [0; Reason::COUNT]);
}

#[test]
fn a_cut_frame_that_comes_again_at_another_place_in_its_batch_is_sent_once() {
    let (mut p, mut peer) = client();
    let (mut b, mem) = (Batch::new(), Buf::new(1 << 20).unwrap());
    let frames: Vec<Vec<u8>> = (0..1000).map(|i| pattern(60 + i % 7 * 200, i)).collect();
    // Cookies are places in the batch, and the batch begins with what is left.
    let mut step = |sent: usize| {
        fill(&mut b, &mem, &frames[sent..frames.len().min(sent + BATCH)]);
        sent + p.send(&b).unwrap()
    };
    let mut sent = 0;
    loop {
        let next = step(sent);
        if next == sent {
            break;
        }
        sent = next;
    }
    assert!(sent < frames.len(), "a socket that takes everything proves nothing");
    let want: Vec<u8> = frames.iter().flat_map(|f| wire(f)).collect();
    let len = want.len();
    let reader = std::thread::spawn(move || {
        let mut all = vec![0; len];
        for piece in all.chunks_mut(1237) {
            peer.read_exact(piece).unwrap();
        }
        all
    });
    while sent < frames.len() {
        sent = step(sent);
    }
    assert!(reader.join().unwrap() == want);
    assert_eq!(p.stats().tx_frames, frames.len() as u64);
}

#[test]
fn a_cut_frame_is_finished_from_our_own_copy() {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    // Less than one frame, so that the first is surely cut.
    let mut p = short(&CLIENT, ours.into(), 20_000);
    let (mut b, mem) = (Batch::new(), Buf::new(1 << 20).unwrap());
    let big = pattern(69632, 5);
    fill(&mut b, &mem, std::slice::from_ref(&big));
    assert_eq!(p.send(&b).unwrap(), 0, "it stays with its giver until all of it is gone");
    // The giver's memory changes before the rest goes, and the giver begins anew with another frame.
    let other = pattern(500, 77);
    mem.seg(0, 1 << 20).copy_in(&vec![0xee; 1 << 20]);
    fill(&mut b, &mem, std::slice::from_ref(&other));
    let reader = std::thread::spawn(move || {
        let mut all = vec![0; 69632 + 4 + 504];
        peer.read_exact(&mut all).unwrap();
        all
    });
    while p.send(&b).unwrap() == 0 {}
    assert_eq!(reader.join().unwrap(), [wire(&big), wire(&other)].concat());
}

#[test]
fn a_frame_that_only_looks_like_the_cut_one_is_sent_too() {
    for other_giver in [false, true] {
        let (ours, mut peer) = UnixStream::pair().unwrap();
        let mut p = short(&CLIENT, ours.into(), 20_000);
        let (mut b, mem) = (Batch::new(), Buf::new(1 << 20).unwrap());
        let cut = pattern(69632, 5);
        fill(&mut b, &mem, std::slice::from_ref(&cut));
        assert_eq!(p.send(&b).unwrap(), 0);
        // Of the same length and cookie, from a giver that begins anew; from another giver it may be the same even.
        let next = if other_giver { cut.clone() } else { pattern(69632, 6) };
        assert_eq!(other_giver, other_giver && p.peer_new());
        fill(&mut b, &mem, std::slice::from_ref(&next));
        let reader = std::thread::spawn(move || {
            let mut all = vec![0; 2 * (69632 + 4)];
            peer.read_exact(&mut all).unwrap();
            all
        });
        while p.send(&b).unwrap() == 0 {}
        assert!(reader.join().unwrap() == [wire(&cut), wire(&next)].concat(), "other giver: {other_giver}");
        assert_eq!(p.stats().tx_frames, if other_giver { 2 } else { 1 });
        assert!(!p.peer_new(), "nothing is owed");
    }
}

#[test]
fn dropped_frames_are_not_sent_and_a_lost_peer_is_counted() {
    let (mut p, mut peer) = client();
    let (mut b, mem) = (Batch::new(), Buf::new(1 << 20).unwrap());
    fill(&mut b, &mem, &[vec![1; 20], vec![2; 20], vec![3; 20]]);
    b.frames_mut()[1].dropped = true;
    assert_eq!(p.send(&b).unwrap(), 3);
    let mut raw = [0; 48];
    peer.read_exact(&mut raw).unwrap();
    assert_eq!(raw.to_vec(), [wire(&[1; 20]), wire(&[3; 20])].concat());
    drop(peer);
    assert_eq!(p.send(&b).unwrap(), 3);
    assert_eq!(p.stats().drops[Reason::PeerDown as usize], 2);
    assert_eq!(p.stats().tx_frames, 2);
    let mut w = Watch::default();
    p.watch(&mut w);
    let fd = w.fds()[0].0;
    assert_eq!(
        p.event(fd, Interest::Takes).unwrap(),
        Change::default(),
        "what it sent before is yet to be read"
    );
    assert!(recv(p.as_mut(), &mut b).is_empty());
    assert!(p.event(fd, Interest::Gives).unwrap().redial);
}

#[test]
fn a_server_serves_one_client_after_the_other() {
    let path = std::env::temp_dir().join(format!("netreeve-stream-{}", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    let plan = Plan { server: true, ..Plan::default() };
    let mut p = open(&plan, vec![listener.into()]).unwrap().pop().unwrap();
    let fd = |p: &dyn Port| {
        let mut w = Watch::default();
        p.watch(&mut w);
        w.fds()[0]
    };
    let (listening, why) = fd(p.as_ref());
    assert_eq!(why, Interest::Control);
    assert_eq!(
        p.event(listening, why).unwrap(),
        Change { later: true, ..Change::default() },
        "nobody is there"
    );
    let mut first = UnixStream::connect(&path).unwrap();
    let mut second = UnixStream::connect(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(p.event(listening, why).unwrap().rewire);
    let mut b = Batch::new();
    second.write_all(&wire(&[2; 30])).unwrap();
    // Half a frame, and away: nothing of it may be seen by the next.
    first.write_all(&[&wire(&[1; 30])[..], &[0, 0, 1]].concat()).unwrap();
    drop(first);
    assert_eq!(recv(p.as_mut(), &mut b), [[1; 30]]);
    assert!(recv(p.as_mut(), &mut b).is_empty());
    let (conn, why) = fd(p.as_ref());
    let gone = p.event(conn, why).unwrap();
    assert_eq!(gone, Change { rewire: true, link: Some(false), ..Change::default() });
    assert!(p.event(listening, Interest::Control).unwrap().rewire);
    assert_eq!(recv(p.as_mut(), &mut b), [[2; 30]]);
    assert_eq!(p.stats().reconnects, 1);
    let (a, _b) = UnixStream::pair().unwrap();
    assert!(p.connect(a.into()).is_err());
}

#[test]
fn only_the_socket_that_was_said_is_taken() {
    let (a, _b) = UnixStream::pair().unwrap();
    assert!(open(&Plan { server: true, ..Plan::default() }, vec![a.into()]).is_err());
    let (a, _b) = std::os::unix::net::UnixDatagram::pair().unwrap();
    assert!(open(&CLIENT, vec![a.into()]).is_err());
    assert!(open(&CLIENT, vec![std::fs::File::open("/dev/null").unwrap().into()]).is_err());
    assert!(!open(&CLIENT, vec![]).unwrap()[0].traits().up);
    assert!(open(&Plan { server: true, ..Plan::default() }, vec![]).is_err());
}

#[test]
fn an_end_is_an_end_when_what_came_before_it_cannot_go_on() {
    let (mut p, mut peer) = client();
    let mut b = Batch::new();
    peer.write_all(&wire(&[7; 90])).unwrap();
    drop(peer);
    for _ in 0..2 {
        b.clear();
        p.recv(&mut b).unwrap();
        assert_eq!(b.len(), 1);
        p.release(&b, 0);
    }
    let mut w = Watch::default();
    p.watch(&mut w);
    let fd = w.fds()[0].0;
    assert_eq!(p.event(fd, Interest::Gives).unwrap(), Change::default(), "it waits for its taker");
    p.peer_up(false);
    assert!(p.event(fd, Interest::Gone).unwrap().redial, "who is gone: nothing would end it");
    assert!(!p.traits().up);
}

#[test]
fn whole_frames_that_came_before_the_end_go_on() {
    let (mut p, mut peer) = client();
    let mut b = Batch::new();
    let frames: Vec<Vec<u8>> = (0..150).map(|i| pattern(60 + i, i)).collect();
    for f in &frames {
        peer.write_all(&wire(f)).unwrap();
    }
    // And half of one, which does not.
    peer.write_all(&wire(&[7; 90])[..40]).unwrap();
    drop(peer);
    let mut w = Watch::default();
    p.watch(&mut w);
    let fd = w.fds()[0].0;
    let mut got = Vec::new();
    while got.len() < frames.len() {
        b.clear();
        p.recv(&mut b).unwrap();
        let all = contents(&b);
        assert!(!all.is_empty());
        // A taker that takes few at a time; every event on the way has to wait.
        let taken = all.len().min(11);
        p.release(&b, taken);
        got.extend_from_slice(&all[..taken]);
        if got.len() < frames.len() {
            assert_eq!(p.event(fd, Interest::Gives).unwrap(), Change::default());
        }
    }
    assert_eq!(got, frames);
    assert!(recv(p.as_mut(), &mut b).is_empty());
    assert!(!p.arm_gives());
    assert!(p.event(fd, Interest::Gives).unwrap().redial);
    assert_eq!(p.stats().rx_frames, 150);
}

/// That nothing can be sent any more is noticed first, as under load.
#[test]
fn whole_frames_that_came_before_the_end_go_on_when_it_is_the_sender_that_notices() {
    let (mut p, mut peer) = client();
    let (mut b, mem) = (Batch::new(), Buf::new(1 << 20).unwrap());
    let frames: Vec<Vec<u8>> = (0..150).map(|i| pattern(60 + i, i)).collect();
    for f in &frames {
        peer.write_all(&wire(f)).unwrap();
    }
    drop(peer);
    fill(&mut b, &mem, &[vec![1; 20]]);
    assert_eq!((p.send(&b).unwrap(), p.stats().drops[Reason::PeerDown as usize]), (1, 1));
    let mut w = Watch::default();
    p.watch(&mut w);
    let fd = w.fds()[0].0;
    let mut got = Vec::new();
    while got.len() < frames.len() {
        assert_eq!(p.event(fd, Interest::Gives).unwrap(), Change::default(), "{} frames", got.len());
        let some = recv(p.as_mut(), &mut b);
        assert!(!some.is_empty(), "{} frames", got.len());
        got.extend(some);
    }
    assert_eq!(got, frames);
    assert!(recv(p.as_mut(), &mut b).is_empty());
    assert!(p.event(fd, Interest::Gives).unwrap().redial);
}

#[test]
fn short_lengths_both_ways() {
    for (framing, before) in [(Framing::Little16, [1, 2]), (Framing::Big16, [2, 1])] {
        let plan = Plan { framing, ..CLIENT };
        let (ours, mut peer) = UnixStream::pair().unwrap();
        let mut p = open(&plan, vec![ours.into()]).unwrap().pop().unwrap();
        assert_eq!(p.traits().max_frame, 65535);
        let (mut b, mem) = (Batch::new(), Buf::new(1 << 18).unwrap());
        let frame = pattern(0x201, 5);
        peer.write_all(&[&before[..], &frame].concat()).unwrap();
        assert_eq!(recv(p.as_mut(), &mut b), std::slice::from_ref(&frame));
        // The largest, one that is too large, and one behind it.
        let frames = [pattern(65535, 1), pattern(65536, 2), frame];
        fill(&mut b, &mem, &frames);
        let reader = std::thread::spawn(move || {
            let mut all = vec![0; 2 + 65535 + 2 + 0x201];
            peer.read_exact(&mut all).unwrap();
            all
        });
        while !b.is_empty() {
            let n = p.send(&b).unwrap();
            b.advance(n);
        }
        let all = reader.join().unwrap();
        assert_eq!(all[..2], [255, 255]);
        assert!(all[2..65537] == frames[0] && all[65537..65539] == before && all[65539..] == frames[2]);
        assert_eq!((p.stats().tx_frames, p.stats().drops[Reason::Oversize as usize]), (2, 1));
    }
}

fn packets() -> (Box<dyn Port>, OwnedFd) {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::empty()).unwrap();
    (short(&Plan { framing: Framing::Packets, ..CLIENT }, ours, 100_000), theirs)
}

#[test]
fn messages_both_ways() {
    use nix::sys::socket::{MsgFlags, recv as raw_recv, send as raw_send};
    let (mut p, peer) = packets();
    let (mut b, mem) = (Batch::new(), Buf::new(1 << 20).unwrap());
    let frames: Vec<Vec<u8>> = [1, 10, 60, 1514, 65550, 69632].map(|n| pattern(n, 9)).into();
    for f in &frames {
        raw_send(peer.as_raw_fd(), f, MsgFlags::empty()).unwrap();
        assert_eq!(recv(p.as_mut(), &mut b), std::slice::from_ref(f));
        fill(&mut b, &mem, std::slice::from_ref(f));
        assert_eq!(p.send(&b).unwrap(), 1);
        let mut got = vec![0; 70_000];
        let n = raw_recv(peer.as_raw_fd(), &mut got, MsgFlags::empty()).unwrap();
        assert!(got[..n] == f[..], "{n}");
    }
    // One that is too long costs itself, not the connection.
    raw_send(peer.as_raw_fd(), &vec![1; 69633], MsgFlags::empty()).unwrap();
    raw_send(peer.as_raw_fd(), &[2; 60], MsgFlags::empty()).unwrap();
    assert_eq!(recv(p.as_mut(), &mut b), [[2; 60]]);
    assert_eq!(p.stats().drops[Reason::Oversize as usize], 1);
    // Empty ones are no frames, and not the end.
    for n in 0..3 {
        raw_send(peer.as_raw_fd(), &[], MsgFlags::empty()).unwrap();
        assert!(recv(p.as_mut(), &mut b).is_empty());
        raw_send(peer.as_raw_fd(), &[], MsgFlags::empty()).unwrap();
        raw_send(peer.as_raw_fd(), &[], MsgFlags::empty()).unwrap();
        raw_send(peer.as_raw_fd(), &[n; 60], MsgFlags::empty()).unwrap();
        assert_eq!(recv(p.as_mut(), &mut b), [[n; 60]]);
    }
    assert_eq!(p.stats().drops[Reason::Runt as usize], 9);
    drop(peer);
    assert!(recv(p.as_mut(), &mut b).is_empty());
    let mut w = Watch::default();
    p.watch(&mut w);
    assert!(p.event(w.fds()[0].0, Interest::Gives).unwrap().redial);
}

#[test]
fn a_reader_of_messages_that_stops_stops_the_giver() {
    use nix::sys::socket::{MsgFlags, recv as raw_recv};
    let (mut p, peer) = packets();
    let (mut b, mem) = (Batch::new(), Buf::new(1 << 20).unwrap());
    let frames: Vec<Vec<u8>> = (0..BATCH).map(|i| pattern(14 + i * 20, i)).collect();
    let (mut sent, mut got, mut waits) = (0, 0, 0);
    fill(&mut b, &mem, &frames);
    while got < 20 * BATCH {
        if sent < 20 * BATCH {
            let n = p.send(&b).unwrap();
            sent += n;
            waits += usize::from(n < b.len());
            b.advance(n);
            if b.is_empty() {
                fill(&mut b, &mem, &frames);
                continue;
            }
        }
        let mut one = [0; 2000];
        for _ in 0..5.min(sent - got) {
            let n = raw_recv(peer.as_raw_fd(), &mut one, MsgFlags::empty()).unwrap();
            assert_eq!(one[..n], frames[got % BATCH][..]);
            got += 1;
        }
    }
    assert!(waits > 10, "a socket that takes everything proves nothing");
    assert_eq!((p.stats().tx_frames, p.stats().drops), (20 * BATCH as u64, [0; Reason::COUNT]));
}

#[test]
fn what_a_peer_leaves_undone_is_said() {
    let plan = Plan { undone: Some(1500), ..CLIENT };
    let (ours, mut peer) = UnixStream::pair().unwrap();
    let mut p = open(&plan, vec![ours.into()]).unwrap().pop().unwrap();
    assert_eq!(p.traits().gives, Offloads::ALL);
    let mut frame = vec![2; 12];
    frame.extend([8, 0, 0x45, 0, 0x20, 0x28, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    frame.resize(14 + 0x2028, 0);
    peer.write_all(&wire(&frame)).unwrap();
    let mut b = Batch::new();
    p.recv(&mut b).unwrap();
    let v = b.frames()[0].vnet;
    assert_eq!((v.gso_size, v.csum_start, v.csum_offset, v.needs_csum()), (1460, 34, 16, true));
    let (mut plain, mut peer) = client();
    peer.write_all(&wire(&frame)).unwrap();
    plain.recv(&mut b).unwrap();
    assert!(b.frames()[1].vnet.is_plain());
}

#[test]
fn a_listener_that_was_shut_keeps_nobody_busy() {
    let dir = std::env::temp_dir().join(format!("netreeve-stream-shut-{}", std::process::id()));
    let _gone = std::fs::remove_file(&dir);
    let plan = Plan { server: true, redial: false, ..CLIENT };
    let unix: OwnedFd = UnixListener::bind(&dir).unwrap().into();
    let tcp: OwnedFd = std::net::TcpListener::bind("127.0.0.1:0").unwrap().into();
    let later = Change { later: true, ..Change::default() };
    for (fd, dies) in [(unix, false), (tcp, true)] {
        let (raw, copy) = (fd.as_raw_fd(), fd.try_clone().unwrap());
        let mut p = open(&plan, vec![fd]).unwrap().pop().unwrap();
        assert_eq!(p.event(raw, Interest::Control).unwrap(), later, "nobody has come");
        shutdown(copy.as_raw_fd(), Shutdown::Both).unwrap();
        // Either way it is not looked at over and over: it is ready for ever.
        match p.event(raw, Interest::Control) {
            Ok(change) => assert!(change == later && !dies),
            Err(_) => assert!(dies),
        }
    }
    std::fs::remove_file(&dir).unwrap();
    let said = |e| not_accepted(io::Error::from_raw_os_error(e));
    // EACCES: a security module's. The last one is none that a kernel knows.
    for e in [
        libc::ENFILE,
        libc::EMFILE,
        libc::ENOBUFS,
        libc::ENOMEM,
        libc::EPERM,
        libc::EACCES,
        libc::EAGAIN,
        4000,
    ] {
        assert_eq!(said(e).unwrap(), later, "{e}");
    }
    for e in [libc::ECONNABORTED, libc::EINTR, libc::EPROTO, libc::ENETDOWN, libc::EHOSTUNREACH] {
        assert_eq!(said(e).unwrap(), Change::default(), "{e}: the next one waits");
    }
    assert!(said(libc::EBADF).is_err());
}
