//! When to start a dead dataplane again, and when to give up.
//!
//! A dataplane that served for a while is replaced at once: its guest waits. One that dies young is waited for longer
//! each time, and after [`TOO_MANY`] young deaths within [`WITHIN`] there is nothing to gain from another.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Young deaths that end it.
pub const TOO_MANY: usize = 10;
/// The time that they are counted in.
pub const WITHIN: Duration = Duration::from_secs(10);
/// One that was ready for so long did not die young.
pub const SERVED: Duration = Duration::from_secs(1);
/// First wait; it doubles.
const FIRST: Duration = Duration::from_millis(10);
/// Longest wait.
const LONGEST: Duration = Duration::from_secs(1);

/// How a dataplane ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Death {
    /// How long it had been ready; none: never.
    pub served: Option<Duration>,
    /// SIGKILL: somebody outside ended it, it did not fail by itself.
    pub killed: bool,
}

/// What has happened so far.
#[derive(Debug, Default)]
pub struct BackOff {
    young: VecDeque<Instant>,
}

impl BackOff {
    /// A dataplane died at `now`. How long to wait before the next one; none: give up.
    pub fn died(&mut self, now: Instant, how: Death) -> Option<Duration> {
        let by_itself = !(how.killed && how.served.is_some());
        let old = how.served.is_some_and(|s| s >= SERVED);
        if old {
            self.young.clear();
        }
        if old || !by_itself {
            return Some(Duration::ZERO);
        }
        while self.young.front().is_some_and(|t| now.duration_since(*t) > WITHIN) {
            self.young.pop_front();
        }
        self.young.push_back(now);
        let n = self.young.len();
        if n >= TOO_MANY {
            return None;
        }
        let doublings = u32::try_from(n.saturating_sub(2)).unwrap_or(u32::MAX).min(16);
        Some(if n == 1 { Duration::ZERO } else { (FIRST * (1 << doublings)).min(LONGEST) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn young() -> Death {
        Death { served: Some(5 * MS), killed: false }
    }

    #[test]
    fn the_first_is_replaced_at_once_then_ever_later() {
        let (mut b, t) = (BackOff::default(), Instant::now());
        let waits: Vec<u128> = (0..9).filter_map(|_| b.died(t, young())).map(|d| d.as_millis()).collect();
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 320, 640, 1000]);
        assert_eq!(b.died(t, young()), None);
    }

    #[test]
    fn old_age_forgives() {
        let (mut b, t) = (BackOff::default(), Instant::now());
        for _ in 0..9 {
            assert!(b.died(t, young()).is_some());
        }
        assert_eq!(b.died(t, Death { served: Some(SERVED), killed: false }), Some(Duration::ZERO));
        assert_eq!(b.died(t, young()), Some(Duration::ZERO));
    }

    #[test]
    fn ten_within_ten_seconds_end_it_and_slower_ones_do_not() {
        let (mut b, t) = (BackOff::default(), Instant::now());
        for i in 0..100 {
            assert!(b.died(t + i * Duration::from_millis(1200), young()).is_some(), "{i}");
        }
    }

    #[test]
    fn kills_from_outside_are_not_counted_unless_it_never_served() {
        let (mut b, t) = (BackOff::default(), Instant::now());
        for _ in 0..200 {
            assert_eq!(b.died(t, Death { served: Some(MS), killed: true }), Some(Duration::ZERO));
        }
        let unborn = Death { served: None, killed: true };
        let n = (0..20).take_while(|_| b.died(t, unborn).is_some()).count();
        assert_eq!(n, TOO_MANY - 1);
    }
}
