//! What the `user` network calls once locked in: the only port that makes sockets, and these only.
//!
//! Trust: none needed. Promise: families, types and options are the constants below, which the kernel checks; addresses it
//! cannot check (they lie in memory): where to, [`super::policy`] decides. A restricted network has no `socket` and no
//! `connect`.
#![forbid(unsafe_code)]

use crate::sandbox::call::{Call, Cond};
use crate::sys::mmsg;
use crate::sys::sock::{Ask, FLAGS, Opt, UNREAD, UNSENT};

/// `MSG_FASTOPEN` (linux/socket.h): `sendmsg` connects a stream.
const OPENS_STREAM: u64 = 0x2000_0000;

/// Domain, type and protocol.
const fn socket(family: i32, kind: i32, protocol: i32) -> [Cond; 3] {
    [
        Cond::is(0, family.cast_unsigned()),
        Cond::is(1, (kind | FLAGS).cast_unsigned()),
        Cond::is(2, protocol.cast_unsigned()),
    ]
}

/// Level and option.
const fn set(o: Opt) -> [Cond; 2] {
    let (level, option) = o.name();
    [Cond::is(1, level.cast_unsigned()), Cond::is(2, option.cast_unsigned())]
}

/// Level and option.
const fn ask(o: Ask) -> [Cond; 2] {
    let (level, option) = o.name();
    [Cond::is(1, level.cast_unsigned()), Cond::is(2, option.cast_unsigned())]
}

/// What every such network calls, on sockets that it was handed and that came to them, and more.
macro_rules! calls {
    ($($more:expr,)*) => {
        &[
            Call::any(libc::SYS_accept4),
            Call::any(libc::SYS_recvmsg),
            // A stream would be opened by it (`MSG_FASTOPEN`), wherever to: Landlock looks at `connect` alone.
            Call::only(libc::SYS_sendmsg, &[Cond::without(2, OPENS_STREAM)]),
            Call::any(libc::SYS_shutdown),
            Call::only(libc::SYS_recvmmsg, &[Cond::is(3, mmsg::RECV_FLAGS), Cond::null(4)]),
            Call::only(libc::SYS_sendmmsg, &[Cond::is(3, mmsg::SEND_FLAGS)]),
            Call::any(libc::SYS_timerfd_settime),
            // Whether an address is the host's own (`sockets::is_own`); which port of a range a socket has.
            Call::any(libc::SYS_getsockname),
            Call::only(libc::SYS_ioctl, &[Cond::is(1, UNSENT)]),
            Call::only(libc::SYS_ioctl, &[Cond::is(1, UNREAD)]),
            Call::only(libc::SYS_getsockopt, &ask(Ask::Error)),
            Call::only(libc::SYS_getsockopt, &ask(Ask::SendBuffer)),
            Call::only(libc::SYS_getsockopt, &ask(Ask::ReceiveBuffer)),
            Call::only(libc::SYS_getsockopt, &ask(Ask::MaxSegment)),
            Call::only(libc::SYS_getsockopt, &ask(Ask::Mtu)),
            Call::only(libc::SYS_getsockopt, &ask(Ask::Mtu6)),
            Call::only(libc::SYS_setsockopt, &set(Opt::NoDelay)),
            Call::only(libc::SYS_setsockopt, &set(Opt::KeepAlive)),
            Call::only(libc::SYS_setsockopt, &set(Opt::KeepIdle)),
            Call::only(libc::SYS_setsockopt, &set(Opt::KeepInterval)),
            Call::only(libc::SYS_setsockopt, &set(Opt::PeekOff)),
            Call::only(libc::SYS_setsockopt, &set(Opt::UrgentInline)),
            Call::only(libc::SYS_setsockopt, &set(Opt::RecvErr)),
            Call::only(libc::SYS_setsockopt, &set(Opt::RecvErr6)),
            Call::only(libc::SYS_setsockopt, &set(Opt::UdpGro)),
            Call::only(libc::SYS_setsockopt, &set(Opt::MtuDiscover)),
            Call::only(libc::SYS_setsockopt, &set(Opt::MtuDiscover6)),
            Call::only(libc::SYS_setsockopt, &set(Opt::Ttl)),
            Call::only(libc::SYS_setsockopt, &set(Opt::Hops6)),
            Call::only(libc::SYS_setsockopt, &set(Opt::SendBuffer)),
            Call::only(libc::SYS_setsockopt, &set(Opt::ReceiveBuffer)),
            Call::only(libc::SYS_setsockopt, &set(Opt::RecvTtl)),
            Call::only(libc::SYS_setsockopt, &set(Opt::RecvHops6)),
            Call::only(libc::SYS_setsockopt, &[
                Cond::is(1, libc::SOL_SOCKET.cast_unsigned()),
                Cond::is(2, libc::SO_LINGER.cast_unsigned()),
            ]),
            $($more,)*
        ]
    };
}

/// Of a network without a way out.
pub const RESTRICTED: &[Call] = calls!();

/// Of any other: streams, datagrams and echo requests of the two internet families.
pub const CALLS: &[Call] = calls!(
    Call::only(libc::SYS_socket, &socket(libc::AF_INET, libc::SOCK_STREAM, 0)),
    Call::only(libc::SYS_socket, &socket(libc::AF_INET6, libc::SOCK_STREAM, 0)),
    Call::only(libc::SYS_socket, &socket(libc::AF_INET, libc::SOCK_DGRAM, 0)),
    Call::only(libc::SYS_socket, &socket(libc::AF_INET6, libc::SOCK_DGRAM, 0)),
    Call::only(libc::SYS_socket, &socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP)),
    Call::only(libc::SYS_socket, &socket(libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6)),
    Call::any(libc::SYS_connect),
);

/// Of one that reads files by TFTP, in addition. What may be opened, Landlock says: reading beneath the directory.
pub const FILES: &[Call] =
    &[Call::any(libc::SYS_openat2), Call::any(libc::SYS_pread64), Call::any(libc::SYS_fstat)];

/// Of one whose sockets leave the host by an address or an interface that was named, in addition. (No name of a port: nothing
/// listens, as there is no `listen`, and Landlock lets TCP bind to no port but the kernel's choice.)
pub const OUTBOUND: &[Call] = &[
    Call::only(libc::SYS_bind, &[Cond::is(2, 16)]),
    Call::only(libc::SYS_bind, &[Cond::is(2, 28)]),
    Call::only(libc::SYS_setsockopt, &set(Opt::PortLater)),
    Call::only(
        libc::SYS_setsockopt,
        &[Cond::is(1, libc::SOL_SOCKET.cast_unsigned()), Cond::is(2, libc::SO_BINDTODEVICE.cast_unsigned())],
    ),
];

/// What opening one calls in addition, once locked in: it is never opened then.
pub const OPENS: &[Call] = &[];
