//! netreeve's XDP program, compiled, and the names in it.
//!
//! The source is `redirect.bpf.c`: it gives a guest's frames to the AF_XDP socket of their receive queue and passes
//! everything else to the host. Trust: nothing here runs; the helper loads [`object`].
//! Promise: the names and the layout below are those of the source; a test loads the object and asks for each.
#![forbid(unsafe_code)]

/// The object file, aligned so that ELF's structures can be read in place.
#[repr(C, align(16))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/redirect.bpf.o")));

/// The compiled object (ELF with BTF), for `bpf_object__open_mem`.
#[must_use]
pub fn object() -> &'static [u8] {
    &OBJECT.0
}

/// XSKMAP: receive queue, counted from [`Config::first_queue`], to socket. Its size is set before loading.
pub const SOCKETS: &str = "sockets";
/// Hash of the guest's addresses: key of 8 bytes (the address, two zeros), value of one byte without meaning.
pub const STATIONS: &str = "stations";
/// Per-CPU array of `u64` counts of frames that were left to the host, indexed by [`Verdict`].
pub const VERDICTS: &str = "verdicts";
/// Read-only data: one [`Config`], set before loading.
pub const CONFIG: &str = ".rodata.config";
/// The program for frames of one buffer (`SEC("xdp")`).
pub const REDIRECT: &str = "redirect";
/// The program for frames of several buffers too (`SEC("xdp.frags")`, kernel 5.18).
pub const REDIRECT_FRAGS: &str = "redirect_frags";

/// Why a frame was left to the host's stack: index into [`VERDICTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Verdict {
    /// Not for the guest.
    Passed = 0,
    /// For the guest, but its queue has no socket.
    NoSocket = 1,
    /// No whole Ethernet header.
    Short = 2,
}

/// Which frames are the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Receive queue of the first socket.
    pub first_queue: u32,
    /// Every frame; the other fields and [`STATIONS`] are not asked.
    pub all: bool,
    /// Broadcast frames too.
    pub broadcast: bool,
    /// Multicast frames too.
    pub multicast: bool,
}

impl Config {
    /// `struct config` as the program reads it.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 8] {
        let [a, b, c, d] = self.first_queue.to_ne_bytes();
        [a, b, c, d, self.all.into(), self.broadcast.into(), self.multicast.into(), 0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_is_an_elf_file_for_the_bpf_machine_and_says_its_licence() {
        let elf = object();
        assert_eq!(&elf[..4], b"\x7fELF");
        assert_eq!(u16::from_ne_bytes([elf[18], elf[19]]), 247, "e_machine is EM_BPF");
        assert!(elf.windows(12).any(|w| w == b"Dual BSD/GPL"));
        for name in [SOCKETS, STATIONS, VERDICTS, CONFIG, REDIRECT, REDIRECT_FRAGS] {
            let symbol = [name.as_bytes(), b"\0"].concat();
            assert!(elf.windows(symbol.len()).any(|w| w == symbol), "{name} is in the object");
        }
    }

    #[test]
    fn config_bytes_follow_the_c_structure() {
        let config = Config { first_queue: 0x0102_0304, all: false, broadcast: true, multicast: false };
        assert_eq!(config.to_bytes()[..4], 0x0102_0304_u32.to_ne_bytes());
        assert_eq!(config.to_bytes()[4..], [0, 1, 0, 0]);
    }
}
