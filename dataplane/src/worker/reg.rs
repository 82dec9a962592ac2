//! A watched descriptor, and what it is watched for.
#![forbid(unsafe_code)]

use std::os::fd::RawFd;

use nix::sys::epoll::EpollFlags;

use super::floor::Seat;
use super::place::{Place, State};

/// One watched descriptor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reg {
    pub(super) fd: RawFd,
    pub(super) seat: Seat,
    /// Its lane's index among the worker's own; none: another worker's lane.
    pub(super) place: Option<usize>,
    pub(super) gives: bool,
    pub(super) takes: bool,
    pub(super) room: bool,
    pub(super) control: bool,
    pub(super) gone: bool,
    pub(super) mask: EpollFlags,
}

/// What a lane's state asks of a descriptor.
pub(super) fn mask(r: &Reg, p: &Place) -> EpollFlags {
    let mut m = EpollFlags::empty();
    if p.unwatched {
        return if r.control { EpollFlags::EPOLLIN } else { m };
    }
    if r.control || r.room || (r.gives && p.stand(r.seat.side).state != State::Full) {
        m |= EpollFlags::EPOLLIN;
    }
    if r.takes && p.stand(r.seat.side.peer()).state == State::Full {
        m |= EpollFlags::EPOLLOUT;
    }
    if r.gone {
        m |= EpollFlags::EPOLLRDHUP;
    }
    m
}
