//! Port `tap`: a tap device's queues, one [`Port`] each.
//!
//! Frames are read straight into the landing and written straight from the giver's memory: the kernel makes the only
//! copy; of many short frames at a time, through a ring ([`burst`]). With a virtio-net header, checksums and segmentation are left to whoever can do them best, and 64 KiB
//! super-frames pass whole; without one every frame is plain.
//!
//! Trust: the kernel. Headers that a guest made go to the kernel, which checks them against the frame and refuses
//! (`EINVAL`); that is a counted drop. Promise: nothing is read while a frame might not fit what is lent, so a slow
//! taker makes the device's queue wait and loses nothing here; a deleted device is an `Err`, all else is counted.
#![forbid(unsafe_code)]

mod burst;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use netreeve_shared::fdkind;
use netreeve_shared::grant::FdKind;
use netreeve_shared::vnet::{self, F_NEEDS_CSUM, Vnet};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::{Deserialize, Serialize};

use crate::frame::{Batch, Frame, HEAD, MAX_SUPER};
use crate::mem::{Buf, Seg};
use crate::port::tap::burst::{Burst, WORTH};
use crate::port::{Interest, Offloads, OpenError, Port, Queues, Traits, Watch, offload_bits as bits};
use crate::sandbox::call::{Call, Cond, NEVER_WAITS};
use crate::stats::{Reason, Stats};
use crate::sys::{io as gather, tun, uring};

/// A tap as the dataplane opens it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Queues: as many descriptors.
    pub queues: u16,
    /// Bytes of virtio-net header before each frame: 0, 10 or 12 (read back from the kernel by whoever made the tap).
    pub vnet_header: u8,
    /// MTU in bytes.
    pub mtu: u32,
}

/// What it calls once locked in.
pub const CALLS: &[Call] = &[
    Call::any(libc::SYS_readv),
    Call::any(libc::SYS_writev),
    Call::any(libc::SYS_write),
    // Of rings, there are those made here, which read and write their tap and nothing else. No signal mask, no other
    // flag than to wait: no polling thread is woken, no ring is named by anything but its descriptor.
    Call::only(
        libc::SYS_io_uring_enter,
        &[Cond::without(3, !(uring::GETEVENTS as u64) & 0xffff_ffff), Cond::null(4)],
    ),
    Call::only(libc::SYS_ioctl, &[Cond::is(1, tun::SET_OFFLOAD)]),
    // A queue leaves its own tap and comes back to it; to another it cannot go.
    Call::only(libc::SYS_ioctl, &[Cond::is(1, tun::SET_QUEUE)]),
];

/// What opening one calls in addition, once locked in: what the descriptor is and how its headers are. Of the options
/// that a holder may set (persistence, owner, address, carrier, filters), none but these.
pub const OPENS: &[Call] = &[
    Call::any(libc::SYS_fstat),
    NEVER_WAITS,
    Call::only(libc::SYS_ioctl, &[Cond::is(1, tun::GET_INTERFACE)]),
    Call::only(libc::SYS_ioctl, &[Cond::is(1, tun::SET_VNET_LE)]),
    Call::only(libc::SYS_ioctl, &[Cond::is(1, tun::SET_VNET_HEADER)]),
    Call::only(libc::SYS_ioctl, &[Cond::is(1, tun::GET_VNET_HEADER)]),
];

/// Bytes beyond the MTU: Ethernet header and one VLAN tag.
const ETHER: u32 = 18;
/// Landing that surely holds a super-frame: what virtio 1.2 §5.1.6.3.1 has drivers offer (65562), less the header.
const SUPER_ROOM: u32 = 65550;
/// Parts of a write: virtio-net header, head, and the segments of the longest chain that ports give.
const PARTS: usize = 80;
/// Where in [`Tap::own`] the byte lies that only a frame longer than its room reaches.
const SPILL: u32 = 16;
/// Segmentation in any form: super-frames come.
const GSO: u16 = bits::TSO4 | bits::TSO6 | bits::USO;

/// One queue.
struct Tap {
    fd: OwnedFd,
    header: u8,
    mtu: u32,
    takes: Offloads,
    gives: Offloads,
    own: Buf,
    room: Vec<Seg>,
    burst: Option<Box<Burst>>,
    /// One of several queues, which can be taken out of use.
    parks: bool,
    /// Out of use.
    parked: bool,
    stats: Stats,
}

/// Opens the queues of a tap. Each descriptor is made non-blocking and set to leave nothing undone until the peer says
/// what it takes.
///
/// # Errors
/// A descriptor is no tap's, or not as the plan says.
pub fn open(plan: &Plan, fds: Vec<OwnedFd>) -> Result<Queues, OpenError> {
    let fail = |what| move |e: io::Error| OpenError { what, source: Some(e) };
    if fds.is_empty() || fds.len() != usize::from(plan.queues) {
        return Err(OpenError { what: "a tap needs one descriptor for each queue", source: None });
    }
    let mut queues = Queues::new();
    for fd in fds {
        let no_tap = |e: fdkind::NotThat| fail("a descriptor is no tap queue")(e.why);
        fdkind::attest(fd.as_fd(), FdKind::Tap).map_err(no_tap)?;
        let tap = fdkind::tap(fd.as_fd()).map_err(fail("the kernel does not say what tap this is"))?;
        let flag = |f: libc::c_int| i32::from(tap.flags) & f != 0;
        if !flag(libc::IFF_TAP) || !flag(libc::IFF_NO_PI) {
            return Err(OpenError {
                what: "a tap queue must carry bare Ethernet frames (IFF_TAP, IFF_NO_PI)",
                source: None,
            });
        }
        if flag(libc::IFF_VNET_HDR) != (plan.vnet_header != 0) {
            return Err(OpenError { what: "a tap's virtio-net header is not as was said", source: None });
        }
        let header = if flag(libc::IFF_VNET_HDR) {
            header_size(&fd).map_err(fail("a tap's header size"))?
        } else {
            0
        };
        let nonblock = FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK);
        fcntl(fd.as_fd(), nonblock).map_err(|e| fail("a tap queue cannot be made non-blocking")(e.into()))?;
        let takes = if header == 0 { Offloads::NONE } else { known(&fd) };
        tun::set_offload(fd.as_fd(), 0).map_err(fail("a tap's offloads cannot be set"))?;
        let own = Buf::new(SPILL + 1).map_err(fail("no memory for a tap queue"))?;
        let room = Vec::with_capacity(gather::MAX_PARTS);
        let (gives, stats, burst) = (Offloads::NONE, Stats::default(), Burst::open(fd.as_fd()));
        let parks = plan.queues > 1 && flag(libc::IFF_MULTI_QUEUE);
        // As another dataplane may have left it. In the queues' order, so that the kernel numbers them as we do.
        if flag(libc::IFF_DETACH_QUEUE) {
            tun::use_queue(fd.as_fd(), true).map_err(fail("a tap queue cannot be put back to use"))?;
        }
        let (mtu, parked) = (plan.mtu, false);
        queues.push(Box::new(Tap { fd, header, mtu, takes, gives, own, room, burst, parks, parked, stats }));
    }
    Ok(queues)
}

/// 12 bytes, little-endian, if the kernel lets us; else what it has.
fn header_size(fd: &OwnedFd) -> io::Result<u8> {
    let le = tun::set_vnet_le(fd.as_fd());
    if cfg!(target_endian = "big") {
        le?;
    }
    let twelve = u8::try_from(vnet::LEN).unwrap_or(u8::MAX);
    if tun::set_vnet_header(fd.as_fd(), twelve).is_ok() {
        return Ok(twelve);
    }
    match tun::vnet_header(fd.as_fd())? {
        10 => Ok(10),
        12 => Ok(12),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// What the kernel takes from us: all it knows. UDP segmentation is younger (6.2) and is found out by asking.
fn known(fd: &OwnedFd) -> Offloads {
    let uso = tun::set_offload(fd.as_fd(), tun_bits(Offloads(bits::CSUM | bits::USO))).is_ok();
    if uso { Offloads::ALL } else { Offloads(Offloads::ALL.0 & !bits::USO) }
}

/// Offloads as `TUN_F_*`. The kernel wants checksums with any other bit, and both USO bits together.
fn tun_bits(o: Offloads) -> u32 {
    let table = [
        (bits::TSO4, libc::TUN_F_TSO4),
        (bits::TSO6, libc::TUN_F_TSO6),
        (bits::ECN, libc::TUN_F_TSO_ECN),
        (bits::USO, libc::TUN_F_USO4 | libc::TUN_F_USO6),
    ];
    if !o.has(bits::CSUM) {
        return 0;
    }
    // ECN says something of TCP's segments; the kernel refuses it without them.
    let o = if o.0 & (bits::TSO4 | bits::TSO6) == 0 { Offloads(o.0 & !bits::ECN) } else { o };
    table.iter().filter(|(ours, _)| o.has(*ours)).fold(libc::TUN_F_CSUM, |all, (_, theirs)| all | theirs)
}

/// Errors after which the descriptor is good for nothing: the device is gone.
fn is_gone(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EBADFD | libc::EBADF | libc::ENODEV | libc::ENXIO))
}

fn is_wait(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EINTR | libc::ENOMEM | libc::ENOBUFS))
}

impl Tap {
    /// The largest frame that may come, and the room without which none is read.
    fn largest(&self) -> (u32, u32) {
        let plain = self.mtu.saturating_add(ETHER).min(MAX_SUPER);
        if self.gives.0 & GSO == 0 { (plain, plain) } else { (MAX_SUPER, SUPER_ROOM.max(plain)) }
    }

    /// Reads one frame into the landing. False: there is no more, or no more room.
    fn read_one(&mut self, b: &mut Batch) -> io::Result<bool> {
        let (max, need) = self.largest();
        let header = u32::from(self.header);
        self.room.clear();
        self.room.push(self.own.seg(0, header));
        let mut room = b.landing.room(max, &mut self.room);
        if self.room.len() >= gather::MAX_PARTS {
            // A guest that offers its memory in crumbs: the kernel takes only so many parts.
            self.room.truncate(gather::MAX_PARTS - 1);
            room = self.room.iter().skip(1).map(Seg::len).sum();
        }
        if room < need {
            b.landing.stop();
            return Ok(false);
        }
        self.room.push(self.own.seg(SPILL, 1));
        let got = match gather::readv(self.fd.as_fd(), &self.room) {
            Ok(n) => u32::try_from(n).unwrap_or(u32::MAX),
            Err(e) if is_wait(&e) => return Ok(false),
            Err(e) if e.raw_os_error() == Some(libc::EFAULT) => {
                // The taker's memory is not there any more; the kernel has thrown the frame away.
                self.stats.drop(Reason::Refused);
                b.landing.stop();
                return Ok(false);
            }
            Err(e) => return Err(e),
        };
        let Some(len) = got.checked_sub(header).filter(|&n| n > 0) else {
            self.stats.drop(Reason::Runt);
            return Ok(true);
        };
        if len > room {
            self.stats.drop(Reason::Oversize);
            return Ok(true);
        }
        self.give(b, len);
        Ok(true)
    }

    /// `len` bytes lie in the room: makes them a frame, head copied back to be judged.
    fn give(&mut self, b: &mut Batch, len: u32) {
        let mut raw = [0; vnet::LEN];
        self.own.seg(0, self.header.into()).copy_out(&mut raw);
        let vnet = Vnet::from_le(&raw);
        if vnet.check(len).is_err() {
            self.stats.drop(Reason::BadHeader);
            return;
        }
        let home = b.landing.land(len);
        let Some(f) = b.push() else { return };
        f.vnet = vnet;
        f.len = len;
        f.home = home;
        let mut left = len;
        // The first part is the header's, the last the spill's.
        let mut parts = self.room.iter().skip(1).map_while(|s| {
            let part = s.take(left);
            left -= part.len();
            (!part.is_empty()).then_some(part)
        });
        let mut in_head = 0;
        let rest = parts.by_ref().find_map(|s| {
            let n = f.head_append(&s);
            in_head += n;
            (n < s.len()).then(|| s.skip(n))
        });
        debug_assert!(in_head == len.min(u32::try_from(HEAD).unwrap_or(0)));
        rest.into_iter().chain(parts).for_each(|s| b.push_seg(s));
        self.stats.rx_frames += 1;
        self.stats.rx_bytes += u64::from(len);
    }

    fn sent(&mut self, f: &Frame) {
        self.stats.tx_frames += 1;
        self.stats.tx_bytes += u64::from(f.len);
    }

    /// Writes one frame. False: not now.
    fn write_alone(&mut self, f: &Frame, body: &[Seg]) -> io::Result<bool> {
        match self.write_one(f, body) {
            Ok(()) => self.sent(f),
            Err(e) if is_gone(&e) => return Err(e),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => return Ok(false),
            Err(_) => self.stats.drop(Reason::Refused),
        }
        Ok(true)
    }

    /// The header as the kernel gets it. A guest may not say that a checksum is verified (virtio 1.2 §5.1.6.2): the
    /// host's stack would believe it.
    fn header_of(&self, f: &Frame) -> [u8; vnet::LEN] {
        Vnet { flags: f.vnet.flags & F_NEEDS_CSUM, ..f.vnet }.to_le(0)
    }

    fn write_one(&self, f: &Frame, body: &[Seg]) -> io::Result<()> {
        let vnet = self.header_of(f);
        let header = vnet.get(..usize::from(self.header)).unwrap_or_default();
        if body.is_empty() {
            // In one piece: the kernel takes that faster than it takes a list of pieces.
            let mut flat = [0; vnet::LEN + HEAD];
            let len = header.len() + f.head().len();
            if let Some((h, rest)) = flat.split_at_mut_checked(header.len())
                && let Some(to) = rest.get_mut(..f.head().len())
            {
                h.copy_from_slice(header);
                to.copy_from_slice(f.head());
            }
            let flat = flat.get(..len).unwrap_or_default();
            return gather::write(self.fd.as_fd(), flat).map(|_| ());
        }
        let mut parts = gather::Gather::<PARTS>::new();
        if !(parts.private(header) && parts.private(f.head()) && parts.shared(body)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        parts.writev(self.fd.as_fd()).map(|_| ())
    }
}

impl Port for Tap {
    fn traits(&self) -> Traits {
        Traits {
            max_frame: self.mtu.saturating_add(ETHER),
            takes: self.takes,
            gives: self.gives,
            needs_memory: true,
            parks: self.parks,
            ..Traits::default()
        }
    }

    fn watch(&self, w: &mut Watch) {
        w.add(self.fd.as_raw_fd(), Interest::Gives);
        w.add(self.fd.as_raw_fd(), Interest::Takes);
    }

    fn peer_takes(&mut self, o: Offloads) {
        if self.header == 0 {
            return;
        }
        let o = if o.has(bits::CSUM) { o.and(self.takes) } else { Offloads::NONE };
        // If the kernel refuses, what it gave up to now stays so, and the lane finishes what the peer does not take.
        if tun::set_offload(self.fd.as_fd(), tun_bits(o)).is_ok() {
            self.gives = o;
        }
    }

    fn peer_spare(&mut self, spare: bool) {
        // If the kernel refuses, its frames go on coming by this queue, and the peer has to find them a ring.
        if self.parks && spare != self.parked && tun::use_queue(self.fd.as_fd(), !spare).is_ok() {
            self.parked = spare;
        }
    }

    fn recv(&mut self, b: &mut Batch) -> io::Result<()> {
        if self.burst.as_ref().is_some_and(|burst| burst.is_on()) {
            return self.read_burst(b);
        }
        while b.room() > 0 && b.landing.is_open() && self.read_one(b)? {}
        if let Some(burst) = &mut self.burst {
            let longest = b.frames().iter().map(|f| f.len).max().unwrap_or(0);
            burst.learn(b.len(), longest);
        }
        Ok(())
    }

    fn send(&mut self, b: &Batch) -> io::Result<usize> {
        if b.len() >= WORTH
            && let Some(mut burst) = self.burst.take_if(|burst| burst.writes)
        {
            let taken = self.write_burst(b, &mut burst);
            self.burst = Some(burst).filter(|burst| !burst.failed);
            return taken;
        }
        for (taken, f) in b.frames().iter().enumerate() {
            if !f.dropped && !self.write_alone(f, b.body(f))? {
                return Ok(taken);
            }
        }
        Ok(b.frames().len())
    }

    fn stats(&self) -> Stats {
        self.stats
    }

    fn stats_mut(&mut self) -> &mut Stats {
        &mut self.stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offloads_as_the_kernel_has_them() {
        assert_eq!(tun_bits(Offloads::NONE), 0);
        assert_eq!(tun_bits(Offloads(bits::TSO4)), 0, "segments need checksums");
        assert_eq!(tun_bits(Offloads(bits::CSUM)), 1);
        assert_eq!(tun_bits(Offloads::ALL), 0x6f);
        assert_eq!(tun_bits(Offloads(bits::CSUM | bits::ECN)), 1, "the kernel refuses ECN without segments");
    }

    #[test]
    fn what_is_no_tap_is_refused() {
        let plan = Plan { queues: 1, vnet_header: 12, mtu: 1500 };
        assert!(open(&plan, vec![]).is_err());
        for path in ["/dev/null", "/dev/zero", "/proc/self/status"] {
            let fd = OwnedFd::from(std::fs::File::open(path).unwrap());
            assert!(open(&plan, vec![fd]).is_err(), "{path}");
        }
    }
}
