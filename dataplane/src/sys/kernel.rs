//! Which kernel this is, where what it can do is found out by nothing else.
//!
//! Trust: `/proc`. Promise: nothing is taken for newer than it says.
#![forbid(unsafe_code)]

pub use netreeve_shared::kernel::{MAPS_BOUND, Version, version};

/// This kernel is as new.
#[must_use]
pub fn since(first: Version) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    version(&release).is_some_and(|v| v >= first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_is_somewhere_between() {
        assert!(since((2, 6)) && !since((1000, 0)));
    }
}
