//! Captures that are switched on and off while frames pass, by `netreeve capture`.

use crate::{PATIENCE, Wire, fields, pass, tool};
use netreeve_tests::bins;
use netreeve_tests::proc::Proc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::Command;
use std::time::{Duration, Instant};

impl Wire {
    fn capture(&self, shell: &str) -> Proc {
        let mut c = Command::new("/bin/sh");
        let netreeve = bins::ours("netreeve").unwrap();
        c.args(["-c", &shell.replace("netreeve", netreeve.to_str().unwrap())]).current_dir(&self.dir);
        let p = Proc::spawn("capture", c).unwrap();
        p.wait_for("capturing frames of port", PATIENCE).unwrap();
        p
    }

    pub(crate) fn control(&self, command: &str, arguments: &str) -> String {
        use std::io::{BufRead, BufReader, Write};
        let mut s = std::os::unix::net::UnixStream::connect(self.dir.join("ctl")).unwrap();
        s.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(s, "{{\"execute\":\"qmp_capabilities\"}}{{\"execute\":\"{command}\",\"arguments\":{arguments},\"id\":7}}").unwrap();
        let lines = BufReader::new(s).lines().map(Result::unwrap);
        lines.into_iter().find(|l| l.contains("\"id\":7")).unwrap()
    }

    /// Waits until so many captures run.
    fn until(&self, captures: usize) {
        let until = Instant::now() + PATIENCE;
        loop {
            let said = self.control("netreeve-query-captures", "{}");
            if said.matches("\"port\"").count() == captures {
                return;
            }
            assert!(Instant::now() < until, "{said}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn a_capture_is_switched_on_and_off_and_nothing_else_notices() {
    let mut w = Wire::new(4, &[]);
    let (mut a, mut b) = w.drivers();
    pass(&mut a, &mut b, 50, 100);
    // To a file, until interrupted.
    let mut file = w.capture("exec netreeve capture ./ctl d0 -w d0.pcapng --maxlen 70 --queue rx");
    pass(&mut a, &mut b, 50, 100);
    pass(&mut b, &mut a, 10, 100);
    file.signal(Signal::SIGINT).unwrap();
    let end = file.wait(PATIENCE).unwrap();
    assert_eq!(end.code, 0, "{}", end.text);
    assert!(end.text.contains("200 frames captured, 0 lost"), "{}", end.text);
    w.until(0);
    let rows = fields(&w.dir.join("d0.pcapng"), &["frame.len", "frame.cap_len"]);
    assert_eq!(rows, vec![["100".to_owned(), "70".to_owned()]; 200]);
    // Through a pipe, to a reader that has seen enough; the only netdev needs no name.
    let mut pipe = w.capture("netreeve capture ./ctl -w - | tcpdump -nn -c 30 -r - 2>/dev/null");
    for _ in 0..20 {
        pass(&mut a, &mut b, 100, 1400);
    }
    let end = pipe.wait(PATIENCE).unwrap();
    assert_eq!(end.text.lines().filter(|l| l.contains("192.0.2.2.9000: UDP")).count(), 30, "{}", end.text);
    assert!(end.text.contains("frames captured"), "{}", end.text);
    w.until(0);
    pass(&mut b, &mut a, 50, 100);
    w.end();
}

#[test]
fn a_capture_ends_with_whoever_asked_for_it_and_outlives_dataplanes() {
    let mut w = Wire::new(2, &[]);
    let (mut a, mut b) = w.drivers();
    let mut one = w.capture("exec netreeve capture ./ctl n0 -w one.pcap");
    let mut two = w.capture("exec netreeve capture ./ctl d0 -w two.pcapng");
    w.until(2);
    pass(&mut a, &mut b, 20, 200);
    two.signal(Signal::SIGKILL).unwrap();
    two.wait(PATIENCE).unwrap();
    w.until(1);
    // What is known of a quiet connection outlives its dataplane.
    std::thread::sleep(Duration::from_millis(1500));
    kill(Pid::from_raw(w.dataplane()), Signal::SIGKILL).unwrap();
    w.reeve.wait_for("dataplane is back", PATIENCE).unwrap();
    pass(&mut b, &mut a, 20, 200);
    one.signal(Signal::SIGTERM).unwrap();
    let end = one.wait(PATIENCE).unwrap();
    assert!(end.code == 0 && end.text.contains("80 frames captured, 0 lost"), "{}", end.text);
    assert_eq!(fields(&w.dir.join("one.pcap"), &["frame.len"]), vec![["200"]; 80]);
    let about = tool("capinfos", &["-M", &w.dir.join("two.pcapng").display().to_string()]);
    assert!(about.contains("Number of packets:   40") && about.contains("stat entries = 1"), "{about}");
    w.end();
}

#[test]
fn what_qmp_says_of_captures() {
    let mut w = Wire::new(1, &[]);
    let add = |more: &str| {
        w.control("object-add", &format!("{{\"qom-type\":\"filter-dump\",\"id\":\"f0\",{more}}}"))
    };
    assert!(add("\"netdev\":\"nn\",\"file\":\"x\"").contains("expects a network backend id"));
    assert!(add("\"netdev\":\"n0\",\"fd\":\"5\"").contains("a name that getfd gave"));
    assert!(add("\"netdev\":\"n0\",\"fd\":\"gone\"").contains("has not been found"));
    assert!(
        add("\"netdev\":\"n0\",\"file\":\"nowhere/x\"").contains("can't open")
            || add("\"netdev\":\"n0\",\"file\":\"nowhere/x\"").contains("No such file")
    );
    assert!(add("\"netdev\":\"n0\",\"file\":\"f0.pcap\"").contains("\"return\":{}"));
    assert!(add("\"netdev\":\"n0\",\"file\":\"f1.pcap\"").contains("duplicate property 'f0'"));
    w.until(1);
    let (mut a, mut b) = w.drivers();
    pass(&mut a, &mut b, 5, 100);
    assert!(w.control("object-del", "{\"id\":\"f0\"}").contains("\"return\":{}"));
    w.until(0);
    assert!(w.control("object-del", "{\"id\":\"f0\"}").contains("object 'f0' not found"));
    assert_eq!(fields(&w.dir.join("f0.pcap"), &["frame.len"]).len(), 5);
    // And again, many times over.
    for _ in 0..30 {
        assert!(
            w.control(
                "object-add",
                "{\"qom-type\":\"filter-dump\",\"id\":\"f0\",\"netdev\":\"d0\",\"file\":\"f0.pcap\"}"
            )
            .contains("\"return\":{}")
        );
        pass(&mut b, &mut a, 3, 100);
        assert!(w.control("object-del", "{\"id\":\"f0\"}").contains("\"return\":{}"));
        w.until(0);
    }
    assert_eq!(fields(&w.dir.join("f0.pcap"), &["frame.len"]).len(), 3);
    let fds = std::fs::read_dir(format!("/proc/{}/fd", w.reeve.pid())).unwrap().count();
    let inside = std::fs::read_dir(format!("/proc/{}/fd", w.dataplane())).unwrap().count();
    assert!(fds < 40 && inside < 40, "descriptors are left behind: {fds}, {inside}");
    w.end();
}
