//! The sockets of forwards after a dataplane's end, as its successor is to have them.
//!
//! An open socket is one for all who hold it. A dataplane that was taken over can shut it, and nobody comes any more, or no
//! answer leaves; or it can connect one of datagrams, and all but one are strangers. So TCP's listen again where they did,
//! and others of the same address take the place of UDP's and of those with a path.
//!
//! Trust: none in the dead dataplane. Promise: the address stays, so does the mode of a socket's file, and at no moment is
//! a port free for others; what was left alone is not touched, nor is what waits in it; what cannot be had again is said, and
//! that forward alone is gone.
#![forbid(unsafe_code)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{self, MsgFlags, SockaddrStorage, sockopt};

use super::{Host, number};
use crate::fault::{Exit, Fault};
use crate::spec::forward::Listen;
use crate::supervise::listen;
use crate::supervise::listen_again::{WHY, tcp};
use crate::supervise::ports;

/// Connections that may wait for the guest.
const WAITING: i32 = 128;
/// More than any datagram.
const TOO_LONG: usize = 65_535;

impl Host {
    /// Sees to them: `kept` are the port's descriptors, the table's first. What cannot be mended is said.
    pub(in crate::supervise) fn listen_again(&mut self, kept: &mut [OwnedFd]) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut all = kept.iter_mut();
        for open in &mut self.table {
            for kept in all.by_ref().take(number(open.sockets)) {
                let done = match &open.rule.listen {
                    Listen::Tcp(_) if listen::is_shut(kept) => {
                        tcp(kept, WAITING).map_err(|e| ports::words(&e))
                    }
                    Listen::Udp(to) if is_spoilt(kept) => {
                        // One that is in another namespace has its successor there.
                        let inside = self.inside.as_mut().filter(|_| to.inside);
                        let new = match inside {
                            Some(inside) => ports::beside(kept, to, |to| inside.again(to)),
                            None => ports::beside(kept, to, ports::again),
                        };
                        new.map(|new| *kept = new).map_err(|e| ports::words(&e))
                    }
                    Listen::Unix(path) if listen::is_shut(kept) => {
                        // The old file is no longer there when its own is let go of, and the old socket is, so that no
                        // other file can have its number.
                        listen::unix(&self.what, path, self.mode).map_err(|f| f.why).map(|(new, file)| {
                            open.file = Some(file);
                            *kept = new;
                        })
                    }
                    _ => continue,
                };
                if let Err(why) = done {
                    let what = format!("{}: listening again for hostfwd={}: {why}", self.what, open.rule);
                    let fix = "remove the rule, then add it again (netreeve set)";
                    faults.push(Fault::new(Exit::Unavailable, what, WHY, fix));
                }
            }
        }
        faults
    }
}

/// A socket of datagrams is not what it was: it was shut, or connected.
fn is_spoilt(socket: &OwnedFd) -> bool {
    let connected = socket::getpeername::<SockaddrStorage>(socket.as_raw_fd()).is_ok();
    connected || listen::is_shut(socket) || is_mute(socket).unwrap_or(false)
}

/// Nothing can be sent by it. The kernel says so to nobody but who sends: a byte that another is to follow in the same datagram,
/// which then is too long, so that nothing leaves.
fn is_mute(socket: &OwnedFd) -> io::Result<bool> {
    let at: SockaddrStorage = socket::getsockname(socket.as_raw_fd())?;
    let v4 = at.as_sockaddr_in().map(|a| SocketAddr::new(a.ip().into(), a.port()));
    let at = v4.or_else(|| at.as_sockaddr_in6().map(|a| SocketAddr::new(a.ip().into(), a.port())));
    let to = at.map(|at| match at.ip() {
        IpAddr::V4(a) if a.is_unspecified() => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), at.port()),
        IpAddr::V6(a) if a.is_unspecified() => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), at.port()),
        _ => at,
    });
    let to = SockaddrStorage::from(to.ok_or(io::ErrorKind::InvalidInput)?);
    let more = MsgFlags::from_bits_retain(libc::MSG_MORE) | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    // What came of an answer before is no word on this one.
    let _before = socket::getsockopt(socket, sockopt::SocketError);
    let said = socket::sendto(socket.as_raw_fd(), &[0], &to, more);
    if said.is_ok() {
        let _too_long = socket::sendto(socket.as_raw_fd(), &[0; TOO_LONG], &to, more);
    }
    // What is to be found is only reached where there is a way: a socket that cannot even send to itself is as good as mute.
    Ok(said.is_err_and(|e| !matches!(e, Errno::EAGAIN | Errno::ENOBUFS)))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
    use nix::sys::socket::{Shutdown, shutdown, sockopt};

    use super::*;
    use crate::handover::PortPlan;
    use crate::spec::{Config, Kind};
    use crate::supervise::ask::{Asker, Door};
    use crate::supervise::slot::Slot;
    use crate::supervise::user;

    const WAYS: [Shutdown; 3] = [Shutdown::Write, Shutdown::Read, Shutdown::Both];

    fn slot(options: &str) -> Slot {
        let mut config = Config::read(&[format!("user,id=n{options}")], &[], None).unwrap();
        let Kind::User(spec) = config.ports.remove(0).kind else { panic!() };
        let mut asker = Asker::new(Door::Socket("/nonexistent/helper.sock".into()));
        let (host, plan, kept) = user::open("n", *spec, None, 0o600, &mut asker).unwrap();
        let plan = PortPlan::User(Box::new(plan));
        Slot { kept, user: Some(host), ..Slot::bare("n".into(), "user", plan) }
    }

    fn place(fd: &OwnedFd) -> SocketAddr {
        UdpSocket::from(fd.try_clone().unwrap()).local_addr().unwrap()
    }

    #[test]
    fn forwards_of_a_user_network_listen_again() {
        let path = std::env::temp_dir().join(format!("netreeve-forwards-{}", std::process::id()));
        let unix = path.display();
        let mut slot = slot(&format!(
            ",hostfwd=udp:127.0.0.1:0-:1,hostfwd=tcp:127.0.0.1:0-:2,hostfwd=unix:{unix}-:3,\
             hostfwd=tcp:[::1]:0-[fec0::15]:4,guestfwd=tcp:10.0.2.100:5-unix:{unix}"
        ));
        let at = |n: usize| TcpListener::from(slot.kept[n].try_clone().unwrap()).local_addr().unwrap();
        let (v4, v6, many) = (at(1), at(3), slot.kept.len());
        for how in WAYS {
            for fd in &slot.kept {
                // All of them, as far as they can be.
                let _is_none = shutdown(fd.as_raw_fd(), how);
            }
            if how != Shutdown::Write {
                assert!(TcpStream::connect(v4).is_err() && UnixStream::connect(&path).is_err());
            }
            slot.orphaned(Instant::now());
            TcpStream::connect(v4).unwrap();
            TcpStream::connect(v6).unwrap();
            UnixStream::connect(&path).unwrap();
            assert!(!slot.gone && slot.kept.len() == many);
        }
        drop(slot);
        assert!(!path.exists(), "the file is ours");
    }

    /// What comes to it, and an answer.
    fn talks(fd: &OwnedFd, at: SocketAddr) {
        let ours = UdpSocket::from(fd.try_clone().unwrap());
        let peer = UdpSocket::bind((at.ip(), 0)).unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        peer.send_to(b"hello", at).unwrap();
        assert_eq!(came(fd), (5, peer.local_addr().unwrap()));
        ours.send_to(b"answer", peer.local_addr().unwrap()).unwrap();
        assert_eq!(peer.recv_from(&mut [0; 9]).unwrap(), (6, at));
        assert!(!socket::getsockopt(fd, sockopt::ReuseAddr).unwrap(), "nobody shares it");
    }

    /// What comes to a socket that does not wait.
    fn came(fd: &OwnedFd) -> (usize, SocketAddr) {
        let ours = UdpSocket::from(fd.try_clone().unwrap());
        let mut tries = (0..500).map(|_| {
            std::thread::sleep(Duration::from_millis(2));
            ours.recv_from(&mut [0; 9])
        });
        tries.find_map(Result::ok).unwrap()
    }

    /// However it was spoilt, it is as before; and one that was not keeps what waits in it.
    #[test]
    fn udp_forwards_hear_everybody_and_answer_again() {
        let mut slot =
            slot(",hostfwd=udp:127.0.0.1:0-:1,hostfwd=udp:[::1]:0-[fec0::15]:2,hostfwd=udp:*:0-:3");
        let at: Vec<SocketAddr> = slot.kept.iter().map(place).collect();
        let called =
            |n: usize| if n == 2 { SocketAddr::new([127, 0, 0, 1].into(), at[2].port()) } else { at[n] };
        for how in WAYS {
            for n in 0..2 {
                // The kernel complains, and does it.
                assert_eq!(shutdown(slot.kept[n].as_raw_fd(), how), Err(Errno::ENOTCONN));
            }
            let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
            peer.send_to(b"waits", called(2)).unwrap();
            slot.orphaned(Instant::now());
            let port = peer.local_addr().unwrap().port();
            assert_eq!(came(&slot.kept[2]), (5, SocketAddr::new(mapped(), port)));
            assert_eq!(slot.kept.iter().map(place).collect::<Vec<_>>(), at);
            talks(&slot.kept[0], at[0]);
            talks(&slot.kept[1], at[1]);
        }
        let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
        UdpSocket::from(slot.kept[0].try_clone().unwrap()).connect(stranger.local_addr().unwrap()).unwrap();
        slot.orphaned(Instant::now());
        talks(&slot.kept[0], at[0]);
    }

    fn mapped() -> IpAddr {
        Ipv4Addr::LOCALHOST.to_ipv6_mapped().into()
    }

    /// Whoever is given one that is shut is not woken over and over, as long as it asks for edges.
    #[test]
    fn one_that_is_shut_wakes_once() {
        for how in WAYS {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let _is_done = shutdown(socket.as_raw_fd(), how);
            let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
            epoll.add(&socket, EpollEvent::new(flags, 0)).unwrap();
            let woken = || epoll.wait(&mut [EpollEvent::empty(); 4], EpollTimeout::ZERO).unwrap();
            assert!(woken() <= 1 && woken() == 0, "{how:?}");
        }
    }
}
