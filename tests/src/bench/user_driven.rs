//! The `user` network beside nobody, where the guest is our driver with a TCP of its own ([`super::driver_tcp`]): what the
//! network itself costs, without a bare guest's tap and stack on the same two processors.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::driver_tcp::Talk;
use super::host;
use super::row::Value;
use super::runner::real;
use super::user_load::{self as load, Echo, Times};
use super::user_peer::{Attached, FAR, Ground};
use crate::netns::Netns;
use crate::{Because, Done, trouble};

/// Ports of the far side: the echo's, whoever takes all, whoever gives without end (RFC 862, 863, 864).
const ECHO: u16 = 7;
const DISCARD: u16 = 9;
const CHARGEN: u16 = 19;
/// Bytes written and read at once, as iperf3 does.
const AT_ONCE: usize = 128 << 10;
/// What does not count yet.
const WARM: Duration = Duration::from_millis(500);

fn at(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(FAR), port)
}

/// A server of the far side that serves one connection after the other; ended when dropped.
struct Server {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Takes all if `takes`, and counts it; gives without end otherwise.
    fn start(world: &Netns, takes: bool) -> Done<Self> {
        let port = if takes { DISCARD } else { CHARGEN };
        let listener = world.enter(|| TcpListener::bind(at(port)))?.because("a server's socket")?;
        listener.set_nonblocking(true).because("a server's socket")?;
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (told, counted) = (Arc::clone(&stop), Arc::clone(&count));
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
                // An interrupted wait is a wait.
                let _again = poll(&mut fds, PollTimeout::from(100_u8));
                if let Ok((s, _)) = listener.accept() {
                    // A client that went away is what is waited for.
                    let _gone = serve(s, takes, &told, &counted);
                }
            }
        });
        Ok(Self { stop, count, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

fn serve(mut s: TcpStream, takes: bool, stop: &AtomicBool, count: &AtomicU64) -> io::Result<()> {
    let mut bytes = vec![7; AT_ONCE];
    s.set_read_timeout(Some(Duration::from_millis(500)))?;
    s.set_write_timeout(Some(Duration::from_millis(500)))?;
    while !stop.load(Ordering::Relaxed) {
        let n = if takes { s.read(&mut bytes)? } else { s.write(&bytes)? };
        if n == 0 {
            break;
        }
        count.fetch_add(n as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// Who asks.
enum Client<'a> {
    /// Our driver, on the network that is measured.
    Driver(Box<Talk>),
    /// A program on the host itself.
    Host(&'a Netns, SocketAddrV4, Option<TcpStream>),
}

impl<'a> Client<'a> {
    fn new(ground: &'a Ground, a: &Attached, to: SocketAddrV4) -> Done<Self> {
        match a.device() {
            Some(socket) => {
                Ok(Self::Driver(Box::new(Talk::start(socket, to).because("the guest's driver")?)))
            }
            None => Ok(Self::Host(&ground.host, to, None)),
        }
    }

    fn connect(&mut self) -> Done {
        match self {
            Self::Driver(t) => t.connect().because("connect"),
            Self::Host(world, to, s) => {
                let to = *to;
                *s = Some(world.enter(|| TcpStream::connect(to))?.because("connect")?);
                Ok(())
            }
        }
    }

    fn send(&mut self, window: Duration) -> io::Result<()> {
        match self {
            Self::Driver(t) => t.send(window),
            Self::Host(_, _, s) => {
                let (bytes, until) = (vec![7; AT_ONCE], Instant::now() + window);
                let s = s.as_mut().ok_or(io::ErrorKind::NotConnected)?;
                while Instant::now() < until {
                    s.write_all(&bytes)?;
                }
                Ok(())
            }
        }
    }

    fn receive(&mut self, window: Duration) -> io::Result<u64> {
        match self {
            Self::Driver(t) => t.receive(window),
            Self::Host(_, _, s) => {
                let (mut bytes, until) = (vec![0; AT_ONCE], Instant::now() + window);
                let s = s.as_mut().ok_or(io::ErrorKind::NotConnected)?;
                let mut n = 0;
                while Instant::now() < until {
                    n += s.read(&mut bytes)? as u64;
                }
                Ok(n)
            }
        }
    }
}

/// One stream each way: Gbit/s, and the CPU time of who is measured.
///
/// # Errors
/// A connection broke.
pub fn rate(ground: &Ground, a: &Attached, window: Duration) -> Done<Vec<Value>> {
    let pids = a.processes();
    let cpu = || pids.iter().map(|&id| host::cpu_ns(id, true)).sum::<u64>();
    let value = |bytes: u64, used: u64, wall: Duration| {
        let s_gib = real(used) / 1e9 / (real(bytes.max(1)) / f64::from(1 << 30));
        let value = real(bytes) * 8.0 / wall.as_secs_f64() / 1e9;
        Value { value, s_gib: (!pids.is_empty()).then_some(s_gib), ..Value::default() }
    };
    let up = {
        let server = Server::start(&ground.far, true)?;
        let mut c = Client::new(ground, a, at(DISCARD))?;
        c.connect()?;
        c.send(WARM).because("send")?;
        let look = || (server.count.load(Ordering::Relaxed), cpu(), Instant::now());
        let before = look();
        c.send(window).because("send")?;
        let after = look();
        value(after.0 - before.0, after.1 - before.1, after.2 - before.2)
    };
    let down = {
        let _server = Server::start(&ground.far, false)?;
        let mut c = Client::new(ground, a, at(CHARGEN))?;
        c.connect()?;
        c.receive(WARM).because("receive")?;
        let (used, t) = (cpu(), Instant::now());
        let n = c.receive(window).because("receive")?;
        value(n, cpu() - used, t.elapsed())
    };
    Ok(vec![up, down])
}

/// Round trips, and connections with one: see [`load::trips`].
///
/// # Errors
/// An answer did not come.
pub fn trips(ground: &Ground, a: &Attached, window: Duration) -> Done<(Times, Times)> {
    let _echo = Echo::start(&ground.far, at(ECHO).into(), false)?;
    let Some(socket) = a.device() else {
        return load::trips(&ground.host, at(ECHO).into(), window);
    };
    // A thread of its own, because it is kept to one processor.
    std::thread::scope(|s| {
        let work = s.spawn(|| -> Done<(Times, Times)> {
            host::pin(host::LOAD).because("pin")?;
            let mut talk = Talk::start(socket, at(ECHO)).because("the guest's driver")?;
            talk.connect().because("connect to the echo")?;
            let asked = load::times(window, || talk.ask()).because("a round trip")?;
            talk.close().because("a round trip")?;
            let called = load::times(window, || {
                talk.connect()?;
                talk.ask()?;
                talk.close()
            });
            Ok((asked, called.because("a connection")?))
        });
        work.join().map_err(|_| trouble("the driver panicked"))?
    })
}
