//! The policy file: one rule a line, `#` comments.
//!
//! ```text
//! allow WHO WHAT PATTERN [key=value ...]
//! deny  WHO WHAT PATTERN
//! limit WHO key=value ...
//!
//! WHO      uid:N  user:NAME  gid:N  group:NAME  any
//! WHAT     tap  bridge  xsk  xsk-pinned  l2tpv3  listen
//! PATTERN  a name, or the start of one and *, or *; of l2tpv3 and listen an address, or a prefix, or *
//! ```
//!
//! Keys of tap: max queues mtu named persist; of bridge: max queues mtu create isolated; of xsk: queues queue umem
//! steer; of xsk-pinned: queues queue steer; of l2tpv3: session; of listen: port; of limit: sessions requests taps umem.
//!
//! Trust: the file is root's, which is checked on the very descriptor that is read. Promise: a file with one bad line
//! is no policy (everything is refused), and every bad line is named.
#![forbid(unsafe_code)]

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use netreeve_shared::ifname::IfName;

use crate::names::{Names, number};
use crate::policy::{Action, Limit, Pattern, Policy, Rule, Terms, What, Who};

/// Where the policy is.
pub const DEFAULT_PATH: &str = "/etc/netreeve/policy.conf";
/// Largest policy file in bytes.
pub const MAX_SIZE: u64 = 64 << 10;

/// A line that is no rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// Line number, from 1.
    pub line: u32,
    /// What is wrong with it.
    pub why: String,
}

/// Whose files are believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Root's alone, writable by nobody else.
    Root,
    /// Anybody's: only to check a file or to explain it.
    Anybody,
}

/// Reads a policy's text.
///
/// # Errors
/// The first line that is no rule, and all others after it.
pub fn parse(text: &str, names: &Names) -> Result<Policy, Vec<BadLine>> {
    let (mut policy, mut bad) = (Policy::default(), Vec::new());
    for (line, text) in (1_u32..).zip(text.lines()) {
        let mut words = text.split_once('#').map_or(text, |(rule, _)| rule).split_ascii_whitespace();
        let Some(verb) = words.next() else { continue };
        let read = match verb {
            "allow" => rule(line, Action::Allow, &mut words, names).map(|r| policy.rules.push(r)),
            "deny" => rule(line, Action::Deny, &mut words, names).map(|r| policy.rules.push(r)),
            "limit" => limit(&mut words, names).map(|l| policy.limits.push(l)),
            _ => Err(format!("'{verb}' is neither allow nor deny nor limit")),
        };
        if let Err(why) = read {
            bad.push(BadLine { line, why });
        }
    }
    if bad.is_empty() { Ok(policy) } else { Err(bad) }
}

type Words<'a> = std::str::SplitAsciiWhitespace<'a>;

fn rule(line: u32, action: Action, words: &mut Words<'_>, names: &Names) -> Result<Rule, String> {
    let who = who(words.next(), names)?;
    let what = match words.next().ok_or("WHAT is missing (tap, bridge, xsk, xsk-pinned, l2tpv3 or listen)")? {
        "tap" => What::Tap,
        "bridge" => What::Bridge,
        "xsk" => What::Xsk,
        "xsk-pinned" => What::XskPinned,
        "l2tpv3" => What::L2tp,
        "listen" => What::Listen,
        other => return Err(format!("'{other}' is none of tap, bridge, xsk, xsk-pinned, l2tpv3, listen")),
    };
    let pattern = pattern(what, words.next().ok_or("PATTERN is missing (a name, an address, or *)")?)?;
    let mut terms = Terms::default();
    let mut seen = Vec::new();
    for word in words {
        if action == Action::Deny {
            return Err(format!("a deny has no terms ('{word}'): it denies whatever the size"));
        }
        let (key, value) = term(word, &mut seen)?;
        set_term(&mut terms, what, key, value)?;
    }
    if terms.persist && !terms.named {
        return Err("persist=yes needs named=yes: only a named tap can persist".to_owned());
    }
    if terms.create && !matches!(pattern, Pattern::Exact(_)) {
        return Err("create=yes needs one bridge's name: bridges stay, and nobody counts them".to_owned());
    }
    Ok(Rule { line, action, who, what, pattern, terms })
}

fn limit(words: &mut Words<'_>, names: &Names) -> Result<Limit, String> {
    let who = who(words.next(), names)?;
    let mut limit = Limit { who, sessions: None, requests: None, taps: None, umem: None };
    let mut seen = Vec::new();
    for word in words {
        let (key, value) = term(word, &mut seen)?;
        match key {
            "sessions" => limit.sessions = Some(count(value)?),
            "requests" => limit.requests = Some(count(value.strip_suffix("/s").unwrap_or(value))?),
            "taps" => limit.taps = Some(count(value)?),
            "umem" => limit.umem = Some(bytes(value)?),
            _ => return Err(format!("a limit has no key '{key}' (sessions, requests, taps, umem)")),
        }
    }
    if seen.is_empty() { Err("a limit names at least one key".to_owned()) } else { Ok(limit) }
}

/// Reads a WHO.
pub(crate) fn who(word: Option<&str>, names: &Names) -> Result<Who, String> {
    let word = word.ok_or("WHO is missing (uid:N, user:NAME, gid:N, group:NAME or any)")?;
    let unknown = |sort: &str, name: &str| format!("there is no {sort} '{name}' in /etc/{sort}");
    match word.split_once(':') {
        None if word == "any" => Ok(Who::Any),
        Some(("uid", n)) => number(n).map(Who::Uid).ok_or_else(|| format!("'{n}' is no user id")),
        Some(("gid", n)) => number(n).map(Who::Gid).ok_or_else(|| format!("'{n}' is no group id")),
        Some(("user", name)) => names.user(name).map(Who::Uid).ok_or_else(|| unknown("passwd", name)),
        Some(("group", name)) => names.group(name).map(Who::Gid).ok_or_else(|| unknown("group", name)),
        _ => Err(format!("'{word}' is none of uid:N, user:NAME, gid:N, group:NAME, any")),
    }
}

fn pattern(what: What, word: &str) -> Result<Pattern, String> {
    let name = |text| IfName::new(text).map_err(|e| format!("'{word}': {e}"));
    match word.strip_suffix('*') {
        Some("") => Ok(Pattern::All),
        _ if matches!(what, What::L2tp | What::Listen) => {
            word.parse().map(Pattern::Block).map_err(|e| format!("'{word}': {e}"))
        }
        Some(start) => name(start).map(|n| Pattern::Prefix(n.as_str().to_owned())),
        None => name(word).map(Pattern::Exact),
    }
}

fn term<'a>(word: &'a str, seen: &mut Vec<&'a str>) -> Result<(&'a str, &'a str), String> {
    let (key, value) = word.split_once('=').ok_or_else(|| format!("'{word}' is not key=value"))?;
    if seen.contains(&key) {
        return Err(format!("'{key}' is given twice"));
    }
    seen.push(key);
    Ok((key, value))
}

fn set_term(terms: &mut Terms, what: What, key: &str, value: &str) -> Result<(), String> {
    match (what, key) {
        (What::Tap | What::Bridge, "max") => terms.max = Some(count(value)?),
        (What::L2tp, "session") | (What::Listen, "port") => terms.number = Some(range(value, value)?),
        (What::Tap | What::Bridge, "queues") => terms.queues = Some(count(value)?),
        (What::Tap | What::Bridge, "mtu") => terms.mtu = Some(range(value, "1280")?),
        (What::Tap, "named") => terms.named = one_of(value, "yes", "no")?,
        (What::Tap, "persist") => terms.persist = one_of(value, "yes", "no")?,
        (What::Bridge, "create") => terms.create = one_of(value, "yes", "no")?,
        (What::Bridge, "isolated") => terms.isolated = one_of(value, "yes", "no")?,
        (What::Xsk | What::XskPinned, "queues") => terms.queues = Some(count(value)?),
        (What::Xsk | What::XskPinned, "queue") => terms.queue = Some(range(value, value)?),
        (What::Xsk, "umem") => terms.umem = Some(bytes(value)?),
        (What::Xsk | What::XskPinned, "steer") => terms.steer_macs = one_of(value, "macs", "any")?,
        _ => return Err(format!("this rule has no key '{key}'")),
    }
    Ok(())
}

/// A number of whatever width the place takes.
fn count<T: TryFrom<u32>>(text: &str) -> Result<T, String> {
    number(text).and_then(|n| n.try_into().ok()).ok_or_else(|| format!("'{text}' is no number of this range"))
}

/// A range that holds something: one that ran backwards would allow nothing, which nobody means. One number is the last,
/// and `low` the first then.
fn range<T: TryFrom<u32> + PartialOrd>(text: &str, low: &str) -> Result<(T, T), String> {
    let (low, high) = text.split_once('-').unwrap_or((low, text));
    let (first, last) = (count(low)?, count(high)?);
    if first <= last { Ok((first, last)) } else { Err(format!("{low}-{high} runs backwards")) }
}

/// True for the first of two words, false for the second.
fn one_of(text: &str, yes: &str, no: &str) -> Result<bool, String> {
    let known = text == yes || text == no;
    known.then_some(text == yes).ok_or_else(|| format!("'{text}' is neither {yes} nor {no}"))
}

/// A number of bytes, with K, M or G for the powers of 1024.
fn bytes(text: &str) -> Result<u64, String> {
    let unit = |(letter, shift)| text.strip_suffix(letter).map(|digits| (digits, shift));
    let (digits, shift) = [('K', 10), ('M', 20), ('G', 30)].into_iter().find_map(unit).unwrap_or((text, 0));
    number(digits).map(|n| u64::from(n) << shift).ok_or_else(|| format!("'{text}' is no number of bytes"))
}

/// Opens and reads a small text file that must be root's.
///
/// # Errors
/// The kernel's; `PermissionDenied` for a file that others may write, `InvalidData` for one that is no regular file,
/// larger than [`MAX_SIZE`], or not UTF-8. A symbolic link is refused (`ELOOP`) unless `follow`.
pub fn read(path: &Path, trust: Trust, follow: bool) -> io::Result<String> {
    let refuse = |kind, why: &str| Err(io::Error::new(kind, why));
    let nofollow = if follow { 0 } else { libc::O_NOFOLLOW };
    // O_NONBLOCK: a FIFO put there must not hold us up.
    let flags = libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK | nofollow;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return refuse(io::ErrorKind::InvalidData, "not a regular file");
    }
    if trust == Trust::Root && (meta.uid() != 0 || meta.mode() & 0o022 != 0) {
        let why = "it must be root's, and writable by nobody else (chown root, chmod go-w)";
        return refuse(io::ErrorKind::PermissionDenied, why);
    }
    let mut text = String::new();
    file.take(MAX_SIZE + 1).read_to_string(&mut text)?;
    if u64::try_from(text.len()).is_ok_and(|n| n <= MAX_SIZE) {
        return Ok(text);
    }
    refuse(io::ErrorKind::InvalidData, "larger than 64 KiB")
}

/// Reads a policy's file.
///
/// # Errors
/// `file: why`, or `file:line: why` for each bad line, in one line of text.
pub fn load(path: &Path, trust: Trust) -> Result<Policy, String> {
    let shown = path.display();
    let text = read(path, trust, false).map_err(|e| format!("{shown}: {e}"))?;
    let bad = |b: &BadLine| format!("{shown}:{}: {}", b.line, b.why);
    parse(&text, &Names::system()).map_err(|all| all.iter().map(bad).collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
#[path = "policy_file_tests.rs"]
mod tests;
