//! `stream`: QEMU's framing over a stream socket, as netdev or as device.
#![forbid(unsafe_code)]

use crate::fault::Fault;
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
    if matches!(addr, Addr::Vsock(..)) {
        return Err(f.fault("addr.type=vsock is not in this version", "use unix or inet"));
    }
    Ok(Stream { addr, server, reconnect_ms })
}
