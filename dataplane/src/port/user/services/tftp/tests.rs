use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use netreeve_shared::mac::Mac;
use proptest::prelude::*;

use super::*;
use crate::frame::Batch;
use crate::mem::Buf;
use crate::port::user::bay::Bay;
use crate::port::user::{Plan, context, tests::frames};

const GUEST: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

struct Bench {
    dir: PathBuf,
    tftp: Tftp,
    cx: Cx,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn asker(port: u16) -> Asker {
    Asker { mac: GUEST, at: SocketAddr::new([10, 0, 2, 15].into(), port), to: "10.0.2.2:69".parse().unwrap() }
}

impl Bench {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("netreeve-tftp-{name}-{}", std::process::id()));
        fs::create_dir_all(dir.join("sub")).unwrap();
        let fd = fs::File::open(&dir).unwrap();
        Self { dir, tftp: Tftp::new(Some(fd.into())), cx: context(&Plan::qemu()).unwrap() }
    }

    fn file(&self, name: &str, content: &[u8]) {
        fs::write(self.dir.join(name), content).unwrap();
    }

    fn tell(&mut self, port: u16, m: &[u8]) -> Vec<Vec<u8>> {
        self.tftp.take(asker(port), m, &mut self.cx);
        self.got()
    }

    fn got(&mut self) -> Vec<Vec<u8>> {
        let (mem, mut bay, mut b) = (Buf::new(1 << 20).unwrap(), Bay::default(), Batch::new());
        b.landing.open_pool(mem.seg(0, mem.len()));
        self.cx.out.give(&mut bay, &mut b, &self.cx.net, &mut self.cx.stats);
        frames(&b).into_iter().map(|f| f[42..].to_vec()).collect()
    }

    fn pass(&mut self, time: Duration) -> Vec<Vec<u8>> {
        self.cx.now += time;
        self.tftp.tick(&mut self.cx);
        self.got()
    }

    /// Loads a file as a client would, with an acknowledgement for each window.
    fn load(&mut self, request: &[u8], window: usize) -> Vec<u8> {
        let mut got = self.tell(9, request);
        if got[0][..2] == [0, 6] {
            got = self.tell(9, &[0, 4, 0, 0]);
        }
        let (mut all, mut next, mut size) = (Vec::new(), 1u16, None);
        loop {
            assert!((1..=window).contains(&got.len()), "{} blocks", got.len());
            let mut over = false;
            for m in &got {
                assert!(!over);
                assert_eq!((&m[..2], &m[2..4]), (&[0, 3][..], &next.to_be_bytes()[..]));
                next = next.wrapping_add(1);
                all.extend(&m[4..]);
                over = m.len() - 4 < *size.get_or_insert(m.len() - 4).max(&mut 1) || m.len() == 4;
                size = size.max(Some(m.len() - 4));
            }
            let short = got.last().is_none_or(|m| m.len() - 4 < size.unwrap_or(0) || m.len() < 8 + 4);
            got = self.tell(9, &[&[0, 4][..], &next.wrapping_sub(1).to_be_bytes()].concat());
            if got.is_empty() {
                assert!(short || over || self.tftp.sessions.is_empty());
                return all;
            }
        }
    }
}

fn read(name: &str, mode: &str, options: &[(&str, &str)]) -> Vec<u8> {
    let mut m = vec![0, 1];
    for text in [name, mode].into_iter().chain(options.iter().flat_map(|(a, b)| [*a, *b])) {
        m.extend(text.bytes());
        m.push(0);
    }
    m
}

fn pattern(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 7 + i / 509) as u8).collect()
}

#[test]
fn a_file_in_bytes() {
    let mut b = Bench::new("bytes");
    let content = pattern(700);
    b.file("sub/x", &content);
    let first = b.tell(9, &read("/sub\\x", "OCTET", &[]));
    assert_eq!(first, [[&[0, 3, 0, 1][..], &content[..512]].concat()]);
    // Said twice, or of what was not sent: no answer (each would be answered twice from then on).
    assert!(b.tell(9, &[0, 4, 0, 0]).is_empty() && b.tell(9, &[0, 4, 0, 2]).is_empty());
    assert_eq!(b.tell(9, &[0, 4, 0, 1]), [[&[0, 3, 0, 2][..], &content[512..]].concat()]);
    assert!(b.tell(9, &[0, 4, 0, 2]).is_empty());
    assert!(b.tftp.sessions.is_empty());
}

#[test]
fn sizes_and_options() {
    let mut b = Bench::new("sizes");
    for n in [0, 1, 511, 512, 513, 1024, 5000] {
        b.file("f", &pattern(n));
        assert_eq!(b.load(&read("f", "octet", &[]), 1), pattern(n), "{n} bytes");
        let windows = [("blksize", "100"), ("windowsize", "7")];
        assert_eq!(b.load(&read("f", "octet", &windows), 7), pattern(n), "{n} bytes in windows");
        assert!(b.tftp.sessions.is_empty());
    }
    let all = [("BLKSIZE", "65464"), ("tsize", "0"), ("timeout", "3"), ("windowsize", "999"), ("other", "1")];
    let told = b.tell(9, &read("f", "octet", &all));
    assert_eq!(told[0], b"\0\x06blksize\x001468\0tsize\x005000\0timeout\x003\0windowsize\x0016\0");
    // Given again while nobody answers, at the time that was asked for.
    assert!(b.pass(Duration::from_millis(2900)).is_empty());
    assert_eq!(b.pass(Duration::from_millis(100)), told);
    assert_eq!(b.tell(9, &[0, 4, 0, 0]).len(), 4);
    // Only what is understood counts.
    let odd = [("blksize", "7"), ("timeout", "0"), ("windowsize", "x"), ("tsize", "-")];
    assert_eq!(b.tell(9, &read("f", "octet", &odd))[0][..4], [0, 3, 0, 1]);
    assert_eq!(b.tftp.sessions.len(), 1, "who asks again begins anew");
}

#[test]
fn blocks_count_on_from_zero() {
    let mut b = Bench::new("wrap");
    let content = pattern(8 * 66_000 + 3);
    b.file("f", &content);
    let got = b.load(&read("f", "octet", &[("blksize", "8"), ("windowsize", "16")]), 16);
    assert!(got == content);
}

#[test]
fn text_is_for_anybody() {
    let mut b = Bench::new("text");
    b.file("f", b"a\nb\r\nc\rd");
    assert_eq!(
        b.load(&read("f", "NetASCII", &[("tsize", "0"), ("windowsize", "4")]), 1),
        b"a\r\nb\r\0\r\nc\r\0d"
    );
    // Whatever the blocks cut in two.
    let lines = b"x\ny\r\r\n\n".repeat(100);
    let want: Vec<u8> = lines
        .iter()
        .flat_map(|c| match c {
            b'\n' => vec![b'\r', b'\n'],
            b'\r' => vec![b'\r', 0],
            c => vec![*c],
        })
        .collect();
    b.file("f", &lines);
    for size in 8..20 {
        let size = size.to_string();
        assert_eq!(b.load(&read("f", "netascii", &[("blksize", &size)]), 1), want);
    }
}

#[test]
fn what_is_lost_is_sent_again_and_in_the_end_given_up() {
    let mut b = Bench::new("lost");
    b.file("f", &pattern(3000));
    let request = read("f", "octet", &[("windowsize", "3")]);
    assert_eq!(b.tell(9, &request)[0][..2], [0, 6]);
    let window = b.tell(9, &[0, 4, 0, 0]);
    assert_eq!(window.len(), 3);
    assert_eq!(b.pass(Duration::from_secs(1)), window);
    // The first came, the others did not: from there on.
    let rest = b.tell(9, &[0, 4, 0, 1]);
    assert_eq!((rest.len(), &rest[0]), (3, &window[1]));
    for _ in 1..TRIES {
        assert_eq!(b.pass(Duration::from_secs(1)), rest);
    }
    assert!(b.pass(Duration::from_secs(1)).is_empty());
    assert!(b.tftp.sessions.is_empty() && !b.tftp.ticking);
    // A client that gives up.
    b.tell(9, &request);
    assert!(b.tell(9, &[0, 5, 0, 0, 0]).is_empty() && b.tftp.sessions.is_empty());
}

#[test]
fn nothing_but_files_of_the_directory() {
    use std::os::unix::fs::symlink;
    let mut b = Bench::new("beneath");
    b.file("sub/x", b"inside");
    symlink("sub/x", b.dir.join("near")).unwrap();
    symlink("../../../../../../../../etc/passwd", b.dir.join("sub/far")).unwrap();
    symlink("/etc/passwd", b.dir.join("root")).unwrap();
    symlink("..", b.dir.join("up")).unwrap();
    nix::unistd::mkfifo(&b.dir.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(b.tell(9, &read("near", "octet", &[]))[0], b"\0\x03\0\x01inside");
    let refused = [
        "../etc/passwd",
        "sub/../../x",
        "..",
        "sub/..",
        "",
        "/",
        "sub",
        "sub/",
        "sub/.",
        "root",
        "sub/far",
        "up/x",
        "up/../x",
        "pipe",
        "..\\x",
    ];
    for name in refused {
        let got = b.tell(9, &read(name, "octet", &[]));
        assert_eq!(got, [b"\0\x05\0\x02Access violation\0"], "{name:?}");
    }
    assert_eq!(b.tell(9, &read("nothing", "octet", &[])), [b"\0\x05\0\x01File not found\0"]);
    assert_eq!(b.tell(9, &read("sub/x/y", "octet", &[])), [b"\0\x05\0\x01File not found\0"]);
    // Writing.
    let mut write = read("new", "octet", &[]);
    write[1] = 2;
    assert_eq!(b.tell(9, &write), [b"\0\x05\0\x02Access violation\0"]);
    assert!(!b.dir.join("new").exists());
    b.tftp.dir = None;
    assert_eq!(b.tell(9, &read("near", "octet", &[])), [b"\0\x05\0\x02Access violation\0"]);
}

#[test]
fn sessions_are_bounded() {
    let mut b = Bench::new("many");
    b.file("f", &pattern(3000));
    let request = read("f", "octet", &[]);
    for port in 0..16 {
        assert_eq!(b.tell(port + 1, &request)[0][..2], [0, 3]);
    }
    assert_eq!(b.tell(99, &request), [b"\0\x05\0\x00too many transfers\0"]);
    b.cx.now += QUIET;
    assert_eq!(b.tell(99, &request)[0][..2], [0, 3]);
    assert_eq!(b.tftp.sessions.len(), 16);
}

/// CVE-2021-3595: a message shorter than TFTP's was read beyond its end, and what lay there went into the answer.
#[test]
fn cve_2021_3595_what_is_cut_is_no_message() {
    let mut b = Bench::new("cut");
    b.file("f", b"secret");
    let whole = read("f", "octet", &[]);
    for n in 0..whole.len() {
        assert!(b.tell(9, &whole[..n]).is_empty(), "{n} bytes");
    }
    // An option without a value is none; its name is not read as far as there is memory.
    for more in [&b"blksize"[..], b"blksize\0", b"blksize\x0014", b"\0", b"\0\0\0\0\0"] {
        assert_eq!(b.tell(9, &[&whole, more].concat()), [b"\0\x03\0\x01secret"], "{more:?}");
    }
    for bad in [
        &[0, 4][..],
        &[0, 4, 1],
        &[0, 0, 0, 0],
        &[0, 6, 0, 0],
        &[0, 3, 0, 1],
        &[1, 1],
        &read("f", "mail", &[]),
    ] {
        assert!(b.tell(10, bad).is_empty(), "{bad:?}");
    }
    assert!(b.tell(9, &read(&"x/".repeat(400), "octet", &[]))[0].starts_with(&[0, 5]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes is answered by at most a window, and never with anything but the file.
    #[test]
    fn any_messages(list in proptest::collection::vec((0u16..8, proptest::collection::vec(any::<u8>(), 0..40)), 0..12)) {
        let mut b = Bench::new("any");
        b.file("f", b"content");
        b.tell(9, &read("f", "octet", &[]));
        for (op, rest) in list {
            for m in b.tell(9, &[&op.to_be_bytes()[..], &rest].concat()) {
                prop_assert!(m.len() <= 4 + MOST);
                prop_assert!(matches!(m[1], 3 | 5 | 6));
            }
            prop_assert!(b.tftp.sessions.len() <= 1);
        }
    }
}
