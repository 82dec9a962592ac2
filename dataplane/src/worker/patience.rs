//! How long a worker looks for work before it sleeps: an adaptive, bounded window.
//!
//! A sleep that was shorter than the longest window allowed would have been spared by looking on: the window grows. One
//! that was longer shows that there was nothing to find: it shrinks, down to nothing. So an idle worker sleeps at once,
//! and one that is woken again and again stops sleeping.
//!
//! The longest window is the user's (`--busy-poll`, none unless asked for), but for one case: after a sleep more than a
//! batch of frames waited. More than a million a second come then, and whoever brings them pays for every sleep of ours
//! with a wake-up, which costs both sides more than [`DENSE`] of looking saves.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The first window after none.
const FIRST: Duration = Duration::from_micros(10);
/// The longest window while more than a batch comes within a sleep: what a sleep and the wake-up take at most.
const DENSE: Duration = Duration::from_micros(50);

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
    /// The last sleep, until it is known what it brought.
    slept: Option<Duration>,
    waits: Waits,
}

impl Patience {
    /// A window of at most `most`; zero: it sleeps at once.
    pub(super) fn new(most: Duration) -> Self {
        Self { most, now: Duration::ZERO, since: None, over: false, slept: None, waits: Waits::default() }
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
    pub(super) fn sleep(&mut self) -> Instant {
        self.waits.sleeps += 1;
        Instant::now()
    }

    /// It woke up.
    pub(super) fn woken(&mut self, since: Instant) {
        self.over = false;
        self.slept = Some(since.elapsed());
    }

    /// It did a round. `dense`: there was more than a batch.
    #[inline]
    pub(super) fn served(&mut self, dense: bool) {
        if let Some(long) = self.slept.take() {
            self.follow(long, dense);
        }
    }

    fn follow(&mut self, long: Duration, dense: bool) {
        let most = if dense { self.most.max(DENSE) } else { self.most };
        if long < most {
            self.now = (self.now * 2).max(FIRST).min(most);
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

    /// Sleeps for so long, and wakes to more than a batch or less.
    fn sleeps(p: &mut Patience, us: u64, dense: bool) {
        let _now = p.sleep();
        p.slept = Some(Duration::from_micros(us));
        p.served(dense);
    }

    #[test]
    fn off_is_off_however_often_it_is_woken_for_little() {
        let mut p = Patience::new(Duration::ZERO);
        for _ in 0..100 {
            assert!(!p.look_on());
            sleeps(&mut p, 1, false);
        }
        assert_eq!(p.waits(), Waits { sleeps: 100, ..Waits::default() });
    }

    #[test]
    fn many_frames_open_a_small_window_and_few_or_none_close_it() {
        for us in [60, 1_000_000] {
            let mut p = Patience::new(Duration::ZERO);
            for _ in 0..20 {
                sleeps(&mut p, 30, true);
            }
            assert_eq!(p.waits().window_us, 50);
            assert!(p.look_on(), "more would come within the window");
            for _ in 0..3 {
                sleeps(&mut p, us, us == 60);
            }
            assert_eq!(p.waits().window_us, 0, "longer sleeps");
            sleeps(&mut p, 30, true);
            sleeps(&mut p, 30, false);
            assert_eq!(p.waits().window_us, 0, "short ones that bring little");
        }
    }

    #[test]
    fn a_round_without_a_sleep_before_it_changes_nothing() {
        let mut p = Patience::new(MOST);
        let since = p.sleep();
        p.woken(since);
        p.served(false);
        let window = p.waits().window_us;
        assert!(window > 0);
        p.served(true);
        assert_eq!(p.waits().window_us, window);
    }

    #[test]
    fn short_sleeps_widen_it_up_to_the_bound_and_long_ones_close_it() {
        let mut p = Patience::new(MOST);
        assert!(!p.look_on(), "nothing is known yet");
        let mut last = Duration::ZERO;
        for _ in 0..20 {
            sleeps(&mut p, 100, false);
            assert!(p.now >= last && p.now <= MOST);
            last = p.now;
        }
        assert_eq!(last, MOST);
        for _ in 0..8 {
            sleeps(&mut p, 1_000_000, false);
        }
        assert_eq!(p.now, Duration::ZERO);
        assert!(!p.look_on());
    }

    #[test]
    fn a_window_ends_and_is_counted_once() {
        let mut p = Patience::new(MOST);
        sleeps(&mut p, 1, false);
        assert!(p.look_on());
        std::thread::sleep(MOST);
        assert!(!p.look_on());
        let w = p.waits();
        assert_eq!((w.polls, w.hits), (1, 0));
        assert!(w.polled_us >= 200);
        assert!(!p.look_on(), "not again before it slept");
        let since = p.sleep();
        p.woken(since);
        assert!(p.look_on());
        p.found();
        assert_eq!((p.waits().polls, p.waits().hits), (2, 1));
    }
}
