//! Messages of any lengths, received as room allows and given as somebody takes them, some of them again: the frames are
//! the messages, in order and apart.
#![no_main]

use std::collections::VecDeque;

use libfuzzer_sys::fuzz_target;
use netreeve_dataplane::frame::MAX_FRAME;
use netreeve_dataplane::mem::Seg;
use netreeve_dataplane::port::stream::framing::Framing;
use netreeve_dataplane::port::stream::inbox::{Inbox, Next};

fn bytes(seg: &Seg) -> Vec<u8> {
    let mut v = vec![0; seg.len() as usize];
    seg.copy_out(&mut v);
    v
}

fuzz_target!(|data: &[u8]| {
    let mut inbox = Inbox::new(Framing::Packets).unwrap();
    let mut number = 0_u8;
    // What lies in the inbox, and the frames that were given since bytes were last put there.
    let (mut here, mut given) = (VecDeque::<Vec<u8>>::new(), Vec::<(u32, Vec<u8>)>::new());
    for word in data.chunks_exact(2) {
        let (what, n) = (word[0], u32::from(word[1]));
        match what % 3 {
            0 => {
                let len = if what & 0x80 == 0 { n } else { n * 273 + u32::from(what >> 3) };
                // Frames that are in use stay where they are.
                let may_move = given.is_empty() || what & 4 == 0;
                let space = inbox.space(may_move);
                assert!(space.is_empty() || space.len() == MAX_FRAME);
                assert!(!space.is_empty() || !may_move || !here.is_empty(), "an empty one has room");
                if may_move || !space.is_empty() {
                    given.clear();
                }
                if space.is_empty() {
                    continue;
                }
                number = number.wrapping_add(1);
                let message = vec![number; len.min(MAX_FRAME) as usize];
                inbox.filled(space.copy_in(&message));
                here.push_back(message);
            }
            1 => match inbox.next() {
                Next::Frame { at, seg, .. } => {
                    let want = here.pop_front().expect("no message");
                    assert_eq!(bytes(&seg), want);
                    given.push((at, want));
                }
                Next::Empty { .. } => {
                    let want = here.pop_front().expect("no message");
                    assert!(want.is_empty());
                    // It comes again with the frame before it, if there is one to go back to.
                    if !given.is_empty() {
                        given.push((u32::MAX, want));
                    }
                }
                Next::Partial => assert!(here.is_empty()),
                Next::Oversize => panic!("no message is longer than the largest"),
            },
            _ => {
                // Nobody took the last ones.
                let i = n as usize % given.len().max(1);
                let Some((at, _)) = given.get(i).filter(|(at, _)| *at != u32::MAX) else { continue };
                inbox.rewind(*at);
                for (_, f) in given.split_off(i).into_iter().rev() {
                    here.push_front(f);
                }
            }
        }
    }
});
