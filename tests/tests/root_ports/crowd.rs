//! More connections through the `user` network than it takes, and connections that never come to be: what there is goes on,
//! and what is over makes room.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use netreeve_dataplane::port::user::Limits;
use netreeve_dataplane::stats::Reason;
use netreeve_tests::bins::peer;
use netreeve_tests::over::Over;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};

use crate::streams::{FAR, Home};

/// Connections that there may be: fewer than by default, because those that wait ask again once a second, later more seldom.
const MOST: usize = 1024;
/// Connections that are asked for.
const ASKED: usize = 1536;
/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Begins a connection and does not wait for it. To be called in the namespace that it is to come from.
fn begin(to: SocketAddrV4) -> OwnedFd {
    let s = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).unwrap();
    let said = connect(s.as_raw_fd(), &SockaddrIn::from(to));
    assert!(matches!(said, Ok(()) | Err(Errno::EINPROGRESS)), "{said:?}");
    s
}

fn v4(text: &str) -> SocketAddrV4 {
    text.parse().unwrap()
}

/// Which of them are connected; none may have failed.
fn connected(all: &[OwnedFd]) -> Vec<bool> {
    let mut fds: Vec<PollFd<'_>> = all.iter().map(|s| PollFd::new(s.as_fd(), PollFlags::POLLOUT)).collect();
    poll(&mut fds, PollTimeout::ZERO).unwrap();
    let state = |p: &PollFd<'_>| p.revents().unwrap();
    let failed = fds.iter().filter(|p| state(p).intersects(PollFlags::POLLERR | PollFlags::POLLHUP)).count();
    assert_eq!(failed, 0, "connections that failed");
    fds.iter().map(|p| state(p).contains(PollFlags::POLLOUT)).collect()
}

fn wait_for(all: &[OwnedFd], wanted: usize) -> Vec<bool> {
    let until = Instant::now() + PATIENCE;
    loop {
        let now = connected(all);
        let n = now.iter().filter(|c| **c).count();
        assert!(n <= wanted, "{n} are connected, {wanted} at most may be");
        if n == wanted {
            return now;
        }
        assert!(Instant::now() < until, "{n} are connected, not {wanted}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Accepts whoever comes.
fn accept(l: &TcpListener, come: &Mutex<Vec<TcpStream>>, stop: &AtomicBool) {
    l.set_nonblocking(true).unwrap();
    while !stop.load(Ordering::Relaxed) {
        match l.accept() {
            Ok((s, _)) => {
                s.set_nonblocking(false).unwrap();
                s.set_read_timeout(Some(PATIENCE)).unwrap();
                come.lock().unwrap().push(s);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(1)),
            Err(e) => panic!("{e}"),
        }
    }
}

/// As many as the limit says come to be, and all of them carry bytes; the others wait, and come when some have gone.
#[test]
fn of_too_many_connections_as_many_are_served_as_there_may_be() {
    // Guest, network and far side are one process.
    let need = (ASKED + 2 * MOST + 8000) as u64;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, need.max(hard), need.max(hard)).unwrap();
    let mut home = Home::new(true, |plan| {
        plan.limits = Limits { tcp: u32::try_from(MOST).unwrap(), ..plan.limits };
        Vec::new()
    });
    let l = home.listen(FAR[0]);
    let (come, stop) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    std::thread::scope(|t| {
        t.spawn(|| accept(&l, &come, &stop));
        let _over = Over(&stop);
        let mut all = home.guest.enter(|| (0..ASKED).map(|_| begin(v4(FAR[0]))).collect::<Vec<_>>()).unwrap();
        wait_for(&all, MOST);
        std::thread::sleep(Duration::from_millis(1500));
        // Those that wait have asked again meanwhile.
        let now = wait_for(&all, MOST);
        let numbers: Vec<u32> = (0_u32..).zip(&now).filter(|(_, c)| **c).map(|(i, _)| i).collect();
        for &i in &numbers {
            nix::unistd::write(&all[i as usize], &i.to_be_bytes()).unwrap();
        }
        let until = Instant::now() + PATIENCE;
        while come.lock().unwrap().len() < MOST {
            assert!(Instant::now() < until, "the far side has not heard of all of them");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut arrived: Vec<u32> = Vec::new();
        for s in come.lock().unwrap().iter_mut() {
            let mut b = [0; 4];
            s.read_exact(&mut b).unwrap();
            arrived.push(u32::from_be_bytes(b));
        }
        arrived.sort_unstable();
        assert_eq!(arrived, numbers);
        // Some end, at both ends.
        let gone: Vec<u32> = numbers.iter().copied().take(100).collect();
        let mut at = 0_u32..;
        all.retain(|_| !gone.contains(&at.next().unwrap()));
        let mut held = come.lock().unwrap();
        let before = held.len();
        let until = Instant::now() + PATIENCE;
        while held.len() > before - gone.len() {
            assert!(Instant::now() < until, "{} are left of {before}", held.len());
            held.retain(|s| !is_over(s));
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(held);
        wait_for(&all, MOST);
    });
    let (stats, _) = home.lane.take().unwrap().end();
    assert!(stats.drops[Reason::Full as usize] > 0, "{stats:?}");
}

/// Bytes of memory that this process has.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// Both ends of ten thousand connections, each a process of its own: one may have no more descriptors than it is given.
const CROWD: &str = "
import resource, socket, sys
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
at, n = ('10.9.0.2', 7000), 10000
if sys.argv[1] == 'far':
    l = socket.create_server(at, backlog=4096)
    print('ready', flush=True)
    all = [l.accept()[0] for _ in range(n)]
    for s in all:
        s.sendall(bytes(255 - b for b in s.recv(4, socket.MSG_WAITALL)))
    for s in all:
        assert s.recv(1) == b''
else:
    all = [socket.create_connection(at, 60) for _ in range(n)]
    print('open', flush=True)
    for i, s in enumerate(all):
        s.sendall(i.to_bytes(4, 'big'))
    for i, s in enumerate(all):
        assert s.recv(4, socket.MSG_WAITALL) == bytes(255 - b for b in i.to_bytes(4, 'big'))
print('done', flush=True)
";

/// All of them are there at the same time and carry bytes both ways; none of them costs much.
#[test]
fn ten_thousand_connections_at_once() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let fits = Limits::default().within(hard).tcp;
    assert!(fits > 10_000, "{hard} descriptors (`ulimit -Hn`) are enough for {fits} connections only");
    let home = Home::plain();
    let python = |side| {
        let mut c = Command::new(peer("python3").unwrap());
        c.args(["-c", CROWD, side]);
        c
    };
    let mut far = home.far.spawn("the far side", python("far")).unwrap();
    far.wait_for("ready", PATIENCE).unwrap();
    let before = resident();
    let mut near = home.guest.spawn("the guest", python("near")).unwrap();
    near.wait_for("open", 2 * PATIENCE).unwrap();
    let each = (resident() - before) / 10_000;
    assert!(each <= 2048, "{each} bytes of memory for each connection");
    eprintln!("{each} bytes of memory for each connection");
    for p in [&mut near, &mut far] {
        p.wait_for("done", 2 * PATIENCE).unwrap();
        p.wait(PATIENCE).unwrap().ok("an end").unwrap();
    }
    home.end();
}

/// The other end has ended it.
fn is_over(s: &TcpStream) -> bool {
    s.set_nonblocking(true).unwrap();
    let over = matches!(s.peek(&mut [0]), Ok(0));
    s.set_nonblocking(false).unwrap();
    over
}

/// Connections to somebody who never answers, given up at once: what is open goes on, and others still come to be.
#[test]
fn a_flood_of_connections_that_nobody_answers() {
    let mut home = Home::plain();
    home.host.sh("ip neigh add 10.9.0.77 lladdr 02:00:00:00:00:77 dev va nud permanent").unwrap();
    let (mut near, mut far) = home.pair(FAR[0]);
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    home.guest
        .enter(|| {
            for i in 0_u32..20_000 {
                drop(begin(v4("10.9.0.77:80")));
                if i % 1000 == 0 {
                    let mut b = [0; 4];
                    near.write_all(&i.to_be_bytes()).unwrap();
                    far.read_exact(&mut b).unwrap();
                    assert_eq!(b, i.to_be_bytes());
                }
            }
        })
        .unwrap();
    // As many as may be under way, and not one for each that was asked for.
    let held = open() - before;
    assert!(held <= 2000, "{held} descriptors");
    let to: SocketAddr = FAR[1].parse().unwrap();
    let l = home.listen(FAR[1]);
    let new = home.guest.enter(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap();
    assert!(new.is_ok(), "{new:?}");
    drop(l);
    let (stats, _) = home.lane.take().unwrap().end();
    assert!(stats.drops[Reason::Full as usize] > 0, "{stats:?}");
}
