//! A place for one test: network and mount namespaces of this thread, a policy, copies of the program, a service.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use caps::CapSet;
use netreeve_shared::client::{AskError, Helper};
use netreeve_shared::request::{BridgeRequest, Request, Steer, TapRequest, XskRequest};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Users and a group of the place.
pub(crate) const ALICE: u32 = 1001;
pub(crate) const BOB: u32 = 1002;
pub(crate) const KVM: u32 = 78;

/// Where the place's files are; the mount is this thread's own.
pub(crate) const DIR: &str = "/run/netreeve-test";
pub(crate) const SOCKET: &str = "/run/netreeve-test/door/helper.sock";

/// Makes the place: bridge `br0` of MTU 1450, pair `v0`/`v1`, an `/etc` of our own, `policy`.
pub(crate) fn place(policy: &str) {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test makes interfaces; run it as root: cargo test -p netreeve-helper --test root_doors"
    );
    // Whatever started this test may have left descriptors open: the programs under test must not see them.
    // SAFETY: only sets close-on-exec.
    assert_eq!(unsafe { libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) }, 0);
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    for dir in ["/etc", "/run"] {
        mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).unwrap();
    }
    for dir in ["/etc/netreeve", "/etc/qemu", DIR, &format!("{DIR}/door")] {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
    }
    write("/etc/passwd", "root:x:0:0::/:\nalice:x:1001:1001::/:\nbob:x:1002:1002::/:\n");
    write("/etc/group", "kvm:x:78:\n");
    write("/etc/netreeve/policy.conf", policy);
    ip("link set lo up");
    ip("link add br0 type bridge");
    ip("link set br0 mtu 1450 up");
    ip("link add v0 type veth peer name v1");
    ip("link set v0 up");
    ip("link set v1 up");
}

/// Writes a file of root's.
pub(crate) fn write(path: &str, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o644)).unwrap();
}

/// A copy of the program, called `name`.
pub(crate) fn program(name: &str, mode: u32) -> PathBuf {
    let path = Path::new(DIR).join(name);
    std::fs::copy(env!("CARGO_BIN_EXE_netreeve-helper"), &path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    path
}

/// A copy of the program with file capabilities.
pub(crate) fn program_with_capabilities(name: &str) -> PathBuf {
    let path = program(name, 0o755);
    let caps = "cap_net_admin,cap_net_raw,cap_bpf,cap_ipc_lock,cap_net_bind_service=p";
    let done = Command::new("setcap").arg(caps).arg(&path).status().expect("libcap2-bin is installed");
    assert!(done.success());
    path
}

pub(crate) fn ip(line: &str) -> String {
    let out = Command::new("ip").args(line.split_whitespace()).output().expect("iproute2 is installed");
    assert!(out.status.success(), "ip {line}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Taps of the helper's naming that are there now.
pub(crate) fn taps() -> usize {
    ip("-o link show").lines().filter(|l| l.split(": ").nth(1).is_some_and(|n| n.starts_with("nv"))).count()
}

/// Waits for `done`.
pub(crate) fn soon(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(5);
    while !done() {
        assert!(Instant::now() < until, "{what}: not within 5 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs `work` as an ordinary user, in a thread of its own (identity is a thread's, to the kernel).
pub(crate) fn as_user<T: Send>(uid: u32, groups: &[u32], work: impl FnOnce() -> T + Send) -> T {
    let work = move || {
        let (count, list) = (groups.len(), groups.as_ptr());
        // SAFETY: plain numbers and a list of `count` group ids; glibc's wrappers would change every thread.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setgroups, count, list) }, 0);
        // SAFETY: as above.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresgid, uid, uid, uid) }, 0);
        // SAFETY: as above.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }, 0);
        assert!(caps::read(None, CapSet::Permitted).unwrap().is_empty());
        work()
    };
    // A new thread shares this thread's namespaces.
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

pub(crate) fn tap_in(bridge: Option<&str>) -> Request {
    let bridge = bridge.map(|b| BridgeRequest { name: b.parse().unwrap(), create: false, isolated: false });
    Request::Tap(TapRequest { name: None, persist: false, queues: 1, vnet_header: true, mtu: None, bridge })
}

pub(crate) fn xsk() -> XskRequest {
    XskRequest {
        interface: "v0".parse().unwrap(),
        mode: None,
        queues: 1,
        start_queue: 0,
        force_copy: false,
        ring: 64,
        chunk: 2048,
        chunks: 64,
        steer: Steer::All,
    }
}

/// The refusal, or what came instead.
pub(crate) fn refusal<T: std::fmt::Debug>(said: Result<T, AskError>) -> netreeve_shared::refusal::Refusal {
    match said {
        Err(AskError::Refused(refusal)) => refusal,
        other => panic!("no refusal: {other:?}"),
    }
}

/// The service, listening at [`SOCKET`], and its log.
pub(crate) struct Service {
    child: Child,
    log: Receiver<String>,
}

impl Service {
    pub(crate) fn start(options: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_netreeve-helper"));
        command.args(["--listen", SOCKET]).args(options).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (to, log) = channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| to.send(line)));
        soon("the socket", || Helper::connect(SOCKET.as_ref()).is_ok());
        Self { child, log }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of the log that holds `part`.
    pub(crate) fn logged(&self, part: &str) -> String {
        self.until(part).pop().unwrap()
    }

    /// The log's next lines, up to one that holds `part`.
    pub(crate) fn until(&self, part: &str) -> Vec<String> {
        let mut lines = Vec::new();
        while !lines.last().is_some_and(|l: &String| l.contains(part)) {
            let line = self.log.recv_timeout(Duration::from_secs(5));
            lines.push(line.unwrap_or_else(|e| panic!("no line with {part}: {e}")));
        }
        lines
    }

    /// Tells it to end, or waits until it has ended by itself.
    pub(crate) fn end(mut self, signal: Option<nix::sys::signal::Signal>) -> Option<i32> {
        if let Some(signal) = signal {
            let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
            nix::sys::signal::kill(pid, signal).unwrap();
        }
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < until, "the service has not ended");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// A line of `/proc/PID/status`.
pub(crate) fn status(pid: u32, key: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(&format!("{key}:"))).unwrap_or_default();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What `/proc` must say of a helper that is locked in and at rest.
pub(crate) fn is_locked_in(pid: u32, uid: u32) {
    let four = format!("{uid} {uid} {uid} {uid}");
    assert_eq!(status(pid, "Uid"), four);
    for empty in ["CapEff", "CapInh", "CapAmb"] {
        assert_eq!(status(pid, empty), "0000000000000000", "{empty}");
    }
    // NET_BIND_SERVICE 10, NET_ADMIN 12, NET_RAW 13, IPC_LOCK 14, BPF 39.
    assert_eq!(status(pid, "CapPrm"), "0000008000007400");
    assert_eq!((status(pid, "NoNewPrivs"), status(pid, "Seccomp")), ("1".to_owned(), "2".to_owned()));
    assert_eq!(status(pid, "Threads"), "1");
}
