//! A helper that lies, in every way it can.

use std::fs::File;

use super::*;
use crate::grant::{ActiveGrant, TapGrant};
use crate::ifname::IfName;
use crate::mac::Mac;
use crate::request::{TapRequest, XdpMode};

fn tap_request() -> Request {
    Request::Tap(TapRequest {
        name: None,
        persist: false,
        queues: 1,
        vnet_header: true,
        mtu: None,
        bridge: None,
    })
}

/// Asks a helper that does `serve` with its end and the request's sequence number.
fn ask(serve: impl FnOnce(Channel, u32) + Send + 'static) -> Result<(Grant, Vec<OwnedFd>), AskError> {
    let (ours, theirs) = Channel::pair().unwrap();
    let server = thread::spawn(move || {
        let got = theirs.recv(0, Some(Duration::from_secs(5))).unwrap().unwrap();
        let (sequence, request) = codec::read_request(&got.bytes).unwrap();
        assert_eq!(request, tap_request());
        serve(theirs, sequence);
    });
    let said = Helper::from_fd(ours.into_fd()).unwrap().ask(&tap_request());
    server.join().unwrap();
    said
}

fn tap_grant(queues: u16) -> Grant {
    let name = IfName::new("nvtest").unwrap();
    let mac = Mac([0xfe, 0, 0, 0, 0, 1]);
    Grant::Tap(TapGrant { name, ifindex: 2, flags: 2, queues, vnet_header: 12, mtu: 1500, mac, bridge: None })
}

#[test]
fn a_refusal_is_an_answer() {
    let said =
        ask(|c, s| c.send(&codec::answer(s, &Answer::Refusal(Refusal::Denied)).unwrap(), &[]).unwrap());
    assert!(matches!(said, Err(AskError::Refused(Refusal::Denied))), "{said:?}");
}

#[test]
fn a_helper_that_goes_away_is_told_from_one_that_refuses() {
    assert!(matches!(ask(|c, _| drop(c)), Err(AskError::Closed)));
}

#[test]
fn another_sequence_number_is_refused() {
    let said =
        ask(|c, s| c.send(&codec::answer(s + 1, &Answer::Refusal(Refusal::Busy)).unwrap(), &[]).unwrap());
    assert!(matches!(said, Err(AskError::Sequence)), "{said:?}");
}

#[test]
fn garbage_is_refused() {
    let said = ask(|c, _| c.send(b"hello", &[]).unwrap());
    assert!(matches!(said, Err(AskError::Codec(CodecError::Size))), "{said:?}");
}

#[test]
fn a_descriptor_that_is_no_tap_is_refused() {
    let null = File::open("/dev/null").unwrap();
    let said = ask(move |c, s| {
        c.send(&codec::answer(s, &Answer::Grant(tap_grant(1))).unwrap(), &[null.as_fd()]).unwrap();
    });
    assert!(matches!(said, Err(AskError::Label(_))), "{said:?}");
}

#[test]
fn a_grant_of_something_else_is_refused() {
    let null = File::open("/dev/null").unwrap();
    let other = Grant::Active(ActiveGrant { ticket: 1, mode: XdpMode::Skb });
    let said = ask(move |c, s| {
        c.send(&codec::answer(s, &Answer::Grant(other)).unwrap(), &[null.as_fd()]).unwrap();
    });
    assert!(matches!(said, Err(AskError::Mismatch)), "{said:?}");
}

#[test]
fn missing_or_surplus_descriptors_are_refused() {
    for queues in [0, 2] {
        let null = File::open("/dev/null").unwrap();
        let said = ask(move |c, s| {
            c.send(&codec::answer(s, &Answer::Grant(tap_grant(queues))).unwrap(), &[null.as_fd()]).unwrap();
        });
        assert!(matches!(said, Err(AskError::Codec(CodecError::Descriptors))), "{said:?}");
    }
}

#[test]
fn a_request_out_of_range_is_not_even_sent() {
    let (ours, theirs) = Channel::pair().unwrap();
    let mut helper = Helper::from_fd(ours.into_fd()).unwrap();
    let Request::Tap(tap) = tap_request() else { return };
    let said = helper.ask(&Request::Tap(TapRequest { queues: 0, ..tap }));
    assert!(matches!(said, Err(AskError::Bad(BadRequest::Queues))), "{said:?}");
    assert!(theirs.recv(0, Some(Duration::ZERO)).is_err());
}

#[test]
fn a_started_helper_is_reaped() {
    // Ends as a helper does: when its channel closes.
    let helper = Helper::exec(Path::new("/bin/true")).unwrap();
    let pid = helper.child.as_ref().unwrap().id();
    drop(helper);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}
