//! A table of flows: found by key, bounded, the one that was quiet the longest leaves first.
//!
//! Nothing passes over the table but for a forward that goes. Who was quiet for the longest time, of all or of one owner,
//! and whose time is over, is kept in order lazily: an entry of an order may be older than what it stands for, never newer,
//! and is brought to where it belongs when it comes to be the first. So a flow that is used costs nothing, and one that
//! comes or goes a logarithm, however many there are.
//!
//! Trust: none in who makes flows. Promise: never more than the limit, and never more of one owner's than its share; an
//! index with a generation names one flow, until 65,536 others were at its place: an event or a timer that waited for so
//! long finds another, whom it tells to look and nothing else.
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Whose a flow is, by its key.
pub(super) trait Owned {
    /// Names one who has flows.
    type Owner: Copy + Eq + Hash;

    /// Who has this one.
    fn owner(&self) -> Self::Owner;
}

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
    /// Where it stands in the orders: in that of all and in its owner's by its last use, in the third by its end.
    stands: [Instant; 3],
    flow: F,
}

/// Indices by a time that is no later than it should be.
type Order = BTreeSet<(Instant, u32)>;

const ALL: usize = 0;
const OWN: usize = 1;
const ENDS: usize = 2;

/// The table.
#[derive(Debug)]
pub(super) struct Flows<K: Owned, F> {
    by_key: HashMap<K, u32>,
    places: Vec<Place<K, F>>,
    free: Vec<u32>,
    most: usize,
    all: Order,
    own: HashMap<K::Owner, Order>,
    ends: Order,
}

fn entry<K, F>(places: &mut [Place<K, F>], index: u32) -> Option<&mut Entry<K, F>> {
    places.get_mut(usize::try_from(index).ok()?)?.flow.as_mut()
}

/// The first of an order, which stands where it belongs.
fn first<K, F>(order: &mut Order, places: &mut [Place<K, F>], which: usize) -> Option<(Instant, u32)> {
    loop {
        let (at, index) = *order.first()?;
        let e = entry(places, index)?;
        let is = if which == ENDS { e.used + e.patience } else { e.used };
        if is <= at {
            return Some((at, index));
        }
        if let Some(stands) = e.stands.get_mut(which) {
            *stands = is;
        }
        order.pop_first();
        order.insert((is, index));
    }
}

impl<K: Copy + Eq + Hash + Owned, F> Flows<K, F> {
    /// An empty table for `most` flows. Its memory is taken as flows come.
    pub(super) fn new(most: u32) -> Self {
        let most = usize::try_from(most).unwrap_or(usize::MAX).max(1);
        let (all, own, ends) = (Order::new(), HashMap::new(), Order::new());
        Self { by_key: HashMap::new(), places: Vec::new(), free: Vec::new(), most, all, own, ends }
    }

    /// Flows that there are.
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// The index of a key's flow.
    pub(super) fn find(&self, key: &K) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    /// A flow and its key.
    pub(super) fn get(&mut self, index: u32) -> Option<(K, &mut F)> {
        entry(&mut self.places, index).map(|e| (e.key, &mut e.flow))
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
        let Some(e) = entry(&mut self.places, index) else { return };
        (e.used, e.patience) = (e.used.max(now), patience);
        let ([_, _, stands], is) = (&mut e.stands, e.used + patience);
        if is < *stands {
            // It is less patient than it was.
            self.ends.remove(&(*stands, index));
            self.ends.insert((is, index));
            *stands = is;
        }
    }

    /// The table is full.
    pub(super) fn is_full(&self) -> bool {
        self.len() >= self.most
    }

    /// The flow that was quiet for the longest time.
    pub(super) fn quietest(&mut self) -> Option<u32> {
        first(&mut self.all, &mut self.places, ALL).map(|(_, index)| index)
    }

    /// The same of one owner's, and how many he has.
    pub(super) fn quietest_of(&mut self, owner: &K::Owner) -> (Option<u32>, usize) {
        let Some(order) = self.own.get_mut(owner) else { return (None, 0) };
        (first(order, &mut self.places, OWN).map(|(_, index)| index), order.len())
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
        let stands = [now, now, now + patience];
        place.flow = Some(Entry { key, used: now, patience, stands, flow });
        self.free.pop();
        self.by_key.insert(key, index);
        self.all.insert((now, index));
        self.own.entry(key.owner()).or_default().insert((now, index));
        self.ends.insert((now + patience, index));
        Some(index)
    }

    /// Takes a flow out.
    pub(super) fn remove(&mut self, index: u32) -> Option<(K, F)> {
        let place = self.places.get_mut(usize::try_from(index).ok()?)?;
        let e = place.flow.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(index);
        self.by_key.remove(&e.key);
        let [all, own, ends] = e.stands;
        self.all.remove(&(all, index));
        self.ends.remove(&(ends, index));
        let owner = e.key.owner();
        if let Some(order) = self.own.get_mut(&owner) {
            order.remove(&(own, index));
            if order.is_empty() {
                self.own.remove(&owner);
            }
        }
        Some((e.key, e.flow))
    }

    /// Places that were ever used: no index is beyond them.
    pub(super) fn places(&self) -> usize {
        self.places.len()
    }

    /// A flow that was quiet for longer than it may be.
    pub(super) fn expired(&mut self, now: Instant) -> Option<u32> {
        first(&mut self.ends, &mut self.places, ENDS).filter(|(at, _)| *at <= now).map(|(_, index)| index)
    }

    /// When the next flow will have been quiet for too long, if none is used until then.
    pub(super) fn next_expiry(&mut self) -> Option<Instant> {
        first(&mut self.ends, &mut self.places, ENDS).map(|(at, _)| at)
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
    use proptest::prelude::*;

    use super::*;

    impl Owned for u32 {
        type Owner = u32;
        fn owner(&self) -> u32 {
            self % 3
        }
    }

    impl Owned for char {
        type Owner = ();
        fn owner(&self) {}
    }

    proptest! {
        /// The orders say what passing over all of them would.
        #[test]
        fn who_was_quiet_the_longest_is_known(
            steps in proptest::collection::vec((0_u8..6, 0_u32..24, 0_u64..40, 1_u64..60), 1..200),
        ) {
            let start = Instant::now();
            let (mut flows, mut model) = (Flows::new(12), HashMap::new());
            let mut now = start;
            for (what, key, later, patience) in steps {
                now += Duration::from_secs(later);
                let patience = Duration::from_secs(patience);
                match (what, flows.find(&key)) {
                    (0 | 1, None) if !flows.is_full() => {
                        let index = flows.insert(key, (), now, patience).unwrap();
                        model.insert(index, (key, now, patience));
                    }
                    (0..=3, Some(index)) => {
                        flows.touch(index, now, patience);
                        model.insert(index, (key, now, patience));
                    }
                    (4, Some(index)) => {
                        prop_assert_eq!(flows.remove(index), model.remove(&index).map(|(k, ..)| (k, ())));
                    }
                    _ => {}
                }
                let quiet = |of: Option<u32>| {
                    let own = model.iter().filter(|(_, (k, ..))| of.is_none_or(|o| k.owner() == o));
                    own.map(|(i, (_, used, _))| (*used, *i)).min().map(|(_, i)| i)
                };
                prop_assert_eq!(flows.quietest(), quiet(None));
                for owner in 0..3 {
                    let count = model.values().filter(|(k, ..)| k.owner() == owner).count();
                    prop_assert_eq!(flows.quietest_of(&owner), (quiet(Some(owner)), count));
                }
                let ends = model.iter().map(|(i, (_, used, patience))| (*used + *patience, *i)).min();
                prop_assert_eq!(flows.next_expiry(), ends.map(|(at, _)| at));
                prop_assert_eq!(flows.expired(now), ends.filter(|(at, _)| *at <= now).map(|(_, i)| i));
                prop_assert_eq!(flows.len(), model.len());
            }
            prop_assert!(flows.all.len() == model.len() && flows.ends.len() == model.len() && flows.own.len() <= 3);
        }
    }

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
        assert_eq!(flows.quietest(), Some(1));
        assert_eq!(flows.quietest_of(&2), (Some(2), 1));
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
