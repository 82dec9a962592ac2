//! `wirefilter`: a cable between two switches that loses, repeats and delays frames, and says of each that it passes on.
//! What it takes away is missing at the far end, and nothing else is.

use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::process::{ChildStdin, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use netreeve_tests::bins;
use netreeve_tests::proc::Proc;
use serde_json::Value;

use crate::support::{Dir, PATIENCE, Reeve, Vm, until};
use crate::vde::{Switch, broadcast};

/// Frames that are sent in one breath: a switch that is not ours loses what comes too fast.
const BREATH: usize = 8;
/// The number of the first of the frames that tell the end of a breath.
const MARKS: u32 = 1 << 31;
/// Frames of a round.
const FRAMES: u32 = 80;

/// What its words are for the two ways, and where a frame's source has the number of the way.
const WAYS: [&str; 2] = ["LR", "RL"];

/// The cable; it ends with its standard input, by which it is told what to do.
struct Cable {
    proc: Proc,
    input: ChildStdin,
    told: usize,
    /// Frames that it has passed on, by the way.
    passed: Arc<[AtomicUsize; 2]>,
}

impl Cable {
    fn between(dir: &Dir, left: &str, right: &str) -> Self {
        let blink = dir.at("blink");
        let socket = UnixDatagram::bind(&blink).unwrap();
        let passed: Arc<[AtomicUsize; 2]> = Arc::default();
        let counts = Arc::clone(&passed);
        // It waits for whoever reads this, so somebody always does, until the process ends.
        std::thread::spawn(move || {
            let mut word = [0; 64];
            while let Ok(n) = socket.recv(&mut word) {
                let word = String::from_utf8_lossy(&word[..n]).into_owned();
                let way = WAYS.iter().position(|w| word.contains(w)).unwrap_or_else(|| panic!("{word}"));
                counts[way].fetch_add(1, Ordering::SeqCst);
            }
        });
        let mut command = Command::new(bins::peer("wirefilter").unwrap());
        command.args(["-v", &format!("{left}:{right}"), "--blink", &blink]);
        let mut proc = Proc::with_input("wirefilter", command).unwrap();
        let input = proc.input().unwrap();
        let mut cable = Self { proc, input, told: 0, passed };
        // It answers when it is plugged in at both ends.
        cable.tell("loss 0");
        cable
    }

    /// A command of its console.
    fn tell(&mut self, command: &str) {
        self.told += 1;
        writeln!(self.input, "{command}").unwrap();
        until(command, || {
            let lines = self.proc.lines();
            let done = lines.iter().filter(|l| l.text.contains("1000 Success")).count();
            (done == self.told).then_some(())
        });
    }
}

/// What was sent and heard so far, marks included, by the way.
#[derive(Default)]
struct Tally {
    marks: u32,
    sent: [usize; 2],
    heard: [usize; 2],
}

/// Frame `n` of those that go this way.
fn frame(len: usize, n: u32, way: usize) -> Vec<u8> {
    let mut f = broadcast(len, n, way as u8);
    f[14..18].copy_from_slice(&n.to_be_bytes());
    f
}

impl Tally {
    /// Sends frames one way and gives what comes out there.
    fn carry(&mut self, [from, to]: [&mut Vm; 2], way: usize, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut heard = Vec::new();
        for breath in frames.chunks(BREATH) {
            breath.iter().for_each(|f| from.send(f));
            self.sent[way] += breath.len();
            heard.extend(self.mark([from, to], way, false));
        }
        heard.retain(|f| u32::from_be_bytes([f[14], f[15], f[16], f[17]]) < MARKS);
        heard
    }

    /// A frame that says that all before it that are to come have come: it is sent until it arrives. `every`: every copy
    /// of it is waited for. Gives all that came.
    fn mark(&mut self, [from, to]: [&mut Vm; 2], way: usize, every: bool) -> Vec<Vec<u8>> {
        let mark = frame(60, MARKS + self.marks, way);
        self.marks += 1;
        let (mut heard, mut sent, mut here) = (Vec::new(), 0, 0);
        until("the last of a breath", || {
            if here == 0 {
                from.send(&mark);
                sent += 1;
            }
            let got = to.drain(Duration::from_millis(20));
            here += got.iter().filter(|f| **f == mark).count();
            heard.extend(got);
            (here > 0 && (here == sent || !every)).then_some(())
        });
        self.sent[way] += sent;
        self.heard[way] += heard.len();
        heard
    }
}

/// Which of the frames that were sent are missing among those that were heard, which are in the same order and nothing else.
fn missing(sent: &[Vec<u8>], heard: Vec<Vec<u8>>) -> Vec<usize> {
    let mut heard = heard.into_iter().peekable();
    let lost =
        |f: &Vec<u8>, heard: &mut std::iter::Peekable<_>| heard.next_if(|h: &Vec<u8>| h == f).is_none();
    let all = (0..sent.len()).filter(|n| lost(&sent[*n], &mut heard)).collect();
    assert_eq!(heard.next(), None, "nobody has sent that, or not there");
    all
}

/// What the cable is told, and what becomes of the frames of a round.
fn rounds(cable: &mut Cable, ends: &mut [Vm; 2], tally: &mut Tally) {
    let lens = [60, 1514, 64, 342, 1518];
    // To our switch first: the cable's port in it begins with what waits there, and what others sent before is nobody's.
    for way in [1, 0] {
        let mut carry = |tally: &mut Tally, frames: &[Vec<u8>]| {
            let [left, right] = &mut *ends;
            tally.carry(if way == 0 { [left, right] } else { [right, left] }, way, frames)
        };
        let mut next = 0;
        let mut round = || -> Vec<Vec<u8>> {
            let first = next;
            next += FRAMES;
            (first..next).map(|n| frame(lens[n as usize % lens.len()], n, way)).collect()
        };
        cable.tell("delay 200");
        let frames = round();
        let began = Instant::now();
        assert_eq!(missing(&frames[..BREATH], carry(tally, &frames[..BREATH])), [0; 0]);
        // Its clock has milliseconds.
        assert!(began.elapsed() > Duration::from_millis(198), "{:?}", began.elapsed());
        cable.tell("delay 0");

        let frames = round();
        assert_eq!(missing(&frames, carry(tally, &frames)), [0; 0]);

        // Its own two bytes are in what it measures.
        cable.tell("mtu 1000");
        let frames = round();
        let long: Vec<usize> = (0..frames.len()).filter(|n| frames[*n].len() > 998).collect();
        assert_eq!(missing(&frames, carry(tally, &frames)), long);
        cable.tell("mtu 0");

        cable.tell("loss 50");
        let frames = round();
        let lost = missing(&frames, carry(tally, &frames)).len();
        // Neither happens once in the age of the universe.
        assert!(0 < lost && lost < frames.len(), "{lost}");
        cable.tell("loss 0");

        cable.tell("dup 50");
        let frames = round();
        let mut heard = carry(tally, &frames);
        assert!(heard.len() > frames.len());
        heard.dedup();
        assert_eq!(missing(&frames, heard), [0; 0]);
        cable.tell("dup 0");
    }
}

/// A port's counters at the end.
fn counters(said: &str) -> Vec<Value> {
    let line = said.lines().rfind(|l| l.contains("\"stats\"")).unwrap();
    serde_json::from_str::<Value>(line).unwrap()["ports"].as_array().unwrap().clone()
}

/// From a switch of ours through the cable into `vde_switch`, and out of that by a plug of ours; and back.
#[test]
fn a_cable_that_loses_frames_is_the_only_one_that_does() {
    let dir = Dir::new();
    let _theirs = Switch::run(&dir);
    let (ours, theirs) = (dir.at("ours"), dir.at("sw"));
    let near = Reeve::run(&dir, &format!("vde,id=n0,server=on,sock={ours}"), &[]);
    let far = Reeve::run(&dir, &format!("vde,id=n0,sock={theirs}"), &[]);
    let mut ends = [&near, &far].map(|end| {
        let vm = end.vm();
        end.proc.wait_for(r#""link","id":"vm","up":true"#, PATIENCE).unwrap();
        vm
    });
    let mut tally = Tally::default();
    let mut cable = Cable::between(&dir, &ours, &theirs);
    rounds(&mut cable, &mut ends, &mut tally);
    let [left, right] = &mut ends;
    tally.mark([left, right], 0, true);
    tally.mark([right, left], 1, true);
    until("all that was heard is what the cable has passed on", || {
        (0..2).all(|way| tally.heard[way] == cable.passed[way].load(Ordering::SeqCst)).then_some(())
    });
    // Nothing was dropped at either end, and all that was sent left it.
    for (way, said) in [near.end(), far.end()].iter().enumerate() {
        let ports = counters(said);
        for port in &ports {
            assert_eq!(port["drops"], serde_json::json!({}), "{port}");
        }
        let vm = ports.iter().find(|p| p["id"] == "vm").unwrap();
        assert_eq!(vm["rx_frames"], tally.sent[way], "{vm}");
        assert_eq!(vm["tx_frames"], tally.heard[1 - way], "{vm}");
        let out = ports.iter().find(|p| p["id"] != "vm" && p["tx_frames"] == tally.sent[way]);
        assert!(out.is_some(), "{ports:?}");
    }
}
