//! The service: judged by uid and group, bounded, and answering everybody in the same few words.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use netreeve_shared::channel::Channel;
use netreeve_shared::client::{AskError, Helper};
use netreeve_shared::codec::{self, Answer};
use netreeve_shared::fdkind::attest;
use netreeve_shared::grant::{FdKind, Grant};
use netreeve_shared::refusal::Refusal;
use netreeve_shared::request::Request;
use nix::sys::signal::Signal;

use crate::place::*;

fn connect() -> Helper {
    Helper::connect(SOCKET.as_ref()).unwrap()
}

#[test]
fn users_get_what_their_lines_say_and_only_the_log_names_the_line() {
    place(
        "allow user:alice bridge br0 max=2\nallow group:kvm tap *\ndeny user:bob bridge *\nallow any bridge br0",
    );
    let service = Service::start(&[]);
    is_locked_in(service.pid(), 0);
    let fds = as_user(ALICE, &[], || {
        let mut helper = connect();
        let (grant, first) = helper.ask(&tap_in(Some("br0"))).unwrap();
        let Grant::Tap(tap) = grant else { panic!("{grant:?}") };
        assert_eq!((tap.mtu, tap.queues, tap.vnet_header), (1450, 1, 12));
        let (_, second) = helper.ask(&tap_in(Some("br0"))).unwrap();
        assert_eq!(refusal(helper.ask(&tap_in(Some("br0")))), Refusal::Limit);
        assert_eq!(refusal(helper.ask(&tap_in(None))), Refusal::Denied);
        assert_eq!(refusal(helper.ask(&tap_in(Some("none")))), Refusal::Denied);
        (first, second)
    });
    assert!(service.logged("grant uid=1001").contains("rule=/etc/netreeve/policy.conf:1 "));
    assert!(service.logged("refuse uid=1001").contains("policy.conf:1 why=\"a limit"));
    assert!(service.logged("refuse uid=1001").contains("rule=none why=\"denied\""));
    assert_eq!(taps(), 2, "they outlive the session");
    drop(fds);
    soon("the taps are gone", || taps() == 0);
    as_user(BOB, &[], || {
        // What is not there and what is not allowed are one answer.
        for request in [tap_in(Some("br0")), tap_in(Some("none")), tap_in(None), Request::Xsk(xsk())] {
            assert_eq!(refusal(connect().ask(&request)), Refusal::Denied);
        }
    });
    assert!(service.logged("refuse uid=1002").contains("policy.conf:3"));
    as_user(BOB, &[KVM], || connect().ask(&tap_in(None)).map(drop).unwrap());
    assert!(service.logged("grant uid=1002").contains("policy.conf:2"));
    is_locked_in(service.pid(), 0);
    assert_eq!(service.end(Some(Signal::SIGTERM)), None, "as it is: nothing needs tidying");
}

#[test]
fn af_xdp_sockets_by_ticket_and_pinned() {
    place("allow user:alice xsk v0 umem=256K\nallow user:alice xsk-pinned v0");
    let service = Service::start(&[]);
    as_user(ALICE, &[], || {
        let mut helper = connect();
        let (grant, _sockets) = helper.ask(&Request::Xsk(xsk())).unwrap();
        let Grant::Xsk(xsk_grant) = grant else { panic!("{grant:?}") };
        assert_eq!(refusal(helper.ask(&Request::Activate(xsk_grant.ticket + 1))), Refusal::Ticket);
        // Tickets are good in their own session only.
        assert_eq!(refusal(connect().ask(&Request::Activate(xsk_grant.ticket))), Refusal::Ticket);
        let (_, link) = helper.ask(&Request::Activate(xsk_grant.ticket)).unwrap();
        for other in [FdKind::Tap, FdKind::Xsk, FdKind::Umem] {
            assert!(attest(link[0].as_fd(), other).is_err());
        }
        drop(link);
        // 128 KiB are held; 256 KiB are the user's over all sessions.
        let more = |chunks| Request::Xsk(netreeve_shared::request::XskRequest { chunks, ..xsk() });
        assert_eq!(refusal(connect().ask(&more(65))), Refusal::Limit);
        drop(helper);
        let mut pinned = connect();
        let sockets = loop {
            // The queue is the kernel's for some more milliseconds.
            match pinned.ask(&Request::XskPinned(xsk())) {
                Ok((_, sockets)) => break sockets,
                Err(AskError::Refused(Refusal::Busy)) => std::thread::sleep(Duration::from_millis(60)),
                Err(e) => panic!("{e}"),
            }
        };
        assert_eq!(sockets.len(), 1);
    });
    assert!(service.logged("asked=Xsk(").contains("rule=/etc/netreeve/policy.conf:1 "));
    is_locked_in(service.pid(), 0);
}

#[test]
fn a_changed_policy_counts_at_once_and_a_broken_one_gives_nothing() {
    place("");
    let service = Service::start(&[]);
    let mut helper = connect();
    assert_eq!(refusal(helper.ask(&tap_in(None))), Refusal::Denied);
    write("/etc/netreeve/policy.conf", "allow uid:0 tap *");
    let (_, fds) = helper.ask(&tap_in(None)).unwrap();
    write("/etc/netreeve/policy.conf", "allow uid:0 tap *\nallow uid:0 everything");
    for request in [tap_in(None), Request::Activate(1)] {
        assert_eq!(refusal(helper.ask(&request)), Refusal::Denied);
    }
    assert!(service.logged("policy.conf:2:").contains("everything"));
    drop(fds);
    assert_eq!(refusal(connect().ask(&tap_in(None))), Refusal::Denied);
    std::fs::remove_file("/etc/netreeve/policy.conf").unwrap();
    assert_eq!(refusal(connect().ask(&tap_in(None))), Refusal::Denied, "a policy that is not there, too");
    assert!(service.logged("refuse uid=0").contains("rule="));
}

#[test]
fn a_ticket_is_worth_what_the_policy_says_when_it_is_used() {
    place("allow user:alice xsk v0");
    let service = Service::start(&[]);
    let before = ip("-o link show v0");
    let (mut helper, sockets, ticket) = as_user(ALICE, &[], || {
        let mut helper = connect();
        let (grant, sockets) = helper.ask(&Request::Xsk(xsk())).unwrap();
        let Grant::Xsk(xsk) = grant else { panic!("{grant:?}") };
        (helper, sockets, xsk.ticket)
    });
    write("/etc/netreeve/policy.conf", "allow user:alice xsk v0\ndeny user:alice xsk v*");
    assert_eq!(refusal(helper.ask(&Request::Activate(ticket))), Refusal::Denied);
    drop(sockets);
    assert!(service.logged("asked=Activate").contains("policy.conf:2 "));
    assert_eq!(ip("-o link show v0"), before, "no program");
}

/// A line of the log for each of ten in a second, whoever shouts: the system's log drops what comes faster, and a
/// grant among it.
#[test]
fn nobody_floods_the_log() {
    place("allow any tap *\nlimit user:alice requests=2 sessions=1");
    let service = Service::start(&[]);
    as_user(ALICE, &[], || {
        let mut helper = connect();
        for _ in 0..100 {
            let _answered = helper.ask(&Request::Activate(9)).unwrap_err();
        }
        for _ in 0..100 {
            assert!(matches!(connect().ask(&tap_in(None)), Err(AskError::Closed)), "a second session");
        }
    });
    as_user(BOB, &[], || connect().ask(&tap_in(None)).map(drop).unwrap());
    let lines = service.until("grant uid=1002");
    let noise = lines.iter().filter(|l| l.contains("unlogged=")).count();
    assert!((10..80).contains(&noise), "{noise} lines of 298 refusals");
    // Nor by what a missing policy has it say. (The next second has lines of its own.)
    std::thread::sleep(Duration::from_millis(1100));
    std::fs::remove_file("/etc/netreeve/policy.conf").unwrap();
    as_user(ALICE, &[], || (0..100).for_each(|_| drop(connect().ask(&tap_in(None)))));
    write("/etc/netreeve/policy.conf", "allow any tap *");
    as_user(BOB, &[], || connect().ask(&tap_in(None)).map(drop).unwrap());
    let missing = service.until("grant uid=1002").iter().filter(|l| l.contains("what=policy")).count();
    assert!((1..80).contains(&missing), "{missing} lines of 200");
}

/// CVE-2021-3560: who has gone before it is asked after is nobody, and not root.
#[test]
fn a_caller_that_has_gone_is_never_taken_for_another() {
    place("allow uid:0 tap *\nallow user:bob tap *");
    let service = Service::start(&[]);
    let pid = nix::unistd::Pid::from_raw(service.pid().cast_signed());
    nix::sys::signal::kill(pid, Signal::SIGSTOP).unwrap();
    let request = codec::request(1, &tap_in(None)).unwrap();
    let script = format!(
        "import socket\nfor i in range(8):\n s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n \
         s.connect('{SOCKET}')\n s.send(bytes({request:?}))"
    );
    let gone = || std::process::Command::new("/usr/bin/python3").args(["-c", &script]).status().unwrap();
    assert!(as_user(ALICE, &[], gone).success());
    nix::sys::signal::kill(pid, Signal::SIGCONT).unwrap();
    as_user(BOB, &[], || connect().ask(&tap_in(None)).map(drop).unwrap());
    let lines = service.until("grant uid=1002");
    // The test's own first connection was root's and asked for nothing.
    assert!(lines.iter().all(|l| !l.contains("grant") || l.contains("uid=1002")), "{lines:?}");
}

/// CVE-2018-19788: a user id has 32 bits and no sign.
#[test]
fn a_large_user_id_is_itself() {
    place("allow uid:4000000000 tap *\nallow uid:0 bridge *");
    let service = Service::start(&[]);
    for (uid, tap, bridge) in [(4_000_000_000, true, false), (4_294_967_294, false, false)] {
        as_user(uid, &[], || {
            assert_eq!(connect().ask(&tap_in(None)).is_ok(), tap, "{uid}");
            assert_eq!(connect().ask(&tap_in(Some("br0"))).is_ok(), bridge, "{uid}");
        });
    }
    assert!(service.logged("grant uid=4000000000").contains("policy.conf:1 "));
}

#[test]
fn sessions_and_requests_are_counted_by_user() {
    place("allow any tap *\nlimit user:alice sessions=2 requests=3\nlimit any requests=1000");
    let _service = Service::start(&[]);
    as_user(ALICE, &[], || {
        let (mut a, mut b) = (connect(), connect());
        let mut round = || {
            // The first request after it begins the second that is counted.
            std::thread::sleep(Duration::from_millis(1100));
            let began = Instant::now();
            a.ask(&tap_in(None)).unwrap();
            b.ask(&tap_in(None)).unwrap();
            assert!(matches!(connect().ask(&tap_in(None)), Err(AskError::Closed)), "a third session");
            b.ask(&tap_in(None)).unwrap();
            let fourth = a.ask(&tap_in(None));
            (began.elapsed() < Duration::from_secs(1)).then_some(fourth)
        };
        // A machine that is busy may take longer than that second.
        let fourth = (0..10).find_map(|_| round()).expect("no round within a second");
        assert_eq!(refusal(fourth), Refusal::Limit, "a fourth request within the second");
        std::thread::sleep(Duration::from_millis(1100));
        a.ask(&tap_in(None)).unwrap();
        drop(b);
        soon("a closed session is given back", || connect().ask(&tap_in(None)).is_ok());
    });
    as_user(BOB, &[], || connect().ask(&tap_in(None)).map(drop).unwrap());
}

#[test]
fn whoever_breaks_the_protocol_is_told_so_and_hung_up_on() {
    place("allow any tap *");
    let service = Service::start(&[]);
    let good = codec::request(7, &tap_in(None)).unwrap();
    let mut tail = good.clone();
    tail.push(0);
    let mut version = good.clone();
    version[4] = 9;
    for (bytes, sequence) in [(b"hello".to_vec(), 0), (tail, 0), (version, 0), (vec![0; codec::MAX], 0)] {
        let channel = Channel::connect(SOCKET.as_ref()).unwrap();
        channel.send(&bytes, &[]).unwrap();
        let answer = channel.recv(0, Some(Duration::from_secs(5))).unwrap().unwrap();
        let said = codec::read_answer(&answer.bytes, 0);
        assert_eq!(said, Ok((sequence, Answer::Refusal(Refusal::Protocol))));
        assert!(channel.recv(0, Some(Duration::from_secs(5))).unwrap().is_none());
        assert!(service.logged("what=message").contains("refuse uid=0"));
    }
    // A request has no descriptors, and is no longer than a message.
    let channel = Channel::connect(SOCKET.as_ref()).unwrap();
    let open = || std::fs::read_dir(format!("/proc/{}/fd", service.pid())).unwrap().count();
    let before = open();
    channel.send(&good, &[std::io::stdin().as_fd()]).unwrap();
    let answer = channel.recv(0, Some(Duration::from_secs(5))).unwrap().unwrap();
    assert_eq!(codec::read_answer(&answer.bytes, 0), Ok((0, Answer::Refusal(Refusal::Protocol))));
    assert!(service.logged("what=message").contains("refuse uid=0"));
    assert!(channel.recv(0, Some(Duration::from_secs(5))).unwrap().is_none());
    soon("nothing of it stays open", || open() <= before);
    connect().ask(&tap_in(None)).unwrap();
}

#[test]
fn nobody_else_waits_for_a_caller_that_is_silent_or_does_not_read() {
    place("allow any tap *\nlimit any requests=100000 sessions=200");
    let service = Service::start(&[]);
    let silent: Vec<Channel> = (0..100).map(|_| Channel::connect(SOCKET.as_ref()).unwrap()).collect();
    let deaf = Channel::connect(SOCKET.as_ref()).unwrap();
    deaf.set_nonblocking(true).unwrap();
    let request = codec::request(1, &Request::Activate(9)).unwrap();
    while deaf.send(&request, &[]).is_ok() {}
    let start = std::time::Instant::now();
    connect().ask(&tap_in(None)).unwrap();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    drop((silent, deaf));
    let open = || std::fs::read_dir(format!("/proc/{}/fd", service.pid())).unwrap().count();
    soon("all are closed", || open() < 10);
}

#[test]
fn it_ends_when_idle_and_replaces_a_dead_ones_socket() {
    place("allow any tap *");
    let service = Service::start(&["--idle", "1"]);
    let helper = connect();
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(status(service.pid(), "Threads"), "1", "not while somebody is there");
    drop(helper);
    assert_eq!(service.end(None), Some(0));
    let killed = Service::start(&[]);
    killed.end(Some(Signal::SIGKILL));
    assert!(Path::new(SOCKET).exists());
    let again = Service::start(&[]);
    connect().ask(&tap_in(None)).unwrap();
    drop(again);
}

#[test]
fn a_directory_that_others_may_write_to_is_no_place_for_its_socket() {
    place("");
    let run = |path: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_netreeve-helper"));
        let out = command.args(["--listen", path]).output().unwrap();
        (out.status.code(), String::from_utf8(out.stderr).unwrap())
    };
    std::fs::create_dir(format!("{DIR}/open")).unwrap();
    std::fs::set_permissions(format!("{DIR}/open"), std::os::unix::fs::PermissionsExt::from_mode(0o1777))
        .unwrap();
    let (code, text) = run(&format!("{DIR}/open/s"));
    assert_eq!(code, Some(1));
    assert!(text.contains("others than the helper may write to"), "{text}");
    write(&format!("{DIR}/file"), "precious");
    assert_eq!(run(&format!("{DIR}/file")).0, Some(1));
    assert_eq!(std::fs::read_to_string(format!("{DIR}/file")).unwrap(), "precious");
}

#[test]
fn a_socket_of_the_service_manager_is_taken() {
    place("allow any tap *");
    // systemd-socket-activate's part: descriptor 3, and whom it is for.
    let script = format!(
        "import os, socket\ns = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\ns.bind('{SOCKET}')\ns.listen(8)\n\
         os.dup2(s.fileno(), 3)\nos.set_inheritable(3, True)\n\
         os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n\
         os.execv('{0}', ['{0}'])",
        env!("CARGO_BIN_EXE_netreeve-helper")
    );
    let mut child = std::process::Command::new("/usr/bin/python3").args(["-c", &script]).spawn().unwrap();
    soon("it answers", || Helper::connect(SOCKET.as_ref()).is_ok_and(|mut h| h.ask(&tap_in(None)).is_ok()));
    is_locked_in(child.id(), 0);
    child.kill().unwrap();
    child.wait().unwrap();
}
