//! One error for all of the proofs: a sentence that says what failed and why. Its `Debug` is the sentence itself, so that
//! `unwrap` in a test prints something a person can read.

use std::fmt;

/// Why a proof could not be carried out.
pub struct Trouble(String);

/// What every fallible step of the proofs returns.
pub type Done<T = ()> = Result<T, Trouble>;

/// Makes a [`Trouble`] of a sentence.
pub fn trouble(what: impl fmt::Display) -> Trouble {
    Trouble(what.to_string())
}

impl fmt::Debug for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Trouble {}

/// Adds what was being done to an error of any kind.
pub trait Because<T> {
    /// `Err` becomes "`what`: the error".
    fn because(self, what: impl fmt::Display) -> Done<T>;
}

impl<T, E: fmt::Display> Because<T> for Result<T, E> {
    fn because(self, what: impl fmt::Display) -> Done<T> {
        self.map_err(|e| Trouble(format!("{what}: {e}")))
    }
}

impl<T> Because<T> for Option<T> {
    fn because(self, what: impl fmt::Display) -> Done<T> {
        self.ok_or_else(|| Trouble(what.to_string()))
    }
}
