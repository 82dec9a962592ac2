//! The kinds of ports: how each is opened, and which system calls it needs.
//!
//! Trust: the plan. Promise: what a kind needs once locked in, and what opening one later needs in addition, is said by
//! the port beside its code and collected here, nowhere else.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;

use crate::handover::{Plan, PortKind, PortPlan};
use crate::port::{self, OpenError, Queues, hub::Hubs};
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
    }
}

/// What the ports of a plan call, those that may come later included.
pub(super) fn of_plan(plan: &Plan) -> Vec<&'static [Call]> {
    let now = plan.ports.iter().flatten().map(|p| calls(p.kind()));
    let later = plan.later.iter().flat_map(|kind| [calls(*kind), opens(*kind)]);
    let filters = plan.filters.then_some(stage::aside::CALLS);
    now.chain(later).chain(filters).collect()
}
