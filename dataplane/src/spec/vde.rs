//! `vde`: a port of a VDE switch (`vde_switch`), as QEMU's backend of that name has it, without libvdeplug.
//!
//! QEMU hands `sock=` to libvdeplug, which knows many more networks than switches (VNLs, vde_plug(1)): here it is a
//! switch's directory, and what else there is is reached by `vde_plug` on a descriptor. With `server=on`, which is ours, it
//! is the switch itself: others plug into a hub.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use crate::fault::Fault;
use crate::port::hub::Learning;
use crate::spec::fields::Fields;
use crate::spec::{Kind, hub};

/// A port of a switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vde {
    /// The switch's directory; none: the first of the usual ones where there is a switch.
    pub dir: Option<PathBuf>,
    /// The port that is wanted; 0: any.
    pub port: u16,
    /// The group that our data socket is given to.
    pub group: Option<String>,
    /// The data socket's permission bits.
    pub mode: Option<u32>,
    /// Dial again after so many milliseconds when the switch is gone; 0: never. None: once at the start, which must
    /// succeed, and then again every second.
    pub reconnect_ms: Option<u32>,
    /// The MTU in bytes behind the switch.
    pub mtu: u16,
}

/// A switch of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its directory.
    pub dir: PathBuf,
    /// The hub that clients are joined to; none: one of its own.
    pub hub: Option<i32>,
    /// Most clients at a time.
    pub clients: u16,
    /// Most of them that are one user's; none: all may be.
    pub per_user: Option<u16>,
    /// The group that may plug in.
    pub group: Option<String>,
    /// The permission bits of its control socket.
    pub mode: Option<u32>,
    /// The largest MTU in bytes of what clients get.
    pub mtu: u16,
    /// Addresses are learned.
    pub learning: Option<Learning>,
    /// Clients reach each other no more than isolated members of the hub.
    pub isolated: bool,
}

/// Clients of a switch, unless given: as many as `vde_switch` has ports.
const CLIENTS: u16 = 32;
/// The most that may be asked for.
pub const MOST_CLIENTS: u16 = 128;
/// Longest path of a switch's directory: `/ctl` stands behind it, or a name of at most 17 bytes.
const MAX_DIR: usize = 89;
/// `vde_switch` cuts off what is longer, without a word.
const MTU: u16 = 1500;
/// The largest of libvdeplug.
const MAX_MTU: u16 = 9216;

/// Reads the options of `vde`.
///
/// # Errors
/// What cannot stand.
pub fn read(f: &mut Fields) -> Result<Kind, Fault> {
    if f.flag("server")?.unwrap_or(false) { serve(f).map(Kind::Switch) } else { plug(f).map(Kind::Vde) }
}

fn serve(f: &mut Fields) -> Result<Server, Fault> {
    let sock = f.need("sock", "name the switch's directory: sock=DIR")?;
    let (dir, port) = switch(f, &sock)?;
    if port.is_some() {
        let fix = "leave [PORT] out: clients say which port they want";
        return Err(f.fault(format!("sock={sock} is a port of a switch, not a switch"), fix));
    }
    f.refuse("port", "clients say which port they want", "leave it out")?;
    f.refuse("reconnect-ms", "a switch is plugged into", "leave it out")?;
    let hub = f.text("hubid").map(|text| hub::number(f, &text)).transpose()?;
    let clients = f.number16("clients", 1, MOST_CLIENTS)?.unwrap_or(CLIENTS);
    let per_user = f.number16("per-user", 1, MOST_CLIENTS)?;
    let group = f.text("group");
    let mode = f.number32("mode", 0, 0o777)?;
    let mtu = f.number16("mtu", 68, MAX_MTU)?.unwrap_or(MTU);
    let learning = hub::learning(f, true)?;
    let isolated = f.flag("isolated")?.unwrap_or(false);
    Ok(Server { dir, hub, clients, per_user, group, mode, mtu, learning, isolated })
}

fn plug(f: &mut Fields) -> Result<Vde, Fault> {
    let sock = f.text("sock");
    let (dir, in_sock) = match sock.as_deref() {
        None => (None, None),
        Some(text) => {
            let (dir, port) = switch(f, text)?;
            (Some(dir), port)
        }
    };
    let given = f.number16("port", 0, u16::MAX)?;
    if given.is_some() && in_sock.is_some() {
        return Err(f.fault("the port is given twice: in sock= and in port=", "leave one of them out"));
    }
    let group = f.text("group");
    let mode = f.number32("mode", 0, 0o777)?;
    let reconnect_ms = f.number32("reconnect-ms", 0, u32::MAX)?;
    let mtu = f.number16("mtu", 68, MAX_MTU)?.unwrap_or(MTU);
    Ok(Vde { dir, port: given.or(in_sock).unwrap_or(0), group, mode, reconnect_ms, mtu })
}

/// `DIR`, `DIR[PORT]`, with or without `vde://`.
fn switch(f: &Fields, text: &str) -> Result<(PathBuf, Option<u16>), Fault> {
    let text = text.strip_prefix("vde://").unwrap_or(text);
    if text.contains("://") {
        let fix = format!(
            "let vde_plug speak it: give stream,framing=seqpacket,addr.type=fd,addr.str=N, and the other end of that \
             socket pair to 'vde_plug {text} seqpacket://FD'"
        );
        return Err(f.fault(format!("sock={text} is no switch's directory"), fix));
    }
    let (dir, port) = match text.strip_suffix(']').and_then(|t| t.rsplit_once('[')) {
        None => (text, None),
        Some((dir, port)) => match port.parse() {
            Ok(n) => (dir, Some(n)),
            Err(_) => {
                return Err(f.bad_value("sock", text, "DIR or DIR[PORT], with a port from 0 to 65535"));
            }
        },
    };
    if dir.is_empty() || dir.len() > MAX_DIR {
        let why = format!("the switch's directory '{dir}' is too long or empty");
        return Err(f.fault(why, format!("it has 1 to {MAX_DIR} bytes: its sockets lie in it")));
    }
    Ok((PathBuf::from(dir), port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Config;

    fn vde(text: &str) -> Result<Vde, String> {
        let config = Config::read(&[text.to_owned()], &[], None).map_err(|f| f.why)?;
        match &config.ports[0].kind {
            Kind::Vde(v) => Ok(v.clone()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_option() {
        let plain = Vde { dir: None, port: 0, group: None, mode: None, reconnect_ms: None, mtu: 1500 };
        let at = |dir: &str| Vde { dir: Some(dir.into()), ..plain.clone() };
        let table = [
            ("vde,id=n", plain.clone()),
            ("vde,id=n,sock=/run/s", at("/run/s")),
            ("vde,id=n,sock=vde:///run/s", at("/run/s")),
            ("vde,id=n,sock=/run/s[7]", Vde { port: 7, ..at("/run/s") }),
            ("vde,id=n,sock=vde://s[]x", at("s[]x")),
            ("vde,id=n,port=65535", Vde { port: 65535, ..plain.clone() }),
            (
                "vde,id=n,group=kvm,mode=0770",
                Vde { group: Some("kvm".into()), mode: Some(0o770), ..plain.clone() },
            ),
            ("vde,id=n,reconnect-ms=0", Vde { reconnect_ms: Some(0), ..plain.clone() }),
            ("vde,id=n,reconnect-ms=20", Vde { reconnect_ms: Some(20), ..plain.clone() }),
            ("vde,id=n,mtu=9216", Vde { mtu: 9216, ..plain }),
        ];
        for (text, want) in table {
            assert_eq!(vde(text), Ok(want), "{text}");
        }
    }

    fn server(text: &str) -> Result<(Server, Vec<String>), String> {
        let config = Config::read(&[text.to_owned()], &[], None).map_err(|f| f.why)?;
        match &config.ports[0].kind {
            Kind::Switch(s) => Ok((s.clone(), config.warnings)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_option_of_a_switch() {
        let learns = |ageing, most| Some(Learning { ageing, most });
        let plain = Server {
            dir: "/run/s".into(),
            hub: None,
            clients: 32,
            per_user: None,
            group: None,
            mode: None,
            mtu: 1500,
            learning: learns(300, 256),
            isolated: false,
        };
        let table = [
            ("", plain.clone()),
            (",hubid=-1", Server { hub: Some(-1), ..plain.clone() }),
            (",clients=128,mtu=9216", Server { clients: 128, mtu: 9216, ..plain.clone() }),
            (",per-user=3", Server { per_user: Some(3), ..plain.clone() }),
            (
                ",mode=0660,group=kvm",
                Server { mode: Some(0o660), group: Some("kvm".into()), ..plain.clone() },
            ),
            (",learning=off,isolated=on", Server { learning: None, isolated: true, ..plain.clone() }),
            (",ageing=7,max-learned=8", Server { learning: learns(7, 8), ..plain }),
        ];
        for (more, want) in table {
            let got = server(&format!("vde,id=n,server=on,sock=/run/s{more}"));
            assert_eq!(got, Ok((want, vec![])), "{more}: nobody has to be its peer");
        }
        let table = [
            ("", "Parameter 'sock' is missing"),
            (",sock=/s[1]", "sock=/s[1] is a port of a switch"),
            (",sock=/s,port=1", "port= is refused"),
            (",sock=/s,reconnect-ms=1", "reconnect-ms= is refused"),
            (",sock=/s,clients=129", "Parameter 'clients' expects a value from 1 to 128"),
            (",sock=/s,clients=0", "Parameter 'clients' expects a value from 1 to 128"),
            (",sock=/s,per-user=0", "Parameter 'per-user' expects a value from 1 to 128"),
            (",sock=/s,hubid=x", "Parameter 'hubid' expects an int64 value"),
            (",sock=/s,learning=off,ageing=1", "'ageing' is of no use without learning=on"),
        ];
        for (more, why) in table {
            let said = server(&format!("vde,id=n,server=on{more}")).unwrap_err();
            assert!(said.starts_with(why), "{more}: {said}");
        }
        let text = "vde,id=n,sock=/s,hubid=1".to_owned();
        assert!(vde(&text).unwrap_err().contains("'hubid'"), "a plug is in no hub of ours");
    }

    #[test]
    fn what_cannot_stand() {
        let long = format!("vde,id=n,sock={}", "x".repeat(90));
        let table = [
            ("vde,id=n,sock=slirp://", "sock=slirp:// is no switch's directory"),
            ("vde,id=n,sock=/s[x]", "Parameter 'sock' does not accept value '/s[x]'"),
            ("vde,id=n,sock=/s[1],port=1", "the port is given twice: in sock= and in port="),
            ("vde,id=n,sock=", "the switch's directory '' is too long or empty"),
            (&long, "the switch's directory"),
            ("vde,id=n,mode=01000", "Parameter 'mode' expects a value from 0 to 511"),
            ("vde,id=n,port=65536", "Parameter 'port' expects a value from 0 to 65535"),
            ("vde,id=n,mtu=9217", "Parameter 'mtu' expects a value from 68 to 9216"),
            ("vde,id=n,fd=3", "Invalid parameter 'fd'"),
        ];
        for (text, why) in table {
            let said = vde(text).unwrap_err();
            assert!(said.starts_with(why), "{text}: {said}");
        }
    }
}
