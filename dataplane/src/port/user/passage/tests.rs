//! With real sockets on one loopback, which stands for the namespace's and the host's.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Instant;

use super::*;
use crate::port::user::plan::{OUT, Plan, Range};
use crate::port::user::{context, sockets};

const PATIENCE: Duration = Duration::from_secs(20);

struct Scene {
    room: Passage,
    cx: Cx,
}

fn forward(id: u32, way: Way, guest: SocketAddr) -> Forward {
    Forward { id, way, guest, range: None }
}

impl Scene {
    fn new(list: Vec<(Forward, OwnedFd)>, out: u32) -> Self {
        Self::tried(list, out).unwrap()
    }

    fn tried(list: Vec<(Forward, OwnedFd)>, out: u32) -> io::Result<Self> {
        let mut cx = context(&Plan::qemu())?;
        cx.limits.out = out;
        let room = Passage::new(list, &mut cx)?;
        Ok(Self { room, cx })
    }

    /// One round, as the port has them.
    fn turn(&mut self) {
        self.cx.now = Instant::now();
        let mut events = Vec::new();
        self.cx.poll.events(&mut events).unwrap();
        for (at, ready) in events {
            self.room.ready(at, ready, &mut self.cx);
        }
        while let Some(at) = self.cx.timers.next(self.cx.now) {
            self.room.tick(at, &mut self.cx);
        }
        self.room.go_on(&mut self.cx);
    }

    /// Rounds until something is so.
    fn until<T>(&mut self, what: &str, mut f: impl FnMut() -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        loop {
            self.turn();
            if let Some(done) = f() {
                return done;
            }
            assert!(Instant::now() < until, "{what}");
            std::thread::yield_now();
        }
    }

    /// So many rounds, in which nothing should happen.
    fn idle(&mut self) {
        for _ in 0..50 {
            self.turn();
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Until there are so many connections.
    fn settles(&mut self, n: u64) {
        let until = Instant::now() + PATIENCE;
        while self.room.flows().now != n {
            assert!(Instant::now() < until, "{:?}", self.room.flows());
            self.turn();
        }
    }
}

fn listener(at: &str) -> (TcpListener, SocketAddr) {
    let l = TcpListener::bind(at).unwrap();
    l.set_nonblocking(true).unwrap();
    let at = l.local_addr().unwrap();
    (l, at)
}

fn connect(at: SocketAddr) -> TcpStream {
    let s = TcpStream::connect(at).unwrap();
    s.set_nonblocking(true).unwrap();
    s
}

/// What a read or a write comes to; none: it would wait.
fn now<T>(done: io::Result<T>) -> Option<io::Result<T>> {
    match done {
        Err(e) if e.kind() == ErrorKind::WouldBlock => None,
        done => Some(done),
    }
}

fn accepted(s: &mut Scene, l: &TcpListener) -> TcpStream {
    let (came, _) = s.until("nobody comes", || now(l.accept())).unwrap();
    came.set_nonblocking(true).unwrap();
    came
}

/// Somebody inside, somebody on the host, and the way between them.
fn through(at: &str) -> (Scene, TcpStream, TcpStream) {
    let ((inside, door), (host, to)) = (listener(at), listener(at));
    let mut s = Scene::new(vec![(forward(1, Way::OutTcp, to), inside.into())], OUT);
    let client = connect(door);
    let server = accepted(&mut s, &host);
    // He may be there before we hear of it.
    s.settles(1);
    while s.room.flows().half_open > 0 {
        s.turn();
    }
    (s, client, server)
}

fn read_to_end(s: &mut Scene, mut from: &TcpStream) -> io::Result<Vec<u8>> {
    let (mut all, mut room) = (Vec::new(), vec![0; 70_000]);
    s.until("no end comes", || {
        loop {
            match now(from.read(&mut room)) {
                None => return None,
                Some(Ok(0)) => return Some(Ok(())),
                Some(Ok(n)) => all.extend_from_slice(&room[..n]),
                Some(Err(e)) => return Some(Err(e)),
            }
        }
    })?;
    Ok(all)
}

/// Not all the same, and known from its place.
fn bytes(n: usize, salt: usize) -> Vec<u8> {
    (0..n).map(|i| u8::try_from((i / 251 + i * 7 + salt) % 256).unwrap()).collect()
}

#[test]
fn the_last_words_of_who_breaks_off_are_heard() {
    for at in ["127.0.0.1:0", "[::1]:0"] {
        let (mut s, client, server) = through(at);
        (&client).write_all(&bytes(5000, 1)).unwrap();
        s.idle();
        // Who closes with something unread resets the connection. The client goes on meanwhile.
        (&server).write_all(b"no more").unwrap();
        drop(server);
        (&client).write_all(&bytes(5000, 2)).unwrap();
        let mut words = [0; 7];
        let got = s.until("nothing is said", || now((&client).read(&mut words))).unwrap();
        assert_eq!(&words[..got], b"no more");
        let end = s.until("no end comes", || now((&client).read(&mut words)));
        assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
        s.settles(0);
    }
}

#[test]
fn bytes_go_both_ways_whole_and_each_end_by_itself() {
    for at in ["127.0.0.1:0", "[::1]:0"] {
        let (mut s, client, server) = through(at);
        // Far more than sockets hold, into one that is not read at first.
        let (up, down) = (bytes(24 << 20, 1), bytes(9 << 20, 5));
        let mut sent = 0;
        let mut full = 0;
        while full < 200 {
            match now((&client).write(&up[sent..])) {
                Some(n) => (sent, full) = (sent + n.unwrap(), 0),
                None => full += 1,
            }
            s.turn();
        }
        assert!(sent < up.len(), "the reader's window is felt");
        assert!(!s.room.has_more(), "nobody spins for one who does not read");
        let ends = std::thread::spawn({
            let (server, up) = (server.try_clone().unwrap(), up.len());
            move || {
                server.set_nonblocking(false).unwrap();
                let mut all = vec![0; up];
                (&server).read_exact(&mut all).unwrap();
                all
            }
        });
        s.until("the rest does not go", || {
            while sent < up.len() {
                match now((&client).write(&up[sent..])) {
                    Some(n) => sent += n.unwrap(),
                    None => return None,
                }
            }
            Some(())
        });
        client.shutdown(Shutdown::Write).unwrap();
        s.until("it is not read", || ends.is_finished().then_some(()));
        assert!(ends.join().unwrap() == up);
        server.set_nonblocking(true).unwrap();
        assert_eq!(read_to_end(&mut s, &server).unwrap(), b"", "the client's end");
        // The other direction is open still.
        let writes = std::thread::spawn({
            let (server, down) = (server.try_clone().unwrap(), down.clone());
            move || {
                server.set_nonblocking(false).unwrap();
                (&server).write_all(&down).unwrap();
                server.shutdown(Shutdown::Write).unwrap();
            }
        });
        assert!(read_to_end(&mut s, &client).unwrap() == down);
        writes.join().unwrap();
        s.settles(0);
        let f = s.room.flows();
        assert_eq!((f.opened, f.broken, f.refused, f.half_open), (1, 0, 0, 0));
    }
}

/// It is closed by a reset.
fn breaks(s: TcpStream) {
    sock::reset_on_close(s.as_fd()).unwrap();
    drop(s);
}

#[test]
fn resets_go_through_and_refusals_are_resets() {
    let is_reset = |e: &io::Error| matches!(e.raw_os_error(), Some(libc::ECONNRESET | libc::EPIPE));
    // By either end, with and without its own end said before.
    for half in [false, true] {
        for by_server in [false, true] {
            let (mut s, client, server) = through("127.0.0.1:0");
            let (breaker, other) = if by_server { (server, client) } else { (client, server) };
            if half {
                breaker.shutdown(Shutdown::Write).unwrap();
                assert_eq!(read_to_end(&mut s, &other).unwrap(), b"");
                // It has something that was not read, or its end would be all that is seen.
                (&other).write_all(b"more").unwrap();
                s.idle();
            }
            breaks(breaker);
            let e = s.until("nothing is heard", || match now((&other).write(b"x")) {
                Some(Err(e)) => Some(e),
                _ => None,
            });
            assert!(is_reset(&e), "{e}");
            s.settles(0);
            assert_eq!(s.room.flows().broken, 1);
        }
    }
    // What was sent before it arrives.
    let (mut s, client, server) = through("127.0.0.1:0");
    (&client).write_all(b"last words").unwrap();
    s.idle();
    breaks(client);
    let mut room = [0; 20];
    s.settles(0);
    let read = (&server).read(&mut room);
    assert!(read.as_ref().is_ok_and(|n| &room[..*n] == b"last words") || is_reset(&read.unwrap_err()));
    // Nobody is there.
    let (inside, door) = listener("127.0.0.1:0");
    let (gone, to) = listener("127.0.0.1:0");
    drop(gone);
    let mut s = Scene::new(vec![(forward(1, Way::OutTcp, to), inside.into())], OUT);
    let client = connect(door);
    assert!(is_reset(&read_to_end(&mut s, &client).unwrap_err()));
    assert_eq!((s.room.flows().now, s.room.flows().refused, s.room.flows().half_open), (0, 1, 0));
}

#[test]
fn so_many_and_no_more_and_each_forward_leaves_others_some() {
    let ((a, a_door), (b, b_door), (host, to)) =
        (listener("127.0.0.1:0"), listener("127.0.0.1:0"), listener("127.0.0.1:0"));
    let list = vec![(forward(1, Way::OutTcp, to), a.into()), (forward(2, Way::OutTcp, to), b.into())];
    let mut s = Scene::new(list, 8);
    let mut flood: Vec<TcpStream> = (0..20).map(|_| connect(a_door)).collect();
    s.settles(6);
    s.idle();
    assert_eq!(s.room.flows().now, 6);
    let other: Vec<TcpStream> = (0..4).map(|_| connect(b_door)).collect();
    s.settles(8);
    s.idle();
    assert_eq!(s.room.flows().now, 8);
    // They are at the other side, and who waits comes when others have gone.
    let came: Vec<TcpStream> = (0..8).map(|_| accepted(&mut s, &host)).collect();
    drop(came);
    drop(flood.drain(..6));
    let held: Vec<TcpStream> = (0..3).map(|_| accepted(&mut s, &host)).collect();
    assert!(s.room.flows().now <= 8);
    drop((held, other, flood));
    let until = Instant::now() + PATIENCE;
    while s.room.flows().now > 0 {
        assert!(Instant::now() < until, "{:?}", s.room.flows());
        s.turn();
        // Whoever comes late is let go.
        drop(host.accept());
    }
    assert!(s.room.of.is_empty());
}

#[test]
fn only_to_the_loopback_and_only_where_it_is_meant() {
    let to = |text: &str| text.parse::<SocketAddr>().unwrap();
    for (at, out) in
        [("192.0.2.1:80", OUT), ("127.0.0.1:0", OUT), ("[2001:db8::1]:80", OUT), ("127.0.0.1:80", 0)]
    {
        let (inside, _) = listener("127.0.0.1:0");
        let made = Scene::tried(vec![(forward(1, Way::OutTcp, to(at)), inside.into())], out);
        assert!(made.is_err(), "{at} {out}");
    }
    let mut cx = context(&Plan { restrict: true, ..Plan::qemu() }).unwrap();
    cx.limits.out = OUT;
    let (inside, _) = listener("127.0.0.1:0");
    assert!(
        Passage::new(vec![(forward(1, Way::OutTcp, to("127.0.0.1:80")), inside.into())], &mut cx).is_err()
    );
}

#[test]
fn the_table_changes_and_connections_live_on() {
    let (mut s, client, server) = through("127.0.0.1:0");
    let ((b, door), (host, to)) = (listener("127.0.0.1:0"), listener("127.0.0.1:0"));
    assert!(s.room.has_forward(1) && !s.room.has_forward(2));
    let list = vec![(forward(2, Way::OutTcp, to), Some(OwnedFd::from(b)))];
    s.room.watch(&list, &mut s.cx).unwrap();
    s.room.set_forwards(list, &mut s.cx);
    assert!(!s.room.has_forward(1) && s.room.has_forward(2));
    (&client).write_all(b"still").unwrap();
    let mut room = [0; 9];
    let n = s.until("it is cut", || now((&server).read(&mut room))).unwrap();
    assert_eq!(&room[..n], b"still");
    let _other = connect(door);
    accepted(&mut s, &host);
    // What leads elsewhere changes nothing.
    let (c, _) = listener("127.0.0.1:0");
    let list = vec![
        (forward(2, Way::OutTcp, to), None),
        (forward(3, Way::OutTcp, "192.0.2.1:1".parse().unwrap()), Some(c.into())),
    ];
    assert!(s.room.watch(&list, &mut s.cx).is_err() && !s.room.has_forward(3));
}

fn datagrams(at: &str) -> (UdpSocket, SocketAddr) {
    let s = UdpSocket::bind(at).unwrap();
    s.set_nonblocking(true).unwrap();
    let at = s.local_addr().unwrap();
    (s, at)
}

#[test]
fn datagrams_and_their_answers_find_whose_they_are() {
    for at in ["127.0.0.1:0", "[::1]:0"] {
        let ((inside, door), (host, to)) = (datagrams(at), datagrams(at));
        let mut s = Scene::new(vec![(forward(1, Way::OutUdp, to), inside.into())], OUT);
        let clients = [datagrams(at).0, datagrams(at).0];
        let mut room = vec![0; 65_536];
        // Small, empty, and the largest.
        for len in [5, 0, 65_000] {
            let mut from = Vec::new();
            for (salt, c) in clients.iter().enumerate() {
                let sent = bytes(len, salt);
                c.send_to(&sent, door).unwrap();
                let (n, whose) = s.until("it does not come", || now(host.recv_from(&mut room))).unwrap();
                assert!(room[..n] == sent);
                from.push((whose, sent));
            }
            assert_ne!(from[0].0, from[1].0);
            for (whose, sent) in from.iter().rev() {
                host.send_to(sent, whose).unwrap();
            }
            for (salt, c) in clients.iter().enumerate() {
                let (n, by) = s.until("no answer", || now(c.recv_from(&mut room))).unwrap();
                assert!(room[..n] == bytes(len, salt) && by == door);
            }
        }
        assert_eq!(s.cx.stats.drops.iter().sum::<u64>(), 0);
    }
}

#[test]
fn flows_of_datagrams_are_bounded_and_nobody_there_is_no_harm() {
    let ((a, a_door), (b, b_door), (host, to)) =
        (datagrams("127.0.0.1:0"), datagrams("127.0.0.1:0"), datagrams("127.0.0.1:0"));
    let list = vec![(forward(1, Way::OutUdp, to), a.into()), (forward(2, Way::OutUdp, to), b.into())];
    // Four flows.
    let mut s = Scene::new(list, 16);
    let (other, _) = datagrams("127.0.0.1:0");
    let mut room = [0; 9];
    other.send_to(b"first", b_door).unwrap();
    let (_, whose) = s.until("it does not come", || now(host.recv_from(&mut room))).unwrap();
    for _ in 0..20 {
        let (c, _) = datagrams("127.0.0.1:0");
        c.send_to(b"flood", a_door).unwrap();
        s.until("a flood's does not come", || now(host.recv_from(&mut room))).unwrap();
    }
    assert_eq!(s.cx.stats.evicted, 18, "two of four");
    host.send_to(b"answer", whose).unwrap();
    let n = s.until("it was pushed out", || now(other.recv(&mut room))).unwrap();
    assert_eq!(&room[..n], b"answer");
    // The server goes and comes again.
    drop(host);
    for _ in 0..3 {
        other.send_to(b"x", b_door).unwrap();
        s.idle();
    }
    let host = UdpSocket::bind(to).unwrap();
    host.set_nonblocking(true).unwrap();
    let got = s.until("it is not heard again", || {
        other.send_to(b"there?", b_door).unwrap();
        now(host.recv(&mut room))
    });
    assert_eq!(got.unwrap(), 6);
    // A forward that goes takes its flows along.
    s.room.set_forwards(vec![(forward(1, Way::OutUdp, to), None)], &mut s.cx);
    assert!(s.room.has_forward(1) && !s.room.has_forward(2));
}

#[test]
fn a_range_leads_to_a_range() {
    let ((inside, door), (host, to)) = (listener("127.0.0.1:0"), listener("127.0.0.1:0"));
    // As if the ports before were ranged too.
    let range = Some(Range { first: door.port() - 3, sockets: 1 });
    let whole =
        Forward { guest: SocketAddr::new(to.ip(), to.port() - 3), range, ..forward(4, Way::OutTcp, to) };
    let all = sockets(&whole, &mut std::iter::once(OwnedFd::from(inside)));
    let mut s = Scene::new(all, OUT);
    let _client = connect(door);
    accepted(&mut s, &host);
}
