//! A hostile VMM: messages in any order, with memory, eventfds or nonsense as descriptors, then turns of both kinds.
#![no_main]

use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use libfuzzer_sys::fuzz_target;
use netreeve_dataplane::frame::Batch;
use netreeve_dataplane::port::vhost_user::{Plan, open};
use netreeve_dataplane::port::{Queues, Watch};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// Every descriptor that is ready, and a turn in each direction.
fn pump(ports: &mut Queues) {
    let mut w = Watch::default();
    let mut b = Batch::new();
    for p in ports.iter_mut() {
        w.clear();
        p.watch(&mut w);
        for &(fd, why) in w.fds() {
            let _ = p.event(fd, why);
        }
        if p.traits().up {
            b.clear();
            let _ = p.recv(&mut b);
            let _ = p.send(&b);
            p.release(&b, b.len());
            b.clear();
            p.lend(&mut b);
            let _ = p.send(&b);
            p.arm_gives();
            p.arm_takes();
        }
        let _ = p.stats();
    }
}

fn descriptor(kind: u8) -> OwnedFd {
    match kind & 3 {
        0 => {
            let fd = memfd_create(c"fuzz", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
            nix::unistd::ftruncate(&fd, 1 << 16).unwrap();
            fd
        }
        1 => std::fs::File::open("/dev/null").unwrap().into(),
        _ => EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap().into(),
    }
}

fuzz_target!(|data: &[u8]| {
    let (vmm, sock) = UnixStream::pair().unwrap();
    vmm.set_nonblocking(true).unwrap();
    let plan = Plan { queues: 2, server: false, mac: None, mtu: None, hide: 0 };
    let mut ports = open(&plan, vec![sock.into()]).unwrap();
    let mut rest = data;
    // A message: number, flags, descriptors, payload length, payload.
    while let Some((&[number, flags, fds, len], more)) = rest.split_first_chunk::<4>() {
        let n = usize::from(len).min(more.len());
        let mut m = u32::from(number % 48).to_ne_bytes().to_vec();
        m.extend(u32::from(flags | 1).to_ne_bytes());
        m.extend(u32::from(len).to_ne_bytes());
        m.extend(&more[..n]);
        rest = &more[n..];
        let held: Vec<OwnedFd> = (0..(fds >> 2) % 10).map(|_| descriptor(fds)).collect();
        let raw: Vec<i32> = held.iter().map(|f| f.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let rights: &[_] = if raw.is_empty() { &[] } else { &rights };
        let _ = sendmsg::<()>(vmm.as_raw_fd(), &[IoSlice::new(&m)], rights, MsgFlags::MSG_NOSIGNAL, None);
        pump(&mut ports);
    }
    drop(vmm);
    pump(&mut ports);
    pump(&mut ports);
});
