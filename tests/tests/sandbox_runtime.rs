//! What the Rust runtime and the allocator do by themselves is inside the sandbox's filter, tried in a process of its
//! own with one thread and a heap that nobody has used, as the dataplane starts. (A test harness has threads.)
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::undocumented_unsafe_blocks,
    clippy::print_stderr,
    reason = "a test fails by panicking"
)]

use netreeve_dataplane::handover::Level;
use netreeve_dataplane::sandbox::seccomp::LOCKS;
use netreeve_dataplane::sandbox::{Needs, Sockets, Walls, walls};
use netreeve_dataplane::sys::process::leave;
use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Barrier};
use std::time::Instant;

/// SIGABRT.
const ABORTED: i32 = 6;
/// SIGSEGV.
const FAULTED: i32 = 11;

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("threads") => threads(),
        Some("abort") => abort(),
        Some("fault") => fault(),
        Some("sent") => sent(),
        // A harness asks for the list of tests with this.
        Some("--list") => {}
        _ => {
            let ended = itself("threads");
            assert_eq!(ended.code(), Some(42), "threads in the sandbox: {ended}");
            let ended = itself("abort");
            assert_eq!(ended.signal(), Some(ABORTED), "abort in the sandbox: {ended}");
            let ended = itself("fault");
            assert_eq!(ended.signal(), Some(FAULTED), "a fault in the sandbox: {ended}");
            let ended = itself("sent");
            assert_eq!(ended.signal(), Some(FAULTED), "a fault sent to the sandbox: {ended}");
            eprintln!("threads allocate and end, a bug aborts, a fault is one: ok");
        }
    }
}

fn itself(what: &str) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap()).arg(what).env_clear().status().unwrap()
}

fn enter() -> Walls {
    walls(&Needs {
        at_least: Level::Seccomp,
        keep: &[],
        more_fds: 8,
        sockets: Sockets::None,
        binds: false,
        files: None,
    })
    .unwrap()
}

fn threads() {
    let walls = enter();
    let meet = Arc::new(Barrier::new(17));
    let (tell, told) = std::sync::mpsc::channel();
    for _ in 0..16 {
        let (meet, tell) = (Arc::clone(&meet), tell.clone());
        std::thread::spawn(move || {
            meet.wait();
            meet.wait();
            tell.send(busy()).unwrap();
            // Workers never end: the calls for that are not there.
            loop {
                std::thread::park();
            }
        });
    }
    meet.wait();
    walls.seal(&[LOCKS]).unwrap();
    meet.wait();
    let sizes: usize = told.iter().take(16).sum();
    leave(if sizes == 16 * 14 { 42 } else { 1 })
}

/// The heap grows, moves and shrinks; a hash table takes its seed; a clock is read.
fn busy() -> usize {
    let mut all = Vec::new();
    for n in 0..14 {
        let mut v = vec![n; 100];
        v.resize(100 << n, n);
        all.push(v);
    }
    let begun: HashMap<_, _> = all.iter().map(|v| (v.len(), Instant::now())).collect();
    all.clear();
    begun.len()
}

fn abort() {
    enter().seal(&[]).unwrap();
    std::process::abort()
}

/// A read where nothing is mapped, which Rust's own handler would look at first.
fn fault() {
    enter().seal(&[]).unwrap();
    let nowhere = std::ptr::without_provenance::<u8>(4096);
    leave(unsafe { nowhere.read_volatile() })
}

/// A SIGSEGV from outside, as whoever tests a restart would send it.
fn sent() {
    let walls = enter();
    let me = std::process::id().cast_signed();
    unsafe { libc::kill(me, FAULTED) };
    drop(walls);
}
