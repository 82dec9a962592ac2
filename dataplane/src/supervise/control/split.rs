//! Cuts what a client sends into JSON values, within bounds.
//!
//! QMP has no framing: one value follows another, with or without white space. Brackets are counted, strings are
//! skipped; what ends is given to the JSON parser. Trust: none in the client. Promise: at most [`MAX_MESSAGE`] bytes are
//! held for an unfinished value, none deeper than [`MAX_DEPTH`] is parsed; after a mistake everything up to the end of
//! the line is skipped, so that one bad line costs one error, whatever is in it.
#![forbid(unsafe_code)]

use serde_json::Value;

/// Longest value in bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Deepest nesting of objects and lists.
pub const MAX_DEPTH: usize = 32;

/// Why there is no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// More than [`MAX_MESSAGE`] bytes.
    Long,
    /// More than [`MAX_DEPTH`] levels.
    Deep,
    /// Not JSON, in the parser's words.
    Broken(String),
}

/// Takes bytes, gives values.
#[derive(Debug, Default)]
pub struct Splitter {
    bytes: Vec<u8>,
    /// Where the value begins.
    start: usize,
    /// Looked at up to here.
    at: usize,
    depth: usize,
    string: bool,
    escaped: bool,
    /// A mistake was made on this line.
    skip: bool,
}

impl Splitter {
    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.at -= self.start;
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Bytes that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.bytes.len().saturating_sub(self.start)
    }

    /// There may be a value among what was pushed: [`Splitter::next_value`] has not said *none* since.
    #[must_use]
    pub fn may_have(&self) -> bool {
        self.at < self.bytes.len()
    }

    /// The next value; none: more bytes are needed.
    pub fn next_value(&mut self) -> Option<Result<Value, Trouble>> {
        if self.skip && !self.skip_line() {
            return None;
        }
        if self.depth == 0 && !self.find_start() {
            return None;
        }
        while let Some(b) = self.bytes.get(self.at).copied() {
            self.at += 1;
            let ended = match self.step(b) {
                Ok(ended) => ended,
                Err(t) => return Some(Err(self.mistake(t, b))),
            };
            if self.at - self.start > MAX_MESSAGE {
                return Some(Err(self.mistake(Trouble::Long, b)));
            }
            if ended {
                return Some(self.parse(b));
            }
        }
        None
    }

    /// Goes over one byte. True: the value ends with it.
    fn step(&mut self, b: u8) -> Result<bool, Trouble> {
        if self.string {
            match b {
                // The parser would refuse it, and would not get to see it while the string has no end.
                0..0x20 => return Err(Trouble::Broken("a control character in a string".into())),
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.string = false,
                _ => {}
            }
            return Ok(false);
        }
        match b {
            b'"' => self.string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                return Ok(self.depth == 0);
            }
            // A word that is no object and no list ends with its line.
            b'\n' if self.depth == 0 => return Ok(true),
            _ => {}
        }
        if self.depth > MAX_DEPTH { Err(Trouble::Deep) } else { Ok(false) }
    }

    fn parse(&mut self, last: u8) -> Result<Value, Trouble> {
        let text = self.bytes.get(self.start..self.at).unwrap_or_default();
        let parsed = serde_json::from_slice(text).map_err(|e| Trouble::Broken(e.to_string()));
        match parsed {
            Ok(value) => {
                self.restart();
                Ok(value)
            }
            Err(t) => Err(self.mistake(t, last)),
        }
    }

    fn restart(&mut self) {
        self.start = self.at;
        self.depth = 0;
        self.string = false;
        self.escaped = false;
    }

    fn mistake(&mut self, t: Trouble, last: u8) -> Trouble {
        self.restart();
        self.skip = last != b'\n';
        t
    }

    /// Skips the rest of a bad line. False: it has no end yet.
    fn skip_line(&mut self) -> bool {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let end = rest.iter().position(|b| *b == b'\n');
        self.at = end.map_or(self.bytes.len(), |n| self.at + n + 1);
        self.start = self.at;
        self.skip = end.is_none();
        !self.skip
    }

    /// Skips white space before a value. False: nothing else is there.
    fn find_start(&mut self) -> bool {
        if self.start < self.at {
            return true;
        }
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let found = rest.iter().position(|b| !b.is_ascii_whitespace());
        self.at = found.map_or(self.bytes.len(), |n| self.at + n);
        self.start = self.at;
        found.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// All values in `bytes`, given in pieces of `n`.
    fn split(bytes: &[u8], n: usize) -> Vec<Result<Value, Trouble>> {
        let mut s = Splitter::default();
        let mut out = Vec::new();
        for piece in bytes.chunks(n) {
            s.push(piece);
            while let Some(v) = s.next_value() {
                out.push(v);
            }
            assert!(!s.may_have());
        }
        out
    }

    fn values(text: &str) -> Vec<Value> {
        split(text.as_bytes(), 7).into_iter().map(Result::unwrap).collect()
    }

    #[test]
    fn values_follow_each_other_with_and_without_space() {
        assert_eq!(
            values(r#"{"a":1}{"b":[2,{"c":"}\"{"}]}"#),
            [json!({"a":1}), json!({"b":[2,{"c":"}\"{"}]})]
        );
        assert_eq!(values("\n\r\n [1]\t{\n\"x\"\n:\n2}\n"), [json!([1]), json!({"x":2})]);
        assert_eq!(values("5\n\"a b\"\n"), [json!(5), json!("a b")]);
        assert!(values("{\"a\":").is_empty() && values("  ").is_empty());
    }

    #[test]
    fn a_bad_line_costs_one_error_and_no_other_line() {
        let good = "{\"execute\":\"x\"}\n";
        for bad in ["foo bar\n", "{\"a\":}\n", "{]\n", "]]]]]]\n", "{\"a\":\"no end\n", "\u{1}\n", "{} foo\n"]
        {
            let all = split(format!("{bad}{good}").as_bytes(), 5);
            assert_eq!(all.iter().filter(|v| v.is_err()).count(), 1, "{bad}: {all:?}");
            assert_eq!(all.last(), Some(&Ok(json!({"execute": "x"}))), "{bad}");
        }
    }

    #[test]
    fn length_and_depth_are_bounded() {
        let deep = |n: usize| format!("{}{}\n", "[".repeat(n), "]".repeat(n));
        assert!(split(deep(MAX_DEPTH).as_bytes(), 9)[0].is_ok());
        assert_eq!(split(deep(MAX_DEPTH + 1).as_bytes(), 9), [Err(Trouble::Deep)]);
        assert_eq!(split(deep(20_000).as_bytes(), 4096), [Err(Trouble::Deep)]);
        let long = |n: usize| format!("[\"{}\"]\n", "x".repeat(n - 4));
        assert!(split(long(MAX_MESSAGE).as_bytes(), 4096)[0].is_ok());
        assert_eq!(split(long(MAX_MESSAGE + 1).as_bytes(), 4096), [Err(Trouble::Long)]);
        let mut s = Splitter::default();
        for _ in 0..100 {
            s.push(&[b'x'; 4096]);
            while s.next_value().is_some() {}
            assert!(s.waiting() <= MAX_MESSAGE + 4096);
        }
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter_and_memory_is_bounded(bytes in proptest::collection::vec(
            prop_oneof![Just(b'{'), Just(b'}'), Just(b'"'), Just(b'\\'), Just(b'\n'), Just(b','), Just(b'1'), any::<u8>()], 0..400), n in 1_usize..40)
        {
            prop_assert_eq!(split(&bytes, n), split(&bytes, 400));
        }
    }
}
