//! A capture as a whole: frames through a stage, a spool and the thread, into a file.

use std::io::{Read, Seek};

use super::format::Format;
use super::*;
use crate::mem::spool::Writer;
use crate::stage::Queue;
use crate::stage::record::Head;

fn about(queues: u16) -> About {
    About { format: Format::Pcap, keep: 65536, port: "n0".into(), kind: "tap".into(), queues }
}

fn capture(queues: u16, output: OwnedFd) -> Capture {
    let target = Target { id: "f0".into(), number: 1, slot: 0 };
    Capture::start(target, Plan { queue: Queue::All, keep: 65536, on: true }, about(queues), output).unwrap()
}

fn put(w: &mut Writer, time: u64, bytes: &[u8]) -> bool {
    let len = bytes.len() as u32;
    let Some(to) = w.reserve(len + 24) else {
        w.publish(w.mark(), 1, 1);
        return false;
    };
    to.copy_in(&Head { time, len, kept: len, ..Head::default() }.bytes());
    to.skip(24).copy_in(bytes);
    w.publish(w.mark(), 1, 0);
    true
}

fn file() -> std::fs::File {
    nix::sys::memfd::memfd_create(c"capture", nix::sys::memfd::MFdFlags::empty()).unwrap().into()
}

/// Times and lengths of a classic pcap's records.
fn records(mut f: std::fs::File) -> Vec<(u32, usize)> {
    let mut all = Vec::new();
    f.rewind().unwrap();
    f.read_to_end(&mut all).unwrap();
    assert_eq!(all[..4], [0xd4, 0xc3, 0xb2, 0xa1]);
    let (mut out, mut rest) = (Vec::new(), &all[24..]);
    while !rest.is_empty() {
        let word = |n: usize| u32::from_le_bytes(rest[n * 4..n * 4 + 4].try_into().unwrap());
        out.push((word(1), word(2) as usize));
        rest = &rest[16 + word(2) as usize..];
    }
    out
}

#[test]
fn queues_come_together_in_the_order_of_their_times() {
    let f = file();
    let mut c = capture(2, f.try_clone().unwrap().into());
    let (memory, bell) = c.spool().map(|(m, b)| (m, Arc::new(b))).unwrap();
    let mut w: Vec<Writer> = (0..2).map(|q| Writer::new(&memory, q, bell.clone()).unwrap()).collect();
    // Both before the thread may look: it sees what is published only.
    for (q, times) in [(0, [1, 4, 6]), (1, [2, 3, 5])] {
        for t in times {
            let to = w[q].reserve(24 + 10).unwrap();
            to.copy_in(&Head { time: t * 1000, len: 10, kept: 10, ..Head::default() }.bytes());
        }
    }
    for w in &mut w {
        w.publish(w.mark(), 3, 0);
    }
    drop(w);
    let (_, totals) = c.end();
    assert_eq!((totals.seen, totals.written, totals.bytes, totals.lost), (6, 6, 60, 0));
    let mut times: Vec<u32> = records(f).iter().map(|r| r.0).collect();
    // The thread may have been there between the two.
    if times[..3] == [1, 4, 6] {
        times.sort_unstable();
    }
    assert_eq!(times, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn the_next_dataplane_writes_on() {
    let f = file();
    let mut c = capture(1, f.try_clone().unwrap().into());
    for n in 0..3 {
        let (memory, bell) = c.spool().map(|(m, b)| (m, Arc::new(b))).unwrap();
        let mut w = Writer::new(&memory, 0, bell).unwrap();
        assert!(put(&mut w, n * 1000, &[7; 100]));
        if n == 1 {
            // It dies without a word.
            std::mem::forget(w);
        }
    }
    let (_, totals) = c.end();
    assert_eq!((totals.seen, totals.written), (3, 3));
    assert_eq!(records(f), [(0, 100), (1, 100), (2, 100)]);
}

#[test]
fn a_reader_that_never_reads_costs_frames_of_the_capture_and_nothing_else() {
    let (r, w) = std::io::pipe().unwrap();
    let mut c = capture(1, w.into());
    let (memory, bell) = c.spool().map(|(m, b)| (m, Arc::new(b))).unwrap();
    let mut w = Writer::new(&memory, 0, bell).unwrap();
    let began = Instant::now();
    let lost = (0..20_000).filter(|n| !put(&mut w, *n, &[1; 1000])).count() as u64;
    assert!(lost > 10_000, "{lost}");
    assert!(began.elapsed() < Duration::from_secs(5));
    let began = Instant::now();
    let (_, totals) = c.end();
    assert!(began.elapsed() < LAST_WORDS * 2);
    assert_eq!((totals.seen, totals.lost), (20_000, lost));
    assert!(totals.failed > 0);
    drop(r);
}

#[test]
fn a_reader_that_leaves_ends_the_capture() {
    let (r, w) = std::io::pipe().unwrap();
    let mut c = capture(1, w.into());
    let (memory, bell) = c.spool().map(|(m, b)| (m, Arc::new(b))).unwrap();
    let mut w = Writer::new(&memory, 0, bell).unwrap();
    drop(r);
    let until = Instant::now() + Duration::from_secs(5);
    while !c.is_over() && Instant::now() < until {
        put(&mut w, 1, &[1; 100]);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(c.is_over());
    c.end();
}

#[test]
fn a_full_disk_is_survived() {
    // Where it can be had without privilege: a device that is always full is a stream of its own.
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut c = capture(1, full.into());
    let (memory, bell) = c.spool().map(|(m, b)| (m, Arc::new(b))).unwrap();
    let mut w = Writer::new(&memory, 0, bell).unwrap();
    for n in 0..100 {
        put(&mut w, n, &[1; 100]);
    }
    let (_, totals) = c.end();
    assert_eq!((totals.seen, totals.written), (100, 0));
}

#[test]
fn what_cannot_be_ends_the_capture_only() {
    let f = file();
    let mut c = capture(1, f.try_clone().unwrap().into());
    let (memory, bell) = c.spool().map(|(m, b)| (m, Arc::new(b))).unwrap();
    let mut w = Writer::new(&memory, 0, bell).unwrap();
    assert!(put(&mut w, 0, &[3; 50]));
    // A record that is shorter than its head.
    w.reserve(3).unwrap();
    w.publish(w.mark(), 1, 0);
    let until = Instant::now() + Duration::from_secs(5);
    while !c.is_over() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(c.is_over());
    assert_eq!(c.end().1.written, 1);
    assert_eq!(records(f), [(0, 50)]);
}

#[test]
fn a_bell_that_waits_for_a_ring_stops_nobody() {
    let f = file();
    let mut c = capture(1, f.try_clone().unwrap().into());
    let (memory, bell) = c.spool().map(|(m, b)| (m, Arc::new(b))).unwrap();
    // What reading does is a property of the open file, which the dataplane holds as well.
    let no_flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty());
    nix::fcntl::fcntl(bell.as_fd(), no_flags).unwrap();
    let mut w = Writer::new(&memory, 0, bell).unwrap();
    for n in 0..10 {
        // Each time the thread has gone to sleep, or is about to.
        assert!(put(&mut w, n * 1000, &[7; 100]));
        std::thread::sleep(Duration::from_millis(10));
    }
    let (ended, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || ended.send(c.end().1.written));
    assert_eq!(wait.recv_timeout(Duration::from_secs(10)), Ok(10), "the thread waits for the bell");
}
