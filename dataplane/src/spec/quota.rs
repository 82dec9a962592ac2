//! How much of the host a `user` network may have: `flows` and `socket-buffer`. They are ours; QEMU has neither.
//!
//! Trust: the text is the user's. Promise: what is asked for by number is had, or refused where it is opened; nothing here
//! asks the machine.
#![forbid(unsafe_code)]

use crate::fault::Fault;
use crate::port::user::plan::{Limits, OUT};
use crate::spec::fields::{Fields, integer};
use crate::spec::user::User;

/// Least and most of either number of flows.
const FLOWS: (u64, u64) = (16, 1 << 18);
/// Where only TCP's connections are given, there are this part as many of UDP's flows.
const UDP: u32 = 16;
/// Least and most of a socket's buffer, in bytes. With less than a segment of the loopback device's each would wait for its
/// acknowledgement, which the other end puts off.
const BUFFER: (u64, u64) = (64 << 10, 16 << 20);

/// What was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// TCP connections and UDP flows at a time; none: the usual ones, or as many as descriptors allow.
    pub flows: Option<(u32, u32)>,
    /// Bytes that a flow's socket keeps for one direction (the kernel takes twice as many for them); none: the kernel
    /// decides.
    pub buffer: Option<u32>,
}

impl Quota {
    /// With the usual bounds of everything else.
    #[must_use]
    fn limits(&self) -> Limits {
        let usual = Limits::default();
        let (tcp, udp) = self.flows.unwrap_or((usual.tcp, usual.udp));
        Limits { tcp, udp, buffer: self.buffer, ..usual }
    }
}

impl User {
    /// What its dataplane may have of each thing.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits { out: if self.ns_fd.is_some() { OUT } else { 0 }, ..self.quota.limits() }
    }
}

/// Reads both options.
///
/// # Errors
/// They are no numbers, too small or too large.
pub(super) fn read(f: &mut Fields) -> Result<Quota, Fault> {
    let flows = match f.text("flows") {
        None => None,
        Some(text) => Some(flows(&text).ok_or_else(|| {
            let fix = format!("TCP[:UDP], each {} to {}, as in 2000 or 4096:512", FLOWS.0, FLOWS.1);
            f.bad_value("flows", &text, &fix)
        })?),
    };
    let buffer = f.size("socket-buffer", BUFFER.0, BUFFER.1)?;
    Ok(Quota { flows, buffer: buffer.and_then(|n| u32::try_from(n).ok()) })
}

/// `TCP` or `TCP:UDP`.
fn flows(text: &str) -> Option<(u32, u32)> {
    let (tcp, udp) = text.split_once(':').map_or((text, None), |(tcp, udp)| (tcp, Some(udp)));
    let number = |text: &str| {
        let n = integer(text).filter(|n| (FLOWS.0..=FLOWS.1).contains(n))?;
        u32::try_from(n).ok()
    };
    let tcp = number(tcp)?;
    let least = u32::try_from(FLOWS.0).ok()?;
    Some((tcp, udp.map_or(Some((tcp / UDP).max(least)), number)?))
}
