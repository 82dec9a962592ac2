//! What stands at one side of a wire: the options that make the port, and how its far end is met, again and again.

use std::fs::{self, Permissions};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Instant;

use netreeve_dataplane::sys::fd::raw_socket;
use netreeve_tests::netns::Netns;
use netreeve_tests::scene::Scene;
use netreeve_tests::sys::{packet_reader, packet_socket};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, SockaddrStorage, UnixAddr, bind, connect, listen,
    recv, send, setsockopt, socket, socketpair, sockopt,
};

use crate::far::{Far, Form, Framing, Guest, Link, Messages, PATIENCE, Party, Server, Stream};

/// Where a run takes place.
pub(crate) struct Place<'a> {
    pub(crate) scene: &'a Scene,
    /// The run's own directory, where `netreeve` may make files.
    pub(crate) dir: PathBuf,
    /// The run's own number.
    pub(crate) number: u16,
}

type Meet<'a> = Box<dyn FnMut() -> Box<dyn Far> + Send + 'a>;

/// One side of a wire.
pub(crate) struct Stand<'a> {
    /// Netdevs that belong to it.
    pub(crate) beside: Vec<String>,
    /// The port, but for its name and its peer.
    pub(crate) port: String,
    /// Descriptors that it inherits.
    pub(crate) inherits: Vec<OwnedFd>,
    /// Connects its far end. Once `netreeve` runs.
    pub(crate) meet: Meet<'a>,
    /// The host's port behind a `user` network.
    pub(crate) server: Option<u16>,
}

impl<'a> Stand<'a> {
    fn new(port: String, meet: impl FnMut() -> Box<dyn Far> + Send + 'a) -> Self {
        Self { beside: Vec::new(), port, inherits: Vec::new(), meet: Box::new(meet), server: None }
    }
}

/// Tries until it can be had.
fn until<T, E: std::fmt::Debug>(what: &str, mut get: impl FnMut() -> Result<T, E>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match get() {
            Ok(got) => return got,
            Err(e) => assert!(Instant::now() < end, "{what}: {e:?}"),
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// A port of TCP or UDP that nobody has, in the scene's own namespace.
fn free() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(10_000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Place<'_> {
    fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A socket's file that everybody may connect to.
    fn open_to_all(path: &PathBuf) {
        fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    }

    fn index(ns: &Netns, link: &str) -> u32 {
        ns.enter(|| until(link, || nix::net::if_::if_nametoindex(link))).unwrap()
    }
}

/// Packet sockets on `link` of `ns`.
fn on_link(ns: &Netns, link: &str) -> Box<dyn Far> {
    let index = Place::index(ns, link);
    ns.enter(|| Box::new(Link::new(packet_socket(index).unwrap(), packet_reader(index, 256 << 20).unwrap())))
        .unwrap()
}

pub(crate) fn tap<'a>(p: &Place<'a>, more: &str) -> Stand<'a> {
    let (host, link) = (&p.scene.host, format!("ct{}", p.number));
    Stand::new(format!("tap,ifname={link}{more}"), move || on_link(host, &link))
}

pub(crate) fn bridge<'a>(p: &Place<'a>, _: &str) -> Stand<'a> {
    let (host, link) = (&p.scene.host, format!("cb{}", p.number));
    host.sh(&format!(
        "ip link add {link} type bridge forward_delay 0 mcast_snooping 0; ip link set {link} up"
    ))
    .unwrap();
    Stand::new(format!("bridge,br={link}"), move || on_link(host, &link))
}

pub(crate) fn xdp<'a>(p: &Place<'a>, mode: &str) -> Stand<'a> {
    let (far, link, there) = (&p.scene.far, format!("cx{}", p.number), format!("cy{}", p.number));
    netreeve_tests::netns::veth(&p.scene.host, &link, far, &there).unwrap();
    Stand::new(format!("af-xdp,ifname={link},ring=256{mode}"), move || on_link(far, &there))
}

fn framing(options: &str) -> Framing {
    match options.split_once("framing=").map_or("", |(_, name)| name) {
        "u16le" => Framing::Little16,
        "u16be" => Framing::Big16,
        "vnet" => Framing::Vnet,
        _ => Framing::Qemu,
    }
}

/// Options of a UNIX address that is no path.
const ABSTRACT: &str = ",addr.abstract=on";

/// What a socket's name is with these options.
fn name(path: &Path, options: &str) -> UnixAddr {
    match options {
        ABSTRACT => UnixAddr::new_abstract(path.as_os_str().as_bytes()),
        _ => UnixAddr::new(path),
    }
    .unwrap()
}

/// `netreeve` listens at a path. `options`: the framing, or that it is no path.
pub(crate) fn unix_server<'a>(p: &Place<'a>, options: &str) -> Stand<'a> {
    let (path, framing, host) = (p.at(&format!("s{}", free())), framing(options), &p.scene.host);
    let port = format!("stream,server=on,addr.type=unix,addr.path={}{options}", path.display());
    let at = name(&path, options);
    Stand::new(port, move || {
        let dial = || -> nix::Result<OwnedFd> {
            let s = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            connect(s.as_raw_fd(), &at)?;
            Ok(s)
        };
        let s = host.enter(|| until("dialling", dial)).unwrap();
        Box::new(Stream::new(UnixStream::from(s), framing))
    })
}

/// Where `netreeve` dials. Whoever was dialled listens no more until he is to be dialled again, so that meanwhile he is not
/// there.
fn listener(path: &PathBuf, sort: SockType) -> UnixListener {
    let _gone = fs::remove_file(path);
    let listener = listener_at(&UnixAddr::new(path).unwrap(), sort);
    Place::open_to_all(path);
    listener
}

fn listener_at(at: &UnixAddr, sort: SockType) -> UnixListener {
    let s = socket(AddressFamily::Unix, sort, NOW, None).unwrap();
    bind(s.as_raw_fd(), at).unwrap();
    listen(&s, Backlog::new(4).unwrap()).unwrap();
    UnixListener::from(s)
}

/// `netreeve` dials. `options`: as above.
pub(crate) fn unix_client<'a>(p: &Place<'a>, options: &str) -> Stand<'a> {
    let (path, framing, host) = (p.at(&format!("c{}", free())), framing(options), &p.scene.host);
    let port = format!("stream,addr.type=unix,addr.path={},reconnect-ms=5{options}", path.display());
    let at = name(&path, options);
    let listens = move || match at.as_abstract() {
        Some(_) => host.enter(|| listener_at(&at, SockType::Stream)).unwrap(),
        None => listener(&path, SockType::Stream),
    };
    let mut first = Some(listens());
    Stand::new(port, move || {
        let listener = first.take().unwrap_or_else(&listens);
        Box::new(Stream::new(until("being dialled", || listener.accept()).0, framing))
    })
}

/// The loopback interface's address: `options` of `v6` mean IPv6's.
fn loopback(options: &str) -> IpAddr {
    if options.contains("v6") { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() }
}

/// TCP, `netreeve` listens. `options`: `socket` for the older words, or `v6`.
pub(crate) fn tcp_server<'a>(p: &Place<'a>, options: &str) -> Stand<'a> {
    let (host, at) = (&p.scene.host, SocketAddr::from((loopback(options), free())));
    let port = match options {
        "socket" => format!("socket,listen={at}"),
        _ => format!("stream,server=on,addr.type=inet,addr.host={},addr.port={}", at.ip(), at.port()),
    };
    Stand::new(port, move || {
        let s = host.enter(|| until("dialling", || TcpStream::connect(at))).unwrap();
        s.set_nodelay(true).unwrap();
        Box::new(Stream::new(s, Framing::Qemu))
    })
}

/// TCP, `netreeve` dials. `options`: as above.
pub(crate) fn tcp_client<'a>(p: &Place<'a>, options: &str) -> Stand<'a> {
    let at = SocketAddr::from((loopback(options), free()));
    let host = &p.scene.host;
    let listener = move || host.enter(|| until("listening", || TcpListener::bind(at))).unwrap();
    let mut first = Some(listener());
    let port = match options {
        "socket" => format!("socket,connect={at}"),
        _ => format!("stream,addr.type=inet,addr.host={},addr.port={},reconnect-ms=5", at.ip(), at.port()),
    };
    Stand::new(port, move || {
        let listener = first.take().unwrap_or_else(listener);
        listener.set_nonblocking(true).unwrap();
        let s = until("being dialled", || listener.accept()).0;
        s.set_nodelay(true).unwrap();
        Box::new(Stream::new(s, Framing::Qemu))
    })
}

const NOW: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

/// Messages of a connection, `netreeve` listens.
pub(crate) fn packets_server<'a>(p: &Place<'a>, _: &str) -> Stand<'a> {
    let path = p.at(&format!("q{}", free()));
    let port = format!("stream,server=on,addr.type=unix,addr.path={},framing=seqpacket", path.display());
    Stand::new(port, move || {
        let at = UnixAddr::new(&path).unwrap();
        let s = until("dialling", || -> nix::Result<OwnedFd> {
            let s = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
            connect(s.as_raw_fd(), &at)?;
            Ok(s)
        });
        Box::new(Messages::new(s, packets(), Vec::new()))
    })
}

/// Messages of a connection, `netreeve` dials.
pub(crate) fn packets_client<'a>(p: &Place<'a>, _: &str) -> Stand<'a> {
    let path = p.at(&format!("q{}", free()));
    let mut first = Some(listener(&path, SockType::SeqPacket));
    let port = format!("stream,addr.type=unix,addr.path={},reconnect-ms=5,framing=seqpacket", path.display());
    Stand::new(port, move || {
        let listener = first.take().unwrap_or_else(|| listener(&path, SockType::SeqPacket));
        let s = until("being dialled", || listener.accept()).0;
        Box::new(Messages::new(s, packets(), Vec::new()))
    })
}

fn packets() -> Form {
    Form { connection: true, bad: (Vec::new(), "runt"), ..Form::default() }
}

/// UNIX datagrams to and from a peer at a path. `options`: at none, if there are any.
pub(crate) fn unix_datagrams<'a>(p: &Place<'a>, options: &str) -> Stand<'a> {
    let (n, host) = (free(), &p.scene.host);
    let (ours, theirs) = (p.at(&format!("d{n}")), p.at(&format!("e{n}")));
    let end = |which: &str, path: &Path| {
        let more = options.replace("addr.", &format!("{which}."));
        format!("{which}.type=unix,{which}.path={}{more}", path.display())
    };
    let port = format!("dgram,{},{}", end("local", &ours), end("remote", &theirs));
    let (here, there) = (name(&ours, options), name(&theirs, options));
    Stand::new(port, move || {
        let _gone = fs::remove_file(&theirs);
        let s = host
            .enter(|| {
                let s = socket(AddressFamily::Unix, SockType::Datagram, NOW, None).unwrap();
                // Who had an abstract name before may be about to go.
                until("a name", || bind(s.as_raw_fd(), &there));
                if there.as_abstract().is_none() {
                    Place::open_to_all(&theirs);
                }
                until("aiming", || connect(s.as_raw_fd(), &here));
                s
            })
            .unwrap();
        Box::new(Messages::plain(s, Vec::new()))
    })
}

/// A socket to which a client comes, and greets.
pub(crate) fn visitors<'a>(p: &Place<'a>, _: &str) -> Stand<'a> {
    let n = free();
    let (ours, theirs) = (p.at(&format!("d{n}")), p.at(&format!("e{n}")));
    let (mut next, mut visited) = (0, None);
    Stand::new(format!("dgram,local.type=unix,local.path={}", ours.display()), move || {
        next += 1;
        // Who was there before has to be missed, and his socket to be replaced: until then that may be reached, and is deaf.
        visited = Some(until("another socket", || {
            let file = fs::metadata(&ours).map_err(|e| e.to_string())?.ino();
            if visited == Some(file) { Err("the one before is there".to_owned()) } else { Ok(file) }
        }));
        let theirs = theirs.with_extension(next.to_string());
        let s = UnixDatagram::bind(&theirs).unwrap();
        Place::open_to_all(&theirs);
        until("visiting", || {
            s.connect(&ours)?;
            s.send(b"VFKT")
        });
        Box::new(Messages::plain(s, Vec::new()))
    })
}

/// UDP. `options`: `socket` for the older words, `v6`, or `l2tpv3`, perhaps ` v6`.
pub(crate) fn udp<'a>(p: &Place<'a>, options: &str) -> Stand<'a> {
    let (here, there) = (free(), free());
    let local = loopback(options);
    let s = p.scene.host.enter(|| UdpSocket::bind((local, there))).unwrap().unwrap();
    s.connect((local, here)).unwrap();
    let (port, form) = match options {
        "socket" => (format!("socket,udp=127.0.0.1:{there},localaddr=127.0.0.1:{here}"), None),
        "l2tpv3" | "l2tpv3 v6" => {
            let v6 = if local.is_ipv6() { "ipv6=on," } else { "" };
            let ports = format!("{v6}udp=on,srcport={here},dstport={there}");
            (format!("l2tpv3,src={local},dst={local},{ports},{SESSION}"), Some(session(&[0, 3, 0, 0])))
        }
        _ => {
            let end =
                |which: &str, port| format!("{which}.type=inet,{which}.host={local},{which}.port={port}");
            (format!("dgram,{},{}", end("local", here), end("remote", there)), None)
        }
    };
    Stand::new(port, move || {
        let s = s.try_clone().unwrap();
        match &form {
            None => Box::new(Messages::plain(s, Vec::new())),
            Some(form) => Box::new(Messages::new(s, form.clone(), Vec::new())),
        }
    })
}

/// Session and cookie of the tunnels here.
const SESSION: &str = "txsession=7,rxsession=8,cookie64=on,txcookie=72623859790382856,rxcookie=1";

/// What stands before frames, behind these bytes: session, cookie.
fn session(before: &[u8]) -> Form {
    let behind = [before, &[0, 0, 0, 7, 1, 2, 3, 4, 5, 6, 7, 8]].concat();
    let head = [before, &[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1]].concat();
    let wrong = [before, &[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 9], &[7; 60]].concat();
    Form { head, behind, bad: (wrong, "cookie"), ..Form::default() }
}

/// L2TPv3 over IP, by a socket of the helper's. `options`: perhaps `v6`.
pub(crate) fn tunnel<'a>(p: &Place<'a>, options: &str) -> Stand<'a> {
    // Addresses of this run's own, for sessions know no ports.
    let ([high, low], v6) = (p.number.to_be_bytes(), options == "v6");
    let [here, there] = [1_u8, 2].map(|end| match v6 {
        true => IpAddr::from(Ipv6Addr::new(0xfd55, 0, 0, 0, 0, 0, end.into(), p.number)),
        false => Ipv4Addr::new(127, end, high, low).into(),
    });
    if v6 {
        for ip in [here, there] {
            p.scene.host.sh(&format!("ip addr add {ip}/128 dev lo nodad")).unwrap();
        }
    }
    let s = p.scene.host.enter(|| raw_socket(v6, 115)).unwrap().unwrap();
    let at = |ip: IpAddr| SockaddrStorage::from(SocketAddr::from((ip, 0)));
    bind(s.as_raw_fd(), &at(there)).unwrap();
    connect(s.as_raw_fd(), &at(here)).unwrap();
    // What came before it had an address is of other runs.
    while recv(s.as_raw_fd(), &mut [0; 1], MsgFlags::MSG_DONTWAIT).is_ok() {}
    let family = if v6 { "ipv6=on," } else { "" };
    Stand::new(format!("l2tpv3,src={here},dst={there},{family}{SESSION}"), move || {
        // Of IPv6 it gives no header.
        Box::new(Messages::new(s.try_clone().unwrap(), Form { ip: !v6, ..session(&[]) }, Vec::new()))
    })
}

/// A multicast group, on the loopback interface.
pub(crate) fn multicast<'a>(p: &Place<'a>, options: &str) -> Stand<'a> {
    let group = Ipv4Addr::new(239, 9, 0, 1);
    let (to, host) = (SocketAddr::from((group, free())), &p.scene.host);
    let port = match options {
        "socket" => format!("socket,mcast={to},localaddr=127.0.0.1"),
        _ => format!(
            "dgram,remote.type=inet,remote.host={group},remote.port={},local.type=inet,local.host=127.0.0.1,local.port=0",
            to.port()
        ),
    };
    Stand::new(port, move || {
        host.enter(|| {
            let tx = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            tx.set_multicast_loop_v4(true).unwrap();
            let rx = socket(AddressFamily::Inet, SockType::Datagram, NOW, None).unwrap();
            setsockopt(&rx, sockopt::ReuseAddr, &true).unwrap();
            bind(rx.as_raw_fd(), &SockaddrStorage::from(to)).unwrap();
            let rx = UdpSocket::from(rx);
            rx.join_multicast_v4(&group, &Ipv4Addr::LOCALHOST).unwrap();
            Box::new(Party::new(tx, rx.into(), to)) as Box<dyn Far>
        })
        .unwrap()
    })
}

/// `socket,fd=`: one end of a pair of streams or of datagram sockets.
pub(crate) fn inherited<'a>(_: &Place<'a>, kind: &str) -> Stand<'a> {
    let sort = if kind == "stream" { SockType::Stream } else { SockType::Datagram };
    let (ours, theirs) = socketpair(AddressFamily::Unix, sort, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let is_stream = kind == "stream";
    let port = format!("socket,fd={}", ours.as_raw_fd());
    // The end of the one that is kept here would not be seen by anybody.
    let mut theirs = Some(theirs);
    let mut stand = Stand::new(port, move || {
        let s = if is_stream { theirs.take() } else { theirs.as_ref().map(|s| s.try_clone().unwrap()) };
        let s = s.expect("it has no address, and cannot come back");
        if is_stream {
            Box::new(Stream::new(s, Framing::Qemu))
        } else {
            Box::new(Messages::plain(s, Vec::new()))
        }
    });
    stand.inherits.push(ours);
    stand
}

/// What a VDE plug says, and what it is answered (`port` 0: any).
fn vde_request(file: &str) -> Vec<u8> {
    let mut r: Vec<u8> = [0xfeed_face_u32, 3, 0].iter().flat_map(|w| w.to_ne_bytes()).collect();
    r.extend(address(file));
    r.extend(b"a test");
    r
}

/// A `struct sockaddr_un`.
fn address(file: &str) -> Vec<u8> {
    let mut a = 1_u16.to_ne_bytes().to_vec();
    a.extend(file.as_bytes());
    a.resize(110, 0);
    a
}

fn path_in(address: &[u8]) -> String {
    let path = address[2..110].iter().copied().take_while(|b| *b != 0).collect();
    String::from_utf8(path).unwrap()
}

/// A plug in a switch of this test's.
pub(crate) fn vde<'a>(p: &Place<'a>, _: &str) -> Stand<'a> {
    let dir = p.at("sw");
    fs::create_dir(&dir).unwrap();
    Place::open_to_all(&dir);
    let listener = UnixListener::bind(dir.join("ctl")).unwrap();
    Place::open_to_all(&dir.join("ctl"));
    listener.set_nonblocking(true).unwrap();
    let mut next = 0;
    Stand::new(format!("vde,sock={},reconnect-ms=5", dir.display()), move || {
        next += 1;
        let ctl = until("a plug", || listener.accept()).0;
        let mut request = [0; 256];
        let n = until("its request", || recv(ctl.as_raw_fd(), &mut request, MsgFlags::MSG_DONTWAIT));
        assert!((122..=250).contains(&n), "a request of {n} bytes");
        let file = dir.join(format!("port{next}"));
        let data = UnixDatagram::bind(&file).unwrap();
        Place::open_to_all(&file);
        data.connect(path_in(&request[12..])).unwrap();
        send(ctl.as_raw_fd(), &address(file.to_str().unwrap()), MsgFlags::empty()).unwrap();
        Box::new(Messages::plain(data, vec![ctl.into()]))
    })
}

/// A switch of `netreeve`'s, and a plug of this test's.
pub(crate) fn vde_switch<'a>(p: &Place<'a>, _: &str) -> Stand<'a> {
    let (dir, plugs) = (p.at("sw"), p.at("plug"));
    let mut next = 0;
    Stand::new(format!("vde,server=on,sock={}", dir.display()), move || {
        next += 1;
        let file = plugs.with_extension(next.to_string());
        let data = UnixDatagram::bind(&file).unwrap();
        Place::open_to_all(&file);
        let ctl = until("the switch", || UnixStream::connect(dir.join("ctl")));
        send(ctl.as_raw_fd(), &vde_request(file.to_str().unwrap()), MsgFlags::empty()).unwrap();
        let mut answer = [0; 110];
        let n = until("the switch's answer", || recv(ctl.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT));
        assert_eq!(n, 110, "the switch's answer");
        data.connect(path_in(&answer)).unwrap();
        Box::new(Messages::plain(data, vec![ctl.into()]))
    })
}

/// A place in a hub, whose other member is a stream.
pub(crate) fn hub<'a>(p: &Place<'a>, _: &str) -> Stand<'a> {
    let member = unix_server(p, "");
    let beside = vec![format!("{},id=m0", member.port), "hubport,id=h0,hubid=7,netdev=m0".to_owned()];
    Stand { beside, port: "hubport,hubid=7".to_owned(), ..member }
}

/// A guest's driver. `options`: `packed` for rings of that form.
pub(crate) fn guest<'a>(p: &Place<'a>, options: &str) -> Stand<'a> {
    let (path, packed) = (p.at(&format!("v{}", free())), options == "packed");
    Stand::new(format!("vhost-user,path={}", path.display()), move || {
        Box::new(Guest::new(path.clone(), packed))
    })
}

/// The network of `netreeve`'s own making, and a server on the host.
pub(crate) fn user<'a>(p: &Place<'a>, _: &str) -> Stand<'a> {
    let port = free();
    let s = p.scene.host.enter(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, port))).unwrap().unwrap();
    let stand =
        Stand::new("user,preset=qemu".to_owned(), move || Box::new(Server::new(s.try_clone().unwrap())));
    Stand { server: Some(port), ..stand }
}
