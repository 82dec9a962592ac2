//! Far ends that end and come back, and dataplanes.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use netreeve_tests::scene::USER;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::Side::{self, Device, Netdev};
use super::{Pair, Until};
use crate::far::{PATIENCE, Take};
use crate::frames::{PROBE, frame};
use crate::table::{Dies, Flood, Goes};

impl Pair<'_> {
    fn wait_for_the_end(&mut self, of: Side) {
        let until = Until::new();
        while self.take(of) != Take::End {
            until.nap(|| format!("{}: the end of its connection", self.who(of)));
        }
    }

    /// A far end that has said its last word: that arrives, and then the connection is over.
    pub(crate) fn half_closes(&mut self) {
        for of in [Device, Netdev] {
            if self.row(of).whole.is_some() {
                continue;
            }
            let check = self.next_check();
            let last: Vec<_> = (0..5).map(|n| frame(check, n, 600, of.is_netdev())).collect();
            last.iter().for_each(|f| self.send(of, f));
            let halves = self.far(of).half_close();
            assert!(halves, "{}: the table says that it has halves", self.who(of));
            last.iter().for_each(|f| self.expect(of, f));
            self.wait_for_the_end(of);
            self.meet(of);
            self.settle();
        }
        self.exchange();
    }

    /// What is no frame is counted, and ends at most the connection that it came by.
    pub(crate) fn garbage(&mut self) {
        for of in [Device, Netdev] {
            if self.row(of).clean.is_some() {
                continue;
            }
            let before = self.stats();
            let bad = self.far(of).garbage();
            let bad = bad.unwrap_or_else(|| panic!("{}: what is no frame for it?", self.who(of)));
            if bad.ends {
                self.wait_for_the_end(of);
                self.meet(of);
            }
            self.settle();
            let until = Until::new();
            while self.since(&before).get(bad.reason) != Some(&1) {
                until.nap(|| {
                    format!(
                        "{}: one {} after garbage, but {:?}",
                        self.who(of),
                        bad.reason,
                        self.since(&before)
                    )
                });
            }
        }
        self.exchange();
    }

    fn wait_until_down(&mut self, id: &str) {
        let until = Until::new();
        while self.stats().up.get(id) != Some(&false) {
            until.nap(|| format!("port '{id}' to be down, its far end being gone"));
        }
    }

    /// Sends to where nobody is, until it is counted.
    fn counts(&mut self, from: Side) {
        let (before, until) = (self.stats(), Until::new());
        while !self.since(&before).contains_key("peer_down") {
            let _lost = self.far(from).put(&frame(PROBE, 0, 60, from.is_netdev()));
            until.nap(|| format!("{}: frames to nobody to be counted", self.way(from)));
        }
    }

    /// A far end goes, and another comes.
    pub(crate) fn comes_back(&mut self) {
        for of in [Device, Netdev] {
            let row = self.row(of);
            if matches!(row.goes, Goes::Never(_)) {
                continue;
            }
            self.end(of).far = None;
            // A hub waits for nobody who is not there.
            let hub = self.netdev.row.in_flood == Flood::Waits;
            let waits = of == Device && row.is_waited_for && !hub;
            let mut waiting = Vec::new();
            match row.goes {
                Goes::Down(who) => {
                    self.wait_until_down(who.unwrap_or(of.id()));
                    if waits {
                        let check = self.next_check();
                        waiting = (0..3).map(|n| frame(check, n, 300, !of.is_netdev())).collect();
                        waiting.iter().for_each(|f| self.send(of.other(), f));
                    } else {
                        self.counts(of.other());
                    }
                }
                Goes::Counts => self.counts(of.other()),
                Goes::Unnoticed(_) | Goes::Never(_) => {}
            }
            self.meet(of);
            waiting.iter().for_each(|f| self.expect(of.other(), f));
            self.settle();
        }
        self.exchange();
    }

    /// The dataplane is killed. False: with it goes all that there was.
    pub(crate) fn restart(&mut self) -> bool {
        kill(Pid::from_raw(self.dataplane), Signal::SIGKILL).unwrap();
        if [Device, Netdev].into_iter().any(|of| matches!(self.row(of).dies, Dies::Ends(_))) {
            let end = self.proc.wait(PATIENCE).unwrap();
            assert!(end.code == 69 && end.text.contains("no wire is left"), "{}", end.text);
            return false;
        }
        self.restarts += 1;
        let (until, restarts) = (Until::new(), self.restarts);
        let restarted = loop {
            let lines = self.proc.lines();
            let mut all = lines.into_iter().filter(|l| l.text.contains("\"event\":\"restarted\""));
            if let Some(l) = all.nth(restarts - 1) {
                break serde_json::from_str::<Value>(&l.text).unwrap();
            }
            until.nap(|| "the next dataplane".to_owned());
        };
        self.dataplane = restarted["dataplane"].as_i64().unwrap() as i32;
        for of in [Device, Netdev] {
            if self.row(of).dies == Dies::Again {
                self.wait_for_the_end(of);
                self.meet(of);
            } else if !self.far(of).is_connected() {
                // Of a front end that was in the middle of something, nothing is kept.
                assert_eq!(self.row(of).kind, "vhost-user", "{}: it noticed the restart", self.who(of));
                self.meet(of);
            }
        }
        self.settle();
        self.exchange();
        true
    }

    /// Ends it in order: nothing is left.
    pub(crate) fn end_well(mut self) {
        let end = self.proc.terminate(PATIENCE).unwrap();
        assert_eq!(end.code, 0, "{}", end.text);
        let mut dirs = vec![self.place.dir.clone()];
        while let Some(dir) = dirs.pop() {
            for e in fs::read_dir(dir).unwrap().map(Result::unwrap) {
                let about = e.metadata().unwrap();
                assert!(
                    about.uid() != USER || !about.file_type().is_socket(),
                    "{} is left",
                    e.path().display()
                );
                if about.is_dir() {
                    dirs.push(e.path());
                }
            }
        }
    }
}
