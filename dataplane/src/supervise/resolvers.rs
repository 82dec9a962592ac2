//! The host's resolvers: `/etc/resolv.conf`, read and watched.
//!
//! The file is replaced rather than written (by NetworkManager, resolvconf, systemd-resolved behind a link), so its
//! directories are watched: that of the link and that of the file. After a change it is read when nothing has happened
//! for a moment.
//!
//! Trust: the file is root's. Promise: nothing here waits, and an unreadable file leaves the list as it was.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Where the C library looks.
pub const FILE: &str = "/etc/resolv.conf";
/// How long nothing may happen before the file is read again.
const SETTLED: Duration = Duration::from_millis(100);
/// Most that is read of the file, in bytes, and most resolvers that are used.
const MOST: u64 = 64 << 10;
const RESOLVERS: usize = 8;
const DNS: u16 = 53;

/// The file and what it said.
#[derive(Debug)]
pub struct Resolvers {
    file: PathBuf,
    watch: Option<Inotify>,
    due: Option<Instant>,
    list: Vec<SocketAddr>,
}

impl Resolvers {
    /// Reads and watches `file`. Without a watch (no descriptor is left) it is read this once.
    #[must_use]
    pub fn new(file: &Path) -> Self {
        let watch = watch(file).ok();
        let list = read(file).unwrap_or_else(|_| default());
        Self { file: file.to_owned(), watch, due: None, list }
    }

    /// These, whatever a file says.
    #[must_use]
    pub fn fixed(list: Vec<SocketAddr>) -> Self {
        Self { file: PathBuf::new(), watch: None, due: None, list }
    }

    /// What it said last.
    #[must_use]
    pub fn list(&self) -> &[SocketAddr] {
        &self.list
    }

    /// The descriptor to watch for being readable.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(AsFd::as_fd)
    }

    /// When to call [`Resolvers::step`] at the latest.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Look again then.
    pub fn again(&mut self, at: Instant) {
        self.due.get_or_insert(at);
    }

    /// Goes on as far as it can without waiting. True: the list is another one.
    pub fn step(&mut self, now: Instant) -> bool {
        let ours = self.file.file_name().map(|n| n.to_owned());
        let target = fs::canonicalize(&self.file).ok().and_then(|p| p.file_name().map(|n| n.to_owned()));
        loop {
            match self.watch.as_ref().map(Inotify::read_events) {
                Some(Ok(events)) => {
                    // Without a name an event is about a directory itself.
                    let about = |e: &nix::sys::inotify::InotifyEvent| {
                        e.name.is_none() || e.name == ours || e.name == target
                    };
                    if events.iter().any(about) {
                        self.due = Some(now + SETTLED);
                    }
                }
                Some(Err(Errno::EINTR)) => {}
                Some(Err(_)) | None => break,
            }
        }
        if self.due.is_none_or(|t| t > now) {
            return false;
        }
        self.due = None;
        // What it is linked to may be elsewhere now.
        self.watch = watch(&self.file).ok().or(self.watch.take());
        match read(&self.file) {
            Ok(list) if list != self.list => {
                self.list = list;
                true
            }
            _ => false,
        }
    }
}

fn watch(file: &Path) -> nix::Result<Inotify> {
    let flags = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_ONLYDIR;
    let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let real = fs::canonicalize(file).ok();
    let mut dirs: Vec<&Path> =
        [Some(file), real.as_deref()].into_iter().flatten().filter_map(Path::parent).collect();
    dirs.dedup();
    for dir in dirs {
        watch.add_watch(dir, flags)?;
    }
    Ok(watch)
}

fn read(file: &Path) -> io::Result<Vec<SocketAddr>> {
    let mut text = Vec::new();
    fs::File::open(file)?.take(MOST).read_to_end(&mut text)?;
    let list = parse(&String::from_utf8_lossy(&text));
    Ok(if list.is_empty() { default() } else { list })
}

/// What the C library asks where the file names nobody (resolv.conf(5)).
fn default() -> Vec<SocketAddr> {
    vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), DNS)]
}

/// The `nameserver` lines.
fn parse(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let rest = line.trim_start().strip_prefix("nameserver")?;
        let word = rest.strip_prefix([' ', '\t'])?.split_whitespace().next()?;
        let (ip, zone) = word.split_once('%').map_or((word, None), |(ip, zone)| (ip, Some(zone)));
        Some(match (ip.parse::<IpAddr>().ok()?, zone) {
            (IpAddr::V6(ip), Some(zone)) => scoped(ip, zone)?,
            (ip, _) => SocketAddr::new(ip, DNS),
        })
    };
    let mut list: Vec<SocketAddr> = Vec::new();
    for at in text.lines().filter_map(server).take(RESOLVERS) {
        if !list.contains(&at) {
            list.push(at);
        }
    }
    list
}

fn scoped(ip: Ipv6Addr, zone: &str) -> Option<SocketAddr> {
    let index = zone.parse().ok().or_else(|| if_nametoindex(zone).ok())?;
    Some(SocketAddrV6::new(ip, DNS, 0, index).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn nameservers_are_read_as_the_c_library_reads_them() {
        let text = "# nameserver 9.9.9.9\nsearch a b\nnameserver 10.0.0.1\n nameserver\tfd00::1 # x\nnameserver fe80::1%lo\n\
                    nameserver fe80::2%7\nnameserver 10.0.0.1\nnameserver x\nnameservers 1.1.1.1\nnameserver\n";
        let want: Vec<SocketAddr> = vec![
            "10.0.0.1:53".parse().unwrap(),
            "[fd00::1]:53".parse().unwrap(),
            SocketAddrV6::new("fe80::1".parse().unwrap(), 53, 0, 1).into(),
            SocketAddrV6::new("fe80::2".parse().unwrap(), 53, 0, 7).into(),
        ];
        assert_eq!(parse(text), want);
        assert_eq!(parse(&"nameserver 1.1.1.1\n".repeat(99)).len(), 1);
        assert_eq!(parse("").len(), 0);
    }

    #[test]
    fn a_file_that_is_replaced_is_read_again() {
        let dir = std::env::temp_dir().join(format!("netreeve-resolv-{}", std::process::id()));
        let real = dir.join("real");
        fs::create_dir_all(&real).unwrap();
        let file = dir.join("resolv.conf");
        fs::write(real.join("stub"), "nameserver 10.0.0.1\n").unwrap();
        symlink(real.join("stub"), &file).unwrap();
        let mut r = Resolvers::new(&file);
        assert_eq!(r.list(), ["10.0.0.1:53".parse().unwrap()]);
        // Until it is read; events come late on a busy machine.
        let settle = |r: &mut Resolvers| {
            for _ in 0..500 {
                r.step(Instant::now());
                if r.step(Instant::now() + SETTLED * 2) {
                    return true;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            false
        };
        // Behind the link, by renaming.
        fs::write(real.join("new"), "nameserver 10.0.0.2\n").unwrap();
        fs::rename(real.join("new"), real.join("stub")).unwrap();
        assert!(settle(&mut r));
        assert_eq!(r.list(), ["10.0.0.2:53".parse().unwrap()]);
        // The link itself.
        fs::write(dir.join("own"), "nameserver fd00::3\n").unwrap();
        fs::rename(dir.join("own"), &file).unwrap();
        assert!(settle(&mut r));
        assert_eq!(r.list(), ["[fd00::3]:53".parse().unwrap()]);
        assert!(!r.step(Instant::now() + SETTLED * 2) && r.due().is_none());
        fs::remove_dir_all(dir).unwrap();
    }
}
