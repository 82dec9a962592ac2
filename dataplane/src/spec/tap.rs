//! `-netdev tap` and `-netdev bridge`: a tap made by the helper, or one that is handed to us.
//!
//! QEMU's options, and `mtu`, `isolated`, `create`, `persist` of our own.
#![forbid(unsafe_code)]

use netreeve_shared::ifname::IfName;
use netreeve_shared::request::{BridgeRequest, MAX_TAP_QUEUES, TapRequest};

use crate::fault::Fault;
use crate::spec::addr;
use crate::spec::fields::Fields;

/// The bridge that QEMU joins if none is named.
pub const DEFAULT_BRIDGE: &str = "br0";

/// A tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tap {
    /// Descriptors of a tap that somebody else made, one a queue.
    Handed(Vec<i32>),
    /// The helper makes it.
    Asked(TapRequest),
}

/// Reads the options of `tap`.
///
/// # Errors
/// QEMU's exclusion rules and complaints; ours for what would run a program.
pub fn read(f: &mut Fields) -> Result<Tap, Fault> {
    exclusions(f)?;
    programs(f)?;
    kernel_vhost(f)?;
    let fds = handed(f)?;
    let vnet_header = f.flag("vnet_hdr")?.unwrap_or(true);
    let queues = queues(f)?;
    let name: Option<IfName> = f.parsed("ifname")?;
    let persist = f.flag("persist")?.unwrap_or(false);
    let mtu = f.number32("mtu", 68, 65521)?;
    let bridge = bridge(f, None)?;
    if let Some(fds) = fds {
        if persist || mtu.is_some() {
            return Err(
                f.fault("persist= and mtu= are invalid with fd=/fds=", "whoever made the tap sets them")
            );
        }
        if bridge.is_some() {
            f.warn("br= has no meaning with fd=/fds= and is not used, as in QEMU");
        }
        return Ok(Tap::Handed(fds));
    }
    if persist && name.is_none() {
        return Err(f.fault("persist=on without ifname=", "name the interface that stays: ifname=NAME"));
    }
    Ok(Tap::Asked(TapRequest { name, persist, queues, vnet_header, mtu, bridge }))
}

/// Reads the options of `bridge`, which is a tap in a bridge, `br0` unless named.
///
/// # Errors
/// QEMU's complaints; ours for what would run a program.
pub fn read_bridge(f: &mut Fields) -> Result<Tap, Fault> {
    helper(f)?;
    let vnet_header = f.flag("vnet_hdr")?.unwrap_or(true);
    let queues = queues(f)?;
    let name = f.parsed("ifname")?;
    let mtu = f.number32("mtu", 68, 65521)?;
    let bridge = bridge(f, Some(DEFAULT_BRIDGE))?;
    Ok(Tap::Asked(TapRequest { name, persist: false, queues, vnet_header, mtu, bridge }))
}

/// QEMU's rules on what cannot stand together (`net/tap.c`, `net_init_tap`).
fn exclusions(f: &Fields) -> Result<(), Fault> {
    let sources = ["queues", "helper", "fds", "fd"].iter().filter(|k| f.has(k)).count();
    if sources > 1 {
        let why = "queues=, helper=, fds= and fd= are mutual exclusive";
        return Err(f.fault(why, "fds=A:B:C has as many queues as descriptors"));
    }
    let given = f.has("fd") || f.has("fds") || f.has("helper");
    if given && ["ifname", "script", "downscript", "vnet_hdr"].iter().any(|k| f.has(k)) {
        let why = "ifname=, script=, downscript=, vnet_hdr= are invalid with fd=/fds=/helper=";
        return Err(f.fault(why, "the descriptor already has its name and its header"));
    }
    if f.has("fds") && f.has("vhostfd") {
        return Err(f.fault("vhostfd= is invalid with fds=", "give vhostfds="));
    }
    if f.has("vhostfds") && !f.has("fds") {
        return Err(f.fault("vhostfds= is invalid if fds= wasn't specified", ""));
    }
    Ok(())
}

/// Keys that would make QEMU run a program.
fn programs(f: &mut Fields) -> Result<(), Fault> {
    for key in ["script", "downscript"] {
        match f.text(key).as_deref() {
            None | Some("no") => {}
            Some(_) => {
                let why = format!("{key}= is refused: netreeve runs no programs with your options");
                return Err(f.fault(why, format!("give {key}=no, and br=BRIDGE to join a bridge")));
            }
        }
    }
    helper(f)
}

fn helper(f: &mut Fields) -> Result<(), Fault> {
    let why = "netreeve runs no programs with your options, and asks its own helper";
    f.refuse("helper", why, "leave it out; --helper or --helper-socket names netreeve's own helper")
}

/// The kernel's vhost-net, which QEMU would use to leave the rings to the kernel.
fn kernel_vhost(f: &mut Fields) -> Result<(), Fault> {
    let vhost = f.flag("vhost")?;
    let force = f.flag("vhostforce")?;
    let poll = f.number32("poll-us", 0, u32::MAX)?;
    for key in ["vhostfd", "vhostfds"] {
        if f.has(key) && vhost != Some(true) && force != Some(true) {
            let why = "vhostfd(s)= is not valid without vhost";
            return Err(f.fault(why, "leave it out: netreeve serves the rings itself"));
        }
        let why = "netreeve serves the rings itself and does not use the kernel's vhost-net";
        f.refuse(key, why, "leave it out")?;
    }
    if vhost == Some(true) || force == Some(true) || poll.is_some_and(|p| p != 0) {
        f.warn("vhost=, vhostforce= and poll-us= are not used: netreeve serves the rings itself (see --busy-poll)");
    }
    if f.size("sndbuf", 0, u64::MAX)?.is_some_and(|n| n != 0) {
        return Err(f.fault("sndbuf= is not in this version", "leave it out or give sndbuf=0"));
    }
    Ok(())
}

fn handed(f: &mut Fields) -> Result<Option<Vec<i32>>, Fault> {
    if let Some(text) = f.text("fd") {
        return Ok(Some(vec![addr::fd_number(f, "fd", &text)?]));
    }
    let Some(list) = f.list("fds", ':') else { return Ok(None) };
    if list.len() > usize::from(MAX_TAP_QUEUES) {
        return Err(f.fault(format!("fds= has at most {MAX_TAP_QUEUES} descriptors"), ""));
    }
    let numbers: Vec<i32> = list.iter().map(|t| addr::fd_number(f, "fds", t)).collect::<Result<_, _>>()?;
    let twice = numbers.iter().enumerate().any(|(i, n)| numbers.iter().skip(i + 1).any(|o| o == n));
    if twice { Err(f.fault("fds= names a descriptor twice", "")) } else { Ok(Some(numbers)) }
}

fn queues(f: &mut Fields) -> Result<u16, Fault> {
    let n = f.number32("queues", 0, u32::MAX)?;
    if n == Some(0) {
        return Err(f.fault("queues must be greater than zero", ""));
    }
    let n = u16::try_from(n.unwrap_or(1)).unwrap_or(u16::MAX);
    if n > MAX_TAP_QUEUES {
        return Err(f.fault(format!("a tap has at most {MAX_TAP_QUEUES} queues here"), "lower queues="));
    }
    Ok(n)
}

fn bridge(f: &mut Fields, default: Option<&str>) -> Result<Option<BridgeRequest>, Fault> {
    let create = f.flag("create")?.unwrap_or(false);
    let isolated = f.flag("isolated")?.unwrap_or(false);
    let mut name: Option<IfName> = f.parsed("br")?;
    if name.is_none() {
        name = default.and_then(|d| d.parse().ok());
    }
    match name {
        Some(name) => Ok(Some(BridgeRequest { name, create, isolated })),
        None if create || isolated => {
            Err(f.fault("create= and isolated= belong to a bridge", "name it: br=BRIDGE"))
        }
        None => Ok(None),
    }
}
