//! Caller × request × rule, every branch that refuses, and near misses.

use netreeve_shared::mac::Mac;
use netreeve_shared::request::{BridgeRequest, L2tpRequest, XdpMode};
use proptest::prelude::*;

use super::*;
use crate::names::Names;
use crate::policy_file::parse;

fn policy(text: &str) -> Policy {
    let names = Names::parse("alice:x:1000:1000::/:\nbob:x:1001:1001::/:", "kvm:x:78:\nusers:x:100:");
    parse(text, &names).unwrap()
}

fn caller(uid: u32, gids: &[u32]) -> Caller {
    Caller { uid, gids: gids.to_vec(), pid: 1 }
}

fn alice() -> Caller {
    caller(1000, &[1000, 78])
}

fn name(text: &str) -> IfName {
    IfName::new(text).unwrap()
}

fn plain() -> TapRequest {
    TapRequest { name: None, persist: false, queues: 1, vnet_header: true, mtu: None, bridge: None }
}

fn tap(change: impl FnOnce(&mut TapRequest)) -> Request {
    let mut tap = plain();
    change(&mut tap);
    Request::Tap(tap)
}

fn bridged(change: impl FnOnce(&mut TapRequest, &mut BridgeRequest)) -> Request {
    let mut tap = plain();
    let mut bridge = BridgeRequest { name: name("br0"), create: false, isolated: false };
    change(&mut tap, &mut bridge);
    Request::Tap(TapRequest { bridge: Some(bridge), ..tap })
}

fn xsk(change: impl FnOnce(&mut XskRequest)) -> XskRequest {
    let mut xsk = XskRequest {
        interface: name("eth1"),
        mode: Some(XdpMode::Native),
        queues: 1,
        start_queue: 0,
        force_copy: false,
        ring: 2048,
        chunk: 2048,
        chunks: 1024,
        steer: Steer::All,
    };
    change(&mut xsk);
    xsk
}

fn tunnel(dst: &str, session: u32) -> Request {
    let dst: IpAddr = dst.parse().unwrap();
    let src = if dst.is_ipv6() { "2001:db8::1" } else { "192.0.2.1" }.parse().unwrap();
    Request::L2tp(L2tpRequest { src, dst, session })
}

fn listen(address: &str, port: u16) -> Request {
    Request::Listen(ListenRequest { udp: port.is_multiple_of(2), address: address.parse().unwrap(), port })
}

/// The line that allows it, or why not.
fn why(text: &str, caller: &Caller, request: &Request) -> Result<u32, Why> {
    judge(&policy(text), caller, request).map(|(line, _)| line)
}

#[test]
fn an_empty_policy_refuses_everything() {
    let macs = |x: &mut XskRequest| {
        x.steer = Steer::Macs { macs: vec![Mac([2; 6])], broadcast: false, multicast: false };
    };
    let requests = [
        tap(|_| ()),
        bridged(|_, _| ()),
        Request::Xsk(xsk(macs)),
        Request::XskPinned(xsk(macs)),
        tunnel("192.0.2.2", 1),
        listen("127.0.0.1", 1),
    ];
    for request in requests {
        for who in [caller(0, &[0]), alice()] {
            assert_eq!(why("", &who, &request), Err(Why::NoRule), "{request:?}");
        }
    }
}

#[test]
fn who_is_matched_exactly() {
    let request = tap(|_| ());
    let table: [(&str, Caller, bool); 14] = [
        ("any", alice(), true),
        ("any", caller(u32::MAX - 1, &[]), true),
        ("uid:1000", alice(), true),
        ("user:alice", alice(), true),
        ("uid:1000", caller(1001, &[1000]), false), // a group's number is no user's
        ("uid:1000", caller(999, &[]), false),
        ("uid:0", alice(), false),
        ("user:bob", alice(), false),
        ("gid:78", alice(), true),
        ("group:kvm", caller(5, &[1, 2, 78]), true),
        ("group:kvm", caller(78, &[1]), false), // a user's number is no group's
        ("group:kvm", caller(1000, &[]), false),
        ("gid:1000", alice(), true),
        ("gid:0", caller(0, &[]), false), // root is in no group by itself
    ];
    for (who, caller, yes) in table {
        let expected = if yes { Ok(1) } else { Err(Why::NoRule) };
        assert_eq!(why(&format!("allow {who} tap *"), &caller, &request), expected, "{who} {caller:?}");
    }
}

#[test]
fn what_and_which_are_matched_exactly() {
    let named = |text: &str| tap(|t| t.name = Some(name(text)));
    let table: [(&str, Request, bool); 35] = [
        ("tap *", tap(|_| ()), true),
        ("tap nv*", tap(|_| ()), false), // the helper's own names fit no pattern but *
        ("tap vm0", tap(|_| ()), false),
        ("bridge *", tap(|_| ()), false),
        ("xsk *", tap(|_| ()), false),
        ("tap vm* named=yes", named("vm0"), true),
        ("tap vm* named=yes", named("vm"), true),
        ("tap vm* named=yes", named("v"), false),
        ("tap vm0 named=yes", named("vm00"), false),
        ("bridge br0", bridged(|_, _| ()), true),
        ("bridge br", bridged(|_, _| ()), false),
        ("bridge br00", bridged(|_, _| ()), false),
        ("tap *", bridged(|_, _| ()), false), // a tap alone is no right to a bridge
        ("xsk eth1", Request::Xsk(xsk(|_| ())), true),
        ("xsk-pinned eth1", Request::Xsk(xsk(|_| ())), false),
        ("xsk eth1", Request::XskPinned(xsk(|_| ())), false),
        ("xsk-pinned eth*", Request::XskPinned(xsk(|_| ())), true),
        ("l2tpv3 *", tunnel("192.0.2.2", 1), true),
        ("l2tpv3 192.0.2.2", tunnel("192.0.2.2", 1), true),
        ("l2tpv3 192.0.2.1", tunnel("192.0.2.2", 1), false), // our own address is not what it is about
        ("l2tpv3 192.0.2.0/30", tunnel("192.0.2.3", 1), true),
        ("l2tpv3 192.0.2.0/30", tunnel("192.0.2.4", 1), false),
        ("l2tpv3 0.0.0.0/0", tunnel("2001:db8::2", 1), false),
        ("l2tpv3 2001:db8::/64", tunnel("2001:db8::2", 1), true),
        ("listen *", tunnel("192.0.2.2", 1), false),
        ("l2tpv3 *", listen("192.0.2.2", 80), false),
        ("tap *", listen("192.0.2.2", 80), false),
        ("listen 192.0.2.2", listen("192.0.2.2", 80), true),
        ("listen 192.0.2.0/24", listen("0.0.0.0", 80), false), // all addresses are more than these
        ("listen 0.0.0.0/8", listen("0.0.0.0", 80), false),
        ("listen ::/64", listen("::", 80), false),
        ("listen 0.0.0.0/0", listen("0.0.0.0", 80), true),
        ("listen 0.0.0.0", listen("0.0.0.0", 80), true),
        ("listen 0.0.0.0", listen("192.0.2.2", 80), false),
        ("listen 0.0.0.0/0", listen("::", 80), false),
    ];
    for (rule, request, yes) in table {
        let expected = if yes { Ok(1) } else { Err(Why::NoRule) };
        assert_eq!(why(&format!("allow any {rule}"), &alice(), &request), expected, "{rule} {request:?}");
    }
}

/// Each request is just within the rule; the same with one field changed is refused for that field.
#[test]
fn each_term_is_a_border() {
    let mtu = |n| tap(move |t| t.mtu = Some(n));
    let bridge_mtu = |n| bridged(move |t, _| t.mtu = Some(n));
    let macs = Steer::Macs { macs: vec![Mac([2; 6])], broadcast: true, multicast: true };
    let at = |start, queues| Request::Xsk(xsk(move |x| (x.start_queue, x.queues) = (start, queues)));
    let memory = |chunks, queues| Request::Xsk(xsk(move |x| (x.chunks, x.queues) = (chunks, queues)));
    let steered = Request::Xsk(xsk(|x| x.steer = macs.clone()));
    let table: [(&str, Request, Request, Term); 22] = [
        ("tap * queues=4", tap(|t| t.queues = 4), tap(|t| t.queues = 5), "queues"),
        ("tap * mtu=9000", mtu(9000), mtu(9001), "mtu"),
        ("tap * mtu=9000", mtu(1280), mtu(1279), "mtu"),
        ("tap * mtu=68-1400", mtu(68), mtu(1401), "mtu"),
        (
            "tap * named=yes",
            tap(|t| t.name = Some(name("a"))),
            tap(|t| (t.name, t.persist) = (Some(name("a")), true)),
            "persist",
        ),
        ("tap *", tap(|_| ()), tap(|t| t.name = Some(name("a"))), "named"),
        ("bridge br0 queues=2", bridged(|t, _| t.queues = 2), bridged(|t, _| t.queues = 3), "queues"),
        ("bridge br0", bridged(|_, _| ()), bridge_mtu(1500), "mtu"),
        ("bridge br0 mtu=1500-1500", bridge_mtu(1500), bridge_mtu(1499), "mtu"),
        ("bridge br0", bridged(|_, _| ()), bridged(|_, b| b.create = true), "create"),
        ("bridge br0 isolated=yes", bridged(|_, b| b.isolated = true), bridged(|_, _| ()), "isolated"),
        ("xsk * queues=2", at(0, 2), at(0, 3), "queues"),
        ("xsk * queue=2-5", at(2, 4), at(2, 5), "queue"),
        ("xsk * queue=2-5", at(5, 1), at(1, 2), "queue"),
        ("xsk * queue=7", at(7, 1), at(8, 1), "queue"),
        ("xsk * umem=4M", memory(2048, 1), memory(2049, 1), "umem"),
        ("xsk * umem=4M", memory(1024, 2), memory(1025, 2), "umem"),
        ("xsk * steer=macs", steered, at(0, 1), "steer"),
        ("l2tpv3 * session=5-9", tunnel("192.0.2.2", 9), tunnel("192.0.2.2", 10), "session"),
        ("l2tpv3 * session=5", tunnel("192.0.2.2", 5), tunnel("192.0.2.2", 4), "session"),
        ("listen * port=80", listen("::1", 80), listen("::1", 81), "port"),
        ("listen * port=53-80", listen("::1", 53), listen("::1", 52), "port"),
    ];
    for (rule, within, beyond, term) in table {
        let text = format!("# border\nallow any {rule}");
        assert_eq!(why(&text, &alice(), &within), Ok(2), "{rule} {within:?}");
        assert_eq!(why(&text, &alice(), &beyond), Err(Why::Exceeds(2, term)), "{rule} {beyond:?}");
    }
}

#[test]
fn a_rule_is_weighed_as_a_whole() {
    let both = tap(|t| (t.queues, t.mtu) = (8, Some(9000)));
    let parts = "allow any tap * queues=8 mtu=1500\nallow any tap * queues=1 mtu=9000";
    assert_eq!(why(parts, &alice(), &both), Err(Why::Exceeds(2, "queues")));
    let whole = format!("{parts}\nallow uid:1000 tap * queues=8 mtu=9000");
    assert_eq!(why(&whole, &alice(), &both), Ok(3));
}

#[test]
fn a_name_in_a_bridge_needs_both_rights() {
    let request = bridged(|t, _| t.name = Some(name("vm0")));
    let (bridge, tap) = ("allow any bridge br0", "allow any tap vm* named=yes");
    assert_eq!(why(bridge, &alice(), &request), Err(Why::NoRule));
    assert_eq!(why(tap, &alice(), &request), Err(Why::NoRule));
    assert_eq!(why(&format!("{bridge}\n{tap}"), &alice(), &request), Ok(1));
    assert_eq!(
        why(&format!("{bridge}\nallow any tap vm*"), &alice(), &request),
        Err(Why::Exceeds(2, "named"))
    );
    assert_eq!(why(&format!("{tap} max=3\n{bridge} max=5"), &alice(), &request), Ok(2));
    assert_eq!(
        judge(&policy(&format!("{tap} max=3\n{bridge} max=5")), &alice(), &request).unwrap().1.taps,
        3
    );
}

#[test]
fn deny_wins_in_any_order_and_whatever_else_is_asked() {
    let named = bridged(|t, _| t.name = Some(name("vm0")));
    let table: [(&str, Request, bool); 23] = [
        ("any tap *", tap(|_| ()), true),
        ("user:alice tap *", bridged(|_, _| ()), true), // no taps means none in bridges
        ("user:bob tap *", bridged(|_, _| ()), false),
        ("any tap vm*", bridged(|_, _| ()), false),
        ("any tap vm*", named.clone(), true),
        ("any bridge br0", named.clone(), true),
        ("any bridge br1", named, false),
        ("group:kvm bridge *", bridged(|_, _| ()), true),
        ("group:users bridge *", bridged(|_, _| ()), false),
        ("any xsk eth*", Request::Xsk(xsk(|_| ())), true),
        ("any xsk eth*", Request::XskPinned(xsk(|_| ())), true), // no sockets means none to bind oneself
        ("any xsk-pinned eth*", Request::Xsk(xsk(|_| ())), false),
        ("uid:1000 xsk-pinned eth1", Request::XskPinned(xsk(|_| ())), true),
        ("any l2tpv3 192.0.2.0/24", tunnel("192.0.2.2", 1), true),
        ("any l2tpv3 192.0.2.0/24", tunnel("192.0.3.2", 1), false),
        ("any l2tpv3 ::/0", tunnel("192.0.2.2", 1), false),
        ("any listen 10.0.0.1", listen("10.0.0.1", 80), true),
        ("any listen 10.0.0.1", listen("10.0.0.2", 80), false),
        ("any listen 10.0.0.1", listen("0.0.0.0", 80), true), // at all addresses is at that one, too
        ("any listen 10.0.0.1", listen("::", 80), false),
        ("any listen ::1", listen("::", 80), true),
        ("any listen ::1", listen("0.0.0.0", 80), false),
        ("any listen *", listen("::1", 80), true),
    ];
    let allow = "allow any tap * named=yes\nallow any bridge *\nallow any xsk *\nallow any xsk-pinned *\n\
                 allow any l2tpv3 *\nallow any listen *";
    for (rule, request, denied) in table {
        let after = why(&format!("{allow}\ndeny {rule}"), &alice(), &request);
        let before = why(&format!("deny {rule}\n{allow}"), &alice(), &request);
        assert_eq!(after == Err(Why::Denied(7)), denied, "{rule} {request:?}");
        assert_eq!(before == Err(Why::Denied(1)), denied, "{rule} {request:?}");
    }
}

#[test]
fn numbers_out_of_range_are_not_even_weighed() {
    let all = "allow any tap *\nallow any xsk *\nallow any xsk-pinned *";
    assert_eq!(why(all, &alice(), &tap(|t| t.queues = 0)), Err(Why::Bad(BadRequest::Queues)));
    assert_eq!(why(all, &alice(), &tap(|t| t.persist = true)), Err(Why::Bad(BadRequest::PersistUnnamed)));
    assert_eq!(why(all, &alice(), &Request::Xsk(xsk(|x| x.ring = 3))), Err(Why::Bad(BadRequest::Ring)));
    let far = Request::XskPinned(xsk(|x| (x.start_queue, x.queues) = (u16::MAX, 2)));
    assert_eq!(why(all, &alice(), &far), Err(Why::Bad(BadRequest::StartQueue)));
    let last = Request::XskPinned(xsk(|x| (x.start_queue, x.queues) = (u16::MAX - 1, 1)));
    assert_eq!(why(all, &alice(), &last), Ok(3));
}

#[test]
fn addresses_that_no_single_machine_has_are_not_even_weighed() {
    let all = "allow any l2tpv3 *\nallow any listen *";
    assert_eq!(why(all, &alice(), &tunnel("224.0.0.1", 1)), Err(Why::Bad(BadRequest::Address)));
    assert_eq!(why(all, &alice(), &tunnel("192.0.2.2", 0)), Err(Why::Bad(BadRequest::Zero)));
    assert_eq!(why(all, &alice(), &listen("fe80::1", 80)), Err(Why::Bad(BadRequest::Address)));
    assert_eq!(why(all, &alice(), &listen("::1", 0)), Err(Why::Bad(BadRequest::Zero)));
}

#[test]
fn a_ticket_is_nothing_that_a_rule_is_about() {
    assert_eq!(why("allow any tap *\nallow any xsk *", &alice(), &Request::Activate(1)), Err(Why::NoRule));
}

#[test]
fn the_most_particular_limit_counts_and_the_lowest_among_equals() {
    let text = "limit any taps=1 sessions=2 umem=1M requests=5\nlimit group:kvm taps=10\nlimit gid:1000 taps=9\n\
                limit user:alice sessions=50\nlimit uid:1000 sessions=60";
    let quota = policy(text).quota(&alice());
    assert_eq!(quota, Quota { sessions: 50, requests: 5, taps: 9, umem: 1 << 20 });
    let other = policy(text).quota(&caller(7, &[]));
    assert_eq!(other, Quota { sessions: 2, requests: 5, taps: 1, umem: 1 << 20 });
    assert_eq!(policy("").quota(&alice()), DEFAULT_QUOTA);
}

#[test]
fn a_rule_and_a_limit_bound_together() {
    let verdict = |text: &str| judge(&policy(text), &alice(), &tap(|_| ())).unwrap().1;
    assert_eq!(verdict("allow any tap *").taps, DEFAULT_QUOTA.taps);
    assert_eq!(verdict("allow any tap * max=3").taps, 3);
    assert_eq!(verdict("allow any tap * max=30\nlimit any taps=20").taps, 20);
    let memory = |text: &str| judge(&policy(text), &alice(), &Request::Xsk(xsk(|_| ()))).unwrap().1.umem;
    assert_eq!(memory("allow any xsk * umem=8M"), 8 << 20);
    assert_eq!(memory("allow any xsk * umem=8M\nlimit any umem=2M"), 2 << 20);
}

fn any_rule() -> impl Strategy<Value = String> {
    let who = prop_oneof!["any", "uid:100[0-2]", "gid:7[789]", "user:alice", "group:kvm"];
    let what = prop_oneof![
        "tap (\\*|vm\\*|vm0)",
        "bridge (\\*|br\\*|br0|br1)",
        "xsk (\\*|eth1)",
        "xsk-pinned (\\*|e\\*)",
        "l2tpv3 (\\*|192\\.0\\.2\\.0/24|192\\.0\\.2\\.2|::/0)",
        "listen (\\*|0\\.0\\.0\\.0|127\\.0\\.0\\.0/8|127\\.0\\.0\\.1)"
    ];
    (who, what).prop_map(|(who, what)| format!("{who} {what}"))
}

fn any_request() -> impl Strategy<Value = Request> {
    let (named, queues) = (any::<bool>(), 1_u16..8);
    (0..7, named, queues, any::<bool>()).prop_map(|(sort, named, queues, flag)| match sort {
        0 => tap(|t| (t.name, t.queues) = (named.then(|| name("vm0")), queues)),
        1 => bridged(|t, b| (t.name, t.queues, b.isolated) = (named.then(|| name("vm0")), queues, flag)),
        2 => bridged(|t, b| (t.queues, b.create) = (queues, flag)),
        3 => Request::Xsk(xsk(|x| x.queues = queues)),
        4 => Request::XskPinned(xsk(|x| x.queues = queues)),
        5 => tunnel(if flag { "192.0.2.2" } else { "2001:db8::2" }, queues.into()),
        _ => listen(if flag { "127.0.0.1" } else { "0.0.0.0" }, queues),
    })
}

proptest! {
    #[test]
    fn order_decides_nothing_and_deny_only_takes_away(
        allows in proptest::collection::vec(any_rule(), 0..6),
        denies in proptest::collection::vec(any_rule(), 0..3),
        request in any_request(),
        uid in 1000_u32..1003,
        gid in 77_u32..80,
        at: prop::sample::Index,
    ) {
        let caller = caller(uid, &[gid]);
        let allow: Vec<String> = allows.iter().map(|r| {
            format!("allow {r}{}", if r.contains(" tap ") { " named=yes" } else { "" })
        }).collect();
        let deny: Vec<String> = denies.iter().map(|r| format!("deny {r}")).collect();
        let word = |lines: &[String]| judge(&policy(&lines.join("\n")), &caller, &request).is_ok();
        let mut lines = [allow.clone(), deny.clone()].concat();
        let forward = word(&lines);
        lines.reverse();
        prop_assert_eq!(forward, word(&lines));
        if !lines.is_empty() {
            let by = at.index(lines.len());
            lines.rotate_left(by);
            prop_assert_eq!(forward, word(&lines));
        }
        if forward {
            prop_assert!(word(&allow));
            prop_assert!(!allow.is_empty());
        }
        prop_assert!(!word(&deny));
    }
}
