//! What starts a passt or a pasta by itself, unmodified, and gets ours: libvirt and rootless Podman of Debian 13, in a tree
//! beside the system (`tests/fronts.sh`). All of it runs as the ordinary user of these proofs.

mod dhcp6;
mod libvirt;
mod podman;

use netreeve_tests::Because;
use netreeve_tests::bins::root;
use netreeve_tests::inspect::descendant_named;
use netreeve_tests::over::Over;
use netreeve_tests::proc::{Outcome, Proc};
use netreeve_tests::scene::{PATIENCE, Scene, USER};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{chown, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long one step may take: Podman and libvirt do much in one, and more slowly on a busy machine.
const HEAVY: Duration = Duration::from_secs(60);

/// The tree, in the host's namespace of a scene, with namespaces of its own for mounts and processes: dropping it ends
/// whatever was started in it.
struct Tree<'a> {
    scene: &'a Scene,
    _first: Proc,
    init: String,
}

impl<'a> Tree<'a> {
    /// Enters it; our program is there under the names of others, before theirs.
    fn enter(scene: &'a Scene) -> Tree<'a> {
        for name in ["passt", "pasta"] {
            symlink("netreeve", scene.program(name)).unwrap();
        }
        for dir in ["xdg", "home", "home/.config", "home/.config/containers"] {
            fs::create_dir(scene.path(dir)).unwrap();
            chown(scene.path(dir), Some(USER), Some(USER)).unwrap();
        }
        let mut enter = Command::new(root().join("tests/fronts.sh"));
        enter.arg("enter").arg(scene.program("")).args(["catatonit", "-P"]);
        let first = scene.host.spawn("Debian 13", enter).unwrap();
        let init = descendant_named(first.pid(), "catatonit", HEAVY);
        let init = init.because(first.tail()).unwrap().to_string();
        Tree { scene, _first: first, init }
    }

    /// A script of the ordinary user's.
    fn script(&self, script: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.init, "-m", "-p", "-r", "-w", "setpriv"]);
        let user = USER.to_string();
        command
            .args(["--reuid", &user, "--regid", &user, "--clear-groups", "sh", "-ec"])
            .arg(format!("cd {}\n{script}", self.scene.path("home").display()));
        let ours = self.scene.program("");
        command.env("PATH", format!("{}:/usr/sbin:/usr/bin", ours.display()));
        command.env("HOME", self.scene.path("home")).env("XDG_RUNTIME_DIR", self.scene.path("xdg"));
        command.env_remove("XDG_CONFIG_HOME").env_remove("XDG_CACHE_HOME").env_remove("XDG_DATA_HOME");
        command
    }

    fn spawn(&self, label: &str, script: &str) -> Proc {
        self.scene.host.spawn(label, self.script(script)).unwrap()
    }

    /// Runs it to its end.
    fn run(&self, script: &str) -> Outcome {
        self.scene.host.run(script, self.script(script), HEAVY).unwrap()
    }

    /// The same, and it must succeed.
    fn ok(&self, script: &str) -> String {
        self.run(script).ok(script).unwrap()
    }

    /// Waits until nothing of ours runs in there.
    fn is_left(&self) {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = self
                .run("ps -eo pid,user,args | grep -E '[p]asst|[p]asta|[n]etreeve-dataplane' || true")
                .text;
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "left behind:\n{left}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn home(&self, name: &str) -> PathBuf {
        self.scene.path("home").join(name)
    }
}

/// Answers whatever comes to this listener in capitals while `f` runs.
fn answering<T>(listener: &TcpListener, f: impl FnOnce() -> T) -> T {
    listener.set_nonblocking(true).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((mut peer, _)) => {
                        let mut text = [0; 64];
                        peer.set_nonblocking(false).unwrap();
                        peer.set_read_timeout(Some(PATIENCE)).unwrap();
                        let n = peer.read(&mut text).unwrap_or(0);
                        let _gone = peer.write_all(&text[..n].to_ascii_uppercase());
                    }
                    Err(e) => {
                        assert_eq!(e.kind(), ErrorKind::WouldBlock);
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
            }
        });
        let _over = Over(&over);
        f()
    })
}
