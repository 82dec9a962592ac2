//! User and group names, read from `/etc/passwd` and `/etc/group` themselves: a privileged program that asks NSS
//! loads whatever libraries the system's configuration names.
#![forbid(unsafe_code)]

use std::collections::HashMap;

/// Names and their numbers.
#[derive(Clone, Debug, Default)]
pub struct Names {
    users: HashMap<String, u32>,
    groups: HashMap<String, u32>,
}

impl Names {
    /// Reads both files' text; lines that are not `name:password:number:...` are passed over.
    #[must_use]
    pub fn parse(passwd: &str, group: &str) -> Self {
        Self { users: table(passwd), groups: table(group) }
    }

    /// Reads the system's files; one that cannot be read knows no names.
    #[must_use]
    pub fn system() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        Self::parse(&read("/etc/passwd"), &read("/etc/group"))
    }

    /// A user's id.
    #[must_use]
    pub fn user(&self, name: &str) -> Option<u32> {
        self.users.get(name).copied()
    }

    /// A group's id.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<u32> {
        self.groups.get(name).copied()
    }
}

fn table(text: &str) -> HashMap<String, u32> {
    let mut table = HashMap::new();
    for line in text.lines() {
        let mut fields = line.split(':');
        let (name, number) = (fields.next(), fields.nth(1).and_then(number));
        if let (Some(name), Some(number)) = (name.filter(|n| !n.is_empty()), number) {
            // The first line of a name counts, as it does for the C library.
            table.entry(name.to_owned()).or_insert(number);
        }
    }
    table
}

/// A decimal number without sign or blanks. (`u32::MAX` is no id: it means "unchanged" to `setresuid`.)
pub(crate) fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|n| digits && *n != u32::MAX)
}
