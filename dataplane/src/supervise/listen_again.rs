//! Listening sockets that a dead dataplane shut down.
//!
//! A dataplane may call `shutdown` on what it holds, and an open socket is one for all who hold it: its successor would
//! be given a socket to which nobody can come. So what does not listen any more when it is to be handed on listens again,
//! or another socket takes its place.
//!
//! Trust: none in the dead dataplane. Promise: the address stays, and so does the mode of a socket's file; what cannot be had
//! again is said, and its port is gone (a forward of a `user` network: that forward alone).
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, Backlog, SockType, SockaddrLike, SockaddrStorage, sockopt};

use crate::fault::{Exit, Fault};
use crate::handover::PortPlan;
use crate::port::stream::framing::Framing;
use crate::spec::addr::Addr;
use crate::supervise::listen::{self, SocketFile};
use crate::supervise::say;
use crate::supervise::slot::Slot;

const WHY: &str = "a dataplane that died had shut the socket down";
/// Connections to a forward that may wait for the guest.
const FORWARD: i32 = 128;

fn is_stream(socket: &OwnedFd) -> bool {
    socket::getsockopt(socket, sockopt::SockType).is_ok_and(|kind| kind == SockType::Stream)
}

fn listens(socket: &OwnedFd) -> bool {
    socket::getsockopt(socket, sockopt::AcceptConn).unwrap_or(false)
}

fn is_inet(socket: &OwnedFd) -> bool {
    let at = socket::getsockname::<SockaddrStorage>(socket.as_raw_fd());
    at.is_ok_and(|at| matches!(at.family(), Some(AddressFamily::Inet | AddressFamily::Inet6)))
}

/// Has a TCP socket listen again where it did.
fn again(socket: &OwnedFd, waiting: i32) -> io::Result<()> {
    let at: SockaddrStorage = socket::getsockname(socket.as_raw_fd())?;
    // A port that the kernel chose was given back when the socket was shut, though it is still its name.
    match socket::bind(socket.as_raw_fd(), &at) {
        // It has kept it.
        Ok(()) | Err(Errno::EINVAL) => Ok(socket::listen(socket, Backlog::new(waiting)?)?),
        Err(e) => Err(e.into()),
    }
}

impl Slot {
    /// Makes its listening socket listen again, if it is shut.
    pub(super) fn listen_again(&mut self) {
        let kind = match &self.plan {
            PortPlan::Stream(p) if p.server && p.framing == Framing::Packets => SockType::SeqPacket,
            PortPlan::Stream(p) if p.server => SockType::Stream,
            PortPlan::VhostUser(p) if p.server => SockType::Stream,
            PortPlan::User(_) => return self.forwards_again(),
            _ => return,
        };
        if !self.kept.first().is_some_and(listen::is_shut) {
            return;
        }
        let what = format!("port '{}'", self.id);
        if let Err(fault) = self.once_more(&what, kind) {
            say::say(&fault.to_string());
            self.kept.clear();
        }
    }

    /// The same for the forwards of a `user` network, of which each has a socket of its own. One with a path stays shut,
    /// which is said: only its rule can make another.
    fn forwards_again(&self) {
        // Its other descriptors hear datagrams, are connected, or are no sockets: none of them listens, and none is TCP.
        for socket in &self.kept {
            let done = match (is_inet(socket), is_stream(socket)) {
                (true, true) if listen::is_shut(socket) => again(socket, FORWARD),
                (false, true) if listens(socket) && listen::is_shut(socket) => {
                    Err(io::Error::other("a UNIX socket is shut for good"))
                }
                _ => continue,
            };
            if let Err(e) = done {
                let what = format!("port '{}': listening again for a forward: {e}", self.id);
                let fix = "remove its rule, then add it again";
                say::say(&Fault::new(Exit::Unavailable, what, WHY, fix).to_string());
            }
        }
    }

    fn once_more(&mut self, what: &str, kind: SockType) -> Result<(), Fault> {
        let failed = |e: io::Error| {
            Fault::new(
                Exit::Unavailable,
                format!("{what}: listening again: {e}"),
                WHY,
                "start netreeve again",
            )
        };
        match self.addr.clone() {
            Some(Addr::Unix(path)) => {
                let mode = self.file.as_ref().map_or(0o600, SocketFile::mode);
                // Its own file is free only then.
                self.kept.clear();
                self.file = None;
                let (socket, file) = match kind {
                    SockType::SeqPacket => listen::seqpacket(what, &path, mode)?,
                    _ => listen::unix(what, &path, mode)?,
                };
                self.kept.push(socket);
                self.file = Some(file);
            }
            Some(Addr::Abstract(name)) => {
                self.kept.clear();
                self.kept.push(listen::in_abstract(what, &name, kind)?);
            }
            // Its address is still its own (TCP); a UNIX socket that was handed to us is shut for good.
            _ => {
                let listen = |s| if is_inet(s) { again(s, listen::BACKLOG) } else { listen::listen(s) };
                self.kept.iter().try_for_each(listen).map_err(failed)?;
                if self.kept.iter().any(listen::is_shut) {
                    return Err(failed(io::ErrorKind::NotConnected.into()));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
    use std::time::Instant;

    use nix::sys::socket::{self, AddressFamily, Shutdown, SockFlag, UnixAddr, shutdown};

    use super::*;
    use crate::port::stream;
    use crate::spec::{Config, Kind};
    use crate::supervise::ask::{Asker, Door};
    use crate::supervise::user;

    fn server(addr: Option<Addr>, kept: OwnedFd) -> Slot {
        let plan = PortPlan::Stream(stream::Plan { server: true, ..stream::Plan::default() });
        Slot { kept: vec![kept], addr, ..Slot::bare("n0".into(), "stream", plan) }
    }

    const WAYS: [Shutdown; 2] = [Shutdown::Read, Shutdown::Both];

    /// A dataplane shuts it and dies.
    fn shut(slot: &mut Slot, how: Shutdown) {
        let fd = slot.kept[0].try_clone().unwrap();
        assert!(!listen::is_shut(&fd));
        shutdown(fd.as_raw_fd(), how).unwrap();
        assert!(listen::is_shut(&fd));
        drop(fd);
        slot.orphaned(Instant::now());
    }

    fn comes_again(how: Shutdown) {
        let path = std::env::temp_dir().join(format!("netreeve-again-{}", std::process::id()));
        for kind in [SockType::Stream, SockType::SeqPacket] {
            let (socket, file) = match kind {
                SockType::SeqPacket => listen::seqpacket("t", &path, 0o620).unwrap(),
                _ => listen::unix("t", &path, 0o620).unwrap(),
            };
            let mut slot = Slot { file: Some(file), ..server(Some(Addr::Unix(path.clone())), socket) };
            if let (SockType::SeqPacket, PortPlan::Stream(plan)) = (kind, &mut slot.plan) {
                plan.framing = Framing::Packets;
            }
            shut(&mut slot, how);
            assert!(!listen::is_shut(&slot.kept[0]));
            let flags = SockFlag::SOCK_CLOEXEC;
            let client = socket::socket(AddressFamily::Unix, kind, flags, None).unwrap();
            socket::connect(client.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
            // With somebody in its queue it is no more shut than before.
            assert!(!listen::is_shut(&slot.kept[0]));
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o620);
            drop(slot);
            assert!(!path.exists(), "the file is ours");
        }

        let name = format!("netreeve-again-{}", std::process::id()).into_bytes();
        let mut slot = {
            let socket = listen::in_abstract("t", &name, SockType::Stream).unwrap();
            server(Some(Addr::Abstract(name.clone())), socket)
        };
        shut(&mut slot, how);
        UnixStream::connect_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();

        // One that the kernel chose, and one that we did, as it is the second time.
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = tcp.local_addr().unwrap();
        let mut slot = server(None, tcp.into());
        for _ in 0..2 {
            shut(&mut slot, how);
            TcpStream::connect(at).unwrap();
            assert!(!slot.gone && !listen::is_shut(&slot.kept[0]));
        }
    }

    #[test]
    fn a_path_an_abstract_name_and_a_port_listen_again() {
        WAYS.into_iter().for_each(comes_again);
    }

    #[test]
    fn a_handed_socket_that_is_shut_for_good_is_gone() {
        for how in WAYS {
            let path = std::env::temp_dir().join(format!("netreeve-handed-{}", std::process::id()));
            let mut slot = server(Some(Addr::Fd(9)), UnixListener::bind(&path).unwrap().into());
            shut(&mut slot, how);
            assert!(slot.gone && !slot.can_come_back());
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn forwards_of_a_user_network_listen_again() {
        let path = std::env::temp_dir().join(format!("netreeve-forwards-{}", std::process::id()));
        let unix = path.display();
        let options = format!(
            "user,id=n,hostfwd=udp:127.0.0.1:0-:1,hostfwd=tcp:127.0.0.1:0-:2,hostfwd=unix:{unix}-:3,\
             hostfwd=tcp:[::1]:0-[fec0::15]:4,guestfwd=tcp:10.0.2.100:5-unix:{unix}"
        );
        let mut config = Config::read(&[options], &[], None).unwrap();
        let Kind::User(spec) = config.ports.remove(0).kind else { panic!() };
        let mut asker = Asker::new(Door::Socket("/nonexistent/helper.sock".into()));
        let (host, plan, kept) = user::open("n", *spec, 0o600, &mut asker).unwrap();
        let plan = PortPlan::User(Box::new(plan));
        let mut slot = Slot { kept, user: Some(host), ..Slot::bare("n".into(), "user", plan) };
        let tcp: Vec<usize> = (0..slot.kept.len()).filter(|&n| listens(&slot.kept[n])).collect();
        let [v4, by_path, v6] = tcp[..] else { panic!("{tcp:?}") };
        let at = |slot: &Slot, n: usize| {
            TcpListener::from(slot.kept[n].try_clone().unwrap()).local_addr().unwrap()
        };
        let (v4_at, v6_at) = (at(&slot, v4), at(&slot, v6));
        for how in WAYS {
            for n in 0..slot.kept.len() {
                // All of them, as far as they can be.
                let _is_none = shutdown(slot.kept[n].as_raw_fd(), how);
            }
            assert!(TcpStream::connect(v4_at).is_err() && UnixStream::connect(&path).is_err());
            let many = slot.kept.len();
            slot.orphaned(Instant::now());
            TcpStream::connect(v4_at).unwrap();
            TcpStream::connect(v6_at).unwrap();
            assert!(!slot.gone && slot.kept.len() == many);
            assert!(listen::is_shut(&slot.kept[by_path]), "its rule makes another");
        }
    }
}
