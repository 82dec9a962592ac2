//! The other end of a veth pair, through a packet socket.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use netreeve_shared::mac::Mac;
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use crate::support::show;

/// IEEE's EtherType for local experiments: no stack answers to it.
pub(crate) const ETHERTYPE: u16 = 0x88b5;

pub(crate) struct Far(OwnedFd);

impl Far {
    pub(crate) fn new(interface: &str) -> Self {
        let index = i32::try_from(show(interface)["ifindex"].as_i64().unwrap()).unwrap();
        let (all, kind) = (u16::to_be(0x0003), libc::SOCK_RAW | libc::SOCK_CLOEXEC);
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, all.into()) };
        assert!(fd >= 0);
        // SAFETY: just made.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: a structure of integers.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
        (address.sll_protocol, address.sll_ifindex) = (all, index);
        let size = libc::socklen_t::try_from(size_of_val(&address)).unwrap();
        // SAFETY: `size` readable bytes.
        assert_eq!(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size) }, 0);
        let one = 1_i32;
        // SAFETY: four readable bytes.
        let answer = unsafe {
            let option = libc::PACKET_IGNORE_OUTGOING;
            libc::setsockopt(fd.as_raw_fd(), libc::SOL_PACKET, option, (&raw const one).cast(), 4)
        };
        assert_eq!(answer, 0);
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(0, 50_000)).unwrap();
        Self(fd)
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        assert_eq!(send(self.0.as_raw_fd(), frame, MsgFlags::empty()).unwrap(), frame.len());
    }

    /// The next frame that `wanted` likes.
    pub(crate) fn receive(&self, wait: Duration, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let (until, mut buffer) = (Instant::now() + wait, vec![0; 70_000]);
        while Instant::now() < until {
            if let Ok(got) = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())
                && wanted(&buffer[..got])
            {
                return Some(buffer[..got].to_vec());
            }
        }
        None
    }

    /// Pings `address` at `to` once; true if the answer comes.
    pub(crate) fn ping(&self, to: Mac, from: Mac, address: [u8; 4], own: [u8; 4]) -> bool {
        let mut icmp = [8, 0, 0, 0, 0x4e, 0x54, 0, 1];
        let sum = checksum(&icmp).to_be_bytes();
        icmp[2..4].copy_from_slice(&sum);
        let mut ip = [0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        ip[12..16].copy_from_slice(&own);
        ip[16..20].copy_from_slice(&address);
        let sum = checksum(&ip).to_be_bytes();
        ip[10..12].copy_from_slice(&sum);
        self.send(&[&to.0[..], &from.0, &[8, 0], &ip, &icmp].concat());
        let answer = |f: &[u8]| f.len() >= 42 && f[12..14] == [8, 0] && f[26..30] == address && f[34] == 0;
        self.receive(Duration::from_secs(1), answer).is_some()
    }
}

fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|b| u32::from(u16::from_be_bytes([b[0], b[1]]))).sum();
    !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
}

/// A frame of `bytes` bytes whose payload tells `tag`.
pub(crate) fn frame(to: Mac, tag: u8, bytes: usize) -> Vec<u8> {
    let mut frame = [&to.0[..], &[2, 0, 0, 0, 0, 0x77], &ETHERTYPE.to_be_bytes()].concat();
    frame.extend((frame.len()..bytes).map(|i| tag.wrapping_add(i.to_le_bytes()[0])));
    frame
}
