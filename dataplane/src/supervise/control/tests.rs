use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

use super::*;

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("netreeve-control-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

fn open(path: PathBuf) -> Control {
    Control::open(Where { name: None, path: Some(path), client: None }).unwrap().unwrap()
}

#[test]
fn it_greets_our_user_and_listens_to_what_he_says() {
    let dir = Dir::new("greets");
    let path = dir.0.join("c");
    let mut control = open(path.clone());
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let now = Instant::now();
    let mut client = UnixStream::connect(&path).unwrap();
    control.turn(now);
    let mut lines = BufReader::new(client.try_clone().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    let greeting: Value = serde_json::from_str(&line).unwrap();
    assert!(greeting["QMP"]["version"]["qemu"]["major"].is_u64());
    client.write_all(b"{\"execute\":\"qmp_capabilities\",\"id\":1}{\"execute\":\"x\"}").unwrap();
    control.turn(now);
    let got = control.requests(now);
    assert_eq!(
        (got.len(), got[0].1.command.as_str(), &got[0].1.id),
        (1, "qmp_capabilities", &Some(json!(1)))
    );
    assert_eq!(control.due(now), Some(now), "there is another");
    control.event("EARLY", json!({}), now);
    control.client(got[0].0).unwrap().negotiated = true;
    control.event("LATE", json!({}), now);
    line.clear();
    lines.read_line(&mut line).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["event"], "LATE");
    drop((client, lines));
    control.requests(now);
    control.turn(now);
    assert!(control.clients.is_empty());
    drop(control);
    assert!(!path.exists());
}

#[test]
fn a_stale_path_is_replaced_and_a_living_one_is_not() {
    let dir = Dir::new("stale");
    let path = dir.0.join("c");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let first = open(path.clone());
    let again = Control::open(Where { name: None, path: Some(path.clone()), client: None }).unwrap_err();
    assert!(again.why.contains("in use"), "{again}");
    assert!(path.exists());
    drop(first);
    assert!(Control::open(Where::default()).unwrap().is_none());
}

#[test]
fn clients_are_so_many_and_no_more() {
    let dir = Dir::new("many");
    let path = dir.0.join("c");
    let mut control = open(path.clone());
    let now = Instant::now();
    let mut all = Vec::new();
    for _ in 0..=MAX_CLIENTS {
        all.push(UnixStream::connect(&path).unwrap());
        control.turn(now);
    }
    assert_eq!(control.clients.len(), MAX_CLIENTS);
    let mut line = String::new();
    let mut last = BufReader::new(all.pop().unwrap());
    last.read_line(&mut line).unwrap();
    assert!(line.contains("16 clients"), "{line}");
    assert_eq!(last.read_line(&mut line).unwrap(), 0);
    all.truncate(1);
    control.turn(now);
    assert_eq!(control.clients.len(), 1);
}

/// Whoever was handed over and is gone is missed once, with the reason; others come and go.
#[test]
fn the_client_that_was_handed_over_is_missed() {
    use std::os::fd::IntoRawFd;
    let now = Instant::now();
    for reads in [true, false] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        nix::fcntl::fcntl(&ours, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        let at = Where { client: Some(ours.into_raw_fd()), ..Where::default() };
        let mut control = Control::open(at).unwrap().unwrap();
        control.turn(now);
        assert!(control.handed.is_some() && control.clients.len() == 1);
        let why = if reads {
            drop(theirs);
            control.clients[0].1.read();
            control.clients[0].1.why_over(now).to_owned()
        } else {
            // It is told, and told, and reads nothing.
            control.clients[0].1.negotiated = true;
            (0..20_000).for_each(|_| control.event("X", json!({ "y": "z".repeat(40) }), now));
            control.clients[0].1.why_over(now).to_owned()
        };
        let fault = lost(&why).to_string();
        let word = if reads { "it has ended" } else { "cut off" };
        assert!(fault.contains(word) && fault.contains("\n  to do: start netreeve again"), "{fault}");
        control.turn(now);
        assert!(control.handed.is_none() && control.clients.is_empty());
    }
}
