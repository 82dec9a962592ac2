//! Addresses for guests: 16 of each family (QEMU's number), given by Ethernet address.
//!
//! The Ethernet address is the key, not the client's own identifier, as in QEMU: firmware, installer and system of one
//! machine name themselves differently and shall have one address, the one that forwards lead to.
//!
//! Trust: none: a guest can name any Ethernet address. Promise: whoever does so uses up this pool and nothing else; an
//! address belongs to one at a time.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use netreeve_shared::mac::Mac;

use super::conf::{LEASE, POOL};

/// How long an offer stands.
const OFFER: Duration = Duration::from_secs(60);
/// How long an address is left alone that somebody else was found to use.
const DECLINED: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, Debug)]
struct Place {
    /// Whose it is, or was last. None: nobody's, or that of somebody unknown.
    mac: Option<Mac>,
    /// Until when.
    until: Instant,
}

/// The pool of one family. Addresses are numbers from 0.
#[derive(Debug)]
pub struct Leases {
    places: [Option<Place>; POOL as usize],
    usable: u16,
}

impl Leases {
    /// All are free whose bit in `usable` is set: some addresses of the range may be ours.
    #[must_use]
    pub fn new(usable: u16) -> Self {
        Self { places: [None; POOL as usize], usable }
    }

    fn usable(&self, number: u8) -> bool {
        self.usable.checked_shr(number.into()).unwrap_or(0) & 1 == 1
    }

    fn numbered(&self) -> impl Iterator<Item = (u8, &Option<Place>)> {
        (0..POOL).zip(&self.places).filter(|(n, _)| self.usable(*n))
    }

    fn set(&mut self, number: u8, place: Option<Place>) {
        if let Some(p) = self.places.get_mut(usize::from(number)) {
            *p = place;
        }
    }

    /// The address that `mac` has, or had last and nobody took since.
    #[must_use]
    pub fn of(&self, mac: Mac) -> Option<u8> {
        self.numbered().find(|(_, p)| p.is_some_and(|p| p.mac == Some(mac))).map(|(n, _)| n)
    }

    /// `mac` may have `number`: it is its own or nobody's.
    #[must_use]
    pub fn may(&self, mac: Mac, number: u8, now: Instant) -> bool {
        let place = self.places.get(usize::from(number)).filter(|_| self.usable(number));
        place.is_some_and(|p| p.is_none_or(|p| p.mac == Some(mac) || p.until <= now))
    }

    /// Offers an address: the one that `mac` has, the one that it wants, the first that nobody ever had, the one that has
    /// been free for longest. None: all are in use.
    pub fn offer(&mut self, mac: Mac, want: Option<u8>, now: Instant) -> Option<u8> {
        if let Some(has) = self.of(mac) {
            let until = self.places.get(usize::from(has)).and_then(|p| *p).map_or(now, |p| p.until);
            self.set(has, Some(Place { mac: Some(mac), until: until.max(now + OFFER) }));
            return Some(has);
        }
        let fresh = || self.numbered().find(|(_, p)| p.is_none()).map(|(n, _)| n);
        let oldest = || {
            let gone =
                self.numbered().filter_map(|(n, p)| p.map(|p| (n, p.until))).filter(|(_, t)| *t <= now);
            gone.min_by_key(|(_, t)| *t).map(|(n, _)| n)
        };
        let number = want.filter(|n| self.may(mac, *n, now)).or_else(fresh).or_else(oldest)?;
        self.set(number, Some(Place { mac: Some(mac), until: now + OFFER }));
        Some(number)
    }

    /// Gives `number` to `mac` for [`LEASE`]. False: it is somebody else's.
    pub fn give(&mut self, mac: Mac, number: u8, now: Instant) -> bool {
        if !self.may(mac, number, now) {
            return false;
        }
        if let Some(other) = self.of(mac).filter(|n| *n != number) {
            self.set(other, None);
        }
        self.set(number, Some(Place { mac: Some(mac), until: now + Duration::from_secs(LEASE.into()) }));
        true
    }

    /// `mac` does not need its address any more; it gets the same one if it comes again before somebody else does.
    pub fn release(&mut self, mac: Mac, number: u8, now: Instant) {
        if self.of(mac) == Some(number) {
            self.set(number, Some(Place { mac: Some(mac), until: now }));
        }
    }

    /// `mac` found its address in use by somebody.
    pub fn decline(&mut self, mac: Mac, number: u8, now: Instant) {
        if self.of(mac) == Some(number) {
            self.set(number, Some(Place { mac: None, until: now + DECLINED }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(n: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, n])
    }

    #[test]
    fn one_machine_has_one_address() {
        let (mut l, now) = (Leases::new(u16::MAX), Instant::now());
        assert_eq!(l.offer(mac(1), None, now), Some(0));
        assert!(l.give(mac(1), 0, now));
        assert_eq!(l.offer(mac(1), Some(5), now), Some(0));
        assert_eq!(l.offer(mac(2), Some(5), now), Some(5));
        assert_eq!(l.offer(mac(3), Some(0), now), Some(1));
        assert!(!l.give(mac(2), 0, now));
        // Another one that is free is its own from then on.
        assert!(l.give(mac(2), 7, now));
        assert_eq!(l.of(mac(2)), Some(7));
        assert!(l.may(mac(4), 5, now));
        assert!(!l.may(mac(4), 16, now) && !l.give(mac(4), 200, now));
    }

    #[test]
    fn all_are_given_and_come_back() {
        let (mut l, now) = (Leases::new(u16::MAX), Instant::now());
        for n in 0..16 {
            assert_eq!(l.offer(mac(n), None, now), Some(n));
            assert!(l.give(mac(n), n, now));
        }
        assert_eq!(l.offer(mac(99), None, now), None);
        assert_eq!(l.offer(mac(99), Some(3), now), None);
        l.release(mac(5), 4, now);
        assert_eq!(l.offer(mac(99), None, now), None, "released by another");
        l.release(mac(4), 4, now);
        l.release(mac(5), 5, now + OFFER);
        assert_eq!(l.offer(mac(4), None, now), Some(4), "its own again");
        l.release(mac(4), 4, now + OFFER * 2);
        assert_eq!(l.offer(mac(99), None, now + OFFER * 3), Some(5), "free for longest");
        let later = now + Duration::from_secs(LEASE.into());
        assert_eq!(l.offer(mac(98), Some(9), later), Some(9));
    }

    #[test]
    fn what_is_ours_is_never_given() {
        let (mut l, now) = (Leases::new(0b1010), Instant::now());
        assert_eq!(l.offer(mac(1), Some(0), now), Some(1));
        assert_eq!(l.offer(mac(2), Some(2), now), Some(3));
        assert_eq!(l.offer(mac(3), None, now), None);
        assert!(!l.give(mac(3), 2, now));
    }

    #[test]
    fn declined_addresses_rest() {
        let (mut l, now) = (Leases::new(u16::MAX), Instant::now());
        l.offer(mac(1), None, now);
        l.decline(mac(2), 0, now);
        assert_eq!(l.of(mac(1)), Some(0), "declined by another");
        l.decline(mac(1), 0, now);
        assert_eq!(l.offer(mac(1), Some(0), now), Some(1));
        assert!(l.may(mac(3), 0, now + DECLINED));
    }
}
