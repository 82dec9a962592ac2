//! What travels on the control socket: requests and answers of the QEMU Machine Protocol (`docs/interop/qmp-spec.rst`).
//!
//! Errors have QEMU's classes and, where QEMU has the same error, its words. Trust: none in what came. Promise: nothing
//! that a client sends is executed unless all of it was understood.
#![forbid(unsafe_code)]

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::split::Trouble;
use crate::fault::{Exit, Fault, plain};

/// Error classes (`qapi/error.json`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Any error without a class of its own.
    Generic,
    /// There is no such command, or not now.
    CommandNotFound,
    /// There is no such port.
    DeviceNotFound,
}

impl Class {
    /// Its name in answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Generic => "GenericError",
            Self::CommandNotFound => "CommandNotFound",
            Self::DeviceNotFound => "DeviceNotFound",
        }
    }
}

/// Why a command did nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its class.
    pub class: Class,
    /// For people.
    pub desc: String,
}

impl Refusal {
    /// An error without a class of its own.
    pub fn generic(desc: impl Into<String>) -> Self {
        Self { class: Class::Generic, desc: desc.into() }
    }

    /// There is no port of that name.
    #[must_use]
    pub fn no_device(id: &str) -> Self {
        Self { class: Class::DeviceNotFound, desc: format!("Device '{id}' not found") }
    }

    /// There is no such command.
    #[must_use]
    pub fn no_command(name: &str) -> Self {
        Self { class: Class::CommandNotFound, desc: format!("The command {name} has not been found") }
    }
}

impl From<Fault> for Refusal {
    /// QEMU's answers have one line. Complaints about options are its own; others also say what to do.
    fn from(f: Fault) -> Self {
        let own = f.fix.is_empty() || f.exit == Exit::Config;
        let fix = if own { String::new() } else { format!(" ({})", f.fix) };
        Self::generic(format!("{}{fix}", f.why))
    }
}

impl From<Trouble> for Refusal {
    fn from(t: Trouble) -> Self {
        Self::generic(match t {
            Trouble::Long => "JSON token size limit exceeded".to_owned(),
            Trouble::Deep => "JSON nesting depth limit exceeded".to_owned(),
            Trouble::Broken(why) => format!("JSON parse error, {why}"),
        })
    }
}

/// A request that has the right form.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Which command.
    pub command: String,
    /// With what.
    pub arguments: Arguments,
    /// To be given back with the answer.
    pub id: Option<Value>,
}

impl Request {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it, and its id.
    pub fn read(value: Value) -> Result<Self, (Refusal, Option<Value>)> {
        let Value::Object(mut members) = value else {
            return Err((Refusal::generic("QMP input must be a JSON object"), None));
        };
        let id = members.remove("id");
        match Self::members(members) {
            Ok((command, arguments)) => Ok(Self { command, arguments: Arguments(arguments), id }),
            Err(desc) => Err((Refusal::generic(desc), id)),
        }
    }

    fn members(mut members: Map<String, Value>) -> Result<(String, Map<String, Value>), String> {
        let command = members.remove("execute");
        let oob = members.remove("exec-oob");
        let arguments = members.remove("arguments");
        if let Some(name) = members.keys().next() {
            return Err(format!("QMP input member '{}' is unexpected", plain(name)));
        }
        let command = match (command, oob) {
            (Some(Value::String(name)), None) => name,
            (None, None) => return Err("QMP input lacks member 'execute'".into()),
            (Some(_), None) => return Err("QMP input member 'execute' must be a string".into()),
            // Nobody can enable it, so nobody may use it.
            (_, Some(_)) => return Err("QMP input member 'exec-oob' is unexpected".into()),
        };
        match arguments {
            None => Ok((command, Map::new())),
            Some(Value::Object(a)) => Ok((command, a)),
            Some(_) => Err("QMP input member 'arguments' must be an object".into()),
        }
    }
}

/// The arguments of a command, taken one by one; what is left over is an error.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Arguments(pub Map<String, Value>);

impl Arguments {
    /// Takes a text.
    ///
    /// # Errors
    /// It is no text.
    pub fn text(&mut self, key: &str) -> Result<Option<String>, Refusal> {
        match self.0.remove(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(_) => Err(Self::no(key, "string")),
        }
    }

    /// Takes a text that must be there.
    ///
    /// # Errors
    /// It is not there, or no text.
    pub fn need_text(&mut self, key: &str) -> Result<String, Refusal> {
        self.text(key)?.ok_or_else(|| Self::missing(key))
    }

    /// Takes a truth value that must be there.
    ///
    /// # Errors
    /// It is not there, or no truth value.
    pub fn need_flag(&mut self, key: &str) -> Result<bool, Refusal> {
        match self.0.remove(key) {
            None => Err(Self::missing(key)),
            Some(Value::Bool(b)) => Ok(b),
            Some(_) => Err(Self::no(key, "boolean")),
        }
    }

    /// Nothing is left.
    ///
    /// # Errors
    /// Something is.
    pub fn end(self) -> Result<(), Refusal> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(key) => Err(Refusal::generic(format!("Parameter '{}' is unexpected", plain(key)))),
        }
    }

    fn missing(key: &str) -> Refusal {
        Refusal::generic(format!("Parameter '{key}' is missing"))
    }

    fn no(key: &str, kind: &str) -> Refusal {
        Refusal::generic(format!("Invalid parameter type for '{key}', expected: {kind}"))
    }
}

/// An answer, with the request's id.
#[must_use]
pub fn answer(result: Result<Value, Refusal>, id: Option<Value>) -> Value {
    let mut out = match result {
        Ok(value) => json!({ "return": value }),
        Err(r) => json!({ "error": { "class": r.class.name(), "desc": r.desc } }),
    };
    if let (Some(id), Some(members)) = (id, out.as_object_mut()) {
        members.insert("id".into(), id);
    }
    out
}

/// What is said to whoever connects.
#[must_use]
pub fn greeting() -> Value {
    json!({ "QMP": { "version": version(), "capabilities": [] } })
}

/// QEMU's `VersionInfo`. The numbers are netreeve's: clients look for commands, not for numbers.
#[must_use]
pub fn version() -> Value {
    let number = |n: &str| n.parse::<u64>().unwrap_or(0);
    json!({
        "qemu": {
            "major": number(env!("CARGO_PKG_VERSION_MAJOR")),
            "minor": number(env!("CARGO_PKG_VERSION_MINOR")),
            "micro": number(env!("CARGO_PKG_VERSION_PATCH")),
        },
        "package": concat!("netreeve ", env!("CARGO_PKG_VERSION")),
    })
}

/// An event that happened now.
#[must_use]
pub fn event(name: &str, data: Value) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let stamp = json!({ "seconds": now.as_secs(), "microseconds": now.subsec_micros() });
    json!({ "timestamp": stamp, "event": name, "data": data })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> (String, Option<Value>) {
        let (r, id) = Request::read(serde_json::from_str(text).unwrap()).unwrap_err();
        (r.desc, id)
    }

    /// The words are those of QEMU 10.0.2.
    #[test]
    fn requests_are_understood_wholly_or_refused_with_their_id() {
        let r = Request::read(json!({"execute": "a", "arguments": {"x": 1}, "id": null})).unwrap();
        assert_eq!((r.command.as_str(), r.id), ("a", Some(Value::Null)));
        for (text, desc) in [
            ("[1]", "QMP input must be a JSON object"),
            ("{}", "QMP input lacks member 'execute'"),
            (r#"{"x":5}"#, "QMP input member 'x' is unexpected"),
            (r#"{"execute":5}"#, "QMP input member 'execute' must be a string"),
            (r#"{"execute":"a","arguments":[]}"#, "QMP input member 'arguments' must be an object"),
            (r#"{"exec-oob":"a"}"#, "QMP input member 'exec-oob' is unexpected"),
        ] {
            assert_eq!(wrong(text), (desc.to_owned(), None), "{text}");
        }
        let text = r#"{"execute":"query-status","id":{"a":[7]},"foo":1}"#;
        assert_eq!(wrong(text), ("QMP input member 'foo' is unexpected".into(), Some(json!({"a": [7]}))));
    }

    #[test]
    fn arguments_are_of_their_type_and_all_are_taken() {
        let read = |v: Value| {
            let Value::Object(m) = v else { panic!() };
            let mut a = Arguments(m);
            let name = a.need_text("name")?;
            let up = a.need_flag("up")?;
            a.end()?;
            Ok::<_, Refusal>((name, up))
        };
        let desc = |v| read(v).unwrap_err().desc;
        assert_eq!(read(json!({"name": "a", "up": true})), Ok(("a".into(), true)));
        assert_eq!(desc(json!({"name": "a"})), "Parameter 'up' is missing");
        assert_eq!(
            desc(json!({"name": 1, "up": true})),
            "Invalid parameter type for 'name', expected: string"
        );
        assert_eq!(
            desc(json!({"name": "a", "up": "x"})),
            "Invalid parameter type for 'up', expected: boolean"
        );
        assert_eq!(desc(json!({"name": "a", "up": true, "z\n": 0})), "Parameter 'z?' is unexpected");
    }

    #[test]
    fn answers_carry_the_id_as_it_was() {
        assert_eq!(answer(Ok(json!({})), Some(Value::Null)), json!({"return": {}, "id": null}));
        let error = json!({"error": {"class": "DeviceNotFound", "desc": "Device 'a' not found"}});
        assert_eq!(answer(Err(Refusal::no_device("a")), None), error);
        let e = event("X", json!({"a": 1}));
        assert!(e["timestamp"]["seconds"].as_u64() > Some(1_700_000_000));
        assert!(greeting()["QMP"]["capabilities"].as_array().is_some_and(Vec::is_empty));
    }
}
