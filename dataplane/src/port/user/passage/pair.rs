//! Two connections of which each gets what the other sends: who came to a listening socket inside the namespace, and ours to
//! the host's loopback for him.
//!
//! Bytes stay in the socket that they came to until the other one takes them (they are peeked at, sent, and only as many as
//! went are thrown away), so nothing is held here: who is not read from feels it in his own window. An end goes through when
//! everything before it has, each direction for itself; what breaks one connection off resets the other.
//!
//! Trust: none in either end. Promise: bytes in order, none lost or said twice; nothing waits.
#![forbid(unsafe_code)]

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::mem::Seg;
use crate::port::user::poll::Ready;
use crate::sys::sock::{self, Half, Opt};

/// Pieces that pass in one direction before others have their turn.
const PIECES: usize = 4;
/// Turns in which the last words of who broke off pass: more than a socket keeps.
const LAST_WORDS: usize = 16;

/// The end inside the namespace, and the one on the host's side.
pub(super) const INSIDE: usize = 0;
pub(super) const HOST: usize = 1;

/// One direction.
#[derive(Clone, Copy, Debug, Default)]
struct Way {
    /// Its source may have something.
    has: bool,
    /// Its sink took no more, and was not said to take some since.
    full: bool,
    /// Its source's end was passed on.
    ended: bool,
}

impl Way {
    fn can_pass(self) -> bool {
        self.has && !self.full && !self.ended
    }
}

/// What becomes of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It waits for its sockets.
    Lives,
    /// There may be more to pass at once.
    More,
    /// Both directions have ended.
    Over,
    /// It is broken off, or was never made.
    Broken,
}

/// The pair.
#[derive(Debug)]
pub(super) struct Pair {
    ends: [OwnedFd; 2],
    /// From each end to the other.
    ways: [Way; 2],
    /// The host's side has answered.
    open: bool,
}

/// Sets what both ends have: small segments go at once, as they came, and urgent bytes keep their place.
pub(super) fn dress(fd: BorrowedFd<'_>) {
    // Neither can fail on a TCP socket; without them it works, if less well.
    let _ = sock::set(fd, Opt::NoDelay, 1);
    let _ = sock::set(fd, Opt::UrgentInline, 1);
}

/// Closing it tells its peer that it was broken off.
pub(super) fn break_off(fd: BorrowedFd<'_>) {
    let _ = sock::reset_on_close(fd);
}

impl Pair {
    /// Of one that has come and one that is on its way, or has arrived (`open`).
    pub(super) fn new(inside: OwnedFd, host: OwnedFd, open: bool) -> Self {
        Self { ends: [inside, host], ways: [Way::default(); 2], open }
    }

    /// An end.
    pub(super) fn end(&self, side: usize) -> BorrowedFd<'_> {
        let [inside, host] = &self.ends;
        if side == INSIDE { inside.as_fd() } else { host.as_fd() }
    }

    /// The host's side has answered.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// Something has become possible with an end.
    pub(super) fn ready(&mut self, side: usize, ready: Ready, scratch: &Seg) -> Fate {
        let [out, back] = &mut self.ways;
        let (from, towards) = if side == INSIDE { (out, back) } else { (back, out) };
        from.has |= ready.read || ready.error || ready.hup;
        towards.full &= !ready.write;
        let ended = from.ended;
        if !self.open {
            return self.awaited(side, ready, scratch);
        }
        // Behind the end nothing is read that would say so.
        if ready.error && ended && self.error(side) {
            return Fate::Broken;
        }
        self.pass(scratch)
    }

    /// The same while the host's side has not answered.
    fn awaited(&mut self, side: usize, ready: Ready, scratch: &Seg) -> Fate {
        if side == INSIDE {
            // Who came has left: nobody waits for the answer.
            return if ready.error { Fate::Broken } else { Fate::Lives };
        }
        if !(ready.write || ready.error || ready.hup) {
            return Fate::Lives;
        }
        if self.error(HOST) {
            return Fate::Broken;
        }
        self.open = true;
        self.pass(scratch)
    }

    fn error(&self, side: usize) -> bool {
        !matches!(sock::error(self.end(side)), Ok(None))
    }

    /// Passes what can pass, in both directions.
    pub(super) fn pass(&mut self, scratch: &Seg) -> Fate {
        let mut more = false;
        for side in [INSIDE, HOST] {
            match self.pass_from(side, scratch) {
                Ok(again) => more |= again,
                Err(_) => {
                    self.last_words(1 - side, scratch);
                    return Fate::Broken;
                }
            }
        }
        match self.ways {
            [a, b] if a.ended && b.ended => Fate::Over,
            _ if more => Fate::More,
            _ => Fate::Lives,
        }
    }

    /// Who broke off may have spoken before, and that is in our socket still: what the other takes of it at once, he gets.
    fn last_words(&mut self, side: usize, scratch: &Seg) {
        if let Some(way) = self.ways.get_mut(side) {
            way.has = true;
        }
        for _ in 0..LAST_WORDS {
            if !matches!(self.pass_from(side, scratch), Ok(true)) {
                break;
            }
        }
    }

    /// In one direction. True: there may be more.
    fn pass_from(&mut self, side: usize, scratch: &Seg) -> io::Result<bool> {
        let [inside, host] = [INSIDE, HOST].map(|side| self.end(side));
        let (from, to) = if side == INSIDE { (inside, host) } else { (host, inside) };
        let mut way = self.ways.get(side).copied().unwrap_or_default();
        let done = (0..PIECES)
            .try_for_each(|_| if way.can_pass() { piece(from, to, &mut way, scratch) } else { Ok(()) });
        if let Some(w) = self.ways.get_mut(side) {
            *w = way;
        }
        done.map(|()| way.can_pass())
    }

    /// Both peers are to know that it was broken off.
    pub(super) fn break_off(&self) {
        break_off(self.end(INSIDE));
        break_off(self.end(HOST));
    }
}

/// Passes one piece, or an end.
fn piece(from: BorrowedFd<'_>, to: BorrowedFd<'_>, way: &mut Way, scratch: &Seg) -> io::Result<()> {
    let n = match sock::peek(from, &[*scratch]) {
        Ok(n) => n,
        Err(e) if e.kind() == ErrorKind::WouldBlock => {
            way.has = false;
            return Ok(());
        }
        Err(e) if e.kind() == ErrorKind::Interrupted => return Ok(()),
        Err(e) => return Err(e),
    };
    if n == 0 {
        way.ended = true;
        // Not connected any more: then its peer knows already, and so shall we.
        let _ = sock::shutdown(to, Half::Write);
        return Ok(());
    }
    match sock::write(to, &[scratch.take(u32::try_from(n).unwrap_or(0))]) {
        Ok(went) => thrown_away(from, went),
        Err(e) if e.kind() == ErrorKind::WouldBlock => {
            way.full = true;
            Ok(())
        }
        Err(e) if e.kind() == ErrorKind::Interrupted => Ok(()),
        Err(e) => Err(e),
    }
}

/// What went is thrown away, all of it: the next piece begins behind it.
fn thrown_away(from: BorrowedFd<'_>, mut left: usize) -> io::Result<()> {
    while left > 0 {
        match sock::discard(from, left)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            n => left = left.saturating_sub(n),
        }
    }
    Ok(())
}
