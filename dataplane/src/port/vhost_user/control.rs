//! The control queue (virtio 1.2 §5.1.6.5), as far as multi-queue needs it: the driver says how many pairs it uses.
//!
//! Offered only together with `MQ`, and only to front ends that do not serve it themselves. Every other command is
//! answered with an error, as the specification wants for features that were not negotiated.
#![forbid(unsafe_code)]

use crate::mem::Seg;
use crate::virtq::{Chains, Device};

const CLASS_MQ: u8 = 4;
const VQ_PAIRS_SET: u8 = 0;
const OK: u8 = 0;
const ERR: u8 = 1;
/// Most commands served for one kick.
const MOST: usize = 64;

/// What serving came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Served {
    /// The driver wants this many pairs from now on.
    pub(super) pairs: Option<u16>,
    /// The driver wants to be interrupted.
    pub(super) call: bool,
}

/// Serves the commands that wait; `max` is the number of queue pairs.
pub(super) fn serve(dev: &mut Device, max: u16) -> Served {
    let mut out = Served::default();
    let mut chains = Chains::default();
    for _ in 0..MOST {
        chains.clear();
        if dev.fetch(&mut chains, 1) == 0 {
            if dev.arm() {
                continue;
            }
            break;
        }
        let Some(c) = chains.get(0).filter(|c| !c.bad) else {
            out.call |= dev.complete(chains.all());
            continue;
        };
        let (read, write) = chains.segs(c).split_at_checked(usize::from(c.readable)).unwrap_or_default();
        let pairs = command(read).filter(|n| (1..=max).contains(n));
        out.pairs = pairs.or(out.pairs);
        let ack = [if pairs.is_some() { OK } else { ERR }];
        let wrote = write.first().map_or(0, |s| s.copy_in(&ack));
        if let Some(c) = chains.get_mut(0) {
            c.written = u32::try_from(wrote).unwrap_or(0);
        }
        out.call |= dev.complete(chains.all());
    }
    out
}

/// The number of pairs, if that is the command.
fn command(read: &[Seg]) -> Option<u16> {
    let mut raw = [0u8; 4];
    let mut at = 0;
    for s in read {
        at += s.copy_out(raw.get_mut(at..)?);
    }
    match raw {
        [CLASS_MQ, VQ_PAIRS_SET, lo, hi] if at == raw.len() => Some(u16::from_le_bytes([lo, hi])),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtq::testing::{BUFS, Guest};
    use crate::virtq::{Buf, Terms};

    #[test]
    fn pairs_are_set_and_all_else_is_refused() {
        let (mut g, mut dev) = Guest::new(8, &Terms::default());
        let mut ask = |bytes: &[u8]| {
            g.put(BUFS, bytes);
            g.put(BUFS + 64, &[9]);
            let len = u32::try_from(bytes.len()).unwrap();
            let bufs = [
                Buf { addr: BUFS, len: 2, write: false },
                Buf { addr: BUFS + 2, len: len - 2, write: false },
                Buf { addr: BUFS + 64, len: 1, write: true },
            ];
            g.driver.add(&bufs).unwrap();
            g.driver.publish();
            let s = serve(&mut dev, 4);
            assert_eq!(g.driver.take().unwrap().1, 1);
            (s.pairs, g.get(BUFS + 64, 1)[0])
        };
        assert_eq!(ask(&[4, 0, 3, 0]), (Some(3), OK));
        assert_eq!(ask(&[4, 0, 0, 0]), (None, ERR));
        assert_eq!(ask(&[4, 0, 5, 0]), (None, ERR));
        assert_eq!(ask(&[0, 0, 1]), (None, ERR));
    }

    #[test]
    fn a_command_without_room_for_the_answer_hangs_nobody() {
        let (mut g, mut dev) = Guest::new(8, &Terms::default());
        g.readable(&[(BUFS, 4)]);
        g.readable(&[(3, 4)]);
        serve(&mut dev, 4);
        assert_eq!(g.split().used_idx(), 2);
    }
}
