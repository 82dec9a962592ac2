//! The `netreeve` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    netreeve_dataplane::cli::main()
}
