//! QEMU's command line as `netreeve run` reads it, words cut at NUL bytes: whatever they are, they stay as they are and in
//! their order; what is added stands behind them, is found again where it was added, and is not added twice.
#![no_main]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use libfuzzer_sys::fuzz_target;
use netreeve_dataplane::cli::fuzz::{self, How, Seen};

const VERSIONS: [&str; 6] = [
    "",
    "QEMU emulator version 7.2.17",
    "QEMU emulator version 8.2.0",
    "QEMU emulator version 9.2.0 (Debian)",
    "QEMU emulator version 11.1.2",
    "version 99999999999.1",
];
const IDS: [&str; 4] = ["net0", "n", "netreeve-net0", "a.b_c-d"];
const PATHS: [&str; 3] = ["/run/user/1000/netreeve-Ab12/net0.sock", "/r/a,b,,=c.sock", "/t,id=x,server=on"];

/// Whether `netdev` has one more than `before`, that of this name, at the end.
fn one_more(before: &Seen, after: &Seen, name: &str) {
    let (last, rest) = after.netdevs.split_last().unwrap();
    assert_eq!((rest, last.as_str()), (&before.netdevs[..], name));
    assert!(!before.netdevs.contains(last), "two of one name");
}

fn attached(words: &[OsString], how: &How<'_>) {
    let before = fuzz::read(words);
    assert_eq!(before, fuzz::read(words));
    assert!(before.adds.is_none_or(|n| n > 0 && n % 8192 == 0 && !before.shared));
    let can = before.shared || before.adds.is_some();
    let how = How { vhost_user: how.vhost_user && can, ..*how };
    let (all, name, fronted) = fuzz::attach(words, &how);
    assert_eq!(all, fuzz::attach(words, &how).0);
    assert_eq!(all[..words.len()], *words);
    let after = fuzz::read(&all);
    one_more(&before, &after, &name);
    assert_eq!((after.model, after.is), (before.model, before.is));
    // Devices that were there are, in their order, and one of ours where the guest has none for it.
    let model = before.model.filter(|_| !fronted);
    let ours = model.map(|m| (m.to_owned(), name.clone()));
    let mut left = after.fronts.clone();
    if let Some(ours) = &ours {
        let at = left.iter().rposition(|f| f == ours).expect("no front-end");
        left.remove(at);
    }
    assert_eq!(left, before.fronts);
    if how.vhost_user {
        assert!(after.shared, "memory that is not shared");
        let (twice, other, _) = fuzz::attach(&all, &how);
        assert_ne!(other, name);
        let added = &twice[all.len()..];
        assert!(!added.iter().any(|w| w == "-object" || w == "-machine"), "memory is shared twice");
        one_more(&after, &fuzz::read(&twice), &other);
    } else {
        assert_eq!((after.shared, after.adds), (before.shared, before.adds));
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&[how, more], rest)) = data.split_first_chunk::<2>() else { return };
    let mut words: Vec<OsString> =
        rest.split(|b| *b == 0).take(100).map(|w| OsString::from_vec(w.to_vec())).collect();
    let found = fuzz::find(&words);
    assert_eq!(found, fuzz::find(&words));
    let own = match found {
        Some(at) => words.split_off(at),
        None => {
            words.insert(0, "qemu-system-x86_64".into());
            words
        }
    };
    // QEMU itself refuses an option at the end that lacks its argument.
    let own: Vec<OsString> = own.into_iter().chain(["disk.img".into()]).collect();
    let how = How {
        id: IDS[usize::from(more & 3)],
        path: PATHS[usize::from(more >> 2) % PATHS.len()],
        vhost_user: how & 1 != 0,
        queues: usize::from(how >> 1 & 3) + 1,
        version: VERSIONS[usize::from(how >> 3) % VERSIONS.len()],
        mtu: (more & 0x80 != 0).then_some(1500),
    };
    attached(&own, &how);
});
