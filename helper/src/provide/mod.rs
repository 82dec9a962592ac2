//! Does what was asked, once it is allowed.
//!
//! Trust: the request has passed `Request::check` and the policy; the caller's uid is the kernel's word. Promise: what
//! is granted dies with the caller's descriptors (or with the session that holds the rest); a refusal leaves nothing.

mod bridge;
mod socket;
mod tap;
mod xdp;
mod xsk;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use netreeve_shared::grant::{ActiveGrant, Grant};
use netreeve_shared::refusal::{Refusal, Step};
use netreeve_shared::request::{MAX_XSK_QUEUES, Request, TapRequest, XskRequest};
use nix::errno::Errno;

pub use crate::policy::Quota;
use crate::privilege;
use xdp::Program;
use xsk::{How, Sockets};

/// Bytes of virtio-net header, with `num_buffers` (virtio 1.2 §5.1.6).
const HEADER: u8 = 12;
/// Most AF_XDP grants that a session holds open (not yet activated, or pinned): each keeps descriptors here.
const MAX_HELD: usize = 16;
/// Descriptors of a loaded program: itself, its four maps, its BTF, its link.
const OF_PROGRAM: u64 = 7;
/// Most descriptors that a session keeps: of each grant a socket a queue and, if it is pinned, a program.
pub const MAX_KEPT: u64 = MAX_HELD as u64 * (MAX_XSK_QUEUES as u64 + OF_PROGRAM);

/// What a socket counts for among the bytes of UMEM: what the kernel queues in it is its holder's doing, too.
const SOCKET: u64 = 1 << 20;

/// How often [`Provider::tick`] is to be called while [`Provider::wants_tick`].
pub const TICK: Duration = Duration::from_millis(100);

/// What a step of the work gives.
type Outcome<T> = Result<T, Refusal>;
/// A grant and its descriptors, in the order of [`Grant::fds`].
pub type Granted = Result<(Grant, Vec<OwnedFd>), Refusal>;

/// What one session has been given and the helper still holds: nothing yet, by default. Dropping it lets go of everything.
#[derive(Default)]
pub struct Provider {
    last_ticket: u32,
    umem: u64,
    /// Sockets that wait for [`Request::Activate`].
    tickets: BTreeMap<u32, Sockets>,
    pinned: Vec<Pinned>,
}

/// What else must be allowed to whoever asks for this: sockets that are not bound yet are as good as pinned ones.
#[must_use]
pub fn amounts_to(request: &Request) -> Option<Request> {
    match request {
        Request::Xsk(asked) if How::here() == How::Late => Some(Request::XskPinned(asked.clone())),
        _ => None,
    }
}

/// A pinned grant: its program is attached while the session lives.
struct Pinned {
    _link: OwnedFd,
    program: Program,
    /// Slots and sockets that the kernel does not take before their holder has made a receive ring.
    waiting: Vec<(u32, OwnedFd)>,
}

impl Provider {
    /// Provides what `request` asks for. The descriptors belong to the caller's reply, in the order of [`Grant::fds`].
    ///
    /// # Errors
    /// [`Refusal::Failed`] with the step and the kernel's reason, [`Refusal::Busy`], [`Refusal::Limit`] or
    /// [`Refusal::Ticket`]; nothing of what was begun is left then. A ticket whose activation failed can be tried again.
    pub fn provide(&mut self, request: &Request, uid: u32, quota: &Quota) -> Granted {
        match request {
            Request::Tap(asked) => {
                let (grant, fds) = tap::make(asked, uid, quota.taps, HEADER)?;
                Ok((Grant::Tap(grant), fds))
            }
            Request::Xsk(asked) => self.xsk(asked, quota.umem),
            Request::XskPinned(asked) => self.xsk_pinned(asked),
            Request::Activate(ticket) => self.activate(*ticket),
            Request::L2tp(asked) => self.socket(Grant::L2tp(*asked), socket::l2tp(asked), quota.umem),
            Request::Listen(asked) => self.socket(Grant::Listen(*asked), socket::listen(asked), quota.umem),
        }
    }

    /// Bytes of UMEM that this session has been granted, with what its sockets count for. They count until the session
    /// ends: the helper cannot see when the caller lets go of what only the caller holds.
    #[must_use]
    pub fn umem_bytes(&self) -> u64 {
        self.umem
    }

    /// What the ticket was given for.
    #[must_use]
    pub fn asked(&self, ticket: u32) -> Option<XskRequest> {
        self.tickets.get(&ticket).map(|held| held.request.clone())
    }

    /// True while [`Provider::tick`] has something to do.
    #[must_use]
    pub fn wants_tick(&self) -> bool {
        self.pinned.iter().any(|p| !p.waiting.is_empty())
    }

    /// Tries again to insert pinned sockets. To be called every [`TICK`]: a VMM makes its rings at its own time,
    /// and newer kernels (7.x) take no socket into the map before that.
    pub fn tick(&mut self) {
        if !self.wants_tick() {
            return;
        }
        // A lack of the capability shows at the next request; here nobody waits for an answer.
        let _ = privilege::with(privilege::PROGRAM, || {
            self.pinned.iter_mut().for_each(Pinned::insert);
            Ok(())
        });
    }

    fn new_ticket(&mut self) -> Result<u32, Refusal> {
        if self.tickets.len() + self.pinned.len() >= MAX_HELD {
            return Err(Refusal::Limit);
        }
        self.last_ticket = self.last_ticket.checked_add(1).ok_or(Refusal::Limit)?;
        Ok(self.last_ticket)
    }

    fn socket(&mut self, grant: Grant, made: Result<OwnedFd, Refusal>, most: u64) -> Granted {
        let (socket, umem) = (made?, self.room(SOCKET, most)?);
        self.umem = umem;
        Ok((grant, vec![socket]))
    }

    /// The session's bytes with `more` of them, if that is within the limit.
    fn room(&self, more: u64, most: u64) -> Result<u64, Refusal> {
        Some(self.umem.saturating_add(more)).filter(|all| *all <= most).ok_or(Refusal::Limit)
    }

    fn xsk(&mut self, asked: &XskRequest, max_umem: u64) -> Granted {
        let umem = self.room(asked.umem_bytes(), max_umem)?;
        let ticket = self.new_ticket()?;
        let (sockets, grant, fds) = xsk::open(asked, ticket, How::here())?;
        self.umem = umem;
        self.tickets.insert(ticket, sockets);
        Ok((Grant::Xsk(grant), fds))
    }

    /// Takes the sockets live. From then on the caller holds everything: sockets, UMEM, link.
    fn activate(&mut self, ticket: u32) -> Granted {
        let held = self.tickets.get_mut(&ticket).ok_or(Refusal::Ticket)?;
        held.bind()?;
        let (link, mode) = privilege::with(privilege::PROGRAM, || {
            let program = Program::load(held)?;
            for (slot, socket) in (0..).zip(&held.sockets) {
                program.insert(slot, socket.as_fd()).at(Step::InsertSocket)?;
            }
            program.attach(held)
        })?;
        self.tickets.remove(&ticket);
        Ok((Grant::Active(ActiveGrant { ticket, mode }), vec![link]))
    }

    fn xsk_pinned(&mut self, asked: &XskRequest) -> Granted {
        let ticket = self.new_ticket()?;
        let (held, grant, fds) = xsk::open(asked, ticket, How::Bare)?;
        let pinned = privilege::with(privilege::PROGRAM, || {
            let program = Program::load(&held)?;
            let (_link, _) = program.attach(&held)?;
            let mut pinned = Pinned { _link, program, waiting: (0..).zip(held.sockets).collect() };
            pinned.insert();
            Ok(pinned)
        })?;
        self.pinned.push(pinned);
        Ok((Grant::XskPinned(grant), fds))
    }
}

impl Pinned {
    /// Inserts what the kernel takes by now. Our copy of a socket is closed once it is in the map, so that the holder's
    /// is the last one.
    fn insert(&mut self) {
        let not_yet = |why| matches!(why, Err(Errno::ENOBUFS | Errno::EOPNOTSUPP));
        self.waiting.retain(|(slot, socket)| not_yet(self.program.insert(*slot, socket.as_fd())));
    }
}

/// The tap of [`Request::Tap`] for the `qemu-bridge-helper` face: one descriptor, with the kernel's own header size.
///
/// # Errors
/// As [`Provider::provide`].
pub fn bridge_tap(asked: &TapRequest, uid: u32, max_taps: u32) -> Result<OwnedFd, Refusal> {
    let (_, mut fds) = tap::make(asked, uid, max_taps, HEADER - 2)?;
    fds.pop().ok_or(failed(Step::MakeTap, Errno::EBADF))
}

/// The kernel's error at a step of the work.
fn failed(step: Step, why: Errno) -> Refusal {
    Refusal::Failed { step, errno: why as i32 }
}

/// Says at which step a system call failed.
trait At<T> {
    fn at(self, step: Step) -> Result<T, Refusal>;
}

impl<T> At<T> for nix::Result<T> {
    fn at(self, step: Step) -> Result<T, Refusal> {
        self.map_err(|why| failed(step, why))
    }
}
