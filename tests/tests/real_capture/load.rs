//! Captures under load: several queues, dataplanes that die, readers that do not read, disks that are full.

use crate::{PATIENCE, Wire, fields, pass, tool};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// All that was seen is in the file or counted as lost, on four queues and four workers, and each queue is in order.
#[test]
fn four_queues_under_load_and_every_frame_is_accounted_for() {
    let mut w = Wire::new(4, &["filter-dump,id=f0,netdev=n0,file=n0.pcapng,maxlen=96"]);
    let (mut a, mut b) = w.drivers();
    const EACH: u64 = 20_000;
    let began = Instant::now();
    pass(&mut a, &mut b, EACH, 64);
    let took = began.elapsed();
    let (text, counts) = w.end();
    let [[seen, written, lost, failed]] = counts[..] else { panic!("{text}") };
    eprintln!("{} frames in {took:?}: written {written}, lost {lost}", EACH * 4);
    assert_eq!((seen, failed), (EACH * 4, 0));
    assert_eq!(written + lost, seen);
    let file = w.dir.join("n0.pcapng");
    let rows = fields(&file, &["udp.srcport", "frame.packet_id", "udp.payload", "frame.interface_queue"]);
    assert_eq!(rows.len() as u64, written);
    // The number of each frame is behind six bytes of the payload.
    let mut next: BTreeMap<String, u64> = BTreeMap::new();
    for r in &rows {
        let seq = u64::from_str_radix(&r[2][12..28], 16).unwrap();
        let before = next.insert(r[0].clone(), seq + 1).unwrap_or(0);
        assert!(seq >= before, "port {}: {seq} after {before}", r[0]);
    }
    assert_eq!(next.len(), 4, "all four queues");
    let about = tool("capinfos", &["-cM", &file.display().to_string()]);
    assert!(about.contains(&format!("Number of packets:   {written}")), "{about}");
}

/// Killed dataplanes do not harm the file, and their successors write on.
#[test]
fn a_capture_outlives_its_dataplane() {
    let mut w = Wire::new(2, &["filter-dump,id=f0,netdev=d0,file=d0.pcap"]);
    let (mut a, mut b) = w.drivers();
    for round in 0..3 {
        pass(&mut a, &mut b, 200, 500);
        if round < 2 {
            // What is known of a quiet connection outlives its dataplane.
            std::thread::sleep(Duration::from_millis(1500));
            kill(Pid::from_raw(w.dataplane()), Signal::SIGKILL).unwrap();
            let said = if round == 0 { 1 } else { 2 };
            let until = Instant::now() + PATIENCE;
            while w.reeve.lines().iter().filter(|l| l.text.contains("dataplane is back")).count() < said {
                assert!(Instant::now() < until, "{}", w.reeve.tail());
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    let (text, counts) = w.end();
    let [[seen, written, lost, failed]] = counts[..] else { panic!("{text}") };
    assert_eq!((seen, lost, failed), (written, 0, 0));
    assert!(seen >= 1200, "{seen}");
    assert_eq!(fields(&w.dir.join("d0.pcap"), &["frame.len"]).len() as u64, written);
}

/// Nobody reads the pipe: the traffic passes, and what did not fit is counted.
#[test]
fn a_reader_that_never_reads_holds_nothing_up() {
    let (r, wr) = std::io::pipe().unwrap();
    // Inherited by number.
    let fd = nix::unistd::dup(&wr).unwrap();
    drop(wr);
    let number = fd.as_raw_fd();
    let mut w = Wire::new(1, &[&format!("filter-dump,id=f0,netdev=n0,fd={number},format=pcapng")]);
    drop(fd);
    let (mut a, mut b) = w.drivers();
    let began = Instant::now();
    pass(&mut a, &mut b, 30_000, 1000);
    pass(&mut b, &mut a, 1000, 1000);
    let took = began.elapsed();
    kill(Pid::from_raw(w.reeve.pid()), Signal::SIGUSR1).unwrap();
    let line = w.reeve.wait_for("capture 'f0' of port 'n0': seen 31000 frames", PATIENCE).unwrap();
    let began = Instant::now();
    let (text, counts) = w.end();
    assert!(began.elapsed() < Duration::from_secs(5), "the end waits for nobody");
    let [[seen, written, lost, failed]] = counts[..] else { panic!("{text}") };
    eprintln!("{took:?} for {seen} frames; {}", line.text);
    assert_eq!(seen, 31_000);
    assert!(lost > 20_000, "{line:?}");
    assert_eq!(written + lost + failed, seen);
    drop(r);
}

/// A file system without room: frames pass, losses are counted, the file is whole, and it goes on when there is room.
#[test]
fn a_full_disk_is_survived_and_written_again_when_there_is_room() {
    let mut dir = None;
    let mut w = Wire::with(1, &["filter-dump,id=f0,netdev=n0,file=disk/n0.pcapng"], |at| {
        let disk = at.join("disk");
        std::fs::create_dir(&disk).unwrap();
        netreeve_tests::proc::sh(&format!("mount -t tmpfs -o size=1m none '{}'", disk.display())).unwrap();
        dir = Some(disk);
    });
    let disk = Mounted(dir.unwrap());
    let (mut a, mut b) = w.drivers();
    pass(&mut a, &mut b, 3000, 1000);
    w.reeve.wait_for("No space left on device", PATIENCE).unwrap();
    let file = disk.0.join("n0.pcapng");
    let whole = fields(&file, &["frame.len"]).len();
    assert!((500..1100).contains(&whole), "{whole}");
    netreeve_tests::proc::sh(&format!("mount -o remount,size=8m '{}'", disk.0.display())).unwrap();
    pass(&mut a, &mut b, 100, 1000);
    let (text, counts) = w.end();
    let [[seen, written, lost, failed]] = counts[..] else { panic!("{text}") };
    assert_eq!((seen, lost), (3100, 0));
    assert!(failed > 1500 && written + failed == seen, "{text}");
    assert_eq!(fields(&file, &["frame.len"]).len() as u64, written);
    let about = tool("capinfos", &["-M", &file.display().to_string()]);
    assert!(about.contains("Number of stat entries"), "{about}");
}

struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _gone = netreeve_tests::proc::sh(&format!("umount '{}'", self.0.display()));
    }
}
