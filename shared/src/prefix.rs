//! A block of IP addresses, as policies write it: `192.0.2.0/24`, `2001:db8::/32`, or one address.
//!
//! Promise: a prefix whose address has bits beyond its length is refused, so each block has one spelling; IPv4 and IPv6
//! are strangers to each other (an IPv4 address in IPv6's form is none of IPv4's).
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::str::FromStr;

/// A block of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    first: IpAddr,
    bits: u8,
}

/// A text is no prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotPrefix;

impl Prefix {
    /// Whether the address is one of the block.
    #[must_use]
    pub fn holds(&self, address: IpAddr) -> bool {
        let beyond = u32::from(128 - self.bits);
        let differs = (word(self.first) ^ word(address)).checked_shr(beyond).unwrap_or(0);
        self.first.is_ipv4() == address.is_ipv4() && differs == 0
    }

    /// The same of an address that a socket is bound to: the unspecified one is all of its family's, so a block covers it
    /// that is all, or it alone.
    #[must_use]
    pub fn covers(&self, address: IpAddr) -> bool {
        let part = self.bits > 0 && self.bits < width(self.first);
        self.holds(address) && !(part && address.is_unspecified())
    }

    /// Its address, if it is one alone.
    #[must_use]
    pub fn single(&self) -> Option<IpAddr> {
        (self.bits == width(self.first)).then_some(self.first)
    }

    /// Whether it is of IPv6.
    #[must_use]
    pub fn is_ipv6(&self) -> bool {
        self.first.is_ipv6()
    }
}

impl FromStr for Prefix {
    type Err = NotPrefix;

    fn from_str(text: &str) -> Result<Self, NotPrefix> {
        let (address, length) = text.split_once('/').map_or((text, None), |(a, n)| (a, Some(n)));
        let first: IpAddr = address.parse().map_err(|_| NotPrefix)?;
        let digits = |n: &str| n.bytes().all(|b| b.is_ascii_digit()).then(|| n.parse().ok())?;
        let bits: u8 = length.map_or(Some(width(first)), digits).ok_or(NotPrefix)?;
        let beyond = word(first).checked_shl(u32::from(bits)).unwrap_or(0);
        if bits > width(first) || beyond != 0 { Err(NotPrefix) } else { Ok(Self { first, bits }) }
    }
}

/// Bits of an address.
fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address in the high bits.
fn word(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(a.to_bits()) << 96,
        IpAddr::V6(a) => a.to_bits(),
    }
}

impl std::fmt::Display for NotPrefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no address or prefix (192.0.2.1, 192.0.2.0/24, 2001:db8::/32), or one with bits beyond its length")
    }
}

impl std::error::Error for NotPrefix {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_hold_what_begins_alike_and_nothing_of_the_other_family() {
        for (prefix, address, yes) in [
            ("192.0.2.0/24", "192.0.2.255", true),
            ("192.0.2.0/24", "192.0.3.0", false),
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.0", false),
            ("192.0.2.0/31", "192.0.2.1", true),
            ("192.0.2.0/31", "192.0.2.2", false),
            ("0.0.0.0/0", "255.255.255.255", true),
            ("0.0.0.0/0", "::", false),
            ("::/0", "0.0.0.0", false),
            ("::/0", "::ffff:192.0.2.1", true),
            ("192.0.2.1", "::ffff:192.0.2.1", false),
            ("2001:db8::/32", "2001:db8:ffff::1", true),
            ("2001:db8::/32", "2001:db9::", false),
            ("2001:db8::1", "2001:db8::1", true),
            ("2001:db8::1", "2001:db8::3", false),
            ("128.0.0.0/1", "200.0.0.1", true),
            ("128.0.0.0/1", "100.0.0.1", false),
        ] {
            let block: Prefix = prefix.parse().unwrap();
            assert_eq!(block.holds(address.parse().unwrap()), yes, "{prefix} {address}");
            assert_eq!(block.single().is_some(), !prefix.contains('/'), "{prefix}");
        }
    }

    #[test]
    fn every_address_at_once_is_no_part() {
        for (prefix, address, yes) in [
            ("0.0.0.0/8", "0.0.0.0", false),
            ("0.0.0.0/8", "0.0.0.1", true),
            ("0.0.0.0/1", "0.0.0.0", false),
            ("0.0.0.0/0", "0.0.0.0", true),
            ("0.0.0.0", "0.0.0.0", true),
            ("::/64", "::", false),
            ("::/64", "::1", true),
            ("::/0", "::", true),
            ("::", "::", true),
            ("::/0", "0.0.0.0", false),
        ] {
            let block: Prefix = prefix.parse().unwrap();
            assert_eq!(block.covers(address.parse().unwrap()), yes, "{prefix} {address}");
        }
    }

    #[test]
    fn other_spellings_are_none() {
        for text in [
            "",
            "/",
            "1",
            "1.2.3",
            "1.2.3.4/",
            "1.2.3.4/33",
            "1.2.3.4/+8",
            "1.2.3.4/24",
            "1.0.0.0/-8",
            "1.0.0.0/8/8",
            "::1/129",
            "::1/64",
            "::/256",
            "fe80::1%eth0",
            "host",
            "01.2.3.4",
            "1.2.3.4/032 ",
        ] {
            assert_eq!(text.parse::<Prefix>(), Err(NotPrefix), "{text}");
        }
    }
}
