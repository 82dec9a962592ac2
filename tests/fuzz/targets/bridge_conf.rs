//! `/etc/qemu/bridge.conf` and what it includes (cut at NUL bytes), loops among them.
#![no_main]

use std::io;

use libfuzzer_sys::fuzz_target;
use netreeve_helper::bridge_conf;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let files: Vec<&str> = text.split('\0').collect();
    let mut opened = 0;
    let mut open = |path: &str| -> io::Result<String> {
        opened += 1;
        assert!(opened < 100_000, "includes do not end");
        // A path of one digit names one of the files: any graph of includes can be made.
        let at = if path == "main" { Some(0) } else { path.parse::<usize>().ok() };
        at.and_then(|i| files.get(i)).map(|s| (*s).to_owned()).ok_or_else(|| io::Error::from_raw_os_error(2))
    };
    if let Ok(acl) = bridge_conf::read("main", &mut open) {
        let _ = acl.word("br0".parse().unwrap());
    }
});
