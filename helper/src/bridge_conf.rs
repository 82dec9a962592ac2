//! QEMU's `/etc/qemu/bridge.conf`: which bridges anybody who may run the bridge helper may join.
//!
//! A line is blank, a comment (`#`), or a verb (`allow`, `deny`, `include`), a blank, and the rest of the line.
//! `all` stands for every bridge. A matching `deny` beats every `allow`. An `include` that cannot be opened is no rule:
//! that is the documented way to give rights to one group (files of mode 0640), so the files are read with the
//! caller's own rights. (Not there and not readable, that is. One that cannot be read for another reason, or that
//! others may write, spoils everything: it may deny.)
//!
//! Trust: the files are root's; an include is followed on root's word. Promise: nesting and number are bounded, and a
//! line that is no rule refuses everything, with file and line.
#![forbid(unsafe_code)]

use std::io;

use netreeve_shared::ifname::{IfName, MAX_LEN};

/// Where QEMU's builds read it.
pub const DEFAULT_PATH: &str = "/etc/qemu/bridge.conf";
/// Deepest nesting of includes.
const MAX_DEPTH: u32 = 8;
/// Most files, counting one as often as it is included.
const MAX_FILES: u32 = 64;

/// The rules of a file and its includes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acl {
    rules: Vec<Entry>,
    files: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    allow: bool,
    /// None: `all`.
    bridge: Option<String>,
    place: String,
}

/// What the rules say of a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// Allowed, by this `file:line`.
    Allowed(String),
    /// Denied, by this `file:line`.
    Denied(String),
    /// No rule is about it: refused.
    Silent,
}

/// Gives a file's text.
pub type Open<'a> = dyn FnMut(&str) -> io::Result<String> + 'a;

/// Reads `path` and its includes with `open`, which gives a file's text.
///
/// # Errors
/// `file:line: why`. That `path` itself cannot be opened is an error, too.
pub fn read(path: &str, open: &mut Open<'_>) -> Result<Acl, String> {
    let text = open(path).map_err(|e| format!("{path}: {e}"))?;
    let mut acl = Acl::default();
    acl.add(path, &text, 0, open)?;
    Ok(acl)
}

impl Acl {
    fn add(&mut self, path: &str, text: &str, depth: u32, open: &mut Open<'_>) -> Result<(), String> {
        for (number, line) in (1_u32..).zip(text.split('\n')) {
            let place = format!("{path}:{number}");
            let line = line.trim_ascii_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            // The first blank parts the verb, or without one the first tab: as QEMU reads it.
            let parts = line.split_once(' ').or_else(|| line.split_once('\t'));
            let (verb, rest) = parts.ok_or_else(|| format!("{place}: '{line}' is no rule"))?;
            let rest = rest.trim_ascii();
            match verb {
                "allow" | "deny" if rest.len() > MAX_LEN => {
                    return Err(format!("{place}: the name '{rest}' is too long"));
                }
                "allow" | "deny" => {
                    let bridge = (rest != "all").then(|| rest.to_owned());
                    self.rules.push(Entry { allow: verb == "allow", bridge, place });
                }
                "include" => {
                    self.files += 1;
                    if depth >= MAX_DEPTH || self.files > MAX_FILES {
                        return Err(format!("{place}: too many includes (8 deep, 64 in all); a loop?"));
                    }
                    match open(rest) {
                        Ok(text) => self.add(rest, &text, depth + 1, open)?,
                        // Not ours to read: not our rule.
                        Err(e) if matches!(e.raw_os_error(), Some(libc::EACCES | libc::ENOENT)) => {}
                        // It may deny, and a caller may have starved us of descriptors or memory.
                        Err(e) => return Err(format!("{place}: {rest}: {e}")),
                    }
                }
                _ => return Err(format!("{place}: '{verb}' is neither allow nor deny nor include")),
            }
        }
        Ok(())
    }

    /// What the rules say of `bridge`.
    #[must_use]
    pub fn word(&self, bridge: IfName) -> Word {
        let about = |allow: bool| {
            let fits = |e: &&Entry| {
                e.allow == allow && e.bridge.as_deref().is_none_or(|name| name == bridge.as_str())
            };
            self.rules.iter().find(fits).map(|e| e.place.clone())
        };
        let allowed = || about(true).map_or(Word::Silent, Word::Allowed);
        about(false).map_or_else(allowed, Word::Denied)
    }
}

#[cfg(test)]
#[path = "bridge_conf_tests.rs"]
mod tests;
