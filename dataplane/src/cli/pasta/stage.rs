//! What is done inside a namespace, by processes of one thread each that we start: `make` (join or make the namespaces,
//! put a tap there, configure it, hand its descriptor back; and, where ports follow who listens or lead from the namespace to
//! the host, stay there, to look and to bind), `enter` (become the user's command in there), and `watch`
//! (end when the namespace has gone).
//!
//! Trust: whoever started us, the same program. Promise: nothing here has a privilege beyond what its user namespace gives
//! it there.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv6Addr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use netreeve_shared::channel::{Channel, spawn};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::prctl;
use nix::unistd::{getegid, geteuid, setsid};
use serde::{Deserialize, Serialize};

use super::auto::{self, Own};
use super::netlink::Link;
use crate::cli::passt::{Ports, Scene};
use crate::fault::{Exit, Fault};
use crate::supervise::{inside, say};
use crate::sys::{process, tun};

/// The word behind our name by which a stage is told from a command line.
pub(in crate::cli) const WORD: &str = "namespace-stage";
/// How often it is looked whether a namespace is still there, where nobody tells when it goes (as often as pasta does).
const LOOK: Duration = Duration::from_secs(1);
/// How long a stage may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// A file of names is put beside here for a moment, in a mount namespace of our own.
const SCRATCH: &str = "/tmp";
const RESOLV: &str = "/etc/resolv.conf";

/// What is to be made.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Order {
    /// The user namespace to join; none: the one that we are in.
    pub(super) userns: Option<PathBuf>,
    /// The network namespace to join; none: new ones of all kinds that are needed.
    pub(super) netns: Option<PathBuf>,
    /// The tap's name.
    pub(super) ifname: String,
    /// Its Ethernet address; none: of the kernel's choice.
    pub(super) mac: Option<[u8; 6]>,
    /// Its MTU in bytes; none: Ethernet's.
    pub(super) mtu: Option<u16>,
    /// Bring it up, with these addresses and gateways.
    pub(super) config: bool,
    /// Addresses and bits of their networks.
    pub(super) addresses: Vec<(IpAddr, u8)>,
    /// Gateways.
    pub(super) gateways: Vec<IpAddr>,
    /// What `resolv.conf` is to say, if the mount namespace is ours.
    pub(super) resolv: Option<String>,
    /// Ports that are forwarded while somebody listens where they lead, inside or on the host.
    pub(super) autos: Vec<(Scene, Ports)>,
    /// Ports of the host's that we listen at ourselves, whoever listens inside: UDP or not, the first, the last. To be known
    /// where what leads out follows who listens.
    pub(super) own: Vec<Own>,
    /// Sockets are to be bound inside as long as the supervisor may ask for some.
    pub(super) inside: bool,
}

impl Order {
    /// Whoever does it stays.
    fn stays(&self) -> bool {
        self.inside || !self.autos.is_empty()
    }
}

/// What a stage made.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// The tap and, if they are new, the namespaces.
    pub(super) fds: Vec<OwnedFd>,
    /// Our end of a connection to the process that stays inside and says over it, as a client of the control socket does,
    /// which ports are to be forwarded.
    pub(super) follower: Option<OwnedFd>,
    /// Our end of a connection to the process that binds sockets inside.
    pub(super) inside: Option<OwnedFd>,
    /// There is IPv6 at the loopback inside.
    pub(super) six: bool,
}

/// What a stage answers.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// The tap, and for new namespaces those: user, network, mount. `note`: what the user should hear; `six`: there is IPv6 at
    /// the loopback.
    Done { note: Option<String>, six: bool },
    /// What failed, and why.
    Failed { what: String, why: String },
}

/// The tap and, if they are new, the namespaces.
///
/// # Errors
/// What the stage says, or that it cannot be started.
pub(super) fn make(order: &Order) -> Result<Made, Fault> {
    let broken =
        |e: &dyn std::fmt::Display| Fault::new(Exit::Unavailable, "pasta: making a namespace", e, "");
    let own = std::env::current_exe().map_err(|e| broken(&e))?;
    let mut command = Command::new(own);
    command.args([WORD, "make"]);
    let stays = order.stays();
    if stays {
        // One that stays keeps nobody's pipe or terminal. It is tied to nobody: who starts it may go into the background, and
        // when the supervisor ends, so do their conversations.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    }
    let (channel, mut child) = spawn(command).map_err(|e| broken(&e))?;
    let pair = (!order.autos.is_empty()).then(UnixStream::pair).transpose().map_err(|e| broken(&e))?;
    let (follower, follows) = pair.unzip();
    if let Some(ours) = &follower {
        ours.set_nonblocking(true).map_err(|e| broken(&e))?;
    }
    let pair = order.inside.then(Channel::pair).transpose().map_err(|e| broken(&e))?;
    let (inside, binds) = pair.unzip();
    let text = serde_json::to_vec(order).map_err(|e| broken(&e))?;
    let handed: Vec<_> = follows.iter().map(AsFd::as_fd).chain(binds.iter().map(AsFd::as_fd)).collect();
    channel.send(&text, &handed).map_err(|e| broken(&e))?;
    let answer = channel.recv(4, Some(PATIENCE));
    drop((channel, follows, binds));
    let answer = answer.map_err(|e| broken(&e)).and_then(|a| a.ok_or_else(|| broken(&"it ended")));
    let answer =
        answer.and_then(|a| Ok((serde_json::from_slice::<Answer>(&a.bytes).map_err(|e| broken(&e))?, a.fds)));
    if !stays || !matches!(answer, Ok((Answer::Done { .. }, _))) {
        let _ended = child.kill();
        child.wait().map_err(|e| broken(&e))?;
    }
    let (answer, fds) = answer?;
    match answer {
        Answer::Done { note, six } => {
            note.iter().for_each(|n| say::say(n));
            let inside = inside.map(Channel::into_fd);
            Ok(Made { fds, follower: follower.map(OwnedFd::from), inside, six })
        }
        Answer::Failed { what, why } => {
            let fix = "see pasta in netreeve(1): what a user namespace and its owner may do, and where none may be made";
            Err(Fault::new(Exit::Denied, format!("pasta: {what}"), why, fix))
        }
    }
}

/// A stage, if these words (without our name) are one's.
pub(in crate::cli) fn run(words: &[OsString]) -> Option<ExitCode> {
    let (first, rest) = words.split_first()?;
    if first != WORD {
        return None;
    }
    let (what, rest) = rest.split_first()?;
    let end = match what.to_str() {
        Some("make") => making(),
        Some("enter") => entering(rest),
        Some("watch") => watching(rest),
        _ => return None,
    };
    Some(end.unwrap_or_else(|e| {
        say::say(&format!("pasta: {}: {e}", what.display()));
        ExitCode::from(Exit::Unavailable.code())
    }))
}

/// What failed, in words.
type Failed = (String, String);

fn failed<E: std::fmt::Display>(what: &str) -> impl Fn(E) -> Failed + '_ {
    move |e| (what.to_owned(), e.to_string())
}

fn making() -> io::Result<ExitCode> {
    let channel = Channel::inherited()?;
    let Some(message) = channel.recv(2, Some(PATIENCE))? else { return Ok(ExitCode::FAILURE) };
    let order: Order = serde_json::from_slice(&message.bytes)?;
    if order.stays() {
        // It goes on beside a supervisor in the background: what ends the group or the terminal of who started it is not for it.
        setsid()?;
    }
    // Who listens on the host is read from files that are opened there.
    let host = order.autos.iter().any(|(scene, _)| scene.inside).then(auto::Listeners::here);
    let (made, fds) = match made(&order) {
        Ok((fds, note)) => {
            // Asked by binding: it is what will be done.
            let six = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
            (Answer::Done { note, six }, fds)
        }
        Err((what, why)) => (Answer::Failed { what, why }, Vec::new()),
    };
    let handed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    channel.send(&serde_json::to_vec(&made)?, &handed)?;
    drop((channel, fds));
    if matches!(made, Answer::Done { .. }) {
        stay(order, message.fds, host)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Looks and binds, until nobody asks any more.
fn stay(order: Order, fds: Vec<OwnedFd>, host: Option<auto::Listeners>) -> io::Result<()> {
    // Root of the namespace is not to trace it, nor to take its descriptors (ptrace(2)).
    prctl::set_dumpable(false)?;
    let mut fds = fds.into_iter();
    let follows = (!order.autos.is_empty()).then(|| fds.next()).flatten().map(UnixStream::from);
    let binds = order.inside.then(|| fds.next()).flatten().map(Channel::from_fd).transpose()?;
    let follow = move |socket| auto::follow(socket, &order.autos, &order.own, host);
    match (follows, binds) {
        (Some(socket), None) => follow(socket),
        (None, Some(channel)) => inside::serve(&channel),
        (Some(socket), Some(channel)) => {
            // A second thread is of the same namespaces. It ends with the process, and sooner only if the supervisor breaks off.
            let _looks = thread::Builder::new().spawn(move || follow(socket))?;
            inside::serve(&channel)
        }
        (None, None) => Ok(()),
    }
}

fn made(order: &Order) -> Result<(Vec<OwnedFd>, Option<String>), Failed> {
    match &order.netns {
        None => isolate()?,
        Some(netns) => join(order.userns.as_deref(), netns)?,
    }
    let tap = tun::make(&order.ifname).map_err(failed(&format!("making the tap {}", order.ifname)))?;
    configure(order).map_err(failed(&format!("configuring {}", order.ifname)))?;
    let mut fds = vec![tap];
    let mut note = None;
    if order.netns.is_none() {
        if let Some(text) = &order.resolv {
            note = names(text).err().map(|e| format!("pasta: the command keeps the host's {RESOLV}: {e}"));
        }
        for kind in ["user", "net", "mnt"] {
            let path = format!("/proc/self/ns/{kind}");
            fds.push(File::open(&path).map_err(failed(&path))?.into());
        }
    }
    Ok((fds, note))
}

/// New namespaces: of users, in which we are root, of the network, and of mounts.
fn isolate() -> Result<(), Failed> {
    let (uid, gid) = (geteuid(), getegid());
    let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    unshare(flags).map_err(failed("making namespaces"))?;
    let write = |file: &str, text: String| {
        fs::write(format!("/proc/self/{file}"), text)
            .map_err(failed(&format!("writing {file} of a user namespace")))
    };
    write("setgroups", "deny".into())?;
    write("uid_map", format!("0 {uid} 1"))?;
    write("gid_map", format!("0 {gid} 1"))
}

/// Joins namespaces that are there.
fn join(userns: Option<&Path>, netns: &Path) -> Result<(), Failed> {
    let open = |path: &Path| File::open(path).map_err(failed(&format!("opening {}", path.display())));
    // Both are opened as who we are, before we are somebody else.
    let net = open(netns)?;
    if let Some(path) = userns {
        let user = open(path)?;
        let same = |a: &fs::Metadata, b: &fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
        let here = fs::metadata("/proc/self/ns/user").map_err(failed("our user namespace"))?;
        // One's own cannot be joined.
        if !same(&user.metadata().map_err(failed("a user namespace"))?, &here) {
            setns(&user, CloneFlags::CLONE_NEWUSER)
                .map_err(failed(&format!("joining {}", path.display())))?;
        }
    }
    setns(&net, CloneFlags::CLONE_NEWNET).map_err(failed(&format!("joining {}", netns.display())))
}

fn configure(order: &Order) -> io::Result<()> {
    Link::new("lo")?.up(None)?;
    let mut link = Link::new(&order.ifname)?;
    if let Some(mac) = order.mac {
        link.mac(mac)?;
    }
    if !order.config {
        return Ok(());
    }
    link.up(order.mtu)?;
    order.addresses.iter().try_for_each(|(ip, bits)| link.address(*ip, *bits))?;
    order.gateways.iter().try_for_each(|ip| link.default_route(*ip))
}

/// Puts a file of ours over `resolv.conf`, in our mount namespace. It lies in a memory of its own, and has no other name.
fn names(text: &str) -> io::Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("netreeve"), SCRATCH, Some("tmpfs"), MsFlags::empty(), Some("size=64k,mode=0755"))?;
    let path = Path::new(SCRATCH).join("resolv.conf");
    let bound = fs::write(&path, text)
        .and_then(|()| mount(Some(&path), RESOLV, none, MsFlags::MS_BIND, none).map_err(io::Error::from));
    umount2(SCRATCH, MntFlags::MNT_DETACH)?;
    bound
}

/// Becomes the user's command: `USERNS NETNS MNTNS COMMAND...`, descriptors by their numbers.
fn entering(words: &[OsString]) -> io::Result<ExitCode> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let (numbers, command) = words.split_first_chunk::<3>().ok_or_else(invalid)?;
    let here = std::env::current_dir();
    let kinds = [CloneFlags::CLONE_NEWUSER, CloneFlags::CLONE_NEWNET, CloneFlags::CLONE_NEWNS];
    for (number, kind) in numbers.iter().zip(kinds) {
        let number = number.to_str().and_then(|n| n.parse().ok()).ok_or_else(invalid)?;
        setns(process::adopt(number)?, kind)?;
    }
    // The same place, in the new mounts; if it cannot be had, their root.
    let _there = here.and_then(std::env::set_current_dir);
    let (program, arguments) = command.split_first().ok_or_else(invalid)?;
    let e = Command::new(program).args(arguments).exec();
    say::say(&format!("pasta: starting '{}': {e}", program.display()));
    // As shells have it.
    Ok(ExitCode::from(if e.kind() == io::ErrorKind::NotFound { 127 } else { 126 }))
}

/// Ends when `PATH` is no longer what it is now, or nobody waits for us any more.
fn watching(words: &[OsString]) -> io::Result<ExitCode> {
    let path = words.first().ok_or(io::ErrorKind::InvalidInput)?;
    let what = || fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    // First, so that nothing happens between a look and the next wait.
    let changes = changes_beside(Path::new(path));
    let (first, parent) = (what(), parent_id());
    while first.is_some() && what() == first && parent_id() == parent {
        wait(changes.as_ref());
    }
    Ok(ExitCode::SUCCESS)
}

/// Tells when a name is taken out of the directory of `path`: whoever takes a namespace down may want its ports again at
/// once, for another. None where that is not told (a filesystem of the kernel's own, a limit): then looking has to do.
fn changes_beside(path: &Path) -> Option<Inotify> {
    let notify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok()?;
    let flags = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM;
    notify.add_watch(path.parent()?, flags).ok()?;
    Some(notify)
}

/// Waits for a change, but not longer than [`LOOK`].
fn wait(changes: Option<&Inotify>) {
    let Some(changes) = changes else { return std::thread::sleep(LOOK) };
    let mut fds = [PollFd::new(changes.as_fd(), PollFlags::POLLIN)];
    let told = PollTimeout::try_from(LOOK).is_ok_and(|limit| poll(&mut fds, limit).is_ok());
    if !told {
        std::thread::sleep(LOOK);
    }
    // They are read away; what they say is seen at the path.
    while changes.read_events().is_ok_and(|e| !e.is_empty()) {}
}
