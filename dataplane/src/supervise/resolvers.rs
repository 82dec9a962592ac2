//! The host's resolvers: `/etc/resolv.conf`, read and watched.
//!
//! The file is replaced rather than written (by NetworkManager, resolvconf, systemd-resolved behind a link), so
//! directories are watched: of each link on the way to the file, and that of the file. After a change it is read when nothing
//! has happened for a moment; where the way ends at nothing, it is tried every second.
//!
//! Trust: the file is root's. Promise: nothing here waits, and an unreadable file leaves the list as it was.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Where the C library looks.
pub const FILE: &str = "/etc/resolv.conf";
/// How long nothing may happen before the file is read again.
const SETTLED: Duration = Duration::from_millis(100);
/// How often it is tried to read and watch a file that is not there.
const AGAIN: Duration = Duration::from_secs(1);
/// How often for an interface that is not there and a resolver can be reached by alone.
const SOON: Duration = Duration::from_secs(5);
/// How often the way to the file is looked for if it changes meanwhile.
const TRIES: usize = 4;
/// Links that are followed.
const LINKS: usize = 40;
/// Most that is read of the file, in bytes.
const MOST: u64 = 64 << 10;
/// Most resolvers that are used.
pub const RESOLVERS: usize = 8;
const DNS: u16 = 53;

/// The file and what it said.
#[derive(Debug)]
pub struct Resolvers {
    file: PathBuf,
    watch: Option<Inotify>,
    /// Names that events of interest are about.
    names: Vec<OsString>,
    due: Option<Instant>,
    list: Vec<SocketAddr>,
}

impl Resolvers {
    /// Reads and watches `file`. Without a watch (no descriptor is left) it is read this once.
    #[must_use]
    pub fn new(file: &Path) -> Self {
        let mut r = Self { file: file.to_owned(), list: default(), ..Self::fixed(Vec::new()) };
        r.look(Instant::now());
        r
    }

    /// These, whatever a file says.
    #[must_use]
    pub fn fixed(list: Vec<SocketAddr>) -> Self {
        Self { file: PathBuf::new(), watch: None, names: Vec::new(), due: None, list }
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
        loop {
            match self.watch.as_ref().map(Inotify::read_events) {
                Some(Ok(events)) => {
                    // Without a name an event is about a directory itself.
                    let about = |e: &nix::sys::inotify::InotifyEvent| {
                        e.name.as_ref().is_none_or(|n| self.names.contains(n))
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
        self.look(now)
    }

    /// Watches and reads the file, wherever it is now. True: the list is another one.
    fn look(&mut self, now: Instant) -> bool {
        if self.file.as_os_str().is_empty() {
            return false;
        }
        // First watched, so that nothing happens in between.
        let watched = follow(|| way(&self.file));
        let read = read(&self.file);
        if watched.is_err() || read.is_err() {
            self.due = Some(now + AGAIN);
        }
        if let Ok((watch, way)) = watched {
            self.watch = Some(watch);
            self.names = way.into_iter().map(|(_, name)| name).collect();
        }
        let Ok((list, whole)) = read else { return false };
        if !whole {
            self.due.get_or_insert(now + SOON);
        }
        let other = list != self.list;
        self.list = list;
        other
    }
}

/// The directory and the name of each step of a way.
type Way = Vec<(PathBuf, OsString)>;

/// Where a path may become another one: the directory and the name of each link on the way, and of its end, be that what it
/// names or the first of it that is not there.
fn way(file: &Path) -> Way {
    let mut found = Vec::new();
    let mut at = std::env::current_dir().unwrap_or_default();
    let mut rest: VecDeque<OsString> = parts(file).collect();
    while let Some(name) = rest.pop_front() {
        // The root is a name as well, which takes the place of all before it.
        let next = at.join(&name);
        if name == ".." {
            at.pop();
            continue;
        }
        let link = fs::read_link(&next).ok().filter(|_| found.len() < LINKS);
        let there = link.is_none() && next.exists();
        if let Some(to) = link {
            found.push((at.clone(), name));
            parts(&to).rev().for_each(|p| rest.push_front(p));
        } else if !there || rest.is_empty() {
            found.push((at, name));
            break;
        } else {
            at = next;
        }
    }
    found
}

fn parts(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter(|c| *c != Component::CurDir).map(|c| c.as_os_str().to_owned())
}

/// Watches a way, which is looked for again once it is watched: where a link has become another one meanwhile, the directories
/// of the old one say nothing of what comes.
fn follow(mut way: impl FnMut() -> Way) -> nix::Result<(Inotify, Way)> {
    let mut now = way();
    for _ in 0..TRIES {
        let watch = watch(now.iter().map(|(dir, _)| dir.as_path()))?;
        let then = std::mem::replace(&mut now, way());
        if then == now {
            return Ok((watch, now));
        }
    }
    Err(Errno::EAGAIN)
}

fn watch<'a>(dirs: impl Iterator<Item = &'a Path>) -> nix::Result<Inotify> {
    let flags = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR;
    let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    for dir in dirs {
        watch.add_watch(dir, flags)?;
    }
    Ok(watch)
}

/// What the file says, and whether that is all: the interface of a resolver may come later.
fn read(file: &Path) -> io::Result<(Vec<SocketAddr>, bool)> {
    let mut text = Vec::new();
    fs::File::open(file)?.take(MOST).read_to_end(&mut text)?;
    let (list, whole) = parse(&String::from_utf8_lossy(&text));
    Ok((if list.is_empty() { default() } else { list }, whole))
}

/// What the C library asks where the file names nobody (resolv.conf(5)).
fn default() -> Vec<SocketAddr> {
    vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), DNS)]
}

/// The `nameserver` lines: the first ones that there may be, each resolver once; and whether the interfaces of all are there.
#[must_use]
pub fn parse(text: &str) -> (Vec<SocketAddr>, bool) {
    let mut whole = true;
    let server = |line: &str| {
        let rest = line.trim_start().strip_prefix("nameserver")?;
        let word = rest.strip_prefix([' ', '\t'])?.split_whitespace().next()?;
        let (ip, zone) = word.split_once('%').map_or((word, None), |(ip, zone)| (ip, Some(zone)));
        Some(match (ip.parse::<IpAddr>().ok()?, zone) {
            (IpAddr::V6(ip), Some(zone)) => {
                let at = scoped(ip, zone);
                whole &= at.is_some();
                at?
            }
            (ip, _) => SocketAddr::new(ip, DNS),
        })
    };
    let mut list: Vec<SocketAddr> = Vec::new();
    for at in text.lines().filter_map(server).take(RESOLVERS) {
        if !list.contains(&at) {
            list.push(at);
        }
    }
    (list, whole)
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
        assert_eq!(parse(text), (want, true));
        assert_eq!(parse(&"nameserver 1.1.1.1\n".repeat(99)).0.len(), 1);
        assert_eq!(parse(""), (Vec::new(), true));
    }

    /// At boot a file may be there before the interface that it names.
    #[test]
    fn a_resolver_whose_interface_is_not_there_is_looked_for_again() {
        let file = std::env::temp_dir().join(format!("netreeve-resolv-zone-{}", std::process::id()));
        fs::write(&file, "nameserver fe80::1%nobody-has-it\nnameserver 10.0.0.1\n").unwrap();
        let mut r = Resolvers::new(&file);
        assert_eq!(r.list(), ["10.0.0.1:53".parse().unwrap()]);
        let due = r.due().unwrap();
        assert!(!r.step(due - Duration::from_millis(1)), "not before");
        // An interface comes without a word about the file.
        r.watch = None;
        fs::write(&file, "nameserver fe80::1%lo\n").unwrap();
        assert!(r.step(due));
        assert_eq!(r.list(), [SocketAddrV6::new("fe80::1".parse().unwrap(), 53, 0, 1).into()]);
        assert_eq!(r.due(), None, "all are there");
        fs::remove_file(file).unwrap();
    }

    /// A link that becomes another one between a look and the watch.
    #[test]
    fn the_way_that_is_watched_is_the_one_that_there_is() {
        let dir = std::env::temp_dir().join(format!("netreeve-resolv-race-{}", std::process::id()));
        let (old, new) = (dir.join("old"), dir.join("new"));
        [&old, &new].into_iter().for_each(|d| fs::create_dir_all(d).unwrap());
        let step = |d: &Path| vec![(d.to_owned(), OsString::from("stub"))];
        let mut looks = [&old, &new, &new].into_iter();
        let (watch, way) = follow(|| step(looks.next().unwrap())).unwrap();
        assert_eq!(way, step(&new));
        fs::write(old.join("stub"), "").unwrap();
        assert!(watch.read_events().is_err(), "nothing happens there any more");
        fs::write(new.join("stub"), "").unwrap();
        assert!(watch.read_events().unwrap().iter().any(|e| e.name.as_deref() == Some("stub".as_ref())));
        // One that never rests is tried later.
        let mut n = 0_u32;
        let restless = follow(|| {
            n += 1;
            vec![(dir.clone(), n.to_string().into())]
        });
        assert_eq!(restless.unwrap_err(), Errno::EAGAIN);
        fs::remove_dir_all(dir).unwrap();
    }

    /// Until it is read; events come late on a busy machine.
    fn settle(r: &mut Resolvers) -> bool {
        for _ in 0..500 {
            r.step(Instant::now());
            if r.step(Instant::now() + SETTLED * 2) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    /// Links that lead nowhere yet, links to links, directories that go and come back.
    #[test]
    fn a_file_is_followed_wherever_it_comes_to_be() {
        let dir = std::env::temp_dir().join(format!("netreeve-resolv-way-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let dir = fs::canonicalize(dir).unwrap();
        let said = |dir: &Path, n: u8| {
            fs::create_dir_all(dir).unwrap();
            fs::write(dir.join("new"), format!("nameserver 10.0.0.{n}\n")).unwrap();
            fs::rename(dir.join("new"), dir.join("stub")).unwrap();
        };
        let link = |to: &Path, at: &Path| {
            let _ = fs::remove_file(dir.join("new-link"));
            symlink(to, dir.join("new-link")).unwrap();
            fs::rename(dir.join("new-link"), at).unwrap();
        };
        let (file, middle) = (dir.join("resolv.conf"), dir.join("etc/../middle"));
        fs::create_dir(dir.join("etc")).unwrap();
        link(Path::new("etc/../middle"), &file);
        let mut r = Resolvers::new(&file);
        assert_eq!(r.list(), default());
        assert!(r.due().is_some_and(|t| t <= Instant::now() + AGAIN), "it is tried again");
        let is = |r: &mut Resolvers, n: u8| {
            assert!(settle(r), "{n}");
            assert_eq!(r.list(), [SocketAddr::new([10, 0, 0, n].into(), DNS)]);
            assert_eq!(r.due(), None, "nobody is woken for nothing");
        };
        // What the link leads to comes to be, as a link to a link to a directory that is not there.
        link(Path::new("current/stub"), &dir.join("middle"));
        link(Path::new("run/a"), &dir.join("current"));
        assert!(!settle_once(&mut r));
        said(&dir.join("run/a"), 1);
        is(&mut r, 1);
        // The link in the middle, and a directory on the way.
        said(&dir.join("run/b"), 2);
        link(Path::new("run/b"), &dir.join("current"));
        is(&mut r, 2);
        said(&dir.join("c"), 3);
        link(Path::new("c/stub"), &middle);
        is(&mut r, 3);
        // A directory that goes, and comes back.
        fs::remove_dir_all(dir.join("c")).unwrap();
        assert!(!settle_once(&mut r));
        assert_eq!(r.list().len(), 1, "as it was");
        said(&dir.join("c"), 4);
        is(&mut r, 4);
        fs::remove_dir_all(dir).unwrap();
    }

    /// All that has happened is seen.
    fn settle_once(r: &mut Resolvers) -> bool {
        std::thread::sleep(Duration::from_millis(50));
        r.step(Instant::now()) | r.step(Instant::now() + AGAIN * 2)
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
