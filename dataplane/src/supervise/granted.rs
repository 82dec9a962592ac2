//! Slots of what the helper has granted, and of taps that were handed to us.
//!
//! Trust: the helper's word, and the kernel's for a descriptor of the user's. Promise: what a dataplane is told of a tap or
//! of AF_XDP sockets is what they are.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use netreeve_shared::fdkind;
use netreeve_shared::grant::{FdKind, TapGrant, XskGrant};
use nix::net::if_::if_nametoindex;

use crate::fault::{Exit, Fault};
use crate::handover::PortPlan;
use crate::port;
use crate::supervise::say;
use crate::supervise::slot::{Link, Slot};
use crate::sys::{self, kernel};

/// A tap whose queues this process inherited.
///
/// # Errors
/// They are not what the options say.
pub(super) fn handed_tap(id: String, what: &str, fds: Vec<OwnedFd>) -> Result<Slot, Fault> {
    let bad =
        |why: String| Fault::new(Exit::Config, what, why, "pass the queues of one tap, made with IFF_NO_PI");
    let mut first: Option<fdkind::Tap> = None;
    for fd in &fds {
        fdkind::attest(fd.as_fd(), FdKind::Tap)
            .map_err(|e| bad(format!("Unable to query TUNGETIFF: {}", e.why)))?;
        let tap = fdkind::tap(fd.as_fd()).map_err(|e| bad(format!("Unable to query TUNGETIFF: {e}")))?;
        if let Some(f) = first.filter(|f| *f != tap) {
            let why = "vnet_hdr not consistent across given tap fds, or they are of several taps";
            return Err(bad(format!("{why} ({} and {})", f.name, tap.name)));
        }
        first = Some(tap);
    }
    let tap = first.ok_or_else(|| bad("no descriptor".into()))?;
    let header = header_of(&fds, tap.flags).map_err(|e| bad(e.to_string()))?;
    let queues = u16::try_from(fds.len()).unwrap_or(u16::MAX);
    let name = tap.name.to_string();
    let mtu = mtu_of(&name);
    let plan = PortPlan::Tap(port::tap::Plan { queues, vnet_header: header, mtu });
    let link = Link { index: if_nametoindex(name.as_str()).ok(), name };
    Ok(Slot { kept: fds, link: Some(link), ..Slot::bare(id, "tap", plan) })
}

/// Bytes of virtio-net header before each frame.
fn header_of(fds: &[OwnedFd], flags: u16) -> std::io::Result<u8> {
    let has = i32::from(flags) & libc::IFF_VNET_HDR != 0;
    match fds.first() {
        Some(fd) if has => {
            let bytes = sys::tun::vnet_header(fd.as_fd())?;
            u8::try_from(bytes).map_err(|_| std::io::ErrorKind::InvalidData.into())
        }
        _ => Ok(0),
    }
}

/// A tap of the helper's.
pub(super) fn granted_tap(id: String, grant: &TapGrant, fds: Vec<OwnedFd>) -> Slot {
    let plan = port::tap::Plan { queues: grant.queues, vnet_header: grant.vnet_header, mtu: grant.mtu };
    let link = here(&grant.name.to_string(), grant.ifindex);
    Slot { kept: fds, link: Some(link), ..Slot::bare(id, "tap", PortPlan::Tap(plan)) }
}

/// AF_XDP sockets of the helper's.
pub(super) fn granted_xsk(id: String, grant: &XskGrant, fds: Vec<OwnedFd>) -> Slot {
    let plan = port::xsk::Plan {
        queues: grant.queues,
        mtu: grant.mtu,
        ring: grant.ring,
        chunk: grant.chunk,
        chunks: grant.chunks,
        headroom: grant.headroom,
        multi_buffer: grant.multi_buffer,
        resume: false,
        late: !kernel::since(kernel::MAPS_BOUND),
    };
    let link = here(&grant.name.to_string(), grant.ifindex);
    let ticket = Some(grant.ticket);
    Slot { kept: fds, link: Some(link), ticket, ..Slot::bare(id, "af-xdp", PortPlan::Xsk(plan)) }
}

/// A dead dataplane's AF_XDP sockets can be mapped by the next one. Where not, it is said.
pub(super) fn may_be_taken_over(id: &str) -> bool {
    let can = kernel::since(kernel::MAPS_BOUND);
    if !can {
        say::say(&format!(
            "port '{id}': its AF_XDP sockets end with the dataplane: before Linux 6.4 no other can map their rings; \
             start netreeve again"
        ));
    }
    can
}

/// The helper may live in another network namespace: then the index means nothing here.
fn here(name: &str, index: u32) -> Link {
    let index = if_nametoindex(name).ok().filter(|i| *i == index);
    Link { name: name.to_owned(), index }
}

/// The interface's MTU in bytes as sysfs tells everybody; 1500 if it cannot be read.
pub(super) fn mtu_of(name: &str) -> u32 {
    let path = Path::new("/sys/class/net").join(name).join("mtu");
    std::fs::read_to_string(path).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(1500)
}
