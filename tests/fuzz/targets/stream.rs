//! Stream framing: the same bytes cut in any way give the same frames, with the same headers where they have some.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netreeve_dataplane::port::stream::framing::Framing;
use netreeve_dataplane::port::stream::inbox::{Inbox, Next};
use netreeve_shared::vnet::Vnet;

/// The frames, and what is said of each before it. `again`: how often one comes again, because nobody took it.
fn frames(framing: Framing, data: &[u8], piece: usize, again: usize) -> Vec<(Vec<u8>, Vnet)> {
    let mut inbox = Inbox::new(framing).unwrap();
    let mut rest = data;
    let (mut out, mut lost) = (Vec::new(), 0);
    loop {
        match inbox.next() {
            Next::Frame { at, .. } if lost < again => {
                lost += 1;
                inbox.rewind(at);
            }
            Next::Frame { at, seg, .. } => {
                lost = 0;
                assert!((1..=framing.max_frame()).contains(&seg.len()));
                let mut v = vec![0; seg.len() as usize];
                seg.copy_out(&mut v);
                let header = if framing == Framing::Vnet { inbox.header(at) } else { Vnet::default() };
                // Whoever believes it asks this first.
                let _can_be = header.check(seg.len());
                out.push((v, header));
            }
            Next::Empty { .. } => {}
            Next::Oversize => return out,
            Next::Partial if rest.is_empty() => return out,
            Next::Partial => {
                let n = inbox.space(true).copy_in(&rest[..piece.min(rest.len())]);
                assert!(n > 0, "a partial frame always finds room");
                inbox.filled(n);
                rest = &rest[n..];
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&cut, data)) = data.split_first() else { return };
    for framing in [Framing::Qemu, Framing::Little16, Framing::Big16, Framing::Vnet] {
        let whole = frames(framing, data, usize::MAX, 0);
        assert_eq!(frames(framing, data, usize::from(cut) + 1, usize::from(cut & 3)), whole);
    }
});
