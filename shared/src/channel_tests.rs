//! Real sockets, real descriptors.

use std::fs::File;
use std::os::unix::net::UnixStream;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{Backlog, bind, listen};

use super::*;

fn now() -> Option<Duration> {
    Some(Duration::ZERO)
}

fn null() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

/// Descriptors of this process that are open on `/dev/null`'s device and inode of `marker`.
fn copies_of(marker: &File) -> usize {
    let want = nix::sys::stat::fstat(marker).unwrap();
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|e| std::fs::metadata(e.unwrap().path()).ok())
        .filter(|m| {
            use std::os::unix::fs::MetadataExt;
            (m.dev(), m.ino()) == (want.st_dev, want.st_ino)
        })
        .count()
}

/// A file that no other test has open.
fn marker(name: &str) -> (File, std::path::PathBuf) {
    let path = std::env::temp_dir().join(format!("nt-channel-{}-{name}", std::process::id()));
    (File::create(&path).unwrap(), path)
}

#[test]
fn messages_keep_their_bounds_and_descriptors_are_close_on_exec() {
    let (a, b) = Channel::pair().unwrap();
    let file = null();
    a.send(b"one", &[]).unwrap();
    a.send(b"three", &[file.as_fd(), file.as_fd(), file.as_fd()]).unwrap();
    let one = b.recv(MAX_FDS, now()).unwrap().unwrap();
    assert_eq!((one.bytes.as_slice(), one.fds.len()), (b"one".as_slice(), 0));
    let three = b.recv(MAX_FDS, now()).unwrap().unwrap();
    assert_eq!((three.bytes.as_slice(), three.fds.len()), (b"three".as_slice(), 3));
    for fd in &three.fds {
        let flags = FdFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFD).unwrap());
        assert!(flags.contains(FdFlag::FD_CLOEXEC));
    }
}

#[test]
fn what_nobody_sends_is_waited_for_as_long_as_told() {
    let (a, b) = Channel::pair().unwrap();
    assert_eq!(b.recv(0, now()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    let start = Instant::now();
    let wait = Duration::from_millis(30);
    assert_eq!(b.recv(0, Some(wait)).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert!(start.elapsed() >= wait);
    let late = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        a.send(b"late", &[]).unwrap();
    });
    assert_eq!(b.recv(0, None).unwrap().unwrap().bytes, b"late");
    late.join().unwrap();
    assert!(b.recv(0, None).unwrap().is_none(), "the peer has gone");
    assert_eq!(b.send(b"x", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn unexpected_descriptors_refuse_the_message_and_are_closed() {
    let (file, path) = marker("unexpected");
    for (sent, room) in [(1, 0), (2, 1), (16, 15)] {
        let (a, b) = Channel::pair().unwrap();
        a.send(b"gift", &vec![file.as_fd(); sent]).unwrap();
        a.send(b"next", &[]).unwrap();
        assert_eq!(b.recv(room, now()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(copies_of(&file), 1);
        assert_eq!(b.recv(room, now()).unwrap().unwrap().bytes, b"next");
    }
    // A peer with its own sender is not bound by our limit: all that the kernel carries.
    let (a, b) = Channel::pair().unwrap();
    a.socket.send_with_fd(b"flood", &vec![file.as_raw_fd(); 253]).unwrap();
    assert_eq!(b.recv(MAX_FDS, now()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    assert_eq!(copies_of(&file), 1);
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_message_that_is_too_long_is_refused() {
    let (a, b) = Channel::pair().unwrap();
    assert_eq!(a.send(&[0; codec::MAX + 1], &[]).unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
    assert_eq!(a.send(&[], &[]).unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
    let fds = vec![a.as_fd(); MAX_FDS + 1];
    assert_eq!(a.send(b"x", &fds).unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
    a.socket.send(&[0; codec::MAX + 1]).unwrap();
    a.send(&[1; codec::MAX], &[]).unwrap();
    assert_eq!(b.recv(0, now()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    assert_eq!(b.recv(0, now()).unwrap().unwrap().bytes.len(), codec::MAX);
}

#[test]
fn a_peer_that_does_not_read_stops_the_sender_only_as_long_as_told() {
    let (a, _b) = Channel::pair().unwrap();
    a.set_send_timeout(Duration::from_millis(20)).unwrap();
    let message = [0; codec::MAX];
    let error = (0..10_000).find_map(|_| a.send(&message, &[]).err()).unwrap();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    a.set_nonblocking(true).unwrap();
    assert_eq!(a.send(&message, &[]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn only_connected_sequenced_packet_sockets_are_taken() {
    let (a, b) = Channel::pair().unwrap();
    let again = Channel::from_fd(a.into_fd()).unwrap();
    again.send(b"still there", &[]).unwrap();
    assert_eq!(b.recv(0, now()).unwrap().unwrap().bytes, b"still there");
    assert!(Channel::from_fd(null()).is_err());
    assert!(Channel::from_fd(UnixStream::pair().unwrap().0.into()).is_err());
    assert!(Channel::from_fd(UnixDatagram::pair().unwrap().0.into()).is_err());
    let flags = SockFlag::SOCK_CLOEXEC;
    let loose = socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
    assert!(Channel::from_fd(loose).is_err());
}

#[test]
fn connects_by_path() {
    let path = std::env::temp_dir().join(format!("nt-channel-{}.sock", std::process::id()));
    let flags = SockFlag::SOCK_CLOEXEC;
    let door = socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
    bind(door.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    assert!(Channel::connect(&path).is_err(), "nobody listens yet");
    listen(&door, Backlog::new(1).unwrap()).unwrap();
    let client = Channel::connect(&path).unwrap();
    let raw = socket::accept(door.as_raw_fd()).unwrap();
    // SAFETY: accept has just made it for us.
    let server = Channel::from_fd(unsafe { OwnedFd::from_raw_fd(raw) }).unwrap();
    client.send(b"hello", &[]).unwrap();
    assert_eq!(server.recv(0, now()).unwrap().unwrap().bytes, b"hello");
    assert!(Channel::from_fd(door).is_err(), "a listening socket is no channel");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_started_program_finds_its_end_at_descriptor_3() {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "test -S /proc/self/fd/3 && printf ok >&3"]);
    let (channel, mut child) = spawn(command).unwrap();
    assert_eq!(channel.recv(0, Some(Duration::from_secs(5))).unwrap().unwrap().bytes, b"ok");
    assert!(child.wait().unwrap().success());
    assert!(channel.recv(0, Some(Duration::from_secs(5))).unwrap().is_none());
}
