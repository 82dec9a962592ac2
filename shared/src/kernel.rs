//! Releases of the kernel, as both sides of a grant tell them apart.
//!
//! Trust: none in the text. Promise: what is no release is none.
#![forbid(unsafe_code)]

/// The first two numbers of a kernel's release.
pub type Version = (u32, u32);

/// The first kernel that lets a process map the rings of an AF_XDP socket that is bound already (`xsk_mmap`).
pub const MAPS_BOUND: Version = (6, 4);

/// The numbers at the beginning of a release.
#[must_use]
pub fn version(release: &str) -> Option<Version> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_as_numbers() {
        assert_eq!(version("6.12.101-um1"), Some((6, 12)));
        assert_eq!(version("6.9-rc1"), Some((6, 9)));
        assert_eq!(version("x"), None);
        assert!(version("6.9.0") < version("6.12.0"));
    }
}
