//! `--object`: QEMU's network filters on any port.
//!
//! `filter-dump` writes the frames of a port to a file: QEMU's keys with QEMU's meanings, and `fd` and `format`, which
//! QEMU does not have. Unlike QEMU's it is for any port, vhost-user and multi-queue included.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use crate::fault::{Exit, Fault};
use crate::spec::fields::{self, Fields, U32};
use crate::spec::text;
use crate::stage::Queue;
use crate::stage::capture::Plan;

/// QEMU's default of `maxlen` in bytes.
const MAXLEN: u32 = 65536;

/// How a capture is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Classic pcap with microseconds, as QEMU writes it.
    Pcap,
    /// Classic pcap with nanoseconds.
    PcapNs,
    /// pcapng.
    Pcapng,
}

/// Where a capture is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// A file, made or emptied.
    File(PathBuf),
    /// A descriptor that this process has inherited.
    Fd(i32),
}

impl Output {
    /// The descriptor that this process must have inherited.
    #[must_use]
    pub fn inherited(&self) -> Option<i32> {
        match self {
            Self::Fd(n) => Some(*n),
            Self::File(_) => None,
        }
    }
}

/// A `filter-dump`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dump {
    /// Its name.
    pub id: String,
    /// Index of its port in [`super::Config::ports`].
    pub port: usize,
    /// What is captured.
    pub plan: Plan,
    /// `maxlen` as it was given, which is what the file says.
    pub maxlen: u32,
    /// How it is written.
    pub format: Format,
    /// Where.
    pub output: Output,
}

/// The filters of a run; those of a port in the order of its chain, head first.
pub type Filters = Vec<Dump>;

/// Where a filter goes in its port's chain.
enum Place {
    Head,
    Tail,
    Beside(String, bool),
}

/// Reads one object and puts it into its place. `ids` are the ports' names.
///
/// # Errors
/// QEMU's complaints and rules.
pub fn add(filters: &mut Filters, mut f: Fields, ids: &[String]) -> Result<Vec<String>, Fault> {
    let kinds = "this version has filter-dump";
    if f.has("type") && f.has("qom-type") {
        return Err(f.fault("Parameter 'qom-type' is there twice", "name the type once"));
    }
    let key = if f.has("type") { "type" } else { "qom-type" };
    match f.need(key, kinds)?.as_str() {
        "filter-dump" => {}
        "filter-mirror" | "filter-redirector" | "filter-buffer" | "filter-rewriter" | "filter-replay"
        | "colo-compare" => return Err(f.fault("this object is not in this version", kinds)),
        other => return Err(f.fault(format!("invalid object type: {other}"), kinds)),
    }
    let id = f.need("id", "name it: id=f0")?;
    if !super::is_identifier(&id) {
        let fix = "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.";
        return Err(f.fault("Parameter 'id' expects an identifier", fix));
    }
    if filters.iter().any(|d| d.id == id) {
        let why = format!("attempt to add duplicate property '{id}' to object");
        return Err(f.fault(why, "give each object its own id"));
    }
    let netdev = f.need("netdev", "name the port: netdev=ID")?;
    let port = ids.iter().position(|i| *i == netdev).ok_or_else(|| {
        let fix = fields::nearest(&netdev, ids).map_or_else(String::new, |n| format!("did you mean '{n}'?"));
        f.fault("Parameter 'netdev' expects a network backend id", fix)
    })?;
    let queue = match f.text("queue").as_deref() {
        None | Some("all") => Queue::All,
        Some("rx") => Queue::Rx,
        Some("tx") => Queue::Tx,
        Some(other) => return Err(f.bad_value("queue", other, "all, rx or tx")),
    };
    match f.text("status").as_deref() {
        None | Some("on") => {}
        Some("off") => {
            let fix = "leave the object out, and add it to the running netreeve when it is wanted";
            return Err(f.fault("status=off is not in this version", fix));
        }
        Some(other) => return Err(f.bad_value("status", other, "on")),
    }
    let place = place(&mut f)?;
    let output = output(&mut f)?;
    let format = format(&mut f, &output)?;
    let maxlen = f.number32("maxlen", 1, u32::try_from(U32).unwrap_or(u32::MAX))?.unwrap_or(MAXLEN);
    let at = index(filters, &f, port, &place)?;
    let warnings = f.finish()?;
    let plan = Plan { queue, keep: maxlen };
    filters.insert(at, Dump { id, port, plan, maxlen, format, output });
    Ok(warnings)
}

/// Reads an object that comes while frames pass: QMP's JSON.
///
/// # Errors
/// Those of [`add`].
pub fn late(text: &str, ids: &[String]) -> Result<(Dump, Vec<String>), Fault> {
    let what = "object-add";
    let parsed = text::parse(text, |_| true).map_err(|why| Fault::new(Exit::Config, what, why, ""))?;
    let mut all = Filters::new();
    let warnings = add(&mut all, Fields::new(what.into(), parsed), ids)?;
    let dump = all.pop().ok_or_else(|| Fault::new(Exit::General, what, "no object", ""))?;
    Ok((dump, warnings))
}

fn place(f: &mut Fields) -> Result<Place, Fault> {
    let behind = match f.text("insert").as_deref() {
        None | Some("behind") => true,
        Some("before") => false,
        Some(other) => return Err(f.bad_value("insert", other, "before or behind")),
    };
    Ok(match f.text("position") {
        None => Place::Tail,
        Some(p) => match (p.as_str(), p.strip_prefix("id=")) {
            ("head", _) => Place::Head,
            ("tail", _) => Place::Tail,
            (_, Some(id)) => Place::Beside(id.to_owned(), behind),
            _ => {
                let why = "filter position must be 'head', 'tail' or 'id=<id>'";
                return Err(f.fault(why, "position=tail is the default"));
            }
        },
    })
}

/// Where in the list it goes.
fn index(filters: &Filters, f: &Fields, port: usize, place: &Place) -> Result<usize, Fault> {
    Ok(match place {
        Place::Tail => filters.len(),
        Place::Head => filters.iter().position(|d| d.port == port).unwrap_or(filters.len()),
        Place::Beside(id, behind) => {
            let at = filters.iter().position(|d| d.id == *id);
            let at = at.ok_or_else(|| {
                f.fault(format!("filter '{id}' not found"), "name one that is given before")
            })?;
            if filters.get(at).is_some_and(|d| d.port != port) {
                let why = format!("filter '{id}' belongs to a different netdev");
                return Err(f.fault(why, "name a filter of the same port"));
            }
            at + usize::from(*behind)
        }
    })
}

fn output(f: &mut Fields) -> Result<Output, Fault> {
    let file = f.text("file");
    let fd = f.number32("fd", 0, u32::try_from(i32::MAX).unwrap_or(0))?;
    match (file, fd.and_then(|n| i32::try_from(n).ok())) {
        (Some(_), Some(_)) => Err(f.fault("file= and fd= exclude each other", "give one of them")),
        (Some(file), None) => Ok(Output::File(file.into())),
        (None, Some(fd)) => Ok(Output::Fd(fd)),
        (None, None) => Err(f.fault("dump filter needs 'file' property set!", "file=PATH, or fd=N")),
    }
}

/// QEMU's is classic pcap; a name may say otherwise.
fn format(f: &mut Fields, output: &Output) -> Result<Format, Fault> {
    let by_name = |o: &Output| matches!(o, Output::File(p) if p.extension().is_some_and(|e| e == "pcapng"));
    Ok(match f.text("format").as_deref() {
        Some("pcap") => Format::Pcap,
        Some("pcap-ns") => Format::PcapNs,
        Some("pcapng") => Format::Pcapng,
        Some(other) => return Err(f.bad_value("format", other, "pcap, pcap-ns or pcapng")),
        None if by_name(output) => Format::Pcapng,
        None => Format::Pcap,
    })
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn read(objects: &[&str]) -> Result<Filters, Fault> {
        let netdevs = ["tap,id=n0".to_owned(), "tap,id=n1".to_owned()];
        let mut config = Config::read(&netdevs, &["vhost-user,netdev=n0,path=p,id=d0".to_owned()], None)?;
        let objects: Vec<String> = objects.iter().map(|o| (*o).to_owned()).collect();
        config.objects(&objects).map(|()| config.filters)
    }

    fn dump() -> Dump {
        Dump {
            id: "f0".into(),
            port: 0,
            plan: Plan { queue: Queue::All, keep: 65536 },
            maxlen: 65536,
            format: Format::Pcap,
            output: Output::File("x.pcap".into()),
        }
    }

    #[test]
    fn every_option_of_filter_dump() {
        for (text, want) in [
            ("filter-dump,id=f0,netdev=n0,file=x.pcap", dump()),
            (r#"{"qom-type":"filter-dump","id":"f0","netdev":"n0","file":"x.pcap","status":"on"}"#, dump()),
            ("qom-type=filter-dump,id=f0,netdev=d0,file=x.pcap", Dump { port: 2, ..dump() }),
            (
                "filter-dump,id=f0,netdev=n0,file=x.pcap,maxlen=64,queue=rx,position=tail,insert=behind",
                Dump { plan: Plan { queue: Queue::Rx, keep: 64 }, maxlen: 64, ..dump() },
            ),
            (
                "filter-dump,id=f0,netdev=n1,fd=7,queue=tx,format=pcap-ns",
                Dump {
                    port: 1,
                    plan: Plan { queue: Queue::Tx, keep: 65536 },
                    format: Format::PcapNs,
                    output: Output::Fd(7),
                    ..dump()
                },
            ),
            (
                "filter-dump,id=f0,netdev=n0,file=a.pcapng,queue=all",
                Dump { format: Format::Pcapng, output: Output::File("a.pcapng".into()), ..dump() },
            ),
            (
                "filter-dump,id=f0,netdev=n0,file=a.pcapng,format=pcap",
                Dump { output: Output::File("a.pcapng".into()), ..dump() },
            ),
        ] {
            assert_eq!(read(&[text]).unwrap_or_else(|e| panic!("{text}: {e}")), [want], "{text}");
        }
    }

    #[test]
    fn what_cannot_stand_is_refused_in_qemus_words() {
        for (more, why) in [
            ("netdev=n9,file=x", "Parameter 'netdev' expects a network backend id"),
            ("file=x", "Parameter 'netdev' is missing"),
            ("netdev=n0", "dump filter needs 'file' property set!"),
            ("netdev=n0,file=x,fd=3", "file= and fd= exclude each other"),
            ("netdev=n0,file=x,maxlen=0", "Parameter 'maxlen' expects a value from 1 to 4294967295"),
            ("netdev=n0,file=x,queue=both", "Parameter 'queue' does not accept value 'both'"),
            ("netdev=n0,file=x,status=off", "status=off is not in this version"),
            ("netdev=n0,file=x,status=of", "Parameter 'status' does not accept value 'of'"),
            ("netdev=n0,file=x,position=first", "filter position must be 'head', 'tail' or 'id=<id>'"),
            ("netdev=n0,file=x,position=id=g", "filter 'g' not found"),
            ("netdev=n0,file=x,insert=after", "Parameter 'insert' does not accept value 'after'"),
            ("netdev=n0,file=x,format=snoop", "Parameter 'format' does not accept value 'snoop'"),
            ("netdev=n0,file=x,len=5", "Parameter 'len' is unexpected"),
        ] {
            assert_eq!(read(&[&format!("filter-dump,id=f0,{more}")]).unwrap_err().why, why, "{more}");
        }
        let one = "filter-dump,id=f0,netdev=n0,file=x";
        assert_eq!(read(&[one, one]).unwrap_err().why, "attempt to add duplicate property 'f0' to object");
        assert_eq!(read(&["filter-dmp,id=f0"]).unwrap_err().why, "invalid object type: filter-dmp");
        assert_eq!(
            read(&["filter-dump,id=0,netdev=n0"]).unwrap_err().why,
            "Parameter 'id' expects an identifier"
        );
        let other = "filter-dump,id=f1,netdev=n1,file=x,position=id=f0";
        assert_eq!(read(&[one, other]).unwrap_err().why, "filter 'f0' belongs to a different netdev");
        let fds = ["filter-dump,id=f0,netdev=n0,fd=5", "filter-dump,id=f1,netdev=n0,fd=5"];
        assert_eq!(read(&fds).unwrap_err().why, "descriptor 5 is named twice");
        let old = Config::read(&["dump,id=d,file=x".to_owned()], &[], None).unwrap_err();
        assert!(old.fix.starts_with("--object filter-dump"), "{old}");
    }

    #[test]
    fn places_in_the_chain() {
        let f = |id: &str, more: &str| format!("filter-dump,id={id},netdev=n0,file=x{more}");
        let order = |texts: &[String]| -> String {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            read(&texts).unwrap().iter().map(|d| d.id.as_str()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(order(&[f("a", ""), f("b", ""), f("c", ",position=head")]), "c a b");
        assert_eq!(order(&[f("a", ""), f("b", ""), f("c", ",position=id=a")]), "a c b");
        assert_eq!(order(&[f("a", ""), f("b", ""), f("c", ",position=id=b,insert=before")]), "a c b");
        let file = "[[netdev]]\ntype = 'tap'\nid = 'n0'\n[[object]]\nqom-type = 'filter-dump'\nid = 'f'\n\
                    netdev = 'n0'\nfile = 'x'\nmaxlen = 96\n";
        let config = Config::read(&[], &[], Some(("c", file))).unwrap();
        assert_eq!(config.filters[0].maxlen, 96);
    }
}
