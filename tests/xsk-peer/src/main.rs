//! An AF_XDP peer that shares no line with netreeve: source, sink and reflector on xsk-rs (libxdp).
//!
//! `xsk-peer source|sink|reflect INTERFACE native|skb [BYTES]` works on queue 0 until it is killed, and prints one line
//! every 10 ms: frames so far, and when that was, in nanoseconds of CLOCK_MONOTONIC. Frames are of the "local
//! experimental" type 0x88b5, from 02:00:00:00:00:01 to everybody. Its unsafe blocks are xsk-rs's calling convention.

use std::error::Error;
use std::io::{Write, stdout};
use std::thread::sleep;
use std::time::{Duration, Instant};

use xsk_rs::config::{BindFlags, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig, XdpFlags};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue, Umem};

const RING: u32 = 2048;
const BATCH: usize = 64;

type Done<T = ()> = Result<T, Box<dyn Error>>;

/// The queues of one socket and the memory under them.
struct Peer {
    umem: Umem,
    tx: TxQueue,
    rx: RxQueue,
    fill: FillQueue,
    done: CompQueue,
    free: Vec<FrameDesc>,
}

/// Prints the count every 10 ms, looking at the clock only now and then.
struct Report {
    frames: u64,
    start: Instant,
    last: Instant,
    turns: u32,
}

impl Report {
    fn new() -> Self {
        let now = Instant::now();
        Self { frames: 0, start: now, last: now, turns: 0 }
    }

    fn add(&mut self, frames: usize) -> Done {
        self.frames += frames as u64;
        self.turns = self.turns.wrapping_add(1);
        if self.turns.is_multiple_of(16) && self.last.elapsed() >= Duration::from_millis(10) {
            self.last = Instant::now();
            writeln!(stdout(), "frames {} at {}", self.frames, self.start.elapsed().as_nanos())?;
        }
        Ok(())
    }
}

fn open(interface: &str, mode: &str, receives: bool) -> Done<Peer> {
    let ring: QueueSize = RING.try_into()?;
    let umem = UmemConfig::builder().fill_queue_size(ring).comp_queue_size(ring).build()?;
    let (umem, free) = Umem::new(umem, (2 * RING).try_into()?, false)?;
    let mode = match mode {
        "native" => XdpFlags::XDP_FLAGS_DRV_MODE,
        "skb" => XdpFlags::XDP_FLAGS_SKB_MODE,
        other => return Err(format!("mode {other}: native or skb").into()),
    };
    let program =
        if receives { LibxdpFlags::empty() } else { LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD };
    let config = SocketConfig::builder()
        .rx_queue_size(ring)
        .tx_queue_size(ring)
        .xdp_flags(mode)
        .libxdp_flags(program)
        .bind_flags(BindFlags::XDP_COPY | BindFlags::XDP_USE_NEED_WAKEUP)
        .build();
    let interface: Interface = interface.parse()?;
    let began = Instant::now();
    // A queue stays busy for a while after its last socket was closed.
    let (tx, rx, rest) = loop {
        // SAFETY: this process has no other socket on the queue.
        match unsafe { Socket::new(config, &umem, &interface, 0) } {
            Ok(queues) => break queues,
            Err(_) if began.elapsed() < Duration::from_secs(1) => sleep(Duration::from_millis(20)),
            Err(e) => return Err(format!("{e}: {:?}", e.source().map(ToString::to_string)).into()),
        }
    };
    let (fill, done) = rest.ok_or("no fill and completion queue")?;
    Ok(Peer { umem, tx, rx, fill, done, free })
}

fn source(mut p: Peer, bytes: usize) -> Done {
    let mut frame = vec![0; bytes.max(14)];
    frame[..14].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    for d in &mut p.free {
        // SAFETY: the frame is of this UMEM and in no queue.
        unsafe { p.umem.data_mut(d) }.cursor().write_all(&frame)?;
    }
    let mut back = vec![p.free[0]; RING as usize];
    let mut report = Report::new();
    loop {
        let n = p.free.len().min(BATCH);
        let at = p.free.len() - n;
        // SAFETY: free frames of this UMEM, in no queue; those that are taken leave the free list.
        let sent = unsafe { p.tx.produce(&p.free[at..]) };
        p.free.drain(at..at + sent);
        p.tx.wakeup()?;
        // SAFETY: what comes back was sent from this UMEM.
        let n = unsafe { p.done.consume(&mut back) };
        for d in &mut back[..n] {
            // The completion ring gives addresses only: the length has to be set again.
            // SAFETY: the frame came back and is in no queue.
            unsafe { p.umem.data_mut(d) }.cursor().set_pos(frame.len());
        }
        p.free.extend_from_slice(&back[..n]);
        report.add(n)?;
    }
}

fn sink(mut p: Peer) -> Done {
    // SAFETY: free frames of this UMEM, in no queue.
    let given = unsafe { p.fill.produce(&p.free[..RING as usize]) };
    let mut got = vec![p.free[0]; BATCH];
    p.free.drain(..given);
    let mut report = Report::new();
    loop {
        // SAFETY: the descriptors received are of this UMEM.
        let n = unsafe { p.rx.consume(&mut got) };
        let mut left = &got[..n];
        while !left.is_empty() {
            // SAFETY: received, and in no queue any more.
            let k = unsafe { p.fill.produce(left) };
            left = &left[k..];
        }
        report.add(n)?;
    }
}

fn reflect(mut p: Peer) -> Done {
    // SAFETY: free frames of this UMEM, in no queue.
    unsafe { p.fill.produce(&p.free[..RING as usize]) };
    let mut got = vec![p.free[0]; BATCH];
    let mut back = vec![p.free[0]; BATCH];
    let mut report = Report::new();
    let mut owed = 0_usize;
    loop {
        let room = (p.tx.nb_free_exact() as usize).min(BATCH);
        // SAFETY: the descriptors received are of this UMEM.
        let n = unsafe { p.rx.consume(&mut got[..room]) };
        for d in &mut got[..n] {
            // SAFETY: received, and in no queue any more.
            if let Some(mac) = unsafe { p.umem.data_mut(d) }.contents_mut().get_mut(..12) {
                mac.rotate_left(6);
            }
        }
        // SAFETY: received frames, in no queue; there was room for all of them.
        owed += unsafe { p.tx.produce(&got[..n]) };
        if owed > 0 {
            p.tx.wakeup()?;
        }
        // SAFETY: what comes back was sent from this UMEM.
        let n = unsafe { p.done.consume(&mut back) };
        owed -= n;
        let mut left = &back[..n];
        while !left.is_empty() {
            // SAFETY: came back, and in no queue any more.
            let k = unsafe { p.fill.produce(left) };
            left = &left[k..];
        }
        report.add(n)?;
    }
}

fn main() -> Done {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let usage = "usage: xsk-peer source|sink|reflect INTERFACE native|skb [BYTES]";
    let (&what, &interface, &mode) = match &words[..] {
        [what, interface, mode, ..] => (what, interface, mode),
        _ => return Err(usage.into()),
    };
    let bytes = words.get(3).map_or(Ok(64), |w| w.parse())?;
    let peer = open(interface, mode, what != "source")?;
    match what {
        "source" => source(peer, bytes),
        "sink" => sink(peer),
        "reflect" => reflect(peer),
        _ => Err(usage.into()),
    }
}
