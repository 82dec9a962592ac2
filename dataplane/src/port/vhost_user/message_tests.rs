use std::io::{IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use proptest::prelude::*;

use super::*;

fn raw(number: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    message(number, flags, payload)
}

fn send_fds(sock: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) {
    let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights: &[_] = if raw.is_empty() { &[] } else { &rights };
    let n = sendmsg::<()>(sock.as_raw_fd(), &[IoSlice::new(bytes)], rights, MsgFlags::empty(), None).unwrap();
    assert_eq!(n, bytes.len());
}

fn next(r: &mut Reader, sock: &UnixStream) -> Message {
    match r.read(sock.as_fd()).unwrap() {
        Read::Message(m) => m,
        other => panic!("{other:?}"),
    }
}

#[test]
fn messages_arrive_byte_by_byte_and_in_heaps() {
    let (mut a, b) = UnixStream::pair().unwrap();
    let mut r = Reader::default();
    let one = raw(2, 1, &7u64.to_ne_bytes());
    for byte in &one[..one.len() - 1] {
        a.write_all(&[*byte]).unwrap();
        assert!(matches!(r.read(b.as_fd()).unwrap(), Read::Later));
    }
    a.write_all(&one[one.len() - 1..]).unwrap();
    assert_eq!(next(&mut r, &b).request, Ok(Request::SetFeatures(7)));
    let heap: Vec<u8> = [raw(1, 1, &[]), raw(3, 9, &[]), raw(15, 1, &[])].concat();
    a.write_all(&heap).unwrap();
    assert_eq!(next(&mut r, &b).request, Ok(Request::GetFeatures));
    let m = next(&mut r, &b);
    assert_eq!((m.request, m.need_reply), (Ok(Request::SetOwner), true));
    assert_eq!(next(&mut r, &b).request, Ok(Request::GetProtocolFeatures));
    assert!(matches!(r.read(b.as_fd()).unwrap(), Read::Later));
    a.write_all(&one[..5]).unwrap();
    drop(a);
    assert!(matches!(r.read(b.as_fd()).unwrap(), Read::End), "half a message, then nothing");
}

#[test]
fn framing_that_cannot_be_right_ends_the_connection() {
    for bytes in [raw(1, 0, &[]), raw(1, 2, &[]), raw(1, 5, &[]), {
        let mut m = raw(1, 1, &[]);
        m[8..12].copy_from_slice(&4097u32.to_ne_bytes());
        m
    }] {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(&bytes).unwrap();
        assert!(Reader::default().read(b.as_fd()).is_err(), "{bytes:?}");
    }
}

/// A pipe's write end is among the descriptors: when all copies are closed, its read end says so.
fn closes_everything(number: u32, payload: &[u8], count: usize) -> Result<Request, Bad> {
    let (read, write) = std::io::pipe().unwrap();
    let (a, b) = UnixStream::pair().unwrap();
    let fds: Vec<OwnedFd> = (0..count).map(|_| write.try_clone().unwrap().into()).collect();
    send_fds(&a, &raw(number, 1, payload), &fds);
    drop((write, fds));
    let mut r = Reader::default();
    let m = next(&mut r, &b);
    let request = m.request.clone();
    drop(m);
    let mut byte = [0];
    crate::sys::fd::set_nonblocking(read.as_fd()).unwrap();
    assert_eq!(nix::unistd::read(&read, &mut byte), Ok(0), "a descriptor was kept");
    request
}

#[test]
fn descriptors_are_counted_and_closed_on_every_path() {
    let table = |n: u32, regions: usize| {
        let mut p = n.to_ne_bytes().to_vec();
        p.extend([0; 4]);
        p.extend(vec![0; regions * 32]);
        p
    };
    assert!(closes_everything(5, &table(2, 2), 2).is_ok());
    assert!(closes_everything(5, &table(1, 2), 1).is_ok(), "padding as User-Mode Linux sends it");
    assert!(closes_everything(5, &table(2, 2), 1).is_err());
    assert!(closes_everything(5, &table(2, 2), 3).is_err());
    assert!(closes_everything(5, &table(2, 1), 2).is_err());
    assert!(closes_everything(5, &table(65, 65), 65).is_err());
    assert!(closes_everything(5, &table(u32::MAX, 1), 1).is_err());
    assert!(closes_everything(5, &[1, 0], 1).is_err());
    assert!(closes_everything(1, &[], 33).is_err(), "descriptors where none belong");
    assert!(closes_everything(12, &0u64.to_ne_bytes(), 0).is_err());
    assert!(closes_everything(12, &0u64.to_ne_bytes(), 1).is_ok());
    assert!(closes_everything(12, &0u64.to_ne_bytes(), 2).is_err());
    assert!(closes_everything(12, &0x100u64.to_ne_bytes(), 1).is_err());
    assert!(closes_everything(13, &0x101u64.to_ne_bytes(), 0).is_ok());
    assert!(closes_everything(999, &[1, 2, 3], 5).is_ok(), "unknown, closed");
}

#[test]
fn descriptors_may_come_with_any_part_of_a_message() {
    let (a, b) = UnixStream::pair().unwrap();
    let m = raw(14, 1, &3u64.to_ne_bytes());
    let (_r, w) = std::io::pipe().unwrap();
    send_fds(&a, &m[..4], &[]);
    let mut r = Reader::default();
    assert!(matches!(r.read(b.as_fd()).unwrap(), Read::Later));
    send_fds(&a, &m[4..], &[w.into()]);
    let got = next(&mut r, &b);
    assert_eq!(got.request, Ok(Request::SetRingFd { index: 3, which: RingFd::Err, has_fd: true }));
    assert_eq!(got.fds.len(), 1);
}

#[test]
fn fields_are_where_the_specification_says() {
    let words = |w: &[u64]| w.iter().flat_map(|v| v.to_ne_bytes()).collect::<Vec<u8>>();
    let p = words(&[3, 0x1000, 0x3000, 0x2000, 0]);
    let at = RingAddr { desc: 0x1000, avail: 0x2000, used: 0x3000 };
    assert_eq!(Request::parse(9, &p), Ok(Request::SetRingAddr { index: 3, at }));
    let l = Layout { gpa: 1, len: 2, uva: 3, offset: 4 };
    assert_eq!(Request::parse(37, &words(&[0, 1, 2, 3, 4])), Ok(Request::AddMemReg(l)));
    assert_eq!(Request::parse(5, &words(&[1, 1, 2, 3, 4])), Ok(Request::SetMemTable(vec![l])));
    let p = words(&[u64::from_ne_bytes([2, 0xaa, 0, 0, 0, 1, 0, 0])]);
    assert_eq!(Request::parse(19, &p), Ok(Request::SendRarp(Mac([2, 0xaa, 0, 0, 0, 1]))));
    let config = |o: u32, s: u32| [o.to_ne_bytes(), s.to_ne_bytes(), [0; 4]].concat();
    assert_eq!(Request::parse(24, &config(6, 2)), Ok(Request::GetConfig { offset: 6, size: 2 }));
    assert!(Request::parse(24, &config(250, 7)).is_err());
    assert!(Request::parse(24, &config(u32::MAX, 2)).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_payload_is_parsed_or_refused(number in 0u32..50, payload in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(Request::SetMemTable(list)) = Request::parse(number, &payload) {
            prop_assert!(list.len() * 32 + 8 <= payload.len());
        }
    }

    #[test]
    fn any_stream_is_read_to_its_end(bytes in prop::collection::vec(prop_oneof![0u8..4, any::<u8>()], 0..600)) {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(&bytes).unwrap();
        drop(a);
        let mut r = Reader::default();
        for _ in 0..=bytes.len() {
            match r.read(b.as_fd()) {
                Ok(Read::Message(_)) => {}
                Ok(Read::End) | Err(_) => return Ok(()),
                Ok(Read::Later) => prop_assert!(false, "the end was not seen"),
            }
        }
        prop_assert!(false, "did not end");
    }
}
