//! Netdev, device and object strings: any text is a port, a filter or one clear error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netreeve_dataplane::spec::Config;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (netdev, device) = text.split_once('\0').unwrap_or((text, "vhost-user,netdev=n0,path=x"));
    let _ = Config::read(&[netdev.to_owned()], &[device.to_owned()], None);
    let _ = Config::read(&[], &[], Some(("file", text)));
    if let Ok(mut config) = Config::read(&["tap,id=n0".to_owned()], &[], None) {
        let _ = config.objects(&[text.to_owned(), format!("filter-dump,{text}")]);
    }
});
