//! The three written forms of an option set, all read into one flat list of dotted keys:
//! QEMU's `type,key=value,...`, QEMU's JSON (`{"type": ..., "addr": {"type": ...}}`), and a TOML table.
//!
//! Trust: the text is the user's, who may be a script that pastes strings from elsewhere. Promise: any text gives a
//! list or one error in QEMU's words; nothing panics, nothing recurses deeper than [`DEPTH`].
#![forbid(unsafe_code)]

/// Deepest nesting of JSON or TOML that is read.
const DEPTH: usize = 8;
/// Longest text in bytes.
pub const MAX_TEXT: usize = 65_536;

/// In which form a text was written: QEMU words its complaints by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `type,key=value` read by QEMU's older parser: `key` alone means `key=on`, `nokey` means `key=off`.
    Flags,
    /// `type,key=value` read by QEMU's newer parser: dotted keys, no bare words.
    Dotted,
    /// JSON.
    Json,
    /// A table of the configuration file.
    Toml,
}

/// One key and its value, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Dotted key.
    pub key: String,
    /// Value: `on`/`off` for JSON and TOML booleans, decimal for numbers.
    pub value: String,
}

/// A text, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// In which form it was.
    pub form: Form,
    /// Its keys in order; a later one of the same name overrides.
    pub pairs: Vec<Pair>,
    /// What QEMU would warn of.
    pub warnings: Vec<String>,
}

/// Reads an option text: JSON if it starts with `{`, else QEMU's `type,key=value`, whose first word is the value of
/// `type`. Which of QEMU's two parsers is followed depends on that type: `dotted` says for which it is the newer.
///
/// # Errors
/// QEMU's wording.
pub fn parse(text: &str, dotted: impl Fn(&str) -> bool) -> Result<Parsed, String> {
    if text.len() > MAX_TEXT {
        return Err(format!("longer than {MAX_TEXT} bytes"));
    }
    if text.contains('\0') {
        return Err("holds a NUL byte".into());
    }
    if text.starts_with('{') {
        return json(text);
    }
    let words = split(text);
    let kind = words.first().filter(|w| !w.contains('=')).map_or("", String::as_str);
    let form = if dotted(kind) { Form::Dotted } else { Form::Flags };
    let mut out = Parsed { form, pairs: Vec::new(), warnings: Vec::new() };
    for (i, word) in words.iter().enumerate() {
        let pair = match word.split_once('=') {
            Some((k, v)) => Pair { key: check_key(k, form)?.to_owned(), value: v.to_owned() },
            None if i == 0 => Pair { key: "type".into(), value: word.clone() },
            None if form == Form::Dotted => return Err(format!("Expected '=' after parameter '{word}'")),
            None => flag(word, &mut out.warnings),
        };
        out.pairs.push(pair);
    }
    consistent(&out.pairs)?;
    Ok(out)
}

/// Splits at commas; `,,` is one literal comma.
fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            ',' if rest.peek() == Some(&',') => {
                rest.next();
                word.push(',');
            }
            ',' => words.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    // QEMU ignores one comma at the end.
    if !word.is_empty() || words.is_empty() {
        words.push(word);
    }
    words
}

fn flag(word: &str, warnings: &mut Vec<String>) -> Pair {
    let (key, value) = word.strip_prefix("no").map_or((word, "on"), |k| (k, "off"));
    warnings.push(format!("short-form boolean option '{word}' deprecated: use {key}={value} instead"));
    Pair { key: key.to_owned(), value: value.to_owned() }
}

fn check_key(key: &str, form: Form) -> Result<&str, String> {
    let fragment = |f: &str| !f.is_empty() && f.len() <= 127 && f.bytes().all(key_byte);
    let good = match form {
        Form::Flags => !key.is_empty(),
        _ => key.split('.').all(fragment),
    };
    if good { Ok(key) } else { Err(format!("Invalid parameter '{key}'")) }
}

fn key_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'-' || b == b'_'
}

/// No key may be both a value and a group (`addr=x` beside `addr.path=y`).
fn consistent(pairs: &[Pair]) -> Result<(), String> {
    for p in pairs {
        let mut from = 0;
        while let Some(dot) = p.key.get(from..).and_then(|k| k.find('.')) {
            let group = p.key.get(..from + dot).unwrap_or_default();
            if pairs.iter().any(|o| o.key == group) {
                return Err(format!("Parameters '{group}.*' used inconsistently"));
            }
            from += dot + 1;
        }
    }
    Ok(())
}

fn json(text: &str) -> Result<Parsed, String> {
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|e| format!("JSON parse error, {e}"))?;
    let mut out = Parsed { form: Form::Json, pairs: Vec::new(), warnings: Vec::new() };
    flatten_json(&value, "", 0, &mut out.pairs)?;
    Ok(out)
}

fn flatten_json(
    value: &serde_json::Value,
    at: &str,
    depth: usize,
    out: &mut Vec<Pair>,
) -> Result<(), String> {
    use serde_json::Value as V;
    if depth > DEPTH {
        return Err("JSON nested too deeply".into());
    }
    let leaf = match value {
        V::Null => return Err(format!("Invalid parameter type for '{at}', expected: value")),
        V::Bool(b) => on_off(*b).to_owned(),
        V::Number(n) => n.to_string(),
        V::String(s) => s.clone(),
        V::Array(a) => {
            return a.iter().enumerate().try_for_each(|(i, v)| {
                let key = join(at, &i.to_string());
                flatten_json(v, &key, depth + 1, out)
            });
        }
        V::Object(o) => {
            return o.iter().try_for_each(|(k, v)| {
                check_fragment(k)?;
                flatten_json(v, &join(at, k), depth + 1, out)
            });
        }
    };
    out.push(Pair { key: at.to_owned(), value: no_nul(leaf)? });
    Ok(())
}

/// Reads a table of the configuration file.
///
/// # Errors
/// A value that has no text form (dates, non-finite numbers), or nesting that is too deep.
pub fn table(table: &toml::Table) -> Result<Parsed, String> {
    let mut out = Parsed { form: Form::Toml, pairs: Vec::new(), warnings: Vec::new() };
    for (k, v) in table {
        check_fragment(k)?;
        flatten_toml(v, k, 0, &mut out.pairs)?;
    }
    Ok(out)
}

fn flatten_toml(value: &toml::Value, at: &str, depth: usize, out: &mut Vec<Pair>) -> Result<(), String> {
    use toml::Value as V;
    if depth > DEPTH {
        return Err("nested too deeply".into());
    }
    let leaf = match value {
        V::Boolean(b) => on_off(*b).to_owned(),
        V::Integer(n) => n.to_string(),
        V::String(s) => s.clone(),
        V::Float(_) | V::Datetime(_) => {
            return Err(format!("Invalid parameter type for '{at}', expected: text, number or boolean"));
        }
        V::Array(a) => {
            return a.iter().enumerate().try_for_each(|(i, v)| {
                let key = join(at, &i.to_string());
                flatten_toml(v, &key, depth + 1, out)
            });
        }
        V::Table(t) => {
            return t.iter().try_for_each(|(k, v)| {
                check_fragment(k)?;
                flatten_toml(v, &join(at, k), depth + 1, out)
            });
        }
    };
    out.push(Pair { key: at.to_owned(), value: no_nul(leaf)? });
    Ok(())
}

fn check_fragment(key: &str) -> Result<(), String> {
    if key.is_empty() || !key.bytes().all(key_byte) {
        return Err(format!("Parameter '{key}' is unexpected"));
    }
    Ok(())
}

fn no_nul(s: String) -> Result<String, String> {
    if s.contains('\0') { Err("holds a NUL byte".into()) } else { Ok(s) }
}

fn join(at: &str, key: &str) -> String {
    if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") }
}

fn on_off(b: bool) -> &'static str {
    if b { "on" } else { "off" }
}
