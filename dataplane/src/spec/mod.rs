//! What the user asks for, from QEMU's `-netdev` strings, their JSON form, or a TOML file, into one struct a port.
//!
//! Each port reads its own keys in its own file. Trust: the text is the user's. Promise: what QEMU's documentation says
//! of an option is true here or refused with the reason; nothing that would run a program is ever honoured.
#![forbid(unsafe_code)]

pub mod addr;
mod asides;
pub mod dgram;
pub mod fields;
pub mod filter;
pub mod forward;
pub mod hub;
pub mod l2tpv3;
pub mod late;
pub mod lone;
pub mod quota;
pub mod socket;
pub mod stream;
pub mod tap;
pub mod text;
pub mod user;
pub mod vde;
pub mod vhost_user;
pub mod xsk;

#[cfg(test)]
mod datagram_tests;
#[cfg(test)]
mod manual_tests;
#[cfg(test)]
mod tests;

use netreeve_shared::mac::Mac;

use crate::fault::{Exit, Fault};
use addr::Addr;
use dgram::Host;
use fields::Fields;
use text::Parsed;

/// Most ports of one run.
pub const MAX_PORTS: usize = 64;

/// A port and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name: QEMU's `id`.
    pub id: String,
    /// What it is.
    pub kind: Kind,
}

/// What a port is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A tap.
    Tap(tap::Tap),
    /// AF_XDP sockets.
    Xsk(xsk::Xsk),
    /// A stream.
    Stream(stream::Stream),
    /// A frame in each datagram.
    Dgram(dgram::Dgram),
    /// An inherited socket: a stream, or of datagrams.
    Socket(i32),
    /// A port of a VDE switch.
    Vde(vde::Vde),
    /// A VDE switch of ours.
    Switch(vde::Server),
    /// L2TPv3.
    L2tpv3(l2tpv3::L2tpv3),
    /// A vhost-user device.
    VhostUser(vhost_user::VhostUser),
    /// A place in a hub.
    Hub(crate::port::hub::Plan),
    /// A network of our own making.
    User(Box<user::User>),
}

/// Two ports, peers of each other, by index into [`Config::ports`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire {
    /// Host side.
    pub netdev: usize,
    /// VM side.
    pub device: usize,
    /// The only source address that the device may use.
    pub lock_mac: Option<Mac>,
}

/// Everything that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The ports, netdevs and devices, in the order given.
    pub ports: Vec<Port>,
    /// The wires.
    pub wires: Vec<Wire>,
    /// What looks on.
    pub filters: filter::Filters,
    /// What the user should hear.
    pub warnings: Vec<String>,
    /// Names that other ports have already.
    pub taken: Vec<String>,
    /// The netdev of devices that name none.
    pub default_netdev: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Netdev,
    Device,
    Object,
}

/// QEMU's types that a later version will have.
const LATER: &[&str] =
    &["netmap", "vhost-vdpa", "vmnet-host", "vmnet-shared", "vmnet-bridged", "passt", "nic"];
const TYPES: &str = "this version has user, tap, bridge, af-xdp, stream, dgram, socket, l2tpv3, vde, hubport \
                     and vhost-user";

impl Config {
    /// Reads `--netdev` texts, `--device` texts and tables of a configuration file, and joins them.
    ///
    /// # Errors
    /// The first thing that cannot stand.
    pub fn read(netdevs: &[String], devices: &[String], file: Option<(&str, &str)>) -> Result<Self, Fault> {
        let mut config = Self::default();
        config.fill(netdevs, devices, file)?;
        Ok(config)
    }

    fn fill(
        &mut self,
        netdevs: &[String],
        devices: &[String],
        file: Option<(&str, &str)>,
    ) -> Result<(), Fault> {
        let config = self;
        let mut joins = Vec::new();
        for text in netdevs {
            let fields = Fields::new(format!("--netdev {text}"), parse("--netdev", text)?);
            joins.extend(config.add(Role::Netdev, fields)?);
        }
        for text in devices {
            let fields = Fields::new(format!("--device {text}"), parse("--device", text)?);
            joins.extend(config.add(Role::Device, fields)?);
        }
        let mut objects = Vec::new();
        if let Some((name, body)) = file {
            for (role, fields) in tables(name, body)? {
                match role {
                    Role::Object => objects.push(fields),
                    _ => joins.extend(config.add(role, fields)?),
                }
            }
        }
        for (device, join) in joins {
            config.join(device, join)?;
        }
        for fields in objects {
            config.filter(fields)?;
        }
        config.check_asides()?;
        config.check()
    }

    /// Reads `--object` texts, after the ports that they name.
    ///
    /// # Errors
    /// The first thing that cannot stand.
    pub fn objects(&mut self, objects: &[String]) -> Result<(), Fault> {
        for text in objects {
            let parsed = text::parse(text, |_| true);
            let parsed = parsed.map_err(|why| {
                Fault::new(Exit::Config, format!("--object {text}"), why, "see netreeve(1)")
            })?;
            self.filter(Fields::new(format!("--object {text}"), parsed))?;
        }
        self.check_asides()?;
        let faced: Vec<String> = self.asides().map(|p| format!("netdev {} has no peer", p.id)).collect();
        self.warnings.retain(|w| !faced.contains(w));
        self.check_descriptors()
    }

    fn filter(&mut self, fields: Fields) -> Result<(), Fault> {
        let ids: Vec<String> = self.ports.iter().map(|p| p.id.clone()).collect();
        let chain = self.filters.iter().map(|f| (f.id().to_owned(), f.port())).collect();
        let read = filter::read(&chain, fields, &ids)?;
        self.warnings.extend(read.warnings);
        self.filters.insert(read.at.min(self.filters.len()), read.filter);
        Ok(())
    }

    /// Reads one port and appends it. Gives what a device wants to be joined to.
    fn add(&mut self, role: Role, mut f: Fields) -> Result<Option<(usize, Join)>, Fault> {
        let index = self.ports.len();
        if index >= MAX_PORTS {
            return Err(f.fault(format!("more than {MAX_PORTS} ports"), "start netreeve once for each VM"));
        }
        let id = self.identifier(role, &mut f)?;
        let default = self.default_netdev.as_deref();
        let mut join = if role == Role::Device { Some((index, Join::read(&mut f, default)?)) } else { None };
        let kind = kind(role, &mut f)?;
        if matches!(kind, Kind::Hub(_)) && role == Role::Netdev {
            join = Join::of_hub_port(&mut f).map(|j| (index, j));
        }
        self.warnings.extend(f.finish()?);
        self.ports.push(Port { id, kind });
        Ok(join)
    }

    fn identifier(&self, role: Role, f: &mut Fields) -> Result<String, Fault> {
        let what = if role == Role::Netdev { "netdev" } else { "device" };
        let id = match f.text("id") {
            Some(id) => id,
            None if role == Role::Netdev => {
                return Err(f.fault("Parameter 'id' is missing", "name it: id=n0"));
            }
            None => (0..=self.ports.len() + self.taken.len())
                .map(|n| format!("device{n}"))
                .find(|n| !self.is_taken(n))
                .unwrap_or_default(),
        };
        if !is_identifier(&id) {
            let fix = "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.";
            return Err(f.fault("Parameter 'id' expects an identifier", fix));
        }
        if self.is_taken(&id) {
            // QEMU's two wordings, of its monitor and of its command line.
            let why = match self.taken.is_empty() {
                true => format!("Duplicate ID '{id}' for {what}"),
                false => format!("Duplicate ID '{id}'"),
            };
            return Err(f.fault(why, "give each port its own id"));
        }
        Ok(id)
    }

    fn is_taken(&self, id: &str) -> bool {
        self.ports.iter().any(|p| p.id == id) || self.taken.iter().any(|t| t == id)
    }

    fn join(&mut self, device: usize, join: Join) -> Result<(), Fault> {
        let fault =
            |why: String, fix: String| Fault { exit: Exit::Config, what: join.what.clone(), why, fix };
        let ids: Vec<String> = self.ports.iter().map(|p| p.id.clone()).collect();
        let netdev =
            ids.iter().position(|i| *i == join.netdev).filter(|n| *n != device).ok_or_else(|| {
                let fix = fields::nearest(&join.netdev, &ids)
                    .map_or_else(|| "add --netdev TYPE,id=...".into(), |n| format!("did you mean '{n}'?"));
                if join.hub {
                    return fault(format!("netdev '{}' not found", join.netdev), fix);
                }
                fault(format!("Property 'netdev' can't find value '{}'", join.netdev), fix)
            })?;
        let taken = |n: usize| self.wires.iter().any(|w| w.netdev == n || w.device == n);
        if taken(netdev) {
            let why = format!("Property 'netdev' can't take value '{}', it's in use", join.netdev);
            return Err(fault(why, "a wire has two ends: give this device a netdev of its own".into()));
        }
        self.wires.push(Wire { netdev, device, lock_mac: join.lock_mac });
        Ok(())
    }

    /// Rules across ports.
    fn check(&mut self) -> Result<(), Fault> {
        let of = |p: &Port| match p.kind {
            Kind::Hub(_) => format!("hub port {} has no peer", p.id),
            _ => lone::words(&p.id),
        };
        // A switch has clients.
        let is_lone = |p: &&Port| !matches!(p.kind, Kind::Switch(_));
        let lone: Vec<String> = self.unjoined().filter(is_lone).map(of).collect();
        self.warnings.extend(lone);
        self.check_company()?;
        self.check_queues()?;
        self.check_descriptors()
    }

    fn check_descriptors(&self) -> Result<(), Fault> {
        let captures = self.filters.iter().filter_map(filter::Filter::inherited);
        let mut fds: Vec<i32> = self.ports.iter().flat_map(|p| p.kind.inherited()).chain(captures).collect();
        fds.sort_unstable();
        let twice = fds.windows(2).find_map(|w| match w {
            [a, b] if a == b => Some(*a),
            _ => None,
        });
        match twice {
            None => Ok(()),
            Some(fd) => {
                let why = format!("descriptor {fd} is named twice");
                Err(Fault::new(Exit::Config, "the ports", why, "each port needs descriptors of its own"))
            }
        }
    }
}

impl Config {
    /// Each queue of a netdev is joined to one of the device.
    fn check_queues(&self) -> Result<(), Fault> {
        for wire in &self.wires {
            let (Some(n), Some(d)) = (self.ports.get(wire.netdev), self.ports.get(wire.device)) else {
                continue;
            };
            let (a, b) = (n.kind.queues(), d.kind.queues());
            if a != b {
                let why = format!("queues differ: '{}' has {a}, '{}' has {b}", n.id, d.id);
                let fix = "give both the same queues=; a stream, a dgram and a hub port have one";
                return Err(Fault::new(Exit::Config, format!("device '{}'", d.id), why, fix));
            }
        }
        Ok(())
    }
}

impl Kind {
    /// Its queues.
    #[must_use]
    pub fn queues(&self) -> usize {
        match self {
            Self::Tap(tap::Tap::Handed(fds)) => fds.len(),
            Self::Tap(tap::Tap::Asked(t)) => t.queues.into(),
            Self::Xsk(x) => x.request.queues.into(),
            Self::Stream(_)
            | Self::Dgram(_)
            | Self::Socket(_)
            | Self::Vde(_)
            | Self::Switch(_)
            | Self::L2tpv3(_)
            | Self::Hub(_)
            | Self::User(_) => 1,
            Self::VhostUser(v) => v.queues.into(),
        }
    }

    /// Numbers of the descriptors that this process must have inherited.
    #[must_use]
    pub fn inherited(&self) -> Vec<i32> {
        match self {
            Self::Tap(tap::Tap::Handed(fds)) => fds.clone(),
            Self::Stream(stream::Stream { addr: Addr::Fd(n), .. })
            | Self::VhostUser(vhost_user::VhostUser { addr: Addr::Fd(n), .. }) => vec![*n],
            Self::User(u) => u.ns_fd.into_iter().collect(),
            Self::Dgram(dgram::Dgram { ends: dgram::Ends::Fd(n), .. }) | Self::Socket(n) => vec![*n],
            _ => Vec::new(),
        }
    }

    /// The type's name, as in the options.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tap(_) => "tap",
            Self::Xsk(_) => "af-xdp",
            Self::Stream(_) => "stream",
            Self::Dgram(_) => "dgram",
            Self::Socket(_) => "socket",
            Self::Vde(_) | Self::Switch(_) => "vde",
            Self::L2tpv3(_) => "l2tpv3",
            Self::VhostUser(_) => "vhost-user",
            Self::Hub(_) => "hubport",
            Self::User(_) => "user",
        }
    }
}

/// What a device says of its wire.
struct Join {
    what: String,
    netdev: String,
    lock_mac: Option<Mac>,
    /// It is a hub port, of which QEMU speaks otherwise.
    hub: bool,
}

impl Join {
    /// A hub port's peer, if it names one.
    fn of_hub_port(f: &mut Fields) -> Option<Self> {
        let what = f.fault("", "").what;
        f.text("netdev").map(|netdev| Self { what, netdev, lock_mac: None, hub: true })
    }

    fn read(f: &mut Fields, default: Option<&str>) -> Result<Self, Fault> {
        let what = f.fault("", "").what;
        let netdev = match (f.text("netdev"), default) {
            (Some(id), _) => id,
            (None, Some(id)) => id.to_owned(),
            (None, None) => f.need("netdev", "name the netdev to join: netdev=ID")?,
        };
        let mac_text = if f.has("lock-mac") { f.text("lock-mac") } else { None };
        let lock_mac = match mac_text.as_deref() {
            None | Some("off" | "no" | "false" | "n") => None,
            Some(word @ ("on" | "yes" | "true" | "y")) => {
                // `mac` stays for the port to read: only a copy is looked at.
                let mac: Option<Mac> = f.peek("mac").and_then(|t| t.parse().ok());
                Some(
                    mac.ok_or_else(|| f.bad_value("lock-mac", word, "give mac= beside it, or lock-mac=MAC"))?,
                )
            }
            Some(text) => {
                let mac = text.parse::<Mac>().map_err(|e| f.bad_value("lock-mac", text, &e.to_string()))?;
                Some(mac)
            }
        };
        Ok(Self { what, netdev, lock_mac, hub: false })
    }
}

/// What QEMU takes as an id, of at most 64 bytes.
fn is_identifier(id: &str) -> bool {
    let letters = id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    letters && id.starts_with(|c: char| c.is_ascii_alphabetic()) && id.len() <= 64
}

fn parse(option: &str, text: &str) -> Result<Parsed, Fault> {
    // QEMU reads stream and dgram by its newer parser; our devices are new as well.
    let dotted = |kind: &str| option == "--device" || kind == "stream" || kind == "dgram";
    text::parse(text, dotted)
        .map_err(|why| Fault::new(Exit::Config, format!("{option} {text}"), why, "see netreeve(1)"))
}

fn kind(role: Role, f: &mut Fields) -> Result<Kind, Fault> {
    let name = f.need("type", TYPES)?;
    match name.as_str() {
        "tap" => tap::read(f).map(Kind::Tap),
        "bridge" => tap::read_bridge(f).map(Kind::Tap),
        "af-xdp" => xsk::read(f).map(Kind::Xsk),
        "stream" => stream::read(f).map(Kind::Stream),
        "dgram" => dgram::read(f, role == Role::Device).map(Kind::Dgram),
        "socket" => socket(f),
        "l2tpv3" => l2tpv3::read(f).map(Kind::L2tpv3),
        "vde" => vde::read(f),
        "vhost-user" => vhost_user::read(f).map(Kind::VhostUser),
        "hubport" => hub::read(f).map(Kind::Hub),
        "user" if role == Role::Device => Err(f.fault(
            "'user' is a network, not what a VMM attaches to",
            "give it to --netdev: --netdev user,id=net0",
        )),
        "user" => user::read(f).map(|u| Kind::User(Box::new(u))),
        later if LATER.contains(&later) => {
            Err(f.fault(format!("type '{later}' is not in this version"), TYPES))
        }
        // QEMU had it until 2.12.
        "dump" => {
            Err(f.fault("type 'dump' is an object now", "--object filter-dump,id=f0,netdev=ID,file=PATH"))
        }
        other if role == Role::Device && other.starts_with("virtio-net") => {
            let fix =
                "that is the VMM's own device; here give what it attaches to: vhost-user,netdev=ID,path=PATH";
            Err(f.bad_value("type", other, fix))
        }
        other => Err(f.bad_value("type", other, TYPES)),
    }
}

/// The older words, as the port that they mean.
fn socket(f: &mut Fields) -> Result<Kind, Fault> {
    let stream = |h: Host, server| {
        let Host { host, port, ipv4, ipv6 } = h;
        let inet = addr::Inet {
            host,
            port,
            to: None,
            ipv4,
            ipv6,
            options: addr::TcpOptions::default(),
            found: Vec::new(),
        };
        Kind::Stream(stream::Stream::plain(Addr::Inet(inet), server))
    };
    Ok(match socket::read(f)? {
        socket::Socket::Datagrams(d) => Kind::Dgram(d),
        socket::Socket::Listen(at) => stream(at, true),
        socket::Socket::Connect(at) => stream(at, false),
        socket::Socket::Fd(n) => Kind::Socket(n),
    })
}

/// The `[[netdev]]` and `[[device]]` tables of a configuration file.
fn tables(name: &str, body: &str) -> Result<Vec<(Role, Fields)>, Fault> {
    let fault = |why: String, fix: &str| Fault::new(Exit::Config, format!("--config {name}"), why, fix);
    let file: toml::Table = body.parse().map_err(|e: toml::de::Error| fault(e.to_string(), ""))?;
    let mut out = Vec::new();
    for (key, value) in &file {
        let role = match key.as_str() {
            "netdev" => Role::Netdev,
            "device" => Role::Device,
            "object" => Role::Object,
            other => {
                let why = format!("Parameter '{other}' is unexpected");
                return Err(fault(why, "a file holds [[netdev]], [[device]] and [[object]] tables"));
            }
        };
        let list =
            value.as_array().ok_or_else(|| fault(format!("'{key}' is no list"), "write [[netdev]]"))?;
        for (i, item) in list.iter().enumerate() {
            let what = format!("--config {name}: {key} {}", i + 1);
            let table = item.as_table().ok_or_else(|| fault(format!("'{key}' is no table"), ""))?;
            let parsed = text::table(table).map_err(|why| Fault::new(Exit::Config, &what, why, ""))?;
            out.push((role, Fields::new(what, parsed)));
        }
    }
    // Netdevs first, so that the order in the file does not matter.
    out.sort_by_key(|(role, _)| *role == Role::Device);
    Ok(out)
}
