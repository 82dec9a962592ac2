//! The load of the rows about user networks: who answers at the far side, and a client in the guest's namespace that asks
//! by TCP: many times on one connection, once on each of many, or once on each of a thousand that it keeps.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{figures, host};
use crate::netns::Netns;
use crate::{Because, Done, trouble};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Round trips before it counts.
const WARM: usize = 100;
/// Bytes of a question, and of its answer, on a connection that is kept.
const WORDS: usize = 4096;

/// Says back what comes by TCP, on the measured processor; ended when dropped.
pub struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Listens inside `world`: one connection is served after the other until its end or, if it `keeps` them, each is
    /// answered [`WORDS`] bytes once and stays open.
    ///
    /// # Errors
    /// The address is not there, or is in use.
    pub fn start(world: &Netns, at: SocketAddr, keeps: bool) -> Done<Self> {
        let listener = world.enter(|| TcpListener::bind(at))?.because("the echo's socket")?;
        listener.set_nonblocking(true).because("the echo's socket")?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            // Elsewhere it would only be slower.
            let _anywhere = host::pin(host::MEASURED);
            serve(&listener, keeps, &told);
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

fn serve(listener: &TcpListener, keeps: bool, stop: &AtomicBool) {
    let mut kept = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let Ok((s, _)) = listener.accept() else {
            let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            // An interrupted wait is a wait.
            let _again = poll(&mut fds, PollTimeout::from(100_u8));
            continue;
        };
        // A client that went away is its own trouble.
        let _lost = if keeps { answer_once(&s) } else { answer_all(&s) };
        if keeps {
            kept.push(s);
        }
    }
}

fn answer_once(mut s: &TcpStream) -> io::Result<()> {
    let mut words = [0; WORDS];
    s.set_read_timeout(Some(PATIENCE))?;
    s.read_exact(&mut words)?;
    s.write_all(&words)
}

fn answer_all(mut s: &TcpStream) -> io::Result<()> {
    let mut bytes = [0; 64];
    s.set_nodelay(true)?;
    s.set_read_timeout(Some(PATIENCE))?;
    loop {
        match s.read(&mut bytes)? {
            0 => return Ok(()),
            n => s.write_all(bytes.get(..n).unwrap_or_default())?,
        }
    }
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let s = TcpStream::connect_timeout(&to, PATIENCE)?;
    s.set_nodelay(true)?;
    s.set_read_timeout(Some(PATIENCE))?;
    s.set_write_timeout(Some(PATIENCE))?;
    Ok(s)
}

fn ask(mut s: &TcpStream) -> io::Result<()> {
    s.write_all(&[1])?;
    s.read_exact(&mut [0])
}

/// Waits until the echo answers from a guest's namespace.
///
/// # Errors
/// It never did.
pub fn reach(guest: &Netns, to: SocketAddr) -> Done {
    let until = Instant::now() + 2 * PATIENCE;
    loop {
        let tried = guest.enter(|| {
            TcpStream::connect_timeout(&to, Duration::from_secs(1)).and_then(|s| {
                s.set_read_timeout(Some(Duration::from_secs(2)))?;
                ask(&s)
            })
        })?;
        match tried {
            Err(e) if Instant::now() > until => return Err(trouble(format!("{to} never answered: {e}"))),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
            Ok(()) => return Ok(()),
        }
    }
}

/// Times of something, in microseconds: the median and the 99th of a hundred.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// The median.
    pub mid: f64,
    /// The 99th of a hundred.
    pub late: f64,
}

/// On the load's processor of a guest's namespace, for `window` each: a byte there and back on one connection; and a
/// connection, a byte there and back, and its end.
///
/// # Errors
/// An answer did not come.
pub fn trips(guest: &Netns, to: SocketAddr, window: Duration) -> Done<(Times, Times)> {
    guest.enter(|| -> Done<(Times, Times)> {
        host::pin(host::LOAD).because("pin")?;
        let one = connect(to).because("connect to the echo")?;
        let asked = times(window, || ask(&one)).because("a round trip")?;
        drop(one);
        let called = times(window, || connect(to).and_then(|s| ask(&s))).because("a connection")?;
        Ok((asked, called))
    })?
}

/// How long `once` takes, again and again for `window`, when it has been done some times.
///
/// # Errors
/// One failed.
pub fn times(window: Duration, mut once: impl FnMut() -> io::Result<()>) -> io::Result<Times> {
    for _ in 0..WARM {
        once()?;
    }
    let (mut all, until) = (Vec::new(), Instant::now() + window);
    while Instant::now() < until {
        let t = Instant::now();
        once()?;
        all.push(t.elapsed().as_secs_f64() * 1e6);
    }
    all.sort_by(f64::total_cmp);
    let late = all.get(all.len() * 99 / 100).copied().ok_or(io::ErrorKind::TimedOut)?;
    Ok(Times { mid: figures::median(all), late })
}

/// Opens `n` connections from a guest's namespace to an echo that keeps them, each with a question and its answer.
///
/// # Errors
/// One of them was not answered.
pub fn keep(guest: &Netns, to: SocketAddr, n: usize) -> Done<Vec<TcpStream>> {
    let one = || -> io::Result<TcpStream> {
        let mut s = connect(to)?;
        s.write_all(&[1; WORDS])?;
        s.read_exact(&mut [0; WORDS])?;
        Ok(s)
    };
    guest.enter(|| {
        let made = |i: usize| one().because(format!("connection {} of {n}", i + 1));
        (0..n).map(made).collect()
    })?
}

/// Segments that the TCP of a namespace has sent again so far.
///
/// # Errors
/// The kernel's table is not as it was.
pub fn sent_again(world: &Netns) -> Done<u64> {
    let table = world.enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))?.because("net/snmp")?;
    retransmitted(&table).because("net/snmp has no RetransSegs")
}

fn retransmitted(table: &str) -> Option<u64> {
    let mut lines = table.lines().filter(|l| l.starts_with("Tcp:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let at = names.split_whitespace().position(|n| n == "RetransSegs")?;
    values.split_whitespace().nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_again_is_read_off_the_kernels_table() {
        let table =
            "Ip: Forwarding\nIp: 1\nTcp: RtoMin InSegs OutSegs RetransSegs InErrs\nTcp: 200 7 8 9 0\n";
        assert_eq!(retransmitted(table), Some(9));
        assert_eq!(retransmitted("Tcp: InSegs\nTcp: 1\n"), None);
        assert_eq!(retransmitted(""), None);
    }
}
