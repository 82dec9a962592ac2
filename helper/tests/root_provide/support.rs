//! Namespaces, `ip`, requests and shorthands for the tests.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use netreeve_helper::provide::{Provider, Quota};
use netreeve_shared::grant::{Grant, TapGrant};
use netreeve_shared::ifname::IfName;
use netreeve_shared::refusal::Refusal;
use netreeve_shared::request::{BridgeRequest, Request, TapRequest};
use nix::sched::{CloneFlags, unshare};

/// Every test's caller.
pub(crate) const UID: u32 = 4242;
pub(crate) const LIMITS: Quota = Quota { sessions: 1, requests: 1, taps: 100, umem: 1 << 30 };

/// Puts this thread into an empty network namespace.
pub(crate) fn namespace() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test makes interfaces; run it as root: cargo test -p netreeve-helper --test root_provide"
    );
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    ip("link set lo up");
}

/// Runs `ip` in this thread's namespace and returns what it printed.
pub(crate) fn ip(line: &str) -> String {
    let (ok, text) = try_ip(line);
    assert!(ok, "ip {line}: {text}");
    text
}

pub(crate) fn try_ip(line: &str) -> (bool, String) {
    let out = Command::new("ip").args(line.split_whitespace()).output().expect("iproute2 is installed");
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status.success(), text)
}

/// `ip -d -j link show dev NAME`.
pub(crate) fn show(name: impl std::fmt::Display) -> serde_json::Value {
    let text = ip(&format!("-d -j link show dev {name}"));
    serde_json::from_str::<serde_json::Value>(&text).unwrap()[0].take()
}

/// Names of all interfaces but `lo`.
pub(crate) fn interfaces() -> Vec<String> {
    let all: serde_json::Value = serde_json::from_str(&ip("-j link show")).unwrap();
    let names = all.as_array().unwrap().iter().map(|l| l["ifname"].as_str().unwrap().to_owned());
    names.filter(|n| n != "lo").collect()
}

/// Waits until exactly these interfaces are there. Not at once: while another test starts a program, its child holds a
/// copy of every descriptor of ours for the moment between fork and exec.
pub(crate) fn only(expected: &[&str]) {
    let until = Instant::now() + Duration::from_secs(3);
    loop {
        let mut now = interfaces();
        now.sort();
        if now == expected {
            return;
        }
        assert!(Instant::now() < until, "{now:?}, not {expected:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn name(text: &str) -> IfName {
    IfName::new(text).unwrap()
}

pub(crate) fn tap_request() -> TapRequest {
    TapRequest { name: None, persist: false, queues: 1, vnet_header: true, mtu: None, bridge: None }
}

pub(crate) fn in_bridge(bridge: &str, create: bool, isolated: bool) -> TapRequest {
    let bridge = Some(BridgeRequest { name: name(bridge), create, isolated });
    TapRequest { bridge, ..tap_request() }
}

pub(crate) fn tap(request: TapRequest) -> Result<(TapGrant, Vec<OwnedFd>), Refusal> {
    let request = Request::Tap(request);
    request.check().unwrap();
    let (grant, fds) = Provider::default().provide(&request, UID, &LIMITS)?;
    assert_eq!(grant.fds().len(), fds.len());
    let Grant::Tap(tap) = grant else { panic!("asked for a tap, got {grant:?}") };
    Ok((tap, fds))
}

/// `TUNSETIFF` as any program makes it; `Err` is the errno.
pub(crate) fn attach_queue(tun: BorrowedFd<'_>, name: IfName, flags: i16) -> nix::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.to_ifr_name()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: TUNSETIFF takes an ifreq and keeps no pointer to it.
    nix::errno::Errno::result(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
        .map(drop)
}
