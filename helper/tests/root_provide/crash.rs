//! Killed at any moment, the helper leaves nothing.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use netreeve_helper::provide::Provider;
use netreeve_shared::request::Request;

use crate::support::*;
use crate::xsk::{detaches, request};

/// Not a test of its own: takes everything there is, says so, and waits to be killed.
#[test]
#[ignore = "the kill tests start it"]
fn child() {
    let mut provider = Provider::new();
    let mut kept = Vec::new();
    let pinned = netreeve_shared::request::XskRequest { interface: name("w0"), ..request() };
    let asked = [
        Request::Tap(in_bridge("br0", false, true)),
        Request::Tap(in_bridge("br9", true, false)),
        Request::Xsk(request()),
        Request::Activate(1),
        Request::XskPinned(pinned),
    ];
    for asked in asked {
        kept.extend(provider.provide(&asked, UID, &LIMITS).unwrap().1);
    }
    println!("everything");
    std::thread::sleep(Duration::from_secs(60));
}

fn start() -> std::process::Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "crash::child", "--ignored", "--nocapture"]);
    command.stdout(Stdio::piped()).spawn().unwrap()
}

fn kill(mut child: std::process::Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

fn place() {
    namespace();
    for pair in ["v0 type veth peer name v1", "w0 type veth peer name w1", "br0 type bridge"] {
        ip(&format!("link add {pair}"));
    }
}

fn nothing_is_left(after: &str) {
    assert!(detaches("v0") && detaches("w0"), "{after}: the programs are gone");
    // Made on request, this one stays once it served.
    let (_, _) = try_ip("link del br9");
    only(&["br0", "v0", "v1", "w0", "w1"]);
}

#[test]
fn a_kill_with_everything_granted_leaves_nothing() {
    place();
    let mut child = start();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|l| l.unwrap().contains("everything")));
    assert!(interfaces().iter().any(|n| n.starts_with("nv")) && !detaches_now("v0") && !detaches_now("w0"));
    kill(child);
    nothing_is_left("all granted");
}

#[test]
fn a_kill_at_any_moment_leaves_nothing() {
    place();
    for ms in 0..40 {
        let child = start();
        std::thread::sleep(Duration::from_millis(ms * 3));
        kill(child);
        nothing_is_left(&format!("after {} ms", ms * 3));
    }
    // A bridge cannot die with a descriptor: if a kill came between making and using it, the next request cleans up.
    let (_grant, fds) = tap(in_bridge("br8", true, false)).unwrap();
    drop(fds);
    let provisional = interfaces().iter().any(|n| show(n)["group"] == "1853095937");
    assert!(!provisional);
}

fn detaches_now(interface: &str) -> bool {
    show(interface)["xdp"]["prog"]["id"].is_null()
}
