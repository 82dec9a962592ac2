//! What each user is using up: open sessions, requests of the current second.
//!
//! By uid, never by process: a caller has as many processes as it likes. (Taps are counted by the kernel, bytes of UMEM
//! by the sessions that hold them.)
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
/// Lines of the log that one user's noise may fill in a second.
const NOISE: u32 = 10;
/// Entries from which on those without use are forgotten.
const MANY: usize = 1024;

/// All users' accounts.
#[derive(Debug, Default)]
pub struct Accounts {
    by_uid: HashMap<u32, Account>,
}

#[derive(Debug)]
struct Account {
    sessions: u32,
    since: Instant,
    requests: u32,
    noise: u32,
    unlogged: u32,
}

impl Accounts {
    /// Opens a session. False: the user has `most` already.
    #[must_use]
    pub fn enter(&mut self, uid: u32, most: u32, now: Instant) -> bool {
        if self.by_uid.len() >= MANY {
            self.by_uid.retain(|_, a| a.sessions > 0 || now.duration_since(a.since) < SECOND);
        }
        let account = self.account(uid, now);
        let room = account.sessions < most;
        account.sessions += u32::from(room);
        room
    }

    /// Closes a session that was entered.
    pub fn leave(&mut self, uid: u32) {
        if let Some(account) = self.by_uid.get_mut(&uid) {
            account.sessions = account.sessions.saturating_sub(1);
        }
    }

    /// Counts a request. False: the user has made `most` within this second.
    #[must_use]
    pub fn request(&mut self, uid: u32, most: u32, now: Instant) -> bool {
        let account = self.account(uid, now);
        let room = account.requests < most;
        account.requests += u32::from(room);
        room
    }

    /// Counts a refusal that costs the user nothing to provoke. Some: it may be logged, and so many were not since the
    /// last that was. A flood of lines would make the system's log drop others, the grants among them.
    pub fn noise(&mut self, uid: u32, now: Instant) -> Option<u32> {
        let account = self.account(uid, now);
        let room = account.noise < NOISE;
        account.noise += u32::from(room);
        account.unlogged = account.unlogged.saturating_add(u32::from(!room));
        room.then(|| std::mem::take(&mut account.unlogged))
    }

    fn account(&mut self, uid: u32, now: Instant) -> &mut Account {
        let new = Account { sessions: 0, since: now, requests: 0, noise: 0, unlogged: 0 };
        let account = self.by_uid.entry(uid).or_insert(new);
        if now.duration_since(account.since) >= SECOND {
            (account.since, account.requests, account.noise) = (now, 0, 0);
        }
        account
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_counted_by_user_and_given_back() {
        let (mut accounts, now) = (Accounts::default(), Instant::now());
        assert!(accounts.enter(1, 2, now) && accounts.enter(1, 2, now));
        assert!(!accounts.enter(1, 2, now), "two are open");
        assert!(accounts.enter(2, 2, now), "another user is another account");
        accounts.leave(1);
        assert!(accounts.enter(1, 2, now));
        assert!(!accounts.enter(3, 0, now));
    }

    #[test]
    fn requests_are_counted_by_the_second_even_over_sessions() {
        let (mut accounts, now) = (Accounts::default(), Instant::now());
        assert!(accounts.enter(1, 9, now));
        assert!(accounts.request(1, 1, now));
        assert!(!accounts.request(1, 1, now + SECOND / 2));
        accounts.leave(1);
        assert!(accounts.enter(1, 9, now));
        assert!(!accounts.request(1, 1, now + SECOND / 2), "a new session is no new second");
        assert!(accounts.request(1, 1, now + SECOND));
    }

    #[test]
    fn noise_fills_some_lines_of_each_user_and_second_and_the_rest_is_told() {
        let (mut accounts, now) = (Accounts::default(), Instant::now());
        for _ in 0..NOISE {
            assert_eq!(accounts.noise(1, now), Some(0));
        }
        assert_eq!([accounts.noise(1, now), accounts.noise(1, now)], [None, None]);
        assert_eq!(accounts.noise(2, now), Some(0), "another user's lines are its own");
        assert_eq!(accounts.noise(1, now + SECOND), Some(2));
        assert_eq!(accounts.noise(1, now + SECOND), Some(0));
    }

    #[test]
    fn users_long_gone_are_forgotten() {
        let (mut accounts, now) = (Accounts::default(), Instant::now());
        assert!(accounts.enter(0, 1, now));
        for uid in 1..5000 {
            let at = now + SECOND * uid;
            assert!(accounts.enter(uid, 1, at));
            accounts.leave(uid);
        }
        assert!(accounts.by_uid.len() <= MANY + 1);
        assert!(!accounts.enter(0, 1, now + SECOND * 9999), "an open session is never forgotten");
    }
}
