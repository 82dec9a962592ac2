//! Filters that step in, on the queues of guests' drivers; and captures of queues that change places.

use crate::{PATIENCE, Wire, fields, frame, pass, rings};
use netreeve_tests::bench::driver::{Driver, Make};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

fn beside(w: &Wire) -> UnixStream {
    let s = UnixStream::connect(w.dir.join("m")).unwrap();
    s.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    s
}

const ASIDE: [&str; 2] = ["--netdev", "stream,id=m0,server=on,addr.type=unix,addr.path=m"];

/// The next frame in QEMU's framing; none within half a second.
fn next(s: &mut UnixStream) -> Option<Vec<u8>> {
    let mut len = [0; 4];
    s.read_exact(&mut len).ok()?;
    let mut f = vec![0; u32::from_be_bytes(len) as usize];
    s.read_exact(&mut f).unwrap();
    Some(f)
}

/// The flow and the number that `frame` put into a frame.
fn of(f: &[u8]) -> (u16, u64) {
    let flow = u16::from_be_bytes(f[34..36].try_into().unwrap()) - 5000;
    (flow, u64::from_be_bytes(f[48..56].try_into().unwrap()))
}

/// Reads until nothing comes; how many frames there were. Those of a flow are in order.
fn drain(s: &mut UnixStream, len: usize) -> u64 {
    let (mut n, mut last) = (0, BTreeMap::new());
    while let Some(f) = next(s) {
        let (flow, seq) = of(&f);
        assert!(f == frame(flow, seq, len), "flow {flow}, {seq}");
        let before = last.insert(flow, seq + 1).unwrap_or(0);
        assert!(seq >= before, "flow {flow}: {seq} after {before}");
        n += 1;
    }
    n
}

fn port(w: &Wire, id: &str) -> serde_json::Value {
    let said: serde_json::Value = serde_json::from_str(&w.control("netreeve-query-ports", "{}")).unwrap();
    said["return"].as_array().unwrap().iter().find(|p| p["id"] == id).unwrap().clone()
}

fn dropped(w: &Wire, id: &str, why: &str) -> u64 {
    port(w, id)["drops"][why].as_u64().unwrap()
}

#[test]
fn copies_of_four_queues_are_all_there_or_counted() {
    let mirror =
        ["filter-mirror,id=f0,netdev=n0,outdev=m0", "filter-dump,id=f1,netdev=n0,file=n0.pcapng,maxlen=96"];
    let mut w = Wire::more(4, &mirror, &ASIDE, |_| ());
    let (mut a, mut b) = w.drivers();
    pass(&mut a, &mut b, 10, 100);
    assert_eq!(dropped(&w, "m0", "peer_down"), 40, "nobody is there");
    let mut s = beside(&w);
    let until = Instant::now() + PATIENCE;
    while port(&w, "m0")["state"] != "up" {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(5));
    }
    // While somebody reads, and while nobody does.
    let reader = std::thread::spawn(move || (drain(&mut s, 100), s));
    pass(&mut a, &mut b, 5000, 100);
    let (n, mut s) = reader.join().unwrap();
    let full = dropped(&w, "m0", "full");
    assert_eq!(n + full, 20_000, "{full} found no room");
    let before = Instant::now();
    pass(&mut b, &mut a, 5000, 1400);
    assert!(before.elapsed() < PATIENCE, "nobody waits for the mirror");
    let n = drain(&mut s, 1400);
    assert_eq!(n + dropped(&w, "m0", "full") - full, 20_000);
    assert!(dropped(&w, "m0", "full") > full, "nobody read");
    let (text, counts) = w.end();
    assert_eq!(counts[0][0], 40_040, "{text}");
}

#[test]
fn what_is_put_in_reaches_a_guest_that_is_slow_and_nothing_is_lost() {
    let put = ["filter-redirector,id=f0,netdev=d0,queue=rx,indev=m0"];
    let mut w = Wire::more(2, &put, &ASIDE, |_| ());
    let (mut a, mut b) = w.drivers();
    pass(&mut a, &mut b, 10, 100);
    let mut s = beside(&w);
    const N: u64 = 20_000;
    let writer = std::thread::spawn(move || {
        for n in 0..N {
            let f = frame(3, n, 700);
            s.write_all(&[&700_u32.to_be_bytes()[..], &f].concat()).unwrap();
        }
        s
    });
    // It takes what fills its ring, and pauses; then its ring is full while nothing comes from its peer.
    let (mut want, until) = (0, Instant::now() + 3 * PATIENCE);
    let mut sent = 0;
    while want < N {
        for (q, (rx, _)) in rings(&mut b).into_iter().enumerate() {
            rx.recv(256, |f, len| {
                let (flow, seq) = of(f);
                match flow {
                    3 => {
                        assert_eq!((seq, q, len), (want, 0, 700), "in order, at the first queue");
                        want += 1;
                    }
                    _ => sent += 1,
                }
            });
        }
        if want % 1000 < 300 {
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(Instant::now() < until, "{want} of {N}: {}", w.reeve.tail());
    }
    assert_eq!(sent, 0);
    drop(writer.join().unwrap());
    pass(&mut a, &mut b, 100, 100);
    pass(&mut b, &mut a, 100, 100);
    let ports = w.control("netreeve-query-ports", "{}");
    assert!(!ports.contains("\"full\":1"), "{ports}");
    w.end();
}

#[test]
fn a_buffer_holds_what_guests_send_and_gives_all_of_it() {
    let mut w = Wire::more(4, &["filter-buffer,id=f0,netdev=d0,interval=20000"], &[], |_| ());
    let (mut a, mut b) = w.drivers();
    for _ in 0..2 {
        let before = Instant::now();
        pass(&mut a, &mut b, 6000, 64);
        assert!(before.elapsed() >= Duration::from_millis(20), "they came at once");
        pass(&mut b, &mut a, 1000, 1400);
        // And without it.
        let off = w.control("qom-set", r#"{"path":"f0","property":"status","value":"off"}"#);
        assert!(off.contains("return"), "{off}");
        pass(&mut a, &mut b, 100, 64);
        let on = w.control("qom-set", r#"{"path":"f0","property":"status","value":"on"}"#);
        assert!(on.contains("return"), "{on}");
    }
    assert!(w.control("object-del", r#"{"id":"f0"}"#).contains("return"));
    pass(&mut a, &mut b, 1000, 64);
    w.end();
}

#[test]
fn a_queues_number_stays_its_own_when_ports_change_places() {
    let objects =
        ["filter-dump,id=f0,netdev=d0,file=d0.pcapng", "filter-dump,id=f1,netdev=n0,file=n0.pcapng"];
    let mut w = Wire::more(4, &objects, &["--hotplug", "vhost-user"], |_| ());
    let (mut a, mut b) = w.drivers();
    pass(&mut a, &mut b, 20, 100);
    let ask = |w: &Wire, command: &str, arguments: &str| {
        let said = w.control(command, arguments);
        assert!(said.contains("\"return\""), "{command} {arguments}: {said}");
    };
    ask(&w, "netdev_add", r#"{"type":"vhost-user","id":"n1","path":"c","queues":4}"#);
    let make = Make { rx: 256, ..Make::usual(false) };
    let mut c = Driver::connect_pairs(&w.dir.join("c"), make, 4).unwrap();
    for round in 0..3 {
        ask(&w, "netreeve-set-netdev", r#"{"device":"d0","netdev":"n1"}"#);
        pass(&mut c, &mut b, 20, 100);
        pass(&mut b, &mut c, 20, 100);
        ask(&w, "netreeve-set-netdev", r#"{"device":"d0","netdev":"n0"}"#);
        pass(&mut a, &mut b, 20, 100);
        let file = w.dir.join(format!("late{round}.pcapng"));
        let add = format!(
            r#"{{"qom-type":"filter-dump","id":"g{round}","netdev":"n0","file":"{}"}}"#,
            file.display()
        );
        ask(&w, "object-add", &add);
        pass(&mut b, &mut a, 20, 100);
    }
    w.end();
    for (name, n) in [("d0", 13), ("n0", 7), ("late0", 5), ("late1", 3), ("late2", 1)] {
        let mut rows =
            fields(&w.dir.join(format!("{name}.pcapng")), &["udp.srcport", "frame.interface_queue"]);
        // A device whose netdev is swapped announces its guest.
        rows.retain(|r| !r[0].is_empty());
        let wrong = rows.iter().find(|r| r[0].parse::<u32>().unwrap() - 5000 != r[1].parse::<u32>().unwrap());
        assert_eq!(wrong, None, "{name}");
        assert_eq!(rows.len(), n * 80, "{name}");
    }
}
