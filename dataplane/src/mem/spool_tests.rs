//! Tests of the spool: order, wrap, fullness, what a hostile writer may say.

use super::*;
use proptest::prelude::*;

fn both() -> (Writer, Reader, OwnedFd) {
    of(2)
}

/// The last of so many sections.
fn of(sections: u16) -> (Writer, Reader, OwnedFd) {
    let memory = memory(sections).unwrap();
    let bell = bell().unwrap();
    let w = Writer::new(&memory, sections - 1, Arc::new(bell.try_clone().unwrap())).unwrap();
    (w, Reader::new(&memory, sections - 1, sections).unwrap(), bell)
}

fn put(w: &mut Writer, bytes: &[u8]) -> bool {
    let Some(to) = w.reserve(bytes.len() as u32) else { return false };
    assert_eq!(to.copy_in(bytes), bytes.len());
    w.publish(w.mark(), 1, 0);
    true
}

fn get(r: &mut Reader) -> Option<Vec<u8>> {
    let record = r.peek().unwrap()?;
    let mut out = vec![0; record.len() as usize];
    record.copy_out(&mut out);
    r.pass(record.len());
    Some(out)
}

fn rung(bell: &OwnedFd) -> bool {
    nix::unistd::read(bell, &mut [0; 8]).is_ok()
}

#[test]
fn the_size_is_sealed() {
    let fd = memory(3).unwrap();
    assert!(nix::unistd::ftruncate(&fd, 1).is_err());
    assert!(nix::unistd::ftruncate(&fd, 1 << 30).is_err());
}

#[test]
fn many_sections_are_smaller_and_each_holds_the_largest_frames() {
    let mib = |sections: u16| (u64::from(sections) * u64::from(room(sections))) >> 20;
    assert_eq!([1, 2, 4, 8, 32, 256].map(mib), [4, 8, 16, 16, 16, 128]);
    for sections in [3, 5, 16, 100] {
        let (mut w, mut r, _bell) = of(sections);
        assert!((LEAST..=MOST).contains(&room(sections)) && room(sections).is_power_of_two());
        let record = vec![sections as u8; 69632 + 24];
        let fit = (0..1000).take_while(|_| put(&mut w, &record)).count();
        assert!(fit >= 7, "{fit} of the largest");
        for _ in 0..fit {
            assert_eq!(get(&mut r).unwrap(), record);
        }
    }
    // What nobody has made for it is no spool.
    let other = memfd_create(c"other", MFdFlags::empty()).unwrap();
    nix::unistd::ftruncate(&other, 1 << 23).unwrap();
    assert!(Writer::new(&other, 0, Arc::new(bell().unwrap())).is_err());
}

#[test]
fn a_full_spool_takes_no_more_and_what_is_read_makes_room() {
    let (mut w, mut r, _bell) = both();
    let record = vec![7; 100_000];
    let mut n = 0;
    while put(&mut w, &record) {
        n += 1;
    }
    assert_eq!(n, room(2) / (100_004_u32).next_multiple_of(8));
    assert_eq!(get(&mut r).unwrap(), record);
    assert!(!put(&mut w, &record), "not given back");
    r.give_back();
    assert!(put(&mut w, &[1, 2, 3]));
    for _ in 1..n {
        assert_eq!(get(&mut r).unwrap(), record);
    }
    assert_eq!(get(&mut r).unwrap(), [1, 2, 3]);
    assert_eq!(get(&mut r), None);
    assert!(w.reserve(LONGEST).is_none(), "longer than any record may be");
}

#[test]
fn only_what_is_published_is_seen_and_the_rest_is_written_over() {
    let (mut w, mut r, _bell) = both();
    let mut marks = Vec::new();
    for n in 0..3_u8 {
        w.reserve(10).unwrap().copy_in(&[n; 10]);
        marks.push(w.mark());
    }
    assert_eq!(get(&mut r), None);
    w.publish(marks[1], 2, 0);
    assert_eq!(get(&mut r).unwrap(), [0; 10]);
    assert_eq!(get(&mut r).unwrap(), [1; 10]);
    assert_eq!(get(&mut r), None);
    w.publish(w.mark(), 0, 5);
    assert!(put(&mut w, &[9; 4]));
    assert_eq!(get(&mut r).unwrap(), [9; 4]);
    assert_eq!(r.counts(), Counts { seen: 3, lost: 5 });
}

#[test]
fn the_bell_is_rung_for_a_sleeper_only_and_once() {
    let (mut w, mut r, bell) = both();
    assert!(put(&mut w, &[1]));
    assert!(!rung(&bell));
    assert!(!r.may_sleep(), "there is something");
    get(&mut r).unwrap();
    assert!(r.may_sleep());
    assert!(put(&mut w, &[1]) && put(&mut w, &[2]));
    assert!(rung(&bell) && !rung(&bell));
    get(&mut r).unwrap();
    get(&mut r).unwrap();
    assert!(r.may_sleep() && !r.has_ended());
    drop(w);
    assert!(rung(&bell) && r.has_ended());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn everything_arrives_in_order(sizes in prop::collection::vec(0_usize..70_000, 1..400), lag in 1_usize..60) {
        let (mut w, mut r, _bell) = both();
        let (mut sent, mut got) = (0, 0);
        let body = |n: usize| vec![n as u8; sizes[n]];
        while got < sizes.len() {
            if sent < sizes.len() && sent - got < lag && put(&mut w, &body(sent)) {
                sent += 1;
                continue;
            }
            prop_assert_eq!(get(&mut r).unwrap(), body(got));
            got += 1;
            r.give_back();
        }
    }

    /// A writer that writes anything anywhere is at worst said to be broken.
    #[test]
    fn a_hostile_writer_is_found_out(
        tail in prop::sample::select(vec![0, 8, 16, 64, 4096, u64::from(MOST), u64::from(MOST) + 8, u64::MAX - 7, 3]),
        words in prop::collection::vec((0_u32..200, prop::sample::select(vec![0, 1, 4, 5, 12, 64, LONGEST, LONGEST + 1, PASS, PASS - 1])), 0..40),
    ) {
        let memory = memory(1).unwrap();
        let mut r = Reader::new(&memory, 0, 1).unwrap();
        let s = Section::map(&memory, 0, room(1)).unwrap();
        for (at, word) in words {
            s.bytes(u64::from(at) * 8).copy_in(&word.to_le_bytes());
        }
        s.store(super::at::TAIL, tail, Ordering::Release);
        for _ in 0..2000 {
            match r.peek() {
                Ok(Some(seg)) => {
                    prop_assert!(seg.len() + 4 <= LONGEST);
                    seg.copy_out(&mut vec![0; seg.len() as usize]);
                    r.pass(seg.len());
                }
                Ok(None) | Err(Broken) => break,
            }
        }
        r.give_back();
    }
}
