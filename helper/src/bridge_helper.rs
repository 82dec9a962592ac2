//! The face of `qemu-bridge-helper`: the same command line, the same reply, the same file, so that QEMU and libvirt
//! can name it as their helper unchanged.
//!
//! `[--use-vnet] --br=BRIDGE --fd=NUMBER`; the reply is one byte with the tap's descriptor over the stream socket
//! NUMBER; exit 0, or 1 with one line on standard error.
//!
//! Trust: the caller chose every argument and the socket. Promise: a tap in a bridge that `bridge.conf` or the policy
//! allows and neither denies, and nothing else. `bridge.conf` and its includes are read with the caller's own rights,
//! which is how an include of mode 0640 gives a right to a group.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use netreeve_shared::fdkind;
use netreeve_shared::ifname::IfName;
use netreeve_shared::refusal::Refusal;
use netreeve_shared::request::{BridgeRequest, Request, TapRequest};
use nix::errno::Errno;
use nix::unistd::alarm;
use sendfd::SendWithFd;

use crate::audit::{Log, rule};
use crate::bridge_conf::{self, Acl, Word};
use crate::caller;
use crate::confine;
use crate::names;
use crate::policy::{Caller, Decision, Policy, Why, judge};
use crate::policy_file::{self, Source, Trust};
use crate::provide;

/// Names by which the binary is this face.
pub const NAMES: [&str; 2] = ["netreeve-bridge-helper", "qemu-bridge-helper"];
/// The whole run may take this many seconds.
const WATCHDOG: u32 = 10;
const USAGE: &str = "Usage: netreeve-bridge-helper [--use-vnet] --br=bridge --fd=unixfd";

/// The command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// `--use-vnet`.
    pub vnet_header: bool,
    /// `--br=`.
    pub bridge: IfName,
    /// `--fd=`.
    pub fd: RawFd,
}

/// Reads the command line, without the program's name.
///
/// # Errors
/// What is wrong with it.
pub fn parse<S: AsRef<str>>(arguments: &[S]) -> Result<Order, String> {
    let (mut vnet_header, mut bridge, mut fd) = (false, None, None);
    for argument in arguments.iter().map(AsRef::as_ref) {
        if argument == "--use-vnet" {
            vnet_header = true;
        } else if let Some(name) = argument.strip_prefix("--br=") {
            bridge = Some(IfName::new(name).map_err(|e| format!("--br: {e}"))?);
        } else if let Some(text) = argument.strip_prefix("--fd=") {
            fd = names::number(text).and_then(|n| RawFd::try_from(n).ok());
        } else {
            return Err(USAGE.to_owned());
        }
    }
    match (bridge, fd) {
        (Some(bridge), Some(fd)) => Ok(Order { vnet_header, bridge, fd }),
        _ => Err(USAGE.to_owned()),
    }
}

/// What both files say together: a denial in either is final, an allowance in either is enough.
#[must_use]
pub fn verdict(
    acl: &Acl,
    policy: &Policy,
    policy_path: &str,
    caller: &Caller,
    order: &Order,
) -> (bool, String) {
    let by_acl = acl.word(order.bridge);
    if let Word::Denied(place) = by_acl {
        return (false, place);
    }
    let bridge = Some(BridgeRequest { name: order.bridge, create: false, isolated: false });
    let vnet_header = order.vnet_header;
    let tap = TapRequest { name: None, persist: false, queues: 1, vnet_header, mtu: None, bridge };
    let by_policy = judge(policy, caller, &Request::Tap(tap));
    let line = rule(policy_path, by_policy.why);
    match (by_policy.decision, by_policy.why, by_acl) {
        (Decision::Allow, ..) => (true, line),
        (Decision::Refuse, Why::Denied(_), _) => (false, line),
        (Decision::Refuse, _, Word::Allowed(place)) => (true, place),
        (Decision::Refuse, ..) => (false, line),
    }
}

/// Reads both files. At least one must be there.
fn read_files() -> Result<(Acl, Policy), String> {
    // Only what is surely not there is absent: a file that cannot be looked at may deny.
    let absent = |path| std::fs::symlink_metadata(path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
    let (conf, policy) = (bridge_conf::DEFAULT_PATH, policy_file::DEFAULT_PATH);
    let mut open = |path: &str| policy_file::read(Path::new(path), Trust::Root, true);
    match (absent(conf), absent(policy)) {
        (true, true) => Err(format!("there is neither {conf} nor {policy}: nothing is allowed")),
        (true, false) => Ok(Acl::default()),
        (false, _) => bridge_conf::read(conf, &mut open),
    }
    .and_then(|acl| {
        let source = Source::new(policy.into(), Trust::Root);
        let policy = if absent(policy) { Ok(Policy::default()) } else { source.policy() };
        Ok((acl, policy.map_err(|why| why.join("; "))?))
    })
}

/// Runs the face, privileges already given up but for the needed capabilities.
///
/// # Errors
/// The one line for standard error.
pub fn run(order: &Order, socket: OwnedFd, log: &Log) -> Result<(), String> {
    alarm::set(WATCHDOG);
    let kind = fdkind::socket(socket.as_fd()).map_err(|e| format!("--fd={}: {e}", order.fd))?;
    if kind.family != libc::AF_UNIX || kind.listening {
        return Err(format!("--fd={} is not a connected UNIX socket", order.fd));
    }
    let caller = caller::myself().map_err(|e| format!("cannot tell who is asking: {e}"))?;
    // What the files say is for root's log: some are readable only to those whom they concern.
    let (acl, policy) = read_files().map_err(|why| {
        log.line(&format!("refuse uid={} what=bridge-helper why=\"{why}\"", caller.uid));
        "the access control files cannot be read (details in the system's log)".to_owned()
    })?;
    confine::lock_in(&[]).map_err(|e| format!("cannot confine itself: {e}"))?;
    let (allowed, place) = verdict(&acl, &policy, policy_file::DEFAULT_PATH, &caller, order);
    let made =
        if allowed { provide::bridge_tap(order.bridge, order.vnet_header) } else { Err(Refusal::Denied) };
    let (word, why) = match &made {
        Ok(_) => ("grant", String::new()),
        Err(refusal) => ("refuse", format!(" why=\"{refusal}\"")),
    };
    let (uid, pid, bridge) = (caller.uid, caller.pid, order.bridge);
    log.line(&format!("{word} uid={uid} pid={pid} what=bridge-helper bridge={bridge} rule={place}{why}"));
    let tap = made.map_err(|refusal| match refusal {
        Refusal::Denied => {
            format!("access to bridge {bridge} denied: allow it in {}", bridge_conf::DEFAULT_PATH)
        }
        other => format!("no tap in bridge {bridge}: {other}"),
    })?;
    send(socket, &tap).map_err(|e| format!("failed to write file descriptor to unix socket: {e}"))
}

/// One byte and the descriptor. std's stream type holds any connected socket.
fn send(socket: OwnedFd, tap: &OwnedFd) -> io::Result<()> {
    let sent = UnixStream::from(socket).send_with_fd(&[0], &[tap.as_raw_fd()])?;
    if sent == 1 { Ok(()) } else { Err(Errno::EIO.into()) }
}

#[cfg(test)]
#[path = "bridge_helper_tests.rs"]
mod tests;
