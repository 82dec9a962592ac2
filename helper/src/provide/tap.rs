//! Taps: made exclusively, named by us, confined before they go up.
//!
//! Trust: the request is allowed and its numbers are in range; names are never taken from it unless the policy gave
//! that right. Promise: the device lives as long as its descriptors (unless `persist` was granted), so every failure
//! and every kill undoes it. What the grant says is what the kernel says.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, OwnedFd};

use netreeve_shared::grant::TapGrant;
use netreeve_shared::ifname::IfName;
use netreeve_shared::mac::Mac;
use netreeve_shared::refusal::{Refusal, Step};
use netreeve_shared::request::TapRequest;
use nix::errno::Errno;

use super::{At, bridge, failed};
use crate::netlink::{Netlink, Set};
use crate::{privilege, sys};

// linux/if_tun.h
const TAP: u16 = 0x0002;
const MULTI_QUEUE: u16 = 0x0100;
const NO_PACKET_INFO: u16 = 0x1000;
const VNET_HEADER: u16 = 0x4000;
const EXCLUSIVE: u16 = 0x8000;

/// Tries to find a free random name; 2^55 names make a second one all but impossible.
const NAMES: u32 = 4;
/// Base32 as in RFC 4648, in lower case.
const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A tap being made: its queues, and what it is.
struct Tap {
    queues: Vec<OwnedFd>,
    name: IfName,
    index: u32,
}

/// Makes the tap. `header`: bytes of virtio-net header, if one was asked for.
pub(crate) fn make(
    request: &TapRequest,
    uid: u32,
    max_taps: u32,
    header: usize,
) -> Result<(TapGrant, Vec<OwnedFd>), Refusal> {
    privilege::with(privilege::LINK, || {
        let mut netlink = Netlink::open().at(Step::FindInterface)?;
        let made = build(&mut netlink, request, uid, max_taps, header);
        if made.is_err() && request.bridge.as_ref().is_some_and(|b| b.create) {
            bridge::sweep(&mut netlink);
        }
        made
    })
}

fn build(
    netlink: &mut Netlink,
    request: &TapRequest,
    uid: u32,
    max_taps: u32,
    header: usize,
) -> Result<(TapGrant, Vec<OwnedFd>), Refusal> {
    let tap = create(netlink, request, uid)?;
    let vnet_header = set_header(&tap, request.vnet_header, header)?;
    mark(netlink, &tap, uid, max_taps)?;
    quieten(netlink, &tap)?;
    let bridge = match &request.bridge {
        Some(asked) => Some(bridge::join(netlink, tap.index, asked, request.mtu)?),
        None => {
            let mtu: Vec<_> = request.mtu.into_iter().map(Set::Mtu).collect();
            netlink.set(tap.index, &mtu).at(Step::SetLink)?;
            None
        }
    };
    netlink.set(tap.index, &[Set::Up]).at(Step::SetLink)?;
    let grant = describe(netlink, &tap, request, vnet_header)?;
    // The last that can fail: up to here closing the descriptors undoes everything.
    if request.persist {
        let first = tap.queues.first().ok_or(failed(Step::MakeTap, Errno::EBADF))?;
        sys::tun_persist(first.as_fd()).at(Step::MakeTap)?;
    }
    if let Some(bridge) = &bridge {
        bridge::settle(netlink, bridge);
    }
    Ok((TapGrant { bridge: bridge.and_then(|b| b.name), ..grant }, tap.queues))
}

/// The device and all its queues.
fn create(netlink: &mut Netlink, request: &TapRequest, uid: u32) -> Result<Tap, Refusal> {
    let mut flags = TAP | NO_PACKET_INFO;
    if request.vnet_header {
        flags |= VNET_HEADER;
    }
    if request.queues > 1 {
        flags |= MULTI_QUEUE;
    }
    let (first, name) = first_queue(request.name, flags)?;
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

/// Makes the device. `IFF_TUN_EXCL` always: a name that is taken is never attached to.
fn first_queue(asked: Option<IfName>, flags: u16) -> Result<(OwnedFd, IfName), Refusal> {
    for _ in 0..NAMES {
        let queue = open_tun()?;
        let name = match asked {
            Some(name) => name,
            None => random_name()?,
        };
        match sys::tun_attach(queue.as_fd(), &name, flags | EXCLUSIVE) {
            Ok(()) => return Ok((queue, name)),
            Err(Errno::EBUSY | Errno::EEXIST) if asked.is_none() => {}
            Err(Errno::EBUSY | Errno::EEXIST) => return Err(Refusal::Busy),
            Err(why) => return Err(failed(Step::MakeTap, why)),
        }
    }
    Err(Refusal::Busy)
}

fn open_tun() -> Result<OwnedFd, Refusal> {
    // std opens close-on-exec.
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    let errno = |e: std::io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
    file.map(OwnedFd::from).map_err(|e| failed(Step::OpenTun, errno(e)))
}

/// `nv` and eleven letters of base32.
fn random_name() -> Result<IfName, Refusal> {
    let mut bits = sys::random().at(Step::MakeTap)?;
    let mut name = String::from("nv");
    for _ in 0..11 {
        let letter = usize::try_from(bits & 31).ok().and_then(|i| LETTERS.get(i)).copied().unwrap_or(b'a');
        name.push(char::from(letter));
        bits >>= 5;
    }
    IfName::new(&name).map_err(|_| failed(Step::MakeTap, Errno::EINVAL))
}

/// Bytes of virtio-net header before each frame: as set, and as the kernel then says.
fn set_header(tap: &Tap, wanted: bool, bytes: usize) -> Result<u8, Refusal> {
    let (true, Some(first)) = (wanted, tap.queues.first()) else { return Ok(0) };
    let bytes = i32::try_from(bytes).map_err(|_| failed(Step::MakeTap, Errno::EINVAL))?;
    let is = sys::tun_vnet_size(first.as_fd(), bytes).at(Step::MakeTap)?;
    u8::try_from(is).map_err(|_| failed(Step::MakeTap, Errno::EBADMSG))
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
fn describe(
    netlink: &mut Netlink,
    tap: &Tap,
    request: &TapRequest,
    vnet_header: u8,
) -> Result<TapGrant, Refusal> {
    let link = netlink.by_index(tap.index).at(Step::FindInterface)?;
    let mut seen = None;
    for queue in &tap.queues {
        let device = sys::tun_device(queue.as_fd()).at(Step::MakeTap)?;
        if Some(device.0) != link.name || seen.is_some_and(|first| first != device) {
            return Err(Refusal::Busy);
        }
        seen = Some(device);
    }
    let (name, flags) = seen.ok_or(failed(Step::MakeTap, Errno::EBADF))?;
    if link.tun_queues.is_some_and(|n| n != u32::from(request.queues)) {
        return Err(Refusal::Busy);
    }
    let mac = link.mac.ok_or(failed(Step::SetLink, Errno::EADDRNOTAVAIL))?;
    Ok(TapGrant {
        name,
        ifindex: link.index,
        flags,
        queues: request.queues,
        vnet_header,
        mtu: link.mtu,
        mac,
        bridge: None,
    })
}
