//! Listening sockets that a dead dataplane shut down.
//!
//! A dataplane may call `shutdown` on what it holds, and an open socket is one for all who hold it: its successor would
//! be given a socket to which nobody can come. So what does not listen any more when it is to be handed on listens again,
//! or another socket takes its place.
//!
//! Trust: none in the dead dataplane. Promise: the address stays (but for a port that the kernel chose), and so does the
//! mode of a socket's file; what cannot be had again is said, and its port is gone.
#![forbid(unsafe_code)]

use std::io;

use nix::sys::socket::SockType;

use crate::fault::{Exit, Fault};
use crate::handover::PortPlan;
use crate::port::stream::framing::Framing;
use crate::spec::addr::Addr;
use crate::supervise::listen::{self, SocketFile};
use crate::supervise::say;
use crate::supervise::slot::Slot;

impl Slot {
    /// Makes its listening socket listen again, if it is shut.
    pub(super) fn listen_again(&mut self) {
        let kind = match &self.plan {
            PortPlan::Stream(p) if p.server && p.framing == Framing::Packets => SockType::SeqPacket,
            PortPlan::Stream(p) if p.server => SockType::Stream,
            PortPlan::VhostUser(p) if p.server => SockType::Stream,
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

    fn once_more(&mut self, what: &str, kind: SockType) -> Result<(), Fault> {
        let failed = |e: io::Error| {
            let why = "a dataplane that died had shut the socket down";
            Fault::new(
                Exit::Unavailable,
                format!("{what}: listening again: {e}"),
                why,
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
                self.kept.iter().try_for_each(listen::listen).map_err(failed)?;
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

        // A port of the kernel's choice is chosen anew; this one is ours.
        let (tcp, at) = ours();
        let mut slot = server(None, tcp.into());
        shut(&mut slot, how);
        TcpStream::connect(at).unwrap();
        assert!(!slot.gone && !listen::is_shut(&slot.kept[0]));
    }

    /// A TCP listener with a port that we chose.
    fn ours() -> (TcpListener, std::net::SocketAddr) {
        loop {
            let at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            if let Ok(tcp) = TcpListener::bind(at) {
                break (tcp, at);
            }
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
}
