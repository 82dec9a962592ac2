//! What the supervisor is answered: counters, and what became of what it asked for.
#![forbid(unsafe_code)]

use std::io;

use super::Engine;
use crate::handover::FromDataplane;
use crate::lane::Side;
use crate::stats::Stats;
use crate::worker::{Floor, Seat};

impl Engine {
    /// What became of a filter, unless nobody wants to know.
    pub(super) fn answer(&mut self, ask: u32, done: io::Result<()>) -> io::Result<()> {
        match done {
            _ if ask == 0 => Ok(()),
            Ok(()) => self.link.say(&FromDataplane::Done { ask }),
            Err(e) => {
                let errno = e.raw_os_error().unwrap_or(0);
                self.link.say(&FromDataplane::Refused { ask, errno, why: e.to_string() })
            }
        }
    }

    pub(super) fn stats(&mut self, floor: &Floor, of: Option<u16>) -> io::Result<()> {
        self.changes.used().collect::<Vec<_>>().into_iter().for_each(|slot| self.look(slot));
        match self.say_stats(floor, of) {
            // It does not read now, and asks again if it wants to.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            said => said,
        }
    }

    fn say_stats(&mut self, floor: &Floor, of: Option<u16>) -> io::Result<()> {
        for (number, waits) in (0u16..).zip(floor.waits()).filter(|_| of.is_none()) {
            self.link.say(&FromDataplane::Worker { number, waits })?;
        }
        for slot in self.changes.used().filter(|s| of.is_none_or(|of| of == *s)) {
            let mut sum = Stats::default();
            let mut up = false;
            for lane in 0..floor.len() {
                for side in Side::BOTH {
                    if floor.slot(Seat { lane, side }) != Some(slot) {
                        continue;
                    }
                    let seen = floor.visit(lane, |l| (l.stats(side), l.is_up(side)));
                    sum.add(&seen.map_or_else(Stats::default, |s| s.0));
                    // Who has no slot of his own drops on behalf of the one whom he faces.
                    let faces = Seat { lane, side: side.peer() };
                    if floor.slot(faces).is_none() {
                        let drops = floor.visit(lane, |l| l.stats(faces.side).drops).unwrap_or_default();
                        sum.add(&Stats { drops, ..Stats::default() });
                    }
                    up |= seen.is_some_and(|s| s.1);
                }
            }
            self.link.say(&FromDataplane::Stats { slot, stats: Box::new(sum), up })?;
        }
        Ok(())
    }
}
