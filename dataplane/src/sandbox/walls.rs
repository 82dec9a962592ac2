//! The first step: everything that is taken away before the ports open, in order.
//!
//! Trust: the process is as its supervisor started it. Promise: see the theory of operation in [`super`].
#![forbid(unsafe_code)]

use std::fs;
use std::io;

use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, chdir, geteuid, pivot_root, setgroups, setresgid, setresuid};

use super::landlock::{self, Fence};
use super::seccomp::Licence;
use super::{Needs, SandboxError, Sockets, Walls, limits};
use crate::handover::Level;
use crate::sys::sandbox as sys;

/// Start of the ids that a dataplane started as root takes: an unused range by systemd's list of uids, wide enough for
/// any pid (at most 2^22).
const OWN_IDS: u32 = 0x7000_0000;

/// The kernel's overflow id, for a container whose id map lacks [`OWN_IDS`].
const NOBODY: u32 = 65534;

/// Where the new root may be mounted before it becomes the root; the first that exists.
const MOUNT_POINTS: [&str; 5] = ["/tmp", "/proc", "/dev", "/usr", "/etc"];

/// What a dataplane needs that nobody can give it but whoever starts it.
const REPORT: &str = "please report it with the kernel's version";

pub(super) fn build(needs: &Needs<'_>) -> Result<Walls, SandboxError> {
    alone()?;
    sys::one_heap();
    sys::plain_faults();
    let descriptors = close_strays(needs)?;
    let dies_with_parent = prctl::get_pdeathsig().unwrap_or(None);
    leave_root()?;
    let sockets = needs.sockets != Sockets::None;
    let room = empty_room(sockets);
    drop_rights()?;
    // Another uid and another user namespace have each cleared it (`commit_creds`). A parent that has died since is
    // found out by the end of its channel.
    prctl::set_pdeathsig(dies_with_parent)
        .map_err(|e| SandboxError::new("dying with the supervisor", e, REPORT))?;
    limits::set(descriptors)?;
    let fence = landlock::deny(needs.sockets, needs.binds, needs.files);
    if needs.files.is_some() && matches!(fence, Fence::None(_)) {
        let fix = "run a kernel with `landlock` in its list of LSMs, or do without `tftp=`";
        return Err(SandboxError::new("reading files", "only Landlock can keep it to one directory", fix));
    }
    let (level, lacks) = match (room, fence) {
        (Ok(()), Fence::Whole) => (Level::Full, None),
        (Ok(()), Fence::Partial(why) | Fence::None(why)) => (Level::Full, Some(old_landlock(&why))),
        (Err(e), Fence::Whole) => (Level::Landlock, Some(e)),
        (Err(e), Fence::Partial(why) | Fence::None(why)) => {
            let both = format!("{}; and Landlock: {why}", e.why);
            (Level::Seccomp, Some(SandboxError { why: both, ..e }))
        }
    };
    let licence = Licence { sockets, binds: needs.binds, files: needs.files.is_some() };
    Ok(Walls { level, lacks, licence })
}

fn old_landlock(why: &str) -> SandboxError {
    SandboxError::new(
        "fencing in with Landlock",
        why,
        "run Linux 6.12 or newer with `landlock` in its list of LSMs",
    )
}

/// Most of what follows holds for the calling thread only, so it has to be the only one.
fn alone() -> Result<(), SandboxError> {
    unshare(CloneFlags::CLONE_THREAD)
        .map_err(|_| SandboxError::new("building walls", "the process has several threads already", REPORT))
}

/// Closes what was not handed over; says how many descriptors there may be from now on.
fn close_strays(needs: &Needs<'_>) -> Result<u64, SandboxError> {
    let mut keep = needs.keep.to_vec();
    keep.push(2);
    sys::close_others(&keep)
        .map_err(|e| SandboxError::new("closing stray descriptors", e, "run Linux 5.9 or newer"))?;
    sys::quiet_standard().map_err(|e| {
        SandboxError::new("opening /dev/null", e, "give it a /dev/null (mknod /dev/null c 1 3)")
    })?;
    sys::write_only_errors();
    let highest = needs.keep.iter().copied().max().unwrap_or(2).max(2);
    Ok(u64::try_from(highest).unwrap_or(2).saturating_add(1).saturating_add(needs.more_fds))
}

/// Root becomes an id that nobody has, and keeps for [`empty_room`] the right to make namespaces.
fn leave_root() -> Result<(), SandboxError> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let failed = |e: Errno| {
        SandboxError::new("leaving root", e, "start it as another user, or with CAP_SETUID and CAP_SETGID")
    };
    prctl::set_keepcaps(true).map_err(failed)?;
    let own = OWN_IDS.saturating_add(std::process::id());
    match become_id(own) {
        // The user namespace that we were started in does not know the id.
        Err(Errno::EINVAL) => match become_id(NOBODY) {
            // Nor this one: a namespace with one id, whose root is somebody ordinary outside.
            Err(Errno::EINVAL | Errno::EPERM) => {}
            other => other.map_err(failed)?,
        },
        other => other.map_err(failed)?,
    }
    prctl::set_keepcaps(false).map_err(failed)?;
    let kept: CapsHashSet = caps::read(None, CapSet::Permitted).unwrap_or_default();
    let wanted = [Capability::CAP_SYS_ADMIN, Capability::CAP_SETPCAP];
    let again: CapsHashSet = wanted.into_iter().filter(|c| kept.contains(c)).collect();
    caps::set(None, CapSet::Effective, &again).map_err(|e| SandboxError::new("leaving root", e, REPORT))
}

fn become_id(id: u32) -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    setresgid(gid, gid, gid)?;
    setgroups(&[])?;
    setresuid(uid, uid, uid)
}

/// Own namespaces, with nothing in them; who makes sockets keeps the network's.
fn empty_room(sockets: bool) -> Result<(), SandboxError> {
    unshare(CloneFlags::CLONE_NEWUSER)
        .map_err(|e| SandboxError::new("making a user namespace", e, user_namespace_fix(e)))?;
    let rest = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    let net = if sockets { CloneFlags::empty() } else { CloneFlags::CLONE_NEWNET };
    unshare(rest | net).map_err(|e| SandboxError::new("making namespaces", e, user_namespace_fix(e)))?;
    empty_root().map_err(|e| SandboxError::new("making an empty root directory", e, user_namespace_fix(e)))
}

fn empty_root() -> nix::Result<()> {
    let none: Option<&str> = None;
    // Nothing mounted outside shall appear here while we still look at the old tree, and pivot_root wants it so.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID;
    // One inode is the root directory itself; 0 would mean any number.
    let options = Some("nr_inodes=1,nr_blocks=1,mode=0555");
    let mut made = Err(Errno::ENOENT);
    for place in MOUNT_POINTS {
        made = mount(Some("none"), place, Some("tmpfs"), flags, options).and_then(|()| chdir(place));
        if made != Err(Errno::ENOENT) {
            break;
        }
    }
    made?;
    // The old root lands on top of the new one, and is taken off.
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}

/// What stands in the way of user namespaces, asked while `/proc` is still there.
fn user_namespace_fix(e: Errno) -> String {
    let sysctl = |name: &str| fs::read_to_string(name).unwrap_or_default().trim().to_owned();
    if e == Errno::ENOSPC {
        return "allow more of them: `sysctl -w user.max_user_namespaces=10000`".into();
    }
    if sysctl("/proc/sys/kernel/unprivileged_userns_clone") == "0" {
        return "allow them: `sysctl -w kernel.unprivileged_userns_clone=1`".into();
    }
    if sysctl("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" {
        return "load netreeve's AppArmor profile: `apparmor_parser -r /etc/apparmor.d/netreeve`".into();
    }
    "allow user namespaces to the service or container that it runs in, or accept `sandbox=landlock`".into()
}

/// Capabilities, new privileges, dumps and executable memory: gone.
fn drop_rights() -> Result<(), SandboxError> {
    let failed = |e: io::Error| SandboxError::new("dropping rights", e, REPORT);
    // The bounding set and the secure bits take CAP_SETPCAP, which there is in a namespace of our own or if we came as
    // root; without it, no_new_privs is what keeps the bounding set from ever being drawn on.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).unwrap_or(false) {
        sys::lock_secure_bits().map_err(failed)?;
        caps::clear(None, CapSet::Bounding)
            .map_err(|e| SandboxError::new("emptying the bounding set", e, REPORT))?;
    }
    for set in [CapSet::Ambient, CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        caps::clear(None, set).map_err(|e| SandboxError::new("dropping capabilities", e, REPORT))?;
    }
    prctl::set_no_new_privs().map_err(|e| failed(e.into()))?;
    prctl::set_dumpable(false).map_err(|e| failed(e.into()))?;
    sys::plain_personality().map_err(failed)?;
    match sys::refuse_exec_gain() {
        // Linux before 6.3 does not know it; the filter refuses the same calls.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        other => other.map_err(failed),
    }
}
