//! What a QEMU command line says of memory and networks, and what has to be added for a netdev of ours.
//!
//! Options are taken apart as QEMU does: one dash or two, an argument behind each but those of [`BARE`]. Nothing is
//! taken away and nothing is put in the middle: what is added stands at the end, where QEMU merges it (`-machine`) or
//! takes it as one more (`-object`, `-chardev`, `-netdev`, `-device`).
//!
//! Promise: where the guest's memory cannot be shared for certain, it is left as it is, and the network is a stream.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::spec::text;

/// QEMU's options without an argument (its versions 7 to 11).
const BARE: &[&str] = &[
    "h",
    "help",
    "version",
    "snapshot",
    "nographic",
    "portrait",
    "full-screen",
    "no-reboot",
    "no-shutdown",
    "S",
    "daemonize",
    "enable-kvm",
    "no-hpet",
    "no-acpi",
    "no-fd-bootchk",
    "win2k-hack",
    "usb",
    "singlestep",
    "one-insn-per-tb",
    "mem-prealloc",
    "nodefaults",
    "no-user-config",
    "nodefconfig",
    "xen-attach",
    "xen-domid-restrict",
    "semihosting",
    "old-param",
    "enable-fips",
    "s",
    "preconfig",
    "only-migratable",
    "no-quit",
    "alt-grab",
    "ctrl-grab",
    "no-frame",
    "curses",
    "sdl",
    "perfmap",
    "jitdump",
    "enable-sync-profile",
    "no-kvm",
    "no-kvm-irqchip",
    "async-teardown",
    "show-cursor",
    "virtfs_synth",
];
/// Programs that start the one that they are given, behind options of their own.
const WRAPPERS: &[&str] = &[
    "chrt", "doas", "env", "gdb", "ionice", "nice", "nohup", "numactl", "setpriv", "setsid", "stdbuf",
    "strace", "sudo", "taskset", "time", "timeout",
];
/// Beginnings of the names of boards that have neither PCI nor virtio-mmio (QEMU 7 to 11).
const ARM_BOARDS: &[&str] = &[
    "bpim2u",
    "collie",
    "cubieboard",
    "highbank",
    "integratorcp",
    "lm3s",
    "midway",
    "mps",
    "musca",
    "orangepi",
    "raspi",
    "smdkc210",
    "stm32",
    "xilinx-zynq",
    "xlnx-zcu102",
];
const RISCV_BOARDS: &[&str] =
    &["amd-microblaze", "microchip-icicle", "opentitan", "shakti", "sifive", "spike"];
/// Options by which a guest's state is loaded, or is to be: QEMU neither saves nor migrates a guest with a vhost-user device
/// of ours, which does not log what it writes (VHOST_USER_PROTOCOL_F_LOG_SHMFD).
const MOVES: &[(&str, &str)] = &[
    ("only-migratable", "with that the guest could not be migrated (-only-migratable)"),
    ("incoming", "with that the guest could not be migrated (-incoming)"),
    ("loadvm", "with that the guest's state could not be saved (-loadvm)"),
];
/// What QEMU gives a guest without `-m`, in bytes.
const DEFAULT_MEMORY: u64 = 128 << 20;
/// QEMU rounds the memory's size up to this many bytes.
const GRAIN: u64 = 8192;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Line {
    /// How the guest's memory can be shared.
    pub(in crate::cli) memory: Memory,
    /// The virtio-net front-end that this machine takes, if any.
    pub(in crate::cli) model: Option<&'static str>,
    /// Identifiers of netdevs that are there.
    pub(in crate::cli) netdevs: Vec<String>,
    /// Front-ends that are there: driver and netdev.
    pub(in crate::cli) fronts: Vec<(String, String)>,
    /// A network that is not ours, as it was written.
    pub(in crate::cli) other: Option<String>,
    /// Why the guest must be one whose state can be saved and loaded, if it must.
    pub(in crate::cli) moves: Option<&'static str>,
    /// QEMU goes to the background.
    pub(in crate::cli) daemonize: bool,
    /// The guest is run by KVM, if there is any.
    pub(in crate::cli) kvm: bool,
}

/// The guest's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Memory {
    /// It is shared already.
    Shared,
    /// It is shared if a backend of so many bytes is added.
    Add(u64),
    /// It is not, for this reason.
    Private(&'static str),
}

/// Where QEMU's own words begin, if the command is QEMU, or starts it.
pub(in crate::cli) fn find(words: &[OsString]) -> Option<usize> {
    let base = |w: &OsString| Path::new(w).file_name().map(|n| n.to_string_lossy().into_owned());
    let is_qemu =
        |name: &str| name.starts_with("qemu-system-") || ["qemu-kvm", "kvm", "qemu"].contains(&name);
    let first = base(words.first()?)?;
    if is_qemu(&first) {
        return Some(0);
    }
    if !WRAPPERS.contains(&first.as_str()) {
        return None;
    }
    // Behind a wrapper only the full name is sure: `kvm` may be a user's or a group's.
    // What holds an '=' is a variable or an option of the wrapper's.
    words
        .iter()
        .position(|w| !w.as_bytes().contains(&b'=') && base(w).is_some_and(|n| n.starts_with("qemu-system-")))
}

/// Options and their arguments, in order.
fn options(words: &[OsString]) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let mut rest = words.iter().skip(1).map(|w| w.to_string_lossy().into_owned());
    while let Some(word) = rest.next() {
        let Some(name) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else { continue };
        let value = if BARE.contains(&name) { String::new() } else { rest.next().unwrap_or_default() };
        all.push((name.to_owned(), value));
    }
    all
}

/// The keys of an option's argument; a first word without `=` is the value of `type`.
fn keys(value: &str) -> Vec<(String, String)> {
    let parsed = text::parse(value, |_| false).map(|p| p.pairs).unwrap_or_default();
    parsed.into_iter().map(|p| (p.key, p.value)).collect()
}

fn get<'a>(keys: &'a [(String, String)], names: &[&str]) -> Option<&'a str> {
    keys.iter().rev().find(|(k, _)| names.contains(&k.as_str())).map(|(_, v)| v.as_str())
}

/// Reads QEMU's words, its name first.
pub(in crate::cli) fn read(words: &[OsString]) -> Line {
    let all = options(words);
    let of = |names: &'static [&str]| {
        all.iter().filter(|(n, _)| names.contains(&n.as_str())).map(|(_, v)| keys(v))
    };
    let machine: Vec<(String, String)> = of(&["machine", "M"]).flatten().collect();
    let program = words.first().map(|w| w.to_string_lossy().into_owned()).unwrap_or_default();
    let kind = get(&machine, &["type"]).unwrap_or_default();
    let model = model(&program, kind);
    let mut fronts = Vec::new();
    for device in of(&["device"]) {
        if let (Some(driver), Some(netdev)) = (get(&device, &["type", "driver"]), get(&device, &["netdev"])) {
            fronts.push((driver.to_owned(), netdev.to_owned()));
        }
    }
    for net in of(&["net"]).filter(|n| get(n, &["type"]) == Some("nic")) {
        if let Some(netdev) = get(&net, &["netdev"]) {
            fronts.push((get(&net, &["model"]).unwrap_or("nic").to_owned(), netdev.to_owned()));
        }
    }
    let is_other = |(n, v): &&(String, String)| match n.as_str() {
        "netdev" => true,
        "nic" | "net" => v != "none" && !v.starts_with("nic"),
        _ => false,
    };
    Line {
        memory: memory(&all, &machine, default_memory(&program, kind)),
        model,
        netdevs: of(&["netdev", "nic", "net"]).filter_map(|k| get(&k, &["id"]).map(str::to_owned)).collect(),
        fronts,
        other: all.iter().find(is_other).map(|(n, v)| format!("-{n} {v}")),
        moves: MOVES.iter().find(|(name, _)| all.iter().any(|(n, _)| n == name)).map(|(_, why)| *why),
        daemonize: all.iter().any(|(n, _)| n == "daemonize"),
        kvm: kvm(&program, &all, &machine),
    }
}

/// The virtio-net front-end of a machine: on virtio-mmio where there is no PCI. A machine that is not known here is believed
/// to have PCI, since most have, and QEMU says it where not.
fn model(program: &str, machine: &str) -> Option<&'static str> {
    let is = |parts: &[&str]| parts.iter().any(|p| program.ends_with(p));
    let (arm, riscv) = (is(&["arm", "aarch64"]), is(&["riscv32", "riscv64"]));
    let starts = |names: &[&str]| names.iter().any(|n| machine.starts_with(n));
    if is(&["s390x"]) {
        return Some("virtio-net-ccw");
    }
    if starts(&["microvm", "nitro-enclave"]) || arm && starts(&["vexpress-"]) || is(&["m68k"]) {
        return Some("virtio-net-device");
    }
    let bare = starts(&["isapc"]) || arm && starts(ARM_BOARDS) || riscv && starts(RISCV_BOARDS);
    (!bare).then_some("virtio-net-pci")
}

/// The guest is run by KVM: it is said so, or it is not said otherwise to a QEMU that is named after it.
fn kvm(program: &str, all: &[(String, String)], machine: &[(String, String)]) -> bool {
    let said = all.iter().filter(|(n, _)| n == "accel").map(|(_, v)| v.as_str());
    let machine = get(machine, &["accel"]);
    let named = ["kvm", "qemu-kvm"].contains(&program.rsplit('/').next().unwrap_or_default());
    let silent = named && machine.is_none() && said.clone().next().is_none();
    silent || all.iter().any(|(n, _)| n == "enable-kvm") || said.chain(machine).any(|a| a.contains("kvm"))
}

/// The memory without `-m`, in bytes. None: it depends on a machine that is not known here.
fn default_memory(program: &str, machine: &str) -> Option<u64> {
    let name = program.rsplit('/').next().unwrap_or_default();
    let is = |parts: &[&str]| parts.iter().any(|p| name.contains(p));
    let virt = machine.starts_with("virt") && is(&["aarch64", "arm", "riscv"]);
    (virt || ["kvm", "qemu", "qemu-kvm"].contains(&name) || is(&["x86_64", "i386", "s390x"]))
        .then_some(DEFAULT_MEMORY)
}

/// An option that says something of the memory, in words that are not understood here.
fn is_riddle((name, value): &(String, String)) -> bool {
    ["machine", "M", "m", "object", "numa"].contains(&name.as_str()) && text::parse(value, |_| false).is_err()
}

fn memory(all: &[(String, String)], machine: &[(String, String)], default: Option<u64>) -> Memory {
    let has = |name: &str| all.iter().any(|(n, _)| n == name);
    let of = |name: &'static str| all.iter().filter(move |(n, _)| n == name).map(|(_, v)| keys(v));
    if has("mem-path") {
        return Memory::Private("-mem-path gives memory that is not shared");
    }
    if has("readconfig") {
        return Memory::Private("-readconfig may say more of the memory");
    }
    if all.iter().any(is_riddle) || machine.iter().any(|(k, _)| k.starts_with("memory.")) {
        return Memory::Private("what is said of its memory is not understood");
    }
    if get(machine, &["memory-encryption", "confidential-guest-support"]).is_some() {
        return Memory::Private("the guest's memory is encrypted");
    }
    let backends: Vec<_> = of("object")
        .filter(|o| get(o, &["type", "qom-type"]).is_some_and(|t| t.starts_with("memory-backend-")))
        .collect();
    if !backends.iter().all(|b| is_shared(b)) {
        return Memory::Private("it has a memory backend without share=on");
    }
    // What is there is shared, now that it is looked for by name.
    if get(machine, &["memory-backend"]).is_some() {
        return Memory::Shared;
    }
    let nodes: Vec<_> = of("numa").filter(|n| get(n, &["type"]) == Some("node")).collect();
    if !nodes.is_empty() {
        let backed = nodes.iter().all(|n| get(n, &["memdev"]).is_some());
        return if backed {
            Memory::Shared
        } else {
            Memory::Private("a NUMA node has no memory backend of its own")
        };
    }
    let said: Vec<(String, String)> = of("m").flatten().collect();
    let size = get(&said, &["size", "type"]);
    match size {
        None => default.map_or(Memory::Private("without -m its size depends on the machine"), Memory::Add),
        Some(text) => match bytes(text) {
            Some(n) => Memory::Add(n),
            None => Memory::Private("the size in -m is not understood"),
        },
    }
}

/// A memory backend whose memory others can map: a memfd is shared unless it is said not to be.
fn is_shared(backend: &[(String, String)]) -> bool {
    let share = get(backend, &["share"]);
    match get(backend, &["type", "qom-type"]) {
        Some("memory-backend-memfd") => !matches!(share, Some("off" | "no" | "false" | "n")),
        Some("memory-backend-file") => matches!(share, Some("on" | "yes" | "true" | "y")),
        Some("memory-backend-shm") => true,
        _ => false,
    }
}

/// The size of `-m`: MiB, or with a suffix; a fraction is allowed.
fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.bytes().last()?.to_ascii_uppercase() {
        b'B' => (text.get(..text.len() - 1)?, 0),
        b'K' => (text.get(..text.len() - 1)?, 10),
        b'M' => (text.get(..text.len() - 1)?, 20),
        b'G' => (text.get(..text.len() - 1)?, 30),
        b'T' => (text.get(..text.len() - 1)?, 40),
        _ => (text, 20),
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let number = |t: &str| t.bytes().all(|b| b.is_ascii_digit()).then(|| t.parse::<u64>().ok()).flatten();
    let mut n = number(whole)?.checked_mul(1 << shift)?;
    if digits.contains('.') {
        let scale = 10_u64.checked_pow(u32::try_from(part.len()).ok().filter(|l| *l <= 6)?)?;
        n = n.checked_add(number(part)?.checked_mul(1 << shift)? / scale)?;
    }
    let n = n.checked_next_multiple_of(GRAIN)?;
    (n > 0).then_some(n)
}

/// Major and minor number of a QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::cli) struct Version(u16, u16);

impl Version {
    /// It does not say.
    pub(in crate::cli) const UNKNOWN: Self = Self(0, 0);

    /// From what `--version` prints.
    pub(in crate::cli) fn read(text: &str) -> Self {
        let number = || {
            let (_, rest) = text.split_once("version ")?;
            let mut parts = rest.split(|c: char| !c.is_ascii_digit());
            Some(Self(parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
        };
        number().unwrap_or(Self::UNKNOWN)
    }

    /// Before 8.0 and without KVM it dies (vector_irqfd is no memory) when a guest uses MSI-X with a vhost-user back end.
    fn has_no_msi_x(self, kvm: bool) -> bool {
        self < Self(8, 0) && self > Self::UNKNOWN && !kvm
    }

    /// How it is told to dial again when the connection is lost: in milliseconds since 9.2, in seconds before; streams
    /// can since 8.0.
    fn again(self, vhost_user: bool) -> &'static str {
        match self {
            v if v >= Self(9, 2) => ",reconnect-ms=500",
            v if v >= Self(8, 0) || (vhost_user && v > Self::UNKNOWN) => ",reconnect=1",
            _ => "",
        }
    }
}

/// How one netdev is attached.
pub(in crate::cli) struct Attach<'a> {
    /// Its identifier.
    pub(in crate::cli) id: &'a str,
    /// The socket.
    pub(in crate::cli) path: &'a str,
    /// By vhost-user; else by a stream.
    pub(in crate::cli) vhost_user: bool,
    /// Its queues.
    pub(in crate::cli) queues: usize,
    /// Which QEMU it is.
    pub(in crate::cli) version: Version,
    /// An MTU that the guest should know of from the start.
    pub(in crate::cli) mtu: Option<u16>,
}

impl Line {
    /// The front-end for this netdev of ours that is there already.
    pub(in crate::cli) fn front(&self, id: &str) -> Option<&str> {
        let name = self.name(id);
        self.fronts.iter().find(|(_, n)| *n == name).map(|(driver, _)| driver.as_str())
    }

    /// Words that give this machine shared memory, if it needs any: once.
    pub(in crate::cli) fn share(&self) -> Vec<String> {
        let Memory::Add(size) = self.memory else { return Vec::new() };
        let object = format!("memory-backend-memfd,id=netreeve-memory,size={size},share=on");
        ["-object", &object, "-machine", "memory-backend=netreeve-memory"].map(str::to_owned).into()
    }

    /// What a netdev of ours is called there: as here, unless QEMU's own words have one of that name.
    pub(in crate::cli) fn name(&self, id: &str) -> String {
        let others = (1_u32..).map(|n| match n {
            1 => format!("netreeve-{id}"),
            n => format!("netreeve-{id}-{n}"),
        });
        let mut all = std::iter::once(id.to_owned()).chain(others);
        all.find(|name| !self.netdevs.contains(name)).unwrap_or_default()
    }

    /// Words that attach a netdev.
    pub(in crate::cli) fn attach(&self, a: &Attach<'_>) -> Vec<String> {
        let path = a.path.replace(',', ",,");
        let id = self.name(a.id);
        let again = a.version.again(a.vhost_user);
        let queues = if a.queues > 1 { format!(",queues={}", a.queues) } else { String::new() };
        let mut words = Vec::new();
        let mut add = |option: &str, value: String| words.extend([option.to_owned(), value]);
        if a.vhost_user {
            add("-chardev", format!("socket,id=netreeve-{},path={path}{again}", a.id));
            add("-netdev", format!("vhost-user,id={id},chardev=netreeve-{}{queues}", a.id));
        } else {
            let stream = format!("stream,id={id},server=off,addr.type=unix,addr.path={path}{again}");
            add("-netdev", stream);
        }
        if let Some(model) = self.model.filter(|_| self.front(a.id).is_none()) {
            let mtu = a.mtu.map(|m| format!(",host_mtu={m}")).unwrap_or_default();
            let many = if a.queues > 1 { ",mq=on" } else { "" };
            let line_interrupt =
                a.vhost_user && a.version.has_no_msi_x(self.kvm) && model == "virtio-net-pci";
            let vectors = if line_interrupt { ",vectors=0" } else { "" };
            add("-device", format!("{model},netdev={id}{many}{vectors}{mtu}"));
        }
        words
    }
}

#[cfg(test)]
#[path = "qemu_tests.rs"]
mod tests;
