//! Tables: every option, every exclusion rule, QEMU's words (as its versions 10.0 and 11.1 print them).

use netreeve_shared::ifname::IfName;
use netreeve_shared::request::{BridgeRequest, Request, Steer, TapRequest, XdpMode, XskRequest};
use proptest::prelude::*;

use super::addr::{Addr, Inet, TcpOptions};
use super::stream::Stream;
use super::tap::Tap;
use super::vhost_user::VhostUser;
use super::xsk::Xsk;
use super::*;
use crate::port::stream::framing::Framing;

fn name(s: &str) -> IfName {
    IfName::new(s).unwrap()
}

fn netdev(text: &str) -> Result<(Kind, Vec<String>), Fault> {
    let mut c = Config::read(&[text.to_owned()], &[], None)?;
    assert_eq!(c.unjoined().count(), 1);
    c.warnings.retain(|w| !w.ends_with("has no peer"));
    Ok((c.ports.remove(0).kind, c.warnings))
}

fn device(text: &str) -> Result<Config, Fault> {
    Config::read(&["tap,id=n0".to_owned()], &[text.to_owned()], None)
}

fn tap() -> TapRequest {
    TapRequest { name: None, persist: false, queues: 1, vnet_header: true, mtu: None, bridge: None }
}

fn bridge(n: &str) -> BridgeRequest {
    BridgeRequest { name: name(n), create: false, isolated: false }
}

fn xsk() -> XskRequest {
    XskRequest {
        interface: name("eth0"),
        mode: None,
        queues: 1,
        start_queue: 0,
        force_copy: false,
        ring: 2048,
        chunk: 0,
        chunks: 0,
        steer: Steer::All,
    }
}

fn unix(p: &str) -> Stream {
    Stream::plain(Addr::Unix(p.into()), false)
}

fn inet() -> Inet {
    Inet {
        host: "h".into(),
        port: 80,
        to: None,
        ipv4: true,
        ipv6: true,
        options: TcpOptions::default(),
        found: Vec::new(),
    }
}

#[test]
fn every_option_of_tap_and_bridge() {
    let asked = |t: TapRequest| Kind::Tap(Tap::Asked(t));
    let br = |b: BridgeRequest| TapRequest { bridge: Some(b), ..tap() };
    let table: Vec<(&str, Kind)> = vec![
        ("tap,id=n", asked(tap())),
        ("type=tap,id=n", asked(tap())),
        ("id=n,type=tap", asked(tap())),
        ("tap,id=n,", asked(tap())),
        ("tap,id=n,br=b", asked(br(bridge("b")))),
        ("tap,id=n,br=b,isolated=on", asked(br(BridgeRequest { isolated: true, ..bridge("b") }))),
        ("tap,id=n,br=b,create=on", asked(br(BridgeRequest { create: true, ..bridge("b") }))),
        ("tap,id=n,br=a,br=b", asked(br(bridge("b")))),
        ("tap,id=n,ifname=t0", asked(TapRequest { name: Some(name("t0")), ..tap() })),
        (
            "tap,id=n,ifname=t0,persist=on",
            asked(TapRequest { name: Some(name("t0")), persist: true, ..tap() }),
        ),
        ("tap,id=n,queues=4", asked(TapRequest { queues: 4, ..tap() })),
        ("tap,id=n,queues=0x4", asked(TapRequest { queues: 4, ..tap() })),
        ("tap,id=n,vnet_hdr=off", asked(TapRequest { vnet_header: false, ..tap() })),
        ("tap,id=n,vnet_hdr=no", asked(TapRequest { vnet_header: false, ..tap() })),
        ("tap,id=n,novnet_hdr", asked(TapRequest { vnet_header: false, ..tap() })),
        ("tap,id=n,vnet_hdr=true", asked(tap())),
        ("tap,id=n,mtu=9000", asked(TapRequest { mtu: Some(9000), ..tap() })),
        ("tap,id=n,script=no,downscript=no", asked(tap())),
        ("tap,id=n,vhost=off,sndbuf=0,poll-us=0", asked(tap())),
        ("tap,id=n,fd=3", Kind::Tap(Tap::Handed(vec![3]))),
        ("tap,id=n,fds=3:4:7", Kind::Tap(Tap::Handed(vec![3, 4, 7]))),
        (r#"{"type":"tap","id":"n","queues":4,"vnet_hdr":false}"#, {
            asked(TapRequest { queues: 4, vnet_header: false, ..tap() })
        }),
        (r#"{"type":"tap","id":"n","fds":["3","4"]}"#, Kind::Tap(Tap::Handed(vec![3, 4]))),
        ("bridge,id=n", asked(br(bridge("br0")))),
        ("bridge,id=n,br=lan", asked(br(bridge("lan")))),
        ("bridge,id=n,isolated=yes", asked(br(BridgeRequest { isolated: true, ..bridge("br0") }))),
    ];
    for (text, want) in table {
        assert_eq!(netdev(text).map(|k| k.0), Ok(want), "{text}");
    }
}

#[test]
fn every_option_of_af_xdp() {
    let m1 = "52:54:00:00:00:01".parse().unwrap();
    let m2 = "52:54:00:00:00:02".parse().unwrap();
    let kind = |request: XskRequest| Kind::Xsk(Xsk { request, umem: None });
    let steer = |macs: &[Mac], broadcast, multicast| XskRequest {
        steer: Steer::Macs { macs: macs.to_vec(), broadcast, multicast },
        ..xsk()
    };
    let table: Vec<(&str, Kind)> = vec![
        ("af-xdp,id=n,ifname=eth0", kind(xsk())),
        ("af-xdp,id=n,ifname=eth0,inhibit=off", kind(xsk())),
        ("af-xdp,id=n,ifname=eth0,mode=native", kind(XskRequest { mode: Some(XdpMode::Native), ..xsk() })),
        ("af-xdp,id=n,ifname=eth0,mode=skb", kind(XskRequest { mode: Some(XdpMode::Skb), ..xsk() })),
        ("af-xdp,id=n,ifname=eth0,force-copy=on", kind(XskRequest { force_copy: true, ..xsk() })),
        ("af-xdp,id=n,ifname=eth0,queues=2,start-queue=4", {
            kind(XskRequest { queues: 2, start_queue: 4, ..xsk() })
        }),
        ("af-xdp,id=n,ifname=eth0,ring=64,chunk=4096", kind(XskRequest { ring: 64, chunk: 4096, ..xsk() })),
        ("af-xdp,id=n,ifname=eth0,umem=16M", Kind::Xsk(Xsk { request: xsk(), umem: Some(16 << 20) })),
        ("af-xdp,id=n,ifname=eth0,macs=52:54:00:00:00:01", kind(steer(&[m1], false, false))),
        ("af-xdp,id=n,ifname=eth0,macs=52:54:00:00:00:01+52:54:00:00:00:02,broadcast=on,multicast=on", {
            kind(steer(&[m1, m2], true, true))
        }),
        (r#"{"type":"af-xdp","id":"n","ifname":"eth0","macs":["52:54:00:00:00:01"]}"#, {
            kind(steer(&[m1], false, false))
        }),
    ];
    for (text, want) in table {
        assert_eq!(netdev(text).map(|k| k.0), Ok(want), "{text}");
    }
}

#[test]
fn af_xdp_requests_pass_the_helpers_own_check() {
    for text in
        ["af-xdp,id=n,ifname=e", "af-xdp,id=n,ifname=e,ring=64,umem=1G", "af-xdp,id=n,ifname=e,chunk=4096"]
    {
        let Kind::Xsk(x) = netdev(text).unwrap().0 else { panic!("{text}") };
        for mtu in [1500, 3498, 9000] {
            assert_eq!(x.bound(mtu).check(), Ok(()), "{text}");
            assert_eq!(x.pinned().check(), Ok(()), "{text}");
        }
    }
    let Kind::Xsk(x) = netdev("af-xdp,id=n,ifname=e").unwrap().0 else { panic!() };
    let Request::Xsk(small) = x.bound(1500) else { panic!() };
    let Request::Xsk(large) = x.bound(9000) else { panic!() };
    assert_eq!((small.chunk, small.chunks), (2048, 4096));
    assert_eq!((large.chunk, large.chunks), (4096, 4096));
}

#[test]
fn a_silent_peer_is_asked_as_was_said() {
    let text = "stream,id=n,addr.type=inet,addr.host=h,addr.port=80,addr.keep-alive=on,addr.keep-alive-count=3,\
                addr.keep-alive-idle=60,addr.keep-alive-interval=10,addr.mptcp=on";
    let options = TcpOptions { keep_alive: true, count: 3, idle: 60, interval: 10, mptcp: true };
    let want = Stream::plain(Addr::Inet(Inet { options, ..inet() }), false);
    assert_eq!(netdev(text).unwrap().0, Kind::Stream(want));
}

#[test]
fn every_option_of_stream() {
    let kind = Kind::Stream;
    let tcp = |i: Inet| kind(Stream::plain(Addr::Inet(i), false));
    let with = |addr| kind(Stream::plain(addr, false));
    let mut padded = b"/p".to_vec();
    padded.resize(107, 0);
    let table: Vec<(&str, Kind)> = vec![
        ("stream,id=n,addr.type=unix,addr.path=/p", kind(unix("/p"))),
        ("stream,id=n,addr.type=unix,addr.path=/a,,b", kind(unix("/a,b"))),
        ("stream,id=n,server=on,addr.type=unix,addr.path=/p", kind(Stream { server: true, ..unix("/p") })),
        ("stream,id=n,addr.type=unix,addr.path=/p,reconnect-ms=250", {
            kind(Stream { reconnect_ms: Some(250), ..unix("/p") })
        }),
        ("stream,id=n,addr.type=unix,addr.path=/p,reconnect=2", {
            kind(Stream { reconnect_ms: Some(2000), ..unix("/p") })
        }),
        ("stream,id=n,addr.type=unix,addr.path=/p,reconnect-ms=0", kind(unix("/p"))),
        ("stream,id=n,addr.type=unix,addr.path=/p,addr.abstract=on", with(Addr::Abstract(b"/p".to_vec()))),
        (
            "stream,id=n,addr.type=unix,addr.path=/p,addr.abstract=on,addr.tight=off",
            with(Addr::Abstract(padded)),
        ),
        ("stream,id=n,addr.type=inet,addr.host=h,addr.port=80", tcp(inet())),
        (
            "stream,id=n,addr.type=inet,addr.host=h,addr.port=80,addr.ipv4=on",
            tcp(Inet { ipv6: false, ..inet() }),
        ),
        (
            "stream,id=n,addr.type=inet,addr.host=h,addr.port=80,addr.ipv6=on",
            tcp(Inet { ipv4: false, ..inet() }),
        ),
        (
            "stream,id=n,addr.type=inet,addr.host=h,addr.port=80,addr.ipv4=off",
            tcp(Inet { ipv4: false, ..inet() }),
        ),
        ("stream,id=n,addr.type=inet,addr.host=h,addr.port=80,addr.to=90", {
            tcp(Inet { to: Some(90), ..inet() })
        }),
        ("stream,id=n,addr.type=inet,addr.host=::1,addr.port=80,addr.numeric=on", {
            tcp(Inet { host: "::1".into(), ..inet() })
        }),
        ("stream,id=n,addr.type=fd,addr.str=9", with(Addr::Fd(9))),
        (r#"{"type":"stream","id":"n","addr":{"type":"inet","host":"h","port":"80"}}"#, tcp(inet())),
        (r#"{"type":"stream","id":"n","server":true,"addr":{"type":"unix","path":"/p"}}"#, {
            kind(Stream { server: true, ..unix("/p") })
        }),
    ];
    for (text, want) in table {
        assert_eq!(netdev(text).map(|k| k.0), Ok(want), "{text}");
    }
}

#[test]
fn streams_that_qemu_has_not() {
    let kind = Kind::Stream;
    let table = [
        (
            "stream,id=n,addr.type=vsock,addr.cid=2,addr.port=1024",
            kind(Stream::plain(Addr::Vsock(2, 1024), false)),
        ),
        ("stream,id=n,addr.type=unix,addr.path=/p,framing=qemu", kind(unix("/p"))),
        ("stream,id=n,addr.type=unix,addr.path=/p,framing=u16le", {
            kind(Stream { framing: Framing::Little16, ..unix("/p") })
        }),
        ("stream,id=n,addr.type=unix,addr.path=/p,framing=u16be", {
            kind(Stream { framing: Framing::Big16, ..unix("/p") })
        }),
        ("stream,id=n,addr.type=unix,addr.path=/p,framing=seqpacket", {
            kind(Stream { framing: Framing::Packets, ..unix("/p") })
        }),
        ("stream,id=n,addr.type=unix,addr.path=/p,finish=on", {
            kind(Stream { undone: Some(1500), ..unix("/p") })
        }),
        ("stream,id=n,addr.type=unix,addr.path=/p,finish=on,mtu=9000", {
            kind(Stream { undone: Some(9000), ..unix("/p") })
        }),
    ];
    for (text, want) in table {
        assert_eq!(netdev(text).map(|k| k.0), Ok(want), "{text}");
    }
}

#[test]
fn every_option_of_vhost_user() {
    let plain = || VhostUser {
        addr: Addr::Unix("/p".into()),
        server: true,
        reconnect_ms: None,
        queues: 1,
        mac: None,
        mtu: None,
        hide: 0,
    };
    let tso = 0b11_1011_1000_0000;
    let mac = Some(Mac([0x52, 0x54, 0, 0, 0, 1]));
    let table: Vec<(&str, VhostUser)> = vec![
        ("path=/p", plain()),
        ("fd=5", VhostUser { addr: Addr::Fd(5), ..plain() }),
        ("path=/p,server=on", plain()),
        ("path=/p,server=off,reconnect-ms=9", VhostUser { server: false, reconnect_ms: Some(9), ..plain() }),
        ("path=/p,queues=4", VhostUser { queues: 4, ..plain() }),
        ("path=/p,mac=52:54:00:00:00:01", VhostUser { mac, ..plain() }),
        ("path=/p,mtu=9000", VhostUser { mtu: Some(9000), ..plain() }),
        ("path=/p,vhostforce=on", plain()),
        ("path=/p,csum=on,tso=on", plain()),
        ("path=/p,tso=off", VhostUser { hide: tso, ..plain() }),
        ("path=/p,csum=off", VhostUser { hide: tso | 3 | 1 << 10 | 1 << 14 | 7 << 54, ..plain() }),
        ("path=/p,ecn=off", VhostUser { hide: 1 << 9 | 1 << 13, ..plain() }),
        ("path=/p,ufo=off", VhostUser { hide: 1 << 10 | 1 << 14, ..plain() }),
        ("path=/p,uso=off", VhostUser { hide: 7 << 54, ..plain() }),
        ("path=/p,mrg_rxbuf=off,status=off", VhostUser { hide: 1 << 15 | 1 << 16, ..plain() }),
        ("path=/p,ctrl_vq=off", VhostUser { hide: 0x7f << 17, ..plain() }),
        ("path=/p,mq=off", VhostUser { hide: 1 << 22, ..plain() }),
        ("path=/p,indirect_desc=off,event_idx=off", VhostUser { hide: 3 << 28, ..plain() }),
        ("path=/p,packed=off,in_order=off", VhostUser { hide: 3 << 34, ..plain() }),
    ];
    for (text, want) in table {
        let netdev = format!("tap,id=n0,queues={}", want.queues);
        let mut c = Config::read(&[netdev], &[format!("vhost-user,netdev=n0,{text}")], None).unwrap();
        assert_eq!(c.ports.remove(1), Port { id: "device0".into(), kind: Kind::VhostUser(want) }, "{text}");
        assert_eq!(c.wires, [Wire { netdev: 0, device: 1, lock_mac: None }]);
        assert_eq!(c.warnings, [""; 0]);
    }
}

/// Text of a netdev, and QEMU's words.
const REFUSED: &[(&str, &str)] = &[
    ("", "Parameter 'id' is missing"),
    ("tap", "Parameter 'id' is missing"),
    ("id=a", "Parameter 'type' is missing"),
    (r#"{"id":"a"}"#, "Parameter 'type' is missing"),
    (r#"{"type":"tap"}"#, "Parameter 'id' is missing"),
    (",id=a", "Parameter 'type' does not accept value ''"),
    ("foo,id=a", "Parameter 'type' does not accept value 'foo'"),
    ("tap,,x,id=a", "Parameter 'type' does not accept value 'tap,x'"),
    ("tap,id=1a", "Parameter 'id' expects an identifier"),
    ("tap,id=", "Parameter 'id' expects an identifier"),
    ("tap,id=a/b", "Parameter 'id' expects an identifier"),
    ("user,id=a,foo=1", "Invalid parameter 'foo'"),
    // tap
    ("tap,id=a,foo=1", "Invalid parameter 'foo'"),
    ("tap,id=a,nofoo", "Invalid parameter 'foo'"),
    (r#"{"type":"tap","id":"a","foo":1}"#, "Parameter 'foo' is unexpected"),
    ("tap,id=a,queues=abc", "Parameter 'queues' expects a uint64 value"),
    ("tap,id=a,queues=-1", "Parameter 'queues' expects a uint64 value"),
    ("tap,id=a,queues=0", "queues must be greater than zero"),
    ("tap,id=a,queues=17", "a tap has at most 16 queues here"),
    ("tap,id=a,vnet_hdr=maybe", "Parameter 'vnet_hdr' expects 'on' or 'off'"),
    ("tap,id=a,fd=3,queues=2", "queues=, helper=, fds= and fd= are mutual exclusive"),
    ("tap,id=a,fd=3,fds=3:4", "queues=, helper=, fds= and fd= are mutual exclusive"),
    ("tap,id=a,helper=/x,fd=3", "queues=, helper=, fds= and fd= are mutual exclusive"),
    ("tap,id=a,helper=/x,queues=2", "queues=, helper=, fds= and fd= are mutual exclusive"),
    ("tap,id=a,fds=3:4,queues=2", "queues=, helper=, fds= and fd= are mutual exclusive"),
    (
        "tap,id=a,fd=3,vnet_hdr=on",
        "ifname=, script=, downscript=, vnet_hdr= are invalid with fd=/fds=/helper=",
    ),
    ("tap,id=a,fd=3,script=no", "ifname=, script=, downscript=, vnet_hdr= are invalid with fd=/fds=/helper="),
    ("tap,id=a,fds=3,ifname=x", "ifname=, script=, downscript=, vnet_hdr= are invalid with fd=/fds=/helper="),
    ("tap,id=a,helper=/x,downscript=no", {
        "ifname=, script=, downscript=, vnet_hdr= are invalid with fd=/fds=/helper="
    }),
    ("tap,id=a,fds=3:4,vhostfd=5", "vhostfd= is invalid with fds="),
    ("tap,id=a,vhostfds=5:6", "vhostfds= is invalid if fds= wasn't specified"),
    ("tap,id=a,fd=3,vhostfd=5", "vhostfd(s)= is not valid without vhost"),
    ("tap,id=a,fd=3,vhost=on,vhostfd=5", {
        "vhostfd= is refused: netreeve serves the rings itself and does not use the kernel's vhost-net"
    }),
    ("tap,id=a,fd=x", "fd=x is no descriptor number"),
    ("tap,id=a,fd=2", "Parameter 'fd' does not accept value '2'"),
    ("tap,id=a,fds=3:3", "fds= names a descriptor twice"),
    ("tap,id=a,fds=3::4", "fds= is no descriptor number"),
    ("tap,id=a,script=/etc/qemu-ifup", "script= is refused: netreeve runs no programs with your options"),
    ("tap,id=a,downscript=x", "downscript= is refused: netreeve runs no programs with your options"),
    ("tap,id=a,helper=/x", {
        "helper= is refused: netreeve runs no programs with your options, and asks its own helper"
    }),
    ("tap,id=a,sndbuf=1M", "sndbuf= is not in this version"),
    ("tap,id=a,sndbuf=1Q", "Parameter 'sndbuf' expects a size"),
    ("tap,id=a,ifname=0123456789abcdef", "Parameter 'ifname' does not accept value '0123456789abcdef'"),
    ("tap,id=a,br=../x", "Parameter 'br' does not accept value '../x'"),
    ("tap,id=a,persist=on", "persist=on without ifname="),
    ("tap,id=a,isolated=on", "create= and isolated= belong to a bridge"),
    ("tap,id=a,fd=3,mtu=1500", "persist= and mtu= are invalid with fd=/fds="),
    ("tap,id=a,mtu=67", "Parameter 'mtu' expects a value from 68 to 65521"),
    ("bridge,id=a,helper=/x", {
        "helper= is refused: netreeve runs no programs with your options, and asks its own helper"
    }),
    ("bridge,id=a,foo=1", "Invalid parameter 'foo'"),
    // af-xdp
    ("af-xdp,id=a", "Parameter 'ifname' is missing"),
    ("af-xdp,id=a,ifname=e,mode=x", "Parameter 'mode' does not accept value 'x'"),
    ("af-xdp,id=a,ifname=e,queues=0", "invalid number of queues (0) for 'e'"),
    ("af-xdp,id=a,ifname=e,queues=9", "af-xdp has at most 8 queues in one port here"),
    ("af-xdp,id=a,ifname=e,start-queue=65535", "Parameter 'start-queue' expects a value from 0 to 65534"),
    ("af-xdp,id=a,ifname=e,inhibit=on", "'inhibit=on' requires 'sock-fds' or 'map-path'"),
    ("af-xdp,id=a,ifname=e,sock-fds=3", "'sock-fds' and 'map-path' require 'inhibit=on'"),
    ("af-xdp,id=a,ifname=e,map-path=/x", "'sock-fds' and 'map-path' require 'inhibit=on'"),
    ("af-xdp,id=a,ifname=e,inhibit=on,map-path=/x,sock-fds=3", {
        "'sock-fds' and 'map-path' are mutually exclusive"
    }),
    ("af-xdp,id=a,ifname=e,map-start-index=1", "'map-start-index' requires 'map-path'"),
    ("af-xdp,id=a,ifname=e,inhibit=on,sock-fds=3", {
        "sock-fds= is refused: sockets that are not bound could be bound to any interface, \
         so netreeve's come from its helper"
    }),
    ("af-xdp,id=a,ifname=e,ring=65", "Parameter 'ring' does not accept value '65'"),
    ("af-xdp,id=a,ifname=e,chunk=3000", "Parameter 'chunk' does not accept value '3000'"),
    ("af-xdp,id=a,ifname=e,umem=2G", "Parameter 'umem' expects a value from 131072 to 1073741824"),
    ("af-xdp,id=a,ifname=e,broadcast=on", "broadcast= and multicast= belong to macs="),
    ("af-xdp,id=a,ifname=e,macs=1", "Parameter 'macs' does not accept value '1'"),
    ("af-xdp,id=a,ifname=e,macs=ff:ff:ff:ff:ff:ff", "macs= takes 1 to 16 station addresses"),
    // stream
    ("stream,id=a", "Parameter 'addr' is missing"),
    ("stream,id=a,addr=3", "Invalid parameter type for 'addr', expected: object"),
    ("stream,id=a,addr.type=bad", "Parameter 'type' does not accept value 'bad'"),
    ("stream,id=a,addr.type=unix", "Parameter 'addr.path' is missing"),
    ("stream,id=a,addr.type=inet,addr.host=x", "Parameter 'addr.port' is missing"),
    ("stream,id=a,addr.type=inet,addr.port=1", "Parameter 'addr.host' is missing"),
    ("stream,id=a,addr.type=unix,addr.path=/x,foo=1", "Parameter 'foo' is unexpected"),
    ("stream,id=a,addr.type=unix,addr.path=/x,addr.port=1", "Parameter 'addr.port' is unexpected"),
    (r#"{"type":"stream","id":"a","addr":{"type":"unix","path":"/x","z":1}}"#, {
        "Parameter 'addr.z' is unexpected"
    }),
    ("stream,id=a,addr.type=unix,addr.path=/x,server", "Expected '=' after parameter 'server'"),
    ("stream,id=a,addr.type=unix,addr.path=/x,server=maybe", "Parameter 'server' expects 'on' or 'off'"),
    ("stream,id=a,addr.type=unix,addr.path=/x,reconnect-ms=x", "Parameter 'reconnect-ms' expects integer"),
    ("stream,id=a,addr..x=3", "Invalid parameter 'addr..x'"),
    ("stream,id=a,addr.type=unix,addr=3,addr.path=x", "Parameters 'addr.*' used inconsistently"),
    ("stream,id=a,reconnect=3,reconnect-ms=3,addr.type=unix,addr.path=/x", {
        "'reconnect' and 'reconnect-ms' are mutually exclusive"
    }),
    ("stream,id=a,addr.type=unix,addr.path=/x,server=on,reconnect-ms=3", {
        "'reconnect' and 'reconnect-ms' options are incompatible with socket in server mode"
    }),
    ("stream,id=a,addr.type=inet,addr.host=x,addr.port=1,addr.ipv4=off,addr.ipv6=off", {
        "Cannot disable IPv4 and IPv6 at same time"
    }),
    ("stream,id=a,addr.type=inet,addr.host=x,addr.port=1,addr.keep-alive-count=128", {
        "Parameter 'addr.keep-alive-count' expects a value from 0 to 127"
    }),
    ("stream,id=a,addr.type=vsock,addr.port=1", "Parameter 'addr.cid' is missing"),
    ("stream,id=a,addr.type=unix,addr.path=/x,framing=x", "Parameter 'framing' does not accept value 'x'"),
    ("stream,id=a,addr.type=vsock,addr.cid=2,addr.port=1,framing=seqpacket", {
        "framing=seqpacket needs a UNIX socket"
    }),
    ("stream,id=a,addr.type=unix,addr.path=/x,mtu=9000", {
        "mtu= is only used to finish what a peer leaves undone"
    }),
    ("stream,id=a,addr.type=fd,addr.str=9,reconnect-ms=1", {
        "'reconnect-ms' cannot be used with a descriptor: there is no address to dial"
    }),
    // vhost-user as a netdev
    ("vhost-user,id=a,chardev=c", "chardev= is refused: chardevs are QEMU's"),
    ("vhost-user,id=a", "Parameter 'path' is missing"),
    ("vhost-user,id=a,path=/p,fd=3", "path= and fd= are mutually exclusive"),
    ("vhost-user,id=a,path=/p,queues=0", "vhost-user number of queues must be in range [1, 16]"),
    ("vhost-user,id=a,path=/p,mac=01:00:00:00:00:00", "mac= is no station's address"),
    // forms
    (r#"{"type":"tap","id":null}"#, "Invalid parameter type for 'id', expected: value"),
];

#[test]
fn refusals_are_qemus_words() {
    for (text, why) in REFUSED {
        let fault = netdev(text).expect_err(text);
        assert_eq!(fault.why, *why, "{text}");
        assert_eq!((fault.exit, fault.what), (Exit::Config, format!("--netdev {text}")));
    }
    assert!(netdev("{bad").unwrap_err().why.starts_with("JSON parse error, "));
    let long = format!("stream,id=a,addr.type=unix,addr.path=/{}", "x".repeat(107));
    assert!(netdev(&long).unwrap_err().why.ends_with("is too long or empty"));
}

#[test]
fn the_nearest_key_is_proposed() {
    let fix = |t: &str| netdev(t).unwrap_err().fix;
    assert_eq!(fix("tap,id=a,vnet-hdr=on"), "did you mean 'vnet_hdr'?");
    assert!(fix("tap,id=a,bridge=br0").starts_with("keys here: br, create, "));
    assert_eq!(fix("af-xdp,id=a,ifname=e,forcecopy=on"), "did you mean 'force-copy'?");
    assert!(
        fix("stream,id=a,addr.type=unix,addr.path=/x,zzzzzzzz=1").starts_with("keys here: addr.abstract")
    );
}

#[test]
fn what_is_not_used_is_said() {
    for (text, words) in [
        ("tap,id=a,vhost=on", "netreeve serves the rings itself"),
        ("tap,id=a,fd=3,br=b", "br= has no meaning with fd=/fds="),
        ("tap,id=a,vnet_hdr", "short-form boolean option 'vnet_hdr' deprecated: use vnet_hdr=on"),
    ] {
        let (_, warnings) = netdev(text).unwrap();
        assert!(warnings.len() == 1 && warnings[0].contains(words), "{text}: {warnings:?}");
    }
}

#[test]
fn wires_join_two_ports_once() {
    let n = |t: &str| t.to_owned();
    let read = |netdevs: &[&str], devices: &[&str]| {
        let (a, b): (Vec<_>, Vec<_>) =
            (netdevs.iter().map(|t| n(t)).collect(), devices.iter().map(|t| n(t)).collect());
        Config::read(&a, &b, None)
    };
    let c = read(&["tap,id=a", "tap,id=b"], &["vhost-user,netdev=b,path=/1", "vhost-user,netdev=a,path=/2"])
        .unwrap();
    let pairs: Vec<_> = c.wires.iter().map(|w| (w.netdev, w.device)).collect();
    assert_eq!(pairs, [(1, 2), (0, 3)]);
    assert_eq!(c.ports[3].id, "device1");

    let why = |netdevs: &[&str], devices: &[&str]| read(netdevs, devices).unwrap_err().why;
    assert_eq!(why(&["tap,id=a"], &["vhost-user,path=/1"]), "Parameter 'netdev' is missing");
    assert_eq!(
        why(&["tap,id=a"], &["vhost-user,netdev=b,path=/1"]),
        "Property 'netdev' can't find value 'b'"
    );
    let two = ["vhost-user,netdev=a,path=/1", "vhost-user,netdev=a,path=/2"];
    assert_eq!(why(&["tap,id=a"], &two), "Property 'netdev' can't take value 'a', it's in use");
    assert_eq!(why(&["tap,id=a", "tap,id=a"], &[]), "Duplicate ID 'a' for netdev");
    assert_eq!(why(&["tap,id=a,fd=5", "tap,id=b,fd=5"], &[]), "descriptor 5 is named twice");
    assert_eq!(
        why(&[], &["virtio-net-pci,netdev=a"]),
        "Parameter 'type' does not accept value 'virtio-net-pci'"
    );
    let mut unequal = ["vhost-user,netdev=a,id=d,path=/1,queues=2"];
    assert_eq!(why(&["tap,id=a"], &unequal), "queues differ: 'a' has 1, 'd' has 2");
    unequal[0] = "stream,netdev=a,id=d,server=on,addr.type=unix,addr.path=/1";
    assert_eq!(why(&["tap,id=a,fds=3:4"], &unequal), "queues differ: 'a' has 2, 'd' has 1");
    assert_eq!(read(&["tap,id=a"], &[]).unwrap().warnings, ["netdev a has no peer"]);
    assert_eq!(
        why(&["tap,id=a"], &["vhost-user,id=d,netdev=d,path=/1"]),
        "Property 'netdev' can't find value 'd'"
    );
}

#[test]
fn a_device_can_be_locked_to_its_address() {
    let m = Mac([0x52, 0x54, 0, 0, 0, 1]);
    let lock = |t: &str| device(&format!("vhost-user,netdev=n0,path=/p,{t}")).map(|c| c.wires[0].lock_mac);
    assert_eq!(lock("mac=52:54:00:00:00:01,lock-mac=on"), Ok(Some(m)));
    assert_eq!(lock("mac=52:54:00:00:00:01,lock-mac=off"), Ok(None));
    assert_eq!(lock("lock-mac=52:54:00:00:00:01"), Ok(Some(m)));
    assert!(lock("lock-mac=on").is_err());
    assert!(lock("lock-mac=x").is_err());
}

#[test]
fn a_file_is_the_same_as_options() {
    let body = r#"
        [[device]]
        type = "vhost-user"
        netdev = "n0"
        path = "/p"
        mtu = 1400
        [[netdev]]
        type = "stream"
        id = "n0"
        server = true
        addr = { type = "unix", path = "/s" }
    "#;
    let c = Config::read(&[], &[], Some(("f.toml", body))).unwrap();
    let o = Config::read(
        &["stream,id=n0,server=on,addr.type=unix,addr.path=/s".into()],
        &["vhost-user,netdev=n0,path=/p,mtu=1400".into()],
        None,
    );
    assert_eq!(Ok(&c), o.as_ref());
    for (bad, why) in [
        ("x = 1", "Parameter 'x' is unexpected"),
        ("netdev = 1", "'netdev' is no list"),
        ("[[netdev]]\ntype = 'tap'\nid = 'n'\nfoo = 1", "Parameter 'foo' is unexpected"),
        ("[[netdev]]\ntype = 'tap'\nid = 'n'\nqueues = 1.5", {
            "Invalid parameter type for 'queues', expected: text, number or boolean"
        }),
    ] {
        assert_eq!(Config::read(&[], &[], Some(("f", bad))).unwrap_err().why, why, "{bad}");
    }
}

#[test]
fn nesting_is_bounded() {
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(40), "]".repeat(40));
    assert_eq!(netdev(&deep).unwrap_err().why, "JSON nested too deeply");
    let bomb = format!("{{\"a\":{}", "[".repeat(60_000));
    assert!(netdev(&bomb).unwrap_err().why.starts_with("JSON parse error"));
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC*") {
        drop(netdev(&text));
        drop(device(&text));
        drop(Config::read(&[], &[], Some(("f", &text))));
    }

    #[test]
    fn no_near_miss_panics(
        kind in "(tap|bridge|af-xdp|stream|vhost-user|user)",
        keys in prop::collection::vec("(,|,,|=|id=a|ifname=e|no|fd|fds|queues|addr\\.type|addr|\\.|=on|=unix|[0-9]{1,12}|:|é|path=/p|netdev=n0|macs=)", 0..12),
    ) {
        let text = format!("{kind},{}", keys.concat());
        drop(netdev(&text));
        drop(device(&text));
    }

    #[test]
    fn a_value_survives_quoting(value in "[^\\x00]{1,80}") {
        let text = format!("stream,id=n,addr.type=unix,addr.path={}", value.replace(',', ",,"));
        let json = serde_json::json!({"type":"stream","id":"n","addr":{"type":"unix","path":value}});
        let want = if value.len() <= 107 { Ok(Kind::Stream(unix(&value))) } else { Err(()) };
        prop_assert_eq!(netdev(&text).map(|k| k.0).map_err(drop), want.clone());
        prop_assert_eq!(netdev(&json.to_string()).map(|k| k.0).map_err(drop), want);
    }
}

#[test]
fn every_option_of_hubport() {
    use crate::port::hub::{Learning, Plan};
    let plain = |hub| Plan { hub, learning: None, isolated: false };
    let learns = |ageing, most| Some(Learning { ageing, most });
    let table = [
        ("hubport,id=n,hubid=0", plain(0)),
        ("hubport,id=n,hubid=-3", plain(-3)),
        ("hubport,id=n,hubid=0x10,isolated=on", Plan { isolated: true, ..plain(16) }),
        ("hubport,id=n,hubid=1,learning=on", Plan { learning: learns(300, 256), ..plain(1) }),
        ("hubport,id=n,hubid=1,learning=on,ageing=9,max-learned=2", {
            Plan { learning: learns(9, 2), ..plain(1) }
        }),
        (r#"{"type":"hubport","id":"n","hubid":7}"#, plain(7)),
    ];
    for (text, want) in table {
        assert_eq!(netdev(text).map(|k| k.0), Ok(Kind::Hub(want)), "{text}");
    }
    for (text, why) in [
        ("hubport,id=n", "Parameter 'hubid' is missing"),
        ("hubport,id=n,hubid=x", "Parameter 'hubid' expects an int64 value"),
        ("hubport,id=n,hubid=99999999999", "Parameter 'hubid' expects int32_t"),
        ("hubport,id=n,hubid=0,netdev=q", "netdev 'q' not found"),
        ("hubport,id=n,hubid=0,netdev=n", "netdev 'n' not found"),
        ("hubport,id=n,hubid=0,ageing=3", "'ageing' is of no use without learning=on"),
        ("hubport,id=n,hubid=0,max-learned=3,learning=off", "'max-learned' is of no use without learning=on"),
    ] {
        assert_eq!(netdev(text).unwrap_err().why, why, "{text}");
    }
}

#[test]
fn hub_ports_join_netdevs_and_devices_in_any_order() {
    let read = |netdevs: &[&str], devices: &[&str]| {
        let of = |t: &[&str]| t.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        Config::read(&of(netdevs), &of(devices), None)
    };
    let three = ["hubport,id=a,hubid=0,netdev=t", "tap,id=t", "hubport,id=b,hubid=0", "hubport,id=c,hubid=0"];
    let c = read(&three, &["vhost-user,netdev=b,path=/1"]).unwrap();
    let pairs: Vec<_> = c.wires.iter().map(|w| (w.netdev, w.device)).collect();
    assert_eq!(pairs, [(1, 0), (2, 4)]);
    assert_eq!(c.warnings, ["hub port c has no peer"]);
    let why = |netdevs: &[&str], devices: &[&str]| read(netdevs, devices).unwrap_err().why;
    assert_eq!(
        why(&three, &["vhost-user,netdev=t,path=/1"]),
        "Property 'netdev' can't take value 't', it's in use"
    );
    assert_eq!(why(&["tap,id=t,fds=3:4", three[0]], &[]), "queues differ: 't' has 2, 'a' has 1");
    // A user network may be a member, as with QEMU, beside devices alone.
    let user = ["user,id=u", "hubport,id=a,hubid=0,netdev=u", "hubport,id=b,hubid=0", "hubport,id=c,hubid=0"];
    let devices = ["vhost-user,netdev=b,path=/1", "stream,netdev=c,server=on,addr.type=unix,addr.path=/2"];
    let c = read(&user, &devices).unwrap();
    assert_eq!((c.wires.len(), c.warnings.len()), (3, 0));
    let alone = "a user network has a dataplane of its own, since that may make sockets";
    assert_eq!(why(&[&user[..], &["tap,id=t", "hubport,id=d,hubid=0,netdev=t"]].concat(), &devices), alone);
    assert_eq!(why(&[&user[..], &["user,id=v"]].concat(), &devices), alone);
}
