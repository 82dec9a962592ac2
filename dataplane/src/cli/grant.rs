//! `netreeve grant`: descriptors from the helper, straight into a VMM that has the backend itself.
//!
//! Taps are the VMM's own from then on, and netreeve becomes the VMM. Sockets of `af-xdp` last as long as the session
//! with the helper, so netreeve stays and waits for the VMM.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;

use netreeve_shared::client::Helper;
use netreeve_shared::grant::Grant;
use netreeve_shared::request::Request;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::cli;
use crate::fault::{Exit, Fault};
use crate::spec::{Kind, Port, tap::Tap};
use crate::supervise::ask::Asker;
use crate::supervise::{Signals, command, say, slot};

/// What the command gets.
struct Granted {
    id: String,
    fds: Vec<OwnedFd>,
    ifname: String,
    mac: String,
    mtu: u32,
    /// The helper's session must be kept.
    session: bool,
}

pub(super) fn grant(arguments: &cli::Grant) -> Result<u8, Fault> {
    let config = arguments.ports.read(&[])?;
    if config.ports.is_empty() {
        let fix = "netreeve grant --netdev tap,id=n0,br=br0 -- qemu-system-x86_64 -netdev tap,id=x,fd={n0}";
        return Err(Fault::new(Exit::Usage, "grant", "no --netdev", fix));
    }
    for warning in config.warnings.iter().filter(|w| !w.ends_with(" has no peer")) {
        say::say(&format!("warning: {warning}"));
    }
    let mut asker = Asker::new(arguments.ports.helper.door());
    let mut granted = Vec::new();
    for port in config.ports {
        granted.push(ask(port, &mut asker)?);
    }
    let words = fill(&arguments.command, &granted);
    let session = if granted.iter().any(|g| g.session) { asker.into_session() } else { None };
    start(&words, granted, session)
}

fn ask(port: Port, asker: &mut Asker) -> Result<Granted, Fault> {
    let what = format!("port '{}'", port.id);
    let request = match &port.kind {
        Kind::Tap(Tap::Asked(request)) => Request::Tap(request.clone()),
        Kind::Xsk(xsk) => xsk.pinned(),
        other => {
            let why = format!("{} needs no grant: it takes no privilege", other.name());
            let fix = "grant is for tap, bridge and af-xdp; give the rest to the command itself";
            return Err(Fault::new(Exit::Config, what, why, fix));
        }
    };
    let (grant, fds) = asker.ask(&what, &request)?;
    let (ifname, mac, mtu, session) = match grant {
        Grant::Tap(t) => (t.name, t.mac, t.mtu, false),
        Grant::XskPinned(x) => (x.name, x.mac, x.mtu, true),
        Grant::Xsk(_) | Grant::Active(_) | Grant::L2tp(_) | Grant::Listen(_) => {
            return Err(slot::mislabelled(&what));
        }
    };
    Ok(Granted { id: port.id, fds, ifname: ifname.to_string(), mac: mac.to_string(), mtu, session })
}

fn fill(words: &[OsString], granted: &[Granted]) -> Vec<OsString> {
    let mut values = Vec::new();
    for g in granted {
        let fds: Vec<String> = g.fds.iter().map(|f| f.as_raw_fd().to_string()).collect();
        values.push((g.id.clone(), fds.join(":")));
        values.push((format!("{}.ifname", g.id), g.ifname.clone()));
        values.push((format!("{}.queues", g.id), g.fds.len().to_string()));
        values.push((format!("{}.mac", g.id), g.mac.clone()));
        values.push((format!("{}.mtu", g.id), g.mtu.to_string()));
    }
    words.iter().map(|w| command::fill(w, &values)).collect()
}

fn start(words: &[OsString], granted: Vec<Granted>, session: Option<Helper>) -> Result<u8, Fault> {
    let mut command = command::prepare(words)?;
    for fd in granted.iter().flat_map(|g| &g.fds) {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))
            .map_err(|e| Fault::new(Exit::General, "passing a descriptor on", e, ""))?;
    }
    let Some(session) = session else {
        // Returns only if it fails.
        return Err(command::not_started(words, &command.exec()));
    };
    let mut signals = Signals::new()?;
    let mut child = command.spawn().map_err(|e| command::not_started(words, &e))?;
    // The command has its own copies; its end shall be theirs.
    drop(granted);
    let status = signals.wait_for(&mut child)?;
    drop(session);
    Ok(command::code(status))
}
