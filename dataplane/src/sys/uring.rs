//! io_uring's three calls (`linux/io_uring.h`), for a ring that can do nothing but read and write one descriptor.
//!
//! Two of them are made before the lock-in and refused after it; the third is all that remains.

use std::io::{Error, Result};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

/// `IORING_OP_WRITEV`: from a list of runs.
pub const OP_WRITEV: u8 = 2;
/// `IORING_OP_READ`: into one run.
pub const OP_READ: u8 = 22;
/// `IORING_OP_WRITE`: from one run.
pub const OP_WRITE: u8 = 23;
/// `IOSQE_FIXED_FILE`: the descriptor is a place in the list of registered ones.
pub const FIXED_FILE: u8 = 1;
/// `IORING_ENTER_GETEVENTS`: wait for so many completions.
pub const GETEVENTS: u32 = 1;

const SETUP_R_DISABLED: u32 = 1 << 6;
const FEAT_SINGLE_MMAP: u32 = 1;
const FEAT_NODROP: u32 = 2;
const FEAT_SUBMIT_STABLE: u32 = 4;
const REGISTER_FILES: u32 = 2;
const REGISTER_RESTRICTIONS: u32 = 11;
const REGISTER_ENABLE_RINGS: u32 = 12;
const RESTRICTION_SQE_OP: u16 = 1;
const RESTRICTION_SQE_FLAGS_ALLOWED: u16 = 2;
const RESTRICTION_SQE_FLAGS_REQUIRED: u16 = 3;

/// `struct io_sqring_offsets` and `struct io_cqring_offsets`: both are eight words and an address.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Offsets {
    /// The consumer's index.
    pub head: u32,
    /// The producer's index.
    pub tail: u32,
    /// Entries less one.
    pub mask: u32,
    /// Entries.
    pub entries: u32,
    /// Submission: flags; completion: how many found no place.
    pub flags: u32,
    /// Submission: how many were invalid; completion: the entries.
    pub more: u32,
    /// Submission: the list of entries to submit; completion: flags.
    pub last: u32,
    reserved: u32,
    address: u64,
}

/// `struct io_uring_params`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Params {
    /// Submission entries.
    pub sq_entries: u32,
    /// Completion entries.
    pub cq_entries: u32,
    flags: u32,
    thread: [u32; 2],
    features: u32,
    others: [u32; 4],
    /// The submission ring.
    pub sq: Offsets,
    /// The completion ring.
    pub cq: Offsets,
}

const _: () = assert!(size_of::<Params>() == 120);

/// `struct io_uring_restriction`.
#[repr(C)]
struct Restriction {
    what: u16,
    value: u8,
    reserved: [u8; 13],
}

/// Makes a ring of `entries` that is not enabled yet, with all that [`crate::mem::uring`] counts on.
///
/// # Errors
/// The kernel's: `EPERM` where io_uring is forbidden, `ENOSYS` where there is none; `Unsupported` before Linux 5.10.
pub fn setup(entries: u32) -> Result<(OwnedFd, Params)> {
    let mut params = Params { flags: SETUP_R_DISABLED, ..Params::default() };
    // SAFETY: `params` is the kernel's structure (its size is checked above) and outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, entries, &raw mut params) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(Error::last_os_error)?;
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let needs = FEAT_SINGLE_MMAP | FEAT_NODROP | FEAT_SUBMIT_STABLE;
    if params.features & needs == needs {
        Ok((fd, params))
    } else {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

/// # Safety
/// `arg` is what the operation `what` takes, `n` of it, or null where it takes nothing.
unsafe fn register(ring: BorrowedFd<'_>, what: u32, arg: *const u8, n: usize) -> Result<()> {
    // SAFETY: the caller vouches for the argument, which the kernel only reads.
    let r = unsafe { libc::syscall(libc::SYS_io_uring_register, ring.as_raw_fd(), what, arg, n) };
    if r < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// Registers `fd` as the one descriptor, restricts the ring to `ops` on it, and enables it. Nothing of this can be taken
/// back: a restricted ring takes no other registration (`io_uring_register(2)`).
///
/// # Errors
/// The kernel's.
pub fn confine(ring: BorrowedFd<'_>, fd: BorrowedFd<'_>, ops: &[u8]) -> Result<()> {
    let only = |what, value| Restriction { what, value, reserved: [0; 13] };
    let mut all: Vec<_> = ops.iter().map(|op| only(RESTRICTION_SQE_OP, *op)).collect();
    // Always the registered descriptor, never a number of somebody's choice; and no other flag, so none that would
    // leave an operation to be done later.
    all.push(only(RESTRICTION_SQE_FLAGS_ALLOWED, FIXED_FILE));
    all.push(only(RESTRICTION_SQE_FLAGS_REQUIRED, FIXED_FILE));
    let files = [fd.as_raw_fd()];
    // SAFETY: one descriptor, which is an int.
    unsafe { register(ring, REGISTER_FILES, files.as_ptr().cast(), files.len()) }?;
    // SAFETY: so many of the kernel's structures of 16 bytes.
    unsafe { register(ring, REGISTER_RESTRICTIONS, all.as_ptr().cast(), all.len()) }?;
    // SAFETY: it takes nothing.
    unsafe { register(ring, REGISTER_ENABLE_RINGS, ptr::null(), 0) }
}

/// `io_uring_enter(2)` without a signal mask: submits `submit` entries and waits for `wait` completions (if `flags` has
/// [`GETEVENTS`]); how many were submitted.
///
/// # Errors
/// The kernel's.
pub fn enter(ring: BorrowedFd<'_>, submit: u32, wait: u32, flags: u32) -> Result<u32> {
    let none = ptr::null::<u8>();
    // SAFETY: no pointer is passed here; what the entries point to is `mem::uring`'s to vouch for.
    let r = unsafe {
        libc::syscall(libc::SYS_io_uring_enter, ring.as_raw_fd(), submit, wait, flags, none, 0_usize)
    };
    u32::try_from(r).map_err(|_| Error::last_os_error())
}
