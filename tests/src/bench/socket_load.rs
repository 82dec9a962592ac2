//! The load of the rows about sockets: a generator and sinks on the load's processor.

use std::io::{self, Read, Write};
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netreeve_dataplane::mem::{Buf, Seg};
use netreeve_dataplane::sys::mmsg::{Incoming, MESSAGES, Outgoing};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use super::forward::{ForwardCase, Kind, PORTS};
use super::{host, load};
use crate::{Because, Done};

/// Bytes of UDP datagrams that the generator gives the kernel at once.
const AT_ONCE: usize = 60_000;
/// How long who is measured may take to be there.
const PATIENCE: Duration = Duration::from_secs(10);
/// The capture, in the directory of the sockets.
pub const DUMP: &str = "dump";
/// Bytes of a frame that are captured.
pub const DUMPED: u64 = 64;
/// Bytes before a frame in a classic capture (libpcap's `pcap_sf_pkthdr`), and before all of them.
const RECORD: u64 = 16;
const HEAD: u64 = 24;
/// Bytes of a slot for a datagram that is read.
const SLOT: u32 = 2048;

/// What must be there before who is measured starts.
#[derive(Default)]
pub struct Before {
    listeners: Vec<UnixListener>,
    datagrams: Vec<UnixDatagram>,
}

/// A generator and sinks that run.
pub struct Flow {
    stop: Arc<AtomicBool>,
    offered: Arc<AtomicU64>,
    read: Arc<AtomicU64>,
    /// Ports of sockets that nobody reads, which are held for their end.
    unread: Vec<(u16, UdpSocket)>,
    /// Where frames must also stand to have arrived.
    dump: Option<PathBuf>,
    /// Connections that are held for their end.
    _held: Vec<UnixStream>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

/// Sockets that whoever is measured looks for at its start.
///
/// # Errors
/// They cannot be made.
pub fn before(kind: Kind, at: &Path) -> io::Result<Before> {
    let mut b = Before::default();
    for i in 0..2 {
        match kind {
            Kind::Unix => b.datagrams.push(datagram(&at.join(format!("them{i}")))?),
            Kind::Plug => {
                let dir = at.join(format!("sw{i}"));
                std::fs::create_dir(&dir)?;
                open_to_all(&dir)?;
                let listener = UnixListener::bind(dir.join("ctl"))?;
                listener.set_nonblocking(true)?;
                open_to_all(&dir.join("ctl"))?;
                b.listeners.push(listener);
            }
            _ => {}
        }
    }
    Ok(b)
}

fn open_to_all(path: &Path) -> io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))
}

fn datagram(path: &Path) -> io::Result<UnixDatagram> {
    let s = UnixDatagram::bind(path)?;
    open_to_all(path)?;
    let _less = setsockopt(&s, sockopt::SndBuf, &(4 << 20));
    Ok(s)
}

fn within<T>(mut get: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let until = Instant::now() + PATIENCE;
    loop {
        match get() {
            Err(e) if Instant::now() > until => return Err(e),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
            got => return got,
        }
    }
}

/// Connects to who is measured and begins.
///
/// # Errors
/// It cannot be reached.
pub fn open(case: ForwardCase, before: Before, at: &Path) -> io::Result<Flow> {
    let mut flow = Flow {
        stop: Arc::default(),
        offered: Arc::default(),
        read: Arc::default(),
        unread: Vec::new(),
        dump: (case.kind == Kind::Capture).then(|| at.join(DUMP)),
        _held: Vec::new(),
        threads: Vec::new(),
    };
    let one = load::frame(case.size);
    match case.kind {
        Kind::Stream | Kind::Capture => {
            let dial = |i: usize| within(|| UnixStream::connect(at.join(format!("us{i}"))));
            let (from, to) = (dial(0)?, dial(1)?);
            flow.streams(from, to, &one);
        }
        Kind::Unix => {
            for (i, s) in before.datagrams.iter().enumerate() {
                within(|| s.connect(at.join(format!("us{i}"))))?;
            }
            flow.datagrams(before.datagrams, one)?;
        }
        Kind::Plug => {
            let mut ends = Vec::new();
            for (i, listener) in before.listeners.iter().enumerate() {
                let (held, data) = plugged(listener, &at.join(format!("sw{i}")))?;
                flow._held.push(held);
                ends.push(data);
            }
            flow.datagrams(ends, one)?;
        }
        Kind::Switch => {
            let mut ends = Vec::new();
            for i in 0..2 {
                let (held, data) = within(|| plug(&at.join("sw"), &at.join(format!("them{i}"))))?;
                flow._held.push(held);
                ends.push(data);
            }
            flow.datagrams(ends, one)?;
        }
        Kind::L2tp => flow.udp(case, &[&[0, 3, 0, 0, 0, 0, 0, 1], &one[..]].concat(), 2)?,
        Kind::Hub => flow.udp(case, &one, 3)?,
    }
    Ok(flow)
}

/// The bytes of a `struct sockaddr_un`.
fn address(path: &Path) -> Vec<u8> {
    let mut a = 1_u16.to_ne_bytes().to_vec();
    a.extend(path.as_os_str().as_encoded_bytes());
    a.resize(110, 0);
    a
}

fn path_in(address: &[u8]) -> io::Result<PathBuf> {
    let path = address.get(2..).unwrap_or_default().split(|b| *b == 0).next().unwrap_or_default();
    let text = std::str::from_utf8(path).map_err(io::Error::other)?;
    Ok(text.into())
}

/// Gives a port to whoever plugs in.
fn plugged(ctl: &UnixListener, dir: &Path) -> io::Result<(UnixStream, UnixDatagram)> {
    let (mut client, _) = within(|| ctl.accept())?;
    client.set_nonblocking(false)?;
    client.set_read_timeout(Some(PATIENCE))?;
    let mut request = [0; 256];
    let n = client.read(&mut request)?;
    let theirs = path_in(request.get(12..n).and_then(|r| r.get(..110)).ok_or(io::ErrorKind::InvalidData)?)?;
    let ours = dir.join("port");
    let data = datagram(&ours)?;
    data.connect(theirs)?;
    client.write_all(&address(&ours))?;
    Ok((client, data))
}

/// Plugs into a switch.
fn plug(dir: &Path, ours: &Path) -> io::Result<(UnixStream, UnixDatagram)> {
    let mut ctl = UnixStream::connect(dir.join("ctl"))?;
    ctl.set_read_timeout(Some(PATIENCE))?;
    let _again = std::fs::remove_file(ours);
    let data = datagram(ours)?;
    let mut request: Vec<u8> = [0xfeed_face_u32, 3, 0].iter().flat_map(|w| w.to_ne_bytes()).collect();
    request.extend(address(ours));
    request.extend(b"bench");
    ctl.write_all(&request)?;
    let mut answer = [0; 110];
    ctl.read_exact(&mut answer)?;
    data.connect(path_in(&answer)?)?;
    Ok((ctl, data))
}

/// As many datagrams as one call takes, each passed through the stack by itself; says how many went.
///
/// # Errors
/// The kernel's about the first one.
pub fn burst(to: &impl AsFd, datagram: &[u8]) -> io::Result<usize> {
    let mut out = Outgoing::new();
    for _ in 0..MESSAGES {
        out.private(datagram);
        out.finish(0);
    }
    out.send(to.as_fd())
}

/// Waits until a socket can be read or written.
fn ready(fd: BorrowedFd<'_>, what: PollFlags) {
    let _ready = poll(&mut [PollFd::new(fd, what)], PollTimeout::from(50_u8));
}

impl Flow {
    fn spawn(&mut self, work: impl FnOnce(&AtomicBool) -> io::Result<()> + Send + 'static) {
        let stop = Arc::clone(&self.stop);
        self.threads.push(std::thread::spawn(move || {
            host::pin(host::LOAD)?;
            work(&stop)
        }));
    }

    fn streams(&mut self, mut from: UnixStream, mut to: UnixStream, one: &[u8]) {
        let wire = [&u32::try_from(one.len()).unwrap_or(0).to_be_bytes(), one].concat();
        let many = (65_536 / wire.len()).max(1);
        let (message, each) = (wire.repeat(many), wire.len() as u64);
        let (offered, read) = (Arc::clone(&self.offered), Arc::clone(&self.read));
        for s in [&from, &to] {
            let (_a, _b) = (s.set_write_timeout(Some(PATIENCE)), s.set_read_timeout(Some(PATIENCE)));
        }
        self.spawn(move |stop| {
            while !stop.load(Ordering::Relaxed) && from.write_all(&message).is_ok() {
                offered.fetch_add(many as u64, Ordering::Relaxed);
            }
            Ok(())
        });
        self.spawn(move |stop| {
            let (mut room, mut bytes) = (vec![0; 256 * 1024], 0);
            while !stop.load(Ordering::Relaxed)
                && let Ok(n @ 1..) = to.read(&mut room)
            {
                bytes += n as u64;
                read.store(bytes / each, Ordering::Relaxed);
            }
            Ok(())
        });
    }

    fn datagrams(&mut self, ends: Vec<UnixDatagram>, one: Vec<u8>) -> io::Result<()> {
        let [from, to] = <[UnixDatagram; 2]>::try_from(ends).map_err(|_| io::ErrorKind::InvalidInput)?;
        let (offered, read) = (Arc::clone(&self.offered), Arc::clone(&self.read));
        self.spawn(move |stop| {
            while !stop.load(Ordering::Relaxed) {
                match burst(&from, &one) {
                    Ok(n) => drop(offered.fetch_add(n as u64, Ordering::Relaxed)),
                    Err(_) => ready(from.as_fd(), PollFlags::POLLOUT),
                }
            }
            Ok(())
        });
        self.spawn(move |stop| {
            let slots = Buf::new(SLOT * u32::try_from(MESSAGES).unwrap_or(0))?;
            let segs: Vec<Seg> = (0..).take(MESSAGES).map(|i| slots.seg(i * SLOT, SLOT)).collect();
            let mut incoming = Incoming::new(false);
            while !stop.load(Ordering::Relaxed) {
                match incoming.recv(to.as_fd(), &segs) {
                    Ok(got) => drop(read.fetch_add(got.len() as u64, Ordering::Relaxed)),
                    Err(_) => ready(to.as_fd(), PollFlags::POLLIN),
                }
            }
            Ok(())
        });
        Ok(())
    }

    /// One UDP socket that sends; of the others, nobody reads what comes.
    fn udp(&mut self, case: ForwardCase, datagram: &[u8], ends: usize) -> io::Result<()> {
        let mut sockets = Vec::new();
        for (ours, theirs) in PORTS.iter().take(ends) {
            let s = UdpSocket::bind(("127.0.0.1", *ours))?;
            s.connect(("127.0.0.1", *theirs))?;
            sockets.push((*ours, s));
        }
        let (_, from) = sockets.remove(0);
        for (_, sink) in &sockets {
            setsockopt(sink, sockopt::RcvBuf, &1)?;
        }
        self.unread = sockets;
        let many = if case.cut { (AT_ONCE / datagram.len()).clamp(1, MESSAGES) } else { 1 };
        if case.cut {
            let segment = i32::try_from(datagram.len()).map_err(io::Error::other)?;
            setsockopt(&from, sockopt::UdpGsoSegment, &segment)?;
        }
        let (message, offered, cut) = (datagram.repeat(many), Arc::clone(&self.offered), case.cut);
        self.spawn(move |stop| {
            while !stop.load(Ordering::Relaxed) {
                // Refused while who is measured is still starting.
                let sent = if cut { from.send(&message).map(|_| many) } else { burst(&from, &message) };
                offered.fetch_add(sent.unwrap_or(0) as u64, Ordering::Relaxed);
            }
            Ok(())
        });
        Ok(())
    }

    /// Frames that were given to who is measured.
    #[must_use]
    pub fn offered(&self) -> u64 {
        self.offered.load(Ordering::Relaxed)
    }

    /// Frames that came out: of several sinks, at the one that got least, a capture among them. In the load's namespace.
    ///
    /// # Errors
    /// The kernel's table cannot be read.
    pub fn arrived(&self) -> io::Result<u64> {
        if self.unread.is_empty() {
            let read = self.read.load(Ordering::Relaxed);
            let Some(dump) = &self.dump else { return Ok(read) };
            let bytes = std::fs::metadata(dump)?.len().saturating_sub(HEAD);
            return Ok(read.min(bytes / (RECORD + DUMPED)));
        }
        let table = std::fs::read_to_string("/proc/thread-self/net/udp")?;
        // The last column: what was dropped because nobody read.
        let at = |port: u16| {
            let local = format!(":{port:04X}");
            let row =
                table.lines().find(|l| l.split_whitespace().nth(1).is_some_and(|a| a.ends_with(&local)));
            row.and_then(|l| l.split_whitespace().last()).and_then(|n| n.parse().ok()).unwrap_or(0)
        };
        Ok(self.unread.iter().map(|(port, _)| at(*port)).min().unwrap_or(0))
    }

    /// Ends it.
    ///
    /// # Errors
    /// A part of it failed.
    pub fn end(self) -> Done {
        self.stop.store(true, Ordering::Relaxed);
        for t in self.threads {
            let ended = t.join().unwrap_or_else(|_| Err(io::Error::other("it panicked")));
            ended.because("the load")?;
        }
        Ok(())
    }
}
