//! Tables of forwards that change, with real sockets.

use super::*;
use crate::port::user::plan::{Limits, Way};
use crate::spec::{Config, Kind};
use crate::supervise::ask::Door;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

fn spec(options: &str) -> User {
    let mut c = Config::read(&[format!("user,id=n{options}")], &[], None).unwrap();
    match c.ports.remove(0).kind {
        Kind::User(u) => *u,
        other => panic!("{other:?}"),
    }
}

/// There is no helper.
fn nobody() -> Asker {
    Asker::new(Door::Socket("/nonexistent/helper.sock".into()))
}

fn opened(options: &str) -> (Host, Plan, Vec<OwnedFd>) {
    open("port 'n'", spec(options), None, 0o600, &mut nobody()).unwrap()
}

fn ports(host: &Host) -> Vec<u16> {
    let port = |o: &Open| match &o.rule.listen {
        Listen::Tcp(b) | Listen::Udp(b) => b.at.port(),
        Listen::Unix(_) => 0,
    };
    host.table.iter().map(port).collect()
}

fn rule(text: &str) -> HostForward {
    spec(&format!(",hostfwd={text}")).forwards.remove(0)
}

fn change(
    host: &mut Host,
    kept: &mut Vec<OwnedFd>,
    all: bool,
    remove: &[&str],
    add: &[&str],
) -> Result<(), Fault> {
    let remove: Vec<Listen> = remove.iter().map(|t| Listen::read(t).unwrap()).collect();
    host.prepare(all, &remove, add.iter().map(|t| rule(t)).collect(), kept, &mut nobody())?;
    host.commit(kept);
    Ok(())
}

/// Nobody listens there, soon: a child that another test has just forked holds copies until it runs its program.
fn is_closed(port: u16) -> bool {
    (0..500).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        TcpStream::connect(("127.0.0.1", port)).is_err()
    })
}

#[test]
fn what_is_asked_for_is_open() {
    let dir = std::env::temp_dir().join(format!("netreeve-user-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let (path, peer) = (dir.join("a-b.sock"), dir.join("peer.sock"));
    let listener = UnixListener::bind(&peer).unwrap();
    let (host, plan, kept) = opened(&format!(
        ",hostfwd=tcp:127.0.0.1:0-:22,hostfwd=udp:127.0.0.1:0-:53,hostfwd=unix:{}-:80,tftp={},guestfwd=::80-unix:{},\
         guestfwd=:10.0.2.9:1-tcp:127.0.0.1:9,bootfile=x",
        path.display(),
        dir.display(),
        peer.display()
    ));
    assert_eq!((kept.len(), plan.descriptors()), (5, 5), "three forwards, one door, the directory");
    let [tcp, udp, _] = ports(&host)[..] else { panic!() };
    assert!(tcp > 0 && udp > 0);
    TcpStream::connect(("127.0.0.1", tcp)).unwrap();
    assert!(UdpSocket::bind(("127.0.0.1", udp)).is_err());
    UnixStream::connect(&path).unwrap();
    assert_eq!((host.doors.len(), listener.set_nonblocking(true).is_ok()), (1, true));
    assert!(listener.accept().is_err(), "nobody is called before the guest calls");
    assert_eq!(plan.forwards.iter().map(|f| f.way).collect::<Vec<_>>(), [Way::Tcp, Way::Udp, Way::Unix]);
    assert_eq!(
        plan.guest_forwards.iter().map(|g| g.to).collect::<Vec<_>>(),
        [To::Asked { tcp: false }, To::Address("127.0.0.1:9".parse().unwrap())]
    );
    assert!(plan.boot.tftp && plan.boot.file == "x" && plan.mtu == 1500 && !plan.resolvers.is_empty());
    assert!(host.rules().next().unwrap().ends_with("-10.0.2.15:22"));
    drop(host);
    assert!(!path.exists(), "its file goes with it");
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn flows_are_as_many_as_were_asked_for() {
    let limits = |options: &str| opened(options).1.limits;
    assert_eq!(limits(""), Limits::default());
    let asked = limits(",flows=64,socket-buffer=64k");
    assert_eq!(asked, Limits { tcp: 64, udp: 16, buffer: Some(1 << 16), ..Limits::default() });
}

#[test]
fn a_table_changes_as_a_whole() {
    let (mut host, _, mut kept) = opened(",hostfwd=tcp:127.0.0.1:0-:22,hostfwd=tcp:127.0.0.1:0-:23");
    kept.push(fs::File::open("/dev/null").unwrap().into());
    let [a, b] = ports(&host)[..] else { panic!() };
    let ids: Vec<u32> = host.table.iter().map(|o| o.id).collect();
    // One goes, two come; the one that stays is the same socket under the same number.
    let gone = format!("tcp:127.0.0.1:{a}");
    change(&mut host, &mut kept, false, &[&gone], &["tcp:127.0.0.1:0-:80", "udp:127.0.0.1:0-:81"]).unwrap();
    assert_eq!((host.table.len(), kept.len(), host.table[0].id), (3, 4, ids[1]));
    assert!(is_closed(a));
    TcpStream::connect(("127.0.0.1", b)).unwrap();
    assert!(host.table[1..].iter().all(|o| !ids.contains(&o.id)));
    // What fails changes nothing.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let _holder = TcpListener::bind(("127.0.0.1", taken)).unwrap();
    let before: Vec<String> = host.rules().collect();
    let clash = format!("tcp:127.0.0.1:{taken}-:1");
    let fault = change(&mut host, &mut kept, true, &[], &["tcp:127.0.0.1:0-:2", &clash]).unwrap_err();
    assert_eq!(fault.exit, Exit::Unavailable);
    assert_eq!(
        fault.why,
        format!("Could not set up host forwarding rule '{clash}' (Address already in use)")
            .replace("-:1", "-10.0.2.15:1")
    );
    assert!(fault.fix.contains(&format!("sport = {taken}")), "{}", fault.fix);
    assert_eq!(host.rules().collect::<Vec<_>>(), before);
    assert!(host.next.is_none());
    let missing = change(&mut host, &mut kept, false, &["tcp:127.0.0.1:1"], &[]).unwrap_err();
    assert_eq!(missing.why, "host forwarding rule for tcp:127.0.0.1:1 not found");
    // To another place in the guest: the same socket, another number.
    let (at, elsewhere) = (format!("tcp:127.0.0.1:{b}"), format!("tcp:127.0.0.1:{b}-:2222"));
    let id = host.table[0].id;
    change(&mut host, &mut kept, false, &[&at], &[&elsewhere]).unwrap();
    assert!(host.table.iter().all(|o| o.id != id) && ports(&host).contains(&b));
    TcpStream::connect(("127.0.0.1", b)).unwrap();
    // Nothing is left; what is no forward's stays.
    change(&mut host, &mut kept, true, &[], &[]).unwrap();
    assert_eq!((host.table.len(), kept.len()), (0, 1));
    assert!(is_closed(b));
}

#[test]
fn a_unix_socket_goes_on_under_another_number() {
    let path = std::env::temp_dir().join(format!("netreeve-user-{}-again.sock", std::process::id()));
    let at = format!("unix:{}", path.display());
    let (mut host, _, mut kept) = opened(&format!(",hostfwd={at}-:1"));
    change(&mut host, &mut kept, true, &[], &[&format!("{at}-:2")]).unwrap();
    UnixStream::connect(&path).unwrap();
    assert_eq!(host.forwards()[0].guest, "10.0.2.15:2".parse().unwrap());
    change(&mut host, &mut kept, true, &[], &[]).unwrap();
    assert!(!path.exists());
}

/// More would be told to this dataplane, and not to the one that comes after it.
#[test]
fn what_the_next_dataplane_could_not_be_told_is_refused() {
    let one = ",deny=[2001:db8:1234:5678:9abc:def0:1234:5678]:1024-65535";
    let fits = |n: &usize| open("port 'n'", spec(&one.repeat(*n)), None, 0o600, &mut nobody()).is_ok();
    let most = (1..256).rev().find(fits).unwrap();
    let (mut host, plan, kept) = opened(&one.repeat(most - 5));
    let more = |n: usize| (0..n).map(|_| rule("tcp:127.0.0.1:0-:1")).collect::<Vec<_>>();
    host.prepare(false, &[], more(2), &kept, &mut nobody()).unwrap();
    host.fits(&plan).unwrap();
    host.abandon();
    host.prepare(false, &[], more(MAX_FDS), &kept, &mut nobody()).unwrap();
    let f = host.fits(&plan).unwrap_err();
    assert!(f.why.contains("too long"), "{f}");
}

#[test]
fn one_change_at_a_time_and_not_too_much() {
    let (mut host, _, mut kept) = opened("");
    host.prepare(false, &[], vec![rule("tcp:127.0.0.1:0-:1")], &kept, &mut nobody()).unwrap();
    assert_eq!(host.prepare(false, &[], vec![], &kept, &mut nobody()).unwrap_err().exit, Exit::TryAgain);
    assert_eq!(host.prepared().unwrap().0.len(), 1);
    host.abandon();
    assert!(host.prepared().is_none() && host.table.is_empty());
    let many: Vec<&str> = vec!["tcp:127.0.0.1:0-:1"; MAX_FDS + 1];
    assert!(change(&mut host, &mut kept, false, &[], &many).is_err());
    change(&mut host, &mut kept, false, &[], &many[1..]).unwrap();
    assert_eq!((host.table.len(), kept.len()), (MAX_FDS, MAX_FDS));
}

#[test]
fn what_cannot_be_had_is_said_in_three_parts() {
    let fault = |options: &str| open("port 'n'", spec(options), None, 0o600, &mut nobody()).unwrap_err();
    let f = fault(",tftp=/nonexistent/x");
    assert_eq!((f.exit, f.what.as_str()), (Exit::Config, "port 'n': opening tftp=/nonexistent/x"));
    let f = fault(",tftp=/dev/null");
    assert!(f.why.contains("Not a directory"), "{f}");
    let f = fault(",hostfwd=tcp:192.0.2.77:0-:1");
    assert!(f.fix.contains("192.0.2.77 is no address of this machine"), "{f}");
    let f = fault(&format!(",guestfwd=::1-unix:/{}", "x".repeat(108)));
    assert!(f.why.ends_with("xx' (File name too long)"), "{f}");
    let (host, plan, kept) = opened(",restrict=on,guestfwd=::1-tcp:127.0.0.1:1");
    assert_eq!((host.doors.len(), kept.len(), plan.guest_forwards[0].to), (1, 1, To::Asked { tcp: true }));
    // Root may let the helper give what it is asked for, and no more.
    let plain: forward::Bind = "0.0.0.0:80".parse::<SocketAddr>().unwrap().into();
    let device = Some("eth0".parse().unwrap());
    for (bind, helper) in [
        (plain, true),
        (forward::Bind { both: true, ..plain }, false),
        (forward::Bind { device, ..plain }, false),
        (forward::Bind { willing: true, ..plain }, false),
        (forward::Bind { free: true, ..plain }, false),
    ] {
        let low = remedy(&io::Error::from_raw_os_error(libc::EACCES), &bind, true);
        assert!(low.contains("ip_unprivileged_port_start=80"), "{low}");
        assert_eq!(low.contains("/etc/netreeve/policy.conf"), helper, "{bind:?}: {low}");
    }
    let long = ",deny=[2001:db8:1234:5678:9abc:def0:1234:5678]:1024-65535".repeat(256);
    let f = fault(&long);
    assert!(f.why.contains("too long"), "{f}");
}

#[test]
fn another_dataplane_has_doors_of_its_own() {
    use crate::port::user::door;
    use crate::supervise::say::Voice;
    use netreeve_shared::channel::Channel;

    let peers = [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()];
    let [a, b] = [0, 1].map(|n: usize| peers[n].local_addr().unwrap().port());
    let dir = std::env::temp_dir();
    let (mut host, _, mut kept) = opened(&format!(
        ",restrict=on,hostfwd=tcp:127.0.0.1:0-:22,guestfwd=::1-tcp:127.0.0.1:{a},guestfwd=::2-tcp:127.0.0.1:{b},tftp={}",
        dir.display()
    ));
    let side = |fd: &OwnedFd| Channel::from_fd(fd.try_clone().unwrap()).unwrap();
    let serve = |host: &mut Host| {
        host.doors.iter_mut().for_each(|d| d.serve(Instant::now(), &mut Voice::new(false)));
    };
    let heard = |side: &Channel| side.recv(1, Some(Duration::ZERO));
    // The first dies: one question is answered, which it did not hear, another is not served yet.
    let old = [side(&kept[1]), side(&kept[2])];
    old[0].send(&door::ask(1), &[]).unwrap();
    serve(&mut host);
    old[1].send(&door::ask(1), &[]).unwrap();
    host.renew_doors(&mut kept).unwrap();
    let new = [side(&kept[1]), side(&kept[2])];
    serve(&mut host);
    for side in &new {
        assert_eq!(heard(side).unwrap_err().kind(), io::ErrorKind::WouldBlock, "what it did not ask");
    }
    assert!(heard(&old[1]).is_err() || heard(&old[1]).unwrap().is_none(), "the old ones lead nowhere");
    // Each leads where it led, and the other descriptors are what they were.
    peers.iter().for_each(|p| p.set_nonblocking(true).unwrap());
    peers[0].accept().unwrap();
    for (n, side) in new.iter().enumerate() {
        side.send(&door::ask(1), &[]).unwrap();
        serve(&mut host);
        assert_eq!(heard(side).unwrap().unwrap().fds.len(), 1);
        peers[n].accept().unwrap();
        assert!(peers[1 - n].accept().is_err());
    }
    TcpStream::connect(("127.0.0.1", ports(&host)[0])).unwrap();
    assert!(fs::File::from(kept.pop().unwrap()).metadata().unwrap().is_dir() && kept.len() == 3);
}

#[test]
fn a_range_has_a_socket_for_each_port_that_can_be_had() {
    // An address that nobody else uses.
    let taken = TcpListener::bind("127.77.3.1:20005").unwrap();
    let range = "127.77.3.1:20000-20019-:9000";
    let f = open("port 'n'", spec(&format!(",hostfwd=tcp:{range}")), None, 0o600, &mut nobody()).unwrap_err();
    assert!(f.why.contains("(port 20005: Address already in use)") && f.fix.contains("sport = 20005"), "{f}");
    let (mut host, plan, mut kept) = opened(&format!(
        ",hostfwd=tcp+try:{range},hostfwd=udp:127.77.3.1:20000-20001-:1,hostfwd=unix:/tmp/netreeve-range-{}-:2",
        std::process::id()
    ));
    let [tcp, udp, unix] = plan.forwards[..] else { panic!() };
    assert_eq!(tcp.range, Some(Range { first: 20000, sockets: 19 }));
    assert_eq!((tcp.id, udp.id, unix.id, unix.range), (1, 20, 22, None));
    assert_eq!((kept.len(), plan.descriptors(), plan.sockets()), (22, 22, 22));
    assert_eq!(host.rules().next().unwrap(), format!("tcp+try:{}", range.replace("-:", "-10.0.2.15:")));
    let at = |n: u16| ("127.77.3.1", 20000 + n);
    TcpStream::connect(at(19)).unwrap();
    // Others go, and what stays is the same.
    change(&mut host, &mut kept, false, &["udp:127.77.3.1:20000-20001"], &["udp:127.77.3.1:20002-:5"])
        .unwrap();
    assert_eq!((host.table.len(), kept.len(), host.sockets()), (3, 21, 21));
    assert_eq!(host.forwards()[0], tcp);
    TcpStream::connect(at(0)).unwrap();
    let many = change(&mut host, &mut kept, false, &[], &["tcp:127.77.3.1:21000-21016-:1"]).unwrap_err();
    assert!(many.why.contains("more than 16 new ports"), "{many}");
    change(&mut host, &mut kept, true, &[], &[]).unwrap();
    assert!(kept.is_empty() && TcpStream::connect(at(19)).is_err());
    drop(taken);
}

#[test]
fn everything_of_both_families_and_what_is_not_there_yet() {
    let (host, _, kept) = opened(",hostfwd=tcp:*:0-:1,hostfwd=udp+freebind:192.0.2.77:0-:2");
    assert_eq!(kept.len(), 2);
    let port = ports(&host)[0];
    TcpStream::connect(("127.0.0.1", port)).unwrap();
    if UdpSocket::bind("[::1]:0").is_ok() {
        TcpStream::connect(("::1", port)).unwrap();
    }
    let fault = |options: &str| open("port 'n'", spec(options), None, 0o600, &mut nobody()).unwrap_err();
    let f = fault(",hostfwd=tcp:127.0.0.1%nobody-has-it:0-:1");
    assert!(f.why.contains("No such device") && f.fix.contains("no such interface"), "{f}");
    for (options, what, why) in [
        (",outbound=192.0.2.77", "port 'n': outbound=192.0.2.77", "Cannot assign"),
        (",outbound-if4=nobody-has-it", "port 'n': outbound-if4=nobody-has-it", "No such device"),
        (",outbound=127.0.0.1,outbound-if4=nobody", "port 'n': outbound-if4=nobody", "No such device"),
    ] {
        let f = fault(options);
        assert_eq!((f.exit, f.what.as_str()), (Exit::Config, what));
        assert!(f.why.contains(why), "{f}");
    }
    let (_, plan, _) = opened(",outbound=127.0.0.1,outbound-if4=lo");
    assert!(!plan.outbound.is_free());
}

/// The one that is refused by the numbers leaves nothing behind; a new dataplane begins anew.
#[test]
fn more_ports_than_a_running_dataplane_has_room_for_are_refused() {
    let (mut host, _, mut kept) = opened(",hostfwd=tcp:127.0.0.1:0-:1");
    for n in 0..8 {
        let more: Vec<String> = (0..15).map(|i| format!("tcp:127.0.0.1:0-:{}", 100 * n + i + 2)).collect();
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        change(&mut host, &mut kept, false, &[], &more).unwrap();
    }
    let f = change(&mut host, &mut kept, false, &[], &["udp:127.77.5.1:20000-20015-:1"]).unwrap_err();
    assert!(
        f.why.contains("would listen at 137 ports, and a dataplane that began with 1 has room for 129"),
        "{f}"
    );
    assert_eq!((kept.len(), host.prepared().is_none()), (121, true));
    host.begins();
    change(&mut host, &mut kept, false, &[], &["udp:127.77.5.1:20000-20015-:1"]).unwrap();
    assert_eq!(kept.len(), 137);
}

/// Runs something where there is no IPv6 at all (`ipv6.disable=1`): a socket of it is not to be had by this thread.
fn without_ipv6<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule,
    };
    let family = u64::try_from(libc::AF_INET6).unwrap();
    let is = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, family).unwrap();
    let rules = [(libc::SYS_socket, vec![SeccompRule::new(vec![is]).unwrap()])].into();
    let none = SeccompAction::Errno(libc::EAFNOSUPPORT.cast_unsigned());
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, none, arch).unwrap();
    let filter: BpfProgram = filter.try_into().unwrap();
    std::thread::scope(|s| {
        let thread = s.spawn(|| {
            seccompiler::apply_filter(&filter).unwrap();
            assert_eq!(UdpSocket::bind("[::]:0").unwrap_err().raw_os_error(), Some(libc::EAFNOSUPPORT));
            run()
        });
        thread.join().unwrap()
    })
}

/// `hostfwd=tcp:*:0` is what passt's `-t` becomes.
#[test]
fn a_host_without_ipv6_has_the_other_family_of_everything() {
    without_ipv6(|| {
        let (mut host, plan, mut kept) =
            opened(",hostfwd=tcp:*:0-:1,hostfwd=udp:*:0-:2,hostfwd=tcp+try:*:0-:3");
        change(&mut host, &mut kept, false, &[], &["tcp:*:0-:4"]).unwrap();
        let [tcp, udp, willing, later] = ports(&host)[..] else { panic!() };
        for port in [tcp, willing, later] {
            TcpStream::connect(("127.0.0.1", port)).unwrap();
        }
        assert!(UdpSocket::bind(("127.0.0.1", udp)).is_err(), "it is ours");
        // The dataplane's side, with a guest that has both families.
        let handed = kept.iter().take(3).map(|fd| fd.try_clone().unwrap()).collect();
        let mut network = crate::port::user::open(&plan, handed).unwrap();
        let mut batch = crate::frame::Batch::new();
        network[0].recv(&mut batch).unwrap();
        assert_eq!(network[0].stats().flows.unwrap().now, 2, "those who came");
        // After a dataplane that had spoilt it.
        nix::sys::socket::shutdown(kept[1].as_raw_fd(), nix::sys::socket::Shutdown::Both).unwrap_err();
        assert!(host.listen_again(&mut kept).is_empty());
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.send_to(b"x", ("127.0.0.1", udp)).unwrap();
        let ours = UdpSocket::from(kept[1].try_clone().unwrap());
        ours.set_nonblocking(false).unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(ours.recv(&mut [0; 4]).unwrap(), 1);
        assert!(crate::port::user::icmp::allowed().1, "nothing is missing that could be given");
        let f = open("port 'n'", spec(",hostfwd=tcp:[::]:0-[fec0::15]:1"), None, 0o600, &mut nobody())
            .unwrap_err();
        assert!(f.fix.contains("this machine has no IPv6: give an IPv4 address"), "{f}");
    });
}

#[test]
fn forwards_that_lead_out_are_bound_by_who_is_inside() {
    let (ours, theirs) = netreeve_shared::channel::Channel::pair().unwrap();
    let other = std::thread::spawn(move || inside::serve(&theirs));
    let options =
        ",ns-fd=9,hostfwd=tcp+ns:127.0.0.1:0-:80,hostfwd=udp+ns:127.0.0.1:0-:53,hostfwd=tcp:127.0.0.1:0-:22";
    let open = |options: &str, fd| open("port 'n'", spec(options), fd, 0o600, &mut nobody());
    let (mut host, plan, mut kept) = open(options, Some(ours.into_fd())).unwrap();
    let ways: Vec<_> = plan.forwards.iter().map(|f| (f.way, f.guest.to_string())).collect();
    let want = [(Way::OutTcp, "127.0.0.1:80"), (Way::OutUdp, "127.0.0.1:53"), (Way::Tcp, "10.0.2.15:22")];
    assert_eq!(ways, want.map(|(way, to)| (way, to.to_owned())));
    assert!(plan.limits.out > 0 && kept.len() == 3);
    let [tcp, ..] = ports(&host)[..] else { panic!() };
    TcpStream::connect(("127.0.0.1", tcp)).unwrap();
    // What is told to clients is what can be said again.
    let shown: Vec<String> = host.rules().collect();
    assert_eq!(shown[0], format!("tcp+ns:127.0.0.1:{tcp}-127.0.0.1:80"));
    change(&mut host, &mut kept, false, &[&format!("tcp+ns:127.0.0.1:{tcp}")], &["udp+ns::0-:5"]).unwrap();
    assert!(is_closed(tcp) && host.rules().count() == 3);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let fault = change(&mut host, &mut kept, false, &[], &[&format!("tcp+ns::{port}-:1")]).unwrap_err();
    assert!(
        fault.why.contains("Address already in use") && fault.fix.contains("inside the namespace"),
        "{fault}"
    );
    drop(host);
    other.join().unwrap().unwrap();
    // Nobody is inside of a machine; nothing leaves where nothing shall.
    let fault = open(",hostfwd=tcp+ns::0-:80", None).unwrap_err();
    assert!(fault.why.contains("no network namespace") && fault.fix.contains("netreeve-pasta"), "{fault}");
    let (ours, _theirs) = netreeve_shared::channel::Channel::pair().unwrap();
    let fault = open(",restrict=on", Some(ours.into_fd())).unwrap_err();
    assert!(fault.what.contains("ns-fd=") && fault.why.contains("restrict=on"), "{fault}");
    let file = fs::File::open("/dev/null").unwrap();
    assert!(open("", Some(file.into())).unwrap_err().what.contains("ns-fd="));
}
