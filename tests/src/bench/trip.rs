//! Round trips of one byte over UDP, one at a time: a client that sleeps until its answer comes, and an echo on a kernel
//! socket. With veth alone the client is a socket at the pair's other end; otherwise it is our virtio driver, which kicks
//! and sleeps until its interrupt.
//!
//! The client has one processor; the echo and who is measured share the other, so that with and without somebody in the
//! middle a round trip crosses from one processor to the other and back once.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::case::{Case, Form, Path, Way, Who};
use super::driver::{Driver, Make};
use super::figures::{Miss, Taken};
use super::load::MAC;
use super::peer::Ours;
use super::row::Value;
use super::runner::{Bench, connect, new_link, start, with};
use super::{figures, host};
use crate::netns::Netns;
use crate::{Because, Done, trouble};

const PORT: u16 = 7;
const CLIENT: [u8; 4] = [10, 77, 0, 2];
const SERVER: [u8; 4] = [10, 77, 0, 1];
/// Round trips before it counts.
const WARM: usize = 200;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_millis(500);

/// Takes round trips for `window`: the median and the 99th of a hundred, in microseconds.
///
/// # Errors
/// Something did not start, an answer did not come, or it cannot be done here.
pub fn sample(bench: &mut Bench, path: Path, who: Who, window: Duration) -> Taken<Vec<Value>> {
    if who == Who::Veth {
        return Ok(veth_alone(window)?);
    }
    bench.on_a_pair(path, |ours, socks, before| beside(path, who, ours, socks, before, window))
}

fn beside(
    path: Path,
    who: Who,
    ours: &Ours,
    socks: &[PathBuf; 2],
    before: &[String],
    window: Duration,
) -> Taken<Vec<Value>> {
    let case = Case { path, way: Way::Out, size: 64, form: Form::Split };
    let running = start(&case, who, socks, ours)?;
    with(running, |_| {
        let far = match path {
            Path::Tap => new_link(before)?,
            Path::Xdp(_) => "v1".to_owned(),
            Path::Vhost | Path::Nothing => return Err(Miss::Skipped("no kernel at its far end".to_owned())),
        };
        let [socket, _] = socks;
        let mut driver = connect(socket, Make::usual(true))?;
        host::ip(&format!("addr add {}/24 dev {far}", dotted(SERVER))).because("the far side's address")?;
        let mac = MAC.map(|b| format!("{b:02x}")).join(":");
        host::ip(&format!("neigh add {} lladdr {mac} dev {far}", dotted(CLIENT)))
            .because("the guest's address")?;
        let frame = question(host::mac(&far).because("the far side's address")?);
        let _echo = Echo::start()?;
        Ok(run(window, || ask(&mut driver, &frame))?)
    })
}

/// The pair between two namespaces: the kernel alone.
fn veth_alone(window: Duration) -> Done<Vec<Value>> {
    let guest = Netns::new("the client's side")?;
    host::ip(&format!("link add v1 type veth peer name v0 netns {}", guest.path())).because("the pair")?;
    let result = (|| {
        host::ip(&format!("addr add {}/24 dev v1", dotted(SERVER))).because("address")?;
        host::ip("link set v1 up").because("the pair")?;
        guest.sh(&format!("ip addr add {}/24 dev v0; ip link set v0 up", dotted(CLIENT)))?;
        let socket = guest.enter(|| UdpSocket::bind("0.0.0.0:0"))?.because("the client's socket")?;
        socket.connect((dotted(SERVER), PORT)).because("the client's socket")?;
        socket.set_read_timeout(Some(PATIENCE)).because("the client's socket")?;
        let _echo = Echo::start()?;
        run(window, || {
            let mut answer = [0; 16];
            socket.send(&[1])?;
            if socket.recv(&mut answer)? == 1 { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
        })
    })();
    host::ip("link del v1").because("take the pair away")?;
    result
}

/// Round trips on the load's processor until the window is over.
fn run(window: Duration, mut ask: impl FnMut() -> io::Result<()> + Send) -> Done<Vec<Value>> {
    let times = std::thread::scope(|s| {
        let work = s.spawn(move || -> io::Result<Vec<f64>> {
            host::pin(host::LOAD)?;
            // The first may meet an address that is not known yet.
            let _resolved = ask();
            for _ in 0..WARM {
                ask()?;
            }
            let (mut times, until) = (Vec::new(), Instant::now() + window);
            while Instant::now() < until {
                let t = Instant::now();
                ask()?;
                times.push(t.elapsed().as_secs_f64() * 1e6);
            }
            Ok(times)
        });
        work.join().map_err(|_| trouble("the client panicked"))?.because("a round trip")
    })?;
    let mut sorted = times;
    sorted.sort_by(f64::total_cmp);
    let late = sorted.get(sorted.len() * 99 / 100).copied().because("no round trip within the window")?;
    let value = |value| Value { value, ..Value::default() };
    Ok(vec![value(figures::median(sorted)), value(late)])
}

/// One round trip of our driver: a kick, sleep, an interrupt.
fn ask(d: &mut Driver, frame: &[u8]) -> io::Result<()> {
    let until = Instant::now() + PATIENCE;
    if d.tx.send(frame, 1) != 1 {
        return Err(io::Error::other("no room to send"));
    }
    loop {
        let mut came = false;
        d.rx.recv(16, |head, _| came |= is_answer(head));
        if came {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if !d.rx.arm(1) {
            let mut fds = [PollFd::new(d.rx.call.as_fd(), PollFlags::POLLIN)];
            // An interrupted wait is a wait.
            let _again = poll(&mut fds, PollTimeout::from(100_u8));
        }
        d.rx.calm();
    }
}

/// UDP from the echo's port.
fn is_answer(head: &[u8; 64]) -> bool {
    head.get(23) == Some(&17) && head.get(34..36) == Some(&PORT.to_be_bytes()[..])
}

/// The echo, on the measured processor; ended when dropped.
struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Echo {
    fn start() -> Done<Self> {
        let socket = UdpSocket::bind(("0.0.0.0", PORT)).because("the echo's socket")?;
        socket.set_read_timeout(Some(Duration::from_millis(50))).because("the echo's socket")?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            // Elsewhere it would only be slower.
            let _anywhere = host::pin(host::MEASURED);
            let mut bytes = [0; 64];
            while !told.load(Ordering::Relaxed) {
                if let Ok((n, from)) = socket.recv_from(&mut bytes) {
                    // A lost answer is the client's trouble.
                    let _lost = socket.send_to(bytes.get(..n).unwrap_or_default(), from);
                }
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ended = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

fn dotted(a: [u8; 4]) -> String {
    a.map(|b| b.to_string()).join(".")
}

/// One byte by UDP in an Ethernet frame to `to`; UDP's checksum is left out, as RFC 768 allows.
fn question(to: [u8; 6]) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 29, 0, 0, 0x40, 0, 64, 17, 0, 0];
    ip.extend(CLIENT);
    ip.extend(SERVER);
    let sum: u32 = ip.chunks(2).map(|c| u32::from(c.iter().fold(0_u16, |w, b| w << 8 | u16::from(*b)))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let check = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(0);
    if let Some(at) = ip.get_mut(10..12) {
        at.copy_from_slice(&check.to_be_bytes());
    }
    let mut f = to.to_vec();
    f.extend(MAC);
    f.extend([8, 0]);
    f.extend(ip);
    f.extend(4000_u16.to_be_bytes());
    f.extend(PORT.to_be_bytes());
    f.extend([0, 9, 0, 0, 1]);
    f.resize(60, 0);
    f
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_a_good_ip_packet() {
        let f = question([1; 6]);
        let sum: u32 = f[14..34].chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c[1]]))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        assert_eq!((f.len(), f[42]), (60, 1));
        let mut head = [0; 64];
        head[..60].copy_from_slice(&f);
        assert!(!is_answer(&head));
        head[34..38].rotate_left(2);
        assert!(is_answer(&head));
    }
}
