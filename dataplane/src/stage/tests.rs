//! Tests of the stage and of captures: what is shown, what is not, and that nothing is passed by.

mod steps;

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use netreeve_shared::vnet::{self, Vnet};

use super::capture::{Capture, Plan};
use super::record::{HEAD, Head};
use super::*;
use crate::frame::Frame;
use crate::mem::spool::{self, Reader};
use crate::mem::{Buf, Seg};
use crate::port::{Change, Interest, Traits};
use crate::stats::Stats;

/// A port that gives what it is told and takes so many.
struct Fake {
    gives: VecDeque<Vec<u8>>,
    takes: usize,
    took: Vec<Vec<u8>>,
    rewinds: bool,
    memory: Buf,
    stats: Stats,
}

impl Fake {
    fn new(rewinds: bool) -> Self {
        let memory = Buf::new(1 << 20).unwrap();
        Self { gives: VecDeque::new(), takes: 64, took: Vec::new(), rewinds, memory, stats: Stats::default() }
    }
}

fn push(b: &mut Batch, memory: &Buf, at: u32, bytes: &[u8]) {
    memory.seg(at, bytes.len() as u32).copy_in(bytes);
    let seg = memory.seg(at, bytes.len() as u32);
    let f = b.push().unwrap();
    f.len = seg.len();
    let n = f.head_from(&seg);
    // In two parts, as guests have it.
    let body = seg.skip(n);
    b.push_seg(body.take(body.len() / 3));
    b.push_seg(body.skip(body.len() / 3));
}

fn whole(b: &Batch, f: &Frame) -> Vec<u8> {
    let mut out = f.head().to_vec();
    for s in b.body(f) {
        let mut part = vec![0; s.len() as usize];
        s.copy_out(&mut part);
        out.extend(part);
    }
    out
}

impl Port for Fake {
    fn traits(&self) -> Traits {
        Traits { rewinds: self.rewinds, ..Traits::default() }
    }

    fn watch(&self, _w: &mut Watch) {}

    fn recv(&mut self, b: &mut Batch) -> io::Result<()> {
        for (i, f) in self.gives.iter().take(b.room()).enumerate() {
            push(b, &self.memory, i as u32 * 4096, f);
        }
        Ok(())
    }

    fn release(&mut self, b: &Batch, taken: usize) {
        self.gives.drain(..if self.rewinds { taken } else { b.len() });
    }

    fn send(&mut self, b: &Batch) -> io::Result<usize> {
        let n = self.takes.min(b.len());
        self.took.extend(b.frames()[..n].iter().filter(|f| !f.dropped).map(|f| whole(b, f)));
        Ok(n)
    }

    fn stats(&self) -> Stats {
        self.stats
    }

    fn stats_mut(&mut self) -> &mut Stats {
        &mut self.stats
    }
}

struct Look {
    reader: Reader,
    port: Box<dyn Port>,
}

fn look(fake: Fake, queue: Queue, keep: u32) -> Look {
    let (memory, bell) = (spool::memory(1).unwrap(), Arc::new(spool::bell().unwrap()));
    let capture = Capture::new(Plan { queue, keep, on: true }, &memory, 0, bell).unwrap();
    let mut port: Box<dyn Port> = Box::new(fake);
    attach(&mut port, 1, None, Box::new(capture));
    Look { reader: Reader::new(&memory, 0, 1).unwrap(), port }
}

fn bytes_of(record: &Seg) -> Vec<u8> {
    let mut all = vec![0; record.len() as usize];
    record.copy_out(&mut all);
    all.split_off(HEAD as usize)
}

impl Look {
    fn next(&mut self) -> Option<(Head, Vec<u8>)> {
        let record = self.reader.peek().unwrap()?;
        let head = Head::read(&record).unwrap();
        let mut bytes = bytes_of(&record);
        bytes.truncate(head.kept as usize);
        self.reader.pass(record.len());
        self.reader.give_back();
        Some((head, bytes))
    }

    /// One turn from the port: it gives, and its peer takes so many.
    fn give(&mut self, taken: usize) -> usize {
        let mut b = Batch::new();
        self.port.recv(&mut b).unwrap();
        let n = b.len();
        self.port.release(&b, taken.min(n));
        n
    }
}

fn frame(n: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| n ^ (i as u8).wrapping_mul(7)).collect()
}

#[test]
fn all_that_a_port_gives_is_shown_once_even_if_it_is_given_again() {
    let mut fake = Fake::new(true);
    fake.gives = (0..5).map(|n| frame(n, 60 + usize::from(n) * 300)).collect();
    let mut l = look(fake, Queue::All, 65536);
    assert_eq!(l.give(2), 5);
    assert_eq!(l.give(0), 3);
    assert_eq!(l.give(3), 3);
    for n in 0..5 {
        let (head, bytes) = l.next().unwrap();
        assert_eq!(bytes, frame(n, 60 + usize::from(n) * 300));
        assert_eq!((head.len as usize, head.rx, head.lost), (bytes.len(), false, 0));
        assert!(head.time > 1_500_000_000_000_000_000);
    }
    assert!(l.next().is_none());
    assert_eq!(l.reader.counts().seen, 5);
}

#[test]
fn what_a_port_did_not_take_is_not_shown_and_what_was_dropped_neither() {
    let mut fake = Fake::new(false);
    fake.takes = 2;
    let mut l = look(fake, Queue::All, 65536);
    let memory = Buf::new(1 << 20).unwrap();
    let mut b = Batch::new();
    for n in 0..4 {
        push(&mut b, &memory, u32::from(n) * 4096, &frame(n, 500));
    }
    b.frames_mut()[1].dropped = true;
    assert_eq!(l.port.send(&b).unwrap(), 2);
    b.advance(2);
    assert_eq!(l.port.send(&b).unwrap(), 2);
    for n in [0, 2, 3] {
        let (head, bytes) = l.next().unwrap();
        assert!(head.rx && bytes == frame(n, 500), "{n}");
    }
    assert!(l.next().is_none());
    b.advance(2);
    assert_eq!(l.port.send(&b).unwrap(), 0, "an empty batch passes");
}

#[test]
fn directions_and_length_are_the_users_choice() {
    for (queue, rx, tx) in [(Queue::All, 1, 1), (Queue::Rx, 1, 0), (Queue::Tx, 0, 1)] {
        let mut fake = Fake::new(true);
        fake.gives.push_back(frame(1, 1000));
        let mut l = look(fake, queue, 200);
        l.give(1);
        let memory = Buf::new(4096).unwrap();
        let mut b = Batch::new();
        push(&mut b, &memory, 0, &frame(2, 150));
        l.port.send(&b).unwrap();
        if tx == 1 {
            let (head, bytes) = l.next().unwrap();
            assert_eq!((head.rx, head.len, bytes), (false, 1000, frame(1, 1000)[..200].to_vec()));
        }
        if rx == 1 {
            let (head, bytes) = l.next().unwrap();
            assert_eq!((head.rx, head.len, bytes), (true, 150, frame(2, 150)));
        }
        assert!(l.next().is_none());
    }
}

#[test]
fn a_checksum_left_to_do_is_done_in_the_copy_only() {
    let memory = Buf::new(1 << 17).unwrap();
    for len in [74, 1514, 60_000] {
        let mut f = frame(3, len);
        // The field holds some partial sum; the sum runs from byte 34.
        f[50..52].copy_from_slice(&[0x12, 0x34]);
        let mut l = look(Fake::new(true), Queue::Rx, 65536);
        let mut b = Batch::new();
        push(&mut b, &memory, 0, &f);
        b.frames_mut()[0].vnet =
            Vnet { flags: vnet::F_NEEDS_CSUM, csum_start: 34, csum_offset: 16, ..Vnet::default() };
        l.port.send(&b).unwrap();
        let (_, bytes) = l.next().unwrap();
        let sum: u32 =
            f[34..].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0))).sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        assert_eq!(bytes[50..52], sum.to_be_bytes(), "{len}");
        assert_eq!((&bytes[..50], &bytes[52..]), (&f[..50], &f[52..]));
        let fake = l.port.around().unwrap().downcast_mut::<Stage>().unwrap();
        assert_eq!(fake.inner.stats(), Stats::default());
        assert_eq!(whole(&b, &b.frames()[0]), f, "the frame itself is as it was");
        // Cut before the field, or in it: what is there is right, and nothing lies behind.
        for keep in [40, 51] {
            let mut l = look(Fake::new(true), Queue::Rx, keep);
            l.port.send(&b).unwrap();
            assert_eq!(l.next().unwrap().1, bytes[..keep as usize]);
        }
    }
}

#[test]
fn what_finds_no_room_is_counted_and_said_with_the_next_one() {
    let mut l = look(Fake::new(false), Queue::Rx, 65536);
    let memory = Buf::new(1 << 20).unwrap();
    let mut b = Batch::new();
    for n in 0..10 {
        push(&mut b, &memory, n * 70_000, &frame(n as u8, 60_000));
    }
    for _ in 0..8 {
        assert_eq!(l.port.send(&b).unwrap(), 10, "traffic does not wait");
    }
    let fits = u64::from(spool::MOST / 60_032);
    assert_eq!(l.reader.counts(), spool::Counts { seen: 80, lost: 80 - fits });
    for _ in 0..fits {
        assert_eq!(l.next().unwrap().0.lost, 0);
    }
    assert!(l.next().is_none());
    l.port.send(&b).unwrap();
    assert_eq!(u64::from(l.next().unwrap().0.lost), 80 - fits);
    assert_eq!(l.next().unwrap().0.lost, 0);
}

#[test]
fn the_stage_goes_with_its_last_filter() {
    let mut l = look(Fake::new(true), Queue::All, 64);
    let (memory, bell) = (spool::memory(1).unwrap(), Arc::new(spool::bell().unwrap()));
    let more = Capture::new(Plan { queue: Queue::All, keep: 9, on: true }, &memory, 0, bell).unwrap();
    attach(&mut l.port, 2, None, Box::new(more));
    assert!(!detach(&mut l.port, 3));
    assert!(detach(&mut l.port, 1) && l.reader.has_ended());
    assert!(l.port.around().is_some());
    assert!(detach(&mut l.port, 2) && l.port.around().is_none());
    assert!(l.port.traits().rewinds, "the port itself is back");
    assert!(!detach(&mut l.port, 2));
}

/// A method of `Port` with a body of its own that the stage does not pass on would be a port's that is lost.
#[test]
fn every_call_is_passed_on() {
    let names = |text: &str| -> Vec<String> {
        let fns = text.lines().filter_map(|l| l.strip_prefix("    fn "));
        fns.map(|l| l.split(['(', '<']).next().unwrap().to_owned()).collect()
    };
    let port = include_str!("../port/mod.rs");
    let (_, port) = port.split_once("pub trait Port: Send {").unwrap();
    let (port, _) = port.split_once("\n}\n").unwrap();
    let (_, stage) = include_str!("port.rs").split_once("impl Port for Stage {").unwrap();
    let (stage, _) = stage.split_once("\n}\n").unwrap();
    let (port, stage) = (names(port), names(stage));
    assert!(port.len() > 15);
    for name in port {
        assert!(stage.contains(&name), "the stage does not pass {name} on");
    }
}
