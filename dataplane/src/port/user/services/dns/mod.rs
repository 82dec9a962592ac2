//! The DNS relay: a guest's questions go to the host's resolvers as they are, under numbers of ours.
//!
//! Nothing is resolved, cached or changed here but the message's number. Questions go out by a few connected sockets for
//! each resolver, chosen by chance, under random numbers; a socket is used for half a minute at most. So who would forge an
//! answer without seeing the question has to guess port and number (RFC 5452), and who answers from elsewhere is not heard
//! by the kernel already. An answer counts only with the question that was asked.
//!
//! A resolver that does not answer, refuses, or is not there makes way for the next, for later questions and for the
//! guest's TCP as well ([`crate::port::user::net::Net::resolvers`] is turned). If none answered, they are asked by TCP
//! ([`stream`]): some networks let nothing else through. In the end the guest is told of the failure.
//!
//! Trust: none, neither in guests nor in resolvers. Promise: bounded questions, sockets and bytes; an answer is never
//! longer than the asker takes (`TC` says so, and the guest comes by TCP, which is not this room's).
#![forbid(unsafe_code)]

pub mod message;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use netreeve_shared::mac::Mac;
use netreeve_shared::vnet::Vnet;

use super::envelope::{Ends, udp};
use super::{DNS_LINE, DNS_TICK};
use crate::port::user::poll::{Token, Want, Who};
use crate::port::user::room::Cx;
use crate::port::user::sockets::leave;
use crate::stats::Reason;
use crate::sys::sock::{self, Speaks};
use message::{Header, failure, question, renumbered, room};
use stream::Streams;

/// Questions that wait for answers.
const ASKS: usize = 128;
/// Resolvers that are asked (as in resolv.conf(5)).
const SERVERS: usize = 3;
/// Sockets, all together and for each resolver.
const LINES: usize = 16;
const EACH: usize = 4;
/// Questions that one socket carries, and for how long.
const USES: u32 = 64;
const AGE: Duration = Duration::from_secs(30);
/// Longest answer in bytes.
const ANSWER: usize = 8192;
/// How often the resolvers are gone through: by UDP, by TCP, by UDP.
const ROUNDS: usize = 3;
/// How long a question is worth an answer.
const WORTH: Duration = Duration::from_secs(12);
/// How often the waiting ones are looked at.
const TICK: Duration = Duration::from_millis(250);
/// Answers that are taken from a socket at once; more come with the next event.
const BURST: usize = 256;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// Its Ethernet address.
    pub mac: Mac,
    /// Where it asks from.
    pub at: SocketAddr,
    /// Which of our addresses it asks.
    pub to: SocketAddr,
}

/// How a question is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Line(usize, [u8; 2]),
    Stream(usize),
    Nowhere,
}

/// A question that waits for its answer.
#[derive(Debug)]
struct Ask {
    from: Asker,
    id: [u8; 2],
    query: Vec<u8>,
    /// Bytes that the asker takes.
    room: usize,
    way: Way,
    /// Who was asked last.
    server: Option<SocketAddr>,
    tries: usize,
    sent: Instant,
    born: Instant,
}

/// A connected socket.
#[derive(Debug)]
struct Line {
    fd: OwnedFd,
    server: SocketAddr,
    born: Instant,
    used: u32,
    generation: u16,
}

/// Numbers that nobody can guess who has not seen all of them: a keyed hash of a count.
#[derive(Debug)]
struct Random(RandomState, u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.1 = self.1.wrapping_add(1);
        self.0.hash_one(self.1)
    }

    fn below(&mut self, n: usize) -> usize {
        let n = u64::try_from(n).unwrap_or(1).max(1);
        usize::try_from(self.next() % n).unwrap_or(0)
    }

    fn id(&mut self) -> [u8; 2] {
        let [.., a, b] = self.next().to_be_bytes();
        [a, b]
    }
}

/// The relay.
#[derive(Debug)]
pub struct Relay {
    asks: Vec<Ask>,
    lines: [Option<Line>; LINES],
    streams: Streams,
    generation: u16,
    random: Random,
    ticking: bool,
    answer: Vec<u8>,
    frame: Vec<u8>,
}

impl Default for Relay {
    fn default() -> Self {
        Self::new()
    }
}

impl Relay {
    /// With nothing asked.
    #[must_use]
    pub fn new() -> Self {
        Self {
            asks: Vec::new(),
            lines: [const { None }; LINES],
            streams: Streams::default(),
            generation: 0,
            random: Random(RandomState::new(), 0),
            ticking: false,
            answer: vec![0; ANSWER + 1],
            frame: Vec::new(),
        }
    }

    /// A question of a guest's.
    pub fn ask(&mut self, from: Asker, query: &[u8], cx: &mut Cx) {
        let Some((h, _)) = Header::parse(query) else { return cx.stats.drop(Reason::Malformed) };
        if h.answers() || question(query).is_none() {
            return cx.stats.drop(Reason::Malformed);
        }
        if cx.restrict {
            return cx.stats.drop(Reason::Refused);
        }
        let same = |a: &Ask| a.from.at == from.at && a.id == h.id && a.query == query;
        if let Some(i) = self.asks.iter().position(same) {
            // The guest grew impatient; perhaps another resolver is quicker.
            if self.asks.get(i).is_some_and(|a| cx.now.saturating_duration_since(a.sent) > TICK * 2) {
                self.go(i, cx);
            }
            return;
        }
        if self.asks.len() >= ASKS {
            // The one that has waited longest is the least likely to be still wanted.
            let oldest = (0..self.asks.len()).min_by_key(|i| self.asks.get(*i).map(|a| a.born));
            self.end(oldest.unwrap_or(0), false, cx);
        }
        let takes = usize::from(cx.net.mtu).saturating_sub(48).min(ANSWER);
        self.asks.push(Ask {
            from,
            id: h.id,
            query: query.to_vec(),
            room: takes.min(room(query).into()),
            way: Way::Nowhere,
            server: None,
            tries: 0,
            sent: cx.now,
            born: cx.now,
        });
        self.go(self.asks.len() - 1, cx);
        self.wind(cx);
    }

    /// Sees to it that waiting questions are looked at.
    fn wind(&mut self, cx: &mut Cx) {
        if !self.ticking && !self.asks.is_empty() {
            self.ticking = true;
            let token = Token { who: Who::Services, kind: DNS_TICK, index: 0, generation: 0 };
            cx.timers.at(cx.now + TICK, token);
        }
    }

    /// Asks the next resolver; if there is none left, the guest is told.
    fn go(&mut self, i: usize, cx: &mut Cx) {
        let servers = cx.net.resolvers.len().min(SERVERS);
        loop {
            let Some(a) = self.asks.get_mut(i) else { return };
            self.streams.end(&mut a.way);
            if a.tries >= servers * ROUNDS || cx.now.saturating_duration_since(a.born) >= WORTH {
                return self.end(i, true, cx);
            }
            let list = cx.net.resolvers.get(..servers).unwrap_or_default();
            let last = a.server.and_then(|s| list.iter().position(|l| *l == s));
            let Some(&server) = last.map_or(list.first(), |l| list.get((l + 1) % servers)) else {
                return self.end(i, true, cx);
            };
            let round = a.tries / servers;
            a.tries += 1;
            a.server = Some(server);
            a.sent = cx.now;
            let way = if round == 1 { self.by_stream(i, server, cx) } else { self.by_line(i, server, cx) };
            if let (Some(way), Some(a)) = (way, self.asks.get_mut(i)) {
                a.way = way;
                return;
            }
        }
    }

    fn by_stream(&mut self, i: usize, server: SocketAddr, cx: &mut Cx) -> Option<Way> {
        let query = &self.asks.get(i)?.query;
        self.streams.open(server, query, cx).map(Way::Stream)
    }

    fn by_line(&mut self, i: usize, server: SocketAddr, cx: &mut Cx) -> Option<Way> {
        let line = self.line(server, cx)?;
        let id = (0..16).find_map(|_| {
            let id = self.random.id();
            (!self.asks.iter().any(|a| a.way == Way::Line(line, id))).then_some(id)
        })?;
        let rest = self.asks.get(i)?.query.get(2..)?;
        let l = self.lines.get_mut(line)?.as_mut()?;
        l.used += 1;
        let send = || sock::write_to(l.fd.as_fd(), &[&id, rest], None);
        // The first error may be of an earlier question (a port that is closed).
        send().or_else(|_| send()).ok().map(|_| Way::Line(line, id))
    }

    /// A socket to this resolver: one of some, by chance.
    fn line(&mut self, server: SocketAddr, cx: &mut Cx) -> Option<usize> {
        let now = cx.now;
        let (asks, lines) = (&self.asks, &mut self.lines);
        let old = |l: &Line| l.used >= USES || now.saturating_duration_since(l.born) >= AGE;
        let waits = |i: usize| asks.iter().any(|a| matches!(a.way, Way::Line(l, _) if l == i));
        for (i, slot) in lines.iter_mut().enumerate() {
            if slot.as_ref().is_some_and(old) && !waits(i) {
                *slot = None;
            }
        }
        let mine = |l: &Line| l.server == server && !old(l);
        let chosen = self.random.below(EACH);
        let (mut seen, mut some, mut free) = (0, None, None);
        for (i, slot) in lines.iter().enumerate() {
            match slot {
                Some(l) if mine(l) => {
                    if seen == chosen {
                        return Some(i);
                    }
                    (seen, some) = (seen + 1, Some(i));
                }
                None => free = free.or(Some(i)),
                Some(_) => {}
            }
        }
        let Some(free) = free else { return some };
        self.generation = self.generation.wrapping_add(1);
        let index = u32::try_from(free).ok()?;
        let token = Token { who: Who::Services, kind: DNS_LINE, index, generation: self.generation };
        let open = || {
            let fd = sock::new(Speaks::Udp, server.is_ipv6())?;
            leave(fd.as_fd(), server, &cx.outbound)?;
            sock::connect(fd.as_fd(), server)?;
            cx.poll.add(fd.as_fd(), token, Want::READ)?;
            std::io::Result::Ok(fd)
        };
        let Ok(fd) = open() else { return some };
        let line = Line { fd, server, born: now, used: 0, generation: self.generation };
        *self.lines.get_mut(free)? = Some(line);
        Some(free)
    }

    /// A socket has answers, or an error.
    pub fn ready(&mut self, at: Token, cx: &mut Cx) {
        let Ok(i) = usize::try_from(at.index) else { return };
        if at.kind != DNS_LINE {
            return self.stream_ready(i, at.generation, cx);
        }
        for n in 0..BURST {
            let line = self.lines.get(i).and_then(Option::as_ref);
            let Some(line) = line.filter(|l| l.generation == at.generation) else { return };
            match sock::read_from(line.fd.as_fd(), &mut self.answer) {
                Ok((len, _)) => self.line_answers(i, len, cx),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return cx.idle += u64::from(n == 0),
                Err(_) => self.line_fails(i, cx),
            }
        }
        // More than that at once is no answer to anything: the socket is given up, and so are its questions to it.
        if let Some(slot) = self.lines.get_mut(i) {
            *slot = None;
        }
        self.line_fails(i, cx);
    }

    /// Nobody listens there: what waits for it goes elsewhere.
    fn line_fails(&mut self, line: usize, cx: &mut Cx) {
        for a in self.asks.iter_mut().filter(|a| matches!(a.way, Way::Line(l, _) if l == line)) {
            a.way = Way::Nowhere;
            turn(a.server, cx);
        }
        self.go_on(cx);
    }

    /// Every question that is nowhere goes somewhere, or ends.
    fn go_on(&mut self, cx: &mut Cx) {
        while let Some(i) = self.asks.iter().position(|a| a.way == Way::Nowhere) {
            self.go(i, cx);
        }
    }

    fn line_answers(&mut self, line: usize, n: usize, cx: &mut Cx) {
        let answer = std::mem::take(&mut self.answer);
        let bytes = answer.get(..n).unwrap_or_default();
        let id = Header::parse(bytes).map(|(h, _)| Way::Line(line, h.id));
        match self.asks.iter().position(|a| Some(a.way) == id) {
            Some(i) => self.answered(i, bytes, cx),
            None => cx.stats.drop(Reason::Source),
        }
        self.answer = answer;
    }

    fn stream_ready(&mut self, i: usize, generation: u16, cx: &mut Cx) {
        let Some(done) = self.streams.ready(i, generation) else { return };
        let Some(at) = self.asks.iter().position(|a| a.way == Way::Stream(i)) else { return };
        // That connection is closed, and the next one may be at its place.
        if let Some(a) = self.asks.get_mut(at) {
            a.way = Way::Nowhere;
        }
        if let Ok(answer) = done {
            self.answered(at, &answer, cx);
        }
        // What failed, or was no answer to this question, has others to ask.
        self.go_on(cx);
    }

    /// An answer came to where this question waits.
    fn answered(&mut self, i: usize, answer: &[u8], cx: &mut Cx) {
        let Some(a) = self.asks.get(i) else { return };
        let Some((h, _)) = Header::parse(answer) else { return };
        if !h.answers() || question(answer).is_none() || question(answer) != question(&a.query) {
            return cx.stats.drop(Reason::Source);
        }
        if h.failed() && a.tries < cx.net.resolvers.len().min(SERVERS) {
            return self.go(i, cx);
        }
        let ends = Ends { macs: (cx.net.mac, a.from.mac), at: (a.from.to, a.from.at) };
        udp(&mut self.frame, &ends, |o| renumbered(answer, a.id, a.room, o));
        cx.push(Vnet::default(), &[&self.frame]);
        self.end(i, false, cx);
    }

    /// The question is done with; `failed`: the guest is told so.
    fn end(&mut self, i: usize, failed: bool, cx: &mut Cx) {
        if i >= self.asks.len() {
            return;
        }
        let mut a = self.asks.swap_remove(i);
        self.streams.end(&mut a.way);
        if failed {
            let ends = Ends { macs: (cx.net.mac, a.from.mac), at: (a.from.to, a.from.at) };
            udp(&mut self.frame, &ends, |o| failure(&a.query, a.id, o));
            cx.push(Vnet::default(), &[&self.frame]);
        }
    }

    /// Time passes: whoever has not answered makes way for the next.
    pub fn tick(&mut self, cx: &mut Cx) {
        self.ticking = false;
        let servers = cx.net.resolvers.len().clamp(1, SERVERS);
        for a in &mut self.asks {
            // One second in the first round, two in the second, four in the third.
            let round = u32::try_from(a.tries.saturating_sub(1) / servers).unwrap_or(0).min(4);
            if cx.now.saturating_duration_since(a.sent) >= Duration::from_secs(1) * (1 << round) {
                self.streams.end(&mut a.way);
                a.way = Way::Nowhere;
                turn(a.server, cx);
            }
        }
        self.go_on(cx);
        self.wind(cx);
    }

    /// The host's resolvers are others now: what waits is asked anew.
    pub fn resolvers_changed(&mut self, cx: &mut Cx) {
        self.lines = [const { None }; LINES];
        for a in &mut self.asks {
            self.streams.end(&mut a.way);
            (a.way, a.server, a.tries) = (Way::Nowhere, None, 0);
        }
        self.go_on(cx);
    }
}

/// A resolver that did not answer is asked last from now on.
fn turn(server: Option<SocketAddr>, cx: &mut Cx) {
    if server.is_some() && cx.net.resolvers.first().copied() == server {
        cx.net.resolvers.rotate_left(1);
    }
}
