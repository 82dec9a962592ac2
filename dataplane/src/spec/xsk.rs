//! `-netdev af-xdp`: receive queues of an interface, bound by the helper.
//!
//! QEMU's options, and of our own: `ring` (entries), `umem` (bytes a queue), `chunk` (bytes), and which frames come:
//! `macs` (addresses joined by `+`; none: every frame), `broadcast`, `multicast`.
#![forbid(unsafe_code)]

use netreeve_shared::ifname::IfName;
use netreeve_shared::mac::Mac;
use netreeve_shared::request::{
    MAX_STEER_MACS, MAX_UMEM, MAX_XSK_QUEUES, Request, Steer, XdpMode, XskRequest,
};

use crate::fault::Fault;
use crate::spec::fields::Fields;

/// Entries of a ring unless given (QEMU's number too).
pub const DEFAULT_RING: u32 = 2048;

/// AF_XDP sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xsk {
    /// What the helper is asked for. A `chunk` of 0 stands for: by the interface's MTU.
    pub request: XskRequest,
    /// UMEM bytes of a queue, if given.
    pub umem: Option<u64>,
}

/// Reads the options of `af-xdp`.
///
/// # Errors
/// QEMU's complaints and rules.
pub fn read(f: &mut Fields) -> Result<Xsk, Fault> {
    let interface: IfName = {
        f.need("ifname", "name the interface: ifname=NAME")?;
        f.parsed("ifname")?.ok_or_else(|| f.fault("Parameter 'ifname' is missing", ""))?
    };
    let mode = match f.text("mode").as_deref() {
        None => None,
        Some("native") => Some(XdpMode::Native),
        Some("skb") => Some(XdpMode::Skb),
        Some(other) => {
            return Err(f.bad_value("mode", other, "mode is native or skb; none: native, then skb"));
        }
    };
    let force_copy = f.flag("force-copy")?.unwrap_or(false);
    let (queues, start_queue) = queues(f, &interface)?;
    inhibited(f)?;
    let ring = f.number32("ring", 64, 32768)?.unwrap_or(DEFAULT_RING);
    if !ring.is_power_of_two() {
        return Err(f.bad_value("ring", &ring.to_string(), "a power of two from 64 to 32768"));
    }
    let chunk = f.number32("chunk", 2048, 4096)?.unwrap_or(0);
    if !matches!(chunk, 0 | 2048 | 4096) {
        return Err(f.bad_value("chunk", &chunk.to_string(), "2048 or 4096"));
    }
    let umem = f.size("umem", 64 * 2048, MAX_UMEM)?;
    let steer = steer(f)?;
    let request =
        XskRequest { interface, mode, queues, start_queue, force_copy, ring, chunk, chunks: 0, steer };
    Ok(Xsk { request, umem })
}

impl Xsk {
    /// The request for bound sockets, with the chunk chosen by the interface's MTU (in bytes) unless given.
    #[must_use]
    pub fn bound(&self, mtu: u32) -> Request {
        let mut r = self.request.clone();
        if r.chunk == 0 {
            // Half a page holds a frame of 1500 and its headroom, and twice as many stay in the cache.
            r.chunk = if mtu <= 1500 { 2048 } else { 4096 };
        }
        // As many chunks as the fill and the transmit ring hold: no slot of either ever waits for memory.
        let bytes = self.umem.unwrap_or(2 * u64::from(r.ring) * u64::from(r.chunk));
        r.chunks = u32::try_from(bytes / u64::from(r.chunk)).unwrap_or(u32::MAX);
        Request::Xsk(r)
    }

    /// The request for sockets that a VMM with its own af-xdp takes (`inhibit=on,sock-fds=`).
    #[must_use]
    pub fn pinned(&self) -> Request {
        let mut r = self.request.clone();
        r.chunk = 2048;
        r.chunks = 2 * r.ring;
        Request::XskPinned(r)
    }
}

fn queues(f: &mut Fields, interface: &IfName) -> Result<(u16, u16), Fault> {
    let n = f.number("queues", 0, u64::from(u32::MAX))?.unwrap_or(1);
    if n == 0 {
        let why = format!("invalid number of queues (0) for '{interface}'");
        return Err(f.fault(why, "queues= starts at 1"));
    }
    let queues = u16::try_from(n).ok().filter(|n| *n <= MAX_XSK_QUEUES).ok_or_else(|| {
        f.fault(format!("af-xdp has at most {MAX_XSK_QUEUES} queues in one port here"), "lower queues=")
    })?;
    let start = f.number16("start-queue", 0, u16::MAX - queues)?.unwrap_or(0);
    Ok((queues, start))
}

/// QEMU's form in which somebody else made socket and map: for a VMM, not for us.
fn inhibited(f: &mut Fields) -> Result<(), Fault> {
    let inhibit = f.flag("inhibit")?.unwrap_or(false);
    let (socks, map, index) = (f.has("sock-fds"), f.has("map-path"), f.has("map-start-index"));
    if socks && map {
        return Err(f.fault("'sock-fds' and 'map-path' are mutually exclusive", ""));
    }
    if index && !map {
        return Err(f.fault("'map-start-index' requires 'map-path'", ""));
    }
    if inhibit && !socks && !map {
        return Err(f.fault("'inhibit=on' requires 'sock-fds' or 'map-path'", "leave inhibit= out"));
    }
    if !inhibit && (socks || map) {
        return Err(f.fault("'sock-fds' and 'map-path' require 'inhibit=on'", ""));
    }
    for key in ["sock-fds", "map-path", "map-start-index"] {
        let why =
            "sockets that are not bound could be bound to any interface, so netreeve's come from its helper";
        f.refuse(
            key,
            why,
            "leave inhibit= out; `netreeve grant` makes sock-fds for a VMM that has af-xdp itself",
        )?;
    }
    Ok(())
}

fn steer(f: &mut Fields) -> Result<Steer, Fault> {
    let (broadcast, multicast) = (f.flag("broadcast")?, f.flag("multicast")?);
    let Some(list) = f.list("macs", '+') else {
        if broadcast.is_some() || multicast.is_some() {
            let why = "broadcast= and multicast= belong to macs=";
            return Err(f.fault(why, "without macs= every frame comes"));
        }
        return Ok(Steer::All);
    };
    let macs: Vec<Mac> = list
        .iter()
        .map(|t| t.parse::<Mac>().map_err(|e| f.bad_value("macs", t, &e.to_string())))
        .collect::<Result<_, _>>()?;
    if macs.len() > MAX_STEER_MACS || !macs.iter().all(|m| m.is_station()) {
        let why = format!("macs= takes 1 to {MAX_STEER_MACS} station addresses");
        return Err(f.fault(why, "multicast=on and broadcast=on bring group addresses"));
    }
    let (broadcast, multicast) = (broadcast.unwrap_or(false), multicast.unwrap_or(false));
    Ok(Steer::Macs { macs, broadcast, multicast })
}
