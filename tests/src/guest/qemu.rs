//! The guest for compatibility: a Debian kernel in QEMU, under TCG, because tests must not need `/dev/kvm`. The VMM is the
//! point: its own command line and its own code meet netreeve, unmodified.

use super::console::Console;
use super::initramfs;
use super::vmms::Vmm;
use crate::bins::cache;
use crate::netns::Netns;
use crate::proc::Proc;
use crate::{Because, Done, trouble};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long a boot may take: 3 s alone, far more on a loaded machine.
const BOOT: Duration = Duration::from_secs(120);

/// Where the modules of the guest's kernel are.
pub(super) fn modules() -> PathBuf {
    cache().join("kernel/modules")
}

/// What a guest is to be.
#[derive(Default)]
pub struct Qemu<'a> {
    network: Vec<String>,
    home: Option<&'a Netns>,
    uid: Option<u32>,
    files: Option<PathBuf>,
    vmm: Option<Vmm>,
    nics: u32,
    queues: u32,
    packed: bool,
    machine: Option<(PathBuf, u32)>,
}

impl<'a> Qemu<'a> {
    /// A guest without a NIC.
    pub fn new() -> Qemu<'a> {
        Qemu::default()
    }

    /// Runs it by this QEMU instead of the usual one.
    #[must_use]
    pub fn by(mut self, vmm: &Vmm) -> Qemu<'a> {
        self.vmm = Some(vmm.clone());
        self
    }

    fn vmm(&self) -> Done<Vmm> {
        self.vmm.clone().map_or_else(Vmm::usual, Ok)
    }

    /// As many queue pairs for the NICs added from here on, and as many processors.
    #[must_use]
    pub fn queues(mut self, queues: u32) -> Qemu<'a> {
        self.queues = queues;
        self
    }

    /// Packed rings for the NICs added from here on, if the back-end has them too.
    #[must_use]
    pub fn packed(mut self) -> Qemu<'a> {
        self.packed = true;
        self
    }

    /// Adds a NIC on a `-netdev` string, whose `id` must be `n` and the NIC's number, from 0.
    #[must_use]
    pub fn netdev(mut self, netdev: &str) -> Qemu<'a> {
        let nic = self.nics;
        self.nics += 1;
        self.network.extend(["-netdev".to_owned(), netdev.to_owned(), "-device".to_owned()]);
        // Two vectors for each queue pair, one for the control queue and one for changes of the configuration.
        let mq =
            if self.queues > 1 { format!(",mq=on,vectors={}", 2 * self.queues + 2) } else { String::new() };
        let mac = format!("52:54:00:00:00:{:02x}", 0x10 + nic);
        let packed = if self.packed { ",packed=on" } else { "" };
        // Of two words about vectors the last counts. A QEMU that is missing says so when it is started.
        let needs = self.vmm().map_or("", |v| v.nic());
        self.network.push(format!("virtio-net-pci,netdev=n{nic},romfile=,mac={mac}{mq}{packed}{needs}"));
        self
    }

    /// Adds a NIC on a vhost-user socket. `server`: QEMU listens and the back-end connects, and may do so again;
    /// otherwise QEMU connects, and again after a second when it has lost the back-end.
    #[must_use]
    pub fn vhost_user(mut self, socket: &Path, server: bool) -> Qemu<'a> {
        let nic = self.nics;
        // A QEMU that is missing says so when it is started.
        let way = if server { "server=on,wait=off" } else { self.vmm().map_or("", |v| v.reconnect()) };
        self.network.push("-chardev".to_owned());
        self.network.push(format!("socket,id=c{nic},path={},{way}", socket.display()));
        let queues = self.queues.max(1);
        self.netdev(&format!("vhost-user,id=n{nic},chardev=c{nic},queues={queues}"))
    }

    /// More words of QEMU's own.
    #[must_use]
    pub fn words(mut self, words: &[&str]) -> Qemu<'a> {
        self.network.extend(words.iter().map(|w| (*w).to_owned()));
        self
    }

    /// Another root file system than that of most guests, as much memory in MiB, and two processors.
    #[must_use]
    pub fn machine(mut self, image: PathBuf, megabytes: u32) -> Qemu<'a> {
        self.machine = Some((image, megabytes));
        self
    }

    /// Runs QEMU inside a namespace.
    #[must_use]
    pub fn inside(mut self, ns: &'a Netns) -> Qemu<'a> {
        self.home = Some(ns);
        self
    }

    /// Runs QEMU as this user, with no other group than the one of the same number.
    #[must_use]
    pub fn user(mut self, uid: u32) -> Qemu<'a> {
        self.uid = Some(uid);
        self
    }

    /// Takes kernel and initramfs by way of this directory, for a QEMU whose user cannot look into the source tree.
    #[must_use]
    pub fn files_in(mut self, dir: PathBuf) -> Qemu<'a> {
        self.files = Some(dir);
        self
    }

    /// The path of one of the guest's files, copied first if QEMU shall have it from elsewhere.
    fn file(&self, from: &Path, name: &str) -> Done<String> {
        let Some(dir) = &self.files else { return Ok(from.display().to_string()) };
        let to = dir.join(name);
        if !to.exists() {
            fs::copy(from, &to).because(to.display())?;
        }
        Ok(to.display().to_string())
    }

    /// QEMU's command line, for those who start it by another program.
    pub fn arguments(&self) -> Done<Vec<String>> {
        let kernel = cache().join("kernel/vmlinuz");
        if !kernel.exists() {
            return Err(trouble(format!("no kernel at {}: run `tests/setup.sh` as root", kernel.display())));
        }
        let (image, memory) = match &self.machine {
            Some(machine) => machine.clone(),
            None => (initramfs::image("qemu", &modules())?, 256),
        };
        let fixed = format!(
            "-nodefaults -no-user-config -display none -no-reboot -accel tcg,thread=multi -m {memory} \
             -machine pc,memory-backend=m -object memory-backend-memfd,id=m,size={memory}M,share=on -serial stdio"
        );
        let mut all: Vec<String> = fixed.split_whitespace().map(str::to_owned).collect();
        let line =
            "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check lpj=4000000";
        let (kernel, image) = (self.file(&kernel, "vmlinuz")?, self.file(&image, "initramfs")?);
        all.extend(["-kernel".to_owned(), kernel, "-initrd".to_owned(), image]);
        all.extend(["-append".to_owned(), line.to_owned()]);
        let processors = if self.machine.is_some() { 2 } else { self.queues };
        if processors > 1 {
            all.extend(["-smp".to_owned(), processors.to_string()]);
        }
        all.extend(self.network.iter().cloned());
        Ok(all)
    }

    /// The path of QEMU itself, where its user can start it.
    pub fn program(&self) -> Done<PathBuf> {
        let vmm = self.vmm()?;
        self.files.as_ref().map_or_else(|| Ok(vmm.path.clone()), |dir| vmm.reachable(dir))
    }

    /// QEMU's path and command line as one command.
    pub fn command(&self) -> Done<Command> {
        let mut command = Command::new(self.program()?);
        command.args(self.arguments()?);
        Ok(command)
    }

    /// Boots it and waits until its init is up.
    pub fn boot(self) -> Done<Console> {
        let command = self.command()?;
        self.boot_by(command)
    }

    /// Boots it by a command that ends in QEMU's, and waits until its init is up.
    pub fn boot_by(self, mut command: Command) -> Done<Console> {
        use std::os::unix::process::CommandExt;
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        let proc = match self.home {
            Some(ns) => ns.spawn_with_input("the QEMU guest", command)?,
            None => Proc::with_input("the QEMU guest", command)?,
        };
        Console::attach(proc, BOOT)
    }
}
