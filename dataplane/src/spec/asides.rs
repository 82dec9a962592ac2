//! Ports beside filters: what they have to be, whatever the order in which they were given.
#![forbid(unsafe_code)]

use super::filter::{Filter, Step};
use super::stream::Stream;
use super::{Config, Kind, Port};
use crate::fault::{Exit, Fault};
use crate::port::stream::framing::Framing;

impl Config {
    /// Ports that no wire joins.
    pub fn unjoined(&self) -> impl Iterator<Item = &Port> {
        let aside = |i: usize| self.steps().any(|s| s.asides().any(|a| a == i));
        let joined = move |i: usize| self.wires.iter().any(|w| w.netdev == i || w.device == i) || aside(i);
        self.ports.iter().enumerate().filter(move |(i, _)| !joined(*i)).map(|(_, p)| p)
    }

    /// Filters that put frames out at a port or take frames from one.
    pub(super) fn steps(&self) -> impl Iterator<Item = &Step> {
        self.filters.iter().filter_map(|f| if let Filter::Step(s) = f { Some(s) } else { None })
    }

    /// Ports beside filters have no peer, and stand as the filters say.
    ///
    /// # Errors
    /// They do not.
    pub(super) fn check_asides(&mut self) -> Result<(), Fault> {
        let mut headers: Vec<(usize, bool)> = Vec::new();
        let mut froms = Vec::new();
        for s in self.steps() {
            for at in s.asides() {
                self.check_aside(s, at, &headers, &froms)?;
                headers.push((at, s.header()));
            }
            froms.extend(s.from());
        }
        for (at, _) in headers.into_iter().filter(|(_, vnet)| *vnet) {
            if let Some(Port { kind: Kind::Stream(p), .. }) = self.ports.get_mut(at) {
                p.framing = Framing::Vnet;
            }
        }
        Ok(())
    }

    fn check_aside(
        &self,
        s: &Step,
        at: usize,
        headers: &[(usize, bool)],
        froms: &[usize],
    ) -> Result<(), Fault> {
        let fault =
            |why: String, fix: &str| Err(Fault::new(Exit::Config, format!("object '{}'", s.id), why, fix));
        let Some(port) = self.ports.get(at) else { return Ok(()) };
        let joined = self.wires.iter().any(|w| w.netdev == at || w.device == at);
        let twice = s.from() == Some(at) && froms.contains(&at);
        if joined || twice || at == s.port || self.steps().any(|o| o.port == at) {
            let fix = "a filter puts frames out at a port that has no peer, and takes them from one alone";
            return fault(format!("Device '{}' is in use", port.id), fix);
        }
        if port.kind.queues() != 1 || matches!(port.kind, Kind::Hub(_)) {
            let why = format!("port '{}' cannot be a filter's", port.id);
            return fault(why, "name a stream, or another port of one queue");
        }
        if headers.iter().any(|(n, h)| *n == at && *h != s.header()) {
            let why = format!("vnet_hdr_support differs between filters of port '{}'", port.id);
            return fault(why, "give it to all of them or to none");
        }
        let vnet = s.header();
        match &port.kind {
            Kind::Stream(p) if p.framing == Framing::Vnet && !vnet => {
                return fault(format!("port '{}' has framing=vnet", port.id), "add vnet_hdr_support=on");
            }
            Kind::Stream(Stream { framing: Framing::Qemu | Framing::Vnet, .. }) => {}
            _ if vnet => {
                let why = format!("port '{}' has no place for virtio-net headers", port.id);
                return fault(why, "leave vnet_hdr_support out, or name a stream");
            }
            _ => {}
        }
        Ok(())
    }

    /// Ports that filters put frames out at, or take frames from.
    pub(super) fn asides(&self) -> impl Iterator<Item = &Port> {
        self.steps().flat_map(Step::asides).filter_map(|at| self.ports.get(at))
    }
}
