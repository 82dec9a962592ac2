//! AF_XDP grants, end to end on veth pairs: `v0` is granted, `v1` is the network.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use libbpf_rs::query::{ProgInfoIter, ProgInfoQueryOptions};
use libbpf_rs::{MapCore, MapFlags, MapHandle};
use netreeve_helper::provide::{Provider, Quota};
use netreeve_shared::grant::{FdKind, Grant, XskGrant};
use netreeve_shared::mac::Mac;
use netreeve_shared::refusal::{Refusal, Step};
use netreeve_shared::request::{BadRequest, Request, Steer, XdpMode, XskRequest};
use nix::errno::Errno;

use crate::packet::{Far, frame};
use crate::ring::{Holder, Shape};
use crate::support::*;

const GUEST: Mac = Mac([0x52, 0x54, 0, 0, 0, 9]);
const SOON: Duration = Duration::from_secs(2);
const NEVER: Duration = Duration::from_millis(150);

pub(crate) fn veth(options: &str) {
    namespace();
    ip(&format!("link add v0 {options} type veth peer name v1 {options}"));
    for end in ["v0", "v1"] {
        ip(&format!("link set {end} addrgenmode none"));
        ip(&format!("link set {end} up"));
    }
}

pub(crate) fn request() -> XskRequest {
    XskRequest {
        interface: name("v0"),
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

fn guest_only(broadcast: bool, multicast: bool) -> Steer {
    Steer::Macs { macs: vec![GUEST], broadcast, multicast }
}

pub(crate) fn ask(provider: &mut Provider, asked: &XskRequest) -> Result<(XskGrant, Vec<OwnedFd>), Refusal> {
    let asked = Request::Xsk(asked.clone());
    asked.check().unwrap();
    let (grant, fds) = provider.provide(&asked, UID, &LIMITS)?;
    assert_eq!(grant.fds(), [FdKind::Xsk, FdKind::Umem].repeat(fds.len() / 2));
    let Grant::Xsk(xsk) = grant else { panic!("asked for AF_XDP, got {grant:?}") };
    Ok((xsk, fds))
}

pub(crate) fn activate(provider: &mut Provider, ticket: u32) -> Result<(XdpMode, OwnedFd), Refusal> {
    let (grant, mut fds) = provider.provide(&Request::Activate(ticket), UID, &LIMITS)?;
    assert_eq!((grant.fds(), fds.len()), (vec![FdKind::Link], 1));
    let Grant::Active(active) = grant else { panic!("asked to activate, got {grant:?}") };
    assert_eq!(active.ticket, ticket);
    Ok((active.mode, fds.remove(0)))
}

fn holder(grant: &XskGrant, fds: Vec<OwnedFd>) -> Holder {
    let [socket, memory]: [OwnedFd; 2] = fds.try_into().unwrap();
    Holder::new(socket, memory, Shape { ring: grant.ring, chunk: grant.chunk, chunks: grant.chunks })
}

/// Everything for one queue: granted, filled, activated.
fn live(asked: &XskRequest) -> (XskGrant, Holder, XdpMode, OwnedFd) {
    let mut provider = Provider::default();
    let (grant, fds) = ask(&mut provider, asked).unwrap();
    let holder = holder(&grant, fds);
    let (mode, link) = activate(&mut provider, grant.ticket).unwrap();
    (grant, holder, mode, link)
}

fn attached(interface: &str) -> Option<i64> {
    show(interface)["xdp"]["prog"]["id"].as_i64()
}

/// The program goes asynchronously after the last descriptor.
pub(crate) fn detaches(interface: &str) -> bool {
    let until = Instant::now() + SOON;
    while attached(interface).is_some() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    attached(interface).is_none()
}

/// Frames that the program on `v0` left to the host: not for the guest, no socket, too short.
fn verdicts() -> [u64; 3] {
    let id = u32::try_from(attached("v0").unwrap()).unwrap();
    let options = ProgInfoQueryOptions::default().include_map_ids(true);
    let program = ProgInfoIter::with_query_opts(options).find(|p| p.id == id).unwrap();
    let maps = program.map_ids.iter().map(|id| MapHandle::from_map_id(*id).unwrap());
    let map = maps.into_iter().find(|m| m.name() == netreeve_bpf::VERDICTS).unwrap();
    [0_u32, 1, 2].map(|verdict| {
        let counts = map.lookup_percpu(&verdict.to_ne_bytes(), MapFlags::ANY).unwrap().unwrap();
        counts.iter().map(|c| u64::from_ne_bytes(c[..8].try_into().unwrap())).sum()
    })
}

#[test]
fn frames_come_and_go_in_both_modes_until_the_link_closes() {
    veth("");
    for (asked, expected) in [
        (None, XdpMode::Native),
        (Some(XdpMode::Native), XdpMode::Native),
        (Some(XdpMode::Skb), XdpMode::Skb),
    ] {
        let (grant, mut holder, mode, link) = live(&XskRequest { mode: asked, ..request() });
        assert_eq!(mode, expected);
        assert_eq!(show("v0")["xdp"]["mode"], if mode == XdpMode::Native { 1 } else { 2 });
        // In the stack, longer frames than the MTU come; a mode that is not named may end there.
        let long = asked != Some(XdpMode::Native);
        assert_eq!((grant.mtu, grant.multi_buffer, grant.zero_copy), (1500, long, false));
        assert_eq!(show("v0")["address"], grant.mac.to_string());
        let far = Far::new("v1");
        for tag in 0..200 {
            let sent = frame(GUEST, tag, 60 + usize::from(tag));
            far.send(&sent);
            assert_eq!(holder.receive(SOON).unwrap(), sent);
        }
        let back = frame(Mac::BROADCAST, 5, 1514);
        holder.send(&back);
        assert_eq!(far.receive(SOON, |f| f[12..14] == [0x88, 0xb5]).unwrap(), back);
        drop(link);
        assert!(detaches("v0"));
        far.send(&frame(GUEST, 1, 60));
        assert_eq!(holder.receive(NEVER), None);
    }
}

/// As kernels before 6.4 need it: mapped and filled first, and bound by the one request that lets frames come.
#[test]
fn sockets_that_are_bound_late_are_as_good() {
    veth("");
    // This thread has the kernel say that it is Linux 2.6.
    // SAFETY: a plain number; it changes what uname(2) says to this thread.
    assert_ne!(unsafe { libc::personality(0x2_0000) }, -1);
    let mut provider = Provider::default();
    let (grant, fds) = ask(&mut provider, &request()).unwrap();
    let sent = frame(GUEST, 7, 100);
    let mut holder = holder(&grant, fds);
    // Another has the queue meanwhile, and it can be asked again.
    let (_, other, _, link) = live(&request());
    assert_eq!(activate(&mut provider, grant.ticket).unwrap_err(), Refusal::Busy);
    drop((other, link));
    let until = Instant::now() + SOON;
    let (mode, _link) = loop {
        match activate(&mut provider, grant.ticket) {
            Ok(live) => break live,
            Err(e) => assert!(e == Refusal::Busy && Instant::now() < until, "{e:?}"),
        }
    };
    assert_eq!(mode, XdpMode::Native);
    let far = Far::new("v1");
    far.send(&sent);
    assert_eq!(holder.receive(SOON).unwrap(), sent);
    holder.send(&frame(Mac::BROADCAST, 5, 1514));
    assert!(far.receive(SOON, |f| f[12..14] == [0x88, 0xb5]).is_some());
}

#[test]
fn without_native_xdp_the_mode_falls_back_unless_it_was_named() {
    veth("");
    ip("link add br0 type bridge");
    ip("link set v0 master br0");
    ip("link set br0 up");
    let on_bridge = XskRequest { interface: name("br0"), ..request() };
    let mut provider = Provider::default();
    let native = XskRequest { mode: Some(XdpMode::Native), ..on_bridge.clone() };
    let (grant, fds) = ask(&mut provider, &native).unwrap();
    let refused = activate(&mut provider, grant.ticket).unwrap_err();
    assert!(matches!(refused, Refusal::Failed { step: Step::Attach, .. }), "{refused:?}");
    drop((provider, fds));
    let (grant, mut holder, mode, _link) = live(&on_bridge);
    assert_eq!((mode, grant.multi_buffer), (XdpMode::Skb, true), "joined frames are not lost there");
    let sent = frame(Mac::BROADCAST, 3, 60);
    Far::new("v1").send(&sent);
    assert_eq!(holder.receive(SOON).unwrap(), sent);
}

#[test]
fn the_host_keeps_its_network_beside_a_steered_guest() {
    for mode in [XdpMode::Native, XdpMode::Skb] {
        for (broadcast, multicast) in [(false, false), (true, false), (false, true), (true, true)] {
            veth("");
            ip("addr add 10.9.0.1/24 dev v0");
            ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:77 dev v0");
            let steer = guest_only(broadcast, multicast);
            let (grant, mut holder, _, _link) = live(&XskRequest { mode: Some(mode), steer, ..request() });
            let far = Far::new("v1");
            let (from, group) = (Mac([2, 0, 0, 0, 0, 0x77]), Mac([0x33, 0x33, 0, 0, 0, 1]));
            assert!(far.ping(grant.mac, from, [10, 9, 0, 1], [10, 9, 0, 2]), "the host answers");
            for (to, expected) in
                [(GUEST, true), (Mac::BROADCAST, broadcast), (group, multicast), (grant.mac, false)]
            {
                let sent = frame(to, 7, 80);
                far.send(&sent);
                let wait = if expected { SOON } else { NEVER };
                assert_eq!(holder.receive(wait), expected.then_some(sent), "{to} {broadcast} {multicast}");
            }
            let [passed, no_socket, short] = verdicts();
            let groups = u64::from(broadcast) + u64::from(multicast);
            assert_eq!((no_socket, short), (0, 0));
            assert!(passed >= 4 - groups, "the ping, the host's frame and unwanted groups: {passed}");
        }
    }
}

#[test]
fn each_queue_has_its_socket_and_a_queue_without_one_goes_to_the_host() {
    veth("numrxqueues 3 numtxqueues 3");
    let mut provider = Provider::default();
    let (grant, mut fds) =
        ask(&mut provider, &XskRequest { queues: 2, start_queue: 1, ..request() }).unwrap();
    let second = fds.split_off(2);
    let mut holders = [holder(&grant, fds), holder(&grant, second)];
    let (_, _link) = activate(&mut provider, grant.ticket).unwrap();
    let far = Far::new("v1");
    for tag in 0..60 {
        far.send(&frame(GUEST, tag, 60));
    }
    let got: u64 = holders.iter_mut().map(|h| std::iter::from_fn(|| h.receive(NEVER)).count() as u64).sum();
    let [_, no_socket, _] = verdicts();
    assert_eq!(got + no_socket, 60);
}

#[test]
fn jumbo_frames_come_whole() {
    for (mode, chunk) in [(XdpMode::Native, 4096), (XdpMode::Skb, 4096), (XdpMode::Native, 2048)] {
        veth("mtu 9000");
        let (grant, mut holder, _, _link) = live(&XskRequest { mode: Some(mode), chunk, ..request() });
        assert_eq!((grant.mtu, grant.multi_buffer), (9000, true));
        for (tag, bytes) in [(0, 60), (1, 1514), (2, 4200), (3, 9014)] {
            let sent = frame(GUEST, tag, bytes);
            Far::new("v1").send(&sent);
            assert!(holder.receive(SOON).unwrap() == sent, "{mode:?} {bytes}");
        }
    }
}

#[test]
fn a_queue_in_use_is_busy_and_one_just_left_is_waited_for() {
    veth("numrxqueues 2 numtxqueues 2");
    let (_, holder, _, link) = live(&request());
    let took = [(); 3].map(|()| {
        let began = Instant::now();
        assert_eq!(ask(&mut Provider::default(), &request()).unwrap_err(), Refusal::Busy);
        began.elapsed()
    });
    // Waiting for the kernel, not for the holder: others wait with us. (The machine may be busy in some tries.)
    let least = took.into_iter().min().unwrap();
    assert!((Duration::from_millis(60)..Duration::from_millis(400)).contains(&least), "{took:?}");
    let mut other = Provider::default();
    for mode in [None, Some(XdpMode::Native), Some(XdpMode::Skb)] {
        let (grant, fds) = ask(&mut other, &XskRequest { mode, start_queue: 1, ..request() }).unwrap();
        assert_eq!(
            activate(&mut other, grant.ticket).unwrap_err(),
            Refusal::Busy,
            "one program an interface"
        );
        drop((fds, std::mem::take(&mut other)));
    }
    let (grant, fds) = ask(&mut other, &XskRequest { start_queue: 1, ..request() }).unwrap();
    assert_eq!(activate(&mut other, grant.ticket).unwrap_err(), Refusal::Busy);
    drop((holder, link));
    assert!(detaches("v0"));
    assert!(activate(&mut other, grant.ticket).is_ok(), "a ticket survives a failed activation");
    drop(fds);
    // The kernel gives a queue back some milliseconds later, or more if the machine is busy.
    let mut again = (0..8).map(|_| ask(&mut Provider::default(), &request()));
    assert!(again.any(|answer| answer.is_ok()));
}

#[test]
fn the_hosts_own_address_is_not_steered_away() {
    veth("");
    let own: Mac = show("v0")["address"].as_str().unwrap().parse().unwrap();
    let asked =
        |macs| XskRequest { steer: Steer::Macs { macs, broadcast: false, multicast: false }, ..request() };
    let refused = ask(&mut Provider::default(), &asked(vec![GUEST, own])).unwrap_err();
    assert_eq!(refused, Refusal::Bad(BadRequest::Steer));
    let pinned = Request::XskPinned(asked(vec![own]));
    assert_eq!(
        Provider::default().provide(&pinned, UID, &LIMITS).unwrap_err(),
        Refusal::Bad(BadRequest::Steer)
    );
    assert!(ask(&mut Provider::default(), &asked(vec![GUEST])).is_ok());
}

/// What was allowed is a name; a socket is bound to an index.
#[test]
fn a_ticket_is_void_once_its_interface_has_another_name() {
    veth("");
    let mut provider = Provider::default();
    let (grant, _fds) = ask(&mut provider, &request()).unwrap();
    ip("link set v0 name w0");
    let refused = |errno| Refusal::Failed { step: Step::FindInterface, errno };
    assert_eq!(activate(&mut provider, grant.ticket).unwrap_err(), refused(libc::ENODEV));
    // Another interface has the name now.
    ip("link add v0 type veth peer name x1");
    assert_eq!(activate(&mut provider, grant.ticket).unwrap_err(), refused(libc::EXDEV));
    assert_eq!((attached("v0"), attached("w0")), (None, None));
    ip("link del v0");
    ip("link set w0 name v0");
    assert!(activate(&mut provider, grant.ticket).is_ok());
}

#[test]
fn what_is_handed_out_is_confined() {
    veth("");
    ip("link add w0 type veth peer name w1");
    ip("link set w0 up");
    let mut provider = Provider::default();
    let (_grant, fds) = ask(&mut provider, &request()).unwrap();
    let elsewhere = u32::try_from(show("w0")["ifindex"].as_i64().unwrap()).unwrap();
    assert!(bind(fds[0].as_fd(), elsewhere).is_err(), "a bound socket is never re-targeted");
    let memory = &fds[1];
    assert_eq!(nix::unistd::ftruncate(memory, 0), Err(Errno::EPERM));
    assert_eq!(nix::unistd::ftruncate(memory, 1 << 30), Err(Errno::EPERM));
    for fd in &fds {
        let flags = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
    }
}

#[test]
fn tickets_and_quotas_hold() {
    veth("");
    let mut provider = Provider::default();
    assert_eq!(activate(&mut provider, 1).unwrap_err(), Refusal::Ticket);
    let (grant, _fds) = ask(&mut provider, &request()).unwrap();
    let _link = activate(&mut provider, grant.ticket).unwrap();
    assert_eq!(activate(&mut provider, grant.ticket).unwrap_err(), Refusal::Ticket, "used");
    assert_eq!(
        activate(&mut Provider::default(), grant.ticket).unwrap_err(),
        Refusal::Ticket,
        "another session's"
    );
    assert_eq!(provider.umem_bytes(), 2048 * 64);
    let limits = Quota { umem: 2048 * 64 * 2 - 1, ..LIMITS };
    let more = provider.provide(&Request::Xsk(request()), UID, &limits);
    assert_eq!(more.unwrap_err(), Refusal::Limit);
}

#[test]
fn wrong_places_are_refused_with_the_step() {
    veth("");
    let cases = [("none", Step::FindInterface, libc::ENODEV), ("lo", Step::FindInterface, libc::EOPNOTSUPP)];
    for (interface, step, errno) in cases {
        let refused = ask(&mut Provider::default(), &XskRequest { interface: name(interface), ..request() });
        assert_eq!(refused.unwrap_err(), Refusal::Failed { step, errno }, "{interface}");
    }
    let refused = ask(&mut Provider::default(), &XskRequest { start_queue: 9, ..request() }).unwrap_err();
    assert_eq!(refused, Refusal::Failed { step: Step::BindQueue, errno: libc::EINVAL });
}

#[test]
fn a_pinned_socket_binds_here_and_nowhere_else_and_lives_with_the_session() {
    for mode in [XdpMode::Native, XdpMode::Skb] {
        veth("");
        ip("link add w0 type veth peer name w1");
        ip("link set w0 up");
        let mut provider = Provider::default();
        let asked = Request::XskPinned(XskRequest { mode: Some(mode), ..request() });
        let (grant, mut fds) = provider.provide(&asked, UID, &LIMITS).unwrap();
        assert_eq!((grant.fds(), fds.len()), (vec![FdKind::Xsk], 1));
        let socket = fds.remove(0);
        let Grant::XskPinned(grant) = grant else { panic!("{grant:?}") };
        // What QEMU does: its own memory, its own rings, its own bind.
        let memory = nix::sys::memfd::memfd_create(c"vmm", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&memory, 64 * 2048).unwrap();
        make_rings(socket.as_fd(), memory.as_fd());
        let elsewhere = u32::try_from(show("w0")["ifindex"].as_i64().unwrap()).unwrap();
        assert_eq!(bind(socket.as_fd(), elsewhere), Err(Errno::EINVAL));
        bind(socket.as_fd(), grant.ifindex).unwrap();
        let mut holder = Holder::new(socket, memory, Shape { ring: 64, chunk: 2048, chunks: 64 });
        provider.tick();
        assert!(!provider.wants_tick());
        let sent = frame(GUEST, 1, 60);
        Far::new("v1").send(&sent);
        assert_eq!(holder.receive(SOON).unwrap(), sent);
        drop(provider);
        assert!(detaches("v0"), "the session kept the link");
    }
}

fn make_rings(socket: BorrowedFd<'_>, memory: BorrowedFd<'_>) {
    let (rw, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping; it stays until the process ends.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), 64 * 2048, rw, shared, memory.as_raw_fd(), 0) };
    // SAFETY: a structure of integers.
    let mut umem: libc::xdp_umem_reg = unsafe { std::mem::zeroed() };
    (umem.addr, umem.len, umem.chunk_size) = (at.addr() as u64, 64 * 2048, 2048);
    let set = |option, value: *const libc::c_void, size: usize| {
        let size = libc::socklen_t::try_from(size).unwrap();
        // SAFETY: `size` readable bytes.
        assert_eq!(unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_XDP, option, value, size) }, 0);
    };
    set(libc::XDP_UMEM_REG, (&raw const umem).cast(), size_of_val(&umem));
    for ring in
        [libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING, libc::XDP_RX_RING, libc::XDP_TX_RING]
    {
        set(ring, (&raw const RING).cast(), size_of_val(&RING));
    }
}

static RING: u32 = 64;

fn bind(socket: BorrowedFd<'_>, ifindex: u32) -> nix::Result<()> {
    let address = libc::sockaddr_xdp {
        sxdp_family: u16::try_from(libc::AF_XDP).unwrap(),
        sxdp_flags: 0,
        sxdp_ifindex: ifindex,
        sxdp_queue_id: 0,
        sxdp_shared_umem_fd: 0,
    };
    let size = libc::socklen_t::try_from(size_of_val(&address)).unwrap();
    // SAFETY: `size` readable bytes.
    let answer = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) };
    Errno::result(answer).map(drop)
}
