//! A hostile guest: its rings, split or packed, and buffers are the input; both directions are served until nothing more
//! is to be had. Then a driver meets the same memory as if a hostile device had written it.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use netreeve_dataplane::frame::Batch;
use netreeve_dataplane::mem::guest::{GuestMemory, Layout, Region};
use netreeve_dataplane::mem::split::RingAddr;
use netreeve_dataplane::stats::Stats;
use netreeve_dataplane::virtq::{Buf, Device, Driver, Giver, Taker, Terms, recover};
use nix::sys::memfd::{MFdFlags, memfd_create};

const PAGES: u64 = 16 * 4096;
/// Rings of 16 entries at the start of the memory, so that short inputs reach them.
const SIZE: u16 = 16;
const AT: RingAddr = RingAddr { desc: 0, avail: 256, used: 304 };

fuzz_target!(|data: &[u8]| {
    let Some((acked, rest)) = data.split_first_chunk::<8>() else { return };
    let fd = memfd_create(c"fuzz", MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&fd, PAGES as i64).unwrap();
    nix::sys::uio::pwrite(&fd, &rest[..rest.len().min(PAGES as usize)], 0).unwrap();
    let layout = Layout { gpa: 0, uva: 0, len: PAGES, offset: 0 };
    let memory = Arc::new(GuestMemory::new(vec![Region::map(layout, fd).unwrap()]).unwrap());
    let terms = Terms::of(u64::from_le_bytes(*acked));
    // In a packed ring anywhere and in either round.
    let base = if terms.packed { u16::from(acked[7] & 15) | u16::from(acked[7] & 0x80) << 8 } else { 0 };
    let device = || Device::new(&memory, SIZE, AT, base, &terms).unwrap();
    let mut stats = Stats::default();
    let mut batch = Batch::new();
    let mut giver = Giver::new(device());
    for turn in 0..20 {
        batch.clear();
        giver.recv(&mut batch, &terms, &mut stats);
        let n = batch.len();
        for f in batch.frames() {
            let body: u32 = batch.body(f).iter().map(|s| s.len()).sum();
            assert_eq!(f.head().len() as u32 + body, f.len, "head and body are the frame");
        }
        giver.release(&batch, if turn % 2 == 0 { n } else { n / 2 }, &mut stats);
    }
    // What was given is taken by the same hostile guest's receive ring, copied and landed.
    batch.clear();
    giver.recv(&mut batch, &terms, &mut stats);
    let mut taker = Taker::new(device());
    let (taken, _) = taker.send(&batch, &terms, &mut stats);
    assert!(taken <= batch.len());
    let mut landing = Batch::new();
    for _ in 0..5 {
        landing.clear();
        taker.lend(&mut landing, &terms, &mut stats);
        let mut room = Vec::new();
        if landing.landing.is_open() && landing.landing.room(1514, &mut room) >= 60 {
            let home = landing.landing.land(60);
            if let Some(f) = landing.push() {
                f.len = 60;
                f.home = home;
                f.set_head(&[0x55; 60]);
            }
        }
        taker.send(&landing, &terms, &mut stats);
    }
    if let Some(base) = recover(&memory, SIZE, AT, terms.packed) {
        assert!(!terms.packed || base & 0x7fff < SIZE);
    }
    let mut driver = Driver::new(&memory, SIZE, AT, &terms).unwrap();
    for n in 1..8 {
        driver.add(&vec![Buf { addr: 4096, len: 64, write: n % 2 == 0 }; n]);
        driver.publish();
        while driver.take().is_some() {}
        driver.arm();
        assert!(driver.free() <= usize::from(SIZE));
    }
});
