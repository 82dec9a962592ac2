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
use nix::unistd::alarm;
use sendfd::SendWithFd;

use crate::audit::{Log, rule};
use crate::bridge_conf::{self, Acl, Word};
use crate::policy::{Caller, Policy, Why, judge};
use crate::policy_file::{self, Trust};
use crate::{caller, confine, names, provide};

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

/// The request that the command line stands for.
fn request(order: &Order) -> TapRequest {
    let bridge = Some(BridgeRequest { name: order.bridge, create: false, isolated: false });
    TapRequest { name: None, persist: false, queues: 1, vnet_header: order.vnet_header, mtu: None, bridge }
}

/// What both files say together: a denial in either is final, an allowance in either is enough. Gives the taps that the
/// caller may have at once, if any, and the line that decided. QEMU's file knows no number of taps, but the `limit`
/// lines of the policy hold whoever allows.
#[must_use]
pub fn verdict(acl: &Acl, policy: &Policy, caller: &Caller, order: &Order) -> (Option<u32>, String) {
    let by_acl = acl.word(order.bridge);
    let by_policy = judge(policy, caller, &Request::Tap(request(order)));
    let line = rule(Path::new(policy_file::DEFAULT_PATH), by_policy);
    match (by_acl, by_policy) {
        (Word::Denied(place), _) => (None, place),
        (_, Ok((_, quota))) => (Some(quota.taps), line),
        (Word::Silent, _) | (_, Err(Why::Denied(_))) => (None, line),
        (Word::Allowed(place), _) => (Some(policy.limit(caller, u32::MAX, |l| l.taps)), place),
    }
}

/// Reads both files. At least one must be there.
fn read_files() -> Result<(Acl, Policy), String> {
    // Only what is surely not there is absent: a file that cannot be looked at may deny.
    let absent = |path| std::fs::symlink_metadata(path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
    let (conf, policy) = (bridge_conf::DEFAULT_PATH, policy_file::DEFAULT_PATH);
    let mut open = |path: &str| policy_file::read(Path::new(path), Trust::Root, true);
    let (no_conf, no_policy) = (absent(conf), absent(policy));
    if no_conf && no_policy {
        return Err(format!("there is neither {conf} nor {policy}: nothing is allowed"));
    }
    let acl = if no_conf { Acl::default() } else { bridge_conf::read(conf, &mut open)? };
    let load = || policy_file::load(Path::new(policy), Trust::Root);
    Ok((acl, if no_policy { Policy::default() } else { load()? }))
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
    let (uid, pid, bridge) = (caller.uid, caller.pid, order.bridge);
    // What the files say is for root's log: some are readable only to those whom they concern.
    let (acl, policy) = read_files().map_err(|why| {
        log.line(&format!("refuse uid={uid} pid={pid} what=bridge-helper why=\"{why}\""));
        "the access control files cannot be read (details in the system's log)".to_owned()
    })?;
    confine::lock_in(&[]).map_err(|e| format!("cannot confine itself: {e}"))?;
    let (max_taps, place) = verdict(&acl, &policy, &caller, order);
    let made = max_taps.ok_or(Refusal::Denied);
    let made = made.and_then(|max_taps| provide::bridge_tap(&request(order), uid, max_taps));
    let word = made.as_ref().map_or_else(|no| format!("refuse why=\"{no}\""), |_| "grant".to_owned());
    log.line(&format!("{word} uid={uid} pid={pid} what=bridge-helper bridge={bridge} rule={place}"));
    let tap = made.map_err(|refusal| match refusal {
        Refusal::Denied => {
            format!("access to bridge {bridge} denied: allow it in {}", bridge_conf::DEFAULT_PATH)
        }
        other => format!("no tap in bridge {bridge}: {other}"),
    })?;
    // One byte and the descriptor. std's stream type holds any connected socket.
    let sent = UnixStream::from(socket).send_with_fd(&[0], &[tap.as_raw_fd()]);
    sent.map(drop).map_err(|e| format!("failed to write file descriptor to unix socket: {e}"))
}

#[cfg(test)]
#[path = "bridge_helper_tests.rs"]
mod tests;
