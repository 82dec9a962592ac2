//! Which member of a hub an address was last seen at.
//!
//! Trust: none in whoever sends. Promise: each member has only so many entries, however many addresses it makes up, so
//! none can push out another's; what was not seen for long is forgotten. Times are seconds since the hub was made.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use super::Learning;

/// An address.
pub(super) type Mac = [u8; 6];

/// What is known of one address.
#[derive(Clone, Copy, Debug)]
struct Entry {
    member: usize,
    seen: u32,
    ageing: u32,
}

impl Entry {
    fn is_old(&self, now: u32) -> bool {
        now.saturating_sub(self.seen) >= self.ageing
    }
}

/// The table. Its map's keys are hashed with a secret, so that nobody can choose addresses that collide.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: HashMap<Mac, Entry>,
    /// Each member's.
    parts: Vec<Part>,
    /// Entries that there may be.
    most: usize,
}

/// One member's part of the table.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    entries: u16,
    /// When its old entries were last looked for.
    swept: u32,
}

impl Table {
    /// Room for one more member's entries.
    pub(super) fn reserve(&mut self, l: Learning) {
        self.most += usize::from(l.most);
        // Twice as many: a map that is at most half full tidies itself up in place.
        self.entries.reserve((2 * self.most).saturating_sub(self.entries.len()));
    }

    /// A member that had room does not need it any more.
    pub(super) fn unreserve(&mut self, l: Learning) {
        self.most -= usize::from(l.most);
    }

    #[allow(clippy::indexing_slicing, reason = "resized just before")]
    fn part(&mut self, member: usize) -> &mut Part {
        if self.parts.len() <= member {
            self.parts.resize(member + 1, Part::default());
        }
        &mut self.parts[member]
    }

    /// `source` was seen at `member`. True: what is known has changed.
    pub(super) fn learn(&mut self, member: usize, source: Mac, l: Learning, now: u32) -> bool {
        if source[0] & 1 != 0 {
            // Nobody's own address.
            return false;
        }
        if let Some(e) = self.entries.get_mut(&source)
            && e.member == member
        {
            // One that was forgotten in fact, though not yet in name, is news.
            let news = e.is_old(now);
            (e.seen, e.ageing) = (now, l.ageing);
            return news;
        }
        let moved = self.forget(&source);
        if self.part(member).entries >= l.most && !self.sweep(member, now) {
            return moved;
        }
        self.part(member).entries += 1;
        self.entries.insert(source, Entry { member, seen: now, ageing: l.ageing });
        true
    }

    fn forget(&mut self, mac: &Mac) -> bool {
        let Some(old) = self.entries.remove(mac) else { return false };
        self.part(old.member).entries -= 1;
        true
    }

    /// Forgets a full member's old entries, once a second at most. True: there is room now.
    fn sweep(&mut self, member: usize, now: u32) -> bool {
        if std::mem::replace(&mut self.part(member).swept, now) == now {
            return false;
        }
        let before = self.entries.len();
        self.entries.retain(|_, e| e.member != member || !e.is_old(now));
        let gone = u16::try_from(before - self.entries.len()).unwrap_or(u16::MAX);
        let part = self.part(member);
        part.entries = part.entries.saturating_sub(gone);
        gone > 0
    }

    /// The member that has this address, if it is known.
    pub(super) fn find(&self, mac: Mac, now: u32) -> Option<usize> {
        self.entries.get(&mac).filter(|e| !e.is_old(now)).map(|e| e.member)
    }

    /// Forgets all of a member's addresses.
    pub(super) fn flush(&mut self, member: usize) {
        if self.part(member).entries > 0 {
            self.entries.retain(|_, e| e.member != member);
        }
        *self.part(member) = Part::default();
    }

    /// Entries of a member, old ones included.
    #[cfg(test)]
    pub(super) fn known(&self, member: usize) -> usize {
        self.parts.get(member).map_or(0, |p| p.entries.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const L: Learning = Learning { ageing: 300, most: 4 };

    fn mac(n: u8) -> Mac {
        [2, 0, 0, 0, 0, n]
    }

    #[test]
    fn a_member_that_makes_addresses_up_fills_its_own_part_only() {
        let mut t = Table::default();
        assert!(t.learn(1, mac(200), L, 5));
        for n in 0..100 {
            t.learn(0, mac(n), L, 5);
        }
        assert_eq!((t.known(0), t.known(1)), (4, 1));
        assert_eq!((t.find(mac(3), 5), t.find(mac(4), 5), t.find(mac(200), 5)), (Some(0), None, Some(1)));
        // The old ones make room, but are not looked for in every frame.
        assert!(t.learn(0, mac(50), L, 305));
        assert_eq!((t.known(0), t.find(mac(50), 305)), (1, Some(0)));
        assert_eq!(t.find(mac(200), 304), Some(1));
        assert_eq!(t.find(mac(200), 305), None);
    }

    #[test]
    fn addresses_move_and_go_with_their_member() {
        let mut t = Table::default();
        assert!(t.learn(0, mac(1), L, 0));
        assert!(!t.learn(0, mac(1), L, 299), "no news");
        assert!(t.learn(1, mac(1), L, 299), "it moved");
        assert_eq!((t.find(mac(1), 300), t.known(0), t.known(1)), (Some(1), 0, 1));
        assert!(!t.learn(1, [3, 0, 0, 0, 0, 1], L, 300), "a group is nobody's address");
        t.flush(1);
        assert_eq!((t.find(mac(1), 300), t.known(1)), (None, 0));
        // At its limit, a member that takes an address over ends what was known, and learns nothing.
        for n in 10..14 {
            t.learn(0, mac(n), L, 300);
        }
        t.learn(1, mac(1), L, 300);
        t.parts[0].swept = 300;
        assert!(t.learn(0, mac(1), L, 300));
        assert_eq!(t.find(mac(1), 300), None);
    }
}
