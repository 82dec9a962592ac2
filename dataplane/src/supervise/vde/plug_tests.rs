use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use super::*;
use crate::supervise::vde::words::address;

/// A directory of a test's own.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("netreeve-vde-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn spec(&self) -> Vde {
        Vde { dir: Some(self.0.clone()), port: 7, group: None, mode: None, reconnect_ms: None, mtu: 1500 }
    }

    fn files(&self) -> Vec<String> {
        let names = fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a switch does for one client: hears the request, and answers with a port.
fn serve(listener: &UnixListener, dir: &Path) -> (UnixStream, UnixDatagram, Vec<u8>) {
    let (mut ctl, _) = listener.accept().unwrap();
    let mut request = vec![0; 512];
    let n = ctl.read(&mut request).unwrap();
    request.truncate(n);
    let port = dir.join("007.fd");
    let data = UnixDatagram::bind(&port).unwrap();
    let end = request[14..122].iter().position(|b| *b == 0).unwrap();
    data.connect(std::str::from_utf8(&request[14..14 + end]).unwrap()).unwrap();
    ctl.write_all(&address(port.as_os_str().as_bytes())).unwrap();
    (ctl, data, request)
}

fn until(plug: &mut Plug, done: impl Fn(&Step) -> bool) -> Step {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let step = plug.step(Instant::now());
        if done(&step) {
            return step;
        }
        assert!(matches!(step, Step::Pending) && Instant::now() < end, "{step:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_port_is_asked_for_used_lost_and_asked_for_again() {
    let dir = Dir::new("plug");
    let listener = UnixListener::bind(dir.0.join("ctl")).unwrap();
    let mut plug = Plug::new(dir.spec(), Instant::now()).unwrap();
    assert!(plug.must_be_there() && plug.persists() && plug.due().is_some());
    for _ in 0..2 {
        assert!(matches!(plug.step(Instant::now()), Step::Pending));
        assert_eq!(plug.fd().unwrap().1, PollFlags::POLLIN);
        assert_eq!(dir.files().len(), 2, "our socket waits for the answer");
        let (ctl, data, request) = serve(&listener, &dir.0);
        assert_eq!(request[..4], 0xfeed_face_u32.to_ne_bytes());
        assert_eq!(request[4..8], 3_u32.to_ne_bytes());
        assert_eq!(request[8..12], (7_u32 << 8).to_ne_bytes());
        assert!(request[122..].starts_with(b"netreeve user=") && request.len() <= 249);
        let Step::Plugged(socket) = until(&mut plug, |s| matches!(s, Step::Plugged(_))) else { panic!() };
        assert_eq!(dir.files(), ["007.fd", "ctl"], "nothing is left behind");
        fs::remove_file(dir.0.join("007.fd")).unwrap();
        let ours = UnixDatagram::from(socket);
        ours.send(&[1; 60]).unwrap();
        let mut got = [0; 100];
        assert_eq!(data.recv(&mut got).unwrap(), 60);
        data.send(&[2; 70]).unwrap();
        assert_eq!(ours.recv(&mut got).unwrap(), 70);
        assert!(matches!(plug.step(Instant::now()), Step::Pending) && plug.due().is_none());
        drop((ctl, data));
        assert_eq!(ours.send(&[1; 60]).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert!(matches!(plug.step(Instant::now()), Step::Lost));
        let due = plug.due().unwrap();
        assert!(due > Instant::now());
        plug.state = State::Wait(Instant::now());
    }
}

#[test]
fn what_others_may_have_sent_before_it_was_plugged_in_is_no_frame() {
    for (mode, kept) in [(None, true), (Some(0o707), false), (Some(0o770), false)] {
        let dir = Dir::new("strangers");
        let listener = UnixListener::bind(dir.0.join("ctl")).unwrap();
        let mut plug = Plug::new(Vde { mode, ..dir.spec() }, Instant::now()).unwrap();
        assert!(matches!(plug.step(Instant::now()), Step::Pending));
        let State::Asked { data, .. } = &plug.state else { panic!() };
        let (at, link) = (data.path.clone(), dir.0.join("kept"));
        let stranger = UnixDatagram::unbound().unwrap();
        stranger.send_to(&[6; 66], &at).unwrap();
        let (_ctl, data, _) = serve(&listener, &dir.0);
        fs::hard_link(&at, &link).unwrap();
        let Step::Plugged(socket) = until(&mut plug, |s| matches!(s, Step::Plugged(_))) else { panic!() };
        let no = stranger.send_to(&[6; 66], &link).unwrap_err();
        assert_eq!(no.raw_os_error(), Some(libc::EPERM), "nor can they send now");
        data.send(&[2; 70]).unwrap();
        let (ours, mut got) = (UnixDatagram::from(socket), [0; 100]);
        if kept {
            assert_eq!(ours.recv(&mut got).unwrap(), 66, "it was our own user's: a switch may be quick");
        }
        assert_eq!(ours.recv(&mut got).unwrap(), 70, "the switch's own");
        let room =
            |s: &UnixDatagram| nix::sys::socket::getsockopt(s, nix::sys::socket::sockopt::SndBuf).unwrap();
        assert!(room(&ours) > room(&UnixDatagram::unbound().unwrap()));
    }
}

#[test]
fn a_switch_that_refuses_or_is_not_there_or_says_nonsense_is_an_error() {
    let dir = Dir::new("refused");
    let mut plug = Plug::new(Vde { reconnect_ms: Some(0), ..dir.spec() }, Instant::now()).unwrap();
    assert!(plug.must_be_there() && !plug.persists());
    let Step::Failed(e) = plug.step(Instant::now()) else { panic!() };
    assert_eq!(e.kind(), io::ErrorKind::NotFound);
    assert!(plug.due().is_none());
    let listener = UnixListener::bind(dir.0.join("ctl")).unwrap();
    let long = address(&[b'x'; 300]);
    let nonsense: [&[u8]; 5] = [b"", b"x", &[0xff; 110], &[0; 110], &long[..109]];
    for answer in nonsense {
        plug.state = State::Wait(Instant::now());
        assert!(matches!(plug.step(Instant::now()), Step::Pending));
        let (mut ctl, _) = listener.accept().unwrap();
        ctl.write_all(answer).unwrap();
        if answer.is_empty() {
            drop(ctl);
        }
        assert!(matches!(until(&mut plug, |s| matches!(s, Step::Failed(_))), Step::Failed(_)));
        assert_eq!(dir.files(), ["ctl"], "nothing is left behind");
    }
    plug.state = State::Wait(Instant::now());
    assert!(matches!(plug.step(Instant::now()), Step::Pending));
    let Step::Failed(e) = plug.step(Instant::now() + PATIENCE) else { panic!() };
    assert_eq!(e.kind(), io::ErrorKind::TimedOut);
    let nobody = Vde { group: Some("no such group of users".into()), ..dir.spec() };
    assert!(Plug::new(nobody, Instant::now()).unwrap_err().to_string().contains("no such group"));
}

#[test]
fn modes_and_groups_are_given_to_the_socket() {
    let dir = Dir::new("mode");
    let _listener = UnixListener::bind(dir.0.join("ctl")).unwrap();
    for (mode, want) in [(None, 0o700), (Some(0o770), 0o770), (Some(0o707), 0o707)] {
        let plug = Plug::new(Vde { mode, ..dir.spec() }, Instant::now()).unwrap();
        let (_ctl, data) = plug.ask().unwrap();
        assert_eq!(fs::metadata(&data.path).unwrap().mode() & 0o777, want);
    }
    let gid = nix::unistd::getegid();
    let plug = Plug::new(Vde { group: Some(gid.to_string()), ..dir.spec() }, Instant::now()).unwrap();
    let (_ctl, data) = plug.ask().unwrap();
    let about = fs::metadata(&data.path).unwrap();
    assert_eq!((about.mode() & 0o777, about.gid()), (0o770, gid.as_raw()));
}
