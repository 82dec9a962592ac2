//! The keys of one option set, taken one by one by the port that knows them; what is left over is an error.
//!
//! Promise: a key is never ignored in silence. Complaints are worded as QEMU words them, by the form of the text.
#![forbid(unsafe_code)]

use std::str::FromStr;

use crate::fault::{Exit, Fault};
use crate::spec::text::{Form, Parsed};

/// The keys of one option set.
#[derive(Debug)]
pub struct Fields {
    what: String,
    form: Form,
    entries: Vec<Entry>,
    known: Vec<String>,
    warnings: Vec<String>,
}

#[derive(Debug)]
struct Entry {
    key: String,
    value: String,
    taken: bool,
}

/// Highest value of an unsigned number of 32 bits, the usual bound.
pub const U32: u64 = u32::MAX as u64;

impl Fields {
    /// The keys of `parsed`; `what` names the text in complaints (`--netdev tap,...`).
    #[must_use]
    pub fn new(what: String, parsed: Parsed) -> Self {
        let entries =
            parsed.pairs.into_iter().map(|p| Entry { key: p.key, value: p.value, taken: false }).collect();
        Self { what, form: parsed.form, entries, known: Vec::new(), warnings: parsed.warnings }
    }

    /// A complaint about this option set.
    #[must_use]
    pub fn fault(&self, why: impl Into<String>, fix: impl Into<String>) -> Fault {
        Fault { exit: Exit::Config, what: self.what.clone(), why: why.into(), fix: fix.into() }
    }

    /// Something to tell the user that does not stop anything.
    pub fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(format!("{}: {}", self.what, text.into()));
    }

    /// The key is there (and stays for a later taker).
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|e| e.key == key)
    }

    /// Some key of the group `group.*` is there.
    #[must_use]
    pub fn has_group(&self, group: &str) -> bool {
        self.entries.iter().any(|e| e.key.strip_prefix(group).is_some_and(|r| r.starts_with('.')))
    }

    /// The value of a key, which stays for its taker.
    #[must_use]
    pub fn peek(&self, key: &str) -> Option<&str> {
        self.entries.iter().rev().find(|e| e.key == key).map(|e| e.value.as_str())
    }

    /// Takes a text.
    pub fn text(&mut self, key: &str) -> Option<String> {
        self.known.push(key.to_owned());
        let mut found = None;
        for e in self.entries.iter_mut().filter(|e| e.key == key) {
            e.taken = true;
            found = Some(e.value.clone());
        }
        found
    }

    /// Takes a list: `key.0`, `key.1`, ... of JSON and TOML, or one text split at `separator`.
    pub fn list(&mut self, key: &str, separator: char) -> Option<Vec<String>> {
        if let Some(one) = self.text(key) {
            return Some(one.split(separator).map(str::to_owned).collect());
        }
        let mut all = Vec::new();
        for i in 0_u32.. {
            let Some(item) = self.text(&format!("{key}.{i}")) else { break };
            all.push(item);
        }
        // The probes are no keys to propose to anybody.
        self.known.retain(|k| !k.starts_with(&format!("{key}.")));
        (!all.is_empty()).then_some(all)
    }

    /// Takes all texts of a key that may be given again and again, in order: also `key.0`, `key.1`, ... and, as QEMU's
    /// lists of strings are in JSON, `key.0.str`.
    pub fn every(&mut self, key: &str) -> Vec<String> {
        self.of_lists(&[key]).into_iter().map(|(_, value)| value).collect()
    }

    /// Takes all texts of several such keys, in the order in which they were given, with their keys.
    ///
    /// # Errors
    /// The form of the text keeps no order between keys, and more than one of them is there.
    pub fn ordered(&mut self, keys: &[&str]) -> Result<Vec<(String, String)>, &'static str> {
        let all = self.of_lists(keys);
        let mixed = all.windows(2).any(|w| matches!(w, [(a, _), (b, _)] if a != b));
        if mixed && matches!(self.form, Form::Json | Form::Toml) {
            return Err("the order of rules is lost between several lists");
        }
        Ok(all)
    }

    fn of_lists(&mut self, keys: &[&str]) -> Vec<(String, String)> {
        self.known.extend(keys.iter().map(|k| (*k).to_owned()));
        let mut all = Vec::new();
        for e in &mut self.entries {
            let key = e.key.strip_suffix(".str").unwrap_or(&e.key);
            let list = key.rsplit_once('.').filter(|(_, n)| n.bytes().all(|b| b.is_ascii_digit()));
            let key = list.map_or(e.key.as_str(), |(k, _)| k);
            if let Some(key) = keys.iter().find(|k| **k == key) {
                e.taken = true;
                all.push(((*key).to_owned(), e.value.clone()));
            }
        }
        all
    }

    /// Takes a text that must be there.
    ///
    /// # Errors
    /// QEMU's "Parameter 'x' is missing".
    pub fn need(&mut self, key: &str, fix: &str) -> Result<String, Fault> {
        self.text(key).ok_or_else(|| self.fault(format!("Parameter '{key}' is missing"), fix))
    }

    /// Takes a switch: `on`, `yes`, `true`, `y` and their opposites.
    ///
    /// # Errors
    /// QEMU's "Parameter 'x' expects 'on' or 'off'".
    pub fn flag(&mut self, key: &str) -> Result<Option<bool>, Fault> {
        let Some(v) = self.text(key) else { return Ok(None) };
        match v.as_str() {
            "on" | "yes" | "true" | "y" => Ok(Some(true)),
            "off" | "no" | "false" | "n" => Ok(Some(false)),
            _ => Err(self.fault(format!("Parameter '{key}' expects 'on' or 'off'"), "")),
        }
    }

    /// Takes a number from `least` to `most`.
    ///
    /// # Errors
    /// QEMU's wording for a text that is no number; the range else.
    pub fn number(&mut self, key: &str, least: u64, most: u64) -> Result<Option<u64>, Fault> {
        let Some(v) = self.text(key) else { return Ok(None) };
        let words = match self.form {
            Form::Flags => "a uint64 value",
            Form::Dotted => "integer",
            Form::Json | Form::Toml => "uint64",
        };
        let n = integer(&v).ok_or_else(|| self.fault(format!("Parameter '{key}' expects {words}"), ""))?;
        self.bounded(key, n, least, most)
    }

    /// Takes a number of bytes, with QEMU's suffixes `k`, `M`, `G` (1024 each).
    ///
    /// # Errors
    /// See [`Fields::number`].
    pub fn size(&mut self, key: &str, least: u64, most: u64) -> Result<Option<u64>, Fault> {
        let Some(v) = self.text(key) else { return Ok(None) };
        let (digits, shift) = match v.as_bytes().last() {
            Some(b'k' | b'K') => (v.get(..v.len() - 1), 10),
            Some(b'm' | b'M') => (v.get(..v.len() - 1), 20),
            Some(b'g' | b'G') => (v.get(..v.len() - 1), 30),
            _ => (Some(v.as_str()), 0),
        };
        let n = digits.and_then(integer).and_then(|n| n.checked_mul(1 << shift)).ok_or_else(|| {
            let fix = "a number of bytes, with k, M or G for powers of 1024";
            self.fault(format!("Parameter '{key}' expects a size"), fix)
        })?;
        self.bounded(key, n, least, most)
    }

    fn bounded(&self, key: &str, n: u64, least: u64, most: u64) -> Result<Option<u64>, Fault> {
        if (least..=most).contains(&n) {
            return Ok(Some(n));
        }
        let why = format!("Parameter '{key}' expects a value from {least} to {most}");
        Err(self.fault(why, ""))
    }

    /// Takes a number that fits 16 bits.
    ///
    /// # Errors
    /// See [`Fields::number`].
    pub fn number16(&mut self, key: &str, least: u16, most: u16) -> Result<Option<u16>, Fault> {
        let n = self.number(key, u64::from(least), u64::from(most))?;
        Ok(n.and_then(|n| u16::try_from(n).ok()))
    }

    /// Takes a number that fits 32 bits.
    ///
    /// # Errors
    /// See [`Fields::number`].
    pub fn number32(&mut self, key: &str, least: u32, most: u32) -> Result<Option<u32>, Fault> {
        let n = self.number(key, u64::from(least), u64::from(most))?;
        Ok(n.and_then(|n| u32::try_from(n).ok()))
    }

    /// Takes a value of a type with a text form (an interface name, an address).
    ///
    /// # Errors
    /// What the type says of the text.
    pub fn parsed<T: FromStr>(&mut self, key: &str) -> Result<Option<T>, Fault>
    where
        T::Err: std::fmt::Display,
    {
        let Some(v) = self.text(key) else { return Ok(None) };
        v.parse().map(Some).map_err(|e: T::Err| self.bad_value(key, &v, &e.to_string()))
    }

    /// QEMU's complaint about a value that is none of those that the key takes.
    #[must_use]
    pub fn bad_value(&self, key: &str, value: &str, fix: &str) -> Fault {
        self.fault(format!("Parameter '{key}' does not accept value '{value}'"), fix)
    }

    /// Refuses a key that is QEMU's but not ours.
    ///
    /// # Errors
    /// If the key is there.
    pub fn refuse(&mut self, key: &str, why: &str, fix: &str) -> Result<(), Fault> {
        match self.text(key) {
            None => Ok(()),
            Some(_) => Err(self.fault(format!("{key}= is refused: {why}"), fix)),
        }
    }

    /// Ends the reading: gives what should be told to the user.
    ///
    /// # Errors
    /// QEMU's complaint about the first key that nobody took, and the known key that is nearest to it.
    pub fn finish(self) -> Result<Vec<String>, Fault> {
        let Some(left) = self.entries.iter().find(|e| !e.taken) else { return Ok(self.warnings) };
        let why = match self.form {
            Form::Flags => format!("Invalid parameter '{}'", left.key),
            _ => format!("Parameter '{}' is unexpected", left.key),
        };
        let fix = nearest(&left.key, &self.known).map_or_else(
            || format!("keys here: {}", listed(&self.known)),
            |n| format!("did you mean '{n}'?"),
        );
        Err(self.fault(why, fix))
    }
}

fn listed(known: &[String]) -> String {
    let mut all: Vec<&str> = known.iter().map(String::as_str).collect();
    all.sort_unstable();
    all.dedup();
    all.join(", ")
}

/// A number as C writes it: decimal, `0x` hexadecimal, or octal after a `0`.
pub(super) fn integer(text: &str) -> Option<u64> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None if text.len() > 1 && text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    // from_str_radix takes a sign; no number here has one.
    if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

/// The known key that is at most a third of its letters away, `_` and `-` counting as one.
pub(crate) fn nearest<'a>(key: &str, known: &'a [String]) -> Option<&'a str> {
    let norm = |s: &str| s.replace('_', "-").to_ascii_lowercase();
    let key = norm(key.get(..64).unwrap_or(key));
    let best = known.iter().map(|k| (distance(&key, &norm(k)), k)).min()?;
    (best.0 <= 1 + best.1.len() / 4 && best.0 < key.len().max(1)).then_some(best.1.as_str())
}

/// Levenshtein's distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let here = (diagonal + usize::from(x != y)).min(left + 1).min(*cell + 1);
            diagonal = *cell;
            *cell = here;
            left = here;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, d) in
            [("", "", 0), ("a", "", 1), ("", "ab", 2), ("kitten", "sitting", 3), ("fd", "fds", 1)]
        {
            assert_eq!(distance(a, b), d, "{a} {b}");
        }
    }

    #[test]
    fn numbers_as_c_writes_them() {
        for (t, n) in [("0", Some(0)), ("10", Some(10)), ("010", Some(8)), ("0x1F", Some(31)), ("-1", None)] {
            assert_eq!(integer(t), n, "{t}");
        }
        for bad in ["", "+1", "0x", "1 ", "08", "99999999999999999999"] {
            assert_eq!(integer(bad), None, "{bad}");
        }
    }

    #[test]
    fn proposes_only_what_is_near() {
        let known: Vec<String> = ["ifname", "vnet_hdr", "queues", "br"].map(str::to_owned).into();
        assert_eq!(nearest("vnet-hdr", &known), Some("vnet_hdr"));
        assert_eq!(nearest("queue", &known), Some("queues"));
        assert_eq!(nearest("ifnam", &known), Some("ifname"));
        assert_eq!(nearest("completely-else", &known), None);
        assert_eq!(nearest("x", &known), None);
    }
}
