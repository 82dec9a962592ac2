//! The virtio-net header: what rides before a frame and says which work is left to do on it.
//!
//! Source: virtio 1.2 §5.1.6 (`struct virtio_net_hdr`, 12 bytes with `num_buffers`), `linux/virtio_net.h`. The same
//! header stands before frames of a tap with `IFF_VNET_HDR` (10 bytes, or as set by `TUNSETVNETHDRSZ`).
//! Trust: a header may come from a hostile guest; [`Vnet::check`] bounds every field by the frame before anybody
//! uses one.
#![forbid(unsafe_code)]

/// Bytes of the header with `num_buffers`.
pub const LEN: usize = 12;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum field holds only the pseudo-header's sum.
pub const F_NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`: the checksum was verified.
pub const F_DATA_VALID: u8 = 2;

/// `VIRTIO_NET_HDR_GSO_NONE`.
pub const GSO_NONE: u8 = 0;
/// `VIRTIO_NET_HDR_GSO_TCPV4`.
pub const GSO_TCPV4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_UDP`: IPv4 fragmentation (UFO), long gone from Linux guests.
pub const GSO_UDP: u8 = 3;
/// `VIRTIO_NET_HDR_GSO_TCPV6`.
pub const GSO_TCPV6: u8 = 4;
/// `VIRTIO_NET_HDR_GSO_UDP_L4`: UDP segmentation (USO).
pub const GSO_UDP_L4: u8 = 5;
/// `VIRTIO_NET_HDR_GSO_ECN`: a bit beside the type.
pub const GSO_ECN: u8 = 0x80;

/// A virtio-net header in host byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vnet {
    /// `VIRTIO_NET_HDR_F_*`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`.
    pub gso_type: u8,
    /// Bytes of Ethernet, IP and TCP or UDP headers: a hint, never trusted.
    pub hdr_len: u16,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    /// Where the checksummed bytes start, counted from the frame's first byte.
    pub csum_start: u16,
    /// Where the checksum goes, counted from `csum_start`.
    pub csum_offset: u16,
}

/// Why a header cannot stand for its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadVnet {
    /// The checksum's place lies outside the frame.
    Checksum,
    /// Unknown segmentation type, or a segment size of zero.
    Gso,
}

impl Vnet {
    /// Reads the little-endian form. `num_buffers` is not kept: it belongs to the receiving ring.
    #[must_use]
    pub fn from_le(b: &[u8; LEN]) -> Self {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, _, _] = *b;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
        }
    }

    /// Writes the little-endian form with `num_buffers`.
    #[must_use]
    pub fn to_le(&self, num_buffers: u16) -> [u8; LEN] {
        let (low, high) = self.words(num_buffers);
        let [f, t, h0, h1, g0, g1, s0, s1] = low.to_le_bytes();
        let [o0, o1, n0, n1] = high.to_le_bytes();
        [f, t, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1]
    }

    /// The same as two words: who writes it to memory in smaller parts and copies it on waits for them to come together.
    #[must_use]
    #[inline]
    pub fn words(&self, num_buffers: u16) -> (u64, u32) {
        let low = u64::from(self.flags)
            | u64::from(self.gso_type) << 8
            | u64::from(self.hdr_len) << 16
            | u64::from(self.gso_size) << 32
            | u64::from(self.csum_start) << 48;
        (low, u32::from(self.csum_offset) | u32::from(num_buffers) << 16)
    }

    /// The segmentation type without the ECN bit.
    #[must_use]
    pub fn gso(&self) -> u8 {
        self.gso_type & !GSO_ECN
    }

    /// The checksum is still to be completed.
    #[must_use]
    pub fn needs_csum(&self) -> bool {
        self.flags & F_NEEDS_CSUM != 0
    }

    /// No work is left on the frame.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.gso_type == GSO_NONE && !self.needs_csum()
    }

    /// Bounds the fields by a frame of `len` bytes. Segmentation implies checksumming (virtio 1.2 §5.1.6.2).
    ///
    /// # Errors
    /// Which group of fields is wrong.
    pub fn check(&self, len: u32) -> Result<(), BadVnet> {
        if self.needs_csum() && u32::from(self.csum_start) + u32::from(self.csum_offset) + 2 > len {
            return Err(BadVnet::Checksum);
        }
        match self.gso() {
            GSO_NONE if self.gso_type == GSO_NONE => Ok(()),
            GSO_TCPV4 | GSO_TCPV6 | GSO_UDP | GSO_UDP_L4 if self.gso_size == 0 => Err(BadVnet::Gso),
            GSO_TCPV4 | GSO_TCPV6 | GSO_UDP_L4 if self.needs_csum() => Ok(()),
            GSO_UDP => Ok(()),
            _ => Err(BadVnet::Gso),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let v = Vnet {
            flags: 1,
            gso_type: GSO_TCPV6,
            hdr_len: 74,
            gso_size: 1440,
            csum_start: 54,
            csum_offset: 16,
        };
        assert_eq!(Vnet::from_le(&v.to_le(3)), v);
        assert_eq!(v.to_le(3)[10..], [3, 0]);
    }

    #[test]
    fn fields_are_bounded_by_the_frame() {
        let v = Vnet { flags: F_NEEDS_CSUM, csum_start: 34, csum_offset: 16, ..Vnet::default() };
        assert_eq!(v.check(52), Ok(()));
        assert_eq!(v.check(51), Err(BadVnet::Checksum));
        let far = Vnet { csum_start: u16::MAX, csum_offset: u16::MAX, ..v };
        assert_eq!(far.check(69632), Err(BadVnet::Checksum));
        let gso = Vnet { gso_type: GSO_TCPV4, ..v };
        assert_eq!(gso.check(1514), Err(BadVnet::Gso));
        assert_eq!(Vnet { gso_size: 1448, ..gso }.check(1514), Ok(()));
        assert_eq!(Vnet { gso_size: 1448, flags: 0, ..gso }.check(1514), Err(BadVnet::Gso));
        assert_eq!(Vnet { gso_type: GSO_ECN, ..v }.check(1514), Err(BadVnet::Gso));
        assert_eq!(Vnet { gso_type: 2, gso_size: 1, ..v }.check(1514), Err(BadVnet::Gso));
    }
}
