//! `netreeve capture`: the frames of a port of a running instance, to a file or a pipe, until told to end.
//!
//! This program opens the output and hands it over; frames never pass through here. The instance ends the capture when
//! this connection ends, whatever ended it.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

use super::talk::{Found, Talk};
use super::{Capture, Instance, get, harmless, print_json};
use crate::fault::{Exit, Fault};
use crate::supervise::{Signals, capture as output, say};

/// The name of the descriptor that is handed over.
const FD: &str = "output";

pub(in crate::cli) fn capture(arguments: &Capture) -> Result<u8, Fault> {
    let at = Found::named(&arguments.name)?;
    let instance = Instance::ask(&at)?;
    let port = port(arguments, &instance)?;
    // Before the thread, so that it alone hears of them.
    let signals = Signals::new()?;
    let fd = open(&arguments.write)?;
    let mut talk = Talk::open(&at)?;
    talk.give(FD, fd.as_fd())?;
    let id = format!("capture-{}", std::process::id());
    let object = json!({
        "qom-type": "filter-dump", "id": id, "netdev": port, "fd": FD, "netreeve-tied": true,
        "maxlen": arguments.maxlen, "queue": arguments.queue.name(), "format": format(arguments),
    });
    talk.ask("object-add", object)?;
    drop(fd);
    say::say(&format!("capturing frames of port '{port}'; interrupt to end"));
    let stop = talk.stream()?;
    let request = json!({ "execute": "object-del", "arguments": { "id": id } });
    std::thread::spawn(move || end_when_told(signals, stop, &request));
    let totals = loop {
        let Some(event) = talk.event()? else {
            let what = format!("capture of port '{port}'");
            return Err(Fault::new(Exit::Unavailable, what, "the instance has ended", ""));
        };
        let text = |at: &str| event.pointer(at).and_then(Value::as_str);
        if text("/event") == Some("NETREEVE_CAPTURE_ENDED") && text("/data/id") == Some(&id) {
            break event;
        }
    };
    let number = |at: &str| totals.pointer(at).and_then(Value::as_u64).unwrap_or(0);
    let lost = number("/data/lost").saturating_add(number("/data/failed"));
    if !arguments.json {
        say::say(&format!("{} frames captured, {lost} lost", number("/data/written")));
        return Ok(0);
    }
    let data = get(&totals, "data");
    if arguments.write.as_os_str() == "-" {
        // Standard output is the capture.
        let line = harmless(data);
        return match writeln!(std::io::stderr(), "{line}") {
            Ok(()) => Ok(0),
            Err(e) => Err(Fault::new(Exit::General, "writing to standard error", e, "")),
        };
    }
    print_json(data).map(|()| 0)
}

/// A signal ends the capture; a second one ends the waiting for its end.
fn end_when_told(mut signals: Signals, mut stream: UnixStream, request: &Value) {
    let mut asked = false;
    loop {
        // Interrupted or not, what there is to do is seen below.
        let _woken = poll(&mut [PollFd::new(signals.fd(), PollFlags::POLLIN)], PollTimeout::NONE);
        while let Some((signal, _)) = signals.next() {
            if matches!(signal, nix::sys::signal::Signal::SIGCHLD | nix::sys::signal::Signal::SIGUSR1) {
                continue;
            }
            let sent = !asked && stream.write_all(format!("{request}\n").as_bytes()).is_ok();
            asked = true;
            if !sent {
                // Whoever reads it sees its end.
                let _closed = stream.shutdown(std::net::Shutdown::Both);
            }
        }
    }
}

/// The port that is named, or the only netdev.
fn port(arguments: &Capture, instance: &Instance) -> Result<String, Fault> {
    let ids = |all: bool| {
        let ports = instance.ports.iter().filter(move |p| all || p["role"] == "netdev");
        ports.filter_map(|p| p["id"].as_str()).collect::<Vec<_>>()
    };
    let fault = |why: String| {
        let fix = format!("its ports: {}", crate::fault::plain(&ids(true).join(", ")));
        Fault::new(Exit::Unavailable, format!("capture of {}", arguments.name), why, fix)
    };
    match (&arguments.port, ids(false).as_slice()) {
        (Some(p), _) if ids(true).contains(&p.as_str()) => Ok(p.clone()),
        (Some(p), _) => Err(fault(format!("there is no port '{p}'"))),
        (None, [only]) => Ok((*only).to_owned()),
        (None, several) => Err(fault(format!("it has {} netdevs: name a port", several.len()))),
    }
}

fn open(to: &Path) -> Result<OwnedFd, Fault> {
    if to.as_os_str() != "-" {
        return output::open("capture", to);
    }
    let stdout = std::io::stdout();
    if stdout.is_terminal() {
        let fix = "pipe it: netreeve capture NAME -w - | tcpdump -nr -";
        return Err(Fault::new(Exit::Usage, "capture -w -", "standard output is a terminal", fix));
    }
    let copy = stdout.as_fd().try_clone_to_owned();
    copy.map_err(|e| Fault::new(Exit::General, "capture -w -", e, "give it a file or a pipe"))
}

/// pcapng, unless something else is asked for, be it by a name.
fn format(arguments: &Capture) -> &'static str {
    let named_pcap = arguments.write.extension().is_some_and(|e| e == "pcap");
    match arguments.format {
        Some(f) => f.name(),
        None if named_pcap => "pcap",
        None => "pcapng",
    }
}
