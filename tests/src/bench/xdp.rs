//! XDP without a library: the two programs that the benches need, and an in-kernel frame generator.
//!
//! Independent of netreeve's own BPF object on purpose: a raw limit measured with our own program would hide its cost.

use std::io;
use std::os::fd::OwnedFd;

use crate::sys;

const DEVMAP: u32 = 14;
const XSKMAP: u32 = 17;
const REDIRECT_MAP: u32 = 51;
const DROP: u32 = 1;

/// One BPF instruction (linux/bpf.h `struct bpf_insn`).
const fn insn(code: u8, dst: u8, src: u8, off: u16, imm: u32) -> u64 {
    (code as u64) | (dst as u64) << 8 | (src as u64) << 12 | (off as u64) << 16 | (imm as u64) << 32
}

/// How a program sits on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver.
    Native,
    /// In the stack, after a socket buffer was made.
    Skb,
}

impl Mode {
    /// As QEMU's `mode=` spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Skb => "skb",
        }
    }

    /// XDP_FLAGS_DRV_MODE or XDP_FLAGS_SKB_MODE.
    fn flags(self) -> u32 {
        match self {
            Self::Native => 4,
            Self::Skb => 2,
        }
    }
}

/// `redirect_map(map, key, DROP)`; the key is the receive queue or 0.
fn redirect(map: &OwnedFd, by_queue: bool) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let fd = map.as_raw_fd().unsigned_abs();
    let key = if by_queue { insn(0x61, 2, 1, 16, 0) } else { insn(0xb7, 2, 0, 0, 0) };
    sys::bpf_prog(&[
        key,
        insn(0x18, 1, 1, 0, fd), // r1 = map, two instructions
        insn(0, 0, 0, 0, 0),
        insn(0xb7, 3, 0, 0, DROP),
        insn(0x85, 0, 0, 0, REDIRECT_MAP),
        insn(0x95, 0, 0, 0, 0),
    ])
}

/// A program that gives queue 0's frames to one AF_XDP socket, attached while this lives.
#[derive(Debug)]
pub struct ToSocket {
    _link: OwnedFd,
}

impl ToSocket {
    /// Puts `xsk` into a map and attaches the program.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn attach(xsk: &OwnedFd, ifindex: u32, mode: Mode) -> io::Result<Self> {
        use std::os::fd::AsRawFd;
        let map = sys::bpf_map(XSKMAP, 1)?;
        sys::bpf_map_set(&map, 0, xsk.as_raw_fd().unsigned_abs())?;
        let prog = redirect(&map, true)?;
        Ok(Self { _link: sys::bpf_link(&prog, ifindex, mode.flags())? })
    }
}

/// A source of frames towards an interface.
#[derive(Debug)]
pub enum Gen {
    /// Inside the kernel, without socket buffers: several times what any reader here takes.
    Kernel {
        /// Redirects to the interface.
        prog: OwnedFd,
    },
    /// A packet socket's, through the driver's ordinary transmit function.
    Packet {
        /// Bound to the interface.
        socket: OwnedFd,
    },
}

/// Frames that a generator sends at a time. In the kernel a stretch costs tens of milliseconds, of waiting, to begin and
/// to end.
const STRETCH: u32 = 1 << 19;

impl Gen {
    /// The kernel's generator, out of this interface.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn kernel(ifindex: u32) -> io::Result<Self> {
        let map = sys::bpf_map(DEVMAP, 1)?;
        sys::bpf_map_set(&map, 0, ifindex)?;
        Ok(Self::Kernel { prog: redirect(&map, false)? })
    }

    /// A packet socket's, out of this interface.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn packet(ifindex: u32) -> io::Result<Self> {
        Ok(Self::Packet { socket: sys::packet_socket(ifindex)? })
    }

    /// Sends many frames and says how many; those that find no room in the device's ring are lost there.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn send(&self, frame: &[u8]) -> io::Result<u32> {
        match self {
            Self::Kernel { prog } => sys::bpf_run_live(prog, frame, STRETCH).map(|()| STRETCH),
            Self::Packet { socket } => {
                let n = sys::packet_send(socket, frame);
                Ok(u32::try_from(n).map_or(0, |n| if n < 64 { n + 1 } else { n }))
            }
        }
    }
}
