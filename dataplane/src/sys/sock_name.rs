//! Internet addresses as the kernel has them (`struct sockaddr_in`, `struct sockaddr_in6`).
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// An address as the kernel has it.
#[repr(C, align(8))]
pub(super) struct Name {
    pub(super) raw: [u8; 28],
    pub(super) len: libc::socklen_t,
}

impl Name {
    pub(super) fn room() -> Self {
        Self { raw: [0; 28], len: 28 }
    }

    pub(super) fn of(a: SocketAddr) -> Self {
        let mut raw = [0; 28];
        let family = if a.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let family = u16::try_from(family).unwrap_or(0).to_ne_bytes();
        let port = a.port().to_be_bytes();
        let scope = match a {
            SocketAddr::V4(_) => [0; 4],
            SocketAddr::V6(a) => a.scope_id().to_ne_bytes(),
        };
        let (four, six) = match a.ip() {
            IpAddr::V4(a) => (a.octets(), [0; 16]),
            IpAddr::V6(a) => ([0; 4], a.octets()),
        };
        let fields = family.into_iter().chain(port).chain(four).chain(six).chain(scope);
        raw.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        Self { raw, len: if a.is_ipv4() { 16 } else { 28 } }
    }

    pub(super) fn get(&self) -> Option<SocketAddr> {
        let [f0, f1, p0, p1, a0, a1, a2, a3, v6 @ ..] = self.raw;
        let port = u16::from_be_bytes([p0, p1]);
        match i32::from(u16::from_ne_bytes([f0, f1])) {
            libc::AF_INET => Some(SocketAddr::new(Ipv4Addr::new(a0, a1, a2, a3).into(), port)),
            libc::AF_INET6 => {
                let address = Ipv6Addr::from(*v6.first_chunk::<16>()?);
                let scope = u32::from_ne_bytes(*v6.get(16..)?.first_chunk()?);
                Some(match address.to_ipv4_mapped() {
                    Some(a) => SocketAddr::new(a.into(), port),
                    None => SocketAddrV6::new(address, port, 0, scope).into(),
                })
            }
            _ => None,
        }
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut libc::sockaddr {
        self.raw.as_mut_ptr().cast()
    }

    pub(super) fn as_ptr(&self) -> *const libc::sockaddr {
        self.raw.as_ptr().cast()
    }
}
