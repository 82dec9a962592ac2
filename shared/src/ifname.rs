//! A network interface's name, valid by construction.
//!
//! Promise: 1 to 15 bytes (`IFNAMSIZ` is 16 with its NUL, `linux/if.h`), each of `A-Z a-z 0-9 . _ - @`, neither
//! `.` nor `..`. The kernel allows more (`dev_valid_name` refuses only `/`, `:` and white space); netreeve does not
//! need more, and a narrow alphabet cannot break a log line, a shell or a policy file.
//! The name that was checked is the name that is used: there is no second parse (CVE-2019-13164).
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name in bytes, without the NUL (`IFNAMSIZ - 1`).
pub const MAX_LEN: usize = 15;

/// A valid interface name of 1 to 15 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IfName {
    bytes: [u8; MAX_LEN],
    len: u8,
}

/// Why a text is not an interface name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadIfName {
    /// Empty.
    Empty,
    /// Longer than 15 bytes; the kernel would refuse it, older tools cut it.
    TooLong,
    /// Holds a byte outside `A-Z a-z 0-9 . _ - @`.
    BadByte,
    /// `.` or `..`, which sysfs cannot show.
    Dots,
}

impl IfName {
    /// Checks `name` and makes it an interface name.
    ///
    /// # Errors
    /// [`BadIfName`] says which rule the text breaks.
    pub fn new(name: &str) -> Result<Self, BadIfName> {
        if name.is_empty() {
            return Err(BadIfName::Empty);
        }
        if name == "." || name == ".." {
            return Err(BadIfName::Dots);
        }
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-@".contains(&b)) {
            return Err(BadIfName::BadByte);
        }
        let mut bytes = [0; MAX_LEN];
        let room = bytes.get_mut(..name.len()).ok_or(BadIfName::TooLong)?;
        room.copy_from_slice(name.as_bytes());
        let len = u8::try_from(name.len()).map_err(|_| BadIfName::TooLong)?;
        Ok(Self { bytes, len })
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.bytes.get(..usize::from(self.len)).and_then(|b| std::str::from_utf8(b).ok()).unwrap_or_default()
    }

    /// The name as the kernel takes it in `struct ifreq`: 16 bytes, NUL padded.
    #[must_use]
    pub fn to_ifr_name(&self) -> [u8; MAX_LEN + 1] {
        let mut out = [0; MAX_LEN + 1];
        for (to, from) in out.iter_mut().zip(self.bytes.iter().take(usize::from(self.len))) {
            *to = *from;
        }
        out
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl FromStr for IfName {
    type Err = BadIfName;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::new(s)
    }
}

impl TryFrom<String> for IfName {
    type Error = BadIfName;

    fn try_from(s: String) -> Result<Self, Self::Error> {
        Self::new(&s)
    }
}

impl From<IfName> for String {
    fn from(n: IfName) -> Self {
        n.as_str().to_owned()
    }
}

impl fmt::Display for BadIfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "an interface name cannot be empty",
            Self::TooLong => "an interface name has at most 15 bytes",
            Self::BadByte => "an interface name holds only A-Z a-z 0-9 . _ - @",
            Self::Dots => "an interface cannot be named . or ..",
        })
    }
}

impl std::error::Error for BadIfName {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_the_kernel_takes_up_to_15_bytes() {
        for ok in ["a", "eth0", "br-lan.100", "veth@if3", "123456789012345"] {
            assert_eq!(IfName::new(ok).unwrap().as_str(), ok);
        }
    }

    #[test]
    fn refuses_the_rest_with_the_rule() {
        assert_eq!(IfName::new(""), Err(BadIfName::Empty));
        assert_eq!(IfName::new("1234567890123456"), Err(BadIfName::TooLong));
        assert_eq!(IfName::new("a/b"), Err(BadIfName::BadByte));
        assert_eq!(IfName::new("a b"), Err(BadIfName::BadByte));
        assert_eq!(IfName::new("tap%d"), Err(BadIfName::BadByte));
        assert_eq!(IfName::new("a\0"), Err(BadIfName::BadByte));
        assert_eq!(IfName::new(".."), Err(BadIfName::Dots));
    }

    #[test]
    fn ifreq_form_is_nul_terminated() {
        assert_eq!(&IfName::new("123456789012345").unwrap().to_ifr_name(), b"123456789012345\0");
    }
}
