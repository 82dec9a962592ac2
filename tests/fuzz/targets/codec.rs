//! The helper's protocol: any bytes as a request or an answer; what is read must write the same bytes again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netreeve_shared::codec;

fuzz_target!(|data: &[u8]| {
    if let Ok((sequence, request)) = codec::read_request(data) {
        let _ = request.check();
        assert_eq!(codec::request(sequence, &request).unwrap(), data);
    }
    for fds in 0..=16 {
        if let Ok((sequence, answer)) = codec::read_answer(data, fds) {
            assert_eq!(codec::answer(sequence, &answer).unwrap(), data);
        }
    }
});
