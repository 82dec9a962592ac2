//! Bridges: found, made if that was asked for, joined.
//!
//! Trust: the name was allowed by the policy; whether it is a bridge is asked of the kernel, and asked again after
//! joining, by index. Promise about bridges that we make: no descriptor holds a bridge, so a new one starts in a device
//! group that marks it as provisional and leaves that group when the grant that made it stands. A provisional bridge
//! without ports is what a killed helper left: the next request that may make bridges removes it. A bridge that once
//! served stays, like one that an administrator made: it may have addresses and routes by now.

use netreeve_shared::ifname::IfName;
use netreeve_shared::refusal::{Refusal, Step};
use netreeve_shared::request::BridgeRequest;
use nix::errno::Errno;

use super::{At, Outcome, failed};
use crate::netlink::{Link, Netlink, Set};

/// Device group of a bridge whose grant is not complete: "nt" and 1, unlikely to be an administrator's choice.
const PROVISIONAL: u32 = 0x6e74_0001;
/// Joins the interface `port` to the bridge. Its MTU becomes `mtu`, or else the bridge's, before that: a bridge takes
/// the smallest MTU of its ports.
pub(crate) fn join(
    netlink: &mut Netlink,
    port: u32,
    request: &BridgeRequest,
    mtu: Option<u32>,
) -> Outcome<Link> {
    let bridge = find_or_make(netlink, request)?;
    netlink.set(port, &[Set::Mtu(mtu.unwrap_or(bridge.mtu))]).at(Step::SetLink)?;
    match netlink.set(port, &[Set::Master(bridge.index)]) {
        // Another helper's sweep took our new bridge away before we joined it: then it is to be asked for again.
        Err(Errno::ENODEV | Errno::EINVAL) if bridge.group == PROVISIONAL => return Err(Refusal::Busy),
        answer => answer.at(Step::JoinBridge)?,
    }
    let rules = Set::BridgePort { isolated: request.isolated };
    netlink.set(port, &[rules]).at(Step::JoinBridge)?;
    confirm(netlink, port, request.name)
}

/// Reads back that the port is in a bridge of that name.
fn confirm(netlink: &mut Netlink, port: u32, name: IfName) -> Result<Link, Refusal> {
    let master = netlink.by_index(port).at(Step::JoinBridge)?.master;
    let bridge = netlink.by_index(master).at(Step::JoinBridge)?;
    if master != 0 && bridge.kind == "bridge" && bridge.name == Some(name) {
        Ok(bridge)
    } else {
        Err(failed(Step::JoinBridge, Errno::EXDEV))
    }
}

fn find_or_make(netlink: &mut Netlink, request: &BridgeRequest) -> Result<Link, Refusal> {
    match netlink.by_name(request.name) {
        Err(Errno::ENODEV) if request.create => make(netlink, request.name),
        Ok(link) if link.kind == "bridge" => Ok(link),
        Ok(_) => Err(failed(Step::FindBridge, Errno::EOPNOTSUPP)),
        Err(why) => Err(failed(Step::FindBridge, why)),
    }
}

fn make(netlink: &mut Netlink, name: IfName) -> Result<Link, Refusal> {
    sweep(netlink);
    match netlink.create_bridge(name, PROVISIONAL) {
        // Made by another request at the same moment: as good as ours.
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(why) => return Err(failed(Step::MakeBridge, why)),
    }
    let bridge = netlink.by_name(name).at(Step::MakeBridge)?;
    // Setting the address that it has anyway pins it: it no longer changes with the ports that come and go.
    let mac = bridge.mac.ok_or(failed(Step::MakeBridge, Errno::EADDRNOTAVAIL))?;
    netlink.set(bridge.index, &[Set::Mac(mac), Set::Up]).at(Step::MakeBridge)?;
    Ok(bridge)
}

/// The grant stands: the bridge is no longer provisional. If that cannot be said, the grant stands all the same: a bridge
/// with ports is never swept, and the next tap in it says it again.
pub(crate) fn settle(netlink: &mut Netlink, bridge: &Link) {
    if bridge.group == PROVISIONAL {
        let _unsaid = netlink.set(bridge.index, &[Set::Group(0)]);
    }
}

/// Removes provisional bridges without ports. Errors leave them to the next sweep.
pub(crate) fn sweep(netlink: &mut Netlink) {
    let Ok(links) = netlink.all() else { return };
    for bridge in links.iter().filter(|l| l.group == PROVISIONAL && l.kind == "bridge") {
        if !links.iter().any(|l| l.master == bridge.index) {
            let _ = netlink.delete(bridge.index);
        }
    }
}
