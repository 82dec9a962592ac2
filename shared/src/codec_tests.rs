//! Golden bytes, round trips and garbage.

use proptest::prelude::*;

use super::*;
use crate::grant::{ActiveGrant, TapGrant, XskGrant};
use crate::ifname::IfName;
use crate::mac::Mac;
use crate::refusal::Step;
use crate::request::{
    BadRequest, BridgeRequest, L2tpRequest, ListenRequest, Steer, TapRequest, XdpMode, XskRequest,
};

fn tap() -> Request {
    Request::Tap(TapRequest {
        name: None,
        persist: false,
        queues: 2,
        vnet_header: true,
        mtu: Some(1450),
        bridge: Some(BridgeRequest { name: IfName::new("br0").unwrap(), create: false, isolated: true }),
    })
}

#[test]
fn golden_bytes_of_a_request() {
    let golden: &[u8] = &[
        b'N', b'T', b'R', b'V', 1, 0, 1, 0, 7, 0, 0, 0, 28, 0, 0, 0, // header
        0, 0, 0, 0, // Tap
        0, // no name
        0, // not persistent
        2, 0, // queues
        1, // vnet header
        1, 0xaa, 0x05, 0, 0, // MTU
        1, 3, 0, 0, 0, 0, 0, 0, 0, b'b', b'r', b'0', 0, 1, // bridge, not made, isolated
    ];
    let bytes = request(7, &tap()).unwrap();
    assert_eq!(bytes.len() - HEADER, usize::from(golden[12]), "golden length");
    assert_eq!(bytes, golden);
    assert_eq!(read_request(golden), Ok((7, tap())));
}

#[test]
fn golden_bytes_of_addresses() {
    let golden: &[u8] = &[
        b'N', b'T', b'R', b'V', 1, 0, 1, 0, 1, 0, 0, 0, 24, 0, 0, 0, // header
        4, 0, 0, 0, // L2tp
        0, 0, 0, 0, 192, 0, 2, 1, 0, 0, 0, 0, 192, 0, 2, 2, // both of IPv4
        7, 0, 0, 0, // session
    ];
    let (src, dst) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
    let tunnel = Request::L2tp(L2tpRequest { src, dst, session: 7 });
    assert_eq!(request(1, &tunnel).unwrap(), golden);
    assert_eq!(read_request(golden), Ok((1, tunnel)));
    let golden: &[u8] = &[
        b'N', b'T', b'R', b'V', 1, 0, 1, 0, 1, 0, 0, 0, 27, 0, 0, 0, // header
        5, 0, 0, 0, 1, // Listen, UDP
        1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, // IPv6
        53, 0, // port
    ];
    let port =
        Request::Listen(ListenRequest { udp: true, address: std::net::Ipv6Addr::LOCALHOST.into(), port: 53 });
    assert_eq!(request(1, &port).unwrap(), golden);
    assert_eq!(read_request(golden), Ok((1, port)));
}

#[test]
fn golden_bytes_of_answers() {
    let refusal = Answer::Refusal(Refusal::Failed { step: Step::MakeTap, errno: 16 });
    let golden: &[u8] = &[
        b'N', b'T', b'R', b'V', 1, 0, 3, 0, 0xff, 0xff, 0xff, 0xff, 12, 0, 0, 0, // header
        4, 0, 0, 0, 1, 0, 0, 0, 16, 0, 0, 0,
    ];
    assert_eq!(answer(u32::MAX, &refusal).unwrap(), golden);
    assert_eq!(read_answer(golden, 0), Ok((u32::MAX, refusal)));

    let grant = Answer::Grant(Grant::Active(ActiveGrant { ticket: 9, mode: XdpMode::Skb }));
    let golden: &[u8] = &[
        b'N', b'T', b'R', b'V', 1, 0, 2, 0, 1, 0, 0, 0, 12, 0, 1, 0, // header, one descriptor
        3, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0,
    ];
    assert_eq!(answer(1, &grant).unwrap(), golden);
    assert_eq!(read_answer(golden, 1), Ok((1, grant)));
}

#[test]
fn every_field_of_the_header_is_checked() {
    let good = request(1, &tap()).unwrap();
    let change = |at: usize, to: u8| {
        let mut b = good.clone();
        b[at] = to;
        read_request(&b).unwrap_err()
    };
    assert_eq!(change(0, b'X'), CodecError::Magic);
    assert_eq!(change(4, 2), CodecError::Version(2));
    assert_eq!(change(6, 2), CodecError::Kind(2));
    assert_eq!(change(12, good[12] + 1), CodecError::Length);
    assert_eq!(change(14, 1), CodecError::Descriptors);
    assert_eq!(read_request(&good[..HEADER - 1]), Err(CodecError::Size));
    assert_eq!(read_request(&vec![0; MAX + 1]), Err(CodecError::Size));
}

#[test]
fn a_byte_too_many_or_too_few_refuses_the_whole() {
    let good = request(1, &tap()).unwrap();
    let resized = |len: usize| {
        let mut b = good.clone();
        b.resize(len, 0);
        let body = u16::try_from(len - HEADER).unwrap();
        b[12..14].copy_from_slice(&body.to_le_bytes());
        read_request(&b)
    };
    assert_eq!(resized(good.len() + 1), Err(CodecError::Body));
    assert_eq!(resized(good.len() - 1), Err(CodecError::Body));
    assert!(resized(good.len()).is_ok());
}

#[test]
fn a_name_is_checked_while_it_is_read() {
    let mut b = request(1, &tap()).unwrap();
    let at = b.windows(3).position(|w| w == b"br0").unwrap();
    b[at] = b'/';
    assert_eq!(read_request(&b), Err(CodecError::Body));
}

#[test]
fn a_grant_must_name_as_many_descriptors_as_came() {
    let grant = Grant::Active(ActiveGrant { ticket: 1, mode: XdpMode::Native });
    let lie = encode(Header { kind: kind::GRANT, sequence: 1, fds: 2 }, &grant).unwrap();
    assert_eq!(read_answer(&lie, 2), Err(CodecError::Descriptors));
    assert_eq!(read_answer(&lie, 1), Err(CodecError::Descriptors));
}

#[test]
fn what_is_too_long_is_not_sent() {
    let header = Header { kind: kind::PRIVATE, sequence: 0, fds: 0 };
    let fits = vec![0_u8; LIMIT - 8];
    assert_eq!(encode(header, &fits).unwrap().len(), MAX);
    assert_eq!(decode::<Vec<u8>>(&encode(header, &fits).unwrap()), Ok(fits));
    assert!(encode(header, &vec![0_u8; LIMIT - 7]).is_err());
    assert!(encode(header, &vec![0_u8; 70_000]).is_err());
}

fn name() -> impl Strategy<Value = IfName> {
    "[A-Za-z0-9_@-]{1,15}".prop_map(|s| IfName::new(&s).unwrap())
}

fn mode() -> impl Strategy<Value = XdpMode> {
    prop_oneof![Just(XdpMode::Native), Just(XdpMode::Skb)]
}

prop_compose! {
    fn xsk()(interface in name(), mode in proptest::option::of(mode()), queues: u16, start_queue: u16,
             force_copy: bool, ring: u32, chunk: u32, chunks: u32,
             macs in proptest::option::of(proptest::collection::vec(any::<[u8; 6]>().prop_map(Mac), 0..20)),
             both: (bool, bool)) -> XskRequest {
        let steer = macs.map_or(Steer::All, |macs| Steer::Macs { macs, broadcast: both.0, multicast: both.1 });
        XskRequest { interface, mode, queues, start_queue, force_copy, ring, chunk, chunks, steer }
    }
}

prop_compose! {
    fn any_tap()(name in proptest::option::of(name()), persist: bool, queues: u16, vnet_header: bool,
                 mtu: Option<u32>, bridge in proptest::option::of(name()), both: (bool, bool)) -> TapRequest {
        let bridge = bridge.map(|name| BridgeRequest { name, create: both.0, isolated: both.1 });
        TapRequest { name, persist, queues, vnet_header, mtu, bridge }
    }
}

prop_compose! {
    fn tunnel()(src: std::net::IpAddr, dst: std::net::IpAddr, session: u32) -> L2tpRequest {
        L2tpRequest { src, dst, session }
    }
}

prop_compose! {
    fn listener()(udp: bool, address: std::net::IpAddr, port: u16) -> ListenRequest {
        ListenRequest { udp, address, port }
    }
}

fn any_request() -> impl Strategy<Value = Request> {
    prop_oneof![
        any_tap().prop_map(Request::Tap),
        xsk().prop_map(Request::Xsk),
        xsk().prop_map(Request::XskPinned),
        any::<u32>().prop_map(Request::Activate),
        tunnel().prop_map(Request::L2tp),
        listener().prop_map(Request::Listen),
    ]
}

fn any_grant() -> impl Strategy<Value = Grant> {
    let tap = (name(), any::<u32>(), any::<u16>(), 0_u16..=16, proptest::option::of(name())).prop_map(
        |(name, n, flags, queues, bridge)| {
            let mac = Mac([0xfe, 0, 0, 0, 0, 1]);
            Grant::Tap(TapGrant { name, ifindex: n, flags, queues, vnet_header: 12, mtu: n, mac, bridge })
        },
    );
    let xsk = || {
        (name(), any::<u32>(), 0_u16..=8, any::<bool>()).prop_map(|(name, n, queues, yes)| XskGrant {
            ticket: n,
            name,
            ifindex: n,
            start_queue: 3,
            queues,
            mtu: n,
            mac: Mac::default(),
            ring: n,
            chunk: n,
            chunks: n,
            headroom: n,
            multi_buffer: yes,
            zero_copy: !yes,
        })
    };
    prop_oneof![
        tap,
        xsk().prop_map(Grant::Xsk),
        xsk().prop_map(Grant::XskPinned),
        (any::<u32>(), mode()).prop_map(|(ticket, mode)| Grant::Active(ActiveGrant { ticket, mode })),
        tunnel().prop_map(Grant::L2tp),
        listener().prop_map(Grant::Listen),
    ]
}

fn any_refusal() -> impl Strategy<Value = Refusal> {
    prop_oneof![
        Just(Refusal::Denied),
        Just(Refusal::Bad(BadRequest::Steer)),
        Just(Refusal::Limit),
        any::<i32>().prop_map(|errno| Refusal::Failed { step: Step::Capability, errno }),
    ]
}

proptest! {
    #[test]
    fn requests_survive(sequence: u32, value in any_request()) {
        let bytes = request(sequence, &value).unwrap();
        prop_assert_eq!(read_request(&bytes), Ok((sequence, value)));
    }

    #[test]
    fn grants_survive(sequence: u32, grant in any_grant()) {
        let fds = grant.fds().len();
        prop_assert_eq!(fds, grant.fd_count());
        let bytes = answer(sequence, &Answer::Grant(grant.clone())).unwrap();
        prop_assert_eq!(read_answer(&bytes, fds), Ok((sequence, Answer::Grant(grant))));
    }

    #[test]
    fn refusals_survive(sequence: u32, refusal in any_refusal()) {
        let bytes = answer(sequence, &Answer::Refusal(refusal)).unwrap();
        prop_assert_eq!(read_answer(&bytes, 0), Ok((sequence, Answer::Refusal(refusal))));
    }

    #[test]
    fn garbage_is_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), fds in 0_usize..20) {
        prop_assert!(read_request(&bytes).is_err());
        prop_assert!(read_answer(&bytes, fds).is_err());
    }

    /// Whatever body is accepted is the one byte form of its value.
    #[test]
    fn a_changed_byte_is_refused_or_another_value(value in any_request(), at: prop::sample::Index, to: u8) {
        let good = request(1, &value).unwrap();
        let mut bytes = good.clone();
        let at = at.index(bytes.len());
        bytes[at] = to;
        if let Ok((sequence, read)) = read_request(&bytes) {
            prop_assert_eq!(request(sequence, &read).unwrap(), bytes);
        }
    }
}
