//! A table of flows: found by key, bounded, the one that was quiet the longest leaves first.
//!
//! Looking for that one passes over the table, which happens only where a socket has to be made for a flow that is one
//! too many; finding a flow is one look-up.
//!
//! Trust: none in who makes flows. Promise: never more than the limit, and never more of one owner's than its share; an
//! index with a generation names one flow, until 65,536 others were at its place: an event or a timer that waited for so
//! long finds another, whom it tells to look and nothing else.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// One place of the table.
#[derive(Debug)]
struct Place<K, F> {
    generation: u16,
    flow: Option<Entry<K, F>>,
}

/// A flow and its clock.
#[derive(Debug)]
struct Entry<K, F> {
    key: K,
    used: Instant,
    /// How long it may be quiet.
    patience: Duration,
    flow: F,
}

/// The table.
#[derive(Debug)]
pub(super) struct Flows<K, F> {
    by_key: HashMap<K, u32>,
    places: Vec<Place<K, F>>,
    free: Vec<u32>,
    most: usize,
}

impl<K: Copy + Eq + Hash, F> Flows<K, F> {
    /// An empty table for `most` flows. Its memory is taken as flows come.
    pub(super) fn new(most: u32) -> Self {
        let most = usize::try_from(most).unwrap_or(usize::MAX).max(1);
        Self { by_key: HashMap::new(), places: Vec::new(), free: Vec::new(), most }
    }

    /// Flows that there are.
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// The index of a key's flow.
    pub(super) fn find(&self, key: &K) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    fn entry(&mut self, index: u32) -> Option<&mut Entry<K, F>> {
        self.places.get_mut(usize::try_from(index).ok()?)?.flow.as_mut()
    }

    /// A flow and its key.
    pub(super) fn get(&mut self, index: u32) -> Option<(K, &mut F)> {
        self.entry(index).map(|e| (e.key, &mut e.flow))
    }

    /// A flow, if it is still the one of this generation.
    pub(super) fn named(&mut self, index: u32, generation: u16) -> Option<(K, &mut F)> {
        (self.generation(index) == Some(generation)).then(|| self.get(index)).flatten()
    }

    /// The generation of what is, or comes next, at an index.
    pub(super) fn generation(&self, index: u32) -> Option<u16> {
        self.places.get(usize::try_from(index).ok()?).map(|p| p.generation)
    }

    /// A flow is used, and may be quiet for so long from now on.
    pub(super) fn touch(&mut self, index: u32, now: Instant, patience: Duration) {
        if let Some(e) = self.entry(index) {
            (e.used, e.patience) = (now, patience);
        }
    }

    /// The table is full.
    pub(super) fn is_full(&self) -> bool {
        self.len() >= self.most
    }

    /// The flow that was quiet for the longest time among those whose key fits, and how many fit.
    pub(super) fn quietest(&self, fits: impl Fn(&K) -> bool) -> (Option<u32>, usize) {
        let all = (0..).zip(&self.places).filter_map(|(i, p)| Some((i, p.flow.as_ref()?)));
        let (mut first, mut count): (Option<(u32, Instant)>, usize) = (None, 0);
        for (i, e) in all.filter(|(_, e)| fits(&e.key)) {
            count += 1;
            if first.is_none_or(|(_, used)| e.used < used) {
                first = Some((i, e.used));
            }
        }
        (first.map(|(i, _)| i), count)
    }

    /// The place where the next flow will be, and its generation. None: the table is full.
    pub(super) fn vacancy(&mut self) -> Option<(u32, u16)> {
        if self.is_full() {
            return None;
        }
        if self.free.is_empty() {
            let index = u32::try_from(self.places.len()).ok()?;
            self.places.push(Place { generation: 0, flow: None });
            self.free.push(index);
        }
        let index = *self.free.last()?;
        Some((index, self.generation(index)?))
    }

    /// Puts a flow at the place that [`Flows::vacancy`] says. Its key must be new.
    pub(super) fn insert(&mut self, key: K, flow: F, now: Instant, patience: Duration) -> Option<u32> {
        let (index, _) = self.vacancy()?;
        let place = self.places.get_mut(usize::try_from(index).ok()?)?;
        place.flow = Some(Entry { key, used: now, patience, flow });
        self.free.pop();
        self.by_key.insert(key, index);
        Some(index)
    }

    /// Takes a flow out.
    pub(super) fn remove(&mut self, index: u32) -> Option<(K, F)> {
        let place = self.places.get_mut(usize::try_from(index).ok()?)?;
        let e = place.flow.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(index);
        self.by_key.remove(&e.key);
        Some((e.key, e.flow))
    }

    /// Places that were ever used: no index is beyond them.
    pub(super) fn places(&self) -> usize {
        self.places.len()
    }

    /// A flow that was quiet for longer than it may be.
    pub(super) fn expired(&self, now: Instant) -> Option<u32> {
        let mut all = (0..).zip(&self.places).filter_map(|(i, p)| Some((i, p.flow.as_ref()?)));
        all.find(|(_, e)| now.saturating_duration_since(e.used) >= e.patience).map(|(i, _): (u32, _)| i)
    }

    /// When the next flow will have been quiet for too long, if none is used until then.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.places.iter().filter_map(|p| p.flow.as_ref()).map(|e| e.used + e.patience).min()
    }

    /// The indices of flows that fit.
    pub(super) fn all(&self, fits: impl Fn(&K, &F) -> bool) -> Vec<u32> {
        let all = (0..).zip(&self.places).filter_map(|(i, p)| Some((i, p.flow.as_ref()?)));
        all.filter(|(_, e)| fits(&e.key, &e.flow)).map(|(i, _)| i).collect()
    }
}

/// Adds to a queue of those that have something to be read. One that leaves stays in it, and whoever is at its place next
/// is added again: what is in it twice is forgotten once it holds more than twice the `places` that there are.
pub(super) fn queue<T: Copy + Eq + Hash>(to: &mut VecDeque<T>, what: T, places: usize) {
    if to.len() >= places.saturating_mul(2).max(16) {
        let mut seen = HashSet::new();
        to.retain(|t| seen.insert(*t));
    }
    to.push_back(what);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_found_by_key_and_never_mistaken_for_another() {
        let (t, s) = (Instant::now(), Duration::from_secs(1));
        let mut flows = Flows::new(3);
        for k in 0..3 {
            let (at, generation) = flows.vacancy().unwrap();
            assert_eq!(flows.insert(k, k * 10, t + s * k, 30 * s), Some(at));
            assert_eq!(generation, 0);
        }
        assert!(flows.is_full() && flows.vacancy().is_none());
        assert_eq!(flows.insert(9, 90, t, s), None);
        flows.touch(0, t + 5 * s, 30 * s);
        assert_eq!(flows.quietest(|_| true), (Some(1), 3));
        assert_eq!(flows.quietest(|k| *k == 2), (Some(2), 1));
        assert_eq!(flows.remove(1), Some((1, 10)));
        assert_eq!(flows.find(&1), None);
        assert_eq!(flows.insert(7, 70, t, s), Some(1));
        assert!(flows.named(1, 0).is_none(), "another one's event");
        assert_eq!(flows.named(1, 1).map(|(k, f)| (k, *f)), Some((7, 70)));
        assert_eq!(flows.remove(99), None);
    }

    #[test]
    fn the_quiet_leave_in_time() {
        let (t, s) = (Instant::now(), Duration::from_secs(1));
        let mut flows = Flows::new(10);
        flows.insert('a', (), t, 30 * s);
        flows.insert('b', (), t, 180 * s);
        assert_eq!(flows.next_expiry(), Some(t + 30 * s));
        assert_eq!(flows.expired(t + 29 * s), None);
        let a = flows.expired(t + 30 * s).unwrap();
        assert_eq!(flows.remove(a), Some(('a', ())));
        assert_eq!(flows.expired(t + 179 * s), None);
        flows.touch(flows.find(&'b').unwrap(), t + 100 * s, 180 * s);
        assert_eq!(flows.next_expiry(), Some(t + 280 * s));
        assert_eq!(flows.all(|k, ()| *k == 'b').len(), 1);
    }

    #[test]
    fn a_queue_is_bounded_whoever_comes_and_goes() {
        let mut q = VecDeque::new();
        for round in 0..1000 {
            (0..10).for_each(|i| queue(&mut q, i, 10));
            assert!(q.len() <= 20, "{round}");
            assert_eq!(
                q.iter().take(10).collect::<HashSet<_>>().len(),
                10,
                "nobody is forgotten, and in order"
            );
        }
    }
}
