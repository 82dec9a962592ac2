//! The whole program killed at each of its system calls: nothing is left, and nobody gets half a grant.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use netreeve_shared::channel;
use netreeve_shared::codec::{self, Answer};
use netreeve_shared::grant::Grant;
use netreeve_shared::request::{L2tpRequest, ListenRequest, Request};

use crate::place::*;

fn requests() -> [Request; 5] {
    let here = std::net::Ipv4Addr::LOCALHOST.into();
    [
        tap_in(Some("br0")),
        Request::Xsk(xsk()),
        Request::Activate(1),
        Request::L2tp(L2tpRequest { src: here, dst: here, session: 1 }),
        Request::Listen(ListenRequest { udp: false, address: here, port: 1 }),
    ]
}

/// One session under strace, with `inject` if given. Gives the kinds of what was granted, and strace's lines.
fn session(inject: Option<&str>) -> (Vec<bool>, Vec<String>, bool) {
    let trace = format!("{DIR}/trace");
    let mut command = Command::new("strace");
    command.args(["-f", "-o", &trace, "-e", "signal=none"]);
    if let Some(inject) = inject {
        command.args(["-e", &format!("inject={inject}")]);
    }
    command.arg(env!("CARGO_BIN_EXE_netreeve-helper")).stdin(Stdio::null()).stderr(Stdio::null());
    let (channel, mut child) = channel::spawn(command).expect("strace is installed");
    let mut granted = Vec::new();
    let mut kept = Vec::new();
    for (sequence, request) in (1..).zip(requests()) {
        if channel.send(&codec::request(sequence, &request).unwrap(), &[]).is_err() {
            break;
        }
        let Ok(Some(answer)) = channel.recv(16, Some(Duration::from_secs(20))) else { break };
        let (_, said) = codec::read_answer(&answer.bytes, answer.fds.len()).unwrap();
        granted.push(matches!(said, Answer::Grant(ref g) if g.answers(&request)));
        if let Answer::Grant(Grant::Tap(tap)) = said {
            assert!(
                ip(&format!("link show dev {}", tap.name)).contains("master br0"),
                "a whole grant or none"
            );
        }
        kept.push(answer.fds);
    }
    drop((channel, kept));
    let status = child.wait().unwrap();
    let lines = std::fs::read_to_string(&trace).unwrap().lines().map(str::to_owned).collect();
    (granted, lines, status.signal() == Some(libc::SIGKILL) || status.code() == Some(137))
}

fn nothing_is_left(after: &str) {
    soon(&format!("{after}: no tap"), || taps() == 0);
    soon(&format!("{after}: no program"), || !ip("link show dev v0").contains("xdp"));
}

#[test]
fn killed_at_each_system_call_it_leaves_nothing() {
    place(
        "allow uid:0 bridge br0\nallow uid:0 xsk v0\nallow uid:0 l2tpv3 127.0.0.0/8\n\
           allow uid:0 listen 127.0.0.1 port=1\nlimit any requests=1000",
    );
    let (granted, lines, _) = session(None);
    assert_eq!(granted, [true; 5], "{}", lines.join("\n"));
    nothing_is_left("no kill");
    // "PID name(...": how often each call was made.
    let mut calls = std::collections::BTreeMap::<String, u32>::new();
    for line in &lines {
        let call = line.split_whitespace().nth(1).and_then(|c| c.split_once('(')).map(|(name, _)| name);
        if let Some(name) = call.filter(|n| n.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')) {
            *calls.entry(name.to_owned()).or_default() += 1;
        }
    }
    for boring in ["execve", "exit_group", "mmap", "mprotect", "munmap", "brk", "rt_sigaction", "prctl"] {
        calls.remove(boring);
    }
    let mut killed = 0;
    for (name, count) in calls {
        for when in 1..=count {
            let (_, _, dead) = session(Some(&format!("{name}:signal=KILL:when={when}")));
            killed += u32::from(dead);
            nothing_is_left(&format!("{name} {when}"));
        }
    }
    assert!(killed > 100, "{killed} kills");
}
