//! How long a worker looks for work before it sleeps: an adaptive, bounded window, off by default.
//!
//! A sleep that was shorter than the longest window allowed would have been spared by looking on: the window grows. One
//! that was longer shows that there was nothing to find: it shrinks, down to nothing. So an idle worker sleeps at once,
//! and one that is woken again and again stops sleeping.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The first window after none.
const FIRST: Duration = Duration::from_micros(10);

/// What a worker's waiting came to. Durations in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waits {
    /// Times that it slept.
    pub sleeps: u64,
    /// Times that it looked on before sleeping.
    pub polls: u64,
    /// Times that it found work so.
    pub hits: u64,
    /// Time that it spent looking.
    pub polled_us: u64,
    /// The window as it is now.
    pub window_us: u64,
}

/// The window.
#[derive(Debug)]
pub(super) struct Patience {
    most: Duration,
    now: Duration,
    since: Option<Instant>,
    /// The window is over, until it slept or found something.
    over: bool,
    waits: Waits,
}

impl Patience {
    /// A window of at most `most`; zero: it sleeps at once.
    pub(super) fn new(most: Duration) -> Self {
        Self { most, now: Duration::ZERO, since: None, over: false, waits: Waits::default() }
    }

    pub(super) fn waits(&self) -> Waits {
        let us = u64::try_from(self.now.as_micros()).unwrap_or(u64::MAX);
        Waits { window_us: us, ..self.waits }
    }

    /// There is nothing to do at the moment. True: look on.
    pub(super) fn look_on(&mut self) -> bool {
        if self.now.is_zero() || self.over {
            return false;
        }
        let since = *self.since.get_or_insert_with(|| {
            self.waits.polls += 1;
            Instant::now()
        });
        let looked = since.elapsed();
        if looked >= self.now {
            self.spent(looked);
            self.over = true;
        }
        !self.over
    }

    /// There was something to do.
    pub(super) fn found(&mut self) {
        self.over = false;
        if let Some(since) = self.since {
            self.waits.hits += 1;
            self.spent(since.elapsed());
        }
    }

    fn spent(&mut self, looked: Duration) {
        self.since = None;
        self.waits.polled_us += u64::try_from(looked.as_micros()).unwrap_or(0);
    }

    /// It goes to sleep; gives back what [`Patience::woken`] wants.
    pub(super) fn sleep(&mut self) -> Option<Instant> {
        self.waits.sleeps += 1;
        (!self.most.is_zero()).then(Instant::now)
    }

    /// It woke up.
    pub(super) fn woken(&mut self, since: Option<Instant>) {
        self.over = false;
        if let Some(since) = since {
            self.slept(since.elapsed());
        }
    }

    fn slept(&mut self, long: Duration) {
        if long < self.most {
            self.now = (self.now * 2).max(FIRST).min(self.most);
        } else {
            self.now /= 2;
            if self.now < FIRST {
                self.now = Duration::ZERO;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_micros(200);

    #[test]
    fn off_is_off() {
        let mut p = Patience::new(Duration::ZERO);
        for _ in 0..100 {
            assert!(!p.look_on());
            let since = p.sleep();
            assert_eq!(since, None);
            p.woken(since);
        }
        assert_eq!(p.waits(), Waits { sleeps: 100, ..Waits::default() });
    }

    #[test]
    fn short_sleeps_widen_it_up_to_the_bound_and_long_ones_close_it() {
        let mut p = Patience::new(MOST);
        assert!(!p.look_on(), "nothing is known yet");
        let mut last = Duration::ZERO;
        for _ in 0..20 {
            p.slept(Duration::from_micros(100));
            assert!(p.now >= last && p.now <= MOST);
            last = p.now;
        }
        assert_eq!(last, MOST);
        for _ in 0..8 {
            p.slept(Duration::from_secs(1));
        }
        assert_eq!(p.now, Duration::ZERO);
        assert!(!p.look_on());
    }

    #[test]
    fn a_window_ends_and_is_counted_once() {
        let mut p = Patience::new(MOST);
        p.slept(Duration::from_micros(1));
        assert!(p.look_on());
        std::thread::sleep(MOST);
        assert!(!p.look_on());
        let w = p.waits();
        assert_eq!((w.polls, w.hits), (1, 0));
        assert!(w.polled_us >= 200);
        assert!(!p.look_on(), "not again before it slept");
        p.woken(None);
        assert!(p.look_on());
        p.found();
        assert_eq!((p.waits().polls, p.waits().hits), (2, 1));
    }
}
