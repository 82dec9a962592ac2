//! A session goes on in another dataplane, or not at all.

use super::*;
use crate::mem::guest::Layout;
use crate::port::Left;
use std::fs::File;

/// What the front end's port leaves now, with copies of the descriptors; and whether it is the whole.
fn left(x: &Front) -> (Left, bool) {
    let mut all = Left::new();
    let mut keep = |piece: Piece, fds: &[std::os::fd::BorrowedFd<'_>]| {
        all.push((piece, fds.iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect()));
        Ok(())
    };
    let whole = x.ports[0].estate(&mut keep).unwrap();
    (all, whole)
}

/// The dataplane dies, and another one takes over what it left.
fn succeed(x: &mut Front, plan: &Plan) -> io::Result<()> {
    let (left, whole) = left(x);
    assert!(whole);
    x.ports = open(plan, Vec::new()).unwrap();
    assert!(!x.ports[0].traits().up);
    x.ports[0].inherit(left).map(|c| assert!(c.rewire && c.link == Some(true), "{c:?}"))
}

#[test]
fn rings_go_on_where_the_guests_memory_says() {
    for more in [0, f::RING_PACKED] {
        go_on(more);
    }
}

fn go_on(more: u64) {
    let plan = plan(1);
    let mut x = Front::ready_with(&plan, ACK | more);
    // Of a packed ring both halves say the same place, in the first round.
    let base = |at: u32| if more == 0 { state(1, at) } else { state(1, (at * 0x1_0001) | 0x8000_8000) };
    x.post(0, 4);
    for i in 0..5 {
        x.transmit(1, i);
    }
    let mut b = Batch::new();
    x.ports[0].recv(&mut b).unwrap();
    x.ports[0].release(&b, 2);
    assert_eq!(x.deliver(0, 9), 1);
    count(&x.calls[0]);
    succeed(&mut x, &plan).unwrap();
    assert!(count(&x.calls[0]) > 0, "an interrupt may have died with the other one");
    assert_eq!(x.turn(0), [2, 3, 4], "not kicked, and yet looked at");
    assert_eq!(x.deliver(0, 9), 1);
    assert_eq!(std::iter::from_fn(|| x.drivers[0].take()).count(), 2);
    x.transmit(1, 7);
    assert_eq!(x.turn(0), [7]);
    assert_eq!(x.ask(r::GET_VRING_BASE, &state(1, 0)), base(6), "the connection lives");
    let up = x.ports[0].traits();
    succeed_stopped(&mut x, &plan, &base(6));
    assert_eq!(x.ports[0].traits().takes, up.takes);
}

/// A ring that the front end had stopped stays stopped, at its place.
fn succeed_stopped(x: &mut Front, plan: &Plan, base: &[u8]) {
    let (left, whole) = left(x);
    assert!(whole);
    x.ports = open(plan, Vec::new()).unwrap();
    x.ports[0].inherit(left).unwrap();
    assert!(!x.ports[0].traits().up);
    x.transmit(1, 8);
    assert_eq!(x.turn(0).len(), 0);
    assert_eq!(x.ask(r::GET_VRING_BASE, &state(1, 0)), base);
}

#[test]
fn extra_pairs_and_the_channel_back_go_on() {
    let plan = plan(2);
    let mut x = Front::ready(&plan);
    let (ours, theirs) = UnixStream::pair().unwrap();
    x.tell(r::SET_BACKEND_REQ_FD, &[], &[theirs.as_raw_fd()]);
    drop(theirs);
    let traits: Vec<_> = x.ports.iter().map(|p| p.traits()).collect();
    let protocol = x.ask_u64(r::GET_PROTOCOL_FEATURES);
    succeed(&mut x, &plan).unwrap();
    assert_eq!(x.ports.iter().map(|p| p.traits()).collect::<Vec<_>>(), traits);
    assert_eq!(x.ask_u64(r::GET_PROTOCOL_FEATURES), protocol);
    x.transmit(3, 5);
    assert_eq!(x.turn(1), [5]);
    x.ports.clear();
    ours.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
    assert_eq!((&ours).read(&mut [0]).unwrap(), 0, "it had the channel back, and it alone");
}

#[test]
fn the_middle_of_a_message_is_not_left() {
    let mut x = Front::ready(&plan(1));
    assert!(left(&x).1);
    x.sock.write_all(&r::GET_FEATURES.to_ne_bytes()).unwrap();
    x.pump();
    assert!(!left(&x).1);
    let mut rest = 1u32.to_ne_bytes().to_vec();
    rest.extend(0u32.to_ne_bytes());
    x.sock.write_all(&rest).unwrap();
    x.pump();
    x.reply();
    assert!(left(&x).1);
    assert!(x.gone_after_close() && !left(&x).1);
}

impl Front {
    fn gone_after_close(&mut self) -> bool {
        self.sock.shutdown(std::net::Shutdown::Both).unwrap();
        self.pump();
        !self.ports[0].traits().up
    }
}

#[test]
fn what_does_not_fit_ends_the_connection() {
    type Spoil = fn(&mut Left);
    let null = || -> OwnedFd { File::open("/dev/null").unwrap().into() };
    let spoils: [(&str, Spoil); 9] = [
        ("nothing", |l| l.clear()),
        ("no session first", |l| drop(l.remove(0))),
        ("two sessions", |l| {
            let said = l[0].0.clone();
            l.push((said, Vec::new()));
        }),
        ("no connection", |l| l[0].1.clear()),
        ("no memory", |l| l.retain(|(p, _)| !matches!(p, Piece::Region(_)))),
        ("a region without a file", |l| l[1].1.clear()),
        ("a region that wraps", |l| {
            l[1].0 = Piece::Region(Layout { gpa: u64::MAX, uva: 0, len: 4096, offset: 0 });
        }),
        ("a region twice", |l| {
            let fd = l[1].1[0].try_clone().unwrap();
            let region = l[1].0.clone();
            l.push((region, vec![fd]));
        }),
        ("a ring that is not there", |l| {
            for (p, _) in l {
                if let Piece::Ring { index, .. } = p {
                    *index = 999;
                }
            }
        }),
    ];
    for (what, spoil) in spoils {
        let plan = plan(1);
        let mut x = Front::ready(&plan);
        let (mut left, _) = left(&x);
        assert!(matches!(left[1].0, Piece::Region(_)));
        spoil(&mut left);
        x.ports = open(&plan, Vec::new()).unwrap();
        assert!(x.ports[0].inherit(left).is_err(), "{what}");
        assert!(x.gone(), "{what}");
    }
    // A file that is no memory, a kick that is no eventfd: as from a front end.
    for at in [1, 2] {
        let plan = plan(1);
        let mut x = Front::ready(&plan);
        let (mut left, _) = left(&x);
        left[at].1[0] = null();
        x.ports = open(&plan, Vec::new()).unwrap();
        assert!(x.ports[0].inherit(left).is_err());
        assert!(x.gone());
    }
}
