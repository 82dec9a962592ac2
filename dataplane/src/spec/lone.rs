//! Netdevs that nobody has given a device, devices that have named no netdev, and the network that is there for both.
//!
//! A `user` network needs nothing but itself, so it is what there is when no netdev is named.
#![forbid(unsafe_code)]

use super::{Config, Fields, Kind, Port, Role, parse, user};
use crate::fault::{Exit, Fault};

/// The netdev that there is when none is named.
pub const DEFAULT: &str = "net0";
/// What any NIC takes, in bytes: Ethernet's MTU.
const ETHERNET: u16 = 1500;

impl Config {
    /// A `user` network alone, named [`DEFAULT`], and these devices, which need not name it.
    ///
    /// # Errors
    /// The first thing that cannot stand.
    pub fn with_user(devices: &[String]) -> Result<Self, Fault> {
        let mut config = Self { default_netdev: Some(DEFAULT.to_owned()), ..Self::default() };
        config.fill(&[format!("user,id={DEFAULT}")], devices, None)?;
        Ok(config)
    }

    /// Adds a device, joined to the netdev that it names.
    ///
    /// # Errors
    /// It cannot stand.
    pub fn add_device(&mut self, text: &str) -> Result<(), Fault> {
        let fields = Fields::new(format!("--device {text}"), parse("--device", text)?);
        if let Some((device, join)) = self.add(Role::Device, fields)? {
            self.warnings.retain(|w| *w != words(&join.netdev));
            self.join(device, join)?;
        }
        self.check_queues()
    }

    /// Gives each `user` network without an MTU the one that fits its device: frames over a stream are whole packets, and
    /// the larger the fewer; a device with offloads has super-frames at any MTU.
    pub fn settle(&mut self) {
        for wire in &self.wires {
            let mtu = match self.ports.get(wire.device).map(|p| &p.kind) {
                Some(Kind::Stream(s)) => s.undone.unwrap_or(user::MTU.1),
                _ => continue,
            };
            if let Some(Kind::User(u)) = self.ports.get_mut(wire.netdev).map(|p| &mut p.kind) {
                u.mtu.get_or_insert(mtu.max(user::MTU.0));
            }
        }
    }

    /// Gives a `user` network without an MTU the one of Ethernet: what its device leads to takes no longer frames.
    pub fn settle_small(&mut self, id: &str) {
        for port in self.ports.iter_mut().filter(|p| p.id == id) {
            if let Kind::User(u) = &mut port.kind {
                u.mtu.get_or_insert(ETHERNET);
            }
        }
    }

    /// A `user` network makes sockets, so its dataplane has no other network. A hub is none: what its places join are ports
    /// that are looked at here themselves.
    pub(super) fn check_company(&self) -> Result<(), Fault> {
        let user = self.ports.iter().find(|p| matches!(p.kind, Kind::User(_)));
        let is_other = |p: &&Port| {
            let device = self.wires.iter().any(|w| self.ports.get(w.device).is_some_and(|d| d.id == p.id));
            !device && !matches!(p.kind, Kind::Hub(_)) && user.is_some_and(|u| u.id != p.id)
        };
        match (user, self.ports.iter().find(is_other)) {
            (Some(user), Some(other)) => {
                let what = format!("netdevs '{}' and '{}'", user.id, other.id);
                let why = "a user network has a dataplane of its own, since that may make sockets";
                Err(Fault::new(Exit::Config, what, why, "start netreeve once for each of them"))
            }
            _ => Ok(()),
        }
    }
}

/// QEMU's words for a netdev that nobody uses.
pub(super) fn words(id: &str) -> String {
    format!("netdev {id} has no peer")
}
