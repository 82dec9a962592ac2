//! What the kernel says of a process: who it is, what it may do, what it can see. Read from `/proc`, never asked of the
//! process itself.

use crate::{Because, Done, trouble};
use std::fs;
use std::time::{Duration, Instant};

/// One process as `/proc` shows it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its process id.
    pub pid: i32,
    /// Effective user id, as this namespace counts.
    pub uid: u32,
    /// Effective, permitted, inheritable, ambient and bounding capabilities.
    pub caps: Caps,
    /// `Seccomp:` 0 none, 2 filter.
    pub seccomp: u32,
    /// How many filters are stacked.
    pub filters: u32,
    /// `NoNewPrivs:` is set.
    pub no_new_privs: bool,
    /// Which kinds of namespace it does not share with whom it was compared to: `net`, `mnt`, `user`, ...
    pub apart: Vec<String>,
    /// Threads.
    pub threads: u32,
}

/// The five capability sets, one bit a capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// In force.
    pub effective: u64,
    /// Can be raised.
    pub permitted: u64,
    /// Kept over an exec of files that want them.
    pub inheritable: u64,
    /// Kept over any exec.
    pub ambient: u64,
    /// The most that an exec can give.
    pub bounding: u64,
}

/// The kinds of namespace that `/proc/PID/ns` names.
const NAMESPACES: [&str; 7] = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];

/// Looks at a process, and compares its namespaces with those of another.
pub fn look(pid: i32, beside: i32) -> Done<Seen> {
    let status =
        fs::read_to_string(format!("/proc/{pid}/status")).because(format!("look at process {pid}"))?;
    let field = |name: &str| -> Done<&str> {
        let line = status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim).because(format!("process {pid} has no {name}"))
    };
    let number = |name: &str| -> Done<u32> { field(name)?.parse().because(name) };
    let set = |name: &str| -> Done<u64> { u64::from_str_radix(field(name)?, 16).because(name) };
    let uid = field("Uid")?.split_whitespace().nth(1).and_then(|u| u.parse().ok()).because("Uid")?;
    let mut apart = Vec::new();
    for kind in NAMESPACES {
        let of =
            |who: i32| fs::read_link(format!("/proc/{who}/ns/{kind}")).because(format!("{kind} of {who}"));
        if of(pid)? != of(beside)? {
            apart.push(kind.to_owned());
        }
    }
    Ok(Seen {
        pid,
        uid,
        caps: Caps {
            effective: set("CapEff")?,
            permitted: set("CapPrm")?,
            inheritable: set("CapInh")?,
            ambient: set("CapAmb")?,
            bounding: set("CapBnd")?,
        },
        seccomp: number("Seccomp")?,
        filters: number("Seccomp_filters").unwrap_or_default(),
        no_new_privs: number("NoNewPrivs")? == 1,
        apart,
        threads: number("Threads")?,
    })
}

/// The names of the capabilities in a set, by the bits of linux/capability.h; all of the kernel's is "all".
pub fn capability_names(set: u64) -> String {
    const NAMES: [&str; 41] = [
        "chown",
        "dac_override",
        "dac_read_search",
        "fowner",
        "fsetid",
        "kill",
        "setgid",
        "setuid",
        "setpcap",
        "linux_immutable",
        "net_bind_service",
        "net_broadcast",
        "net_admin",
        "net_raw",
        "ipc_lock",
        "ipc_owner",
        "sys_module",
        "sys_rawio",
        "sys_chroot",
        "sys_ptrace",
        "sys_pacct",
        "sys_admin",
        "sys_boot",
        "sys_nice",
        "sys_resource",
        "sys_time",
        "sys_tty_config",
        "mknod",
        "lease",
        "audit_write",
        "audit_control",
        "setfcap",
        "mac_override",
        "mac_admin",
        "syslog",
        "wake_alarm",
        "block_suspend",
        "audit_read",
        "perfmon",
        "bpf",
        "checkpoint_restore",
    ];
    let held: Vec<&str> =
        NAMES.iter().enumerate().filter(|(i, _)| set >> i & 1 == 1).map(|(_, n)| *n).collect();
    match held.len() {
        0 => "none".to_owned(),
        n if n == NAMES.len() => "all".to_owned(),
        _ => held.join(","),
    }
}

/// The process ids of all descendants of a process, nearest first.
pub fn descendants(pid: i32) -> Vec<i32> {
    let mut found = Vec::new();
    let mut ask = vec![pid];
    while let Some(parent) = ask.pop() {
        let Ok(threads) = fs::read_dir(format!("/proc/{parent}/task")) else { continue };
        for thread in threads.flatten() {
            let list = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            for child in list.split_whitespace().filter_map(|c| c.parse().ok()) {
                found.push(child);
                ask.push(child);
            }
        }
    }
    found
}

/// Waits for a descendant whose program is `name`, the last of them if several follow each other.
pub fn descendant_named(pid: i32, name: &str, within: Duration) -> Done<i32> {
    // The kernel keeps 15 bytes of a program's name.
    let short: String = name.chars().take(15).collect();
    let until = Instant::now() + within;
    loop {
        let named =
            |p: &i32| fs::read_to_string(format!("/proc/{p}/comm")).is_ok_and(|c| c.trim_end() == short);
        if let Some(found) = descendants(pid).into_iter().rfind(named) {
            return Ok(found);
        }
        if Instant::now() >= until {
            return Err(trouble(format!("process {pid} has no descendant {name} after {within:?}")));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_see_ourselves() {
        let me = std::process::id().cast_signed();
        let me = look(me, me).unwrap();
        assert_eq!(me.apart, Vec::<String>::new());
        assert!(me.threads >= 1);
        assert_eq!(capability_names(0), "none");
        assert_eq!(capability_names(1 << 12 | 1 << 39), "net_admin,bpf");
        assert_eq!(capability_names((1 << 41) - 1), "all");
    }
}
