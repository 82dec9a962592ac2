//! The end of what goes on beside a test: threads of a scope hold it up for ever if a test that fails does not end them.

use std::sync::atomic::{AtomicBool, Ordering};

/// Sets this flag when it goes, however the test ends.
pub struct Over<'a>(pub &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
