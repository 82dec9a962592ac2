//! Stream framing: the same bytes cut in any way give the same frames.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netreeve_dataplane::port::stream::framing::Framing;
use netreeve_dataplane::port::stream::inbox::{Inbox, Next};

fn frames(framing: Framing, data: &[u8], piece: usize) -> Vec<Vec<u8>> {
    let mut inbox = Inbox::new(framing).unwrap();
    let mut rest = data;
    let mut out = Vec::new();
    loop {
        match inbox.next() {
            Next::Frame { seg, .. } => {
                let mut v = vec![0; seg.len() as usize];
                seg.copy_out(&mut v);
                out.push(v);
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
        assert_eq!(frames(framing, data, usize::from(cut) + 1), frames(framing, data, usize::MAX));
    }
});
