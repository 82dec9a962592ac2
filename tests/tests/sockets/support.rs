//! A directory, a `netreeve` between a netdev and a stream, and a QEMU that carries frames.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use netreeve_tests::bins;
use netreeve_tests::guest::vmms::Vmm;
use netreeve_tests::proc::Proc;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Who takes nothing for so long has stopped.
pub(crate) const STOPPED: Duration = Duration::from_millis(500);
/// The largest frame of QEMU's.
pub(crate) const MOST: usize = 69632;
pub(crate) const SIZES: [usize; 6] = [1, 10, 60, 1514, 65550, MOST];

/// A directory of a test's own.
pub(crate) struct Dir(PathBuf);

impl Dir {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("nt-sock-{}-{n}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    pub(crate) fn at(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A frame of `len` bytes that is like no other, torn or shifted ones included.
pub(crate) fn frame(len: usize, n: u32) -> Vec<u8> {
    let mut f: Vec<u8> = (0..len).map(|i| (i * 7 + i / 251 + n as usize) as u8).collect();
    for (to, from) in f.iter_mut().zip(n.to_be_bytes()) {
        *to = from;
    }
    f
}

/// What is sent again and again until it arrives. Copies may come late, so whoever reads frames passes over them.
pub(crate) fn greeting() -> Vec<u8> {
    frame(60, 0xffff_ffff)
}

/// A header may stand before it.
fn greets(frame: &[u8]) -> bool {
    frame.ends_with(&greeting())
}

pub(crate) fn until<T>(what: &str, mut pick: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = pick() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The VM's end: a stream as QEMU frames it.
pub(crate) struct Vm(pub(crate) UnixStream);

impl Vm {
    /// How long a write may take.
    pub(crate) fn patience(&self, within: Duration) {
        self.0.set_write_timeout(Some(within)).unwrap();
    }

    fn new(s: UnixStream) -> Self {
        s.set_read_timeout(Some(PATIENCE)).unwrap();
        s.set_write_timeout(Some(PATIENCE)).unwrap();
        Self(s)
    }

    pub(crate) fn at(path: &str) -> Self {
        Self::new(UnixStream::connect(path).unwrap())
    }

    pub(crate) fn send(&mut self, frame: &[u8]) {
        self.0.write_all(&[&(frame.len() as u32).to_be_bytes(), frame].concat()).unwrap();
    }

    /// The next frame if it begins within this time. What has begun comes to its end, late as that may be.
    fn begun(&mut self, within: Duration) -> io::Result<Vec<u8>> {
        let mut len = [0; 4];
        self.0.set_read_timeout(Some(within)).unwrap();
        let begun = self.0.read_exact(&mut len[..1]);
        self.0.set_read_timeout(Some(PATIENCE)).unwrap();
        begun?;
        self.0.read_exact(&mut len[1..]).unwrap();
        let len = u32::from_be_bytes(len) as usize;
        assert!((1..=MOST).contains(&len), "{len}");
        let mut frame = vec![0; len];
        self.0.read_exact(&mut frame).unwrap();
        Ok(frame)
    }

    /// The next frame, greetings aside.
    pub(crate) fn recv(&mut self) -> Vec<u8> {
        loop {
            let frame = self.begun(PATIENCE).unwrap();
            if !greets(&frame) {
                return frame;
            }
        }
    }

    /// Frames as far as they come within `quiet` of each other, greetings aside.
    pub(crate) fn drain(&mut self, quiet: Duration) -> Vec<Vec<u8>> {
        let mut got: Vec<_> = std::iter::from_fn(|| self.begun(quiet).ok()).collect();
        got.retain(|f| !greets(f));
        got
    }

    /// Whether a greeting is among the frames that come within `quiet` of each other, which are taken away.
    pub(crate) fn greeted(&mut self, quiet: Duration) -> Option<()> {
        let got: Vec<_> = std::iter::from_fn(|| self.begun(quiet).ok()).collect();
        got.iter().any(|f| greets(f)).then_some(())
    }
}

/// `netreeve` between `netdev` and a stream for the test.
pub(crate) struct Reeve {
    pub(crate) proc: Proc,
    vm: String,
}

impl Reeve {
    pub(crate) fn run(dir: &Dir, netdev: &str, inherit: &[&OwnedFd]) -> Self {
        Self::start(dir, netdev, inherit).expect("its peer is there")
    }

    /// None: nobody listens where it dials.
    pub(crate) fn start(dir: &Dir, netdev: &str, inherit: &[&OwnedFd]) -> Option<Self> {
        let vm = dir.at(&format!("vm{}", netdev.len()));
        let mut command = Command::new(bins::ours("netreeve").unwrap());
        command.args(["run", "--json", "--stats", "--sandbox", "seccomp", "--netdev", netdev, "--device"]);
        command.arg(format!("stream,netdev=n0,id=vm,server=on,addr.type=unix,addr.path={vm}"));
        for fd in inherit {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        }
        let proc = Proc::spawn("netreeve", command).unwrap();
        match proc.wait_for("\"ready\"", PATIENCE) {
            Ok(_) => Some(Self { proc, vm }),
            Err(_) if proc.text().contains("connecting to") => None,
            Err(e) => panic!("{e}"),
        }
    }

    pub(crate) fn vm(&self) -> Vm {
        Vm::new(UnixStream::connect(&self.vm).unwrap())
    }

    /// Ends it in order and gives what it said.
    pub(crate) fn end(mut self) -> String {
        let end = self.proc.terminate(PATIENCE).unwrap();
        assert_eq!(end.code, 0, "{}", end.text);
        end.text
    }
}

/// A descriptor's number as it stands in options.
pub(crate) fn number(fd: &OwnedFd) -> i32 {
    fd.as_raw_fd()
}

/// A QEMU without a machine, whose `netdev` the test talks through. The test's own end is a stream: QEMU's `dgram` lets
/// frames overtake others when its peer is slow.
pub(crate) struct Qemu {
    proc: Proc,
    end: Mutex<Vm>,
    reader: Mutex<Vm>,
}

impl Qemu {
    pub(crate) fn run(dir: &Dir, netdev: &str) -> Self {
        Self::with(dir, netdev, &[])
    }

    /// With more arguments.
    pub(crate) fn with(dir: &Dir, netdev: &str, more: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let ours = dir.at(&format!("qemu{n}"));
        let listener = UnixListener::bind(&ours).unwrap();
        let mut command = Command::new(Vmm::usual().unwrap().path);
        command.args(["-M", "none", "-nodefaults", "-display", "none", "-netdev"]);
        command.arg(format!("stream,id=i,addr.type=unix,addr.path={ours}"));
        command.args(["-netdev", "hubport,id=h0,hubid=0,netdev=i", "-netdev", &format!("{netdev},id=p")]);
        command.args(["-netdev", "hubport,id=h1,hubid=0,netdev=p"]).args(more);
        let mut proc = Proc::spawn("qemu", command).unwrap();
        let end = Vm::new(dialled(&listener, &mut proc));
        let reader = Mutex::new(Vm(end.0.try_clone().unwrap()));
        Self { proc, end: Mutex::new(end), reader }
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        let wire = [&(frame.len() as u32).to_be_bytes(), frame].concat();
        if let Err(e) = self.end.lock().unwrap().0.write_all(&wire) {
            panic!("{e}; QEMU says: {}", self.proc.text());
        }
    }

    pub(crate) fn recv(&self) -> Vec<u8> {
        self.reader.lock().unwrap().recv()
    }

    /// See [`Vm::greeted`].
    pub(crate) fn greeted(&self, quiet: Duration) -> Option<()> {
        self.reader.lock().unwrap().greeted(quiet)
    }

    /// The connection that its netdev makes.
    pub(crate) fn dialled(&mut self, listener: &UnixListener) -> UnixStream {
        dialled(listener, &mut self.proc)
    }

    /// Sends until something arrives at the VM, both ways; what was sent before is taken away.
    pub(crate) fn settle(&self, vm: &mut Vm) {
        let quiet = Duration::from_millis(50);
        until("frames to the VM", || {
            self.send(&greeting());
            vm.greeted(quiet)
        });
        let mut end = self.reader.lock().unwrap();
        until("frames from the VM", || {
            vm.send(&greeting());
            end.greeted(quiet)
        });
        vm.drain(quiet);
    }
}

/// The connection that a QEMU which was just started makes.
pub(crate) fn dialled(listener: &UnixListener, qemu: &mut Proc) -> UnixStream {
    listener.set_nonblocking(true).unwrap();
    let (s, _) = until("QEMU", || {
        assert!(qemu.alive(), "{}", qemu.text());
        listener.accept().ok()
    });
    s.set_nonblocking(false).unwrap();
    s
}

/// Frames of all sizes both ways, then many of them in both directions at once.
pub(crate) fn exchange(qemu: &Qemu, vm: &mut Vm, sizes: &[usize]) {
    qemu.settle(vm);
    for (n, len) in (0..).zip(sizes) {
        let there = frame(*len, n);
        qemu.send(&there);
        assert!(vm.recv() == there, "{len} bytes to the VM");
        let back = frame(*len, n + 100);
        vm.send(&back);
        assert!(qemu.recv() == back, "{len} bytes from the VM");
    }
    // Not more at a time than lies in sockets: see `fill`.
    let lens = [60, 1514, 342, 64, 1000];
    let frames: Vec<Vec<u8>> = (0..).zip(lens.iter().cycle()).take(600).map(|(n, l)| frame(*l, n)).collect();
    for some in frames.chunks(20) {
        some.iter().for_each(|f| qemu.send(f));
        some.iter().for_each(|f| assert!(vm.recv() == *f, "to the VM, in order"));
        some.iter().for_each(|f| vm.send(f));
        some.iter().for_each(|f| assert!(qemu.recv() == *f, "from the VM, in order"));
    }
}

/// Writes until whoever carries the frames takes no more. The number of frames that went whole, and the rest of the one
/// that did not.
///
/// Not for a QEMU with a hub: when that has room again, it lets new frames overtake those that it had to queue, even one
/// that is half sent, which it then finishes with the other's bytes (10.0.2).
pub(crate) fn fill(to: &mut dyn Write) -> (u32, Vec<u8>) {
    let mut sent = 0;
    loop {
        let wire = [&1400_u32.to_be_bytes()[..], &frame(1400, sent)].concat();
        let mut at = 0;
        while at < wire.len()
            && let Ok(n) = to.write(&wire[at..])
        {
            at += n;
        }
        if at < wire.len() {
            return (sent, wire[at..].to_vec());
        }
        sent += 1;
        assert!(sent < 20_000, "nobody stops the writer");
    }
}
