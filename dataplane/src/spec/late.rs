//! Ports that are asked for while others run: the same options, one port at a time.
//!
//! Trust and promise as of the others; a name that is taken stays its owner's.
#![forbid(unsafe_code)]

use netreeve_shared::mac::Mac;

use super::fields::Fields;
use super::{Config, Port, Role, text};
use crate::fault::{Exit, Fault};
use crate::handover::PortKind;

/// Types that can be added to a run that was prepared for them, and what the dataplane is prepared for.
pub const HOTPLUG: &[(&str, PortKind)] = &[
    ("tap", PortKind::Tap),
    ("bridge", PortKind::Tap),
    ("af-xdp", PortKind::Xsk),
    ("stream", PortKind::Stream),
    ("dgram", PortKind::Dgram),
    ("l2tpv3", PortKind::Dgram),
    ("socket", PortKind::Stream),
    ("socket", PortKind::Dgram),
    ("vde", PortKind::Dgram),
    // A switch of ours.
    ("vde", PortKind::Hub),
    ("vhost-user", PortKind::VhostUser),
    ("hubport", PortKind::Hub),
];

/// What a dataplane is prepared for when ports of this type may come; nothing: they cannot be added.
pub fn hotplug(name: &str) -> impl Iterator<Item = PortKind> {
    HOTPLUG.iter().filter(move |(n, _)| *n == name).map(|(_, kind)| *kind)
}

/// A port that comes late.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Late {
    /// The port.
    pub port: Port,
    /// The netdev that it is to be joined to.
    pub netdev: Option<String>,
    /// The only source address that it may use.
    pub lock_mac: Option<Mac>,
    /// What the user should hear.
    pub warnings: Vec<String>,
}

impl Late {
    /// Reads the options of a device or of a netdev; `taken` are the names of those that are there.
    ///
    /// # Errors
    /// Those of [`Config::read`].
    pub fn read(device: bool, options: &str, taken: Vec<String>) -> Result<Self, Fault> {
        let (role, what) = if device { (Role::Device, "device_add") } else { (Role::Netdev, "netdev_add") };
        let parsed = text::parse(options, |_| true).map_err(|why| Fault::new(Exit::Config, what, why, ""))?;
        let mut config = Config { taken, ..Config::default() };
        let join = config.add(role, Fields::new(what.into(), parsed))?;
        let (netdev, lock_mac) = join.map_or((None, None), |(_, j)| (Some(j.netdev), j.lock_mac));
        let port = config.ports.pop().ok_or_else(|| Fault::new(Exit::General, what, "no port", ""))?;
        Ok(Self { port, netdev, lock_mac, warnings: config.warnings })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_late_port_is_read_like_an_early_one() {
        let taken = || vec!["n0".to_owned(), "device0".to_owned()];
        let stream = r#"{"type":"stream","id":"n1","server":true,"addr":{"type":"unix","path":"/x"}}"#;
        let late = Late::read(false, stream, taken()).unwrap();
        assert_eq!((late.port.id.as_str(), late.netdev), ("n1", None));
        let why = |device, text: &str| Late::read(device, text, taken()).unwrap_err().why;
        assert_eq!(why(false, &stream.replace("n1", "n0")), "Duplicate ID 'n0'");
        assert_eq!(why(false, r#"{"id":"n1"}"#), "Parameter 'type' is missing");
        assert_eq!(why(true, r#"{"type":"vhost-user","path":"/x"}"#), "Parameter 'netdev' is missing");
        let device =
            r#"{"type":"vhost-user","netdev":"n0","path":"/x","mac":"52:54:00:00:00:01","lock-mac":true}"#;
        let late = Late::read(true, device, taken()).unwrap();
        assert_eq!((late.port.id.as_str(), late.netdev.as_deref()), ("device1", Some("n0")));
        assert_eq!(late.lock_mac, Some("52:54:00:00:00:01".parse().unwrap()));
    }

    #[test]
    fn every_kind_that_a_dataplane_can_be_prepared_for_has_a_name() {
        let named: BTreeSet<PortKind> = HOTPLUG.iter().map(|(_, kind)| *kind).collect();
        assert_eq!(named, PortKind::ALL.into_iter().collect());
        assert_eq!(hotplug("bridge").collect::<Vec<_>>(), [PortKind::Tap]);
        assert_eq!(hotplug("socket").count(), 2);
        assert_eq!(hotplug("user").count(), 0);
    }
}
