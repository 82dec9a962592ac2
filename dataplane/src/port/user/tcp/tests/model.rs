//! The host's end of a flow as a model: it takes and gives as it is told, and wakes as the kernel does.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;

use crate::mem::Seg;
use crate::port::user::plan::Outbound;
use crate::port::user::tcp::sock::Sock;

/// What the kernel knows of a socket.
#[derive(Debug, Default)]
pub(super) struct End {
    pub(super) to: Option<SocketAddr>,
    /// It is known how the connection came out, and how.
    pub(super) decided: bool,
    pub(super) error: Option<i32>,
    /// Bytes for the guest that were not discarded, and how many of them were read.
    pub(super) queue: VecDeque<u8>,
    pub(super) read: usize,
    /// The far end has finished, or has reset.
    pub(super) finished: bool,
    pub(super) reset: bool,
    /// It takes nothing any more, and is well otherwise.
    pub(super) deaf: bool,
    /// What the guest's side wrote.
    pub(super) got: Vec<u8>,
    pub(super) got_end: bool,
    pub(super) aborted: bool,
    /// Bytes that it takes now.
    pub(super) room: usize,
    /// Most bytes of one write, and of one read where the socket cannot peek.
    pub(super) most: usize,
    /// The socket said that it took nothing (or less than it was given), and owes an event.
    pub(super) starved: bool,
    pub(super) peeks: bool,
    pub(super) calls: usize,
    /// When the far end is asked whether it is there.
    pub(super) alive: Vec<u16>,
    /// Bytes that the kernel keeps for it.
    pub(super) bound: Option<u32>,
}

thread_local! {
    /// Sockets that were made, in order.
    pub(super) static MADE: RefCell<Vec<Rc<RefCell<End>>>> = const { RefCell::new(Vec::new()) };
    /// What the next connection comes to at once.
    pub(super) static FAILS: Cell<Option<i32>> = const { Cell::new(None) };
    pub(super) static PEEKS: Cell<bool> = const { Cell::new(true) };
}

#[derive(Debug)]
pub(super) struct Model(pub(super) Rc<RefCell<End>>);

impl Model {
    pub(super) fn new(to: Option<SocketAddr>) -> Self {
        let end = End { to, room: 1 << 20, most: usize::MAX, peeks: PEEKS.get(), ..End::default() };
        let end = Rc::new(RefCell::new(end));
        MADE.with_borrow_mut(|m| m.push(Rc::clone(&end)));
        Self(end)
    }
}

impl Sock for Model {
    fn open(to: SocketAddr, _: &Outbound) -> io::Result<Self> {
        match FAILS.get() {
            Some(e) => Err(io::Error::from_raw_os_error(e)),
            None => Ok(Self::new(Some(to))),
        }
    }

    fn made(_fd: OwnedFd, _tcp: bool) -> Self {
        Self::new(None)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn peeks(&self) -> bool {
        self.0.borrow().peeks
    }

    fn write(&mut self, from: &[Seg]) -> io::Result<usize> {
        let mut e = self.0.borrow_mut();
        e.calls += 1;
        assert!(!from.is_empty() && from.iter().all(|s| !s.is_empty()), "empty calls are for nothing");
        assert!(!e.got_end, "written behind the end");
        if e.reset || e.deaf {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let mut n = 0;
        for s in from {
            let mut b = vec![0; (s.len() as usize).min(e.room).min(e.most - n)];
            s.copy_out(&mut b);
            e.room -= b.len();
            n += b.len();
            e.got.extend(&b);
        }
        let offered: usize = from.iter().map(|s| s.len() as usize).sum();
        e.starved |= n < offered;
        if n == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(n) }
    }

    fn read(&mut self, to: &[Seg]) -> io::Result<usize> {
        let mut e = self.0.borrow_mut();
        e.calls += 1;
        let room: usize = to.iter().map(|s| s.len() as usize).sum();
        assert!(room > 0, "a read of nothing is the end");
        // TCP gives all that there is; what comes out of others has edges.
        let most = if e.peeks { usize::MAX } else { e.most };
        let n = room.min(most).min(e.queue.len() - e.read);
        if n == 0 {
            return match (e.reset, e.finished) {
                (true, _) => Err(ErrorKind::ConnectionReset.into()),
                (_, true) => Ok(0),
                _ => Err(ErrorKind::WouldBlock.into()),
            };
        }
        let bytes: Vec<u8> = e.queue.iter().skip(e.read).take(n).copied().collect();
        let mut rest = bytes.as_slice();
        for s in to {
            let k = s.copy_in(rest);
            rest = &rest[k..];
        }
        if e.peeks {
            e.read += n;
        } else {
            e.queue.drain(..n);
        }
        Ok(n)
    }

    fn discard(&mut self, n: u32) -> io::Result<u32> {
        let mut e = self.0.borrow_mut();
        e.calls += 1;
        let k = (n as usize).min(e.queue.len());
        assert_eq!(k, n as usize, "discards what it never read");
        e.queue.drain(..k);
        e.read = e.read.saturating_sub(k);
        Ok(k as u32)
    }

    fn unread(&self) -> io::Result<u32> {
        Ok(self.0.borrow().queue.len() as u32)
    }

    fn rewind(&mut self) -> io::Result<()> {
        self.0.borrow_mut().read = 0;
        Ok(())
    }

    fn bound(&mut self, bytes: u32) {
        self.0.borrow_mut().bound = Some(bytes);
    }

    fn keep_alive(&mut self, seconds: u16) {
        self.0.borrow_mut().alive.push(seconds);
    }

    fn finish(&mut self) {
        self.0.borrow_mut().got_end = true;
    }

    fn abort(&mut self) {
        self.0.borrow_mut().aborted = true;
    }

    fn decided(&self) -> bool {
        self.0.borrow().decided
    }

    fn error(&mut self) -> Option<io::Error> {
        self.0.borrow_mut().error.take().map(io::Error::from_raw_os_error)
    }
}
