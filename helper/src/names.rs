//! User and group names, read from `/etc/passwd` and `/etc/group` themselves: a privileged program that asks NSS
//! loads whatever libraries the system's configuration names.
#![forbid(unsafe_code)]

/// The text of both files.
#[derive(Clone, Debug, Default)]
pub struct Names {
    passwd: String,
    group: String,
}

impl Names {
    /// Takes both files' text; lines that are not `name:password:number:...` are passed over.
    #[must_use]
    pub fn parse(passwd: &str, group: &str) -> Self {
        Self { passwd: passwd.to_owned(), group: group.to_owned() }
    }

    /// Reads the system's files; one that cannot be read knows no names. (Comment fields may be in any encoding.)
    #[must_use]
    pub fn system() -> Self {
        let read = |path| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
        Self { passwd: read("/etc/passwd"), group: read("/etc/group") }
    }

    /// A user's id.
    #[must_use]
    pub fn user(&self, name: &str) -> Option<u32> {
        find(&self.passwd, name)
    }

    /// A group's id.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<u32> {
        find(&self.group, name)
    }
}

/// The number of the first line of that name: it is the one that counts for the C library, too.
fn find(text: &str, name: &str) -> Option<u32> {
    let mut lines = text.lines().map(|line| line.split(':')).filter(|_| !name.is_empty());
    lines.find_map(|mut fields| (fields.next() == Some(name)).then(|| fields.nth(1).and_then(number))?)
}

/// A decimal number without sign or blanks. (`u32::MAX` is no id: it means "unchanged" to `setresuid`.)
pub(crate) fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|n| digits && *n != u32::MAX)
}
