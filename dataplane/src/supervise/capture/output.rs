//! Opening what a capture is written to.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use super::format::About;
use super::{Capture, Target};
use crate::fault::{Exit, Fault};
use crate::spec::Config;
use crate::spec::filter::{Filter, Filters, Output};
use crate::sys;

/// Opens a file for a capture: made with mode 0600, since it holds what others send, or emptied. A FIFO has to have a
/// reader.
///
/// # Errors
/// It cannot be opened.
pub fn open(what: &str, path: &Path) -> Result<OwnedFd, Fault> {
    let failed = |e: io::Error| {
        let (exit, fix) = match e.kind() {
            io::ErrorKind::PermissionDenied => (Exit::Denied, "name a file that you may write to"),
            _ if e.raw_os_error() == Some(libc::ENXIO) => (Exit::Unavailable, "start its reader first"),
            _ => (Exit::Unavailable, "name a file in a directory that is there"),
        };
        Fault::new(exit, format!("{what}: net dump: can't open {}", path.display()), e, fix)
    };
    let mut options = File::options();
    options.write(true).create(true).mode(0o600);
    // A FIFO without a reader is an error and not a wait.
    let fifo = std::fs::metadata(path).is_ok_and(|m| m.file_type().is_fifo());
    if fifo {
        options.create(false).custom_flags(libc::O_NONBLOCK);
    }
    let file = options.open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_file() {
        file.set_len(0).map_err(failed)?;
    }
    Ok(file.into())
}

/// Takes over the descriptors that the command line names: before anything else is opened.
///
/// # Errors
/// One is not there.
pub fn adopt(filters: &Filters) -> Result<Vec<Option<OwnedFd>>, Fault> {
    let take = |f: &Filter| {
        let Some(n) = f.inherited() else { return Ok(None) };
        sys::process::adopt(n).map(Some).map_err(|e| {
            let what = format!("object '{}': using descriptor {n}", f.id());
            Fault::new(Exit::Config, what, e, "let netreeve inherit it: in a shell, 3>FILE after the command")
        })
    };
    filters.iter().map(take).collect()
}

/// Starts the captures of a run. `outputs` are what was handed over for them.
///
/// # Errors
/// An output cannot be opened.
pub fn begin(config: &Config, outputs: Vec<Option<OwnedFd>>) -> Result<Vec<Capture>, Fault> {
    let mut captures = Vec::new();
    for ((number, filter), output) in (0_u16..).zip(&config.filters).zip(outputs) {
        let Filter::Dump(dump) = filter else { continue };
        let what = format!("object '{}'", dump.id);
        let output = match (output, &dump.output) {
            (Some(fd), _) => fd,
            (None, Output::File(path)) => open(&what, path)?,
            (None, Output::Fd(_)) => continue,
        };
        let Some(port) = config.ports.get(dump.port) else { continue };
        let about = About {
            format: dump.format,
            keep: dump.maxlen,
            port: port.id.clone(),
            kind: port.kind.name().into(),
            queues: u16::try_from(port.kind.queues()).unwrap_or(u16::MAX),
        };
        let slot = u16::try_from(dump.port).unwrap_or(u16::MAX);
        let target = Target { id: dump.id.clone(), number, slot };
        let started = Capture::start(target, dump.plan, about, output);
        captures.push(started.map_err(|e| Fault::new(Exit::General, what, e, "netreeve doctor"))?);
    }
    Ok(captures)
}
