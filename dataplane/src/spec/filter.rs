//! `--object`: QEMU's network filters on any port.
//!
//! `filter-dump` writes the frames of a port to a file: QEMU's keys with QEMU's meanings, and `fd` and `format`, which
//! QEMU does not have. `filter-mirror`, `filter-redirector` and `filter-buffer` are QEMU's; `outdev` and `indev` name
//! **ports** that have no peer, where QEMU has character devices: a `stream` is what QEMU's socket would be. Unlike QEMU's
//! they are for any port, vhost-user and multi-queue included.
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

/// A filter that steps in, or makes copies for another port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its name.
    pub id: String,
    /// Index of its port.
    pub port: usize,
    /// Which frames it is for.
    pub queue: Queue,
    /// `status`.
    pub on: bool,
    /// What it does.
    pub what: What,
}

/// What such a filter does. Other ports are named by their indices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// `filter-mirror`: copies go to `out`.
    Mirror {
        /// `outdev`.
        out: usize,
        /// `vnet_hdr_support`.
        header: bool,
    },
    /// `filter-redirector`: frames go to `out`, and frames come from `from`.
    Redirector {
        /// `outdev`.
        out: Option<usize>,
        /// `indev`.
        from: Option<usize>,
        /// `vnet_hdr_support`.
        header: bool,
    },
    /// `filter-buffer`: frames are held for `interval` microseconds.
    Buffer {
        /// `interval`.
        interval: u32,
    },
}

impl Step {
    /// Ports that it puts frames out at, or takes frames from.
    pub fn asides(&self) -> impl Iterator<Item = usize> {
        let (out, from) = match self.what {
            What::Mirror { out, .. } => (Some(out), None),
            What::Redirector { out, from, .. } => (out, from),
            What::Buffer { .. } => (None, None),
        };
        out.into_iter().chain(from)
    }

    /// The port that frames come from.
    #[must_use]
    pub fn from(&self) -> Option<usize> {
        if let What::Redirector { from, .. } = self.what { from } else { None }
    }

    /// A virtio-net header goes with each frame.
    #[must_use]
    pub fn header(&self) -> bool {
        matches!(self.what, What::Mirror { header: true, .. } | What::Redirector { header: true, .. })
    }
}

/// A filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// It looks on.
    Dump(Dump),
    /// It does more.
    Step(Step),
}

impl Filter {
    /// Its name.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Dump(d) => &d.id,
            Self::Step(s) => &s.id,
        }
    }

    /// Index of its port.
    #[must_use]
    pub fn port(&self) -> usize {
        match self {
            Self::Dump(d) => d.port,
            Self::Step(s) => s.port,
        }
    }

    /// The descriptor that this process must have inherited.
    #[must_use]
    pub fn inherited(&self) -> Option<i32> {
        if let Self::Dump(d) = self { d.output.inherited() } else { None }
    }
}

/// The filters of a run; those of a port in the order of its chain, head first.
pub type Filters = Vec<Filter>;

/// Names of filters that are there and their ports' indices, in that order.
pub type Chain = Vec<(String, usize)>;

/// Where a filter goes in its port's chain.
enum Place {
    Head,
    Tail,
    Beside(String, bool),
}

/// A filter that was read.
#[derive(Debug)]
pub struct Read {
    /// The filter.
    pub filter: Filter,
    /// Where in the chain it goes.
    pub at: usize,
    /// What the user should hear.
    pub warnings: Vec<String>,
}

/// Reads one object. `ids` are the ports' names.
///
/// # Errors
/// QEMU's complaints and rules.
pub fn read(chain: &Chain, mut f: Fields, ids: &[String]) -> Result<Read, Fault> {
    let kinds = "this version has filter-dump, filter-mirror, filter-redirector and filter-buffer";
    if f.has("type") && f.has("qom-type") {
        return Err(f.fault("Parameter 'qom-type' is there twice", "name the type once"));
    }
    let key = if f.has("type") { "type" } else { "qom-type" };
    let kind = f.need(key, kinds)?;
    match kind.as_str() {
        "filter-dump" | "filter-mirror" | "filter-redirector" | "filter-buffer" => {}
        "filter-rewriter" | "filter-replay" | "colo-compare" => {
            return Err(f.fault("this object is not in this version", kinds));
        }
        other => return Err(f.fault(format!("invalid object type: {other}"), kinds)),
    }
    let id = f.need("id", "name it: id=f0")?;
    if !super::is_identifier(&id) {
        let fix = "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.";
        return Err(f.fault("Parameter 'id' expects an identifier", fix));
    }
    if chain.iter().any(|(i, _)| *i == id) {
        let why = format!("attempt to add duplicate property '{id}' to object");
        return Err(f.fault(why, "give each object its own id"));
    }
    let netdev = f.need("netdev", "name the port: netdev=ID")?;
    let why = "Parameter 'netdev' expects a network backend id";
    let port = port(&f, &netdev, ids, why)?;
    let queue = match f.text("queue").as_deref() {
        None | Some("all") => Queue::All,
        Some("rx") => Queue::Rx,
        Some("tx") => Queue::Tx,
        Some(other) => return Err(f.bad_value("queue", other, "all, rx or tx")),
    };
    let on = match f.text("status").as_deref() {
        None | Some("on" | "true") => true,
        Some("off" | "false") => false,
        Some(other) => return Err(f.bad_value("status", other, "on or off")),
    };
    let place = place(&mut f)?;
    let filter = match kind.as_str() {
        "filter-dump" => Filter::Dump(dump(&mut f, id, port, queue, on)?),
        kind => {
            let what = what(&mut f, kind, ids)?;
            Filter::Step(Step { id, port, queue, on, what })
        }
    };
    let at = index(chain, &f, port, &place)?;
    Ok(Read { filter, at, warnings: f.finish()? })
}

/// The port of this name.
fn port(f: &Fields, name: &str, ids: &[String], why: &str) -> Result<usize, Fault> {
    ids.iter().position(|i| i == name).ok_or_else(|| {
        let fix = fields::nearest(name, ids).map_or_else(String::new, |n| format!("did you mean '{n}'?"));
        f.fault(why, fix)
    })
}

fn dump(f: &mut Fields, id: String, port: usize, queue: Queue, on: bool) -> Result<Dump, Fault> {
    let output = output(f)?;
    let format = format(f, &output)?;
    let maxlen = f.number32("maxlen", 1, u32::try_from(U32).unwrap_or(u32::MAX))?.unwrap_or(MAXLEN);
    let plan = Plan { queue, keep: maxlen, on };
    Ok(Dump { id, port, plan, maxlen, format, output })
}

/// What a filter does that steps in; the words of refusals are QEMU's (net/filter-mirror.c, net/filter-buffer.c).
fn what(f: &mut Fields, kind: &str, ids: &[String]) -> Result<What, Fault> {
    const FIX: &str = "name a port of this netreeve that has no peer, for instance --netdev \
                       stream,id=m0,server=on,addr.type=unix,addr.path=PATH";
    if kind == "filter-buffer" {
        return match f.number32("interval", 0, u32::MAX)? {
            None | Some(0) => {
                Err(f
                    .fault("Parameter 'interval' expects a non-zero interval", "microseconds: interval=1000"))
            }
            Some(interval) => Ok(What::Buffer { interval }),
        };
    }
    let mut device = |key: &str| {
        let Some(name) = f.text(key) else { return Ok(None) };
        let why = format!("Device '{name}' not found");
        port(f, &name, ids, &why).map(Some)
    };
    let out = device("outdev")?;
    let from = if kind == "filter-redirector" { device("indev")? } else { None };
    let header = f.flag("vnet_hdr_support")?.unwrap_or(false);
    if kind == "filter-mirror" {
        return match out {
            Some(out) => Ok(What::Mirror { out, header }),
            None => Err(f.fault("filter mirror needs 'outdev' property set", FIX)),
        };
    }
    match (out, from) {
        (None, None) => {
            let why = "filter redirector needs 'indev' or 'outdev' at least one property set";
            Err(f.fault(why, FIX))
        }
        (Some(a), Some(b)) if a == b => {
            let why = "'indev' and 'outdev' could not be same for filter redirector";
            Err(f.fault(why, "give each a port of its own"))
        }
        (out, from) => Ok(What::Redirector { out, from, header }),
    }
}

/// Reads an object that comes while frames pass: QMP's JSON.
///
/// # Errors
/// Those of [`read`].
pub fn late(text: &str, ids: &[String], chain: &Chain) -> Result<Read, Fault> {
    let what = "object-add";
    let parsed = text::parse(text, |_| true).map_err(|why| Fault::new(Exit::Config, what, why, ""))?;
    read(chain, Fields::new(what.into(), parsed), ids)
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
fn index(chain: &Chain, f: &Fields, port: usize, place: &Place) -> Result<usize, Fault> {
    Ok(match place {
        Place::Tail => chain.len(),
        Place::Head => chain.iter().position(|(_, p)| *p == port).unwrap_or(chain.len()),
        Place::Beside(id, behind) => {
            let at = chain.iter().position(|(i, _)| i == id);
            let at = at.ok_or_else(|| {
                f.fault(format!("filter '{id}' not found"), "name one that is given before")
            })?;
            if chain.get(at).is_some_and(|(_, p)| *p != port) {
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

    fn read_all(objects: &[&str]) -> Result<Vec<Filter>, Fault> {
        let m = |n: &str| format!("stream,id={n},server=on,addr.type=unix,addr.path=/x/{n}");
        let netdevs = ["tap,id=n0".to_owned(), "tap,id=n1".to_owned(), m("m0"), m("m1")];
        let mut config = Config::read(&netdevs, &["vhost-user,netdev=n0,path=p,id=d0".to_owned()], None)?;
        let objects: Vec<String> = objects.iter().map(|o| (*o).to_owned()).collect();
        config.objects(&objects).map(|()| config.filters)
    }

    fn dump() -> Dump {
        Dump {
            id: "f0".into(),
            port: 0,
            plan: Plan { queue: Queue::All, keep: 65536, on: true },
            maxlen: 65536,
            format: Format::Pcap,
            output: Output::File("x.pcap".into()),
        }
    }

    #[test]
    fn every_option_of_filter_dump() {
        for (text, want) in [
            ("filter-dump,id=f0,netdev=n0,file=x.pcap", dump()),
            (
                r#"{"qom-type":"filter-dump","id":"f0","netdev":"n0","file":"x.pcap","status":"off"}"#,
                Dump { plan: Plan { queue: Queue::All, keep: 65536, on: false }, ..dump() },
            ),
            (r#"{"qom-type":"filter-dump","id":"f0","netdev":"n0","file":"x.pcap","status":"on"}"#, dump()),
            ("qom-type=filter-dump,id=f0,netdev=d0,file=x.pcap", Dump { port: 4, ..dump() }),
            (
                "filter-dump,id=f0,netdev=n0,file=x.pcap,maxlen=64,queue=rx,position=tail,insert=behind",
                Dump { plan: Plan { queue: Queue::Rx, keep: 64, on: true }, maxlen: 64, ..dump() },
            ),
            (
                "filter-dump,id=f0,netdev=n1,fd=7,queue=tx,format=pcap-ns",
                Dump {
                    port: 1,
                    plan: Plan { queue: Queue::Tx, keep: 65536, on: true },
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
            let got = read_all(&[text]).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(got, [Filter::Dump(want)], "{text}");
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
            ("netdev=n0,file=x,status=of", "Parameter 'status' does not accept value 'of'"),
            ("netdev=n0,file=x,position=first", "filter position must be 'head', 'tail' or 'id=<id>'"),
            ("netdev=n0,file=x,position=id=g", "filter 'g' not found"),
            ("netdev=n0,file=x,insert=after", "Parameter 'insert' does not accept value 'after'"),
            ("netdev=n0,file=x,format=snoop", "Parameter 'format' does not accept value 'snoop'"),
            ("netdev=n0,file=x,len=5", "Parameter 'len' is unexpected"),
        ] {
            assert_eq!(read_all(&[&format!("filter-dump,id=f0,{more}")]).unwrap_err().why, why, "{more}");
        }
        let one = "filter-dump,id=f0,netdev=n0,file=x";
        assert_eq!(
            read_all(&[one, one]).unwrap_err().why,
            "attempt to add duplicate property 'f0' to object"
        );
        assert_eq!(read_all(&["filter-dmp,id=f0"]).unwrap_err().why, "invalid object type: filter-dmp");
        assert_eq!(
            read_all(&["filter-dump,id=0,netdev=n0"]).unwrap_err().why,
            "Parameter 'id' expects an identifier"
        );
        let other = "filter-dump,id=f1,netdev=n1,file=x,position=id=f0";
        assert_eq!(read_all(&[one, other]).unwrap_err().why, "filter 'f0' belongs to a different netdev");
        let fds = ["filter-dump,id=f0,netdev=n0,fd=5", "filter-dump,id=f1,netdev=n0,fd=5"];
        assert_eq!(read_all(&fds).unwrap_err().why, "descriptor 5 is named twice");
        let old = Config::read(&["dump,id=d,file=x".to_owned()], &[], None).unwrap_err();
        assert!(old.fix.starts_with("--object filter-dump"), "{old}");
    }

    #[test]
    fn places_in_the_chain() {
        let f = |id: &str, more: &str| format!("filter-dump,id={id},netdev=n0,file=x{more}");
        let order = |texts: &[String]| -> String {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            read_all(&texts).unwrap().iter().map(Filter::id).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(order(&[f("a", ""), f("b", ""), f("c", ",position=head")]), "c a b");
        assert_eq!(order(&[f("a", ""), f("b", ""), f("c", ",position=id=a")]), "a c b");
        assert_eq!(order(&[f("a", ""), f("b", ""), f("c", ",position=id=b,insert=before")]), "a c b");
        let file = "[[netdev]]\ntype = 'tap'\nid = 'n0'\n[[object]]\nqom-type = 'filter-dump'\nid = 'f'\n\
                    netdev = 'n0'\nfile = 'x'\nmaxlen = 96\n";
        let config = Config::read(&[], &[], Some(("c", file))).unwrap();
        assert!(matches!(&config.filters[0], Filter::Dump(d) if d.maxlen == 96));
    }

    fn step(what: What) -> Step {
        Step { id: "f0".into(), port: 0, queue: Queue::All, on: true, what }
    }

    #[test]
    fn every_option_of_mirror_redirector_and_buffer() {
        let redirect = |out, from, header| What::Redirector { out, from, header };
        for (text, want) in [
            ("filter-mirror,id=f0,netdev=n0,outdev=m0", step(What::Mirror { out: 2, header: false })),
            (
                "filter-mirror,id=f0,netdev=n0,outdev=m0,queue=rx,status=off,vnet_hdr_support=on",
                Step { queue: Queue::Rx, on: false, ..step(What::Mirror { out: 2, header: true }) },
            ),
            (
                "filter-redirector,id=f0,netdev=d0,outdev=m1",
                Step { port: 4, ..step(redirect(Some(3), None, false)) },
            ),
            ("filter-redirector,id=f0,netdev=n0,indev=m0", step(redirect(None, Some(2), false))),
            (
                "filter-redirector,id=f0,netdev=n0,indev=m0,outdev=m1,vnet_hdr_support=on",
                step(redirect(Some(3), Some(2), true)),
            ),
            ("filter-buffer,id=f0,netdev=n0,interval=1000", step(What::Buffer { interval: 1000 })),
        ] {
            let got = read_all(&[text]).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(got, [Filter::Step(want)], "{text}");
        }
        for (text, why) in [
            ("filter-mirror,id=f0,netdev=n0", "filter mirror needs 'outdev' property set"),
            ("filter-mirror,id=f0,netdev=n0,outdev=x", "Device 'x' not found"),
            ("filter-mirror,id=f0,netdev=n0,outdev=m0,indev=m1", "Parameter 'indev' is unexpected"),
            ("filter-mirror,id=f0,netdev=n0,outdev=n0", "Device 'n0' is in use"),
            ("filter-mirror,id=f0,netdev=m0,outdev=m0", "Device 'm0' is in use"),
            (
                "filter-redirector,id=f0,netdev=n0",
                "filter redirector needs 'indev' or 'outdev' at least one property set",
            ),
            (
                "filter-redirector,id=f0,netdev=n0,indev=m0,outdev=m0",
                "'indev' and 'outdev' could not be same for filter redirector",
            ),
            ("filter-buffer,id=f0,netdev=n0", "Parameter 'interval' expects a non-zero interval"),
            ("filter-buffer,id=f0,netdev=n0,interval=0", "Parameter 'interval' expects a non-zero interval"),
        ] {
            assert_eq!(read_all(&[text]).unwrap_err().why, why, "{text}");
        }
        let twice =
            ["filter-redirector,id=a,netdev=n0,indev=m0", "filter-redirector,id=b,netdev=n1,indev=m0"];
        assert_eq!(read_all(&twice).unwrap_err().why, "Device 'm0' is in use");
        let mixed = [
            "filter-mirror,id=a,netdev=n0,outdev=m0",
            "filter-mirror,id=b,netdev=n1,outdev=m0,vnet_hdr_support=on",
        ];
        assert_eq!(
            read_all(&mixed).unwrap_err().why,
            "vnet_hdr_support differs between filters of port 'm0'"
        );
    }
}
