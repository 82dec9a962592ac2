//! TCP of the `user` network with a kernel for a guest: bytes both ways in both families, endings of every kind, forwards,
//! and a link that is slower than the guest. The guest is a namespace behind a tap.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use netreeve_dataplane::port::user::{self, Forward, GuestForward, Plan, To, Way};
use netreeve_tests::netns::{Netns, veth};
use netreeve_tests::transfer::Noise;
use nix::sys::socket::{MsgFlags, send, setsockopt, sockopt};

use crate::support::*;

const GATEWAY: &str = "52:55:0a:00:02:02";
pub(crate) const FAR: [&str; 2] = ["10.9.0.2:7000", "[fd09::2]:7000"];

pub(crate) struct Home {
    pub(crate) guest: Netns,
    pub(crate) host: Netns,
    pub(crate) far: Netns,
    pub(crate) lane: Option<Running>,
}

impl Home {
    pub(crate) fn new(
        vnet: bool,
        change: impl FnOnce(&mut Plan) -> Vec<std::os::fd::OwnedFd> + Send,
    ) -> Self {
        let [guest, host, far] = ["guest", "host", "far"].map(|n| Netns::new(n).unwrap());
        veth(&host, "va", &far, "vb").unwrap();
        host.sh("ip addr add 10.9.0.1/24 dev va; ip addr add fd09::1/64 dev va nodad
                 ip route add unreachable 198.51.100.0/24; ip route add unreachable 2001:db8::/32")
            .unwrap();
        far.sh("ip addr add 10.9.0.2/24 dev vb; ip addr add fd09::2/64 dev vb nodad").unwrap();
        let tap = tap_port(&guest, "g0", vnet);
        guest
            .sh(&format!(
                "ip addr add 10.0.2.15/24 dev g0; ip addr add fec0::15/64 dev g0 nodad; ip link set g0 up
                 ip neigh add 10.0.2.2 lladdr {GATEWAY} dev g0; ip neigh add fec0::2 lladdr {GATEWAY} dev g0
                 ip route add default via 10.0.2.2; ip route add default via fec0::2"
            ))
            .unwrap();
        let lane = host
            .enter(|| {
                let mut plan = Plan::qemu();
                let fds = change(&mut plan);
                run(one(user::open(&plan, fds).unwrap()), tap)
            })
            .unwrap();
        Self { guest, host, far, lane: Some(lane) }
    }

    pub(crate) fn plain() -> Self {
        Self::new(true, |_| Vec::new())
    }

    pub(crate) fn listen(&self, at: &str) -> TcpListener {
        self.far.enter(|| TcpListener::bind(at).unwrap()).unwrap()
    }

    pub(crate) fn call(&self, to: &str) -> std::io::Result<TcpStream> {
        let to: SocketAddr = to.parse().unwrap();
        self.guest.enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(20))).unwrap()
    }

    /// A connection of the guest's, and its far end.
    pub(crate) fn pair(&self, to: &str) -> (TcpStream, TcpStream) {
        let l = self.listen(to);
        let near = patient(self.call(to).unwrap());
        (near, patient(l.accept().unwrap().0))
    }

    pub(crate) fn end(mut self) {
        self.lane.take().unwrap().end();
    }
}

fn patient(s: TcpStream) -> TcpStream {
    s.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    s.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    s
}

fn noise(seed: u64, n: usize) -> Vec<u8> {
    let mut b = vec![0; n];
    Noise::new(seed).fill(&mut b);
    b
}

/// Writes `data` and then the end, and reads to the end, at once.
fn exchange(mut s: TcpStream, data: &[u8]) -> Vec<u8> {
    let mut out = s.try_clone().unwrap();
    std::thread::scope(|t| {
        t.spawn(move || {
            out.write_all(data).unwrap();
            out.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        s.read_to_end(&mut got).unwrap();
        got
    })
}

#[allow(clippy::print_stderr, reason = "figures for whoever reads the log")]
fn both_ways(near: TcpStream, far: TcpStream, n: usize) {
    let (up, down) = (noise(1, n), noise(2, n + 12_345));
    let started = Instant::now();
    let (at_near, at_far) = std::thread::scope(|t| {
        let far = t.spawn(|| exchange(far, &down));
        (exchange(near, &up), far.join().unwrap())
    });
    let rate = (up.len() + down.len()) as f64 * 8.0 / started.elapsed().as_secs_f64() / 1e6;
    eprintln!("{} and {} bytes, {rate:.0} Mbit/s together", up.len(), down.len());
    assert!(at_far == up, "up: {} of {} bytes", at_far.len(), up.len());
    assert!(at_near == down, "down: {} of {} bytes", at_near.len(), down.len());
}

#[test]
fn streams_pass_both_ways_in_both_families() {
    for vnet in [true, false] {
        let home = Home::new(vnet, |_| Vec::new());
        for to in FAR {
            let (near, far) = home.pair(to);
            both_ways(near, far, 16 << 20);
        }
        home.end();
    }
}

/// An urgent byte comes in its place, as any other: the kernel takes none out of the middle.
#[test]
fn urgent_bytes_stay_in_their_place() {
    let home = Home::plain();
    for to in FAR {
        for from_guest in [true, false] {
            let (near, far) = home.pair(to);
            let (mut writer, mut reader) = if from_guest { (near, far) } else { (far, near) };
            setsockopt(&reader.as_fd(), sockopt::OobInline, &true).unwrap();
            for _ in 0..50 {
                writer.write_all(b"before").unwrap();
                assert_eq!(send(writer.as_raw_fd(), b"!", MsgFlags::MSG_OOB).unwrap(), 1);
                writer.write_all(b"behind").unwrap();
            }
            drop(writer);
            let mut got = Vec::new();
            reader.read_to_end(&mut got).unwrap();
            assert_eq!(got, b"before!behind".repeat(50));
        }
    }
    home.end();
}

/// The reader pauses, so that what is on its way is held, stays in sockets, and goes on.
#[test]
fn slow_readers_lose_nothing() {
    let home = Home::plain();
    for (i, to) in FAR.into_iter().enumerate() {
        let (near, far) = home.pair(to);
        let (mut writer, mut reader) = if i == 0 { (near, far) } else { (far, near) };
        let data = noise(3, 24 << 20);
        std::thread::scope(|t| {
            t.spawn(|| {
                writer.write_all(&data).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            std::thread::sleep(Duration::from_millis(400));
            let (mut got, mut part) = (Vec::<u8>::new(), vec![0; 100_000]);
            loop {
                let n = reader.read(&mut part).unwrap();
                if n == 0 {
                    break;
                }
                got.extend(&part[..n]);
                if got.len() % 5 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            assert!(got == data);
        });
    }
    home.end();
}

#[test]
fn many_streams_at_once() {
    let home = Home::plain();
    let l = home.listen(FAR[0]);
    std::thread::scope(|t| {
        t.spawn(|| {
            std::thread::scope(|t| {
                for _ in 0..100 {
                    let s = patient(l.accept().unwrap().0);
                    t.spawn(|| {
                        let mut s = s;
                        let mut got = Vec::new();
                        s.read_to_end(&mut got).unwrap();
                        got.reverse();
                        s.write_all(&got).unwrap();
                    });
                }
            });
        });
        for i in 0..100 {
            let near = patient(home.call(FAR[0]).unwrap());
            t.spawn(move || {
                let data = noise(i, 10_000 + i as usize * 1000);
                let mut got = exchange(near, &data);
                got.reverse();
                assert!(got == data, "{i}");
            });
        }
    });
    home.end();
}

fn resets(s: &TcpStream) {
    setsockopt(&s.as_fd(), sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
}

#[test]
fn endings_are_what_they_were() {
    let home = Home::plain();
    for to in FAR {
        let refused = home.call(to).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{to}");
        // The far end resets: behind its bytes.
        let (mut near, mut far) = home.pair(to);
        far.write_all(b"last words").unwrap();
        resets(&far);
        drop(far);
        let mut got = [0; 100];
        let mut n = 0;
        let e = loop {
            match near.read(&mut got[n..]) {
                Ok(0) => panic!("an end, and no reset"),
                Ok(k) => n += k,
                Err(e) => break e,
            }
        };
        assert_eq!((&got[..n], e.kind()), (&b"last words"[..], ErrorKind::ConnectionReset));
        // The guest resets.
        let (mut near, mut far) = home.pair(to);
        near.write_all(b"x").unwrap();
        assert_eq!(far.read(&mut got).unwrap(), 1);
        resets(&near);
        drop(near);
        assert_eq!(far.read(&mut got).unwrap_err().kind(), ErrorKind::ConnectionReset);
        // One half, then the other.
        for far_first in [true, false] {
            let (near, far) = home.pair(to);
            let (mut first, mut second) = if far_first { (far, near) } else { (near, far) };
            first.shutdown(Shutdown::Write).unwrap();
            assert_eq!(second.read(&mut got).unwrap(), 0);
            for _ in 0..3 {
                second.write_all(b"still here").unwrap();
                first.read_exact(&mut got[..10]).unwrap();
            }
            drop(second);
            assert_eq!(first.read(&mut got).unwrap(), 0);
        }
    }
    for (to, v4) in [("198.51.100.1:80", true), ("[2001:db8::1]:80", false)] {
        let started = Instant::now();
        // On a busy machine `connect_timeout` may find the socket closed before the guest's kernel says why, once in a
        // thousand; on the wire it is the same.
        let told = || home.call(to).map_err(|e| e.raw_os_error().ok_or(e)).unwrap_err();
        let e = told().or_else(|_| told());
        let known = [libc::EHOSTUNREACH, libc::ENETUNREACH, libc::EACCES];
        assert!(e.as_ref().is_ok_and(|e| known.contains(e)), "{to}: {e:?}");
        assert!(started.elapsed() < Duration::from_secs(15), "said, not waited for ({v4})");
    }
    home.end();
}

#[test]
fn somebody_comes_from_the_hosts_side_and_a_guest_forward_answers() {
    let home = Home::new(true, |plan| {
        let mut fds = Vec::new();
        for (id, at, guest) in [(1, "127.0.0.1:8080", "10.0.2.15:80"), (2, "[::1]:8080", "[fec0::15]:80")] {
            plan.forwards.push(Forward { id, way: Way::Tcp, guest: guest.parse().unwrap(), range: None });
            fds.push(
                TcpListener::bind(at)
                    .map(|l| {
                        l.set_nonblocking(true).unwrap();
                        l.into()
                    })
                    .unwrap(),
            );
        }
        plan.guest_forwards.push(GuestForward {
            at: "10.0.2.100:25".parse().unwrap(),
            to: To::Address("10.9.0.2:7000".parse().unwrap()),
        });
        fds
    });
    for (at, listen) in [("127.0.0.1:8080", "0.0.0.0:80"), ("[::1]:8080", "[::]:80")] {
        // Nobody listens yet.
        let mut s = patient(home.host.enter(|| TcpStream::connect(at).unwrap()).unwrap());
        assert_eq!(s.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        let l = home.guest.enter(|| TcpListener::bind(listen).unwrap()).unwrap();
        let s = patient(home.host.enter(|| TcpStream::connect(at).unwrap()).unwrap());
        let (g, from) = l.accept().unwrap();
        let seen = if from.is_ipv4() { "10.0.2.2" } else { "fec0::2" };
        assert_eq!(from.ip().to_canonical().to_string().replace("::ffff:", ""), seen);
        assert_eq!(from.port(), s.local_addr().unwrap().port());
        both_ways(patient(g), s, 1 << 20);
    }
    let l = home.listen(FAR[0]);
    let near = patient(home.call("10.0.2.100:25").unwrap());
    both_ways(near, patient(l.accept().unwrap().0), 1 << 20);
    home.end();
}

/// A link slower than the guest: it is used, and the guest sends nothing twice.
#[test]
fn a_slow_link_is_full_and_nothing_is_sent_twice() {
    let home = Home::plain();
    home.host.sh("tc qdisc add dev va root tbf rate 200mbit burst 64kb latency 20ms").unwrap();
    // The kernel's probes for a lost tail come after two round trips already: a busy machine is late by more than that.
    home.guest.sh("echo 0 >/proc/sys/net/ipv4/tcp_early_retrans").unwrap();
    let (near, far) = home.pair(FAR[0]);
    let data = noise(5, 20 << 20);
    let started = Instant::now();
    let got = std::thread::scope(|t| {
        let far = t.spawn(|| exchange(far, &[]));
        exchange(near, &data);
        far.join().unwrap()
    });
    assert!(got == data);
    let rate = data.len() as f64 * 8.0 / started.elapsed().as_secs_f64() / 1e6;
    let again = home.guest.sh("awk '/^Tcp:/ && $13 ~ /^[0-9]+$/ {print $13}' /proc/net/snmp").unwrap();
    println!("{rate:.0} Mbit/s of 200, {} segments again", again.trim());
    assert_eq!(again.trim(), "0", "segments that the guest sent again");
    home.end();
}
