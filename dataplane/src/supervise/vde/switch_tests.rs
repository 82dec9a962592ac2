use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use nix::sys::socket::UnixAddr;
use nix::unistd::geteuid;

use super::*;
use crate::spec::vde::Server;
use crate::supervise::vde::words::{Place, request};

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("netreeve-switch-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn spec(&self) -> Server {
        Server {
            dir: self.0.join("sw"),
            hub: None,
            clients: 2,
            per_user: None,
            group: None,
            mode: None,
            mtu: 1500,
            learning: None,
            isolated: false,
        }
    }

    fn open(&self) -> Switch {
        Switch::open("t", self.spec()).unwrap().0
    }

    fn sees(&self) -> Vec<String> {
        let names =
            fs::read_dir(self.0.join("sw")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
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

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

/// What the switch makes of these bytes.
fn said(switch: &mut Switch, bytes: &[u8], now: Instant) -> (UnixStream, Vec<Result<Asked, String>>) {
    let mut s = UnixStream::connect(switch.home().ctl()).unwrap();
    s.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    s.write_all(bytes).unwrap();
    let heard = switch.step(now);
    (s, heard)
}

#[test]
fn a_request_becomes_a_port_that_only_its_client_sends_to() {
    let dir = Dir::new("port");
    let mut switch = dir.open();
    let theirs = dir.0.join("client");
    let data = UnixDatagram::bind(&theirs).unwrap();
    let now = Instant::now();
    let (mut ctl, mut heard) = said(&mut switch, &request(0, &theirs, "me")[..50], now);
    assert!(heard.is_empty() && switch.due() == Some(now + PATIENCE));
    ctl.write_all(&request(0, &theirs, "me")[50..]).unwrap();
    heard.extend(switch.step(now));
    let asked = heard.remove(0).unwrap();
    assert_eq!((asked.request.port, asked.request.description.as_str()), (0, "me"));
    let (client, socket, file) = asked.welcome(&switch, 7).unwrap();
    let mut client = client.at(3);
    let [port, listens] = &dir.sees()[..] else { panic!("{:?}", dir.sees()) };
    assert!(port.starts_with("007-") && port.ends_with(".fd") && listens == "ctl");
    assert!(client.stays());
    let mut answer = [0; ADDRESS];
    ctl.read_exact(&mut answer).unwrap();
    assert_eq!(answer, address(file.path().as_os_str().as_encoded_bytes()));
    data.connect(file.path()).unwrap();
    let ours = UnixDatagram::from(socket);
    data.send(b"there").unwrap();
    ours.send(b"back").unwrap();
    let mut got = [0; 9];
    assert_eq!((ours.recv(&mut got).unwrap(), data.recv(&mut got).unwrap()), (5, 4));
    let stranger = UnixDatagram::unbound().unwrap();
    assert_eq!(stranger.send_to(b"x", file.path()).unwrap_err().raw_os_error(), Some(libc::EPERM));
    // The rest of a description that was cut may come, and no more.
    ctl.write_all(b"and more").unwrap();
    assert!(client.stays());
    ctl.write_all(&[0; 256]).unwrap();
    assert!(!client.stays());
    drop(ctl);
    assert!(!client.stays());
    drop((file, client, switch));
    assert!(!dir.0.join("sw").exists(), "nothing is left");
}

#[test]
fn who_asks_for_nothing_sensible_is_turned_away() {
    let dir = Dir::new("no");
    let mut switch = dir.open();
    let now = Instant::now();
    let refused = |switch: &mut Switch, bytes: &[u8]| {
        let (mut ctl, heard) = said(switch, bytes, now);
        assert!(matches!(&heard[..], [Err(_)]), "{heard:?}");
        assert_eq!(ctl.read(&mut [0; 9]).unwrap_or(0), 0, "closed");
    };
    refused(&mut switch, b"GET / HTTP/1.0\r\n\r\n");
    refused(&mut switch, &[0xff; 300]);
    refused(&mut switch, &[&request(0, Path::new("/x"), "")[..], &[b'y'; 200]].concat());
    // One that says nothing, or not all, is given up after a while, or when too many are at it.
    let (_ctl, heard) = said(&mut switch, b"", now);
    assert!(heard.is_empty());
    assert!(matches!(&switch.step(now + PATIENCE)[..], [Err(_)]));
    let silent: Vec<UnixStream> = (0..ASKING + 4).map(|_| said(&mut switch, b"", now).0).collect();
    assert_eq!(switch.asking.len(), ASKING);
    for (i, mut s) in silent.into_iter().enumerate() {
        s.set_nonblocking(true).unwrap();
        assert_eq!(s.read(&mut [0; 1]).is_ok(), i < 4, "the oldest go");
    }
    assert!(switch.step(now).is_empty() && switch.asking.is_empty());
    // Its data socket is its own, and a socket.
    let us = geteuid().as_raw();
    let home = switch.home();
    let theirs = dir.0.join("client");
    let _data = UnixDatagram::bind(&theirs).unwrap();
    let why = |place: &Place, uid| home.socket(1, place, uid).unwrap_err().to_string();
    assert!(why(&Place::File(theirs.clone()), us + 1).contains("not its own"));
    fs::write(dir.0.join("file"), "").unwrap();
    assert!(why(&Place::File(dir.0.join("file")), us).contains("no socket"));
    std::os::unix::fs::symlink(&theirs, dir.0.join("link")).unwrap();
    home.socket(1, &Place::File(dir.0.join("link")), us).unwrap_err();
    home.socket(1, &Place::File(dir.0.join("nothing")), us).unwrap_err();
    let name = Place::Abstract(UnixAddr::new_abstract(b"nt-nobody").unwrap());
    assert!(why(&name, us + 1).contains("abstract"));
    home.socket(1, &name, us).unwrap_err();
    assert_eq!(dir.sees(), ["ctl"], "nothing is left of any");
}

#[test]
fn directories_are_made_taken_over_and_left_alone() {
    let dir = Dir::new("home");
    let sw = dir.0.join("sw");
    for (bits, of_dir) in [(None, 0o700), (Some(0o660), 0o3770), (Some(0o666), 0o3777), (Some(0o640), 0o700)]
    {
        let switch = Switch::open("t", Server { mode: bits, ..dir.spec() }).unwrap().0;
        assert_eq!((mode(&sw), mode(&sw.join("ctl"))), (of_dir, bits.unwrap_or(0o600)));
        let again = Switch::open("t", dir.spec()).unwrap_err();
        assert!(again.why.contains("in use"), "{again}");
        drop(switch);
        assert!(!sw.exists());
    }
    // What a dead switch and its plugs have left.
    fs::create_dir(&sw).unwrap();
    drop(std::os::unix::net::UnixListener::bind(sw.join("ctl")).unwrap());
    drop(UnixDatagram::bind(sw.join(".00001-00000")).unwrap());
    drop(UnixDatagram::bind(sw.join("001-0123456789.fd")).unwrap());
    let switch = dir.open();
    assert_eq!(dir.sees(), ["ctl"]);
    drop(switch);
    assert!(!sw.exists());
    // One that was made for us stays, and so does what is in it.
    fs::create_dir(&sw).unwrap();
    fs::set_permissions(&sw, fs::Permissions::from_mode(0o755)).unwrap();
    drop(dir.open());
    assert!(sw.exists());
    fs::remove_dir(&sw).unwrap();
    // A path that has room for `ctl` and for no port is refused before anything is made.
    let long = |len: usize| dir.0.join("x".repeat(len - dir.0.as_os_str().len() - 1));
    let fault = Switch::open("t", Server { dir: long(90), ..dir.spec() }).unwrap_err();
    assert!(fault.why.contains("90 bytes, and at most 89") && !long(90).exists(), "{fault}");
    let (switch, _) = Switch::open("t", Server { dir: long(89), ..dir.spec() }).unwrap();
    drop(UnixDatagram::bind(long(89).join("001-0123456789.fd")).unwrap());
    drop(switch);
    assert!(!long(89).exists());
    // One that has other things in it is somebody's home, or the system's: its bits are no business of a switch's.
    fs::create_dir(&sw).unwrap();
    fs::set_permissions(&sw, fs::Permissions::from_mode(0o751)).unwrap();
    fs::write(sw.join("else"), "").unwrap();
    let switch = dir.open();
    assert_eq!((mode(&sw), mode(&sw.join("ctl"))), (0o751, 0o600));
    drop(switch);
    assert_eq!((mode(&sw), dir.sees()), (0o751, vec!["else".to_owned()]));
    fs::remove_dir_all(&sw).unwrap();
    fs::write(&sw, "").unwrap();
    assert!(Switch::open("t", dir.spec()).unwrap_err().why.contains("no directory"));
    let nobody = Server { group: Some("no such group of users".into()), ..dir.spec() };
    assert!(Switch::open("t", nobody).unwrap_err().why.contains("no such group"));
    let (a, plan) = Switch::open("t", Server { dir: dir.0.join("a"), ..dir.spec() }).unwrap();
    let (b, other) = Switch::open("t", Server { dir: dir.0.join("b"), ..dir.spec() }).unwrap();
    assert!(plan.hub != other.hub && a.place().hub == plan.hub && i32::try_from(plan.hub).is_err());
    drop((a, b));
}

/// Needs root, to be two users.
#[test]
fn who_may_make_files_beside_the_ports_keeps_no_others_out() {
    if !geteuid().is_root() {
        return;
    }
    const GROUP: u32 = 54_321;
    let dir = Dir::new("squat");
    // The others get in whatever our umask says.
    fs::set_permissions(&dir.0, fs::Permissions::from_mode(0o755)).unwrap();
    let switch = Server { mode: Some(0o660), group: Some(GROUP.to_string()), ..dir.spec() };
    let switch = Switch::open("t", switch).unwrap().0;
    let by = |uid: u32, script: &str| {
        let mut sh = std::process::Command::new("sh");
        let sh = sh.args(["-c", script]).current_dir(dir.0.join("sw")).uid(uid).gid(GROUP);
        assert!(sh.status().unwrap().success(), "{script}");
    };
    // What of a port's name can be known is taken: as a file, and as what leads elsewhere.
    by(1001, "touch 001.fd 002.fd && ln -s / 001- && ln -s / 002-");
    let theirs = dir.0.join("client");
    let _data = UnixDatagram::bind(&theirs).unwrap();
    std::os::unix::fs::chown(&theirs, Some(1002), Some(GROUP)).unwrap();
    for port in [1, 2] {
        let (_socket, file) = switch.home().socket(port, &Place::File(theirs.clone()), 1002).unwrap();
        assert_eq!(fs::metadata(file.path()).unwrap().uid(), 1002);
        // Nor can they take away what is another's.
        let name = file.path().file_name().unwrap().to_str().unwrap();
        by(1001, &format!("! rm -f {name} 2>&- && test -S {name}"));
    }
}

/// Needs root, to mount a file system whose server keeps silent.
#[test]
fn a_data_socket_where_nobody_answers_keeps_nobody_waiting() {
    let fuse = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let (true, Ok(fuse)) = (geteuid().is_root(), fuse) else { return };
    let dir = Dir::new("silent");
    let switch = dir.open();
    let at = dir.0.join("mount");
    fs::create_dir(&at).unwrap();
    let (tell, said) = std::sync::mpsc::channel();
    let (fd, switch, at) = (fuse.as_raw_fd(), &switch, &at);
    std::thread::scope(|s| {
        s.spawn(move || {
            use nix::mount::{MsFlags, mount};
            use nix::sched::{CloneFlags, unshare};
            // This thread's own mounts, which go with it.
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
                .unwrap();
            let options = format!("fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other");
            mount(Some("t"), at, Some("fuse"), MsFlags::empty(), Some(options.as_str())).unwrap();
            let by_root = PathBuf::from(format!("/proc/self/root{}", at.display()));
            for path in [at.join("socket"), at.join("../mount/x/y"), by_root.join("socket")] {
                let found = switch.home().socket(1, &Place::File(path), 0);
                let _heard = tell.send(found.map(|_| ()).map_err(|e| e.to_string()));
            }
        });
        let answers: Vec<_> = (0..3).map_while(|_| said.recv_timeout(Duration::from_secs(20)).ok()).collect();
        // Whoever waits for its server is woken by that.
        drop(fuse);
        assert_eq!(answers.len(), 3, "it waited");
        assert!(answers[0].as_ref().unwrap_err().contains("may take long"), "{answers:?}");
        assert!(answers.iter().all(Result::is_err), "{answers:?}");
    });
}

#[test]
fn nobody_keeps_others_from_asking() {
    let dir = Dir::new("many");
    let mut switch = dir.open();
    let until = Instant::now() + PATIENCE;
    let mut comes = |uid: u32| {
        switch.make_room(uid);
        let ctl = UnixStream::pair().unwrap().0.into();
        switch.asking.push_back(Asking { ctl, uid, said: Vec::new(), until });
        let of = |u: u32| switch.asking.iter().filter(|a| a.uid == u).count();
        [of(1), of(2), of(3)]
    };
    assert_eq!(comes(2), [0, 1, 0]);
    for _ in 0..99 {
        comes(1);
    }
    // Who came before and who comes now have what they ask for, up to their share.
    assert_eq!(comes(1), [15, 1, 0]);
    assert_eq!(comes(3), [14, 1, 1]);
    for _ in 0..99 {
        comes(3);
    }
    assert_eq!(comes(1), [7, 1, 8]);
    assert_eq!(comes(2), [7, 2, 7]);
}
