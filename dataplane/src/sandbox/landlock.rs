//! Landlock's part: handle every access that it knows, allow none.
//!
//! Trust: the kernel. Promise: when [`deny_all`] says [`Fence::Whole`], the process can no longer open, list, make or
//! remove a file, bind or connect TCP, reach an abstract socket or signal a process outside; descriptors that it holds
//! stay usable. Landlock is kept per thread before Linux 7.0, so this comes before any thread.
#![forbid(unsafe_code)]

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetError,
    RulesetStatus, Scope,
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
    /// Less, or nothing; why.
    Partial(String),
}

/// Denies all for the calling thread and the threads that it will start. Sets no_new_privs.
pub(super) fn deny_all() -> Fence {
    match restrict(CompatLevel::HardRequirement) {
        Ok(_) => Fence::Whole,
        Err(why) => match restrict(CompatLevel::BestEffort) {
            Ok(RulesetStatus::NotEnforced) | Err(_) => {
                Fence::Partial(format!("the kernel has none of it ({why})"))
            }
            Ok(_) => Fence::Partial(format!("the kernel has a part of it only ({why})")),
        },
    }
}

fn restrict(needed: CompatLevel) -> Result<RulesetStatus, RulesetError> {
    let rules = Ruleset::default()
        .set_compatibility(needed)
        .handle_access(AccessFs::from_all(NEEDED))?
        .handle_access(AccessNet::from_all(NEEDED))?
        .scope(Scope::from_all(NEEDED))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(WANTED))?
        .handle_access(AccessNet::from_all(WANTED))?
        .scope(Scope::from_all(WANTED))?
        .create()?;
    Ok(rules.restrict_self()?.ruleset)
}
