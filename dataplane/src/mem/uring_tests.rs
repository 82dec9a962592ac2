//! The ring over datagram sockets, which keep calls apart as a tap keeps frames apart.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

use super::*;
use crate::mem::Buf;

/// None where io_uring is forbidden: then netreeve does without, and so does the test.
fn ring() -> Option<(Uring, UnixDatagram, UnixDatagram)> {
    let (near, far) = UnixDatagram::pair().unwrap();
    match Uring::new(near.as_fd()) {
        Ok(ring) => Some((ring, near, far)),
        Err(e) => {
            assert!(matches!(e.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)), "{e}");
            None
        }
    }
}

#[test]
fn calls_are_made_in_order_and_all_at_once() {
    let Some((mut ring, _near, far)) = ring() else { return };
    let memory = Buf::new(4096).unwrap();
    memory.seg(0, 10).copy_in(b"0123456789");
    // More rounds than the ring is long, so that it wraps.
    for round in 0..40u8 {
        let heads: Vec<Vec<u8>> = (0..7).map(|i| vec![round, i]).collect();
        let mut calls = ring.calls();
        for (i, head) in (0..).zip(&heads) {
            let body = if i % 2 == 0 { vec![] } else { vec![memory.seg(0, i), memory.seg(5, 1)] };
            assert!(calls.write(b"h", head, &body));
        }
        assert_eq!(calls.len(), 7);
        assert_eq!(calls.run().unwrap(), [3, 5, 3, 7, 3, 9, 3]);
        for i in 0..7u8 {
            let mut got = [0; 64];
            let n = far.recv(&mut got).unwrap();
            assert_eq!(got[..3], [b'h', round, i]);
            let body =
                if i % 2 == 0 { String::new() } else { "0123456789"[..usize::from(i)].to_owned() + "5" };
            assert_eq!(&got[3..n], body.as_bytes());
        }
    }
}

#[test]
fn nothing_is_waited_for() {
    let Some((mut ring, _near, far)) = ring() else { return };
    let memory = Buf::new(4096).unwrap();
    far.send(b"one").unwrap();
    far.send(b"two!").unwrap();
    let mut calls = ring.calls();
    (0..4).for_each(|i| assert!(calls.read(&memory.seg(i * 100, 100))));
    let from = std::time::Instant::now();
    assert_eq!(calls.run().unwrap(), [3, 4, -libc::EAGAIN, -libc::EAGAIN]);
    assert!(from.elapsed().as_millis() < 500);
    let mut got = [0; 4];
    memory.seg(100, 4).copy_out(&mut got);
    assert_eq!(&got, b"two!");
    // What comes later is not read into memory that was lent before.
    far.send(b"late").unwrap();
    memory.seg(200, 4).copy_out(&mut got);
    assert_eq!(got, [0; 4]);
}

#[test]
fn a_list_has_an_end() {
    let Some((mut ring, _near, far)) = ring() else { return };
    far.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
    let memory = Buf::new(4096).unwrap();
    let crumbs: Vec<Seg> = (0..100).map(|i| memory.seg(i, 1)).collect();
    let mut calls = ring.calls();
    let fits = (0..200).take_while(|_| calls.write(b"h", b"", &crumbs)).count();
    assert_eq!((fits, calls.len()), (5, 5), "runs");
    let mut calls = ring.calls();
    assert!(!calls.write(&[0; 200], b"", &crumbs[..1]), "more of its own than there is room for");
    let fits = (0..200).take_while(|_| calls.write(b"h", b"x", &[])).count();
    assert_eq!(fits, CALLS);
    let reader = std::thread::spawn(move || (0..CALLS).filter(|_| far.recv(&mut [0; 8]).is_ok()).count());
    let sent = calls.run().unwrap().iter().filter(|r| **r == 2).count();
    assert!(sent > 0);
    drop((ring, _near));
    assert!(reader.join().unwrap() >= sent);
}

/// What the ring answers to an entry that [`Calls`] would never make.
fn answer(ring: &mut Uring, change: impl FnOnce(&mut Entry)) -> i32 {
    let mut entry = Entry {
        op: OP_READ,
        flags: FIXED_FILE,
        priority: 0,
        fd: 0,
        offset: 0,
        addr: 0,
        len: 0,
        rw_flags: NOWAIT,
        user_data: 0,
        rest: [0; 3],
    };
    change(&mut entry);
    ring.put(0, entry);
    ring.results[0] = 1;
    ring.submit(1).unwrap();
    ring.results[0]
}

#[test]
fn the_ring_does_nothing_else() {
    let Some((mut ring, near, _far)) = ring() else { return };
    assert_eq!(answer(&mut ring, |_| {}), 0, "a read of nothing is what it may");
    // Every other operation that there is: opening, connecting, spawning, sending messages to other rings.
    for op in (0..=80).filter(|op| ![OP_WRITEV, OP_READ, OP_WRITE].contains(op)) {
        let got = answer(&mut ring, |e| e.op = op);
        assert!([-libc::EACCES, -libc::EINVAL].contains(&got), "operation {op}: {got}");
    }
    assert_eq!(answer(&mut ring, |e| e.op = 0), -libc::EACCES, "NOP is refused, not unknown");
    assert_eq!(answer(&mut ring, |e| e.op = 18), -libc::EACCES, "OPENAT");
    // Another descriptor than the registered one, by number or by place; and left to be done later.
    let raw = near.as_raw_fd();
    assert_eq!(answer(&mut ring, |e| (e.flags, e.fd) = (0, raw)), -libc::EACCES);
    assert_eq!(answer(&mut ring, |e| e.fd = 1), -libc::EBADF);
    for flag in [1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5] {
        assert_eq!(answer(&mut ring, |e| e.flags |= flag), -libc::EACCES, "flag {flag}");
    }
    // No registration is taken any more.
    for what in 0..40u32 {
        let fd = ring.fd.as_raw_fd();
        // SAFETY: null and zero are arguments that every operation refuses, if it comes to that.
        let r = unsafe { libc::syscall(libc::SYS_io_uring_register, fd, what, std::ptr::null::<u8>(), 0) };
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap();
        assert!(r < 0 && [libc::EACCES, libc::EINVAL, libc::EBADFD].contains(&errno), "{what}: {r} {errno}");
    }
}

#[test]
fn what_always_waits_is_refused() {
    let file = std::fs::File::open("/proc/self/mounts").unwrap();
    let Some(_) = ring() else { return };
    assert!(Uring::new(file.as_fd()).is_err(), "no calls that do not wait");
}
