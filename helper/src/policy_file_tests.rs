//! The grammar, its errors by line, whom the file must belong to, and garbage.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

fn names() -> Names {
    Names::parse("alice:x:1000:1000::/:\nroot:x:0:0::/:", "kvm:x:78:alice")
}

#[test]
fn a_whole_file() {
    let text = "# who may what\n\n  allow group:kvm bridge br0 max=4 queues=8 mtu=1280-9000 isolated=yes # office\r\n\
                deny\tuser:alice\ttap\tvm*\nallow uid:5 xsk ens2f0 queue=8-15 umem=256M steer=macs\n\
                limit any requests=10/s sessions=3 umem=1G\nallow any tap * named=yes persist=yes";
    let policy = parse(text, &names()).unwrap();
    let terms =
        Terms { max: Some(4), queues: Some(8), mtu: Some((1280, 9000)), isolated: true, ..Terms::default() };
    let pattern = Pattern::Exact(IfName::new("br0").unwrap());
    let first =
        Rule { line: 3, action: Action::Allow, who: Who::Gid(78), what: What::Bridge, pattern, terms };
    assert_eq!(policy.rules[0], first);
    assert_eq!((policy.rules[1].line, policy.rules[1].action), (4, Action::Deny));
    assert_eq!(policy.rules[1].pattern, Pattern::Prefix("vm".to_owned()));
    let xsk = Terms { queue: Some((8, 15)), umem: Some(256 << 20), steer_macs: true, ..Terms::default() };
    assert_eq!(policy.rules[2].terms, xsk);
    assert!(policy.rules[3].terms.named && policy.rules[3].terms.persist);
    let blocks = "allow any l2tpv3 192.0.2.0/24 session=5-9\ndeny any listen ::1\nallow any listen * port=53";
    let blocks = parse(blocks, &names()).unwrap().rules;
    assert_eq!(blocks[0].pattern, Pattern::Block("192.0.2.0/24".parse().unwrap()));
    assert_eq!(blocks[1].pattern, Pattern::Block("::1".parse().unwrap()));
    assert_eq!(blocks[2].pattern, Pattern::All);
    assert_eq!((blocks[0].terms.number, blocks[2].terms.number), (Some((5, 9)), Some((53, 53))));
    let limit =
        Limit { who: Who::Any, sessions: Some(3), requests: Some(10), taps: None, umem: Some(1 << 30) };
    assert_eq!(policy.limits, [limit]);
}

/// Lines about addresses that are none.
const BAD_ADDRESSES: [&str; 14] = [
    "allow any l2tpv3 eth0",
    "allow any l2tpv3 192.0.2.1/24",
    "allow any l2tpv3 192.0.2.0/33",
    "allow any l2tpv3 192.0.2.*",
    "allow any l2tpv3 fe80::1%eth0",
    "allow any l2tpv3 * queues=1",
    "allow any l2tpv3 * port=1",
    "allow any l2tpv3 * session=2-1",
    "allow any l2tpv3 * umem=1M",
    "allow any listen localhost",
    "allow any listen * session=1",
    "allow any listen * port=",
    "allow any listen * port=1-2-3",
    "allow any listen * max=1",
];

#[test]
fn a_bad_line_spoils_the_file_and_is_named() {
    let bad = [
        "permit any tap *",
        "allow",
        "allow any",
        "allow any tap",
        "allow any tun *",
        "allow all tap *",
        "allow uid: tap *",
        "allow uid:-1 tap *",
        "allow uid:+1 tap *",
        "allow uid:0x1 tap *",
        "allow uid:4294967295 tap *",
        "allow uid:4294967296 tap *",
        "allow gid:1.5 tap *",
        "allow user:nobody-here tap *",
        "allow group:alice tap *",
        "allow any tap a*b",
        "allow any tap **",
        "allow any bridge 1234567890123456",
        "allow any bridge br/0",
        "allow any tap * max",
        "allow any tap * max=",
        "allow any tap * max=-1",
        "allow any tap * max=1 max=2",
        "allow any tap * queues=65536",
        "allow any tap * umem=1M",
        "allow any tap * named=true",
        "allow any tap * persist=yes",
        "allow any tap * create=yes",
        "allow any bridge * create=yes",
        "allow any bridge br* create=yes",
        "allow any tap * mtu=9000-1500",
        "allow any xsk * queue=8-7",
        "allow any bridge * named=yes",
        "allow any bridge * queue=1",
        "allow any xsk * mtu=1500",
        "allow any xsk * queue=1-",
        "allow any xsk * umem=1MM",
        "allow any xsk * umem=1T",
        "allow any xsk * umem=M",
        "allow any xsk * steer=none",
        "allow any xsk-pinned * umem=1M",
        "deny any tap * max=1",
        "limit any",
        "limit any mtu=1",
        "limit any taps=1 taps=1",
        "limit taps=1",
        "include /etc/passwd",
    ];
    for line in bad.into_iter().chain(BAD_ADDRESSES) {
        let text = format!("allow any tap *\n{line}\nallow any bridge *");
        let errors = parse(&text, &names()).unwrap_err();
        assert_eq!(errors.len(), 1, "{line}");
        assert_eq!(errors[0].line, 2, "{line}");
        assert!(errors[0].why.len() > 10, "{line}: {:?}", errors[0]);
    }
    assert_eq!(parse("x\n\ny", &names()).unwrap_err().iter().map(|b| b.line).collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn names_come_from_the_files_first_line_first() {
    let names = Names::parse("a:x:1:1\na:x:2:2\n:x:3:\nbad\nb:x:-1:\nc:x:4294967295:\n", "g:x:9:");
    assert_eq!(
        (names.user("a"), names.user(""), names.user("b"), names.user("c")),
        (Some(1), None, None, None)
    );
    assert_eq!((names.group("g"), names.group("a"), names.user("g")), (Some(9), None, None));
}

#[test]
fn a_comment_in_another_encoding_hides_no_name() {
    let passwd = String::from_utf8_lossy(b"a:x:1:1:caf\xe9::/\nb:x:2:2::/:").into_owned();
    let names = Names::parse(&passwd, "");
    assert_eq!((names.user("a"), names.user("b")), (Some(1), Some(2)));
}

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("nt-policy-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn file(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn kind(path: &Path, trust: Trust) -> Result<usize, io::ErrorKind> {
    read(path, trust, false).map(|text| text.len()).map_err(|e| e.kind())
}

#[test]
fn only_roots_own_small_regular_file_is_believed() {
    let dir = Dir::new("trust");
    let root = nix::unistd::geteuid().is_root();
    let good = dir.file("good", "abc", 0o644);
    let believed = if root { Ok(3) } else { Err(io::ErrorKind::PermissionDenied) };
    assert_eq!(kind(&good, Trust::Root), believed);
    assert_eq!(kind(&good, Trust::Anybody), Ok(3));
    for mode in [0o664, 0o646, 0o666] {
        let open = dir.file("open", "abc", mode);
        assert_eq!(kind(&open, Trust::Root), Err(io::ErrorKind::PermissionDenied), "{mode:o}");
    }
    if root {
        let theirs = dir.file("theirs", "abc", 0o644);
        nix::unistd::chown(&theirs, Some(1000.into()), None).unwrap();
        assert_eq!(kind(&theirs, Trust::Root), Err(io::ErrorKind::PermissionDenied));
    }
    let link = dir.0.join("link");
    symlink(&good, &link).unwrap();
    assert_eq!(read(&link, Trust::Anybody, false).unwrap_err().raw_os_error(), Some(libc::ELOOP));
    assert!(read(&link, Trust::Anybody, true).is_ok());
    let fifo = dir.0.join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert_eq!(kind(&fifo, Trust::Anybody), Err(io::ErrorKind::InvalidData));
    assert_eq!(kind(&dir.0, Trust::Anybody), Err(io::ErrorKind::InvalidData));
    let size = usize::try_from(MAX_SIZE).unwrap();
    assert_eq!(kind(&dir.file("full", &"#".repeat(size), 0o644), Trust::Anybody), Ok(size));
    let large = dir.file("large", &"#".repeat(size + 1), 0o644);
    assert_eq!(kind(&large, Trust::Anybody), Err(io::ErrorKind::InvalidData));
    assert_eq!(kind(&dir.0.join("none"), Trust::Root), Err(io::ErrorKind::NotFound));
}

#[test]
fn what_is_wrong_with_a_file_is_said_by_line() {
    let dir = Dir::new("load");
    let path = dir.file("p", "allow any tap *\nallow any bridge *", 0o644);
    assert_eq!(load(&path, Trust::Anybody).unwrap().rules.len(), 2);
    dir.file("p", "alow any tap *\nallow any bridge *\ndeny", 0o644);
    let said = load(&path, Trust::Anybody).unwrap_err();
    let at = |line: u32| format!("{}:{line}: ", path.display());
    assert!(said.starts_with(&at(1)) && said.contains(&at(3)) && !said.contains(&at(2)), "{said}");
    std::fs::remove_file(&path).unwrap();
    assert!(load(&path, Trust::Anybody).unwrap_err().starts_with(&format!("{}: ", path.display())));
}

proptest! {
    #[test]
    fn garbage_never_panics(text in "\\PC{0,200}") {
        let _any = parse(&text, &names());
    }

    #[test]
    fn near_rules_never_panic_and_lines_are_counted(
        lines in proptest::collection::vec("(allow|deny|limit|#|)( (any|uid:[0-9]{0,11}|user:alice))?( (tap|bridge|xsk))?( [a-z*]{0,17})?( (max|queues|mtu|umem|taps)=[0-9KMG-]{0,12}){0,2}", 0..8)
    ) {
        let text = lines.join("\n");
        match parse(&text, &names()) {
            Ok(policy) => prop_assert!(policy.rules.len() + policy.limits.len() <= lines.len()),
            Err(bad) => prop_assert!(bad.iter().all(|b| (1..=lines.len()).contains(&(b.line as usize)))),
        }
    }
}
