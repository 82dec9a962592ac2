//! A timer as a descriptor (`timerfd_create(2)`): made before the lock-in, set and read afterwards.

use std::io::{Error, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

/// A one-shot timer that is readable once its time is over.
#[derive(Debug)]
pub struct Timer(OwnedFd);

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Timer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> Result<Self> {
        let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
        // SAFETY: no pointer is passed.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) };
        if fd < 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// A timer that goes off every `interval` (a microsecond at least), from now on, for ever.
    ///
    /// # Errors
    /// The kernel's.
    pub fn every(interval: Duration) -> Result<OwnedFd> {
        let timer = Self::new()?;
        let interval = interval.max(Duration::from_micros(1));
        // SAFETY: itimerspec is plain integers.
        let mut spec: libc::itimerspec = unsafe { std::mem::zeroed() };
        spec.it_interval.tv_sec = libc::time_t::try_from(interval.as_secs()).unwrap_or(libc::time_t::MAX);
        spec.it_interval.tv_nsec = libc::c_long::from(interval.subsec_nanos().cast_signed());
        spec.it_value = spec.it_interval;
        // SAFETY: `spec` is valid for the call, and the old setting is not asked for.
        let r = unsafe { libc::timerfd_settime(timer.fd(), 0, &raw const spec, ptr::null_mut()) };
        if r < 0 { Err(Error::last_os_error()) } else { Ok(timer.0) }
    }

    /// To be watched for reading.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Goes off once, `after` from now on (a day at most, and not at once); forgets what was set before.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set(&self, after: Duration) -> Result<()> {
        let after = after.clamp(Duration::from_nanos(1), Duration::from_secs(86400));
        // SAFETY: itimerspec is plain integers; all zero is "once, never".
        let mut spec: libc::itimerspec = unsafe { std::mem::zeroed() };
        spec.it_value.tv_sec = libc::time_t::try_from(after.as_secs()).unwrap_or(1);
        spec.it_value.tv_nsec = libc::c_long::from(after.subsec_nanos().cast_signed());
        // SAFETY: `spec` is valid for the call, and the old setting is not asked for.
        let r = unsafe { libc::timerfd_settime(self.fd(), 0, &raw const spec, ptr::null_mut()) };
        if r < 0 { Err(Error::last_os_error()) } else { Ok(()) }
    }

    /// It was readable: makes it silent again.
    pub fn clear(&self) {
        // Nothing to read is as good.
        let _ = nix::unistd::read(&self.0, &mut [0; 8]);
    }
}
