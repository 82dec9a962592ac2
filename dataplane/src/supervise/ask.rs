//! Asks the helper, and says in three parts why it did not give.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use netreeve_shared::client::{AskError, DEFAULT_SOCKET, Helper};
use netreeve_shared::grant::Grant;
use netreeve_shared::refusal::Refusal;
use netreeve_shared::request::Request;
use nix::unistd::{User, geteuid};

use crate::fault::{Exit, Fault};
use crate::sys::kernel;

/// Which helper to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Door {
    /// The service that listens at this path.
    Socket(PathBuf),
    /// This binary, started for one session.
    Exec(PathBuf),
}

impl Default for Door {
    fn default() -> Self {
        Self::Socket(DEFAULT_SOCKET.into())
    }
}

/// A session with the helper, opened when the first thing is asked for.
#[derive(Debug)]
pub struct Asker {
    door: Door,
    session: Option<Helper>,
}

impl Asker {
    /// Through `door`.
    #[must_use]
    pub fn new(door: Door) -> Self {
        Self { door, session: None }
    }

    /// Asks for one thing. `what` names the port in a fault.
    ///
    /// # Errors
    /// No helper, or a refusal.
    pub fn ask(&mut self, what: &str, request: &Request) -> Result<(Grant, Vec<OwnedFd>), Fault> {
        let mut session = match self.session.take() {
            Some(s) => s,
            None => self.open(what)?,
        };
        let answer = session.ask(request);
        self.session = Some(session);
        answer.map_err(|e| explain(what, request, &e))
    }

    /// Asks for a socket, of an L2TPv3 session or at a low port, which is all that such a grant brings.
    ///
    /// # Errors
    /// See [`Asker::ask`].
    pub fn socket(&mut self, what: &str, request: &Request) -> Result<OwnedFd, Fault> {
        let (_, fds) = self.ask(what, request)?;
        fds.into_iter().next().ok_or_else(|| explain(what, request, &AskError::Mismatch))
    }

    /// Opens the session.
    fn open(&self, what: &str) -> Result<Helper, Fault> {
        let session = match &self.door {
            Door::Socket(path) => Helper::connect(path),
            Door::Exec(path) => Helper::exec(path),
        };
        session.map_err(|e| not_reached(what, &self.door, &e))
    }

    /// The session, to be kept for as long as what it granted is used.
    pub fn into_session(self) -> Option<Helper> {
        self.session
    }
}

/// The fault for a helper that cannot be reached.
#[must_use]
pub fn not_reached(what: &str, door: &Door, e: &io::Error) -> Fault {
    let denied = e.kind() == io::ErrorKind::PermissionDenied;
    let exit = if denied { Exit::Denied } else { Exit::Unavailable };
    let (tried, fix) = match door {
        Door::Exec(path) => {
            let fix = "give --helper the path of netreeve-helper, installed with its file capabilities";
            (format!("starting the helper {}", path.display()), fix.to_owned())
        }
        Door::Socket(path) => {
            let fix = if denied {
                let group = "the socket's group may use it";
                format!("{group}: sudo usermod -aG netreeve {}, and log in again", user_name())
            } else {
                let start = "sudo systemctl enable --now netreeve-helper.socket";
                format!("start it: {start}; or name the binary: --helper PATH")
            };
            (format!("reaching the helper at {}", path.display()), fix)
        }
    };
    Fault::new(exit, format!("{what}: {tried}"), e, fix)
}

/// The name of this process's user, or its number.
#[must_use]
pub fn user_name() -> String {
    let uid = geteuid();
    User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |u| u.name)
}

fn explain(what: &str, request: &Request, e: &AskError) -> Fault {
    let (exit, fix) = match e {
        AskError::Refused(Refusal::Denied) => (Exit::Denied, denied(request)),
        AskError::Refused(Refusal::Limit | Refusal::Busy) | AskError::Timeout => (
            Exit::TryAgain,
            "try again later, or end what uses it; the helper's log tells more to root".into(),
        ),
        AskError::Refused(Refusal::Bad(_)) | AskError::Bad(_) => (Exit::Config, "change the option".into()),
        AskError::Refused(Refusal::Failed { errno, .. }) => {
            let exit = if *errno == libc::EBUSY { Exit::TryAgain } else { Exit::Unavailable };
            (exit, failed(request, *errno))
        }
        AskError::Refused(Refusal::Protocol | Refusal::Ticket)
        | AskError::Codec(_)
        | AskError::Sequence
        | AskError::Mismatch
        | AskError::Label(_) => {
            (Exit::General, "netreeve and its helper must be of one version: reinstall both".into())
        }
        AskError::Closed | AskError::Io(_) => {
            (Exit::Unavailable, "see the helper's log: journalctl -u netreeve-helper".into())
        }
    };
    Fault::new(exit, format!("{what}: asking the helper for {}", named(request)), e, fix)
}

/// What is asked for, in a few words.
fn named(request: &Request) -> String {
    match request {
        Request::Tap(t) => match &t.bridge {
            Some(b) => format!("a tap in bridge {}", b.name),
            None => "a tap".into(),
        },
        Request::Xsk(x) | Request::XskPinned(x) => {
            let last = x.start_queue.saturating_add(x.queues).saturating_sub(1);
            format!("AF_XDP on {}, queues {} to {last}", x.interface, x.start_queue)
        }
        Request::Activate(_) => "the XDP program".into(),
        Request::L2tp(l) => format!("L2TPv3 over IP from {} to {}, session {}", l.src, l.dst, l.session),
        Request::Listen(l) => {
            let kind = if l.udp { "UDP" } else { "TCP" };
            format!("{kind} port {} of {}", l.port, l.address)
        }
    }
}

/// The rule that an administrator would write.
fn denied(request: &Request) -> String {
    let user = user_name();
    let rule = match request {
        Request::Tap(t) => match &t.bridge {
            Some(b) => format!("allow user:{user} bridge {}", b.name),
            None => format!("allow user:{user} tap *"),
        },
        Request::Xsk(x) if !kernel::since(kernel::MAPS_BOUND) => {
            format!(
                "allow user:{user} xsk {0}' and, before Linux 6.4, 'allow user:{user} xsk-pinned {0}",
                x.interface
            )
        }
        Request::Xsk(x) => format!("allow user:{user} xsk {}", x.interface),
        Request::XskPinned(x) => format!("allow user:{user} xsk-pinned {}", x.interface),
        Request::Activate(_) => "allow ...".into(),
        Request::L2tp(l) => format!("allow user:{user} l2tpv3 {} session={}", l.dst, l.session),
        Request::Listen(l) => format!("allow user:{user} listen {} port={}", l.address, l.port),
    };
    format!(
        "root can add '{rule}' to /etc/netreeve/policy.conf (netreeve-helper --explain tells which line decides)"
    )
}

fn failed(request: &Request, errno: i32) -> String {
    match (request, errno) {
        (Request::Xsk(x) | Request::XskPinned(x), libc::ENODEV | libc::ENXIO) => {
            format!("see that the interface is there: ip link show {}", x.interface)
        }
        (Request::Xsk(x) | Request::XskPinned(x), libc::EINVAL) => {
            format!("the interface may have fewer queues (ethtool -l {}); or try mode=skb", x.interface)
        }
        (Request::Xsk(_) | Request::XskPinned(_), libc::EOPNOTSUPP) => "try mode=skb".into(),
        (Request::Xsk(_) | Request::XskPinned(_), libc::ENOSYS) => {
            "a newer kernel: this one does not hold a socket to its interface (6.5, 6.1.39 and 5.15.121 do)"
                .into()
        }
        (Request::Xsk(x) | Request::XskPinned(x), libc::EBUSY) => {
            format!("another program holds the queue or the interface: bpftool net show dev {}", x.interface)
        }
        (Request::L2tp(l), libc::EADDRNOTAVAIL) => {
            format!("give src= an address of this machine, not {}", l.src)
        }
        (Request::L2tp(l), libc::ENETUNREACH | libc::EHOSTUNREACH) => {
            format!("see that there is a way to the peer: ip route get {}", l.dst)
        }
        (Request::Listen(l), libc::EADDRNOTAVAIL) => format!("{} is no address of this machine", l.address),
        (_, libc::ENOBUFS | libc::ENOMEM) => "lower umem= or queues=".into(),
        (Request::Tap(t), libc::ENODEV) if t.bridge.is_some() => {
            "make the bridge, or give create=on if the policy allows it".into()
        }
        (Request::Tap(_), libc::ENOENT | libc::ENODEV) => "load the driver: sudo modprobe tun".into(),
        _ => "see the helper's log: journalctl -u netreeve-helper".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netreeve_shared::request::TapRequest;

    #[test]
    fn a_missing_helper_is_unavailable_and_says_how_to_start_it() {
        let mut asker = Asker::new(Door::Socket("/nonexistent/helper.sock".into()));
        let tap =
            TapRequest { name: None, persist: false, queues: 1, vnet_header: true, mtu: None, bridge: None };
        let fault = asker.ask("port 'n0'", &Request::Tap(tap.clone())).unwrap_err();
        assert_eq!((fault.exit, fault.fix.contains("systemctl")), (Exit::Unavailable, true));
        let mut asker = Asker::new(Door::Exec("/nonexistent/helper".into()));
        assert_eq!(asker.ask("x", &Request::Tap(tap)).unwrap_err().exit, Exit::Unavailable);
    }

    #[test]
    fn every_refusal_has_its_exit_code_and_a_way_out() {
        use netreeve_shared::refusal::Step;
        let tap = Request::Tap(TapRequest {
            name: None,
            persist: false,
            queues: 1,
            vnet_header: true,
            mtu: None,
            bridge: None,
        });
        for (refusal, exit) in [
            (Refusal::Denied, Exit::Denied),
            (Refusal::Limit, Exit::TryAgain),
            (Refusal::Busy, Exit::TryAgain),
            (Refusal::Protocol, Exit::General),
            (Refusal::Failed { step: Step::OpenTun, errno: libc::ENOENT }, Exit::Unavailable),
            (Refusal::Failed { step: Step::BindQueue, errno: libc::EBUSY }, Exit::TryAgain),
        ] {
            let fault = explain("p", &tap, &AskError::Refused(refusal));
            assert_eq!(fault.exit, exit, "{refusal:?}");
            assert!(!fault.fix.is_empty() && !fault.why.is_empty());
        }
    }
}
