//! Listening sockets that a dead dataplane shut down.
//!
//! A dataplane may call `shutdown` on what it holds, and an open socket is one for all who hold it: its successor would
//! be given a socket to which nobody can come. So what does not listen any more when it is to be handed on listens again,
//! or another socket takes its place.
//!
//! Trust: none in the dead dataplane. Promise: the address stays, and so does the mode of a socket's file; what cannot be had
//! again is said, and its port is gone. (Forwards of a `user` network: [`super::user`].)
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, Backlog, SockType, SockaddrLike, SockaddrStorage};

use crate::fault::{Exit, Fault};
use crate::handover::PortPlan;
use crate::port::stream::framing::Framing;
use crate::spec::addr::Addr;
use crate::supervise::listen::{self, SocketFile};
use crate::supervise::say;
use crate::supervise::slot::Slot;

pub(super) const WHY: &str = "a dataplane that died had shut the socket down";

fn is_inet(socket: &OwnedFd) -> bool {
    let at = socket::getsockname::<SockaddrStorage>(socket.as_raw_fd());
    at.is_ok_and(|at| matches!(at.family(), Some(AddressFamily::Inet | AddressFamily::Inet6)))
}

/// Has a TCP socket listen again where it did.
///
/// # Errors
/// The kernel's: somebody else has its port.
pub(super) fn tcp(socket: &OwnedFd, waiting: i32) -> io::Result<()> {
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
        if let Some(user) = &mut self.user {
            return user.listen_again(&mut self.kept).iter().for_each(say::fault);
        }
        let kind = match &self.plan {
            PortPlan::Stream(p) if p.server && p.framing == Framing::Packets => SockType::SeqPacket,
            PortPlan::Stream(p) if p.server => SockType::Stream,
            PortPlan::VhostUser(p) if p.server => SockType::Stream,
            PortPlan::Dgram(_) => return self.end_if_shut(),
            _ => return,
        };
        if !self.kept.first().is_some_and(listen::is_shut) {
            return;
        }
        let what = format!("port '{}'", self.id);
        if let Err(fault) = self.once_more(&what, kind) {
            say::fault(&fault);
            self.kept.clear();
        }
    }

    /// Datagram sockets that are shut would wake the next dataplane for ever. One of a switch's port is made anew; of others
    /// nothing but a new start does that.
    fn end_if_shut(&mut self) {
        if !self.kept.iter().any(listen::is_shut) {
            return;
        }
        self.kept.clear();
        if let Some(plug) = &mut self.plug {
            return plug.pull(Instant::now());
        }
        let what = format!("port '{}'", self.id);
        say::fault(&Fault::new(Exit::Unavailable, what, WHY, "start netreeve again"));
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
                let listen = |s| if is_inet(s) { tcp(s, listen::BACKLOG) } else { listen::listen(s) };
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

    use nix::sys::socket::{self, AddressFamily, Shutdown, SockFlag, UnixAddr, shutdown};

    use super::*;
    use crate::port::stream;

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
    fn datagrams_that_are_shut_are_gone_and_others_stay() {
        for how in [None, Some(Shutdown::Read), Some(Shutdown::Both)] {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            if let Some(how) = how {
                let _is_done = shutdown(socket.as_raw_fd(), how);
            }
            let mut plan = crate::port::dgram::Plan::plugged(1518);
            plan.waits = false;
            let plan = PortPlan::Dgram(plan);
            let mut slot = Slot { kept: vec![socket.into()], ..Slot::bare("d".into(), "dgram", plan) };
            slot.orphaned(Instant::now());
            assert_eq!((slot.gone, slot.kept.len()), (how.is_some(), usize::from(how.is_none())), "{how:?}");
        }
    }
}
