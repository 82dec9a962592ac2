//! Attaches the command of `netreeve run`: where a netdev has no device, the command says which it needs.
//!
//! `{vhost-user}`, `{stream}` and `{dgram}` in its words are such a device's socket (with several netdevs:
//! `{ID.vhost-user}` and so on); a QEMU command line without them gets what attaches it appended: vhost-user where the
//! guest's memory is or can be shared, else a stream.
//!
//! Trust: the user, whose command it is. Promise: sockets lie in a directory that nobody else can enter and that goes
//! with us; no word of the command is changed but its placeholders.
#![forbid(unsafe_code)]

pub(super) mod qemu;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::fault::{Exit, Fault};
use crate::spec::{self, Config, Kind};
use crate::supervise::command::fill;
use qemu::{Attach, Line, Memory, Version};

/// What a placeholder may name.
const KINDS: &[&str] = &["vhost-user", "stream", "dgram"];
/// What is lost by vhost-user, and how to have it.
const UNSAVED: &str = ": fast, but without savevm and migration (those with -only-migratable, by a stream)";
/// How long QEMU may take to say its version.
const PATIENCE: Duration = Duration::from_secs(5);

/// A directory of ours. Dropping it removes it, when its sockets are gone.
#[derive(Debug)]
pub(super) struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        // A socket of somebody else's in it is none of our business.
        let _gone = fs::remove_dir(&self.0);
    }
}

/// What was made of a command.
#[derive(Debug, Default)]
pub(super) struct Attached {
    /// To be held as long as the command runs.
    pub(super) dir: Option<Dir>,
    /// What the user should hear.
    pub(super) notes: Vec<String>,
}

/// A netdev without a device.
#[derive(Clone, Debug)]
struct Lone {
    id: String,
    queues: usize,
    /// The MTU of a user network over a stream.
    mtu: Option<u16>,
}

/// Gives each netdev without a device the one that the command needs, and the command what attaches it.
///
/// # Errors
/// No directory for the sockets; a placeholder that cannot stand; a QEMU that would leave us.
pub(super) fn complete(config: &mut Config, words: &mut Vec<OsString>) -> Result<Attached, Fault> {
    let mut out = Attached::default();
    let lone = lone(config);
    if lone.is_empty() || words.is_empty() {
        return Ok(out);
    }
    let mut left = Vec::new();
    for netdev in &lone {
        let named = placeholder(netdev, lone.len() == 1, words)?;
        let Some((kind, names)) = named else {
            left.push(netdev.clone());
            continue;
        };
        let path = out.socket(netdev)?;
        config.add_device(&device(kind, netdev, &path))?;
        let values: Vec<(String, String)> = names.into_iter().map(|n| (n, path.clone())).collect();
        words.iter_mut().for_each(|w| *w = fill(w, &values));
    }
    if let Some(at) = qemu::find(words).filter(|_| !left.is_empty()) {
        out.qemu(config, words, at, &left)?;
    }
    Ok(out)
}

fn lone(config: &Config) -> Vec<Lone> {
    let is_netdev = |p: &&spec::Port| !matches!(p.kind, Kind::Hub(_));
    let of = |p: &spec::Port| Lone {
        id: p.id.clone(),
        queues: p.kind.queues(),
        mtu: match &p.kind {
            Kind::User(u) => Some(u.mtu.unwrap_or(spec::user::MTU.1)),
            _ => None,
        },
    };
    config.unjoined().filter(is_netdev).map(of).collect()
}

/// Which kind of device the words name for this netdev, and by which names.
fn placeholder(
    netdev: &Lone,
    only: bool,
    words: &[OsString],
) -> Result<Option<(&'static str, Vec<String>)>, Fault> {
    let mut found = None;
    for kind in KINDS {
        let mut names = vec![format!("{}.{kind}", netdev.id)];
        if only {
            names.push((*kind).to_owned());
        }
        let names: Vec<String> = names.into_iter().filter(|n| is_in(words, n)).collect();
        if names.is_empty() {
            continue;
        }
        if let Some((other, _)) = found.replace((*kind, names)) {
            let what = format!("the command after --: {{{other}}} and {{{kind}}}");
            let why = format!("netdev '{}' has one device", netdev.id);
            return Err(Fault::new(Exit::Usage, what, why, "name one of them"));
        }
    }
    Ok(found)
}

fn is_in(words: &[OsString], name: &str) -> bool {
    let name = format!("{{{name}}}");
    words.iter().any(|w| w.as_bytes().windows(name.len()).any(|part| part == name.as_bytes()))
}

/// A device for `netdev`, which listens at `path`.
fn device(kind: &str, netdev: &Lone, path: &str) -> String {
    let (id, path) = (&netdev.id, path.replace(',', ",,"));
    match kind {
        "vhost-user" if netdev.queues > 1 => {
            format!("vhost-user,netdev={id},path={path},queues={}", netdev.queues)
        }
        "vhost-user" => format!("vhost-user,netdev={id},path={path}"),
        "stream" => format!("stream,netdev={id},server=on,addr.type=unix,addr.path={path}"),
        _ => format!("dgram,netdev={id},local.type=unix,local.path={path}"),
    }
}

impl Attached {
    /// Where a netdev's socket is to be.
    fn socket(&mut self, netdev: &Lone) -> Result<String, Fault> {
        let dir = match self.dir.take() {
            Some(dir) => dir,
            None => make_dir()?,
        };
        let path = dir.0.join(format!("{}.sock", netdev.id));
        self.dir = Some(dir);
        path.to_str().map(str::to_owned).ok_or_else(|| {
            let fix = "set XDG_RUNTIME_DIR to a directory with a name in UTF-8, or give --device with a path";
            Fault::new(Exit::Config, format!("a socket in {}", path.display()), "it is no text", fix)
        })
    }

    /// Appends what attaches these netdevs to the QEMU command line that begins at `at`.
    fn qemu(
        &mut self,
        config: &mut Config,
        words: &mut Vec<OsString>,
        at: usize,
        left: &[Lone],
    ) -> Result<(), Fault> {
        let own = words.get(at..).unwrap_or_default();
        let line = qemu::read(own);
        if line.daemonize {
            let fix = "leave -daemonize out, and give netreeve --daemonize instead";
            let why = "QEMU would go to the background, and netreeve ends with its command";
            return Err(Fault::new(Exit::Usage, "the command after --: -daemonize", why, fix));
        }
        if line.model.is_none() && left.iter().any(|netdev| line.front(&netdev.id).is_none()) {
            return Err(no_virtio(left));
        }
        let version = own.first().map_or(Version::UNKNOWN, |program| version(program));
        if let Some(other) = &line.other {
            let unasked = |netdev: &&Lone| config.default_netdev.as_ref() == Some(&netdev.id);
            if left.iter().filter(unasked).any(|netdev| line.front(&netdev.id).is_none()) {
                return Err(two_networks(other));
            }
            self.notes.push(format!("the guest has another network as well, QEMU's own: {other}"));
        }
        let mut shares = false;
        let mut added = Vec::new();
        for netdev in left {
            let (vhost_user, why) = way(&line, netdev);
            if !vhost_user && line.front(&netdev.id).is_some_and(|driver| !is_virtio(driver)) {
                config.settle_small(&netdev.id);
            }
            let path = self.socket(netdev)?;
            let kind = if vhost_user { "vhost-user" } else { "stream" };
            config.add_device(&device(kind, netdev, &path))?;
            shares |= vhost_user;
            added.extend(line.attach(&Attach {
                id: &netdev.id,
                path: &path,
                vhost_user,
                queues: netdev.queues,
                version,
                mtu: netdev.mtu.filter(|_| !vhost_user),
            }));
            let reason = why.map_or_else(|| UNSAVED.to_owned(), |w| format!(", not by vhost-user: {w}"));
            self.notes.push(format!("QEMU is attached to '{}' by {kind}{reason}", netdev.id));
        }
        if shares {
            words.extend(line.share().into_iter().map(OsString::from));
        }
        words.extend(added.into_iter().map(OsString::from));
        Ok(())
    }
}

/// The command brings a network, and nobody has asked for one of ours.
fn two_networks(other: &str) -> Fault {
    let why = "it has a network of its own, and with a second one of the same addresses the guest would find neither";
    let fix = "leave that out for netreeve's network; or have both by name, the second with other addresses: \
               --netdev user,id=net1,net=10.0.3.0/24,ipv6=off";
    Fault::new(Exit::Usage, format!("the command after --: {other}"), why, fix)
}

/// A machine that has no place for a virtio-net device, in a command that names no other.
fn no_virtio(left: &[Lone]) -> Fault {
    let id = left.first().map_or(spec::lone::DEFAULT, |netdev| &netdev.id);
    let fix = format!(
        "name the NIC in the command: -net nic,netdev={id} for the machine's own, -device usb-net,netdev={id} where it has USB, \
         -device ne2k_isa,netdev={id} for isapc; or take a machine such as q35, microvm or virt"
    );
    let why = "this machine has neither PCI nor virtio-mmio, so it takes no virtio-net device";
    Fault::new(Exit::Usage, "the command after --", why, fix)
}

/// By vhost-user, or why not.
fn way<'a>(line: &Line, netdev: &'a Lone) -> (bool, Option<&'a str>) {
    if let Memory::Private(why) = line.memory {
        return (false, Some(why));
    }
    if line.moves.is_some() {
        return (false, line.moves);
    }
    match line.front(&netdev.id) {
        Some(driver) if !is_virtio(driver) => (false, Some("its device is no virtio-net")),
        _ => (true, None),
    }
}

/// QEMU's name of a virtio-net device; of `-device` and of `-net nic,model=`.
fn is_virtio(driver: &str) -> bool {
    ["virtio-net", "virtio"].contains(&driver) || driver.starts_with("virtio-net-")
}

/// A new directory for this user alone.
fn make_dir() -> Result<Dir, Fault> {
    let own =
        std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|d| d.is_absolute() && d.is_dir());
    let base = own.unwrap_or_else(std::env::temp_dir);
    let name = base.join("netreeve-XXXXXX");
    nix::unistd::mkdtemp(&name).map(Dir).map_err(|e| {
        let fix = "set XDG_RUNTIME_DIR to a directory that you may write to, or give --device with a path";
        Fault::new(Exit::Unavailable, format!("making a directory in {}", base.display()), e, fix)
    })
}

/// What this QEMU says that it is; unknown if it says nothing in time.
fn version(program: &OsStr) -> Version {
    let said = said(Command::new(Path::new(program)).arg("--version"));
    said.map_or(Version::UNKNOWN, |text| Version::read(&text))
}

/// What a command says, if it ends in time. It is far less than a pipe holds.
fn said(command: &mut Command) -> std::io::Result<String> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let until = Instant::now() + PATIENCE;
    while child.try_wait()?.is_none() {
        if Instant::now() > until {
            child.kill()?;
            child.wait()?;
            return Err(ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let (mut text, mut n) = ([0; 4096], 0);
    if let Some(out) = &mut child.stdout {
        // What it has started and left behind may hold the pipe for ever.
        fcntl(&*out, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        n = out.read(&mut text)?;
    }
    Ok(String::from_utf8_lossy(text.get(..n).unwrap_or_default()).into_owned())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
