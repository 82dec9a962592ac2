//! Taps: made exclusively, named by us, confined before they go up.
//!
//! Trust: the request is allowed and its numbers are in range; names are never taken from it unless the policy gave
//! that right. Promise: the device lives as long as its descriptors (unless `persist` was granted), so every failure
//! and every kill undoes it. What the grant says is what the kernel says.

use std::fs::OpenOptions;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use netreeve_shared::fdkind;
use netreeve_shared::grant::TapGrant;
use netreeve_shared::ifname::IfName;
use netreeve_shared::mac::Mac;
use netreeve_shared::refusal::{Refusal, Step};
use netreeve_shared::request::TapRequest;
use nix::errno::Errno;

use super::{At, Outcome, bridge, failed};
use crate::netlink::{Netlink, Set};
use crate::{privilege, sys};

// linux/if_tun.h
const TAP: u16 = 0x0002;
const MULTI_QUEUE: u16 = 0x0100;
const NO_PACKET_INFO: u16 = 0x1000;
const VNET_HEADER: u16 = 0x4000;
const EXCLUSIVE: u16 = 0x8000;

/// Base32 as in RFC 4648, in lower case.
const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A tap being made: its queues, and what it is.
struct Tap {
    queues: Vec<OwnedFd>,
    name: IfName,
    index: u32,
}

type Made = Result<(TapGrant, Vec<OwnedFd>), Refusal>;

/// Makes the tap. `header`: bytes of virtio-net header, if one was asked for.
pub(crate) fn make(request: &TapRequest, uid: u32, max_taps: u32, header: u8) -> Made {
    privilege::with(privilege::LINK, || {
        let mut netlink = Netlink::open().at(Step::FindInterface)?;
        let made = build(&mut netlink, request, uid, max_taps, header);
        if made.is_err() && request.bridge.as_ref().is_some_and(|b| b.create) {
            bridge::sweep(&mut netlink);
        }
        made
    })
}

fn build(netlink: &mut Netlink, request: &TapRequest, uid: u32, max_taps: u32, header: u8) -> Made {
    let tap = create(netlink, request, uid)?;
    let first = tap.queues.first().ok_or(failed(Step::MakeTap, Errno::EBADF))?;
    let header = if request.vnet_header { sys::tun_vnet_size(first.as_fd(), header) } else { Ok(0) };
    let header = header.at(Step::MakeTap)?;
    mark(netlink, &tap, uid, max_taps)?;
    quieten(netlink, &tap)?;
    let bridge = request.bridge.as_ref().map(|asked| bridge::join(netlink, tap.index, asked, request.mtu));
    let bridge = bridge.transpose()?;
    if let (None, Some(mtu)) = (&bridge, request.mtu) {
        netlink.set(tap.index, &[Set::Mtu(mtu)]).at(Step::SetLink)?;
    }
    netlink.set(tap.index, &[Set::Up]).at(Step::SetLink)?;
    let bridged = bridge.as_ref().and_then(|b| b.name);
    let grant = describe(netlink, &tap, header, bridged)?;
    // The last that can fail: up to here closing the descriptors undoes everything.
    if request.persist {
        sys::tun_persist(first.as_fd()).at(Step::MakeTap)?;
    }
    bridge.iter().for_each(|bridge| bridge::settle(netlink, bridge));
    Ok((grant, tap.queues))
}

/// The device and all its queues.
fn create(netlink: &mut Netlink, request: &TapRequest, uid: u32) -> Result<Tap, Refusal> {
    let (header, multi) = (u16::from(request.vnet_header), u16::from(request.queues > 1));
    let flags = TAP | NO_PACKET_INFO | (header * VNET_HEADER) | (multi * MULTI_QUEUE);
    let name = request.name.map_or_else(random_name, Ok)?;
    let first = open_tun()?;
    // Exclusive always: a name that is taken is never attached to.
    match sys::tun_attach(first.as_fd(), &name, flags | EXCLUSIVE) {
        Err(Errno::EBUSY | Errno::EEXIST) => return Err(Refusal::Busy),
        answer => answer.at(Step::MakeTap)?,
    }
    // Before anything else: the kernel lets everybody attach a queue to a multi-queue tap that has no owner. Root owns it,
    // since one uid may run the VMs of many; a persistent tap is there to be opened again, by the one who asked.
    let owner = if request.persist { uid } else { 0 };
    sys::tun_owner(first.as_fd(), owner).at(Step::MakeTap)?;
    let index = netlink.by_name(name).at(Step::FindInterface)?.index;
    let mut tap = Tap { queues: vec![first], name, index };
    for _ in 1..request.queues {
        let queue = open_tun()?;
        sys::tun_attach(queue.as_fd(), &name, flags).at(Step::MakeTap)?;
        tap.queues.push(queue);
    }
    Ok(tap)
}

fn open_tun() -> Result<OwnedFd, Refusal> {
    // std opens close-on-exec.
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    file.map(OwnedFd::from).map_err(|e| failed(Step::OpenTun, errno(&e)))
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// `nv` and eleven letters of base32, out of 64 bits that nobody foresees: std keys its hashes with the kernel's random
/// bytes.
fn random_name() -> Result<IfName, Refusal> {
    let bits = RandomState::new().hash_one(0);
    let letters = (0..11).filter_map(|n| LETTERS.get(usize::try_from(bits >> (5 * n) & 31).ok()?));
    let name: String = letters.map(|letter| char::from(*letter)).collect();
    IfName::new(&format!("nv{name}")).map_err(|_| failed(Step::MakeTap, Errno::EINVAL))
}

/// Gives the tap its altname and counts the uid's taps by it. Only `CAP_NET_ADMIN` can change altnames; the owner, which
/// a holder can change, is not asked. Counting after naming: of two requests at once neither passes the limit unseen.
fn mark(netlink: &mut Netlink, tap: &Tap, uid: u32, max_taps: u32) -> Result<(), Refusal> {
    let prefix = format!("nv-{uid}-");
    netlink.add_altname(tap.index, &format!("{prefix}{}", tap.name)).at(Step::SetLink)?;
    let links = netlink.all().at(Step::FindInterface)?;
    let ours = links.iter().filter(|l| l.altnames.iter().any(|n| n.starts_with(&prefix))).count();
    if u32::try_from(ours).is_ok_and(|n| n <= max_taps) { Ok(()) } else { Err(Refusal::Limit) }
}

/// The host's side stays silent, and its address never becomes a bridge's (which takes the lowest of its ports').
fn quieten(netlink: &mut Netlink, tap: &Tap) -> Result<(), Refusal> {
    let link = netlink.by_index(tap.index).at(Step::FindInterface)?;
    let Mac([_, rest @ ..]) = link.mac.ok_or(failed(Step::SetLink, Errno::EADDRNOTAVAIL))?;
    let [b, c, d, e, g] = rest;
    netlink.set(tap.index, &[Set::Mac(Mac([0xfe, b, c, d, e, g]))]).at(Step::SetLink)?;
    match netlink.set(tap.index, &[Set::NoOwnAddress]) {
        // A kernel without IPv6 has no such address to begin with.
        Err(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP) => Ok(()),
        answer => answer.at(Step::SetLink),
    }
}

/// Asks the kernel what was made. Fewer or more queues than ours, or another device behind one of them, means that
/// somebody else's hand was in it: then nothing is granted.
fn describe(netlink: &mut Netlink, tap: &Tap, vnet_header: u8, bridge: Option<IfName>) -> Outcome<TapGrant> {
    let link = netlink.by_index(tap.index).at(Step::FindInterface)?;
    let number = u16::try_from(tap.queues.len()).map_err(|_| failed(Step::MakeTap, Errno::E2BIG))?;
    let queues: io::Result<Vec<_>> = tap.queues.iter().map(|queue| fdkind::tap(queue.as_fd())).collect();
    let queues = queues.map_err(|e| failed(Step::MakeTap, errno(&e)))?;
    let first = queues.first().ok_or(failed(Step::MakeTap, Errno::EBADF))?;
    let ours = Some(first.name) == link.name && queues.iter().all(|queue| queue == first);
    if !ours || link.tun_queues.is_some_and(|n| n != u32::from(number)) {
        return Err(Refusal::Busy);
    }
    Ok(TapGrant {
        name: first.name,
        ifindex: link.index,
        flags: first.flags,
        queues: number,
        vnet_header,
        mtu: link.mtu,
        mac: link.mac.ok_or(failed(Step::SetLink, Errno::EADDRNOTAVAIL))?,
        bridge,
    })
}
