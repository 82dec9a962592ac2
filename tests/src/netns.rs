//! Network namespaces of the tests. Each is held by a descriptor and has no name: when the descriptor and the processes
//! in it are gone, so is everything in it, however the test ended.

use crate::proc::{self, Outcome, Proc};
use crate::{Because, Done, trouble};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Duration;

/// A network namespace with its loopback interface up.
pub struct Netns {
    label: String,
    held: File,
}

impl Netns {
    /// Makes one. `label` is only for messages. Needs root.
    pub fn new(label: &str) -> Done<Netns> {
        let made = std::thread::scope(|s| {
            let thread = s.spawn(|| -> Done<File> {
                unshare(CloneFlags::CLONE_NEWNET).because("make a network namespace (this needs root)")?;
                File::open("/proc/thread-self/ns/net").because("open the new network namespace")
            });
            thread.join().map_err(|_| trouble("the thread that makes a namespace panicked"))?
        })?;
        let ns = Netns { label: label.to_owned(), held: made };
        // No router solicitations and no duplicate address detection: tests do not wait, and captures stay quiet.
        ns.sh("ip link set lo up
               for i in all default; do
                 echo 0 >/proc/sys/net/ipv6/conf/$i/accept_dad
                 echo 0 >/proc/sys/net/ipv6/conf/$i/router_solicitations
               done")?;
        Ok(ns)
    }

    /// The one that a process is in, whoever made it; it lives as long as this.
    pub fn of(label: &str, pid: i32) -> Done<Netns> {
        let held = File::open(format!("/proc/{pid}/ns/net")).because(format!("{label}, of process {pid}"))?;
        Ok(Netns { label: label.to_owned(), held })
    }

    /// Runs `f` on a thread inside the namespace: sockets that it makes and processes that it starts belong there.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Done<T> {
        std::thread::scope(|s| {
            let thread = s.spawn(|| -> Done<T> {
                setns(&self.held, CloneFlags::CLONE_NEWNET).because(format!("enter {}", self.label))?;
                Ok(f())
            });
            thread.join().map_err(|_| trouble(format!("what ran inside {} panicked", self.label)))?
        })
    }

    /// Starts a process inside.
    pub fn spawn(&self, label: &str, command: Command) -> Done<Proc> {
        self.enter(|| Proc::spawn(label, command))?
    }

    /// Starts a process inside, with a pipe to its standard input.
    pub fn spawn_with_input(&self, label: &str, command: Command) -> Done<Proc> {
        self.enter(|| Proc::with_input(label, command))?
    }

    /// Runs a command inside to its end.
    pub fn run(&self, label: &str, command: Command, within: Duration) -> Done<Outcome> {
        self.enter(|| proc::run(label, command, within))?
    }

    /// Runs a shell script inside that must succeed, at every command.
    pub fn sh(&self, script: &str) -> Done<String> {
        self.enter(|| proc::sh(script))?
    }

    /// A name that `ip link set X netns NAME` takes.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.held.as_raw_fd())
    }

    /// The inode number by which the kernel knows it.
    pub fn inode(&self) -> Done<u64> {
        Ok(self.held.metadata().because("stat the namespace")?.ino())
    }

    /// The names of its interfaces, without `lo`.
    pub fn links(&self) -> Done<Vec<String>> {
        let text = self.sh("ip -o link show | cut -d: -f2 | cut -d@ -f1")?;
        Ok(text.lines().map(|l| l.trim().to_owned()).filter(|l| l != "lo").collect())
    }

    /// One counter of an interface, as in `/sys/class/net/IF/statistics`.
    pub fn counter(&self, link: &str, name: &str) -> Done<u64> {
        let text = self.sh(&format!("ip -j -s link show dev {link}"))?;
        let list: serde_json::Value = serde_json::from_str(&text).because("ip -j")?;
        let (side, field) = name.split_once('_').because("a counter's name is rx_ or tx_ and a field")?;
        let value = list.pointer(&format!("/0/stats64/{side}/{field}")).and_then(serde_json::Value::as_u64);
        value.because(format!("{link} has no counter {name}"))
    }
}

/// Joins two namespaces by a veth pair, both ends up.
pub fn veth(a: &Netns, a_name: &str, b: &Netns, b_name: &str) -> Done {
    a.sh(&format!(
        "ip link add {a_name} type veth peer name {b_name} netns {}
         ip link set {a_name} up",
        b.path()
    ))?;
    b.sh(&format!("ip link set {b_name} up"))?;
    Ok(())
}
