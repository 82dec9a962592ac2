//! A user network over `stream`, and guests that leave work undone all the same, as libkrun's do, or that say what is undone.

use crate::user::scene;
use netreeve_tests::leftovers::Ground;
use netreeve_tests::scene::{FAR4, FAR6, PATIENCE, Scene};
use netreeve_tests::transfer::Noise;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Bytes each way in the tests by hand.
const MUCH: usize = 1 << 20;
const SYN: u8 = 2;
const FIN: u8 = 1;
const ACK: u8 = 16;

/// A guest's end of one TCP connection, by hand, over a stream of frames.
struct Hand {
    stream: UnixStream,
    /// Frames have virtio-net headers.
    header: bool,
    there: SocketAddr,
    seq: u32,
    ack: u32,
    window: u32,
    scale: u8,
}

/// A sum of 16-bit words in ones' complement (RFC 1071).
fn sum(parts: &[&[u8]]) -> u16 {
    let mut s = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            s += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        }
        s = (s & 0xffff) + (s >> 16);
    }
    s = (s & 0xffff) + (s >> 16);
    u16::try_from((s & 0xffff) + (s >> 16)).unwrap()
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// What the checksum of TCP begins with.
fn pseudo(from: &[u8], to: &[u8], len: usize) -> Vec<u8> {
    [from, to, &[0, 6], &u32::try_from(len).unwrap().to_be_bytes()].concat()
}

fn word(b: &[u8]) -> u32 {
    u32::from_be_bytes(b[..4].try_into().unwrap())
}

/// What the port said in one segment.
struct Said {
    seq: u32,
    ack: u32,
    flags: u8,
    payload: Vec<u8>,
}

impl Hand {
    fn new(scene: &Scene, header: bool, there: SocketAddr) -> Hand {
        let stream = UnixStream::connect(scene.path("vm.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Hand { stream, header, there, seq: 0xffff_8000, ack: 0, window: 0, scale: 0 }
    }

    fn ours(&self) -> IpAddr {
        if self.there.is_ipv4() { "10.0.2.15" } else { "fec0::15" }.parse().unwrap()
    }

    /// Bytes of IP's header, and most of payload that fits into one packet.
    fn most(&self) -> (usize, usize) {
        if self.there.is_ipv4() { (20, 65_535 - 40) } else { (40, 65_535 - 20) }
    }

    /// Sends a segment, its checksum begun with the pseudo-header and left at that.
    fn say(&mut self, flags: u8, payload: &[u8]) {
        let (from, to) = (octets(self.ours()), octets(self.there.ip()));
        // The largest segment for an MTU of 1500, and a window scale of 7.
        let mss = if self.there.is_ipv4() { 180 } else { 160 };
        let options: &[u8] = if flags & SYN != 0 { &[2, 4, 5, mss, 3, 3, 7, 0] } else { &[] };
        let len = 20 + options.len() + payload.len();
        let mut f = vec![0x52, 0x55, 0x0a, 0, 2, 2, 0x52, 0x54, 0, 0x12, 0x34, 0x56];
        if self.there.is_ipv4() {
            f.extend([8, 0, 0x45, 0]);
            f.extend(u16::try_from(20 + len).unwrap().to_be_bytes());
            f.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
        } else {
            f.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            f.extend(u16::try_from(len).unwrap().to_be_bytes());
            f.extend([6, 64]);
        }
        f.extend(&from);
        f.extend(&to);
        if self.there.is_ipv4() {
            let right = !sum(&[&f[14..34]]);
            f[24..26].copy_from_slice(&right.to_be_bytes());
        }
        let start = f.len();
        f.extend([40_000, self.there.port()].into_iter().flat_map(u16::to_be_bytes));
        f.extend([self.seq, self.ack].into_iter().flat_map(u32::to_be_bytes));
        f.extend([u8::try_from((20 + options.len()) / 4).unwrap() << 4, flags, 0xff, 0xff]);
        f.extend(sum(&[&pseudo(&from, &to, len)]).to_be_bytes());
        f.extend([0, 0]);
        f.extend(options);
        let headers = f.len();
        f.extend(payload);
        let mut wire = Vec::new();
        if self.header {
            wire.extend((u32::try_from(f.len()).unwrap() + 12).to_be_bytes());
            wire.extend([0, 0, 0, 12, 1]);
            let (kind, size) = match payload.len() {
                0..=1400 => (0, 0),
                _ => (if self.there.is_ipv4() { 1 } else { 4 }, 1514 - headers),
            };
            wire.push(kind);
            for n in [headers, size, start, 16, 0] {
                wire.extend(u16::try_from(n).unwrap().to_le_bytes());
            }
        } else {
            wire.extend(u32::try_from(f.len()).unwrap().to_be_bytes());
        }
        wire.extend(f);
        self.stream.write_all(&wire).unwrap();
        let ends = u32::from(flags & (SYN | FIN) != 0);
        self.seq = self.seq.wrapping_add(u32::try_from(payload.len()).unwrap() + ends);
    }

    fn read(&mut self, n: usize) -> Vec<u8> {
        let mut b = vec![0; n];
        self.stream.read_exact(&mut b).expect("the next frame");
        b
    }

    /// The next segment for this connection, whose checksum is right or, where a header can say so, begun.
    fn hear(&mut self) -> Said {
        loop {
            let mut len = usize::try_from(word(&self.read(4))).unwrap();
            let mut vnet = vec![0; 12];
            if self.header {
                let n = usize::try_from(word(&self.read(4))).unwrap();
                vnet = self.read(n);
                len -= n;
            }
            let f = self.read(len);
            let (ip, _) = self.most();
            let kind: &[u8] = if ip == 20 { &[8, 0] } else { &[0x86, 0xdd] };
            if f[12..14] != *kind || f[if ip == 20 { 23 } else { 20 }] != 6 {
                continue;
            }
            let t = &f[14 + ip..];
            let (from, to) = (octets(self.there.ip()), octets(self.ours()));
            let pseudo = pseudo(&from, &to, t.len());
            let head = usize::from(t[12] >> 4) * 4;
            if vnet[0] & 1 != 0 {
                assert_eq!(
                    u16::from_be_bytes([t[16], t[17]]),
                    sum(&[&pseudo]),
                    "the beginning of a checksum"
                );
            } else {
                assert_eq!(sum(&[&pseudo, t]), 0xffff, "checksum");
            }
            if vnet[1] == 0 {
                assert!(f.len() <= 1514, "{} bytes in one frame", f.len());
            } else {
                let size = usize::from(u16::from_le_bytes([vnet[4], vnet[5]]));
                assert!(size > 0 && 14 + ip + head + size <= 1514, "segments of {size} bytes");
            }
            if t[13] & SYN != 0 {
                self.scale = t[20..head].windows(3).find(|o| o[..2] == [3, 3]).map_or(0, |o| o[2]);
            }
            let scale = if t[13] & SYN != 0 { 0 } else { self.scale };
            self.window = u32::from(u16::from_be_bytes([t[14], t[15]])) << scale;
            assert_eq!(t[13] & 4, 0, "a reset");
            return Said {
                seq: word(&t[4..]),
                ack: word(&t[8..]),
                flags: t[13],
                payload: t[head..].to_vec(),
            };
        }
    }

    /// Opens the connection, sends `up` in the largest frames that there are, takes what comes to its end, and ends.
    fn exchange(&mut self, up: &[u8]) -> Vec<u8> {
        self.say(SYN, b"");
        let answer = self.hear();
        assert_eq!((answer.flags, answer.ack), (SYN | ACK, self.seq));
        self.ack = answer.seq.wrapping_add(1);
        self.say(ACK, b"");
        let (mut rest, mut large) = (up, 0);
        while !rest.is_empty() {
            let n = rest.len().min(self.most().1).min(usize::try_from(self.window).unwrap());
            if n == 0 {
                self.hear();
                continue;
            }
            large += usize::from(n == self.most().1);
            self.say(ACK, &rest[..n]);
            rest = &rest[n..];
            while self.hear().ack != self.seq {}
        }
        // How many of them there are is up to the far end, which may not read as fast; the first always fits.
        assert!(large > 0, "no frame of the largest kind");
        let mut down = Vec::new();
        loop {
            let s = self.hear();
            // On a machine that does not let us answer for a second, something may be said again.
            let again = usize::try_from(self.ack.wrapping_sub(s.seq)).unwrap();
            assert!(again <= down.len(), "a gap");
            let known = again.min(s.payload.len());
            assert!(s.payload[..known] == down[down.len() - again..][..known], "said again, and otherwise");
            down.extend(&s.payload[known..]);
            self.ack = self.ack.wrapping_add(u32::try_from(s.payload.len() - known).unwrap());
            if s.flags & FIN != 0 {
                break;
            }
            self.say(ACK, b"");
        }
        self.ack = self.ack.wrapping_add(1);
        self.say(ACK | FIN, b"");
        while self.hear().ack != self.seq {}
        down
    }
}

/// Frames of 64 KiB whose checksums are only begun: with a header that says so, and without one.
#[test]
fn super_frames_over_a_stream_are_finished() {
    for (framing, header) in [("vnet", true), ("qemu", false)] {
        let ground = Ground::survey().unwrap();
        let scene = scene();
        let device = format!("stream,netdev=n0,server=on,addr.type=unix,addr.path=vm.sock,framing={framing}");
        let mut reeve = scene.run(&["user,id=n0"], &[&device], &[]).unwrap();
        let (mut up, mut down) = (vec![0; MUCH], vec![0; MUCH]);
        Noise::new(1).fill(&mut up);
        Noise::new(2).fill(&mut down);
        for there in [FAR4, FAR6] {
            let at = SocketAddr::new(there.parse().unwrap(), 7400);
            let listener = scene.far.enter(|| TcpListener::bind(at)).unwrap().unwrap();
            std::thread::scope(|s| {
                let far = s.spawn(|| {
                    let (mut s, _) = listener.accept().unwrap();
                    s.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                    let mut got = vec![0; MUCH];
                    s.read_exact(&mut got).unwrap();
                    s.write_all(&down).unwrap();
                    s.shutdown(Shutdown::Write).unwrap();
                    assert_eq!(s.read_to_end(&mut Vec::new()).unwrap(), 0, "more than was sent");
                    got
                });
                let got = Hand::new(&scene, header, at).exchange(&up);
                assert!(got == down, "{framing} {there}: {} of {MUCH} bytes came down", got.len());
                assert!(far.join().unwrap() == up, "{framing} {there}: other bytes went up");
            });
        }
        let end = reeve.proc.terminate(PATIENCE).unwrap();
        assert_eq!(end.code, 0, "{}", end.text);
        drop((reeve, scene));
        assert_eq!(ground.left(Duration::from_secs(3)).unwrap(), Vec::<String>::new());
    }
}
