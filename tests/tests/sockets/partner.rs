//! QEMU as the other end of a stream that is full, and of one that is cut: in both roles, over UNIX sockets and TCP.
//!
//! No hub of QEMU's is in the way, for in it frames overtake others when a member is full (see [`fill`]): one of QEMU's
//! redirectors puts frames behind its netdev, and another takes them from it. What the netdev cannot write waits in a queue
//! of QEMU's, 10,000 frames long, and what comes then would be dropped in silence: no test here puts in as many. What
//! the second redirector cannot write stops QEMU, as a guest that takes nothing stops its netdev.
//!
//! That we go away while QEMU's own writing is stuck is no test here: it then never writes again (10.0.2, 11.1.3).

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::ops::Range;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use netreeve_tests::guest::vmms::Vmm;
use netreeve_tests::inspect;
use netreeve_tests::proc::Proc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{Dir, MOST, PATIENCE, Reeve, Vm, dialled, fill, frame, until};

/// Who takes nothing for so long has stopped. If he has not, less is proven.
const STILL: Duration = Duration::from_millis(200);
/// Frames that are put in at once: three times the bytes that lie in sockets and in ours when nobody reads.
const MANY: u32 = 600;
/// The first number of each QEMU's frames: its own number times this.
const EACH: u32 = 1_000_000;
/// Numbers from here on are greetings: this and a QEMU's own number.
const HELLO: u32 = 0xffff_0000;

/// The length of frame number `n`.
fn len(n: u32) -> usize {
    [60, 1514, MOST, 342, 65550, 9000][n as usize % 6]
}

/// Frames but for their numbers, for these tests see many: the number's last byte says which.
fn pattern(n: u32) -> &'static [u8] {
    static ALL: [OnceLock<Vec<u8>>; 256] = [const { OnceLock::new() }; 256];
    let last = n as u8;
    ALL[usize::from(last)].get_or_init(|| frame(MOST, last.into()))
}

fn numbered(n: u32) -> Vec<u8> {
    let mut f = pattern(n)[..if n >= HELLO { 60 } else { len(n) }].to_vec();
    f[..4].copy_from_slice(&n.to_be_bytes());
    f
}

fn wire(f: &[u8]) -> Vec<u8> {
    [&(f.len() as u32).to_be_bytes(), f].concat()
}

/// Frames as they come in a stream, read by a thread of its own, one ahead of who takes them: a stream of which nobody
/// takes is not read. Every frame has to be whole, and as it was sent.
struct Frames(Receiver<u32>);

impl Frames {
    fn of(stream: &UnixStream) -> Self {
        let mut from = stream.try_clone().unwrap();
        from.set_read_timeout(None).unwrap();
        let (to, frames) = sync_channel(0);
        std::thread::spawn(move || {
            let mut len = [0; 4];
            while from.read_exact(&mut len).is_ok() {
                let len = u32::from_be_bytes(len) as usize;
                assert!((60..=MOST).contains(&len), "not the beginning of a frame: {len}");
                let mut f = vec![0; len];
                if from.read_exact(&mut f).is_err() {
                    break;
                }
                let n = u32::from_be_bytes([f[0], f[1], f[2], f[3]]);
                assert!(f[4..] == pattern(n)[4..len], "frame {n} of {len} bytes is torn");
                if to.send(n).is_err() {
                    break;
                }
            }
        });
        Self(frames)
    }

    /// The next frame's number, greetings aside.
    fn next(&self) -> u32 {
        loop {
            match self.0.recv_timeout(PATIENCE).expect("a frame") {
                n if n >= HELLO => {}
                n => return n,
            }
        }
    }

    /// Those that come at once.
    fn some(&self) -> Vec<u32> {
        let mut some: Vec<u32> =
            std::iter::from_fn(|| self.0.recv_timeout(Duration::from_millis(1)).ok()).collect();
        some.retain(|n| *n < HELLO);
        some
    }

    /// Has `greet` greet until the greeting of this QEMU comes. What came before it.
    fn until_hello(&self, qemu: u32, mut greet: impl FnMut(&[u8])) -> Vec<u32> {
        let mut before = Vec::new();
        until("a greeting", || {
            greet(&numbered(HELLO + qemu));
            loop {
                match self.0.recv_timeout(Duration::from_millis(20)) {
                    Ok(n) if n == HELLO + qemu => return Some(()),
                    Ok(n) if n >= HELLO => {}
                    Ok(n) => before.push(n),
                    Err(RecvTimeoutError::Timeout) => return None,
                    Err(e) => panic!("{e}"),
                }
            }
        });
        before
    }
}

/// A QEMU without a machine and without a hub. Killed when dropped.
struct Qemu {
    proc: Proc,
    into: UnixStream,
    out: Frames,
}

impl Qemu {
    fn run(dir: &Dir, netdev: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let paths = ["into", "out"].map(|end| dir.at(&format!("{end}{number}")));
        let listeners = paths.each_ref().map(|p| UnixListener::bind(p).unwrap());
        let mut command = Command::new(Vmm::usual().unwrap().path);
        command.args(["-M", "none", "-nodefaults", "-display", "none", "-netdev", &format!("{netdev},id=p")]);
        // A netdev of which nobody is the peer is passed over by filters; this one is alone in its hub.
        command.args(["-netdev", "hubport,id=h,hubid=0,netdev=p"]);
        for (id, path) in ["into", "out"].iter().zip(&paths) {
            command.args(["-chardev", &format!("socket,id={id},path={path}")]);
        }
        command.args(["-object", "filter-redirector,id=f,netdev=p,queue=rx,indev=into"]);
        command.args(["-object", "filter-redirector,id=g,netdev=p,queue=tx,outdev=out"]);
        let mut proc = Proc::spawn("qemu", command).unwrap();
        let [into, out] = listeners.map(|l| dialled(&l, &mut proc));
        let out = Frames::of(&out);
        Self { proc, into, out }
    }

    fn send(&self, f: &[u8]) {
        if let Err(e) = (&self.into).write_all(&wire(f)) {
            panic!("{e}; QEMU says: {}", self.proc.text());
        }
    }

    /// Puts in as many of the frames as it takes, and the rest of them later, unless it ends. As server it stands still
    /// itself while its netdev cannot write: its socket waits.
    fn put(&self, frames: Range<u32>) {
        let (mut into, put) = (self.into.try_clone().unwrap(), Arc::new(AtomicU32::new(0)));
        let (counts, all) = (Arc::clone(&put), frames.len() as u32);
        std::thread::spawn(move || {
            frames.map_while(|n| into.write_all(&wire(&numbered(n))).ok()).for_each(|()| {
                counts.fetch_add(1, Ordering::SeqCst);
            });
        });
        let now = || put.load(Ordering::SeqCst);
        until("QEMU's standing still", || {
            let before = now();
            std::thread::sleep(STILL);
            (before == all || (before > 0 && before == now())).then_some(())
        });
    }

    fn signal(&self, s: Signal) {
        self.proc.signal(s).unwrap();
    }
}

/// A TCP port that nobody has, and that no connection is given.
fn port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = 12_000 + std::process::id() % 8000;
    until("a port", || {
        let port = (first + NEXT.fetch_add(1, Ordering::Relaxed)) as u16;
        TcpListener::bind(("127.0.0.1", port)).ok().map(|_| port)
    })
}

/// Both ends of a stream, and the VM's.
struct Stage {
    dir: Dir,
    theirs: String,
    reeve: Reeve,
    qemu: Qemu,
    vm: Vm,
    from_qemu: Frames,
    /// Frames sent by the VM.
    sent: u32,
    /// QEMUs so far, this one not counted.
    qemus: u32,
}

impl Stage {
    fn set(tcp: bool, we_listen: bool) -> Self {
        let dir = Dir::new();
        let addr = if tcp {
            format!("addr.type=inet,addr.host=127.0.0.1,addr.port={}", port())
        } else {
            format!("addr.type=unix,addr.path={}", dir.at("s"))
        };
        let (listens, dials) = (format!("stream,server=on,{addr}"), format!("stream,reconnect-ms=20,{addr}"));
        let (ours, theirs) = if we_listen { (listens, dials) } else { (dials, listens) };
        let ours = format!("{ours},id=n0");
        let (reeve, qemu) = if we_listen {
            let reeve = Reeve::run(&dir, &ours, &[]);
            (reeve, Qemu::run(&dir, &theirs))
        } else {
            let qemu = Qemu::run(&dir, &theirs);
            (until("QEMU to listen", || Reeve::start(&dir, &ours, &[])), qemu)
        };
        let vm = reeve.vm();
        let from_qemu = Frames::of(&vm.0);
        let mut stage = Self { dir, theirs, reeve, qemu, vm, from_qemu, sent: 0, qemus: 0 };
        assert_eq!(stage.meet(), (vec![], vec![]), "nothing but greetings");
        stage
    }

    fn send(&mut self, f: &[u8]) {
        self.vm.send(f);
        self.sent += 1;
    }

    /// Greets each from the other. What came before that: at the VM, and at QEMU. QEMU first: as server it dies of a null
    /// pointer if it is to write before it has been dialled (10.0.2).
    fn meet(&mut self) -> (Vec<u32>, Vec<u32>) {
        let mut at_vm = Vec::new();
        let at_qemu = self.qemu.out.until_hello(self.qemus, |hello| {
            at_vm.extend(self.from_qemu.some());
            self.vm.send(hello);
            self.sent += 1;
        });
        at_vm.extend(self.from_qemu.until_hello(self.qemus, |hello| self.qemu.send(hello)));
        (at_vm, at_qemu)
    }

    /// Some frames each way, all of them and in order.
    fn exchange(&mut self) {
        let first = self.qemus * EACH + EACH / 2;
        for n in first..first + 24 {
            self.qemu.send(&numbered(n));
            assert_eq!(self.from_qemu.next(), n);
            self.send(&numbered(n));
            assert_eq!(self.qemu.out.next(), n);
        }
    }

    /// The VM writes until it is stopped. The number of its last frame, of which it still has the rest.
    fn fill(&mut self) -> (u32, Vec<u8>) {
        self.vm.patience(STILL);
        let (last, rest) = fill(&mut self.vm.0);
        self.vm.patience(PATIENCE);
        self.sent += last + 1;
        (last, rest)
    }

    /// Another QEMU in the place of one that is killed.
    fn replace(&mut self) {
        self.qemu.signal(Signal::SIGKILL);
        self.qemu.proc.wait(PATIENCE).unwrap();
        self.qemus += 1;
        self.qemu = Qemu::run(&self.dir, &self.theirs);
    }

    /// Ends it, and compares what was counted with what was seen.
    fn end(self, reconnects: u64) {
        let said = self.reeve.end();
        let line = said.lines().rfind(|l| l.contains("\"event\":\"stats\"")).expect("counters");
        let stats: Value = serde_json::from_str(line).unwrap();
        let [net, vm] = [0, 1].map(|i| &stats["ports"][i]);
        assert_eq!((&net["id"], &vm["id"]), (&"n0".into(), &"vm".into()), "{line}");
        let count = |port: &Value, name: &str| port[name].as_u64().expect(name);
        let drops = |port: &Value| -> BTreeMap<String, u64> {
            serde_json::from_value(port["drops"].clone()).unwrap()
        };
        // One more if it is dialled while it dies.
        assert!(count(net, "reconnects") >= reconnects, "{line}");
        assert_eq!(count(vm, "rx_frames"), u64::from(self.sent), "what the VM sent: {line}");
        // Each of them went to a QEMU, or was lost because none was there.
        let lost = [net, vm].map(drops);
        assert!(lost.iter().all(|d| d.keys().all(|why| why == "peer_down")), "{line}");
        let lost: u64 = lost.iter().flat_map(|d| d.values()).sum();
        assert_eq!(count(net, "tx_frames") + lost, u64::from(self.sent), "{line}");
        assert_eq!(count(net, "rx_frames"), count(vm, "tx_frames"), "all that came whole went on: {line}");
    }
}

/// Over both kinds of socket, in both roles.
#[allow(clippy::print_stderr, reason = "for whoever reads the log of a test that failed")]
fn everywhere(act: impl Fn(Stage)) {
    for tcp in [false, true] {
        for we_listen in [false, true] {
            eprintln!("-- tcp {tcp}, we listen {we_listen}");
            act(Stage::set(tcp, we_listen));
        }
    }
}

#[test]
fn readers_that_stop_stop_the_writer_and_nothing_is_lost() {
    everywhere(|mut s| {
        // Nobody reads at the VM: QEMU keeps what we do not take, and goes on with it.
        s.qemu.put(0..MANY);
        (0..MANY).for_each(|n| assert_eq!(s.from_qemu.next(), n));
        // QEMU does not read: its guest takes nothing; then QEMU itself stands still.
        for stands_still in [false, true] {
            if stands_still {
                s.qemu.signal(Signal::SIGSTOP);
            }
            let (last, rest) = s.fill();
            if stands_still {
                s.qemu.signal(Signal::SIGCONT);
            }
            std::thread::scope(|t| {
                let mut vm = s.vm.0.try_clone().unwrap();
                t.spawn(move || vm.write_all(&rest).unwrap());
                (0..=last).for_each(|n| assert_eq!(s.qemu.out.next(), n, "of {last}"));
            });
        }
        s.exchange();
        s.end(0);
    });
}

#[test]
fn a_qemu_that_is_killed_amid_frames_of_both_leaves_nothing_to_the_next() {
    everywhere(|mut s| {
        s.qemu.send(&numbered(0));
        assert_eq!(s.from_qemu.next(), 0);
        // It is full of what we do not take, and we of what it does not: each has a frame that is half written.
        s.qemu.put(1..MANY);
        s.qemu.signal(Signal::SIGSTOP);
        let (last, rest) = s.fill();
        s.replace();
        let (mut at_vm, mut at_qemu) = (Vec::new(), Vec::new());
        let mut vm = s.vm.0.try_clone().unwrap();
        let writer = std::thread::spawn(move || vm.write_all(&rest).unwrap());
        while !writer.is_finished() {
            at_vm.extend(s.from_qemu.some());
            at_qemu.extend(s.qemu.out.some());
        }
        writer.join().unwrap();
        let more = s.meet();
        at_vm.extend(more.0);
        at_qemu.extend(more.1);
        // What it wrote whole came, without a gap; and that was not all: it was stopped.
        let came = at_vm.len() as u32;
        assert!(at_vm.into_iter().eq(1..=came) && came < MANY - 1, "{came}");
        // What the new one did not get was for the one before; then there is no gap.
        let first = at_qemu.first().copied().unwrap_or(last + 1);
        assert!(at_qemu.iter().copied().eq(first..=last), "{at_qemu:?} of {last}");
        s.exchange();
        s.end(1);
    });
}

/// What the VM got of each QEMU's, as the one who reads there tells.
#[derive(Default)]
struct Seen {
    /// The number of the last frame.
    last: AtomicU32,
    /// Frames of the same QEMU up to it.
    frames: AtomicU32,
}

impl Seen {
    /// Reads until the stream ends: each QEMU's frames from its first on and without a gap, after those of the one before.
    fn read(&self, from: &Frames) {
        let mut last = 0;
        for n in from.0.iter().filter(|n| *n < HELLO) {
            let next = n / EACH > last / EACH && n % EACH == 1;
            assert!(next || n == last + 1, "{n} after {last}");
            if next {
                self.frames.store(0, Ordering::SeqCst);
            }
            last = n;
            self.last.store(n, Ordering::SeqCst);
            self.frames.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Frames of this QEMU's.
    fn of(&self, qemu: u32) -> u32 {
        let is_its = self.last.load(Ordering::SeqCst) / EACH == qemu;
        if is_its { self.frames.load(Ordering::SeqCst) } else { 0 }
    }

    /// Puts frames into this QEMU until it is gone or that is enough. The last one's number.
    fn load(&self, qemu: u32, mut into: UnixStream, enough: &AtomicBool) -> u32 {
        // It may stand still for good when a test has failed.
        into.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut n = qemu * EACH;
        while !enough.load(Ordering::SeqCst) {
            let seen = self.last.load(Ordering::SeqCst).max(qemu * EACH);
            if n.saturating_sub(seen) >= AHEAD {
                std::thread::sleep(Duration::from_millis(1));
            } else if into.write_all(&wire(&numbered(n + 1))).is_ok() {
                n += 1;
            } else {
                break;
            }
        }
        n
    }
}

/// Ends what runs beside a test, however that ends.
struct End<'a>(&'a AtomicBool, UnixStream);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
        // It may be over.
        let _ = self.1.shutdown(Shutdown::Both);
    }
}

/// Frames that QEMU may hold for us.
const AHEAD: u32 = 1000;
/// Frames each way between one death and the next.
const BETWEEN: u32 = 100;
/// QEMUs.
const ROUNDS: u32 = 4;

#[test]
fn a_qemu_that_is_killed_under_load_again_and_again() {
    everywhere(|mut s| {
        let (enough, seen) = (AtomicBool::new(false), Seen::default());
        let from = std::mem::replace(&mut s.from_qemu, Frames(sync_channel(0).1));
        std::thread::scope(|t| {
            let (enough, seen) = (&enough, &seen);
            let mut vm = s.vm.0.try_clone().unwrap();
            let writer = t.spawn(move || {
                let mut n = 0;
                while !enough.load(Ordering::SeqCst) {
                    if vm.write_all(&wire(&numbered(n + 1))).is_err() {
                        break;
                    }
                    n += 1;
                }
                n
            });
            let reader = t.spawn(move || seen.read(&from));
            let _end = End(enough, s.vm.0.try_clone().unwrap());
            let (mut loader, mut last) = (None, 0);
            for round in 1..=ROUNDS {
                if round > 1 {
                    s.replace();
                }
                last = s.qemu.out.next();
                // It has been dialled.
                let into = s.qemu.into.try_clone().unwrap();
                loader = Some(t.spawn(move || seen.load(round, into, enough)));
                let (mut took, end) = (1, Instant::now() + PATIENCE);
                while took < BETWEEN || seen.of(round) < BETWEEN {
                    assert!(!reader.is_finished() && Instant::now() < end, "the VM got {}", seen.of(round));
                    assert_eq!(s.qemu.out.next(), last + 1);
                    (last, took) = (last + 1, took + 1);
                }
            }
            // Nothing is lost after the last death.
            enough.store(true, Ordering::SeqCst);
            let (loader, mut rest) = (loader.unwrap(), Vec::new());
            until("both writers' end", || {
                rest.extend(s.qemu.out.some());
                (writer.is_finished() && loader.is_finished()).then_some(())
            });
            let (sent, put) = (writer.join().unwrap(), loader.join().unwrap());
            s.sent += sent;
            until("the VM's last frame", || {
                rest.extend(s.qemu.out.some());
                (last + rest.len() as u32 >= sent).then_some(())
            });
            assert!(rest.into_iter().eq(last + 1..=sent));
            until("QEMU's last frame", || (seen.last.load(Ordering::SeqCst) == put).then_some(()));
        });
        s.end((ROUNDS - 1).into());
    });
}

/// QEMU dials: one that is dialled again and again now and then dies of a null pointer (10.0.2).
#[test]
fn a_dataplane_that_dies_amid_a_frame_leaves_qemu_nothing_of_it() {
    for tcp in [false, true] {
        let mut s = Stage::set(tcp, true);
        s.qemu.signal(Signal::SIGSTOP);
        let (last, _) = s.fill();
        let child = inspect::descendant_named(s.reeve.proc.pid(), "netreeve-dataplane", PATIENCE).unwrap();
        kill(Pid::from_raw(child), Signal::SIGKILL).unwrap();
        s.reeve.proc.wait_for("is back after", PATIENCE).unwrap();
        s.qemu.signal(Signal::SIGCONT);
        s.vm = s.reeve.vm();
        s.from_qemu = Frames::of(&s.vm.0);
        // The greetings are others.
        s.qemus += 1;
        let (at_vm, at_qemu) = s.meet();
        assert!(at_vm.is_empty(), "{at_vm:?}");
        let came = at_qemu.len() as u32;
        assert!(at_qemu.into_iter().eq(0..came) && came <= last, "{came} of {last}");
        s.exchange();
        s.reeve.end();
    }
}
