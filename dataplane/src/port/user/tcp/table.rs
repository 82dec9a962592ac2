//! All flows: found by their ends, or by the number that events and timers carry.
//!
//! Trust: none in guests, who choose half of a key: the map's hash is keyed at random. Promise: bounded; a token finds the
//! flow that it was made for or none (or one that came to its place 65,536 flows later, which then looks for nothing).
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::super::poll::{Token, Who};
use super::flow::{Flow, State};
use super::segment::Key;
use super::shares::Origin;

/// Kind of a flow's tokens.
pub(super) const FLOW: u8 = 0;
/// Flows that are looked at for one that may go.
const LOOK: usize = 16;
/// A flow that was silent for so long may go for a new one.
const OLD: Duration = Duration::from_secs(600);

/// One place.
#[derive(Debug)]
struct Slot<S> {
    generation: u16,
    flow: Option<Box<Flow<S>>>,
}

/// The table.
#[derive(Debug)]
pub(super) struct Table<S> {
    slots: Vec<Slot<S>>,
    free: Vec<u32>,
    by_key: HashMap<Key, Token>,
    most: usize,
    /// Where looking for one that may go went on to.
    hand: usize,
}

impl<S> Table<S> {
    /// For `most` flows.
    pub(super) fn new(most: u32) -> Self {
        let most = usize::try_from(most).unwrap_or(usize::MAX).max(1);
        Self { slots: Vec::new(), free: Vec::new(), by_key: HashMap::new(), most, hand: 0 }
    }

    /// Flows.
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    fn is_full(&self) -> bool {
        self.by_key.len() >= self.most
    }

    /// The flow between two ends.
    pub(super) fn find(&self, key: &Key) -> Option<Token> {
        self.by_key.get(key).copied()
    }

    /// The flow of a token.
    pub(super) fn get(&mut self, token: Token) -> Option<&mut Flow<S>> {
        let slot = self.slots.get_mut(usize::try_from(token.index).ok()?)?;
        slot.flow.as_deref_mut().filter(|_| slot.generation == token.generation)
    }

    /// When the timer of a flow comes that means something to it.
    pub(super) fn armed(&self, token: Token) -> Option<Instant> {
        let slot = usize::try_from(token.index).ok().and_then(|i| self.slots.get(i));
        slot.filter(|s| s.generation == token.generation)?.flow.as_ref()?.armed
    }

    /// Adds a flow that knows its token. None: there is no room, or it is there already.
    pub(super) fn add(&mut self, key: Key, make: impl FnOnce(Token) -> Flow<S>) -> Option<Token> {
        if self.is_full() || self.by_key.contains_key(&key) {
            return None;
        }
        let index = match self.free.pop() {
            Some(i) => i,
            None => {
                self.slots.push(Slot { generation: 0, flow: None });
                u32::try_from(self.slots.len() - 1).ok()?
            }
        };
        let slot = self.slots.get_mut(usize::try_from(index).ok()?)?;
        let token = Token { who: Who::Tcp, kind: FLOW, index, generation: slot.generation };
        slot.flow = Some(Box::new(make(token)));
        self.by_key.insert(key, token);
        Some(token)
    }

    /// Takes a flow out.
    pub(super) fn remove(&mut self, token: Token) -> Option<Box<Flow<S>>> {
        let slot = self.slots.get_mut(usize::try_from(token.index).ok()?)?;
        if slot.generation != token.generation {
            return None;
        }
        let flow = slot.flow.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.by_key.remove(&flow.key);
        self.free.push(token.index);
        Some(flow)
    }

    /// How the flow of a token stands, if it is there.
    pub(super) fn state(&self, token: Token) -> Option<State> {
        self.standing(token).map(|(state, _)| state)
    }

    /// The same, and whose it is.
    pub(super) fn standing(&self, token: Token) -> Option<(State, Origin)> {
        let slot = usize::try_from(token.index).ok().and_then(|i| self.slots.get(i));
        slot.filter(|s| s.generation == token.generation)?.flow.as_ref().map(|f| (f.state, f.origin))
    }

    /// An open one that may go for a new one: of a few of the same origin, the one that was silent for the longest time, if
    /// that is long.
    pub(super) fn silent(&mut self, now: Instant, who: Origin) -> Option<Token> {
        let mut found: Option<(Duration, Token)> = None;
        for _ in 0..LOOK.min(self.slots.len()) {
            self.hand = (self.hand + 1) % self.slots.len();
            let Some(f) = self.slots.get(self.hand).and_then(|s| s.flow.as_ref()) else { continue };
            if f.state != State::Open || f.origin != who {
                continue;
            }
            let silent = now.saturating_duration_since(f.heard);
            if silent >= OLD && found.is_none_or(|(most, _)| silent > most) {
                found = Some((silent, f.token));
            }
        }
        found.map(|(_, t)| t)
    }
}
