//! Who is at the far ends of ports, as far as the supervisor was told.
//!
//! Promise: it is told of what is, at last: what is not told now is at the next change, or when counters are asked for. A
//! peer that comes and goes in a loop does not look like a dataplane that sends without end.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::port::FarEnd;

/// Times in a second that it is told of any.
const MOST: u32 = 100;

/// What was told.
#[derive(Debug, Default)]
pub(super) struct Ends {
    known: BTreeMap<u16, FarEnd>,
    /// Since when, and how often in that second, something was to be told.
    window: Option<(Instant, u32)>,
}

impl Ends {
    /// It is not what was told last, and may be told now.
    pub(super) fn is_news(&mut self, slot: u16, end: FarEnd, now: Instant) -> bool {
        if self.known.get(&slot) == Some(&end) {
            return false;
        }
        let (since, n) = self.window.unwrap_or((now, 0));
        let old = now.duration_since(since) > Duration::from_secs(1);
        let (since, n) = if old { (now, 0) } else { (since, n) };
        self.window = Some((since, n.saturating_add(1)));
        n < MOST
    }

    /// It was told.
    pub(super) fn told(&mut self, slot: u16, end: FarEnd) {
        self.known.insert(slot, end);
    }

    /// The slot is another port's from now on.
    pub(super) fn forget(&mut self, slot: u16) {
        self.known.remove(&slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_comes_and_goes_is_told_of_so_often_and_the_last_word_is_told_later() {
        let (mut ends, start) = (Ends::default(), Instant::now());
        let end = |n: u32| if n.is_multiple_of(2) { FarEnd::Somebody(None) } else { FarEnd::Nobody };
        let mut told = 0;
        for n in 0..1001 {
            if ends.is_news(4, end(n), start) {
                ends.told(4, end(n));
                told += 1;
            }
        }
        assert_eq!(told, MOST);
        assert!(!ends.is_news(5, FarEnd::Nobody, start), "for all ports together");
        let later = start + Duration::from_millis(1001);
        // A hundred words ended with *nobody*, and somebody is there.
        assert!(ends.is_news(4, end(1000), later));
        ends.told(4, end(1000));
        assert!(!ends.is_news(4, end(1000), later), "no news");
        ends.forget(4);
        assert!(ends.is_news(4, end(1000), later));
    }
}
