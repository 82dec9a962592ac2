//! The slots of a run: numbered places for ports, some of them free.
//!
//! A slot's number is its port's for as long as the port is there, since the dataplane knows it by nothing else.
#![forbid(unsafe_code)]

use std::ops::Range;

use crate::handover::PortPlan;
use crate::spec::MAX_PORTS;
use crate::spec::vde::MOST_CLIENTS;
use crate::supervise::slot::Slot;

/// All slots.
#[derive(Debug, Default)]
pub struct Slots(Vec<Option<Slot>>);

impl FromIterator<Slot> for Slots {
    fn from_iter<I: IntoIterator<Item = Slot>>(ports: I) -> Self {
        Self(ports.into_iter().map(Some).collect())
    }
}

impl Slots {
    /// Those in use, with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u16, &Slot)> {
        (0..).zip(&self.0).filter_map(|(n, s)| Some((n, s.as_ref()?)))
    }

    /// The same, to change them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u16, &mut Slot)> {
        (0..).zip(&mut self.0).filter_map(|(n, s)| Some((n, s.as_mut()?)))
    }

    /// The port in a slot.
    #[must_use]
    pub fn get(&self, n: u16) -> Option<&Slot> {
        self.0.get(usize::from(n))?.as_ref()
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, n: u16) -> Option<&mut Slot> {
        self.0.get_mut(usize::from(n))?.as_mut()
    }

    /// The slot of a port.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<u16> {
        self.iter().find(|(_, s)| s.id == id).map(|(n, _)| n)
    }

    /// Puts a port into the first free slot; none: there are as many as there may be.
    pub fn put(&mut self, port: Slot) -> Option<u16> {
        self.put_into(0..MAX_PORTS, port)
    }

    /// The same for what belongs to a client of a switch, beyond those places, so that clients leave them to the user's
    /// ports; there is room for those of one.
    pub fn put_client(&mut self, port: Slot) -> Option<u16> {
        self.put_into(MAX_PORTS..MAX_PORTS + 2 * usize::from(MOST_CLIENTS), port)
    }

    fn put_into(&mut self, mut places: Range<usize>, port: Slot) -> Option<u16> {
        let free = places.find(|n| self.0.get(*n).is_none_or(Option::is_none))?;
        while self.0.len() <= free {
            self.0.push(None);
        }
        *self.0.get_mut(free)? = Some(port);
        u16::try_from(free).ok()
    }

    /// Takes a port out; its slot is free.
    pub fn take(&mut self, n: u16) -> Option<Slot> {
        self.0.get_mut(usize::from(n))?.take()
    }

    /// What a dataplane builds, slot by slot.
    #[must_use]
    pub fn plan(&self) -> Vec<Option<PortPlan>> {
        self.0.iter().map(|s| s.as_ref().map(|s| s.plan.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::stream::Plan;

    fn port(id: &str) -> Slot {
        let plan = PortPlan::Stream(Plan { server: true, ..Plan::default() });
        Slot::bare(id.into(), "stream", plan)
    }

    #[test]
    fn numbers_stay_and_are_used_again() {
        let mut all: Slots = ["a", "b", "c"].map(port).into_iter().collect();
        assert_eq!(all.find("b"), Some(1));
        assert_eq!(all.take(1).unwrap().id, "b");
        assert!(all.take(1).is_none() && all.get(1).is_none() && all.find("b").is_none());
        assert_eq!(all.iter().map(|(n, s)| (n, s.id.as_str())).collect::<Vec<_>>(), [(0, "a"), (2, "c")]);
        assert!(all.plan()[1].is_none() && all.plan().len() == 3);
        assert_eq!(all.put_client(port("client")), Some(64), "clients leave the others' places alone");
        assert_eq!(all.put(port("d")), Some(1));
        let more = (3..MAX_PORTS).all(|_| all.put(port("x")).is_some());
        assert!(more && all.put(port("y")).is_none());
        assert_eq!(all.put_client(port("y")), Some(65));
        let more = (66..64 + 256).all(|_| all.put_client(port("x")).is_some());
        assert!(more && all.put_client(port("z")).is_none());
    }
}
