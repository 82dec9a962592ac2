//! Other programs' command lines for the fuzz targets: read and made into ours, and nothing is done. Built with the
//! feature `fuzz` only.
//!
//! Promise: the same functions as `netreeve` calls; no process, no socket and no file is made.
#![forbid(unsafe_code)]

use std::ffi::OsString;

use clap::Parser;

use super::attach::qemu::{self, Attach, Memory, Version};
use super::passt::{self, Mode, Scene};
use super::{Cli, Verb};
use crate::fault::Fault;

/// What passt's words come to in those of `netreeve run`; none: something is printed.
///
/// # Errors
/// An option that is none, or that cannot stand.
pub fn passt(words: &[String]) -> Result<Option<Vec<String>>, Fault> {
    Ok(match passt::translate(words, || Some("/run/free.sock".to_owned()))? {
        passt::Plan::Say(_) => None,
        passt::Plan::Run(words, _) => Some(words),
    })
}

/// The `--netdev` that pasta's options come to, and how many words are left.
///
/// # Errors
/// See [`passt`].
pub fn pasta(words: &[String]) -> Result<(String, usize), Fault> {
    let (given, rest) = passt::read(words, Mode::Pasta)?;
    Ok((passt::network(&given, Mode::Pasta)?, rest.len()))
}

/// For whom ports are read.
#[derive(Clone, Copy, Debug)]
pub struct For {
    /// UDP; else TCP.
    pub udp: bool,
    /// The guest has IPv4.
    pub v4: bool,
    /// The guest has IPv6.
    pub v6: bool,
    /// They listen inside a namespace, and lead to the host.
    pub inside: bool,
}

/// The `hostfwd` texts of passt's ports, and those that lead to one port alone.
///
/// # Errors
/// They are none.
pub fn ports(spec: &str, to: u16, who: For) -> Result<(Vec<String>, Vec<String>), Fault> {
    let For { udp, v4, v6, inside } = who;
    let scene = Scene { udp, inside, v4, v6, free: false, auto: true, ephemeral: (32_768, 60_999) };
    let ports = passt::read_ports(spec, &scene)?;
    Ok((ports.rules(&scene), ports.rules_to(to, &scene)))
}

/// The netdevs and devices of a `netreeve run`; none: its words are refused.
#[must_use]
pub fn run(words: &[String]) -> Option<(Vec<String>, Vec<String>)> {
    let words = std::iter::once("netreeve").chain(words.iter().map(String::as_str));
    match Cli::try_parse_from(words).ok()?.command {
        Verb::Run(run) => Some((run.ports.netdev, run.device)),
        _ => None,
    }
}

/// Where QEMU's words begin, if the command is QEMU or starts it.
#[must_use]
pub fn find(words: &[OsString]) -> Option<usize> {
    qemu::find(words)
}

/// What is seen in a QEMU command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The guest's memory is shared.
    pub shared: bool,
    /// It would be with so many bytes more.
    pub adds: Option<u64>,
    /// The front-end that the machine takes.
    pub model: Option<&'static str>,
    /// Names of netdevs.
    pub netdevs: Vec<String>,
    /// Front-ends: driver and netdev.
    pub fronts: Vec<(String, String)>,
    /// It must be one whose state can be saved, it goes to the background, it is run by KVM.
    pub is: [bool; 3],
}

/// Reads QEMU's words, its name first.
#[must_use]
pub fn read(words: &[OsString]) -> Seen {
    let line = qemu::read(words);
    Seen {
        shared: line.memory == Memory::Shared,
        adds: if let Memory::Add(n) = line.memory { Some(n) } else { None },
        model: line.model,
        is: [line.moves.is_some(), line.daemonize, line.kvm],
        netdevs: line.netdevs,
        fronts: line.fronts,
    }
}

/// How a netdev is attached.
#[derive(Clone, Copy, Debug)]
pub struct How<'a> {
    /// Its name.
    pub id: &'a str,
    /// Its socket.
    pub path: &'a str,
    /// By vhost-user; else by a stream.
    pub vhost_user: bool,
    /// Its queues.
    pub queues: usize,
    /// What QEMU says of its version.
    pub version: &'a str,
    /// Its MTU, if the guest is told.
    pub mtu: Option<u16>,
}

/// The words with what attaches a netdev, the name that it has there, and whether it has a front-end already.
#[must_use]
pub fn attach(words: &[OsString], how: &How<'_>) -> (Vec<OsString>, String, bool) {
    let How { id, path, vhost_user, queues, version, mtu } = *how;
    let line = qemu::read(words);
    let added = line.attach(&Attach { id, path, vhost_user, queues, version: Version::read(version), mtu });
    let shared = if vhost_user { line.share() } else { Vec::new() };
    let all = words.iter().cloned().chain(shared.into_iter().chain(added).map(OsString::from));
    (all.collect(), line.name(id), line.front(id).is_some())
}
