//! What others read in our files.

use crate::{Wire, fields, frame, pass, tool};
use std::process::Command;

/// Both ends of a wire, each in its own format, in each direction.
#[test]
fn tcpdump_tshark_and_capinfos_read_what_crossed() {
    let mut w = Wire::new(
        1,
        &[
            "filter-dump,id=f0,netdev=n0,file=n0.pcapng",
            "filter-dump,id=f1,netdev=d0,file=d0.pcap,maxlen=64",
            "filter-dump,id=f2,netdev=d0,file=d0rx.pcap,queue=rx,format=pcap-ns",
            r#"{"qom-type":"filter-dump","id":"f3","netdev":"d0","file":"d0tx.pcapng","queue":"tx"}"#,
        ],
    );
    let (mut a, mut b) = w.drivers();
    pass(&mut a, &mut b, 100, 300);
    pass(&mut b, &mut a, 50, 1000);
    let (text, counts) = w.end();
    assert_eq!(counts, [[150, 150, 0, 0], [150, 150, 0, 0], [100, 100, 0, 0], [50, 50, 0, 0]], "{text}");
    // pcapng: lengths, directions, the name and time of the interface, counts at the end.
    let at = |name: &str| w.dir.join(name);
    let rows = fields(&at("n0.pcapng"), &["frame.len", "frame.cap_len", "frame.packet_flags_direction"]);
    assert_eq!(rows.len(), 150);
    // What n0's driver sends is what the port sends: outbound. (tshark writes the two bits in hexadecimal.)
    let direction = |s: &str| u32::from_str_radix(s.trim_start_matches("0x"), 16).unwrap();
    assert!(rows[..100].iter().all(|r| r[..2] == ["300", "300"] && direction(&r[2]) == 2), "{rows:?}");
    assert!(rows[100..].iter().all(|r| r[..2] == ["1000", "1000"] && direction(&r[2]) == 1), "{rows:?}");
    let about = tool("capinfos", &["-M", &at("n0.pcapng").display().to_string()]);
    for want in [
        "pcapng",
        "Name = n0",
        "netreeve port of type vhost-user",
        "nanoseconds (9)",
        "Number of stat entries = 1",
        "Number of packets:   150",
    ] {
        assert!(about.contains(want), "{want} is missing in:\n{about}");
    }
    // Classic pcap, cut at 64 bytes, with the true length.
    let rows = fields(&at("d0.pcap"), &["frame.len", "frame.cap_len", "frame.time_epoch"]);
    assert_eq!(rows.len(), 150);
    assert!(rows[..100].iter().all(|r| r[..2] == ["300", "64"]), "{rows:?}");
    assert!(rows.windows(2).all(|r| r[0][2] <= r[1][2]), "times go on");
    let rx = fields(&at("d0rx.pcap"), &["udp.length", "ip.checksum.status"]);
    assert_eq!(rx, vec![["266".to_owned(), "1".to_owned()]; 100]);
    assert_eq!(fields(&at("d0tx.pcapng"), &["frame.len"]), vec![["1000"]; 50]);
    // tcpdump, byte by byte.
    let text = tool("tcpdump", &["-nn", "-xx", "-c", "1", "-r", &at("d0rx.pcap").display().to_string()]);
    let hex: String = text
        .lines()
        .filter_map(|l| l.trim_start().strip_prefix("0x")?.split_once(':'))
        .flat_map(|(_, l)| l.split_whitespace())
        .collect();
    let want: String = frame(0, 0, 300).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, want);
}

/// A pipe to tcpdump, which ends in the middle: the capture ends, the traffic does not.
#[test]
fn a_live_reader_may_come_by_fifo_and_go() {
    let fifo = |dir: &std::path::Path| {
        nix::unistd::mkfifo(&dir.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut c = Command::new(netreeve_tests::bins::peer("tcpdump").unwrap());
        c.args(["-nn", "-U", "-c", "20", "-r", "pipe"]).current_dir(dir);
        c
    };
    let mut reader = None;
    let mut w = Wire::with(1, &["filter-dump,id=f0,netdev=n0,file=pipe,format=pcapng"], |dir| {
        reader = Some(netreeve_tests::proc::Proc::spawn("tcpdump", fifo(dir)).unwrap());
        // It opens the pipe in its own time; netreeve does not wait for readers.
        let until = std::time::Instant::now() + crate::PATIENCE;
        let opens = || {
            let flags = nix::fcntl::OFlag::O_WRONLY | nix::fcntl::OFlag::O_NONBLOCK;
            nix::fcntl::open(&dir.join("pipe"), flags, nix::sys::stat::Mode::empty())
        };
        let held = loop {
            match opens() {
                Ok(fd) => break fd,
                Err(e) => assert!(std::time::Instant::now() < until, "{e}"),
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        // Kept open until netreeve has it, which is when it is ready.
        std::mem::forget(held);
    });
    let (mut a, mut b) = w.drivers();
    pass(&mut a, &mut b, 30, 200);
    let seen = reader.as_mut().unwrap().wait(crate::PATIENCE).unwrap();
    assert_eq!(
        seen.text.lines().filter(|l| l.contains("192.0.2.1.5000 > 192.0.2.2.9000")).count(),
        20,
        "{}",
        seen.text
    );
    for _ in 0..20 {
        pass(&mut a, &mut b, 100, 1400);
    }
    w.reeve.wait_for("its output is gone", crate::PATIENCE).unwrap();
    pass(&mut b, &mut a, 100, 1400);
    w.end();
}
