//! The kinds of ports: how each is opened, and which system calls it needs.
//!
//! Trust: the plan. Promise: what a kind needs once locked in, and what opening one later needs in addition, is said by
//! the port beside its code and collected here, nowhere else.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::handover::{Plan, PortKind, PortPlan};
use crate::port::{self, OpenError, Queues, hub::Hubs};
use crate::sandbox::Sockets;
use crate::sandbox::call::Call;
use crate::stage;

/// Opens a port's queues.
pub(super) fn open(plan: &PortPlan, fds: Vec<OwnedFd>, hubs: &mut Hubs) -> Result<Queues, OpenError> {
    match plan {
        PortPlan::Tap(p) => port::tap::open(p, fds),
        PortPlan::Xsk(p) => port::xsk::open(p, fds),
        PortPlan::VhostUser(p) => port::vhost_user::open(p, fds),
        PortPlan::Stream(p) => port::stream::open(p, fds),
        PortPlan::Dgram(p) => port::dgram::open(p, fds),
        PortPlan::Hub(p) => port::hub::open(p, hubs),
        PortPlan::User(p) => port::user::open(p, fds),
    }
}

/// What a port of this kind calls.
#[must_use]
pub fn calls(kind: PortKind) -> &'static [Call] {
    match kind {
        PortKind::Tap => port::tap::CALLS,
        PortKind::Xsk => port::xsk::CALLS,
        PortKind::VhostUser => port::vhost_user::CALLS,
        PortKind::Stream => port::stream::CALLS,
        PortKind::Dgram => port::dgram::CALLS,
        PortKind::Hub => port::hub::CALLS,
        PortKind::User => port::user::CALLS,
    }
}

/// What opening a port of this kind calls in addition, for a dataplane that may open one once it is locked in.
#[must_use]
pub fn opens(kind: PortKind) -> &'static [Call] {
    match kind {
        PortKind::Tap => port::tap::OPENS,
        PortKind::Xsk => port::xsk::OPENS,
        PortKind::VhostUser => port::vhost_user::OPENS,
        PortKind::Stream => port::stream::OPENS,
        PortKind::Dgram => port::dgram::OPENS,
        PortKind::Hub => port::hub::OPENS,
        PortKind::User => port::user::OPENS,
    }
}

/// What the ports of a plan need beyond the descriptors that they are handed.
#[derive(Debug, Default)]
pub(super) struct Beyond<'a> {
    /// They make sockets, in the network namespace of whoever started us.
    pub(super) sockets: bool,
    /// And these go out by TCP to no other ports; none: to any.
    pub(super) ports: Option<Vec<u16>>,
    /// They bind them to addresses.
    pub(super) binds: bool,
    /// They read files beneath this directory.
    pub(super) files: Option<BorrowedFd<'a>>,
    /// So many descriptors more than others.
    pub(super) fds: u64,
}

impl Beyond<'_> {
    /// The sockets that they make.
    pub(super) fn sockets(&self) -> Sockets<'_> {
        match &self.ports {
            _ if !self.sockets => Sockets::None,
            Some(ports) => Sockets::To(ports),
            None => Sockets::Any,
        }
    }
}

/// Looks through a plan for what its ports need beyond their descriptors. Whoever may make sockets has nothing else to
/// lose: a `user` network shares its dataplane with devices only, and with places in hubs, which have nothing of their own.
pub(super) fn beyond<'a>(plan: &Plan, fds: &'a [Vec<OwnedFd>]) -> Result<Beyond<'a>, &'static str> {
    let mut all = Beyond { ports: Some(Vec::new()), ..Beyond::default() };
    let mut users = Vec::new();
    for ((slot, port), fds) in (0u16..).zip(&plan.ports).zip(fds) {
        let Some(PortPlan::User(p)) = port else { continue };
        users.push(slot);
        all.sockets |= !p.restrict;
        all.ports = all.ports.zip(p.tcp_ports()).map(|(a, b)| [a, b].concat());
        all.binds |= !p.restrict && !p.outbound.is_free();
        all.fds += p.limits.descriptors();
        if p.boot.tftp && all.files.is_some() {
            return Err("only one user network of a dataplane may have a directory for TFTP");
        }
        all.files = all.files.or_else(|| fds.last().filter(|_| p.boot.tftp).map(AsFd::as_fd));
    }
    let is_device = |slot: u16| plan.wires.iter().any(|w| w.device == slot);
    let other = |slot: u16| !users.contains(&slot) && !is_device(slot);
    let is_net = |p: &&PortPlan| !matches!(p, PortPlan::Hub(_));
    let used = (0u16..).zip(&plan.ports);
    let mut used = used.filter(|(_, p)| p.as_ref().is_some_and(|p| is_net(&p))).map(|(slot, _)| slot);
    if users.iter().any(|slot| is_device(*slot)) {
        return Err("a user network is a netdev, not a device");
    }
    if !users.is_empty() && (!plan.later.is_empty() || used.any(other)) {
        return Err(
            "a user network makes sockets, so no other netdev may be in its dataplane: run the other one by itself",
        );
    }
    Ok(all)
}

/// What the ports of a plan call, those that may come later included.
pub(super) fn of_plan(plan: &Plan) -> Vec<&'static [Call]> {
    let now = plan.ports.iter().flatten().flat_map(|p| match p {
        PortPlan::User(p) => {
            let files = if p.boot.tftp { port::user::FILES } else { &[] };
            let bound = !p.restrict && !p.outbound.is_free();
            let out = if bound { port::user::OUTBOUND } else { &[] };
            [if p.restrict { port::user::RESTRICTED } else { port::user::CALLS }, files, out]
        }
        p => [calls(p.kind()), &[], &[]],
    });
    let later = plan.later.iter().flat_map(|kind| [calls(*kind), opens(*kind)]);
    let filters = plan.filters.then_some(stage::aside::CALLS);
    now.chain(later).chain(filters).collect()
}
