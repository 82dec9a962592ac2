//! What clients of the control socket send: any bytes, in any pieces, are the same requests and mistakes, within bounds;
//! and whatever they ask to be added is a port or one clear error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netreeve_dataplane::spec::late::Late;
use netreeve_dataplane::supervise::control::message::Request;
use netreeve_dataplane::supervise::control::split::{MAX_MESSAGE, Splitter};

/// All that there is in `bytes`, as text.
fn split(bytes: &[u8], piece: usize) -> Vec<String> {
    let mut s = Splitter::default();
    let mut all = Vec::new();
    for piece in bytes.chunks(piece) {
        s.push(piece);
        while let Some(value) = s.next_value() {
            all.push(format!("{:?}", value.map(Request::read)));
        }
        assert!(!s.may_have() && s.waiting() <= MAX_MESSAGE + piece.len());
    }
    all
}

fuzz_target!(|data: &[u8]| {
    let Some((piece, bytes)) = data.split_first() else { return };
    let whole = split(bytes, bytes.len().max(1));
    assert_eq!(whole, split(bytes, usize::from(*piece) + 1));
    if let Ok(text) = std::str::from_utf8(bytes) {
        let taken = || vec!["n0".to_owned()];
        let _ = Late::read(false, text, taken());
        let _ = Late::read(true, text, taken());
    }
});
