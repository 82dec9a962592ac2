//! A front end that means harm, against the real, locked-in dataplane: it may lose its connection, never the process;
//! and an honest guest on the same socket is served afterwards.

use crate::{DEVICE, House, house, pings};
use netreeve_dataplane::mem::guest::{GuestMemory, Layout, Region};
use netreeve_dataplane::mem::split::{Desc, F_INDIRECT, F_NEXT, F_WRITE, RingAddr, SplitRing};
use netreeve_tests::scene::Road;
use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::ftruncate;
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

const SIZE: u64 = 1 << 20;
const BUFS: u64 = 0x4_0000;
/// VERSION_1, PROTOCOL, EVENT_IDX, INDIRECT, MRG_RXBUF.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28 | 1 << 15;

struct Evil {
    sock: UnixStream,
    fd: OwnedFd,
    memory: Arc<GuestMemory>,
    kicks: [EventFd; 2],
}

fn words(w: &[u64]) -> Vec<u8> {
    w.iter().flat_map(|v| v.to_ne_bytes()).collect()
}

fn addr(ring: u64) -> RingAddr {
    RingAddr { desc: ring * 0x1_0000, avail: ring * 0x1_0000 + 0x4000, used: ring * 0x1_0000 + 0x8000 }
}

impl Evil {
    fn connect(house: &House) -> Evil {
        let sock = UnixStream::connect(house.scene.path("vm.sock")).unwrap();
        sock.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        sock.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        let fd = memfd_create(c"evil", MFdFlags::MFD_CLOEXEC).unwrap();
        ftruncate(&fd, i64::try_from(SIZE).unwrap()).unwrap();
        let layout = Layout { gpa: 0, uva: 0, len: SIZE, offset: 0 };
        let region = Region::map(layout, fd.try_clone().unwrap()).unwrap();
        let memory = Arc::new(GuestMemory::new(vec![region]).unwrap());
        Evil { sock, fd, memory, kicks: [EventFd::new().unwrap(), EventFd::new().unwrap()] }
    }

    fn tell(&self, number: u32, payload: &[u8], fds: &[RawFd]) {
        let mut m = Vec::new();
        for v in [number, 1, u32::try_from(payload.len()).unwrap()] {
            m.extend(v.to_ne_bytes());
        }
        m.extend(payload);
        let rights = [ControlMessage::ScmRights(fds)];
        let rights: &[_] = if fds.is_empty() { &[] } else { &rights };
        let _ =
            sendmsg::<()>(self.sock.as_raw_fd(), &[IoSlice::new(&m)], rights, MsgFlags::MSG_NOSIGNAL, None);
    }

    /// Everything before was served when the answer to this comes. False: the connection is gone.
    fn sync(&mut self) -> bool {
        self.tell(40, &[], &[]);
        self.sock.read_exact(&mut [0; 20]).is_ok()
    }

    fn start(&mut self) {
        self.tell(3, &[], &[]);
        self.tell(2, &words(&[FEATURES]), &[]);
        self.tell(5, &words(&[1, 0, SIZE, 0, 0]), &[self.fd.as_raw_fd()]);
        for i in 0..2u64 {
            let at = addr(i);
            self.tell(8, &words(&[i | 256 << 32]), &[]);
            self.tell(10, &words(&[i]), &[]);
            self.tell(9, &words(&[i, at.desc, at.used, at.avail, 0]), &[]);
            self.tell(12, &words(&[i]), &[self.kicks[usize::try_from(i).unwrap()].as_fd().as_raw_fd()]);
            self.tell(18, &words(&[i | 1 << 32]), &[]);
        }
        assert!(self.sync(), "an honest start is served");
    }

    fn ring(&self, i: u64) -> SplitRing {
        SplitRing::new(self.memory.clone(), 256, addr(i)).unwrap()
    }

    fn kick(&self) {
        for k in &self.kicks {
            k.write(1).unwrap();
        }
    }

    fn closed(&mut self) -> bool {
        let mut sink = [0; 4096];
        loop {
            match self.sock.read(&mut sink) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(e) => return e.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }
}

/// Fills both rings with chains that break every rule, and makes all of them available.
fn poison(evil: &Evil) {
    let bad = [
        Desc { addr: BUFS, len: 64, flags: F_NEXT, next: 0 },
        Desc { addr: BUFS, len: u32::MAX, flags: 0, next: 0 },
        Desc { addr: u64::MAX - 8, len: 64, flags: 0, next: 0 },
        Desc { addr: SIZE - 8, len: 64, flags: F_WRITE, next: 0 },
        Desc { addr: BUFS, len: 64, flags: F_NEXT, next: 9999 },
        Desc { addr: BUFS, len: 4096, flags: F_INDIRECT, next: 0 },
        Desc { addr: BUFS, len: 17, flags: F_INDIRECT | F_NEXT | F_WRITE, next: 3 },
        Desc { addr: 0, len: 0, flags: 0xffff, next: 0xffff },
        // The rings themselves as buffers.
        Desc { addr: 0x8000, len: 0x8000, flags: F_WRITE, next: 0 },
        Desc { addr: 0x1_8000, len: 0x8000, flags: 0, next: 0 },
    ];
    for i in 0..2 {
        let ring = evil.ring(i);
        for (k, d) in (0u16..256).zip(bad.iter().cycle()) {
            ring.set_desc(k, *d);
            ring.set_avail_entry(k, if k % 50 == 49 { 60_000 } else { k });
        }
        ring.set_avail_idx(256);
    }
    evil.kick();
}

#[test]
fn a_hostile_front_end_costs_its_connection_at_most() {
    let house = house(Road::Bridge, DEVICE, 1500);
    let dataplane = house.reeve.dataplane().unwrap();
    let same = || assert_eq!(house.reeve.dataplane().unwrap(), dataplane, "the dataplane died");

    let mut evil = Evil::connect(&house);
    evil.sock.write_all(&[0xa5; 65536]).ok();
    assert!(evil.closed(), "garbage");
    same();
    let mut evil = Evil::connect(&house);
    evil.sock.write_all(&[1, 0, 0, 0, 1, 0]).unwrap();
    drop(evil);
    let mut evil = Evil::connect(&house);
    evil.tell(1, &[], &[evil.kicks[0].as_fd().as_raw_fd(); 33]);
    assert!(evil.closed(), "33 descriptors");
    same();
    let mut evil = Evil::connect(&house);
    evil.sock.write_all(&[1u32, 1, 0].map(u32::to_ne_bytes).concat().repeat(100_000)).ok();
    assert!(evil.closed(), "answers that nobody reads");
    same();

    let mut evil = Evil::connect(&house);
    evil.start();
    poison(&evil);
    std::thread::sleep(Duration::from_millis(50));
    assert!(evil.sync(), "bad chains cost nothing but themselves");
    evil.ring(1).set_avail_idx(40_000);
    evil.kick();
    assert!(evil.sync(), "nor does an index that jumps");
    for _ in 0..200 {
        evil.tell(38, &words(&[0, 0, SIZE, 0, 0]), &[]);
        evil.kick();
        evil.tell(37, &words(&[0, 0, SIZE, 0, 0]), &[evil.fd.as_raw_fd()]);
        evil.kick();
    }
    assert!(evil.sync(), "nor does memory that comes and goes");
    same();
    drop(evil);

    let mut evil = Evil::connect(&house);
    evil.start();
    ftruncate(&evil.fd, 0).unwrap();
    evil.kick();
    assert!(evil.closed(), "memory that was cut short");
    same();

    let guest = house.uml(1500);
    pings(&house.scene, &guest, 1400);
    guest.power_off().unwrap();
    same();
    house.end();
}
