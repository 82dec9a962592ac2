//! Every size that there is something to be said of, in order.

use std::collections::BTreeMap;

use super::{Pair, Side};
use crate::frames::frame;
use crate::table::Passes;

impl Pair<'_> {
    /// What passes is whole, what does not is counted by its reason, and what comes behind it comes.
    pub(crate) fn sizes(&mut self) {
        for from in [Side::Device, Side::Netdev] {
            let sizes = self.chosen(from);
            let (first, check) = (self.stats(), self.next_check());
            let mut put = 0;
            for (n, len) in (0..).zip(sizes) {
                let f = frame(check, n, len, from.is_netdev());
                let fate = self.fate(from, len);
                let before = fate.map(|_| self.stats());
                self.send(from, &f);
                if fate.is_none() {
                    self.expect(from, &f);
                }
                let f = frame(check, n + 100, 60, from.is_netdev());
                self.send(from, &f);
                self.expect(from, &f);
                put += 2;
                if let (Some(before), Some(why)) = (before, fate) {
                    let want = BTreeMap::from([(why.to_owned(), 1)]);
                    self.expect_drops(&before, &want, &format!("{}: {len} bytes", self.way(from)));
                }
            }
            self.adds_up(from, &first, Some(put));
        }
    }

    /// The sizes that a far end can put in, of those that matter to the two ports.
    fn chosen(&self, from: Side) -> Vec<usize> {
        let (giver, taker) = (self.row(from), self.row(from.other()));
        let (mut least, mut most) = giver.can;
        if self.server.is_some() {
            (least, most) = (least.max(self.netdev.row.can.0), most.min(self.netdev.row.can.1));
        }
        let largest = giver.gives.most.min(taker.takes.most).min(most);
        let all = [1, 10, 13, 14, 60, 1514, 9014, largest, giver.gives.above, taker.takes.above];
        let mut all = all.to_vec();
        all.retain(|len| (least..=most).contains(len) && self.is_certain(from, *len));
        all.sort_unstable();
        all.dedup();
        all
    }

    /// What becomes of a frame of this length is certain.
    fn is_certain(&self, from: Side, len: usize) -> bool {
        let between = |p: Passes| len > p.most && len < p.above;
        let open = between(self.row(from).gives) || between(self.row(from.other()).takes);
        self.fate(from, len).is_some() || !open
    }

    /// Why a frame of this length does not pass.
    fn fate(&self, from: Side, len: usize) -> Option<&'static str> {
        // A datagram's payload is never the frame.
        if self.server.is_some() {
            return None;
        }
        let (gives, takes) = (self.row(from).gives, self.row(from.other()).takes);
        if len < gives.least || len < takes.least {
            Some("runt")
        } else if len >= gives.above || len >= takes.above {
            Some("oversize")
        } else {
            None
        }
    }
}
