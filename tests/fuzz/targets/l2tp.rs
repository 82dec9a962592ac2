//! L2TPv3 messages: any bytes are a frame of ours, whose bytes are the last ones, or a reason to drop them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netreeve_dataplane::mem::Buf;
use netreeve_dataplane::port::dgram::l2tp::{Carrier, Cookie, Counter, Session};

fuzz_target!(|data: &[u8]| {
    let Some((&[form, offset], message)) = data.split_first_chunk::<2>() else { return };
    let carrier = [Carrier::Udp, Carrier::Ip4, Carrier::Ip6][usize::from(form % 3)];
    let cookie = [Cookie::None, Cookie::Four(1, 2), Cookie::Eight(1, 2)][usize::from(form / 3 % 3)];
    let counter = [Counter::None, Counter::Counts, Counter::Pinned][usize::from(form / 9 % 3)];
    let s = Session { carrier, tx: 1, rx: 1, cookie, counter, offset: offset.into() };
    if message.is_empty() {
        return;
    }
    let Ok(len) = u32::try_from(message.len()) else { return };
    let Ok(buf) = Buf::new(len) else { return };
    let whole = buf.seg(0, len);
    whole.copy_in(message);
    if let Ok(frame) = s.open(&whole) {
        let ip = if carrier == Carrier::Ip4 { u32::from(message[0] & 15) * 4 } else { 0 };
        assert_eq!(frame.len() + s.overhead() + ip, len);
        let mut bytes = vec![0; frame.len() as usize];
        frame.copy_out(&mut bytes);
        assert!(message.ends_with(&bytes));
    }
});
