//! The rings with a kernel played by the test: memory and indices are real, in a memfd laid out like a socket.

use std::collections::BTreeSet;
use std::os::fd::AsFd;

use nix::sys::memfd::{MFdFlags, memfd_create};
use proptest::prelude::*;

use super::*;
use crate::mem::xring::Desc;

const RING: u32 = 16;
const CHUNK: u32 = 2048;

fn plan(multi_buffer: bool) -> Plan {
    Plan {
        queues: 1,
        mtu: 1500,
        ring: RING,
        chunk: CHUNK,
        chunks: 24,
        headroom: 0,
        multi_buffer,
        resume: true,
        late: false,
    }
}

/// What stays when a dataplane is killed: the socket's pages, the UMEM, and what the kernel knows.
struct Kernel {
    socket: OwnedFd,
    memory: OwnedFd,
    rx: Ring<Desc>,
    fill: Ring<u64>,
    tx: Ring<Desc>,
    done: Ring<u64>,
    umem: Umem,
    sending: Vec<u64>,
}

fn memfd(len: i64) -> OwnedFd {
    let fd = memfd_create(c"xsk-test", MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&fd, len).unwrap();
    fd
}

fn map<T: crate::mem::xring::Entry>(fd: &OwnedFd, which: Which) -> Ring<T> {
    let at = || libc::xdp_ring_offset { producer: 0, consumer: 64, flags: 8, desc: 128 };
    let all = libc::xdp_mmap_offsets { rx: at(), tx: at(), fr: at(), cr: at() };
    Ring::map(fd.as_fd(), which, &all, RING).unwrap()
}

impl Kernel {
    fn new() -> Self {
        // Sparse: the completion ring's page is at 6 GiB.
        let socket = memfd(0x1_8000_0000 + 4096);
        let memory = memfd(i64::from(24 * CHUNK));
        Self {
            rx: map(&socket, Which::Rx),
            fill: map(&socket, Which::Fill),
            tx: map(&socket, Which::Tx),
            done: map(&socket, Which::Completion),
            umem: Umem::map(memory.as_fd(), u64::from(24 * CHUNK)).unwrap(),
            sending: Vec::new(),
            socket,
            memory,
        }
    }

    fn open(&self, multi: bool) -> (Rx, Tx) {
        let shape = Shape::new(&plan(multi)).unwrap();
        let rx =
            Rx::open(map(&self.socket, Which::Rx), map(&self.socket, Which::Fill), shape, 1500).unwrap().0;
        let tx =
            Tx::open(map(&self.socket, Which::Tx), map(&self.socket, Which::Completion), shape).unwrap().0;
        (rx, tx)
    }

    /// A frame comes in, in pieces of one chunk each. False: no chunk for it, it is lost.
    fn receive(&mut self, pieces: u32, salt: u8) -> bool {
        let (from, there) = (self.fill.consumer(), self.fill.producer().wrapping_sub(self.fill.consumer()));
        assert!(there <= RING);
        if there < pieces {
            return false;
        }
        for i in 0..pieces {
            let addr = self.fill.get(from.wrapping_add(i)) + 256;
            self.umem.seg(addr, 1000).unwrap().copy_in(&[salt; 1000]);
            let options = if i + 1 < pieces { libc::XDP_PKT_CONTD } else { 0 };
            self.rx.set(self.rx.producer().wrapping_add(i), Desc { addr, len: 1000, options });
        }
        self.fill.consume(from.wrapping_add(pieces));
        self.rx.produce(self.rx.producer().wrapping_add(pieces));
        assert!(self.rx.producer().wrapping_sub(self.rx.consumer()) <= RING);
        true
    }

    /// Takes up to `n` descriptors to send.
    fn take(&mut self, n: usize) -> Vec<Desc> {
        let mut got = Vec::new();
        while got.len() < n && self.tx.consumer() != self.tx.producer() {
            let d = self.tx.get(self.tx.consumer());
            assert!(!self.sending.contains(&d.addr), "a chunk that the kernel has was used again");
            self.sending.push(d.addr);
            got.push(d);
            self.tx.consume(self.tx.consumer().wrapping_add(1));
        }
        got
    }

    /// Completes one of those being sent.
    fn complete(&mut self, which: usize) {
        if !self.sending.is_empty() {
            let addr = self.sending.remove(which % self.sending.len());
            self.done.set(self.done.producer(), addr);
            self.done.produce(self.done.producer().wrapping_add(1));
        }
    }

    /// The chunks that circulate for receiving, wherever they are; the test's kernel keeps none.
    fn circulating(&self) -> BTreeSet<u64> {
        let mut seen = BTreeSet::new();
        let mut add =
            |addr: u64| assert!(seen.insert(addr & !u64::from(CHUNK - 1)), "a chunk is there twice");
        let range = |from: u32, to: u32| (0..to.wrapping_sub(from)).map(move |i| from.wrapping_add(i));
        range(self.fill.consumer(), self.fill.producer()).for_each(|i| add(self.fill.get(i)));
        range(self.rx.consumer(), self.rx.producer()).for_each(|i| add(self.rx.get(i).addr));
        seen
    }
}

fn filled(len: usize, salt: u8) -> (Batch, crate::mem::Buf) {
    let mut b = Batch::new();
    let mem = crate::mem::Buf::new(1 << 17).unwrap();
    let bytes: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).unwrap() ^ salt).collect();
    let seg = mem.seg(0, u32::try_from(len).unwrap());
    seg.copy_in(&bytes);
    let f = b.push().unwrap();
    f.len = seg.len();
    let n = f.head_from(&seg);
    let body = seg.skip(n);
    b.push_seg(body.take(body.len() / 2));
    b.push_seg(body.skip(body.len() / 2));
    (b, mem)
}

#[derive(Clone, Debug)]
enum Step {
    /// A frame of that many pieces comes.
    Frame(u32),
    /// A turn in which this many of the frames are taken.
    Turn(usize),
    /// Killed after receiving.
    Killed,
    /// Killed between the two stores of a release of this many frames.
    Cut(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1_u32..4).prop_map(Step::Frame),
        3 => (0_usize..6).prop_map(Step::Turn),
        1 => Just(Step::Killed),
        1 => (0_usize..6).prop_map(Step::Cut),
    ];
    prop::collection::vec(step, 0..120)
}

proptest! {
    #[test]
    fn receiving_loses_nothing_wherever_it_is_killed(steps in steps()) {
        let mut k = Kernel::new();
        let (mut rx, _) = k.open(true);
        let (mut b, mut stats) = (Batch::new(), Stats::default());
        let (mut sent, mut got, mut salt) = (Vec::new(), Vec::new(), 0_u8);
        for step in steps {
            if let Step::Frame(n) = step {
                salt = salt.wrapping_add(1);
                if k.receive(n, salt) {
                    sent.push((salt, n * 1000));
                }
                continue;
            }
            b.clear();
            rx.recv(&k.umem, &mut b, &mut stats).unwrap();
            let frame = |f: &Frame| (f.head()[0], f.len);
            match step {
                Step::Turn(taken) => {
                    let taken = taken.min(b.len());
                    got.extend(b.frames()[..taken].iter().map(frame));
                    rx.release(&b, taken);
                }
                Step::Cut(taken) => {
                    let taken = taken.min(b.len());
                    got.extend(b.frames()[..taken].iter().map(frame));
                    let before = k.fill.producer();
                    rx.release(&b, taken);
                    k.fill.produce(before);
                    rx = k.open(true).0;
                }
                _ => rx = k.open(true).0,
            }
            prop_assert_eq!(k.circulating().len(), 12);
        }
        b.clear();
        rx.recv(&k.umem, &mut b, &mut stats).unwrap();
        got.extend(b.frames().iter().map(|f| (f.head()[0], f.len)));
        prop_assert_eq!(got, sent);
        prop_assert_eq!(stats, Stats::default());
    }

    #[test]
    fn sending_uses_no_chunk_twice_and_finds_all_again(
        steps in prop::collection::vec((0_u8..10, 0_usize..20), 0..200),
    ) {
        let mut k = Kernel::new();
        let (_, mut tx) = k.open(true);
        let nobody = memfd(1);
        let (mut put, mut taken) = (0_u32, 0_u32);
        for (what, n) in steps {
            match what {
                0..4 => {
                    let (b, _mem) = filled(1 + n * 250, 0);
                    if tx.put(&k.umem, &b, &b.frames()[0]) == Put::Done {
                        put += 1;
                    }
                    tx.submit(nobody.as_fd()).unwrap();
                }
                4..6 => taken += k.take(n).iter().filter(|d| d.options == 0).count() as u32,
                6..8 => k.complete(n),
                8 => tx.reap().unwrap(),
                _ => tx = k.open(true).1,
            }
        }
        tx = k.open(true).1;
        // Once the kernel has sent everything, every chunk is free again, whoever lost track of it.
        taken += k.take(usize::MAX).iter().filter(|d| d.options == 0).count() as u32;
        while !k.sending.is_empty() {
            k.complete(0);
            tx.reap().unwrap();
        }
        prop_assert_eq!(put, taken);
        let mut free = 0;
        let (b, _mem) = filled(100, 0);
        while tx.put(&k.umem, &b, &b.frames()[0]) == Put::Done {
            free += 1;
        }
        prop_assert_eq!(free, 12);
    }
}

#[test]
fn long_frames_are_chained_and_too_long_ones_are_not_sent() {
    let mut k = Kernel::new();
    let nobody = memfd(1);
    let (_, mut tx) = k.open(true);
    let (b, mem) = filled(5000, 3);
    assert_eq!(tx.put(&k.umem, &b, &b.frames()[0]), Put::Done);
    tx.submit(nobody.as_fd()).unwrap();
    let descs = k.take(9);
    let shape: Vec<_> = descs.iter().map(|d| (d.len, d.options)).collect();
    assert_eq!(shape, [(2048, libc::XDP_PKT_CONTD), (2048, libc::XDP_PKT_CONTD), (904, 0)]);
    let mut at = 0;
    for d in &descs {
        let (mut is, mut want) = (vec![0; d.len as usize], vec![0; d.len as usize]);
        k.umem.seg(d.addr, d.len).unwrap().copy_out(&mut is);
        mem.seg(at, d.len).copy_out(&mut want);
        assert_eq!(is, want);
        at += d.len;
    }
    let (b, _mem) = filled(2048 * 18 + 1, 0);
    assert_eq!(tx.put(&k.umem, &b, &b.frames()[0]), Put::Oversize);
    let (_, mut tx) = k.open(false);
    let (b, _mem) = filled(2049, 0);
    assert_eq!(tx.put(&k.umem, &b, &b.frames()[0]), Put::Oversize);
    drop(k.memory);
}

#[test]
fn what_cannot_be_is_the_end_of_the_port() {
    let mut k = Kernel::new();
    let (mut rx, _) = k.open(true);
    let (mut b, mut stats) = (Batch::new(), Stats::default());
    assert!(k.receive(1, 1));
    k.rx.set(k.rx.producer(), Desc { addr: 1 << 40, len: 10, options: 0 });
    k.rx.produce(k.rx.producer() + 1);
    assert!(rx.recv(&k.umem, &mut b, &mut stats).is_err(), "an address outside is the end of the port");
    for bad in [
        Desc { addr: 2047, len: 2, options: 0 },
        Desc { addr: u64::MAX, len: u32::MAX, options: 0 },
        Desc { addr: u64::from(CHUNK) * 12, len: 60, options: 0 },
    ] {
        k.rx.set(1, bad);
        b.clear();
        assert!(rx.recv(&k.umem, &mut b, &mut stats).is_err(), "{bad:?}");
    }
    k.rx.produce(k.rx.consumer().wrapping_sub(1));
    assert!(rx.recv(&k.umem, &mut b, &mut stats).is_err(), "an index that cannot be");
}

#[test]
fn a_frame_of_too_many_pieces_is_dropped_once() {
    let at = || libc::xdp_ring_offset { producer: 0, consumer: 64, flags: 8, desc: 128 };
    let offsets = libc::xdp_mmap_offsets { rx: at(), tx: at(), fr: at(), cr: at() };
    let socket = memfd(0x1_8000_0000 + 8192);
    let memory = memfd(i64::from(128 * CHUNK));
    let umem = Umem::map(memory.as_fd(), u64::from(128 * CHUNK)).unwrap();
    let ring = |w| Ring::<Desc>::map(socket.as_fd(), w, &offsets, 64).unwrap();
    let fill = Ring::<u64>::map(socket.as_fd(), Which::Fill, &offsets, 64).unwrap();
    let shape = Shape::new(&Plan { ring: 64, chunks: 128, ..plan(true) }).unwrap();
    let (mut rx, used) = Rx::open(ring(Which::Rx), fill, shape, 1500).unwrap();
    assert!(!used);
    let kernel = ring(Which::Rx);
    for i in 0..42 {
        // Forty-one pieces, then a good frame.
        let options = if i < 40 { libc::XDP_PKT_CONTD } else { 0 };
        kernel.set(i, Desc { addr: u64::from(i * CHUNK), len: 100, options });
    }
    kernel.produce(42);
    let (mut b, mut stats) = (Batch::new(), Stats::default());
    for _ in 0..3 {
        b.clear();
        rx.recv(&umem, &mut b, &mut stats).unwrap();
        let seen: Vec<_> = b.frames().iter().map(|f| (f.dropped, f.len)).collect();
        assert_eq!(seen, [(true, 4100), (false, 100)]);
        assert_eq!(stats.drops[Reason::Fragment as usize], 1);
        rx.release(&b, 0);
    }
    rx.release(&b, 2);
    assert_eq!(kernel.consumer(), 42);
    // An unfinished frame is not touched.
    kernel.set(42, Desc { addr: 0, len: 100, options: libc::XDP_PKT_CONTD });
    kernel.produce(43);
    b.clear();
    rx.recv(&umem, &mut b, &mut stats).unwrap();
    assert!(b.is_empty());
    assert_eq!(kernel.consumer(), 42);
}

#[test]
fn impossible_plans_and_other_descriptors_are_refused() {
    let good = plan(true);
    let bad = [
        Plan { ring: 15, ..good.clone() },
        Plan { ring: 0, ..good.clone() },
        Plan { chunk: 1024, ..good.clone() },
        Plan { chunk: 3000, ..good.clone() },
        Plan { chunks: 1, ..good.clone() },
        Plan { queues: 0, ..good.clone() },
    ];
    for p in bad.into_iter().chain([good]) {
        assert!(open(&p, vec![memfd(4096), memfd(4096)]).is_err());
    }
}

#[test]
fn a_kernel_that_is_too_old_is_named() {
    let e = |errno| not_mapped(io::Error::from_raw_os_error(errno)).to_string();
    assert!(e(libc::EBUSY).contains("6.4"));
    assert!(!e(libc::ENOMEM).contains("6.4"));
}

#[test]
fn a_stuck_nic_does_not_make_us_spin() {
    use nix::poll::{PollFd, PollFlags, poll};
    let mut kernel = Kernel::new();
    let (rx, tx) = kernel.open(false);
    let mut port = Xsk {
        fd: kernel.socket.try_clone().unwrap(),
        again: Again::new().unwrap(),
        rx,
        tx,
        umem: Umem::map(kernel.memory.as_fd(), u64::from(24 * CHUNK)).unwrap(),
        mtu: 1500,
        multi_buffer: false,
        stats: Stats::default(),
        lost_before: Lost::default(),
    };
    let mut room = Watch::default();
    port.watch(&mut room);
    let timer = room.fds().iter().find(|(_, why)| *why == Interest::Room).unwrap().0;
    assert!(room.fds().iter().all(|(_, why)| *why != Interest::Takes), "level-triggered, and always true");
    // The NIC takes every descriptor, so the ring is empty, and gives no chunk back.
    let one = || filled(60, 1);
    while port.send(&one().0).unwrap() == 1 {
        kernel.take(1);
    }
    let (mut wakes, from) = (0, std::time::Instant::now());
    let since = |ms| from.elapsed() < Duration::from_millis(ms);
    // On a machine that is busy with something else it takes longer to come to eight looks.
    while since(200) || (wakes < 8 && since(10_000)) {
        assert!(!port.arm_takes(), "nothing came back");
        if poll(&mut [PollFd::new(port.again.timer.as_fd(), PollFlags::POLLIN)], 20_u16).unwrap() > 0 {
            wakes += 1;
            port.event(timer, Interest::Room).unwrap();
        }
    }
    assert!((8..60).contains(&wakes), "{wakes}");
    // It moves again: found out at the next look.
    kernel.complete(0);
    assert!(port.arm_takes());
    assert_eq!(port.send(&one().0).unwrap(), 1);
    assert_eq!(port.again.wait, Again::FIRST);
}
