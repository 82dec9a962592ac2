//! Compiles `src/redirect.bpf.c` with clang for the BPF machine.
//!
//! Needs clang and the kernel's user headers (Debian: `clang`, `linux-libc-dev`). `CLANG` names another compiler.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a build script speaks to cargo and to the person"
)]

use std::path::PathBuf;
use std::process::{Command, ExitCode};

const SOURCE: &str = "src/redirect.bpf.c";

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-env-changed=CLANG");
    match compile() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("cannot compile {SOURCE}: {why}; on Debian: apt install clang linux-libc-dev");
            ExitCode::FAILURE
        }
    }
}

fn compile() -> Result<(), String> {
    let env = |name: &str| std::env::var(name).map_err(|e| format!("{name}: {e}"));
    let out = PathBuf::from(env("OUT_DIR")?).join("redirect.bpf.o");
    // The program must have the byte order of the machine it will run on, not of the one that compiles.
    let target = if env("CARGO_CFG_TARGET_ENDIAN")? == "big" { "bpfeb" } else { "bpfel" };
    let clang = std::env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    let mut command = Command::new(&clang);
    command.args(["-O2", "-g", "-Wall", "-Werror", "-target", target]);
    // Debian keeps asm/types.h in a directory of the architecture, which clang does not search for this target.
    command
        .arg("-idirafter")
        .arg(format!("/usr/include/{}-linux-gnu", debian_arch(&env("CARGO_CFG_TARGET_ARCH")?)));
    command.args(["-c", SOURCE, "-o"]).arg(out);
    let status = command.status().map_err(|e| format!("{clang}: {e}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{clang} ended with {status} (its messages stand above)"))
    }
}

/// The first part of Debian's multiarch triplet where it is not Rust's own name.
fn debian_arch(arch: &str) -> &str {
    match arch {
        "x86" => "i386",
        "powerpc64" => "powerpc64le",
        other => other,
    }
}
