//! `stream`: frames over a stream socket, as netdev or as device. Framing and what a peer leaves undone are ours to
//! choose; all else is QEMU's.
#![forbid(unsafe_code)]

use crate::fault::Fault;
use crate::port::stream::framing::Framing;
use crate::spec::addr::{self, Addr};
use crate::spec::fields::Fields;

/// A stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Where.
    pub addr: Addr,
    /// We listen; else we dial.
    pub server: bool,
    /// Dial again after so many milliseconds when the connection is lost.
    pub reconnect_ms: Option<u32>,
    /// How frames stand in it.
    pub framing: Framing,
    /// The peer leaves checksums and segmentation undone; the MTU in bytes that segments are made for.
    pub undone: Option<u16>,
}

/// The MTU where none is said.
const MTU: u16 = 1500;

impl Stream {
    /// QEMU's framing over `addr`.
    #[must_use]
    pub fn plain(addr: Addr, server: bool) -> Self {
        Self { addr, server, reconnect_ms: None, framing: Framing::Qemu, undone: None }
    }
}

/// Reads the options of `stream`.
///
/// # Errors
/// QEMU's complaints and rules.
pub fn read(f: &mut Fields) -> Result<Stream, Fault> {
    let addr = addr::take(f)?;
    let server = f.flag("server")?.unwrap_or(false);
    let reconnect_ms = addr::reconnect(f, server)?;
    if matches!(addr, Addr::Fd(_)) && reconnect_ms.is_some() {
        let why = "'reconnect-ms' cannot be used with a descriptor: there is no address to dial";
        return Err(f.fault(why, "give addr.type=unix or addr.type=inet"));
    }
    let framing = match f.text("framing") {
        None => Framing::Qemu,
        Some(name) => Framing::named(&name).ok_or_else(|| {
            f.bad_value("framing", &name, "the framings are qemu, u16le, u16be, seqpacket and vnet")
        })?,
    };
    if framing == Framing::Packets && matches!(addr, Addr::Inet(_) | Addr::Vsock(..)) {
        return Err(f.fault("framing=seqpacket needs a UNIX socket", "give addr.type=unix or addr.type=fd"));
    }
    Ok(Stream { addr, server, reconnect_ms, framing, undone: undone(f)? })
}

/// `finish=` and `mtu=`: the peer leaves checksums and segmentation undone; the MTU in bytes that segments are made for.
///
/// # Errors
/// An MTU without anything to finish.
pub(super) fn undone(f: &mut Fields) -> Result<Option<u16>, Fault> {
    let finish = f.flag("finish")?.unwrap_or(false);
    let mtu = f.number16("mtu", 576, 65_000)?;
    if mtu.is_some() && !finish {
        let fix = "give finish=on beside it, or set the MTU in the guest";
        return Err(f.fault("mtu= is only used to finish what a peer leaves undone", fix));
    }
    Ok(finish.then_some(mtu.unwrap_or(MTU)))
}
