//! Connections that end: while nothing passes, in the middle of a frame, and under load.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use crate::support::{Dir, PATIENCE, Qemu, Reeve, SIZES, STOPPED, Vm, exchange, fill, frame, until};

/// One end of either kind.
trait Conn: Read + Write + Send {
    /// How long a read or a write may take.
    fn patience(&self, within: Duration);
}

impl Conn for UnixStream {
    fn patience(&self, within: Duration) {
        self.set_read_timeout(Some(within)).unwrap();
        self.set_write_timeout(Some(within)).unwrap();
    }
}

impl Conn for TcpStream {
    fn patience(&self, within: Duration) {
        self.set_read_timeout(Some(within)).unwrap();
        self.set_write_timeout(Some(within)).unwrap();
    }
}

/// Nonblocking: whoever waits for a connection has a deadline.
enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    fn accept(&self) -> Box<dyn Conn> {
        let conn = until("netreeve's call", || -> Option<Box<dyn Conn>> {
            match self {
                Self::Unix(l) => Some(Box::new(l.accept().ok()?.0)),
                Self::Tcp(l) => Some(Box::new(l.accept().ok()?.0)),
            }
        });
        conn.patience(PATIENCE);
        conn
    }
}

fn wire(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes(), frame].concat()
}

/// The next frame's number; it must be whole and as it was sent.
fn next(conn: &mut dyn Conn) -> u32 {
    let mut len = [0; 4];
    conn.read_exact(&mut len).unwrap();
    let len = u32::from_be_bytes(len) as usize;
    assert!((60..=1514).contains(&len), "not the beginning of a frame: {len}");
    let mut f = vec![0; len];
    conn.read_exact(&mut f).unwrap();
    let n = u32::from_be_bytes([f[0], f[1], f[2], f[3]]);
    assert!(f == frame(len, n), "frame {n} is torn");
    n
}

/// A reader that stops stops the writer, either way, and nothing is lost.
fn blocked_readers(vm: &mut Vm, mut conn: Box<dyn Conn>) {
    conn.write_all(&wire(&frame(60, 1))).unwrap();
    assert_eq!(vm.recv(), frame(60, 1));
    vm.patience(STOPPED);
    let (sent, rest) = fill(&mut vm.0);
    vm.patience(PATIENCE);
    std::thread::scope(|s| {
        let mut writer = vm.0.try_clone().unwrap();
        s.spawn(move || writer.write_all(&rest).unwrap());
        for n in 0..=sent {
            assert_eq!(next(conn.as_mut()), n, "of {sent}");
        }
    });
    conn.patience(STOPPED);
    let (sent, rest) = fill(conn.as_mut());
    conn.patience(PATIENCE);
    std::thread::scope(|s| {
        s.spawn(move || conn.write_all(&rest).unwrap());
        for n in 0..=sent {
            assert!(vm.recv() == frame(1400, n), "{n} of {sent}");
        }
    });
}

fn all_of_them(dir: &Dir, addr: &str, listener: &Listener) {
    let reeve = Reeve::run(dir, &format!("stream,id=n0,reconnect-ms=20,{addr}"), &[]);
    let mut vm = reeve.vm();
    blocked_readers(&mut vm, listener.accept());
    // While nothing passes.
    for n in 0..3 {
        let mut conn = listener.accept();
        conn.write_all(&wire(&frame(100, n))).unwrap();
        assert_eq!(vm.recv(), frame(100, n));
    }
    // In the middle of what we send: the rest of it must not reach the next.
    for cut in [1, 4, 5, 60] {
        let mut conn = listener.accept();
        conn.write_all(&wire(&frame(100, cut))).unwrap();
        assert_eq!(vm.recv(), frame(100, cut));
        conn.write_all(&wire(&frame(200, 9))[..cut as usize]).unwrap();
    }
    // Under load, cut at odd places: every connection begins with a whole frame, and frames are in order.
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        let mut writer = vm.0.try_clone().unwrap();
        let stop = &stop;
        s.spawn(move || {
            let mut n = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                n += 1;
                if writer.write_all(&wire(&frame(60 + n as usize * 31 % 1455, n))).is_err() {
                    break;
                }
            }
        });
        let mut last = 0;
        for round in 0..20_usize {
            let mut conn = listener.accept();
            for _ in 0..50 {
                let n = next(conn.as_mut());
                assert!(n > last, "{n} after {last}");
                last = n;
            }
            conn.read_exact(&mut vec![0; 1 + round * 997]).unwrap();
            if round % 2 == 0 {
                // Let it fill up: what is cut then is what we send.
                std::thread::sleep(Duration::from_millis(30));
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        // Takes what is left, so that the writer ends.
        let mut conn = listener.accept();
        let mut sink = [0; 65536];
        std::thread::scope(|r| {
            r.spawn(move || while conn.read(&mut sink).is_ok_and(|n| n > 0) {});
            vm.0.shutdown(std::net::Shutdown::Both).unwrap();
            let said = reeve.end();
            assert!(said.contains("\"reconnects\":28"), "{said}");
        });
    });
}

#[test]
fn a_unix_socket() {
    let dir = Dir::new();
    let listener = UnixListener::bind(dir.at("s")).unwrap();
    listener.set_nonblocking(true).unwrap();
    let addr = format!("addr.type=unix,addr.path={}", dir.at("s"));
    all_of_them(&dir, &addr, &Listener::Unix(listener));
}

#[test]
fn tcp() {
    let dir = Dir::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let addr = format!("addr.type=inet,addr.host=127.0.0.1,addr.port={port}");
    all_of_them(&dir, &addr, &Listener::Tcp(listener));
}

/// QEMU is killed while frames pass, and comes again. (As client: as server, QEMU 10.0.2 now and then dies of a null
/// pointer when it is dialled again and again.)
#[test]
fn qemu_comes_and_goes() {
    let dir = Dir::new();
    let addr = format!("addr.type=unix,addr.path={}", dir.at("s"));
    let reeve = Reeve::run(&dir, &format!("stream,id=n0,server=on,{addr}"), &[]);
    let mut vm = reeve.vm();
    for _ in 0..5 {
        let qemu = Qemu::run(&dir, &format!("stream,{addr}"));
        exchange(&qemu, &mut vm, &SIZES);
        // Under load at its end: nobody reads.
        for n in 0..200 {
            vm.send(&frame(1514, n));
        }
        drop(qemu);
        vm.drain(Duration::from_millis(100));
    }
    reeve.end();
}
