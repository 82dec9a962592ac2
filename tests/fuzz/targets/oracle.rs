//! The same guest's ring served twice, by our device side and by the `virtio-queue` crate: chain by chain both must find
//! the same bytes to read, fill the same bytes, give back the same elements and want the same interrupts. Where we refuse
//! a chain, the crate must have found its end missing, or one of the rules must be broken that we keep and it leaves to
//! its user.
#![no_main]

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use netreeve_dataplane::mem::guest::{GuestMemory, Layout, Region};
use netreeve_dataplane::mem::split::RingAddr;
use netreeve_dataplane::virtq::chain::{Chains, MAX_BYTES, MAX_SEGS};
use netreeve_dataplane::virtq::{Device, Terms};
use nix::sys::memfd::{MFdFlags, memfd_create};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const LEN: u64 = 0x8000;
const SIZE: u16 = 16;
const AT: RingAddr = RingAddr { desc: 0x100, avail: 0x300, used: 0x400 };
/// Indirect tables lie here; nothing is written below the buffers, or the two might read different rings.
const TABLES: u64 = 0x800;
const BUFFERS: u64 = 0x1800;

const INDIRECT: u16 = 4;

/// VIRTIO_RING_F_INDIRECT_DESC, VIRTIO_RING_F_EVENT_IDX.
const F_INDIRECT_DESC: u64 = 1 << 28;
const F_EVENT_IDX: u64 = 1 << 29;

/// Where the input goes on; after its end, numbers that follow from it, so that short inputs are whole guests too.
struct Input<'a> {
    rest: &'a [u8],
    state: u64,
}

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| match self.rest.split_first() {
            Some((b, rest)) => {
                self.rest = rest;
                *b
            }
            None => {
                // xorshift64
                self.state ^= self.state << 13;
                self.state ^= self.state >> 7;
                self.state ^= self.state << 17;
                (self.state >> 32) as u8
            }
        })
    }

    /// A descriptor, more often a good one than a bad one.
    fn descriptor(&mut self, entries: u16) -> [u8; 16] {
        let [a, l, f, n] = self.take();
        let flags = u16::from(f & 7);
        let addr = match (a, flags & INDIRECT != 0) {
            (255, _) => LEN - 16,
            (254, _) => u64::MAX - 3,
            (_, true) => TABLES + u64::from(a % 64) * 16,
            (253, _) => BUFFERS - 8,
            (252, _) => LEN,
            _ => BUFFERS + u64::from(a) * 0x5f,
        };
        let len = match (l, flags & INDIRECT != 0) {
            (255, _) => u32::MAX,
            (254, true) => 40,
            (_, true) => u32::from(l % 96) * 16,
            (254, _) => 0x8000,
            (128.., _) => u32::from(l - 127) * 75,
            _ => u32::from(l),
        };
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&addr.to_le_bytes());
        raw[8..12].copy_from_slice(&len.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&(u16::from(n) % entries).to_le_bytes());
        raw
    }
}

/// A guest as the input wants it.
struct Guest {
    bytes: Vec<u8>,
    base: u16,
    acked: u64,
    most: usize,
}

fn guest(data: &[u8]) -> Guest {
    static BLANK: OnceLock<Vec<u8>> = OnceLock::new();
    let mut hash = DefaultHasher::new();
    hash.write(data);
    let mut input = Input { rest: data, state: hash.finish() | 1 };
    let mut bytes = BLANK.get_or_init(|| (0..LEN).map(|i| (i * 31 ^ i >> 8) as u8).collect()).clone();
    let mut put = |at: u64, what: &[u8]| bytes[at as usize..at as usize + what.len()].copy_from_slice(what);
    let [how, ahead, most] = input.take();
    let base = u16::from_le_bytes(input.take());
    // One in 16 rings has an index that runs ahead of what it holds.
    let ahead = if ahead >= 240 { u16::from(ahead) } else { u16::from(ahead) % (SIZE + 1) };
    put(AT.avail, &[0, 0]);
    put(AT.avail + 2, &base.wrapping_add(ahead).to_le_bytes());
    for i in 0..u64::from(SIZE) {
        let [head] = input.take();
        let head = if head == 255 { SIZE } else { u16::from(head) % SIZE };
        put(AT.avail + 4 + 2 * i, &head.to_le_bytes());
    }
    put(AT.used, &[0, 0]);
    let used = u16::from_le_bytes(input.take());
    put(AT.used + 2, &used.to_le_bytes());
    // The interrupt is asked for at an element that will be given back, most of the time.
    let [event] = input.take();
    let event = used.wrapping_add(u16::from(event) % 24);
    put(AT.avail + 4 + 2 * u64::from(SIZE), &event.to_le_bytes());
    for i in 0..u64::from(SIZE) {
        put(AT.desc + 16 * i, &input.descriptor(SIZE + 1));
    }
    let mut at = TABLES;
    while at < TABLES + 160 * 16 {
        put(at, &input.descriptor(96));
        at += 16;
    }
    let acked = if how & 1 != 0 { F_EVENT_IDX } else { 0 } | if how & 2 != 0 { F_INDIRECT_DESC } else { 0 };
    Guest { bytes, base, acked, most: usize::from(most % 20) + 1 }
}

/// The crate's side: its memory and its queue.
struct Oracle {
    memory: GuestMemoryMmap<()>,
    queue: Queue,
}

impl Oracle {
    fn new(memory: GuestMemoryMmap<()>, guest: &Guest) -> Self {
        memory.write_slice(&guest.bytes, GuestAddress(0)).unwrap();
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_size(SIZE);
        queue.try_set_desc_table_address(GuestAddress(AT.desc)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(AT.avail)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(AT.used)).unwrap();
        queue.set_event_idx(guest.acked & F_EVENT_IDX != 0);
        queue.set_next_avail(guest.base);
        queue.set_next_used(memory.read_obj(GuestAddress(AT.used + 2)).unwrap());
        queue.set_ready(true);
        assert!(queue.is_valid(&memory));
        Self { memory, queue }
    }

    /// The next chain: its head and its buffers, as far as the crate follows it. Err: it finds the ring broken.
    fn pop(&mut self) -> Result<Option<(u16, Vec<Descriptor>)>, virtio_queue::Error> {
        let chain = self.queue.iter(&self.memory)?.next();
        Ok(chain.map(|c| (c.head_index(), c.collect())))
    }

    fn raw(&self, index: u16) -> Option<Descriptor> {
        let at = GuestAddress(AT.desc + 16 * u64::from(index));
        (index < SIZE).then(|| self.memory.read_obj(at).unwrap())
    }

    /// Whether a chain may be served by the rules that the crate leaves to its user, and is whole.
    fn is_good(&self, head: u16, buffers: &[Descriptor], acked: u64) -> bool {
        let whole = buffers.last().is_some_and(|d| !d.has_next());
        let (mut direct, mut at) = (0, self.raw(head));
        let table = loop {
            match at {
                Some(d) if d.refers_to_indirect_table() => break Some(d),
                Some(d) if d.has_next() && direct < usize::from(SIZE) => at = self.raw(d.next()),
                _ => break None,
            }
            direct += 1;
        };
        let table_good = table.is_none_or(|t| {
            let end = t.addr().0.checked_add(u64::from(t.len()));
            acked & F_INDIRECT_DESC != 0
                && !t.has_next()
                && end.is_some_and(|end| end <= LEN)
                && buffers.len().saturating_sub(direct) <= MAX_SEGS
        });
        let (mut written, mut bytes, mut segs) = (false, 0_u64, 0);
        let buffers_good = buffers.iter().all(|d| {
            let in_order = d.is_write_only() || !written;
            let end = d.addr().0.checked_add(u64::from(d.len()));
            let inside = d.len() == 0 || end.is_some_and(|end| end <= LEN);
            written |= d.is_write_only() && d.len() > 0;
            bytes += u64::from(d.len());
            segs += usize::from(d.len() > 0);
            in_order && inside
        });
        whole && table_good && buffers_good && bytes <= u64::from(MAX_BYTES) && segs <= MAX_SEGS
    }

    /// What a chain's readable buffers hold.
    fn read(&self, buffers: &[Descriptor]) -> Vec<u8> {
        let mut all = Vec::new();
        for d in buffers.iter().filter(|d| !d.is_write_only() && d.len() > 0) {
            let mut v = vec![0; d.len() as usize];
            self.memory.read_slice(&mut v, d.addr()).unwrap();
            all.extend(v);
        }
        all
    }
}

/// What the device writes into its `n`th chain.
fn pattern(n: usize, what: &[u8], len: usize) -> Vec<u8> {
    let mut h = DefaultHasher::new();
    h.write(what);
    let seed = h.finish() as u8;
    (0..len).map(|i| (i as u8).wrapping_mul(7) ^ seed ^ n as u8).collect()
}

/// The guest's memory, without what the two may write differently: used.flags and avail_event.
fn same(mut bytes: Vec<u8>) -> Vec<u8> {
    for at in [AT.used, AT.used + 4 + 8 * u64::from(SIZE)] {
        bytes[at as usize..at as usize + 2].fill(0);
    }
    bytes
}

/// One chain, by both.
fn chain(n: usize, ours: &mut Chains, i: usize, oracle: &mut Oracle, acked: u64) {
    let (head, buffers) = oracle.pop().unwrap().expect("the crate finds a chain, too");
    let c = *ours.get(i).unwrap();
    assert_eq!(c.id, head);
    assert_eq!(!c.bad, oracle.is_good(head, &buffers, acked), "{c:?} {buffers:?}");
    let mut written = 0;
    if !c.bad {
        let segs = ours.segs(&c).to_vec();
        let (from, to) = segs.split_at(usize::from(c.readable));
        let read: Vec<u8> = from
            .iter()
            .flat_map(|s| {
                let mut v = vec![0; s.len() as usize];
                assert_eq!(s.copy_out(&mut v), v.len());
                v
            })
            .collect();
        assert_eq!(read, oracle.read(&buffers));
        let writable: Vec<_> = buffers.iter().filter(|d| d.is_write_only() && d.len() > 0).collect();
        let total: u32 = to.iter().map(|s| s.len()).sum();
        assert_eq!(total, writable.iter().map(|d| d.len()).sum::<u32>());
        assert_eq!(u64::from(c.bytes), (read.len() + total as usize) as u64);
        // Into the rings themselves nothing is written.
        if writable.iter().all(|d| d.addr().0 >= BUFFERS) {
            let bytes = pattern(n, &read, total as usize);
            let mut rest = &bytes[..];
            for s in to {
                let (here, more) = rest.split_at(s.len() as usize);
                assert_eq!(s.copy_in(here), here.len());
                rest = more;
            }
            let mut rest = &bytes[..];
            for d in writable {
                let (here, more) = rest.split_at(d.len() as usize);
                oracle.memory.write_slice(here, d.addr()).unwrap();
                rest = more;
            }
            written = total;
        }
    }
    ours.get_mut(i).unwrap().written = written;
    oracle.queue.add_used(&oracle.memory, head, written).unwrap();
}

/// Both memories, made once: ours, its file, the crate's.
type Memories = (Arc<GuestMemory>, Arc<OwnedFd>, GuestMemoryMmap<()>);

thread_local! {
    static MEMORY: Memories = {
        let fd = memfd_create(c"fuzz", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&fd, LEN as i64).unwrap();
        let layout = Layout { gpa: 0, uva: 0, len: LEN, offset: 0 };
        let region = Region::map(layout, fd.try_clone().unwrap()).unwrap();
        let theirs = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), LEN as usize)]).unwrap();
        (Arc::new(GuestMemory::new(vec![region]).unwrap()), Arc::new(fd), theirs)
    };
}

fuzz_target!(|data: &[u8]| {
    let guest = guest(data);
    let (memory, fd, theirs) = MEMORY.with(Clone::clone);
    nix::sys::uio::pwrite(&*fd, &guest.bytes, 0).unwrap();
    let terms = Terms::of(guest.acked);
    let mut device = Device::new(&memory, SIZE, AT, guest.base, &terms).unwrap();
    let mut oracle = Oracle::new(theirs, &guest);
    let mut ours = Chains::default();
    let (mut n, mut told) = (0, false);
    loop {
        ours.clear();
        let found = device.fetch(&mut ours, guest.most);
        for i in 0..found {
            chain(n, &mut ours, i, &mut oracle, guest.acked);
            n += 1;
        }
        let interrupt = device.complete(ours.all());
        if found > 0 && !device.stopped() && guest.acked & F_EVENT_IDX != 0 {
            // Our first interrupt is always sent.
            assert!(told || interrupt);
            let theirs = oracle.queue.needs_notification(&oracle.memory).unwrap();
            assert!(!told || interrupt == theirs);
            told = true;
        }
        if device.stopped() {
            // An index that ran ahead, or a head outside the table, which the crate takes for an empty chain.
            let found = oracle.pop();
            assert!(found.is_err() || found.is_ok_and(|c| c.is_some_and(|(head, _)| head >= SIZE)));
            break;
        }
        if found == 0 {
            assert!(oracle.pop().unwrap().is_none());
            break;
        }
    }
    let mut left = vec![0; LEN as usize];
    nix::sys::uio::pread(&*fd, &mut left, 0).unwrap();
    let mut theirs = vec![0; LEN as usize];
    oracle.memory.read_slice(&mut theirs, GuestAddress(0)).unwrap();
    // A stopped ring may keep its last completions to itself.
    if !device.stopped() {
        assert!(same(left) == same(theirs), "the memory differs");
    }
});
