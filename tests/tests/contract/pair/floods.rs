//! More than anybody holds, while nobody reads; then somebody reads.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{NAP, Pair, Side, Until};
use crate::far::{Put, Take, is_anothers};
use crate::frames::{self, PROBE, frame};
use crate::table::Flood;

/// Frames of a flood: more than wait anywhere on the way but in a hub.
const MANY: u32 = 2000;
/// Who took nothing for so long is taken to have stopped. That he has is never concluded from that alone.
const STILL: Duration = Duration::from_millis(25);

impl Pair<'_> {
    fn flood_frame(&self, check: u32, n: u32, from: Side) -> Vec<u8> {
        let most = self.row(from).gives.most.min(self.row(from.other()).takes.most);
        let len = [60, 1514, 342, 64, 1000, 1400][n as usize % 6];
        frame(check, n, len.min(most), from.is_netdev())
    }

    /// In both directions.
    pub(crate) fn floods(&mut self) {
        for from in [Side::Device, Side::Netdev] {
            let (comes, leaves) = (self.row(from).in_flood, self.row(from.other()).out_flood);
            let loses = |f| matches!(f, Flood::Loses(_));
            if loses(comes) || loses(leaves) {
                self.lossy_flood(from);
            } else {
                let stops = comes == Flood::Stops && leaves == Flood::Stops;
                self.lossless_flood(from, stops);
            }
        }
    }

    /// Puts frames in until nobody takes them. Gives the number of the first that is left.
    fn fill(&mut self, from: Side, check: u32) -> u32 {
        let (mut n, mut moved) = (0, Instant::now());
        while n < MANY && moved.elapsed() < STILL {
            let f = self.flood_frame(check, n, from);
            match self.far(from).put(&f) {
                Put::Gone => (n, moved) = (n + 1, Instant::now()),
                Put::Full => std::thread::sleep(NAP),
                other => panic!("{}: frame {n} of a flood cannot be put in: {other:?}", self.way(from)),
            }
        }
        n
    }

    fn lossless_flood(&mut self, from: Side, stops: bool) {
        let before = self.stats();
        let check = self.next_check();
        let mut n = self.fill(from, check);
        assert!(n < MANY || !stops, "{}: nobody reads, and {n} frames go in", self.way(from));
        let (mut got, mut until) = (0, Until::new());
        while got < MANY {
            let mut moved = false;
            self.far(from).go_on();
            while n < MANY && {
                let f = self.flood_frame(check, n, from);
                self.far(from).put(&f) == Put::Gone
            } {
                (n, moved) = (n + 1, true);
            }
            while got < n {
                match self.take(from.other()) {
                    Take::Frame(f) => {
                        let want = self.flood_frame(check, got, from);
                        assert!(
                            f == want,
                            "{}: frame {got} of a flood, of {} bytes, is one of {}, check and number {:?}",
                            self.way(from),
                            want.len(),
                            f.len(),
                            frames::read(&f)
                        );
                        (got, moved) = (got + 1, true);
                    }
                    Take::Nothing => break,
                    Take::End => panic!("{}: a flood ends the connection", self.way(from)),
                }
            }
            if moved {
                until = Until::new();
            } else {
                until.nap(|| format!("{}: frame {got} of a flood, {n} are sent", self.way(from)));
            }
        }
        self.expect_drops(&before, &BTreeMap::new(), &format!("{}: a flood", self.way(from)));
        self.adds_up(from, &before, Some(MANY.into()));
    }

    /// What arrives is whole and in order; and the way is open after it.
    fn lossy_flood(&mut self, from: Side) {
        let (before, check) = (self.stats(), self.next_check());
        let mut next = 0;
        let sent = self.fill(from, check);
        let end = (PROBE, u32::MAX);
        let (until, mut due) = (Until::new(), Instant::now());
        loop {
            if due <= Instant::now() {
                let f = frame(end.0, end.1, 60, from.is_netdev());
                let _full = self.far(from).put(&f);
                due = Instant::now() + Duration::from_millis(5);
            }
            match self.far(from.other()).take() {
                Take::Frame(f) => match frames::read(&f) {
                    Some(mark) if mark == end => break,
                    Some((c, n)) if c == check => {
                        let way = self.way(from);
                        assert!(
                            (next..sent).contains(&n),
                            "{way}: frame {n} where {next} might come, of {sent}"
                        );
                        let whole = f == self.flood_frame(check, n, from);
                        assert!(whole, "{way}: frame {n} of a flood is torn, {} bytes", f.len());
                        next = n + 1;
                    }
                    Some((PROBE, _)) => {}
                    other => assert!(is_anothers(&f), "{}: {other:?} in a flood", self.way(from)),
                },
                Take::Nothing => until.nap(|| format!("{}: the end of a flood", self.way(from))),
                Take::End => panic!("{}: a flood ends the connection", self.way(from)),
            }
        }
        self.adds_up(from, &before, None);
    }
}
