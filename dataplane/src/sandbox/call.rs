//! How a piece of code declares the system calls that it makes, beside the code that makes them.
//!
//! The sandbox's filter is the union of the declarations of what is in use (`sandbox::seccomp`).
#![forbid(unsafe_code)]

/// A system call that is allowed, perhaps only with certain arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its number (`libc::SYS_*`).
    pub nr: libc::c_long,
    /// Conditions that all must hold; none: any arguments. Two declarations of one call are alternatives.
    pub only: &'static [Cond],
}

/// A condition on one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cond {
    /// Which argument, counted from 0.
    pub arg: u8,
    /// Bits that count.
    pub mask: u64,
    /// What they must be.
    pub value: u64,
    /// What they must not be, rather (all 32 bits count then).
    pub not: bool,
}

/// A descriptor does not wait from now on. Never the other way: whoever else holds the open file, the supervisor among
/// them, would wait in it; and nobody gets signals from it.
pub const NEVER_WAITS: Call = Call::only(
    libc::SYS_fcntl,
    &[
        Cond::is(1, libc::F_SETFL.cast_unsigned()),
        Cond::bits(2, WAITING.cast_unsigned() as u64, libc::O_NONBLOCK.cast_unsigned() as u64),
    ],
);
const WAITING: libc::c_int = libc::O_NONBLOCK | libc::O_ASYNC;

impl Call {
    /// The call with any arguments.
    #[must_use]
    pub const fn any(nr: libc::c_long) -> Self {
        Self { nr, only: &[] }
    }

    /// The call where all of `only` hold.
    #[must_use]
    pub const fn only(nr: libc::c_long, only: &'static [Cond]) -> Self {
        Self { nr, only }
    }
}

impl Cond {
    /// Argument `arg`, as 32 bits, is `value` (file descriptors, ioctl requests, flags).
    #[must_use]
    pub const fn is(arg: u8, value: u32) -> Self {
        Self { arg, mask: 0xffff_ffff, value: value as u64, not: false }
    }

    /// Argument `arg`, as 32 bits, is anything but `value`.
    #[must_use]
    pub const fn is_not(arg: u8, value: u32) -> Self {
        Self { arg, mask: 0xffff_ffff, value: value as u64, not: true }
    }

    /// The bits `mask` of argument `arg` are `value`.
    #[must_use]
    pub const fn bits(arg: u8, mask: u64, value: u64) -> Self {
        Self { arg, mask, value, not: false }
    }

    /// Argument `arg`, as 64 bits, is zero (a null pointer).
    #[must_use]
    pub const fn null(arg: u8) -> Self {
        Self { arg, mask: u64::MAX, value: 0, not: false }
    }

    /// No bit of `bits` is set in argument `arg`.
    #[must_use]
    pub const fn without(arg: u8, bits: u64) -> Self {
        Self { arg, mask: bits, value: 0, not: false }
    }
}
