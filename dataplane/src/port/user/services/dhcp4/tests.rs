use proptest::prelude::*;

use super::super::conf::{tests::qemu, wire_names};
use super::*;
use crate::port::user::Boot;

const GUEST: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const DISCOVER: u8 = 1;
const REQUEST: u8 = 3;

fn bootp() -> Vec<u8> {
    let mut m = vec![1, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef, 0, 1, 0, 0];
    m.resize(28, 0);
    m.extend(GUEST);
    m.resize(236, 0);
    m
}

fn ask(kind: u8, options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut m = bootp();
    m.extend([99, 130, 83, 99, 53, 1, kind]);
    for (code, data) in options {
        m.extend([*code, data.len() as u8]);
        m.extend(*data);
    }
    m.push(255);
    m
}

struct Got {
    mac: [u8; 6],
    dst: [u8; 4],
    message: Vec<u8>,
}

impl Got {
    /// Every option, with those that spill over into the other fields.
    fn options(&self) -> Vec<(u8, Vec<u8>)> {
        fn scan(mut f: &[u8], out: &mut Vec<(u8, Vec<u8>)>) {
            while let [code, rest @ ..] = f {
                match code {
                    0 => f = rest,
                    255 => return,
                    _ => {
                        let n = usize::from(rest[0]);
                        out.push((*code, rest[1..=n].to_vec()));
                        f = &rest[n + 1..];
                    }
                }
            }
            panic!("a field of options without an end");
        }
        let mut out = Vec::new();
        scan(&self.message[240..], &mut out);
        let told = out.iter().find(|(c, _)| *c == 52).map_or(0, |(_, d)| d[0]);
        if told & 1 != 0 {
            scan(&self.message[108..236], &mut out);
        }
        if told & 2 != 0 {
            scan(&self.message[44..108], &mut out);
        }
        out
    }

    fn option(&self, code: u8) -> Option<Vec<u8>> {
        let all: Vec<_> = self.options().into_iter().filter(|(c, _)| *c == code).collect();
        (!all.is_empty()).then(|| all.into_iter().flat_map(|(_, d)| d).collect())
    }

    fn codes(&self) -> Vec<u8> {
        self.options().into_iter().map(|(c, _)| c).collect()
    }

    fn kind(&self) -> u8 {
        self.option(53).unwrap()[0]
    }

    fn yours(&self) -> [u8; 4] {
        self.message[16..20].try_into().unwrap()
    }
}

struct Bench(Conf, Server, Instant);

impl Bench {
    fn new(c: Conf) -> Self {
        let s = Server::new(&c);
        Self(c, s, Instant::now())
    }

    fn tell(&mut self, message: &[u8]) -> Option<Got> {
        let mut out = Vec::new();
        self.1.take(&self.0, message, self.2, &mut out)?;
        (!out.is_empty()).then(|| Got {
            mac: out[..6].try_into().unwrap(),
            dst: out[30..34].try_into().unwrap(),
            message: out[42..].to_vec(),
        })
    }
}

#[test]
fn an_offer_in_bytes() {
    let mut b = Bench::new(qemu());
    let got = b.tell(&ask(DISCOVER, &[])).unwrap();
    let mut want =
        vec![2, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2];
    want.extend([0; 4]);
    want.extend(GUEST);
    want.resize(236, 0);
    want.extend([99, 130, 83, 99, 53, 1, 2, 54, 4, 10, 0, 2, 2, 51, 4, 0, 1, 0x51, 0x80]);
    want.extend([1, 4, 255, 255, 255, 0, 3, 4, 10, 0, 2, 2, 6, 4, 10, 0, 2, 3]);
    want.extend([26, 2, 5, 220, 28, 4, 10, 0, 2, 255]);
    want.extend([58, 4, 0, 0, 0xa8, 0xc0, 59, 4, 0, 1, 0x27, 0x50, 255]);
    want.resize(want.len().max(300), 0);
    assert_eq!(got.message, want);
    assert_eq!((got.mac, got.dst), (GUEST, [10, 0, 2, 15]));
    // One that cannot hear before it has an address says so.
    let mut m = ask(DISCOVER, &[]);
    m[10] = 0x80;
    let got = b.tell(&m).unwrap();
    assert_eq!((got.mac, got.dst, &got.message[10..12]), ([0xff; 6], [255; 4], &[0x80, 0][..]));
}

#[test]
fn an_address_is_given_kept_refused_and_let_go() {
    let mut b = Bench::new(qemu());
    let us: (u8, &[u8]) = (54, &[10, 0, 2, 2]);
    let first = b.tell(&ask(DISCOVER, &[(50, &[10, 0, 2, 20])])).unwrap();
    assert_eq!((first.kind(), first.yours()), (2, [10, 0, 2, 20]));
    let got = b.tell(&ask(REQUEST, &[(50, &[10, 0, 2, 20]), us])).unwrap();
    assert_eq!((got.kind(), got.yours()), (5, [10, 0, 2, 20]));
    // Renewed from the address itself.
    let mut renew = ask(REQUEST, &[]);
    renew[12..16].copy_from_slice(&[10, 0, 2, 20]);
    let got = b.tell(&renew).unwrap();
    assert_eq!(
        (got.kind(), got.dst, got.mac, &got.message[12..16]),
        (5, [10, 0, 2, 20], GUEST, &[10, 0, 2, 20][..])
    );
    // Another machine wants it; or wants what is nobody's here.
    for wrong in [[10, 0, 2, 20], [10, 0, 2, 31], [10, 0, 2, 2], [192, 168, 0, 1]] {
        let mut other = ask(REQUEST, &[(50, &wrong), (61, b"\x01id")]);
        other[33] = 9;
        let got = b.tell(&other).unwrap();
        assert_eq!(
            (got.kind(), got.yours(), got.dst, got.mac),
            (6, [0; 4], [255; 4], [0xff; 6]),
            "{wrong:?}"
        );
        assert_eq!(got.codes(), [53, 54, 61, 56]);
    }
    // To another server: nothing, and the offer is void.
    assert!(b.tell(&ask(REQUEST, &[(50, &[10, 0, 2, 20]), (54, &[10, 0, 2, 9])])).is_none());
    let mut other = ask(REQUEST, &[(50, &[10, 0, 2, 20])]);
    other[33] = 9;
    assert_eq!(b.tell(&other).unwrap().kind(), 5);
    let mut release = ask(7, &[us]);
    release[12..16].copy_from_slice(&[10, 0, 2, 20]);
    release[33] = 9;
    assert!(b.tell(&release).is_none());
    assert_eq!(b.tell(&ask(REQUEST, &[(50, &[10, 0, 2, 20])])).unwrap().kind(), 5);
    // In use by somebody: the next time it is another.
    assert!(b.tell(&ask(4, &[(50, &[10, 0, 2, 20]), us])).is_none());
    assert_eq!(b.tell(&ask(DISCOVER, &[(50, &[10, 0, 2, 20])])).unwrap().yours(), [10, 0, 2, 15]);
    // An ACK without an address.
    let mut inform = ask(8, &[]);
    inform[12..16].copy_from_slice(&[10, 0, 2, 77]);
    let got = b.tell(&inform).unwrap();
    assert_eq!((got.kind(), got.yours(), got.dst), (5, [0; 4], [10, 0, 2, 77]));
    assert!(![51, 58, 59].iter().any(|c| got.codes().contains(c)));
}

#[test]
fn seventeen_machines_are_one_too_many() {
    let mut b = Bench::new(qemu());
    for n in 0..17u8 {
        let mut m = ask(DISCOVER, &[]);
        m[33] = n;
        let got = b.tell(&m);
        assert_eq!(got.map(|g| g.yours()), (n < 16).then_some([10, 0, 2, 15 + n]));
    }
}

#[test]
fn what_is_asked_for_is_told_in_that_order() {
    let c = Conf {
        hostname: "vm".into(),
        domain: "example.org".into(),
        search: wire_names(&["a.bc".into(), "d".into()]),
        boot: Boot { tftp: true, file: "pxelinux.0".into(), server_name: String::new() },
        ..qemu()
    };
    let mut b = Bench::new(c);
    let list = [121, 15, 12, 119, 26, 67, 66, 121, 15, 3, 0, 255, 53, 200];
    let got = b.tell(&ask(DISCOVER, &[(55, &list)])).unwrap();
    assert_eq!(got.codes(), [53, 54, 51, 1, 3, 6, 121, 15, 12, 119, 26, 67, 66]);
    assert_eq!(got.option(121).unwrap(), [0, 10, 0, 2, 2]);
    assert_eq!(got.option(15).unwrap(), b"example.org");
    assert_eq!(got.option(12).unwrap(), b"vm");
    assert_eq!(got.option(119).unwrap(), b"\x01a\x02bc\0\x01d\0");
    assert_eq!(got.option(67).unwrap(), b"pxelinux.0");
    assert_eq!(got.option(66).unwrap(), b"10.0.2.2");
    assert_eq!(got.message[108..119], *b"pxelinux.0\0");
    assert_eq!(got.message[20..24], [10, 0, 2, 2]);
    // RFC 4702: its name, as it wrote it, and no updates.
    let got = b.tell(&ask(DISCOVER, &[(81, b"\x05\0\0\x03foo\0")])).unwrap();
    assert_eq!(got.option(81).unwrap(), b"\x0e\xff\xff\x02vm\x07example\x03org\0");
    let got = b.tell(&ask(DISCOVER, &[(81, b"\x00\0\0foo")])).unwrap();
    assert_eq!(got.option(81).unwrap(), b"\x08\xff\xffvm.example.org");
    assert_eq!(b.tell(&ask(DISCOVER, &[(81, b"\x01")])).unwrap().option(81), None);
    // RFC 6842.
    assert_eq!(b.tell(&ask(DISCOVER, &[(61, b"\xff123")])).unwrap().option(61).unwrap(), b"\xff123");
}

#[test]
fn a_restricted_guest_hears_of_no_way_out() {
    let mut b = Bench::new(Conf { restrict: true, ..qemu() });
    let got = b.tell(&ask(DISCOVER, &[(55, &[1, 3, 6, 121, 26])])).unwrap();
    assert_eq!(got.codes(), [53, 54, 51, 1, 26]);
}

#[test]
fn uefi_boots_from_the_web() {
    let file = "http://10.0.2.2/boot.efi".to_owned();
    let mut b = Bench::new(Conf { boot: Boot { file, ..Boot::default() }, ..qemu() });
    let got = b.tell(&ask(DISCOVER, &[(60, b"HTTPClient:Arch:00016"), (55, &[67])])).unwrap();
    assert_eq!(got.option(60).unwrap(), b"HTTPClient");
    assert_eq!(got.option(67).unwrap(), b"http://10.0.2.2/boot.efi");
    assert_eq!(b.tell(&ask(DISCOVER, &[(60, b"PXEClient")])).unwrap().option(60), None);
}

#[test]
fn bootp_is_answered_too() {
    let mut b = Bench::new(Conf { boot: Boot { file: "x".into(), ..Boot::default() }, ..qemu() });
    let got = b.tell(&bootp()).unwrap();
    assert_eq!((got.message.len(), got.yours(), got.dst), (300, [10, 0, 2, 15], [10, 0, 2, 15]));
    assert_eq!((&got.message[108..110], &got.message[236..]), (&b"x\0"[..], &[0; 64][..]));
    // With RFC 1497's cookie: with its options, but nothing of DHCP's.
    let mut m = bootp();
    m.extend([99, 130, 83, 99, 255]);
    let got = b.tell(&m).unwrap();
    assert_eq!(got.codes(), [1, 3, 6, 26, 28, 67]);
}

#[test]
fn what_does_not_fit_goes_elsewhere_or_is_left_out() {
    let search: Vec<String> = (0..9).map(|i| format!("{}{i}.example.org", "x".repeat(20))).collect();
    let c = Conf {
        hostname: "h".repeat(60),
        domain: "d".repeat(100),
        search: wire_names(&search),
        boot: Boot { tftp: false, file: String::new(), server_name: "s".repeat(50) },
        ..qemu()
    };
    let mut b = Bench::new(c.clone());
    // 317 bytes of search list do not fit into 308, nor into the other fields.
    let all = [12, 119, 15, 66, 26];
    let got = b.tell(&ask(DISCOVER, &[(55, &all)])).unwrap();
    assert!(got.message.len() <= 548);
    assert_eq!(got.codes(), [53, 54, 51, 1, 3, 6, 12, 15, 66, 26]);
    // A client that takes more gets all of it.
    let got = b.tell(&ask(DISCOVER, &[(55, &all), (57, &1500u16.to_be_bytes())])).unwrap();
    assert_eq!(got.option(119).unwrap(), c.search);
    assert_eq!(got.codes(), [53, 54, 51, 1, 3, 6, 12, 119, 119, 15, 66, 26]);
    // Spilling over.
    let long = Conf { domain: "d".repeat(235), hostname: "h".repeat(100), ..c };
    let mut b = Bench::new(long);
    let got = b.tell(&ask(DISCOVER, &[(55, &[15, 12, 66])])).unwrap();
    assert_eq!(got.option(52).unwrap(), [3]);
    assert_eq!((got.option(12).unwrap().len(), got.option(66).unwrap().len()), (100, 50));
    assert!(got.message.len() <= 548);
    // A client cannot ask for less than every client must take.
    let got = b.tell(&ask(DISCOVER, &[(57, &10u16.to_be_bytes())])).unwrap();
    assert!(got.message.len() >= 300);
}

#[test]
fn options_may_be_in_the_other_fields() {
    let mut b = Bench::new(qemu());
    let mut m = ask(REQUEST, &[(52, &[3])]);
    m[108..115].copy_from_slice(&[50, 4, 10, 0, 2, 22, 255]);
    m[44..51].copy_from_slice(&[54, 4, 10, 0, 2, 2, 255]);
    let got = b.tell(&m).unwrap();
    assert_eq!((got.kind(), got.yours()), (5, [10, 0, 2, 22]));
    // One that runs over the field's end is broken, and so is the message.
    m[108] = 0;
    m[234] = 50;
    m[235] = 4;
    m[109..115].fill(0);
    assert!(b.tell(&m).is_none());
}

/// CVE-2021-3592: a message shorter than BOOTP's was read to its full length, and what lay behind went into the answer.
#[test]
fn cve_2021_3592_what_is_cut_is_no_message() {
    let mut b = Bench::new(qemu());
    let whole = ask(DISCOVER, &[(61, b"identifier")]);
    for n in 0..236 {
        assert!(b.tell(&whole[..n]).is_none(), "{n} bytes");
    }
    // Cut within the cookie: BOOTP. Between options: what came. Within one: nothing.
    assert_eq!(b.tell(&whole[..238]).unwrap().message.len(), 300);
    for (n, answer) in
        [(240, true), (241, false), (242, false), (243, true), (244, false), (250, false), (255, true)]
    {
        assert_eq!(b.tell(&whole[..n]).is_some(), answer, "{n} bytes");
    }
    for (at, value) in [(0, 2), (0, 0), (1, 6), (2, 5), (2, 16), (28, 0x53), (242, 2), (242, 0), (242, 99)] {
        let mut bent = whole.clone();
        bent[at] = value;
        assert!(b.tell(&bent).is_none(), "byte {at}");
    }
    let mut nobody = whole;
    nobody[28..34].fill(0);
    assert!(b.tell(&nobody).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes: an answer is well-formed, no longer than may be, and its address is of the pool.
    #[test]
    fn any_message(
        kind in 0u8..10,
        options in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..12),
        bend in proptest::collection::vec((0usize..400, any::<u8>()), 0..3),
        cut in 0usize..600,
    ) {
        let mut b = Bench::new(Conf { hostname: "vm".into(), search: wire_names(&vec!["a.bc".into(); 100]), ..qemu() });
        let list: Vec<(u8, &[u8])> = options.iter().map(|(c, d)| (*c, d.as_slice())).collect();
        let mut m = ask(kind, &list);
        for (at, value) in bend {
            if let Some(x) = m.get_mut(at) { *x = value; }
        }
        m.truncate(cut.max(230));
        if let Some(got) = b.tell(&m) {
            prop_assert!((300..=1472).contains(&got.message.len()));
            let yours = got.yours();
            prop_assert!(yours == [0; 4] || yours[..3] == [10, 0, 2] && (15..31).contains(&yours[3]));
            if got.message[236..240] == [99, 130, 83, 99] {
                got.options();
            }
        }
    }
}
