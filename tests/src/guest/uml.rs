//! The everyday guest: Debian's User-Mode Linux, a real kernel as an ordinary process, with one virtio-net NIC per
//! vhost-user socket. From start to power-off in a third of a second, without KVM and without root.

use super::console::Console;
use super::initramfs;
use crate::bins::{cache, peer};
use crate::netns::Netns;
use crate::proc::{self, Proc};
use crate::{Because, Done};
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a boot may take on a loaded machine.
const BOOT: Duration = Duration::from_secs(30);

/// What a guest is to be.
#[derive(Default)]
pub struct Uml<'a> {
    sockets: Vec<PathBuf>,
    home: Option<&'a Netns>,
    extra: Vec<String>,
}

/// A running User-Mode Linux; what can be done with it is in [`Console`].
pub struct Running {
    // Dropped first: the guest must be gone before its directory.
    console: Option<Console>,
    dir: PathBuf,
}

impl<'a> Uml<'a> {
    /// A guest without a NIC.
    pub fn new() -> Uml<'a> {
        Uml::default()
    }

    /// Adds a NIC, `eth0` first. The socket must be listening before the boot: this frontend connects once.
    #[must_use]
    pub fn nic(mut self, socket: &Path) -> Uml<'a> {
        self.sockets.push(socket.to_owned());
        self
    }

    /// Runs the guest's process inside a namespace; it needs none, which this can show.
    #[must_use]
    pub fn inside(mut self, ns: &'a Netns) -> Uml<'a> {
        self.home = Some(ns);
        self
    }

    /// Adds a word to the kernel's command line.
    #[must_use]
    pub fn word(mut self, word: &str) -> Uml<'a> {
        self.extra.push(word.to_owned());
        self
    }

    /// Boots it and waits until its init is up. Once in some hundred boots on a busy host, User-Mode Linux 6.1 cannot start
    /// the process that stands for the guest's first `fork`; that one end, and no other, is tried again.
    pub fn boot(self) -> Done<Running> {
        for _ in 0..2 {
            match self.boot_once() {
                Err(e) if e.to_string().contains("can't fork: Resource temporarily unavailable") => {}
                done => return done,
            }
        }
        self.boot_once()
    }

    fn boot_once(&self) -> Done<Running> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let program = peer("linux.uml")?;
        let image = initramfs::image("uml", Path::new("/usr/lib/uml/modules"))?;
        let id = COUNT.fetch_add(1, Ordering::Relaxed);
        // The guest's memory is an unlinked file in TMPDIR and must be on tmpfs, or its pages are written to a disk.
        let dir = PathBuf::from(format!("/dev/shm/netreeve-{}-uml{id}", proc::mark()));
        fs::create_dir_all(&dir).because(dir.display())?;
        let mut running = Running { console: None, dir };
        let mut command = Command::new(program);
        command.env("TMPDIR", &running.dir).env("HOME", &running.dir).env("LD_PRELOAD", xstate()?);
        command.args(["mem=128M", "con0=fd:0,fd:1", "con=null", "ssl=null", "quiet", "umid=guest"]);
        command.arg(format!("uml_dir={}/", running.dir.display())).arg(format!("initrd={}", image.display()));
        // Two things that a kernel measures at its start and that a guest of tests does not need: together 0.8 s.
        command.args([
            "lpj=12000000",
            "initcall_blacklist=raid6_select_algo,calibrate_xor_blocks,register_xor_blocks",
        ]);
        for socket in &self.sockets {
            wait_for_socket(socket, BOOT)?;
            command.arg(format!("virtio_uml.device={}:1", socket.display()));
        }
        command.args(&self.extra);
        let proc = match self.home {
            Some(ns) => ns.spawn_with_input("the UML guest", command)?,
            None => Proc::with_input("the UML guest", command)?,
        };
        running.console = Some(Console::attach(proc, BOOT)?);
        Ok(running)
    }
}

impl Running {
    /// Switches it off in an orderly way.
    pub fn power_off(mut self) -> Done {
        self.console.take().map_or(Ok(()), |c| c.power_off(Duration::from_secs(10)))
    }
}

impl Deref for Running {
    type Target = Console;

    fn deref(&self) -> &Console {
        match &self.console {
            Some(console) => console,
            // `boot` returns only what has one, and `power_off` takes the whole value.
            None => unreachable!("a running guest has a console"),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.console = None;
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The library that lets Debian 12's User-Mode Linux run on processors with AMX, built if the cache does not have it.
fn xstate() -> Done<PathBuf> {
    let source = include_str!("uml_xstate.c");
    let mut key = DefaultHasher::new();
    source.hash(&mut key);
    let library = cache().join(format!("uml-xstate-{:016x}.so", key.finish()));
    if !library.exists() {
        fs::create_dir_all(cache()).because(cache().display())?;
        let draft = library.with_extension(std::process::id().to_string());
        let file = cache().join(format!("uml-xstate-{}.c", std::process::id()));
        fs::write(&file, source).because(file.display())?;
        let mut cc = Command::new(peer("cc")?);
        cc.args(["-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o"]).arg(&draft).arg(&file);
        proc::run("cc", cc, Duration::from_secs(30))?.ok("cc")?;
        let _ = fs::remove_file(&file);
        fs::rename(&draft, &library).because(library.display())?;
    }
    Ok(library)
}

/// Waits until a UNIX socket is listening at a path.
pub fn wait_for_socket(path: &Path, within: Duration) -> Done {
    use std::os::unix::fs::FileTypeExt;
    let until = Instant::now() + within;
    while !fs::metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
        if Instant::now() >= until {
            return Err(crate::trouble(format!("no socket at {} within {within:?}", path.display())));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
