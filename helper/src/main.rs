//! netreeve's privileged helper: picks its door and serves.
//!
//! - descriptor 3 is a connected socket: one session with whoever started it, then the end;
//! - the service manager passes a listening socket, or `--listen PATH`: the service;
//! - called `qemu-bridge-helper` or `netreeve-bridge-helper`: that program's face;
//! - `--check` and `--explain`: tell about a policy, without any privilege.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    netreeve_helper::entry::run()
}
