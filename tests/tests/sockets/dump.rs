//! Our `filter-dump` beside QEMU's own: the same frames, the same file but for the times.

use std::fs;
use std::os::unix::net::UnixListener;

use netreeve_tests::inspect;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Dir, PATIENCE, Qemu, SIZES, Vm, frame, greeting, until};
use crate::wire::Wire;

/// Of a record the bytes that were kept, all that there were, and what was kept.
type Record = (u32, u32, Vec<u8>);

/// A classic pcap: its header and its records.
fn read(path: &str) -> (Vec<u8>, Vec<Record>) {
    let all = fs::read(path).unwrap();
    let (header, mut rest) = all.split_at(24.min(all.len()));
    let mut records = Vec::new();
    while rest.len() >= 16 {
        let word = |n: usize| u32::from_le_bytes(rest[n * 4..n * 4 + 4].try_into().unwrap());
        let (kept, len) = (word(2), word(3));
        let end = 16 + kept as usize;
        if rest.len() < end {
            break;
        }
        records.push((kept, len, rest[16..end].to_vec()));
        rest = &rest[end..];
    }
    (header.to_vec(), records)
}

#[test]
fn a_dump_is_turned_on_and_off() {
    let dir = Dir::new();
    let file = dir.at("f.pcap");
    let dump = format!("filter-dump,id=f0,netdev=n0,file={file},status=off");
    let mut wire = Wire::new(&dir, &["--object".into(), dump]);
    let status = |wire: &mut Wire, word: &str| {
        wire.done("qom-set", &format!(r#"{{"path":"f0","property":"status","value":"{word}"}}"#));
        let said = wire.ask("netreeve-query-filters", "{}");
        assert!(said.contains(&format!("\"status\":\"{word}\"")), "{said}");
    };
    let pass = |wire: &mut Wire, n: u32| {
        wire.net.send(&frame(100, n));
        assert!(wire.vm.recv() == frame(100, n));
        wire.vm.send(&frame(200, n));
        assert!(wire.net.recv() == frame(200, n));
    };
    pass(&mut wire, 1);
    status(&mut wire, "on");
    pass(&mut wire, 2);
    status(&mut wire, "off");
    pass(&mut wire, 3);
    // A dataplane's successor is told how it stood.
    let child = inspect::descendant_named(wire.proc.pid(), "netreeve-dataplane", PATIENCE).unwrap();
    kill(Pid::from_raw(child), Signal::SIGKILL).unwrap();
    wire.proc.wait_for("is back after", PATIENCE).unwrap();
    (wire.net, wire.vm) = (Vm::at(&dir.at("n")), Vm::at(&dir.at("v")));
    wire.settle();
    pass(&mut wire, 4);
    status(&mut wire, "on");
    pass(&mut wire, 5);
    wire.proc.terminate(PATIENCE).unwrap();
    let got: Vec<Vec<u8>> = read(&file).1.into_iter().map(|r| r.2).collect();
    let want: Vec<Vec<u8>> = [2, 5].iter().flat_map(|n| [frame(100, *n), frame(200, *n)]).collect();
    assert!(got == want, "{} frames", got.len());
}

#[test]
fn the_file_is_qemus() {
    for (maxlen, first) in [("", 0), (",maxlen=100", 1000)] {
        let dir = Dir::new();
        let (theirs, ours, sink) = (dir.at("qemu.pcap"), dir.at("ours.pcap"), dir.at("sink"));
        let dump = |net: &str, file: &str| format!("filter-dump,id=f0,netdev={net},file={file}{maxlen}");
        let listener = UnixListener::bind(&sink).unwrap();
        let netdev = format!("stream,addr.type=unix,addr.path={sink}");
        let mut qemu = Qemu::with(&dir, &netdev, &["-object", &dump("p", &theirs)]);
        let conn = qemu.dialled(&listener);
        conn.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut far = Vm(conn);
        let mut wire = Wire::new(&dir, &["--object".into(), dump("n0", &ours)]);
        for (n, len) in (first..).zip(SIZES) {
            for (to_vm, f) in [(true, frame(len, n)), (false, frame(len, n + 500))] {
                if to_vm {
                    far.send(&f);
                    assert!(qemu.recv() == f);
                    wire.net.send(&f);
                    assert!(wire.vm.recv() == f);
                } else {
                    qemu.send(&f);
                    assert!(far.recv() == f);
                    wire.vm.send(&f);
                    assert!(wire.net.recv() == f);
                }
            }
        }
        let count = 2 * SIZES.len();
        until("QEMU's records", || (read(&theirs).1.len() >= count).then_some(()));
        drop(qemu);
        wire.proc.terminate(PATIENCE).unwrap();
        let (header, records) = read(&theirs);
        let (our_header, mut our_records) = read(&ours);
        assert_eq!(our_header, header, "the header");
        // The frames by which the wire was tried are ours alone.
        our_records.retain(|r| r.2 != greeting());
        assert_eq!((our_records.len(), records.len()), (count, count));
        for ((kept, len, bytes), theirs) in our_records.iter().zip(&records) {
            assert_eq!((kept, len), (&theirs.0, &theirs.1), "the lengths{maxlen}");
            assert!(*bytes == theirs.2, "the bytes of {len}{maxlen}");
        }
    }
}
