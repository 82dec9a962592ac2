//! Clients of our switches, as ports of the dataplane: each is a datagram port and its place in the switch's hub.
//!
//! What is there is looked at again in every turn, and brought to what should be: a client whose wire is not there, whose
//! connection has ended or whose switch is gone is taken out, and so is a place without a client. So nothing is left of one
//! that came or went while a dataplane died. While there is no dataplane, nobody comes or goes: the kernel keeps them.
#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;
use std::time::Instant;

use super::switch::{Asked, Switch};
use crate::handover::{PortPlan, Wire};
use crate::port::dgram;
use crate::supervise::change::{Change, Step};
use crate::supervise::slot::{ETHER, Slot};
use crate::supervise::{Supervisor, make_room};

impl Supervisor {
    /// What to watch for the switches.
    pub(in crate::supervise) fn switch_fds(&self) -> Vec<BorrowedFd<'_>> {
        if !self.is_served() {
            return Vec::new();
        }
        let switches = self.slots.iter().filter_map(|(_, s)| s.switch.as_ref()).flat_map(|s| s.fds());
        let clients = self.slots.iter().filter(|(n, _)| !self.changes.concern(*n));
        switches.chain(clients.filter_map(|(_, s)| s.client.as_ref()).map(|c| c.fd())).collect()
    }

    /// When to look after them at the latest.
    pub(in crate::supervise) fn switches_due(&self) -> Option<Instant> {
        let switches = self.slots.iter().filter_map(|(_, s)| s.switch.as_ref());
        switches.filter_map(|s| s.due()).min().filter(|_| self.is_served())
    }

    fn is_served(&self) -> bool {
        self.dataplane.as_ref().is_some_and(|d| d.ready.is_some())
    }

    /// Lets clients go and come.
    pub(in crate::supervise) fn serve_switches(&mut self, now: Instant) {
        if !self.is_served() {
            return;
        }
        for slot in self.leavers() {
            if let Some(s) = self.slots.get(slot) {
                let text = format!("port '{}': unplugged", s.id);
                self.voice.say_of_others(&text);
            }
            let change = Change::of(self.removal(slot));
            self.begin(change, now);
        }
        let switches: Vec<u16> =
            self.slots.iter().filter_map(|(n, s)| s.switch.as_ref().map(|_| n)).collect();
        for slot in switches {
            let Some(s) = self.slots.get_mut(slot) else { continue };
            let heard = s.switch.as_mut().map(|s| s.step(now)).unwrap_or_default();
            for asked in heard {
                if let Err(why) = asked.and_then(|asked| self.let_in(slot, asked, now)) {
                    let id = self.slots.get(slot).map(|s| s.id.as_str()).unwrap_or_default();
                    self.voice.say_of_others(&format!("port '{id}': a client is turned away: {why}"));
                }
            }
        }
    }

    /// The steps that take a port out, with what belongs to it.
    pub(in crate::supervise) fn removal(&self, slot: u16) -> Vec<Step> {
        let Some(s) = self.slots.get(slot) else { return Vec::new() };
        // The member last: when it is gone, its port is free.
        let mut all: Vec<u16> = s.client.as_ref().map(|c| c.place).into_iter().collect();
        if let Some(switch) = &s.switch {
            let of = |c: &&(u16, u16)| self.switch_of(c.0) == Some(switch.number());
            let clients: Vec<_> = self.clients().collect();
            all.extend(clients.iter().filter(of).flat_map(|(member, place)| [*place, *member]));
        }
        all.push(slot);
        // What another change has in hand is looked at again when that is done.
        all.retain(|n| self.slots.get(*n).is_some() && !self.changes.concern(*n));
        all.into_iter().map(|slot| Step::Remove { slot }).collect()
    }

    /// Clients and their places.
    fn clients(&self) -> impl Iterator<Item = (u16, u16)> {
        self.slots.iter().filter_map(|(n, s)| s.client.as_ref().map(|c| (n, c.place)))
    }

    fn switch_of(&self, client: u16) -> Option<u32> {
        self.slots.get(client)?.client.as_ref().map(|c| c.switch)
    }

    /// Clients that go, and places that are left.
    fn leavers(&mut self) -> Vec<u16> {
        let clients: Vec<(u16, u16)> = self.clients().collect();
        let switches: Vec<u32> =
            self.slots.iter().filter_map(|(_, s)| s.switch.as_ref().map(|s| s.number())).collect();
        let mut gone = Vec::new();
        for (n, place) in &clients {
            let joined = self.plan.wires.iter().any(|w| w.netdev == *n && w.device == *place);
            if self.changes.concern(*n) || self.changes.concern(*place) {
                continue;
            }
            let Some(client) = self.slots.get_mut(*n).and_then(|s| s.client.as_mut()) else { continue };
            if !joined || !switches.contains(&client.switch) || !client.stays() {
                gone.push(*n);
            }
        }
        let left = self.slots.iter().filter(|(n, s)| s.of_client && !self.changes.concern(*n));
        gone.extend(left.map(|(n, _)| n).filter(|n| clients.iter().all(|(_, place)| place != n)));
        gone
    }

    /// Gives a client a port.
    fn let_in(&mut self, slot: u16, asked: Asked, now: Instant) -> Result<(), String> {
        let s = self.slots.get(slot).ok_or("the switch is gone")?;
        let Some(switch) = &s.switch else { return Ok(()) };
        let port = self.free_port(&s.id, switch, asked.request.port, asked.uid)?;
        let [id, place_id] = names(&s.id, port);
        let text = format!("port '{id}': plugged in: {}", asked.request.description);
        let max_frame = u32::from(switch.spec().mtu) + ETHER;
        let place = PortPlan::Hub(switch.place());
        let (client, socket, file) = asked.welcome(switch, port).map_err(|e| e.to_string())?;
        let full = "there are as many ports as there may be";
        let place = Slot { of_client: true, ..Slot::bare(place_id, "hubport", place) };
        let place = self.slots.put_client(place).ok_or(full)?;
        let member = Slot {
            kept: vec![socket],
            file: Some(file),
            client: Some(client.at(place)),
            ..Slot::bare(id, "vde", PortPlan::Dgram(dgram::Plan::plugged(max_frame)))
        };
        let Some(member) = self.slots.put_client(member) else {
            self.slots.take(place);
            return Err(full.into());
        };
        make_room(self.slots.iter().map(|(_, p)| p.descriptors()).sum());
        self.voice.say_of_others(&text);
        let wire = Wire { netdev: member, device: place, lock_mac: None };
        let steps = [Step::Add { slot: member }, Step::Add { slot: place }, Step::Join(wire)];
        self.begin(Change::of(steps), now);
        Ok(())
    }

    /// The port that is wanted, if it is free, or the first one.
    fn free_port(&self, id: &str, switch: &Switch, wanted: u16, uid: u32) -> Result<u16, String> {
        let most = switch.spec().clients;
        let all = self.slots.iter().filter_map(|(_, s)| s.client.as_ref());
        let mine = all.filter(|c| c.switch == switch.number());
        let (taken, whose): (Vec<u16>, Vec<u32>) = mine.map(|c| (c.port, c.uid)).unzip();
        let theirs = whose.iter().filter(|of| **of == uid).count();
        if let Some(n) = switch.spec().per_user.filter(|n| theirs >= usize::from(*n)) {
            return Err(format!("user {uid} has {n} ports, and may not have more"));
        }
        // A port of the user's own may have such a name.
        let named = |n: u16| names(id, n).iter().any(|name| self.slots.find(name).is_some());
        let free = |n: &u16| !taken.contains(n) && !named(*n);
        let port = match wanted {
            0 => (1..=most).find(free),
            n => Some(n).filter(|n| *n <= most).filter(free),
        };
        port.ok_or_else(|| match wanted {
            0 => format!("all {most} ports are taken"),
            n => format!("port {n} is taken, or beyond {most}"),
        })
    }
}

/// How a client is called that has this port of the switch `id`, and its place in the hub.
fn names(id: &str, port: u16) -> [String; 2] {
    [format!("{id}.{port}"), format!("{id}.{port}.hub")]
}
