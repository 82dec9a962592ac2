//! A front end in this process: it speaks the protocol, owns the guest's memory and drives its rings.

use std::io::{IoSlice, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::ftruncate;

use super::message::request as r;
use super::*;
use crate::virtq::terms::feature as f;
use crate::virtq::testing::{BUFS, GPA, SIZE, UVA, addr, memfd, memory};
use crate::virtq::{Buf, Driver, Terms};

mod estate;

const ACK: u64 = f::VERSION_1 | f::MRG_RXBUF | f::EVENT_IDX | f::INDIRECT_DESC | f::PROTOCOL;

fn plan(queues: u16) -> Plan {
    Plan { queues, server: false, mac: Some(Mac([2, 0, 0, 0, 0, 7])), mtu: None, hide: 0 }
}

struct Front {
    sock: UnixStream,
    ports: Queues,
    memory: Arc<GuestMemory>,
    fd: OwnedFd,
    /// Receive and transmit drivers by turns.
    drivers: Vec<Driver>,
    kicks: Vec<EventFd>,
    calls: Vec<EventFd>,
    errs: Vec<EventFd>,
    changes: Vec<Change>,
    acked: u64,
    sent: u64,
}

fn eventfd() -> EventFd {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap()
}

fn count(e: &EventFd) -> u64 {
    let flags =
        nix::fcntl::OFlag::from_bits_retain(nix::fcntl::fcntl(e, nix::fcntl::FcntlArg::F_GETFL).unwrap());
    nix::fcntl::fcntl(e, nix::fcntl::FcntlArg::F_SETFL(flags | nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
    e.read().unwrap_or(0)
}

fn words(w: &[u64]) -> Vec<u8> {
    w.iter().flat_map(|v| v.to_ne_bytes()).collect()
}

fn state(index: u32, v: u32) -> Vec<u8> {
    [index.to_ne_bytes(), v.to_ne_bytes()].concat()
}

impl Front {
    fn new(plan: &Plan) -> Self {
        let (a, b) = UnixStream::pair().unwrap();
        let ports = open(plan, vec![b.into()]).unwrap();
        Self::over(a, ports)
    }

    fn over(sock: UnixStream, ports: Queues) -> Self {
        sock.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
        let (memory, fd) = memory();
        let n = 2 * ports.len() + 1;
        let many = || (0..n).map(|_| eventfd()).collect();
        Self {
            sock,
            ports,
            memory,
            fd,
            drivers: Vec::new(),
            kicks: many(),
            calls: many(),
            errs: many(),
            changes: Vec::new(),
            acked: 0,
            sent: 0,
        }
    }

    /// Everything that the ports want watched and that is readable is served, once.
    fn pump(&mut self) {
        let mut w = Watch::default();
        for i in 0..self.ports.len() {
            w.clear();
            self.ports[i].watch(&mut w);
            for (fd, why) in w.fds().to_vec() {
                let c = self.ports[i].event(fd, why).unwrap();
                self.changes.push(c);
            }
        }
    }

    fn send(&mut self, number: u32, flags: u32, payload: &[u8], fds: &[RawFd]) {
        let mut m = Vec::new();
        for v in [number, flags, u32::try_from(payload.len()).unwrap()] {
            m.extend(v.to_ne_bytes());
        }
        m.extend(payload);
        let rights = [ControlMessage::ScmRights(fds)];
        let rights: &[_] = if fds.is_empty() { &[] } else { &rights };
        // A closed connection is what some tests are about.
        let _ =
            sendmsg::<()>(self.sock.as_raw_fd(), &[IoSlice::new(&m)], rights, MsgFlags::MSG_NOSIGNAL, None);
        self.pump();
    }

    fn tell(&mut self, number: u32, payload: &[u8], fds: &[RawFd]) {
        self.send(number, 1, payload, fds);
    }

    fn reply(&mut self) -> Vec<u8> {
        let mut h = [0; 12];
        self.sock.read_exact(&mut h).unwrap();
        assert_eq!(h[4..8], 5u32.to_ne_bytes(), "version 1, reply");
        let mut p = vec![0; u32::from_ne_bytes(h[8..12].try_into().unwrap()) as usize];
        self.sock.read_exact(&mut p).unwrap();
        p
    }

    fn ask(&mut self, number: u32, payload: &[u8]) -> Vec<u8> {
        self.tell(number, payload, &[]);
        self.reply()
    }

    fn ask_u64(&mut self, number: u32) -> u64 {
        u64::from_ne_bytes(self.ask(number, &[]).try_into().unwrap())
    }

    /// With `need_reply`: whether the request was served.
    fn served(&mut self, number: u32, payload: &[u8], fds: &[RawFd]) -> bool {
        self.send(number, 9, payload, fds);
        self.reply() == 0u64.to_ne_bytes()
    }

    fn gone(&mut self) -> bool {
        self.pump();
        matches!(self.sock.read(&mut [0]), Ok(0) | Err(_))
    }

    fn negotiate(&mut self, acked: u64) {
        self.tell(r::SET_OWNER, &[], &[]);
        let offered = self.ask_u64(r::GET_FEATURES);
        assert_eq!(offered & acked, acked);
        let p = self.ask_u64(r::GET_PROTOCOL_FEATURES);
        self.tell(r::SET_PROTOCOL_FEATURES, &words(&[p]), &[]);
        self.tell(r::SET_FEATURES, &words(&[acked]), &[]);
        self.acked = acked;
    }

    fn table(&mut self) {
        let fd = self.fd.as_raw_fd();
        self.tell(r::SET_MEM_TABLE, &words(&[1, GPA, SIZE, UVA, 0]), &[fd]);
    }

    fn start_ring(&mut self, i: usize, base: u32) {
        let index = u32::try_from(i).unwrap();
        let at = addr(i as u64, 16);
        if self.drivers.len() <= i {
            let terms = Terms::of(self.acked);
            self.drivers.push(Driver::new(&self.memory, 16, at, &terms).unwrap());
        }
        let base = if base == 0 { self.drivers[i].base() } else { base };
        self.tell(r::SET_VRING_NUM, &state(index, 16), &[]);
        self.tell(r::SET_VRING_BASE, &state(index, base), &[]);
        self.tell(r::SET_VRING_ADDR, &words(&[u64::from(index), at.desc, at.used, at.avail, 0]), &[]);
        let fds = [&self.calls, &self.errs, &self.kicks].map(|l| l[i].as_fd().as_raw_fd());
        for (number, fd) in [r::SET_VRING_CALL, r::SET_VRING_ERR, r::SET_VRING_KICK].into_iter().zip(fds) {
            self.tell(number, &words(&[i as u64]), &[fd]);
        }
        self.tell(r::SET_VRING_ENABLE, &state(index, 1), &[]);
    }

    fn start(&mut self) {
        self.table();
        for i in 0..2 * self.ports.len() {
            self.start_ring(i, 0);
        }
    }

    fn ready(plan: &Plan) -> Self {
        Self::ready_with(plan, ACK)
    }

    fn ready_with(plan: &Plan, acked: u64) -> Self {
        let mut x = Self::new(plan);
        x.negotiate(acked);
        x.start();
        assert!(x.ports.iter().all(|p| p.traits().up));
        x
    }

    /// Transmits a frame of 60 bytes on ring `i` (odd).
    fn transmit(&mut self, i: usize, byte: u8) {
        let at = BUFS + 0x1_0000 * i as u64 + 128 * (self.sent % 16);
        self.sent += 1;
        self.memory.at_gpa(at, 12).unwrap().copy_in(&[0; 12]);
        self.memory.at_gpa(at + 12, 60).unwrap().copy_in(&[byte; 60]);
        self.drivers[i].add(&[Buf { addr: at, len: 72, write: false }]).unwrap();
        if self.drivers[i].publish() {
            self.kicks[i].write(1).unwrap();
        }
    }

    /// Gives the guest `n` receive buffers of 512 bytes on ring `i` (even).
    fn post(&mut self, i: usize, n: u64) {
        for k in 0..n {
            let at = BUFS + 0x8_0000 + 0x1_0000 * i as u64 + 512 * k;
            self.drivers[i].add(&[Buf { addr: at, len: 512, write: true }]).unwrap();
        }
        self.drivers[i].publish();
    }

    /// One turn that takes everything; the first byte of each frame.
    fn turn(&mut self, port: usize) -> Vec<u8> {
        let mut b = Batch::new();
        self.ports[port].recv(&mut b).unwrap();
        let got = b.frames().iter().map(|f| f.head()[0]).collect();
        self.ports[port].release(&b, b.len());
        got
    }

    /// Sends a frame to the guest.
    fn deliver(&mut self, port: usize, byte: u8) -> usize {
        let mut b = Batch::new();
        let fr = b.push().unwrap();
        fr.set_head(&[byte; 60]);
        fr.len = 60;
        self.ports[port].send(&b).unwrap()
    }

    fn drops(&self, port: usize, why: Reason) -> u64 {
        self.ports[port].stats().drops[why as usize]
    }
}

#[test]
fn frames_pass_both_ways() {
    let mut x = Front::new(&plan(1));
    assert!(!x.ports[0].traits().up);
    x.negotiate(ACK | f::CSUM | f::HOST_TSO4 | f::GUEST_CSUM | f::GUEST_TSO6);
    x.start();
    assert!(x.changes.iter().any(|c| c.link == Some(true) && c.rewire));
    let t = x.ports[0].traits();
    assert_eq!((t.takes, t.gives), (Offloads(1), Offloads(3)), "a ring of 16 takes no super-frames");
    assert!(t.lends && t.rewinds && !t.needs_memory);
    x.transmit(1, 0xaa);
    assert!(count(&x.kicks[1]) > 0, "a fresh ring wants to be kicked");
    assert_eq!(x.turn(0), [0xaa]);
    assert!(count(&x.calls[1]) > 0);
    // Receive is served without any kick.
    x.post(0, 2);
    assert_eq!(x.deliver(0, 0xbb), 1);
    let (head, len) = x.drivers[0].take().unwrap();
    assert_eq!((head, len), (0, 72));
    let s = x.ports[0].stats();
    assert_eq!((s.rx_frames, s.rx_bytes, s.tx_frames, s.tx_bytes), (1, 60, 1, 60));
    assert_eq!(x.deliver(0, 1) + x.deliver(0, 2), 1, "two buffers, three frames");
    assert!(!x.ports[0].arm_takes());
    x.transmit(1, 1);
    assert!(x.ports[0].arm_gives());
}

#[test]
fn a_packed_ring_stops_and_goes_on_at_its_place() {
    let mut x = Front::ready_with(&plan(1), ACK | f::RING_PACKED | f::IN_ORDER);
    // In the first round, then in the second.
    for base in [0x8004_8004u32, 0x8008_8008, 0x800c_800c, 0, 0x0004_0004] {
        for i in 0..4 {
            x.transmit(1, i);
        }
        assert_eq!(x.turn(0), [0, 1, 2, 3]);
        assert_eq!(std::iter::from_fn(|| x.drivers[1].take()).count(), 4);
        assert_eq!(x.ask(r::GET_VRING_BASE, &state(1, 0)), state(1, base));
        assert!(!x.ports[0].traits().up);
        if base == 0 {
            // Not the start of a fresh ring.
            x.tell(r::SET_VRING_BASE, &state(1, 0), &[]);
            let kick = x.kicks[1].as_fd().as_raw_fd();
            x.tell(r::SET_VRING_KICK, &words(&[1]), &[kick]);
        } else {
            x.start_ring(1, base);
        }
        assert!(x.ports[0].traits().up);
    }
    x.post(0, 2);
    assert_eq!(x.deliver(0, 1), 1);
    assert_eq!(x.drivers[0].take(), Some((0, 72)));
    // A size that is no power of two is one for packed rings alone.
    assert!(x.served(r::SET_VRING_NUM, &state(0, 100), &[]));
    let mut x = Front::ready(&plan(1));
    assert!(!x.served(r::SET_VRING_NUM, &state(0, 100), &[]));
}

#[test]
fn front_ends_are_told_apart() {
    let mut qemu = Front::new(&plan(2));
    assert_eq!(qemu.ask_u64(r::GET_FEATURES) & f::CTRL_VQ, 0);
    assert_eq!(qemu.ask_u64(r::GET_PROTOCOL_FEATURES) & feature::protocol::CONFIG, 0);
    let mut uml = Front::new(&plan(2));
    uml.tell(r::SET_OWNER, &[], &[]);
    assert_ne!(uml.ask_u64(r::GET_FEATURES) & f::CTRL_VQ, 0);
    assert_ne!(uml.ask_u64(r::GET_PROTOCOL_FEATURES) & feature::protocol::CONFIG, 0);
    assert_eq!(uml.ask_u64(r::GET_QUEUE_NUM), 5);
    assert_eq!(uml.ask_u64(r::GET_MAX_MEM_SLOTS), 64);
    let config =
        uml.ask(r::GET_CONFIG, &[0u32.to_ne_bytes(), 8u32.to_ne_bytes(), [0; 4], [0; 4], [0; 4]].concat());
    assert_eq!(config[12..], [2, 0, 0, 0, 0, 7, 1, 0]);
    assert!(
        uml.served(r::SET_PROTOCOL_FEATURES, &words(&[0x208]), &[]),
        "answered although it is only now agreed"
    );
    uml.tell(r::SET_STATUS, &words(&[0xb]), &[]);
    assert_eq!(uml.ask_u64(r::GET_STATUS), 0xb);
}

#[test]
fn the_end_of_a_connection_gives_everything_back() {
    let mut x = Front::ready(&plan(1));
    x.transmit(1, 1);
    drop(std::mem::replace(&mut x.sock, UnixStream::pair().unwrap().0));
    x.pump();
    assert!(x.changes.iter().any(|c| c.redial && c.rewire && c.link == Some(false)));
    assert!(!x.ports[0].traits().up);
    assert_eq!(x.turn(0).len(), 0);
    assert_eq!(x.deliver(0, 1), 1, "taken and dropped");
    assert_eq!(x.drops(0, Reason::PeerDown), 1);
    let mut w = Watch::default();
    x.ports[0].watch(&mut w);
    assert_eq!(w.fds(), []);
    // And the next connection goes on where the guest stands.
    let (a, b) = UnixStream::pair().unwrap();
    a.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
    x.sock = a;
    let change = x.ports[0].connect(b.into()).unwrap();
    assert!(change.rewire);
    x.negotiate(ACK);
    x.start();
    assert_eq!(x.turn(0), [1]);
    assert_eq!(x.ports[0].stats().reconnects, 1);
}

#[test]
fn a_server_takes_one_front_end_after_the_other() {
    let dir = std::env::temp_dir().join(format!("nt-vhost-{}", std::process::id()));
    let listener = UnixListener::bind(&dir).unwrap();
    let mut ports = open(&Plan { server: true, ..plan(1) }, vec![listener.into()]).unwrap();
    for _ in 0..2 {
        let mut x = Front::over(UnixStream::connect(&dir).unwrap(), ports);
        x.pump();
        x.negotiate(ACK);
        x.start();
        assert!(x.ports[0].traits().up);
        // A second one waits: it is neither answered nor does it disturb.
        let mut second = UnixStream::connect(&dir).unwrap();
        second.set_read_timeout(Some(std::time::Duration::from_millis(20))).unwrap();
        second.write_all(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        x.pump();
        assert!(second.read(&mut [0]).is_err());
        assert!(x.ports[0].traits().up);
        drop(second);
        drop(x.sock);
        let mut w = Watch::default();
        x.ports[0].watch(&mut w);
        let c = x.ports[0].event(w.fds()[0].0, Interest::Control).unwrap();
        assert!(c.rewire && !c.redial);
        // The second one's connection is accepted, and ends.
        for _ in 0..2 {
            w.clear();
            x.ports[0].watch(&mut w);
            x.ports[0].event(w.fds()[0].0, Interest::Control).unwrap();
        }
        ports = x.ports;
    }
    std::fs::remove_file(&dir).unwrap();
}

#[test]
fn refusals_are_answered_if_asked_for_and_end_the_connection_otherwise() {
    let mut x = Front::ready(&plan(1));
    assert!(!x.served(r::SET_VRING_NUM, &state(0, 17), &[]));
    assert!(!x.served(r::SET_VRING_NUM, &state(7, 16), &[]), "no such ring");
    assert!(!x.served(r::SET_FEATURES, &words(&[u64::MAX]), &[]));
    assert!(!x.served(r::SET_MEM_TABLE, &words(&[1, GPA, SIZE, UVA, 0]), &[]), "no descriptor");
    let fd = x.fd.as_raw_fd();
    assert!(!x.served(r::SET_MEM_TABLE, &words(&[2, 0, 8192, 0, 0, 4096, 4096, 0, 0]), &[fd, fd]), "overlap");
    assert!(!x.served(r::SET_MEM_TABLE, &words(&[1, GPA, SIZE + 1, UVA, 0]), &[fd]), "beyond the file");
    assert!(!x.served(r::ADD_MEM_REG, &words(&[0, GPA + 4096, 4096, 0, 0]), &[fd]), "overlap");
    assert!(!x.served(r::REM_MEM_REG, &words(&[0, GPA + 4096, 4096, 0, 0]), &[]), "not there");
    let (_, pipe) = std::io::pipe().unwrap();
    assert!(!x.served(r::SET_VRING_KICK, &words(&[0]), &[pipe.as_raw_fd()]), "a kick has to be an eventfd");
    assert!(!x.served(r::SET_VRING_CALL, &words(&[0]), &[fd]), "a file could block us");
    assert!(!x.served(r::NET_SET_MTU, &words(&[20]), &[]));
    assert!(!x.served(33, &[], &[]), "not known");
    assert!(x.served(r::NET_SET_MTU, &words(&[1400]), &[]));
    assert_eq!(x.ports[0].traits().max_frame, 1418);
    assert!(x.ports[0].traits().up, "nothing of this hurt");
    x.tell(33, &[], &[]);
    assert!(x.served(r::SET_OWNER, &[], &[]), "passed over");
    x.tell(r::SET_VRING_NUM, &state(0, 17), &[]);
    assert!(x.gone());
    assert_eq!(x.drops(0, Reason::Protocol), 1);
    assert!(!x.ports[0].traits().up);
}

#[test]
fn a_full_blocking_call_descriptor_blocks_nobody() {
    let mut x = Front::ready(&plan(1));
    let full = eventfd();
    full.write(u64::MAX - 1).unwrap();
    x.tell(r::SET_VRING_CALL, &words(&[1]), &[full.as_fd().as_raw_fd()]);
    for i in 0..4 {
        x.drivers[1].arm();
        x.transmit(1, i);
        assert_eq!(x.turn(0), [i]);
    }
}

#[test]
fn memory_cut_short_ends_the_connection_and_not_the_process() {
    let mut x = Front::ready(&plan(1));
    x.transmit(1, 1);
    assert_eq!(x.turn(0), [1]);
    x.transmit(1, 2);
    ftruncate(&x.fd, 0).unwrap();
    x.turn(0);
    x.turn(0);
    assert!(x.gone());
    assert!(x.changes.iter().any(|c| c.redial));
    assert!(!x.ports[0].traits().up);
    assert!(x.drops(0, Reason::Protocol) > 0);
}

#[test]
fn an_index_that_jumps_stops_its_ring_alone() {
    let mut x = Front::ready(&plan(1));
    let ring = x.drivers[1].split().unwrap();
    ring.set_avail_idx(ring.avail_idx().wrapping_add(17));
    assert_eq!(x.turn(0).len(), 0);
    assert_eq!(count(&x.errs[1]), 1);
    assert_eq!(x.drops(0, Reason::BadChain), 1);
    assert!(!x.ports[0].arm_gives(), "not looked at again");
    x.post(0, 1);
    assert_eq!(x.deliver(0, 5), 1);
    assert!(x.drivers[0].take().is_some());
    // The front end starts it anew.
    let base = x.ask(r::GET_VRING_BASE, &state(1, 0));
    assert_eq!(base, state(1, 0));
    x.drivers[1].split().unwrap().set_avail_idx(0);
    x.start_ring(1, 0);
    x.transmit(1, 3);
    assert_eq!(x.turn(0), [3]);
}

#[test]
fn rings_stop_where_they_stand_and_go_on() {
    let mut x = Front::ready(&plan(1));
    for i in 0..3 {
        x.transmit(1, i);
    }
    x.post(0, 4);
    let mut b = Batch::new();
    x.ports[0].recv(&mut b).unwrap();
    x.ports[0].release(&b, 1);
    assert_eq!(x.deliver(0, 9), 1);
    assert_eq!(x.ask(r::GET_VRING_BASE, &state(1, 0)), state(1, 1), "two frames were put back");
    assert_eq!(x.ask(r::GET_VRING_BASE, &state(0, 0)), state(0, 1), "three buffers were put back");
    assert!(!x.ports[0].traits().up);
    assert_eq!(x.turn(0).len(), 0);
    x.start_ring(0, 1);
    x.start_ring(1, 1);
    assert_eq!(x.turn(0), [1, 2]);
    assert_eq!(x.deliver(0, 9), 1);
    assert_eq!(std::iter::from_fn(|| x.drivers[0].take()).count(), 2);
}

/// The second port stands for one on another worker: its turn is under way while the first serves the front end.
#[test]
fn memory_may_move_in_the_middle_of_a_turn() {
    let mut x = Front::ready(&plan(2));
    x.post(2, 4);
    for i in 0..3 {
        x.transmit(3, i);
    }
    let mut b = Batch::new();
    x.ports[1].recv(&mut b).unwrap();
    let mut landing = Batch::new();
    x.ports[1].lend(&mut landing);
    let slot = landing.landing.segs(&landing.landing.slots()[0])[0];
    let mut second = x.ports.pop().unwrap();
    // The region that everything lies in goes away, and comes back at the same place from another file.
    x.tell(r::REM_MEM_REG, &words(&[0, GPA, SIZE, UVA, 0]), &[]);
    assert!(!second.traits().up);
    let home = landing.landing.land(60);
    let fr = landing.push().unwrap();
    fr.len = 60;
    fr.home = home;
    fr.set_head(&[1; 60]);
    slot.copy_in(&[1; 60]);
    let other = memfd(SIZE);
    x.tell(r::ADD_MEM_REG, &words(&[0, GPA, SIZE, UVA, 0]), &[other.as_raw_fd()]);
    assert!(second.traits().up, "all that is needed is here again");
    assert_eq!(second.send(&landing).unwrap(), 1);
    assert_eq!(second.stats().drops[Reason::PeerDown as usize], 1, "what landed in the old memory is lost");
    second.release(&b, 3);
    assert_eq!(second.stats().rx_frames, 0);
    x.ports.push(second);
    assert_eq!(x.turn(1).len(), 0, "the new memory holds an empty ring");
}

#[test]
fn extra_pairs_are_used_when_the_driver_asks() {
    let mut x = Front::new(&plan(2));
    x.negotiate(ACK | f::MQ | f::CTRL_VQ);
    x.start();
    x.start_ring(4, 0);
    x.post(0, 2);
    x.post(2, 2);
    // One pair until the driver says more: the second port's frames go to the first ring.
    assert_eq!(x.deliver(1, 1), 1);
    assert!(x.drivers[0].take().is_some() && x.drivers[2].take().is_none());
    assert!(!x.ports[1].traits().lends);
    let at = BUFS + 0xf_0000;
    x.memory.at_gpa(at, 4).unwrap().copy_in(&[4, 0, 2, 0]);
    let bufs = [Buf { addr: at, len: 4, write: false }, Buf { addr: at + 64, len: 1, write: true }];
    x.drivers[4].add(&bufs).unwrap();
    x.drivers[4].publish();
    x.kicks[4].write(1).unwrap();
    x.pump();
    assert_eq!(x.drivers[4].take().map(|(_, len)| len), Some(1));
    assert!(count(&x.calls[4]) > 0);
    assert!(x.ports[1].traits().lends);
    assert_eq!(x.deliver(1, 1), 1);
    assert!(x.drivers[2].take().is_some());
    x.transmit(3, 7);
    assert_eq!(x.turn(1), [7]);
}

#[test]
fn what_is_sent_on_a_ring_that_is_switched_off_is_discarded() {
    for more in [0, f::RING_PACKED] {
        let plan = plan(2);
        let mut x = Front::ready_with(&plan, ACK | f::MQ | more);
        x.post(0, 4);
        x.post(2, 4);
        for i in 0..3 {
            x.transmit(3, i);
        }
        x.transmit(1, 9);
        count(&x.calls[3]);
        for i in [2, 3] {
            x.tell(r::SET_VRING_ENABLE, &state(i, 0), &[]);
        }
        x.pump();
        assert_eq!(std::iter::from_fn(|| x.drivers[3].take()).count(), 3, "the guest gets its buffers back");
        assert!(count(&x.calls[3]) > 0, "and is told");
        assert_eq!((x.turn(1), x.turn(0)), (vec![], vec![9]));
        assert_eq!(x.drops(1, Reason::PeerDown), 3);
        assert!(x.ports[1].traits().up && !x.ports[1].traits().lends);
        assert_eq!(x.deliver(1, 1), 1, "frames of the second queue go to the first ring");
        assert!(x.drivers[0].take().is_some() && x.drivers[2].take().is_none());
        // Kicked, at once and in another dataplane.
        for other in [false, true] {
            if other {
                succeed(&mut x, &plan);
            }
            x.transmit(3, 4);
            x.pump();
            assert!(x.drivers[3].take().is_some());
        }
        x.transmit(3, 5);
        x.tell(r::SET_VRING_ENABLE, &state(3, 1), &[]);
        x.tell(r::SET_VRING_ENABLE, &state(2, 1), &[]);
        x.pump();
        x.transmit(3, 6);
        assert_eq!(x.turn(1).last(), Some(&6));
        assert_eq!(x.deliver(1, 1), 1);
        assert!(x.drivers[2].take().is_some());
        // Stopped is not switched off: what lies there is for whoever starts it again.
        while x.drivers[3].take().is_some() {}
        x.tell(r::SET_VRING_ENABLE, &state(3, 0), &[]);
        x.ask(r::GET_VRING_BASE, &state(3, 0));
        x.transmit(3, 7);
        x.pump();
        assert!(x.drivers[3].take().is_none());
    }
}

/// The dataplane dies, and another one goes on.
fn succeed(x: &mut Front, plan: &Plan) {
    let mut left = Left::new();
    let mut keep = |piece: Piece, fds: &[std::os::fd::BorrowedFd<'_>]| {
        left.push((piece, fds.iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect()));
        Ok(())
    };
    assert!(x.ports[0].estate(&mut keep).unwrap());
    x.ports = open(plan, Vec::new()).unwrap();
    x.ports[0].inherit(left).unwrap();
}

#[test]
fn a_rarp_frame_is_sent_once() {
    let mut x = Front::ready(&plan(1));
    x.tell(r::SEND_RARP, &words(&[0x0605_0403_0202]), &[]);
    let mut b = Batch::new();
    x.ports[0].recv(&mut b).unwrap();
    x.ports[0].release(&b, 0);
    b.clear();
    x.ports[0].recv(&mut b).unwrap();
    assert_eq!(b.frames()[0].head()[..14], [255, 255, 255, 255, 255, 255, 2, 2, 3, 4, 5, 6, 0x80, 0x35]);
    assert_eq!(b.frames()[0].len, 60);
    x.ports[0].release(&b, 1);
    assert_eq!(x.turn(0).len(), 0);
}

#[test]
fn a_device_with_another_netdev_says_who_it_is() {
    let mut unknown = Front::ready(&Plan { mac: None, ..plan(1) });
    unknown.ports[0].announce();
    assert_eq!(unknown.turn(0).len(), 0, "nobody knows its address yet");
    let mac = Some(Mac([2, 0, 0, 0, 0, 9]));
    let mut x = Front::ready(&Plan { mac, ..plan(1) });
    assert!(!x.ports[0].arm_gives());
    x.ports[0].announce();
    assert!(x.ports[0].arm_gives(), "who sleeps is woken");
    let mut b = Batch::new();
    x.ports[0].recv(&mut b).unwrap();
    assert_eq!(b.frames()[0].head()[6..14], [2, 0, 0, 0, 0, 9, 0x80, 0x35]);
    x.ports[0].release(&b, 1);
    assert_eq!(x.turn(0).len(), 0, "once");
}

#[test]
fn the_front_end_hears_of_the_link() {
    let mut x = Front::ready(&plan(1));
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
    x.tell(r::SET_BACKEND_REQ_FD, &[], &[theirs.as_raw_fd()]);
    x.ports[0].peer_link(true);
    x.ports[0].peer_link(false);
    let mut m = [0; 12];
    (&ours).read_exact(&mut m).unwrap();
    assert_eq!(m, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    let config = x.ask(r::GET_CONFIG, &[6u32.to_ne_bytes(), 2u32.to_ne_bytes(), [0; 4], [0; 4]].concat());
    assert_eq!(config[12..], [0, 0]);
    x.tell(r::RESET_DEVICE, &[], &[]);
    assert!(!x.ports[0].traits().up);
}
