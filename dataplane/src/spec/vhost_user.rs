//! `vhost-user`: what a VMM attaches its virtio-net device to.
//!
//! QEMU names a chardev; here the socket is named itself: `path=` or `fd=`, `server=on` (we listen) unless said
//! otherwise. Feature switches hide what would be offered: their names are those of QEMU's virtio-net properties where
//! it has one.
#![forbid(unsafe_code)]

use netreeve_shared::mac::Mac;

use crate::fault::Fault;
use crate::spec::addr::{self, Addr};
use crate::spec::fields::Fields;

/// Most queue pairs of one device.
pub const MAX_QUEUES: u16 = 16;

/// A vhost-user device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhostUser {
    /// Its socket: a path or an inherited descriptor.
    pub addr: Addr,
    /// We listen; else we dial.
    pub server: bool,
    /// Dial again after so many milliseconds when the connection is lost.
    pub reconnect_ms: Option<u32>,
    /// Queue pairs.
    pub queues: u16,
    /// Address for front ends that ask.
    pub mac: Option<Mac>,
    /// MTU in bytes to tell the guest.
    pub mtu: Option<u16>,
    /// Feature bits that are not offered.
    pub hide: u64,
}

const fn bits(list: &[u32]) -> u64 {
    let mut out = 0;
    let mut rest = list;
    while let [first, tail @ ..] = rest {
        out |= 1_u64 << *first;
        rest = tail;
    }
    out
}

/// Switches and the feature bits of virtio 1.2 §5.1.3 and §6 that they hide, with those that depend on them.
const SWITCHES: &[(&str, u64)] = &[
    // Segmentation needs checksums (§5.1.3.1), so they go together.
    ("csum", bits(&[0, 1, 7, 8, 9, 10, 11, 12, 13, 14, 54, 55, 56])),
    ("tso", bits(&[7, 8, 9, 11, 12, 13])),
    ("ecn", bits(&[9, 13])),
    ("ufo", bits(&[10, 14])),
    ("uso", bits(&[54, 55, 56])),
    ("mrg_rxbuf", bits(&[15])),
    ("status", bits(&[16])),
    ("ctrl_vq", bits(&[17, 18, 19, 20, 21, 22, 23])),
    ("mq", bits(&[22])),
    ("indirect_desc", bits(&[28])),
    ("event_idx", bits(&[29])),
    ("packed", bits(&[34])),
    ("in_order", bits(&[35])),
];

/// Reads the options of `vhost-user`.
///
/// # Errors
/// What cannot stand.
pub fn read(f: &mut Fields) -> Result<VhostUser, Fault> {
    let fix =
        "name the socket: path=PATH (netreeve listens), or path=PATH,server=off to dial a VMM that listens";
    f.refuse("chardev", "chardevs are QEMU's", fix)?;
    // QEMU takes it and does nothing with it.
    f.flag("vhostforce")?;
    let path = addr::path(f)?;
    let fd = f.text("fd");
    let server = f.flag("server")?.unwrap_or(true);
    let addr = match (path, fd) {
        (Some(p), None) => Addr::Unix(p),
        (None, Some(t)) => Addr::Fd(addr::fd_number(f, "fd", &t)?),
        (Some(_), Some(_)) => return Err(f.fault("path= and fd= are mutually exclusive", fix)),
        (None, None) => return Err(f.fault("Parameter 'path' is missing", fix)),
    };
    let reconnect_ms = addr::reconnect(f, server)?;
    if matches!(addr, Addr::Fd(_)) && reconnect_ms.is_some() {
        let why = "'reconnect-ms' cannot be used with a descriptor: there is no address to dial";
        return Err(f.fault(why, "give path="));
    }
    let queues = f.number("queues", 0, u64::from(u32::MAX))?.unwrap_or(1);
    let queues = u16::try_from(queues).ok().filter(|n| (1..=MAX_QUEUES).contains(n)).ok_or_else(|| {
        let why = format!("vhost-user number of queues must be in range [1, {MAX_QUEUES}]");
        f.fault(why, "")
    })?;
    let mac: Option<Mac> = f.parsed("mac")?;
    if mac.is_some_and(|m| !m.is_station()) {
        return Err(f.fault("mac= is no station's address", "52:54:00:xx:yy:zz is a usual choice"));
    }
    let mtu = f.number16("mtu", 68, u16::MAX)?;
    let mut hide = 0;
    for (name, bits) in SWITCHES {
        if f.flag(name)? == Some(false) {
            hide |= bits;
        }
    }
    Ok(VhostUser { addr, server, reconnect_ms, queues, mac, mtu, hide })
}
