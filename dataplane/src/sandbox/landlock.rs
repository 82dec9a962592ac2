//! Landlock's part: handle every access that it knows, allow none (a `user` network's dataplane: what [`deny`] says).
//!
//! Trust: the kernel. Promise: when [`deny`] says [`Fence::Whole`], the process can no longer open, list, make or
//! remove a file, bind or connect TCP, reach an abstract socket or signal a process outside; descriptors that it holds
//! stay usable. Landlock is kept per thread before Linux 7.0, so this comes before any thread.
#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;

use super::Sockets;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// What a level of its own needs: signals and abstract sockets are scoped since this one (Linux 6.12).
const NEEDED: ABI = ABI::V6;

/// The newest that the crate knows; what the kernel lacks of it is left out.
const WANTED: ABI = ABI::V10;

/// How much of it the kernel has.
#[derive(Debug)]
pub(super) enum Fence {
    /// At least ABI 6.
    Whole,
    /// Less; why.
    Partial(String),
    /// Nothing; why.
    None(String),
}

/// Denies all for the calling thread and the threads that it will start, but for `sockets`: going out by UDP, and by TCP to
/// the ports that it names, or to any (to bind TCP stays denied, but with `binds` to the port of the kernel's choice), and for `files`: reading beneath this directory. Sets
/// no_new_privs.
pub(super) fn deny(sockets: Sockets<'_>, binds: bool, files: Option<BorrowedFd<'_>>) -> Fence {
    match restrict(CompatLevel::HardRequirement, sockets, binds, files) {
        Ok(_) => Fence::Whole,
        Err(why) => match restrict(CompatLevel::BestEffort, sockets, binds, files) {
            Ok(RulesetStatus::NotEnforced) | Err(_) => {
                Fence::None(format!("the kernel has none of it ({why})"))
            }
            Ok(_) => Fence::Partial(format!("the kernel has a part of it only ({why})")),
        },
    }
}

/// What of the network's accesses is handled, and so denied.
fn net(abi: ABI, sockets: Sockets<'_>) -> BitFlags<AccessNet> {
    let all = AccessNet::from_all(abi);
    match sockets {
        Sockets::None => all,
        Sockets::To(_) => all & (AccessNet::BindTcp | AccessNet::ConnectTcp),
        Sockets::Any => all & AccessNet::BindTcp,
    }
}

fn restrict(
    needed: CompatLevel,
    sockets: Sockets<'_>,
    binds: bool,
    files: Option<BorrowedFd<'_>>,
) -> Result<RulesetStatus, RulesetError> {
    let rules = Ruleset::default()
        .set_compatibility(needed)
        .handle_access(AccessFs::from_all(NEEDED))?
        .handle_access(net(NEEDED, sockets))?
        .scope(Scope::from_all(NEEDED))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(WANTED))?
        .handle_access(net(WANTED, sockets))?
        .scope(Scope::from_all(WANTED))?
        .create()?;
    let rules = match files {
        Some(dir) => rules.add_rule(PathBeneath::new(dir, AccessFs::ReadFile))?,
        None => rules,
    };
    let ports = if let Sockets::To(ports) = sockets { ports } else { &[] };
    let rules = ports.iter().try_fold(rules, |r, p| r.add_rule(NetPort::new(*p, AccessNet::ConnectTcp)))?;
    let rules = if binds { rules.add_rule(NetPort::new(0, AccessNet::BindTcp))? } else { rules };
    Ok(rules.restrict_self()?.ruleset)
}
