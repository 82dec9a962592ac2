//! QEMU's grammar as measured, its decisions, and the includes that crash QEMU's own helper.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn read_all(files: &[(&str, &str)]) -> Result<Acl, String> {
    let files: HashMap<&str, &str> = files.iter().copied().collect();
    let (top, _) = ("top", ());
    read(top, &mut |path| {
        files.get(path).map(|t| (*t).to_owned()).ok_or_else(|| io::Error::from_raw_os_error(libc::EACCES))
    })
}

fn word(text: &str, bridge: &str) -> Word {
    read_all(&[("top", text)]).unwrap().word(IfName::new(bridge).unwrap())
}

fn allowed(line: u32) -> Word {
    Word::Allowed(format!("top:{line}"))
}

fn denied(line: u32) -> Word {
    Word::Denied(format!("top:{line}"))
}

#[test]
fn decisions() {
    let table = [
        ("", "br0", Word::Silent),
        ("allow br0", "br0", allowed(1)),
        ("allow br0", "br1", Word::Silent),
        ("allow br0", "br", Word::Silent),
        ("allow all", "br7", allowed(1)),
        ("allow all\ndeny br0", "br0", denied(2)),
        ("deny br0\nallow all", "br0", denied(1)),
        ("deny br0\nallow br0", "br0", denied(1)),
        ("deny all\nallow br0", "br0", denied(1)),
        ("deny br1\nallow br0", "br0", allowed(2)),
    ];
    for (text, bridge, expected) in table {
        assert_eq!(word(text, bridge), expected, "{text:?} {bridge}");
    }
}

#[test]
fn blanks_as_qemu_reads_them() {
    assert_eq!(word("# allow br0\n\n   \t \n  allow \t br0 \t\r\n", "br0"), allowed(4));
    assert_eq!(word("allow\tbr0", "br0"), allowed(1));
    // The rest of the line is one name, odd as it may be.
    assert_eq!(word("allow br0 br1", "br0"), Word::Silent);
    assert_eq!(word("allow br0 #x", "br0"), Word::Silent);
    assert_eq!(word("allow ", "br0"), Word::Silent);
}

#[test]
fn a_bad_line_spoils_everything_and_is_named() {
    for bad in
        ["allow", "permit br0", "allow\tbr0 x", "Allow br0", "br0", "allow 1234567890123456", "include"]
    {
        let error = read_all(&[("top", &format!("allow br0\n{bad}\n"))]).unwrap_err();
        assert!(error.starts_with("top:2: "), "{bad:?}: {error}");
    }
    assert!(read_all(&[]).unwrap_err().starts_with("top: "));
}

#[test]
fn includes() {
    let acl = read_all(&[("top", "include /a\ninclude /secret\nallow br1"), ("/a", "allow br0\ndeny br2")])
        .unwrap();
    let word = |bridge| acl.word(IfName::new(bridge).unwrap());
    assert_eq!(word("br0"), Word::Allowed("/a:1".to_owned()));
    assert_eq!(word("br1"), Word::Allowed("top:3".to_owned()));
    assert_eq!(word("br2"), Word::Denied("/a:2".to_owned()));
    let error = read_all(&[("top", "allow br0\ninclude /a"), ("/a", "\n\nnonsense")]).unwrap_err();
    assert!(error.starts_with("/a:3: "), "{error}");
}

#[test]
fn an_include_is_passed_over_only_if_it_is_not_there_or_not_ours_to_read() {
    let with = |errno: i32| {
        let mut open = |path: &str| match path {
            "top" => Ok("allow all\ninclude /deny".to_owned()),
            _ => Err(io::Error::from_raw_os_error(errno)),
        };
        read("top", &mut open).map(|acl| acl.word(IfName::new("br0").unwrap()))
    };
    for errno in [libc::EACCES, libc::ENOENT] {
        assert_eq!(with(errno), Ok(allowed(1)));
    }
    // A caller can bring these about; what could not be read may deny.
    for errno in [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EIO, libc::ELOOP] {
        assert!(with(errno).unwrap_err().starts_with("top:2: /deny: "));
    }
}

#[test]
fn include_loops_end() {
    let error = read_all(&[("top", "allow br0\ninclude top")]).unwrap_err();
    assert!(error.starts_with("top:2: "), "{error}");
    let error = read_all(&[("top", "include a"), ("a", "include b"), ("b", "include a")]).unwrap_err();
    assert!(error.contains("includes"), "{error}");
    // Wide as well as deep: two includes in each of eight levels would be 255 files.
    let twice = "include top\ninclude top";
    assert!(read_all(&[("top", twice)]).unwrap_err().contains("includes"));
    let wide = "include /leaf\n".repeat(65);
    assert!(read_all(&[("top", &wide), ("/leaf", "allow br0")]).unwrap_err().starts_with("top:65: "));
}

proptest! {
    #[test]
    fn garbage_never_panics(text in "\\PC{0,200}", more in "(include top|allow [a-z]{0,20}|\\PC{0,9}\n){0,20}") {
        let _any = read_all(&[("top", &format!("{text}\n{more}")), (text.trim(), &more)]);
    }

    #[test]
    fn deny_wins_in_any_order(
        lines in proptest::collection::vec("(allow|deny) (br[0-3]|all)", 0..12),
        turn: prop::sample::Index,
    ) {
        let name = IfName::new("br1").unwrap();
        let about = |verb: &str| lines.iter().any(|l| *l == format!("{verb} br1") || *l == format!("{verb} all"));
        let said = read_all(&[("top", &lines.join("\n"))]).unwrap().word(name);
        prop_assert_eq!(matches!(said, Word::Denied(_)), about("deny"));
        prop_assert_eq!(matches!(said, Word::Allowed(_)), about("allow") && !about("deny"));
        if !lines.is_empty() {
            let mut turned = lines.clone();
            turned.rotate_left(turn.index(lines.len()));
            let again = read_all(&[("top", &turned.join("\n"))]).unwrap().word(name);
            prop_assert_eq!(std::mem::discriminant(&again), std::mem::discriminant(&said));
        }
    }
}
