//! The `netreeve` program.

use std::process::ExitCode;

#[cfg(all(feature = "fuzz", not(debug_assertions)))]
compile_error!("the feature fuzz is for tests/fuzz alone: a supervisor that has it says nothing");

fn main() -> ExitCode {
    netreeve_dataplane::cli::main()
}
