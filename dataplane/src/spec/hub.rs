//! `-netdev hubport`: a place in a hub, and the netdev that is the hub's member.
//!
//! QEMU's options, and of our own, each for this port alone: `learning`, `ageing` (seconds), `max-learned` (addresses),
//! `isolated`; the words are bridge(8)'s. Without them a hub does what QEMU's does: everybody gets everything.
#![forbid(unsafe_code)]

use crate::fault::Fault;
use crate::port::hub::{Learning, Plan};
use crate::spec::fields::{Fields, integer};

/// Seconds after which an address is forgotten, unless given: a Linux bridge's.
pub const DEFAULT_AGEING: u32 = 300;
/// Addresses that are known of a port at a time, unless given.
pub const DEFAULT_LEARNED: u16 = 256;
/// The most that may be asked for.
pub const MOST_LEARNED: u16 = 8192;

/// QEMU's `int32`: decimal or, after `0x`, hexadecimal; with a sign.
pub(super) fn number(f: &Fields, text: &str) -> Result<i32, Fault> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |d| (true, d));
    let n = integer(digits).and_then(|n| i64::try_from(n).ok()).map(|n| if negative { -n } else { n });
    let n =
        n.ok_or_else(|| f.fault("Parameter 'hubid' expects an int64 value", "number the hub: hubid=0"))?;
    i32::try_from(n)
        .map_err(|_| f.fault("Parameter 'hubid' expects int32_t", "from -2147483648 to 2147483647"))
}

/// Reads the options of `hubport`, but for the peer.
///
/// # Errors
/// QEMU's complaints and rules.
pub fn read(f: &mut Fields) -> Result<Plan, Fault> {
    let text = f.need("hubid", "number the hub: hubid=0")?;
    let hub = number(f, &text)?.into();
    let learning = learning(f, false)?;
    let isolated = f.flag("isolated")?.unwrap_or(false);
    Ok(Plan { hub, learning, isolated })
}

/// Reads how addresses are learned, if they are; `unless_said`: they are.
///
/// # Errors
/// As [`read`].
pub(super) fn learning(f: &mut Fields, unless_said: bool) -> Result<Option<Learning>, Fault> {
    let learns = f.flag("learning")?.unwrap_or(unless_said);
    let ageing = f.number32("ageing", 1, 1_000_000)?;
    let most = f.number16("max-learned", 1, MOST_LEARNED)?;
    for (key, given) in [("ageing", ageing.is_some()), ("max-learned", most.is_some())] {
        if given && !learns {
            return Err(f.fault(format!("'{key}' is of no use without learning=on"), "add learning=on"));
        }
    }
    Ok(learns.then(|| Learning {
        ageing: ageing.unwrap_or(DEFAULT_AGEING),
        most: most.unwrap_or(DEFAULT_LEARNED),
    }))
}
